//! Removes names, and sweeps blobs that no name refers to any more, without pausing running servers.
//!
//! # Why no blob is lost
//! A sweep scans all names (a [`crate::store::Catalogue`]), which takes seconds, and then removes blobs. It holds no lock
//! during the scan, so a manifest may be committed that refers to a blob which had no name before. The cases:
//!
//! * **Committed before the scan**: [`Store::begin_sweep`] waits for running commits, so the scan sees the record.
//! * **Committed after that**: the commit renews the mtime of every blob that the manifest refers to
//!   ([`Store::put_manifest`]) under the shared lock. The sweep checks this time under the exclusive lock and keeps
//!   blobs that are younger than its own start or than the grace period.
//! * **A blob whose manifest is not committed yet**: a pull fetches the manifest before its layers, an import
//!   stores the layers first. The blob is younger than the grace period, or its import holds the shared lock and
//!   nothing is swept.
//! * **An image that is pulled, or gets another name, just before its removal**: under the exclusive lock, the
//!   times of the records and the names of the repository are compared with those of the scan. If they differ, the
//!   repository stays. A pull between this check and the removal already has its manifest; it requests the layers
//!   by digest, and they are found or fetched again.
//! * **A file that is being read** is open and stays readable without its name.
//!
//! All times come from the file system, so the clocks of machines that share a volume need not agree.
//!
//! # Crash points
//! Killed between the names and the blobs: blobs without names, which the next sweep removes. A tag is removed
//! before its manifest, so no tag ever refers to a missing manifest.

use std::fs::{self, Metadata};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::oci::{Algorithm, Digest, ImageName, MANIFESTS, Reference, TAGS};
use crate::store::files::read::names_in;
use crate::store::files::write::{FUTURE_TOLERANCE, renew_path};
use crate::store::locks::FileLock;
use crate::store::{Inner, RepositoryNames, Store, StoreError, SweepLocked};

/// Unreferenced blobs are kept this long: a pull requests the layers after the manifest, and retries after a broken
/// connection.
pub const GRACE: Duration = Duration::from_secs(600);

/// Blobs removed per exclusive lock, which commits of manifests wait for: a few milliseconds of work.
pub(super) const BATCH: usize = 32;

/// The right to remove names and blobs, which one process holds at a time, and when it began.
#[derive(Debug)]
pub struct Sweep {
    pub(in crate::store::gc) store: Store,
    /// By the clock of the file system.
    pub(super) began: SystemTime,
    _prune_lock: FileLock,
}

/// Names to remove from a repository.
#[derive(Debug)]
pub struct Removal<'a> {
    /// The repository.
    pub name: &'a ImageName,
    /// Its names at the time when the images were selected.
    pub seen: &'a RepositoryNames,
    /// The images and when they were last pulled.
    pub images: Vec<(&'a Reference, Option<SystemTime>)>,
    /// The manifests that no other image of the repository needs.
    pub manifests: Vec<Digest>,
}

/// The result of a sweep of unreferenced blobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Blobs removed.
    pub blobs: u64,
    /// Their total size.
    pub bytes: u64,
    /// Unreferenced blobs that are too young to be removed.
    pub young: u64,
    /// Whether it was stopped before it had checked everything.
    pub is_partial: bool,
}

impl Store {
    /// Begins a sweep after waiting for running commits.
    ///
    /// # Errors
    /// [`StoreError`] if the directory is read-only or a write fails.
    pub fn begin_sweep(&self) -> Result<Result<Sweep, SweepLocked>, StoreError> {
        self.require_writable()?;
        let path = self.inner.layout.prune_lock();
        let prune_lock = self.inner.layout.open_lock(&path).and_then(FileLock::try_exclusive);
        let Some(prune_lock) = prune_lock.map_err(|error| StoreError::write(&path, error))? else {
            return Ok(Err(SweepLocked::AnotherSweep));
        };
        let lock = match self.exclusive_lock()? {
            Ok(lock) => lock,
            Err(reason) => return Ok(Err(reason)),
        };
        // Taken under the lock: a later commit renews its blobs at a later time.
        let began = self.file_system_time()?;
        drop(lock);
        Ok(Ok(Sweep { store: self.clone(), began, _prune_lock: prune_lock }))
    }
}

impl Sweep {
    /// Removes names of a repository. Returns `false` and keeps all of them if the repository was used or changed
    /// since the scan, or while an import or an export holds the lock.
    ///
    /// # Errors
    /// [`StoreError`] if a read or write fails.
    pub fn remove(&self, removal: &Removal<'_>) -> Result<bool, StoreError> {
        let (store, layout) = (&self.store, &self.store.inner.layout);
        let Ok(_lock) = store.exclusive_lock()? else { return Ok(false) };
        let is_unused = |(reference, pulled): &(&Reference, Option<SystemTime>)| {
            store.image(removal.name, reference).is_some_and(|image| image.pulled == *pulled)
        };
        let is_unchanged = store.repository_names(removal.name) == *removal.seen;
        if !is_unchanged || !removal.images.iter().all(is_unused) {
            return Ok(false);
        }
        for (reference, _) in &removal.images {
            if let Reference::Tag(tag) = reference {
                store.remove_tag(removal.name, tag)?;
            }
        }
        for digest in &removal.manifests {
            store.inner.remove_counted(&layout.manifest(removal.name, digest))?;
        }
        store.inner.remove_empty_repository(removal.name);
        Ok(true)
    }

    /// Removes the blobs that are not `referenced` and older than `grace`, in batches. Calls `keep_going`
    /// between batches; it may block, and stops the sweep by returning `false`.
    ///
    /// # Errors
    /// [`StoreError::IncompleteScan`] if not all blobs can be listed; [`StoreError`] if a read or write fails.
    pub fn sweep(
        &self,
        grace: Duration,
        referenced: &dyn Fn(&Digest) -> bool,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        for algorithm in Algorithm::ALL {
            let unreferenced = self.store.digests_strict(algorithm).and_then(|digests| {
                let is_unreferenced = |each: &io::Result<Digest>| {
                    each.as_ref().map_or(true, |each| !referenced(each))
                };
                digests.filter(is_unreferenced).collect::<io::Result<Vec<Digest>>>()
            });
            let unreferenced =
                unreferenced.map_err(|source| StoreError::IncompleteScan { source })?;
            for batch in unreferenced.chunks(BATCH) {
                let lock = if keep_going() { self.store.exclusive_lock()?.ok() } else { None };
                if lock.is_none() {
                    swept.is_partial = true;
                    return Ok(swept);
                }
                for digest in batch {
                    self.remove_blob(digest, grace, &mut swept)?;
                }
            }
        }
        Ok(swept)
    }

    /// Whether an unreferenced blob is too young to be removed.
    fn is_young(&self, metadata: &Metadata, grace: Duration) -> bool {
        let age = metadata.modified().ok().and_then(|time| self.began.duration_since(time).ok());
        // Blobs that got a reference since are younger than the sweep and have no age.
        age.is_none_or(|age| age.is_zero() || age < grace)
    }

    fn remove_blob(
        &self,
        digest: &Digest,
        grace: Duration,
        swept: &mut Swept,
    ) -> Result<(), StoreError> {
        let path = self.store.inner.layout.blob(digest);
        let metadata = match self.store.inner.metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(StoreError::read(&path, error)),
        };
        if metadata.modified().is_ok_and(|time| time > self.began + FUTURE_TOLERANCE) {
            // It would count as young until that time. From now on it ages like any other.
            renew_path(&path);
        }
        if self.is_young(&metadata, grace) {
            swept.young += 1;
            return Ok(());
        }
        self.store.inner.remove_counted(&path)?;
        swept.blobs += 1;
        swept.bytes += metadata.len();
        Ok(())
    }
}

impl Inner {
    /// Removes the directories of a repository that has no names left, and its lists, which are obsolete. The
    /// caller holds the exclusive lock.
    pub(super) fn remove_empty_repository(&self, name: &ImageName) {
        let repository = self.layout.repository(name);
        // Removing a directory that is not empty fails, here and below, as intended. If it is unknown whether a
        // directory is gone, the repository stays.
        let is_gone = |directory: &Path| match fs::remove_dir(directory) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        for algorithm in Algorithm::ALL {
            is_gone(&self.layout.manifests(name, algorithm));
        }
        let are_gone = [MANIFESTS, TAGS].map(|names| is_gone(&repository.join(names)));
        if are_gone.contains(&false) {
            return;
        }
        self.remove_lists(name);
        self.remove_links(name);
        let lists = self.layout.legacy_lists(name);
        for list in names_in(&lists) {
            // A list that stays costs only space.
            let _ = fs::remove_file(lists.join(list));
        }
        let _ = fs::remove_dir(lists);
        let refs = self.layout.refs();
        for directory in repository.ancestors().take_while(|each| **each != refs) {
            if fs::remove_dir(directory).is_err() {
                return;
            }
        }
    }
}
