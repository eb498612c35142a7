//! What a job inherits from the request that needs it, whichever thread runs it.

use super::access::{self, Pass};
use crate::via::{self, Via};

/// The chain of Larders that the request has passed, and the login of its client.
#[derive(Clone)]
pub(super) struct JobContext {
    chain: Via,
    pass: Option<Pass>,
}

impl JobContext {
    /// That of this thread's current work.
    pub(super) fn current() -> JobContext {
        JobContext { chain: via::current(), pass: access::current() }
    }

    /// Runs `work` as part of it.
    pub(super) fn enter<T>(self, work: impl FnOnce() -> T) -> T {
        let JobContext { chain, pass } = self;
        chain.enter(|| access::enter(pass, work))
    }
}
