//! Verifies certificates against authorities with WebPKI, and also accepts the usual self-signed certificate.
//!
//! Most private registries create their certificate with `openssl req -x509`. That certificate is its own authority
//! (`CA:TRUE`), and operators configure it as the trusted authority. WebPKI rejects an authority as the certificate of
//! a server. Go, OpenSSL and therefore all container clients accept it, because it *is* what the operator trusts
//! (in RFC 5280, section 6.1, a path begins with a trust anchor).
//!
//! Threat: a certificate issued by an authority must not be able to pass as that authority. So this rule applies only
//! to a certificate that equals one of the anchors byte for byte. The peer proves in the handshake that it has the
//! key, and validity, names and purpose are checked here. In all other cases, WebPKI's result is final.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};
use sha2::{Digest, Sha256};
use x509_cert::der::Decode;
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::ext::pkix::ExtendedKeyUsage;

use super::algorithms::provider;

const SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
const CLIENT_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");
const ANY_PURPOSE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37.0");

/// Trusted certificates, each stored as the SHA-256 of its bytes: there are about 150, and each agent has a copy.
#[derive(Debug)]
struct Anchors(Vec<[u8; 32]>);

impl Anchors {
    /// The anchors, and the root store for WebPKI.
    fn new(certificates: Vec<CertificateDer<'static>>) -> (Anchors, Arc<RootCertStore>) {
        let anchors = certificates.iter().map(|each| Sha256::digest(each).into()).collect();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates);
        (Anchors(anchors), Arc::new(roots))
    }

    /// Accepts a certificate that WebPKI rejected if it is an anchor and valid.
    fn reconsider(
        &self,
        rejection: Error,
        certificate: &CertificateDer<'_>,
        purpose: ObjectIdentifier,
        now: UnixTime,
    ) -> Result<(), Error> {
        match self.0.contains(&Sha256::digest(certificate).into()) {
            true => check(certificate, purpose, now),
            false => Err(rejection),
        }
    }
}

/// Checks validity period and purpose.
fn check(
    certificate: &CertificateDer<'_>,
    purpose: ObjectIdentifier,
    now: UnixTime,
) -> Result<(), Error> {
    let parsed = x509_cert::Certificate::from_der(certificate)
        .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
    let contents = parsed.tbs_certificate();
    let validity = contents.validity();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs());
    let unix = |time: SystemTime| {
        UnixTime::since_unix_epoch(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
    };
    let (from, until) = (validity.not_before.to_system_time(), validity.not_after.to_system_time());
    if time < from {
        let error = CertificateError::NotValidYetContext { time: now, not_before: unix(from) };
        return Err(error.into());
    }
    if time > until {
        let error = CertificateError::ExpiredContext { time: now, not_after: unix(until) };
        return Err(error.into());
    }
    let usage = contents.get_extension::<ExtendedKeyUsage>();
    match usage.map_err(|_| Error::from(CertificateError::BadEncoding))? {
        Some((_, ExtendedKeyUsage(purposes)))
            if !purposes.iter().any(|each| *each == purpose || *each == ANY_PURPOSE) =>
        {
            Err(CertificateError::InvalidPurpose.into())
        }
        _ => Ok(()),
    }
}

/// Verifies the signature by which the peer proves in the handshake that it has the key of its certificate. The
/// algorithms are those for certificates. The result does not depend on whether the certificate is trusted.
macro_rules! handshake_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = provider().signature_verification_algorithms;
            rustls::crypto::verify_tls12_signature(message, certificate, signature, &algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = provider().signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            provider().signature_verification_algorithms.supported_schemes()
        }
    };
}

/// Verifies the certificates of servers.
#[derive(Debug)]
struct ServerVerifier {
    webpki: Arc<WebPkiServerVerifier>,
    anchors: Anchors,
}

/// Creates a verifier of servers that trusts these authorities.
///
/// # Errors
/// [`Error`] if none of the certificates can be used.
pub fn server_verifier(
    anchors: Vec<CertificateDer<'static>>,
) -> Result<Arc<dyn ServerCertVerifier>, Error> {
    let (anchors, roots) = Anchors::new(anchors);
    let builder = WebPkiServerVerifier::builder_with_provider(roots, provider());
    let webpki = builder.build().map_err(|error| Error::General(error.to_string()))?;
    Ok(Arc::new(ServerVerifier { webpki, anchors }))
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.webpki.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        verified.or_else(|rejection| {
            self.anchors.reconsider(rejection, end_entity, SERVER_AUTH, now)?;
            let parsed = ParsedCertificate::try_from(end_entity)?;
            rustls::client::verify_server_name(&parsed, server_name)?;
            Ok(ServerCertVerified::assertion())
        })
    }

    handshake_signatures!();
}

/// Verifies the certificates of clients.
#[derive(Debug)]
struct ClientVerifier {
    webpki: Arc<dyn ClientCertVerifier>,
    anchors: Anchors,
}

/// Creates a verifier of clients that trusts these authorities.
///
/// # Errors
/// [`Error`] if none of the certificates can be used.
pub fn client_verifier(
    anchors: Vec<CertificateDer<'static>>,
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let (anchors, roots) = Anchors::new(anchors);
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
    let webpki = builder.build().map_err(|error| Error::General(error.to_string()))?;
    Ok(Arc::new(ClientVerifier { webpki, anchors }))
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.webpki.verify_client_cert(end_entity, intermediates, now);
        verified.or_else(|rejection| {
            self.anchors.reconsider(rejection, end_entity, CLIENT_AUTH, now)?;
            Ok(ClientCertVerified::assertion())
        })
    }

    handshake_signatures!();
}

/// Accepts every certificate: `tls.insecureSkipVerify`. The handshake still proves that the peer has the key of the
/// certificate that it presents.
#[derive(Debug)]
pub struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    handshake_signatures!();
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair};

    use super::*;

    fn self_signed(
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> CertificateDer<'static> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = CertificateParams::new(names).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut parameters);
        parameters.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn verify(
        anchors: Vec<CertificateDer<'static>>,
        presented: &CertificateDer<'_>,
        name: &str,
    ) -> Result<(), Error> {
        let name = ServerName::try_from(name).unwrap();
        let verifier = server_verifier(anchors).unwrap();
        verifier.verify_server_cert(presented, &[], &name, &[], UnixTime::now()).map(drop)
    }

    #[test]
    fn an_anchor_is_accepted_for_its_own_names_while_it_is_valid() {
        let usual = self_signed(&["reg.corp", "10.0.0.1"], |_| ());
        let (other, presented) =
            (self_signed(&["other"], |_| ()), self_signed(&["reg.corp"], |_| ()));
        for name in ["reg.corp", "10.0.0.1"] {
            verify(vec![other.clone(), usual.clone()], &usual, name).unwrap();
        }
        assert!(verify(vec![usual.clone()], &usual, "other.corp").is_err(), "another name");
        assert!(verify(vec![usual], &presented, "reg.corp").is_err(), "the same name, not trusted");
        let old = self_signed(&["reg.corp"], |parameters| {
            parameters.not_after = rcgen::date_time_ymd(2020, 1, 1);
            parameters.not_before = rcgen::date_time_ymd(2019, 1, 1);
        });
        let error = verify(vec![old.clone()], &old, "reg.corp").unwrap_err();
        assert!(format!("{error:?}").contains("Expired"), "{error:?}");
        let early = self_signed(&["reg.corp"], |parameters| {
            parameters.not_before = rcgen::date_time_ymd(2999, 1, 1);
            parameters.not_after = rcgen::date_time_ymd(3000, 1, 1);
        });
        let error = verify(vec![early.clone()], &early, "reg.corp").unwrap_err();
        assert!(format!("{error:?}").contains("NotValidYet"), "{error:?}");
    }

    #[test]
    fn an_anchor_with_a_purpose_is_accepted_only_for_that_purpose() {
        let purpose = |purpose| {
            self_signed(&["reg.corp"], |parameters| parameters.extended_key_usages = vec![purpose])
        };
        let server = purpose(ExtendedKeyUsagePurpose::ServerAuth);
        let client = purpose(ExtendedKeyUsagePurpose::ClientAuth);
        verify(vec![server.clone()], &server, "reg.corp").unwrap();
        assert!(verify(vec![client.clone()], &client, "reg.corp").is_err());
        let verify_client = |presented: &CertificateDer<'static>| {
            let verifier = client_verifier(vec![presented.clone()]).unwrap();
            verifier.verify_client_cert(presented, &[], UnixTime::now()).map(drop)
        };
        verify_client(&client).unwrap();
        verify_client(&self_signed(&["x"], |_| ())).unwrap();
        assert!(verify_client(&server).is_err());
    }
}
