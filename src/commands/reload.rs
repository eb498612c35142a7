//! The configuration while the server runs: read again on SIGHUP and when its file has changed, and put into
//! force without dropping a connection or a download.
//!
//! New settings come into force as a whole or not at all. What a running server cannot take is said.

use std::fmt;
use std::fs;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, SystemTime};

use super::config_file::{ConfigFile, Look};
use super::{CommandError, logging, serve, service};
use crate::api::Api;
use crate::cache::Cache;
use crate::certificates::CertificateError;
use crate::config::{self, Overrides, Settings};
use crate::http::{ClientAuth, ServerTls, ServerTlsSettings};
use crate::prune;
use crate::upstream::{Registries, RegistryChanges};
use crate::users::{self, Users};

/// How often it is looked whether the file has changed: it costs nothing, and what is written is not in
/// force before the second look.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// What the service manager shows after a configuration was refused.
const REFUSED: &str = "serving; the configuration file is wrong and not in force, see the log";

/// Looks whether a server could start with these settings, beyond what the file alone tells.
///
/// # Errors
/// [`CommandError`] for files that cannot be used.
pub(super) fn check(settings: &Settings) -> Result<(), CommandError> {
    for entry in &settings.upstream.registries {
        for endpoint in &entry.endpoints {
            let refused = |source| CommandError::Tls { registry: entry.upstream.clone(), source };
            endpoint.tls.check().map_err(refused)?;
        }
    }
    settings
        .tls
        .as_ref()
        .map(ServerTlsSettings::check)
        .transpose()
        .map_err(CommandError::ServerTls)?;
    settings
        .access
        .as_ref()
        .map(users::Settings::check)
        .transpose()
        .map_err(CommandError::Users)?;
    Ok(())
}

/// Says what is no reason to refuse settings, and that the operator should know as they come into force.
pub(super) fn warn_of(settings: &Settings) {
    for remark in remarks(settings) {
        log::log!(remark.level, "{}", remark.text);
    }
}

/// What the operator should know of settings.
pub(super) struct Remark {
    level: log::Level,
    text: String,
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.level == log::Level::Error { "error" } else { "warning" };
        write!(f, "{word}: {}", self.text)
    }
}

/// What is no reason to refuse settings, and should be known.
pub(super) fn remarks(settings: &Settings) -> Vec<Remark> {
    let now = SystemTime::now();
    let warning = |text: &str| Remark { level: log::Level::Warn, text: text.to_owned() };
    let expired = |place: &str, what: CertificateError| Remark {
        level: log::Level::Error,
        text: format!("{place}: {what}"),
    };
    let mut remarks = Vec::new();
    for key in &settings.without_effect {
        remarks
            .push(warning(&format!("the configuration key {key} has no effect in this version")));
    }
    for entry in &settings.upstream.registries {
        let place = format!("registries: {}: tls", entry.upstream);
        let found = entry.endpoints.iter().flat_map(|endpoint| endpoint.tls.expired(now));
        remarks.extend(found.map(|what| expired(&place, what)));
    }
    let found = settings.tls.iter().flat_map(|tls| tls.expired(now));
    remarks.extend(found.map(|what| expired("serverTlsConfig", what)));
    if let Some(ServerTlsSettings { clients: ClientAuth::Verify { ca: None }, .. }) = &settings.tls
    {
        remarks.push(warning(
            "serverTlsConfig: without ca, a client certificate of any authority that this machine \
             trusts opens the cache",
        ));
    }
    remarks.extend(unreadable(settings));
    if settings.access.is_some() && settings.tls.is_none() && !settings.listen.ip().is_loopback() {
        remarks.push(warning(
            "serverAuthConfig without serverTlsConfig: passwords cross the network in the clear, \
             unless something before Larder speaks TLS",
        ));
    }
    remarks
}

/// Files that are read when they are needed, and that cannot be read now: perhaps they come later.
fn unreadable(settings: &Settings) -> Vec<Remark> {
    let error = |text: String| Remark { level: log::Level::Error, text };
    let lists = settings.cache.upkeep.pins.lists.iter();
    let wrong = lists.filter_map(|path| prune::read_pins(path).err());
    let mut remarks: Vec<Remark> = wrong.map(|is| error(format!("pinLists: {is}"))).collect();
    for entry in &settings.upstream.registries {
        let files = entry.endpoints.iter().flat_map(|endpoint| endpoint.credentials.files());
        remarks.extend(files.filter_map(|(key, path)| {
            let wrong = fs::File::open(path).err()?;
            let (registry, path) = (&entry.upstream, path.display());
            let what = "nobody is logged in there until it can be read";
            Some(error(format!("registries: {registry}: {key}: {path}: {wrong}; {what}")))
        }));
    }
    if let Some(path) = &settings.management.token_file {
        let wrong = match fs::read_to_string(path) {
            Ok(token) if !token.trim().is_empty() => return remarks,
            Ok(_) => "it is empty".to_owned(),
            Err(error) => error.to_string(),
        };
        let text = format!(
            "management.tokenFile: {}: {wrong}; nothing can be changed over HTTP until it can be read",
            path.display()
        );
        remarks.push(error(text));
    }
    remarks
}

/// The parts of a running server that take new settings.
pub(super) struct Running {
    pub(super) cache: Cache,
    pub(super) registries: Arc<Registries>,
    pub(super) api: Arc<Api>,
    /// `None` where clients are spoken to in the clear.
    pub(super) tls: Option<Arc<ServerTls>>,
}

impl Running {
    /// Puts settings into force. The one place where a running server gets them, so what else is to follow
    /// the configuration is told here. Must not fail and must not wait: what can be wrong with settings is
    /// found by [`config::load`] and [`check`] before.
    fn apply(&self, settings: &Settings) -> RegistryChanges {
        logging::set_level(settings.log_level);
        let changes = self.registries.reconfigure(settings.upstream.clone());
        self.cache.reconfigure(settings.cache.clone());
        self.cache.metrics().label_registries(serve::labels(settings));
        self.cache.forget_troubles(&changes.all());
        // Last, since an alias is of use when its registry is there.
        self.api.set_naming(settings.naming.clone());
        self.api.set_allowed_hosts(&settings.allowed_hosts);
        if let (Some(tls), Some(settings)) = (&self.tls, &settings.tls) {
            tls.reconfigure(settings);
        }
        self.set_users(settings.access.as_ref());
        changes
    }
}

impl Running {
    /// Serves the users of another file, or everybody. A file that [`check`] could read and that is broken
    /// by now leaves those who were served: nobody is let in for that.
    fn set_users(&self, wanted: Option<&users::Settings>) {
        let Some(wanted) = wanted else { return self.api.set_users(None) };
        if self.api.users().is_some_and(|users| users.settings() == *wanted) {
            return;
        }
        match Users::load(wanted) {
            Ok(users) => self.api.set_users(Some(Arc::new(users))),
            Err(error) => {
                log::error!("serverAuthConfig: {error}; what was in force stays in force")
            }
        }
    }

    /// Looks whether files that clients meet have changed.
    fn look_at_files(&self) {
        self.tls.iter().for_each(|tls| tls.look());
        self.api.users().iter().for_each(|users| users.look());
    }
}

/// Reads the configuration again when there is reason to.
pub(super) struct Reloader {
    overrides: Overrides,
    /// `None` if there is none that could be read again.
    file: Option<ConfigFile>,
    running: Running,
    /// Those of the start, of which some are in force until the end.
    started: Settings,
    /// Those that were put into force last.
    in_force: Settings,
    /// Why the file as it is now is not in force.
    refused: Option<String>,
    /// Why the file is to be read once it is still: it was changed while it was read.
    postponed: Option<Why>,
}

/// Why the configuration is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Hangup,
    Change,
    /// It was refused, perhaps for files that it names, and those may have changed.
    Refused,
}

impl Reloader {
    /// One for a server that runs with `settings`, which `file` and `overrides` gave.
    pub(super) fn new(
        overrides: Overrides,
        file: Option<ConfigFile>,
        settings: Settings,
        running: Running,
    ) -> Reloader {
        let in_force = settings.clone();
        let (started, refused, postponed) = (settings, None, None);
        Reloader { overrides, file, running, started, in_force, refused, postponed }
    }

    /// Starts to look, and to reload for each of `hangups`, until nobody can send any more.
    ///
    /// # Errors
    /// If no thread can be started.
    pub(super) fn start(mut self, hangups: Receiver<()>) -> Result<(), CommandError> {
        let work = move || {
            loop {
                match hangups.recv_timeout(LOOK_INTERVAL) {
                    Ok(()) => self.hang_up(),
                    Err(RecvTimeoutError::Timeout) => self.look(),
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
        self.running.look_at_files();
        match &mut self.file {
            None => log::info!(
                "SIGHUP: there is no configuration file that could be read again (--config-file)"
            ),
            Some(file) => {
                file.is_about_to_be_read();
                service::reloading();
                self.reload(Why::Hangup);
                service::ready(self.refused.as_deref().map_or("serving", |_| REFUSED));
            }
        }
    }

    fn look(&mut self) {
        self.running.look_at_files();
        let Some(file) = &mut self.file else { return };
        let look = file.look();
        if look == Look::Changing {
            return;
        }
        if let Some(why) = self.postponed.take() {
            file.is_about_to_be_read();
            self.reload(why);
        } else if look == Look::Changed && file.has_other_content() {
            self.reload(Why::Change);
        } else if self.refused.is_some() {
            self.reload(Why::Refused);
        }
    }

    fn reload(&mut self, why: Why) {
        let loaded = self.load();
        // Half of a file may well be a valid one, and is not what anybody wants.
        if self.file.as_ref().is_some_and(ConfigFile::has_changed_since) {
            log::info!("the configuration file is being changed, and is read when that is done");
            self.postponed = Some(why);
            return;
        }
        self.postponed = None;
        match loaded {
            Ok(settings) => self.take(settings, why),
            Err(error) => {
                if self.is_news(&error, why) {
                    log::error!("{error}; the configuration that was in force stays in force");
                }
                self.refused = Some(error);
            }
        }
    }

    /// The settings as they are written now, or what is wrong with them. An empty file is a configuration
    /// to start with, but none to change to: it is what a full disk or a broken copy leaves.
    fn load(&self) -> Result<Settings, String> {
        if let Some(file) = self.file.as_ref().filter(|file| file.is_blank()) {
            return Err(format!("{}: it is empty", file.path().display()));
        }
        let settings = config::load(self.overrides.clone()).map_err(|error| error.to_string())?;
        check(&settings).map_err(|error| error.to_string())?;
        Ok(settings)
    }

    fn take(&mut self, mut settings: Settings, why: Why) {
        let after_restart = self.started.differences(&settings).after_restart;
        settings.keep_hello_world_of(&self.started);
        let changes = self.running.apply(&settings);
        if why == Why::Hangup {
            self.running.registries.refresh();
        }
        let because = if why == Why::Hangup { "SIGHUP" } else { "the file has changed" };
        let at_once = self.in_force.differences(&settings).at_once;
        log::info!("configuration reloaded ({because}): {}", summary(&at_once, &changes));
        if !after_restart.is_empty() {
            let keys = after_restart.join(", ");
            log::warn!("configuration: {keys} changed; they take effect after a restart");
        }
        warn_of(&settings);
        (self.in_force, self.refused) = (settings, None);
    }

    /// Whether this refusal was not said yet.
    fn is_news(&self, error: &str, why: Why) -> bool {
        why != Why::Refused || self.refused.as_deref() != Some(error)
    }
}

/// What came into force, for the log.
fn summary(keys: &[&str], changes: &RegistryChanges) -> String {
    let changes = changes.to_string();
    match (keys.is_empty(), changes.is_empty()) {
        (true, true) => "nothing differs".into(),
        (false, true) => format!("{} changed", keys.join(", ")),
        (_, false) => format!("{} changed (registries: {changes})", keys.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::oci::Upstream;
    use crate::store::Store;
    use crate::upstream::Sources;

    /// A server that nobody is served by, and its configuration file.
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
            let running = Running { cache, registries, api, tls: None };
            let reloader = Reloader::new(overrides, file, settings, running);
            Site { path, reloader, _directory: directory }
        }

        fn look_twice(&mut self) {
            self.reloader.look();
            self.reloader.look();
        }

        /// Whether the registry may be asked, which stands for the whole configuration.
        fn knows(&self, name: &str) -> bool {
            let upstream: Upstream = name.parse().unwrap();
            self.reloader.running.registries.source(&upstream).is_ok()
        }
    }

    /// Another file of that name, so that it differs whatever the clock of the file system.
    fn put(path: &Path, text: &str) {
        let new = path.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, path).unwrap();
    }

    const ONE: &str = "registries: [{name: 'one:5000'}]";
    const TWO: &str = "registries: [{name: 'two:5000'}]";

    #[test]
    fn changed_file_is_in_force_at_the_second_look() {
        let mut site = Site::new(ONE);
        put(&site.path, TWO);
        site.reloader.look();
        assert!(site.knows("one:5000") && !site.knows("two:5000"));
        site.reloader.look();
        assert!(!site.knows("one:5000") && site.knows("two:5000"));
    }

    #[test]
    fn refusal_is_news_once_a_change_and_once_a_hangup() {
        let mut site = Site::new(ONE);
        for text in ["prt: 1", "", "registries: [{name: x.io, tls: {ca: /nonexistent}}]"] {
            put(&site.path, text);
            site.look_twice();
            assert!(site.knows("one:5000"), "{text}");
            let error = site.reloader.refused.clone().unwrap();
            assert!(!site.reloader.is_news(&error, Why::Refused), "{error}");
            assert!(site.reloader.is_news("another", Why::Refused));
            for why in [Why::Hangup, Why::Change] {
                assert!(site.reloader.is_news(&error, why), "{error}");
            }
        }
        put(&site.path, TWO);
        site.look_twice();
        assert!(site.knows("two:5000") && site.reloader.refused.is_none());
    }

    #[test]
    fn file_that_changes_while_it_is_read_is_read_when_it_is_still() {
        for why in [Why::Hangup, Why::Change] {
            let mut site = Site::new(ONE);
            site.reloader.file.as_mut().unwrap().is_about_to_be_read();
            put(&site.path, TWO);
            site.reloader.reload(why);
            assert!(site.knows("one:5000"), "{why:?}: half of a file may be a valid one");
            for _ in 0..2 {
                assert!(site.knows("one:5000"));
                site.reloader.look();
            }
            assert!(site.knows("two:5000") && site.reloader.postponed.is_none(), "{why:?}");
        }
    }

    #[test]
    fn hangup_reads_at_once() {
        let mut site = Site::new(ONE);
        put(&site.path, TWO);
        site.reloader.hang_up();
        assert!(site.knows("two:5000"));
        site.look_twice();
        assert!(site.knows("two:5000"));
    }
}
