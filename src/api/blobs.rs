//! `GET` and `HEAD` of blobs, whole or in part, from the store or from a download under way.

use std::task::Poll;
use std::time::{Duration, Instant};

use super::following::{BlobTail, PassThroughTail, PastTheDisk};
use super::range::{Part, entity_tag, is_not_modified, part};
use super::status::unsatisfiable;
use super::{Call, Failure, Storage};
use crate::cache::{
    Blob, BlobFailure, BlobLookup, BlobWait, CacheError, How, PATIENCE, PassThrough, Purpose,
};
use crate::http::{Body, Context, Method, Pending, Reply, Request, Step};
use crate::oci::{Digest, ImageName};

/// After this long without upstream's answer, the head of ours leaves on the word of the manifest, if
/// that told the size: containerd gives up on a head after 30 s, and the fetch is on its way.
const HEAD_FROM_MANIFEST_AFTER: Duration = Duration::from_secs(15);

pub(super) fn answer(
    call: Call,
    name: ImageName,
    digest: Digest,
    request: &Request,
    context: &Context<'_>,
) -> Step {
    let purpose = match request.method() {
        Method::Head => Purpose::Size,
        _ => Purpose::Read,
    };
    let asked = Asked { call, name, digest, purpose, began: context.now(), is_second: false };
    asked.look(request, context)
}

/// A request for a blob.
struct Asked {
    call: Call,
    name: ImageName,
    digest: Digest,
    purpose: Purpose,
    began: Instant,
    /// Whether another download was followed before, and failed.
    is_second: bool,
}

impl Asked {
    fn look(self, request: &Request, context: &Context<'_>) -> Step {
        match self.call.cache.blob(&self.name, &self.digest, self.purpose) {
            Ok(BlobLookup::Ready(blob)) => Step::Reply(self.whole(request, blob)),
            Ok(BlobLookup::Wait(wait)) => {
                Box::new(Waiting { asked: self, wait }).resume(request, context)
            }
            Err(error) => Step::Reply(self.call.fail(&Failure::Blob(error))),
        }
    }

    fn whole(&self, request: &Request, blob: Blob) -> Reply {
        let body = |range| Body::File { file: blob.file, range };
        self.reply(request, How::Hit, blob.size, body)
    }

    /// The answer about a blob of `size` bytes, whose bytes `body` gives.
    fn reply(
        &self,
        request: &Request,
        how: How,
        size: u64,
        body: impl FnOnce(std::ops::Range<u64>) -> Body,
    ) -> Reply {
        // A range on HEAD is ignored: RFC 9110, section 14.2, defines it for GET.
        let part = match request.method() {
            Method::Head => Part::Whole,
            _ => part(request, &self.digest, size),
        };
        let reply = if is_not_modified(request, &self.digest) {
            Reply::new(304, Body::Empty)
        } else {
            match part {
                Part::Whole => Reply::new(200, body(0..size)),
                Part::Bytes(range) => {
                    let told = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                    Reply::new(206, body(range)).header("Content-Range", told)
                }
                Part::Unsatisfiable => unsatisfiable(size),
            }
        };
        let reply = reply
            .header("Content-Type", "application/octet-stream")
            .header("Docker-Content-Digest", self.digest.to_string())
            .header("ETag", entity_tag(&self.digest))
            .header("Accept-Ranges", "bytes")
            .header("Cache-Control", "max-age=31536000");
        // HEAD fetches no blob.
        let storage = match request.method() {
            Method::Head => Storage::NotStored,
            _ => Storage::Stored,
        };
        self.call.dress(reply, how, storage)
    }
}

/// A request whose blob is on its way.
struct Waiting {
    asked: Asked,
    wait: BlobWait,
}

impl Pending for Waiting {
    fn resume(self: Box<Self>, request: &Request, context: &Context<'_>) -> Step {
        match self.wait.poll_size(context.waker()) {
            Poll::Ready(Ok(size)) => Step::Reply(self.growing(request, size)),
            Poll::Ready(Err(failure)) if self.may_be_passed(&failure) => {
                self.pass().resume(request, context)
            }
            Poll::Ready(Err(failure)) if self.may_ask_again(&failure) => {
                Asked { is_second: true, ..self.asked }.look(request, context)
            }
            Poll::Ready(Err(failure)) => {
                // What another repository's download failed of is not this client's business.
                let is_ours = failure.origin == self.asked.name;
                let error = if is_ours { failure.error } else { CacheError::GivenUp };
                Step::Reply(self.asked.call.fail(&Failure::Blob(error)))
            }
            Poll::Pending if context.now() < self.deadline() => Step::Wait(self),
            Poll::Pending => match self.hint() {
                Some(size) => Step::Reply(self.growing(request, size)),
                None => {
                    self.wait.forget(context.waker());
                    Step::Reply(self.asked.call.fail(&Failure::Blob(CacheError::TimedOut)))
                }
            },
        }
    }

    fn deadline(&self) -> Instant {
        let patience = if self.hint().is_some() { HEAD_FROM_MANIFEST_AFTER } else { PATIENCE };
        self.asked.began + patience
    }
}

impl Waiting {
    /// The download that was joined was another repository's, and this one may well have it; or it came
    /// wrong, and may come right now; or the disk refused it, which does not keep its size from being
    /// asked for.
    fn may_ask_again(&self, failure: &BlobFailure) -> bool {
        let may_change = failure.origin != self.asked.name
            || failure.error.is_wrong_content()
            || failure.error.is_the_disks();
        may_change && !self.asked.is_second
    }

    /// Only the disk refused it, so it can be had past the disk.
    fn may_be_passed(&self, failure: &BlobFailure) -> bool {
        failure.error.is_the_disks() && self.asked.purpose == Purpose::Read
    }

    fn pass(self) -> Box<Passing> {
        let Waiting { asked, wait } = self;
        let passage =
            asked.call.cache.pass_through(&asked.name, &asked.digest, wait.size_hint, None);
        Box::new(Passing { asked, passage })
    }

    /// The size as a manifest told it, where that is enough to begin an answer.
    fn hint(&self) -> Option<u64> {
        self.wait.size_hint.filter(|_| self.asked.purpose == Purpose::Read)
    }

    fn growing(self, request: &Request, size: u64) -> Reply {
        let Waiting { asked, wait } = self;
        let how = wait.how;
        match asked.purpose {
            Purpose::Size => asked.reply(request, how, size, |_| Body::Length(size)),
            Purpose::Read => {
                let past_the_disk = PastTheDisk {
                    cache: asked.call.cache.clone(),
                    name: asked.name.clone(),
                    digest: asked.digest,
                };
                asked.reply(request, how, size, |range| Body::Tail {
                    tail: Box::new(BlobTail::new(wait, size, past_the_disk)),
                    range,
                })
            }
        }
    }
}

/// A request whose blob will go past the store, which cannot take it.
struct Passing {
    asked: Asked,
    passage: PassThrough,
}

impl Pending for Passing {
    fn resume(self: Box<Self>, request: &Request, context: &Context<'_>) -> Step {
        let outcome = match self.passage.poll_size(context.waker()) {
            Poll::Pending if context.now() < self.deadline() => return Step::Wait(self),
            Poll::Pending => Err(CacheError::TimedOut),
            Poll::Ready(outcome) => outcome,
        };
        let Passing { asked, passage } = *self;
        Step::Reply(match outcome {
            Ok(size) => asked.reply(request, How::Bypass, size, |range| Body::Tail {
                tail: Box::new(PassThroughTail::new(passage)),
                range,
            }),
            Err(error) => asked.call.fail(&Failure::Blob(error)),
        })
    }

    fn deadline(&self) -> Instant {
        self.asked.began + PATIENCE
    }
}
