//! Interleavings of the connection table (`make interleavings`).
//!
//! | Interleaving | Explored |
//! | --- | --- |
//! | a worker parks a connection while a waker wakes it: the wake-up is not lost | all |
//! | a worker parks a connection while bytes arrive and the poller reports them | all |
//! | a waker, the poller and a drain at the same time: the connection is queued once | some |
//! | a connection closes, and its slot is used again, while a waker of the old one wakes it | all |
//! | a full table displaces a connection while it parks, wakes up, or gets a complete request | some |
//! | clients connect and leave at the same time: every place is free again at the end | some |
//!
//! Sockets and epoll are real; they never block here.

use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicBool as Flag;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::fd::BorrowedFd;

use super::*;
use crate::sync::atomic::AtomicBool;
use crate::sync::interleavings::{all, some};
use crate::sync::thread;

struct Connection {
    guard: SlotGuard<Connection>,
    socket: UnixStream,
    peer: UnixStream,
    /// Set while a response is being sent.
    in_response: Arc<Flag>,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Occupant for Connection {
    fn guard(&self) -> &SlotGuard<Self> {
        &self.guard
    }

    fn guard_mut(&mut self) -> &mut SlotGuard<Self> {
        &mut self.guard
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let is_cut = self.in_response.load(Ordering::Relaxed);
        assert!(!is_cut || std::thread::panicking(), "a connection was closed during a response");
    }
}

type Table = Arc<ConnectionTable<Connection>>;

fn table(max_connections: usize) -> Table {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    ConnectionTable::new(max_connections, 2, epoll)
}

fn client(number: u8) -> ClientAddress {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, number)).into()
}

fn parking(interest: Interest, evictable: Option<Evictable>) -> Parking {
    Parking { interest, deadline: Instant::now() + Duration::from_secs(3600), evictable }
}

fn evictable() -> Option<Evictable> {
    Some(Evictable { since: Instant::now(), is_idle: true })
}

fn connection(guard: SlotGuard<Connection>) -> Box<Connection> {
    let (socket, peer) = UnixStream::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    Box::new(Connection { guard, socket, peer, in_response: Arc::default() })
}

/// A connection that a worker holds: it was parked and has been woken.
fn with_worker(table: &Table, parking: Parking) -> Box<Connection> {
    let connection = connection(table.admit(client(1)).unwrap());
    let waker = connection.guard.waker();
    table.insert(connection, parking);
    waker.wake();
    queued(table).expect("the wake-up queued it")
}

fn queued(table: &Table) -> Option<Box<Connection>> {
    match table.queue().try_recv() {
        Ok(Job::Serve(connection)) => Some(connection),
        Ok(Job::Stop) => panic!("nothing stops workers"),
        Err(_) => None,
    }
}

/// What the poller does when its wait ends.
fn poll(table: &Table) {
    let mut events: Vec<epoll::Event> = Vec::with_capacity(8);
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    epoll::wait(table.epoll(), spare_capacity(&mut events), Some(&now)).unwrap();
    for event in events {
        let (flags, data) = (event.flags, event.data);
        table.socket_ready(data.u64(), flags);
    }
}

/// Where a worker leaves a connection.
enum Left {
    Proceeds(Box<Connection>),
    Parked,
}

/// A worker: parks until the connection can proceed.
fn work(
    table: &Table,
    mut connection: Box<Connection>,
    interest: Interest,
    can_proceed: impl Fn(&Connection) -> bool,
) -> Left {
    loop {
        if can_proceed(&connection) {
            return Left::Proceeds(connection);
        }
        match table.park(connection, parking(interest, None)) {
            Ok(()) => return Left::Parked,
            Err(woken) => connection = woken,
        }
    }
}

/// A connection that can proceed is with a worker or in the queue, and nowhere else.
fn is_found(table: &Table, left: Left) {
    let queued = queued(table);
    match left {
        Left::Proceeds(connection) => {
            assert!(queued.is_none(), "it is in two places");
            drop(connection);
        }
        Left::Parked => assert!(queued.is_some(), "a wake-up was lost"),
    }
    assert!(self::queued(table).is_none(), "it is queued twice");
}

#[test]
fn a_wake_up_while_a_connection_parks_is_not_lost() {
    all(|| {
        let table = table(2);
        let connection = with_worker(&table, parking(Interest::Hangup, None));
        let is_ready = Arc::new(AtomicBool::new(false));
        let wakes = {
            let (waker, is_ready) = (connection.guard.waker(), Arc::clone(&is_ready));
            thread::spawn(move || {
                is_ready.store(true, Ordering::Release);
                waker.wake();
            })
        };
        let left = work(&table, connection, Interest::Hangup, |_| is_ready.load(Ordering::Acquire));
        wakes.join().unwrap();
        is_found(&table, left);
    });
}

fn has_bytes(connection: &Connection) -> bool {
    let mut byte = [0];
    rustix::net::recv(&connection.socket, &mut byte, rustix::net::RecvFlags::PEEK).is_ok()
}

/// Sends a byte to a connection, and lets the poller see it.
fn arrive(table: &Table, peer: UnixStream) -> thread::JoinHandle<()> {
    let table = Arc::clone(table);
    thread::spawn(move || {
        rustix::io::write(&peer, b"x").unwrap();
        thread::yield_now();
        poll(&table);
    })
}

#[test]
fn bytes_that_arrive_while_a_connection_parks_are_reported() {
    all(|| {
        let table = table(2);
        let connection = with_worker(&table, parking(Interest::Readable, None));
        let peer = connection.peer.try_clone().unwrap();
        let arrive = arrive(&table, peer);
        let left = work(&table, connection, Interest::Readable, has_bytes);
        arrive.join().unwrap();
        // The poller goes on.
        poll(&table);
        is_found(&table, left);
    });
}

#[test]
fn a_waker_the_poller_and_a_drain_queue_a_connection_once() {
    some(|| {
        let table = table(2);
        let connection = with_worker(&table, parking(Interest::Readable, None));
        let (waker, peer) = (connection.guard.waker(), connection.peer.try_clone().unwrap());
        let is_ready = Arc::new(AtomicBool::new(false));
        let wakes = {
            let is_ready = Arc::clone(&is_ready);
            thread::spawn(move || {
                is_ready.store(true, Ordering::Release);
                waker.wake();
            })
        };
        let arrive = arrive(&table, peer);
        let drains = {
            let table = Arc::clone(&table);
            thread::spawn(move || table.sweep(Instant::now(), Sweep::All))
        };
        let left = work(&table, connection, Interest::Readable, |connection| {
            has_bytes(connection) && is_ready.load(Ordering::Acquire)
        });
        for thread in [wakes, arrive, drains] {
            thread.join().unwrap();
        }
        poll(&table);
        is_found(&table, left);
    });
}

#[test]
fn a_waker_of_a_connection_that_has_ended_does_not_wake_the_next_one() {
    all(|| {
        let table = table(1);
        let old = with_worker(&table, parking(Interest::Hangup, None));
        let waker = old.guard.waker();
        let wakes = thread::spawn(move || waker.wake());
        drop(old);
        let next = with_worker(&table, parking(Interest::Hangup, None));
        let parked = table.park(next, parking(Interest::Hangup, None));
        wakes.join().unwrap();
        assert!(parked.is_ok() && queued(&table).is_none(), "it was woken");
        table.sweep(Instant::now(), Sweep::All);
        assert!(queued(&table).is_some(), "it is parked");
    });
}

/// Closes everything, and checks that every place is free again.
fn ends_empty(table: &Table, max_connections: u8) {
    table.sweep(Instant::now(), Sweep::All);
    while queued(table).is_some() {}
    assert_eq!(table.open(), 0, "a slot is lost");
    let all: Vec<_> =
        (1..=max_connections).map(|number| table.admit(client(number)).unwrap()).collect();
    assert!(all.iter().all(|guard| guard.admission() == Admission::Served), "a place is lost");
    assert_eq!(table.surplus.load(Ordering::Acquire), 0, "a surplus slot is lost");
}

/// A worker serves the connection of client 1 while client 2 needs its place. `has_request` says whether the worker
/// finds a complete request.
fn displacement(has_request: bool) {
    let table = table(1);
    let connection = with_worker(&table, parking(Interest::Readable, evictable()));
    let serves = {
        let table = Arc::clone(&table);
        thread::spawn(move || {
            let mut connection = connection;
            let mut parking = parking(Interest::Readable, evictable());
            if has_request {
                connection.in_response.store(true, Ordering::Relaxed);
                parking.evictable = None;
            }
            let in_response = Arc::clone(&connection.in_response);
            while let Err(woken) = table.park(connection, parking) {
                connection = woken;
            }
            in_response
        })
    };
    let arrives = {
        let table = Arc::clone(&table);
        thread::spawn(move || {
            let mut guard = table.admit(client(2)).expect("there are surplus slots");
            guard.claim_place();
            guard
        })
    };
    let in_response = serves.join().unwrap();
    let mut guard = arrives.join().unwrap();
    let is_open = table.open() == 2;
    assert_eq!(guard.claim_place(), !has_request, "an idle connection gives up its place");
    assert_eq!(is_open, has_request, "a response is not cut off");
    in_response.store(false, Ordering::Relaxed);
    drop(guard);
    ends_empty(&table, 1);
}

#[test]
fn a_full_table_closes_an_idle_connection_but_never_a_response() {
    some(|| displacement(false));
    some(|| displacement(true));
}

#[test]
fn places_are_neither_lost_nor_counted_twice() {
    some(|| {
        let table = table(2);
        let comes_and_goes = |number| {
            let table = Arc::clone(&table);
            thread::spawn(move || {
                for _ in 0..2 {
                    let Some(mut guard) = table.admit(client(number)) else { continue };
                    guard.claim_place();
                    let connection = connection(guard);
                    table.insert(connection, parking(Interest::Readable, evictable()));
                }
            })
        };
        let threads = [comes_and_goes(1), comes_and_goes(2), comes_and_goes(3)];
        for thread in threads {
            thread.join().unwrap();
        }
        ends_empty(&table, 2);
    });
}
