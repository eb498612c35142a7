//! A small HTTP/1.1 server for clients that mostly send GET requests.
//!
//! It accepts connections, reads request heads, calls one [`Handler`] for the answer and sends that from memory, from a
//! file, or from a file that is still growing. It must not know what a registry, a digest or a store is: a [`Reply`]
//! says everything that the server needs to know about an answer.
//!
//! **A worker never blocks.** One thread accepts connections, one polls sockets, and a fixed pool of workers takes
//! connections that can proceed from one bounded channel. A connection that would block (no request yet, unfinished
//! head, full socket, or no news from the handler or the tail) is *parked* in its slot. It is resumed when its socket is
//! ready, its deadline has passed, or a [`std::task::Waker`] was woken. So the number of workers limits how much is
//! computed at the same time, but not how many clients may be slow.
//!
//! Suggested reading order: [`Handler`] (what the rest of the program implements), `connection` (the state machine),
//! `table` (why no wake-up is lost), `server` (start and drain). The rest of the program uses only the items that this
//! file exports. Modules import only modules that are declared above them.

mod limits;

mod tail;

mod reply;
mod request_id;

mod request;

mod handler;
mod head;
mod memory;
mod render;
mod tls;

mod worker;

mod table;

mod connection;

mod shared;

mod listener;
mod poller;
mod successor;

mod pool;

mod server;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;

#[cfg(test)]
mod tests;

pub use handler::{Context, Handler, Pending, Step};
pub use limits::{Drain, Settings};
pub use render::SERVER_NAME;
pub use reply::{Body, BodyFile, CLIENT_CLOSED_REQUEST, Ending, Note, Outcome, Reply};
pub use request::{Method, Request, Version};
pub use request_id::RequestId;
pub use server::{Controller, DrainReport, Server, ServerError};
pub use tail::{Available, Tail};
pub use tls::{ClientAuth, ServerTls, ServerTlsError, ServerTlsSettings};
