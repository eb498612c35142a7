//! Connections to upstreams: URLs, the address guard, DNS, proxies, TLS, and the agents that combine them.
//!
//! Does not know credentials or the registry API.

mod address;
mod dns_cache;
mod endpoint;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod handshake;
mod location;
mod no_proxy;
mod proxy;
mod response_head;
mod tls;
mod tls_connector;
mod transport;
mod tunnel;

pub use endpoint::{ApiPath, Endpoint, Scheme, UnlistedPorts};
pub use no_proxy::NoProxy;
pub use proxy::{ParseProxyError, Proxy, ProxySettings};
pub use tls::TlsSettings;
pub use transport::Timeouts;

pub(super) use address::{AddressRefused, Guard, is_public};
pub(super) use endpoint::HTTPS_PORT;
pub(super) use handshake::Handshake;
pub(super) use location::{Location, encode_into, is_same_owner};
pub(super) use transport::{ForeignAgents, LazyAgent, Reach};
pub(super) use tunnel::ProxyFailed;
