//! The files and programs that a configuration refers to: whether they can be used, for servers and `larder config check`.
//!
//! What would keep a server from starting is an error. The rest is a remark.

use std::env;
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::SystemTime;

use super::CommandError;
use crate::certificates::CertificateError;
use crate::config::Settings;
use crate::http::{ClientAuth, ServerTlsSettings};
use crate::image_sync;
use crate::oidc::{self, KeysFrom};
use crate::prune;
use crate::upstream::{
    Credentials, DiscoverySettings, EndpointSettings, IssuerUrl, PeerSettings, TlsSettings,
};
use crate::users;

/// Checks the files that the settings refer to, as a starting server would.
///
/// # Errors
/// [`CommandError`] for unusable files.
pub(super) fn check(settings: &Settings) -> Result<(), CommandError> {
    for (place, tls) in outgoing_tls(settings) {
        tls.check().map_err(|source| CommandError::Tls { place, source })?;
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
    settings.oidc.as_ref().map(oidc::Settings::check).transpose().map_err(CommandError::Oidc)?;
    Ok(())
}

/// The endpoints of registries and the parents, each with its place in the configuration.
fn endpoints(settings: &Settings) -> impl Iterator<Item = (String, &EndpointSettings)> {
    let parents = settings.upstream.parents.iter();
    let parents = parents.map(|parent| (format!("parents: {}", parent.endpoint.url()), parent));
    let registries = settings.upstream.registries.iter().flat_map(|entry| {
        let place = format!("registries: {}", entry.upstream);
        entry.endpoints.iter().map(move |endpoint| (place.clone(), endpoint))
    });
    registries.chain(parents)
}

/// The TLS settings of outgoing connections, each with its place in the configuration.
fn outgoing_tls(settings: &Settings) -> impl Iterator<Item = (String, &TlsSettings)> {
    let bucket = settings.bucket.iter().map(|(store, _)| ("objectStore".to_owned(), &store.tls));
    let peers = settings.upstream.peers.iter();
    let peers = peers.map(|peers| ("peers".to_owned(), &peers.access.tls));
    let discovered = discovered(settings)
        .map(|(url, discovery)| (format!("serverAuthConfig.oidc: {url}"), &discovery.tls));
    let endpoints = endpoints(settings).map(|(place, endpoint)| (place, &endpoint.tls));
    endpoints.chain(bucket).chain(peers).chain(discovered)
}

/// The issuers whose keys are fetched.
fn discovered(settings: &Settings) -> impl Iterator<Item = (&IssuerUrl, &DiscoverySettings)> {
    let issuers = settings.oidc.iter().flat_map(|oidc| &oidc.issuers);
    issuers.filter_map(|entry| match &entry.keys {
        KeysFrom::Discovery(discovery) => Some((&entry.issuer, discovery)),
        KeysFrom::File(_) => None,
    })
}

/// Logs the remarks on settings that take effect.
pub(super) fn warn_of(settings: &Settings) {
    for remark in remarks(settings) {
        log::log!(remark.level, error = remark.text.as_str(); "a setting needs attention");
    }
}

/// A problem that the operator should know about, but that is not a reason to refuse the settings.
pub(super) struct Remark {
    level: log::Level,
    text: String,
}

impl Remark {
    /// Whether something does not work, although the server can start.
    pub(super) fn is_error(&self) -> bool {
        self.level == log::Level::Error
    }
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.is_error() { "error" } else { "warning" };
        write!(f, "{word}: {}", self.text)
    }
}

/// The problems that are not a reason to refuse the settings.
pub(super) fn remarks(settings: &Settings) -> Vec<Remark> {
    let now = SystemTime::now();
    let warning = |text: &str| Remark { level: log::Level::Warn, text: text.to_owned() };
    let unusable = |place: &str, error: CertificateError| Remark {
        level: log::Level::Error,
        text: format!("{place}: {error}"),
    };
    let mut remarks = Vec::new();
    for key in &settings.without_effect {
        remarks.push(warning(&format!("the configuration key {key} has no effect")));
    }
    for (place, tls) in outgoing_tls(settings) {
        let found = tls.expired(now).into_iter();
        remarks.extend(found.map(|error| unusable(&format!("{place}: tls"), error)));
    }
    if let Some(events) = &settings.events {
        let tls = &events.webhook.tls;
        let found = tls.check().err().into_iter().chain(tls.expired(now));
        remarks.extend(found.map(|error| unusable("events.tls", error)));
    }
    let found = settings.tls.iter().flat_map(|tls| tls.expired(now));
    remarks.extend(found.map(|error| unusable("serverTlsConfig", error)));
    if let Some(ServerTlsSettings { clients: ClientAuth::Verify { ca: None }, .. }) = &settings.tls
    {
        remarks.push(warning(
            "serverTlsConfig: ca is not set, so client certificates of every authority that this machine \
             trusts are accepted",
        ));
    }
    remarks.extend(unreadable(settings));
    if settings.cache.air_gapped && !settings.sync.is_empty() {
        remarks
            .push(warning("sync has no effect with airGapped, because no registry is contacted"));
    }
    let has_client_access = settings.cache.access.has_clients();
    let demands = [
        ("serverAuthConfig", settings.access.is_some() || settings.oidc.is_some()),
        ("access: client", has_client_access),
    ];
    let demands = demands.into_iter().filter(|(_, is_set)| *is_set);
    if settings.tls.is_none() && !settings.listen.ip().is_loopback() {
        remarks.extend(demands.map(|(key, _)| {
            warning(&format!(
                "{key} without serverTlsConfig: passwords cross the network unencrypted, \
                 unless a proxy in front of Larder terminates TLS"
            ))
        }));
    }
    if has_client_access && settings.upstream.peers.as_ref().is_some_and(PeerSettings::is_open) {
        remarks.push(warning(
            "peers without peers.auth: members do not share the images of registries with access: client",
        ));
    }
    remarks
}

/// Remarks on files that are read when they are needed and cannot be used yet: they may appear later.
fn unreadable(settings: &Settings) -> Vec<Remark> {
    let error = |text: String| Remark { level: log::Level::Error, text };
    let lists = settings.cache.maintenance.pins.lists.iter();
    let errors = lists.filter_map(|path| prune::read_pins(path).err());
    let mut remarks: Vec<Remark> =
        errors.map(|wrong| error(format!("pinLists: {wrong}"))).collect();
    for entry in &settings.sync {
        for path in &entry.lists {
            let expand = |text: &str| settings.naming.expand(text);
            if let Err(wrong) = image_sync::read_list(path, &expand) {
                let (name, path) = (&entry.name, path.display());
                remarks.push(error(format!("sync: {name}: lists: {path}: {wrong}")));
            }
        }
    }
    let mut unusable = |place: &str, path: &Path, effect: &str| {
        if let Some(wrong) = wrong_with(path) {
            remarks.push(error(format!("{place}: {}: {wrong}; {effect}", path.display())));
        }
    };
    for (place, credentials) in credentials(settings) {
        for (key, path) in credentials.files() {
            let effect = "requests are anonymous until the file is readable";
            unusable(&format!("{place}: {key}"), path, effect);
        }
    }
    for (url, discovery) in discovered(settings) {
        if let Some(path) = &discovery.token_file {
            let effect = "the keys of the issuer are not fetched until the file is readable";
            unusable(&format!("serverAuthConfig.oidc: {url}: tokenFile"), path, effect);
        }
    }
    for (key, path) in settings.bucket.iter().flat_map(|(store, _)| store.keys.files()) {
        let effect = "the bucket is not used until the file is readable";
        unusable(&format!("objectStore: {key}"), path, effect);
    }
    if let Some(path) =
        settings.events.as_ref().and_then(|events| events.webhook.token_file.as_ref())
    {
        unusable("events.tokenFile", path, "events are not sent until the file is readable");
    }
    if let Some(path) = &settings.management.token_file {
        let effect = "the management API is read-only until the file is readable";
        unusable("management.tokenFile", path, effect);
    }
    let files = settings.image_file.iter().flat_map(|names| names.split(',')).map(str::trim);
    for name in files.filter(|name| !name.is_empty()) {
        unusable("imageFile", Path::new(name), "larder load without arguments fails");
    }
    for (place, credentials) in credentials(settings) {
        for program in credentials.helpers().filter(|program| !is_found(program)) {
            remarks.push(error(format!(
                "{place}: credentialHelper: {program} is not found; install it, or correct PATH"
            )));
        }
    }
    remarks
}

/// The credentials of endpoints and peers, each with its place in the configuration.
fn credentials(settings: &Settings) -> impl Iterator<Item = (String, &Credentials)> {
    let peers = settings.upstream.peers.iter();
    let peers = peers.map(|peers| ("peers".to_owned(), &peers.access.credentials));
    endpoints(settings).map(|(place, endpoint)| (place, &endpoint.credentials)).chain(peers)
}

/// Why a file that must have content cannot be used; `None` if it can.
fn wrong_with(path: &Path) -> Option<String> {
    match fs::read(path) {
        Ok(content) => content.trim_ascii().is_empty().then(|| "it is empty".to_owned()),
        Err(error) => Some(error.to_string()),
    }
}

/// Whether a program can be run: an absolute path, or a name in one of the directories of `PATH`.
fn is_found(program: &str) -> bool {
    let is_program = |path: &Path| {
        fs::metadata(path).is_ok_and(|is| is.is_file() && is.permissions().mode() & 0o111 != 0)
    };
    match program.contains('/') {
        true => is_program(Path::new(program)),
        false => env::var_os("PATH").is_some_and(|path| {
            env::split_paths(&path).any(|directory| is_program(&directory.join(program)))
        }),
    }
}
