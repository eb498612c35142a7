//! `larder serve`: assembles the server from its modules.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, SystemTime};

use log::kv::Value;
use log::{Level, Record};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::config_file::ConfigFile;
use super::reload::{self, Reloader, Running};
use super::{CommandError, load, logging, oidc, references, service, webhook};
use crate::api::{
    Api, ConfigurationInForce, Management, ManagementListener, ReadToken, RecentLines, Scope,
    ServerAuth, Setting,
};
use crate::bundle::{self, BundleSource, ImportEvent, ImportSettings};
use crate::cache::{
    BucketSweepThread, Cache, CompletionThread, IndexWriter, MaintenanceThread,
    REDIRECTED_BYTES_MIN, Scrubber, UploadThread,
};
use crate::config::{self, Overrides, Settings};
use crate::hello;
use crate::http::{self, ClientAuth, Controller, Server, ServerTls};
use crate::image_sync::{self, ImageSync, PRELOAD, Schedule, SyncEntry};
use crate::introduction;
use crate::store::Store;
use crate::upstream::{ProxySettings, Registries, Sources};
use crate::users::Users;

/// File descriptors reserved for everything but clients: upstream connections, partial downloads, the log.
const DESCRIPTORS_RESERVED: u64 = 256;
/// How long to wait after the drain for commits of blobs that are being written to disk.
const LAST_COMMITS: Duration = Duration::from_secs(5);
/// The same after a drain that served until they had ended, or until they had taken this long.
const LAST_COMMITS_AFTER_SERVING: Duration = Duration::from_millis(200);
/// Workers of a management port: some may be busy with lists of all images, and probes need a free one.
const MANAGEMENT_WORKERS: usize = 4;
/// Connections of a management port: probes, a few people, and programs that poll.
const MANAGEMENT_CONNECTIONS: usize = 256;
/// Response memory of a management port, in bytes: large responses are sent from a file.
const MANAGEMENT_MEMORY: u64 = 8 * 1024 * 1024;

/// Serves until SIGTERM or SIGINT, then drains. Reloads the configuration on SIGHUP.
///
/// # Errors
/// [`CommandError`] for whatever prevents the start.
pub(super) fn serve(overrides: Overrides) -> Result<(), CommandError> {
    // First of all, so that SIGHUP during the start does not end the process, but reloads once it runs.
    let signals = Signals::new([SIGHUP]).map_err(unwatched)?;
    let file = overrides.config_file.clone().and_then(ConfigFile::about_to_be_read);
    let settings = config::load(overrides.clone())?;
    let lines = Arc::<RecentLines>::default();
    logging::start_with(settings.log_level, &settings, Some(Arc::clone(&lines)))?;
    references::check(&settings)?;
    banner(&settings);
    references::warn_of(&settings);
    let preload = preload(&settings)?;
    let started = SystemTime::now();
    introduction::set_own(settings.introduction());
    let store = Store::open(&settings.store)?;
    if settings.cache.freshness.own.is_some() {
        import_hello_world(&store, started);
    }
    let registries = Arc::new(settings.registries());
    let clock = Arc::new(SystemTime::now);
    let cache =
        Cache::new(store.clone(), Arc::clone(&registries) as _, settings.cache.clone(), clock);
    let index_writer = IndexWriter::start(cache.clone())
        .map_err(|source| CommandError::System { doing: "start the index writer", source })?;

    let scrubber = settings.scrub.clone().map(|policy| Scrubber::start(cache.clone(), policy));
    let scrubber = scrubber
        .transpose()
        .map_err(|source| CommandError::System { doing: "start scrubbing", source })?;
    let maintenance = MaintenanceThread::start(cache.clone())
        .map_err(|source| CommandError::System { doing: "start maintenance", source })?;
    let completion = CompletionThread::start(cache.clone())
        .map_err(|source| CommandError::System { doing: "start completing images", source })?;

    let delivery = webhook::start(&settings, &cache)?;
    let tier = start_tier(&settings, &cache, &registries)?;

    let edge = http::Settings {
        max_connections: affordable(settings.http.max_connections),
        ..settings.http
    };
    let api = Arc::new(Api::new(cache.clone(), settings.naming.clone()));
    api.set_allowed_hosts(&settings.allowed_hosts);
    api.set_auth(server_auth(&settings, &store)?);
    api.set_tls(settings.tls.is_some());
    let tls = settings.tls.as_ref().map(ServerTls::load).transpose();
    let tls = tls.map_err(CommandError::ServerTls)?.map(Arc::new);
    let server = Server::bind(&[settings.listen], edge, tls.clone(), Arc::clone(&api) as _)?;
    cache.metrics().label_registries(labels(&settings));
    let sync = ImageSync::start(cache.clone(), sync_settings(&settings, preload.as_ref()))
        .map_err(|source| CommandError::System { doing: "start syncing images", source })?;
    let file_path = overrides.config_file.as_deref();
    let report = reload::report(&settings, file_path, server.address(), started);
    let configuration = ConfigurationInForce::new(report);
    let setting = Setting {
        cache: cache.clone(),
        sync: sync.clone(),
        api: Arc::clone(&api),
        edge: server.controller(),
        lines,
        configuration: configuration.clone(),
        token: settings.management.token_file.clone().map(token),
        platforms: settings.load_platforms.clone(),
        started,
        version: env!("CARGO_PKG_VERSION"),
    };
    let management = serve_management(&settings, setting)?;
    let (cache_of_running, sync_of_running) = (cache.clone(), sync.clone());
    let running = Running {
        cache: cache_of_running,
        registries,
        api,
        tls,
        sync: sync_of_running,
        preload,
        configuration,
    };
    // Capacity 1: a reload serves all signals that arrive before it starts.
    let (hangups, received_hangups) = sync_channel(1);
    Reloader::new(overrides, file, settings.clone(), running).start(received_hangups)?;
    handle_signals(signals, server.controller(), settings.http.drain, hangups)?;
    if !settings.cache.air_gapped {
        proxies(&settings.upstream.proxies);
    }
    log::info!(listen:% = server.address(); "listening");
    if settings.resume_on_start {
        cache.resume_downloads();
    }

    service::ready(&format!("serving on {}", server.address()));
    let drain = settings.http.drain;
    let refusing = server.accept();
    if drain == http::Drain::Handover {
        // Probes are for the other server from now on.
        management.iter().for_each(Controller::drain);
    }
    let report = refusing.finish();
    log::info!(connections = report.finished, closed = report.cut; "drained");
    management.iter().for_each(Controller::drain);
    // The failures that follow are not those of the images.
    sync.stop();
    // First, because this ends evictions for which fetches wait.
    cache.close();
    drop((scrubber, maintenance, completion));
    // A drain that serves has waited already, and nothing listens on the port any more.
    cache.wait_for_fetches(match drain {
        http::Drain::Refuse | http::Drain::Handover => LAST_COMMITS,
        http::Drain::Serve => LAST_COMMITS_AFTER_SERVING,
    });
    drop(index_writer);
    // Last, because the bucket may not respond, and what was fetched at the end may still be uploaded.
    drop(tier);
    drop(delivery);
    log::info!("stopped");
    Ok(())
}

/// The users and issuers of `serverAuthConfig`.
fn server_auth(settings: &Settings, store: &Store) -> Result<ServerAuth, CommandError> {
    let users = settings.access.as_ref().map(Users::load).transpose();
    let users = users.map_err(CommandError::Users)?;
    let load = |wanted| oidc::load(wanted, None, &settings.upstream.proxies, store);
    let issuers = settings.oidc.as_ref().map(load).transpose().map_err(CommandError::Oidc)?;
    Ok(ServerAuth { users: users.map(Arc::new), issuers: issuers.map(Arc::new) })
}

/// The threads of the bucket. One that is only read is not swept.
type Tier = (UploadThread, Option<BucketSweepThread>);

/// Starts uploads to the bucket, and its sweeps, if there is one.
fn start_tier(
    settings: &Settings,
    cache: &Cache,
    registries: &Registries,
) -> Result<Option<Tier>, CommandError> {
    let (Some((_, tier)), Some(bucket)) = (&settings.bucket, registries.shared_bucket()) else {
        // What is queued would prevent evictions for ever.
        cache.store().set_outgoing(None);
        return Ok(None);
    };
    let failed = |source| CommandError::System { doing: "start uploads", source };
    let uploads = UploadThread::start(cache.clone(), bucket.clone(), tier.uploads.clone());
    let uploads = uploads.map_err(failed)?;
    if tier.redirects {
        log::info!(
            endpoint = bucket.public_url().as_str();
            "objectStore: large cached blobs are redirected to the bucket"
        );
        cache.redirect_to(bucket.clone(), REDIRECTED_BYTES_MIN);
    }
    if tier.uploads.is_read_only {
        return Ok(Some((uploads, None)));
    }
    let (configured, status) = (tier.sweeps, cache.clone());
    let may_sweep = move || {
        let probe = || status.bucket_status().and_then(|status| status.probe);
        configured.unwrap_or_else(|| probe().is_some_and(|probe| probe.has_create_if_absent))
    };
    let sweeps = BucketSweepThread::start(cache.clone(), bucket, tier.limits, may_sweep);
    Ok(Some((uploads, Some(sweeps.map_err(failed)?))))
}

/// Imports the built-in image into the cache, which serves it like any other. A failure is logged and does not
/// prevent the start.
fn import_hello_world(store: &Store, now: SystemTime) {
    let source = BundleSource::Memory { name: "helloWorld", tar: hello::bundle().into() };
    let import_settings = ImportSettings { name: None, now, is_private: &|_| false };
    let result = bundle::import(store, &source, &import_settings, &mut |event| match &event {
        ImportEvent::Progress { .. } => {}
        ImportEvent::Imported { reference, digest, .. } => {
            log::info!(image = *reference, digest:%; "helloWorld: image imported");
        }
        failed => log::error!(error:% = failed; "helloWorld: cannot import the image"),
    });
    if let Err(error) = result {
        log::error!(error:%; "helloWorld: cannot import the image");
    }
}

/// The entry of `preloadImages`. It loads its images while the server already serves clients: an incomplete cache is
/// better than none, and a network failure must not prevent the start. The list is read now, so that an unreadable one
/// does.
fn preload(settings: &Settings) -> Result<Option<SyncEntry>, CommandError> {
    let Some(path) = &settings.preload_images else { return Ok(None) };
    Ok(Some(SyncEntry {
        name: PRELOAD.to_owned(),
        images: load::read_list(path, &settings.naming)?,
        lists: Vec::new(),
        newest: None,
        schedule: Schedule::AtStart,
        platforms: settings.load_platforms.clone(),
        referrers: settings.cache.prefetch.referrers,
    }))
}

/// The entries of `sync`, and that of `preloadImages`, which stays as it was at the start.
pub(super) fn sync_settings(
    settings: &Settings,
    preload: Option<&SyncEntry>,
) -> image_sync::Settings {
    let naming = settings.naming.clone();
    image_sync::Settings {
        entries: preload.cloned().into_iter().chain(settings.sync.iter().cloned()).collect(),
        expand: Arc::new(move |text| naming.expand(text)),
    }
}

/// The registries with a label value of their own in metrics.
pub(super) fn labels(settings: &Settings) -> impl Iterator<Item = &str> {
    settings.upstream.registries.iter().map(|entry| entry.upstream.as_str())
}

/// Starts the management port and the ports of `health` and `metrics`.
fn serve_management(
    settings: &Settings,
    setting: Setting,
) -> Result<Vec<Controller>, CommandError> {
    let listeners = &settings.management.listeners;
    let scopes: Vec<Scope> = listeners.iter().map(|listener| listener.scope).collect();
    let edge = http::Settings {
        workers: MANAGEMENT_WORKERS,
        max_connections: MANAGEMENT_CONNECTIONS,
        response_memory: MANAGEMENT_MEMORY,
        ..settings.http.clone()
    };
    let handlers = Management::new(setting, &scopes).into_iter().zip(listeners);
    handlers.map(|(handler, listener)| listen(listener, edge.clone(), handler)).collect()
}

fn listen(
    listener: &ManagementListener,
    edge: http::Settings,
    handler: Management,
) -> Result<Controller, CommandError> {
    let keys = match listener.scope {
        Scope::Health => "health",
        Scope::Metrics => "metrics",
        Scope::HealthAndMetrics => "health and metrics",
        Scope::Everything => "management.port",
    };
    let bound = Server::bind(&[listener.address], edge, None, Arc::new(handler));
    let server = bound.map_err(|source| CommandError::Management { keys, source })?;
    let (controller, address) = (server.controller(), server.address());
    thread::Builder::new()
        .name("management".into())
        .spawn(move || server.run())
        .map_err(|source| CommandError::System { doing: "serve the management port", source })?;
    match listener.scope {
        Scope::Health => log::info!(health:% = address; "serving health"),
        Scope::Metrics => log::info!(metrics:% = address; "serving metrics"),
        Scope::HealthAndMetrics => {
            log::info!(health:% = address, metrics:% = address; "serving health and metrics");
        }
        Scope::Everything => log::info!(management:% = address; "serving the management port"),
    }
    Ok(controller)
}

/// Reads the token of the management port, without surrounding white space.
fn token(path: PathBuf) -> ReadToken {
    Box::new(move || {
        let text =
            fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        match text.trim() {
            "" => Err(format!("{}: the file is empty", path.display())),
            token => Ok(token.to_owned()),
        }
    })
}

/// SIGTERM and SIGINT drain; a second one ends the drain. SIGHUP reloads, also during a drain.
fn handle_signals(
    mut signals: Signals,
    controller: Controller,
    drain: http::Drain,
    hangups: SyncSender<()>,
) -> Result<(), CommandError> {
    for signal in [SIGTERM, SIGINT] {
        signals.add_signal(signal).map_err(unwatched)?;
    }
    let watch = move || {
        let mut is_draining = false;
        for signal in signals.forever() {
            let name = if signal == SIGTERM { "SIGTERM" } else { "SIGINT" };
            if signal == SIGHUP {
                hang_up(&hangups);
            } else if !std::mem::replace(&mut is_draining, true) {
                log_drain(name, drain);
                service::stopping();
                controller.drain();
            } else {
                log::warn!(
                    signal = name; "closing the remaining connections after a second signal"
                );
                controller.stop_now();
            }
        }
    };
    thread::Builder::new().name("signals".into()).spawn(watch).map(drop).map_err(unwatched)
}

fn log_drain(signal: &str, drain: http::Drain) {
    match drain {
        http::Drain::Refuse => log::info!(
            signal;
            "draining; responses in progress are finished, new clients are refused, a second signal \
             ends them"
        ),
        http::Drain::Serve => log::info!(
            signal;
            "draining; responses in progress are finished, clients are served until no response is \
             running, a second signal ends them"
        ),
        http::Drain::Handover => log::info!(
            signal;
            "draining; responses in progress are finished, clients are served until another server \
             listens or no response is running, a second signal ends them"
        ),
    }
}

fn hang_up(hangups: &SyncSender<()>) {
    match hangups.try_send(()) {
        Ok(()) | Err(TrySendError::Full(())) => {}
        Err(TrySendError::Disconnected(())) => {
            log::error!(
                "SIGHUP: the reloader has stopped, the configuration is not reloaded; restart Larder"
            );
        }
    }
}

fn unwatched(source: std::io::Error) -> CommandError {
    CommandError::System { doing: "watch for signals", source }
}

/// The wanted number of connections, or less if the limit on open files requires it: a connection may need a
/// file in addition to its socket. Raises the soft limit to the hard limit first.
fn affordable(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let Some(current) = current else { return wanted };
    let affordable = usize::try_from(current.saturating_sub(DESCRIPTORS_RESERVED) / 2);
    let granted = wanted.min(affordable.unwrap_or(wanted)).max(1);
    if granted < wanted {
        log::info!(
            limit = current, connections = granted, wanted;
            "the limit of open files allows fewer connections; raise it (ulimit -n, LimitNOFILE=) or lower \
             maxConnections"
        );
    }
    granted
}

/// Logs the version and the most important settings, as the first line.
fn banner(settings: &Settings) {
    if !log::log_enabled!(Level::Info) {
        return;
    }
    let (user, group) = (rustix::process::getuid(), rustix::process::getgid());
    let (directory, listen) = (settings.store.root.display(), settings.listen);
    let mut fields: Vec<(&str, Value<'_>)> = vec![
        ("pid", std::process::id().into()),
        ("uid", user.as_raw().into()),
        ("gid", group.as_raw().into()),
        ("directory", Value::from_display(&directory)),
        ("listen", Value::from_display(&listen)),
        ("tls", tls(settings).into()),
    ];
    for listener in &settings.management.listeners {
        let address = Value::from_display(&listener.address);
        match listener.scope {
            Scope::Everything => fields.push(("management", address)),
            Scope::Health => fields.push(("health", address)),
            Scope::Metrics => fields.push(("metrics", address)),
            Scope::HealthAndMetrics => {
                fields.extend([("health", address.clone()), ("metrics", address)]);
            }
        }
    }
    // Without it, requests must name the registry with ?ns= or in the path.
    if let Some(upstream) = &settings.naming.default_upstream {
        fields.push(("default_registry", upstream.as_str().into()));
    }
    fields.push(("air_gapped", settings.cache.air_gapped.into()));
    let words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let command = words.collect::<Vec<String>>().join(" ");
    fields.push(("command", command.as_str().into()));
    log::logger().log(
        &Record::builder()
            .level(Level::Info)
            .target(module_path!())
            .args(format_args!("larder {}", env!("CARGO_PKG_VERSION")))
            .key_values(&fields)
            .build(),
    );
}

/// The TLS mode of the server.
fn tls(settings: &Settings) -> &'static str {
    match settings.tls.as_ref().map(|tls| &tls.clients) {
        None => "none",
        Some(ClientAuth::None) => "server",
        Some(ClientAuth::Verify { .. }) => "mutual",
    }
}

/// Logs the proxies from the environment.
fn proxies(settings: &ProxySettings) {
    if let Some(proxy) = &settings.http {
        log::info!(proxy:%; "a proxy is used for http registries");
    }
    if let Some(proxy) = &settings.https {
        log::info!(proxy:%; "a proxy is used for https registries");
    }
    if settings.http.is_some() || settings.https.is_some() {
        for entry in settings.no_proxy.misunderstood() {
            log::warn!(
                entry; "NO_PROXY: an entry is not a name, address or network and is ignored"
            );
        }
    }
}
