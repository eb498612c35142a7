//! Bodies from files that are still growing.

use super::server::{Source, few_workers, serve, text, wait_until};
use crate::http::{Outcome, Request};
use std::sync::Arc;

fn answer_from(source: &Arc<Source>, length: u64) -> super::server::Running {
    let source = Arc::clone(source);
    serve(few_workers(), move |request: &Request, _| match request.path() {
        "/tail" => source.reply(0..length),
        "/end" => source.reply(length - 2..length),
        _ => text("small"),
    })
}

#[test]
fn the_head_is_sent_before_the_first_byte_of_the_body() {
    let source = Source::new();
    let server = answer_from(&source, 5);
    let mut client = server.get("/tail");
    assert_eq!(client.head().header("content-length"), Some("5"));
    source.grow(b"he");
    assert_eq!(client.bytes(2), b"he");
    source.grow(b"llo!!");
    assert_eq!(client.bytes(3), b"llo");
    client.get("/small");
    assert_eq!(client.response().text(), "small");
    assert_eq!(server.ending_of("/tail").outcome, Outcome::Complete);
}

#[test]
fn a_range_ahead_of_the_source_waits_for_it() {
    let source = Source::new();
    let server = answer_from(&source, 10);
    let mut client = server.get("/end");
    client.head();
    source.grow(b"0123");
    source.grow(b"456789");
    assert_eq!(client.bytes(2), b"89");
}

#[test]
fn a_failing_source_cuts_the_response_off_after_all_available_bytes() {
    let source = Source::new();
    let server = answer_from(&source, 1_000_000);
    let mut client = server.get("/tail");
    client.get("/never-answered");
    client.head();
    source.grow(&[7; 300_000]);
    source.fail("upstream is gone");
    assert_eq!(client.rest(), [7; 300_000]);
    let ending = server.ending();
    assert_eq!(ending.outcome, Outcome::Cut("upstream is gone".into()));
    assert_eq!((ending.status, ending.bytes_sent), (200, 300_000));
}

#[test]
fn a_source_that_fails_before_the_head_is_sent_is_a_bad_gateway() {
    let source = Source::new();
    source.fail("no route");
    let server = answer_from(&source, 10);
    let response = server.get("/tail").response();
    assert_eq!((response.status, response.text()), (502, "no route\n"));
    assert_eq!(server.ending().outcome, Outcome::Cut("no route".into()));
}

#[test]
fn a_tail_that_reports_missing_bytes_is_cut_off() {
    let source = Source::new();
    let server = answer_from(&source, 10);
    let mut client = server.get("/tail");
    client.head();
    source.grow(b"abc");
    source.lie(7);
    assert_eq!(client.rest(), b"abc");
    assert!(matches!(server.ending().outcome, Outcome::Cut(_)));
}

#[test]
fn a_panic_in_a_source_ends_only_one_response() {
    let source = Source::new();
    let server = answer_from(&source, 10);
    let mut client = server.get("/tail");
    client.head();
    source.grow(b"abc");
    assert_eq!(client.bytes(3), b"abc");
    source.panic();
    client.assert_closed();
    assert_eq!(server.ending().outcome, Outcome::Panicked);
    server.assert_answers();
}

#[test]
fn a_client_that_leaves_a_silent_source_is_noticed() {
    let source = Source::new();
    let server = answer_from(&source, 10);
    let mut client = server.get("/tail");
    client.head();
    wait_until(|| source.is_awaited());
    client.reset();
    assert_eq!(server.ending().outcome, Outcome::ClientGone);
}

#[test]
fn no_wake_up_is_lost_between_polling_and_parking() {
    const LENGTH: usize = 3_000;
    let source = Source::new();
    let server = answer_from(&source, LENGTH as u64);
    let mut clients: Vec<_> = (0..8).map(|_| server.get("/tail")).collect();
    let bytes: Vec<u8> = (0..LENGTH).map(|at| (at % 251) as u8).collect();
    let writer = {
        let (source, bytes) = (Arc::clone(&source), bytes.clone());
        std::thread::spawn(move || bytes.iter().for_each(|byte| source.grow(&[*byte])))
    };
    for client in &mut clients {
        assert!(client.response().body == bytes);
    }
    writer.join().unwrap();
}

#[test]
fn readers_that_keep_up_with_the_source_miss_no_byte() {
    let source = Source::new();
    let server = answer_from(&source, 400);
    let mut clients: Vec<_> = (0..3).map(|_| server.get("/tail")).collect();
    clients.iter_mut().for_each(|client| drop(client.head()));
    for at in 0..400_u32 {
        source.grow(&[at as u8]);
        for client in &mut clients {
            assert_eq!(client.bytes(1), [at as u8]);
        }
    }
}

#[test]
fn bytes_from_memory_follow_those_from_the_file() {
    let source = Source::new();
    let server = answer_from(&source, 400_006);
    let mut client = server.get("/tail");
    client.head();
    source.grow(b"abc");
    assert_eq!(client.bytes(3), b"abc");
    source.give(b"de");
    source.give(&[9; 400_000]);
    assert_eq!(client.bytes(2), b"de");
    assert_eq!(client.bytes(400_000), [9; 400_000]);
    source.give(b"f and more than the range has");
    assert_eq!(client.bytes(1), b"f");
    client.get("/small");
    assert_eq!(client.response().text(), "small");
}

#[test]
fn a_slow_client_gets_every_piece_once() {
    let source = Source::new();
    let server = answer_from(&source, 12_000_000);
    let mut client = server.get("/tail");
    for piece in 0..12 {
        source.give(&[piece; 1_000_000]);
    }
    client.head();
    for piece in 0..12 {
        assert!(client.bytes(1_000_000).iter().all(|byte| *byte == piece), "{piece}");
    }
}
