//! `fetch`: many clients of one URL.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, sockopt};

use crate::process::cpu_time;
use crate::response::{BLOCK_BYTES, Expected, Plan, READ_BYTES, Response, get};
use crate::{EVENTS_PER_WAIT, Options, Outcome, TICK, hex_digest, milliseconds, unix_us, wait};

/// `--port`, `--path`, `--expect FILE`, `--clients` (1), `--repeat` (1: requests per connection),
/// `--limit` seconds (60), `--pid` (a process whose CPU time is printed, including its children).
///
/// `--compare-every N` (1): each client compares one of N blocks and discards the others without
/// copying them. Each compares a different block, so N clients together compare the complete body, and
/// each checks its length. Otherwise fifty clients on the same machine would dominate the measurement.
///
/// `--verify hash` (`compare`): each client hashes the body with SHA-256, as container clients do.
pub(crate) fn fetch(options: &Options) -> Outcome {
    let (address, request) = (options.address()?, get(options.text("path")?));
    let body = fs::read(options.text("expect")?)?;
    let hex;
    let expected = match options.text_if_given("verify") {
        None | Some("compare") => Expected::Bytes(&body),
        Some("hash") => {
            hex = hex_digest(&body);
            Expected::Digest { length: body.len(), hex: &hex }
        }
        Some(other) => return Err(format!("--verify {other}: expected compare or hash").into()),
    };
    let limit = Duration::from_secs(options.number_or("limit", 60)?);
    let repeat = options.number_or("repeat", 1)?;
    let compare_every = usize::try_from(options.number_or("compare-every", 1)?.max(1))?;
    let pid = options.text_if_given("pid");
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
    let mut line = report(&clients, wall, load.expected.length());
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
struct Load<'a> {
    request: Vec<u8>,
    expected: Expected<'a>,
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
        let body_bytes = load.expected.length();
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
            Plan::Compare(_) => self.response.take(&buffer[..read], load.expected),
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
