//! Reloads the configuration of a running server on SIGHUP and when its file changes, without dropping
//! connections or downloads.
//!
//! Either all new settings take effect or none. Settings that need a restart are logged.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, SystemTime};

use super::config_file::{Check, ConfigFile};
use super::hosts_toml::listed_registries;
use super::references::{check, warn_of};
use super::{CommandError, logging, oidc as issuers, serve, service};
use crate::api::{Api, ConfigurationInForce, ConfigurationReport, ServerAuth};
use crate::cache::Cache;
use crate::config::{self, Overrides, Settings};
use crate::http::ServerTls;
use crate::image_sync::{ImageSync, SyncEntry};
use crate::introduction;
use crate::upstream::{Registries, RegistryChanges};
use crate::users::Users;

/// The interval between checks of the file. A check is cheap, and a change takes effect at the second check
/// after it.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// The status in the service manager after a configuration was refused.
const REFUSED: &str = "serving; the configuration file is invalid and not in effect, see the log";

/// The parts of a running server that accept new settings.
pub(super) struct Running {
    pub(super) cache: Cache,
    pub(super) registries: Arc<Registries>,
    pub(super) api: Arc<Api>,
    /// `None` if the server uses plain HTTP.
    pub(super) tls: Option<Arc<ServerTls>>,
    pub(super) sync: ImageSync,
    /// The entry of `preloadImages`.
    pub(super) preload: Option<SyncEntry>,
    /// What the management port shows about the configuration.
    pub(super) configuration: ConfigurationInForce,
}

/// What the management port shows about settings that were loaded at this time.
pub(super) fn report(
    settings: &Settings,
    file: Option<&Path>,
    address: SocketAddr,
    loaded: SystemTime,
) -> ConfigurationReport {
    ConfigurationReport {
        file: file.map(|path| path.display().to_string()),
        loaded,
        effective: settings.to_yaml(),
        after_restart: Vec::new(),
        refused: None,
        address,
        is_tls: settings.tls.is_some(),
        registries: listed_registries(settings),
    }
}

impl Running {
    /// Applies new settings. This is the only place that does, so every part that follows the configuration is
    /// updated here. Must not fail or block: [`config::load`] and [`check`] have validated the settings.
    fn apply(&self, settings: &Settings) -> RegistryChanges {
        logging::set_level(settings.log_level);
        introduction::set_own(settings.introduction());
        let changes = self.registries.reconfigure(settings.upstream.clone());
        self.cache.reconfigure(settings.cache.clone());
        self.cache.metrics().label_registries(serve::labels(settings));
        self.cache.forget_troubles(&changes.all());
        // After the registries, since an alias is useless before its registry exists.
        self.api.set_naming(settings.naming.clone());
        self.api.set_allowed_hosts(&settings.allowed_hosts);
        if let (Some(tls), Some(settings)) = (&self.tls, &settings.tls) {
            tls.reconfigure(settings);
        }
        self.set_auth(settings);
        // Last, because its fetches use all of the above.
        self.sync.reconfigure(serve::sync_settings(settings, self.preload.as_ref()));
        changes
    }
}

impl Running {
    /// Switches to other users and issuers, or to access without credentials. If a file has become invalid since
    /// [`check`], the previous ones stay in effect, so that the error does not admit anybody.
    fn set_auth(&self, settings: &Settings) {
        let current = self.api.auth();
        let users = match (&settings.access, current.users) {
            (None, _) => None,
            (Some(wanted), Some(users)) if users.settings() == *wanted => Some(users),
            (Some(wanted), _) => match Users::load(wanted) {
                Ok(users) => Some(Arc::new(users)),
                Err(error) => {
                    log::error!(error:%; "serverAuthConfig: the previous users stay in effect");
                    return;
                }
            },
        };
        let issuers = match (&settings.oidc, current.issuers) {
            (None, _) => None,
            (Some(wanted), Some(issuers)) if issuers.settings() == wanted => Some(issuers),
            (Some(wanted), previous) => {
                let (proxies, store) = (&settings.upstream.proxies, self.cache.store());
                match issuers::load(wanted, previous.as_deref(), proxies, store) {
                    Ok(issuers) => Some(Arc::new(issuers)),
                    Err(error) => {
                        log::error!(error:%; "serverAuthConfig: the previous users stay in effect");
                        return;
                    }
                }
            }
        };
        self.api.set_auth(ServerAuth { users, issuers });
    }

    /// Checks whether the files of certificates and users have changed.
    fn check_files(&self) {
        self.tls.iter().for_each(|tls| tls.look());
        let ServerAuth { users, issuers } = self.api.auth();
        users.iter().for_each(|users| users.look());
        issuers.iter().for_each(|issuers| issuers.look());
    }
}

/// Reloads the configuration when there is a reason.
pub(super) struct Reloader {
    overrides: Overrides,
    /// `None` if there is no file that can be read again.
    file: Option<ConfigFile>,
    running: Running,
    /// The settings at the start; some of them are in effect until the process exits.
    started: Settings,
    /// The settings that were applied last.
    in_effect: Settings,
    /// Why the current file was refused.
    refused: Option<String>,
    /// The reason for a reload that waits until the file is stable: it was changed while it was read.
    postponed: Option<Why>,
}

/// The reason for a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Hangup,
    Change,
    /// The configuration was refused. The cause may be files it refers to, which may have changed since.
    Refused,
}

impl Reloader {
    /// A reloader for a server that runs with `settings`, which were loaded from `file` and `overrides`.
    pub(super) fn new(
        overrides: Overrides,
        file: Option<ConfigFile>,
        settings: Settings,
        running: Running,
    ) -> Reloader {
        let in_effect = settings.clone();
        let (started, refused, postponed) = (settings, None, None);
        Reloader { overrides, file, running, started, in_effect, refused, postponed }
    }

    /// Starts the thread that checks the file, and reloads for each of `hangups`, until all senders are dropped.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(super) fn start(mut self, hangups: Receiver<()>) -> Result<(), CommandError> {
        let work = move || {
            loop {
                match hangups.recv_timeout(CHECK_INTERVAL) {
                    Ok(()) => self.hang_up(),
                    Err(RecvTimeoutError::Timeout) => self.check_for_changes(),
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        };
        thread::Builder::new()
            .name("reloader".into())
            .spawn(work)
            .map(drop)
            .map_err(|source| CommandError::System { doing: "watch the configuration", source })
    }

    fn hang_up(&mut self) {
        self.running.check_files();
        match &mut self.file {
            None => log::info!(
                "SIGHUP: nothing to reload, because no configuration file is set (--config-file)"
            ),
            Some(file) => {
                file.is_about_to_be_read();
                service::reloading();
                self.reload(Why::Hangup);
                service::ready(self.refused.as_deref().map_or("serving", |_| REFUSED));
            }
        }
    }

    fn check_for_changes(&mut self) {
        self.running.check_files();
        let Some(file) = &mut self.file else { return };
        let check = file.check();
        if check == Check::Changing {
            return;
        }
        if let Some(why) = self.postponed.take() {
            file.is_about_to_be_read();
            self.reload(why);
        } else if check == Check::Changed && file.has_other_content() {
            self.reload(Why::Change);
        } else if self.refused.is_some() {
            self.reload(Why::Refused);
        }
    }

    fn reload(&mut self, why: Why) {
        let loaded = self.load();
        // A partially written file may well be valid, but is not what its author wants.
        if self.file.as_ref().is_some_and(ConfigFile::has_changed_since) {
            log::info!("the configuration file is being changed; it is reloaded when it is stable");
            self.postponed = Some(why);
            return;
        }
        self.postponed = None;
        match loaded {
            Ok(settings) => self.apply(settings, why),
            Err(error) => {
                if self.is_news(&error, why) {
                    log::error!(
                        error = error.as_str();
                        "the configuration is refused; the previous configuration stays in effect"
                    );
                    let since = SystemTime::now();
                    self.running.configuration.change(|report| {
                        report.refused = Some((since, error.clone()));
                    });
                }
                self.refused = Some(error);
            }
        }
    }

    /// The settings in the current file, or an error. An empty file is valid at the start, but refused by a
    /// reload: it is what a full disk or an interrupted copy leaves.
    fn load(&self) -> Result<Settings, String> {
        if let Some(file) = self.file.as_ref().filter(|file| file.is_blank()) {
            return Err(format!("{}: the file is empty", file.path().display()));
        }
        let settings = config::load(self.overrides.clone()).map_err(|error| error.to_string())?;
        check(&settings).map_err(|error| error.to_string())?;
        Ok(settings)
    }

    fn apply(&mut self, mut settings: Settings, why: Why) {
        let after_restart = self.started.differences(&settings).after_restart;
        settings.keep_hello_world_of(&self.started);
        let changes = self.running.apply(&settings);
        if why == Why::Hangup {
            self.running.registries.refresh();
            self.running.api.auth().issuers.iter().for_each(|issuers| issuers.refresh());
        }
        let at_once = self.in_effect.differences(&settings).at_once.join(", ");
        let (keys, registries) = (at_once.as_str(), changes.to_string());
        let registries = Some(registries.as_str()).filter(|text| !text.is_empty());
        match why {
            Why::Hangup => log::info!(keys, registries; "configuration reloaded after SIGHUP"),
            Why::Change | Why::Refused => {
                log::info!(keys, registries; "changed configuration reloaded");
            }
        }
        if !after_restart.is_empty() {
            log::warn!(
                keys = after_restart.join(", ").as_str();
                "configuration: the changes of some keys take effect after a restart"
            );
        }
        warn_of(&settings);
        self.running.configuration.change(|report| {
            report.loaded = SystemTime::now();
            report.effective = settings.to_yaml();
            report.after_restart = after_restart.iter().map(ToString::to_string).collect();
            report.refused = None;
            report.registries = listed_registries(&settings);
        });
        (self.in_effect, self.refused) = (settings, None);
    }

    /// Whether this refusal has not been logged yet.
    fn is_news(&self, error: &str, why: Why) -> bool {
        why != Why::Refused || self.refused.as_deref() != Some(error)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::oci::Upstream;
    use crate::store::Store;
    use crate::upstream::Sources;

    /// A server without clients, and its configuration file.
    struct Site {
        path: PathBuf,
        reloader: Reloader,
        _directory: tempfile::TempDir,
    }

    impl Site {
        fn new(text: &str) -> Site {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("larder.yaml");
            put(&path, text);
            let overrides = Overrides {
                config_file: Some(path.clone()),
                image_path: Some(directory.path().join("cache")),
                ..Overrides::default()
            };
            let file = ConfigFile::about_to_be_read(path.clone());
            let settings = config::load(overrides.clone()).unwrap();
            let store = Store::open(&settings.store).unwrap();
            let registries = Arc::new(Registries::new(settings.upstream.clone()));
            let sources: Arc<dyn Sources> = Arc::clone(&registries) as _;
            let clock = Arc::new(SystemTime::now);
            let cache = Cache::new(store, sources, settings.cache.clone(), clock);
            let api = Arc::new(Api::new(cache.clone(), settings.naming.clone()));
            let sync = serve::sync_settings(&settings, None);
            let sync = ImageSync::start(cache.clone(), sync).unwrap();
            let address = settings.listen;
            let report = report(&settings, Some(&path), address, SystemTime::now());
            let configuration = ConfigurationInForce::new(report);
            let tls = None;
            let running =
                Running { cache, registries, api, tls, sync, preload: None, configuration };
            let reloader = Reloader::new(overrides, file, settings, running);
            Site { path, reloader, _directory: directory }
        }

        fn check_twice(&mut self) {
            self.reloader.check_for_changes();
            self.reloader.check_for_changes();
        }

        /// Whether the registry is configured, as a sign of which configuration is in effect.
        fn knows(&self, name: &str) -> bool {
            let upstream: Upstream = name.parse().unwrap();
            self.reloader.running.registries.source(&upstream).is_ok()
        }
    }

    /// Replaces the file: a new inode is detected whatever the resolution of time stamps.
    fn put(path: &Path, text: &str) {
        let new = path.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, path).unwrap();
    }

    const ONE: &str = "registries: [{name: 'one:5000'}]";
    const TWO: &str = "registries: [{name: 'two:5000'}]";

    #[test]
    fn a_changed_file_takes_effect_at_the_second_check() {
        let mut site = Site::new(ONE);
        put(&site.path, TWO);
        site.reloader.check_for_changes();
        assert!(site.knows("one:5000") && !site.knows("two:5000"));
        site.reloader.check_for_changes();
        assert!(!site.knows("one:5000") && site.knows("two:5000"));
    }

    #[test]
    fn a_refusal_is_logged_once_for_each_change_and_each_hangup() {
        let mut site = Site::new(ONE);
        for text in ["prt: 1", "", "registries: [{name: x.io, tls: {ca: /nonexistent}}]"] {
            put(&site.path, text);
            site.check_twice();
            assert!(site.knows("one:5000"), "{text}");
            let error = site.reloader.refused.clone().unwrap();
            assert!(!site.reloader.is_news(&error, Why::Refused), "{error}");
            assert!(site.reloader.is_news("another", Why::Refused));
            for why in [Why::Hangup, Why::Change] {
                assert!(site.reloader.is_news(&error, why), "{error}");
            }
        }
        put(&site.path, TWO);
        site.check_twice();
        assert!(site.knows("two:5000") && site.reloader.refused.is_none());
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_is_reloaded_when_it_is_stable() {
        for why in [Why::Hangup, Why::Change] {
            let mut site = Site::new(ONE);
            site.reloader.file.as_mut().unwrap().is_about_to_be_read();
            put(&site.path, TWO);
            site.reloader.reload(why);
            assert!(site.knows("one:5000"), "{why:?}: a partially written file may be valid");
            for _ in 0..2 {
                assert!(site.knows("one:5000"));
                site.reloader.check_for_changes();
            }
            assert!(site.knows("two:5000") && site.reloader.postponed.is_none(), "{why:?}");
        }
    }

    #[test]
    fn a_hangup_reloads_at_once() {
        let mut site = Site::new(ONE);
        put(&site.path, TWO);
        site.reloader.hang_up();
        assert!(site.knows("two:5000"));
        site.check_twice();
        assert!(site.knows("two:5000"));
    }
}
