//! What clients learn of a download when it begins: its file and its size.

use std::fs::File;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

use super::BlobLeader;
use super::transfer::Transfer;
use crate::cache::lock;
use crate::oci::ImageName;
use crate::store::{Blob, Ingest, have_same_bytes};

/// A blob that is being downloaded.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// The repository whose request started it.
    pub origin: ImageName,
    /// The growing file, which may be read up to the available bytes of the flight.
    pub file: GrowingFile,
    /// The size in bytes, if the registry or a manifest states it.
    pub size: Option<u64>,
    /// Where the size comes from.
    pub size_source: SizeSource,
    /// How many connections receive it.
    pub connections: Arc<AtomicUsize>,
}

/// The file of a download. It is replaced by a copy if the process that writes it stalls.
#[derive(Debug, Clone)]
pub struct GrowingFile(Arc<Mutex<Arc<File>>>);

impl GrowingFile {
    pub(super) fn new(file: &Arc<File>) -> GrowingFile {
        GrowingFile(Arc::new(Mutex::new(Arc::clone(file))))
    }

    /// The file that has the available bytes now.
    pub fn now(&self) -> Arc<File> {
        Arc::clone(&lock(&self.0))
    }

    pub(super) fn replace(&self, file: &Arc<File>) {
        *lock(&self.0) = Arc::clone(file);
    }
}

/// Lets the clients of a flight read on from this file, of which `written` bytes are there, if it begins with the bytes that
/// they may have received. Otherwise the digest of the file would not cover what they have. `size` is the size of the blob
/// if it is complete.
pub(super) fn continue_from(
    leader: &BlobLeader,
    file: &Arc<File>,
    written: u64,
    size: Option<u64>,
) -> bool {
    let Some(incoming) = leader.flight().header() else { return true };
    let shown = leader.flight().available();
    // Clients whose `Content-Length` is another size would take a part for the whole.
    let is_other_size = size.is_some_and(|size| incoming.size.is_some_and(|said| said != size));
    if is_other_size || written < shown {
        return false;
    }
    match have_same_bytes(&incoming.file.now(), file, shown) {
        Ok(true) => {
            incoming.file.replace(file);
            true
        }
        Ok(false) => false,
        Err(error) => {
            log::debug!(
                digest:% = leader.key().1, repository:% = incoming.origin, error:%;
                "cannot compare a partial download with what clients have received"
            );
            false
        }
    }
}

/// Where the size of a blob comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SizeSource {
    /// The registry, or the verified bytes.
    Registry,
    /// A manifest of the repository for which the download was started, because the registry does not report the size.
    /// Anyone can publish a manifest, so this size applies to that repository only.
    Manifest,
}

pub(super) fn incoming(
    name: &ImageName,
    ingest: &Ingest,
    size: Option<u64>,
    size_source: SizeSource,
    transfer: Option<&Transfer>,
) -> Incoming {
    let connections = transfer.map_or_else(|| Arc::new(AtomicUsize::new(1)), Transfer::connections);
    let (origin, file) = (name.clone(), GrowingFile::new(ingest.file()));
    Incoming { origin, file, size, size_source, connections }
}

/// Announces a blob that is in the store already: all of it is available at once.
pub(super) fn announce_stored(name: &ImageName, leader: &BlobLeader, blob: Blob) -> Blob {
    let (origin, file, size) = (name.clone(), GrowingFile::new(&blob.file), Some(blob.size));
    let size_source = SizeSource::Registry;
    let incoming = Incoming { origin, file, size, size_source, connections: Arc::default() };
    leader.announce_all(incoming, blob.size);
    blob
}
