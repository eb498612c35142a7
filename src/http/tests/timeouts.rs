//! Clients that are too slow.

use super::server::{SHORT, few_workers, serve, text};
use crate::http::{Body, Outcome, Reply, Settings, Step};
use std::fs::File;
use std::sync::Arc;

/// A sparse file of zeros that is larger than any socket buffer.
pub(super) fn huge_file() -> (Arc<File>, u64) {
    let length = 256 * 1024 * 1024;
    let file = tempfile::tempfile().unwrap();
    file.set_len(length).unwrap();
    (Arc::new(file), length)
}

#[test]
fn an_unfinished_head_gets_408_and_is_closed() {
    let settings = Settings { head_timeout: SHORT, ..few_workers() };
    let server = serve(settings, |_, _| text("x"));
    let mut client = server.client();
    client.send("GET / HTTP/1.1\r\nHo");
    assert_eq!(client.response().status, 408);
    client.finish();
    client.assert_closed();
}

#[test]
fn slow_bytes_do_not_extend_the_time_for_a_head() {
    let settings = Settings { head_timeout: SHORT, ..few_workers() };
    let server = serve(settings, |_, _| text("x"));
    let mut client = server.get("/1");
    assert_eq!(client.response().text(), "x");
    client.send("GET / HTTP/1.1\r\nX: ");
    while !client.has_bytes() {
        client.send("y");
        // Slows the client down, so that the timeout passes before the limit on bytes is reached.
        server.assert_answers();
    }
    assert_eq!(client.response().status, 408);
}

#[test]
fn an_unfinished_body_gets_408_and_is_closed() {
    let settings = Settings { head_timeout: SHORT, ..few_workers() };
    let server = serve(settings, |_, _| text("x"));
    let mut client = server.client();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc");
    assert_eq!(client.response().status, 408);
    client.finish();
    client.assert_closed();
}

#[test]
fn idle_connections_are_closed_without_an_answer() {
    let settings = Settings { idle_timeout: 3 * SHORT, ..few_workers() };
    let server = serve(settings, |_, _| text("x"));
    let mut fresh = server.client();
    let mut used = server.get("/");
    assert_eq!(used.response().text(), "x");
    used.assert_closed();
    fresh.assert_closed();
}

#[test]
fn a_client_that_reads_nothing_is_closed() {
    let settings = Settings { write_stall_timeout: SHORT, ..few_workers() };
    let (file, length) = huge_file();
    let server = serve(settings, move |_, _| {
        Step::Reply(Reply::new(200, Body::File { file: file.clone(), range: 0..length }))
    });
    let mut client = server.get("/");
    let ending = server.ending();
    assert_eq!(ending.outcome, Outcome::WriteStalled);
    assert!(ending.bytes_sent < length);
    client.assert_gone();
}

#[test]
fn a_lingering_connection_is_closed_even_if_the_client_stays() {
    let server = serve(few_workers(), |_, _| text("x"));
    let mut client = server.client();
    client.send("nonsense\r\n\r\n");
    assert_eq!(client.response().status, 400);
    client.assert_closed();
    super::server::wait_until(|| server.controller.connections() == 0);
    drop(client);
}
