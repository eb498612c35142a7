//! Counts from three sources that must agree: the metrics, the access log, and what clients and the registry saw.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crate::context::Soak;
use crate::registry::Counts;
use crate::report::growth;
use crate::server::Server;

/// Lines that Larder logs as errors because of what this test does to it, and the reason.
const EXPLAINED_ERRORS: [(&str, &str); 2] = [
    (
        "what does not fit is streamed to clients without being cached",
        "cacheSize is small on purpose",
    ),
    ("the previous configuration stays in effect", "invalid configurations"),
];
/// How late lines may be in the log.
const LOG_DELAY_MAX: Duration = Duration::from_secs(10);
/// Words that no log may contain.
const FORBIDDEN: [&str; 4] = ["panic", "bug:", "log lines were lost", "is damaged"];

/// The samples of a metrics page.
pub struct Samples(BTreeMap<String, f64>);

impl Samples {
    pub fn of(server: &Server) -> Option<Samples> {
        let reply = server.get("/metrics").ok().filter(|reply| reply.status == 200)?;
        let text = String::from_utf8(reply.body).ok()?;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let samples = lines.filter_map(|line| line.rsplit_once(' '));
        let parsed =
            samples.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)));
        Some(Samples(parsed.collect()))
    }

    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    pub fn sum(&self, prefix: &str) -> f64 {
        self.0.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, value)| value).sum()
    }

    /// Whether Larder does nothing: no flights, no busy fetchers, no queued fetches.
    pub fn is_idle(&self) -> bool {
        ["larder_flights{", "larder_fetchers_busy{", "larder_fetch_queue{"]
            .iter()
            .all(|name| self.sum(name) == 0.0)
    }

    fn count(&self, name: &str) -> u64 {
        // Counters are whole numbers.
        self.get(name).unwrap_or_default() as u64
    }

    /// A labelled counter, by the values of these labels.
    fn by_labels(&self, name: &str, labels: &[&str]) -> BTreeMap<String, u64> {
        let mut found = BTreeMap::new();
        for (sample, value) in &self.0 {
            let Some(rest) = sample.strip_prefix(name).and_then(|rest| rest.strip_prefix('{'))
            else {
                continue;
            };
            let value_of = |label: &str| {
                let begin = rest.find(&format!("{label}=\""))? + label.len() + 2;
                rest[begin..].split('"').next()
            };
            let key: Vec<&str> = labels.iter().filter_map(|label| value_of(label)).collect();
            *found.entry(key.join(" ")).or_default() += *value as u64;
        }
        found
    }
}

/// Sums over the access log of one process.
#[derive(Clone, Default)]
pub struct Log {
    path: PathBuf,
    offset: u64,
    unfinished: Vec<u8>,
    requests: BTreeMap<String, u64>,
    answers: BTreeMap<String, u64>,
    bytes: u64,
    explained: BTreeMap<String, u64>,
}

impl Log {
    /// Reads what was logged since the last time.
    pub fn read(&mut self, soak: &Soak) {
        if self.path != soak.server.log() {
            *self = Log { path: soak.server.log(), ..Log::default() };
        }
        let mut bytes = std::mem::take(&mut self.unfinished);
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.offset))?;
            file.read_to_end(&mut bytes)
        });
        self.offset += read.unwrap_or_default() as u64;
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.unfinished = bytes.split_off(end);
        for line in String::from_utf8_lossy(&bytes).lines() {
            self.line(soak, line);
        }
    }

    fn line(&mut self, soak: &Soak, line: &str) {
        // The time and the level, which is padded to five characters.
        let Some((_, text)) = line.split_once(' ').and_then(|(_, rest)| rest.split_once(' '))
        else {
            return;
        };
        let text = text.trim_start();
        match access(text) {
            Some((route, status, bytes, how)) => {
                *self.requests.entry(format!("{route} {status}")).or_default() += 1;
                self.bytes += bytes;
                if let Some(how) = how {
                    *self.answers.entry(format!("{route} {how}")).or_default() += 1;
                }
                if text.contains("ended=panicked") {
                    soak.finding("panic", line, "");
                }
            }
            None => self.message(soak, line),
        }
    }

    fn message(&mut self, soak: &Soak, line: &str) {
        if FORBIDDEN.iter().any(|word| line.contains(word)) {
            return soak.finding("log", line, "");
        }
        if !line.contains(" ERROR ") {
            return;
        }
        match EXPLAINED_ERRORS.iter().find(|(text, _)| line.contains(text)) {
            Some((_, reason)) => *self.explained.entry((*reason).to_owned()).or_default() += 1,
            None => soak.finding("error in the log", line, ""),
        }
    }

    pub fn explained_errors(&self) -> u64 {
        self.explained.values().sum()
    }
}

/// Route, status, bytes and origin of a line of the access log.
fn access(text: &str) -> Option<(&'static str, u16, u64, Option<&str>)> {
    let (target, fields) = text.split_once(" status=")?;
    let (_, path) = target.split_once(':')?;
    let path = path.split('?').next()?;
    if !path.starts_with('/') {
        return None;
    }
    let status = fields.split(' ').next()?.parse().ok()?;
    let field = |name: &str| {
        fields.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
    };
    let how = field("cache").filter(|how| *how != "none");
    Some((route(path), status, field("bytes")?.parse().ok()?, how))
}

fn route(path: &str) -> &'static str {
    match path {
        "/v2" | "/v2/" => "ping",
        _ if path.contains("/manifests/") => "manifest",
        _ if path.contains("/blobs/") => "blob",
        _ if path.contains("/referrers/") => "referrers",
        _ if path.ends_with("/tags/list") => "tags",
        _ => "other",
    }
}

/// The word of `larder_answers_total` for a route.
fn kind_of(route: &str) -> &str {
    match route {
        "tags" | "referrers" => "list",
        other => other,
    }
}

fn by_kind(answers: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for (name, count) in answers {
        let (route, how) = name.split_once(' ').unwrap_or((name, ""));
        *found.entry(format!("{} {how}", kind_of(route))).or_default() += count;
    }
    found
}

fn compare(
    soak: &Soak,
    what: &str,
    metrics: &BTreeMap<String, u64>,
    other: &BTreeMap<String, u64>,
) {
    if metrics != other {
        let only = |one: &BTreeMap<String, u64>, two: &BTreeMap<String, u64>| {
            let different = one.iter().filter(|(name, count)| two.get(*name) != Some(count));
            different.map(|(name, count)| format!("{name}: {count}")).collect::<Vec<_>>().join(", ")
        };
        let text = format!("{what}: [{}], but [{}]", only(metrics, other), only(other, metrics));
        soak.finding("wrong count", &text, "");
    }
    soak.tally.add("counts compared", metrics.len().max(other.len()) as u64);
}

/// Compares the metrics of the process with its complete access log. No request may be running.
///
/// The log is written by a thread of its own, so its last lines may be late.
pub fn compare_with_log(soak: &Soak, samples: &Samples, log: &mut Log) {
    let bytes = |count: u64| BTreeMap::from([("bytes".to_owned(), count)]);
    let requests = samples.by_labels("larder_requests_total", &["route", "status"]);
    let answers = samples.by_labels("larder_answers_total", &["kind", "how"]);
    let served = bytes(samples.count("larder_served_bytes_total"));
    let began = Instant::now();
    loop {
        log.read(soak);
        let pairs = [
            ("larder_requests_total and the access log", &requests, log.requests.clone()),
            ("larder_answers_total and the access log", &answers, by_kind(&log.answers)),
            ("larder_served_bytes_total and the access log", &served, bytes(log.bytes)),
        ];
        let are_equal = pairs.iter().all(|(_, counted, logged)| *counted == logged);
        if are_equal || began.elapsed() > LOG_DELAY_MAX {
            return pairs
                .iter()
                .for_each(|(what, counted, logged)| compare(soak, what, counted, logged));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Everything that is counted, at one moment without requests.
pub struct Snapshot {
    samples: Samples,
    registry: Counts,
    responses: BTreeMap<String, u64>,
    answers: BTreeMap<String, u64>,
    bytes: u64,
    /// How many downloads were suspended in favour of clients. The rest of such a blob is requested a second time.
    suspended: usize,
}

impl Snapshot {
    pub fn take(soak: &Soak) -> Option<Snapshot> {
        let log = std::fs::read_to_string(soak.server.log()).unwrap_or_default();
        Some(Snapshot {
            samples: Samples::of(&soak.server)?,
            registry: soak.registry.counts(),
            responses: soak.tally.below("response "),
            answers: soak.tally.below("answer "),
            bytes: soak.tally.get("bytes"),
            suspended: log.matches(" download suspended ").count(),
        })
    }

    /// Compares what changed since then: the metrics with what clients received and what the registry was asked for.
    /// Nothing failed meanwhile, and no other process made requests.
    pub fn compare(&self, soak: &Soak, now: &Snapshot) {
        let grown = |name: &str, labels: &[&str]| {
            growth(&self.samples.by_labels(name, labels), &now.samples.by_labels(name, labels))
        };
        let counter = |name: &str| now.samples.count(name) - self.samples.count(name);
        let one = |count: u64| BTreeMap::from([("count".to_owned(), count)]);
        let requests = grown("larder_requests_total", &["route", "status"]);
        compare(
            soak,
            "larder_requests_total and the clients",
            &requests,
            &growth(&self.responses, &now.responses),
        );
        let answers = grown("larder_answers_total", &["kind", "how"]);
        let received = by_kind(&growth(&self.answers, &now.answers));
        compare(soak, "larder_answers_total and Cache-Status", &answers, &received);
        let served = counter("larder_served_bytes_total");
        compare(
            soak,
            "larder_served_bytes_total and the clients",
            &one(served),
            &one(now.bytes - self.bytes),
        );
        let fetched = counter("larder_fetched_bytes_total");
        let sent = now.registry.content_bytes - self.registry.content_bytes;
        // A blob that does not fit is requested twice: Larder drops the first response when it sees its length. All
        // other failures of a calm are blobs that do not exist.
        let failed = grown("larder_downloads_total", &["outcome"]).get("failed").copied();
        let was_suspended = now.suspended > self.suspended;
        if failed.unwrap_or_default() == self.missing_blobs(now) && !was_suspended {
            let what = "larder_fetched_bytes_total and the registry";
            compare(soak, what, &one(fetched), &one(sent));
            soak.tally.add("calms with exact bytes from the registry", 1);
        } else if fetched > sent {
            let text =
                format!("larder_fetched_bytes_total: {fetched}, but the registry sent {sent}");
            soak.finding("wrong count", &text, "");
        }
        let outcomes = grown("larder_upstream_requests_total", &["outcome"]);
        compare(
            soak,
            "larder_upstream_requests_total and the registry",
            &outcomes,
            &self.outcomes(now),
        );
    }

    /// How often the registry answered GET of a blob with 404 since then.
    fn missing_blobs(&self, now: &Snapshot) -> u64 {
        let kind = ("blob", "GET".to_owned(), 404);
        let count = |counts: &Counts| counts.requests.get(&kind).copied().unwrap_or_default();
        count(&now.registry) - count(&self.registry)
    }

    /// What the registry answered since then, in the words of the metrics.
    fn outcomes(&self, now: &Snapshot) -> BTreeMap<String, u64> {
        let mut outcomes = BTreeMap::new();
        for ((kind, method, status), count) in &now.registry.requests {
            let before = self.registry.requests.get(&(*kind, method.clone(), *status));
            let grown = count - before.copied().unwrap_or_default();
            if grown > 0 && !matches!(*kind, "login" | "ping") {
                let word = if *status < 300 { "ok".to_owned() } else { status.to_string() };
                *outcomes.entry(word).or_default() += grown;
            }
        }
        outcomes
    }
}
