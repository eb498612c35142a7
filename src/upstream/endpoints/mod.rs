//! The configured registries and their endpoints: failover, circuit breakers and rate limits.

mod breaker;
mod failover;
mod registries;
mod throttle;
mod unlisted;

pub use breaker::{BreakerPolicy, BreakerState};
pub use failover::{EndpointFailures, EndpointStatus, UpstreamStatus};
pub use registries::{Registries, RegistryChanges, RegistrySettings, Settings};
pub use unlisted::UnlistedRegistries;
