//! The transport to one client: its socket, with or without TLS.
//!
//! This module must not know HTTP. No call blocks: encrypted bytes that the socket does not accept stay here until the
//! next call. These are at most [`SEALED_MAX`] bytes, and no further bytes are encrypted before they are sent.

use super::socket::{FileError, More, Socket, SocketError};
use crate::certificates;
use crate::http::limits::SEALED_MAX;
use rustix::fd::{AsFd, BorrowedFd};
use rustls::ServerConnection;
use std::fs::File;
use std::io::{self, BufRead, IoSlice, Read, Write};
use std::sync::Arc;

/// One client's socket, and its TLS session if it has one.
pub(super) struct Wire {
    socket: Socket,
    /// Boxed, since most connections have none.
    session: Option<Box<Session>>,
}

struct Session {
    tls: ServerConnection,
    /// The kernel accepted bytes since the last call of [`Wire::has_moved`].
    moved: bool,
    /// The common name in the client's certificate.
    client: Option<Arc<str>>,
}

/// The state of a TLS handshake.
#[derive(Debug)]
pub(super) enum Handshake {
    Done,
    /// The socket must become readable.
    WantsRead,
    /// The socket must become writable.
    WantsWrite,
    /// The client has closed the connection.
    Closed,
    /// The handshake failed. The client got an alert, and whatever else it sends is useless.
    Failed(rustls::Error),
}

impl Wire {
    /// A transport without TLS.
    pub(super) fn new(socket: Socket) -> Self {
        Self { socket, session: None }
    }

    /// Switches to TLS. The next bytes from the client are its ClientHello.
    pub(super) fn secure(&mut self, tls: ServerConnection) {
        self.session = Some(Box::new(Session { tls, moved: false, client: None }));
    }

    /// Whether the first received byte could begin a plaintext request. The byte stays in the socket.
    ///
    /// TLS begins with a record of type 22 (RFC 8446, section 5.1), a request begins with a letter.
    pub(super) fn begins_without_tls(&self) -> Result<bool, SocketError> {
        let mut first = [0];
        match self.socket.peek(&mut first)? {
            0 => Err(SocketError::Closed),
            _ => Ok(first[0].is_ascii_alphabetic()),
        }
    }

    /// Continues the handshake until it would block, ends or fails.
    pub(super) fn continue_handshake(&mut self) -> Handshake {
        let Some(session) = &mut self.session else { return Handshake::Done };
        loop {
            match session.flush(&self.socket, More::Nothing) {
                Ok(()) => {}
                Err(SocketError::WouldBlock) => return Handshake::WantsWrite,
                Err(SocketError::Closed) => return Handshake::Closed,
            }
            if !session.tls.is_handshaking() {
                let chain = session.tls.peer_certificates().unwrap_or_default();
                session.client = chain.first().and_then(certificates::common_name);
                return Handshake::Done;
            }
            match session.receive(&self.socket) {
                Ok(0) => return Handshake::Closed,
                Ok(_) => {}
                Err(ReceiveError::Socket(SocketError::WouldBlock)) => {
                    return Handshake::WantsRead;
                }
                Err(ReceiveError::Socket(SocketError::Closed)) => return Handshake::Closed,
                Err(ReceiveError::Protocol(error)) => {
                    self.session = None;
                    return Handshake::Failed(error);
                }
            }
        }
    }

    /// The common name in the client's certificate, which was verified during the handshake.
    pub(super) fn client_name(&self) -> Option<Arc<str>> {
        self.session.as_ref().and_then(|session| session.client.clone())
    }

    /// Appends received bytes to `buffer`, up to its spare capacity. Returns 0 at the end of the stream.
    pub(super) fn read(&mut self, buffer: &mut Vec<u8>) -> Result<usize, SocketError> {
        match &mut self.session {
            None => self.socket.read(buffer),
            Some(session) => session.read(&self.socket, buffer),
        }
    }

    /// Whether decrypted bytes are waiting for [`Wire::read`]. The poller does not report these.
    pub(super) fn has_received(&mut self) -> bool {
        let session = self.session.as_mut();
        session.is_some_and(|session| {
            session.tls.reader().fill_buf().is_ok_and(|left| !left.is_empty())
        })
    }

    /// Sends as much as possible of `first` followed by `second`, in one packet if it fits. With TLS, accepted bytes may
    /// still be buffered afterwards: see [`Wire::flush`].
    pub(super) fn send(
        &mut self,
        first: &[u8],
        second: &[u8],
        more: More,
    ) -> Result<usize, SocketError> {
        match &mut self.session {
            None => self.socket.send(first, second, more),
            Some(session) => session.send(&self.socket, first, second, more),
        }
    }

    /// Sends what [`Wire::send`] has buffered.
    pub(super) fn flush(&mut self) -> Result<(), SocketError> {
        match &mut self.session {
            None => Ok(()),
            Some(session) => session.flush(&self.socket, More::Nothing),
        }
    }

    /// Whether the kernel accepted bytes since the last call.
    pub(super) fn has_moved(&mut self) -> bool {
        self.session.as_mut().is_some_and(|session| std::mem::take(&mut session.moved))
    }

    /// See [`Socket::send_file`]. With TLS this is unsupported, because the bytes must be copied to be encrypted.
    pub(super) fn send_file(
        &mut self,
        file: &File,
        position: u64,
        count: usize,
    ) -> Result<usize, FileError> {
        match self.session {
            None => self.socket.send_file(file, position, count),
            Some(_) => Err(FileError::Unsupported),
        }
    }

    /// Like [`Wire::send_file`], but copies through `buffer`.
    pub(super) fn copy_file(
        &mut self,
        file: &File,
        position: u64,
        count: usize,
        buffer: &mut [u8],
    ) -> Result<usize, FileError> {
        let Some(session) = &mut self.session else {
            return self.socket.copy_file(file, position, count, buffer);
        };
        // Flush first: if the socket accepts nothing, reading the file would be useless.
        session.flush(&self.socket, More::Nothing)?;
        let count = count.min(SEALED_MAX);
        let read = super::socket::read_file(file, position, count, buffer)?;
        if read == 0 {
            return Ok(0);
        }
        Ok(session.send(&self.socket, &buffer[..read], &[], More::Nothing)?)
    }

    /// Sends FIN after all sent bytes. The client may still send.
    pub(super) fn finish_sending(&mut self) {
        self.close_session();
        self.socket.finish_sending();
    }

    /// Makes the close discard what the client has not received, so that the kernel does not keep it.
    pub(super) fn discard_unsent(&mut self) {
        self.session = None;
        self.socket.discard_unsent();
    }

    /// Sends the TLS close alert (RFC 8446, section 6.1), if there is a session and the socket accepts it.
    fn close_session(&mut self) {
        if let Some(session) = &mut self.session
            && !session.tls.is_handshaking()
        {
            session.tls.send_close_notify();
            let _ = session.flush(&self.socket, More::Nothing);
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.close_session();
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Why no TLS records were received.
enum ReceiveError {
    Socket(SocketError),
    Protocol(rustls::Error),
}

impl Session {
    fn read(&mut self, socket: &Socket, buffer: &mut Vec<u8>) -> Result<usize, SocketError> {
        // This loop ends, because rustls limits how many messages without content may follow each other.
        loop {
            let spare = buffer.capacity() - buffer.len();
            match self.tls.reader().fill_buf() {
                Ok(received) => {
                    let count = received.len().min(spare);
                    buffer.extend_from_slice(&received[..count]);
                    self.tls.reader().consume(count);
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(SocketError::Closed),
            }
            match self.receive(socket) {
                Ok(_) => {}
                Err(ReceiveError::Socket(error)) => return Err(error),
                Err(ReceiveError::Protocol(error)) => {
                    log::debug!(error:%; "a client's TLS session broke");
                    return Err(SocketError::Closed);
                }
            }
        }
    }

    /// Processes what the socket has received, and sends replies of the protocol as far as the socket accepts them.
    /// Returns the number of received bytes, 0 at the end of the stream.
    fn receive(&mut self, socket: &Socket) -> Result<usize, ReceiveError> {
        let mut stream = Stream { socket, more: More::Nothing };
        let bytes = self
            .tls
            .read_tls(&mut stream)
            .map_err(|error| ReceiveError::Socket(socket_error(&error)))?;
        let processed = self.tls.process_new_packets();
        if processed.is_err() || !self.tls.is_handshaking() {
            // A reply that cannot be sent now is sent before the next data, and an alert is optional.
            let _ = self.flush(socket, More::Nothing);
        }
        processed.map(|_| bytes).map_err(ReceiveError::Protocol)
    }

    fn send(
        &mut self,
        socket: &Socket,
        first: &[u8],
        second: &[u8],
        more: More,
    ) -> Result<usize, SocketError> {
        self.flush(socket, More::Nothing)?;
        let first = &first[..first.len().min(SEALED_MAX)];
        let second = &second[..second.len().min(SEALED_MAX - first.len())];
        let slices = [IoSlice::new(first), IoSlice::new(second)];
        let taken =
            self.tls.writer().write_vectored(&slices).map_err(|error| socket_error(&error))?;
        match self.flush(socket, more) {
            Ok(()) | Err(SocketError::WouldBlock) => Ok(taken),
            Err(SocketError::Closed) => Err(SocketError::Closed),
        }
    }

    fn flush(&mut self, socket: &Socket, more: More) -> Result<(), SocketError> {
        while self.tls.wants_write() {
            self.tls
                .write_tls(&mut Stream { socket, more })
                .map_err(|error| socket_error(&error))?;
            self.moved = true;
        }
        Ok(())
    }
}

/// Adapts a socket to the traits that rustls uses.
struct Stream<'a> {
    socket: &'a Socket,
    more: More,
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.read_into(buffer).map_err(io_error)
    }
}

impl Write for Stream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.send(bytes, &[], self.more).map_err(io_error)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.socket.send_all(slices, self.more).map_err(io_error)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn io_error(error: SocketError) -> io::Error {
    match error {
        SocketError::WouldBlock => io::ErrorKind::WouldBlock.into(),
        SocketError::Closed => io::ErrorKind::ConnectionAborted.into(),
    }
}

fn socket_error(error: &io::Error) -> SocketError {
    match error.kind() {
        io::ErrorKind::WouldBlock => SocketError::WouldBlock,
        _ => SocketError::Closed,
    }
}
