//! The id of a request, by which logs of several programs are compared: `X-Request-Id`.
//!
//! A client, or a proxy in front of the server, may choose it. Otherwise the server does.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// The name of the header, in requests and in responses.
pub(super) const HEADER: &str = "X-Request-Id";
/// The maximum length of a client's id, in bytes. A UUID has 36, an id of an AWS load balancer about 70.
const CLIENT_ID_BYTES_MAX: usize = 128;
/// A generated id begins with this many random hexadecimal digits, which differ between processes.
const PREFIX_DIGITS: usize = 12;

/// Generates ids, without a system call or an allocation for each.
#[derive(Debug)]
pub(super) struct RequestIds {
    prefix: u64,
    next: AtomicU64,
}

impl RequestIds {
    pub(super) fn new() -> Self {
        // `RandomState` is seeded with random numbers of the operating system.
        let random = RandomState::new().hash_one(std::process::id());
        Self { prefix: random >> (u64::BITS as usize - 4 * PREFIX_DIGITS), next: AtomicU64::new(1) }
    }

    pub(super) fn next(&self) -> GeneratedId {
        GeneratedId { prefix: self.prefix, number: self.next.fetch_add(1, Ordering::Relaxed) }
    }
}

/// An id that this server has generated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct GeneratedId {
    prefix: u64,
    number: u64,
}

/// The id of a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestId<'a>(Origin<'a>);

#[derive(Clone, Copy, Debug)]
enum Origin<'a> {
    Client(&'a str),
    Server(GeneratedId),
}

impl<'a> RequestId<'a> {
    /// The id that the client has sent, if it is acceptable, or else the one that was generated for the request.
    pub(super) fn new(sent: Option<&'a str>, generated: GeneratedId) -> Self {
        match sent.filter(|id| is_acceptable(id)) {
            Some(id) => Self(Origin::Client(id)),
            None => Self(Origin::Server(generated)),
        }
    }
}

impl fmt::Display for RequestId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Origin::Client(id) => f.write_str(id),
            Origin::Server(id) => write!(f, "{:0PREFIX_DIGITS$x}-{:x}", id.prefix, id.number),
        }
    }
}

/// Whether a client's id is used. Other texts could be taken for several header or log lines, or fill the log.
fn is_acceptable(id: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=CLIENT_ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acceptable_ids_of_clients_are_kept() {
        let generated = GeneratedId { prefix: 0xa1, number: 0xb2 };
        for id in ["1", "5f6a.B_c-D", &"x".repeat(CLIENT_ID_BYTES_MAX)] {
            assert_eq!(RequestId::new(Some(id), generated).to_string(), id);
        }
        let too_long = "x".repeat(CLIENT_ID_BYTES_MAX + 1);
        for id in ["", "a b", "a=b", "\"", "a\tb", "é", "a,b", &too_long] {
            assert_eq!(RequestId::new(Some(id), generated).to_string(), "0000000000a1-b2", "{id}");
        }
        assert_eq!(RequestId::new(None, generated).to_string(), "0000000000a1-b2");
    }

    #[test]
    fn generated_ids_differ_within_and_between_servers() {
        let (one, other) = (RequestIds::new(), RequestIds::new());
        let text = |ids: &RequestIds| RequestId::new(None, ids.next()).to_string();
        let mut all = vec![text(&one), text(&one), text(&other), text(&other)];
        assert!(all.iter().all(|id| is_acceptable(id) && id.len() >= PREFIX_DIGITS + 2), "{all:?}");
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 4);
    }
}
