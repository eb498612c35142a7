//! `GET` and `HEAD` of manifests.

use std::sync::Arc;
use std::time::SystemTime;

use super::range::{entity_tag, is_not_modified};
use super::runtimes::Agent;
use super::waiting::wait;
use super::{Call, Failure, Storage};
use crate::cache::{
    CacheError, Document, HeadAnswer, HeadLookup, ManifestAnswer, ManifestHead, ManifestLookup,
};
use crate::http::{Body, Context, Method, Reply, Request, Step};
use crate::oci::{Digest, ImageName, MediaType, Reference};

pub(super) fn answer(
    call: Call,
    name: &ImageName,
    reference: &Reference,
    request: &Request,
    context: &Context<'_>,
) -> Step {
    let found = match request.method() {
        Method::Head => call.cache.manifest_head(name, reference),
        _ => call.cache.manifest(name, reference).map(HeadLookup::Manifest),
    };
    let found = match found {
        Ok(HeadLookup::Manifest(found)) => Ok(found),
        Ok(HeadLookup::Ready(answer)) => {
            return Step::Reply(head(&call, name, reference, request, Ok(answer)));
        }
        Ok(HeadLookup::Wait(waiting)) => {
            let (name, reference) = (name.clone(), reference.clone());
            return wait(waiting, request, context, move |request, outcome| {
                head(&call, &name, &reference, request, outcome)
            });
        }
        Err(error) => Err(error),
    };
    match found {
        Ok(ManifestLookup::Ready(answer)) => {
            Step::Reply(reply(&call, name, reference, request, Ok(answer)))
        }
        Ok(ManifestLookup::Wait(waiting)) => {
            let (name, reference) = (name.clone(), reference.clone());
            wait(waiting, request, context, move |request, outcome| {
                reply(&call, &name, &reference, request, outcome)
            })
        }
        Err(error) => Step::Reply(reply(&call, name, reference, request, Err(error))),
    }
}

/// The content type for manifests that declare a type that a browser would render or execute. No client accepts
/// such content as a manifest, and foreign content must not run with this server's origin.
const UNKNOWN_TYPE: &str = "application/octet-stream";

fn content_type(media_type: &MediaType) -> String {
    let media_type = if media_type.is_inert() { media_type.as_str() } else { UNKNOWN_TYPE };
    media_type.to_owned()
}

/// Large manifests are sent from their file, so that slow clients cost no memory.
fn body(answer: &ManifestAnswer) -> Body {
    match answer.body() {
        Document::Memory(bytes) => Body::Bytes(Arc::clone(bytes)),
        Document::File { file, range } => Body::File { file: file.clone(), range: range.clone() },
    }
}

/// The response to HEAD if the manifest itself is not cached.
fn head(
    call: &Call,
    name: &ImageName,
    reference: &Reference,
    request: &Request,
    outcome: Result<HeadAnswer, CacheError>,
) -> Reply {
    match outcome {
        Ok(answer) => {
            let ManifestHead { digest, media_type, size } = answer.head();
            call.note_pull(name, reference, request);
            if !call.is_from_peer {
                note_check(call, name, reference, request, digest);
            }
            let full = Reply::new(200, Body::Length(*size));
            let reply = describe(full, request, digest, media_type);
            let reply = of_tag(call, reply, reference, digest, answer.checked);
            call.finish(reply, answer.how, answer.why, Storage::NotStored)
        }
        Err(error) => call.fail(&Failure::Manifest(error)),
    }
}

/// Lets the image be completed if the client runs it. A client that only has to know whether a tag has moved has the
/// image already and does not pull it.
fn note_check(
    call: &Call,
    name: &ImageName,
    reference: &Reference,
    request: &Request,
    digest: &Digest,
) {
    let Agent { is_runtime, platform } = Agent::of(request);
    call.cache.checked_by_head(name, reference, digest, is_runtime, platform);
}

/// Adds the headers that describe a manifest. Drops the body if the client already has it.
fn describe(full: Reply, request: &Request, digest: &Digest, media_type: &MediaType) -> Reply {
    let reply = match is_not_modified(request, digest) {
        true => Reply::new(304, Body::Empty),
        false => full,
    };
    reply
        .header("Content-Type", content_type(media_type))
        .header("Docker-Content-Digest", digest.to_string())
        .header("ETag", entity_tag(digest))
}

/// Adds how long ago the registry confirmed a tag (`Age`, RFC 9111, section 5.1), so that a Larder that asks this one does
/// not trust it for longer; and for the access log, what the tag leads to.
fn of_tag(
    call: &Call,
    reply: Reply,
    reference: &Reference,
    digest: &Digest,
    checked: SystemTime,
) -> Reply {
    let age = call.cache.now().duration_since(checked).unwrap_or_default();
    match reference {
        Reference::Tag(_) => {
            reply.header("Age", age.as_secs().to_string()).note("digest", digest.to_string())
        }
        Reference::Digest(_) => reply,
    }
}

fn reply(
    call: &Call,
    name: &ImageName,
    reference: &Reference,
    request: &Request,
    outcome: Result<ManifestAnswer, CacheError>,
) -> Reply {
    let answer = match outcome {
        Ok(answer) => answer,
        Err(error) => return call.fail(&Failure::Manifest(error)),
    };
    call.note_pull(name, reference, request);
    match request.method() {
        // The peer does that, and asks those who are responsible for the parts.
        _ if call.is_from_peer => {}
        Method::Get => call.cache.complete_later(name, answer.digest()),
        _ => note_check(call, name, reference, request, answer.digest()),
    }
    let full = Reply::new(200, body(&answer));
    let reply = describe(full, request, answer.digest(), answer.media_type());
    let reply = of_tag(call, reply, reference, answer.digest(), answer.checked);
    let reply = match answer.is_vetted {
        // A Larder that asks this one need not hold the move again.
        true => reply.header("Larder-Hold", "passed"),
        false => reply,
    };
    call.finish(reply, answer.how, answer.why, Storage::Stored)
}
