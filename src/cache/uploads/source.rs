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

    fn open_for_hash(&self, from: u64, length: u64) -> io::Result<Box<dyn Read + Send + '_>> {
        Ok(Box::new(Section { file: self.file, at: from, left: length }))
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

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;
    use crate::oci::{Algorithm, Digest, blob_path};
    use crate::store::{Settings, Store};

    /// Sending this much at a byte per second would take more than a day.
    const CONTENT: &[u8] = &[7; 100_000];

    #[test]
    fn what_is_hashed_does_not_count_for_the_rate_of_uploads() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_owned();
        let store = Store::open(&Settings { root, fsync: false }).unwrap();
        let digest = Digest::of(Algorithm::Sha256, CONTENT);
        let mut writer = store.digesting_writer(Algorithm::Sha256).unwrap();
        writer.write(CONTENT).unwrap();
        writer.commit(Some(&digest)).unwrap();
        let file = store.outgoing_file(&blob_path(&digest)).unwrap().unwrap();
        let throttle = Arc::new(Throttle::at(NonZeroU64::MIN));
        let is_stopped = AtomicBool::new(false);
        let upload = Upload { file: &file, throttle: Some(&throttle), is_stopped: &is_stopped };
        let mut read = Vec::new();
        upload.open_for_hash(10, 90_000).unwrap().read_to_end(&mut read).unwrap();
        assert!(read == CONTENT[10..90_010]);
    }
}
