//! The rounds of a run, and what is checked after each storm.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crate::accounts::{Log, Samples, Snapshot, compare_with_log};
use crate::actors;
use crate::context::{Phase, Soak};
use crate::faults::Outage;
use crate::random::Random;
use crate::report::{lock, size};
use crate::resources::{Resources, children, disk_usage, leftovers, partials};
use crate::sabotage::{self, Sabotage};
use crate::schedule::{self, Actor};
use crate::server::{NEGATIVE_TTL, Stop};

/// The longest wait of a client: a registry that stalls, and a slow machine.
const CLIENTS_END: Duration = Duration::from_secs(90);
/// A circuit breaker opens for at most 30 s, and `Retry-After` applies to a minute at most.
const RECOVERY_MAX: Duration = Duration::from_secs(75);
/// Larder counts its disk usage every 15 s, or after 60 s while nothing changes.
const COUNT_MAX: Duration = Duration::from_secs(80);
/// Idle connections to the registry are closed after 15 s; clients have left before.
const IDLE_CONNECTIONS_END: Duration = Duration::from_secs(16);
/// The files that Larder writes after a count: `usage/` and marks of periodic jobs.
const DISK_TOLERANCE_BYTES: u64 = 64 * 1024;
/// The largest `cacheSize` of all configurations, and half as much for what commands add before the server counts
/// again.
const CACHE_BYTES_MAX: u64 = 45_000_000 * 3 / 2;
/// Counters of Larder that show what a run has reached.
const INTERESTING: [&str; 7] = [
    "larder_downloads_total{outcome=\"done\"}",
    "larder_downloads_total{outcome=\"failed\"}",
    "larder_download_retries_total",
    "larder_download_resumes_total",
    "larder_removed_images_total{why=\"evicted\"}",
    "larder_removed_images_total{why=\"pruned\"}",
    "larder_not_cached_total",
];
/// How long a temporary file may exist.
const TEMPORARY_FILE_MAX: Duration = Duration::from_secs(4);
/// The pause between two retags in a calm.
const CALM_RETAG: Duration = Duration::from_millis(700);

/// A part of the run.
pub struct Round {
    pub storm: Duration,
    pub calm: Duration,
    /// Whether the server is killed. Only a process that lives long can show a leak.
    pub has_kills: bool,
}

/// The round with this number, which begins after `elapsed` of a run. In short runs each round has kills. In long ones
/// every second pair has none, and the last 40 % have none, so that one process serves for a long time.
pub fn round(
    number: usize,
    elapsed: Duration,
    length: Duration,
    sabotage: Option<Sabotage>,
) -> Round {
    let is_short = length <= Duration::from_secs(180);
    let (storm, calm) = match sabotage {
        Some(_) => (6, 6),
        None if is_short => (45, 10),
        None => (70, 15),
    };
    let has_kills = is_short || (number % 4 < 2 && elapsed * 10 < length * 6);
    Round { storm: Duration::from_secs(storm), calm: Duration::from_secs(calm), has_kills }
}

pub fn run(soak: &Soak, length: Duration, is_without_kills: bool, sabotage: Option<Sabotage>) {
    if !actors::start(soak) {
        return;
    }
    first_pins(soak);
    let mut state = State::default();
    for number in 0.. {
        let mut round = round(number, soak.began.elapsed(), length, sabotage);
        round.has_kills &= !is_without_kills;
        if number > 0 && soak.began.elapsed() + round.storm + round.calm > length {
            break;
        }
        storm(soak, number, &round);
        settle(soak);
        calm(soak, number, &round, sabotage);
        quiet(soak, &mut state, sabotage);
    }
    actors::restart(soak, Stop::Terminate);
    actors::check_guarded(soak);
    soak.server.stop(Stop::Terminate);
}

/// What is known from earlier rounds.
#[derive(Default)]
struct State {
    log: Log,
    /// The process, and its resources in its first quiet phase.
    base: Option<(u64, Resources)>,
}

fn first_pins(soak: &Soak) {
    let mut random = Random::new(soak.seed, "first pins");
    (0..4).for_each(|way| actors::pin(soak, way % 3, &mut random));
    if lock(&soak.guarded).len() != 4 {
        soak.finding("pin", "images cannot be pinned, although nothing is wrong", "");
    }
}

fn storm(soak: &Soak, number: usize, round: &Round) {
    soak.faults.set_percent(8);
    soak.begin(Phase::Storm);
    thread::scope(|scope| {
        for actor in [Actor::Publisher, Actor::Chaos, Actor::Operator] {
            let events = schedule::events(soak.seed, number, actor, round.storm, round.has_kills);
            scope.spawn(move || actors::act(soak, number, actor, &events));
        }
    });
}

/// Ends all faults, and waits until everything works again.
fn settle(soak: &Soak) {
    soak.faults.heal();
    if !soak.close(CLIENTS_END) {
        soak.finding("hang", &format!("clients still wait after {CLIENTS_END:?}"), "");
    }
    let began = Instant::now();
    // Deleted tags come back, so that every pull succeeds again.
    let mut random = Random::new(soak.seed, "settle");
    for repository in crate::world::REPOSITORIES {
        let images = soak.world.images(repository);
        for tag in crate::world::TAGS {
            if soak.world.manifest(repository, tag).is_none()
                && let Some(image) = random.pick(&images)
            {
                soak.world.retag(repository, tag, Some(image.top.digest.clone()));
            }
        }
    }
    while !has_recovered(soak) {
        if began.elapsed() > RECOVERY_MAX {
            return soak.finding(
                "recovery",
                &format!("images cannot be pulled {RECOVERY_MAX:?} after the faults"),
                "",
            );
        }
        thread::sleep(Duration::from_millis(300));
    }
    wait_until_idle(soak);
    // What failed last is asked for again, not answered from memory.
    thread::sleep(NEGATIVE_TTL + Duration::from_millis(500));
    soak.tally.raise("slowest recovery in ms", began.elapsed().as_millis() as u64);
}

/// Whether content of each repository that is not cached can be pulled.
fn has_recovered(soak: &Soak) -> bool {
    let headers = [("Connection", "close".to_owned())];
    let ask = |target: &str| {
        let mut connection = crate::wire::Connection::open(soak.server.site.address).ok()?;
        let tampering = crate::wire::Tampering::none();
        connection.ask("GET", target, &headers, crate::wire::Reading::Complete, &tampering).ok()
    };
    crate::world::REPOSITORIES.iter().all(|repository| {
        let images = soak.world.images(repository);
        let manifests = crate::world::TAGS.map(|tag| format!("/v2/{repository}/manifests/{tag}"));
        let blobs = images
            .iter()
            .flat_map(|image| &image.blobs)
            .map(|blob| format!("/v2/{repository}/blobs/{}", blob.digest));
        let is_right = |target: String| {
            ask(&target).is_some_and(|reply| {
                reply.is_complete && reply.status == 200 && reply.header("warning").is_none()
            })
        };
        manifests.into_iter().chain(blobs.take(3)).all(is_right)
    })
}

fn wait_until_idle(soak: &Soak) {
    let began = Instant::now();
    let mut idle = 0;
    while idle < 3 {
        match Samples::of(&soak.server) {
            Some(samples) if samples.is_idle() => idle += 1,
            _ => idle = 0,
        }
        if began.elapsed() > RECOVERY_MAX {
            return soak.finding("not idle", "flights or fetches do not end", "");
        }
        thread::sleep(Duration::from_millis(150));
    }
}

/// Clients without faults: every request succeeds, and every count is exact.
fn calm(soak: &Soak, number: usize, round: &Round, sabotage: Option<Sabotage>) {
    let Some(before) = Snapshot::take(soak) else {
        return soak.finding("metrics", "no metrics", "");
    };
    sabotage::in_calm(soak, sabotage);
    soak.begin(Phase::Calm);
    let mut random = Random::new(soak.seed, &format!("calm {number}"));
    let until = Instant::now() + round.calm;
    while Instant::now() < until {
        actors::retag(soak, &mut random);
        soak.rest(CALM_RETAG);
    }
    if !soak.close(CLIENTS_END) {
        soak.finding("hang", &format!("clients still wait after {CLIENTS_END:?}"), "");
    }
    wait_until_idle(soak);
    match Snapshot::take(soak) {
        Some(after) => before.compare(soak, &after),
        None => soak.finding("metrics", "no metrics", ""),
    }
    soak.tally.add("calms", 1);
}

/// No clients: counts, disk and resources must be as they should.
fn quiet(soak: &Soak, state: &mut State, sabotage: Option<Sabotage>) {
    let began = Instant::now();
    sabotage::in_quiet(soak, sabotage);
    resume(soak);
    without_registry(soak);
    wait_until_idle(soak);
    let logged = Samples::of(&soak.server);
    match logged {
        Some(samples) => compare_with_log(soak, &samples, &mut state.log),
        None => state.log.read(soak),
    }
    compare_disk(soak, began);
    actors::verify(soak);
    thread::sleep(IDLE_CONNECTIONS_END.saturating_sub(began.elapsed()));
    check_process(soak, state);
    soak.tally.raise("explained errors in one log", state.log.explained_errors());
    soak.tally.add("quiets", 1);
}

/// Resumes partial downloads; all that the registry still has must be finished.
fn resume(soak: &Soak) {
    let cache = soak.server.site.cache();
    let before = partials(&cache).len();
    if soak.server.manage("POST", "/api/v1/flights/resume").is_err() {
        soak.finding("management", "downloads cannot be resumed", "");
    }
    wait_until_idle(soak);
    let left = partials(&cache);
    soak.tally.add("partial downloads after storms", before as u64);
    let available =
        left.iter().filter(|name| soak.world.blob(&name.replacen('-', ":", 1)).is_some()).count();
    soak.tally.add("partial downloads not finished", available as u64);
}

/// Pinned images are served while the registry is down.
fn without_registry(soak: &Soak) {
    soak.faults.begin_outage(Outage::Down, RECOVERY_MAX);
    thread::sleep(Duration::from_millis(100));
    actors::check_guarded(soak);
    soak.faults.heal();
}

/// Disk usage in the metrics must be what `du` counts, at the latest after the next count.
fn compare_disk(soak: &Soak, began: Instant) {
    let cache = soak.server.site.cache();
    let mut first = None;
    loop {
        let before = disk_usage(&cache);
        let samples = Samples::of(&soak.server);
        let used = samples
            .and_then(|samples| samples.get("larder_disk_used_bytes"))
            .map(|used| used as u64);
        let is_stable = disk_usage(&cache) == before;
        if let Some(used) = used.filter(|_| is_stable) {
            let difference = used.abs_diff(before);
            first.get_or_insert(difference);
            if difference <= DISK_TOLERANCE_BYTES {
                break;
            }
            if began.elapsed() > COUNT_MAX {
                let text = format!("larder_disk_used_bytes is {used}, du counts {before}");
                return soak.finding("disk usage", &text, "");
            }
        } else if began.elapsed() > COUNT_MAX {
            return soak.finding(
                "disk usage",
                "the disk usage changes all the time, or is not reported",
                "",
            );
        }
        thread::sleep(Duration::from_millis(500));
    }
    soak.tally.raise("largest difference to du before a count", first.unwrap_or_default());
    soak.tally.add("disk usages compared", 1);
}

fn check_process(soak: &Soak, state: &mut State) {
    let cache = soak.server.site.cache();
    let mut left = leftovers(&cache);
    left.retain(|name| !lock(&soak.left_by_commands).contains(name));
    if !left.is_empty() {
        // A temporary file that is in use lives for milliseconds; on a busy machine somewhat longer.
        thread::sleep(TEMPORARY_FILE_MAX);
        let still = leftovers(&cache);
        left.retain(|name| still.contains(name));
    }
    left.iter().for_each(|name| soak.finding("leftover", name, ""));
    let Some(pid) = soak.server.pid() else { return };
    for child in children(pid) {
        soak.finding("child process", &child, "");
    }
    let Some(now) = Resources::of(pid) else { return };
    let generation = soak.server.generation();
    match state.base {
        Some((process, base)) if process == generation => now.compare(soak, &base),
        _ => state.base = Some((generation, now)),
    }
    soak.tally.raise("quiet RSS in KiB", now.rss_kib);
    soak.tally.raise("quiet descriptors", now.descriptors);
    println!(
        "quiet: process {generation}, RSS {} KiB, {} threads, {} descriptors, cache {}, {} pinned, {} partial downloads",
        now.rss_kib,
        now.threads,
        now.descriptors,
        size(disk_usage(&cache)),
        lock(&soak.guarded).len(),
        partials(&cache).len()
    );
}

/// Watches the process, and prints a line each minute.
pub fn watch(soak: &Soak) {
    let (mut next, mut ticks, mut counters) = (Duration::from_secs(60), 0u32, Counters::default());
    while !soak.is_over() {
        thread::sleep(Duration::from_millis(250));
        let now = soak.server.pid().and_then(Resources::of).unwrap_or_default();
        for (name, value) in [
            ("RSS in KiB", now.rss_kib),
            ("threads", now.threads),
            ("descriptors", now.descriptors),
        ] {
            soak.tally.raise(&format!("highest {name}"), value);
        }
        now.check(soak);
        if let Some(status) = soak.server.exited() {
            soak.finding("crash", &format!("the server exited with {status}"), "");
            thread::sleep(Duration::from_secs(1));
        }
        ticks += 1;
        if ticks.is_multiple_of(8) {
            counters.add(soak);
            let used = disk_usage(&soak.server.site.cache());
            soak.tally.raise("largest cache", used);
            if used > CACHE_BYTES_MAX {
                soak.finding(
                    "limit",
                    &format!("the cache has {used} bytes, at most {CACHE_BYTES_MAX}"),
                    "",
                );
            }
        }
        if soak.began.elapsed() >= next {
            next += Duration::from_secs(60);
            print_line(soak, &now);
        }
    }
}

/// Counters of Larder that begin again with each process, summed up over all of them.
#[derive(Default)]
struct Counters {
    process: u64,
    last: BTreeMap<String, u64>,
}

impl Counters {
    fn add(&mut self, soak: &Soak) {
        let process = soak.server.generation();
        let Some(samples) = Samples::of(&soak.server) else { return };
        if std::mem::replace(&mut self.process, process) != process {
            self.last.clear();
        }
        for name in INTERESTING {
            let now = samples.sum(name) as u64;
            let before = self.last.insert(name.to_owned(), now).unwrap_or_default();
            soak.tally.add(name, now.saturating_sub(before));
        }
    }
}

fn print_line(soak: &Soak, now: &Resources) {
    let (tally, cache) = (&soak.tally, disk_usage(&soak.server.site.cache()));
    println!(
        "{:>4} s {:?}: {} pulls, {} requests, {}, {} kills, {} faults, RSS {} KiB, {} descriptors, {} threads, cache {}, {} findings",
        soak.began.elapsed().as_secs(),
        soak.phase(),
        tally.get("pulls"),
        tally.get("requests"),
        size(tally.get("bytes")),
        tally.get("kills"),
        soak.faults.injected.load(Ordering::Relaxed),
        now.rss_kib,
        now.descriptors,
        now.threads,
        size(cache),
        soak.findings.by_kind().values().sum::<u64>()
    );
}

/// Prints what the run did, as a table for bench/README.md, and what it found.
pub fn print_report(soak: &Soak) {
    println!(
        "\nseed {}, {} s\n\n| figure | value |\n| --- | --- |",
        soak.seed,
        soak.began.elapsed().as_secs()
    );
    println!("| faults injected | {} |", soak.faults.injected.load(Ordering::Relaxed));
    for (name, count) in soak.tally.below("") {
        let is_detail =
            ["response ", "answer ", "client "].iter().any(|prefix| name.starts_with(prefix));
        if !is_detail {
            let is_size = matches!(
                name.as_str(),
                "bytes" | "largest cache" | "largest difference to du before a count"
            );
            println!("| {name} | {} |", if is_size { size(count) } else { count.to_string() });
        }
    }
    for prefix in ["client ", "response ", "answer "] {
        let counts = soak.tally.below(prefix);
        let texts: Vec<String> =
            counts.iter().map(|(name, count)| format!("{name}: {count}")).collect();
        println!("| {}s | {} |", prefix.trim_end(), texts.join(", "));
    }
    match soak.findings.by_kind() {
        found if found.is_empty() => println!("\nno findings"),
        found => println!("\nFINDINGS: {found:?}"),
    }
}
