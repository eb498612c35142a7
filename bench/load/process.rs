//! `usage`: CPU and memory of a process. `start`: the time from exec to the first response.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::response::{Expected, Response, exchange};
use crate::{Options, Outcome, milliseconds};

/// `USER_HZ`, the unit of `/proc/<pid>/stat`, on every architecture that Larder supports.
const TICKS_PER_SECOND: u64 = 100;
/// The pause between attempts to connect to a server that is starting.
const RETRY_PAUSE: Duration = Duration::from_micros(200);
/// In seconds, the longest pause between two parts of a response.
const READ_LIMIT: u64 = 30;

/// `--pid`: prints the CPU time since its start, including its children, and its memory.
pub(crate) fn usage(options: &Options) -> Outcome {
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

pub(crate) fn cpu_time(pid: &str) -> Outcome<Duration> {
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
pub(crate) struct Memory {
    pub(crate) resident_kib: u64,
    pub(crate) anonymous_kib: u64,
}

pub(crate) fn memory(pid: &str) -> Outcome<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| -> Outcome<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.ok_or_else(|| format!("no {name} in /proc/{pid}/status"))?.parse()?)
    };
    Ok(Memory { resident_kib: field("VmRSS:")?, anonymous_kib: field("RssAnon:")? })
}

/// `--port`, `--path`, `--expect FILE`, `--rounds`, `-- COMMAND…`: in each round, runs the command,
/// sends requests until there is a response, and kills the command after the last byte. Prints the
/// times from exec to the first (`first_…`) and the last byte of the body (`start_…`).
pub(crate) fn start(options: &Options) -> Outcome {
    let (address, path) = (options.address()?, options.text("path")?);
    let expected = fs::read(options.text("expect")?)?;
    let (program, arguments) = options.command.split_first().ok_or("-- COMMAND is missing")?;
    let (mut firsts, mut lasts) = (Vec::new(), Vec::new());
    for _ in 0..options.number("rounds")? {
        let began = Instant::now();
        let mut child = Command::new(program).args(arguments).spawn()?;
        let answered = first_answer(address, path, Expected::Bytes(&expected), began);
        lasts.push(began.elapsed());
        child.kill()?;
        child.wait()?;
        firsts.extend(answered?.first_byte.map(|first| first - began));
    }
    firsts.sort();
    lasts.sort();
    let (Some(first_max), Some(start_min), Some(start_max)) =
        (firsts.last(), lasts.first(), lasts.last())
    else {
        return Err("--rounds is 0".into());
    };
    println!(
        "first_median={:.2} first_max={:.2} start_min={:.2} start_median={:.2} start_max={:.2}",
        milliseconds(firsts[firsts.len() / 2]),
        milliseconds(*first_max),
        milliseconds(*start_min),
        milliseconds(lasts[lasts.len() / 2]),
        milliseconds(*start_max)
    );
    Ok(())
}

fn first_answer(
    address: SocketAddr,
    path: &str,
    expected: Expected,
    began: Instant,
) -> Outcome<Response> {
    loop {
        match TcpStream::connect(address) {
            Ok(mut stream) => {
                stream.set_read_timeout(Some(Duration::from_secs(READ_LIMIT)))?;
                return exchange(&mut stream, path, expected);
            }
            Err(_) if began.elapsed() < Duration::from_secs(10) => thread::sleep(RETRY_PAUSE),
            Err(error) => return Err(format!("no response after 10 s: {error}").into()),
        }
    }
}
