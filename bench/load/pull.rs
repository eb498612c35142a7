//! `pull`: clients that pull complete images, as containerd does.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::fd::OwnedFd;

use crate::images::{Content, Image, Name, Shape};
use crate::response::{Expected, READ_BYTES, Response, request};
use crate::{EVENTS_PER_WAIT, Options, Outcome, TICK, milliseconds, percentile, wait};

/// Concurrent requests for blobs of one image: the default of containerd.
const CONNECTIONS_PER_CLIENT: usize = 3;

/// `--port`, `--registry NAME` (none: the server is the registry), `--group`, `--first` (0), `--images`,
/// `--layers`, `--layer-bytes` (see `images.rs`), `--clients` (1), `--passes` (1: how often each image
/// is pulled), `--per-second` (0: as fast as possible), `--limit` seconds (60).
///
/// For each image, a client sends HEAD for the tag, GET for the manifest with the digest of the
/// response, and then GET for the config and the layers on three keep-alive connections. It compares
/// every byte.
pub(crate) fn pull(options: &Options) -> Outcome {
    let (address, shape) = (options.address()?, Shape::parse(options)?);
    let (first, count) = (options.number_or("first", 0)?, options.number("images")?);
    let group = options.text("group")?;
    let images: Vec<Pullable> = (first..first + count)
        .map(|number| Name::new(group, number))
        .map(|name| Pullable::new(&name, shape, options.text_if_given("registry")))
        .collect();
    let limit = Duration::from_secs(options.number_or("limit", 60)?);
    let passes = options.number_or("passes", 1)?;
    let per_second = u32::try_from(options.number_or("per-second", 0)?)?;

    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut clients: Vec<Client> = (0..options.number_or("clients", 1)?)
        .map(|number| Client { number, ..Client::default() })
        .collect();
    let began = Instant::now();
    let mut schedule = Schedule { began, per_second, next: 0, end: passes * count };
    let mut times = Vec::new();
    let mut events = Vec::with_capacity(EVENTS_PER_WAIT);
    let mut buffer = vec![0; READ_BYTES];
    let server = Server { address, epoll: &epoll };
    loop {
        for client in clients.iter_mut().filter(|client| client.stages.is_empty()) {
            let Some(turn) = schedule.take() else { break };
            client.start(&images[usize::try_from(turn % count)?], &server)?;
        }
        if clients.iter().all(|client| client.stages.is_empty()) && schedule.next == schedule.end {
            break;
        }
        if began.elapsed() > limit {
            return Err(format!("{} of {} images pulled in time", times.len(), schedule.end).into());
        }
        wait(&epoll, &mut events, Some(schedule.patience()))?;
        for event in &events {
            // Fields of a packed structure must be copied.
            let data = event.data;
            let token = usize::try_from(data.u64())?;
            let (client, slot) = (token / CONNECTIONS_PER_CLIENT, token % CONNECTIONS_PER_CLIENT);
            times.extend(clients[client].advance(slot, &server, &mut buffer)?);
        }
    }
    let wall = began.elapsed();
    times.sort();
    println!(
        "images={} wall_ms={:.1} images_per_second={:.2} image_median={:.2} image_max={:.2}",
        times.len(),
        milliseconds(wall),
        times.len() as f64 / wall.as_secs_f64(),
        milliseconds(percentile(&times, 0.5)),
        milliseconds(percentile(&times, 1.0))
    );
    Ok(())
}

/// Which image is pulled when.
struct Schedule {
    began: Instant,
    per_second: u32,
    next: u64,
    end: u64,
}

impl Schedule {
    /// Returns how long until the next image is due. Nothing is due any more at the end.
    fn until_due(&self) -> Option<Duration> {
        let due = match self.per_second {
            0 => Duration::ZERO,
            rate => Duration::from_secs(self.next) / rate,
        };
        (self.next < self.end).then(|| due.saturating_sub(self.began.elapsed()))
    }

    fn take(&mut self) -> Option<u64> {
        self.until_due()?.is_zero().then(|| {
            self.next += 1;
            self.next - 1
        })
    }

    fn patience(&self) -> Duration {
        // If an image is due already, it waits for a client, and so for an event.
        self.until_due().filter(|until| !until.is_zero()).map_or(TICK, |until| until.min(TICK))
    }
}

/// An image and the requests for it.
struct Pullable {
    stages: VecDeque<VecDeque<Job>>,
}

#[derive(Clone)]
struct Job {
    method: &'static str,
    path: String,
    content: Content,
}

impl Pullable {
    fn new(name: &Name, shape: Shape, registry: Option<&str>) -> Pullable {
        let image = Image::invent(name, shape);
        let registry = registry.map(|registry| format!("{registry}/")).unwrap_or_default();
        let job = |method, kind: &str, reference: &str, content: &Content| Job {
            method,
            path: format!("/v2/{registry}{}/{kind}/{reference}", name.repository),
            content: content.clone(),
        };
        let digest = |content: &Content| format!("sha256:{}", content.hex);
        let manifest = &image.manifest;
        let blobs = image.blobs.iter().map(|blob| job("GET", "blobs", &digest(blob), blob));
        let stages = [
            VecDeque::from([job("HEAD", "manifests", &name.tag, manifest)]),
            VecDeque::from([job("GET", "manifests", &digest(manifest), manifest)]),
            blobs.collect(),
        ];
        Pullable { stages: stages.into() }
    }
}

struct Server<'a> {
    address: SocketAddr,
    epoll: &'a OwnedFd,
}

#[derive(Default)]
struct Client {
    number: u64,
    connections: [Option<Connection>; CONNECTIONS_PER_CLIENT],
    /// The requests that are not sent yet. A stage begins when the one before it is complete.
    stages: VecDeque<VecDeque<Job>>,
    began: Option<Instant>,
}

struct Connection {
    stream: TcpStream,
    running: Option<(Job, Response)>,
}

impl Client {
    fn start(&mut self, image: &Pullable, server: &Server) -> Outcome {
        self.stages = image.stages.clone();
        self.began = Some(Instant::now());
        self.send(server)
    }

    /// Sends the requests for which there are connections.
    fn send(&mut self, server: &Server) -> Outcome {
        let Some(stage) = self.stages.front_mut() else { return Ok(()) };
        for (slot, connection) in (0..).zip(&mut self.connections) {
            if connection.as_ref().is_some_and(|connection| connection.running.is_some()) {
                continue;
            }
            let Some(job) = stage.pop_front() else { break };
            if connection.is_none() {
                let stream = TcpStream::connect(server.address)?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                let token = self.number * CONNECTIONS_PER_CLIENT as u64 + slot;
                let data = epoll::EventData::new_u64(token);
                epoll::add(server.epoll, &stream, data, epoll::EventFlags::IN)?;
                *connection = Some(Connection { stream, running: None });
            }
            if let Some(connection) = connection {
                // The socket buffer is empty, so the complete request fits.
                connection.stream.write_all(&request(job.method, &job.path))?;
                connection.running = Some((job, Response::default()));
            }
        }
        Ok(())
    }

    /// Reads once from a connection. Returns how long the image took once it is complete.
    fn advance(
        &mut self,
        slot: usize,
        server: &Server,
        buffer: &mut [u8],
    ) -> Outcome<Option<Duration>> {
        let Some(connection) = &mut self.connections[slot] else { return Ok(None) };
        let read = match connection.stream.read(buffer) {
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let Some((job, response)) = &mut connection.running else {
            // The server closed an idle connection.
            self.connections[slot] = None;
            return Ok(None);
        };
        let is_complete = match read {
            0 => Err("the connection was closed during a response".into()),
            _ => job.check(response, &buffer[..read]),
        };
        if !is_complete.map_err(|error| format!("{} {}: {error}", job.method, job.path))? {
            return Ok(None);
        }
        if response.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            self.connections[slot] = None;
        } else {
            connection.running = None;
        }
        let is_idle = self.connections.iter().flatten().all(|other| other.running.is_none());
        if is_idle && self.stages.front().is_some_and(VecDeque::is_empty) {
            self.stages.pop_front();
        }
        self.send(server)?;
        Ok(self.began.filter(|_| self.stages.is_empty()).map(|began| began.elapsed()))
    }
}

impl Job {
    /// Adds received bytes. Returns true once the response is complete.
    fn check(&self, response: &mut Response, bytes: &[u8]) -> Outcome<bool> {
        let expected = match self.method {
            "HEAD" => Expected::NoBody { length: self.content.bytes.len() },
            _ => Expected::Bytes(&self.content.bytes),
        };
        let is_complete = response.take(bytes, expected)?;
        if is_complete && self.method == "HEAD" {
            let digest = response.header("docker-content-digest").unwrap_or_default();
            if digest.strip_prefix("sha256:") != Some(&self.content.hex) {
                return Err(format!("the digest is {digest}").into());
            }
        }
        Ok(is_complete)
    }
}
