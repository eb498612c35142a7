//! Tests against a server that answers as scripted and records what it gets; and, on demand, against a real store.

mod multipart;
mod real;
mod requests;
mod server;

use std::time::UNIX_EPOCH;

use self::server::Server;
use super::*;
use crate::upstream::network::Scheme;
use crate::upstream::{FixedKeys, Secret, SecretSource};

/// Waits of a millisecond at most.
const FAST: RetryPolicy = RetryPolicy {
    attempts: 3,
    first_wait: Duration::from_millis(1),
    longest_wait: Duration::from_millis(1),
    total: Duration::from_secs(60),
};

/// The settings of a store at a URL without path: the bucket `b`, the prefix `p/`, and parts of 4 bytes.
pub(super) fn settings(url: &str) -> ObjectStoreSettings {
    let (scheme, authority) = url.split_once("://").unwrap();
    let scheme = if scheme == "https" { Scheme::Https } else { Scheme::Http };
    let secret = SecretSource::Literal(Secret::new("hunter2"));
    let fixed = FixedKeys { id: "KEYID".into(), secret, session_token: None };
    ObjectStoreSettings {
        endpoint: Endpoint::new(scheme, authority),
        public_endpoint: None,
        bucket: "b".into(),
        prefix: "p/".into(),
        region: "us-east-1".into(),
        addressing: Addressing::Path,
        tls: TlsSettings::default(),
        keys: KeySettings { fixed: Some(fixed), ..KeySettings::default() },
        part_bytes: 4,
    }
}

fn store(settings: ObjectStoreSettings) -> ObjectStore {
    ObjectStore { client: Client::new(settings, &Reach::default(), FAST) }
}

fn store_at(server: &Server) -> ObjectStore {
    store(settings(&server.url))
}

/// Content in memory.
struct Memory<'a> {
    bytes: &'a [u8],
    sha256: Option<[u8; 32]>,
    is_cancelled: bool,
}

impl<'a> Memory<'a> {
    fn of(bytes: &'a [u8]) -> Memory<'a> {
        Memory { bytes, sha256: None, is_cancelled: false }
    }
}

impl UploadSource for Memory<'_> {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn sha256(&self) -> Option<[u8; 32]> {
        self.sha256
    }

    fn open(&self, from: u64, length: u64) -> io::Result<Box<dyn Read + Send + '_>> {
        let from = usize::try_from(from).unwrap();
        Ok(Box::new(&self.bytes[from..from + usize::try_from(length).unwrap()]))
    }

    fn is_cancelled(&self) -> bool {
        self.is_cancelled
    }

    fn discards_parts_when_cancelled(&self) -> bool {
        true
    }
}
