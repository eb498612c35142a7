//! More clients than the server has capacity for.

use super::server::{Gate, few_workers, serve, text, wait_until};
use super::timeouts::huge_file;
use crate::http::{Body, Outcome, Reply, Settings, Step};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

#[test]
fn stuck_readers_hold_no_worker() {
    let (file, length) = huge_file();
    let server = serve(few_workers(), move |request, _| match request.path() {
        "/huge" => {
            Step::Reply(Reply::new(200, Body::File { file: file.clone(), range: 0..length }))
        }
        _ => text("small"),
    });
    let mut stuck: Vec<_> = (0..40).map(|_| server.get("/huge")).collect();
    for client in &mut stuck {
        client.head();
    }
    server.await_idle_workers();
    server.assert_answers();
    for client in stuck {
        client.reset();
        assert_eq!(server.ending_of("/huge").outcome, Outcome::ClientGone);
    }
}

#[test]
fn a_full_server_closes_the_longest_idle_connection() {
    let settings = Settings { max_connections: 3, ..few_workers() };
    let server = serve(settings, |_, _| text("x"));
    // A connection becomes idle when its worker has parked it, a little after the client has its response.
    let mut idle = [server.client(), server.client(), server.client()];
    for number in [0, 1, 2, 0] {
        idle[number].get("/");
        assert_eq!(idle[number].response().status, 200);
        server.await_idle_workers();
    }
    let mut fourth = server.get("/4");
    assert_eq!(fourth.response().status, 200);
    idle[1].assert_closed();
    for number in [0, 2] {
        idle[number].get("/");
        assert_eq!(idle[number].response().status, 200);
    }
}

#[test]
fn a_full_server_without_idle_connections_answers_503() {
    let gate = Gate::new();
    let settings = Settings { max_connections: 2, ..few_workers() };
    let waited = Arc::clone(&gate);
    let server =
        serve(settings, move |_, context| waited.wait(context, Duration::from_secs(1_000)));
    let mut busy = [server.get("/1"), server.get("/2")];
    wait_until(|| gate.waiting() == 2);
    let mut surplus = server.get("/3");
    let response = surplus.response();
    assert_eq!((response.status, response.header("connection")), (503, Some("close")));
    assert!(response.header("retry-after").is_some());
    surplus.finish();
    surplus.assert_closed();
    let mut silent = server.client();
    assert_eq!(silent.response().status, 503);
    gate.open();
    for client in &mut busy {
        assert_eq!(client.response().status, 200);
    }
}

/// Connects from this loopback address.
fn client_from(source: [u8; 4], server: SocketAddr) -> super::client::Client {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::from((source, 0))).unwrap();
    connect(&socket, &server).unwrap();
    super::client::Client::over(socket.into())
}

#[test]
fn unfinished_heads_are_closed_for_a_new_client_at_the_same_address() {
    let settings = Settings { max_connections: 20, ..few_workers() };
    let server = serve(settings, |_, _| text("x"));
    let mut unfinished: Vec<_> = (0..60)
        .map(|_| {
            let mut client = server.client();
            // The server may have closed it already.
            let _ = client.try_send("GET / HTTP/1.1\r\n");
            client
        })
        .collect();
    for _ in 0..50 {
        assert_eq!(server.get("/").response().status, 200);
    }
    unfinished[0].assert_lost();
    // Surplus clients count until they are served or refused.
    while server.controller.connections() > 20 {
        std::thread::yield_now();
    }
}

#[test]
fn the_address_with_the_most_connections_loses_them_first() {
    let settings = Settings { max_connections: 20, ..few_workers() };
    let server = serve(settings, |_, _| text("x"));
    // Older than all others, but few.
    let mut quiet: Vec<_> = (0..2)
        .map(|_| {
            let mut client = client_from([127, 0, 0, 2], server.address);
            client.get("/");
            assert_eq!(client.response().status, 200);
            client
        })
        .collect();
    server.await_idle_workers();
    let _greedy: Vec<_> = (0..60)
        .map(|_| {
            let mut client = client_from([127, 0, 0, 3], server.address);
            let _ = client.try_send("GET / HTTP/1.1\r\n");
            client
        })
        .collect();
    // These are fewer than the greedy address has places, so that one always has the most of them, however late the
    // server notices that these clients have left.
    for number in 4..16 {
        let mut client = client_from([127, 0, 0, number], server.address);
        client.get("/");
        assert_eq!(client.response().status, 200, "a new client gets a place");
    }
    for client in &mut quiet {
        client.get("/");
        assert_eq!(client.response().status, 200, "idle connections of other addresses stay open");
    }
}

#[test]
fn a_running_response_is_never_cut_off_for_a_new_client() {
    let (file, length) = huge_file();
    let settings = Settings { max_connections: 20, ..few_workers() };
    let server = serve(settings, move |request, _| match request.path() {
        "/huge" => {
            Step::Reply(Reply::new(200, Body::File { file: file.clone(), range: 0..length }))
        }
        _ => text("small"),
    });
    let mut reading: Vec<_> = (0..10).map(|_| server.get("/huge")).collect();
    for client in &mut reading {
        assert_eq!(client.head().status, 200);
    }
    for _ in 0..100 {
        let mut client = server.client();
        let _ = client.try_send("GET / HTTP/1.1\r\n");
    }
    for number in 4..40 {
        let mut client = client_from([127, 0, 0, number], server.address);
        client.get("/");
        assert_eq!(client.response().status, 200);
    }
    for client in &mut reading {
        assert_eq!(client.bytes(4 * 1024 * 1024).len(), 4 * 1024 * 1024);
    }
}

/// The environment variable that makes the test below run the server instead.
const STARVED: &str = "LARDER_TEST_STARVED_SERVER";

/// The parent process is the client of a child process that may open only a few file descriptors.
#[test]
fn a_server_without_file_descriptors_waits_and_recovers() {
    if std::env::var_os(STARVED).is_some() {
        return starved_server();
    }
    let test = "a_server_without_file_descriptors_waits_and_recovers";
    let name = std::thread::current().name().map_or(test.to_owned(), str::to_owned);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &name, "--nocapture", "--test-threads=1"])
        .env(STARVED, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let address: SocketAddr =
        lines.find_map(|line| line.strip_prefix("address ")?.parse().ok()).unwrap();

    // Unfinished heads use up all file descriptors, and are closed for a client with a request.
    let heads: Vec<_> = (0..100)
        .map(|_| {
            let mut client = super::client::Client::connect(address);
            client.send("GET / HTTP/1.1\r\n");
            client
        })
        .collect();
    let mut first = super::client::Client::connect(address);
    first.get("/");
    assert_eq!(first.response().status, 200);
    drop((heads, first));

    // Requests that wait for their answer are not closed, so these use up all file descriptors for good.
    let greedy: Vec<_> = (0..100)
        .map(|_| {
            let mut client = super::client::Client::connect(address);
            client.get("/wait");
            client
        })
        .collect();
    let mut patient = super::client::Client::connect(address);
    patient.get("/");
    let mut is_short = false;
    while !is_short {
        is_short = lines.next().unwrap() == "log ERROR";
    }
    greedy.into_iter().for_each(super::client::Client::reset);
    assert_eq!(patient.response().status, 200);
    child.stdin.take().unwrap().write_all(b"end\n").unwrap();
    let rest: Vec<String> = lines.filter(|line| line.starts_with("log ")).collect();
    assert!(rest.len() < 20, "a shortage is logged once: {rest:?}");
    assert!(child.wait().unwrap().success());
}

fn starved_server() {
    struct ToParent;
    impl log::Log for ToParent {
        fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
            metadata.level() <= log::Level::Info
        }
        fn log(&self, record: &log::Record<'_>) {
            if self.enabled(record.metadata()) {
                println!("log {}", record.level());
            }
        }
        fn flush(&self) {}
    }
    log::set_logger(&ToParent).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    let limit = rustix::process::Resource::Nofile;
    let few = rustix::process::Rlimit { current: Some(40), maximum: Some(40) };
    rustix::process::setrlimit(limit, few).unwrap();
    let gate = Gate::new();
    let server = serve(few_workers(), move |request, context| match request.path() {
        "/wait" => gate.wait(context, Duration::from_secs(1_000)),
        _ => text("x"),
    });
    println!("\naddress {}", server.address);
    std::io::stdin().read_line(&mut String::new()).unwrap();
}
