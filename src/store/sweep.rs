//! Removes names, and sweeps blobs that no name refers to any more, without pausing running servers.
//!
//! # Why no blob is lost
//! A sweep scans all names (a [`super::Catalogue`]), which takes seconds, and then removes blobs. It holds no lock
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

use std::fs::{self, File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use super::catalogue::RepositoryNames;
use super::disk::allocated;
use super::error::StoreError;
use super::layout::{MANIFESTS, TAGS, names_in, open_to_read};
use super::lock::FileLock;
use super::refs::ManifestRecord;
use super::{Inner, Store};
use crate::oci::{Algorithm, Digest, ImageName, Reference, Upstream};

/// Unreferenced blobs are kept this long: a pull requests the layers after the manifest, and retries after a broken
/// connection.
pub const GRACE: Duration = Duration::from_secs(600);

/// Blobs removed per exclusive lock, which commits of manifests wait for: a few milliseconds of work.
pub(super) const BATCH: usize = 32;
/// Attempts to get the exclusive lock, and the wait between them: one second in total. Commits hold the shared lock
/// for milliseconds, imports and exports for their whole run.
const LOCK_TRIES: u32 = 100;
const LOCK_WAIT: Duration = Duration::from_millis(10);
/// Files named `tmp-…` in `incoming/` live for milliseconds. Older ones were left by a killed process.
const TEMPORARY_AGE: Duration = Duration::from_secs(3600);
/// The prefix of temporary files in `incoming/`.
pub(super) const TEMPORARY: &str = "tmp-";
/// Directories of version 0.1 removed per pass: clients could create any number of them.
const OLD_DIRECTORIES_MAX: usize = 10_000;
/// A file with a time further in the future got it from a wrong clock. The clocks of machines that share a volume
/// differ by less.
pub const FUTURE_TOLERANCE: Duration = Duration::from_secs(60);

/// The right to remove names and blobs, which one process holds at a time, and when it began.
#[derive(Debug)]
pub struct Sweep {
    pub(super) store: Store,
    /// By the clock of the file system.
    pub(super) began: SystemTime,
    _prune_lock: FileLock,
}

/// Why a sweep cannot start now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SweepLocked {
    /// Another process, or another thread of this one, is removing images.
    AnotherSweep,
    /// An import or an export is running, and its blobs must stay.
    Bundle,
    /// A commit of a manifest takes unusually long: the disk is slow, or a process was stopped during it.
    Commit,
}

impl SweepLocked {
    /// The reason, for log lines and errors.
    pub fn as_str(self) -> &'static str {
        match self {
            SweepLocked::AnotherSweep => "images are already being removed",
            SweepLocked::Bundle => "an import or export is running and needs the cached content",
            SweepLocked::Commit => "an image is being added, which takes unusually long",
        }
    }
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
        if !self.is_writable() {
            return Err(StoreError::ReadOnly { root: self.root().to_owned() });
        }
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

    /// The current time by the clock that sets file times.
    pub(super) fn file_system_time(&self) -> Result<SystemTime, StoreError> {
        let clock = self.inner.layout.temporary();
        let now = File::create_new(&clock).and_then(|file| file.metadata()?.modified());
        let _ = fs::remove_file(&clock);
        now.map_err(|error| StoreError::write(&clock, error))
    }

    /// Takes the lock that excludes commits of manifests. Commits that begin during the wait queue after it.
    pub(super) fn exclusive_lock(&self) -> Result<Result<FileLock, SweepLocked>, StoreError> {
        let layout = &self.inner.layout;
        let locked = |path: PathBuf, lock: fn(File) -> io::Result<Option<FileLock>>| {
            layout.open_lock(&path).and_then(lock).map_err(|error| StoreError::write(&path, error))
        };
        let wait = |file| FileLock::exclusive(file).map(Some);
        let _gate = locked(layout.sweep_gate(), wait)?;
        // After the gate: no other removal tries this lock at the same time and is mistaken for a bundle.
        if locked(layout.bundle_lock(), FileLock::try_exclusive)?.is_none() {
            return Ok(Err(SweepLocked::Bundle));
        }
        for _ in 0..LOCK_TRIES {
            if let Some(lock) = locked(layout.sweep_lock(), FileLock::try_exclusive)? {
                return Ok(Ok(lock));
            }
            thread::sleep(LOCK_WAIT);
        }
        Ok(Err(SweepLocked::Commit))
    }

    /// The age of a blob, as exact as the clocks of this machine and of the file system agree; `None` if it is
    /// absent.
    pub fn blob_age(&self, digest: &Digest, now: SystemTime) -> Option<Duration> {
        let metadata = fs::metadata(self.inner.layout.blob(digest)).ok()?;
        let age = metadata.modified().ok().and_then(|time| now.duration_since(time).ok());
        Some(age.unwrap_or_default())
    }

    /// Sets the mtime of a manifest's blob, and of the blobs that it refers to, to now.
    pub(super) fn renew_content(&self, digest: &Digest, is: &ManifestRecord) {
        let layout = &self.inner.layout;
        renew_path(&layout.blob(digest));
        let media_type = Some(is.media_type.as_str());
        if let Some(manifest) = self.parse_manifest(digest, is.size, media_type) {
            manifest.descriptors().for_each(|each| renew_path(&layout.blob(&each.digest)));
        }
    }

    /// Removes what killed processes and version 0.1 left in `incoming/` and `partials/`. Returns whether there may
    /// be more, since a pass is bounded.
    pub fn remove_leftovers(&self, now: SystemTime) -> bool {
        self.remove_abandoned_imports();
        let incoming = self.inner.layout.incoming();
        let mut directories = 0;
        for name in names_in(&incoming) {
            let path = incoming.join(&name);
            // Do not follow links: only here are files removed that this process did not just create.
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if metadata.is_dir() {
                if directories == OLD_DIRECTORIES_MAX {
                    return true;
                }
                directories += usize::from(self.remove_old_directory(&path, &name));
            } else if name.starts_with(TEMPORARY) && is_older(&metadata, TEMPORARY_AGE, now) {
                // If it is already gone, fine. Any other failure costs space, and the next pass retries.
                let _ = fs::remove_file(&path);
            }
        }
        // A writer that was killed before its first byte leaves an empty directory.
        let partials = self.inner.layout.all_partials();
        for upstream in names_in(&partials).filter_map(|name| name.parse().ok()) {
            self.remove_empty_partials(&upstream);
        }
        false
    }

    /// Empties and removes a directory below `incoming/`, where version 0.1 kept the partials of each upstream.
    /// Returns whether the directory is gone. A partial that another process is writing stays, and so do its
    /// directory and everything that Larder did not create.
    fn remove_old_directory(&self, directory: &Path, name: &str) -> bool {
        let upstream: Option<Upstream> = name.parse().ok();
        // The other directories were in the place of a lock and have been moved away from it.
        if upstream.is_some() || name.starts_with(TEMPORARY) {
            for file in names_in(directory) {
                let digest = Digest::from_dashed(file.strip_suffix(".json").unwrap_or(&file));
                if digest.is_some() {
                    self.move_old_partial(&directory.join(&file), upstream.as_ref(), &file);
                }
            }
        }
        // Fails unless it is empty.
        fs::remove_dir(directory).is_ok()
    }

    /// Moves a partial, or the note beside it, to its current place, or removes it if that place is taken.
    ///
    /// The partial stays locked during the move. The new name must not replace a file: it may be the partial of a
    /// writer, whose commit would then give a blob's name to this file. A link fails if the name is taken; a rename
    /// does not.
    fn move_old_partial(&self, old: &Path, upstream: Option<&Upstream>, file: &str) {
        let is_file = fs::symlink_metadata(old).is_ok_and(|is| is.is_file());
        let lock = || open_to_read(old).and_then(FileLock::try_exclusive).ok().flatten();
        let Some(_lock) = is_file.then(lock).flatten() else { return };
        if let Some(upstream) = upstream {
            let directory = self.inner.layout.partials(upstream);
            let created = self.inner.create_directories(&directory);
            // On a file system without links it is lost and downloaded again from the beginning.
            let _ = created.and_then(|()| fs::hard_link(old, directory.join(file)));
        }
        let _ = fs::remove_file(old);
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

/// Whether a file was last changed at least `age` ago. A time in the future counts as now.
fn is_older(metadata: &Metadata, age: Duration, now: SystemTime) -> bool {
    let modified = metadata.modified().ok();
    modified.and_then(|modified| now.duration_since(modified).ok()).is_some_and(|is| is >= age)
}

impl Inner {
    /// Removes a file if it exists and returns its allocated bytes.
    pub(super) fn remove_counted(&self, path: &Path) -> Result<u64, StoreError> {
        let bytes = fs::symlink_metadata(path).map_or(0, |is| allocated(&is));
        match fs::remove_file(path) {
            Ok(()) => self.note_bytes_removed(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(StoreError::write(path, error)),
        }
        Ok(bytes)
    }

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

/// The current time, set by the file system.
const NOW: Timestamps = Timestamps {
    last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
    last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
};

/// Sets a file's mtime to now. If that fails, the file may be swept too early and is fetched again.
pub(super) fn renew(file: &File) {
    let _ = rustix::fs::futimens(file, &NOW);
}

pub(super) fn renew_path(path: &Path) {
    let _ = rustix::fs::utimensat(CWD, path, &NOW, AtFlags::empty());
}
