//! The way to one client: its socket, in the clear or by TLS.
//!
//! It must not know HTTP. Nothing here waits: what the socket does not take now stays, encrypted, until
//! the next call. That is [`SEALED_MAX`] at most, and nothing new is taken before it has left.

use super::socket::{FileError, More, Socket, SocketError};
use crate::http::limits::SEALED_MAX;
use rustix::fd::{AsFd, BorrowedFd};
use rustls::ServerConnection;
use std::fs::File;
use std::io::{self, BufRead, IoSlice, Read, Write};

/// One client's socket, and its TLS session if it has one.
pub(super) struct Wire {
    socket: Socket,
    /// Boxed, since most connections have none.
    session: Option<Box<Session>>,
}

struct Session {
    tls: ServerConnection,
    /// The kernel took something since this was last asked for.
    moved: bool,
}

/// How far a handshake came.
#[derive(Debug)]
pub(super) enum Handshake {
    Done,
    /// The client must send more.
    AwaitsBytes,
    /// The client must take some first.
    AwaitsRoom,
    /// The client left.
    Gone,
    /// It will come to nothing; the client was told why, and the rest of what it sends is of no use.
    Failed(rustls::Error),
}

impl Wire {
    /// A way in the clear.
    pub(super) fn new(socket: Socket) -> Self {
        Self { socket, session: None }
    }

    /// What is sent and received from now on is TLS, beginning with the client's hello.
    pub(super) fn secure(&mut self, tls: ServerConnection) {
        self.session = Some(Box::new(Session { tls, moved: false }));
    }

    /// Whether the first byte that waits could begin a request in the clear; `None` if none waits.
    ///
    /// TLS begins with a record of type 22 (RFC 8446, section 5.1), a request with a letter.
    pub(super) fn begins_without_tls(&self) -> Result<bool, SocketError> {
        let mut first = [0];
        match self.socket.peek(&mut first)? {
            0 => Err(SocketError::Closed),
            _ => Ok(first[0].is_ascii_alphabetic()),
        }
    }

    /// Goes on with a handshake as far as it comes.
    pub(super) fn continue_handshake(&mut self) -> Handshake {
        let Some(session) = &mut self.session else { return Handshake::Done };
        loop {
            match session.flush(&self.socket, More::Nothing) {
                Ok(()) => {}
                Err(SocketError::WouldBlock) => return Handshake::AwaitsRoom,
                Err(SocketError::Closed) => return Handshake::Gone,
            }
            if !session.tls.is_handshaking() {
                return Handshake::Done;
            }
            match session.receive(&self.socket) {
                Ok(received) if received.bytes == 0 => return Handshake::Gone,
                Ok(_) => {}
                Err(Refused::SocketError(SocketError::WouldBlock)) => {
                    return Handshake::AwaitsBytes;
                }
                Err(Refused::SocketError(SocketError::Closed)) => return Handshake::Gone,
                Err(Refused::Protocol(error)) => {
                    self.session = None;
                    return Handshake::Failed(error);
                }
            }
        }
    }

    /// Appends some of what came to `buffer`, not beyond its spare capacity; 0 is the end.
    pub(super) fn read(&mut self, buffer: &mut Vec<u8>) -> Result<usize, SocketError> {
        match &mut self.session {
            None => self.socket.read(buffer),
            Some(session) => session.read(&self.socket, buffer),
        }
    }

    /// Whether something was received that [`Wire::read`] has not given out: no poller tells of that.
    pub(super) fn has_received(&mut self) -> bool {
        let session = self.session.as_mut();
        session.is_some_and(|session| {
            session.tls.reader().fill_buf().is_ok_and(|left| !left.is_empty())
        })
    }

    /// Sends the start of `first` followed by `second`, in one packet where it fits. What was taken may
    /// still be here afterwards: see [`Wire::flush`].
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

    /// Sends what was taken and is still here.
    pub(super) fn flush(&mut self) -> Result<(), SocketError> {
        match &mut self.session {
            None => Ok(()),
            Some(session) => session.flush(&self.socket, More::Nothing),
        }
    }

    /// Whether the client took something that no earlier call has told of.
    pub(super) fn has_moved(&mut self) -> bool {
        self.session.as_mut().is_some_and(|session| std::mem::take(&mut session.moved))
    }

    /// See [`Socket::send_file`]; what is encrypted must be copied.
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

    /// The same by copying through `buffer`.
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
        // First, since what is read while nothing can be sent is read in vain.
        session.flush(&self.socket, More::Nothing)?;
        let count = count.min(SEALED_MAX);
        let read = super::socket::read_file(file, position, count, buffer)?;
        if read == 0 {
            return Ok(0);
        }
        Ok(session.send(&self.socket, &buffer[..read], &[], More::Nothing)?)
    }

    /// Sends FIN after all that was sent; the client may still send.
    pub(super) fn finish_sending(&mut self) {
        self.send_close_notify_if_open();
        self.socket.finish_sending();
    }

    /// Makes closing discard what the client has not taken, so that the kernel keeps none of it.
    pub(super) fn discard_unsent(&mut self) {
        self.session = None;
        self.socket.discard_unsent();
    }

    /// Tells the client that this is the end of what it gets (RFC 8446, section 6.1), if it will hear.
    fn send_close_notify_if_open(&mut self) {
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
        self.send_close_notify_if_open();
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What came from the client: how many bytes of its own, 0 if it has ended.
struct Received {
    bytes: usize,
}

/// Why nothing came.
enum Refused {
    SocketError(SocketError),
    Protocol(rustls::Error),
}

impl Session {
    fn read(&mut self, socket: &Socket, buffer: &mut Vec<u8>) -> Result<usize, SocketError> {
        // rustls bounds how many messages without content may follow each other, and so this loop.
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
                Err(Refused::SocketError(halt)) => return Err(halt),
                Err(Refused::Protocol(error)) => {
                    log::debug!("a client's TLS session broke: {error}");
                    return Err(SocketError::Closed);
                }
            }
        }
    }

    /// Takes what the socket has; what that asks to be sent is sent as far as there is room.
    fn receive(&mut self, socket: &Socket) -> Result<Received, Refused> {
        let mut stream = Stream { socket, more: More::Nothing };
        let bytes =
            self.tls.read_tls(&mut stream).map_err(|error| Refused::SocketError(halt(&error)))?;
        let processed = self.tls.process_new_packets();
        if processed.is_err() || !self.tls.is_handshaking() {
            // Not waited for: it goes before whatever is sent next, and an alert is a courtesy.
            let _ = self.flush(socket, More::Nothing);
        }
        processed.map(|_| Received { bytes }).map_err(Refused::Protocol)
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
        let taken = self.tls.writer().write_vectored(&slices).map_err(|error| halt(&error))?;
        match self.flush(socket, more) {
            Ok(()) | Err(SocketError::WouldBlock) => Ok(taken),
            Err(SocketError::Closed) => Err(SocketError::Closed),
        }
    }

    fn flush(&mut self, socket: &Socket, more: More) -> Result<(), SocketError> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut Stream { socket, more }).map_err(|error| halt(&error))?;
            self.moved = true;
        }
        Ok(())
    }
}

/// A socket as rustls wants it.
struct Stream<'a> {
    socket: &'a Socket,
    more: More,
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.read_into(buffer).map_err(error)
    }
}

impl Write for Stream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.send(bytes, &[], self.more).map_err(error)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.socket.send_all(slices, self.more).map_err(error)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn error(halt: SocketError) -> io::Error {
    match halt {
        SocketError::WouldBlock => io::ErrorKind::WouldBlock.into(),
        SocketError::Closed => io::ErrorKind::ConnectionAborted.into(),
    }
}

fn halt(error: &io::Error) -> SocketError {
    match error.kind() {
        io::ErrorKind::WouldBlock => SocketError::WouldBlock,
        _ => SocketError::Closed,
    }
}
