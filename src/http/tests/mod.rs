//! Tests of the server over real sockets, with raw bytes.

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
