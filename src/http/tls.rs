//! TLS to clients: the certificate that they are shown, and whether they must show one.
//!
//! What is in force is replaced as a whole: who is connected goes on with what was in force when it came.

use crate::certificates::{self, CertificateError, IdentityFiles, Stamp};
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::SystemTime;

/// What a server shows its clients, and what it asks of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTlsSettings {
    /// Certificate and key.
    pub identity: IdentityFiles,
    /// Whom it serves.
    pub clients: ClientAuth,
}

/// Whom a server serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientAuth {
    /// Everybody.
    None,
    /// Who shows a certificate of one of the authorities in this file, or of the operating system's.
    Verify {
        /// PEM certificates; the operating system's if `None`.
        ca: Option<PathBuf>,
    },
}

impl ServerTlsSettings {
    /// Reads all files once, to say what is wrong with them.
    ///
    /// # Errors
    /// [`ServerTlsError`].
    pub fn check(&self) -> Result<(), ServerTlsError> {
        self.load().map(drop)
    }

    /// Certificates in the files that count no longer at `now`.
    pub fn expired(&self, now: SystemTime) -> Vec<CertificateError> {
        let paths = [&self.identity.cert].into_iter().chain(self.ca());
        paths.filter_map(|path| certificates::expired_in(path, now)).collect()
    }

    fn ca(&self) -> Option<&PathBuf> {
        match &self.clients {
            ClientAuth::None => None,
            ClientAuth::Verify { ca } => ca.as_ref(),
        }
    }

    fn stamp(&self) -> Stamp {
        Stamp::of([&self.identity.cert, &self.identity.key].into_iter().chain(self.ca()))
    }

    fn load(&self) -> Result<Arc<ServerConfig>, ServerTlsError> {
        let identity = self.identity.load()?;
        let refused = |error: rustls::Error| CertificateError::Unusable {
            path: self.identity.cert.clone(),
            reason: error.to_string(),
        };
        let builder = ServerConfig::builder_with_provider(certificates::provider())
            .with_safe_default_protocol_versions()
            .map_err(refused)?;
        let builder = match self.verifier()? {
            None => builder.with_no_client_auth(),
            Some(verifier) => builder.with_client_cert_verifier(verifier),
        };
        let mut config = builder.with_single_cert(identity.chain, identity.key).map_err(refused)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A key of its own: no guard outlives the authorities that its owner was checked against.
        config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(refused)?;
        Ok(Arc::new(config))
    }

    fn verifier(&self) -> Result<Option<Arc<dyn ClientCertVerifier>>, ServerTlsError> {
        let ClientAuth::Verify { ca } = &self.clients else { return Ok(None) };
        let authorities = match ca {
            Some(path) => {
                let authorities = certificates::load_chain(path)?;
                for each in &authorities {
                    RootCertStore::empty().add(each.clone()).map_err(|error| {
                        CertificateError::Unusable { path: path.clone(), reason: error.to_string() }
                    })?;
                }
                authorities
            }
            None => rustls_native_certs::load_native_certs().certs,
        };
        let verifier = certificates::client_verifier(authorities);
        Ok(Some(verifier.map_err(|_| ServerTlsError::NoAuthorities)?))
    }
}

/// Why TLS cannot be offered.
#[derive(Debug, Clone)]
pub enum ServerTlsError {
    /// A file cannot be used.
    File(CertificateError),
    /// Clients are to be verified, and there is nothing to verify them by.
    NoAuthorities,
}

impl From<CertificateError> for ServerTlsError {
    fn from(error: CertificateError) -> Self {
        ServerTlsError::File(error)
    }
}

impl fmt::Display for ServerTlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerTlsError::File(error) => error.fmt(f),
            ServerTlsError::NoAuthorities => f.write_str(
                "clientAuth is verify, and the operating system has no root certificates to verify \
                 clients by; name the authority of your clients with ca",
            ),
        }
    }
}

impl std::error::Error for ServerTlsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ServerTlsError::File(error) => Some(error),
            ServerTlsError::NoAuthorities => None,
        }
    }
}

/// The TLS of a server that runs.
pub struct ServerTls {
    in_force: RwLock<Arc<ServerConfig>>,
    watch: Mutex<Watch>,
}

/// The files that are looked at.
struct Watch {
    settings: ServerTlsSettings,
    /// What the files looked like that are in force; `None` if they are to be read in any case.
    stamp: Option<Stamp>,
    /// Why those that are there now are not, and whether that was said.
    refused: Option<(String, bool)>,
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`ServerTlsError`].
    pub fn load(settings: &ServerTlsSettings) -> Result<ServerTls, ServerTlsError> {
        let stamp = Some(settings.stamp());
        let in_force = RwLock::new(settings.load()?);
        let settings = settings.clone();
        Ok(ServerTls { in_force, watch: Mutex::new(Watch { settings, stamp, refused: None }) })
    }

    /// Other settings, in force at once if their files can be used, and else once they can.
    pub fn reconfigure(&self, settings: &ServerTlsSettings) {
        let mut watch = self.watch();
        if watch.settings != *settings {
            *watch = Watch { settings: settings.clone(), stamp: None, refused: None };
        }
        drop(watch);
        self.look();
    }

    /// Reads the files again if they have changed. What cannot be used leaves the former in force; that is
    /// said when it is found a second time, since a rotation may be half-way.
    pub fn look(&self) {
        let mut watch = self.watch();
        // Before the files are read: a change meanwhile is found by the next look.
        let stamp = Some(watch.settings.stamp());
        if stamp == watch.stamp {
            return;
        }
        match watch.settings.load() {
            Ok(config) => {
                *self.in_force.write().unwrap_or_else(PoisonError::into_inner) = config;
                let cert = watch.settings.identity.cert.display();
                log::info!("serverTlsConfig: {cert} was read again and is in force");
                for expired in watch.settings.expired(SystemTime::now()) {
                    log::error!("serverTlsConfig: {expired}");
                }
                (watch.stamp, watch.refused) = (stamp, None);
            }
            Err(error) => {
                let text = error.to_string();
                match &mut watch.refused {
                    Some((known, said)) if *known == text => {
                        if !std::mem::replace(said, true) {
                            log::error!(
                                "serverTlsConfig: {text}; the certificate that was in force stays so"
                            );
                        }
                    }
                    other => *other = Some((text, false)),
                }
            }
        }
    }

    /// A session for a client that has just come.
    pub(super) fn accept(&self) -> Result<ServerConnection, rustls::Error> {
        let config = Arc::clone(&self.in_force.read().unwrap_or_else(PoisonError::into_inner));
        ServerConnection::new(config)
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        // A panic while files are read leaves the former settings.
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls")
            .field("settings", &self.watch().settings)
            .finish_non_exhaustive()
    }
}
