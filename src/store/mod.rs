//! The cache directory: verified content, and the names under which clients pulled it.
//!
//! ```text
//! <root>/oci-layout, index.json                     a valid OCI image layout (image-spec, image-layout.md)
//! <root>/blobs/<alg>/<hex>                          immutable, verified: layers, configs, manifests
//! <root>/refs/<upstream>/<repo>/_tags/<tag>         JSON: digest, mediaType, size, fetched, checked
//! <root>/refs/<upstream>/<repo>/_manifests/<alg>/<hex>   JSON: mediaType, size, fetched
//! <root>/lists/<hash of repo>-<hash of query>       the last good tag list or referrers answer
//! <root>/partials/<upstream>/<alg>-<hex>            the partial download of that digest
//! <root>/partials/<upstream>/<alg>-<hex>.json       JSON: the repository of the download
//! <root>/incoming/spool-…                           content that is being imported
//! <root>/incoming/*.lock, tmp-…                     locks, and replacement files before their rename
//! <root>/quarantine/<alg>-<hex>                     damaged blobs
//! <root>/scrubbed, pruned                           mtime: when the job last ran
//! <root>/offline                                    exists in offline mode (`larder offline`)
//! <root>/pins                                       one pattern per line: images that are never evicted
//! <root>/pins-configured                            the server's configured pins, for commands that do not read
//! its configuration
//! <root>/usage/summary.json, images.jsonl           results of the last usage walk, for immediate use
//! ```
//!
//! This module must not know that upstreams exist, what HTTP is, or how long anything stays fresh.
//!
//! # Invariants
//! * **Content before names.** A file under `blobs/` is complete and verified: a rename gives it its name after
//!   size and digest agree and after `fdatasync`. A tag is written after its manifest.
//! * **Damage is a miss.** A file that is missing, short, unreadable or not JSON counts as absent, with a log line
//!   and a counter. Only failures of the operator's disk are errors.
//! * **No scan at start.** [`Store::open`] does the same small amount of work for an empty cache and for a million
//!   images.
//! * **Processes may share a directory.** Temporary names are unique, files are published by rename, and `flock`
//!   allows one writer per partial. The locks are those of the local kernel; on network file systems they work only
//!   if the file system forwards them.
//!
//! # Crash points
//! * Killed before the rename: a partial stays in `partials/` and no name refers to it. The next ingest of that
//!   digest hashes it again and appends to it.
//! * Killed between a manifest's rename and its tag: an unreferenced blob, which a sweep removes.
//! * Killed while a record is replaced: the complete old record.
//!
//! There is no fourth state.

mod catalogue;
mod digesting_writer;
mod disk;
mod documents;
mod error;
mod eviction;
mod faults;
mod images;
mod index;
mod ingest;
mod layout;
mod lease;
mod lists;
mod lock;
mod owner;
mod partials;
mod pins;
mod references;
mod refs;
mod sweep;
mod usage;
mod verify;
mod walk;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;

use crate::oci::{Digest, Verifier};
use crate::units::plural;

pub use catalogue::{
    Catalogue, CatalogueImage, CatalogueRepository, Content, RepositoryNames, RepositoryTimes,
};
pub use digesting_writer::DigestingWriter;
pub use disk::{DiskUsage, Space};
pub use documents::{Document, DocumentWriter};
pub use error::StoreError;
pub use eviction::{Evictable, Evicted, EvictionCandidate, EvictionIndex, IsPinned};
pub use images::{Graph, GraphBlob, GraphManifest, StoredImage};
pub use ingest::{Begin, Ingest, IngestError};
pub use lease::{JobLease, PeriodicJob};
pub use lists::ListRecord;
pub use partials::PartialFile;
pub use refs::{Access, ManifestRecord, TagRecord};
pub use sweep::{FUTURE_TOLERANCE, GRACE, Removal, Sweep, SweepLocked, Swept};
pub use usage::{ImageUsage, RegistryUsage, RepositoryUsage, UsageSummary};
pub use verify::{Checked, Damage};

use faults::Faults;
use layout::{Layout, move_directory, open_to_read, read_file};

/// How many bytes of a file are hashed at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// How the directory is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The cache directory; created if missing.
    pub root: PathBuf,
    /// Whether content and names are synced to the disk before they count. Only tests and throw-away caches turn it
    /// off.
    pub fsync: bool,
}

/// An open cache directory. Clones share it; every method may be called from any thread.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    layout: Layout,
    fsync: bool,
    /// False if the directory refused a write when it was opened. Hits are still served.
    writable: bool,
    /// Number of files found missing, short, or with the wrong content for their name, since the start.
    damaged_files: AtomicU64,
    /// Number of failed reads of files and directories since the start.
    unreadable_files: AtomicU64,
    faults: Faults,
    /// Whether a tag changed since `index.json` was written.
    index_outdated: AtomicBool,
    /// Bytes on the disk at the last count; negative before the first count.
    bytes_counted: AtomicI64,
    /// Bytes that this process has added (positive) or removed (negative) since that count.
    bytes_changed: AtomicI64,
    /// Held during a count: two concurrent counts would subtract the changes twice.
    counting: Mutex<()>,
    /// Budgets for documents that are being sent, by kind.
    budgets: [documents::DocumentBudgets; documents::KINDS],
    large_documents: documents::LargeDocuments,
}

/// A stored blob: verified when it was ingested, and open, so that it cannot vanish.
#[derive(Debug, Clone)]
pub struct Blob {
    /// The open file. It is shared, so read it by offset only.
    pub file: Arc<File>,
    /// Its size in bytes when it was opened.
    pub size: u64,
}

impl Store {
    /// Opens the directory and creates what is missing. The amount of work does not depend on its content.
    ///
    /// # Errors
    /// [`StoreError`] if the root is a file, or cannot be created. A directory that exists but cannot
    /// be written opens as read-only: see [`Store::is_writable`].
    pub fn open(settings: &Settings) -> Result<Store, StoreError> {
        let layout = Layout::new(settings.root.clone());
        let writable = layout.prepare()?;
        let inner = Inner {
            layout,
            fsync: settings.fsync,
            writable,
            damaged_files: AtomicU64::new(0),
            unreadable_files: AtomicU64::new(0),
            faults: Faults::default(),
            // A process that wrote a tag may have been killed before it updated the index.
            index_outdated: AtomicBool::new(writable),
            bytes_counted: AtomicI64::new(-1),
            bytes_changed: AtomicI64::new(0),
            counting: Mutex::new(()),
            budgets: Default::default(),
            large_documents: documents::LargeDocuments::default(),
        };
        Ok(Store { inner: Arc::new(inner) })
    }

    /// The cache directory.
    pub fn root(&self) -> &Path {
        self.inner.layout.root()
    }

    /// Whether the directory accepted a write when it was opened.
    pub fn is_writable(&self) -> bool {
        self.inner.writable
    }

    /// Whether the directory can be read now: a volume may have been unmounted.
    pub fn is_readable(&self) -> bool {
        read_file(&self.root().join("oci-layout")).is_ok()
    }

    /// Free space on the disk for an unprivileged process, in bytes; `None` if the system does not report it.
    pub fn free_bytes(&self) -> Option<u64> {
        self.space().map(|space| space.free_bytes)
    }

    /// The size of the disk in bytes; `None` if the system does not report it.
    pub fn disk_size(&self) -> Option<u64> {
        self.space().map(|space| space.size_bytes)
    }

    /// Whether offline mode is on (`larder offline`). All processes on this directory follow it.
    pub fn is_offline(&self) -> bool {
        self.inner.layout.offline_switch().exists()
    }

    /// Turns offline mode on or off.
    ///
    /// # Errors
    /// [`StoreError`] if the write fails.
    pub fn set_offline(&self, offline: bool) -> Result<(), StoreError> {
        let path = self.inner.layout.offline_switch();
        let switched = match offline {
            true => {
                let mut options = File::options();
                options.write(true).create(true).truncate(true);
                self.inner.layout.owner().open(&mut options, &path).map(drop)
            }
            false => fs::remove_file(&path),
        };
        match switched {
            Err(error) if offline || error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::write(&path, error))
            }
            _ => Ok(()),
        }
    }

    /// Number of damaged files found since the start.
    pub fn damaged_files(&self) -> u64 {
        self.inner.damaged_files.load(Ordering::Relaxed)
    }

    /// Opens the blob of `digest`. `None` is a miss: the blob is absent, damaged, or not `expected_bytes` long. Use
    /// this if a miss costs nothing; [`Store::find_blob`] distinguishes a store that cannot be read from one that
    /// does not have the blob.
    pub fn blob(&self, digest: &Digest, expected_bytes: Option<u64>) -> Option<Blob> {
        self.find_blob(digest, expected_bytes).unwrap_or_default()
    }

    /// Like [`Store::blob`], but reports read errors.
    ///
    /// # Errors
    /// [`StoreError::Read`] if a read error leaves it unknown whether the blob exists.
    pub fn find_blob(
        &self,
        digest: &Digest,
        expected_bytes: Option<u64>,
    ) -> Result<Option<Blob>, StoreError> {
        let path = self.inner.layout.blob(digest);
        let Some((file, size)) = self.open_file(&path)? else { return Ok(None) };
        Ok(match expected_bytes {
            Some(expected) if expected != size => {
                let size = plural(size, "byte");
                self.damaged(&path, &format!("it has {size} instead of {expected}"))
            }
            // Each algorithm has one digest of empty content; any other empty file was truncated.
            None if size == 0 && !digest.is_of_nothing() => self.damaged(&path, "it is empty"),
            _ => Some(Blob { file: Arc::new(file), size }),
        })
    }

    /// Reads a small blob (a manifest) and checks its digest.
    pub fn read(&self, digest: &Digest, expected_bytes: u64) -> Option<Vec<u8>> {
        self.find_bytes(digest, expected_bytes).unwrap_or_default()
    }

    /// Like [`Store::read`], but reports read errors.
    ///
    /// # Errors
    /// [`StoreError::Read`] if the blob exists but cannot be read, or if its existence is unknown.
    pub fn find_bytes(
        &self,
        digest: &Digest,
        expected_bytes: u64,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(blob) = self.find_blob(digest, Some(expected_bytes))? else { return Ok(None) };
        let path = self.inner.layout.blob(digest);
        let Ok(length) = usize::try_from(blob.size) else { return Ok(None) };
        let mut bytes = vec![0; length];
        if let Err(error) = blob.file.read_exact_at(&mut bytes, 0) {
            return self.failed_to_read(&path, error);
        }
        Ok(match Digest::of(digest.algorithm(), &bytes) == *digest {
            true => Some(bytes),
            false => self.damaged(&path, "its content does not match its digest"),
        })
    }

    /// Opens a regular file and returns it with its size in bytes; `None` if it does not exist. Anything else in
    /// its place (a pipe, a directory, a link) is damage. Opening a pipe does not block.
    fn open_file(&self, path: &Path) -> Result<Option<(File, u64)>, StoreError> {
        let opened = self.inner.faults.check(path).and_then(|()| open_to_read(path));
        let found = opened.and_then(|file| {
            let metadata = file.metadata()?;
            Ok((file, metadata))
        });
        match found {
            Ok((file, metadata)) if metadata.is_file() => Ok(Some((file, metadata.len()))),
            Ok(_) => Ok(self.damaged(path, "not a regular file")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => self.failed_to_read(path, error),
        }
    }

    /// Classifies a read error. A damaged file is a miss. A store that cannot be read is an error, since the
    /// content may exist.
    fn failed_to_read<T>(&self, path: &Path, error: io::Error) -> Result<Option<T>, StoreError> {
        if is_damage(&error) {
            return Ok(self.damaged(path, &error.to_string()));
        }
        let before = self.inner.unreadable_files.fetch_add(1, Ordering::Relaxed);
        let error = StoreError::read(path, error);
        // A server without descriptors fails on every request, so only powers of two are logged.
        if (before + 1).is_power_of_two() {
            log::error!("{error} ({} such failures since the start)", before + 1);
        }
        Err(error)
    }

    /// Makes `count` reads of paths that end with `suffix` fail, after `spared` successful ones.
    #[cfg(test)]
    pub(crate) fn fail_reads(&self, suffix: &str, spared: usize, count: usize, errno: Errno) {
        self.inner.faults.fail(suffix, spared, count, errno.raw_os_error());
    }

    /// Whether all requested failures have happened.
    #[cfg(test)]
    pub(crate) fn has_failed_reads(&self) -> bool {
        self.inner.faults.are_spent()
    }

    /// Number of failed reads since the start. Callers that must see everything compare it before and after.
    pub fn unreadable_files(&self) -> u64 {
        self.inner.unreadable_files.load(Ordering::Relaxed)
    }

    /// The names in a directory; empty if the directory does not exist.
    ///
    /// # Errors
    /// [`StoreError::Read`] if it cannot be read.
    fn find_names_in(&self, directory: &Path) -> Result<Vec<String>, StoreError> {
        let listed = self.inner.list_strict(directory);
        match listed {
            Ok(names) => Ok(names),
            Err(error) => Ok(self.failed_to_read(directory, error)?.unwrap_or_default()),
        }
    }

    /// Like [`Store::find_bytes`], but returns the blob instead of its bytes. A large manifest is hashed in chunks
    /// and needs no memory.
    ///
    /// # Errors
    /// As [`Store::find_bytes`].
    pub fn find_verified(
        &self,
        digest: &Digest,
        expected_bytes: u64,
    ) -> Result<Option<Blob>, StoreError> {
        let Some(blob) = self.find_blob(digest, Some(expected_bytes))? else { return Ok(None) };
        let path = self.inner.layout.blob(digest);
        let mut verifier = Verifier::new(digest.algorithm());
        let (mut chunk, mut position) = (vec![0; CHUNK_BYTES], 0);
        loop {
            match blob.file.read_at(&mut chunk, position) {
                Ok(0) => break,
                Ok(count) => {
                    verifier.update(&chunk[..count]);
                    position += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.failed_to_read(&path, error),
            }
        }
        Ok(match verifier.finish() == *digest {
            true => Some(blob),
            false => self.damaged(&path, "its content does not match its digest"),
        })
    }

    /// Logs and counts a damaged file. The caller then treats it as absent.
    fn damaged<T>(&self, path: &Path, reason: &str) -> Option<T> {
        self.inner.damaged_files.fetch_add(1, Ordering::Relaxed);
        log::warn!("cache file {} is damaged ({reason}); it is treated as absent", path.display());
        None
    }
}

/// Whether an error concerns the file itself and not the machine: the file cannot be read by anyone, or not by this
/// process.
fn is_damage(error: &io::Error) -> bool {
    let is_odd = [Errno::LOOP, Errno::NXIO].map(Errno::raw_os_error).map(Some);
    is_odd.contains(&error.raw_os_error())
        || matches!(
            error.kind(),
            io::ErrorKind::NotFound
                | io::ErrorKind::PermissionDenied
                | io::ErrorKind::IsADirectory
                | io::ErrorKind::NotADirectory
                | io::ErrorKind::InvalidData
                | io::ErrorKind::UnexpectedEof
        )
}

impl Inner {
    /// Replaces a small file atomically: readers see the complete old or the complete new content.
    fn replace(&self, path: &Path, content: &[u8]) -> Result<(), StoreError> {
        self.replace_with(path, |file| io::Write::write_all(file, content))
    }

    /// Like [`Inner::replace`], with content from `write`.
    fn replace_with(
        &self,
        path: &Path,
        write: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> Result<(), StoreError> {
        let temporary = self.layout.temporary();
        let written = File::create_new(&temporary).and_then(|mut file| {
            write(&mut file)?;
            if self.fsync { file.sync_data() } else { Ok(()) }
        });
        if let Err(error) = written {
            // The temporary name is unique to this process; a leftover only costs space.
            let _ = fs::remove_file(&temporary);
            return Err(StoreError::write(path, error));
        }
        let size = |path: &Path| fs::metadata(path).map_or(0, |is| disk::allocated(&is));
        let (before, after) = (size(path), size(&temporary));
        self.publish(&temporary, path).inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })?;
        self.note_bytes_added(after);
        self.note_bytes_removed(before);
        Ok(())
    }

    /// Renames a finished file to its final name and creates the missing directories.
    fn publish(&self, temporary: &Path, path: &Path) -> Result<(), StoreError> {
        let Some(parent) = path.parent() else {
            return Err(StoreError::write(path, io::ErrorKind::InvalidInput.into()));
        };
        self.layout.owner().give_path(temporary);
        let renamed = match fs::rename(temporary, path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.create_directories(parent).and_then(|()| fs::rename(temporary, path))
            }
            // Larder creates no directory with this name. It may contain something, so it is not deleted here.
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                log::warn!("{} is a directory; moving it to incoming/", path.display());
                move_directory(path, &self.layout.temporary())
                    .and_then(|()| fs::rename(temporary, path))
            }
            other => other,
        };
        let synced = renamed.and_then(|()| self.sync_directory(parent));
        synced.map_err(|error| StoreError::write(path, error))
    }

    /// Creates a directory and its missing parents and syncs each into its parent: a record is only as durable as
    /// the path to it.
    fn create_directories(&self, path: &Path) -> io::Result<()> {
        let made = self.layout.create_directories(path)?;
        for parent in made.iter().filter_map(|made| made.parent()) {
            self.sync_directory(parent)?;
        }
        Ok(())
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        if self.fsync { File::open(path)?.sync_all() } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
