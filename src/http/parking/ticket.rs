//! The hold of a connection on its seat, which ends with it.

use super::{Lot, MadeRoom, SeatId, Stage, lock};
use crate::client_address::ClientAddress;
use crate::http::shares::Listing;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Wake, Waker};

/// Whether a client is served or only told that it is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Admission {
    Served,
    Surplus,
}

/// The right to a seat. Dropping it frees the seat, so that nothing that goes wrong can leak one.
pub(in crate::http) struct Ticket {
    lot: Arc<Lot>,
    pub(super) id: SeatId,
    pub(super) client: ClientAddress,
    admission: Admission,
}

impl Ticket {
    pub(super) fn new(
        lot: &Arc<Lot>,
        id: SeatId,
        client: ClientAddress,
        admission: Admission,
    ) -> Ticket {
        Ticket { lot: Arc::clone(lot), id, client, admission }
    }

    /// Whether the client has a place among the `max_connections`.
    pub(in crate::http) fn admission(&self) -> Admission {
        self.admission
    }

    /// Whether the client is served now: a surplus one is if there is a place for it by now, or will be in a moment.
    /// Until then it keeps its surplus seat, so that a busy server never has more connections than seats.
    pub(in crate::http) fn claim_place(&mut self) -> bool {
        if self.admission == Admission::Served {
            return true;
        }
        let room = self.lot.make_room(self.client);
        if room == MadeRoom::Now {
            self.lot.surplus.fetch_sub(1, Ordering::AcqRel);
            self.admission = Admission::Served;
        }
        room != MadeRoom::None
    }

    /// A waker for the connection in this seat. It outlives the connection without harm.
    pub(in crate::http) fn waker(&self) -> Waker {
        Waker::from(Arc::new(SeatWaker { lot: Arc::clone(&self.lot), id: self.id }))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut seat = self.lot.seat(self.id.index);
        let listed = seat.listed.take();
        seat.doomed = false;
        seat.generation = seat.generation.wrapping_add(1);
        seat.woken = false;
        seat.fired = false;
        drop(seat);
        match self.admission {
            Admission::Served => {
                let listing = listed.map(|since| Listing { since, place: self.id });
                lock(&self.lot.shares).closed(self.client, listing);
            }
            Admission::Surplus => {
                self.lot.surplus.fetch_sub(1, Ordering::AcqRel);
            }
        }
        if self.lot.stage() != Stage::Serving {
            self.lot.ended_since_drain.fetch_add(1, Ordering::Relaxed);
        }
        lock(&self.lot.free).push(self.id.index);
    }
}

struct SeatWaker {
    lot: Arc<Lot>,
    id: SeatId,
}

impl Wake for SeatWaker {
    fn wake(self: Arc<Self>) {
        self.lot.wake(self.id);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.lot.wake(self.id);
    }
}
