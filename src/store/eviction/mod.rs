//! Evicting one image at a time, by an index that is built once and used for many evictions.
//!
//! The index knows the least recently used images by name, and how many records name each chunk of content
//! ([`References`]): so an eviction reads the image's own manifests and nothing else. Only [`Sweep`] builds and
//! uses one, so one process on the directory evicts or prunes at a time.
//!
//! # Why no blob is lost that something names
//! T is the time at which the building began, by the file system's clock, read under the exclusive lock. A
//! record is *old* if it was committed before T. A blob is *settled* if its time is earlier than T by the
//! grace period. **An eviction removes a blob only if it is settled and, with the image's own records
//! released, no old record names it.**
//!
//! * *Every record that names a settled blob is old.* A commit renews the times of all that its manifest names,
//!   under the shared lock ([`super::Store::put_manifest`]), so a blob that was named at or after T, by any process,
//!   has a time of at least T. A blob that was not there at that commit came later, and has a later time. The
//!   grace period covers the time between a blob's last byte and its name.
//! * *Every old record was counted, once.* The commit lock was free at T, so its file existed; the walk is
//!   strict, and fails if anything cannot be read. The exception is a record that was removed before the walk
//!   came to it: it names nothing any more.
//! * *Only what was counted is released.* A record's content is released when its file is removed, and only for
//!   settled blobs: by the first point, the record is old, so it was counted. If it is committed again, its
//!   blobs are not settled any more, and a second removal releases nothing.
//! * *Removals by others* release nothing here: a blob stays too long, until the next index.
//!
//! The same holds for the names of a repository: which record of a manifest goes with a tag is decided by the
//! references of that repository's tags and indexes. They are exact if no name came or was replaced since T,
//! which the times of its directories show, since every rename changes them. Otherwise the
//! repository is read anew, without a lock, and the times are compared again under the lock, with the time
//! at which the reading began. A removal sets the times of the directories to one nanosecond later than
//! before, so that it does not count as a change here, and does for the usage walk; where that fails, the
//! repository is read anew the next time.
//!
//! # Interleavings
//! * *A commit between the building and the eviction*, of this process or another, that names a blob of the
//!   image: the blob is not settled, and stays.
//! * *A commit between the removal of the names and that of the blobs*: each blob's time is read under the
//!   exclusive lock of its own batch.
//! * *A tag that comes to the image's manifest meanwhile*: the directory's time shows it, under the lock.
//! * *A pull meanwhile*: the records' times are read under the lock. A pull after that has its manifest; its
//!   layers are found, or fetched again.
//!
//! # Crash points
//! Names go before blobs, tags before records. Killed in between: a record without a tag, which is an image of
//! its own, or blobs without a name, which the next index finds. The index is in memory only.

mod build;
mod image;
mod read;

use std::collections::{BinaryHeap, HashMap};
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::error::StoreError;
use super::partials::PartialFile;
use super::references::{References, Scope};
use super::sweep::{BATCH, GRACE, Sweep, SweepLocked};
use crate::oci::{Algorithm, Digest, ImageName, Reference};

use build::Build;
use image::Eviction;

/// Candidates that an index holds: about a megabyte of names.
const CANDIDATES_MAX: usize = 4096;
/// How often an eviction is tried again because names of the repository change.
const ROUNDS_MAX: usize = 3;

/// What can be evicted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Evictable {
    /// A damaged blob that was kept aside.
    Quarantined(PathBuf),
    /// A partial download that nobody works on.
    Partial(PartialFile),
    /// A stored answer to a list query.
    List(PathBuf),
    /// An image.
    Image(ImageName, Reference),
}

/// Something that can be evicted, and when it was last used: the least recently used is the least.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EvictionCandidate {
    used: SystemTime,
    /// What it refers to, as a signature does. That goes first, if both were used at the same time.
    subject: Option<Digest>,
    item: Evictable,
}

impl EvictionCandidate {
    /// What it is.
    pub fn item(&self) -> &Evictable {
        &self.item
    }

    /// An image that no index has offered.
    #[cfg(test)]
    pub(super) fn for_tests(
        name: &ImageName,
        tag: &crate::oci::Tag,
        used: SystemTime,
    ) -> EvictionCandidate {
        let item = Evictable::Image(name.clone(), Reference::Tag(tag.clone()));
        EvictionCandidate { used, subject: None, item }
    }
}

/// What became of an eviction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evicted {
    /// It was removed.
    Removed {
        /// Bytes that are free now.
        bytes: u64,
        /// Whether it was an image.
        is_image: bool,
    },
    /// It does not exist any more.
    Absent,
    /// It was used since the index was built. It is evicted in its turn, if it is not in use.
    InUse,
    /// It is pinned.
    Pinned,
    /// A bundle is being imported or exported.
    Locked(SweepLocked),
}

/// Which images are pinned: by repository, reference, and the manifests at and below it.
pub type IsPinned<'a> = dyn Fn(&ImageName, &Reference, &[Digest]) -> bool + 'a;

/// See the module.
#[derive(Debug)]
pub struct EvictionIndex {
    /// T.
    began: SystemTime,
    references: References,
    /// Those that were found, the least recently used last.
    candidates: Vec<EvictionCandidate>,
    /// Whether more were found than an index holds.
    has_more: bool,
    /// Images that are pinned.
    pinned: usize,
    /// Records of which it is not known what they name. While there are any, blobs without a name stay: they
    /// may be theirs.
    damaged: usize,
    /// A repository that changed since, as it was read last.
    pub(super) reread: Option<Reread>,
}

/// The references of a repository's tags and indexes, exactly, and when they began to be read.
#[derive(Debug)]
pub(super) struct Reread {
    name: ImageName,
    began: SystemTime,
    references: HashMap<Digest, u32>,
}

impl EvictionIndex {
    /// How many images are pinned.
    pub fn pinned(&self) -> usize {
        self.pinned
    }

    /// Whether there is anything more that an index which is built now would offer.
    pub fn has_more(&self) -> bool {
        self.has_more
    }

    /// Takes the least recently used candidate, if it was last used before that time, and before its content
    /// would not be settled.
    pub fn next(&mut self, before: SystemTime) -> Option<EvictionCandidate> {
        let settled_before = self.began.checked_sub(GRACE).unwrap_or(SystemTime::UNIX_EPOCH);
        let before = before.min(settled_before);
        self.candidates.pop_if(|candidate| candidate.used <= before)
    }

    /// Puts a candidate back that was used at that time.
    fn put_back(&mut self, mut candidate: EvictionCandidate, used: SystemTime) {
        candidate.used = used;
        // The least recently used is the last.
        let place = self.candidates.partition_point(|each| *each > candidate);
        if place == 0 && self.has_more {
            // Those that the index has no room for may come before it.
            return;
        }
        self.candidates.insert(place, candidate);
    }

    fn is_settled(&self, metadata: &Metadata) -> bool {
        let age = metadata.modified().ok().and_then(|time| self.began.duration_since(time).ok());
        age.is_some_and(|age| age >= GRACE)
    }
}

impl Sweep {
    /// Builds an index. `should_continue` is called before each repository and each image, may block, and stops it by
    /// returning `false`: then there is none.
    ///
    /// # Errors
    /// [`StoreError::IncompleteScan`] if anything cannot be read that may name something.
    pub fn eviction_index(
        &self,
        now: SystemTime,
        is_pinned: &IsPinned<'_>,
        should_continue: &mut dyn FnMut() -> bool,
    ) -> Result<Option<EvictionIndex>, StoreError> {
        let store = &self.store;
        let unreadable = store.unreadable_files();
        let blind = |source| StoreError::IncompleteScan { source };
        let mut blobs = 0;
        for algorithm in Algorithm::ALL {
            for digest in store.digests_strict(algorithm).map_err(blind)? {
                digest.map_err(blind)?;
                blobs += 1;
            }
        }
        let mut build = Build {
            store,
            now,
            is_pinned,
            references: References::for_keys(blobs),
            heap: BinaryHeap::new(),
            has_more: false,
            pinned: 0,
            damaged: 0,
        };
        build.add_leftovers();
        let mut was_stopped = false;
        let walked = store.each_repository_strict(&mut |name| {
            let mut should_continue = || {
                was_stopped |= !should_continue();
                !was_stopped
            };
            build.repository(name, &mut should_continue)
        });
        match walked {
            Err(_) if was_stopped => return Ok(None),
            other => other.map_err(blind)?,
        }
        // What could not be read for a moment looks like what does not exist: a child that is pinned, a use.
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

    /// Removes settled blobs that nothing names. Returns the bytes that are free now.
    ///
    /// # Errors
    /// [`StoreError::IncompleteScan`] if not all blobs can be listed; [`StoreError`] if a write fails.
    pub fn evict_unnamed(
        &self,
        index: &EvictionIndex,
        should_continue: &mut dyn FnMut() -> bool,
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
                match self.remove_settled(index, &batch, should_continue)? {
                    Some(bytes) => freed += bytes,
                    None => return Ok(freed),
                }
            }
        }
        Ok(freed)
    }

    /// Evicts what [`EvictionIndex::next`] returned, if it was not used since.
    ///
    /// # Errors
    /// [`StoreError`] if a write fails, or a record cannot be read.
    pub fn evict(
        &self,
        index: &mut EvictionIndex,
        candidate: EvictionCandidate,
        is_pinned: &IsPinned<'_>,
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
                let mut eviction = Eviction::new(self, index, name, reference);
                for _ in 0..ROUNDS_MAX {
                    if let Some(evicted) = eviction.run(&candidate, is_pinned)? {
                        return Ok(evicted);
                    }
                }
                // It changes all the time. Another index will have it again.
                eviction.give_up();
                Ok(Evicted::InUse)
            }
        }
    }

    /// Removes a list, and the directories that are empty then.
    fn evict_list(&self, path: &Path) -> Result<u64, StoreError> {
        let layout = &self.store.inner.layout;
        let freed = self.store.inner.remove_counted(path)?;
        let refs = layout.refs();
        for directory in path.ancestors().skip(1).take_while(|each| **each != refs) {
            // One that is not empty stays; a list that is stored at this moment makes them again.
            if fs::remove_dir(directory).is_err() {
                break;
            }
        }
        Ok(freed)
    }

    /// Reads a repository's references anew if it changed since the index was built.
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

    /// Removes blobs that are settled and not named, a few at a time. `None` if it was stopped, or a bundle
    /// needs what is here.
    pub(super) fn remove_settled(
        &self,
        index: &EvictionIndex,
        digests: &[Digest],
        should_continue: &mut dyn FnMut() -> bool,
    ) -> Result<Option<u64>, StoreError> {
        let (inner, mut freed) = (&self.store.inner, 0);
        for batch in digests.chunks(BATCH) {
            let lock = if should_continue() { self.store.exclusive_lock()?.ok() } else { None };
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
