//! `upstream`: a registry with a link.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::SendFlags;

use crate::images::{Content, Image, Name, Shape};
use crate::link::{LINK_TICK, Link};
use crate::{EVENTS_PER_WAIT, MANIFEST_TYPE, Options, Outcome, unix_us, wait};

/// Round trips for a new connection: one for TCP and one for TLS 1.3.
const SETUP_ROUND_TRIPS: u32 = 2;
const BLOB_TYPE: &str = "application/octet-stream";

/// `--port`, `--blobs DIR` (files named by their hex digests; optional), `--rate` in bytes per second of
/// the link (0: unlimited), `--connection-rate` of each connection (0: unlimited), `--head-delay-ms` (0)
/// before the response head of a blob, `--round-trip-ms` (0) before every response and twice more for
/// the first one on a connection, `--stop-after` bytes of blobs (never), after which it sends nothing
/// more. `GET /stats` returns what was sent. Runs until it is killed.
///
/// With `--layers` and `--layer-bytes`, invents an image for every tag that is requested (see
/// `images.rs`); with `--group` and `--images` it invents them at start.
pub(crate) fn upstream(options: &Options) -> Outcome {
    let registry = Registry::new(options)?;
    let listener = TcpListener::bind(options.address()?)?;
    listener.set_nonblocking(true)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let data = epoll::EventData::new_u64(LISTENER);
    epoll::add(&epoll, &listener, data, epoll::EventFlags::IN)?;
    let mut upstream = Upstream {
        registry,
        link: Link::new(options.number_or("rate", 0)?, Instant::now()),
        connection_rate: options.number_or("connection-rate", 0)?,
        head_delay: Duration::from_millis(options.number_or("head-delay-ms", 0)?),
        round_trip: Duration::from_millis(options.number_or("round-trip-ms", 0)?),
        epoll,
        peers: HashMap::new(),
        next_peer: 0,
        stats: Stats::default(),
        stop_after: options.number_or("stop-after", u64::MAX)?,
    };
    let mut events = Vec::with_capacity(EVENTS_PER_WAIT);
    loop {
        wait(&upstream.epoll, &mut events, upstream.patience())?;
        for event in &events {
            let (flags, data) = (event.flags, event.data);
            match data.u64() {
                LISTENER => upstream.accept(&listener)?,
                number => upstream.hear(number, flags)?,
            }
        }
        upstream.send()?;
    }
}

/// The token of the listener, which the number of a peer never reaches.
const LISTENER: u64 = u64::MAX;

// ---- Content ------------------------------------------------------------------------------------

/// The content that an upstream serves.
struct Registry {
    blobs: Option<PathBuf>,
    shape: Option<Shape>,
    /// The manifests of invented images by `REPOSITORY:TAG`.
    tags: HashMap<String, Content>,
    /// The manifests and blobs of invented images by digest.
    contents: HashMap<String, Content>,
}

/// A manifest or blob.
struct Found {
    media_type: &'static str,
    hex: String,
    source: Source,
    length: u64,
}

enum Source {
    File(File),
    Memory(Rc<[u8]>),
}

impl Registry {
    fn new(options: &Options) -> Outcome<Registry> {
        let mut registry = Registry {
            blobs: options.text_if_given("blobs").map(PathBuf::from),
            shape: options.text_if_given("layers").map(|_| Shape::parse(options)).transpose()?,
            tags: HashMap::new(),
            contents: HashMap::new(),
        };
        for number in 0..options.number_or("images", 0)? {
            registry.tag(&Name::new(options.text("group")?, number));
        }
        Ok(registry)
    }

    /// Returns the manifest of a tag, and invents the image if it is new.
    fn tag(&mut self, name: &Name) -> Option<Content> {
        let key = format!("{}:{}", name.repository, name.tag);
        if let Some(manifest) = self.tags.get(&key) {
            return Some(manifest.clone());
        }
        let image = Image::invent(name, self.shape?);
        for content in image.blobs.iter().chain([&image.manifest]) {
            self.contents.insert(content.hex.clone(), content.clone());
        }
        self.tags.insert(key, image.manifest.clone());
        Some(image.manifest)
    }

    fn find(&mut self, path: &str) -> Option<Found> {
        if let Some((repository, reference)) = path.rsplit_once("/manifests/") {
            let manifest = match reference.strip_prefix("sha256:") {
                Some(hex) => self.contents.get(hex)?.clone(),
                None => {
                    let repository = repository.strip_prefix("/v2/")?.to_owned();
                    self.tag(&Name { repository, tag: reference.to_owned() })?
                }
            };
            return Some(Found::new(MANIFEST_TYPE, manifest));
        }
        let (_, hex) = path.rsplit_once("/blobs/sha256:")?;
        match self.contents.get(hex) {
            Some(content) => Some(Found::new(BLOB_TYPE, content.clone())),
            None => self.open(hex).ok(),
        }
    }

    fn open(&self, hex: &str) -> io::Result<Found> {
        let is_digest = hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        let blobs = self.blobs.as_ref().filter(|_| is_digest).ok_or(ErrorKind::NotFound)?;
        let file = File::open(blobs.join(hex))?;
        let length = file.metadata()?.len();
        Ok(Found { media_type: BLOB_TYPE, hex: hex.into(), source: Source::File(file), length })
    }
}

impl Found {
    fn new(media_type: &'static str, content: Content) -> Found {
        let length = content.bytes.len() as u64;
        Found { media_type, hex: content.hex, source: Source::Memory(content.bytes), length }
    }
}

// ---- Requests -----------------------------------------------------------------------------------

struct Request<'a> {
    method: &'a str,
    path: &'a str,
    /// Of the header field `Range`, unless `If-Range` names another digest.
    range: Option<&'a str>,
}

impl<'a> Request<'a> {
    fn parse(head: &'a str) -> Request<'a> {
        let mut words = head.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = target.split('?').next().unwrap_or_default();
        let field = |name: &str| {
            head.lines().skip(1).find_map(|line| {
                let (field, value) = line.split_once(':')?;
                field.eq_ignore_ascii_case(name).then(|| value.trim())
            })
        };
        let hex = path.rsplit(':').next().unwrap_or_default();
        let is_same = field("if-range").is_none_or(|tag| tag.trim_matches('"').ends_with(hex));
        Request { method, path, range: field("range").filter(|_| is_same) }
    }

    /// Returns the status, and the part of a body of this length that the client asks for.
    fn part(&self, length: u64) -> (u16, Range<u64>) {
        let Some(asked) = self.range.and_then(|range| range.strip_prefix("bytes=")) else {
            return (200, 0..length);
        };
        let (first, last) = asked.split_once('-').unwrap_or((asked, ""));
        let part = match (first.parse::<u64>(), last.parse::<u64>()) {
            (Ok(first), Ok(last)) => first..length.min(last.saturating_add(1)),
            (Ok(first), Err(_)) => first..length,
            (Err(_), Ok(suffix)) => length.saturating_sub(suffix)..length,
            // Such as two ranges.
            (Err(_), Err(_)) => return (200, 0..length),
        };
        if part.is_empty() { (416, 0..0) } else { (206, part) }
    }
}

struct Upstream {
    registry: Registry,
    link: Link,
    connection_rate: u64,
    head_delay: Duration,
    round_trip: Duration,
    epoll: OwnedFd,
    peers: HashMap<u64, Peer>,
    next_peer: u64,
    stats: Stats,
    stop_after: u64,
}

#[derive(Default)]
struct Stats {
    connections: u64,
    requests: u64,
    blob_requests: u64,
    range_requests: u64,
    /// Of blobs.
    body_bytes: u64,
    last_head_unix_us: u128,
}

struct Peer {
    stream: TcpStream,
    link: Link,
    input: Vec<u8>,
    output: Option<Output>,
    /// The socket buffer is full; epoll reports when it is writable again.
    blocked: bool,
    responses: u64,
}

/// A response that is being sent.
struct Output {
    not_before: Instant,
    head: Vec<u8>,
    body: Option<(Source, Range<u64>)>,
    is_blob: bool,
}

impl Upstream {
    /// How long there is nothing to do without socket events.
    fn patience(&self) -> Option<Duration> {
        let mut outputs = self.peers.values().filter(|peer| !peer.blocked);
        let mut waiting = outputs.by_ref().filter_map(|peer| peer.output.as_ref()).peekable();
        waiting.peek()?;
        let is_limited = self.link.is_limited() || self.connection_rate > 0;
        let now = Instant::now();
        let is_ready = !is_limited && waiting.any(|output| output.not_before <= now);
        Some(if is_ready { Duration::ZERO } else { LINK_TICK })
    }

    fn accept(&mut self, listener: &TcpListener) -> Outcome {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let data = epoll::EventData::new_u64(self.next_peer);
            epoll::add(&self.epoll, &stream, data, epoll::EventFlags::IN)?;
            let link = Link::new(self.connection_rate, Instant::now());
            let peer = Peer {
                stream,
                link,
                input: Vec::new(),
                output: None,
                blocked: false,
                responses: 0,
            };
            self.peers.insert(self.next_peer, peer);
            self.next_peer += 1;
            self.stats.connections += 1;
        }
    }

    fn hear(&mut self, number: u64, flags: epoll::EventFlags) -> Outcome {
        let Some(peer) = self.peers.get_mut(&number) else { return Ok(()) };
        if flags.contains(epoll::EventFlags::OUT) {
            peer.blocked = false;
            let data = epoll::EventData::new_u64(number);
            epoll::modify(&self.epoll, &peer.stream, data, epoll::EventFlags::IN)?;
        }
        let mut buffer = [0; 8192];
        match peer.stream.read(&mut buffer) {
            Ok(read) if read > 0 => peer.input.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Ok(_) | Err(_) => {
                self.peers.remove(&number);
                return Ok(());
            }
        }
        if !peer.input.ends_with(b"\r\n\r\n") {
            return Ok(());
        }
        // Clients here do not pipeline, so this is one request.
        let head = std::mem::take(&mut peer.input);
        let setup = if peer.responses == 0 { SETUP_ROUND_TRIPS } else { 0 };
        let mut output = self.response(&String::from_utf8_lossy(&head));
        output.not_before += self.round_trip * setup;
        if let Some(peer) = self.peers.get_mut(&number) {
            // A connection does not save up allowance between responses.
            peer.link = Link::new(self.connection_rate, output.not_before);
            peer.output = Some(output);
            peer.responses += 1;
        }
        Ok(())
    }

    fn response(&mut self, head: &str) -> Output {
        let (request, now) = (Request::parse(head), Instant::now());
        if request.path == "/stats" {
            return Output::page(now, 200, &self.stats.line());
        }
        self.stats.requests += 1;
        let not_before = now + self.round_trip;
        let Some(found) = self.registry.find(request.path) else {
            let status = if request.path == "/v2/" { 200 } else { 404 };
            return Output::page(not_before, status, "");
        };
        let (status, part) = request.part(found.length);
        let mut head = format!(
            "HTTP/1.1 {status} .\r\nContent-Type: {}\r\nContent-Length: {}\r\nAccept-Ranges: bytes\r\n\
             ETag: \"sha256:{hex}\"\r\nDocker-Content-Digest: sha256:{hex}\r\n",
            found.media_type,
            part.end - part.start,
            hex = found.hex
        );
        // Writing to a String cannot fail.
        let _ = match status {
            206 => write!(
                head,
                "Content-Range: bytes {}-{}/{}\r\n",
                part.start,
                part.end - 1,
                found.length
            ),
            416 => write!(head, "Content-Range: bytes */{}\r\n", found.length),
            _ => Ok(()),
        };
        head.push_str("\r\n");
        let mut output = Output { not_before, head: head.into(), body: None, is_blob: false };
        if request.method == "GET" {
            output.is_blob = found.media_type == BLOB_TYPE;
            output.body = Some((found.source, part));
            self.count(&mut output, status);
        }
        output
    }

    /// Delays and counts the response for a blob.
    fn count(&mut self, output: &mut Output, status: u16) {
        if output.is_blob {
            output.not_before += self.head_delay;
            self.stats.blob_requests += 1;
            self.stats.range_requests += u64::from(status == 206);
        }
    }

    /// Sends a slice to every peer that can receive one.
    fn send(&mut self) -> Outcome {
        let now = Instant::now();
        self.link.refill(now);
        let mut gone = Vec::new();
        for (number, peer) in &mut self.peers {
            match peer.send(now, &mut self.link, &mut self.stats, self.stop_after) {
                Ok(()) => {}
                Err(Errno::AGAIN) => {
                    peer.blocked = true;
                    let data = epoll::EventData::new_u64(*number);
                    let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT;
                    epoll::modify(&self.epoll, &peer.stream, data, flags)?;
                }
                Err(_) => gone.push(*number),
            }
        }
        for number in gone {
            self.peers.remove(&number);
        }
        Ok(())
    }
}

impl Peer {
    fn send(
        &mut self,
        now: Instant,
        link: &mut Link,
        stats: &mut Stats,
        stop_after: u64,
    ) -> Result<(), Errno> {
        let Some(output) = &mut self.output else { return Ok(()) };
        if self.blocked || output.not_before > now {
            return Ok(());
        }
        if !output.head.is_empty() {
            // Before the write, after which the reader may already run.
            let now = unix_us();
            // Without MSG_MORE, a small body would be a second packet.
            let has_more = output.body.as_ref().is_some_and(|(_, rest)| !rest.is_empty());
            let is_limited = link.is_limited() || self.link.is_limited();
            let flags = if has_more && !is_limited { SendFlags::MORE } else { SendFlags::empty() };
            let sent = rustix::net::send(&self.stream, &output.head, flags)?;
            output.head.drain(..sent);
            if output.is_blob {
                stats.last_head_unix_us = now;
            }
            if !output.head.is_empty() {
                return Err(Errno::AGAIN);
            }
        }
        self.link.refill(now);
        if let Some((source, rest)) = &mut output.body {
            let left = (rest.end - rest.start).min(stop_after.saturating_sub(stats.body_bytes));
            let left = usize::try_from(left).unwrap_or(usize::MAX);
            let count = left.min(link.grant()).min(self.link.grant());
            if count > 0 {
                let sent = source.send(&self.stream, rest, count)?;
                link.spend(sent);
                self.link.spend(sent);
                stats.body_bytes += if output.is_blob { sent as u64 } else { 0 };
            }
            if !rest.is_empty() {
                return Ok(());
            }
        }
        self.output = None;
        Ok(())
    }
}

impl Source {
    /// Sends bytes from the start of `rest`, and removes them from it.
    fn send(
        &self,
        stream: &TcpStream,
        rest: &mut Range<u64>,
        count: usize,
    ) -> Result<usize, Errno> {
        match self {
            Source::File(file) => rustix::fs::sendfile(stream, file, Some(&mut rest.start), count),
            Source::Memory(bytes) => {
                // Within the memory that the bytes take.
                let start = rest.start as usize;
                let sent = rustix::io::write(stream, &bytes[start..start + count])?;
                rest.start += sent as u64;
                Ok(sent)
            }
        }
    }
}

impl Output {
    fn page(not_before: Instant, status: u16, page: &str) -> Output {
        let length = page.len();
        let head = format!("HTTP/1.1 {status} .\r\nContent-Length: {length}\r\n\r\n{page}");
        Output { not_before, head: head.into(), body: None, is_blob: false }
    }
}

impl Stats {
    fn line(&self) -> String {
        format!(
            "connections={} requests={} blob_requests={} range_requests={} body_bytes={} last_head_unix_us={}\n",
            self.connections,
            self.requests,
            self.blob_requests,
            self.range_requests,
            self.body_bytes,
            self.last_head_unix_us
        )
    }
}
