//! Accepting clients, and surviving when the system is short of what they need.
//!
//! It must not know HTTP, nor touch a client's bytes.

use super::connection::Connection;
use super::limits::{ACCEPT_BACKOFF, ACCEPTS_PER_WAIT, BACKLOG};
use super::shared::Shared;
use super::table::Eviction;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{SocketAddrAny, SocketFlags};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

/// Listens on `address` without ever blocking in `accept`.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    // Listening again only sets a longer queue than the standard library's 128.
    rustix::net::listen(&listener, BACKLOG)?;
    // Accepted sockets inherit it, which saves a system call for each.
    rustix::net::sockopt::set_tcp_nodelay(&listener, true)?;
    Ok(listener)
}

/// Accepts until the drain begins; then the listeners are closed.
pub(super) fn run(listeners: Vec<TcpListener>, shared: &Shared) {
    let mut shortage = Shortage::default();
    while !shared.is_draining() {
        // The end of a shortage is worth a log line even if no client comes.
        let timeout = shortage.logged.then_some(ACCEPT_BACKOFF);
        wait(if shortage.resting { &[] } else { &listeners }, shared, timeout);
        shortage.resting = false;
        for listener in &listeners {
            let accept = || {
                let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                rustix::net::acceptfrom_with(listener, flags)
            };
            match accept_some(accept, &mut |fd, peer| admit(fd, peer, shared)) {
                Accepted::All => shortage.relieve(),
                Accepted::Some => {}
                // The system looks for a descriptor before it looks for a client.
                Accepted::Short(_) if !is_ready(listener) => {}
                Accepted::Short(errno) => {
                    // A connection without a request holds a descriptor that a new client needs more.
                    shortage.note(errno, shared.table.evict(None) == Eviction::Done);
                }
            }
        }
    }
}

/// Waits until a listener is ready, the server stops, or `timeout`.
fn wait(listeners: &[TcpListener], shared: &Shared, timeout: Option<Duration>) {
    let mut watched = vec![PollFd::new(&shared.stop, PollFlags::IN)];
    watched.extend(listeners.iter().map(|listener| PollFd::new(listener, PollFlags::IN)));
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    match poll(&mut watched, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => {
            log::error!("cannot wait for clients: {errno}");
            std::thread::sleep(ACCEPT_BACKOFF);
        }
    }
}

/// Whether a client waits to be accepted.
fn is_ready(listener: &TcpListener) -> bool {
    let mut watched = [PollFd::new(listener, PollFlags::IN)];
    poll(&mut watched, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// How a round of accepting ended.
#[derive(Debug, PartialEq, Eq)]
enum Accepted {
    /// Nobody is waiting any more.
    All,
    /// There may be more.
    Some,
    /// The system is short of something.
    Short(Errno),
}

/// Accepts some of the clients that wait.
fn accept_some(
    mut accept: impl FnMut() -> rustix::io::Result<(OwnedFd, Option<SocketAddrAny>)>,
    admit: &mut dyn FnMut(OwnedFd, Option<SocketAddrAny>),
) -> Accepted {
    for _ in 0..ACCEPTS_PER_WAIT {
        match accept() {
            Ok((fd, peer)) => admit(fd, peer),
            Err(Errno::AGAIN) => return Accepted::All,
            // The trouble of one client who is gone already (accept(2), "Error handling").
            Err(Errno::INTR | Errno::CONNABORTED | Errno::PROTO | Errno::PERM) => {}
            Err(Errno::NETDOWN | Errno::NETUNREACH | Errno::HOSTDOWN | Errno::HOSTUNREACH) => {}
            Err(Errno::NOPROTOOPT | Errno::NONET | Errno::OPNOTSUPP) => {}
            // No descriptors or memory; anything else is as good a reason not to spin.
            Err(errno) => return Accepted::Short(errno),
        }
    }
    Accepted::Some
}

fn admit(fd: OwnedFd, peer: Option<SocketAddrAny>, shared: &Shared) {
    let peer = peer_address(peer);
    let Some(guard) = shared.table.admit(peer.ip().into()) else {
        log::debug!("a client was turned away: every slot is taken");
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

/// Remembers a shortage, so that it is logged once however long it lasts.
#[derive(Debug, Default)]
struct Shortage {
    logged: bool,
    resting: bool,
}

impl Shortage {
    fn note(&mut self, errno: Errno, something_was_freed: bool) {
        self.resting |= !something_was_freed;
        if !self.logged {
            self.logged = true;
            log::error!("cannot accept clients, trying again until it works: {errno}");
        }
    }

    fn relieve(&mut self) {
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
        let mut welcomed = 0;
        let end = accept_some(|| script.pop_front().unwrap_or(Err(Errno::AGAIN)), &mut |_, _| {
            welcomed += 1
        });
        (end, welcomed)
    }

    #[test]
    fn a_client_that_left_the_queue_does_not_stop_the_next_one() {
        let script = [Err(Errno::CONNABORTED), client(), Err(Errno::INTR), client()];
        assert_eq!(accepted(script.into()), (Accepted::All, 2));
    }

    #[test]
    fn running_out_of_descriptors_ends_the_round() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::BADF] {
            let script = [client(), Err(errno), client()];
            assert_eq!(accepted(script.into()), (Accepted::Short(errno), 1));
        }
    }

    #[test]
    fn an_endless_queue_lets_the_stop_signal_through() {
        let script = (0..ACCEPTS_PER_WAIT + 1).map(|_| client()).collect();
        assert_eq!(accepted(script), (Accepted::Some, ACCEPTS_PER_WAIT));
    }
}
