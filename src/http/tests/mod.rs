//! The edge over real sockets: raw bytes in, raw bytes out.

mod bodies;
mod capacity;
mod client;
mod drain;
mod files;
mod memory;
mod requests;
mod server;
mod tails;
mod timeouts;
mod tls;
mod waiting;
