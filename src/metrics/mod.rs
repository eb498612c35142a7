//! Metrics in OpenMetrics format: counters are fields, gauges are passed in when metrics are rendered.
//!
//! Label values are bounded. Routes, outcomes and kinds are words of this program. Registries are those in the
//! configuration and a few well-known ones; all others are [`OTHER`], so that clients cannot create series.
//!
//! This module must not know which module counts what, or why.

mod gauges;
mod history;

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

pub use gauges::{
    BucketGauges, EndpointGauges, Gauges, IssuerGauges, PoolGauges, SyncGauges, UsageGauges,
};
use history::History;
pub use history::{Recorded, Span, Step};

/// The label of registries that are neither configured nor well known.
pub const OTHER: &str = "other";
/// Registries that have a label without being configured.
const WELL_KNOWN: [&str; 9] = [
    "docker.io",
    "gcr.io",
    "ghcr.io",
    "k8s.gcr.io",
    "lscr.io",
    "mcr.microsoft.com",
    "public.ecr.aws",
    "quay.io",
    "registry.k8s.io",
];
/// The maximum number of registries with a label.
const REGISTRIES_MAX: usize = 256;
/// Histogram buckets of response times, in seconds: from a cached manifest to a large blob on a slow link.
const BUCKETS: [f64; 12] =
    [0.000_25, 0.001, 0.005, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0];

/// How answers were produced, with the words of the access log. Those from index `HITS` on needed no download.
pub const ANSWERS: [&str; 5] = ["join", "miss", "bypass", "hit", "stale"];
const HITS: usize = 3;

/// The counters of this process.
pub struct Metrics {
    registries: RwLock<HashSet<Arc<str>>>,
    other: Arc<str>,
    answers: Family<Answer, Counter>,
    /// The answers without the labels kind and registry, in the order of [`ANSWERS`].
    answers_in_all: [AtomicU64; ANSWERS.len()],
    requests: Family<Request, Counter>,
    durations: Family<Route, Histogram>,
    served_bytes: Counter,
    upstream_requests: Family<Upstream, Counter>,
    downloads: Family<Outcome, Counter>,
    removed_images: Family<Why, Counter>,
    removed_bytes: Family<Why, Counter>,
    not_cached: Family<Kind, Counter>,
    received_bytes: Family<From, Counter>,
    completions: Family<Outcome, Counter>,
    uploads: Family<Outcome, Counter>,
    access_checks: Family<Upstream, Counter>,
    /// Bytes sent to the bucket.
    pub uploaded_bytes: Counter,
    /// Clients that were redirected to the bucket.
    pub redirected: Counter,
    /// Bytes that they get there.
    pub redirected_bytes: Counter,
    /// Bytes of blobs and manifests received from upstreams.
    pub fetched_bytes: Counter,
    /// Connections that failed in the middle of a blob, after which the download resumed.
    pub retries: Counter,
    /// Downloads that resumed a partial file of an earlier one.
    pub resumed: Counter,
    /// Blobs hashed by scrubs.
    pub scrubbed_blobs: Counter,
    /// Bytes hashed by scrubs.
    pub scrubbed_bytes: Counter,
    /// Damaged blobs found by scrubs.
    pub scrub_damaged: Counter,
    history: Mutex<History>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Answer {
    kind: &'static str,
    how: &'static str,
    registry: Arc<str>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Request {
    route: &'static str,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Route {
    route: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Upstream {
    registry: Arc<str>,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Why {
    why: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct Kind {
    pub(super) kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct From {
    pub(super) from: &'static str,
}

/// The outcome of a check of a client's login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessCheck {
    /// The registry lets it pull.
    Granted,
    /// The registry does not.
    Refused,
    /// The registry cannot be asked, and has confirmed the login before.
    Remembered,
    /// The registry cannot be asked, and has not.
    Unknown,
}

impl AccessCheck {
    fn as_str(self) -> &'static str {
        match self {
            AccessCheck::Granted => "granted",
            AccessCheck::Refused => "refused",
            AccessCheck::Remembered => "remembered",
            AccessCheck::Unknown => "unknown",
        }
    }
}

/// Why images were removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// To free disk space.
    Evicted,
    /// By a prune command, or by `pruneConfig`.
    Pruned,
}

impl Removal {
    fn as_str(self) -> &'static str {
        match self {
            Removal::Evicted => "evicted",
            Removal::Pruned => "pruned",
        }
    }
}

/// Traffic since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Answers, in the order of [`ANSWERS`].
    pub answers: [u64; ANSWERS.len()],
    /// Bytes sent to clients.
    pub served_bytes: u64,
    /// Bytes received from upstreams.
    pub fetched_bytes: u64,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            registries: RwLock::new(WELL_KNOWN.into_iter().map(Arc::from).collect()),
            other: OTHER.into(),
            answers: Family::default(),
            answers_in_all: Default::default(),
            requests: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            served_bytes: Counter::default(),
            upstream_requests: Family::default(),
            downloads: Family::default(),
            removed_images: Family::default(),
            removed_bytes: Family::default(),
            not_cached: Family::default(),
            received_bytes: Family::default(),
            completions: Family::default(),
            uploads: Family::default(),
            access_checks: Family::default(),
            uploaded_bytes: Counter::default(),
            redirected: Counter::default(),
            redirected_bytes: Counter::default(),
            fetched_bytes: Counter::default(),
            retries: Counter::default(),
            resumed: Counter::default(),
            scrubbed_blobs: Counter::default(),
            scrubbed_bytes: Counter::default(),
            scrub_damaged: Counter::default(),
            history: Mutex::default(),
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Adds registries with a label.
    pub fn label_registries<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        // Each insertion is complete or did not happen, so the set is valid even after a panic.
        let mut registries = self.registries.write().unwrap_or_else(PoisonError::into_inner);
        for name in names {
            if registries.len() < REGISTRIES_MAX {
                registries.insert(name.into());
            }
        }
    }

    /// The label of a registry.
    pub fn label(&self, registry: &str) -> Arc<str> {
        let registries = self.registries.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(registries.get(registry).unwrap_or(&self.other))
    }

    /// Whether a registry has a label of its own.
    pub fn has_label(&self, registry: &str) -> bool {
        self.registries.read().unwrap_or_else(PoisonError::into_inner).contains(registry)
    }

    /// Counts an answer with content: `kind` is manifest, blob or list, and `how` is one of [`ANSWERS`].
    pub fn answered(&self, kind: &'static str, how: &'static str, registry: &str) {
        let registry = self.label(registry);
        self.answers.get_or_create(&Answer { kind, how, registry }).inc();
        if let Some(place) = ANSWERS.iter().position(|answer| *answer == how) {
            self.answers_in_all[place].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a response that has ended.
    pub fn responded(&self, route: &'static str, status: u16, duration: Duration, bytes: u64) {
        self.requests.get_or_create(&Request { route, status }).inc();
        self.durations.get_or_create(&Route { route }).observe(duration.as_secs_f64());
        self.served_bytes.inc_by(bytes);
    }

    /// Counts a request to a registry; `outcome` is one of a few words.
    pub fn asked_upstream(&self, registry: &str, outcome: &'static str) {
        let registry = self.label(registry);
        self.upstream_requests.get_or_create(&Upstream { registry, outcome }).inc();
    }

    /// Counts a download of a blob that has ended.
    pub fn downloaded(&self, outcome: &'static str) {
        self.downloads.get_or_create(&Outcome { outcome }).inc();
    }

    /// Counts an image that a node checked with HEAD; `outcome` is one of a few words.
    pub fn completed(&self, outcome: &'static str) {
        self.completions.get_or_create(&Outcome { outcome }).inc();
    }

    /// Counts an object that was to be uploaded to the bucket.
    pub fn uploaded(&self, outcome: &'static str) {
        self.uploads.get_or_create(&Outcome { outcome }).inc();
    }

    /// Counts a check of a client's login with its registry.
    pub fn checked_access(&self, registry: &str, check: AccessCheck) {
        let (registry, outcome) = (self.label(registry), check.as_str());
        self.access_checks.get_or_create(&Upstream { registry, outcome }).inc();
    }

    /// Counts removed images and the freed bytes.
    pub fn removed(&self, removal: Removal, images: u64, bytes: u64) {
        let why = Why { why: removal.as_str() };
        self.removed_images.get_or_create(&why).inc_by(images);
        self.removed_bytes.get_or_create(&why).inc_by(bytes);
    }

    /// The number of removed images and freed bytes so far.
    pub fn removed_so_far(&self, removal: Removal) -> (u64, u64) {
        let why = Why { why: removal.as_str() };
        (
            self.removed_images.get_or_create(&why).get(),
            self.removed_bytes.get_or_create(&why).get(),
        )
    }

    /// The counter of the bytes of blobs that came from a registry, a parent or a peer.
    pub fn received_bytes(&self, from: &'static str) -> Counter {
        self.received_bytes.get_or_create(&From { from }).clone()
    }

    /// Counts a manifest or blob that was served without being cached, because the disk could not store it.
    pub fn not_cached(&self, kind: &'static str) {
        self.not_cached.get_or_create(&Kind { kind }).inc();
    }

    /// The number of answers that were not cached so far.
    pub fn not_cached_so_far(&self, kind: &'static str) -> u64 {
        self.not_cached.get_or_create(&Kind { kind }).get()
    }

    /// Traffic since the start.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            answers: std::array::from_fn(|at| self.answers_in_all[at].load(Ordering::Relaxed)),
            served_bytes: self.served_bytes.get(),
            fetched_bytes: self.fetched_bytes.get(),
        }
    }

    /// Completes a step of the history.
    pub fn step(&self, time: SystemTime) {
        let now = self.traffic();
        let mut history = self.lock_history();
        let last = history.replace_last(now);
        history.push(step_between(last, now, time));
    }

    /// The minutes of the last day, oldest first.
    pub fn history(&self) -> Vec<Step> {
        self.lock_history().minutes()
    }

    /// The steps of a span up to now, oldest first; the last one is not complete yet. Steps of which nothing is known are
    /// left out.
    pub fn history_of(&self, span: Span, now: SystemTime) -> Vec<Step> {
        let (traffic, history) = (self.traffic(), self.lock_history());
        history.steps(span, step_between(history.last(), traffic, now))
    }

    /// The history, to be kept for the next process.
    pub fn recorded_history(&self) -> Recorded {
        self.lock_history().recorded()
    }

    /// Continues the history of an earlier process.
    pub fn restore_history(&self, recorded: Recorded, now: SystemTime) {
        self.lock_history().restore(recorded, now);
    }

    fn lock_history(&self) -> MutexGuard<'_, History> {
        // A step that a panic lost is the worst that can have happened.
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renders all metrics in the OpenMetrics text format.
    pub fn render(&self, gauges: &Gauges) -> String {
        let mut registry = Registry::with_prefix("larder");
        self.register(&mut registry);
        gauges.register(self, &mut registry);
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &registry);
        text
    }

    fn register(&self, to: &mut Registry) {
        to.register(
            "answers",
            "Answers with content, by how they were produced",
            self.answers.clone(),
        );
        to.register("requests", "Responses to clients", self.requests.clone());
        let help = "Time from the first byte of a request to the last byte of its response";
        to.register("request_duration_seconds", help, self.durations.clone());
        to.register(
            "served_bytes",
            "Bytes of response bodies sent to clients",
            self.served_bytes.clone(),
        );
        let help = "Bytes of manifests and blobs received from registries";
        to.register("fetched_bytes", help, self.fetched_bytes.clone());
        let help = "Bytes of blobs received, by what sent them";
        to.register("received_bytes", help, self.received_bytes.clone());
        let help = "Requests to registries, by outcome";
        to.register("upstream_requests", help, self.upstream_requests.clone());
        to.register("downloads", "Finished and failed downloads of blobs", self.downloads.clone());
        let help = "Connections that failed in the middle of a blob";
        to.register("download_retries", help, self.retries.clone());
        let help = "Downloads that resumed a partial file";
        to.register("download_resumes", help, self.resumed.clone());
        to.register(
            "removed_images",
            "Images removed by evictions and prunes",
            self.removed_images.clone(),
        );
        let help = "Bytes freed by evictions and prunes";
        to.register("removed_bytes", help, self.removed_bytes.clone());
        let help = "Answers whose content could not be stored";
        to.register("not_cached", help, self.not_cached.clone());
        let help = "Images that nodes checked with HEAD, by what became of them";
        to.register("head_completions", help, self.completions.clone());
        let help = "Checks of clients' logins with registries, by outcome";
        to.register("access_checks", help, self.access_checks.clone());
        to.register("uploads", "Objects for the bucket, by outcome", self.uploads.clone());
        let help = "Bytes uploaded to the bucket";
        to.register("uploaded_bytes", help, self.uploaded_bytes.clone());
        let help = "Requests for blobs that were redirected to the bucket";
        to.register("redirects", help, self.redirected.clone());
        let help = "Bytes that were requested with them";
        to.register("redirected_bytes", help, self.redirected_bytes.clone());
        to.register("scrubbed_blobs", "Blobs hashed by scrubs", self.scrubbed_blobs.clone());
        to.register("scrubbed_bytes", "Bytes hashed by scrubs", self.scrubbed_bytes.clone());
        let help = "Damaged blobs found by scrubs";
        to.register("scrub_damaged_blobs", help, self.scrub_damaged.clone());
    }
}

/// What happened between two readings of the counters. Saturating, because another thread may have completed a step in the
/// meantime.
fn step_between(last: Traffic, now: Traffic, time: SystemTime) -> Step {
    let more = |at: usize| now.answers[at].saturating_sub(last.answers[at]);
    Step {
        time,
        hits: (HITS..ANSWERS.len()).map(more).sum(),
        misses: (0..HITS).map(more).sum(),
        served_bytes: now.served_bytes.saturating_sub(last.served_bytes),
        fetched_bytes: now.fetched_bytes.saturating_sub(last.fetched_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str, name: &str) -> Vec<String> {
        text.lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect()
    }

    #[test]
    fn counters_and_gauges_are_rendered_with_their_labels() {
        let metrics = Metrics::default();
        metrics.answered("manifest", "hit", "docker.io");
        metrics.answered("manifest", "hit", "docker.io");
        metrics.responded("manifest", 200, Duration::from_millis(3), 1000);
        metrics.asked_upstream("quay.io", "ok");
        metrics.removed(Removal::Evicted, 2, 500);
        let endpoint = EndpointGauges {
            registry: "docker.io".into(),
            url: "https://registry-1.docker.io".into(),
            is_open: true,
            rate_limit_remaining: Some(76),
            rate_limit: Some(100),
        };
        let usage = UsageGauges {
            images: 3,
            registries: vec![("docker.io".into(), 2, 20), ("x.test".into(), 1, 10)],
            ..UsageGauges::default()
        };
        let gauges = Gauges {
            version: "1.2.3",
            endpoints: vec![endpoint],
            usage: Some(usage),
            disk_free_bytes: Some(77),
            disk_free_inodes: Some(55),
            ..Gauges::default()
        };
        let text = metrics.render(&gauges);
        for line in [
            "larder_answers_total{kind=\"manifest\",how=\"hit\",registry=\"docker.io\"} 2",
            "larder_requests_total{route=\"manifest\",status=\"200\"} 1",
            "larder_request_duration_seconds_bucket{le=\"0.005\",route=\"manifest\"} 1",
            "larder_served_bytes_total 1000",
            "larder_upstream_requests_total{registry=\"quay.io\",outcome=\"ok\"} 1",
            "larder_removed_bytes_total{why=\"evicted\"} 500",
            "larder_build_info{version=\"1.2.3\"} 1",
            "larder_disk_free_bytes 77",
            "larder_disk_free_inodes 55",
            "larder_images 3",
            "larder_registry_images{registry=\"docker.io\"} 2",
            "larder_registry_bytes{registry=\"other\"} 10",
            "larder_upstream_rate_limit_remaining{registry=\"docker.io\",\
             endpoint=\"https://registry-1.docker.io\"} 76",
            "# EOF",
        ] {
            assert!(text.lines().any(|each| each == line), "{line} is not in:\n{text}");
        }
        assert!(lines(&text, "larder_disk_used_bytes").is_empty(), "unknown values have no series");
    }

    #[test]
    fn clients_cannot_create_series() {
        let metrics = Metrics::default();
        metrics.label_registries(["corp.test:5000"]);
        for number in 0..1000 {
            metrics.answered("blob", "miss", &format!("r{number}.test"));
        }
        metrics.answered("blob", "miss", "corp.test:5000");
        let text = metrics.render(&Gauges::default());
        let mut answers = lines(&text, "larder_answers_total");
        answers.sort();
        let of = |registry: &str, count: u32| {
            format!(
                r#"larder_answers_total{{kind="blob",how="miss",registry="{registry}"}} {count}"#
            )
        };
        assert_eq!(answers, [of("corp.test:5000", 1), of("other", 1000)]);
    }

    #[test]
    fn each_step_of_the_history_has_its_own_traffic() {
        let metrics = Metrics::default();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        metrics.answered("blob", "miss", "docker.io");
        metrics.answered("blob", "hit", "docker.io");
        metrics.answered("blob", "stale", "docker.io");
        metrics.fetched_bytes.inc_by(7);
        metrics.step(at(60));
        metrics.responded("blob", 200, Duration::ZERO, 9);
        metrics.step(at(120));
        let step = |time, hits, misses, served_bytes, fetched_bytes| Step {
            time: at(time),
            hits,
            misses,
            served_bytes,
            fetched_bytes,
        };
        assert_eq!(metrics.history(), [step(60, 2, 1, 0, 7), step(120, 0, 0, 9, 0)]);
    }
}
