//! Why there is no answer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::store::{IngestError, StoreError};
use crate::units::duration;
use crate::upstream::{UpstreamError, UpstreamErrorKind};

/// A lookup failed. Cheap to clone: it reaches everybody who waits for the same thing.
#[derive(Debug, Clone)]
pub enum CacheError {
    /// It is not in the cache, and no upstream may be asked (`airGapped`).
    NotCached,
    /// Upstream has deleted the tag, and so it was forgotten here (`onUpstreamDelete: drop`).
    DeletedUpstream,
    /// Upstream said so a moment ago (`negativeTtl`).
    KnownMissing,
    /// Upstream asked, with its last 429, not to be asked again so soon.
    BackingOff {
        /// How much longer.
        wait: Duration,
    },
    /// Upstream was asked and failed.
    Upstream(UpstreamError),
    /// What upstream sent is not what was asked for. Nothing was kept.
    WrongContent(Arc<IngestError>),
    /// The cache's disk refused.
    Store(Arc<StoreError>),
    /// Too many fetches wait already, or the server is stopping.
    GivenUp,
    /// The download gave its fetcher up to a job that somebody waits for, and continues later.
    Suspended,
    /// Nothing came in the time that clients wait.
    TimedOut,
    /// Clients are reading as many large lists as there is room for.
    NoRoomForList,
}

/// What a failure means to whoever asked, whichever room it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// There is no such content, as far as can be known.
    NotFound,
    /// The upstream does not offer this API.
    Unsupported,
    /// This upstream may not be asked.
    NotAllowed,
    /// Upstream wants other credentials.
    Denied,
    /// Upstream's rate limit is reached.
    RateLimited {
        /// How long upstream says to wait.
        retry_after: Option<Duration>,
    },
    /// Upstream did not answer in time.
    TimedOut,
    /// Upstream says of itself that it is out of service.
    OutOfService,
    /// Upstream cannot be reached, or its answer cannot be used.
    Broken,
    /// Upstream is a Larder that asks this one.
    Loop,
    /// This server cannot do it right now.
    Overloaded,
}

impl CacheError {
    /// What the failure means to whoever asked.
    pub fn reason(&self) -> Reason {
        match self {
            CacheError::NotCached | CacheError::KnownMissing | CacheError::DeletedUpstream => {
                Reason::NotFound
            }
            CacheError::BackingOff { wait } => Reason::RateLimited { retry_after: Some(*wait) },
            CacheError::Upstream(error) => upstream_reason(error.kind()),
            CacheError::WrongContent(_) => Reason::Broken,
            CacheError::Store(_)
            | CacheError::GivenUp
            | CacheError::Suspended
            | CacheError::NoRoomForList => Reason::Overloaded,
            CacheError::TimedOut => Reason::TimedOut,
        }
    }

    /// Says, once a fetch, that it failed. Worth a warning or not: clients ask for what does not exist
    /// all the time, and refused credentials are said where they are shown, once in a while.
    pub(super) fn log(&self, what: &str) {
        match self.reason() {
            Reason::NotFound | Reason::Denied => log::debug!("{what}: {self}"),
            _ => log::warn!("{what}: {self}"),
        }
    }

    /// Whether the disk took nothing more, so that the content can be had past it. A disk that cannot be read is
    /// another matter: the content may be on it, and a download would take descriptors that it lacks as well.
    pub fn is_the_disks(&self) -> bool {
        matches!(self, CacheError::Store(error) if !error.is_unreadable())
    }

    /// Whether what came was not what was asked for, so that another try may fare better.
    pub fn is_wrong_content(&self) -> bool {
        matches!(self, CacheError::WrongContent(_))
    }

    /// Whether the content does not exist, as far as can be known.
    pub fn is_not_found(&self) -> bool {
        self.reason() == Reason::NotFound
    }
}

fn upstream_reason(kind: &UpstreamErrorKind) -> Reason {
    match kind {
        UpstreamErrorKind::NotFound | UpstreamErrorKind::Hidden => Reason::NotFound,
        UpstreamErrorKind::Unsupported => Reason::Unsupported,
        UpstreamErrorKind::NotAllowed { .. } => Reason::NotAllowed,
        UpstreamErrorKind::Denied { .. } | UpstreamErrorKind::Credentials { .. } => Reason::Denied,
        UpstreamErrorKind::RateLimited { retry_after } => {
            Reason::RateLimited { retry_after: *retry_after }
        }
        UpstreamErrorKind::TimedOut { .. } => Reason::TimedOut,
        UpstreamErrorKind::OutOfService => Reason::OutOfService,
        UpstreamErrorKind::Loop => Reason::Loop,
        UpstreamErrorKind::CircuitOpen { last: Some(last), .. } => upstream_reason(last.kind()),
        UpstreamErrorKind::CircuitOpen { last: None, .. } => Reason::Broken,
        UpstreamErrorKind::Status { .. }
        | UpstreamErrorKind::Unreachable { .. }
        | UpstreamErrorKind::Proxy { .. }
        | UpstreamErrorKind::Tls { .. }
        | UpstreamErrorKind::CredentialsUnavailable { .. }
        | UpstreamErrorKind::BadAnswer { .. }
        | UpstreamErrorKind::Redirect { .. } => Reason::Broken,
    }
}

impl From<IngestError> for CacheError {
    fn from(error: IngestError) -> CacheError {
        match error {
            IngestError::Store(error) => error.into(),
            wrong => CacheError::WrongContent(Arc::new(wrong)),
        }
    }
}

impl From<StoreError> for CacheError {
    fn from(error: StoreError) -> CacheError {
        CacheError::Store(Arc::new(error))
    }
}

impl From<UpstreamError> for CacheError {
    fn from(error: UpstreamError) -> CacheError {
        CacheError::Upstream(error)
    }
}

impl fmt::Display for CacheError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CacheError::NotCached => {
                write!(
                    f,
                    "it is not in the cache, and no upstream may be asked (airGapped, or larder \
                     offline on)"
                )
            }
            CacheError::DeletedUpstream => {
                write!(f, "upstream has deleted the tag (onUpstreamDelete: drop)")
            }
            CacheError::KnownMissing => write!(f, "upstream did not have it a moment ago"),
            CacheError::BackingOff { wait } => {
                write!(
                    f,
                    "upstream's rate limit is reached, and it asked to wait {} more",
                    duration(*wait)
                )
            }
            CacheError::Upstream(error) => error.fmt(f),
            CacheError::WrongContent(error) => {
                write!(f, "upstream sent wrong content, nothing was kept: {error}")
            }
            CacheError::Store(error) => error.fmt(f),
            CacheError::GivenUp => {
                write!(f, "the fetch was given up: too many are waiting, or the server is stopping")
            }
            CacheError::Suspended => {
                write!(f, "the download was suspended in favour of one that somebody waits for")
            }
            CacheError::NoRoomForList => {
                write!(f, "clients are reading as many large lists as there is room for")
            }
            CacheError::TimedOut => {
                write!(f, "upstream has not answered in the time that clients wait")
            }
        }
    }
}

impl std::error::Error for CacheError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            CacheError::Upstream(error) => Some(error),
            CacheError::WrongContent(error) => Some(&**error),
            CacheError::Store(error) => Some(&**error),
            _ => None,
        }
    }
}
