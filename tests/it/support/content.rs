//! The content of the fake registry, and the right response to every request for it.
//!
//! Must not know faults, authentication or sockets.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::{Value, json};

use super::answer::Answer;
use super::image::{Manifest, Publish, media_type};
use super::wire::{Recorded, percent_decode};

/// The resource that a path addresses. Repository names may have any number of components, including `blobs` and `tags`,
/// so paths are parsed from the right.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route {
    Ping,
    Manifest { repository: String, reference: String },
    Blob { repository: String, digest: String },
    Tags { repository: String },
    Referrers { repository: String, digest: String },
    Other(String),
}

impl Route {
    pub fn of(path: &str) -> Route {
        let path = percent_decode(path);
        let Some(rest) = path.strip_prefix("/v2/") else {
            return Route::Other(path);
        };
        if rest.is_empty() {
            return Route::Ping;
        }
        if let Some(repository) = rest.strip_suffix("/tags/list") {
            return Route::Tags { repository: repository.to_owned() };
        }
        let mut parts = rest.rsplitn(3, '/');
        let (last, kind, repository) = (parts.next(), parts.next(), parts.next());
        let (Some(last), Some(repository)) = (last, repository) else {
            return Route::Other(path);
        };
        let (last, repository) = (last.to_owned(), repository.to_owned());
        match kind {
            Some("manifests") => Route::Manifest { repository, reference: last },
            Some("blobs") => Route::Blob { repository, digest: last },
            Some("referrers") => Route::Referrers { repository, digest: last },
            _ => Route::Other(path),
        }
    }

    pub fn repository(&self) -> Option<&str> {
        match self {
            Route::Manifest { repository, .. }
            | Route::Blob { repository, .. }
            | Route::Tags { repository }
            | Route::Referrers { repository, .. } => Some(repository),
            Route::Ping | Route::Other(_) => None,
        }
    }
}

/// Whether the content exists. `Unknown` carries the 404 of a real registry.
pub(super) enum Found {
    Known(Answer),
    Unknown(Answer),
}

#[derive(Default)]
pub(super) struct Content {
    repositories: BTreeMap<String, Repository>,
    /// Plain files at paths outside `/v2/`: the targets of redirects.
    files: BTreeMap<String, (String, Vec<u8>)>,
    pub referrers: bool,
    /// The maximum number of tags per page, whatever `n` asks for.
    pub tags_page: Option<usize>,
    /// A prefix for paths in `Link` headers: `http://host:port` makes them absolute.
    pub link_prefix: String,
}

#[derive(Default)]
struct Repository {
    tags: BTreeMap<String, String>,
    manifests: BTreeMap<String, Manifest>,
    blobs: BTreeMap<String, Vec<u8>>,
}

impl Content {
    pub fn publish(&mut self, repository: &str, content: &impl Publish) -> String {
        let top = content.top();
        let digest = top.digest.clone();
        for manifest in content.children().into_iter().chain([top]) {
            self.add_manifest(repository, manifest);
        }
        for blob in content.blobs() {
            self.add_blob(repository, blob.digest, blob.bytes);
        }
        digest
    }

    pub fn add_manifest(&mut self, repository: &str, manifest: Manifest) {
        self.entry(repository).manifests.insert(manifest.digest.clone(), manifest);
    }

    pub fn add_blob(&mut self, repository: &str, digest: String, bytes: Vec<u8>) {
        self.entry(repository).blobs.insert(digest, bytes);
    }

    pub fn tag(&mut self, repository: &str, tag: &str, digest: &str) {
        self.entry(repository).tags.insert(tag.to_owned(), digest.to_owned());
    }

    pub fn remove_tag(&mut self, repository: &str, tag: &str) {
        self.entry(repository).tags.remove(tag);
    }

    pub fn remove_manifest(&mut self, repository: &str, digest: &str) {
        self.entry(repository).manifests.remove(digest);
    }

    pub fn remove_blob(&mut self, repository: &str, digest: &str) {
        self.entry(repository).blobs.remove(digest);
    }

    pub fn add_file(&mut self, path: &str, content_type: &str, bytes: Vec<u8>) {
        self.files.insert(path.to_owned(), (content_type.to_owned(), bytes));
    }

    fn entry(&mut self, repository: &str) -> &mut Repository {
        self.repositories.entry(repository.to_owned()).or_default()
    }

    /// The right response to GET. HEAD gets the same without the body.
    pub fn answer(&self, route: &Route, request: &Recorded) -> Found {
        if !matches!(request.method.as_str(), "GET" | "HEAD") {
            let refusal = Answer::error(405, "UNSUPPORTED", "this registry is for pulling");
            return Found::Unknown(refusal.with("Allow", "GET, HEAD"));
        }
        let found = match route {
            Route::Ping => Some(Answer::new(200, "application/json", b"{}".to_vec())),
            Route::Manifest { repository, reference } => {
                self.manifest(repository, reference, request)
            }
            Route::Blob { repository, digest } => self.blob(repository, digest, request),
            Route::Tags { repository } => self.tags(repository, request),
            Route::Referrers { repository, digest } => self.referrers(repository, digest, request),
            Route::Other(path) => self.file(path, request),
        };
        let code = match route {
            Route::Manifest { .. } => "MANIFEST_UNKNOWN",
            Route::Blob { .. } => "BLOB_UNKNOWN",
            Route::Tags { .. } => "NAME_UNKNOWN",
            Route::Referrers { .. } | Route::Ping | Route::Other(_) => "UNSUPPORTED",
        };
        match found {
            Some(answer) => Found::Known(answer),
            None => Found::Unknown(Answer::error(404, code, "the fake registry has no such thing")),
        }
    }

    fn manifest(&self, repository: &str, reference: &str, request: &Recorded) -> Option<Answer> {
        let repository = self.repositories.get(repository)?;
        let digest =
            if reference.contains(':') { reference } else { repository.tags.get(reference)? };
        let manifest = repository.manifests.get(digest)?;
        let etag = format!("\"{digest}\"");
        if request.header("if-none-match").is_some_and(|asked| asked.contains(&etag)) {
            return Some(Answer::new(304, "", Vec::new()).with("ETag", &etag));
        }
        let answer = Answer::new(200, &manifest.media_type, manifest.bytes.clone());
        Some(answer.with("Docker-Content-Digest", digest).with("ETag", &etag))
    }

    fn blob(&self, repository: &str, digest: &str, request: &Recorded) -> Option<Answer> {
        let blob = self.repositories.get(repository)?.blobs.get(digest)?;
        let answer = ranged(blob, "application/octet-stream", request);
        Some(answer.with("Docker-Content-Digest", digest).with("ETag", &format!("\"{digest}\"")))
    }

    fn file(&self, path: &str, request: &Recorded) -> Option<Answer> {
        let (content_type, bytes) = self.files.get(path)?;
        Some(ranged(bytes, content_type, request))
    }

    fn tags(&self, name: &str, request: &Recorded) -> Option<Answer> {
        let repository = self.repositories.get(name)?;
        let last = request.query_value("last").unwrap_or_default();
        let left: Vec<&String> = repository.tags.keys().filter(|tag| **tag > last).collect();
        let asked = request.query_value("n").and_then(|n| n.parse().ok());
        let n = asked.unwrap_or(usize::MAX).min(self.tags_page.unwrap_or(usize::MAX));
        let page = &left[..n.min(left.len())];
        let body = json!({"name": name, "tags": page}).to_string().into_bytes();
        let mut answer = Answer::new(200, "application/json", body);
        if let Some(end) = page.last().filter(|_| page.len() < left.len()) {
            let link = format!("{}/v2/{name}/tags/list?n={n}&last={end}", self.link_prefix);
            answer.set("Link", &format!("<{link}>; rel=\"next\""));
        }
        Some(answer)
    }

    fn referrers(&self, name: &str, subject: &str, request: &Recorded) -> Option<Answer> {
        if !self.referrers {
            return None;
        }
        let wanted = request.query_value("artifactType");
        let repository = self.repositories.get(name)?;
        let entries: Vec<Value> = repository
            .manifests
            .values()
            .filter_map(|manifest| referrer(manifest, subject))
            .filter(|entry| wanted.as_ref().is_none_or(|kind| entry["artifactType"] == **kind))
            .collect();
        let index = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_INDEX,
            "manifests": entries,
        });
        let mut answer = Answer::new(200, media_type::OCI_INDEX, index.to_string().into_bytes());
        if wanted.is_some() {
            answer.set("OCI-Filters-Applied", "artifactType");
        }
        Some(answer)
    }
}

/// The entry of a manifest in the referrers list of `subject`, if it refers to it.
fn referrer(manifest: &Manifest, subject: &str) -> Option<Value> {
    let parsed: Value = serde_json::from_slice(&manifest.bytes).ok()?;
    if parsed["subject"]["digest"] != subject {
        return None;
    }
    Some(json!({
        "mediaType": manifest.media_type,
        "digest": manifest.digest,
        "size": manifest.bytes.len(),
        "artifactType": parsed["artifactType"],
        "annotations": parsed["annotations"],
    }))
}

fn ranged(bytes: &[u8], content_type: &str, request: &Recorded) -> Answer {
    let total = bytes.len();
    // RFC 9110: a Range on HEAD is ignored.
    let asked = request.header("range").filter(|_| request.method == "GET");
    let answer = match asked.and_then(|text| range(text, total)) {
        None => Answer::new(200, content_type, bytes.to_vec()),
        Some(Err(())) => Answer::error(416, "SIZE_INVALID", "no such range")
            .with("Content-Range", &format!("bytes */{total}")),
        Some(Ok(part)) => Answer::new(206, content_type, bytes[part.clone()].to_vec())
            .with("Content-Range", &format!("bytes {}-{}/{total}", part.start, part.end - 1)),
    };
    answer.with("Accept-Ranges", "bytes")
}

/// Parses a byte range. Returns `None` for ignored ranges (several, other units, invalid, empty content), and an error
/// for unsatisfiable ones.
pub(super) fn range(text: &str, total: usize) -> Option<Result<Range<usize>, ()>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    if total == 0 {
        return None;
    }
    let (start, end) = match (first.parse::<usize>(), last.parse::<usize>()) {
        (Ok(first), Ok(last)) => (first, last.saturating_add(1).min(total)),
        (Ok(first), Err(_)) if last.is_empty() => (first, total),
        (Err(_), Ok(suffix)) if first.is_empty() => (total - suffix.min(total), total),
        _ => return None,
    };
    Some(if start < end { Ok(start..end) } else { Err(()) })
}
