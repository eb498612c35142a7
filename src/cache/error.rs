//! The errors of lookups and fetches.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::oci::{Digest, ImageName};
use crate::store::{IngestError, StoreError};
use crate::units::duration;
use crate::upstream::{UpstreamError, UpstreamErrorKind};

/// The reason why a lookup failed. Cheap to clone: every follower of a flight receives it.
#[derive(Debug, Clone)]
pub enum CacheError {
    /// The content is not in the cache, and the server is offline (`airGapped` or `larder offline`).
    NotCached,
    /// The registry has deleted the tag, so it was removed from the cache (`onUpstreamDelete: drop`).
    DeletedUpstream,
    /// The registry recently reported that the content does not exist (`negativeTtl`).
    KnownMissing,
    /// The tag has moved at the registry, that is not accepted yet (`tags[].hold`), and the previous manifest is neither
    /// cached nor at the registry.
    Held {
        /// The previous manifest.
        previous: Digest,
    },
    /// The rules `allow` and `deny` exclude the repository.
    Refused {
        /// The repository.
        name: Arc<ImageName>,
        /// The rule of `deny` that covers it; `None` if no rule of `allow` does.
        rule: Option<Arc<str>>,
    },
    /// The registry has limited the rate of requests.
    BackingOff {
        /// The time until the next request.
        wait: Duration,
    },
    /// Little is left of the registry's rate limit, and it is kept for clients.
    KeptForClients,
    /// The request to the registry failed.
    Upstream(UpstreamError),
    /// Other content than was requested arrived. Nothing was stored.
    WrongContent {
        /// What was wrong with it.
        error: Arc<IngestError>,
        /// The URLs of the endpoints that sent it, for the log; empty if that is not known.
        senders: Arc<str>,
    },
    /// The cache's disk failed or is full.
    Store(Arc<StoreError>),
    /// The queue of fetches is full, or the server is stopping.
    GivenUp,
    /// The download gave up its fetcher to a client's job and continues later.
    Suspended,
    /// The registry did not respond in the time that clients wait.
    TimedOut,
    /// Clients are reading the maximum number of large lists or manifests.
    NoRoomForDocument,
}

/// What a failure means to the client, whichever module it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The content does not exist, as far as is known.
    NotFound,
    /// The registry does not support this API.
    Unsupported,
    /// The configuration does not allow this registry.
    NotAllowed,
    /// The registry requires other credentials.
    Denied,
    /// The rate limit of the registry is reached.
    RateLimited {
        /// The registry's `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// The registry did not respond in time.
    TimedOut,
    /// The registry reports that it is out of service.
    OutOfService,
    /// The registry is unreachable, or its response is unusable.
    Broken,
    /// The registry is a Larder that pulls through this one.
    Loop,
    /// This server cannot serve the request right now.
    Overloaded,
}

impl CacheError {
    /// What the failure means to the client.
    pub fn reason(&self) -> Reason {
        match self {
            CacheError::NotCached | CacheError::KnownMissing | CacheError::DeletedUpstream => {
                Reason::NotFound
            }
            CacheError::Refused { .. } | CacheError::Held { .. } => Reason::Denied,
            CacheError::BackingOff { wait } => Reason::RateLimited { retry_after: Some(*wait) },
            CacheError::KeptForClients => Reason::RateLimited { retry_after: None },
            CacheError::Upstream(error) => upstream_reason(error.kind()),
            CacheError::WrongContent { .. } => Reason::Broken,
            CacheError::Store(_)
            | CacheError::GivenUp
            | CacheError::Suspended
            | CacheError::NoRoomForDocument => Reason::Overloaded,
            CacheError::TimedOut => Reason::TimedOut,
        }
    }

    /// Logs that a manifest could not be fetched. `is_answer`: requests are answered with the error, and their lines in
    /// the access log have it.
    pub(super) fn log_manifest(&self, image: &str, is_answer: bool) {
        log::log!(self.log_level(is_answer), image, error:% = self; "cannot fetch the manifest");
    }

    /// The same for a blob.
    pub(super) fn log_blob(&self, name: &ImageName, digest: &Digest, is_answer: bool) {
        match self {
            // Also if requests are answered with it, since their lines do not say who sent it.
            CacheError::WrongContent { senders, .. } if !senders.is_empty() => log::warn!(
                digest:%, endpoint = &**senders, repository:% = name, error:% = self;
                "cannot fetch the blob"
            ),
            _ => log::log!(
                self.log_level(is_answer), digest:%, repository:% = name, error:% = self;
                "cannot fetch the blob"
            ),
        }
    }

    /// Whether it is worth a warning. Content that does not exist, or may not be requested, is not, since clients ask for
    /// it all the time. Refused credentials are logged where they are used, at a limited rate.
    pub fn is_worth_a_warning(&self) -> bool {
        match self.reason() {
            Reason::NotFound | Reason::Denied | Reason::Unsupported | Reason::NotAllowed => false,
            Reason::RateLimited { .. }
            | Reason::TimedOut
            | Reason::OutOfService
            | Reason::Broken
            | Reason::Loop
            | Reason::Overloaded => true,
        }
    }

    /// Names the endpoints that have sent content that is wrong.
    pub(super) fn sent_by(self, senders: String) -> CacheError {
        match self {
            CacheError::WrongContent { error, .. } => {
                CacheError::WrongContent { error, senders: senders.into() }
            }
            other => other,
        }
    }

    fn log_level(&self, is_answer: bool) -> log::Level {
        // What the disk refuses is passed through.
        let has_line = is_answer && !self.is_the_disks();
        match self.is_worth_a_warning() && !has_line {
            true => log::Level::Warn,
            false => log::Level::Debug,
        }
    }

    /// Whether the disk accepts no more data, so that the content can only be passed through. A disk that cannot be
    /// read does not count: the content may be on it, and a download would need file descriptors, which may be what is
    /// missing.
    pub fn is_the_disks(&self) -> bool {
        matches!(self, CacheError::Store(error) if !error.is_unreadable())
    }

    /// Whether a registry, a peer or the bucket sent wrong content, so that another attempt may succeed.
    pub fn is_wrong_content(&self) -> bool {
        matches!(self, CacheError::WrongContent { .. })
    }

    /// Whether the content does not exist, as far as is known.
    pub fn is_not_found(&self) -> bool {
        self.reason() == Reason::NotFound
    }
}

fn upstream_reason(kind: &UpstreamErrorKind) -> Reason {
    match kind {
        UpstreamErrorKind::NotFound | UpstreamErrorKind::Hidden => Reason::NotFound,
        UpstreamErrorKind::Unsupported | UpstreamErrorKind::NoRanges => Reason::Unsupported,
        UpstreamErrorKind::NotAllowed { .. } => Reason::NotAllowed,
        UpstreamErrorKind::Denied { .. } | UpstreamErrorKind::Credentials { .. } => Reason::Denied,
        UpstreamErrorKind::RateLimited { retry_after } => {
            Reason::RateLimited { retry_after: *retry_after }
        }
        UpstreamErrorKind::TimedOut { .. } => Reason::TimedOut,
        UpstreamErrorKind::OutOfService => Reason::OutOfService,
        UpstreamErrorKind::NoSpace => Reason::Overloaded,
        UpstreamErrorKind::Loop => Reason::Loop,
        UpstreamErrorKind::CircuitOpen { last: Some(last), .. } => upstream_reason(last.kind()),
        UpstreamErrorKind::CircuitOpen { last: None, .. } => Reason::Broken,
        UpstreamErrorKind::Status { .. }
        | UpstreamErrorKind::Unreachable { .. }
        | UpstreamErrorKind::Proxy { .. }
        | UpstreamErrorKind::Tls { .. }
        | UpstreamErrorKind::CredentialsUnavailable { .. }
        | UpstreamErrorKind::BadAnswer { .. }
        | UpstreamErrorKind::Redirect { .. }
        | UpstreamErrorKind::ObjectStore { .. }
        | UpstreamErrorKind::Unreadable { .. }
        | UpstreamErrorKind::Cancelled => Reason::Broken,
    }
}

impl From<IngestError> for CacheError {
    fn from(error: IngestError) -> CacheError {
        match error {
            IngestError::Store(error) => error.into(),
            wrong => CacheError::WrongContent { error: Arc::new(wrong), senders: Arc::default() },
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
                    "it is not in the cache, and the server is offline (airGapped, or larder \
                     offline on)"
                )
            }
            CacheError::DeletedUpstream => {
                write!(f, "the registry has deleted the tag (onUpstreamDelete: drop)")
            }
            CacheError::KnownMissing => {
                write!(f, "the registry recently reported that it does not exist")
            }
            CacheError::Refused { name, rule: Some(rule) } => {
                write!(
                    f,
                    "{name} is refused by the rule {rule} of deny (configuration of this Larder)"
                )
            }
            CacheError::Refused { name, rule: None } => {
                write!(
                    f,
                    "{name} is refused: no rule of allow covers it (configuration of this Larder)"
                )
            }
            CacheError::Held { previous } => {
                write!(
                    f,
                    "the tag has moved, which is not accepted yet (tags[].hold), and {previous} is neither cached nor \
                     at the registry; larder tags accept accepts the move"
                )
            }
            CacheError::BackingOff { wait } => {
                write!(
                    f,
                    "the registry's rate limit is reached, the next request is allowed in {}",
                    duration(*wait)
                )
            }
            CacheError::KeptForClients => {
                write!(f, "the rest of the registry's rate limit is kept for clients")
            }
            CacheError::Upstream(error) => error.fmt(f),
            CacheError::WrongContent { error, .. } => {
                write!(f, "wrong content was sent, nothing was stored: {error}")
            }
            CacheError::Store(error) => error.fmt(f),
            CacheError::GivenUp => {
                write!(f, "the fetch was dropped: the queue is full, or the server is stopping")
            }
            CacheError::Suspended => {
                write!(f, "the download was suspended in favour of a client's request")
            }
            CacheError::NoRoomForDocument => {
                write!(f, "clients are reading the maximum number of large documents")
            }
            CacheError::TimedOut => {
                write!(f, "the registry did not respond in the time that clients wait")
            }
        }
    }
}

impl std::error::Error for CacheError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            CacheError::Upstream(error) => Some(error),
            CacheError::WrongContent { error, .. } => Some(&**error),
            CacheError::Store(error) => Some(&**error),
            _ => None,
        }
    }
}
