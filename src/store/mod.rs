//! The cache directory: verified content, and the names by which it was pulled.
//!
//! ```text
//! <root>/oci-layout, index.json                     a valid OCI image layout (image-spec, image-layout.md)
//! <root>/blobs/<alg>/<hex>                          immutable, verified: layers, configs, manifests
//! <root>/refs/<upstream>/<repo>/_tags/<tag>         JSON: digest, mediaType, size, fetched, checked
//! <root>/refs/<upstream>/<repo>/_manifests/<alg>/<hex>   JSON: mediaType, size, fetched
//! <root>/lists/<hash of repo>-<hash of question>       the last good tag list or referrers answer
//! <root>/partials/<upstream>/<alg>-<hex>            the partial download of that digest
//! <root>/partials/<upstream>/<alg>-<hex>.json       JSON: the repository that it is for
//! <root>/incoming/spool-…                           content that is being imported
//! <root>/incoming/*.lock, tmp-…                     locks, and files that are being replaced
//! <root>/quarantine/<alg>-<hex>                     what was found to be damaged
//! <root>/scrubbed, pruned                           their times: when that was last done
//! <root>/offline                                    there while `larder offline` is on
//! <root>/pins                                       a pattern a line: what is never evicted
//! <root>/pins-configured                            the same of a server's configuration, for commands that do not read it
//! <root>/usage/summary.json, images.jsonl           what the last walk found, for who wants it at once
//! ```
//!
//! This room must not know that upstreams exist, what HTTP is, or how long anything stays fresh.
//!
//! # Invariants
//! * **Content before names.** A file under `blobs/` is complete and verified: it got its name by a
//!   rename after size and digest agreed and after `fdatasync`. A tag is written after its manifest.
//! * **Damage is a miss.** A file that is missing, short, unreadable or not JSON is as if it were not
//!   there, with a log line and a counter; only the operator's disk is an error.
//! * **No scan at start.** [`Store::open`] does the same small work for no image and for a million.
//! * **Many processes may share one directory**: temporary names are unique, publication is by rename,
//!   and a partial has one writer, by `flock`. The locks are those of the local kernel; on network file
//!   systems they hold only where the file system passes them on.
//!
//! # Crash points
//! Killed before the rename: a partial stays in `partials/`, no name refers to it, and the next ingest
//! of that digest hashes it again and goes on behind it. Killed between
//! a manifest's rename and its tag: an unreferenced blob, which a sweep takes. Killed while a record
//! is replaced: the old record, whole. There is no fourth state.

mod catalogue;
mod digesting_writer;
mod disk;
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

pub use catalogue::{
    Catalogue, CatalogueImage, CatalogueRepository, Content, RepositoryNames, RepositoryTimes,
};
pub use digesting_writer::DigestingWriter;
pub use disk::{DiskUsage, Space};
pub use error::StoreError;
pub use eviction::{Evictable, Evicted, EvictionCandidate, EvictionIndex, IsPinned};
pub use images::{Graph, GraphBlob, GraphManifest, StoredImage};
pub use ingest::{Begin, Ingest, IngestError};
pub use lease::{JobLease, PeriodicJob};
pub use lists::{ListBody, ListRecord, ListWriter};
pub use partials::PartialFile;
pub use refs::{Access, ManifestRecord, TagRecord};
pub use sweep::{FUTURE_TOLERANCE, GRACE, Removal, Sweep, SweepLocked, Swept};
pub use usage::{ImageUsage, RegistryUsage, RepositoryUsage, UsageSummary};
pub use verify::{Checked, Damage};

use faults::Faults;
use layout::{Layout, move_directory, open_to_read, read_file};

/// How much of a file is hashed at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// How the directory is treated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The cache directory; created if missing.
    pub root: PathBuf,
    /// Whether content and names are forced to the disk before they count. Only tests and throw-away
    /// caches do without.
    pub fsync: bool,
}

/// An open cache directory. Cloning shares it; every method may be called from any thread.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    layout: Layout,
    fsync: bool,
    /// False if the directory refused a write when it was opened: hits are served all the same.
    writable: bool,
    /// Files found missing, short, or not what their name says, since the start.
    damaged_files: AtomicU64,
    /// How often a file or directory could not be read, since the start.
    unreadable_files: AtomicU64,
    faults: Faults,
    /// Whether a tag changed since `index.json` was written.
    index_outdated: AtomicBool,
    /// Bytes on the disk when they were last counted; below nothing before the first time.
    bytes_counted: AtomicI64,
    /// What this process has added and removed since.
    bytes_changed: AtomicI64,
    /// Held while they are counted: two counts at a time would take what changed off twice.
    counting: Mutex<()>,
    /// What lists that are being sent may use.
    list_budgets: lists::ListBudgets,
}

/// A blob that is there: verified when it was ingested, and open, so that it can no longer vanish.
#[derive(Debug, Clone)]
pub struct Blob {
    /// The open file, to be read by offset only: it is shared.
    pub file: Arc<File>,
    /// Its size in bytes when it was opened.
    pub size: u64,
}

impl Store {
    /// Opens the directory, creating what is missing of it. Does the same work whatever it holds.
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
            // Whoever wrote the last tag may have been killed before the index.
            index_outdated: AtomicBool::new(writable),
            bytes_counted: AtomicI64::new(-1),
            bytes_changed: AtomicI64::new(0),
            counting: Mutex::new(()),
            list_budgets: lists::ListBudgets::default(),
        };
        Ok(Store { inner: Arc::new(inner) })
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        self.inner.layout.root()
    }

    /// Whether the directory took a write when it was opened.
    pub fn is_writable(&self) -> bool {
        self.inner.writable
    }

    /// Whether the directory can be read just now: a volume may have gone away.
    pub fn is_readable(&self) -> bool {
        read_file(&self.root().join("oci-layout")).is_ok()
    }

    /// Room on the disk for an unprivileged process, in bytes; `None` if the system does not tell.
    pub fn free_bytes(&self) -> Option<u64> {
        self.space().map(|space| space.free_bytes)
    }

    /// How large the disk is, in bytes; `None` if the system does not tell.
    pub fn disk_size(&self) -> Option<u64> {
        self.space().map(|space| space.size_bytes)
    }

    /// Whether upstreams may not be asked (`larder offline`): all processes on this directory heed it.
    pub fn is_offline(&self) -> bool {
        self.inner.layout.offline_switch().exists()
    }

    /// Switches that on or off.
    ///
    /// # Errors
    /// [`StoreError`] if the disk refuses.
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

    /// How many damaged files were met since the start.
    pub fn damaged_files(&self) -> u64 {
        self.inner.damaged_files.load(Ordering::Relaxed)
    }

    /// The blob of `digest`, open. `None` is a miss: absent, or not `expected_bytes` long where the caller
    /// knows a size, or damaged. For callers that lose nothing by a miss; [`Store::find_blob`] tells a store
    /// that cannot be read from one that has no such blob.
    pub fn blob(&self, digest: &Digest, expected_bytes: Option<u64>) -> Option<Blob> {
        self.find_blob(digest, expected_bytes).unwrap_or_default()
    }

    /// As [`Store::blob`].
    ///
    /// # Errors
    /// [`StoreError::Read`] if it is not known whether the blob is there.
    pub fn find_blob(
        &self,
        digest: &Digest,
        expected_bytes: Option<u64>,
    ) -> Result<Option<Blob>, StoreError> {
        let path = self.inner.layout.blob(digest);
        let Some((file, size)) = self.open_file(&path)? else { return Ok(None) };
        Ok(match expected_bytes {
            Some(expected) if expected != size => {
                self.damaged(&path, &format!("it has {size} bytes instead of {expected}"))
            }
            // Only one digest an algorithm is that of nothing; any other empty file was truncated.
            None if size == 0 && !digest.is_of_nothing() => self.damaged(&path, "it is empty"),
            _ => Some(Blob { file: Arc::new(file), size }),
        })
    }

    /// The bytes of a small blob (a manifest), checked against their digest as they are read.
    pub fn read(&self, digest: &Digest, expected_bytes: u64) -> Option<Vec<u8>> {
        self.find_bytes(digest, expected_bytes).unwrap_or_default()
    }

    /// As [`Store::read`].
    ///
    /// # Errors
    /// [`StoreError::Read`] if the blob is there and cannot be read, or that is not known.
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
            false => self.damaged(&path, "its bytes do not have the digest of its name"),
        })
    }

    /// An open regular file and its size in bytes; `None` if there is none. What somebody has put in its place
    /// (a pipe, a directory, a link) is damage, and opening it does not block.
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

    /// Tells a file that is damaged, which is a miss, from a store that cannot be read, which is an error: the
    /// content may well be there.
    fn failed_to_read<T>(&self, path: &Path, error: io::Error) -> Result<Option<T>, StoreError> {
        if is_damage(&error) {
            return Ok(self.damaged(path, &error.to_string()));
        }
        let before = self.inner.unreadable_files.fetch_add(1, Ordering::Relaxed);
        let error = StoreError::read(path, error);
        // A server without descriptors fails for every request: powers of two are enough of it in the log.
        if (before + 1).is_power_of_two() {
            log::error!("{error} ({} such failures since the start)", before + 1);
        }
        Err(error)
    }

    /// Lets `count` reads of paths that end with `suffix` fail, after `spared` that succeed.
    #[cfg(test)]
    pub(crate) fn fail_reads(&self, suffix: &str, spared: usize, count: usize, errno: Errno) {
        self.inner.faults.fail(suffix, spared, count, errno.raw_os_error());
    }

    /// Whether all failures that were asked for have happened.
    #[cfg(test)]
    pub(crate) fn has_failed_reads(&self) -> bool {
        self.inner.faults.are_spent()
    }

    /// How often the store could not be read since the start. A caller that must not miss anything compares
    /// this before and after.
    pub fn unreadable_files(&self) -> u64 {
        self.inner.unreadable_files.load(Ordering::Relaxed)
    }

    /// The names in a directory, none if it does not exist.
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

    /// [`Store::find_bytes`] without the bytes: a large manifest, checked chunk by chunk, so that it takes no
    /// memory.
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
            false => self.damaged(&path, "its bytes do not have the digest of its name"),
        })
    }

    /// Damage is a miss: said once here, counted, and then treated as absence.
    fn damaged<T>(&self, path: &Path, reason: &str) -> Option<T> {
        self.inner.damaged_files.fetch_add(1, Ordering::Relaxed);
        log::warn!("cache file {} is damaged ({reason}); it is treated as absent", path.display());
        None
    }
}

/// Whether an error is about the file itself, and not about the machine: what is in its place cannot be read
/// by anybody, or not by us.
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
    /// Writes a small file so that readers see the old content or the new, whole.
    fn replace(&self, path: &Path, content: &[u8]) -> Result<(), StoreError> {
        self.replace_with(path, |file| io::Write::write_all(file, content))
    }

    /// The same for content that `write` writes.
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
            // The name was ours alone; a leftover would only cost room.
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

    /// Renames a finished file to its final name, making the directories of that name.
    fn publish(&self, temporary: &Path, path: &Path) -> Result<(), StoreError> {
        let Some(parent) = path.parent() else {
            return Err(StoreError::write(path, io::ErrorKind::InvalidInput.into()));
        };
        self.layout.owner().give_path(temporary);
        let renamed = match fs::rename(temporary, path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.create_directories(parent).and_then(|()| fs::rename(temporary, path))
            }
            // Nothing of ours is a directory there. It may hold something, so it is not removed here.
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                log::warn!("{} is a directory; it is moved to incoming/", path.display());
                move_directory(path, &self.layout.temporary())
                    .and_then(|()| fs::rename(temporary, path))
            }
            other => other,
        };
        let synced = renamed.and_then(|()| self.sync_directory(parent));
        synced.map_err(|error| StoreError::write(path, error))
    }

    /// Makes a directory and its missing parents, each one synced into its own parent, since a record
    /// is only as durable as the path to it.
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
