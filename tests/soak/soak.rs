//! Soak test: the release binary serves for hours while images, clients, faults, commands and kills come and go, and
//! everything that can be checked is checked.
//!
//! `cargo run --example soak -- --larder target/release/larder --minutes 60 [--seed N] [--keep]`. A run consists of
//! rounds: a **storm**, in which everything fails now and then; a **calm**, in which nothing fails and every count must
//! be exact; and a **quiet**, in which the server must return to its base level. `--plan` prints the events of a seed.
//! With `--no-kills`, one process serves all the time. `--sabotage NAME` breaks something on purpose, and succeeds if the checks find it.
//!
//! | file | what it is |
//! | --- | --- |
//! | `world.rs` | the truth: what the registry has and had |
//! | `registry.rs`, `faults.rs` | the registry, and how it fails |
//! | `server.rs` | the server under test as a process |
//! | `clients.rs`, `wire.rs` | the clients |
//! | `judge.rs` | checks of single responses |
//! | `schedule.rs`, `actors.rs` | what happens in a storm |
//! | `accounts.rs`, `resources.rs`, `rounds.rs` | checks of counts, resources and disk after each storm |
//! | `sabotage.rs` | proofs that the checks can fail |
//! | `context.rs`, `report.rs`, `random.rs` | shared state, results, reproducible randomness |

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program whose result is printed")]
// `pub` means "for the other files of this program".
#![allow(unreachable_pub, missing_docs)]

mod accounts;
mod actors;
mod clients;
mod context;
mod faults;
mod judge;
mod random;
mod registry;
mod report;
mod resources;
mod rounds;
mod sabotage;
mod schedule;
mod server;
mod wire;
mod world;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use context::Soak;
use faults::Faults;
use registry::Registry;
use sabotage::Sabotage;
use schedule::Actor;
use server::{Server, Site};
use world::World;

/// How many clients are at work, besides the one for pinned images.
const CLIENTS: usize = 10;
/// Ports for servers: below those that the kernel gives to outgoing connections, so that they stay free while a server
/// is stopped.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

struct Options {
    larder: PathBuf,
    length: Duration,
    seed: u64,
    keeps_files: bool,
    is_plan: bool,
    /// Whether one process serves from the beginning to the end, to look for leaks.
    is_without_kills: bool,
    sabotage: Option<Sabotage>,
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("soak: {error}");
            return ExitCode::from(2);
        }
    };
    if options.is_plan {
        print_plan(&options);
        return ExitCode::SUCCESS;
    }
    match run(&options) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> Result<Options, String> {
    // Seconds since 1970 differ between runs.
    let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let mut options = Options {
        larder: PathBuf::from("target/release/larder"),
        length: Duration::from_secs(3600),
        seed: now,
        keeps_files: false,
        is_plan: false,
        is_without_kills: false,
        sabotage: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
        match argument.as_str() {
            "--larder" => options.larder = value()?.into(),
            "--minutes" => options.length = Duration::from_secs(60 * number(value()?)?),
            "--seed" => options.seed = number(value()?)?,
            "--keep" => options.keeps_files = true,
            "--no-kills" => options.is_without_kills = true,
            "--plan" => options.is_plan = true,
            "--sabotage" => options.sabotage = Some(value()?.parse()?),
            _ => return Err(format!("unknown option {argument}")),
        }
    }
    Ok(options)
}

/// Prints the events of the first rounds. Whether later ones have kills depends on how long the earlier ones took.
fn print_plan(options: &Options) {
    for number in 0..8 {
        let round = rounds::round(number, Duration::ZERO, options.length, options.sabotage);
        println!("round {number}: storm of {:?}, kills: {}", round.storm, round.has_kills);
        for actor in [Actor::Publisher, Actor::Chaos, Actor::Operator] {
            let events =
                schedule::events(options.seed, number, actor, round.storm, round.has_kills);
            events
                .iter()
                .for_each(|(wait, event)| println!("  {actor:?} after {wait:?}: {event:?}"));
        }
    }
}

fn run(options: &Options) -> Result<ExitCode, Box<dyn std::error::Error>> {
    println!(
        "seed {}, {} minutes, {}",
        options.seed,
        options.length.as_secs() / 60,
        options.larder.display()
    );
    let directory =
        tempfile::Builder::new().prefix("larder-soak-").disable_cleanup(true).tempdir()?;
    let path = directory.path().to_owned();
    println!("files: {}", path.display());
    let (world, faults) = (Arc::new(World::default()), Arc::new(Faults::new(options.seed)));
    let [address, management, registry] = free_addresses()?;
    let larder = options.larder.canonicalize()?;
    let site = Site { larder, directory: path.clone(), address, management, registry };
    site.prepare()?;
    let registry = Registry::start(registry, Arc::clone(&world), faults)?;
    let soak = Soak::new(options.seed, world, registry, Server::new(site));
    actors::populate(&soak);
    thread::scope(|scope| {
        let soak = &soak;
        let clients: Vec<_> =
            (0..CLIENTS).map(|number| scope.spawn(move || clients::run(soak, number))).collect();
        let guard = scope.spawn(move || clients::guard(soak));
        let watch = scope.spawn(move || rounds::watch(soak));
        rounds::run(soak, options.length, options.is_without_kills, options.sabotage);
        soak.end();
        for thread in clients.into_iter().chain([guard, watch]) {
            if thread.join().is_err() {
                soak.finding("test", "a thread of this test panicked", "");
            }
        }
    });
    soak.registry.stop();
    rounds::print_report(&soak);
    if soak.findings.is_empty() && !options.keeps_files {
        std::fs::remove_dir_all(&path)?;
    }
    Ok(sabotage::verdict(&soak, options.sabotage))
}

/// Three addresses with free ports.
fn free_addresses() -> Result<[SocketAddr; 3], String> {
    // Runs at the same time have different process IDs, and so other ports.
    let offset = u16::try_from(std::process::id() % 3_900 * 3).unwrap_or_default();
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let ports = PORTS.skip(offset.into()).filter(free).take(3);
    let addresses: Vec<_> =
        ports.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))).collect();
    addresses.try_into().map_err(|_| "no free ports".to_owned())
}
