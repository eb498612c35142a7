//! `GET` and `HEAD` of blobs and of ranges of them, from the store or from a download in progress.

use std::task::Poll;
use std::time::{Duration, Instant};

use super::following::{BlobTail, PassThroughTail, PastTheDisk};
use super::range::{Part, entity_tag, is_not_modified, part};
use super::status::unsatisfiable;
use super::{Call, Failure, Storage, access};
use crate::cache::{
    Blob, BlobFailure, BlobLookup, BlobWait, CacheError, How, LinkWait, PATIENCE, PassThrough,
    PeerProof, Purpose, Why,
};
use crate::http::{Body, Context, Method, Pending, Reply, Request, Step};
use crate::oci::{Digest, ImageName};
use crate::via;

/// How long to wait for the upstream's response head before sending our own with the size from the manifest,
/// if that is known: containerd gives up after 30 s without a head, and the fetch is already running.
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
    let blob_request =
        BlobRequest { call, name, digest, purpose, began: context.now(), is_second: false };
    match blob_request.call.is_from_peer {
        true => blob_request.start_for_peer(request, context),
        false => blob_request.start(request, context),
    }
}

/// A request for a blob.
struct BlobRequest {
    call: Call,
    name: ImageName,
    digest: Digest,
    purpose: Purpose,
    began: Instant,
    /// Whether this is the second attempt, after a download that failed.
    is_second: bool,
}

impl BlobRequest {
    /// A peer that presents the credentials of the group has checked for its client that the repository contains the blob.
    fn start_for_peer(self, request: &Request, context: &Context<'_>) -> Step {
        let cache = &self.call.cache;
        match access::peer_proof(cache, request) {
            PeerProof::Proven => cache.trust_link(&self.name, &self.digest),
            // Its word does not count, so it gets what other clients get.
            PeerProof::Missing | PeerProof::Unproven => {}
        }
        self.start(request, context)
    }

    fn start(self, request: &Request, context: &Context<'_>) -> Step {
        match self.call.cache.blob(&self.name, &self.digest, self.purpose) {
            Ok(BlobLookup::Ready(blob)) => Step::Reply(self.hit(request, blob)),
            Ok(BlobLookup::Wait(wait)) => {
                Box::new(Waiting { blob_request: self, wait }).resume(request, context)
            }
            Ok(BlobLookup::Unlinked(wait)) => {
                let deadline = self.began + wait.patience();
                Box::new(Linking { blob_request: self, wait, deadline }).resume(request, context)
            }
            Err(error) => Step::Reply(self.fail(error)),
        }
    }

    /// The response for a failure. If there are private images, the words for what does not exist do not depend on whether the
    /// blob is cached, since another repository may have it.
    fn fail(&self, error: CacheError) -> Reply {
        let error = match error {
            CacheError::Upstream(_)
                if error.is_not_found() && self.call.cache.has_private_content() =>
            {
                CacheError::KnownMissing
            }
            error => error,
        };
        self.call.fail(&Failure::Blob(error))
    }

    fn hit(&self, request: &Request, blob: Blob) -> Reply {
        if let Some(location) = self.redirect(request, blob.size) {
            // A cache must not keep the response: the URL expires, and it grants access to the blob.
            let reply = Reply::new(307, Body::Empty)
                .header("Location", location)
                .header("Docker-Content-Digest", self.digest.to_string())
                .header("Cache-Control", "no-store");
            return self.call.finish(reply, How::Hit, None, Storage::Stored);
        }
        let body = |range| Body::File { file: blob.file, range };
        self.reply(request, How::Hit, blob.size, body)
    }

    /// Where the client gets a cached blob instead. Other Larders get it here, as do requests with conditions about an
    /// `ETag` of this server.
    fn redirect(&self, request: &Request, size: u64) -> Option<String> {
        if !self.call.cache.has_redirects() {
            return None;
        }
        let is_conditional = ["if-match", "if-none-match", "if-range"]
            .iter()
            .any(|name| request.header(name).is_some());
        if request.method() == Method::Head || is_conditional || via::current().is_from_larder() {
            return None;
        }
        let part = match part(request, &self.digest, size) {
            Part::Whole => 0..size,
            Part::Bytes(part) => part,
            Part::Unsatisfiable => return None,
        };
        self.call.cache.redirect(&self.name, &self.digest, size, &part)
    }

    /// The response for a blob of `size` bytes, with the content that `body` returns for a range.
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
                    let value = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                    Reply::new(206, body(range)).header("Content-Range", value)
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
        let why = match how {
            How::Hit => None,
            How::Bypass => Some(Why::Disk),
            _ => Some(Why::NotCached),
        };
        self.call.finish(reply, how, why, storage)
    }
}

/// A request that waits to know whether the repository contains the blob.
struct Linking {
    blob_request: BlobRequest,
    wait: LinkWait,
    deadline: Instant,
}

impl Pending for Linking {
    fn resume(self: Box<Self>, request: &Request, context: &Context<'_>) -> Step {
        let Linking { blob_request, wait, deadline } = *self;
        let error = match wait.poll(context.waker()) {
            Poll::Ready(Ok(())) => return blob_request.start(request, context),
            Poll::Ready(Err(error)) => error,
            Poll::Pending if context.now() < deadline => {
                return Step::Wait(Box::new(Linking { blob_request, wait, deadline }));
            }
            Poll::Pending => wait.give_up(context.waker()),
        };
        Step::Reply(blob_request.fail(error))
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }
}

/// A request that waits for the download of its blob.
struct Waiting {
    blob_request: BlobRequest,
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
                BlobRequest { is_second: true, ..self.blob_request }.start(request, context)
            }
            // The client must not learn why the download of another repository failed.
            Poll::Ready(Err(failure)) if failure.origin != self.blob_request.name => {
                let given_up = Failure::Blob(CacheError::GivenUp);
                Step::Reply(self.blob_request.call.fail_because(&given_up, &failure.error))
            }
            Poll::Ready(Err(failure)) => Step::Reply(self.blob_request.fail(failure.error)),
            Poll::Pending if context.now() < self.deadline() => Step::Wait(self),
            Poll::Pending => match self.hint() {
                Some(size) => Step::Reply(self.growing(request, size)),
                None => {
                    self.wait.forget(context.waker());
                    Step::Reply(self.blob_request.call.fail(&Failure::Blob(CacheError::TimedOut)))
                }
            },
        }
    }

    fn deadline(&self) -> Instant {
        let patience = if self.hint().is_some() { HEAD_FROM_MANIFEST_AFTER } else { PATIENCE };
        self.blob_request.began + patience
    }
}

impl Waiting {
    /// Whether a second attempt may succeed: the failed download was for another repository; or the content was
    /// wrong; or the disk refused it, which does not prevent a request for the size.
    fn may_ask_again(&self, failure: &BlobFailure) -> bool {
        let may_change = failure.origin != self.blob_request.name
            || failure.error.is_wrong_content()
            || failure.error.is_the_disks();
        may_change && !self.blob_request.is_second
    }

    /// Whether only the disk failed, so that the blob can be streamed without being stored.
    fn may_be_passed(&self, failure: &BlobFailure) -> bool {
        failure.error.is_the_disks() && self.blob_request.purpose == Purpose::Read
    }

    fn pass(self) -> Box<Passing> {
        let Waiting { blob_request, wait } = self;
        let passage = blob_request.call.cache.pass_through(
            &blob_request.name,
            &blob_request.digest,
            wait.size_hint,
            None,
        );
        Box::new(Passing { blob_request, passage })
    }

    /// The size from a manifest, for requests that can be answered with it.
    fn hint(&self) -> Option<u64> {
        self.wait.size_hint.filter(|_| self.blob_request.purpose == Purpose::Read)
    }

    fn growing(self, request: &Request, size: u64) -> Reply {
        let Waiting { blob_request, wait } = self;
        let how = wait.how;
        match blob_request.purpose {
            Purpose::Size => blob_request.reply(request, how, size, |_| Body::Length(size)),
            Purpose::Read => {
                let past_the_disk = PastTheDisk {
                    cache: blob_request.call.cache.clone(),
                    name: blob_request.name.clone(),
                    digest: blob_request.digest,
                };
                blob_request.reply(request, how, size, |range| Body::Tail {
                    tail: Box::new(BlobTail::new(wait, size, range.start, past_the_disk)),
                    range,
                })
            }
        }
    }
}

/// A request whose blob is streamed without being stored, because the store cannot write it.
struct Passing {
    blob_request: BlobRequest,
    passage: PassThrough,
}

impl Pending for Passing {
    fn resume(self: Box<Self>, request: &Request, context: &Context<'_>) -> Step {
        let outcome = match self.passage.poll_size(context.waker()) {
            Poll::Pending if context.now() < self.deadline() => return Step::Wait(self),
            Poll::Pending => Err(CacheError::TimedOut),
            Poll::Ready(outcome) => outcome,
        };
        let Passing { blob_request, passage } = *self;
        Step::Reply(match outcome {
            Ok(size) => blob_request.reply(request, How::Bypass, size, |range| Body::Tail {
                tail: Box::new(PassThroughTail::new(passage)),
                range,
            }),
            Err(error) => blob_request.fail(error),
        })
    }

    fn deadline(&self) -> Instant {
        self.blob_request.began + PATIENCE
    }
}
