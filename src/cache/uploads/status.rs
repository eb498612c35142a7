//! The state of the bucket, for operators.

use std::time::SystemTime;

use crate::units::duration;
use crate::upstream::{ClockSkew, EndpointStatus, ObjectStore, Probe, UpstreamError};
use crate::via;

/// The state of the bucket and of the uploads, for operators.
#[derive(Debug, Clone)]
pub struct BucketStatus {
    /// The URL of the bucket, with the prefix.
    pub url: String,
    /// The health of the bucket for what clients wait for.
    pub reads: Option<EndpointStatus>,
    /// Whether nothing is uploaded.
    pub is_read_only: bool,
    /// What the probe found; `None` before its end.
    pub probe: Option<Probe>,
    /// How many blobs and records wait for their upload.
    pub queued: usize,
    /// How many are being uploaded.
    pub running: usize,
    /// How many were uploaded or found in the bucket since the start.
    pub done: u64,
    /// How many bytes were sent since the start.
    pub sent_bytes: u64,
    /// The last failure of an upload, and when the first one happened; `None` once everything that has failed is uploaded.
    pub failure: Option<(SystemTime, String)>,
}

/// Finds out what a bucket can do, in words; also what was tried, unless nothing may be written. Blocks for seconds.
pub fn examine_bucket(
    store: &ObjectStore,
    is_read_only: bool,
) -> (Option<Probe>, Result<String, UpstreamError>) {
    if is_read_only {
        return (None, store.reach().map(|()| "reachable, readOnly".to_owned()));
    }
    let probe = store.probe(via::instance());
    let found = match &probe.error {
        Some(error) => Err(error.clone()),
        None => Ok(bucket_capabilities(&probe)),
    };
    (Some(probe), found)
}

fn bucket_capabilities(probe: &Probe) -> String {
    let mut parts = vec!["reachable"];
    let mut add = |can: bool, yes: &'static str, no: &'static str| {
        parts.push(if can { yes } else { no });
    };
    add(probe.is_readable, "readable", "not readable");
    add(probe.is_writable, "writable", "not writable");
    add(probe.has_create_if_absent, "supports If-None-Match", "does not support If-None-Match");
    add(
        probe.verifies_checksum || probe.verifies_content_hash,
        "verifies checksums",
        "does not verify checksums",
    );
    let mut text = parts.join(", ");
    if let Some(skew) = probe.clock_skew {
        let (by, word) = match skew {
            ClockSkew::Ahead(by) => (by, "ahead of"),
            ClockSkew::Behind(by) => (by, "behind"),
        };
        text.push_str(&format!(", this machine's clock is {} {word} the store's", duration(by)));
    }
    text
}
