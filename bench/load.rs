//! The parts of the benchmarks that `wrk` cannot do: many clients of one blob that measure times and
//! compare every byte, slow readers and idle connections, a seeded cache, the time from exec to the
//! first response, CPU and memory of a process, and an upstream with a link of a given rate.
//!
//! `load MODE --option value …` prints one line of `name=value`, and exits with status 1 if a check
//! failed. `run` lists the modes; each mode documents its options.
//!
//! One thread drives the clients with epoll, which leaves the cores to the measured server. They
//! compare the body with the original in memory instead of hashing it, which is as strict and takes a
//! tenth of the time. Many clients may share the comparison, see `--compare-every`. This program knows
//! nothing about Larder but its URLs and the layout of its directory.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program whose result is a line")]

use std::collections::HashMap;
use std::error::Error;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, sockopt};
use sha2::{Digest, Sha256};

/// Bytes per read from a client's socket: large enough that system calls cost little compared to the
/// copy, small enough that a thousand clients all get a turn within a few hundred megabytes.
const READ_BYTES: usize = 256 * 1024;
/// The unit that a client compares or discards, see `--compare-every`.
const BLOCK_BYTES: usize = 1024 * 1024;
/// Longer than the response head of any server here.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Socket events per system call.
const EVENTS_PER_WAIT: usize = 1024;
/// The longest wait for sockets before the deadline of the run is checked again.
const TICK: Duration = Duration::from_millis(100);
/// The tick of a throttled upstream: 50 KB at 100 MB/s, which makes the link smooth.
const LINK_TICK: Duration = Duration::from_micros(500);
/// How many ticks a link may make up for when this process did not get the CPU, which would not slow
/// down a real link.
const LINK_BURST_TICKS: u32 = 40;
/// Bytes per `sendfile` of an unthrottled upstream.
const SLICE_BYTES: usize = 1024 * 1024;
/// `USER_HZ`, the unit of `/proc/<pid>/stat`, on every architecture that Larder supports.
const TICKS_PER_SECOND: u64 = 100;
/// The pause between attempts to connect to a server that is starting.
const RETRY_PAUSE: Duration = Duration::from_micros(200);
/// Images in one repository of a seeded cache.
const IMAGES_PER_REPOSITORY: u64 = 100;
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome {
    let mut arguments = std::env::args().skip(1);
    let mode = arguments.next().unwrap_or_default();
    let options = Options::parse(arguments)?;
    match mode.as_str() {
        "fetch" => fetch(&options),
        "crowd" => crowd(&options),
        "sweep" => sweep(&options),
        "start" => start(&options),
        "usage" => usage(&options),
        "seed" => seed(&options),
        "upstream" => upstream(&options),
        _ => Err("modes: fetch, crowd, sweep, start, usage, seed, upstream".into()),
    }
}

/// `--name value` pairs, and the command after `--`.
struct Options {
    values: HashMap<String, String>,
    command: Vec<String>,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Outcome<Options> {
        let mut values = HashMap::new();
        while let Some(argument) = arguments.next() {
            if argument == "--" {
                break;
            }
            let name = argument
                .strip_prefix("--")
                .ok_or_else(|| format!("unexpected argument {argument}"))?;
            let value = arguments.next().ok_or_else(|| format!("--{name} needs a value"))?;
            values.insert(name.to_owned(), value);
        }
        Ok(Options { values, command: arguments.collect() })
    }

    fn text(&self, name: &str) -> Outcome<&str> {
        let value = self.values.get(name).ok_or_else(|| format!("--{name} is missing"))?;
        Ok(value)
    }

    fn number(&self, name: &str) -> Outcome<u64> {
        self.text(name)?.parse().map_err(|error| format!("--{name}: {error}").into())
    }

    fn number_or(&self, name: &str, default: u64) -> Outcome<u64> {
        if self.values.contains_key(name) { self.number(name) } else { Ok(default) }
    }

    fn address(&self) -> Outcome<SocketAddr> {
        Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, u16::try_from(self.number("port")?)?)))
    }
}

// ---- Responses ----------------------------------------------------------------------------------

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {MANIFEST_TYPE}, */*\r\n\r\n").into()
}

/// A response that is being received. It must be a 200 with exactly the expected body.
#[derive(Default)]
struct Response {
    head: Vec<u8>,
    head_received: Option<Instant>,
    first_byte: Option<Instant>,
    position: usize,
}

impl Response {
    /// Adds received bytes. Returns true once the body is complete.
    fn take(&mut self, mut bytes: &[u8], expected: &[u8]) -> Outcome<bool> {
        if self.head_received.is_none() {
            let before = self.head.len();
            self.head.extend_from_slice(bytes);
            let Some(end) = self.head.windows(4).position(|four| four == b"\r\n\r\n") else {
                let fits = self.head.len() < HEAD_BYTES_MAX;
                return if fits { Ok(false) } else { Err("the response head is too long".into()) };
            };
            bytes = &bytes[end + 4 - before..];
            self.head.truncate(end);
            self.check_head(expected.len())?;
            self.head_received = Some(Instant::now());
        }
        if !bytes.is_empty() {
            self.first_byte.get_or_insert_with(Instant::now);
        }
        let end = self.position + bytes.len();
        if expected.get(self.position..end) != Some(bytes) {
            return Err(format!("wrong bytes between {} and {end}", self.position).into());
        }
        self.position = end;
        Ok(end == expected.len())
    }

    /// Returns whether the client with this number compares the next bytes or lets the kernel discard
    /// them, and how many at most.
    fn plan(&self, client: usize, compare_every: usize, body_bytes: usize) -> Plan {
        let (block, within) = (self.position / BLOCK_BYTES, self.position % BLOCK_BYTES);
        let left = (BLOCK_BYTES - within).min(body_bytes - self.position);
        if self.head_received.is_none() || block % compare_every == client % compare_every {
            Plan::Compare(left.min(READ_BYTES))
        } else {
            Plan::Discard(left)
        }
    }

    /// Counts discarded bytes. Returns true once the body is complete.
    fn skip(&mut self, bytes: usize, body_bytes: usize) -> bool {
        self.first_byte.get_or_insert_with(Instant::now);
        self.position += bytes;
        self.position == body_bytes
    }

    fn check_head(&self, expected: usize) -> Outcome {
        let head = String::from_utf8_lossy(&self.head);
        let mut lines = head.lines();
        let status = lines.next().unwrap_or_default();
        if status.split(' ').nth(1) != Some("200") {
            return Err(format!("the response is {status}").into());
        }
        let length = lines.find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
        });
        if length == Some(expected) {
            return Ok(());
        }
        Err(format!("Content-Length is {length:?}, expected {expected}").into())
    }
}

enum Plan {
    Compare(usize),
    Discard(usize),
}

/// Sends a GET on an open, blocking connection, and checks the response.
fn exchange(stream: &mut TcpStream, path: &str, expected: &[u8]) -> Outcome {
    stream.write_all(&get(path))?;
    let mut response = Response::default();
    let mut buffer = [0; 16 * 1024];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Err("the connection was closed during a response".into());
        }
        if response.take(&buffer[..read], expected)? {
            return Ok(());
        }
    }
}

// ---- fetch: many clients of one URL -------------------------------------------------------------

/// `--port`, `--path`, `--expect FILE`, `--clients` (1), `--repeat` (1: requests per connection),
/// `--limit` seconds (60), `--pid` (a process whose CPU time is printed, including its children).
///
/// `--compare-every N` (1): each client compares one of N blocks and discards the others without
/// copying them. Each compares a different block, so N clients together compare the complete body, and
/// each checks its length. Otherwise fifty clients on the same machine would dominate the measurement.
fn fetch(options: &Options) -> Outcome {
    let (address, request) = (options.address()?, get(options.text("path")?));
    let expected = fs::read(options.text("expect")?)?;
    let limit = Duration::from_secs(options.number_or("limit", 60)?);
    let repeat = options.number_or("repeat", 1)?;
    let compare_every = usize::try_from(options.number_or("compare-every", 1)?.max(1))?;
    let pid = options.values.get("pid").map(String::as_str);
    let cpu_before = pid.map(cpu_time).transpose()?;

    let began = Instant::now();
    let mut clients = Vec::new();
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for number in 0..options.number_or("clients", 1)? {
        let client = Client::connect(address, usize::try_from(number)?, repeat)?;
        let data = epoll::EventData::new_u64(number);
        epoll::add(&epoll, &client.stream, data, epoll::EventFlags::OUT)?;
        clients.push(client);
    }
    let load = Load { request, expected, compare_every, deadline: began + limit };
    drive(&epoll, &mut clients, &load)?;
    let wall = began.elapsed();
    let mut line = report(&clients, wall, load.expected.len());
    if let (Some(pid), Some(before)) = (pid, cpu_before) {
        let cpu = cpu_time(pid)?.saturating_sub(before);
        write!(line, " cpu_ms={}", cpu.as_millis())?;
    }
    println!("{line}");
    match clients.iter().find_map(|client| client.failure.as_ref()) {
        Some(failure) => Err(format!("at least one client failed: {failure}").into()),
        None => Ok(()),
    }
}

/// The request of all clients, and the expected response.
struct Load {
    request: Vec<u8>,
    expected: Vec<u8>,
    compare_every: usize,
    deadline: Instant,
}

struct Client {
    stream: OwnedFd,
    number: usize,
    requests_left: u64,
    began: Instant,
    requested: bool,
    response: Response,
    ended: Option<Instant>,
    failure: Option<String>,
}

/// What a client waits for.
enum Next {
    Bytes,
    Nothing,
}

impl Client {
    fn connect(address: SocketAddr, number: usize, requests_left: u64) -> Outcome<Client> {
        let began = Instant::now();
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let stream =
            rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&stream, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(errno) => return Err(errno.into()),
        }
        let response = Response::default();
        Ok(Client {
            stream,
            number,
            requests_left,
            began,
            requested: false,
            response,
            ended: None,
            failure: None,
        })
    }

    fn advance(&mut self, load: &Load, buffer: &mut [u8]) -> Outcome<Next> {
        if !self.requested {
            sockopt::socket_error(&self.stream)??;
            self.send(&load.request)?;
            return Ok(Next::Bytes);
        }
        if !self.read(load, buffer)? {
            return Ok(Next::Bytes);
        }
        if self.requests_left == 0 {
            return Ok(Next::Nothing);
        }
        self.response = Response::default();
        self.send(&load.request)?;
        Ok(Next::Bytes)
    }

    /// Reads once. Returns true once the response is complete.
    fn read(&mut self, load: &Load, buffer: &mut [u8]) -> Outcome<bool> {
        let body_bytes = load.expected.len();
        let plan = self.response.plan(self.number, load.compare_every, body_bytes);
        let (count, flags) = match plan {
            Plan::Compare(count) if self.response.head_received.is_some() => {
                (count, RecvFlags::empty())
            }
            Plan::Compare(_) => (READ_BYTES, RecvFlags::empty()),
            // With TCP, this discards the bytes and returns their number (tcp(7)).
            Plan::Discard(count) => (count, RecvFlags::TRUNC),
        };
        let read = match rustix::net::recv(&self.stream, &mut buffer[..count], flags) {
            Ok((0, _)) => return Err("the connection was closed during a response".into()),
            Ok((read, _)) => read,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        };
        match plan {
            Plan::Compare(_) => self.response.take(&buffer[..read], &load.expected),
            Plan::Discard(_) => Ok(self.response.skip(read, body_bytes)),
        }
    }

    fn send(&mut self, request: &[u8]) -> Outcome {
        self.requested = true;
        self.requests_left -= 1;
        // The socket buffer is empty, so the complete request fits.
        match rustix::io::write(&self.stream, request)? == request.len() {
            true => Ok(()),
            false => Err("a request was sent only partially".into()),
        }
    }
}

fn drive(epoll: &OwnedFd, clients: &mut [Client], load: &Load) -> Outcome {
    let mut events = Vec::with_capacity(EVENTS_PER_WAIT);
    let mut buffer = vec![0; BLOCK_BYTES];
    let mut open = clients.len();
    while open > 0 {
        if Instant::now() > load.deadline {
            return Err(format!("{open} clients have not finished in time").into());
        }
        wait(epoll, &mut events, Some(TICK))?;
        for event in &events {
            // Fields of a packed structure must be copied.
            let data = event.data;
            let client = &mut clients[usize::try_from(data.u64())?];
            let was_requested = client.requested;
            match client.advance(load, &mut buffer) {
                Ok(Next::Bytes) if was_requested => continue,
                Ok(Next::Bytes) => {
                    epoll::modify(epoll, &client.stream, data, epoll::EventFlags::IN)?;
                    continue;
                }
                Ok(Next::Nothing) => {}
                Err(error) => client.failure = Some(error.to_string()),
            }
            client.ended = Some(Instant::now());
            epoll::delete(epoll, &client.stream)?;
            rustix::net::shutdown(&client.stream, rustix::net::Shutdown::Both).ok();
            open -= 1;
        }
    }
    Ok(())
}

fn wait(epoll: &OwnedFd, events: &mut Vec<epoll::Event>, at_most: Option<Duration>) -> Outcome {
    events.clear();
    let timeout = at_most.map(Timespec::try_from).transpose()?;
    match epoll::wait(epoll, spare_capacity(events), timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Returns times in milliseconds since each client connected; those of response heads also in
/// microseconds since 1970, for comparison with the upstream.
fn report(clients: &[Client], wall: Duration, body_bytes: usize) -> String {
    let succeeded: Vec<&Client> =
        clients.iter().filter(|client| client.failure.is_none()).collect();
    let since = |pick: &dyn Fn(&Client) -> Option<Instant>| {
        let mut times: Vec<Duration> = succeeded
            .iter()
            .filter_map(|client| Some(pick(client)?.duration_since(client.began)))
            .collect();
        times.sort();
        times
    };
    let mut line = format!(
        "clients={} failed={} body_bytes={body_bytes} wall_ms={:.1}",
        clients.len(),
        clients.len() - succeeded.len(),
        milliseconds(wall)
    );
    for (name, times) in [
        ("head", since(&|client| client.response.head_received)),
        ("first", since(&|client| client.response.first_byte)),
        ("total", since(&|client| client.ended)),
    ] {
        if let (Some(first), Some(last)) = (times.first(), times.last()) {
            let (first, middle) = (milliseconds(*first), milliseconds(times[times.len() / 2]));
            let last = milliseconds(*last);
            // Writing to a String cannot fail.
            let _ = write!(
                line,
                " {name}_min={first:.2} {name}_median={middle:.2} {name}_max={last:.2}"
            );
        }
    }
    let last_head = succeeded.iter().filter_map(|client| client.response.head_received).max();
    if let Some(last_head) = last_head {
        let _ = write!(line, " last_head_unix_us={}", unix_us() - last_head.elapsed().as_micros());
    }
    line
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn unix_us() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros())
}

// ---- crowd: slow readers and idle connections ---------------------------------------------------

/// `--port`, `--path`, `--expect FILE`, `--streams`, `--idle`, `--seconds`, `--pid`: `--streams`
/// readers read 8 KiB per second, `--idle` connections are idle after one response. Prints the memory
/// of the process.
fn crowd(options: &Options) -> Outcome {
    let (address, path) = (options.address()?, options.text("path")?);
    let expected = fs::read(options.text("expect")?)?;
    let pid = options.text("pid")?;
    let mut idle = Vec::new();
    for _ in 0..options.number("idle")? {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(&get("/v2/"))?;
        idle.push(stream);
    }
    for stream in &mut idle {
        let mut head = [0; 1024];
        let read = stream.read(&mut head)?;
        if !head[..read].starts_with(b"HTTP/1.1 200") {
            return Err("the first response of an idle connection is not 200".into());
        }
        stream.set_nonblocking(true)?;
    }
    let mut streams = Vec::new();
    for _ in 0..options.number("streams")? {
        streams.push((slow_reader(address, path)?, Response::default()));
    }
    let mut memory_max = Memory::default();
    let (mut buffer, mut is_over) = (vec![0; 8 * 1024], false);
    for _ in 0..options.number("seconds")? {
        let pass = Instant::now();
        for (stream, response) in &mut streams {
            match stream.read(&mut buffer) {
                Ok(0) => return Err("the connection of a slow reader was closed".into()),
                Ok(read) => is_over |= response.take(&buffer[..read], &expected)?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        thread::sleep(Duration::from_secs(1).saturating_sub(pass.elapsed()));
        memory_max = memory_max.max(memory(pid)?);
    }
    let slowest = streams.iter().map(|(_, response)| response.position).min().unwrap_or(0);
    let closed = idle.iter().filter(|stream| !is_open(stream)).count();
    println!(
        "streams={} idle={} closed={closed} least_bytes={slowest} rss_kib={} anon_kib={}",
        streams.len(),
        idle.len(),
        memory_max.resident_kib,
        memory_max.anonymous_kib
    );
    match (slowest, closed, is_over) {
        (1.., 0, false) => Ok(()),
        _ => Err("a stream made no progress or finished, or an idle connection was closed".into()),
    }
}

/// Connects with a small receive buffer, so that the kernel does not buffer the unread bytes.
fn slow_reader(address: SocketAddr, path: &str) -> Outcome<TcpStream> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    sockopt::set_socket_recv_buffer_size(&socket, 16 * 1024)?;
    rustix::net::connect(&socket, &address)?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(&get(path))?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

fn is_open(mut stream: &TcpStream) -> bool {
    let mut byte = [0];
    matches!(stream.read(&mut byte), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

// ---- sweep: every image of a seeded cache -------------------------------------------------------

/// `--port`, `--upstream`, `--images`, `--threads` (4): requests every tag once, and compares it.
fn sweep(options: &Options) -> Outcome {
    let (address, upstream) = (options.address()?, options.text("upstream")?);
    let images = options.number("images")?;
    let threads = options.number_or("threads", 4)?.max(1);
    let began = Instant::now();
    thread::scope(|scope| {
        let sweep_part = |part: u64| -> Outcome {
            let mut stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            for image in (part..images).step_by(usize::try_from(threads)?).map(Image) {
                let path =
                    format!("/v2/{upstream}/{}/manifests/{}", image.repository(), image.tag());
                exchange(&mut stream, &path, image.manifest().as_bytes())
                    .map_err(|error| format!("{path}: {error}"))?;
            }
            Ok(())
        };
        let parts: Vec<_> =
            (0..threads).map(|part| scope.spawn(move || sweep_part(part))).collect();
        parts.into_iter().try_for_each(|part| part.join().unwrap_or(Err("a panic".into())))
    })?;
    println!("images={images} wall_ms={:.0}", milliseconds(began.elapsed()));
    Ok(())
}

// ---- start: exec to first response --------------------------------------------------------------

/// `--port`, `--path`, `--expect FILE`, `--rounds`, `-- COMMAND…`: in each round, runs the command,
/// sends requests until there is a response, and stops the command.
fn start(options: &Options) -> Outcome {
    let (address, path) = (options.address()?, options.text("path")?);
    let expected = fs::read(options.text("expect")?)?;
    let (program, arguments) = options.command.split_first().ok_or("-- COMMAND is missing")?;
    let mut times = Vec::new();
    for _ in 0..options.number("rounds")? {
        let began = Instant::now();
        let mut child = Command::new(program).args(arguments).spawn()?;
        let answered = first_answer(address, path, &expected, began);
        times.push(began.elapsed());
        child.kill()?;
        child.wait()?;
        answered?;
    }
    times.sort();
    let (Some(first), Some(last)) = (times.first(), times.last()) else {
        return Err("--rounds is 0".into());
    };
    println!(
        "start_min={:.2} start_median={:.2} start_max={:.2}",
        milliseconds(*first),
        milliseconds(times[times.len() / 2]),
        milliseconds(*last)
    );
    Ok(())
}

fn first_answer(address: SocketAddr, path: &str, expected: &[u8], began: Instant) -> Outcome {
    loop {
        match TcpStream::connect(address) {
            Ok(mut stream) => {
                stream.set_read_timeout(Some(Duration::from_secs(10)))?;
                return exchange(&mut stream, path, expected);
            }
            Err(_) if began.elapsed() < Duration::from_secs(10) => thread::sleep(RETRY_PAUSE),
            Err(error) => return Err(format!("no response after 10 s: {error}").into()),
        }
    }
}

// ---- usage: CPU and memory of a process ---------------------------------------------------------

/// `--pid`: prints the CPU time since its start, including its children, and its memory.
fn usage(options: &Options) -> Outcome {
    let pid = options.text("pid")?;
    let (cpu, memory) = (cpu_time(pid)?, memory(pid)?);
    println!(
        "cpu_ms={} rss_kib={} anon_kib={}",
        cpu.as_millis(),
        memory.resident_kib,
        memory.anonymous_kib
    );
    Ok(())
}

fn cpu_time(pid: &str) -> Outcome<Duration> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let mut ticks = 0;
    for process in children.split_whitespace().chain([pid]) {
        let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
        // The name may contain spaces and parentheses; utime and stime are fields 12 and 13 after it.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        for field in fields.split_whitespace().skip(11).take(2) {
            ticks += field.parse::<u64>()?;
        }
    }
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

#[derive(Default, PartialEq, Eq, PartialOrd, Ord)]
struct Memory {
    resident_kib: u64,
    anonymous_kib: u64,
}

fn memory(pid: &str) -> Outcome<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| -> Outcome<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.ok_or_else(|| format!("no {name} in /proc/{pid}/status"))?.parse()?)
    };
    Ok(Memory { resident_kib: field("VmRSS:")?, anonymous_kib: field("RssAnon:")? })
}

// ---- seed: a cache with many images -------------------------------------------------------------

/// One image of a seeded cache. All images share a config and a layer, which exist.
#[derive(Clone, Copy)]
struct Image(u64);

const SHARED_CONFIG: &[u8] = b"{}";
const SHARED_LAYER: &[u8] = b"not a real layer";

impl Image {
    fn repository(self) -> String {
        format!("bench/r{}", self.0 / IMAGES_PER_REPOSITORY)
    }

    fn tag(self) -> String {
        format!("t{}", self.0 % IMAGES_PER_REPOSITORY)
    }

    /// About as long as the manifest of an image with six layers.
    fn manifest(self) -> String {
        let (config, layer) = (hex_digest(SHARED_CONFIG), hex_digest(SHARED_LAYER));
        let layer = format!(
            r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:{layer}","size":{}}}"#,
            SHARED_LAYER.len()
        );
        let layers = [&*layer; 6].join(",");
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST_TYPE}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:{config}","size":{}}},"layers":[{layers}],"annotations":{{"bench.image":"{}"}}}}"#,
            SHARED_CONFIG.len(),
            self.0
        )
    }
}

/// `--root DIR`, `--upstream`, `--images`: writes a cache directory in Larder's layout.
fn seed(options: &Options) -> Outcome {
    let root = Path::new(options.text("root")?);
    let upstream = options.text("upstream")?;
    let images = options.number("images")?;
    let blobs = root.join("blobs/sha256");
    for directory in [&blobs, &root.join("incoming"), &root.join("refs").join(upstream)] {
        fs::create_dir_all(directory)?;
    }
    for blob in [SHARED_CONFIG, SHARED_LAYER] {
        fs::write(blobs.join(hex_digest(blob)), blob)?;
    }
    let mut index = BufWriter::new(File::create(root.join("index.json"))?);
    write!(
        index,
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":["#
    )?;
    let now = unix_us() / 1_000_000;
    for image in (0..images).map(Image) {
        let (manifest, repository, tag) = (image.manifest(), image.repository(), image.tag());
        let (hex, size) = (hex_digest(manifest.as_bytes()), manifest.len());
        let refs = root.join("refs").join(upstream).join(&repository);
        let (tags, manifests) = (refs.join("_tags"), refs.join("_manifests/sha256"));
        if image.0 % IMAGES_PER_REPOSITORY == 0 {
            fs::create_dir_all(&tags)?;
            fs::create_dir_all(&manifests)?;
        }
        fs::write(blobs.join(&hex), manifest)?;
        let known = format!(r#""mediaType":"{MANIFEST_TYPE}","size":{size},"fetched":{now}"#);
        fs::write(manifests.join(&hex), format!("{{{known}}}"))?;
        let record = format!(r#"{{"digest":"sha256:{hex}",{known},"checked":{now}}}"#);
        fs::write(tags.join(&tag), record)?;
        let comma = if image.0 == 0 { "" } else { "," };
        write!(
            index,
            "{comma}\n{{\"mediaType\":\"{MANIFEST_TYPE}\",\"digest\":\"sha256:{hex}\",\"size\":{size},\
             \"annotations\":{{\"org.opencontainers.image.ref.name\":\"{upstream}/{repository}:{tag}\"}}}}"
        )?;
    }
    index.write_all(b"\n]}\n")?;
    index.flush()?;
    fs::write(root.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    // Also write the last manifest to a file, for comparison.
    let last = Image(images.saturating_sub(1));
    if let Ok(path) = options.text("last-manifest") {
        fs::write(path, last.manifest())?;
    }
    println!("images={images} last_repository={} last_tag={}", last.repository(), last.tag());
    Ok(())
}

fn hex_digest(bytes: &[u8]) -> String {
    let mut hex = String::with_capacity(64);
    for byte in Sha256::digest(bytes) {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

// ---- upstream: a registry with a link -----------------------------------------------------------

/// `--port`, `--blobs DIR` (files named by their hex digests), `--rate` in bytes per second of the
/// link (0: unlimited), `--head-delay-ms` (0) before the response head of a blob. `GET /stats` returns
/// what was sent. Runs until it is killed.
fn upstream(options: &Options) -> Outcome {
    let listener = TcpListener::bind(options.address()?)?;
    listener.set_nonblocking(true)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let data = epoll::EventData::new_u64(LISTENER);
    epoll::add(&epoll, &listener, data, epoll::EventFlags::IN)?;
    let mut upstream = Upstream {
        blobs: PathBuf::from(options.text("blobs")?),
        link: Link::new(options.number_or("rate", 0)?),
        head_delay: Duration::from_millis(options.number_or("head-delay-ms", 0)?),
        epoll,
        peers: HashMap::new(),
        next_peer: 0,
        stats: Stats::default(),
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

struct Upstream {
    blobs: PathBuf,
    link: Link,
    head_delay: Duration,
    epoll: OwnedFd,
    peers: HashMap<u64, Peer>,
    next_peer: u64,
    stats: Stats,
}

#[derive(Default)]
struct Stats {
    connections: u64,
    blob_requests: u64,
    body_bytes: u64,
    last_head_unix_us: u128,
}

struct Peer {
    stream: TcpStream,
    input: Vec<u8>,
    output: Option<Output>,
    /// The socket buffer is full; epoll reports when it is writable again.
    blocked: bool,
}

/// A response that is being sent.
struct Output {
    not_before: Instant,
    head: Vec<u8>,
    body: Option<(File, Range<u64>)>,
}

/// How many bytes may be sent now.
struct Link {
    bytes_per_second: u64,
    allowance: f64,
    filled: Instant,
}

impl Link {
    fn new(bytes_per_second: u64) -> Link {
        Link { bytes_per_second, allowance: 0.0, filled: Instant::now() }
    }

    fn refill(&mut self) {
        let now = Instant::now();
        let rate = self.bytes_per_second as f64;
        let burst = rate * (LINK_TICK * LINK_BURST_TICKS).as_secs_f64();
        let earned = rate * now.duration_since(self.filled).as_secs_f64();
        self.allowance = (self.allowance + earned).min(burst);
        self.filled = now;
    }

    fn grant(&self) -> usize {
        if self.bytes_per_second == 0 {
            return SLICE_BYTES;
        }
        // Never negative, and far below the maximum.
        self.allowance as usize
    }

    fn spend(&mut self, bytes: usize) {
        self.allowance = (self.allowance - bytes as f64).max(0.0);
    }
}

impl Upstream {
    /// How long there is nothing to do without socket events.
    fn patience(&self) -> Option<Duration> {
        let mut sending = self.peers.values().filter(|peer| peer.output.is_some() && !peer.blocked);
        match (sending.next(), self.link.bytes_per_second, self.head_delay) {
            (None, ..) => None,
            (Some(_), 0, Duration::ZERO) => Some(Duration::ZERO),
            (Some(_), ..) => Some(LINK_TICK),
        }
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
            let peer = Peer { stream, input: Vec::new(), output: None, blocked: false };
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
        let output = self.response(&String::from_utf8_lossy(&head));
        if let Some(peer) = self.peers.get_mut(&number) {
            peer.output = Some(output);
        }
        Ok(())
    }

    fn response(&mut self, head: &str) -> Output {
        let mut words = head.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let now = Instant::now();
        let blob = path.rsplit_once("/blobs/sha256:").map(|(_, hex)| hex);
        let blob = blob.filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let (status, body, length, not_before) = match blob.map(|hex| self.open(hex)) {
            Some(Ok((file, length))) if method == "GET" => {
                self.stats.blob_requests += 1;
                (200, Some((file, 0..length)), length, now + self.head_delay)
            }
            Some(Ok((_, length))) => (200, None, length, now),
            None if path == "/stats" => return self.stats.output(now),
            None if path == "/v2/" => (200, None, 0, now),
            Some(Err(_)) | None => (404, None, 0, now),
        };
        let head = format!(
            "HTTP/1.1 {status} .\r\nContent-Type: application/octet-stream\r\nContent-Length: {length}\r\n\r\n"
        );
        Output { not_before, head: head.into(), body }
    }

    fn open(&self, hex: &str) -> io::Result<(File, u64)> {
        let file = File::open(self.blobs.join(hex))?;
        let length = file.metadata()?.len();
        Ok((file, length))
    }

    /// Sends a slice to every peer that can receive one.
    fn send(&mut self) -> Outcome {
        self.link.refill();
        let mut gone = Vec::new();
        for (number, peer) in &mut self.peers {
            match peer.send(&mut self.link, &mut self.stats) {
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
    fn send(&mut self, link: &mut Link, stats: &mut Stats) -> Result<(), Errno> {
        let Some(output) = &mut self.output else { return Ok(()) };
        if self.blocked || output.not_before > Instant::now() {
            return Ok(());
        }
        if !output.head.is_empty() {
            // Before the write, after which the reader may already run.
            let now = unix_us();
            let sent = rustix::io::write(&self.stream, &output.head)?;
            output.head.drain(..sent);
            if output.body.is_some() {
                stats.last_head_unix_us = now;
            }
        }
        if let Some((file, rest)) = &mut output.body {
            let left = usize::try_from(rest.end - rest.start).unwrap_or(usize::MAX);
            let count = left.min(link.grant());
            if count > 0 {
                let sent =
                    rustix::fs::sendfile(&self.stream, &*file, Some(&mut rest.start), count)?;
                link.spend(sent);
                stats.body_bytes += sent as u64;
            }
            if !rest.is_empty() {
                return Ok(());
            }
        }
        self.output = None;
        Ok(())
    }
}

impl Stats {
    fn output(&self, now: Instant) -> Output {
        let body = format!(
            "connections={} blob_requests={} body_bytes={} last_head_unix_us={}\n",
            self.connections, self.blob_requests, self.body_bytes, self.last_head_unix_us
        );
        let head = format!("HTTP/1.1 200 .\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        Output { not_before: now, head: head.into(), body: None }
    }
}
