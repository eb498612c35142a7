//! The registries of a configuration and their endpoints: which is asked, in which order, and when it is left alone.

mod breaker;
mod failover;
mod registries;
mod throttle;
mod unlisted;

pub use breaker::{BreakerPolicy, BreakerState};
pub use failover::{EndpointFailures, EndpointStatus, UpstreamStatus};
pub use registries::{Registries, RegistryChanges, RegistrySettings, Settings};
pub use unlisted::UnlistedRegistries;
