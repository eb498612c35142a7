//! Evicting one image at a time, by an index that is built once and used for many evictions.
//!
//! The index knows the least recently used images by name, and how many records name each piece of content
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
//!   under the shared lock ([`Store::put_manifest`]), so a blob that was named at or after T, by any process,
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

use std::collections::{BinaryHeap, HashMap, HashSet};
use std::fs::{self, File, FileTimes, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::Store;
use super::catalogue::RepositoryTimes;
use super::error::StoreError;
use super::images::{ask, modified};
use super::layout::{digest_of, digests_in};
use super::partials::PartialFile;
use super::references::{References, Scope};
use super::refs::Access;
use super::sweep::{BATCH, GRACE, Sweep, SweepBusy};
use crate::oci::{Algorithm, Digest, ImageName, Manifest, ManifestKind, Reference, Tag};

/// Candidates that an index holds: about a megabyte of names.
const CANDIDATES_MAX: usize = 4096;
/// How deep indexes may be nested; [`super::images`] looks no deeper.
const DEPTH_MAX: usize = 8;
/// How far it is followed what refers to what refers to an image: the signature of a bill of materials.
const REFERRERS_DEPTH: usize = 3;
/// Manifests of one image that are removed with it; others become images of their own.
const PARTS_MAX: usize = 65_536;
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
    pub(super) fn for_tests(name: &ImageName, tag: &Tag, used: SystemTime) -> EvictionCandidate {
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
    Busy(SweepBusy),
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

/// What a manifest names.
struct Names {
    is_index: bool,
    /// Each once.
    digests: Vec<Digest>,
}

impl Names {
    fn of(manifest: &Manifest) -> Names {
        let mut seen = HashSet::new();
        let digests = manifest.descriptors().map(|each| each.digest);
        Names {
            is_index: matches!(manifest.kind(), ManifestKind::Index { .. }),
            digests: digests.filter(|digest| seen.insert(*digest)).collect(),
        }
    }
}

/// An image in the index's eyes.
struct Parts {
    /// The manifests at and below its own, parents before children.
    manifests: Vec<Digest>,
    subject: Option<Digest>,
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
    /// Builds an index. `go_on` is called before each repository and each image, may block, and stops it by
    /// returning `false`: then there is none.
    ///
    /// # Errors
    /// [`StoreError::Blind`] if anything cannot be read that may name something.
    pub fn eviction_index(
        &self,
        now: SystemTime,
        is_pinned: &IsPinned<'_>,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<EvictionIndex>, StoreError> {
        let store = &self.store;
        let blobs = Algorithm::ALL.map(|algorithm| {
            digests_in(&store.inner.layout.blobs(algorithm), algorithm).count() as u64
        });
        let mut build = Build {
            store,
            now,
            is_pinned,
            references: References::for_keys(blobs.iter().sum()),
            heap: BinaryHeap::new(),
            has_more: false,
            pinned: 0,
            damaged: 0,
        };
        build.add_leftovers();
        let mut was_stopped = false;
        let walked = store.each_repository_for_certain(&mut |name| {
            let mut go_on = || {
                was_stopped |= !go_on();
                !was_stopped
            };
            build.repository(name, &mut go_on)
        });
        match walked {
            Err(_) if was_stopped => return Ok(None),
            other => other.map_err(|source| StoreError::Blind { source })?,
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
    /// [`StoreError`] if the disk refuses.
    pub fn evict_unnamed(
        &self,
        index: &EvictionIndex,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<u64, StoreError> {
        let mut freed = 0;
        if index.damaged > 0 {
            return Ok(freed);
        }
        for algorithm in Algorithm::ALL {
            let digests = digests_in(&self.store.inner.layout.blobs(algorithm), algorithm);
            let references = &index.references;
            let mut unnamed =
                digests.filter(|digest| !references.is_named(Scope::Everywhere, digest)).peekable();
            while unnamed.peek().is_some() {
                let batch: Vec<Digest> = unnamed.by_ref().take(BATCH).collect();
                match self.remove_settled(index, &batch, go_on)? {
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
    /// [`StoreError`] if the disk refuses, or a record cannot be read.
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
            Evictable::List(path) => match modified(path) {
                Some(time) if time > candidate.used => Ok(Evicted::InUse),
                Some(_) => inner.remove_counted(path).map(removed),
                None => Ok(Evicted::Absent),
            },
            Evictable::Partial(partial) => {
                Ok(self.store.remove_partial(partial)?.map_or(Evicted::InUse, removed))
            }
            Evictable::Image(name, reference) => {
                let (name, reference) = (name.clone(), reference.clone());
                let mut eviction = Eviction { sweep: self, index, name, reference, freed: 0 };
                for _ in 0..ROUNDS_MAX {
                    if let Some(evicted) = eviction.run(&candidate, is_pinned)? {
                        return Ok(evicted);
                    }
                }
                // It changes all the time. Another index will have it again.
                eviction.index.has_more = true;
                Ok(Evicted::InUse)
            }
        }
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
        read.map_err(|source| StoreError::Blind { source })?;
        index.reread = Some(Reread { name: name.clone(), began, references });
        Ok(())
    }

    /// Removes blobs that are settled and not named, a few at a time. `None` if it was stopped, or a bundle
    /// needs what is here.
    pub(super) fn remove_settled(
        &self,
        index: &EvictionIndex,
        digests: &[Digest],
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<u64>, StoreError> {
        let (inner, mut freed) = (&self.store.inner, 0);
        for batch in digests.chunks(BATCH) {
            let lock = if go_on() { self.store.exclusive_lock()? } else { None };
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

/// An image that is being evicted.
struct Eviction<'a> {
    sweep: &'a Sweep,
    index: &'a mut EvictionIndex,
    name: ImageName,
    reference: Reference,
    freed: u64,
}

impl Eviction<'_> {
    /// `None` if names of the repository changed at this moment.
    fn run(
        &mut self,
        candidate: &EvictionCandidate,
        is_pinned: &IsPinned<'_>,
    ) -> Result<Option<Evicted>, StoreError> {
        let (store, name) = (self.sweep.store.clone(), &self.name.clone());
        // Manifests never change, so they are read before the lock is taken.
        let Some(root) = store.root_of(name, &self.reference) else {
            return Ok(Some(Evicted::Absent));
        };
        let parts = store.parts(name, &root);
        if is_pinned(name, &self.reference, &parts.manifests) {
            return Ok(Some(Evicted::Pinned));
        }
        self.sweep.reread(self.index, name)?;
        let Some(lock) = store.exclusive_lock()? else {
            return Ok(Some(Evicted::Busy(SweepBusy::Bundle)));
        };
        if !self.is_unchanged() || store.root_of(name, &self.reference) != Some(root) {
            return Ok(None);
        }
        if matches!(self.reference, Reference::Digest(_)) && self.is_referred_to(&root) {
            // It has become a part of another image.
            return Ok(Some(Evicted::Absent));
        }
        let counting: Vec<Digest> =
            parts.manifests.iter().chain(&candidate.subject).copied().collect();
        let used = store.last_use(name, &self.reference, &counting);
        if let Some(used) = used.filter(|used| *used > candidate.used) {
            self.index.put_back(candidate.clone(), used);
            return Ok(Some(Evicted::InUse));
        }
        let times = store.repository_times(name);
        let is_going = match &self.reference {
            Reference::Tag(tag) => {
                self.freed += store.inner.remove_counted(&store.inner.layout.tag(name, tag))?;
                store.mark_index_outdated();
                self.release(&root)
            }
            Reference::Digest(_) => true,
        };
        store.keep_times(name, &times);
        drop(lock);
        if is_going {
            self.remove_records(root, &parts.manifests)?;
        }
        Ok(Some(Evicted::Removed { bytes: self.freed, is_image: true }))
    }

    /// Whether no name of the repository came or was replaced since its references were read.
    fn is_unchanged(&self) -> bool {
        let known_since = match &self.index.reread {
            Some(reread) if reread.name == self.name => reread.began,
            _ => self.index.began,
        };
        self.sweep.store.repository_times(&self.name).are_before(known_since)
    }

    /// The references of the repository, if they were read anew.
    fn reread(&mut self) -> Option<&mut HashMap<Digest, u32>> {
        let reread = self.index.reread.as_mut().filter(|reread| reread.name == self.name)?;
        Some(&mut reread.references)
    }

    /// Whether a tag or an index of the repository refers to a manifest.
    fn is_referred_to(&mut self, digest: &Digest) -> bool {
        let scope = self.index.references.scope_of(&self.name.to_string());
        match self.reread() {
            Some(references) => references.get(digest).is_some_and(|count| *count > 0),
            None => self.index.references.is_named(scope, digest),
        }
    }

    /// Takes a reference of a tag or an index of the repository back. Returns whether none is left.
    fn release(&mut self, digest: &Digest) -> bool {
        let scope = self.index.references.scope_of(&self.name.to_string());
        match self.reread().map(|references| references.get_mut(digest)) {
            Some(Some(count)) => {
                *count = count.saturating_sub(1);
                *count == 0
            }
            Some(None) => true,
            None => self.index.references.release(scope, digest),
        }
    }

    /// Removes the records that nothing refers to any more, with what they alone name: a few at a time, each
    /// few under the exclusive lock. What is left when the repository changes meanwhile is an image of its own,
    /// which the next index finds.
    fn remove_records(&mut self, root: Digest, manifests: &[Digest]) -> Result<(), StoreError> {
        let store = self.sweep.store.clone();
        let mut going = HashSet::from([root]);
        for batch in manifests.chunks(BATCH) {
            let lock = store.exclusive_lock()?;
            if lock.is_none() || !self.is_unchanged() {
                self.index.has_more = true;
                return Ok(());
            }
            let (times, mut unnamed) = (store.repository_times(&self.name), Vec::new());
            for digest in batch {
                if going.contains(digest) {
                    self.remove_record(&store, *digest, &mut going, &mut unnamed)?;
                }
            }
            store.inner.remove_empty_repository(&self.name);
            store.keep_times(&self.name, &times);
            drop(lock);
            let freed = self.sweep.remove_settled(self.index, &unnamed, &mut || true)?;
            self.freed += freed.unwrap_or_default();
        }
        Ok(())
    }

    fn remove_record(
        &mut self,
        store: &Store,
        digest: Digest,
        going: &mut HashSet<Digest>,
        unnamed: &mut Vec<Digest>,
    ) -> Result<(), StoreError> {
        let path = store.inner.layout.manifest(&self.name, &digest);
        if !path.exists() {
            return Ok(());
        }
        // Of a manifest that could not be read, nothing was counted but itself. It may have been repaired
        // since, and is not settled then.
        let metadata = fs::metadata(store.inner.layout.blob(&digest));
        let is_known = metadata.is_ok_and(|metadata| self.index.is_settled(&metadata));
        let manifest = store.stored_manifest(&self.name, &digest).filter(|_| is_known);
        let names = manifest.as_ref().map(Names::of);
        self.freed += store.inner.remove_counted(&path)?;
        if let Some(index) = names.as_ref().filter(|names| names.is_index) {
            for child in &index.digests {
                if self.release(child) {
                    going.insert(*child);
                }
            }
        }
        let names = names.into_iter().flat_map(|names| names.digests);
        for each in names.chain([digest]) {
            let metadata = fs::metadata(store.inner.layout.blob(&each));
            if metadata.is_ok_and(|metadata| self.index.is_settled(&metadata))
                && self.index.references.release(Scope::Everywhere, &each)
            {
                unnamed.push(each);
            }
        }
        Ok(())
    }
}

/// An index that is being built.
struct Build<'a> {
    store: &'a Store,
    now: SystemTime,
    is_pinned: &'a IsPinned<'a>,
    references: References,
    /// The least recently used so far, of them the most recently used on top.
    heap: BinaryHeap<EvictionCandidate>,
    has_more: bool,
    pinned: usize,
    damaged: usize,
}

/// An image that refers to another one of its repository.
struct Referrer {
    reference: Reference,
    used: SystemTime,
    is_pinned: bool,
    subject: Digest,
    manifests: Vec<Digest>,
}

impl Build<'_> {
    fn push(&mut self, used: SystemTime, subject: Option<Digest>, item: Evictable) {
        // A time in the future counts as now.
        let used = used.min(self.now);
        self.heap.push(EvictionCandidate { used, subject, item });
        if self.heap.len() > CANDIDATES_MAX {
            self.heap.pop();
            self.has_more = true;
        }
    }

    /// Whether something that was used then would be among the candidates.
    fn is_wanted(&self, used: SystemTime) -> bool {
        self.heap.len() < CANDIDATES_MAX || self.heap.peek().is_some_and(|last| used < last.used)
    }

    /// What is no image: partial downloads in their turn, damaged blobs before all else.
    fn add_leftovers(&mut self) {
        let quarantine = self.store.inner.layout.quarantine();
        for entry in fs::read_dir(quarantine).into_iter().flatten().flatten() {
            self.push(SystemTime::UNIX_EPOCH, None, Evictable::Quarantined(entry.path()));
        }
        for partial in self.store.idle_partials() {
            let written = partial.written.unwrap_or(SystemTime::UNIX_EPOCH);
            self.push(written, None, Evictable::Partial(partial));
        }
    }

    fn repository(&mut self, name: &ImageName, go_on: &mut dyn FnMut() -> bool) -> io::Result<()> {
        ask(go_on)?;
        let store = self.store;
        let scope = self.references.scope_of(&name.to_string());
        for entry in fs::read_dir(store.inner.layout.lists(name)).into_iter().flatten().flatten() {
            if let Some(stored) = modified(&entry.path()) {
                self.push(stored, None, Evictable::List(entry.path()));
            }
        }
        store.each_manifest(name, &mut |digest, names| {
            ask(go_on)?;
            match names {
                Some(names) => {
                    for each in names.digests.iter().chain([&digest]) {
                        self.references.count(Scope::Everywhere, each);
                    }
                    let children = names.digests.iter().filter(|_| names.is_index);
                    children.for_each(|child| self.references.count(scope, child));
                }
                None => {
                    self.damaged += 1;
                    self.references.count(Scope::Everywhere, &digest);
                }
            }
            Ok(())
        })?;
        let mut referrers = Vec::new();
        let mut damaged = 0;
        store.each_tag_of_repository(name, &mut |tag, root| {
            ask(go_on)?;
            match root {
                Some(root) => {
                    self.references.count(scope, &root);
                    self.add_image(name, Reference::Tag(tag), root, &mut referrers);
                }
                None => damaged += 1,
            }
            Ok(())
        })?;
        self.damaged += damaged;
        // What neither a tag nor an index refers to is an image of its own.
        store.each_record(name, &mut |digest| {
            if !self.references.is_named(scope, &digest) {
                ask(go_on)?;
                self.add_image(name, Reference::Digest(digest), digest, &mut referrers);
            }
            Ok(())
        })?;
        self.add_referrers(name, referrers, go_on)
    }

    fn add_image(
        &mut self,
        name: &ImageName,
        reference: Reference,
        root: Digest,
        referrers: &mut Vec<Referrer>,
    ) {
        let used = self.store.last_use(name, &reference, &[root]);
        let used = used.unwrap_or(SystemTime::UNIX_EPOCH).min(self.now);
        if !self.is_wanted(used) {
            self.has_more = true;
            return;
        }
        let Parts { manifests, subject: by_field } = self.store.parts(name, &root);
        let used = self.store.last_use(name, &reference, &manifests).unwrap_or(used);
        let is_pinned = (self.is_pinned)(name, &reference, &manifests);
        let by_tag = match &reference {
            Reference::Tag(tag) => tag.subject(),
            Reference::Digest(_) => None,
        };
        match by_field.or(by_tag).filter(|subject| *subject != root) {
            Some(subject) => {
                referrers.push(Referrer { reference, used, is_pinned, subject, manifests });
            }
            None if is_pinned => self.pinned += 1,
            None => self.push(used, None, Evictable::Image(name.clone(), reference)),
        }
    }

    /// Adds what refers to another image of the repository. It was used when that was, and is pinned as that is:
    /// without its signature an image may be refused.
    fn add_referrers(
        &mut self,
        name: &ImageName,
        mut referrers: Vec<Referrer>,
        go_on: &mut dyn FnMut() -> bool,
    ) -> io::Result<()> {
        if referrers.is_empty() {
            return Ok(());
        }
        let subjects = referrers.iter().map(|each| (each.subject, (SystemTime::UNIX_EPOCH, false)));
        let mut subjects: HashMap<Digest, (SystemTime, bool)> = subjects.collect();
        let (store, is_pinned) = (self.store, self.is_pinned);
        let mut note = |reference: Reference, root: Digest| {
            let Parts { manifests, .. } = store.parts(name, &root);
            if !manifests.iter().any(|digest| subjects.contains_key(digest)) {
                return;
            }
            let used = store.last_use(name, &reference, &manifests);
            let is_pinned = is_pinned(name, &reference, &manifests);
            for digest in &manifests {
                if let Some(subject) = subjects.get_mut(digest) {
                    subject.0 = subject.0.max(used.unwrap_or(SystemTime::UNIX_EPOCH));
                    subject.1 |= is_pinned;
                }
            }
        };
        store.each_tag_of_repository(name, &mut |tag, root| {
            ask(go_on)?;
            root.into_iter().for_each(|root| note(Reference::Tag(tag.clone()), root));
            Ok(())
        })?;
        store.each_record(name, &mut |digest| {
            ask(go_on)?;
            note(Reference::Digest(digest), digest);
            Ok(())
        })?;
        for _ in 0..REFERRERS_DEPTH {
            for referrer in &mut referrers {
                if let Some((used, is_pinned)) = subjects.get(&referrer.subject).copied() {
                    referrer.used = referrer.used.max(used);
                    referrer.is_pinned |= is_pinned;
                }
                for digest in &referrer.manifests {
                    if let Some(subject) = subjects.get_mut(digest) {
                        subject.0 = subject.0.max(referrer.used);
                        subject.1 |= referrer.is_pinned;
                    }
                }
            }
        }
        for referrer in referrers {
            match referrer.is_pinned {
                true => self.pinned += 1,
                false => {
                    let item = Evictable::Image(name.clone(), referrer.reference);
                    self.push(referrer.used, Some(referrer.subject), item);
                }
            }
        }
        Ok(())
    }
}

impl Store {
    /// The manifest that a reference means.
    fn root_of(&self, name: &ImageName, reference: &Reference) -> Option<Digest> {
        match reference {
            Reference::Tag(tag) => self.tag(name, tag, Access::Look).map(|record| record.digest),
            Reference::Digest(digest) => {
                self.inner.layout.manifest(name, digest).exists().then_some(*digest)
            }
        }
    }

    /// The manifests at and below `root`, as far as this repository has the indexes that name them.
    fn parts(&self, name: &ImageName, root: &Digest) -> Parts {
        let mut parts = Parts { manifests: vec![*root], subject: None };
        let mut seen = HashSet::from([*root]);
        let (mut begin, mut depth) = (0, 0);
        while begin < parts.manifests.len() && depth <= DEPTH_MAX {
            let end = parts.manifests.len();
            for place in begin..end {
                let digest = parts.manifests[place];
                let is_root = place == 0;
                if !is_root && !self.is_index(name, &digest) {
                    continue;
                }
                let Some(manifest) = self.stored_manifest(name, &digest) else { continue };
                if is_root {
                    parts.subject = manifest.subject().map(|subject| subject.digest);
                }
                if let ManifestKind::Index { manifests } = manifest.kind() {
                    let children = manifests.iter().map(|child| child.digest);
                    let room = PARTS_MAX.saturating_sub(parts.manifests.len());
                    parts.manifests.extend(children.filter(|each| seen.insert(*each)).take(room));
                }
            }
            (begin, depth) = (end, depth + 1);
        }
        parts
    }

    /// Whether a manifest of this repository is an index, as its record says.
    fn is_index(&self, name: &ImageName, digest: &Digest) -> bool {
        let record = self.manifest(name, digest, Access::Look);
        record.is_some_and(|record| record.media_type.is_index())
    }

    /// When an image, or a manifest below it, was last pulled.
    fn last_use(
        &self,
        name: &ImageName,
        reference: &Reference,
        manifests: &[Digest],
    ) -> Option<SystemTime> {
        let layout = &self.inner.layout;
        let by_tag = match reference {
            Reference::Tag(tag) => modified(&layout.tag(name, tag)),
            Reference::Digest(_) => None,
        };
        let by_digest = manifests.iter().map(|digest| modified(&layout.manifest(name, digest)));
        by_digest.fold(by_tag, Option::max)
    }

    /// Calls `visit` with what each tag and each index of a repository refers to.
    fn each_reference(&self, name: &ImageName, visit: &mut dyn FnMut(Digest)) -> io::Result<()> {
        self.each_tag_of_repository(name, &mut |_, root| {
            root.into_iter().for_each(&mut *visit);
            Ok(())
        })?;
        self.each_manifest(name, &mut |_, names| {
            if let Some(index) = names.filter(|names| names.is_index) {
                index.digests.into_iter().for_each(&mut *visit);
            }
            Ok(())
        })
    }

    /// Calls `visit` with every tag, and what it is; with nothing if its record is damaged.
    fn each_tag_of_repository(
        &self,
        name: &ImageName,
        visit: &mut dyn FnMut(Tag, Option<Digest>) -> io::Result<()>,
    ) -> io::Result<()> {
        each_entry(&self.inner.layout.tags(name), &mut |entry| {
            let Ok(tag) = entry.parse::<Tag>() else { return Ok(()) };
            match self.tag(name, &tag, Access::Look) {
                Some(record) => visit(tag, Some(record.digest)),
                None if is_readable(&self.inner.layout.tag(name, &tag))? => visit(tag, None),
                None => Ok(()),
            }
        })
    }

    /// Calls `visit` with the digest of every record of a manifest.
    fn each_record(
        &self,
        name: &ImageName,
        visit: &mut dyn FnMut(Digest) -> io::Result<()>,
    ) -> io::Result<()> {
        for algorithm in Algorithm::ALL {
            each_entry(&self.inner.layout.manifests(name, algorithm), &mut |hex| {
                digest_of(algorithm, hex).map_or(Ok(()), &mut *visit)
            })?;
        }
        Ok(())
    }

    /// Calls `visit` with every record of a manifest, and what that names; with nothing if it, or its record, is
    /// damaged or absent.
    fn each_manifest(
        &self,
        name: &ImageName,
        visit: &mut dyn FnMut(Digest, Option<Names>) -> io::Result<()>,
    ) -> io::Result<()> {
        self.each_record(name, &mut |digest| {
            if let Some(manifest) = self.stored_manifest(name, &digest) {
                return visit(digest, Some(Names::of(&manifest)));
            }
            is_readable(&self.inner.layout.blob(&digest))?;
            match is_readable(&self.inner.layout.manifest(name, &digest))? {
                true => visit(digest, None),
                false => Ok(()),
            }
        })
    }

    /// Gives the directories of a repository the times that they had, and a nanosecond: see the module.
    fn keep_times(&self, name: &ImageName, before: &RepositoryTimes) {
        for (path, time) in before.directories(&self.inner.layout, name) {
            let Some(time) = time else { continue };
            let times = FileTimes::new().set_modified(time + Duration::from_nanos(1));
            let kept = File::open(&path).and_then(|directory| directory.set_times(times));
            if kept.is_ok() && modified(&path) == Some(time) {
                // The file system does not keep nanoseconds, and the removal has to show.
                let now = FileTimes::new().set_modified(SystemTime::now());
                let _ = File::open(&path).and_then(|directory| directory.set_times(now));
            }
        }
    }
}

/// Calls `visit` with every name in a directory; with none if it does not exist.
fn each_entry(directory: &Path, visit: &mut dyn FnMut(&str) -> io::Result<()>) -> io::Result<()> {
    let named = |error: io::Error| {
        io::Error::new(error.kind(), format!("{}: {error}", directory.display()))
    };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(named)?,
    };
    for entry in entries {
        if let Some(name) = entry.map_err(named)?.file_name().to_str() {
            visit(name)?;
        }
    }
    Ok(())
}

/// Whether a file exists.
///
/// # Errors
/// If it exists and cannot be read, with its path.
fn is_readable(path: &Path) -> io::Result<bool> {
    match File::open(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
    }
}
