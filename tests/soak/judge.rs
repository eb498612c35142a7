//! Judges single responses: no wrong byte, no old tag, no incomplete response that looks complete.

use std::time::{Duration, Instant};

use crate::context::{Phase, Soak};
use crate::server::{Moment, TAG_TTL_MAX};
use crate::wire::Reply;
use crate::world::{TAGS, digest_of};

/// Larder serves manifests from memory without looking at their record for this long.
const HOT: Duration = Duration::from_secs(1);
/// A tag counts as confirmed when its manifest has arrived, and the registry may take twice `pullTimeout` for that.
const CONFIRMATION_MAX: Duration = Duration::from_secs(9);
/// How long Larder serves a list without requesting it again.
const LIST_TTL: Duration = Duration::from_secs(60);
/// Statuses of requests that fail because of the registry or an overload; 416 if the registry reports a wrong size. 500
/// is none of them.
const FAILURES: [u16; 6] = [404, 416, 429, 502, 503, 504];

/// A request, and the moment at which it was sent.
pub struct Asked<'a> {
    pub method: &'a str,
    pub target: &'a str,
    pub repository: &'a str,
    /// A tag or a digest.
    pub reference: &'a str,
    pub began: Instant,
    pub moment: Moment,
    /// Whether it must succeed, because nothing is wrong.
    pub is_calm: bool,
    /// Whether it must succeed in any case: the image is pinned.
    pub is_pinned: bool,
}

impl Soak {
    pub fn asked<'a>(
        &self,
        method: &'a str,
        target: &'a str,
        repository: &'a str,
        reference: &'a str,
    ) -> Asked<'a> {
        let is_calm = self.phase() == Phase::Calm;
        let (began, moment) = (Instant::now(), self.server.moment());
        Asked { method, target, repository, reference, began, moment, is_calm, is_pinned: false }
    }

    fn blame(&self, kind: &str, asked: &Asked<'_>, text: &str, reply: Option<&Reply>) {
        let head = reply.map_or(String::new(), |reply| {
            format!(
                "status {}\n{:#?}\nbody: {} of {:?} bytes\n{}",
                reply.status,
                reply.headers,
                reply.body.len(),
                reply.length,
                String::from_utf8_lossy(&reply.body[..reply.body.len().min(600)])
            )
        });
        let Asked { method, target, .. } = asked;
        let text = format!("{method} {target}: {text}; began {:?} before", asked.began.elapsed());
        self.finding(kind, &text, &head);
    }

    /// Counts a response as the access log does.
    pub fn count(&self, route: &str, asked: &Asked<'_>, reply: &Reply) {
        let tally = &self.tally;
        tally.add("requests", 1);
        tally.add(&format!("response {route} {}", reply.status), 1);
        let sent = if asked.method == "HEAD" { 0 } else { reply.body.len() as u64 };
        tally.add("bytes", sent);
        if let Some(how) = reply.header("cache-status").and_then(how) {
            tally.add(&format!("answer {route} {how}"), 1);
        }
    }

    /// A request without a response.
    pub fn judge_silence(&self, asked: &Asked<'_>, error: &std::io::Error) {
        self.tally.add("no response", 1);
        if self.server.has_run_since(asked.moment) {
            self.blame("no response", asked, &format!("{error}, although the server runs"), None);
        }
    }

    /// The end of a response: whether it is incomplete, and whether that is excused.
    fn judge_end(&self, asked: &Asked<'_>, reply: &Reply) -> bool {
        if reply.length.is_none() && asked.method == "GET" && !matches!(reply.status, 304 | 204) {
            self.blame("no length", asked, "a body without Content-Length", Some(reply));
        }
        if reply.length.is_some_and(|length| reply.body.len() > length) && asked.method == "GET" {
            self.blame("long body", asked, "more bytes than Content-Length", Some(reply));
        }
        if reply.is_complete {
            return true;
        }
        self.tally.add("cut responses", 1);
        if (asked.is_calm || asked.is_pinned) && self.server.has_run_since(asked.moment) {
            self.blame("cut", asked, "the response ended early", Some(reply));
        }
        false
    }

    /// A response that is neither content nor a failure that something explains.
    fn judge_failure(&self, asked: &Asked<'_>, reply: &Reply, is_missing: bool) {
        self.tally.add(&format!("failed {}", reply.status), 1);
        let is_usual = FAILURES.contains(&reply.status);
        let must_succeed =
            asked.is_pinned || (asked.is_calm && !(reply.status == 404 && is_missing));
        if !is_usual || (must_succeed && self.server.has_run_since(asked.moment)) {
            let kind = if asked.is_pinned { "pinned image missing" } else { "unexpected failure" };
            self.blame(kind, asked, "it must succeed", Some(reply));
        }
    }

    /// Returns whether the manifest is complete and right.
    pub fn judge_manifest(&self, asked: &Asked<'_>, reply: &Reply) -> bool {
        self.count("manifest", asked, reply);
        if reply.status == 304 {
            return true;
        }
        if reply.status != 200 {
            let is_missing = self.is_missing(asked);
            self.judge_failure(asked, reply, is_missing);
            return false;
        }
        let Some(digest) = reply.header("docker-content-digest") else {
            self.blame("no digest", asked, "a manifest without Docker-Content-Digest", Some(reply));
            return false;
        };
        self.judge_reference(asked, reply, digest);
        if !self.judge_end(asked, reply) {
            return false;
        }
        match self.world.manifest(asked.repository, digest) {
            Some(known) if reply.length != Some(known.bytes.len()) => {
                self.blame(
                    "wrong length",
                    asked,
                    &format!("it has {} bytes", known.bytes.len()),
                    Some(reply),
                );
            }
            Some(known) if reply.header("content-type") != Some(known.media_type) => {
                self.blame("wrong media type", asked, known.media_type, Some(reply));
            }
            _ => {}
        }
        if asked.method == "GET" && digest_of(&reply.body) != digest {
            self.blame(
                "wrong byte",
                asked,
                "the bytes do not match Docker-Content-Digest",
                Some(reply),
            );
            return false;
        }
        true
    }

    fn window(&self, asked: &Asked<'_>) -> Vec<Option<String>> {
        let before = TAG_TTL_MAX + HOT + CONFIRMATION_MAX;
        let from = asked.began.checked_sub(before).unwrap_or(self.began);
        self.world.values(asked.repository, asked.reference, from, Instant::now())
    }

    fn is_missing(&self, asked: &Asked<'_>) -> bool {
        match asked.reference.contains(':') {
            true => self.world.manifest(asked.repository, asked.reference).is_none(),
            false => self.window(asked).contains(&None),
        }
    }

    /// The digest must be the requested one, or one that the tag had recently; earlier if it is marked as stale.
    fn judge_reference(&self, asked: &Asked<'_>, reply: &Reply, digest: &str) {
        if asked.reference.contains(':') {
            if asked.reference != digest {
                self.blame("wrong byte", asked, &format!("another digest: {digest}"), Some(reply));
            }
            return;
        }
        let is_stale = reply.header("warning").is_some_and(|warning| warning.starts_with("110"));
        let values = match is_stale {
            true => {
                self.world.values(asked.repository, asked.reference, self.began, Instant::now())
            }
            false => self.window(asked),
        };
        if !values.iter().flatten().any(|value| value == digest) {
            let text = format!("{digest} (stale: {is_stale}) is not one of {values:?}");
            self.blame("old tag", asked, &text, Some(reply));
        }
    }

    /// Returns whether the blob, or its requested range, is complete and right.
    pub fn judge_blob(&self, asked: &Asked<'_>, reply: &Reply) -> bool {
        self.count("blob", asked, reply);
        let known = self.world.blob(asked.reference);
        match reply.status {
            304 => return true,
            200 | 206 => {}
            416 if known.as_ref().is_some_and(|bytes| bytes.is_empty()) => return true,
            _ => {
                self.judge_failure(asked, reply, known.is_none());
                return false;
            }
        }
        let is_complete = self.judge_end(asked, reply);
        if reply.header("docker-content-digest") != Some(asked.reference) {
            self.blame("wrong byte", asked, "another Docker-Content-Digest", Some(reply));
        }
        let is_cached = reply.header("cache-status").and_then(how) == Some("hit");
        if asked.method == "HEAD" {
            // The size of a blob that is not cached is what the registry reports, in a storm perhaps a wrong one.
            let is_wrong = known.is_some_and(|known| reply.length != Some(known.len()));
            if is_wrong && (is_cached || asked.is_calm) {
                self.blame("wrong length", asked, "HEAD of a blob", Some(reply));
            }
            return true;
        }
        let start = match reply.status {
            206 => reply.header("content-range").and_then(start_of_range),
            _ => Some(0),
        };
        let Some(start) = start else {
            self.blame("wrong range", asked, "206 without a valid Content-Range", Some(reply));
            return false;
        };
        let end = start + reply.body.len();
        if let Some(known) = known {
            // Until the digest of a download is verified, only the last byte of the blob is held back (decision 29).
            let has_last_byte = is_complete && (reply.status == 200 || end >= known.len());
            let is_verified = has_last_byte || is_cached || asked.is_calm;
            let is_right = known.get(start..end) == Some(&reply.body[..])
                && (reply.status == 206 || reply.length == Some(known.len()));
            if is_verified && !is_right {
                self.blame("wrong byte", asked, &format!("bytes from {start} differ"), Some(reply));
                return false;
            }
        }
        if is_complete && reply.status == 200 && digest_of(&reply.body) != asked.reference {
            self.blame(
                "wrong byte",
                asked,
                "a complete blob that does not match its digest",
                Some(reply),
            );
            return false;
        }
        is_complete
    }

    /// A list of tags or referrers: complete, and without invented names.
    pub fn judge_list(&self, route: &str, asked: &Asked<'_>, reply: &Reply) {
        self.count(route, asked, reply);
        if reply.status != 200 {
            return self.judge_failure(asked, reply, false);
        }
        if !self.judge_end(asked, reply) {
            return;
        }
        let Ok(json) = serde_json::from_slice::<serde_json::Value>(&reply.body) else {
            return self.blame(
                "broken list",
                asked,
                "a complete list that is no JSON",
                Some(reply),
            );
        };
        if route == "tags" {
            return self.judge_tags(asked, reply, &json);
        }
        let own = self.world.referrers(asked.repository, asked.reference);
        let digests = json["manifests"].as_array().into_iter().flatten();
        for digest in digests.filter_map(|entry| entry["digest"].as_str()) {
            if !own.iter().any(|(known, _)| known == digest) {
                self.blame("broken list", asked, &format!("{digest} is no referrer"), Some(reply));
            }
        }
    }

    /// A list of tags. In a calm it has all of them, as of the last minute.
    fn judge_tags(&self, asked: &Asked<'_>, reply: &Reply, json: &serde_json::Value) {
        let listed = json["tags"].as_array().into_iter().flatten().filter_map(|tag| tag.as_str());
        let listed: Vec<&str> = listed.collect();
        if let Some(tag) = listed.iter().find(|tag| !self.world.has_had(asked.repository, tag)) {
            self.blame("broken list", asked, &format!("{tag} never existed"), Some(reply));
        }
        let from = asked.began.checked_sub(LIST_TTL + CONFIRMATION_MAX).unwrap_or(self.began);
        for tag in TAGS {
            let values = self.world.values(asked.repository, tag, from, Instant::now());
            let (always, never) = (!values.contains(&None), values.iter().all(Option::is_none));
            let is_listed = listed.contains(&tag);
            if asked.is_calm && ((always && !is_listed) || (never && is_listed)) {
                let text = format!("{tag} is listed: {is_listed}; its values: {values:?}");
                self.blame("old list", asked, &text, Some(reply));
            }
        }
    }

    /// A request for content that does not exist.
    pub fn judge_unknown(&self, route: &str, asked: &Asked<'_>, reply: &Reply) {
        self.count(route, asked, reply);
        self.judge_end(asked, reply);
        if reply.status == 200
            || !FAILURES.contains(&reply.status)
            || (asked.is_calm && reply.status != 404)
        {
            self.blame("unexpected answer", asked, "content that does not exist", Some(reply));
        }
    }
}

/// The word of the access log for a `Cache-Status`.
fn how(status: &str) -> Option<&'static str> {
    Some(match status {
        "larder; hit" => "hit",
        "larder; hit; detail=stale" => "stale",
        "larder; fwd=miss; collapsed" => "join",
        "larder; fwd=miss; detail=not-cached" => "bypass",
        status if status.starts_with("larder; fwd=miss") => "miss",
        _ => return None,
    })
}

fn start_of_range(text: &str) -> Option<usize> {
    text.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}
