//! The edge: a small HTTP/1.1 server for clients that mostly GET.
//!
//! It accepts connections, reads request heads, asks one [`Handler`] for the answer and sends that,
//! from memory, from a file or from a file that is still growing. It must not know what a registry,
//! a digest or a store is: everything it needs to know about an answer is in [`Reply`].
//!
//! **A worker never waits.** One thread accepts, one polls, and a fixed pool of workers takes
//! connections that can go on from one bounded channel. A connection that cannot go on (no request
//! yet, head unfinished, socket full, handler or tail without news) is *parked* in its slot, and
//! comes back when its socket is ready, its deadline has passed, or a [`std::task::Waker`] was
//! woken. So the number of workers bounds what is computed at once, not who may be slow.
//!
//! Read on in this order: [`Handler`] (what the rest of the program implements), `connection` (the
//! state machine), `parking` (why no wake-up is lost), `server` (how it starts and drains).

mod handler;
mod limits;
mod reply;
mod request;
mod tail;

mod head;
mod memory;
mod render;
mod tls;
mod worker;

mod table;

mod connection;

mod listener;
mod poller;
mod pool;
mod server;
mod shared;

#[cfg(test)]
mod tests;

pub use handler::{Context, Handler, Pending, Step};
pub use limits::Settings;
pub use render::SERVER_NAME;
pub use reply::{Body, BodyFile, CLIENT_CLOSED_REQUEST, Ending, Outcome, Reply};
pub use request::{Method, Request, Version};
pub use server::{Controller, DrainReport, Server, ServerError};
pub use tail::{Available, Tail};
pub use tls::{ClientAuth, ServerTls, ServerTlsError, ServerTlsSettings};
