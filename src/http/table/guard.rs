//! A connection's ownership of its slot, which ends with the connection.

use super::shares::Entry;
use super::{ConnectionTable, Interest, Occupant, Place, SlotId, Stage, lock};
use crate::client_address::ClientAddress;
use crate::sync::Arc;
use crate::sync::atomic::Ordering;
use std::task::{Wake, Waker};

/// Whether a client is served, or only gets a 503.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Admission {
    Served,
    Surplus,
}

/// Owns a slot. Dropping the guard frees the slot, so a connection that is lost to a panic does not leak one.
pub(in crate::http) struct SlotGuard<C> {
    table: Arc<ConnectionTable<C>>,
    pub(super) id: SlotId,
    pub(super) client: ClientAddress,
    admission: Admission,
    /// What the poller watches for, unless it has reported it since.
    pub(super) armed: Option<Interest>,
    pub(super) has_hung_up: bool,
}

impl<C> SlotGuard<C> {
    pub(super) fn new(
        table: &Arc<ConnectionTable<C>>,
        id: SlotId,
        client: ClientAddress,
        admission: Admission,
    ) -> Self {
        let table = Arc::clone(table);
        Self { table, id, client, admission, armed: None, has_hung_up: false }
    }

    /// Whether the client has a place among the `max_connections`.
    pub(in crate::http) fn admission(&self) -> Admission {
        self.admission
    }

    /// Whether the poller found the connection broken, or the client gone while the server waited for that.
    pub(in crate::http) fn has_hung_up(&self) -> bool {
        self.has_hung_up
    }

    /// The stage of the server.
    pub(in crate::http) fn stage(&self) -> Stage {
        self.table.stage()
    }
}

impl<C: Occupant> SlotGuard<C> {
    /// Whether the client is served now. A surplus client is served if a place is free by now or will be in a moment;
    /// in the second case it keeps its surplus slot, so a busy server never has more connections than slots.
    pub(in crate::http) fn claim_place(&mut self) -> bool {
        if self.admission == Admission::Served {
            return true;
        }
        let place = self.table.claim_place(self.client);
        if place == Place::Now {
            self.table.surplus.fetch_sub(1, Ordering::AcqRel);
            self.admission = Admission::Served;
        }
        place != Place::None
    }

    /// A waker for the connection in this slot. It may outlive the connection; then it does nothing.
    pub(in crate::http) fn waker(&self) -> Waker {
        Waker::from(Arc::new(SlotWaker { table: Arc::clone(&self.table), id: self.id }))
    }
}

impl<C> Drop for SlotGuard<C> {
    fn drop(&mut self) {
        let mut slot = self.table.slot(self.id.index);
        let listed = slot.listed.take();
        slot.close_when_parked = false;
        slot.generation = slot.generation.wrapping_add(1);
        slot.woken = false;
        slot.socket_fired = false;
        drop(slot);
        match self.admission {
            Admission::Served => {
                let entry = listed.map(|since| Entry { since, place: self.id });
                lock(&self.table.shares).close(self.client, entry);
            }
            Admission::Surplus => {
                self.table.surplus.fetch_sub(1, Ordering::AcqRel);
            }
        }
        if self.table.stage() != Stage::Serving {
            self.table.ended_since_drain.fetch_add(1, Ordering::Relaxed);
        }
        lock(&self.table.free).push(self.id.index);
    }
}

struct SlotWaker<C> {
    table: Arc<ConnectionTable<C>>,
    id: SlotId,
}

impl<C: Send + 'static> Wake for SlotWaker<C> {
    fn wake(self: Arc<Self>) {
        self.table.wake(self.id);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.table.wake(self.id);
    }
}
