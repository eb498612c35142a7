//! How the server starts, drains and stops.
//!
//! This module must not know connections; `pool` and `listener` run them.

use super::handler::Handler;
use super::limits::{Drain, Settings};
use super::listener;
use super::poller;
use super::pool::Threads;
use super::shared::Shared;
use super::table::{ConnectionTable, Stage};
use super::tls::ServerTls;
use super::worker::Service;
use crate::units::plural;
use rustix::event::{EventfdFlags, epoll, eventfd};
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A server that is listening, and serves once [`Server::run`] is called.
pub struct Server {
    listeners: Vec<TcpListener>,
    addresses: Vec<SocketAddr>,
    shared: Arc<Shared>,
    threads: Threads,
}

/// The result of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainReport {
    /// Connections that were open when the drain began and ended normally, including idle ones.
    pub finished: usize,
    /// Connections whose request or response was cut off by the drain timeout.
    pub cut: usize,
}

/// Why a server did not start.
#[derive(Debug)]
pub enum ServerError {
    /// No address was given.
    NoAddress,
    /// The server cannot listen on this address.
    Listen {
        /// The address, as it was given.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The objects to watch sockets with cannot be created, usually because no file descriptors are left.
    Watch(io::Error),
    /// A thread cannot be started.
    Threads {
        /// The configured number of workers.
        workers: usize,
        /// The system's error.
        source: io::Error,
    },
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAddress => f.write_str("no address to listen on"),
            Self::Listen { address, source } => write!(f, "cannot listen on {address}: {source}"),
            Self::Watch(source) => write!(f, "cannot watch sockets: {source}"),
            Self::Threads { workers, source } => {
                write!(f, "cannot start {}: {source}", plural(*workers, "worker"))
            }
        }
    }
}

impl std::error::Error for ServerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NoAddress => None,
            Self::Listen { source, .. } | Self::Watch(source) | Self::Threads { source, .. } => {
                Some(source)
            }
        }
    }
}

impl Server {
    /// Listens on all `addresses` and starts the threads. Clients are served once [`Server::run`] is called. With `tls`,
    /// clients must use TLS.
    ///
    /// # Errors
    /// An address is in use, or the system is out of file descriptors or threads.
    pub fn bind(
        addresses: &[SocketAddr],
        settings: Settings,
        tls: Option<Arc<ServerTls>>,
        handler: Arc<dyn Handler>,
    ) -> Result<Self, ServerError> {
        if addresses.is_empty() {
            return Err(ServerError::NoAddress);
        }
        let mut listeners = Vec::new();
        let mut bound = Vec::new();
        for &address in addresses {
            let listened = listener::listen(address, settings.drain)
                .and_then(|listener| Ok((listener.local_addr()?, listener)));
            let (real, listener) =
                listened.map_err(|source| ServerError::Listen { address, source })?;
            bound.push(real);
            listeners.push(listener);
        }
        let shared =
            Arc::new(share(settings.bounded(), &bound, tls, handler).map_err(ServerError::Watch)?);
        let threads = Threads::start(&shared).map_err(|source| ServerError::Threads {
            workers: shared.service.settings.workers,
            source,
        })?;
        Ok(Self { listeners, addresses: bound, shared, threads })
    }

    /// The first address. If its port was 0, this has the port that the system chose.
    pub fn address(&self) -> SocketAddr {
        // `bind` refuses an empty list of addresses.
        self.addresses[0]
    }

    /// All addresses, in the order given.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// A handle that other threads can use to control the server.
    pub fn controller(&self) -> Controller {
        Controller { shared: Arc::clone(&self.shared) }
    }

    /// Serves until [`Controller::drain`] is called and the last connection has ended.
    pub fn run(self) -> DrainReport {
        self.accept().finish()
    }

    /// Serves until [`Controller::drain`] is called and clients are refused.
    pub fn accept(mut self) -> RefusingServer {
        listener::run(std::mem::take(&mut self.listeners), &self.shared);
        RefusingServer(self)
    }
}

/// A server that refuses clients, and still serves some.
pub struct RefusingServer(Server);

impl RefusingServer {
    /// Serves until the last connection has ended.
    pub fn finish(mut self) -> DrainReport {
        self.0.threads.join();
        let Shared { service, table, .. } = &*self.0.shared;
        let cut = service.cut();
        DrainReport { finished: table.ended_since_drain().saturating_sub(cut), cut }
    }
}

fn share(
    settings: Settings,
    addresses: &[SocketAddr],
    tls: Option<Arc<ServerTls>>,
    handler: Arc<dyn Handler>,
) -> io::Result<Shared> {
    let new_eventfd = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    let (stop, kick) = (new_eventfd()?, new_eventfd()?);
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    poller::watch_kicks(&epoll, &kick)?;
    let table = ConnectionTable::new(settings.max_connections, settings.workers, epoll);
    Ok(Shared {
        service: Arc::new(Service::new(settings, tls, handler)),
        table,
        addresses: addresses.to_vec(),
        busy_workers: AtomicUsize::new(0),
        accepting: AtomicBool::new(true),
        stop,
        kick,
    })
}

/// A handle on a running server.
#[derive(Clone)]
pub struct Controller {
    shared: Arc<Shared>,
}

impl Controller {
    /// Closes idle connections and lets running responses finish. Those that have not finished after `drain_timeout` are
    /// cut off; then [`Server::run`] returns. [`Settings::drain`] decides whether clients are accepted meanwhile. This
    /// call does not block.
    pub fn drain(&self) {
        self.shared.advance(match self.shared.service.settings.drain {
            Drain::Refuse => Stage::Draining,
            Drain::Serve | Drain::Handover => Stage::Leaving,
        });
    }

    /// Cuts off all connections, as if the drain timeout had passed. This call does not block.
    pub fn stop_now(&self) {
        self.shared.advance(Stage::Cutting);
    }

    /// Whether clients are refused, because the server drains.
    pub fn is_draining(&self) -> bool {
        self.shared.is_draining()
    }

    /// How many clients are connected.
    pub fn connections(&self) -> usize {
        self.shared.table.open()
    }

    /// How many TLS handshakes have failed since the start.
    pub fn failed_handshakes(&self) -> u64 {
        self.shared.service.failed_handshakes()
    }

    /// How many bytes of responses are held in memory for clients that have not read them yet.
    pub fn response_memory(&self) -> u64 {
        self.shared.service.memory.used()
    }

    /// How many workers are running a connection.
    pub fn busy_workers(&self) -> usize {
        self.shared.busy_workers.load(Ordering::Relaxed)
    }

    /// How many connections are ready and wait for a worker.
    pub fn queue_depth(&self) -> usize {
        self.shared.table.queue().len()
    }
}
