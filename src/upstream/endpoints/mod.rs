//! The configured registries and their endpoints: failover, circuit breakers and rate limits.

mod breaker;
mod bucket;
mod checks;
mod deciding;
mod failover;
mod guarded;
mod peers;
mod registries;
mod throttle;
mod unlisted;

pub use breaker::{BreakerPolicy, BreakerState};
pub use bucket::{Bucket, RECORD_BYTES_MAX};
pub use failover::{EndpointFailures, UpstreamStatus};
pub use guarded::EndpointStatus;
pub use peers::{PeerMembers, PeerSettings, PeerStatus};
pub use registries::{Registries, RegistryChanges, RegistrySettings, Settings};
pub use throttle::{Throttle, Throttled};
pub use unlisted::UnlistedRegistries;
