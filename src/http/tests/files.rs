//! Bodies from memory and from complete files.

use super::server::{few_workers, serve};
use crate::http::{Body, Outcome, Reply, Step};
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

/// Bytes that differ at every offset, so that misplaced ones are noticed.
fn pattern(length: usize) -> Vec<u8> {
    (0..length as u32)
        .flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes())
        .take(length)
        .collect()
}

fn file_with(bytes: &[u8]) -> Arc<File> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Arc::new(file)
}

fn part(file: &Arc<File>, range: Range<u64>) -> Step {
    Step::Reply(Reply::new(200, Body::File { file: file.clone(), range }))
}

#[test]
fn a_large_body_from_memory_arrives_completely() {
    let bytes: Arc<[u8]> = pattern(9_000_001).into();
    let sent = Arc::clone(&bytes);
    let server = serve(few_workers(), move |_, _| {
        Step::Reply(Reply::new(200, Body::Bytes(Arc::clone(&sent))).note("cache", "hit"))
    });
    let mut client = server.get("/");
    assert!(client.response().body == bytes[..]);
    let ending = server.ending();
    assert_eq!((ending.status, ending.bytes_sent), (200, 9_000_001));
    assert_eq!(
        (ending.outcome, &ending.notes[..]),
        (Outcome::Complete, &[("cache", "hit".into())][..])
    );
}

#[test]
fn any_range_of_a_file_arrives_completely_and_the_connection_is_kept() {
    let bytes = pattern(5_000_000);
    let file = file_with(&bytes);
    let server = serve(few_workers(), move |request, _| {
        let (start, end) = request.query().unwrap().split_once('-').unwrap();
        part(&file, start.parse().unwrap()..end.parse().unwrap())
    });
    let mut client = server.client();
    for range in [0..5_000_000, 0..0, 17..18, 4_999_999..5_000_000, 1_048_575..3_145_729] {
        client.get(&format!("/?{}-{}", range.start, range.end));
        assert!(client.response().body == bytes[range.clone()], "{range:?}");
    }
    client.send("HEAD /?1-4000000 HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(client.head().header("content-length"), Some("3999999"));
    client.get("/?0-4");
    assert_eq!(client.response().body, bytes[..4]);
}

#[test]
fn one_file_serves_many_clients_at_once() {
    let bytes = pattern(3_000_000);
    let file = file_with(&bytes);
    let server = serve(few_workers(), move |_, _| part(&file, 0..3_000_000));
    let mut clients: Vec<_> = (0..12).map(|_| server.get("/")).collect();
    for client in &mut clients {
        assert!(client.response().body == bytes);
    }
}

#[test]
fn a_file_that_is_too_short_is_cut_off_and_not_padded() {
    let file = file_with(b"short");
    let server = serve(few_workers(), move |_, _| part(&file, 0..100));
    let mut client = server.get("/");
    assert_eq!(client.head().header("content-length"), Some("100"));
    assert_eq!(client.rest(), b"short");
    let ending = server.ending();
    assert_eq!(ending.bytes_sent, 5);
    assert!(matches!(ending.outcome, Outcome::Cut(_)), "{ending:?}");
}

#[test]
fn a_file_without_sendfile_is_copied() {
    // The kernel generates this file when it is read, and does not support `sendfile` for it.
    let expected = std::fs::read("/proc/version").unwrap();
    let length = expected.len() as u64;
    let file = Arc::new(File::open("/proc/version").unwrap());
    let server = serve(few_workers(), move |_, _| part(&file, 0..length));
    let mut client = server.get("/");
    assert_eq!(client.response().body, expected);
}

#[test]
fn a_file_that_cannot_be_read_is_cut_off() {
    let file = Arc::new(File::open("/").unwrap());
    let server = serve(few_workers(), move |_, _| part(&file, 0..10));
    let mut client = server.get("/");
    // The head is sent before the file is read.
    client.head();
    assert_eq!(client.rest(), b"");
    assert!(matches!(server.ending().outcome, Outcome::Cut(_)));
}
