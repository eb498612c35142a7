//! Larder: a pull-only, pull-through, caching OCI distribution server.
//!
//! # How it works
//! [`http`], a small event-driven HTTP/1.1 server, receives a request. [`api`] parses it into a route and
//! passes it to [`cache`]. If the content is in the [`store`], it is a hit. If another request is already
//! fetching it, the request joins that [`flight`]. Otherwise the cache starts a fetch from the [`upstream`]
//! registry. Bytes are written to the store as they arrive, and every client, including the first, reads
//! from the growing file. The types that all modules share are in [`oci`].
//!
//! The modules are declared in reading order. `ARCHITECTURE.md` lists which modules each module may use; a
//! test checks it.

pub mod api;
pub mod budget;
pub mod bundle;
pub mod cache;
pub mod certificates;
pub mod cli;
pub mod client_address;
pub mod client_config;
pub mod commands;
pub mod config;
pub mod events;
pub mod flight;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod hello;
pub mod http;
pub mod image_references;
pub mod image_sync;
pub mod introduction;
pub mod metrics;

pub mod oci;
pub mod oidc;
pub mod prune;
pub mod store;
mod sync;
pub mod units;
pub mod upstream;
pub mod users;
pub mod via;
