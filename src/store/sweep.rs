//! Removing names, and sweeping what no name leads to any more. Beside running servers, and without a
//! pause of any of them.
//!
//! # How a blob is not lost
//! A sweep looks at all names (a [`super::Catalogue`]), which takes seconds, and then removes blobs. No
//! lock is held meanwhile, so a manifest may be committed that names a blob which nobody named before:
//!
//! * **Committed before the look began**: [`Store::begin_sweep`] has waited for the commits under way, so
//!   its record was there to be seen.
//! * **Committed after**: the commit has renewed the time of every blob that it names
//!   ([`Store::put_manifest`]) under the shared lock; the sweep looks at that time under the exclusive
//!   one, and spares what is younger than its beginning, or than the grace period.
//! * **A blob whose manifest has yet to come** (a pull goes from the manifest to its layers, an import the
//!   other way) is younger than the grace period, or its import holds the shared lock, and nothing is swept.
//! * **An image that is pulled, or named anew, while it is about to be removed**: the records' times and
//!   the repository's names are compared with what the look saw, under the exclusive lock, and the repository
//!   is left alone if they differ. A pull that falls between that and the removal has its manifest
//!   already; its layers are asked for by digest, and found, or fetched again.
//! * **A file that somebody reads** is open, and stays readable without its name.
//!
//! All times are those of the file system itself, so that machines that share a volume need not agree.
//!
//! # Crash points
//! Killed between the names and the blobs: blobs without names, which the next sweep takes. Names go
//! tag first, so that no tag is ever left whose manifest is gone.

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
use crate::oci::{Algorithm, Digest, ImageName, Manifest, Reference, Upstream};

/// What no manifest names is kept this long: a pull asks for the layers after the manifest, and comes back
/// for them after a broken connection.
pub const GRACE: Duration = Duration::from_secs(600);

/// Blobs removed in a row under the lock that commits of manifests wait for: some milliseconds' worth.
pub(super) const BATCH: usize = 32;
/// How often the exclusive lock is tried for, and the wait between: a second. Commits hold it for
/// milliseconds; an import and an export hold it throughout.
const LOCK_TRIES: u32 = 100;
const LOCK_WAIT: Duration = Duration::from_millis(10);
/// Names like `tmp-…` in `incoming/` live for milliseconds. What is as old as this was left by a kill.
const TEMPORARY_AGE: Duration = Duration::from_secs(3600);
/// What the names of temporary files in `incoming/` begin with.
pub(super) const TEMPORARY: &str = "tmp-";
/// Directories of version 0.1 that are removed in one pass: a client could have any number of them created.
const OLD_DIRECTORIES_MAX: usize = 10_000;
/// A file whose time is further ahead than this got it from a clock that was wrong: those of machines that share a
/// volume differ by less.
pub const FUTURE_TOLERANCE: Duration = Duration::from_secs(60);

/// The right to remove names and blobs, which one process has at a time, and when it began.
#[derive(Debug)]
pub struct Sweep {
    pub(super) store: Store,
    /// By the file system's clock.
    pub(super) began: SystemTime,
    _turn: FileLock,
}

/// Why there is no sweep now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SweepLocked {
    /// Another process, or another thread of this one, removes images.
    AnotherSweep,
    /// An import or an export is under way, whose blobs must stay.
    Bundle,
    /// A commit of a manifest takes unusually long: the disk is slow, or a process was stopped in the middle.
    Commit,
}

impl SweepLocked {
    /// What to tell whoever wanted it.
    pub fn as_str(self) -> &'static str {
        match self {
            SweepLocked::AnotherSweep => "images are being removed already",
            SweepLocked::Bundle => "an import or export is under way, and needs what is there",
            SweepLocked::Commit => "an image is being added, which takes unusually long",
        }
    }
}

/// Names of a repository that are to go.
#[derive(Debug)]
pub struct Removal<'a> {
    /// The repository.
    pub name: &'a ImageName,
    /// Its names as they were when the images were chosen.
    pub seen: &'a RepositoryNames,
    /// The images, and when they were last pulled.
    pub images: Vec<(&'a Reference, Option<SystemTime>)>,
    /// The manifests that no other image of the repository needs.
    pub manifests: Vec<Digest>,
}

/// What a sweep of unreferenced blobs did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Blobs removed.
    pub blobs: u64,
    /// Their sizes together.
    pub bytes: u64,
    /// Blobs that nothing names and that are too young to go.
    pub young: u64,
    /// Whether it was ended before it had seen everything.
    pub is_partial: bool,
}

impl Store {
    /// Begins to remove things, once the commits under way have ended.
    ///
    /// # Errors
    /// [`StoreError`] if the directory is read-only or the disk refuses.
    pub fn begin_sweep(&self) -> Result<Result<Sweep, SweepLocked>, StoreError> {
        if !self.is_writable() {
            return Err(StoreError::ReadOnly { root: self.root().to_owned() });
        }
        let path = self.inner.layout.prune_lock();
        let turn = self.inner.layout.open_lock(&path).and_then(FileLock::try_exclusive);
        let Some(turn) = turn.map_err(|error| StoreError::write(&path, error))? else {
            return Ok(Err(SweepLocked::AnotherSweep));
        };
        let lock = match self.exclusive_lock()? {
            Ok(lock) => lock,
            Err(busy) => return Ok(Err(busy)),
        };
        // Under the lock: whoever gets it next renews what he commits at a later time than this.
        let began = self.file_system_time()?;
        drop(lock);
        Ok(Ok(Sweep { store: self.clone(), began, _turn: turn }))
    }

    /// The time of now, by the clock that gives files their times.
    pub(super) fn file_system_time(&self) -> Result<SystemTime, StoreError> {
        let clock = self.inner.layout.temporary();
        let now = File::create_new(&clock).and_then(|file| file.metadata()?.modified());
        let _ = fs::remove_file(&clock);
        now.map_err(|error| StoreError::write(&clock, error))
    }

    /// The lock that no commit of a manifest may hold meanwhile. Commits that come while we wait for it wait
    /// behind us.
    pub(super) fn exclusive_lock(&self) -> Result<Result<FileLock, SweepLocked>, StoreError> {
        let layout = &self.inner.layout;
        let locked = |path: PathBuf, lock: fn(File) -> io::Result<Option<FileLock>>| {
            layout.open_lock(&path).and_then(lock).map_err(|error| StoreError::write(&path, error))
        };
        let wait = |file| FileLock::exclusive(file).map(Some);
        let _gate = locked(layout.sweep_gate(), wait)?;
        // Behind the gate, where no other removal tries it at the same time and looks like a bundle.
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

    /// How old a blob is, as near as the clocks of this machine and of the file system are; `None` if it is
    /// not here.
    pub fn blob_age(&self, digest: &Digest, now: SystemTime) -> Option<Duration> {
        let metadata = fs::metadata(self.inner.layout.blob(digest)).ok()?;
        let age = metadata.modified().ok().and_then(|time| now.duration_since(time).ok());
        Some(age.unwrap_or_default())
    }

    /// Makes a manifest's blob, and those that it names, as young as they can be.
    pub(super) fn renew_content(&self, digest: &Digest, is: &ManifestRecord) {
        let layout = &self.inner.layout;
        renew_path(&layout.blob(digest));
        let Some(bytes) = self.read(digest, is.size) else { return };
        if let Ok(manifest) = Manifest::parse(bytes.into(), Some(is.media_type.as_str())) {
            manifest.descriptors().for_each(|each| renew_path(&layout.blob(&each.digest)));
        }
    }

    /// Removes what killed processes, and version 0.1, have left in `incoming/` and `partials/`. Returns whether
    /// there may be more: a pass is bounded.
    pub fn remove_leftovers(&self, now: SystemTime) -> bool {
        self.remove_abandoned_imports();
        let incoming = self.inner.layout.incoming();
        let mut directories = 0;
        for name in names_in(&incoming) {
            let path = incoming.join(&name);
            // Not the target of a link: this is the one place that removes what it did not create just now.
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if metadata.is_dir() {
                if directories == OLD_DIRECTORIES_MAX {
                    return true;
                }
                directories += usize::from(self.remove_old_directory(&path, &name));
            } else if name.starts_with(TEMPORARY) && is_older(&metadata, TEMPORARY_AGE, now) {
                // Gone already is as good; anything else costs room, and the next pass tries again.
                let _ = fs::remove_file(&path);
            }
        }
        // A writer that was killed before its first byte leaves one.
        let partials = self.inner.layout.all_partials();
        for upstream in names_in(&partials).filter_map(|name| name.parse().ok()) {
            self.remove_empty_partials(&upstream);
        }
        false
    }

    /// Empties a directory below `incoming/`, where version 0.1 kept the partials of each upstream, and removes
    /// it. Returns whether it is gone. A partial that another process is writing stays, and so does its
    /// directory; and so does what Larder has not created.
    fn remove_old_directory(&self, directory: &Path, name: &str) -> bool {
        let upstream: Option<Upstream> = name.parse().ok();
        // The others have the place of a lock, and were moved away from it.
        if upstream.is_some() || name.starts_with(TEMPORARY) {
            for file in names_in(directory) {
                let digest = Digest::from_dashed(file.strip_suffix(".json").unwrap_or(&file));
                if digest.is_some() {
                    self.move_old_partial(&directory.join(&file), upstream.as_ref(), &file);
                }
            }
        }
        // Refused unless it is empty.
        fs::remove_dir(directory).is_ok()
    }

    /// Moves a partial, or the note beside one, to where they are now, and removes it where that has one already.
    ///
    /// Its lock is held meanwhile, and the new name must not replace a file: that may be the partial of a writer,
    /// whose commit would give the name of a blob to ours. A link fails where the name is taken; a rename does not.
    fn move_old_partial(&self, old: &Path, upstream: Option<&Upstream>, file: &str) {
        let is_file = fs::symlink_metadata(old).is_ok_and(|is| is.is_file());
        let lock = || open_to_read(old).and_then(FileLock::try_exclusive).ok().flatten();
        let Some(_lock) = is_file.then(lock).flatten() else { return };
        if let Some(upstream) = upstream {
            let directory = self.inner.layout.partials(upstream);
            let created = self.inner.create_directories(&directory);
            // A file system without links loses it: it is downloaded again from its beginning.
            let _ = created.and_then(|()| fs::hard_link(old, directory.join(file)));
        }
        let _ = fs::remove_file(old);
    }
}

impl Sweep {
    /// Removes names of a repository. `false` if it was used or changed since it was looked at, and all
    /// of them stay; likewise while an import or an export holds the lock.
    ///
    /// # Errors
    /// [`StoreError`] if the disk refuses.
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

    /// Removes the blobs that are not `referenced` and older than `grace`, a few at a time. `should_continue` is
    /// asked in between, may take its time, and ends it by `false`.
    ///
    /// # Errors
    /// [`StoreError::IncompleteScan`] if not all blobs can be listed; [`StoreError`] if the disk refuses.
    pub fn sweep(
        &self,
        grace: Duration,
        referenced: &dyn Fn(&Digest) -> bool,
        should_continue: &mut dyn FnMut() -> bool,
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
                let lock = if should_continue() { self.store.exclusive_lock()?.ok() } else { None };
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

    /// Whether a blob has to stay although nothing names it.
    fn is_young(&self, metadata: &Metadata, grace: Duration) -> bool {
        let age = metadata.modified().ok().and_then(|time| self.began.duration_since(time).ok());
        // What was named since is younger than the sweep, so its age is none at all.
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
            // It would be young until that time comes; from now on it grows older like any other.
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

/// Whether a file was last changed that long ago. A time in the future is now.
fn is_older(metadata: &Metadata, age: Duration, now: SystemTime) -> bool {
    let modified = metadata.modified().ok();
    modified.and_then(|modified| now.duration_since(modified).ok()).is_some_and(|is| is >= age)
}

impl Inner {
    /// Removes a file, if it exists, and returns the bytes that it took on the disk.
    pub(super) fn remove_counted(&self, path: &Path) -> Result<u64, StoreError> {
        let bytes = fs::symlink_metadata(path).map_or(0, |is| allocated(&is));
        match fs::remove_file(path) {
            Ok(()) => self.note_bytes_removed(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(StoreError::write(path, error)),
        }
        Ok(bytes)
    }

    /// Removes the directories of a repository of which no name is left, and the lists of it: what they
    /// list is gone. Called under the exclusive lock.
    pub(super) fn remove_empty_repository(&self, name: &ImageName) {
        let repository = self.layout.repository(name);
        // A directory that is not empty refuses to go, here and below, which is what is wanted. One of which it is
        // not known whether it is gone keeps the repository.
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
            // A list too many is asked for again, and costs a file.
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

/// The time of now, as the file system has it.
const NOW: Timestamps = Timestamps {
    last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
    last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
};

/// Makes a file new. Where that fails it is swept earlier than it should be, and fetched again.
pub(super) fn renew(file: &File) {
    let _ = rustix::fs::futimens(file, &NOW);
}

pub(super) fn renew_path(path: &Path) {
    let _ = rustix::fs::utimensat(CWD, path, &NOW, AtFlags::empty());
}
