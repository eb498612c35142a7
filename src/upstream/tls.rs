//! TLS towards a registry: whom it must prove to be, and as whom we present ourselves.
//!
//! The files are read when an agent is built and again when they change. Each thing that can be wrong
//! with them has an error of its own, which `larder serve` says at start.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, parse_pem};
use x509_cert::der::Decode;

/// `registries[].tls`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsSettings {
    /// `ca`: certificates that are trusted for this registry, beside the usual roots.
    pub ca: Option<PathBuf>,
    /// `cert` and `key`: who we are. Shown to the endpoint and to nobody else.
    pub identity: Option<IdentityFiles>,
    /// `insecureSkipVerify`: accept any certificate of the endpoint.
    pub insecure_skip_verify: bool,
}

/// A client certificate and its key, PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// The certificate chain, the client's own first.
    pub cert: PathBuf,
    /// The private key: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

impl TlsSettings {
    /// Reads all files once, to say at start what is wrong with them.
    ///
    /// # Errors
    /// [`TlsFileError`].
    pub fn check(&self) -> Result<(), TlsFileError> {
        self.ca.as_deref().map(load_ca).transpose()?;
        self.identity.as_ref().map(IdentityFiles::load).transpose()?;
        Ok(())
    }

    /// Certificates in the files that count no longer at `now`. Worth a line in the log, and no reason not
    /// to start: what is cached can be served all the same.
    pub fn expired(&self, now: SystemTime) -> Vec<TlsFileError> {
        let certs = self.identity.iter().map(|files| &files.cert);
        let paths = self.ca.iter().chain(certs);
        paths.filter_map(|path| expired_in(path, now)).collect()
    }

    /// What the files looked like; another value means that they changed.
    pub(super) fn stamp(&self) -> Stamp {
        let identity = self.identity.iter().flat_map(|files| [&files.cert, &files.key]);
        let stamp = |path: &PathBuf| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
        };
        Stamp(self.ca.iter().chain(identity).map(stamp).collect())
    }
}

/// Modification times, sizes and inodes. The last since what is mounted from a secret is another file after
/// a change, behind the same link, and files that were made in one go may have one time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Stamp(Vec<Option<(SystemTime, u64, u64)>>);

/// The certificates of a `ca` file.
pub(super) fn load_ca(path: &Path) -> Result<Vec<Certificate<'static>>, TlsFileError> {
    let certificates = items(path)?.into_iter().filter_map(|item| match item {
        PemItem::Certificate(certificate) => Some(certificate),
        _ => None,
    });
    let certificates: Vec<_> = certificates.collect();
    match certificates.is_empty() {
        true => Err(TlsFileError::Lacks { path: path.to_owned(), what: "certificate" }),
        false => Ok(certificates),
    }
}

/// The first certificate of a file that is past its time. A bundle may hold old ones beside those in
/// use, so an authority is said to have expired only if none of them is left.
fn expired_in(path: &Path, now: SystemTime) -> Option<TlsFileError> {
    let ends = load_ca(path).ok()?.into_iter().filter_map(|certificate| {
        let parsed = x509_cert::Certificate::from_der(certificate.der()).ok()?;
        Some(parsed.tbs_certificate().validity().not_after.to_system_time())
    });
    let latest = ends.max()?;
    (latest < now).then(|| TlsFileError::Expired { path: path.to_owned(), since: latest })
}

impl IdentityFiles {
    /// Certificate and key, which must belong together.
    pub(super) fn load(&self) -> Result<ClientCert, TlsFileError> {
        let chain = load_ca(&self.cert)?;
        let key = items(&self.key)?.into_iter().find_map(|item| match item {
            PemItem::PrivateKey(key) => Some(key),
            _ => None,
        });
        let key = key.ok_or(TlsFileError::Lacks { path: self.key.clone(), what: "private key" })?;
        self.check_pair(&chain)?;
        Ok(ClientCert::new_with_certs(&chain, PrivateKey::to_owned(&key)))
    }

    fn check_pair(&self, chain: &[Certificate<'static>]) -> Result<(), TlsFileError> {
        let refused = |reason: String| TlsFileError::Unusable { path: self.key.clone(), reason };
        let key =
            PrivateKeyDer::from_pem_file(&self.key).map_err(|error| refused(error.to_string()))?;
        let chain = chain.iter().map(|each| CertificateDer::from(each.der().to_vec())).collect();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        match CertifiedKey::from_der(chain, key, &provider) {
            Ok(_) => Ok(()),
            Err(rustls::Error::InconsistentKeys(_)) => {
                Err(TlsFileError::Mismatch { cert: self.cert.clone(), key: self.key.clone() })
            }
            Err(error) => Err(refused(error.to_string())),
        }
    }
}

fn items(path: &Path) -> Result<Vec<PemItem<'static>>, TlsFileError> {
    let bytes = fs::read(path)
        .map_err(|source| TlsFileError::Read { path: path.to_owned(), source: Arc::new(source) })?;
    let items: Result<Vec<_>, _> = parse_pem(&bytes).collect();
    match items {
        Ok(items) if items.is_empty() => Err(TlsFileError::NotPem { path: path.to_owned() }),
        Ok(items) => Ok(items),
        Err(error) => {
            Err(TlsFileError::Unusable { path: path.to_owned(), reason: error.to_string() })
        }
    }
}

/// What is wrong with a TLS file of `registries[].tls`.
#[derive(Debug, Clone)]
pub enum TlsFileError {
    /// It cannot be read.
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// There is nothing in it that looks like PEM.
    NotPem {
        /// The file.
        path: PathBuf,
    },
    /// It is PEM, but what is needed is not in it.
    Lacks {
        /// The file.
        path: PathBuf,
        /// What is needed.
        what: &'static str,
    },
    /// The key is not the certificate's.
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// Its certificate is past its time.
    Expired {
        /// The file.
        path: PathBuf,
        /// Since when.
        since: SystemTime,
    },
    /// Its content cannot be used.
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl fmt::Display for TlsFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TlsFileError::Read { path, source } => {
                write!(f, "cannot read {}: {source}", path.display())
            }
            TlsFileError::NotPem { path } => {
                write!(f, "{} is no PEM file (-----BEGIN ...)", path.display())
            }
            TlsFileError::Lacks { path, what } => {
                write!(f, "there is no {what} in {}", path.display())
            }
            TlsFileError::Mismatch { cert, key } => write!(
                f,
                "the key {} does not belong to the certificate {}",
                key.display(),
                cert.display()
            ),
            TlsFileError::Expired { path, since } => {
                let since = OffsetDateTime::from(*since).date();
                write!(f, "the certificate in {} has expired on {since}; renew it", path.display())
            }
            TlsFileError::Unusable { path, reason } => {
                write!(f, "{} cannot be used: {reason}", path.display())
            }
        }
    }
}

impl std::error::Error for TlsFileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            TlsFileError::Read { source, .. } => Some(&**source),
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
        fn put(&self, name: &str, content: &str) -> PathBuf {
            let path = self.0.path().join(name);
            fs::write(&path, content).unwrap();
            path
        }
    }

    #[test]
    fn a_pair_that_belongs_together_is_accepted() {
        let files = Files(tempfile::tempdir().unwrap());
        let (cert, key) = self_signed();
        let (cert, key) = (files.put("c", &cert), files.put("k", &key));
        let identity = Some(IdentityFiles { cert: cert.clone(), key });
        let settings = TlsSettings { ca: Some(cert), identity, insecure_skip_verify: false };
        settings.check().unwrap();
    }

    #[test]
    fn each_thing_that_can_be_wrong_is_said() {
        let files = Files(tempfile::tempdir().unwrap());
        let ((cert, key), (_, other_key)) = (self_signed(), self_signed());
        let (cert, key) = (files.put("c", &cert), files.put("k", &key));
        let (other_key, text) = (files.put("o", &other_key), files.put("t", "no pem"));
        let missing = files.0.path().join("missing");
        let ca = |path: &PathBuf| TlsSettings { ca: Some(path.clone()), ..TlsSettings::default() };
        let identity = |cert: &PathBuf, key: &PathBuf| TlsSettings {
            identity: Some(IdentityFiles { cert: cert.clone(), key: key.clone() }),
            ..TlsSettings::default()
        };
        for (settings, words) in [
            (ca(&missing), "cannot read"),
            (ca(&text), "no PEM"),
            (ca(&key), "no certificate"),
            (identity(&cert, &missing), "cannot read"),
            (identity(&cert, &cert), "no private key"),
            (identity(&key, &key), "no certificate"),
            (identity(&cert, &other_key), "does not belong"),
        ] {
            let error = settings.check().unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
    }

    #[test]
    fn an_expired_certificate_is_said_and_does_not_keep_from_starting() {
        let files = Files(tempfile::tempdir().unwrap());
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(vec!["x".into()]).unwrap();
        parameters.not_before = rcgen::date_time_ymd(2001, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(2020, 2, 29);
        let old = parameters.self_signed(&key).unwrap().pem();
        let cert = files.put("c", &old);
        let identity = Some(IdentityFiles { cert, key: files.put("k", &key.serialize_pem()) });
        let settings = TlsSettings { identity, ..TlsSettings::default() };
        settings.check().unwrap();
        let [error] = &settings.expired(SystemTime::now())[..] else { panic!("one is expired") };
        assert!(error.to_string().contains("expired on 2020-02-29"), "{error}");
        // A bundle of an old and a new one is what a rotation looks like.
        let ca = files.put("ca", &format!("{old}{}", self_signed().0));
        let settings = TlsSettings { ca: Some(ca), ..TlsSettings::default() };
        assert!(settings.expired(SystemTime::now()).is_empty());
    }

    #[test]
    fn a_changed_file_has_another_stamp() {
        let files = Files(tempfile::tempdir().unwrap());
        let path = files.put("c", "one");
        let settings = TlsSettings { ca: Some(path), ..TlsSettings::default() };
        let before = settings.stamp();
        assert_eq!(settings.stamp(), before);
        files.put("c", "another");
        assert_ne!(settings.stamp(), before);
    }
}
