//! Uploads one blob or record.

use std::io::Read;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use super::parts::{CONFIRMED_FOR, Fate};
use super::source::{Section, Upload};
use super::{Shared, Uploaded};
use crate::oci::{ManifestRecord, Record, StoredPath, TagRecord};
use crate::store::{Checked, OutgoingFile, OutgoingKind};
use crate::upstream::{Condition, Put, RECORD_BYTES_MAX, UpstreamError};

/// A larger blob is uploaded only after a HEAD request has shown that it is missing.
const ASKED_FIRST_BYTES: u64 = 256 * 1024;
/// How much of a blob is hashed at a time.
const CHUNK_BYTES: usize = 256 * 1024;
/// A record that was confirmed later than this after now was written by a cache with a wrong clock.
const CLOCK_DIFFERENCE_MAX: Duration = Duration::from_secs(60);

impl Shared {
    pub(super) fn upload_blob(&self, file: &OutgoingFile) -> Result<Uploaded, UpstreamError> {
        let mut is_wrong = self.bucket.is_wrong(&file.key);
        let mut is_there = !is_wrong
            && self.bucket.was_present(&file.key, CONFIRMED_FOR)
            && self.fate(&file.key)? != Fate::MayBeGone;
        if !is_wrong && !is_there && file.size > ASKED_FIRST_BYTES {
            match self.bucket.store.head(&file.key) {
                Ok(head) if head.size == file.size => is_there = true,
                Ok(_) => is_wrong = true,
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        let condition = if is_wrong { Condition::None } else { Condition::IfAbsent };
        let uploaded = match is_there {
            true => Uploaded::Exists,
            // The hashes of parts say nothing about the whole.
            false
                if file.size > self.bucket.store.settings().part_bytes && !self.is_sound(file) =>
            {
                Uploaded::Damaged
            }
            false => match self.put(file, condition) {
                Err(error) if error.is_about_content() && !self.is_sound(file) => Uploaded::Damaged,
                other => other?,
            },
        };
        match uploaded == Uploaded::Exists && self.fate(&file.key)? == Fate::IsCondemned {
            true => Ok(Uploaded::Later),
            false => Ok(uploaded),
        }
    }

    /// Uploads a record when the bucket has what it refers to.
    pub(super) fn upload_record(
        &self,
        kind: OutgoingKind,
        file: &OutgoingFile,
        now: SystemTime,
    ) -> Result<Uploaded, UpstreamError> {
        let Some(path) = StoredPath::parse(&file.key) else { return Ok(Uploaded::Exists) };
        let record = read_record(file);
        let tag = TagRecord::from_json(&record);
        let is_valid = match kind {
            OutgoingKind::Tag => tag.is_some(),
            _ => ManifestRecord::from_json(&record).is_some(),
        };
        if !is_valid {
            log::error!(
                file = file.key.as_str(); "objectStore: a record is damaged and is not uploaded"
            );
            return Ok(Uploaded::Damaged);
        }
        let begun = Instant::now();
        if !self.has_parts(&path, tag.as_ref())? {
            return Ok(Uploaded::Later);
        }
        let is_wrong = self.bucket.is_wrong(&file.key);
        let uploaded = match (kind, &tag) {
            (OutgoingKind::Tag, Some(tag)) if self.is_confirmed_later(file, tag, now)? => {
                Uploaded::Exists
            }
            (OutgoingKind::Tag, _) => self.put(file, Condition::None)?,
            _ if is_wrong => self.put(file, Condition::None)?,
            _ if self.bucket.was_present(&file.key, CONFIRMED_FOR)
                && self.fate(&file.key)? == Fate::Stays =>
            {
                Uploaded::Exists
            }
            _ => self.put(file, Condition::IfAbsent)?,
        };
        // An old record of the same manifest may be about to be removed.
        let is_condemned = kind == OutgoingKind::Manifest
            && uploaded == Uploaded::Exists
            && self.fate(&file.key)? == Fate::IsCondemned;
        // If this process was suspended meanwhile, a sweep may not have seen the record in time.
        match is_condemned || begun.elapsed() > CONFIRMED_FOR {
            true => Ok(Uploaded::Later),
            false => Ok(uploaded),
        }
    }

    /// Whether the bucket's record of a tag is that of another cache that has confirmed it later, or the same.
    fn is_confirmed_later(
        &self,
        file: &OutgoingFile,
        ours: &TagRecord,
        now: SystemTime,
    ) -> Result<bool, UpstreamError> {
        let theirs = self.bucket.store.find(&file.key, RECORD_BYTES_MAX)?;
        let theirs = theirs.and_then(|read| TagRecord::from_json(&read.bytes));
        // A clock that was ahead must not keep the tag for ever.
        let latest = now + CLOCK_DIFFERENCE_MAX;
        Ok(theirs.filter(|theirs| theirs.checked <= latest).is_some_and(|theirs| {
            let is_same = theirs.digest == ours.digest && theirs.gone == ours.gone;
            theirs.checked > ours.checked || (theirs.checked == ours.checked && is_same)
        }))
    }

    fn upload_of<'a>(&'a self, file: &'a OutgoingFile) -> Upload<'a> {
        Upload { file, throttle: self.throttle.as_ref(), is_stopped: &self.is_stopped }
    }

    fn put(&self, file: &OutgoingFile, condition: Condition) -> Result<Uploaded, UpstreamError> {
        let store = &self.bucket.store;
        let upload = |condition| store.upload(&file.key, &self.upload_of(file), condition);
        let Put::Exists = upload(condition)? else { return Ok(Uploaded::Sent) };
        // Unless another cache was writing it at that moment, and fails, or it is wrong.
        let is_blob = file.digest().is_some();
        match store.head(&file.key)? {
            head if is_blob && head.size != file.size => {
                upload(Condition::None).map(|_| Uploaded::Sent)
            }
            _ => Ok(Uploaded::Exists),
        }
    }

    /// Whether a blob has its digest. One that does not is moved to quarantine.
    fn is_sound(&self, file: &OutgoingFile) -> bool {
        let Some(digest) = file.digest() else { return true };
        let mut buffer = vec![0; CHUNK_BYTES];
        let go_on = &mut |_| !self.is_stopped.load(Ordering::Relaxed);
        let Checked::Damaged(damage) = self.store.check_blob(&digest, &mut buffer, go_on) else {
            return true;
        };
        log::error!(
            digest:%; "objectStore: a blob is damaged and is not uploaded; it is fetched again"
        );
        if let Err(error) = self.store.quarantine(&damage) {
            log::error!(
                digest:%, error:%; "objectStore: a damaged blob cannot be moved to quarantine"
            );
        }
        false
    }
}

/// The record that is to be uploaded.
fn read_record(file: &OutgoingFile) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What cannot be read is not a valid record.
    let _ = Section { file, at: 0, left: RECORD_BYTES_MAX }.read_to_end(&mut bytes);
    bytes
}
