//! The one thread that waits: for sockets, for deadlines, and for the end of a drain.
//!
//! It must not know what connections are; it only puts them back to work.

use super::limits::{CUT_GRACE, DRAIN_SCAN_INTERVAL, EVENTS_PER_WAIT, SCAN_INTERVAL};
use super::shared::Shared;
use super::table::{Stage, Sweep};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use std::time::{Duration, Instant};

/// The token of the event that only interrupts the wait; no slot has so high an index.
const KICK: u64 = u64::MAX;

/// Makes `kick` interrupt the waits on `epoll`, once for every write to it.
pub(super) fn watch_kicks(epoll: &OwnedFd, kick: &OwnedFd) -> rustix::io::Result<()> {
    let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(epoll, kick, epoll::EventData::new_u64(KICK), edge)
}

/// Polls until a drain has ended.
pub(super) fn run(shared: &Shared) {
    let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS_PER_WAIT);
    let mut next_sweep = Instant::now() + SCAN_INTERVAL;
    let mut drain = Drain::default();
    loop {
        wait(shared, &mut events, next_sweep);
        for event in &events {
            // The fields of a packed structure must be copied out.
            let (flags, data) = (event.flags, event.data);
            if data.u64() != KICK {
                shared.table.socket_ready(data.u64(), flags);
            }
        }
        let now = Instant::now();
        if shared.table.stage() != Stage::Serving {
            if drain.advance(shared, now) {
                return;
            }
            next_sweep = now + DRAIN_SCAN_INTERVAL;
        } else if now >= next_sweep {
            shared.table.sweep(now, Sweep::Expired);
            next_sweep = now + SCAN_INTERVAL;
        }
    }
}

fn wait(shared: &Shared, events: &mut Vec<epoll::Event>, until: Instant) {
    events.clear();
    let timeout = until.saturating_duration_since(Instant::now());
    let timeout = Timespec::try_from(timeout).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
    match epoll::wait(shared.table.epoll(), spare_capacity(events), Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(errno) => {
            // It cannot be, but if it is, a loop without any wait would make it worse.
            log::error!("cannot wait for sockets: {errno}");
            std::thread::sleep(SCAN_INTERVAL);
        }
    }
}

/// What the poller remembers of a drain.
#[derive(Default)]
struct Drain {
    began: Option<Instant>,
    cut: Option<Instant>,
}

impl Drain {
    /// Takes the drain further; true when it is over.
    fn advance(&mut self, shared: &Shared, now: Instant) -> bool {
        let began = *self.began.get_or_insert(now);
        if passed(began, shared.service.settings.drain_timeout, now) {
            shared.table.advance(Stage::Cutting);
        }
        if shared.table.stage() == Stage::Cutting {
            let cut = *self.cut.get_or_insert(now);
            shared.table.sweep(now, Sweep::All);
            if passed(cut, CUT_GRACE, now) {
                return true;
            }
        } else {
            shared.table.sweep(now, Sweep::Idle);
        }
        !shared.is_accepting() && shared.table.open() == 0
    }
}

fn passed(since: Instant, timeout: Duration, now: Instant) -> bool {
    now.saturating_duration_since(since) >= timeout
}
