//! **FakeProxy: an HTTP proxy with scripted targets that records its requests.**
//!
//! ```ignore
//! let proxy = FakeProxy::start();
//! proxy.route("registry.test:443", registry.address());
//! // … a pull with `proxy.url()` as the proxy …
//! assert_eq!(proxy.targets(), ["registry.test:443"]);
//! ```
//!
//! It supports CONNECT only: any other request is recorded and answered with 501. A target without a route gets 502,
//! and is listed in [`FakeProxy::targets`].
//!
//! **Dropping** closes all tunnels and joins all threads. Declare it after the registries and before the server under
//! test.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use rustls::{ServerConfig, ServerConnection};

use super::tls::{self, Authority, ClientCertificate};
use super::wire::{Recorded, find, parse};
use super::{base64, lock};

/// See the module documentation.
pub struct FakeProxy {
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
    authority: Option<Authority>,
}

struct Shared {
    address: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    closing: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    routes: HashMap<String, SocketAddr>,
    /// The required `Proxy-Authorization`.
    demanded: Option<String>,
    /// The status of every response to CONNECT.
    refusal: Option<u16>,
    requests: Vec<Recorded>,
    /// Both ends of every tunnel.
    sockets: Vec<TcpStream>,
    threads: Vec<JoinHandle<()>>,
}

impl FakeProxy {
    /// A proxy without TLS.
    pub fn start() -> FakeProxy {
        FakeProxy::launch(None, None)
    }

    /// A proxy with TLS and a certificate of a private authority for `127.0.0.1`.
    pub fn start_tls() -> FakeProxy {
        let authority = Authority::new("fake proxy's authority");
        let config = tls::server_config(&authority, ClientCertificate::NotAsked);
        FakeProxy::launch(Some(authority), Some(config))
    }

    fn launch(authority: Option<Authority>, tls: Option<Arc<ServerConfig>>) -> FakeProxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (closing, state) = (AtomicBool::new(false), Mutex::default());
        let shared = Arc::new(Shared { address, tls, closing, state });
        let accepting = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.accept(&listener))
        };
        FakeProxy { shared, accepting: Some(accepting), authority }
    }

    /// Makes `target` (`host:port`) reachable at an address.
    pub fn route(&self, target: &str, to: SocketAddr) {
        lock(&self.shared.state).routes.insert(target.to_owned(), to);
    }

    /// Requires this user and password; other requests get 407.
    pub fn demand(&self, user: &str, password: &str) {
        let value = format!("Basic {}", base64(format!("{user}:{password}").as_bytes()));
        lock(&self.shared.state).demanded = Some(value);
    }

    /// Answers every CONNECT with this status.
    pub fn refuse(&self, status: u16) {
        lock(&self.shared.state).refusal = Some(status);
    }

    /// `http://127.0.0.1:PORT`, or `https://`.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme(), self.shared.address)
    }

    /// The URL, including user and password.
    pub fn url_with(&self, user: &str, password: &str) -> String {
        format!("{}://{user}:{password}@{}", self.scheme(), self.shared.address)
    }

    fn scheme(&self) -> &'static str {
        if self.shared.tls.is_some() { "https" } else { "http" }
    }

    /// The certificate to trust.
    ///
    /// # Panics
    /// If the proxy has no TLS.
    pub fn ca_pem(&self) -> String {
        self.authority.as_ref().expect("only a proxy over TLS has an authority").pem()
    }

    /// All requests so far, in order.
    pub fn requests(&self) -> Vec<Recorded> {
        lock(&self.shared.state).requests.clone()
    }

    /// The requested targets, in order, including refused ones.
    pub fn targets(&self) -> Vec<String> {
        self.requests().into_iter().map(|request| request.path).collect()
    }

    /// Closes all tunnels and refuses connections from now on.
    pub fn stop(&mut self) {
        let Some(accepting) = self.accepting.take() else { return };
        self.shared.closing.store(true, Ordering::SeqCst);
        // Wakes the thread from accept. If the connection is refused, the thread is already awake.
        let _ = TcpStream::connect(self.shared.address);
        let joined = accepting.join();
        for socket in lock(&self.shared.state).sockets.drain(..) {
            // It may be closed already.
            let _ = socket.shutdown(Shutdown::Both);
        }
        let threads = std::mem::take(&mut lock(&self.shared.state).threads);
        let panicked = threads.into_iter().filter_map(|thread| thread.join().err()).count();
        if !thread::panicking() {
            assert!(joined.is_ok() && panicked == 0, "a thread of the fake proxy panicked");
        }
    }
}

impl Drop for FakeProxy {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        loop {
            let accepted = listener.accept();
            if self.closing.load(Ordering::SeqCst) {
                return;
            }
            // A client that disconnects before it is accepted does not end the loop.
            let Ok((socket, _)) = accepted else { continue };
            self.keep(&socket);
            let shared = Arc::clone(self);
            let serve = move || {
                // An error is a disconnect: it ends the tunnel, not the test.
                let _ = shared.serve(socket);
            };
            lock(&self.state).threads.push(thread::spawn(serve));
        }
    }

    fn keep(&self, socket: &TcpStream) {
        let _ = socket.set_nodelay(true);
        let socket = socket.try_clone().expect("a free file descriptor");
        lock(&self.state).sockets.push(socket);
    }

    fn serve(&self, socket: TcpStream) -> io::Result<()> {
        let client = Arc::new(Client::new(socket, self.tls.as_ref()));
        let mut head = Vec::new();
        while find(&head, b"\r\n\r\n").is_none() {
            let mut chunk = [0; 1024];
            match client.read(&mut chunk)? {
                0 => return Ok(()),
                count => head.extend_from_slice(&chunk[..count]),
            }
        }
        let request = parse(&head, 0)?;
        let (status, there) = self.answer(request);
        let headers =
            if status == 407 { "Proxy-Authenticate: Basic realm=\"proxy\"\r\n" } else { "" };
        let length = if status == 200 { "" } else { "Content-Length: 0\r\n" };
        let answer = format!("HTTP/1.1 {status} So\r\n{headers}{length}\r\n");
        client.write(answer.as_bytes())?;
        match there {
            Some(there) => self.tunnel(client, there),
            None => client.end(),
        }
    }

    /// The status of the response, and the connection to the target if it is 200.
    fn answer(&self, request: Recorded) -> (u16, Option<TcpStream>) {
        let mut state = lock(&self.state);
        let shown = request.header("proxy-authorization").map(str::to_owned);
        let (is_connect, target) = (request.method == "CONNECT", request.path.clone());
        state.requests.push(request);
        if !is_connect {
            return (501, None);
        }
        if state.demanded.is_some() && state.demanded != shown {
            return (407, None);
        }
        if let Some(status) = state.refusal {
            return (status, None);
        }
        let route = state.routes.get(&target).copied();
        drop(state);
        match route.and_then(|to| TcpStream::connect(to).ok()) {
            Some(there) => (200, Some(there)),
            None => (502, None),
        }
    }

    /// Copies in both directions until either side closes.
    fn tunnel(&self, client: Arc<Client>, there: TcpStream) -> io::Result<()> {
        self.keep(&there);
        let (mut out, back) = (there.try_clone()?, Arc::clone(&client));
        let down = thread::spawn(move || {
            let mut there = there;
            let mut chunk = vec![0; 64 * 1024];
            while let Ok(count @ 1..) = there.read(&mut chunk) {
                if back.write(&chunk[..count]).is_err() {
                    break;
                }
            }
            // The client may have disconnected.
            let _ = back.end();
        });
        let mut chunk = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = client.read(&mut chunk) {
            if out.write_all(&chunk[..count]).is_err() {
                break;
            }
        }
        let _ = out.shutdown(Shutdown::Both);
        drop(down.join());
        Ok(())
    }
}

/// The connection to the client, read by one thread and written by another.
struct Client {
    socket: TcpStream,
    /// Not locked while the socket is read.
    session: Option<Mutex<ServerConnection>>,
}

impl Client {
    fn new(socket: TcpStream, tls: Option<&Arc<ServerConfig>>) -> Client {
        let session = tls.map(|config| {
            let session = ServerConnection::new(Arc::clone(config));
            Mutex::new(session.expect("a server session can be made of a valid configuration"))
        });
        Client { socket, session }
    }

    fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        let Some(session) = &self.session else { return (&self.socket).read(into) };
        loop {
            match lock(session).reader().read(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            let mut raw = [0; 16 * 1024];
            let count = (&self.socket).read(&mut raw)?;
            let mut rest = &raw[..count];
            let mut session = lock(session);
            loop {
                session.read_tls(&mut rest)?;
                session.process_new_packets().map_err(io::Error::other)?;
                if rest.is_empty() {
                    break;
                }
            }
            self.flush(&mut session)?;
            if count == 0 {
                return Ok(0);
            }
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let Some(session) = &self.session else { return (&self.socket).write_all(bytes) };
        let mut session = lock(session);
        for piece in bytes.chunks(16 * 1024) {
            session.writer().write_all(piece)?;
            self.flush(&mut session)?;
        }
        Ok(())
    }

    /// Closes the sending side.
    fn end(&self) -> io::Result<()> {
        if let Some(session) = &self.session {
            let mut session = lock(session);
            session.send_close_notify();
            self.flush(&mut session)?;
        }
        self.socket.shutdown(Shutdown::Write)
    }

    fn flush(&self, session: &mut ServerConnection) -> io::Result<()> {
        while session.wants_write() {
            session.write_tls(&mut &self.socket)?;
        }
        Ok(())
    }
}
