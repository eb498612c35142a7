//! Certificates that the tests make themselves, for servers and for clients.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// A certificate authority that nobody trusts yet.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its private key, both as PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    pub certificate_pem: String,
    pub key_pem: String,
}

impl Authority {
    /// A new authority; `name` is its common name.
    pub fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("no names are valid names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("keys can be generated");
        let certificate = params.self_signed(&key).expect("an authority can sign itself");
        Authority { pem: certificate.pem(), issuer: Issuer::new(params, key) }
    }

    /// The authority's certificate, for whoever shall trust it.
    pub fn pem(&self) -> String {
        self.pem.clone()
    }

    /// A certificate for these DNS names and IP addresses, good for servers and for clients.
    pub fn issue(&self, names: &[&str]) -> Identity {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names.clone()).expect("the names are valid");
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.distinguished_name.push(DnType::CommonName, names.join(" "));
        let key = KeyPair::generate().expect("keys can be generated");
        let certificate = params.signed_by(&key, &self.issuer).expect("an authority can sign");
        Identity { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() }
    }
}

/// Whether a server asks its clients for certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientCertificate {
    NotAsked,
    Demanded,
}

pub(super) fn server_config(
    authority: &Authority,
    clients: ClientCertificate,
) -> Arc<ServerConfig> {
    let identity = authority.issue(&["localhost", "127.0.0.1", "registry.test"]);
    let (chain, key) = der(&identity);
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions");
    let builder = match clients {
        ClientCertificate::NotAsked => builder.with_no_client_auth(),
        ClientCertificate::Demanded => {
            let roots = Arc::new(roots(&authority.pem()));
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
            builder.with_client_cert_verifier(verifier.build().expect("one root is enough"))
        }
    };
    Arc::new(builder.with_single_cert(chain, key).expect("the key belongs to the certificate"))
}

pub(super) fn client_config(ca_pem: &str, identity: Option<&Identity>) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions")
        .with_root_certificates(roots(ca_pem));
    Arc::new(match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let (chain, key) = der(identity);
            builder.with_client_auth_cert(chain, key).expect("the key belongs to the certificate")
        }
    })
}

/// Named, because with two providers in one program rustls refuses to choose.
fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(ca_pem: &str) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes()).expect("a certificate in PEM");
    roots.add(ca).expect("an authority's certificate");
    roots
}

fn der(identity: &Identity) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let certificate = CertificateDer::from_pem_slice(identity.certificate_pem.as_bytes());
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes());
    (vec![certificate.expect("a certificate in PEM")], key.expect("a private key in PEM"))
}
