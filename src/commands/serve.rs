//! `larder serve`: the rooms put together.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::config_file::ConfigFile;
use super::reload::{self, Reloader, Running};
use super::{CommandError, load, logging, service};
use crate::api::{Api, Management, ManagementListener, NamingInForce, ReadToken, Scope, Setting};
use crate::bundle::{self, BundleSource, ImportSettings, LoadEvent, LoadSettings, Wanted};
use crate::cache::{Cache, Keeper, Scrubber, Upkeeper};
use crate::config::{self, Overrides, Settings};
use crate::hello;
use crate::http::{self, ClientAuth, Controller, Server, ServerTls};
use crate::store::Store;
use crate::upstream::{ProxySettings, Registries};
use crate::users::Users;

/// Images preloaded at a time: clients want their share of the link.
const PRELOAD_PARALLEL: usize = 2;
/// How often an image of the list is tried, and the wait before the second time: some minutes, in which a
/// network that comes up with the machine is there.
const PRELOAD_ATTEMPTS: u32 = 8;
const PRELOAD_FIRST_WAIT: Duration = Duration::from_secs(2);
/// Descriptors kept for everything that is not a client: upstream connections, partials, the log.
const DESCRIPTORS_RESERVED: u64 = 256;
/// How long a blob that is being forced to the disk may take to get its name after the drain.
const LAST_COMMITS: Duration = Duration::from_secs(5);
/// Workers of a management port: some may be looking at all images, and probes must find one.
const MANAGEMENT_WORKERS: usize = 4;
/// And its connections: probes, a few people, and programs that poll.
const MANAGEMENT_CONNECTIONS: usize = 256;
/// And its memory for answers: large ones are sent from a file.
const MANAGEMENT_MEMORY: u64 = 8 * 1024 * 1024;

/// Serves until SIGTERM or SIGINT, then drains. Reads its configuration again on SIGHUP.
///
/// # Errors
/// [`CommandError`] for whatever keeps it from starting.
pub(super) fn serve(overrides: Overrides) -> Result<(), CommandError> {
    // First of all: who hangs up on a server that starts gets a reload once it runs, and not its end.
    let signals = Signals::new([SIGHUP]).map_err(unwatched)?;
    let file = overrides.config_file.clone().and_then(ConfigFile::about_to_be_read);
    let settings = config::load(overrides.clone())?;
    logging::start(settings.log_level, settings.log_file.as_deref())?;
    reload::check(&settings)?;
    reload::warn_of(&settings);
    let preload = settings.preload_images.as_deref();
    let preload = preload.map(|path| load::read_list(path, &settings.naming)).transpose()?;
    let started = SystemTime::now();
    let store = Store::open(&settings.store)?;
    if settings.cache.freshness.own.is_some() {
        take_in_hello_world(&store, started);
    }
    let registries = Arc::new(Registries::new(settings.upstream.clone()));
    let clock = Arc::new(SystemTime::now);
    let cache =
        Cache::new(store.clone(), Arc::clone(&registries) as _, settings.cache.clone(), clock);
    let keeper = Keeper::start(cache.clone())
        .map_err(|source| CommandError::System { doing: "start housekeeping", source })?;

    let scrubber = settings.scrub.clone().map(|policy| Scrubber::start(cache.clone(), policy));
    let scrubber = scrubber
        .transpose()
        .map_err(|source| CommandError::System { doing: "start scrubbing", source })?;
    let upkeeper = Upkeeper::start(cache.clone())
        .map_err(|source| CommandError::System { doing: "start upkeep", source })?;

    let edge = http::Settings {
        max_connections: affordable(settings.http.max_connections),
        ..settings.http
    };
    let api = Arc::new(Api::new(cache.clone(), settings.naming.clone()));
    api.set_allowed_hosts(&settings.allowed_hosts);
    let users =
        settings.access.as_ref().map(Users::load).transpose().map_err(CommandError::Users)?;
    api.set_users(users.map(Arc::new));
    let tls = settings.tls.as_ref().map(ServerTls::load).transpose();
    let tls = tls.map_err(CommandError::ServerTls)?.map(Arc::new);
    let server = Server::bind(&[settings.listen], edge, tls.clone(), Arc::clone(&api) as _)?;
    cache.metrics().label_registries(labels(&settings));
    let management = serve_management(&settings, &cache, api.naming(), &server, started)?;
    let running = Running { cache: cache.clone(), registries, api, tls };
    // One that waits stands for all that come before it is heeded.
    let (hangups, hung_up) = sync_channel(1);
    Reloader::new(overrides, file, settings.clone(), running).start(hung_up)?;
    heed_signals(signals, server.controller(), hangups)?;
    banner(&settings, server.address());
    if settings.resume_on_start {
        cache.resume_downloads();
    }
    if let Some(wanted) = preload {
        preload_beside(&cache, wanted, &settings)?;
    }

    service::ready(&format!("serving on {}", server.address()));
    let report = server.run();
    log::info!("drained: {} connections ended in order, {} were cut", report.finished, report.cut);
    management.iter().for_each(Controller::drain);
    // First, so that an eviction ends that a fetch was waiting for.
    cache.close();
    drop((scrubber, upkeeper));
    cache.wait_for_fetches(LAST_COMMITS);
    drop(keeper);
    log::info!("stopped");
    Ok(())
}

/// Puts Larder's own image into the cache, from where it is served as any other. A disk that does not take it
/// is no reason not to serve the others.
fn take_in_hello_world(store: &Store, now: SystemTime) {
    let source = BundleSource::Memory { name: "helloWorld", tar: hello::bundle().into() };
    let import_settings = ImportSettings { name: None, now };
    let taken = bundle::import(store, &source, &import_settings, &mut |told| {
        log::info!("helloWorld: {told}");
    });
    if let Err(error) = taken {
        log::error!("helloWorld: the image cannot be put into the cache: {error}");
    }
}

/// Loads a list while clients are served: a cache that is half full is better than none, and a network that
/// is down must not keep it from starting.
fn preload_beside(
    cache: &Cache,
    wanted: Vec<Wanted>,
    settings: &Settings,
) -> Result<(), CommandError> {
    let load_settings = LoadSettings {
        platforms: settings.load_platforms.clone(),
        parallel: PRELOAD_PARALLEL,
        attempts: PRELOAD_ATTEMPTS,
        first_wait: PRELOAD_FIRST_WAIT,
        referrers: settings.cache.prefetch.referrers,
    };
    let cache = cache.clone();
    let work = move || {
        let summary = bundle::load(&cache, &wanted, &load_settings, &|event| {
            if let LoadEvent::Retry { image, reason, wait } = event {
                log::info!("preload: {image}: {reason}; once more in {} s", wait.as_secs());
            }
        });
        for (image, reason) in summary.failed() {
            log::warn!("preload: {image}: {reason}");
        }
        let failed = summary.failed().count();
        log::info!("preload: {} of {} images are here", wanted.len() - failed, wanted.len());
    };
    thread::Builder::new()
        .name("preload".into())
        .spawn(work)
        .map(drop)
        .map_err(|source| CommandError::System { doing: "preload images", source })
}

/// The registries that metrics tell apart.
pub(super) fn labels(settings: &Settings) -> impl Iterator<Item = &str> {
    settings.upstream.registries.iter().map(|entry| entry.upstream.as_str())
}

/// The management port, and those of `health` and `metrics`, served beside.
fn serve_management(
    settings: &Settings,
    cache: &Cache,
    naming: NamingInForce,
    serving: &Server,
    started: SystemTime,
) -> Result<Vec<Controller>, CommandError> {
    let listeners = &settings.management.listeners;
    let setting = Setting {
        cache: cache.clone(),
        naming,
        edge: serving.controller(),
        token: settings.management.token_file.clone().map(token),
        platforms: settings.load_platforms.clone(),
        started,
        version: env!("CARGO_PKG_VERSION"),
    };
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
        Scope::Health => log::info!("health on http://{address}/health"),
        Scope::Metrics => log::info!("metrics on http://{address}/metrics"),
        Scope::HealthAndMetrics => {
            log::info!("health and metrics on http://{address}/health and /metrics");
        }
        Scope::Everything => log::info!("management on http://{address}/"),
    }
    Ok(controller)
}

/// Reads the token of the management port, without the line break at its end.
fn token(path: PathBuf) -> ReadToken {
    Box::new(move || {
        let text =
            fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        match text.trim() {
            "" => Err(format!("{} is empty", path.display())),
            token => Ok(token.to_owned()),
        }
    })
}

/// SIGTERM and SIGINT drain, and a second one does not wait for that. SIGHUP reloads, also in a drain.
fn heed_signals(
    mut signals: Signals,
    controller: Controller,
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
                log::info!("{name}: draining; what is being sent is finished, once more to cut it");
                service::stopping();
                controller.drain();
            } else {
                log::warn!("{name} again: cutting what is left");
                controller.stop_now();
            }
        }
    };
    thread::Builder::new().name("signals".into()).spawn(watch).map(drop).map_err(unwatched)
}

fn hang_up(hangups: &SyncSender<()>) {
    match hangups.try_send(()) {
        Ok(()) | Err(TrySendError::Full(())) => {}
        Err(TrySendError::Disconnected(())) => {
            log::error!("SIGHUP: nobody reloads the configuration any more; restart Larder");
        }
    }
}

fn unwatched(source: std::io::Error) -> CommandError {
    CommandError::System { doing: "watch for signals", source }
}

/// As many connections as wanted, or as the limit on open files allows: each may hold a file beside its
/// socket. The soft limit is raised to the hard one first.
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
            "the limit of {current} open files allows {granted} connections instead of {wanted}; \
             raise it (ulimit -n, LimitNOFILE=) or lower maxConnections"
        );
    }
    granted
}

/// What an operator wants to see first.
fn banner(settings: &Settings, address: SocketAddr) {
    let (user, group) = (rustix::process::getuid(), rustix::process::getgid());
    log::info!(
        "larder {} pid={} uid:gid={}:{} tls={}",
        env!("CARGO_PKG_VERSION"),
        std::process::id(),
        user.as_raw(),
        group.as_raw(),
        tls(settings)
    );
    let line: Vec<String> =
        std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    log::info!("command line: {}", line.join(" "));
    log::info!("cache directory: {}", settings.store.root.display());
    match &settings.naming.default_upstream {
        Some(upstream) => log::info!("requests that name no registry go to {upstream}"),
        None => log::info!("requests must name their registry (?ns=, path, or set defaultNs)"),
    }
    match settings.cache.air_gapped {
        true => log::info!("air-gapped: no upstream is asked"),
        false => proxies(&settings.upstream.proxies),
    }
    log::info!("listening on {address}");
}

/// What clients speak and show.
fn tls(settings: &Settings) -> &'static str {
    match settings.tls.as_ref().map(|tls| &tls.clients) {
        None => "none",
        Some(ClientAuth::None) => "server",
        Some(ClientAuth::Verify { .. }) => "mutual",
    }
}

/// By way of what upstreams are reached, if the environment says so.
fn proxies(settings: &ProxySettings) {
    for (scheme, proxy) in [("http", &settings.http), ("https", &settings.https)] {
        if let Some(proxy) = proxy {
            log::info!("{scheme} registries are reached by way of the proxy {proxy}");
        }
    }
    if settings.http.is_some() || settings.https.is_some() {
        for entry in settings.no_proxy.misunderstood() {
            log::warn!("NO_PROXY: {entry} is no name, address or network, and has no effect");
        }
    }
}
