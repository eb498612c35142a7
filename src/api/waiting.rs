//! Requests that wait for an upstream, for a limited time.

use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use crate::cache::{
    CacheError, HeadAnswer, HeadWait, ListAnswer, ListWait, ManifestAnswer, ManifestWait,
};
use crate::http::{Context, Pending, Reply, Request, Step};

/// A pending answer of the cache.
pub(super) trait Wait: Send + 'static {
    /// The answer's type.
    type Answer;

    /// The answer, once it is available.
    fn poll(&self, waker: &Waker) -> Poll<Result<Self::Answer, CacheError>>;

    /// How long a client waits.
    fn patience(&self) -> Duration;

    /// The answer when the client's patience is over.
    fn give_up(self, waker: &Waker) -> Result<Self::Answer, CacheError>;
}

/// Waits for the answer, then replies.
pub(super) fn wait<W: Wait>(
    wait: W,
    request: &Request,
    context: &Context<'_>,
    reply: impl FnOnce(&Request, Result<W::Answer, CacheError>) -> Reply + Send + 'static,
) -> Step {
    let deadline = context.now() + wait.patience();
    Box::new(Waiting { wait, deadline, reply }).resume(request, context)
}

struct Waiting<W, F> {
    wait: W,
    deadline: Instant,
    reply: F,
}

impl<W, F> Pending for Waiting<W, F>
where
    W: Wait,
    F: FnOnce(&Request, Result<W::Answer, CacheError>) -> Reply + Send + 'static,
{
    fn resume(self: Box<Self>, request: &Request, context: &Context<'_>) -> Step {
        let outcome = match self.wait.poll(context.waker()) {
            Poll::Ready(outcome) => outcome,
            Poll::Pending if context.now() < self.deadline => return Step::Wait(self),
            Poll::Pending => self.wait.give_up(context.waker()),
        };
        Step::Reply((self.reply)(request, outcome))
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }
}

/// Implements [`Wait`] for types of the cache that have these methods.
macro_rules! waits_for {
    ($wait:ty, $answer:ty) => {
        impl Wait for $wait {
            type Answer = $answer;

            fn poll(&self, waker: &Waker) -> Poll<Result<$answer, CacheError>> {
                <$wait>::poll(self, waker)
            }

            fn patience(&self) -> Duration {
                <$wait>::patience(self)
            }

            fn give_up(self, waker: &Waker) -> Result<$answer, CacheError> {
                <$wait>::give_up(self, waker)
            }
        }
    };
}

waits_for!(ManifestWait, ManifestAnswer);
waits_for!(ListWait, ListAnswer);
waits_for!(HeadWait, HeadAnswer);
