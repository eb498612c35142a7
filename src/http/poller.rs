//! The thread that waits for sockets, for deadlines, and for the end of a drain.
//!
//! This module must not know what connections are; it only sends them to the workers.

use super::limits::{
    self, BUSY_MAX, CUT_GRACE, DRAIN_SCAN_INTERVAL, EVENTS_PER_WAIT, SCAN_INTERVAL,
};
use super::shared::Shared;
use super::successor;
use super::table::{Stage, Sweep};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use std::time::{Duration, Instant};

/// The token of the event that only interrupts the wait. No slot has such a high index.
const KICK: u64 = u64::MAX;

/// Makes every write to `kick` interrupt one wait on `epoll`.
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
            // Fields of a packed struct cannot be borrowed, so they are copied.
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
            // This should be impossible; the pause prevents a busy loop.
            log::error!(error:% = errno; "cannot wait for sockets");
            std::thread::sleep(SCAN_INTERVAL);
        }
    }
}

/// The progress of a drain.
#[derive(Default)]
struct Drain {
    began: Option<Instant>,
    cut: Option<Instant>,
    next_idle_sweep: Option<Instant>,
    /// When no response was running for the first time.
    quiet: Option<Instant>,
}

impl Drain {
    /// Advances the drain. Returns true when it is complete.
    fn advance(&mut self, shared: &Shared, now: Instant) -> bool {
        let began = *self.began.get_or_insert(now);
        if passed(began, shared.service.settings.drain_timeout, now) {
            shared.advance(Stage::Cutting);
        }
        if shared.table.stage() == Stage::Leaving && shared.table.is_quiet() {
            // Until the work of the handler has ended, the process would not end either.
            let quiet = *self.quiet.get_or_insert(now);
            if !shared.service.handler.is_busy() || passed(quiet, BUSY_MAX, now) {
                self.close(shared, now);
            }
        }
        if shared.table.stage() == Stage::Leaving
            && shared.service.settings.drain == limits::Drain::Handover
            && self.next_idle_sweep.is_none_or(|next| next <= now)
            && successor::listens(&shared.addresses)
        {
            self.close(shared, now);
        }
        if shared.table.stage() == Stage::Cutting {
            let cut = *self.cut.get_or_insert(now);
            shared.table.sweep(now, Sweep::All);
            if passed(cut, CUT_GRACE, now) {
                return true;
            }
        } else {
            // Connections that are idle by then were parked with the deadline of a server that does not drain, or are
            // new. Those that may stay park again, which is not worth doing at every scan.
            let is_due = self.next_idle_sweep.is_none_or(|next| next <= now);
            if is_due {
                self.next_idle_sweep = Some(now + SCAN_INTERVAL);
            }
            let every_scan = shared.table.stage() == Stage::Draining;
            shared
                .table
                .sweep(now, if every_scan || is_due { Sweep::Idle } else { Sweep::Expired });
        }
        !shared.is_accepting() && shared.table.open() == 0
    }

    /// Refuses clients from now on.
    fn close(&self, shared: &Shared, now: Instant) {
        shared.advance(Stage::Draining);
        // Unfinished heads have little time left now.
        shared.table.sweep(now, Sweep::All);
    }
}

fn passed(since: Instant, timeout: Duration, now: Instant) -> bool {
    now.saturating_duration_since(since) >= timeout
}
