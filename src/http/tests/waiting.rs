//! Handlers that wait, and handlers that panic.

use super::server::{Gate, SHORT, few_workers, run, serve, text, wait_until};
use crate::http::{
    CLIENT_CLOSED_REQUEST, Context, Ending, Handler, Outcome, Pending, Request, Settings, Step,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

const FOREVER: Duration = Duration::from_secs(1_000);

fn gated(gate: &Arc<Gate>, patience: Duration) -> super::server::Running {
    let gate = Arc::clone(gate);
    serve(few_workers(), move |request, context| match request.path() {
        "/ping" => text("pong"),
        _ => gate.wait(context, patience),
    })
}

#[test]
fn a_hundred_waiting_requests_hold_no_worker() {
    let gate = Gate::new();
    let server = gated(&gate, FOREVER);
    let mut clients: Vec<_> = (0..100).map(|number| server.get(&format!("/{number}"))).collect();
    wait_until(|| gate.waiting() == 100);
    server.assert_answers();
    gate.wake_all();
    server.assert_answers();
    gate.open();
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.response().text(), format!("GET /{number}"));
    }
}

#[test]
fn a_wake_up_before_the_connection_parks_is_not_lost() {
    let server = serve(few_workers(), |_, context| {
        let gate = Gate::new();
        let step = gate.wait(context, FOREVER);
        gate.open();
        step
    });
    let mut client = server.client();
    for _ in 0..200 {
        client.get("/x");
        assert_eq!(client.response().text(), "GET /x");
    }
}

#[test]
fn wake_ups_after_the_answer_are_harmless() {
    let gate = Gate::new();
    let server = gated(&gate, SHORT);
    let mut client = server.get("/1");
    assert_eq!(client.response().status, 504);
    for _ in 0..100 {
        gate.wake_all();
        client.get("/ping");
        assert_eq!(client.response().text(), "pong");
    }
}

#[test]
fn a_deadline_resumes_without_a_wake_up() {
    let server = gated(&Gate::new(), SHORT);
    assert_eq!(server.get("/").response().status, 504);
}

#[test]
fn a_client_that_leaves_before_its_answer_is_noticed() {
    let gate = Gate::new();
    let server = gated(&gate, FOREVER);
    let client = server.get("/");
    wait_until(|| gate.waiting() == 1);
    client.reset();
    let ending = server.ending();
    assert_eq!((ending.status, ending.outcome), (CLIENT_CLOSED_REQUEST, Outcome::ClientGone));
    gate.open();
    server.assert_answers();
}

#[test]
fn pipelined_requests_wait_for_a_waiting_one() {
    let gate = Gate::new();
    let server = gated(&gate, FOREVER);
    let mut client = server.get("/1");
    client.get("/ping");
    wait_until(|| gate.waiting() == 1);
    gate.open();
    assert_eq!(client.response().text(), "GET /1");
    assert_eq!(client.response().text(), "pong");
}

struct PanicsLater;

impl Pending for PanicsLater {
    fn resume(self: Box<Self>, _: &Request, _: &Context<'_>) -> Step {
        panic!("intended panic on resume");
    }

    fn deadline(&self) -> Instant {
        Instant::now()
    }
}

#[test]
fn a_panic_ends_one_request_and_no_worker() {
    let settings = Settings { workers: 1, ..few_workers() };
    let server = serve(settings, |request, _| match request.path() {
        "/now" => panic!("intended panic"),
        "/later" => Step::Wait(Box::new(PanicsLater)),
        _ => text("fine"),
    });
    for path in ["/now", "/later"] {
        let mut client = server.get(path);
        let response = client.response();
        assert_eq!((response.status, response.header("connection")), (500, Some("close")));
        client.assert_closed();
        let ending = server.ending_of(path);
        assert_eq!((ending.status, ending.outcome), (500, Outcome::Panicked));
        server.assert_answers();
    }
}

#[test]
fn a_panic_after_a_response_has_no_effect() {
    struct PanicsAfter;
    impl Handler for PanicsAfter {
        fn handle(&self, _: &Request, _: &Context<'_>) -> Step {
            text("fine")
        }
        fn finished(&self, _: &Request, _: &Ending) {
            panic!("intended panic after the response");
        }
    }
    let server = run(Settings { workers: 1, ..few_workers() }, Arc::new(PanicsAfter));
    let mut client = server.client();
    for _ in 0..3 {
        client.get("/");
        assert_eq!(client.response().text(), "fine");
    }
}
