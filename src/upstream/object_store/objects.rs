//! Operations on objects.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use ureq::http::{HeaderMap, header};

use super::client::{Answer, Ask, Client, Features, Patience};
use super::content::{Content, Hash, Part};
use super::failure::described;
use super::{
    Condition, ListedObject, Object, ObjectHead, Page, Put, ReadObject, UploadSource, xml,
};
use crate::upstream::error::{UpstreamError, UpstreamErrorKind, is_broken_connection};
use crate::upstream::response::{
    check_encoding, content_length, content_range, discard, http_date, range_of, read_body, text,
};

/// The most objects in one `DeleteObjects` (a limit of S3), and in one page of a list.
const OBJECTS_MAX: usize = 1_000;
/// The largest page of a list, in bytes: keys have up to 1,024 bytes, and three times as many when they are encoded.
const LIST_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// The header for the checksum of a body, which the store verifies and stores.
pub(super) const CHECKSUM: &str = "x-amz-checksum-sha256";

pub(super) fn get(
    client: &Client,
    key: &str,
    from: u64,
    to: Option<u64>,
) -> Result<Object, UpstreamError> {
    let nothing = |size| Object { start: from, end: None, size, reader: Box::new(io::empty()) };
    if to.is_some_and(|to| to <= from) {
        return Ok(Object { end: Some(from), ..nothing(None) });
    }
    let mut ask = Ask::new("GET", Some(key)).patience(Patience::LongResponse);
    let range = range_of(from, to);
    if let Some(range) = &range {
        ask = ask.header("range", range.clone());
    }
    let answer = match client.call(&ask) {
        // An object that ends at `from`, for example an empty one.
        Err(error) if from > 0 && error.store_code().is_some_and(|(status, _)| status == 416) => {
            let head = head(client, key)?;
            return if head.size == from { Ok(nothing(Some(from))) } else { Err(error) };
        }
        other => other?,
    };
    let Answer { response, request } = answer;
    check_encoding(response.headers(), &request)?;
    let (start, end, size) = match response.status().as_u16() {
        206 => {
            let sent = content_range(response.headers());
            let sent = sent.filter(|sent| range.is_some() && sent.start == from);
            let sent = sent.ok_or_else(|| {
                UpstreamError::bad_answer(&request, "its Content-Range is not the requested one")
            })?;
            let is_last = sent.size == Some(sent.end);
            (sent.start, (!is_last).then_some(sent.end), sent.size)
        }
        _ => (0, None, content_length(response.headers())),
    };
    Ok(Object { start, end, size, reader: Box::new(response.into_body().into_reader()) })
}

pub(super) fn read(
    client: &Client,
    key: &str,
    limit_bytes: u64,
) -> Result<ReadObject, UpstreamError> {
    read_within(client, key, limit_bytes, Patience::Small)
}

pub(super) fn read_within(
    client: &Client,
    key: &str,
    limit_bytes: u64,
    patience: Patience,
) -> Result<ReadObject, UpstreamError> {
    let Answer { response, request } =
        client.call(&Ask::new("GET", Some(key)).patience(patience))?;
    check_encoding(response.headers(), &request)?;
    let (etag, modified) = (etag(response.headers()), modified(response.headers(), &request)?);
    let bytes = read_body(response, limit_bytes, &request)?;
    Ok(ReadObject { bytes, etag, modified })
}

pub(super) fn head(client: &Client, key: &str) -> Result<ObjectHead, UpstreamError> {
    let Answer { response, request } = client.call(&Ask::new("HEAD", Some(key)))?;
    let headers = response.headers();
    let size = content_length(headers)
        .ok_or_else(|| UpstreamError::bad_answer(&request, "it has no Content-Length"))?;
    Ok(ObjectHead { size, etag: etag(headers), modified: modified(headers, &request)? })
}

pub(super) fn put(
    client: &Client,
    key: &str,
    bytes: &[u8],
    condition: &Condition,
) -> Result<Put, UpstreamError> {
    put_content(client, key, Content::Bytes(bytes), condition, Patience::Small)
}

pub(super) fn upload(
    client: &Client,
    key: &str,
    content: &dyn UploadSource,
    condition: &Condition,
) -> Result<Put, UpstreamError> {
    let all = Part::all(content);
    let all = all.map_err(|kind| UpstreamError::new(client.name_of("PUT", Some(key)), kind))?;
    put_content(client, key, Content::Part(all), condition, Patience::LongRequest)
}

/// One PUT. Headers that the store refuses are left out, first the checksum and then the condition.
fn put_content(
    client: &Client,
    key: &str,
    content: Content<'_>,
    condition: &Condition,
    patience: Patience,
) -> Result<Put, UpstreamError> {
    let (mut checksums, mut conditions) =
        (Features::has(&client.features.checksums), Features::has(&client.features.conditions));
    loop {
        if !conditions && is_unmet(client, key, condition)? {
            return Ok(Put::Exists);
        }
        let mut ask = Ask::new("PUT", Some(key)).content(content).patience(patience);
        if checksums {
            ask = ask.header(CHECKSUM, content.hash().base64());
        }
        if conditions {
            ask = with_condition(ask, condition);
        }
        match client.call(&ask) {
            Ok(Answer { response, .. }) => {
                remember(client, checksums, conditions);
                let etag = etag(response.headers());
                discard(response);
                return Ok(Put::Done { etag });
            }
            Err(error) if is_conflict(&error, condition) => return Ok(Put::Exists),
            Err(error) if is_not_implemented(&error) && checksums => checksums = false,
            Err(error)
                if is_not_implemented(&error) && conditions && *condition != Condition::None =>
            {
                conditions = false;
            }
            Err(error) if is_broken(&error) && matches!(content, Content::Part(_)) => {
                return why_broken(client, key, condition).unwrap_or(Err(error));
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether the connection broke, perhaps after a refusal: some stores do not wait for the rest of a large body then, and
/// their response is lost.
fn is_broken(error: &UpstreamError) -> bool {
    matches!(error.kind(), UpstreamErrorKind::Unreachable { source } if is_broken_connection(source.kind()))
}

/// The outcome of a write with a lost response, by a small request; `None` if that could not be found out.
fn why_broken(
    client: &Client,
    key: &str,
    condition: &Condition,
) -> Option<Result<Put, UpstreamError>> {
    // HEAD would not return the code of an error.
    match get(client, key, 0, Some(1)) {
        Err(error) if error.store_code().is_some() && !error.is_not_found() => Some(Err(error)),
        _ => is_unmet(client, key, condition).ok()?.then_some(Ok(Put::Exists)),
    }
}

pub(super) fn with_condition<'a>(ask: Ask<'a>, condition: &Condition) -> Ask<'a> {
    match condition {
        Condition::None => ask,
        Condition::IfAbsent => ask.header("if-none-match", "*"),
        Condition::IfMatch(etag) => ask.header("if-match", etag.clone()),
    }
}

/// Remembers what the store has refused, after it has accepted a request without.
pub(super) fn remember(client: &Client, checksums: bool, conditions: bool) {
    let (features, url) = (&client.features, client.url());
    if !checksums {
        Features::drop(&features.checksums, "checksums of requests", &url);
    }
    if !conditions {
        Features::drop(&features.conditions, "conditions of writes", &url);
    }
}

/// Whether a condition does not apply, by HEAD.
pub(super) fn is_unmet(
    client: &Client,
    key: &str,
    condition: &Condition,
) -> Result<bool, UpstreamError> {
    if *condition == Condition::None {
        return Ok(false);
    }
    match (head(client, key), condition) {
        (Ok(_), Condition::IfAbsent) => Ok(true),
        (Ok(head), Condition::IfMatch(etag)) => Ok(head.etag.as_ref() != Some(etag)),
        (Ok(_), Condition::None) => Ok(false),
        (Err(error), condition) if error.is_not_found() => Ok(*condition != Condition::IfAbsent),
        (Err(error), _) => Err(error),
    }
}

/// Whether the store refused a write because of its condition. `If-Match` on a missing object is a 404.
pub(super) fn is_conflict(error: &UpstreamError, condition: &Condition) -> bool {
    match (error.store_code(), condition) {
        (None, _) | (_, Condition::None) => false,
        (Some((412, _) | (409, _)), _) => !error.is_trouble(),
        (Some(_), Condition::IfMatch(_)) => error.is_not_found(),
        (Some(_), Condition::IfAbsent) => false,
    }
}

pub(super) fn is_not_implemented(error: &UpstreamError) -> bool {
    error.store_code().is_some_and(|(status, code)| status == 501 || code == "NotImplemented")
}

pub(super) fn delete(client: &Client, keys: &[String]) -> Result<usize, UpstreamError> {
    let mut count = 0;
    for keys in keys.chunks(OBJECTS_MAX) {
        count += match keys {
            [key] => delete_one(client, key, Patience::Small)?,
            _ => delete_some(client, keys)?,
        };
    }
    Ok(count)
}

/// At most [`OBJECTS_MAX`] objects.
fn delete_some(client: &Client, keys: &[String]) -> Result<usize, UpstreamError> {
    if Features::has(&client.features.batches) {
        match delete_batch(client, keys) {
            Some(Ok(())) => return Ok(keys.len()),
            Some(Err(error)) if is_without_batches(&error) => {
                Features::drop(&client.features.batches, "DeleteObjects", &client.url());
            }
            Some(Err(error)) => return Err(error),
            None => {}
        }
    }
    keys.iter().map(|key| delete_one(client, key, Patience::Small)).sum()
}

/// `DeleteObjects`. `None` if XML cannot contain a key.
fn delete_batch(client: &Client, keys: &[String]) -> Option<Result<(), UpstreamError>> {
    let prefix = &client.settings().prefix;
    let complete: Vec<String> = keys.iter().map(|key| format!("{prefix}{key}")).collect();
    let body = xml::delete_request(&complete)?;
    let ask = Ask::new("POST", None)
        .query("delete", "")
        // Amazon demands a checksum, whatever other stores support.
        .header(CHECKSUM, Hash::of(body.as_bytes()).base64())
        .content(Content::Bytes(body.as_bytes()));
    Some(client.call(&ask).and_then(|answer| {
        let (body, request) = body_of(answer)?;
        match xml::first_undeleted(&body).map_err(|why| unusable(&request, why))? {
            Some(error) => {
                let settings = client.settings();
                // The status of the response is 200.
                let status = if error.code == "AccessDenied" { 403 } else { 400 };
                Err(described(settings, status, &HeaderMap::new(), &error, &request))
            }
            None => Ok(()),
        }
    }))
}

/// Whether a store answered so because it does not know `DeleteObjects`, or demands an MD5 with it.
fn is_without_batches(error: &UpstreamError) -> bool {
    let Some((status, code)) = error.store_code() else { return false };
    let codes = ["MissingContentMD5", "InvalidDigest", "MethodNotAllowed", "InvalidRequest"];
    matches!(status, 405 | 501) || codes.contains(&code)
}

pub(super) fn delete_one(
    client: &Client,
    key: &str,
    patience: Patience,
) -> Result<usize, UpstreamError> {
    match client.call(&Ask::new("DELETE", Some(key)).patience(patience)) {
        Ok(answer) => discard(answer.response),
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error),
    }
    Ok(1)
}

pub(super) fn list(
    client: &Client,
    prefix: &str,
    after: Option<&str>,
) -> Result<Page, UpstreamError> {
    let own_prefix = &client.settings().prefix;
    let mut ask = Ask::new("GET", None)
        .query("list-type", "2")
        .query("encoding-type", "url")
        .query("max-keys", OBJECTS_MAX.to_string())
        .query("prefix", format!("{own_prefix}{prefix}"));
    if let Some(token) = after {
        ask = ask.query("continuation-token", token);
    }
    let (body, request) = body_of(client.call(&ask)?)?;
    let page = xml::objects(&body).map_err(|why| unusable(&request, why))?;
    let relative = |object: ListedObject| {
        let key = object.key.strip_prefix(&**own_prefix)?;
        key.starts_with(prefix).then(|| ListedObject { key: key.to_owned(), ..object })
    };
    let objects: Option<Vec<ListedObject>> = page.objects.into_iter().map(relative).collect();
    let objects = objects.ok_or_else(|| unusable(&request, "a key has another prefix".into()))?;
    if page.next.is_some() && page.next.as_deref() == after {
        return Err(unusable(&request, "the next page is the same page".into()));
    }
    Ok(Page { objects, next: page.next })
}

/// The body of a document, and the request for messages.
pub(super) fn body_of(answer: Answer) -> Result<(Vec<u8>, Arc<str>), UpstreamError> {
    let body = read_body(answer.response, LIST_BYTES_MAX, &answer.request)?;
    Ok((body, answer.request))
}

pub(super) fn unusable(request: &Arc<str>, why: String) -> UpstreamError {
    UpstreamError::bad_answer(request, why)
}

pub(super) fn etag(headers: &HeaderMap) -> Option<String> {
    text(headers, header::ETAG).map(str::to_owned)
}

/// `Last-Modified`. Without it, an object would seem to be old enough for removal.
fn modified(headers: &HeaderMap, request: &Arc<str>) -> Result<SystemTime, UpstreamError> {
    let modified = text(headers, header::LAST_MODIFIED).and_then(http_date);
    modified.ok_or_else(|| UpstreamError::bad_answer(request, "it has no valid Last-Modified"))
}
