//! The registry: serves the [`World`], fails as the [`Faults`] say, and counts what it is asked for.
//!
//! One thread per connection, HTTP/1.1 with keep-alive, a user and a password.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::faults::{Fault, Faults, Outage};
use crate::world::{OCI_INDEX, World};

/// `soak:secret`.
const AUTHORIZATION: &str = "Basic c29hazpzZWNyZXQ=";
/// The password of [`AUTHORIZATION`].
pub const PASSWORD: &str = "secret";
/// Longer than `pullTimeout` in the configuration.
const STALL: Duration = Duration::from_millis(4600);
/// Shorter than Larder's timeout for a silent body.
const PAUSE: Duration = Duration::from_millis(1500);
/// How many requests are remembered as evidence.
const RECENT_MAX: usize = 4000;
const HEAD_BYTES_MAX: usize = 32 * 1024;
const TICK: Duration = Duration::from_millis(20);

/// What a request was for, as in Larder's metrics, its method and the status of the response.
pub type Kind = (&'static str, String, u16);

/// What the registry was asked for.
#[derive(Clone, Default)]
pub struct Counts {
    pub requests: BTreeMap<Kind, u64>,
    /// Bytes of the bodies of manifests and blobs.
    pub content_bytes: u64,
}

pub struct Registry {
    pub address: SocketAddr,
    pub world: Arc<World>,
    pub faults: Arc<Faults>,
    /// Serves the former value of every tag that moves, although it reports the new one to nobody: proves that the
    /// checker notices old tags.
    pub is_lying: AtomicBool,
    state: Mutex<State>,
    open: Mutex<HashMap<u64, TcpStream>>,
    next_connection: AtomicU64,
    stopped: AtomicBool,
}

#[derive(Default)]
struct State {
    counts: Counts,
    /// How often each path was requested.
    numbers: HashMap<String, u64>,
    recent: VecDeque<String>,
}

struct Request {
    method: String,
    path: String,
    range_from: Option<usize>,
    is_authorized: bool,
    via: String,
}

struct Answer {
    kind: &'static str,
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Arc<Vec<u8>>,
    /// The part of the body that is sent.
    from: usize,
}

impl Registry {
    /// Starts it on this address.
    pub fn start(
        address: SocketAddr,
        world: Arc<World>,
        faults: Arc<Faults>,
    ) -> io::Result<Arc<Registry>> {
        let listener = TcpListener::bind(address)?;
        let registry = Arc::new(Registry {
            address,
            world,
            faults,
            is_lying: AtomicBool::new(false),
            state: Mutex::default(),
            open: Mutex::default(),
            next_connection: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        });
        let served = Arc::clone(&registry);
        thread::spawn(move || served.accept(listener));
        Ok(registry)
    }

    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }

    pub fn counts(&self) -> Counts {
        self.state().counts.clone()
    }

    /// Counts a request and a byte that nobody has sent: proves that the comparison of counts can fail.
    pub fn miscount(&self) {
        let mut state = self.state();
        *state.counts.requests.entry(("blob", "GET".into(), 200)).or_default() += 1;
        state.counts.content_bytes += 1;
    }

    /// The latest requests, for a finding.
    pub fn recent(&self) -> String {
        self.state().recent.iter().fold(String::new(), |text, line| text + line + "\n")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, TcpStream>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts connections, except while the registry is down.
    fn accept(self: Arc<Registry>, listener: TcpListener) {
        let mut listening = Some(listener);
        while !self.stopped.load(Ordering::SeqCst) {
            let is_down = self.faults.outage() == Some(Outage::Down);
            match (&listening, is_down) {
                (Some(_), true) => {
                    listening = None;
                    self.open().values().for_each(|open| drop(open.shutdown(Shutdown::Both)));
                }
                (None, false) => {
                    listening = TcpListener::bind(self.address).ok();
                }
                _ => {}
            }
            let Some(listener) = &listening else {
                thread::sleep(TICK);
                continue;
            };
            // Fails only on a descriptor that is no socket; then the next call does too.
            let _ = listener.set_nonblocking(true);
            match listener.accept() {
                Ok((stream, _)) => self.clone().begin(stream),
                Err(_) => thread::sleep(TICK),
            }
        }
    }

    fn begin(self: Arc<Registry>, stream: TcpStream) {
        let number = self.next_connection.fetch_add(1, Ordering::Relaxed);
        let prepared = stream.set_nonblocking(false).and_then(|()| stream.set_nodelay(true));
        let Ok(copy) = prepared.and_then(|()| stream.try_clone()) else { return };
        self.open().insert(number, copy);
        thread::spawn(move || {
            // The client may leave at any time.
            let _ = self.serve(stream);
            self.open().remove(&number);
        });
    }

    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut buffered = Vec::new();
        while let Some(request) = read_request(&mut stream, &mut buffered)? {
            let number = self.number(&request);
            // Logins are not what is tested.
            let fault = match request.is_authorized {
                true => self.faults.of(&request.method, &request.path, number),
                false => None,
            };
            let answer = self.answer(&request, fault);
            self.note(&request, &answer, fault);
            if !send(&mut stream, &request, &answer, fault)? {
                break;
            }
        }
        Ok(())
    }

    fn number(&self, request: &Request) -> u64 {
        let mut state = self.state();
        let number = state.numbers.entry(request.path.clone()).or_default();
        *number += 1;
        *number
    }

    /// Counted before the response is sent, since a client may have it before this thread continues.
    fn note(&self, request: &Request, answer: &Answer, fault: Option<Fault>) {
        let mut state = self.state();
        let kind = (answer.kind, request.method.clone(), answer.status);
        *state.counts.requests.entry(kind).or_default() += 1;
        if request.method == "GET"
            && matches!(answer.kind, "manifest" | "blob")
            && answer.status < 300
        {
            state.counts.content_bytes += (answer.body.len() - answer.from) as u64;
        }
        let line = format!(
            "{:?} {} {} from={:?} {} fault={fault:?} via={}",
            Instant::now(),
            request.method,
            request.path,
            request.range_from,
            answer.status,
            request.via
        );
        state.recent.push_back(line);
        if state.recent.len() > RECENT_MAX {
            state.recent.pop_front();
        }
    }

    fn answer(&self, request: &Request, fault: Option<Fault>) -> Answer {
        if !request.is_authorized {
            let mut answer = error("login", 401, "UNAUTHORIZED");
            answer.headers.push(("WWW-Authenticate", "Basic realm=\"soak\"".into()));
            return answer;
        }
        let found = self.find(request);
        match fault {
            Some(Fault::Status(status)) => error(found.kind, status, "MANIFEST_UNKNOWN"),
            Some(Fault::RateLimited) => {
                let mut answer = error(found.kind, 429, "TOOMANYREQUESTS");
                answer.headers.push(("Retry-After", "1".into()));
                answer
            }
            _ => found,
        }
    }

    fn find(&self, request: &Request) -> Answer {
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        let rest = path.strip_prefix("/v2/").unwrap_or_default();
        if rest.is_empty() {
            return content("ping", "application/json", Arc::new(b"{}".to_vec()));
        }
        if let Some(repository) = rest.strip_suffix("/tags/list") {
            return self.list(repository);
        }
        let mut parts = rest.rsplitn(3, '/');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(reference), Some("manifests"), Some(repository)) => {
                self.manifest(repository, reference)
            }
            (Some(digest), Some("blobs"), Some(_)) => self.blob(digest, request.range_from),
            (Some(digest), Some("referrers"), Some(repository)) => {
                self.referrers(repository, digest, query)
            }
            _ => error("other", 404, "NAME_UNKNOWN"),
        }
    }

    fn manifest(&self, repository: &str, reference: &str) -> Answer {
        let old = self.is_lying.load(Ordering::Relaxed).then(|| self.former(repository, reference));
        let Some(found) = old.flatten().or_else(|| self.world.manifest(repository, reference))
        else {
            return error("manifest", 404, "MANIFEST_UNKNOWN");
        };
        let mut answer = content("manifest", found.media_type, found.bytes);
        answer.headers.push(("Docker-Content-Digest", found.digest));
        answer
    }

    /// The first image of the repository instead of what a tag points to.
    fn former(&self, repository: &str, reference: &str) -> Option<crate::world::Document> {
        let is_digest = reference.contains(':');
        let images = self.world.images(repository);
        images.first().filter(|_| !is_digest).map(|image| image.top.clone())
    }

    fn blob(&self, digest: &str, from: Option<usize>) -> Answer {
        let Some(bytes) = self.world.blob(digest) else {
            return error("blob", 404, "BLOB_UNKNOWN");
        };
        let length = bytes.len();
        let mut answer = content("blob", "application/octet-stream", bytes);
        answer.headers.push(("Docker-Content-Digest", digest.to_owned()));
        if let Some(from) = from.filter(|from| *from < length) {
            answer.status = 206;
            answer.from = from;
            answer.headers.push(("Content-Range", format!("bytes {from}-{}/{length}", length - 1)));
        }
        answer
    }

    fn list(&self, repository: &str) -> Answer {
        let tags = self.world.tags(repository);
        if tags.is_empty() {
            return error("tags", 404, "NAME_UNKNOWN");
        }
        let body = json!({"name": repository, "tags": tags}).to_string();
        content("tags", "application/json", Arc::new(body.into_bytes()))
    }

    fn referrers(&self, repository: &str, digest: &str, _query: &str) -> Answer {
        let referrers = self.world.referrers(repository, digest).into_iter();
        let entries = referrers.map(|(digest, size)| {
            json!({"mediaType": crate::world::OCI_MANIFEST, "digest": digest, "size": size,
                "artifactType": "application/vnd.example.signature"})
        });
        let entries: Vec<_> = entries.collect();
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
        content("referrers", OCI_INDEX, Arc::new(index.to_string().into_bytes()))
    }
}

fn content(kind: &'static str, media_type: &str, body: Arc<Vec<u8>>) -> Answer {
    let headers = vec![("Content-Type", media_type.to_owned())];
    Answer { kind, status: 200, headers, body, from: 0 }
}

fn error(kind: &'static str, status: u16, code: &str) -> Answer {
    let body = json!({"errors": [{"code": code, "message": "soak"}]}).to_string();
    let headers = vec![("Content-Type", "application/json".to_owned())];
    Answer { kind, status, headers, body: Arc::new(body.into_bytes()), from: 0 }
}

/// Reads the next request; `None` at the end of the connection.
fn read_request(stream: &mut TcpStream, buffered: &mut Vec<u8>) -> io::Result<Option<Request>> {
    let mut chunk = [0; 4096];
    let end = loop {
        if let Some(at) = buffered.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        let read = stream.read(&mut chunk)?;
        if read == 0 || buffered.len() > HEAD_BYTES_MAX {
            return Ok(None);
        }
        buffered.extend_from_slice(&chunk[..read]);
    };
    let head = String::from_utf8_lossy(&buffered[..end]).into_owned();
    buffered.drain(..end + 4);
    let mut lines = head.lines();
    let mut first = lines.next().unwrap_or_default().split(' ');
    let (method, path) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
    let header = |name: &str| {
        let mut fields = head.lines().filter_map(|line| line.split_once(':'));
        fields
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim().to_owned())
    };
    let range = header("range");
    let range_from =
        range.and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse().ok());
    Ok(Some(Request {
        method: method.to_owned(),
        path: path.to_owned(),
        range_from,
        is_authorized: header("authorization").as_deref() == Some(AUTHORIZATION),
        via: header("via").unwrap_or_default(),
    }))
}

/// Sends a response. Returns whether the connection can be used again.
fn send(
    stream: &mut TcpStream,
    request: &Request,
    answer: &Answer,
    fault: Option<Fault>,
) -> io::Result<bool> {
    let mut from = answer.from;
    let mut status = answer.status;
    match fault {
        Some(Fault::Reset) => return Ok(false),
        Some(Fault::Stall) => thread::sleep(STALL),
        Some(Fault::IgnoreRange) if status == 206 => (status, from) = (200, 0),
        _ => {}
    }
    let mut body = answer.body[from..].to_vec();
    let is_success = status < 300 && !body.is_empty();
    match fault {
        Some(Fault::WrongBytes) if is_success => {
            let middle = body.len() / 2;
            body[middle] ^= 1;
        }
        Some(Fault::Truncated) if is_success => body.truncate(body.len() / 2),
        _ => {}
    }
    let mut head = format!("HTTP/1.1 {status} soak\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in &answer.headers {
        let value = match (*name, fault) {
            ("Docker-Content-Digest", Some(Fault::WrongDigestHeader)) => {
                format!("sha256:{}", "ab".repeat(32))
            }
            ("Content-Range", _) if status != 206 => continue,
            _ => value.clone(),
        };
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if request.method == "HEAD" {
        return Ok(true);
    }
    let middle = match fault {
        Some(Fault::Cut(percent)) => body.len() * percent / 100,
        _ => body.len() / 2,
    };
    stream.write_all(&body[..middle])?;
    match fault {
        Some(Fault::Cut(_)) => return Ok(false),
        Some(Fault::Pause) => thread::sleep(PAUSE),
        _ => {}
    }
    stream.write_all(&body[middle..])?;
    Ok(true)
}
