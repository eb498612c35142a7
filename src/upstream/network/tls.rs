//! TLS settings of a registry: trusted certificate authorities and the client certificate.
//!
//! The files are read when an agent is built and again when they change.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::ClientConfig;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::CertificateDer;

use crate::certificates::{self, CertificateError, IdentityFiles, Stamp};

/// `registries[].tls`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsSettings {
    /// `ca`: certificates that are trusted for this registry in addition to the usual roots.
    pub ca: Option<PathBuf>,
    /// `cert` and `key`: the client certificate. Presented to the endpoint only.
    pub identity: Option<IdentityFiles>,
    /// `insecureSkipVerify`: accept any certificate of the endpoint.
    pub insecure_skip_verify: bool,
    /// The name that the endpoint's certificate must be valid for, if that is not the host of its URL.
    pub server_name: Option<String>,
}

impl TlsSettings {
    /// Reads all files once, to report errors at start.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn check(&self) -> Result<(), CertificateError> {
        self.ca.as_deref().map(certificates::load_chain).transpose()?;
        self.identity.as_ref().map(IdentityFiles::load).transpose()?;
        Ok(())
    }

    /// The certificates in the files that have expired at `now`. They are logged and do not prevent the start, since
    /// cached content can be served without them.
    pub fn expired(&self, now: SystemTime) -> Vec<CertificateError> {
        let certs = self.identity.iter().map(|files| &files.cert);
        let paths = self.ca.iter().chain(certs);
        paths.filter_map(|path| certificates::expired_in(path, now)).collect()
    }

    /// A stamp of the files, which changes when they do.
    pub(in crate::upstream) fn stamp(&self) -> Stamp {
        let identity = self.identity.iter().flat_map(|files| [&files.cert, &files.key]);
        Stamp::of(self.ca.iter().chain(identity))
    }

    /// The configuration of rustls. `roots` are trusted in addition to `ca`.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub(in crate::upstream) fn client_config(
        &self,
        roots: impl FnOnce() -> &'static [CertificateDer<'static>],
    ) -> Result<Arc<ClientConfig>, CertificateError> {
        let unusable = |path: Option<&PathBuf>, error: rustls::Error| CertificateError::Unusable {
            path: path.cloned().unwrap_or_default(),
            reason: error.to_string(),
        };
        let builder = ClientConfig::builder_with_provider(certificates::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(None, error))?
            .dangerous()
            .with_custom_certificate_verifier(self.verifier(roots)?);
        let Some(files) = &self.identity else {
            return Ok(Arc::new(builder.with_no_client_auth()));
        };
        let identity = files.load()?;
        let config = builder.with_client_auth_cert(identity.chain, identity.key);
        Ok(Arc::new(config.map_err(|error| unusable(Some(&files.key), error))?))
    }

    fn verifier(
        &self,
        roots: impl FnOnce() -> &'static [CertificateDer<'static>],
    ) -> Result<Arc<dyn ServerCertVerifier>, CertificateError> {
        if self.insecure_skip_verify {
            return Ok(Arc::new(certificates::AnyServer));
        }
        let added = self.ca.as_deref().map(certificates::load_chain).transpose()?;
        let anchors = [roots(), &added.unwrap_or_default()].concat();
        certificates::server_verifier(anchors).map_err(|error| CertificateError::Unusable {
            path: self.ca.clone().unwrap_or_default(),
            reason: error.to_string(),
        })
    }
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
        let all = TlsSettings { ca: Some(ca), identity, ..TlsSettings::default() };
        for file in &files {
            let before = all.stamp();
            std::fs::write(file, "x").unwrap();
            assert_ne!(all.stamp(), before, "{}", file.display());
        }
    }
}
