//! The memory that responses may use while slow clients read them.
//!
//! This module must not know connections. A worker sends a response once; what the client does not take stays in memory
//! until the client reads it. A file costs only a file descriptor, and the total of small bodies is limited by the number
//! of connections. All other bodies count against one budget of the server. Each client address has a share of it; beyond
//! that share, the client gets a 503.

use super::reply::Body;
use crate::budget::{Budget, Charge};
use crate::client_address::ClientAddress;
use std::sync::Arc;

/// Bodies up to this size are not counted, which includes all errors and probes. With 16,384 connections they take at most
/// 32 MiB.
pub(super) const UNCOUNTED_MAX: usize = 2 * 1024;

/// Identifies one allocation, which many responses may share. An allocation is not freed while it is charged, so no other
/// one has its address.
type Allocation = (usize, usize);

/// The memory that one response uses.
pub(super) type MemoryCharge = Charge<Allocation>;

/// The memory for responses, or this client's share of it, is exhausted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Exhausted;

/// The memory budget of one server.
pub(super) struct ResponseMemory(Arc<Budget<Allocation>>);

impl ResponseMemory {
    pub(super) fn new(bytes: u64) -> ResponseMemory {
        ResponseMemory(Budget::new(bytes))
    }

    /// Counts a body until the charge is dropped. `None` if the body is not counted.
    pub(super) fn charge(
        &self,
        body: &Body,
        client: ClientAddress,
    ) -> Result<Option<MemoryCharge>, Exhausted> {
        let Body::Bytes(bytes) = body else { return Ok(None) };
        if bytes.len() <= UNCOUNTED_MAX {
            return Ok(None);
        }
        let allocation = (bytes.as_ptr() as usize, bytes.len());
        self.0.charge(allocation, bytes.len() as u64, client).map(Some).ok_or(Exhausted)
    }

    /// How many bytes are in use.
    pub(super) fn used(&self) -> u64 {
        self.0.used()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, Ipv4Addr};

    fn client(number: u8) -> ClientAddress {
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, number)).into()
    }

    #[test]
    fn one_client_cannot_take_the_memory_of_others() {
        let memory = ResponseMemory::new(1_000_000);
        let body = || Body::Bytes(vec![0; 100_000].into());
        let mut held = Vec::new();
        while let Ok(charge) = {
            let body = body();
            memory.charge(&body, client(1)).map(|charge| (body, charge))
        } {
            held.push(charge);
        }
        assert_eq!((held.len(), memory.used()), (5, 500_000));
        let other = body();
        assert!(memory.charge(&other, client(2)).is_ok());
        held.clear();
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn one_body_for_many_clients_costs_its_size_once() {
        let memory = ResponseMemory::new(1_000_000);
        let body: Arc<[u8]> = vec![0; 400_000].into();
        let charges: Vec<_> = (0..2_000)
            .map(|_| memory.charge(&Body::Bytes(Arc::clone(&body)), client(1)).unwrap())
            .collect();
        assert_eq!(memory.used(), 400_000);
        drop(charges);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn small_and_static_bodies_are_not_counted() {
        let memory = ResponseMemory::new(0);
        for body in [
            Body::Bytes(vec![0; UNCOUNTED_MAX].into()),
            Body::Static(&[0; 2 * UNCOUNTED_MAX]),
            Body::Empty,
        ] {
            assert!(memory.charge(&body, client(1)).unwrap().is_none(), "{body:?}");
        }
        let larger = Body::Bytes(vec![0; UNCOUNTED_MAX + 1].into());
        assert_eq!(memory.charge(&larger, client(1)).unwrap_err(), Exhausted);
    }
}
