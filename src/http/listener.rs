//! Accepts clients, also when the system runs out of file descriptors or memory.
//!
//! This module must not know HTTP, and does not read what clients send.

use super::connection::Connection;
use super::limits::{ACCEPT_BACKOFF, ACCEPTS_PER_WAIT, BACKLOG, Drain, LAST_ROUNDS_MAX};
use super::shared::Shared;
use super::table::Eviction;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrAny, SocketFlags, SocketType, sockopt};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

/// Listens on `address` with a non-blocking socket. With [`Drain::Handover`], other processes of the same user that do so
/// as well may listen on it at the same time (socket(7), `SO_REUSEPORT`).
pub(super) fn listen(address: SocketAddr, drain: Drain) -> io::Result<TcpListener> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    // Connections of a process that has ended must not keep the next one from listening.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, drain == Drain::Handover)?;
    // Accepted sockets inherit this option, which saves a system call for each of them.
    sockopt::set_tcp_nodelay(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// Accepts clients until the server refuses them, then closes the listeners.
pub(super) fn run(listeners: Vec<TcpListener>, shared: &Shared) {
    let mut shortage = Shortage::default();
    while !shared.is_draining() {
        // The end of a shortage is logged even if no client connects.
        let timeout = shortage.logged.then_some(ACCEPT_BACKOFF);
        wait(if shortage.resting { &[] } else { &listeners }, shared, timeout);
        shortage.resting = false;
        for listener in &listeners {
            match accept_some(|| accept(listener), &mut |fd, peer| admit(fd, peer, shared)) {
                Accepted::All => shortage.end(),
                Accepted::Some => {}
                // `accept` allocates a file descriptor before it checks whether a client is waiting.
                Accepted::Short(_) if !is_ready(listener) => {}
                Accepted::Short(errno) => {
                    // A connection without a request holds a file descriptor that a new client needs more.
                    shortage.record(errno, shared.table.evict(None) == Eviction::Done);
                }
            }
        }
    }
    if shared.service.settings.drain != Drain::Refuse {
        accept_the_last(&listeners, shared);
    }
}

/// Accepts the clients that have connected already. They would be reset when the listeners are closed.
fn accept_the_last(listeners: &[TcpListener], shared: &Shared) {
    for listener in listeners {
        let mut rounds = 0..LAST_ROUNDS_MAX;
        let next = || accept_some(|| accept(listener), &mut |fd, peer| admit(fd, peer, shared));
        while rounds.next().is_some() && next() == Accepted::Some {}
    }
}

fn accept(listener: &TcpListener) -> rustix::io::Result<(OwnedFd, Option<SocketAddrAny>)> {
    rustix::net::acceptfrom_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)
}

/// Waits until a listener is ready, the server stops, or `timeout` has passed.
fn wait(listeners: &[TcpListener], shared: &Shared, timeout: Option<Duration>) {
    let mut watched = vec![PollFd::new(&shared.stop, PollFlags::IN)];
    watched.extend(listeners.iter().map(|listener| PollFd::new(listener, PollFlags::IN)));
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    match poll(&mut watched, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => {
            log::error!(error:% = errno; "cannot wait for clients");
            std::thread::sleep(ACCEPT_BACKOFF);
        }
    }
}

/// Whether a client is waiting to be accepted.
fn is_ready(listener: &TcpListener) -> bool {
    let mut watched = [PollFd::new(listener, PollFlags::IN)];
    poll(&mut watched, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// How a round of accepting ended.
#[derive(Debug, PartialEq, Eq)]
enum Accepted {
    /// No client is waiting any more.
    All,
    /// More clients may be waiting.
    Some,
    /// The system is out of file descriptors or memory.
    Short(Errno),
}

/// Accepts up to `ACCEPTS_PER_WAIT` clients.
fn accept_some(
    mut accept: impl FnMut() -> rustix::io::Result<(OwnedFd, Option<SocketAddrAny>)>,
    admit: &mut dyn FnMut(OwnedFd, Option<SocketAddrAny>),
) -> Accepted {
    for _ in 0..ACCEPTS_PER_WAIT {
        match accept() {
            Ok((fd, peer)) => admit(fd, peer),
            Err(Errno::AGAIN) => return Accepted::All,
            // These errors concern one client that is already gone (accept(2), "Error handling").
            Err(Errno::INTR | Errno::CONNABORTED | Errno::PROTO | Errno::PERM) => {}
            Err(Errno::NETDOWN | Errno::NETUNREACH | Errno::HOSTDOWN | Errno::HOSTUNREACH) => {}
            Err(Errno::NOPROTOOPT | Errno::NONET | Errno::OPNOTSUPP) => {}
            // No file descriptors or no memory. Other errors are treated in the same way, so as not to spin.
            Err(errno) => return Accepted::Short(errno),
        }
    }
    Accepted::Some
}

fn admit(fd: OwnedFd, peer: Option<SocketAddrAny>, shared: &Shared) {
    let peer = peer_address(peer);
    let Some(guard) = shared.table.admit(peer.ip().into()) else {
        log::debug!("closed a new connection: all slots are in use");
        return;
    };
    let by_tls = shared.service.tls.is_some();
    let connection = Connection::new(fd, by_tls, peer, guard, Instant::now());
    let parking = connection.initial_parking(&shared.service.settings);
    shared.table.insert(Box::new(connection), parking);
}

fn peer_address(peer: Option<SocketAddrAny>) -> SocketAddr {
    let unknown = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    let address = peer.and_then(|peer| SocketAddr::try_from(peer).ok()).unwrap_or(unknown);
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A shortage of file descriptors or memory. It is logged once, however long it lasts.
#[derive(Debug, Default)]
struct Shortage {
    logged: bool,
    resting: bool,
}

impl Shortage {
    fn record(&mut self, errno: Errno, one_was_closed: bool) {
        self.resting |= !one_was_closed;
        if !self.logged {
            self.logged = true;
            log::error!(error:% = errno; "cannot accept clients, retrying");
        }
    }

    fn end(&mut self) {
        if self.logged {
            self.logged = false;
            log::info!("accepting clients again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    type Script = VecDeque<rustix::io::Result<(OwnedFd, Option<SocketAddrAny>)>>;

    fn client() -> rustix::io::Result<(OwnedFd, Option<SocketAddrAny>)> {
        let flags = rustix::event::EventfdFlags::CLOEXEC;
        Ok((rustix::event::eventfd(0, flags).unwrap(), None))
    }

    fn accepted(script: Script) -> (Accepted, usize) {
        let mut script = script;
        let mut admitted = 0;
        let end = accept_some(|| script.pop_front().unwrap_or(Err(Errno::AGAIN)), &mut |_, _| {
            admitted += 1
        });
        (end, admitted)
    }

    #[test]
    fn a_client_that_left_the_queue_does_not_block_the_next_one() {
        let script = [Err(Errno::CONNABORTED), client(), Err(Errno::INTR), client()];
        assert_eq!(accepted(script.into()), (Accepted::All, 2));
    }

    #[test]
    fn running_out_of_file_descriptors_ends_the_round() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::BADF] {
            let script = [client(), Err(errno), client()];
            assert_eq!(accepted(script.into()), (Accepted::Short(errno), 1));
        }
    }

    #[test]
    fn an_endless_queue_does_not_delay_the_stop_signal() {
        let script = (0..ACCEPTS_PER_WAIT + 1).map(|_| client()).collect();
        assert_eq!(accepted(script), (Accepted::Some, ACCEPTS_PER_WAIT));
    }
}
