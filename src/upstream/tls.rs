//! TLS towards a registry: whom it must prove to be, and as whom we present ourselves.
//!
//! The files are read when an agent is built and again when they change.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ureq::tls::{Certificate, ClientCert, PrivateKey};

use crate::certificates::{self, CertificateError, IdentityFiles, Stamp};

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

impl TlsSettings {
    /// Reads all files once, to say at start what is wrong with them.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn check(&self) -> Result<(), CertificateError> {
        self.ca.as_deref().map(load_ca).transpose()?;
        self.identity.as_ref().map(load_client).transpose()?;
        Ok(())
    }

    /// Certificates in the files that count no longer at `now`. Worth a line in the log, and no reason not
    /// to start: what is cached can be served all the same.
    pub fn expired(&self, now: SystemTime) -> Vec<CertificateError> {
        let certs = self.identity.iter().map(|files| &files.cert);
        let paths = self.ca.iter().chain(certs);
        paths.filter_map(|path| certificates::expired_in(path, now)).collect()
    }

    /// What the files looked like; another value means that they changed.
    pub(super) fn stamp(&self) -> Stamp {
        let identity = self.identity.iter().flat_map(|files| [&files.cert, &files.key]);
        Stamp::of(self.ca.iter().chain(identity))
    }
}

/// The certificates of a `ca` file.
pub(super) fn load_ca(path: &Path) -> Result<Vec<Certificate<'static>>, CertificateError> {
    let chain = certificates::load_chain(path)?;
    Ok(chain.iter().map(|each| Certificate::from_der(each).to_owned()).collect())
}

/// What is shown to a registry that asks who we are.
pub(super) fn load_client(files: &IdentityFiles) -> Result<ClientCert, CertificateError> {
    let identity = files.load()?;
    let chain: Vec<_> =
        identity.chain.iter().map(|each| Certificate::from_der(each).to_owned()).collect();
    let key = PrivateKey::from_pem(&identity.key_pem).map_err(|error| {
        CertificateError::Unusable { path: files.key.clone(), reason: error.to_string() }
    })?;
    Ok(ClientCert::new_with_certs(&chain, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_files_are_checked_and_stamped() {
        let directory = tempfile::tempdir().unwrap();
        let files = ["ca", "cert", "key"].map(|name| directory.path().join(name));
        let [ca, cert, key] = files.clone();
        let identity = Some(IdentityFiles { cert, key });
        let ca_only = TlsSettings { ca: Some(ca.clone()), ..TlsSettings::default() };
        let identity_only = TlsSettings { identity: identity.clone(), ..TlsSettings::default() };
        assert!(ca_only.check().is_err() && identity_only.check().is_err());
        TlsSettings { insecure_skip_verify: true, ..TlsSettings::default() }.check().unwrap();
        let all = TlsSettings { ca: Some(ca), identity, insecure_skip_verify: false };
        for file in &files {
            let before = all.stamp();
            std::fs::write(file, "x").unwrap();
            assert_ne!(all.stamp(), before, "{}", file.display());
        }
    }
}
