//! Draining and stopping a server.

use super::server::{Gate, SHORT, Source, few_workers, serve, serve_beside, text, wait_until};
use crate::http::successor;
use crate::http::{Context, Drain, DrainReport, Handler, Outcome, Request, Server, Settings, Step};
use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

struct Unused;

impl Handler for Unused {
    fn handle(&self, _: &Request, _: &Context<'_>) -> Step {
        text("x")
    }
}

/// Waits until the server does not listen any more.
fn await_refusal(address: SocketAddr) {
    wait_until(|| TcpStream::connect(address).is_err());
}

#[test]
fn a_drain_finishes_running_responses_and_closes_idle_connections() {
    let source = Source::new();
    let answered = Arc::clone(&source);
    let server = serve(few_workers(), move |request, _| match request.path() {
        "/tail" => answered.reply(0..6),
        _ => text("x"),
    });
    let address = server.address;
    let mut fresh = server.client();
    let mut idle = server.get("/");
    idle.response();
    let mut running = server.get("/tail");
    running.head();
    source.grow(b"abc");
    server.controller.drain();
    idle.assert_closed();
    fresh.assert_closed();
    await_refusal(address);
    source.grow(b"def");
    assert_eq!(running.bytes(6), b"abcdef");
    running.assert_closed();
    let report = server.join();
    assert_eq!(report.cut, 0);
    assert!(report.finished >= 3, "{report:?}");
}

#[test]
fn a_drain_that_serves_refuses_clients_only_when_no_response_is_running() {
    let source = Source::new();
    let answered = Arc::clone(&source);
    let settings = Settings { drain: Drain::Serve, ..few_workers() };
    let server = serve(settings, move |request, _| match request.path() {
        "/tail" => answered.reply(0..6),
        _ => text("x"),
    });
    let address = server.address;
    let mut idle = server.get("/");
    idle.response();
    let mut running = server.get("/tail");
    running.head();
    source.grow(b"abc");
    server.controller.drain();
    for _ in 0..20 {
        let mut new = server.get("/");
        let response = new.response();
        assert_eq!((response.status, response.header("connection")), (200, Some("close")));
        new.assert_closed();
    }
    idle.assert_closed();
    // No other server can take over the port, so the server is ready until it refuses clients.
    assert!(!server.controller.is_draining());
    source.grow(b"def");
    assert_eq!(running.bytes(6), b"abcdef");
    running.assert_closed();
    await_refusal(address);
    assert_eq!(server.join().cut, 0);
}

#[test]
fn a_handover_refuses_no_client_and_finishes_running_responses() {
    let source = Source::new();
    let answered = Arc::clone(&source);
    let settings = || Settings { drain: Drain::Handover, ..few_workers() };
    let old = serve(settings(), move |request, _| match request.path() {
        "/tail" => answered.reply(0..6),
        _ => text("old"),
    });
    let mut running = old.get("/tail");
    running.head();
    source.grow(b"abc");
    let new = serve_beside(old.address, settings(), |_, _| text("new"));
    // The kernel distributes connections, so one of these has the other server with near certainty.
    let bodies = |count| (0..count).map(|_| old.get("/").response().body).collect::<Vec<_>>();
    assert_eq!(bodies(64).iter().collect::<HashSet<_>>().len(), 2, "both servers answer");
    // Clients that have connected, but that nobody may have accepted yet.
    let mut waiting: Vec<_> = (0..64).map(|_| old.get("/")).collect();
    old.controller.drain();
    for client in &mut waiting {
        assert_eq!(client.response().status, 200);
    }
    wait_until(|| !successor::listens(&[old.address]));
    assert!(bodies(8).iter().all(|body| body == b"new"));
    source.grow(b"def");
    assert_eq!(running.bytes(6), b"abcdef");
    running.assert_closed();
    drop(waiting);
    assert_eq!(old.join().cut, 0);
    assert_eq!(new.get("/").response().body, b"new");
}

#[test]
fn a_handover_serves_until_another_server_listens() {
    let source = Source::new();
    let answered = Arc::clone(&source);
    let settings = || Settings { drain: Drain::Handover, ..few_workers() };
    let old = serve(settings(), move |request, _| match request.path() {
        "/tail" => answered.reply(0..6),
        _ => text("old"),
    });
    let mut running = old.get("/tail");
    running.head();
    source.grow(b"abc");
    old.controller.drain();
    for _ in 0..8 {
        assert_eq!(old.get("/").response().body, b"old");
    }
    let new = serve_beside(old.address, settings(), |_, _| text("new"));
    wait_until(|| !successor::listens(&[old.address]));
    assert!((0..8).all(|_| new.get("/").response().body == b"new"));
    source.grow(b"def");
    assert_eq!(running.bytes(6), b"abcdef");
    assert_eq!(old.join().cut, 0);
}

#[test]
fn servers_share_a_port_only_if_both_hand_over() {
    let settings = |drain| Settings { drain, ..few_workers() };
    for (first, second) in [(Drain::Refuse, Drain::Handover), (Drain::Handover, Drain::Serve)] {
        let running = serve(settings(first), |_, _| text("x"));
        let error = Server::bind(&[running.address], settings(second), None, Arc::new(Unused))
            .err()
            .unwrap()
            .to_string();
        assert!(error.starts_with(&format!("cannot listen on {}", running.address)), "{error}");
    }
}

#[test]
fn clients_that_keep_connecting_do_not_extend_a_drain() {
    let gate = Gate::new();
    let waited = Arc::clone(&gate);
    let settings = Settings { drain: Drain::Serve, drain_timeout: SHORT, ..few_workers() };
    let server =
        serve(settings, move |_, context| waited.wait(context, Duration::from_secs(1_000)));
    let _waiting = server.get("/wait");
    wait_until(|| gate.waiting() == 1);
    server.controller.drain();
    await_refusal(server.address);
    assert!(server.join().cut >= 1);
}

#[test]
fn an_unfinished_head_is_still_answered_with_connection_close() {
    let gate = Gate::new();
    let waited = Arc::clone(&gate);
    let server =
        serve(few_workers(), move |_, context| waited.wait(context, Duration::from_secs(1_000)));
    let mut waiting = server.get("/waiting");
    let mut unfinished = server.client();
    unfinished.send("GET /unfinished HTTP/1.1\r\n");
    wait_until(|| gate.waiting() == 1);
    server.await_idle_workers();
    server.controller.drain();
    await_refusal(server.address);
    unfinished.send("Host: h\r\n\r\n");
    wait_until(|| gate.waiting() == 2);
    gate.open();
    for client in [&mut waiting, &mut unfinished] {
        let response = client.response();
        assert_eq!((response.status, response.header("connection")), (200, Some("close")));
        client.assert_closed();
    }
    assert_eq!(server.join().cut, 0);
}

#[test]
fn the_drain_timeout_cuts_off_what_does_not_end() {
    let (gate, source) = (Gate::new(), Source::new());
    let (waited, answered) = (Arc::clone(&gate), Arc::clone(&source));
    let settings = Settings { drain_timeout: SHORT, ..few_workers() };
    let server = serve(settings, move |request, context| match request.path() {
        "/tail" => answered.reply(0..1_000),
        _ => waited.wait(context, Duration::from_secs(1_000)),
    });
    let mut endless = server.get("/tail");
    endless.head();
    source.grow(b"abc");
    assert_eq!(endless.bytes(3), b"abc");
    let mut waiting = server.get("/wait");
    let mut unfinished = server.client();
    unfinished.send("GET /unfinished HTTP/1.1\r\n");
    wait_until(|| gate.waiting() == 1);
    server.await_idle_workers();
    server.controller.drain();
    endless.assert_closed();
    waiting.assert_closed();
    unfinished.assert_closed();
    for _ in 0..2 {
        assert_eq!(server.ending().outcome, Outcome::Drained);
    }
    assert_eq!(server.join(), DrainReport { finished: 0, cut: 3 });
}

#[test]
fn stop_now_does_not_wait_for_responses() {
    let source = Source::new();
    let answered = Arc::clone(&source);
    let server = serve(few_workers(), move |_, _| answered.reply(0..1_000));
    let mut endless = server.get("/tail");
    endless.head();
    server.controller.stop_now();
    endless.assert_closed();
    assert_eq!(server.join().cut, 1);
}

#[test]
fn a_server_that_is_drained_before_it_runs_ends_at_once() {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server = Server::bind(&[address], few_workers(), None, Arc::new(Unused)).unwrap();
    let unused = Server::bind(&[address], few_workers(), None, Arc::new(Unused)).unwrap();
    let taken = Server::bind(&[unused.address()], few_workers(), None, Arc::new(Unused));
    let error = taken.err().unwrap().to_string();
    assert!(error.starts_with(&format!("cannot listen on {}", unused.address())), "{error}");
    drop(unused);
    server.controller().drain();
    assert_eq!(server.run(), DrainReport { finished: 0, cut: 0 });
}
