//! One client's socket: every system call that moves bytes, and what its errors mean.
//!
//! This module must not know HTTP. The socket is non-blocking.

use rustix::buffer::spare_capacity;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};
use std::fs::File;
use std::io::IoSlice;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// Why a socket moved no bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SocketError {
    /// The kernel's buffer is empty (reading) or full (writing).
    WouldBlock,
    /// The connection is closed or broken.
    Closed,
}

/// Why no bytes of a file were sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileError {
    /// See [`SocketError::WouldBlock`].
    WouldBlock,
    /// See [`SocketError::Closed`].
    Closed,
    /// The file does not support `sendfile`; its bytes must be copied.
    Unsupported,
    /// The file cannot be read.
    Unreadable(Errno),
}

impl From<SocketError> for FileError {
    fn from(error: SocketError) -> Self {
        match error {
            SocketError::WouldBlock => Self::WouldBlock,
            SocketError::Closed => Self::Closed,
        }
    }
}

/// Whether the kernel may wait for more bytes before it sends a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum More {
    /// More bytes follow immediately.
    Follows,
    /// No more bytes follow for now.
    Nothing,
}

/// One client's socket.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// Takes ownership of a connected, non-blocking TCP socket.
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Appends to `buffer` up to its spare capacity. Returns 0 at the end of the stream.
    pub(super) fn read(&self, buffer: &mut Vec<u8>) -> Result<usize, SocketError> {
        retry_on_intr(|| rustix::io::read(&self.fd, spare_capacity(buffer))).map_err(socket_error)
    }

    /// Reads into `buffer`. Returns 0 at the end of the stream.
    pub(super) fn read_into(&self, buffer: &mut [u8]) -> Result<usize, SocketError> {
        retry_on_intr(|| rustix::io::read(&self.fd, &mut *buffer)).map_err(socket_error)
    }

    /// Reads into `buffer`, but leaves the bytes for the next read.
    pub(super) fn peek(&self, buffer: &mut [u8]) -> Result<usize, SocketError> {
        let peeked = retry_on_intr(|| rustix::net::recv(&self.fd, &mut *buffer, RecvFlags::PEEK));
        peeked.map(|(count, _)| count).map_err(socket_error)
    }

    /// Sends as much as possible of `first` followed by `second`, in one packet if it fits.
    pub(super) fn send(
        &self,
        first: &[u8],
        second: &[u8],
        more: More,
    ) -> Result<usize, SocketError> {
        if second.is_empty() {
            retry_on_intr(|| rustix::net::send(&self.fd, first, flags(more))).map_err(socket_error)
        } else {
            self.send_all(&[IoSlice::new(first), IoSlice::new(second)], more)
        }
    }

    /// Sends as much as possible of the slices, in order.
    pub(super) fn send_all(
        &self,
        slices: &[IoSlice<'_>],
        more: More,
    ) -> Result<usize, SocketError> {
        let mut none = SendAncillaryBuffer::default();
        retry_on_intr(|| rustix::net::sendmsg(&self.fd, slices, &mut none, flags(more)))
            .map_err(socket_error)
    }

    /// Sends up to `count` bytes of `file` from `position` without copying. Returns 0 at the end of the file.
    ///
    /// `sendfile` cannot suppress SIGPIPE, but Rust programs ignore that signal.
    pub(super) fn send_file(
        &self,
        file: &File,
        position: u64,
        count: usize,
    ) -> Result<usize, FileError> {
        let sent = retry_on_intr(|| {
            let mut offset = position;
            rustix::fs::sendfile(&self.fd, file, Some(&mut offset), count)
        });
        sent.map_err(|errno| match errno {
            Errno::AGAIN | Errno::INTR => FileError::WouldBlock,
            Errno::INVAL | Errno::NOSYS => FileError::Unsupported,
            Errno::PIPE | Errno::CONNRESET | Errno::TIMEDOUT | Errno::NOTCONN => FileError::Closed,
            Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::NETDOWN => FileError::Closed,
            other => FileError::Unreadable(other),
        })
    }

    /// Like [`Socket::send_file`], but copies through `buffer`.
    pub(super) fn copy_file(
        &self,
        file: &File,
        position: u64,
        count: usize,
        buffer: &mut [u8],
    ) -> Result<usize, FileError> {
        match read_file(file, position, count, buffer)? {
            0 => Ok(0),
            read => Ok(self.send(&buffer[..read], &[], More::Nothing)?),
        }
    }

    /// Sends FIN after all sent bytes. The client may still send.
    pub(super) fn finish_sending(&self) {
        // This fails only if the connection is closed already.
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Write);
    }

    /// Makes the close discard what the client has not received, so that the kernel does not keep it.
    pub(super) fn discard_unsent(&self) {
        // This fails only if the connection is closed already.
        let _ = rustix::net::sockopt::set_socket_linger(&self.fd, Some(Duration::ZERO));
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Reads up to `count` bytes of `file` from `position` into `buffer`. Returns 0 at the end of the file.
pub(super) fn read_file(
    file: &File,
    position: u64,
    count: usize,
    buffer: &mut [u8],
) -> Result<usize, FileError> {
    let count = count.min(buffer.len());
    file.read_at(&mut buffer[..count], position)
        .map_err(|error| FileError::Unreadable(Errno::from_io_error(&error).unwrap_or(Errno::IO)))
}

fn flags(more: More) -> SendFlags {
    match more {
        More::Follows => SendFlags::NOSIGNAL | SendFlags::MORE,
        More::Nothing => SendFlags::NOSIGNAL,
    }
}

fn socket_error(errno: Errno) -> SocketError {
    match errno {
        Errno::AGAIN | Errno::INTR => SocketError::WouldBlock,
        _ => SocketError::Closed,
    }
}
