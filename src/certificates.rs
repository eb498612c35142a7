//! Reads certificates and keys from PEM files, checks that they belong together, and detects changes.
//!
//! [`crate::upstream`] uses them to verify registries and to authenticate to them. [`crate::http`] uses them to
//! authenticate to clients and to verify clients. This module must not know either. Every kind of defect of a file
//! has its own error.

mod algorithms;
mod verify;
mod watched_file;

pub use algorithms::provider;
pub use verify::{AnyServer, client_verifier, server_verifier};
pub use watched_file::WatchedFile;

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use x509_cert::der::Decode;

/// The PEM files of a certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// The certificate chain, with the end-entity certificate first.
    pub cert: PathBuf,
    /// The private key: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

/// The content of [`IdentityFiles`].
pub struct Identity {
    /// The certificate chain, with the end-entity certificate first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key of the first certificate.
    pub key: PrivateKeyDer<'static>,
}

/// Modification times, sizes and inodes of files. If the value differs, the files have changed. The inode is included
/// because an update of a mounted secret replaces the file that a symbolic link leads to, and files that were written
/// together may have the same time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stamp(Vec<Option<(SystemTime, u64, u64)>>);

impl Stamp {
    /// The current stamp of the files at `paths`.
    pub fn of<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Stamp {
        let stamp = |path: &PathBuf| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
        };
        Stamp(paths.into_iter().map(stamp).collect())
    }
}

impl IdentityFiles {
    /// Loads the certificate and the key, and checks that they belong together.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn load(&self) -> Result<Identity, CertificateError> {
        let chain = load_chain(&self.cert)?;
        let key_pem = read(&self.key)?;
        let identity = Identity { chain, key: key_in(&self.key, &key_pem)? };
        let pair =
            CertifiedKey::from_der(identity.chain.clone(), identity.key.clone_key(), &provider());
        match pair {
            Ok(_) => Ok(identity),
            Err(rustls::Error::InconsistentKeys(_)) => {
                Err(CertificateError::Mismatch { cert: self.cert.clone(), key: self.key.clone() })
            }
            Err(error) => Err(unusable(&self.key, identity_error(&error))),
        }
    }
}

/// Why rustls refused a certificate and its key. It does not say which keys it can use.
fn identity_error(error: &rustls::Error) -> String {
    let reason = error.to_string();
    match reason.contains("failed to parse private key") {
        true => {
            "the private key must be RSA with 2048 bits or more, ECDSA with P-256 or P-384, or \
                 Ed25519"
                .to_owned()
        }
        false => reason,
    }
}

/// Loads the certificates of a file, at least one.
///
/// # Errors
/// [`CertificateError`].
pub fn load_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let bytes = read(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(lacks(path, &bytes, "certificate")),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(unusable(path, error.to_string())),
    }
}

fn key_in(path: &Path, bytes: &[u8]) -> Result<PrivateKeyDer<'static>, CertificateError> {
    match PrivateKeyDer::from_pem_slice(bytes) {
        Ok(key) => Ok(key),
        Err(pem::Error::NoItemsFound) if contains(bytes, b"ENCRYPTED PRIVATE KEY") => {
            let reason = "the key is encrypted, and Larder cannot ask for a passphrase; \
                          use `openssl pkey` to write it without one";
            Err(unusable(path, reason.into()))
        }
        Err(pem::Error::NoItemsFound) => Err(lacks(path, bytes, "private key")),
        Err(error) => Err(unusable(path, error.to_string())),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    fs::read(path).map_err(|source| CertificateError::Read {
        path: path.to_owned(),
        source: Arc::new(source),
    })
}

fn lacks(path: &Path, bytes: &[u8], what: &'static str) -> CertificateError {
    match contains(bytes, b"-----BEGIN ") {
        true => CertificateError::Lacks { path: path.to_owned(), what },
        false => CertificateError::NotPem { path: path.to_owned() },
    }
}

fn unusable(path: &Path, reason: String) -> CertificateError {
    CertificateError::Unusable { path: path.to_owned(), reason }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// The common name of the certificate's subject (RFC 5280, section 4.1.2.6), if it has one.
pub fn common_name(certificate: &CertificateDer<'_>) -> Option<Arc<str>> {
    let parsed = x509_cert::Certificate::from_der(certificate).ok()?;
    let name = parsed.tbs_certificate().subject().common_name().ok()??;
    Some(Arc::from(&*name.value()))
}

/// The error for a file whose certificates have all expired. A CA bundle may contain expired certificates beside
/// valid ones, so it counts as expired only if no valid one is left.
pub fn expired_in(path: &Path, now: SystemTime) -> Option<CertificateError> {
    let ends = load_chain(path).ok()?.into_iter().filter_map(|certificate| expiry(&certificate));
    let latest = ends.max()?;
    (latest < now).then(|| CertificateError::Expired { path: path.to_owned(), since: latest })
}

/// When a certificate expires, if it can be parsed.
pub fn expiry(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let parsed = x509_cert::Certificate::from_der(certificate).ok()?;
    Some(parsed.tbs_certificate().validity().not_after.to_system_time())
}

/// What is wrong with a file of certificates or keys.
#[derive(Debug, Clone)]
pub enum CertificateError {
    /// The file cannot be read.
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Arc<io::Error>,
    },
    /// The file is not in PEM format.
    NotPem {
        /// The file.
        path: PathBuf,
    },
    /// The file is in PEM format, but does not contain the required item.
    Lacks {
        /// The file.
        path: PathBuf,
        /// The required item.
        what: &'static str,
    },
    /// The key does not belong to the certificate.
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The certificate has expired.
    Expired {
        /// The file.
        path: PathBuf,
        /// When it expired.
        since: SystemTime,
    },
    /// The content of the file cannot be used.
    Unusable {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
}

impl fmt::Display for CertificateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CertificateError::Read { path, source } => {
                write!(f, "cannot read {}: {source}", path.display())
            }
            CertificateError::NotPem { path } => {
                write!(f, "{} is not a PEM file (-----BEGIN ...)", path.display())
            }
            CertificateError::Lacks { path, what } => {
                write!(f, "there is no {what} in {}", path.display())
            }
            CertificateError::Mismatch { cert, key } => write!(
                f,
                "the key {} does not belong to the certificate {}",
                key.display(),
                cert.display()
            ),
            CertificateError::Expired { path, since } => {
                let since = OffsetDateTime::from(*since).date();
                write!(f, "the certificate in {} expired on {since}; renew it", path.display())
            }
            CertificateError::Unusable { path, reason } => {
                write!(f, "{} cannot be used: {reason}", path.display())
            }
        }
    }
}

impl std::error::Error for CertificateError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            CertificateError::Read { source, .. } => Some(&**source),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn self_signed() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["x".into()]).unwrap().self_signed(&key);
        (certificate.unwrap().pem(), key.serialize_pem())
    }

    struct Files(tempfile::TempDir);

    impl Files {
        fn new() -> Files {
            Files(tempfile::tempdir().unwrap())
        }

        fn put(&self, name: &str, content: &str) -> PathBuf {
            let path = self.0.path().join(name);
            fs::write(&path, content).unwrap();
            path
        }
    }

    #[test]
    fn every_defect_has_its_own_error() {
        let files = Files::new();
        let ((cert, key), (_, other_key)) = (self_signed(), self_signed());
        let sealed =
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let sealed = files.put("s", sealed);
        let (cert, key) = (files.put("c", &cert), files.put("k", &key));
        let (other_key, text) = (files.put("o", &other_key), files.put("t", "not pem"));
        let missing = files.0.path().join("missing");
        let broken = files.put("b", "-----BEGIN CERTIFICATE-----\n%%\n-----END CERTIFICATE-----\n");
        let load = |cert: &PathBuf, key: &PathBuf| {
            IdentityFiles { cert: cert.clone(), key: key.clone() }.load()
        };
        load(&cert, &key).unwrap();
        for (cert, key, words) in [
            (&missing, &key, "cannot read"),
            (&text, &key, "not a PEM"),
            (&key, &key, "no certificate"),
            (&broken, &key, "cannot be used"),
            (&cert, &missing, "cannot read"),
            (&cert, &text, "not a PEM"),
            (&cert, &cert, "no private key"),
            (&cert, &sealed, "encrypted"),
            (&cert, &other_key, "does not belong"),
        ] {
            let error = load(cert, key).err().unwrap().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
    }

    #[test]
    fn an_expired_certificate_is_reported() {
        let files = Files::new();
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(vec!["x".into()]).unwrap();
        parameters.not_before = rcgen::date_time_ymd(2001, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(2020, 2, 29);
        let old = parameters.self_signed(&key).unwrap().pem();
        let error = expired_in(&files.put("c", &old), SystemTime::now()).unwrap();
        assert!(error.to_string().contains("expired on 2020-02-29"), "{error}");
        // During a rotation, a bundle contains an old and a new certificate.
        let both = files.put("ca", &format!("{old}{}", self_signed().0));
        assert!(expired_in(&both, SystemTime::now()).is_none());
    }

    #[test]
    fn a_changed_file_has_another_stamp() {
        let files = Files::new();
        let path = files.put("c", "one");
        let before = Stamp::of([&path]);
        assert_eq!(Stamp::of([&path]), before);
        files.put("c", "another");
        assert_ne!(Stamp::of([&path]), before);
    }
}
