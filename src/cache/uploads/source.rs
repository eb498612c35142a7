//! Reads files for their upload.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::store::OutgoingFile;
use crate::upstream::{Throttle, Throttled, UploadSource};

/// A file that is being uploaded.
pub(in crate::cache) struct Upload<'a> {
    pub(in crate::cache) file: &'a OutgoingFile,
    pub(in crate::cache) throttle: Option<&'a Arc<Throttle>>,
    pub(in crate::cache) is_stopped: &'a AtomicBool,
}

impl UploadSource for Upload<'_> {
    fn size(&self) -> u64 {
        self.file.size
    }

    fn sha256(&self) -> Option<[u8; 32]> {
        self.file.digest()?.as_bytes().try_into().ok()
    }

    fn open(&self, from: u64, length: u64) -> io::Result<Box<dyn Read + Send + '_>> {
        let section = Section { file: self.file, at: from, left: length };
        Ok(match self.throttle {
            Some(throttle) => Box::new(Patient(throttle.slow(section))),
            None => Box::new(section),
        })
    }

    fn is_cancelled(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
    }
}

/// A part of a file.
pub(super) struct Section<'a> {
    pub(super) file: &'a OutgoingFile,
    pub(super) at: u64,
    pub(super) left: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
        let read = self.file.read_at(&mut bytes[..wanted], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// Reads again where a limited rate says that nothing is due yet: HTTP libraries take that for a failure.
struct Patient<R>(Throttled<R>);

impl<R: Read> Read for Patient<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}
