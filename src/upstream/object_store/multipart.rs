//! Uploads in parts.
//!
//! A killed upload is resumed: the store lists the uploads of a key that have not ended, and their parts. The newest one
//! is continued; parts of the right size, and with the right checksum if the store reports one, are not sent again. Old
//! ones are aborted. If two processes upload one object, the second one continues the upload of the first one, and either
//! may complete it; the other one then finds the object, or starts once more.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::client::{Answer, Ask, Client, Features, Patience};
use super::content::{Content, Part};
use super::failure::described;
use super::objects::{
    CHECKSUM, body_of, etag, is_conflict, is_not_implemented, is_unmet, remember, unusable,
    with_condition,
};
use super::xml::{self, PendingUpload, UploadedPart};
use super::{Condition, Put, UploadSource};
use crate::upstream::error::{UpstreamError, UpstreamErrorKind};
use crate::upstream::response::discard;

/// The most parts of an upload (a limit of S3).
const PARTS_MAX: u64 = 10_000;
/// Parts that are larger than configured have a multiple of this size, in bytes.
const PART_UNIT_BYTES: u64 = 1024 * 1024;
/// The most pages of a list of uploads or parts: of uploads, those of one key and of keys that begin with it.
const PAGES_MAX: usize = 16;

/// Other uploads of the same key are aborted at this age. Younger ones may be those of other processes, which would have
/// to start again.
const LEFTOVER_AGE: Duration = Duration::from_secs(3600);

/// The parts of some content: all have the same size, except for the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    size: u64,
    part_bytes: u64,
}

impl Plan {
    fn new(size: u64, part_bytes: u64) -> Plan {
        let least = size.div_ceil(PARTS_MAX).next_multiple_of(PART_UNIT_BYTES);
        let fits = size.div_ceil(part_bytes.max(1)) <= PARTS_MAX;
        Plan { size, part_bytes: if fits { part_bytes.max(1) } else { least } }
    }

    /// Number, offset and length of each part. Numbers begin with 1.
    fn parts(self) -> impl Iterator<Item = (u32, u64, u64)> {
        let count = self.size.div_ceil(self.part_bytes);
        (1..).zip(0..count).map(move |(number, index)| {
            let from = index * self.part_bytes;
            (number, from, self.part_bytes.min(self.size - from))
        })
    }
}

/// One upload to one key.
struct Upload<'a> {
    client: &'a Client,
    key: &'a str,
    content: &'a dyn UploadSource,
    condition: &'a Condition,
    plan: Plan,
    /// Whether parts are sent with their checksums. All parts of an upload are, or none.
    checksums: bool,
    conditions: bool,
}

/// Uploads content that is larger than a part.
pub(super) fn upload(
    client: &Client,
    key: &str,
    content: &dyn UploadSource,
    condition: &Condition,
) -> Result<Put, UpstreamError> {
    let mut upload = Upload {
        client,
        key,
        content,
        condition,
        plan: Plan::new(content.size(), client.settings().part_bytes),
        checksums: Features::has(&client.features.checksums),
        conditions: Features::has(&client.features.conditions),
    };
    // Otherwise the store would refuse the object after gigabytes were sent.
    if is_unmet(client, key, condition)? {
        return Ok(Put::Exists);
    }
    let resumed = upload.resumed();
    let is_resumed = resumed.is_some();
    let id = match resumed {
        Some(id) => id,
        None => upload.begin()?,
    };
    let first = upload.run(&id);
    match &first {
        Err(error) if upload.is_unusable(error, is_resumed) => {
            log::debug!(error:%; "objectStore: starting the upload again");
            upload.abort(&id);
        }
        _ => return upload.ended(first, &id),
    }
    // Another process may have completed it.
    if is_unmet(client, key, condition)? {
        return Ok(Put::Exists);
    }
    let id = upload.begin()?;
    let second = upload.run(&id);
    upload.ended(second, &id)
}

impl Upload<'_> {
    fn name(&self, method: &str) -> Arc<str> {
        self.client.name_of(method, Some(self.key))
    }

    /// Aborts the upload if nobody will continue it.
    fn ended(&self, result: Result<Put, UpstreamError>, id: &str) -> Result<Put, UpstreamError> {
        let is_over = match &result {
            Ok(Put::Done { .. }) => false,
            Ok(Put::Exists) => true,
            Err(error) => {
                matches!(error.kind(), UpstreamErrorKind::Cancelled)
                    && self.content.discards_parts_when_cancelled()
            }
        };
        if is_over {
            self.abort(id);
        }
        result
    }

    /// Whether another upload may succeed where this one has failed: it has ended, or its parts were sent otherwise.
    fn is_unusable(&self, error: &UpstreamError, is_resumed: bool) -> bool {
        match error.store_code() {
            Some((_, "NoSuchUpload" | "InvalidPart" | "InvalidPartOrder")) => true,
            Some((status, _)) => is_resumed && status == 400,
            None => false,
        }
    }

    /// The newest upload of this key that has not ended. Aborts old ones. Nothing is resumed on a store that does not list
    /// them.
    fn resumed(&self) -> Option<String> {
        let mut pending = match self.pending() {
            Ok(pending) => pending,
            Err(error) => {
                log::debug!(error:%; "objectStore: no upload is resumed");
                return None;
            }
        };
        pending.sort_by_key(|upload| std::cmp::Reverse(upload.initiated));
        let mut pending = pending.into_iter();
        let newest = pending.next();
        let now = SystemTime::from(self.client.clock().time(SystemTime::now()));
        let age = |upload: &PendingUpload| now.duration_since(upload.initiated?).ok();
        let is_old = |upload: &PendingUpload| age(upload).is_some_and(|age| age >= LEFTOVER_AGE);
        pending.filter(is_old).for_each(|leftover| self.abort(&leftover.id));
        newest.map(|upload| upload.id)
    }

    /// The uploads of this key that have not ended.
    fn pending(&self) -> Result<Vec<PendingUpload>, UpstreamError> {
        let complete = format!("{}{}", self.client.settings().prefix, self.key);
        let (mut pending, mut after) = (Vec::new(), None::<(String, String)>);
        for _ in 0..PAGES_MAX {
            // Without `encoding-type`: SeaweedFS 4.48 does not encode the keys, but says that they are encoded.
            let mut ask =
                Ask::new("GET", None).query("uploads", "").query("prefix", complete.clone());
            if let Some((key, id)) = after.take() {
                ask = ask.query("key-marker", key);
                if !id.is_empty() {
                    ask = ask.query("upload-id-marker", id);
                }
            }
            let (body, request) = body_of(self.client.call(&ask)?)?;
            let page = xml::uploads(&body).map_err(|why| unusable(&request, why))?;
            pending.extend(page.items.into_iter().filter(|upload| upload.key == complete));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        Ok(pending)
    }

    /// Begins an upload. Returns its id.
    fn begin(&mut self) -> Result<String, UpstreamError> {
        loop {
            let mut ask =
                Ask::new("POST", Some(self.key)).query("uploads", "").content(Content::Bytes(b""));
            if self.checksums {
                ask = ask.header("x-amz-checksum-algorithm", "SHA256");
            }
            match self.client.call(&ask) {
                Ok(answer) => {
                    remember(self.client, self.checksums, true);
                    let (body, request) = body_of(answer)?;
                    return xml::upload_id(&body).map_err(|why| unusable(&request, why));
                }
                Err(error) if is_not_implemented(&error) && self.checksums => {
                    self.checksums = false;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends what is missing, and completes the upload.
    fn run(&mut self, id: &str) -> Result<Put, UpstreamError> {
        let mut sent = self.sent(id)?;
        let mut parts = Vec::new();
        for (number, from, length) in self.plan.parts() {
            let part = Part::of(self.content, from, length)
                .map_err(|kind| UpstreamError::new(self.name("PUT"), kind))?;
            let is_same = |sent: &UploadedPart| {
                let sha256 = sent.sha256.as_ref();
                sent.size == length && sha256.is_none_or(|sha256| *sha256 == part.hash.base64())
            };
            parts.push(match sent.remove(&number).filter(is_same) {
                // Some stores do not list the checksums that they demand at the end.
                Some(sent) => UploadedPart { sha256: self.checksum_of(&part), ..sent },
                None => self.send(id, number, part)?,
            });
        }
        self.complete(id, &parts)
    }

    /// The parts that the store has, by number.
    fn sent(&self, id: &str) -> Result<HashMap<u32, UploadedPart>, UpstreamError> {
        let (mut sent, mut after) = (HashMap::new(), None::<u32>);
        for _ in 0..PAGES_MAX {
            let mut ask = Ask::new("GET", Some(self.key)).query("uploadId", id);
            if let Some(after) = after {
                ask = ask.query("part-number-marker", after.to_string());
            }
            let (body, request) = body_of(self.client.call(&ask)?)?;
            let page = xml::parts(&body).map_err(|why| unusable(&request, why))?;
            sent.extend(page.items.into_iter().map(|part| (part.number, part)));
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        Ok(sent)
    }

    fn checksum_of(&self, part: &Part<'_>) -> Option<String> {
        self.checksums.then(|| part.hash.base64())
    }

    fn send(
        &mut self,
        id: &str,
        number: u32,
        part: Part<'_>,
    ) -> Result<UploadedPart, UpstreamError> {
        loop {
            let mut ask = Ask::new("PUT", Some(self.key))
                .query("partNumber", number.to_string())
                .query("uploadId", id)
                .content(Content::Part(part))
                .patience(Patience::LongRequest);
            if self.checksums {
                ask = ask.header(CHECKSUM, part.hash.base64());
            }
            match self.client.call(&ask) {
                Ok(Answer { response, request }) => {
                    remember(self.client, self.checksums, true);
                    let etag = etag(response.headers());
                    discard(response);
                    let etag = etag.ok_or_else(|| unusable(&request, "it has no ETag".into()))?;
                    let sha256 = self.checksum_of(&part);
                    return Ok(UploadedPart { number, etag, size: part.length, sha256 });
                }
                Err(error) if is_not_implemented(&error) && self.checksums => {
                    self.checksums = false;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn complete(&mut self, id: &str, parts: &[UploadedPart]) -> Result<Put, UpstreamError> {
        let body = xml::complete_request(parts);
        loop {
            if !self.conditions && is_unmet(self.client, self.key, self.condition)? {
                return Ok(Put::Exists);
            }
            let mut ask = Ask::new("POST", Some(self.key))
                .query("uploadId", id)
                .content(Content::Bytes(body.as_bytes()))
                .patience(Patience::Completion);
            if self.conditions {
                ask = with_condition(ask, self.condition);
            }
            let has_condition = self.conditions && *self.condition != Condition::None;
            match self.client.call(&ask).and_then(|answer| self.completed(answer)) {
                Ok(etag) => {
                    remember(self.client, true, self.conditions);
                    return Ok(Put::Done { etag });
                }
                Err(error) if is_conflict(&error, self.condition) => return Ok(Put::Exists),
                Err(error) if is_not_implemented(&error) && has_condition => {
                    self.conditions = false;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The ETag of the object. A store sends 200 before it has put the parts together, and an error in the body.
    fn completed(&self, answer: Answer) -> Result<Option<String>, UpstreamError> {
        let headers = answer.response.headers().clone();
        let status = answer.response.status().as_u16();
        let (body, request) = body_of(answer)?;
        // White space keeps the connection alive until the result follows.
        let body = body.trim_ascii_start();
        match xml::error(body) {
            Some(error) => {
                Err(described(self.client.settings(), status, &headers, &error, &request))
            }
            None => xml::completed(body).map_err(|why| unusable(&request, why)),
        }
    }

    /// Discards the parts of an upload. A failure is not important: they are found again by the next upload of the key,
    /// and a rule of the bucket should remove them after some days.
    fn abort(&self, id: &str) {
        let ask = Ask::new("DELETE", Some(self.key)).query("uploadId", id);
        match self.client.call(&ask) {
            Ok(answer) => discard(answer.response),
            Err(error) => log::debug!(error:%; "objectStore: an upload is not aborted"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_grow_so_that_there_are_at_most_ten_thousand() {
        const MIB: u64 = 1024 * 1024;
        for (size, part_bytes, expected) in [
            (10, 4, 4),
            (100 * MIB, 8 * MIB, 8 * MIB),
            (80_000 * MIB, 8 * MIB, 8 * MIB),
            (80_001 * MIB, 8 * MIB, 9 * MIB),
            (5 * MIB * MIB, 8 * MIB, 525 * MIB),
        ] {
            let plan = Plan::new(size, part_bytes);
            assert_eq!(plan.part_bytes, expected, "{size}");
            assert!(plan.parts().count() <= 10_000, "{size}");
        }
        let parts: Vec<_> = Plan::new(10, 4).parts().collect();
        assert_eq!(parts, [(1, 0, 4), (2, 4, 4), (3, 8, 2)]);
    }
}
