//! Where a response came from, and why it was not a plain hit: the fields `cache=` and `reason=` of the access log.

use super::{CacheError, Reason};
use crate::upstream::UpstreamErrorKind;

/// Where a response came from: the field `cache=` of the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// The store, with or without a confirmation by the registry.
    Hit,
    /// A download that another request started.
    Join,
    /// A download that this request started.
    Miss,
    /// The store, although a confirmation was due: the registry was unreachable or refused the request.
    Stale,
    /// The registry, because the content could not be stored.
    Bypass,
}

impl How {
    /// The value in the access log.
    pub fn as_str(self) -> &'static str {
        match self {
            How::Hit => "hit",
            How::Join => "join",
            How::Miss => "miss",
            How::Stale => "stale",
            How::Bypass => "bypass",
        }
    }
}

/// Why a response was not a plain hit: the field `reason=` of the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The content was not in the cache.
    NotCached,
    /// The cached tag or list was older than its time to live, and the registry has sent a new one.
    Expired,
    /// The cached tag was older than `tagTtl`, and the registry confirmed it for this request.
    Confirmed,
    /// The cached tag was older than `tagTtl`, and the server is offline.
    Offline,
    /// It is confirmed in the background, for later requests (`staleWhileRevalidate`).
    Revalidating,
    /// The registry has failed or refused the same request recently, so it was not asked again.
    RecentFailure,
    /// The tag has moved at the registry, and the previous manifest is served until that is accepted (`tags[].hold`).
    Held,
    /// A Larder that was asked could not confirm the tag itself.
    StaleAtParent,
    /// A rule of `allow` or `deny` excludes the repository.
    Refused,
    /// The disk accepts no more data.
    Disk,
    /// The request to the registry failed.
    Failed(Reason),
    /// The registry, or what is in front of it, could not be reached.
    Unreachable,
}

impl Why {
    /// The value in the access log.
    pub fn as_str(self) -> &'static str {
        match self {
            Why::NotCached => "not-cached",
            Why::Expired => "expired",
            Why::Confirmed => "confirmed",
            Why::Offline => "offline",
            Why::Revalidating => "revalidating",
            Why::RecentFailure => "recent-failure",
            Why::Held => "held",
            Why::StaleAtParent => "stale-at-parent",
            Why::Refused => "refused",
            Why::Disk => "disk",
            Why::Unreachable => "registry-unreachable",
            Why::Failed(reason) => match reason {
                Reason::NotFound => "not-found",
                Reason::Unsupported => "unsupported",
                Reason::NotAllowed => "not-allowed",
                Reason::Denied => "denied",
                Reason::RateLimited { .. } => "rate-limited",
                Reason::TimedOut => "timed-out",
                Reason::OutOfService => "out-of-service",
                Reason::Broken => "registry-failure",
                Reason::Loop => "loop",
                Reason::Overloaded => "overloaded",
            },
        }
    }
}

impl From<&CacheError> for Why {
    fn from(error: &CacheError) -> Why {
        match error {
            CacheError::NotCached => Why::NotCached,
            CacheError::Store(_) => Why::Disk,
            CacheError::Refused { .. } => Why::Refused,
            CacheError::Held { .. } => Why::Held,
            CacheError::Upstream(cause) if is_unreachable(cause.kind()) => Why::Unreachable,
            _ => Why::Failed(error.reason()),
        }
    }
}

fn is_unreachable(kind: &UpstreamErrorKind) -> bool {
    match kind {
        UpstreamErrorKind::Unreachable { .. } | UpstreamErrorKind::Proxy { .. } => true,
        UpstreamErrorKind::CircuitOpen { last: Some(last), .. } => is_unreachable(last.kind()),
        _ => false,
    }
}
