//! Certificates created by the tests, for servers and for clients.

use std::sync::Arc;

use p521::ecdsa::signature::Signer as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SignatureAlgorithm, SignatureScheme};

/// A private certificate authority.
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

    /// The certificate of the authority.
    pub fn pem(&self) -> String {
        self.pem.clone()
    }

    /// A certificate for these DNS names and IP addresses, valid for servers and clients.
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

/// As created by `openssl req -x509`: a certificate for servers and clients that is its own authority.
pub fn self_signed(names: &[&str]) -> Identity {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("the names are valid");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("keys can be generated");
    let certificate = params.self_signed(&key).expect("it can sign itself");
    Identity { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() }
}

/// A TLS server with the certificate and the key in this PEM text.
pub(super) fn server_config_of(pem: &str) -> Arc<ServerConfig> {
    let identity = Identity { certificate_pem: pem.to_owned(), key_pem: pem.to_owned() };
    let (chain, key) = der(&identity);
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions")
        .with_no_client_auth();
    Arc::new(builder.with_single_cert(chain, key).expect("the key belongs to the certificate"))
}

/// A TLS server with a key on the curve P-521, which ring cannot sign with.
pub(super) fn p521_server_config() -> Arc<ServerConfig> {
    let pem = include_str!("certificates/p521-server.pem");
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate");
    let key = p521::ecdsa::SigningKey::from_slice(&P521_SECRET).expect("a key");
    let certified = CertifiedKey::new(vec![certificate], Arc::new(P521Key(key)));
    let resolver = rustls::sign::SingleCertAndKey::from(certified);
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions")
        .with_no_client_auth();
    Arc::new(builder.with_cert_resolver(Arc::new(resolver)))
}

/// The key of `certificates/p521-server.pem`. It protects nothing.
const P521_SECRET: [u8; 66] = [
    0x00, 0x12, 0xe4, 0x77, 0xef, 0x77, 0xd4, 0x38, 0x5b, 0x08, 0x68, 0x1a, 0x98, 0xb0, 0xf6, 0x54,
    0x83, 0x79, 0xcd, 0x21, 0xdc, 0x11, 0xd4, 0xd4, 0xc3, 0x29, 0x0a, 0x8b, 0x90, 0x12, 0x09, 0xaf,
    0xce, 0x07, 0x2f, 0xbf, 0x41, 0xae, 0xe3, 0x7a, 0x2d, 0xd3, 0x3c, 0xeb, 0x26, 0xf0, 0x51, 0x15,
    0x54, 0xc1, 0x88, 0xff, 0xc6, 0x6d, 0x22, 0x7d, 0x66, 0x29, 0xd9, 0xaa, 0xc8, 0xd5, 0x47, 0xb6,
    0x1e, 0xcf,
];

#[derive(Debug, Clone)]
struct P521Key(p521::ecdsa::SigningKey);

impl SigningKey for P521Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let is_offered = offered.contains(&SignatureScheme::ECDSA_NISTP521_SHA512);
        is_offered.then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for P521Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let signature: p521::ecdsa::Signature = self.0.sign(message);
        Ok(signature.to_der().as_bytes().to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP521_SHA512
    }
}

/// Whether a server requires client certificates.
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

/// Explicit, because with two providers in one program rustls refuses to choose.
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
