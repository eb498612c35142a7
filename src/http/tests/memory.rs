//! Clients that do not read their responses.

use super::server::{few_workers, serve, text};
use crate::http::{Body, Reply, Settings, Step};

#[test]
fn clients_that_do_not_read_get_503_beyond_the_memory_for_responses() {
    const BODY_BYTES: usize = 4 * 1024 * 1024;
    const MEMORY: u64 = 16 * 1024 * 1024;
    let settings = Settings { response_memory: MEMORY, ..few_workers() };
    let server = serve(settings, |request, _| match request.path() {
        "/large" => Step::Reply(Reply::new(200, Body::Bytes(vec![b'x'; BODY_BYTES].into()))),
        _ => text("small"),
    });
    let mut slow: Vec<_> = (0..64).map(|_| server.get("/large")).collect();
    let statuses: Vec<u16> = slow.iter_mut().map(|client| client.head().status).collect();
    assert!(statuses.contains(&200) && statuses.contains(&503), "{statuses:?}");
    server.await_idle_workers();
    assert!(server.controller.response_memory() <= MEMORY);
    server.assert_answers();
    drop(slow);
    super::server::wait_until(|| server.controller.response_memory() == 0);
    assert_eq!(server.get("/large").response().status, 200, "the memory is free again");
}
