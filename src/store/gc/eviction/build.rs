//! Builds an index: a strict walk of all records, in memory that does not grow with the cache.

use std::collections::{BinaryHeap, HashMap};
use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use super::read::Parts;
use super::references::{References, Scope};
use super::{CANDIDATES_MAX, Evictable, EvictionCandidate};
use crate::oci::{Digest, ImageName, Reference};
use crate::store::Store;
use crate::store::files::layout::LEGACY_LISTS;
use crate::store::gc::{GRACE, Pins};
use crate::store::names::images::check_stopped;

/// How many steps of references to an image are followed: the signature of a bill of materials, for example.
const REFERRERS_DEPTH: usize = 3;

/// An index that is being built.
pub(super) struct Build<'a> {
    pub(super) store: &'a Store,
    pub(super) now: SystemTime,
    pub(super) pins: &'a Pins,
    pub(super) references: References,
    /// The least recently used candidates so far, the most recently used of them on top.
    pub(super) heap: BinaryHeap<EvictionCandidate>,
    pub(super) has_more: bool,
    pub(super) pinned: usize,
    pub(super) damaged: usize,
}

/// An image that refers to another image of its repository.
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

    /// Whether an image with this time of use would be among the candidates.
    fn is_wanted(&self, used: SystemTime) -> bool {
        self.heap.len() < CANDIDATES_MAX || self.heap.peek().is_some_and(|last| used < last.used)
    }

    /// Adds candidates other than images: partial downloads by their time, damaged blobs before everything else.
    pub(super) fn add_leftovers(&mut self) {
        let quarantine = self.store.inner.layout.quarantine();
        let entries = fs::read_dir(quarantine).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_type().is_ok_and(|is| !is.is_dir())) {
            self.push(SystemTime::UNIX_EPOCH, None, Evictable::Quarantined(entry.path()));
        }
        for partial in self.store.idle_partials() {
            let written = partial.written.unwrap_or(SystemTime::UNIX_EPOCH);
            self.push(written, None, Evictable::Partial(partial));
        }
        self.add_lists();
    }

    /// Adds the lists of all repositories, including those without images. No blob depends on a list, so it needs
    /// no grace period.
    fn add_lists(&mut self) {
        self.add_lists_of(&self.store.inner.layout.lists());
        // Where version 0.1 stored them.
        let mut directories = vec![self.store.inner.layout.refs()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                let name = entry.file_name();
                if name == LEGACY_LISTS {
                    self.add_lists_of(&entry.path());
                } else if !name.to_string_lossy().starts_with('_')
                    && entry.file_type().is_ok_and(|is| is.is_dir())
                {
                    directories.push(entry.path());
                }
            }
        }
    }

    fn add_lists_of(&mut self, directory: &Path) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let stored = self.store.modified(&entry.path()).map(|stored| stored.min(self.now));
            if let Some(used) = stored.and_then(|stored| stored.checked_sub(GRACE)) {
                self.push(used, None, Evictable::List(entry.path()));
            }
        }
    }

    pub(super) fn repository(
        &mut self,
        name: &ImageName,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> io::Result<()> {
        check_stopped(keep_going)?;
        let store = self.store;
        let scope = self.references.scope_of(&name.to_string());
        store.each_manifest(name, &mut |digest, names| {
            check_stopped(keep_going)?;
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
            check_stopped(keep_going)?;
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
        // A manifest that no tag and no index refers to is an image itself. But a tag whose record is damaged may refer
        // to any of them, and be pinned.
        if damaged == 0 {
            store.each_record(name, &mut |digest| {
                if !self.references.is_named(scope, &digest) {
                    check_stopped(keep_going)?;
                    self.add_image(name, Reference::Digest(digest), digest, &mut referrers);
                }
                Ok(())
            })?;
        }
        self.add_referrers(name, referrers, keep_going)
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
        let is_pinned = self.pins.cover_any(name, &reference, manifests.iter().copied());
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

    /// Adds images that refer to another image of the repository. They count as used and pinned when their subject
    /// is: without its signature, an image may be rejected.
    fn add_referrers(
        &mut self,
        name: &ImageName,
        mut referrers: Vec<Referrer>,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> io::Result<()> {
        if referrers.is_empty() {
            return Ok(());
        }
        let subjects = referrers.iter().map(|each| (each.subject, (SystemTime::UNIX_EPOCH, false)));
        let mut subjects: HashMap<Digest, (SystemTime, bool)> = subjects.collect();
        let (store, pins) = (self.store, self.pins);
        let mut note = |reference: Reference, root: Digest| {
            let Parts { manifests, .. } = store.parts(name, &root);
            if !manifests.iter().any(|digest| subjects.contains_key(digest)) {
                return;
            }
            let used = store.last_use(name, &reference, &manifests);
            let is_pinned = pins.cover_any(name, &reference, manifests.iter().copied());
            for digest in &manifests {
                if let Some(subject) = subjects.get_mut(digest) {
                    subject.0 = subject.0.max(used.unwrap_or(SystemTime::UNIX_EPOCH));
                    subject.1 |= is_pinned;
                }
            }
        };
        store.each_tag_of_repository(name, &mut |tag, root| {
            check_stopped(keep_going)?;
            root.into_iter().for_each(|root| note(Reference::Tag(tag.clone()), root));
            Ok(())
        })?;
        store.each_record(name, &mut |digest| {
            check_stopped(keep_going)?;
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
