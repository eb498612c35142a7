//! Which request goes wrong, and how: the script of a fake registry.
//!
//! Faults are looked up in the order they were added; the first that matches and is not used up
//! takes the request. They come after authentication: a request that is answered 401 by
//! `require_bearer` uses no fault up.

use super::Gate;
use super::answer::{Answer, Close, Cut, Framing};
use super::wire::Recorded;

/// Selects requests. Made for every time; narrowed by [`times`](On::times), [`after`](On::after) …
///
/// Paths are compared as sent; `*` stands for any text, slashes included.
#[derive(Clone, Debug)]
pub struct On {
    method: Option<&'static str>,
    path: String,
    times: usize,
    after: usize,
    with_header: Option<String>,
    without_header: Option<String>,
}

impl On {
    /// Requests of that method (`"GET"`, `"HEAD"`, `"*"` for any) to a path pattern.
    pub fn path(method: &'static str, pattern: &str) -> On {
        On {
            method: (method != "*").then_some(method),
            path: pattern.to_owned(),
            times: usize::MAX,
            after: 0,
            with_header: None,
            without_header: None,
        }
    }

    /// Everything, the token endpoint included.
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

    /// Only so many times, then no more.
    pub fn times(mut self, n: usize) -> On {
        self.times = n;
        self
    }

    /// Leaves the first `n` matching requests alone.
    pub fn after(mut self, n: usize) -> On {
        self.after = n;
        self
    }

    /// Only requests that carry this header (`"range"`: resumes and partial pulls).
    pub fn with_header(mut self, name: &str) -> On {
        self.with_header = Some(name.to_owned());
        self
    }

    /// Only requests that do not carry this header.
    pub fn without_header(mut self, name: &str) -> On {
        self.without_header = Some(name.to_owned());
        self
    }

    fn matches(&self, request: &Recorded) -> bool {
        let carries = |name: &Option<String>| name.as_ref().map(|name| request.header(name));
        self.method.is_none_or(|method| method == request.method)
            && glob(&self.path, &request.path)
            && carries(&self.with_header).is_none_or(|value| value.is_some())
            && carries(&self.without_header).is_none_or(|value| value.is_none())
    }
}

/// What goes wrong. Byte counts are counts of body bytes.
#[derive(Clone)]
pub enum Fault {
    /// This answer in place of the right one: status, headers, body.
    Status(u16, Vec<(String, String)>, Vec<u8>),
    /// The request is read, and the connection ends (FIN) without a byte.
    CloseBeforeHead,
    /// The request is read, and the connection is reset (RST) without a byte.
    ResetBeforeHead,
    /// Head with the full Content-Length, so many bytes, RST.
    ResetAfter(usize),
    /// Head with the full Content-Length, so many bytes, FIN.
    CutAfter(usize),
    /// Only the first so many bytes, and a Content-Length that agrees with them: an answer that is
    /// complete and too short.
    Truncate(usize),
    /// One bit in the middle is flipped; the length stays.
    WrongBytes,
    /// So many bytes too many, and a Content-Length that agrees with them.
    TooLong(usize),
    /// This status, content type and body from something in front of the registry, which does not say that
    /// it is one.
    Stranger(u16, String, String),
    /// 200 with a login page.
    Html200,
    /// Chunked instead of a Content-Length.
    NoContentLength,
    /// HTTP/1.0 style: no length; the end of the connection is the end of the body.
    CloseDelimited,
    /// This Content-Length, whatever the body. On GET the body still ends where it ends: use it on
    /// HEAD, or together with [`Fault::CutAfter`].
    ContentLength(u64),
    NoDigestHeader,
    /// `Docker-Content-Digest` of something else.
    WrongDigestHeader,
    /// 405 to HEAD; a GET is answered as ever, and uses nothing up.
    HeadNotAllowed,
    /// Waits before the head.
    Gate(Gate),
    /// Sends the head and so many bytes, then waits, then goes on.
    GateAfter(usize, Gate),
    /// Not a byte until the registry is dropped.
    StallForever,
    /// Head and so many bytes, and no more until the registry is dropped.
    StallAfter(usize),
    /// Redirects with that status (302, 307 …) to that location.
    Redirect(u16, String),
    /// Claims this Content-Encoding; the bytes stay as they are.
    ContentEncoding(String),
    ContentType(String),
    ExtraHeader(String, String),
    /// 429, with Retry-After (as text: seconds or a date) if given.
    RateLimited {
        retry_after: Option<String>,
    },
    /// Answers as if the request had no Range: 200 and everything.
    IgnoreRange,
    /// Answers as if the request had asked for `bytes=N-`: 206 from the wrong place.
    RangeFrom(u64),
    /// These bytes in place of an answer, then FIN.
    Raw(Vec<u8>),
    /// Several at once, applied in this order.
    All(Vec<Fault>),
}

impl Fault {
    /// [`Fault::Status`] with the specification's error JSON.
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

    /// What the registry should believe that it was asked.
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

    /// Spoils the right answer. `until_drop` is the gate that opens when the registry is dropped.
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

    /// Every gate in it, for the registry to open when it goes.
    pub(super) fn gates(&self) -> Vec<Gate> {
        match self {
            Fault::Gate(gate) | Fault::GateAfter(_, gate) => vec![gate.clone()],
            Fault::All(faults) => faults.iter().flat_map(Fault::gates).collect(),
            _ => Vec::new(),
        }
    }
}

/// The faults of one registry in the order they were added.
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

/// Whether `text` is `pattern`, in which `*` stands for any text.
pub(super) fn glob(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(text) = text.strip_prefix(start) else {
        return false;
    };
    (0..=text.len()).any(|at| text.get(at..).is_some_and(|tail| glob(rest, tail)))
}
