//! The log lines at the start and at the end of a download. Failures are logged where they are handled.

use std::time::{Duration, Instant};

use log::Level;

use crate::oci::{Digest, ImageName};
use crate::upstream::{BlobBody, EndpointKind};

/// Smaller downloads are logged at `debug` only: there are many, and they end at once.
const LOGGED_BYTES_MIN: u64 = 1024 * 1024;

/// A download whose start was logged.
pub(super) struct ProgressLog {
    began: Instant,
    /// How many bytes were received before.
    resumed_bytes: u64,
    level: Level,
}

impl ProgressLog {
    /// Logs the start, with the first response. `size` is the size of the blob in bytes, if it is known.
    pub(super) fn start(
        name: &ImageName,
        digest: &Digest,
        size: Option<u64>,
        resumed_bytes: u64,
        body: &BlobBody,
    ) -> ProgressLog {
        let level = match size {
            Some(size) if size < LOGGED_BYTES_MIN => Level::Debug,
            _ => Level::Info,
        };
        let (from, endpoint) = (body.sender.as_str(), body.url.as_str());
        match (size, resumed_bytes) {
            (Some(size_bytes), 0) => log::log!(
                level, digest:%, size_bytes, from, endpoint, repository:% = name; "download started"
            ),
            (Some(size_bytes), _) => log::log!(
                level, digest:%, size_bytes, resumed_bytes, from, endpoint, repository:% = name; "download started"
            ),
            (None, _) => log::log!(
                level, digest:%, resumed_bytes, from, endpoint, repository:% = name; "download started"
            ),
        }
        ProgressLog { began: Instant::now(), resumed_bytes, level }
    }

    /// Logs the end of a download that has a verified blob of this size in bytes.
    pub(super) fn finish(
        &self,
        name: &ImageName,
        digest: &Digest,
        size: u64,
        senders: impl Iterator<Item = EndpointKind>,
    ) {
        let took = self.began.elapsed();
        let bytes = size.saturating_sub(self.resumed_bytes);
        let from = words(senders);
        log::log!(
            self.level, digest:%, bytes, took_ms = took.as_secs_f64() * 1e3, bytes_per_second = rate(bytes, took),
            from = from.as_str(), repository:% = name; "download finished"
        );
    }

    /// Logs that the download gives up its fetcher for now.
    pub(super) fn suspend(&self, name: &ImageName, digest: &Digest, received_bytes: u64) {
        let bytes = received_bytes.saturating_sub(self.resumed_bytes);
        log::log!(self.level, digest:%, bytes, repository:% = name; "download suspended");
    }
}

/// Bytes per second.
fn rate(bytes: u64, took: Duration) -> u64 {
    // A shorter time says more about the clock than about the link.
    let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
    bytes.saturating_mul(1000) / millis
}

/// What has sent parts of the blob: each kind once, in order.
fn words(senders: impl Iterator<Item = EndpointKind>) -> String {
    let mut words: Vec<&str> = Vec::new();
    for word in senders.map(EndpointKind::as_str) {
        if !words.contains(&word) {
            words.push(word);
        }
    }
    words.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_bytes_per_second() {
        assert_eq!(rate(3_000, Duration::from_millis(1_500)), 2_000);
        assert_eq!(rate(7, Duration::ZERO), 7_000);
        assert_eq!(rate(u64::MAX, Duration::MAX), 1);
    }

    #[test]
    fn senders_are_named_once() {
        let kinds = [EndpointKind::Registry, EndpointKind::Peer, EndpointKind::Registry];
        assert_eq!(words(kinds.into_iter()), "registry,peer");
    }
}
