//! The script of a fake registry or bucket: which requests fail, and how.
//!
//! Faults are checked in the order in which they were added. The first one that matches and is not used up applies.
//! Authentication comes first: a request that is answered with 401 or 403 for its credentials uses up no fault.

use super::Gate;
use super::answer::{Answer, Close, Cut, Framing};
use super::bucket::{Operation, target};
use super::wire::{Recorded, percent_decode};

/// Selects requests. Applies every time unless narrowed by [`times`](On::times), [`after`](On::after) …
///
/// Paths are compared as sent and decoded; `*` matches any text, including slashes.
#[derive(Clone, Debug)]
pub struct On {
    method: Option<&'static str>,
    path: String,
    /// An S3 operation and a pattern for its key.
    operation: Option<(Operation, String)>,
    times: usize,
    after: usize,
    with_header: Option<String>,
    without_header: Option<String>,
}

impl On {
    /// Requests with this method (`"GET"`, `"HEAD"`, `"*"` for any) to a path pattern.
    pub fn path(method: &'static str, pattern: &str) -> On {
        On {
            method: (method != "*").then_some(method),
            path: pattern.to_owned(),
            operation: None,
            times: usize::MAX,
            after: 0,
            with_header: None,
            without_header: None,
        }
    }

    /// All requests, including those to the token endpoint.
    pub fn anything() -> On {
        On::path("*", "*")
    }

    pub fn ping() -> On {
        On::path("GET", "/v2/")
    }

    pub fn get_blob(digest: &str) -> On {
        On::path("GET", &format!("/v2/*/blobs/{digest}"))
    }

    pub fn head_blob(digest: &str) -> On {
        On::path("HEAD", &format!("/v2/*/blobs/{digest}"))
    }

    /// GET of a manifest by tag or digest.
    pub fn get_manifest(reference: &str) -> On {
        On::path("GET", &format!("/v2/*/manifests/{reference}"))
    }

    /// HEAD of a manifest by tag or digest.
    pub fn head_manifest(reference: &str) -> On {
        On::path("HEAD", &format!("/v2/*/manifests/{reference}"))
    }

    /// GET and HEAD of a manifest by tag or digest.
    pub fn manifest(reference: &str) -> On {
        On::path("*", &format!("/v2/*/manifests/{reference}"))
    }

    /// Any request for any manifest.
    pub fn any_manifest() -> On {
        On::path("*", "/v2/*/manifests/*")
    }

    /// Any request for any blob.
    pub fn any_blob() -> On {
        On::path("*", "/v2/*/blobs/*")
    }

    pub fn tags(repository: &str) -> On {
        On::path("GET", &format!("/v2/{repository}/tags/list"))
    }

    pub fn referrers(digest: &str) -> On {
        On::path("GET", &format!("/v2/*/referrers/{digest}"))
    }

    /// Requests to the token endpoint.
    pub fn token() -> On {
        On::path("*", "/token")
    }

    /// An S3 operation on a key (of a [`FakeBucket`](super::FakeBucket)). For operations without a key the pattern is `*`.
    pub fn s3(operation: Operation, key: &str) -> On {
        On { operation: Some((operation, key.to_owned())), ..On::anything() }
    }

    /// The first `n` matching requests only.
    pub fn times(mut self, n: usize) -> On {
        self.times = n;
        self
    }

    /// Skips the first `n` matching requests.
    pub fn after(mut self, n: usize) -> On {
        self.after = n;
        self
    }

    /// Requests with this header only (`"range"`: resumes and partial pulls).
    pub fn with_header(mut self, name: &str) -> On {
        self.with_header = Some(name.to_owned());
        self
    }

    /// Requests without this header only.
    pub fn without_header(mut self, name: &str) -> On {
        self.without_header = Some(name.to_owned());
        self
    }

    fn matches(&self, request: &Recorded) -> bool {
        let carries = |name: &Option<String>| name.as_ref().map(|name| request.header(name));
        self.method.is_none_or(|method| method == request.method)
            && matches_path(&self.path, request)
            && self.operation.as_ref().is_none_or(|(operation, pattern)| {
                let (asked, key) = target(request);
                asked == *operation && glob(pattern, &key)
            })
            && carries(&self.with_header).is_none_or(|value| value.is_some())
            && carries(&self.without_header).is_none_or(|value| value.is_none())
    }
}

/// A failure. Byte counts are body bytes.
#[derive(Clone)]
pub enum Fault {
    /// This response instead of the right one: status, headers, body.
    Status(u16, Vec<(String, String)>, Vec<u8>),
    /// Reads the request and closes the connection (FIN) without a response.
    CloseBeforeHead,
    /// Reads the request and resets the connection (RST) without a response.
    ResetBeforeHead,
    /// Sends the head with the full Content-Length and this number of bytes, then RST.
    ResetAfter(usize),
    /// Sends the head with the full Content-Length and this number of bytes, then FIN.
    CutAfter(usize),
    /// Sends this number of bytes and a matching Content-Length: a response that is complete and too short.
    Truncate(usize),
    /// Flips one bit in the middle and keeps the length.
    WrongBytes,
    /// Appends this number of bytes, with a matching Content-Length.
    TooLong(usize),
    /// A response of a server in front of the registry: status, content type, body, without the headers of a registry.
    Stranger(u16, String, String),
    /// 200 with a login page.
    Html200,
    /// Chunked encoding instead of a Content-Length.
    NoContentLength,
    /// As in HTTP/1.0: no length, and the end of the connection ends the body.
    CloseDelimited,
    /// This Content-Length, whatever the body. A GET still sends the actual body: use it on HEAD, or with
    /// [`Fault::CutAfter`].
    ContentLength(u64),
    NoDigestHeader,
    /// The `Docker-Content-Digest` of other content.
    WrongDigestHeader,
    /// Answers HEAD with 405. A GET is answered normally and uses up nothing.
    HeadNotAllowed,
    /// Waits before the head.
    Gate(Gate),
    /// Sends the head and this number of bytes, waits, and continues.
    GateAfter(usize, Gate),
    /// Sends nothing until the registry is dropped.
    StallForever,
    /// Sends the head and this number of bytes, and nothing more until the registry is dropped.
    StallAfter(usize),
    /// Redirects with this status (302, 307 …) to this location.
    Redirect(u16, String),
    /// Claims this Content-Encoding; the bytes are unchanged.
    ContentEncoding(String),
    ContentType(String),
    ExtraHeader(String, String),
    /// 429, with a Retry-After (seconds or a date, as text) if given.
    RateLimited {
        retry_after: Option<String>,
    },
    /// Ignores a Range: 200 with the complete content.
    IgnoreRange,
    /// Answers a Range with `bytes=N-`: 206 from the wrong offset.
    RangeFrom(u64),
    /// Sends raw bytes instead of a response, then FIN.
    Raw(Vec<u8>),
    /// Reads this number of bytes of the request body (all of a shorter one), waits, and continues ([`FakeBucket`] only).
    /// Requests wait before they have an effect.
    ///
    /// [`FakeBucket`]: super::FakeBucket
    GateRequest(usize, Gate),
    /// Reads this number of bytes of the request body (all of a shorter one) and resets the connection ([`FakeBucket`] only).
    /// The request has no effect.
    ///
    /// [`FakeBucket`]: super::FakeBucket
    CutRequest(usize),
    /// The request has its effect, although the fault replaces the response ([`FakeBucket`] only).
    ///
    /// [`FakeBucket`]: super::FakeBucket
    Performed(Box<Fault>),
    /// Several faults, applied in this order.
    All(Vec<Fault>),
}

impl Fault {
    /// [`Fault::Status`] with the error JSON of the specification.
    pub fn status(status: u16) -> Fault {
        let answer = Answer::error(status, "UNKNOWN", "scripted");
        Fault::Status(status, answer.headers, answer.body)
    }

    /// [`Fault::Redirect`] with 307.
    pub fn redirect_to(location: &str) -> Fault {
        Fault::Redirect(307, location.to_owned())
    }

    pub fn rate_limited(retry_after_seconds: u32) -> Fault {
        Fault::RateLimited { retry_after: Some(retry_after_seconds.to_string()) }
    }

    pub fn extra_header(name: &str, value: &str) -> Fault {
        Fault::ExtraHeader(name.to_owned(), value.to_owned())
    }

    pub fn content_type(value: &str) -> Fault {
        Fault::ContentType(value.to_owned())
    }

    /// Rewrites the request before the registry handles it.
    pub(super) fn misread(&self, request: &mut Recorded) {
        match self {
            Fault::IgnoreRange => drop_range(request),
            Fault::RangeFrom(start) => {
                drop_range(request);
                request.headers.push(("Range".to_owned(), format!("bytes={start}-")));
            }
            Fault::All(faults) => faults.iter().for_each(|fault| fault.misread(request)),
            _ => {}
        }
    }

    /// Applies the fault to the right response. The gate `until_drop` opens when the registry is dropped.
    pub(super) fn spoil(&self, answer: &mut Answer, until_drop: &Gate) {
        match self {
            Fault::Status(status, headers, body) => {
                *answer = Answer::new(*status, "", body.clone());
                headers.iter().for_each(|(name, value)| answer.set(name, value));
            }
            Fault::Stranger(status, content_type, body) => {
                *answer = Answer::new(*status, content_type, body.clone().into_bytes());
                answer.remove("Docker-Distribution-API-Version");
            }
            Fault::Html200 => {
                let page = b"<!doctype html><title>Sign in</title>".to_vec();
                *answer = Answer::new(200, "text/html; charset=utf-8", page);
            }
            Fault::Redirect(status, location) => {
                *answer = Answer::new(*status, "", Vec::new()).with("Location", location);
            }
            Fault::RateLimited { retry_after } => {
                *answer = Answer::error(429, "TOOMANYREQUESTS", "pull rate limit reached");
                retry_after.iter().for_each(|value| answer.set("Retry-After", value));
            }
            Fault::HeadNotAllowed => {
                *answer = Answer::error(405, "UNSUPPORTED", "no HEAD here").with("Allow", "GET");
            }
            Fault::Raw(bytes) => answer.raw = Some(bytes.clone()),
            Fault::CloseBeforeHead => answer.cut = Some(Cut::BeforeHead(Close::Fin)),
            Fault::ResetBeforeHead => answer.cut = Some(Cut::BeforeHead(Close::Reset)),
            Fault::ResetAfter(n) => answer.cut = Some(Cut::After(*n, Close::Reset)),
            Fault::CutAfter(n) => answer.cut = Some(Cut::After(*n, Close::Fin)),
            Fault::Gate(gate) => answer.before_head.push(gate.clone()),
            Fault::GateAfter(n, gate) => answer.pauses.push((*n, gate.clone())),
            Fault::StallForever => answer.before_head.push(until_drop.clone()),
            Fault::StallAfter(n) => answer.pauses.push((*n, until_drop.clone())),
            Fault::Performed(fault) => fault.spoil(answer, until_drop),
            Fault::All(faults) => faults.iter().for_each(|fault| fault.spoil(answer, until_drop)),
            Fault::Truncate(_) | Fault::WrongBytes | Fault::TooLong(_) => self.spoil_body(answer),
            _ => self.spoil_head(answer),
        }
    }

    fn spoil_body(&self, answer: &mut Answer) {
        let middle = answer.body.len() / 2;
        match self {
            Fault::Truncate(n) => answer.body.truncate(*n),
            Fault::TooLong(n) => answer.body.extend(std::iter::repeat_n(b'x', *n)),
            _ => answer.body.iter_mut().skip(middle).take(1).for_each(|byte| *byte ^= 1),
        }
    }

    fn spoil_head(&self, answer: &mut Answer) {
        match self {
            Fault::NoContentLength => answer.framing = Framing::Chunked,
            Fault::CloseDelimited => answer.framing = Framing::CloseDelimited,
            Fault::ContentLength(length) => answer.announced_length = Some(*length),
            Fault::NoDigestHeader => answer.remove("Docker-Content-Digest"),
            Fault::WrongDigestHeader => {
                answer.set("Docker-Content-Digest", &super::digest_of(b"something else"));
            }
            Fault::ContentEncoding(coding) => answer.set("Content-Encoding", coding),
            Fault::ContentType(content_type) => answer.set("Content-Type", content_type),
            Fault::ExtraHeader(name, value) => answer.set(name, value),
            _ => {}
        }
    }

    /// Whether the response has nothing to do with the request, so that a bucket does not perform the operation.
    pub(super) fn replaces(&self) -> bool {
        match self {
            Fault::Status(..)
            | Fault::Stranger(..)
            | Fault::Html200
            | Fault::Redirect(..)
            | Fault::RateLimited { .. }
            | Fault::HeadNotAllowed
            | Fault::Raw(_)
            | Fault::CloseBeforeHead
            | Fault::ResetBeforeHead => true,
            Fault::All(faults) => faults.iter().any(Fault::replaces),
            _ => false,
        }
    }

    /// The gates for the request body, with their positions.
    pub(super) fn request_gates(&self) -> Vec<(usize, Gate)> {
        match self {
            Fault::GateRequest(n, gate) => vec![(*n, gate.clone())],
            Fault::Performed(fault) => fault.request_gates(),
            Fault::All(faults) => faults.iter().flat_map(Fault::request_gates).collect(),
            _ => Vec::new(),
        }
    }

    /// The number of bytes of the request body after which the connection ends.
    pub(super) fn request_cut(&self) -> Option<usize> {
        match self {
            Fault::CutRequest(n) => Some(*n),
            Fault::All(faults) => faults.iter().find_map(Fault::request_cut),
            _ => None,
        }
    }

    /// Every gate of the fault. The registry opens them when it is dropped.
    pub(super) fn gates(&self) -> Vec<Gate> {
        match self {
            Fault::Gate(gate) | Fault::GateAfter(_, gate) | Fault::GateRequest(_, gate) => {
                vec![gate.clone()]
            }
            Fault::Performed(fault) => fault.gates(),
            Fault::All(faults) => faults.iter().flat_map(Fault::gates).collect(),
            _ => Vec::new(),
        }
    }
}

/// The faults of one server, in the order in which they were added.
#[derive(Default)]
pub(super) struct Script(Vec<(On, Fault)>);

impl Script {
    pub fn add(&mut self, mut on: On, fault: Fault) {
        if matches!(fault, Fault::HeadNotAllowed) {
            on.method = Some("HEAD");
        }
        self.0.push((on, fault));
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The fault for this request, counted as used.
    pub fn take(&mut self, request: &Recorded) -> Option<Fault> {
        for (on, fault) in &mut self.0 {
            if on.times == 0 || !on.matches(request) {
                continue;
            }
            if on.after > 0 {
                on.after -= 1;
                continue;
            }
            on.times -= 1;
            return Some(fault.clone());
        }
        None
    }
}

fn drop_range(request: &mut Recorded) {
    request.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("range"));
}

/// Whether the path matches the pattern, as sent or decoded.
pub(super) fn matches_path(pattern: &str, request: &Recorded) -> bool {
    glob(pattern, &request.path) || glob(pattern, &percent_decode(&request.path))
}

/// Whether `text` matches `pattern`, in which `*` matches any text.
pub(super) fn glob(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(text) = text.strip_prefix(start) else {
        return false;
    };
    (0..=text.len()).any(|at| text.get(at..).is_some_and(|tail| glob(rest, tail)))
}
