//! `GET` and `HEAD` of manifests.

use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use super::range::{entity_tag, is_not_modified};
use super::{Call, Failure};
use crate::cache::{CacheError, ManifestAnswer, ManifestLookup, ManifestWait};
use crate::http::{Body, Context, Pending, Reply, Request, Step};
use crate::oci::{ImageName, Reference};

pub(super) fn answer(
    call: Call,
    name: &ImageName,
    reference: &Reference,
    request: &Request,
    context: &Context<'_>,
) -> Step {
    match call.cache.manifest(name, reference) {
        Ok(ManifestLookup::Ready(answer)) => Step::Reply(reply(&call, request, Ok(answer))),
        Ok(ManifestLookup::Wait(wait)) => {
            let deadline = context.now() + wait.patience();
            Box::new(Waiting { call, wait, deadline }).resume(request, context)
        }
        Err(error) => Step::Reply(reply(&call, request, Err(error))),
    }
}

struct Waiting {
    call: Call,
    wait: ManifestWait,
    deadline: Instant,
}

impl Pending for Waiting {
    fn resume(self: Box<Self>, request: &Request, context: &Context<'_>) -> Step {
        let outcome = match self.wait.poll(context.waker()) {
            Poll::Ready(outcome) => outcome,
            Poll::Pending if context.now() < self.deadline => return Step::Wait(self),
            Poll::Pending => self.wait.give_up(),
        };
        Step::Reply(reply(&self.call, request, outcome))
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }
}

fn reply(call: &Call, request: &Request, outcome: Result<ManifestAnswer, CacheError>) -> Reply {
    let answer = match outcome {
        Ok(answer) => answer,
        Err(error) => return call.fail(&Failure::Manifest(error)),
    };
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
