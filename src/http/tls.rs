//! TLS for clients: the server's certificate, and whether clients must present one.
//!
//! A reload replaces the whole TLS configuration at once. Existing connections keep the configuration they started with.

use crate::certificates::{self, CertificateError, IdentityFiles, Stamp};
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::SystemTime;

/// The certificate of a server, and whether clients need one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTlsSettings {
    /// The certificate and key of the server.
    pub identity: IdentityFiles,
    /// Which clients are served.
    pub clients: ClientAuth,
}

/// Which clients a server accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientAuth {
    /// All clients.
    None,
    /// Clients with a certificate of one of these authorities.
    Verify {
        /// A file of PEM certificates. `None` uses the trust store of the operating system.
        ca: Option<PathBuf>,
    },
}

impl ServerTlsSettings {
    /// Reads all files once and reports what is wrong with them.
    ///
    /// # Errors
    /// [`ServerTlsError`].
    pub fn check(&self) -> Result<(), ServerTlsError> {
        self.load().map(drop)
    }

    /// The certificates in the files that have expired at `now`.
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
        // Every configuration has a new ticket key. So no session ticket outlives the authorities that its owner was
        // verified against.
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

/// Why TLS cannot be used.
#[derive(Debug, Clone)]
pub enum ServerTlsError {
    /// A file is missing or invalid.
    File(CertificateError),
    /// Clients must be verified, but the system has no root certificates.
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
                "clientAuth is verify, but the operating system has no root certificates to verify \
                 clients with; set ca to the certificate of your clients' authority",
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

/// The TLS state of a running server.
pub struct ServerTls {
    current: RwLock<Arc<ServerConfig>>,
    watch: Mutex<Watch>,
}

/// The state of the files when they were last checked.
struct Watch {
    settings: ServerTlsSettings,
    /// The stamp of the files that are in use. `None` if the files must be read again.
    stamp: Option<Stamp>,
    /// Why the current files cannot be used, and whether that was logged.
    refused: Option<(String, bool)>,
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`ServerTlsError`].
    pub fn load(settings: &ServerTlsSettings) -> Result<ServerTls, ServerTlsError> {
        let stamp = Some(settings.stamp());
        let current = RwLock::new(settings.load()?);
        let settings = settings.clone();
        Ok(ServerTls { current, watch: Mutex::new(Watch { settings, stamp, refused: None }) })
    }

    /// Replaces the settings. They take effect at once, or as soon as their files can be used.
    pub fn reconfigure(&self, settings: &ServerTlsSettings) {
        let mut watch = self.watch();
        if watch.settings != *settings {
            *watch = Watch { settings: settings.clone(), stamp: None, refused: None };
        }
        drop(watch);
        self.look();
    }

    /// Reloads the files if they have changed. If they cannot be used, the current certificate stays. That is logged only
    /// if a second check finds the same error, because a rotation may be in progress at the first.
    pub fn look(&self) {
        let mut watch = self.watch();
        // Taken before the files are read, so that the next call finds a change that happens meanwhile.
        let stamp = Some(watch.settings.stamp());
        if stamp == watch.stamp {
            return;
        }
        match watch.settings.load() {
            Ok(config) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
                let cert = watch.settings.identity.cert.display();
                log::info!(file:% = cert; "serverTlsConfig: reloaded");
                for expired in watch.settings.expired(SystemTime::now()) {
                    log::error!(
                        error:% = expired; "serverTlsConfig: a certificate is not valid now"
                    );
                }
                (watch.stamp, watch.refused) = (stamp, None);
            }
            Err(error) => {
                let text = error.to_string();
                match &mut watch.refused {
                    Some((known, is_logged)) if *known == text => {
                        if !std::mem::replace(is_logged, true) {
                            log::error!(
                                error = text.as_str();
                                "serverTlsConfig: cannot reload; keeping the current certificate"
                            );
                        }
                    }
                    other => *other = Some((text, false)),
                }
            }
        }
    }

    /// Starts a session for a new client.
    pub(super) fn accept(&self) -> Result<ServerConnection, rustls::Error> {
        let config = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
        ServerConnection::new(config)
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        // A panic while files are read leaves the previous settings.
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
