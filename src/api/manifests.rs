//! `GET` and `HEAD` of manifests.

use std::sync::Arc;

use super::range::{entity_tag, is_not_modified};
use super::waiting::wait;
use super::{Call, Failure};
use crate::cache::{CacheError, ManifestAnswer, ManifestLookup};
use crate::http::{Body, Context, Method, Reply, Request, Step};
use crate::oci::{ImageName, Reference};

pub(super) fn answer(
    call: Call,
    name: &ImageName,
    reference: &Reference,
    request: &Request,
    context: &Context<'_>,
) -> Step {
    match call.cache.manifest(name, reference) {
        Ok(ManifestLookup::Ready(answer)) => Step::Reply(reply(&call, name, request, Ok(answer))),
        Ok(ManifestLookup::Wait(waiting)) => {
            let name = name.clone();
            wait(waiting, request, context, move |request, outcome| {
                reply(&call, &name, request, outcome)
            })
        }
        Err(error) => Step::Reply(reply(&call, name, request, Err(error))),
    }
}

fn reply(
    call: &Call,
    name: &ImageName,
    request: &Request,
    outcome: Result<ManifestAnswer, CacheError>,
) -> Reply {
    let answer = match outcome {
        Ok(answer) => answer,
        Err(error) => return call.fail(&Failure::Manifest(error)),
    };
    // HEAD is how tools look for news; who means to pull gets the manifest.
    if request.method() == Method::Get {
        call.cache.complete_later(name, answer.digest());
    }
    let reply = match is_not_modified(request, answer.digest()) {
        true => Reply::new(304, Body::Empty),
        false => Reply::new(200, Body::Bytes(Arc::clone(answer.bytes()))),
    };
    let reply = reply
        .header("Content-Type", answer.media_type().as_str().to_owned())
        .header("Docker-Content-Digest", answer.digest().to_string())
        .header("ETag", entity_tag(answer.digest()));
    call.dress(reply, answer.how)
}
