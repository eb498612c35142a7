//! Larder: a pull-only, pull-through, caching OCI distribution server.
//!
//! # How it works
//! A request comes in by [`http`], a small HTTP/1.1 edge that never waits on anybody. [`api`] parses it
//! into one route and asks [`cache`], which decides: the [`store`] has it (a hit); somebody is fetching
//! it (a [`flight`] to join); or a fetcher is sent to the [`upstream`] registry. Bytes go into the store
//! as they come, and every client, the first included, follows the growing file. The nouns that all of
//! them use are in [`oci`].
//!
//! The modules are declared in reading order. What each room may use is in `ARCHITECTURE.md` and is
//! checked by a test.

pub mod api;
pub mod budget;
pub mod bundle;
pub mod cache;
pub mod certificates;
pub mod cli;
pub mod client_address;
pub mod commands;
pub mod config;
pub mod flight;
pub mod hello;
pub mod http;
pub mod metrics;
pub mod mirror;
pub mod oci;
pub mod prune;
pub mod store;
pub mod upstream;
pub mod users;
pub mod via;
