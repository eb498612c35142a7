//! `slow-readers`: slow readers and idle connections.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::process::{Memory, memory};
use crate::response::{Expected, Response, get};
use crate::{Options, Outcome};

/// `--port`, `--path`, `--expect FILE`, `--streams`, `--idle`, `--seconds`, `--pid`: `--streams`
/// readers read 8 KiB per second, `--idle` connections are idle after one response. Prints the memory
/// of the process.
pub(crate) fn slow_readers(options: &Options) -> Outcome {
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
                Ok(read) => {
                    is_over |= response.take(&buffer[..read], Expected::Bytes(&expected))?
                }
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
