//! The parts of the benchmarks that `wrk` cannot do: many clients of one blob that measure times and
//! verify every byte, clients that pull complete images, slow readers and idle connections, a seeded
//! cache, the time from exec to the first response, CPU and memory of a process, and an upstream that
//! invents images and has a link of a given rate and latency.
//!
//! `load MODE --option value …` prints one line of `name=value`, and exits with status 1 if a check
//! failed. `run` lists the modes; each mode documents its options.
//!
//! One thread drives the clients with epoll, which leaves the cores to the measured server. They
//! compare the body with the original in memory instead of hashing it, which is as strict and takes a
//! tenth of the time, unless the time of a client that hashes is measured. This program knows nothing
//! about Larder but its URLs and the layout of its directory.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program whose result is a line")]

mod fetch;
mod images;
mod link;
mod probe;
mod process;
mod pull;
mod response;
mod seed;
mod slow_readers;
mod upstream;

use std::collections::HashMap;
use std::error::Error;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use sha2::{Digest, Sha256};

/// Socket events per system call.
const EVENTS_PER_WAIT: usize = 1024;
/// The longest wait for sockets before the deadline of the run is checked again.
const TICK: Duration = Duration::from_millis(100);
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
        "fetch" => fetch::fetch(&options),
        "pull" => pull::pull(&options),
        "probe" => probe::probe(&options),
        "slow-readers" => slow_readers::slow_readers(&options),
        "sweep" => seed::sweep(&options),
        "start" => process::start(&options),
        "usage" => process::usage(&options),
        "seed" => seed::seed(&options),
        "upstream" => upstream::upstream(&options),
        _ => {
            Err("modes: fetch, pull, probe, slow-readers, sweep, start, usage, seed, upstream"
                .into())
        }
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

    fn text_if_given(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
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

fn wait(epoll: &OwnedFd, events: &mut Vec<epoll::Event>, at_most: Option<Duration>) -> Outcome {
    events.clear();
    let timeout = at_most.map(Timespec::try_from).transpose()?;
    match epoll::wait(epoll, spare_capacity(events), timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn unix_us() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros())
}

/// Returns the value below which a share of the sorted values is.
fn percentile(sorted: &[Duration], share: f64) -> Duration {
    // Rounding up to an index within the values.
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

fn hex_digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    let mut hex = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}
