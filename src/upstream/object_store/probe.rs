//! What a store supports, by trying it.
//!
//! Stores ignore headers that they do not know, so only wrong values show whether they check them.

use std::time::{Duration, Instant};

use super::Condition;
use super::client::{Answer, Ask, Client, Features, Patience};
use super::content::{Content, Hash};
use super::objects::{
    CHECKSUM, delete_one, is_conflict, is_not_implemented, read_within, with_condition,
};
use crate::upstream::error::{UpstreamError, UpstreamErrorKind};
use crate::upstream::response::discard;

/// Differences of this size are due to the network and to the resolution of HTTP dates.
const SKEW_MIN: Duration = Duration::from_secs(2);
/// No step begins after this time.
const TOTAL: Duration = Duration::from_secs(15);
/// The most that is read of the object, in bytes.
const READ_BYTES_MAX: u64 = 1024;

/// What a store supports.
#[derive(Debug, Clone)]
pub struct Probe {
    /// The first failure. What was not tried is reported as unsupported.
    pub error: Option<UpstreamError>,
    /// Whether objects can be read.
    pub is_readable: bool,
    /// Whether objects can be written and deleted.
    pub is_writable: bool,
    /// Whether `If-None-Match: *` creates an object, and does not overwrite one.
    pub has_create_if_absent: bool,
    /// Whether the store refuses a body that does not match `x-amz-checksum-sha256`.
    pub verifies_checksum: bool,
    /// Whether the store refuses a body that does not match `x-amz-content-sha256`.
    pub verifies_content_hash: bool,
    /// The difference between this machine's clock and the store's, if it is more than 2 s.
    pub clock_skew: Option<ClockSkew>,
}

/// Where this machine's clock is, compared with the store's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockSkew {
    /// It is ahead.
    Ahead(Duration),
    /// It is behind.
    Behind(Duration),
}

/// A probe that is running.
struct Prober<'a> {
    client: &'a Client,
    key: String,
    started: Instant,
}

pub(super) fn probe(client: &Client, name: &str) -> Probe {
    let prober = Prober { client, key: format!("probe/{name}"), started: Instant::now() };
    let mut probe = Probe {
        error: None,
        is_readable: false,
        is_writable: false,
        has_create_if_absent: false,
        verifies_checksum: false,
        verifies_content_hash: false,
        clock_skew: None,
    };
    probe.error = prober.run(&mut probe).err();
    probe.clock_skew = client.clock().latest().and_then(skew);
    probe
}

/// `seconds_ahead` is how far the store's clock is ahead of this machine's.
fn skew(seconds_ahead: i64) -> Option<ClockSkew> {
    let difference = Duration::from_secs(seconds_ahead.unsigned_abs());
    match difference > SKEW_MIN {
        false => None,
        true if seconds_ahead > 0 => Some(ClockSkew::Behind(difference)),
        true => Some(ClockSkew::Ahead(difference)),
    }
}

impl Prober<'_> {
    fn run(&self, probe: &mut Probe) -> Result<(), UpstreamError> {
        let content =
            format!("written by Larder to find out what this store supports: {}", self.key);
        let content = content.as_bytes();
        // A left-over of a killed probe would make the store refuse the conditional write.
        let deleted = delete_one(self.client, &self.key, Patience::Probe);
        if let Err(error) = deleted {
            probe.is_readable = !error.is_trouble() && self.can_read(None);
            return Err(error);
        }
        let created = self.created(content)?;
        if created == Outcome::Unsupported {
            Features::drop(
                &self.client.features.conditions,
                "conditions of writes",
                &self.client.url(),
            );
            self.put(content, Extra::Nothing)?;
        }
        probe.is_writable = true;
        probe.is_readable = self.can_read(Some(content));
        probe.has_create_if_absent =
            created == Outcome::Accepted && self.created(content)? == Outcome::Refused;
        match self.put(content, Extra::WrongChecksum)? {
            Outcome::Unsupported => Features::drop(
                &self.client.features.checksums,
                "checksums of requests",
                &self.client.url(),
            ),
            outcome => probe.verifies_checksum = outcome == Outcome::Refused,
        }
        probe.verifies_content_hash = self.put(content, Extra::WrongHash)? == Outcome::Refused;
        delete_one(self.client, &self.key, Patience::Probe)?;
        Ok(())
    }

    fn created(&self, content: &[u8]) -> Result<Outcome, UpstreamError> {
        self.put(content, Extra::IfAbsent)
    }

    fn put(&self, content: &[u8], extra: Extra) -> Result<Outcome, UpstreamError> {
        let other = || Hash::of(b"other content");
        let mut ask = Ask::new("PUT", Some(&self.key))
            .content(Content::Bytes(content))
            .patience(Patience::Probe);
        match extra {
            Extra::Nothing => {}
            Extra::IfAbsent => ask = with_condition(ask, &Condition::IfAbsent),
            Extra::WrongChecksum => ask = ask.header(CHECKSUM, other().base64()),
            Extra::WrongHash => ask.claimed_hash = Some(other().hex()),
        }
        if self.started.elapsed() > TOTAL {
            let kind = UpstreamErrorKind::TimedOut { phase: "the steps of a probe" };
            return Err(UpstreamError::new(self.client.name_of("PUT", Some(&self.key)), kind));
        }
        match self.client.call(&ask) {
            Ok(Answer { response, .. }) => {
                discard(response);
                Ok(Outcome::Accepted)
            }
            Err(error) if is_not_implemented(&error) && extra != Extra::Nothing => {
                Ok(Outcome::Unsupported)
            }
            Err(error) if extra == Extra::IfAbsent => {
                match is_conflict(&error, &Condition::IfAbsent) {
                    true => Ok(Outcome::Refused),
                    false => Err(error),
                }
            }
            // A wrong hash is refused with 400, or with 403 as a wrong signature.
            Err(error) if matches!(extra, Extra::WrongChecksum | Extra::WrongHash) => {
                match error.store_code() {
                    Some((400..=499, _)) if !error.is_trouble() => Ok(Outcome::Refused),
                    _ => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Whether objects can be read: this one with its content, or at least that it does not exist.
    fn can_read(&self, content: Option<&[u8]>) -> bool {
        match read_within(self.client, &self.key, READ_BYTES_MAX, Patience::Probe) {
            Ok(object) => content.is_none_or(|content| object.bytes == content),
            Err(error) => content.is_none() && error.is_not_found(),
        }
    }
}

/// What is special about a PUT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extra {
    Nothing,
    IfAbsent,
    WrongChecksum,
    WrongHash,
}

/// What the store did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Accepted,
    Refused,
    /// It answered 501.
    Unsupported,
}
