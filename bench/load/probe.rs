//! `probe`: the latency of one URL at a constant, low rate.

use std::fs;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::process::{Memory, cpu_time, memory};
use crate::response::{Expected, exchange};
use crate::{Options, Outcome, milliseconds, percentile};

/// `--port`, `--path`, `--expect FILE`, `--per-second`, `--seconds`, `--pid`: sends requests on one
/// connection. Prints latencies in milliseconds, and the CPU time and the highest memory of the process
/// in that time.
///
/// A request that had to wait for the previous response counts from the time when it was due, so a
/// server that stops for a second does not have a single slow response but as many as were due.
pub(crate) fn probe(options: &Options) -> Outcome {
    let (path, pid) = (options.text("path")?, options.text("pid")?);
    let expected = fs::read(options.text("expect")?)?;
    let per_second = options.number("per-second")?.max(1);
    let interval = Duration::from_secs(1) / u32::try_from(per_second)?;
    let mut stream = TcpStream::connect(options.address()?)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    exchange(&mut stream, path, Expected::Bytes(&expected))?;

    let (cpu_before, mut memory_max) = (cpu_time(pid)?, Memory::default());
    let mut latencies = Vec::new();
    let mut due = Instant::now();
    for number in 0..options.number("seconds")? * per_second {
        let early = due.saturating_duration_since(Instant::now());
        thread::sleep(early);
        let began = if early.is_zero() { due } else { Instant::now() };
        exchange(&mut stream, path, Expected::Bytes(&expected))?;
        latencies.push(began.elapsed());
        due += interval;
        if number % per_second == 0 {
            memory_max = memory_max.max(memory(pid)?);
        }
    }
    latencies.sort();
    println!(
        "requests={} p50={:.3} p99={:.3} max={:.3} cpu_ms={} rss_kib={} anon_kib={}",
        latencies.len(),
        milliseconds(percentile(&latencies, 0.5)),
        milliseconds(percentile(&latencies, 0.99)),
        milliseconds(percentile(&latencies, 1.0)),
        cpu_time(pid)?.saturating_sub(cpu_before).as_millis(),
        memory_max.resident_kib,
        memory_max.anonymous_kib
    );
    Ok(())
}
