//! The state that all threads of one server share.

use super::connection::Connection;
use super::table::{ConnectionTable, Stage};
use super::worker::Service;
use rustix::fd::OwnedFd;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What the listener, the poller and the workers share.
pub(super) struct Shared {
    pub(super) service: Arc<Service>,
    pub(super) table: Arc<ConnectionTable<Connection>>,
    /// Where the server listens.
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) busy_workers: AtomicUsize,
    pub(super) accepting: AtomicBool,
    /// An eventfd that interrupts the listener.
    pub(super) stop: OwnedFd,
    /// An eventfd that interrupts the poller.
    pub(super) kick: OwnedFd,
}

impl Shared {
    pub(super) fn is_accepting(&self) -> bool {
        self.accepting.load(Ordering::Acquire)
    }

    /// Whether no more clients are accepted.
    pub(super) fn is_draining(&self) -> bool {
        self.table.stage() >= Stage::Draining
    }

    /// Advances to `stage`, and interrupts the listener and the poller so that they notice.
    pub(super) fn advance(&self, stage: Stage) {
        self.table.advance(stage);
        ring(&self.stop);
        ring(&self.kick);
    }

    /// Records that no further connection will be accepted.
    pub(super) fn end_accepting(&self) {
        self.accepting.store(false, Ordering::Release);
        ring(&self.kick);
    }
}

/// Writes to an eventfd. This fails only if its counter is full, and then it is readable already.
fn ring(eventfd: &OwnedFd) {
    let _ = rustix::io::write(eventfd, &1_u64.to_ne_bytes());
}
