//! Eviction of single images, with an index that is built once and used for many evictions.
//!
//! The index holds the names of the least recently used images, and a count of the records that refer to each blob
//! or manifest ([`References`]). So an eviction only reads the manifests of its own image. Only a [`Sweep`] builds
//! and uses an index, so one process on the directory evicts or prunes at a time.
//!
//! # Why no referenced blob is lost
//! T is the time at which the build of the index began, by the file system's clock, taken under the exclusive lock.
//! A record is *old* if it was committed before T. A blob is *settled* if its mtime is earlier than T by at least
//! the grace period. **An eviction removes a blob only if it is settled and, once the image's own records are
//! released, no old record refers to it.**
//!
//! * *Every record that refers to a settled blob is old.* A commit renews the mtimes of all blobs that its manifest
//!   refers to, under the shared lock ([`crate::store::Store::put_manifest`]). So a blob that got a reference at or after
//!   T, from any process, has an mtime of at least T. A blob that did not exist at that commit was stored later and
//!   has a later mtime. The grace period covers the time between a blob's last byte and its name.
//! * *Every old record is counted exactly once.* No commit was running at T, so the record's file existed; the walk
//!   is strict and fails if anything cannot be read. The exception is a record that was removed before the walk
//!   reached it: it no longer refers to anything.
//! * *Only counted references are released.* The references of a record are released when its file is removed, and
//!   only for settled blobs: by the first point the record is old, so it was counted. If it is committed again, its
//!   blobs are no longer settled, and a second removal releases nothing.
//! * *Removals by others* release nothing here: a blob stays too long, until the next index.
//!
//! The same argument applies to the names of a repository: the references of its tags and indexes decide which
//! manifest records are removed with a tag. They are exact if no name was added or replaced since T. The mtimes of
//! the directories show this, since every rename changes them. Otherwise the repository is read again without a
//! lock, and the mtimes are compared under the lock with the time at which that read began. A removal sets the
//! directories' mtimes to one nanosecond later than before: this does not count as a change here, but does for the
//! usage walk. If that fails, the repository is read again the next time.
//!
//! # Interleavings
//! * *A commit, by any process, between the build and the eviction, of a manifest that refers to a blob of the
//!   image*: the blob is not settled and stays.
//! * *A commit between the removal of the names and that of the blobs*: each blob's mtime is read under the
//!   exclusive lock of its own batch.
//! * *A new tag for the image's manifest*: the directory's mtime shows it, under the lock.
//! * *A concurrent pull*: the records' mtimes are read under the lock. A later pull already has its manifest; its
//!   layers are found or fetched again.
//!
//! # Crash points
//! Names are removed before blobs, and tags before records. A kill in between leaves a record without a tag, which
//! is an image itself, or blobs without a name; the next index finds both. The index is in memory only.

mod build;
mod evictor;
mod image;
mod read;
mod references;

use std::collections::{BinaryHeap, HashMap};
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::Pins;
use super::sweep::{BATCH, GRACE, Sweep};
use crate::oci::{Algorithm, Digest, ImageName, Reference};
use crate::store::{PartialFile, StoreError, SweepLocked};

use build::Build;
pub use evictor::{Eviction, Evictor};
use image::ImageEviction;
use references::{References, Scope};

/// The maximum number of candidates in an index: about a megabyte of names.
const CANDIDATES_MAX: usize = 4096;
/// Attempts to evict an image while names of the repository keep changing.
const ROUNDS_MAX: usize = 3;

/// What can be evicted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::store) enum Evictable {
    /// A quarantined blob.
    Quarantined(PathBuf),
    /// A partial download that no process is writing.
    Partial(PartialFile),
    /// A stored answer to a list query.
    List(PathBuf),
    /// An image.
    Image(ImageName, Reference),
}

/// A candidate and when it was last used. Ordered by this time, earliest first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::store) struct EvictionCandidate {
    used: SystemTime,
    /// The subject of a signature or similar artifact. At equal times, the subject is evicted first.
    subject: Option<Digest>,
    item: Evictable,
}

impl EvictionCandidate {
    /// The item to evict.
    pub(in crate::store) fn item(&self) -> &Evictable {
        &self.item
    }

    /// A candidate that does not come from an index.
    #[cfg(test)]
    pub(in crate::store) fn for_tests(
        name: &ImageName,
        tag: &crate::oci::Tag,
        used: SystemTime,
    ) -> EvictionCandidate {
        let item = Evictable::Image(name.clone(), Reference::Tag(tag.clone()));
        EvictionCandidate { used, subject: None, item }
    }
}

/// The result of an eviction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Evicted {
    /// It was removed.
    Removed {
        /// The freed bytes.
        bytes: u64,
        /// Whether it was an image.
        is_image: bool,
    },
    /// It no longer exists.
    Absent,
    /// It was used since the index was built and moved to its new position, or its repository keeps changing.
    InUse,
    /// It is pinned.
    Pinned,
    /// The bucket does not have all of it yet.
    NotUploaded,
    /// An import or an export is running.
    Locked(SweepLocked),
}

/// An index for evictions; see the module documentation.
#[derive(Debug)]
pub(in crate::store) struct EvictionIndex {
    /// T of the module documentation.
    began: SystemTime,
    references: References,
    /// The candidates, least recently used last.
    candidates: Vec<EvictionCandidate>,
    /// Whether there are more images than an index holds.
    has_more: bool,
    /// Number of pinned images.
    pinned: usize,
    /// Number of records with unknown references. While there are any, unreferenced blobs stay, since they may
    /// belong to those records.
    damaged: usize,
    /// The last repository that had changed since the build and was read again.
    pub(in crate::store) reread: Option<Reread>,
}

/// The exact references of a repository's tags and indexes, and when reading them began.
#[derive(Debug)]
pub(in crate::store) struct Reread {
    name: ImageName,
    began: SystemTime,
    references: HashMap<Digest, u32>,
}

impl EvictionIndex {
    /// The number of pinned images.
    pub(in crate::store) fn pinned(&self) -> usize {
        self.pinned
    }

    /// Whether a new index would contain more candidates.
    pub(in crate::store) fn has_more(&self) -> bool {
        self.has_more
    }

    /// Takes the least recently used candidate if it was last used before `before`, and early enough for its
    /// content to be settled.
    pub(in crate::store) fn next(&mut self, before: SystemTime) -> Option<EvictionCandidate> {
        let settled_before = self.began.checked_sub(GRACE).unwrap_or(SystemTime::UNIX_EPOCH);
        let before = before.min(settled_before);
        self.candidates.pop_if(|candidate| candidate.used <= before)
    }

    /// Puts a candidate back with a new time of use.
    fn put_back(&mut self, mut candidate: EvictionCandidate, used: SystemTime) {
        candidate.used = used;
        // The least recently used is the last.
        let place = self.candidates.partition_point(|each| *each > candidate);
        if place == 0 && self.has_more {
            // Images that did not fit into the index may have to go first.
            return;
        }
        self.candidates.insert(place, candidate);
    }

    /// See [`Evictor::shift_times`].
    #[cfg(test)]
    fn shift_times(&mut self, shift: impl Fn(SystemTime) -> SystemTime) {
        self.began = shift(self.began);
        for candidate in &mut self.candidates {
            candidate.used = shift(candidate.used);
            if let Evictable::Partial(partial) = &mut candidate.item {
                partial.written = partial.written.map(&shift);
            }
        }
        if let Some(reread) = &mut self.reread {
            reread.began = shift(reread.began);
        }
    }

    fn is_settled(&self, metadata: &Metadata) -> bool {
        let age = metadata.modified().ok().and_then(|time| self.began.duration_since(time).ok());
        age.is_some_and(|age| age >= GRACE)
    }
}

impl Sweep {
    /// Builds an index. Calls `keep_going` before each repository and image; it may block, and stops the build
    /// by returning `false`, which yields `None`.
    ///
    /// # Errors
    /// [`StoreError::IncompleteScan`] if any file that may refer to content cannot be read.
    pub(in crate::store) fn eviction_index(
        &self,
        now: SystemTime,
        pins: &Pins,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<Option<EvictionIndex>, StoreError> {
        let store = &self.store;
        let unreadable = store.unreadable_files();
        let incomplete = |source| StoreError::IncompleteScan { source };
        let mut blobs = 0;
        for algorithm in Algorithm::ALL {
            for digest in store.digests_strict(algorithm).map_err(incomplete)? {
                digest.map_err(incomplete)?;
                blobs += 1;
            }
        }
        let mut build = Build {
            store,
            now,
            pins,
            references: References::for_keys(blobs),
            heap: BinaryHeap::new(),
            has_more: false,
            pinned: 0,
            damaged: 0,
        };
        build.add_leftovers();
        let mut was_stopped = false;
        let walked = store.each_repository_strict(&mut |name| {
            let mut keep_going = || {
                was_stopped |= !keep_going();
                !was_stopped
            };
            build.repository(name, &mut keep_going)
        });
        match walked {
            Err(_) if was_stopped => return Ok(None),
            other => other.map_err(incomplete)?,
        }
        // A temporary read error makes a pinned child or a recent use look absent.
        if store.unreadable_files() != unreadable {
            return Err(StoreError::unreadable_meanwhile(store.root()));
        }
        let mut candidates = build.heap.into_sorted_vec();
        candidates.reverse();
        Ok(Some(EvictionIndex {
            began: self.began,
            references: build.references,
            candidates,
            has_more: build.has_more,
            pinned: build.pinned,
            damaged: build.damaged,
            reread: None,
        }))
    }

    /// Removes settled blobs without references. Returns the freed bytes.
    ///
    /// # Errors
    /// [`StoreError::IncompleteScan`] if not all blobs can be listed; [`StoreError`] if a write fails.
    pub(in crate::store) fn evict_unnamed(
        &self,
        index: &EvictionIndex,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<u64, StoreError> {
        let mut freed = 0;
        if index.damaged > 0 {
            return Ok(freed);
        }
        for algorithm in Algorithm::ALL {
            let digests = self.store.digests_strict(algorithm);
            let digests = digests.map_err(|source| StoreError::IncompleteScan { source })?;
            let references = &index.references;
            let is_unnamed = |digest: &io::Result<Digest>| {
                digest.as_ref().map_or(true, |it| !references.is_named(Scope::Everywhere, it))
            };
            let mut unnamed = digests.filter(is_unnamed).peekable();
            while unnamed.peek().is_some() {
                let batch: io::Result<Vec<Digest>> = unnamed.by_ref().take(BATCH).collect();
                let batch = batch.map_err(|source| StoreError::IncompleteScan { source })?;
                match self.remove_settled(index, &batch, keep_going)? {
                    Some(bytes) => freed += bytes,
                    None => return Ok(freed),
                }
            }
        }
        Ok(freed)
    }

    /// Evicts a candidate of [`EvictionIndex::next`] unless it was used since.
    ///
    /// # Errors
    /// [`StoreError`] if a write fails, or a record cannot be read.
    pub(in crate::store) fn evict(
        &self,
        index: &mut EvictionIndex,
        candidate: EvictionCandidate,
        pins: &Pins,
    ) -> Result<Evicted, StoreError> {
        let inner = &self.store.inner;
        let removed = |bytes| Evicted::Removed { bytes, is_image: false };
        match &candidate.item {
            Evictable::Quarantined(path) => inner.remove_counted(path).map(removed),
            Evictable::List(path) => {
                match self.store.modified(path).and_then(|time| time.checked_sub(GRACE)) {
                    Some(time) if time > candidate.used => Ok(Evicted::InUse),
                    Some(_) => self.evict_list(path).map(removed),
                    None => Ok(Evicted::Absent),
                }
            }
            Evictable::Partial(partial) => {
                Ok(self.store.remove_partial(partial)?.map_or(Evicted::InUse, removed))
            }
            Evictable::Image(name, reference) => {
                let (name, reference) = (name.clone(), reference.clone());
                let mut eviction = ImageEviction::new(self, index, name, reference);
                for _ in 0..ROUNDS_MAX {
                    if let Some(evicted) = eviction.run(&candidate, pins)? {
                        return Ok(evicted);
                    }
                }
                // It keeps changing. A later index will contain it again.
                eviction.give_up();
                Ok(Evicted::InUse)
            }
        }
    }

    /// Removes a list and the directories that become empty.
    fn evict_list(&self, path: &Path) -> Result<u64, StoreError> {
        let layout = &self.store.inner.layout;
        let freed = self.store.inner.remove_counted(path)?;
        let refs = layout.refs();
        for directory in path.ancestors().skip(1).take_while(|each| **each != refs) {
            // A directory that is not empty stays. A list that is being stored creates missing directories again.
            if fs::remove_dir(directory).is_err() {
                break;
            }
        }
        Ok(freed)
    }

    /// Reads a repository's references again if it changed since the index was built.
    fn reread(&self, index: &mut EvictionIndex, name: &ImageName) -> Result<(), StoreError> {
        let times = self.store.repository_times(name);
        let is_known = match &index.reread {
            Some(reread) if reread.name == *name => times.are_before(reread.began),
            _ => times.are_before(index.began),
        };
        if is_known {
            return Ok(());
        }
        let began = self.store.file_system_time()?;
        let mut references: HashMap<Digest, u32> = HashMap::new();
        let read = self.store.each_reference(name, &mut |digest| {
            *references.entry(digest).or_default() += 1;
        });
        read.map_err(|source| StoreError::IncompleteScan { source })?;
        index.reread = Some(Reread { name: name.clone(), began, references });
        Ok(())
    }

    /// Removes settled blobs without references in batches. `None` if it was stopped, or if an import or export is
    /// running.
    pub(in crate::store) fn remove_settled(
        &self,
        index: &EvictionIndex,
        digests: &[Digest],
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<Option<u64>, StoreError> {
        let (inner, mut freed) = (&self.store.inner, 0);
        for batch in digests.chunks(BATCH) {
            let lock = if keep_going() { self.store.exclusive_lock()?.ok() } else { None };
            if lock.is_none() {
                return Ok(None);
            }
            for digest in batch {
                let path = inner.layout.blob(digest);
                let metadata = fs::metadata(&path);
                if metadata.is_ok_and(|metadata| index.is_settled(&metadata)) {
                    freed += inner.remove_counted(&path)?;
                }
            }
        }
        Ok(Some(freed))
    }
}
