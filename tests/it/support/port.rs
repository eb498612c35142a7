//! The port of a fake server: it accepts connections, closes them, and can stop listening and start again.
//!
//! Must not know the protocol: a function of the server serves each connection, in a thread of its own.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::{self, JoinHandle};

use rustix::net::{AddressFamily, SocketAddrAny, SocketFlags, SocketType};

use super::lock;

/// Serves a connection until it ends. The number of the connection starts at 1.
type Serve = dyn Fn(Arc<TcpStream>, u64) + Send + Sync;

/// A port of `127.0.0.1`.
pub(super) struct Port {
    inside: Arc<Inside>,
    /// The accepting thread; `None` while stopped.
    listening: Mutex<Option<Listening>>,
    /// Bound but not listening: reserves the port while the server is stopped.
    _reserved: OwnedFd,
}

struct Inside {
    address: SocketAddr,
    serve: Box<Serve>,
    connections: Mutex<Connections>,
}

#[derive(Default)]
struct Connections {
    accepted: u64,
    /// Weak, so that the socket closes when its thread ends.
    open: HashMap<u64, Weak<TcpStream>>,
    threads: Vec<JoinHandle<()>>,
}

struct Listening {
    closing: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Port {
    /// A free port, which is listening.
    pub fn open(serve: impl Fn(Arc<TcpStream>, u64) + Send + Sync + 'static) -> Port {
        let (reserved, address) = reserve_port();
        let inside = Inside { address, serve: Box::new(serve), connections: Mutex::default() };
        let port =
            Port { inside: Arc::new(inside), listening: Mutex::new(None), _reserved: reserved };
        port.start_again();
        port
    }

    pub fn address(&self) -> SocketAddr {
        self.inside.address
    }

    /// Closes all connections and refuses new ones.
    pub fn stop(&self) {
        let Some(listening) = lock(&self.listening).take() else {
            return;
        };
        listening.closing.store(true, Ordering::SeqCst);
        // Wakes the thread from accept. If the connection is refused, the thread is already awake.
        let _ = TcpStream::connect(self.inside.address);
        if listening.thread.join().is_err() && !thread::panicking() {
            panic!("the accepting thread of a fake server panicked");
        }
        self.cut_connections();
    }

    /// Listens again after [`Port::stop`].
    pub fn start_again(&self) {
        let mut listening = lock(&self.listening);
        assert!(listening.is_none(), "the fake server is already running");
        let listener = TcpListener::bind(self.inside.address).expect("the reserved port");
        let closing = Arc::new(AtomicBool::new(false));
        let (inside, flag) = (Arc::clone(&self.inside), Arc::clone(&closing));
        let thread = thread::spawn(move || inside.accept(&listener, &flag));
        *listening = Some(Listening { closing, thread });
    }

    /// Closes all connections, but accepts new ones.
    pub fn cut_connections(&self) {
        for socket in lock(&self.inside.connections).open.values().filter_map(Weak::upgrade) {
            // It may be closed already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// The number of accepted connections.
    pub fn accepted(&self) -> u64 {
        lock(&self.inside.connections).accepted
    }

    /// Waits for all connection threads, and returns how many of them panicked.
    pub fn join_threads(&self) -> usize {
        // Taken out first, because a thread takes the same lock when it ends.
        let threads = std::mem::take(&mut lock(&self.inside.connections).threads);
        threads.into_iter().filter_map(|thread| thread.join().err()).count()
    }
}

impl Inside {
    /// Accepts connections until `closing` is set and one more connection arrives.
    fn accept(self: &Arc<Self>, listener: &TcpListener, closing: &AtomicBool) {
        loop {
            let accepted = listener.accept();
            if closing.load(Ordering::SeqCst) {
                return;
            }
            // A client that disconnects before it is accepted does not end the loop.
            let Ok((socket, _)) = accepted else { continue };
            let _ = socket.set_nodelay(true);
            let socket = Arc::new(socket);
            let mut connections = lock(&self.connections);
            connections.accepted += 1;
            let number = connections.accepted;
            connections.open.insert(number, Arc::downgrade(&socket));
            let inside = Arc::clone(self);
            connections.threads.push(thread::spawn(move || {
                (inside.serve)(socket, number);
                lock(&inside.connections).open.remove(&number);
            }));
        }
    }
}

/// Reserves a port. While the socket is bound, no other process gets the port; since it never listens, connections are
/// refused unless a listener of the test shares it (both have SO_REUSEADDR).
pub fn reserve_port() -> (OwnedFd, SocketAddr) {
    // Not inherited, so that a server started as a child does not keep the port.
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)
        .expect("a socket can be made");
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true).expect("the option is known");
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let name: SocketAddrAny = rustix::net::getsockname(&socket).expect("a bound socket has a name");
    let address = SocketAddrV4::try_from(name).expect("an IPv4 socket has an IPv4 address");
    (socket, SocketAddr::V4(address))
}
