//! The check of one endpoint, for `larder check`: each thing that a pull needs, tried for real, with a remedy for what fails.

use std::io::Read;
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, header};

use super::registry::Registry;
use crate::oci::{
    Algorithm, Descriptor, Digest, Manifest, ManifestError, ManifestKind, Platform, Platforms,
    Reference, Repository, Verifier,
};
use crate::units::{duration, plural, size};
use crate::upstream::check::{CheckState, CheckStep, EndpointCheck};
use crate::upstream::endpoints::EndpointFailures;
use crate::upstream::error::{UpstreamError, UpstreamErrorKind};
use crate::upstream::response::text;
use crate::upstream::{BlobAsk, DocumentSink, Origin, Source};

/// How much of a blob is fetched, in bytes, to measure the throughput.
const MEASURED_BYTES: u64 = 8 << 20;
/// The longest measurement: a slow link has shown its rate by then.
const MEASURED_FOR: Duration = Duration::from_secs(10);
/// The steps that need no image.
const BEFORE_AN_IMAGE: [&str; 6] = ["name", "address", "proxy", "connection", "tls", "api"];
/// How deep nested indexes are followed.
const DEPTH_MAX: usize = 4;
/// The longest challenge that is printed, in characters.
const CHALLENGE_CHARS_MAX: usize = 200;

/// How much of an image a check downloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::upstream) enum Extent {
    /// A part of its largest layer, which shows how fast the registry is.
    Sample,
    /// All of it, for this machine's platform, as a client does.
    All,
}

impl EndpointCheck {
    /// The same for an image that was chosen as an example: that it cannot be pulled is a warning.
    pub(in crate::upstream) fn with_image_as_example(mut self) -> EndpointCheck {
        let of_image = |step: &&mut CheckStep| !BEFORE_AN_IMAGE.contains(&step.name);
        for step in self.steps.iter_mut().filter(of_image) {
            if step.state == CheckState::Failed {
                step.state = CheckState::Warning;
            }
        }
        self
    }
}

impl Registry {
    /// Tries everything that a pull needs, with an image if one is given. Blocks, for the timeouts of requests at most.
    pub(in crate::upstream) fn check(
        &self,
        image: Option<(&Repository, &Reference)>,
        extent: Extent,
    ) -> EndpointCheck {
        let mut steps = Vec::new();
        if self.session.examine(&mut steps) && self.check_api(extent, &mut steps) {
            match image {
                Some((repository, reference)) => {
                    self.check_pull(repository, reference, extent, &mut steps);
                }
                None => steps.push(CheckStep::skipped(
                    "image",
                    "name one to try the login and a download: larder check REGISTRY/REPOSITORY:TAG",
                )),
            }
        }
        EndpointCheck { url: self.url(), kind: self.kind().as_str(), steps }
    }

    fn check_api(&self, extent: Extent, steps: &mut Vec<CheckStep>) -> bool {
        let began = Instant::now();
        match self.session.probe() {
            Ok(headers) => {
                let took = duration(began.elapsed());
                let challenge = text(&headers, header::WWW_AUTHENTICATE).map(shown);
                steps.push(match challenge {
                    Some(challenge) => CheckStep::passed(
                        "api",
                        format!("answers in {took}, and demands a login or a token: {challenge}"),
                    ),
                    None if is_web_page(&headers) => CheckStep::warning(
                        "api",
                        format!("answers in {took} with text/html, as a login page does"),
                        "check that the URL is that of a registry, and that no proxy or login page answers instead",
                    ),
                    None => CheckStep::passed("api", format!("answers in {took}, without a login")),
                });
                true
            }
            Err(error) => {
                steps.push(failure("api", &error, extent));
                false
            }
        }
    }

    fn check_pull(
        &self,
        repository: &Repository,
        reference: &Reference,
        extent: Extent,
        steps: &mut Vec<CheckStep>,
    ) {
        let began = Instant::now();
        let found = self.fetch(repository, reference);
        let took = duration(began.elapsed());
        // Responses to refused requests have them as well.
        let limit = self.quota().and_then(|quota| quota.remaining.zip(quota.limit));
        steps.extend(limit.map(|(remaining, limit)| match remaining {
            0 => CheckStep::failed(
                "limit",
                format!("no pulls are left of {limit}"),
                "wait, or set auth for this registry: accounts have higher limits",
            ),
            _ => CheckStep::passed("limit", format!("{remaining} of {limit} pulls are left")),
        }));
        let (digest, manifest) = match found {
            Ok(found) => found,
            Err(error) => return steps.push(failure("image", &error, extent)),
        };
        let text = format!("{} {digest} in {took}", manifest.media_type());
        steps.push(CheckStep::passed("image", text));
        let blobs = match self.blobs(repository, manifest, 0) {
            Ok(blobs) => blobs,
            Err(error) => return steps.push(failure("image", &error, extent)),
        };
        match (extent, blobs.layers.iter().max_by_key(|layer| layer.size)) {
            (Extent::Sample, Some(layer)) => self.check_blob(repository, layer, steps),
            (Extent::Sample, None) => {
                steps.push(CheckStep::skipped("blob", "the image has no layers"));
            }
            (Extent::All, _) => self.check_content(repository, &blobs, steps),
        }
    }

    fn fetch(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<(Digest, Manifest), UpstreamError> {
        let mut sink = Memory::default();
        let (digest, manifest, _) = self.manifest(repository, reference, &mut sink)?;
        Ok((digest, manifest))
    }

    /// The blobs of an image; of an index, those of this machine's platform or else of the first one.
    fn blobs(
        &self,
        repository: &Repository,
        manifest: Manifest,
        depth: usize,
    ) -> Result<Blobs, UpstreamError> {
        match manifest.kind() {
            ManifestKind::Image { config, layers } => {
                let layers = layers.iter().filter(|layer| !layer.is_foreign).cloned().collect();
                Ok(Blobs { config: config.clone(), layers })
            }
            ManifestKind::Index { manifests } => {
                let own = Platforms::Only(vec![Platform::of_this_machine()]).select(manifests);
                let child = own.first().copied().or(manifests.first());
                let Some(child) = child.filter(|_| depth < DEPTH_MAX) else {
                    return Ok(Blobs::default());
                };
                let (_, manifest) = self.fetch(repository, &Reference::Digest(child.digest))?;
                self.blobs(repository, manifest, depth + 1)
            }
        }
    }

    /// Downloads everything, and compares it with its digests.
    fn check_content(&self, repository: &Repository, blobs: &Blobs, steps: &mut Vec<CheckStep>) {
        let (began, mut count, mut bytes) = (Instant::now(), 0_u64, 0);
        for blob in blobs.config.iter().chain(&blobs.layers) {
            match self.content(repository, blob) {
                Ok((found, received)) if found == blob.digest => {
                    count += 1;
                    bytes += received;
                }
                Ok((found, received)) => {
                    let text =
                        format!("{}: {} with the digest {found}", blob.digest, size(received));
                    return steps.push(CheckStep::failed(
                        "content",
                        text,
                        "something between here and there changes or truncates responses",
                    ));
                }
                Err(error) => return steps.push(failure("content", &error, Extent::All)),
            }
        }
        let text = format!(
            "{} with the right digests: {} in {}",
            plural(count, "blob"),
            size(bytes),
            duration(began.elapsed())
        );
        steps.push(CheckStep::passed("content", text));
    }

    /// The digest of the bytes that the endpoint sends for a blob, and their number. Reads no more than one byte beyond
    /// its size.
    fn content(
        &self,
        repository: &Repository,
        blob: &Descriptor,
    ) -> Result<(Digest, u64), UpstreamError> {
        let endpoint_failures = EndpointFailures::default();
        let ask = BlobAsk {
            repository,
            digest: &blob.digest,
            from: 0,
            to: None,
            additional_to: None,
            endpoint_failures: &endpoint_failures,
        };
        let mut reader = self.blob(&ask)?.reader.take(blob.size.saturating_add(1));
        let mut verifier = Verifier::new(blob.digest.algorithm());
        let (mut buffer, mut received) = (vec![0; 64 * 1024], 0);
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok((verifier.finish(), received)),
                Ok(read) => {
                    verifier.update(&buffer[..read]);
                    received += read as u64;
                }
                Err(error) => return Err(UpstreamError::from_body(&self.url(), error)),
            }
        }
    }

    fn check_blob(&self, repository: &Repository, layer: &Descriptor, steps: &mut Vec<CheckStep>) {
        let endpoint_failures = EndpointFailures::default();
        // From the second byte on, so that a range is requested.
        let from = u64::from(layer.size > 1);
        let to = layer.size.min(from + MEASURED_BYTES);
        let ask = BlobAsk {
            repository,
            digest: &layer.digest,
            from,
            to: Some(to),
            additional_to: None,
            endpoint_failures: &endpoint_failures,
        };
        let began = Instant::now();
        let body = match self.blob(&ask) {
            Ok(body) => body,
            Err(error) => return steps.push(failure("blob", &error, Extent::Sample)),
        };
        let first_byte = began.elapsed();
        steps.push(CheckStep::passed(
            "blob",
            format!(
                "{} of {}, first byte after {}",
                layer.digest,
                size(layer.size),
                duration(first_byte)
            ),
        ));
        steps.push(match body.start == from {
            true => CheckStep::passed("ranges", "supported: interrupted downloads continue"),
            false => CheckStep::warning(
                "ranges",
                "not supported: an interrupted download begins again, and uses one connection",
                "if a proxy or a load balancer is in between, let it pass Range on",
            ),
        });
        let began = Instant::now();
        let (mut reader, mut buffer, mut received) = (body.reader, vec![0; 64 * 1024], 0_u64);
        while received < MEASURED_BYTES && began.elapsed() < MEASURED_FOR {
            match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => received += read as u64,
                Err(error) => {
                    let error = UpstreamError::from_body(&self.url(), error);
                    return steps.push(failure("throughput", &error, Extent::Sample));
                }
            }
        }
        let took = began.elapsed();
        let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = size(received.saturating_mul(1000) / milliseconds);
        let text = format!("{rate}/s: {} in {}", size(received), duration(took));
        steps.push(CheckStep::passed("throughput", text));
    }
}

/// What an image consists of, besides its manifest.
#[derive(Default)]
struct Blobs {
    config: Option<Descriptor>,
    layers: Vec<Descriptor>,
}

/// The failed step for an error of a request. A client of a Larder cannot change its configuration.
fn failure(name: &'static str, error: &UpstreamError, extent: Extent) -> CheckStep {
    match (extent, error.kind()) {
        (Extent::All, UpstreamErrorKind::Denied { status: 401 }) => CheckStep::failed(
            name,
            format!("{}: the server demands a login (401)", error.request()),
            "name a user with --user and --password-file",
        ),
        (Extent::All, UpstreamErrorKind::Denied { status }) => CheckStep::failed(
            name,
            format!("{}: the server refuses this to its clients ({status})", error.request()),
            "larder check IMAGE with the configuration of the server, and its log, have the reason: allow and deny, \
             what the user may pull, or the login of the server at the registry",
        ),
        _ => CheckStep::of_error(name, error),
    }
}

/// Whether a response comes from something else than a registry, as far as its headers tell.
fn is_web_page(headers: &HeaderMap) -> bool {
    let content_type = text(headers, header::CONTENT_TYPE).unwrap_or_default();
    content_type.to_ascii_lowercase().starts_with("text/html")
        && !headers.contains_key("docker-distribution-api-version")
}

/// Text of a registry for output: one line of limited length.
fn shown(challenge: &str) -> String {
    challenge.chars().filter(|char| !char.is_control()).take(CHALLENGE_CHARS_MAX).collect()
}

/// A document in memory.
#[derive(Default)]
pub(super) struct Memory(pub(super) Vec<u8>);

impl DocumentSink for Memory {
    fn restart(&mut self) {
        self.0.clear();
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn parse(
        &mut self,
        algorithm: Algorithm,
        content_type: Option<&str>,
    ) -> Option<(Digest, Result<Manifest, ManifestError>)> {
        let digest = Digest::of(algorithm, &self.0);
        Some((digest, Manifest::parse(&self.0, content_type)))
    }
}

#[cfg(test)]
mod tests {
    use ureq::http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn login_pages_are_recognised() {
        let version = (HeaderName::from_static("docker-distribution-api-version"), "registry/2.0");
        let html = (header::CONTENT_TYPE, "text/html; charset=utf-8");
        for (headers, expected) in [
            (vec![html.clone()], true),
            (vec![html, version], false),
            (vec![(header::CONTENT_TYPE, "application/json")], false),
            (vec![], false),
        ] {
            let headers: HeaderMap = headers
                .into_iter()
                .map(|(name, value)| (name, HeaderValue::from_static(value)))
                .collect();
            assert_eq!(is_web_page(&headers), expected, "{headers:?}");
        }
    }

    #[test]
    fn remedy_for_a_client_of_a_larder_is_something_that_it_can_do() {
        let denied = |status| UpstreamError::new("GET x", UpstreamErrorKind::Denied { status });
        let remedy = |status, extent| failure("image", &denied(status), extent).remedy.unwrap();
        assert!(remedy(403, Extent::Sample).contains("auth in the entry"));
        assert!(remedy(401, Extent::All).contains("--user"));
        let refused = failure("image", &denied(403), Extent::All);
        assert!(!refused.text.contains("registries[].auth"), "{refused:?}");
        assert!(refused.remedy.unwrap().contains("allow and deny"));
    }
}
