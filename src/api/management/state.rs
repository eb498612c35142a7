//! The overall state of the server: what an operator should look at, in a few words.
//!
//! Pure: the caller collects what it depends on.

use std::time::SystemTime;

use serde_json::{Value, json};

use crate::cache::{BreakerState, BucketStatus, EndpointStatus, IncompleteImage, UpstreamStatus};
use crate::oidc::IssuerStatus;
use crate::prune::timestamp;
use crate::units::plural;

/// From this share of the disk on, its use is mentioned, in percent.
const DISK_FULL_PERCENT: u64 = 90;

/// What the state depends on.
pub(super) struct Observed<'a> {
    pub(super) is_draining: bool,
    pub(super) is_readable: bool,
    /// Whether registries may not be contacted. Then nothing is known about them.
    pub(super) is_offline: bool,
    /// The registries that are listed or have answered: clients can name any others.
    pub(super) upstreams: &'a [UpstreamStatus],
    pub(super) incomplete: &'a [IncompleteImage],
    pub(super) disk: DiskShare,
    pub(super) bucket: Option<&'a BucketStatus>,
    /// Since when peers are not asked because of failures.
    pub(super) failing_peers: &'a [Option<SystemTime>],
    /// The issuers of `serverAuthConfig.oidc`.
    pub(super) issuers: &'a [IssuerStatus],
    /// Whether pins cannot be read, in which case nothing is evicted.
    pub(super) has_unreadable_pins: bool,
    /// When the current configuration file was refused.
    pub(super) refused: Option<SystemTime>,
    /// The changed settings that need a restart.
    pub(super) after_restart: &'a [String],
}

/// The disk of the cache, in bytes; `None` for what is not known.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct DiskShare {
    pub(super) size_bytes: Option<u64>,
    pub(super) free_bytes: Option<u64>,
    /// `freeSpace`.
    pub(super) floor_bytes: Option<u64>,
}

impl DiskShare {
    /// The used part in percent, rounded up.
    pub(super) fn used_percent(self) -> Option<u64> {
        let (size, free) = (self.size_bytes.filter(|size| *size > 0)?, self.free_bytes?);
        let used = u128::from(size.saturating_sub(free)) * 100;
        u64::try_from(used.div_ceil(u128::from(size))).ok()
    }
}

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Ok,
    /// Somebody should look at it.
    Warning,
    /// Something does not work.
    Error,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Error => "error",
        }
    }
}

/// Something that an operator should look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// What it is about, as a word.
    kind: &'static str,
    level: Level,
    /// A few words that can be followed by "since" and a time.
    text: String,
    since: Option<SystemTime>,
}

/// The problems, the worst first.
pub(super) fn problems(observed: &Observed<'_>) -> Vec<Problem> {
    let mut found = server(observed);
    if !observed.is_offline {
        found.extend(upstreams(observed.upstreams));
        found.extend(bucket(observed.bucket));
        found.extend(peers(observed.failing_peers));
    }
    found.extend(observed.issuers.iter().filter_map(issuer));
    found.extend(images(observed.incomplete));
    found.extend(disk(observed.disk));
    found.extend(configuration(observed));
    found.sort_by_key(|problem| std::cmp::Reverse(problem.level));
    found
}

/// The state as JSON.
pub(super) fn document(problems: &[Problem]) -> Value {
    let level = problems.iter().map(|problem| problem.level).max().unwrap_or(Level::Ok);
    let problem = |problem: &Problem| {
        json!({
            "kind": problem.kind,
            "level": problem.level.as_str(),
            "text": problem.text,
            "since": problem.since.map(timestamp),
        })
    };
    json!({ "level": level.as_str(), "problems": problems.iter().map(problem).collect::<Vec<_>>() })
}

fn server(observed: &Observed<'_>) -> Vec<Problem> {
    let error = |text: &str| problem("server", Level::Error, text.to_owned(), None);
    let mut found = Vec::new();
    if observed.is_draining {
        found.push(error("draining"));
    }
    if !observed.is_readable {
        found.push(error("the cache directory cannot be read"));
    }
    if observed.has_unreadable_pins {
        let text = "pins cannot be read, so nothing is evicted".to_owned();
        found.push(problem("pins", Level::Error, text, None));
    }
    found
}

/// A registry is down if none of its endpoints can be used. One of several is only mentioned.
fn upstreams(all: &[UpstreamStatus]) -> Vec<Problem> {
    let is_down = |endpoint: &&EndpointStatus| endpoint.breaker != BreakerState::Closed;
    let mut down: Vec<Option<SystemTime>> = Vec::new();
    let mut partly: Vec<Option<SystemTime>> = Vec::new();
    for upstream in all {
        let failing: Vec<_> = upstream.endpoints.iter().filter(is_down).collect();
        let times = failing.iter().map(|endpoint| endpoint.failing_since);
        match failing.len() {
            0 => {}
            // Since the last of them has failed.
            count if count == upstream.endpoints.len() => down.push(times.max().flatten()),
            _ => partly.extend(times),
        }
    }
    let mut found = Vec::new();
    if !down.is_empty() {
        let text = format!("{} down", plural(down.len(), "upstream"));
        found.push(problem("upstreams", Level::Error, text, earliest(&down)));
    }
    if !partly.is_empty() {
        let text = format!("{} of upstreams down", plural(partly.len(), "endpoint"));
        found.push(problem("upstreams", Level::Warning, text, earliest(&partly)));
    }
    found
}

fn bucket(status: Option<&BucketStatus>) -> Option<Problem> {
    let status = status?;
    let reads = status.reads.as_ref().filter(|reads| reads.breaker != BreakerState::Closed);
    match (reads, &status.failure) {
        (Some(reads), _) => {
            Some(problem("bucket", Level::Warning, "bucket down".into(), reads.failing_since))
        }
        (None, Some((since, _))) => {
            let text = "uploads to the bucket fail".to_owned();
            Some(problem("bucket", Level::Warning, text, Some(*since)))
        }
        (None, None) => None,
    }
}

fn peers(failing: &[Option<SystemTime>]) -> Option<Problem> {
    let text = format!("{} down", plural(failing.len(), "peer"));
    (!failing.is_empty()).then(|| problem("peers", Level::Warning, text, earliest(failing)))
}

/// Without keys, its tokens are refused. With the last ones, only new keys are missing.
fn issuer(status: &IssuerStatus) -> Option<Problem> {
    let issuer = &status.issuer;
    let (level, text) = match status.keys {
        0 => (Level::Error, format!("no keys of the issuer {issuer}")),
        _ => (Level::Warning, format!("keys of the issuer {issuer} cannot be updated")),
    };
    let is_problem = status.keys == 0 || status.failing_since.is_some();
    is_problem.then(|| problem("issuers", level, text, status.failing_since))
}

/// Those that are queued or being fetched are not a problem yet.
fn images(incomplete: &[IncompleteImage]) -> Option<Problem> {
    let is_problem = |image: &&IncompleteImage| matches!(&*image.state, "retrying" | "failed");
    let count = incomplete.iter().filter(is_problem).count();
    let text = format!("{} incomplete", plural(count, "image"));
    (count > 0).then(|| problem("images", Level::Warning, text, None))
}

fn disk(disk: DiskShare) -> Option<Problem> {
    let percent = disk.used_percent()?;
    let is_below_floor =
        disk.free_bytes.zip(disk.floor_bytes).is_some_and(|(free, floor)| free < floor);
    let level = match (is_below_floor, percent >= DISK_FULL_PERCENT) {
        (true, _) => Level::Error,
        (false, true) => Level::Warning,
        (false, false) => return None,
    };
    let note = if is_below_floor { ", less free than freeSpace" } else { "" };
    Some(problem("disk", level, format!("disk {percent} %{note}"), None))
}

fn configuration(observed: &Observed<'_>) -> Vec<Problem> {
    let mut found = Vec::new();
    if let Some(since) = observed.refused {
        let text = "the configuration file is invalid and not in effect".to_owned();
        found.push(problem("configuration", Level::Warning, text, Some(since)));
    }
    if !observed.after_restart.is_empty() {
        let text = format!("a restart is needed for {}", observed.after_restart.join(", "));
        found.push(problem("configuration", Level::Warning, text, None));
    }
    found
}

fn problem(kind: &'static str, level: Level, text: String, since: Option<SystemTime>) -> Problem {
    Problem { kind, level, text, since }
}

fn earliest(times: &[Option<SystemTime>]) -> Option<SystemTime> {
    times.iter().flatten().min().copied()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::oci::{ImageName, Reference};

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn quiet() -> Observed<'static> {
        Observed {
            is_draining: false,
            is_readable: true,
            is_offline: false,
            upstreams: &[],
            incomplete: &[],
            disk: DiskShare::default(),
            bucket: None,
            failing_peers: &[],
            issuers: &[],
            has_unreadable_pins: false,
            refused: None,
            after_restart: &[],
        }
    }

    fn endpoint(failing_since: Option<u64>) -> EndpointStatus {
        let failing_since = failing_since.map(at);
        EndpointStatus {
            url: "https://r.test".into(),
            breaker: match failing_since {
                None => BreakerState::Closed,
                Some(_) => BreakerState::Open(Duration::from_secs(5)),
            },
            failures: 0,
            last_failure: None,
            failed: None,
            answered: None,
            failing_since,
            quota: None,
        }
    }

    fn upstream(endpoints: &[Option<u64>]) -> UpstreamStatus {
        UpstreamStatus {
            upstream: "r.test".parse().unwrap(),
            endpoints: endpoints.iter().copied().map(endpoint).collect(),
        }
    }

    fn incomplete(state: &str) -> IncompleteImage {
        let name =
            ImageName { upstream: "r.test".parse().unwrap(), repository: "a".parse().unwrap() };
        let (reference, digest): (Reference, _) =
            ("1".parse().unwrap(), format!("sha256:{}", "0".repeat(64)).parse().unwrap());
        IncompleteImage::new(&name, &reference, &digest, state, "", vec![])
    }

    fn texts(observed: &Observed<'_>) -> Vec<String> {
        problems(observed).into_iter().map(|problem| problem.text).collect()
    }

    #[test]
    fn a_quiet_server_is_ok() {
        let document = document(&problems(&quiet()));
        assert_eq!(document, json!({ "level": "ok", "problems": [] }));
    }

    #[test]
    fn an_upstream_is_down_since_its_last_endpoint_failed_and_the_longest_outage_counts() {
        let all = [upstream(&[Some(10), Some(50)]), upstream(&[Some(70)]), upstream(&[None])];
        let found = problems(&Observed { upstreams: &all, ..quiet() });
        assert_eq!(
            found,
            [problem("upstreams", Level::Error, "2 upstreams down".into(), Some(at(50)))]
        );
        let all = [upstream(&[Some(10), None]), upstream(&[])];
        let found = problems(&Observed { upstreams: &all, ..quiet() });
        let text = "1 endpoint of upstreams down".to_owned();
        assert_eq!(found, [problem("upstreams", Level::Warning, text, Some(at(10)))]);
        let offline = Observed { upstreams: &all, is_offline: true, ..quiet() };
        assert_eq!(problems(&offline), []);
    }

    #[test]
    fn an_issuer_without_keys_is_an_error_and_one_that_is_down_a_warning() {
        let issuer = |keys, failing_since: Option<u64>| {
            let issuer = "https://i.test".parse().unwrap();
            IssuerStatus { issuer, keys, failing_since: failing_since.map(at) }
        };
        let all = [issuer(2, None), issuer(2, Some(10)), issuer(0, Some(20)), issuer(0, None)];
        let found = problems(&Observed { issuers: &all, is_offline: true, ..quiet() });
        let none = || "no keys of the issuer https://i.test".to_owned();
        let old = "keys of the issuer https://i.test cannot be updated".to_owned();
        assert_eq!(
            found,
            [
                problem("issuers", Level::Error, none(), Some(at(20))),
                problem("issuers", Level::Error, none(), None),
                problem("issuers", Level::Warning, old, Some(at(10))),
            ]
        );
    }

    #[test]
    fn only_images_that_cannot_be_completed_are_a_problem() {
        let all = ["queued", "fetching", "retrying", "failed"].map(incomplete);
        assert_eq!(texts(&Observed { incomplete: &all, ..quiet() }), ["2 images incomplete"]);
        assert!(texts(&Observed { incomplete: &all[..2], ..quiet() }).is_empty());
    }

    #[test]
    fn a_full_disk_is_mentioned_and_too_little_free_space_is_an_error() {
        for (free, floor, expected) in [
            (Some(200), None, None),
            (Some(80), None, Some((Level::Warning, "disk 92 %"))),
            (Some(200), Some(201), Some((Level::Error, "disk 80 %, less free than freeSpace"))),
            (None, Some(1), None),
        ] {
            let disk = DiskShare { size_bytes: Some(1000), free_bytes: free, floor_bytes: floor };
            let found = problems(&Observed { disk, ..quiet() });
            let found = found.first().map(|found| (found.level, found.text.as_str()));
            assert_eq!(found, expected, "{free:?} free");
        }
        let empty = DiskShare { size_bytes: Some(0), free_bytes: Some(0), floor_bytes: None };
        assert_eq!(empty.used_percent(), None);
    }

    #[test]
    fn the_worst_problem_comes_first_and_gives_the_level() {
        let observed = Observed {
            is_draining: true,
            failing_peers: &[None],
            refused: Some(at(7)),
            after_restart: &["port".to_owned()],
            ..quiet()
        };
        let found = problems(&observed);
        assert_eq!(found[0].text, "draining");
        let document = document(&found);
        assert_eq!(
            (&document["level"], &document["problems"][2]["since"]),
            (&json!("error"), &json!("1970-01-01T00:00:07Z"))
        );
        let rest = [
            "1 peer down",
            "the configuration file is invalid and not in effect",
            "a restart is needed for port",
        ];
        assert_eq!(texts(&observed)[1..], rest);
    }
}
