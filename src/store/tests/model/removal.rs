//! Prunes and evictions: what they may remove, what they must remove, and what happens in the meantime.
//!
//! The model does not repeat how a removal selects images. It looks at what is gone afterwards, and again whenever
//! the other process has done something, and states what may be gone.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::super::*;
use super::content::{Item, Repo, Tagged};
use super::disk::Snapshot;
use super::expected::{Image, Times};
use super::operation::{By, Enough, Meanwhile, Pin, Unused};
use super::world::World;
use super::{Failed, ensure};
use crate::prune::{Criteria, Request, prune};

/// A prune removes partial downloads that have not grown for a week.
const PARTIAL_AGE_MAX: Duration = Duration::from_secs(7 * 86_400);
/// Files whose directory changed this recently may have changed in the same tick of the clock of the file system.
const TICK: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Prune(Option<Duration>),
    Evict,
}

impl Kind {
    /// The time for which a name must have been unused.
    fn unused_for(self) -> Duration {
        match self {
            Kind::Prune(span) => span.unwrap_or_default(),
            Kind::Evict => GRACE,
        }
    }

    fn partial_age(self) -> Duration {
        match self {
            Kind::Prune(_) => PARTIAL_AGE_MAX,
            Kind::Evict => GRACE,
        }
    }
}

/// A running removal.
struct Watch {
    kind: Kind,
    began: SystemTime,
    pins: BTreeSet<Pin>,
    /// The directory when only this removal could change it.
    snapshot: Snapshot,
    is_locked: bool,
    had_damage: bool,
    /// What the removed images needed.
    removed_content: BTreeSet<Item>,
    /// The images at the beginning that are not pinned, and when they were last used.
    candidates: Vec<(Image, Option<SystemTime>)>,
}

struct TimesOf<'a>(&'a Snapshot, &'a World);

impl Times for TimesOf<'_> {
    fn of_tag(&self, of: Repo, tag: Tagged) -> Option<SystemTime> {
        self.0.modified(&self.1.layout().tag(&of.name(), &tag.tag()))
    }

    fn of_record(&self, of: Repo, item: Item) -> Option<SystemTime> {
        self.0.modified(&self.1.layout().manifest(&of.name(), &item.digest))
    }
}

/// The age of a file. A time in the future counts as now.
fn age(now: SystemTime, modified: Option<SystemTime>) -> Duration {
    modified.and_then(|time| now.duration_since(time).ok()).unwrap_or_default()
}

impl World {
    fn watch(&self, kind: Kind) -> Watch {
        let (pins, snapshot) = (&self.model.pins, self.snapshot());
        let mut images = self.model.images();
        images.retain(|image| !self.model.may_be_pinned(image, pins));
        let times = TimesOf(&snapshot, self);
        let used = |image: Image| (image, self.model.used(&image, &times));
        let candidates = images.into_iter().map(used).collect();
        Watch {
            candidates,
            kind,
            began: SystemTime::now(),
            pins: self.model.pins.clone(),
            snapshot,
            is_locked: self.is_bundle_locked(),
            had_damage: self.model.has_damaged_names(),
            removed_content: BTreeSet::new(),
        }
    }

    pub(super) fn prune(
        &mut self,
        by: By,
        unused: Unused,
        meanwhile: &Meanwhile,
    ) -> Result<(), Failed> {
        let unused_for = match unused {
            Unused::Any => None,
            Unused::Seconds(seconds) => Some(Duration::from_secs(seconds)),
        };
        let mut watch = self.watch(Kind::Prune(unused_for));
        let (store, now, was_locked) = (self.store(by).clone(), watch.began, watch.is_locked);
        let (mut calls, mut done) = (0, Ok(()));
        let mut keep_going = || self.go_on_removing(meanwhile, &mut calls, &mut watch, &mut done);
        let criteria = Criteria { unused_for, ..Criteria::default() };
        let request = Request::Matching { criteria: &criteria, choices: &[], is_dry_run: false };
        let pruned = prune(&store, &PinSettings::default(), request, now, &mut keep_going);
        done?;
        self.absorb(&mut watch)?;
        match &pruned {
            Ok(report) => {
                ensure!(!was_locked, "a prune ran during an import");
                self.tally.pruned += report.removed;
                if !report.is_partial && matches!(meanwhile, Meanwhile::Nothing) {
                    self.must_be_gone(&watch)?;
                }
            }
            Err(PruneError::Locked(SweepLocked::Bundle)) if was_locked => self.tally.kept_out += 1,
            Err(PruneError::Stopped) if matches!(meanwhile, Meanwhile::Stop(_)) => {}
            Err(PruneError::Store(StoreError::IncompleteScan { .. }))
                if self.model.has_damaged_tags() => {}
            Err(error) => return Err(Failed::of(error)),
        }
        Ok(())
    }

    pub(super) fn evict(
        &mut self,
        by: By,
        enough: Enough,
        meanwhile: &Meanwhile,
    ) -> Result<(), Failed> {
        let mut watch = self.watch(Kind::Evict);
        let (store, was_locked) = (self.store(by).clone(), watch.is_locked);
        let process = self.process_mut(by);
        let is_fresh = !std::mem::replace(&mut process.is_index_built, true);
        let mut evictor = std::mem::take(&mut process.evictor);
        let (mut calls, mut done, asked) = (0, Ok(()), Cell::new(0));
        let is_enough = || {
            asked.set(asked.get() + 1);
            matches!(enough, Enough::After(questions) if asked.get() > questions)
        };
        let mut keep_going = || self.go_on_removing(meanwhile, &mut calls, &mut watch, &mut done);
        let mut eviction = Eviction::default();
        let evicted = evictor.evict(
            &store,
            &PinSettings::default(),
            &SystemTime::now,
            &is_enough,
            &mut keep_going,
            &mut eviction,
        );
        self.process_mut(by).evictor = evictor;
        done?;
        self.absorb(&mut watch)?;
        self.tally.evicted += eviction.images;
        match &evicted {
            Ok(()) => {
                ensure!(!was_locked, "an eviction ran during an import");
                if is_fresh && matches!(meanwhile, Meanwhile::Nothing) {
                    self.must_be_oldest(&watch)?;
                    if matches!(enough, Enough::Never) {
                        self.must_be_gone(&watch)?;
                    }
                }
            }
            Err(PruneError::Locked(SweepLocked::Bundle)) => {
                ensure!(self.is_bundle_locked(), "an eviction found an import");
                self.tally.kept_out += 1;
            }
            Err(PruneError::Stopped) if matches!(meanwhile, Meanwhile::Stop(_)) => {}
            Err(error) => return Err(Failed::of(error)),
        }
        Ok(())
    }

    /// Answers a removal that asks whether to continue; the other process may do something first.
    fn go_on_removing(
        &mut self,
        meanwhile: &Meanwhile,
        calls: &mut u8,
        watch: &mut Watch,
        done: &mut Result<(), Failed>,
    ) -> bool {
        *calls = calls.saturating_add(1);
        match meanwhile {
            Meanwhile::Nothing => true,
            Meanwhile::Stop(at) => *calls < *at,
            Meanwhile::Other(at, op) => {
                if calls == at && done.is_ok() {
                    *done = self.absorb(watch).and_then(|()| self.run(op));
                    watch.snapshot = self.snapshot();
                    watch.is_locked = self.is_bundle_locked();
                    watch.had_damage = self.model.has_damaged_names();
                    self.tally.meanwhile += 1;
                }
                done.is_ok()
            }
        }
    }

    /// Checks that what is gone may be gone, and removes it from the model.
    fn absorb(&mut self, watch: &mut Watch) -> Result<(), Failed> {
        let (now, after) = (SystemTime::now(), self.snapshot());
        let is_gone = |path: PathBuf| !after.0.contains_key(&path);
        let layout = self.layout();
        let tag_is_gone = |of: Repo, tag: Tagged| is_gone(layout.tag(&of.name(), &tag.tag()));
        let record_is_gone =
            |of: Repo, item: Item| is_gone(layout.manifest(&of.name(), &item.digest));
        let gone_tags: Vec<(Repo, Tagged)> =
            self.model.tags.keys().copied().filter(|(of, tag)| tag_is_gone(*of, *tag)).collect();
        let gone_records = self.model.records.keys().copied();
        let gone_records: Vec<(Repo, Item)> =
            gone_records.filter(|(of, item)| record_is_gone(*of, *item)).collect();

        let times = TimesOf(&watch.snapshot, self);
        for image in self.model.images() {
            let is_gone = match image.tag {
                Some(tag) => gone_tags.contains(&(image.of, tag)),
                None => gone_records.contains(&(image.of, image.root)),
            };
            if !is_gone {
                let manifests = self.model.manifests_at(image.of, image.root);
                let lost = manifests.iter().find(|item| gone_records.contains(&(image.of, **item)));
                ensure!(lost.is_none(), "{image:?} stays without the record of {lost:?}");
                continue;
            }
            let used = self.model.used(&image, &times);
            let unused = age(now, used);
            ensure!(!watch.is_locked, "{image:?} was removed during an import");
            ensure!(!self.model.is_pinned(&image, &watch.pins), "pinned {image:?} was removed");
            ensure!(
                unused >= watch.kind.unused_for(),
                "{image:?} was removed {unused:?} after its last use"
            );
            watch.removed_content.extend(self.model.content_of(&image));
        }
        for (of, tag) in &gone_tags {
            ensure!(self.model.tags[&(*of, *tag)].is_some(), "a damaged tag was removed");
        }
        for (of, item) in &gone_records {
            let is_pinned = watch.pins.iter().any(|pin| match pin {
                Pin::Repository(repo) => repo == of,
                Pin::Digest(repo, digest) => (repo, digest) == (of, item),
                Pin::AllOfQuay => *of != Repo::Docker,
                Pin::Tag(..) => false,
            });
            ensure!(!is_pinned, "the pinned record of {item:?} in {of:?} was removed");
        }
        // A damaged record is an image of its own to an eviction.
        watch.removed_content.extend(gone_records.iter().map(|(_, item)| *item));
        for key in gone_tags {
            self.model.tags.remove(&key);
        }
        for key in gone_records {
            self.model.records.remove(&key);
        }
        self.absorb_files(watch, now, &after)
    }

    /// The part of [`World::absorb`] for files that are not names.
    fn absorb_files(
        &mut self,
        watch: &Watch,
        now: SystemTime,
        after: &Snapshot,
    ) -> Result<(), Failed> {
        let layout = self.layout();
        let referenced = self.model.referenced();
        // An eviction may remove the damaged record as well, and then search again.
        let is_damaged = watch.had_damage && self.model.has_damaged_names();
        let mut gone_blobs = Vec::new();
        for item in self.model.blobs.keys() {
            let path = layout.blob(&item.digest);
            if after.0.contains_key(&path) {
                continue;
            }
            let age = age(now, watch.snapshot.modified(&path));
            ensure!(!watch.is_locked, "{item:?} was removed during an import");
            ensure!(age >= GRACE, "{item:?} was removed {age:?} after it was stored or named");
            ensure!(!referenced.contains(item), "{item:?} was removed, and an image needs it");
            ensure!(
                !is_damaged || watch.removed_content.contains(item),
                "{item:?} was removed; a damaged record may refer to it"
            );
            gone_blobs.push(*item);
        }
        let mut gone_partials = Vec::new();
        for (source, item) in self.model.partials.keys() {
            let path = layout.partial(&source.upstream(), &item.digest);
            if after.0.contains_key(&path) {
                continue;
            }
            let age = age(now, watch.snapshot.modified(&path));
            ensure!(
                !self.is_being_written(*source, *item),
                "the partial of {item:?} was removed while it is being written"
            );
            ensure!(age >= watch.kind.partial_age(), "a partial was removed after {age:?}");
            gone_partials.push((*source, *item));
        }
        let quarantined = self.model.quarantine.keys().copied();
        let gone: Vec<Item> = quarantined
            .filter(|item| !after.0.contains_key(&layout.quarantined(&item.digest)))
            .collect();
        ensure!(
            gone.is_empty() || watch.kind == Kind::Evict,
            "a prune removed {gone:?} from quarantine"
        );
        let incoming = layout.incoming();
        let imports = after.0.keys().filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            path.parent() == Some(&incoming) && name.starts_with("spool-")
        });
        let abandoned = imports.count().checked_sub(self.running_imports());
        let Some(abandoned) = abandoned else {
            return Err(Failed::new("a file of a running import was removed"));
        };
        ensure!(abandoned <= self.model.abandoned_imports, "more imports than before");
        self.model.abandoned_imports = abandoned;
        self.tally.blobs_removed += gone_blobs.len();
        self.tally.partials_removed += gone_partials.len();
        self.model.blobs.retain(|item, _| !gone_blobs.contains(item));
        self.model.partials.retain(|key, _| !gone_partials.contains(key));
        self.model.quarantine.retain(|item, _| !gone.contains(item));
        Ok(())
    }

    /// Whether a repository may have changed in the tick in which the removal began: the removal cannot tell
    /// which was first, and leaves it.
    fn has_just_changed(&self, watch: &Watch, of: Repo) -> bool {
        let repository = self.layout().repository(&of.name());
        let directories = watch
            .snapshot
            .0
            .iter()
            .filter(|(path, entry)| entry.is_directory && path.starts_with(&repository));
        directories.map(|(_, entry)| entry.modified).any(|modified| {
            modified + TICK > watch.began && modified < watch.began + FUTURE_TOLERANCE
        })
    }

    /// Checks that a removal that nothing disturbed has removed everything that it should.
    fn must_be_gone(&mut self, watch: &Watch) -> Result<(), Failed> {
        if watch.had_damage {
            return Ok(());
        }
        let times = TimesOf(&watch.snapshot, self);
        for image in self.model.images() {
            let unused = age(watch.began, self.model.used(&image, &times));
            let was_selected = unused >= watch.kind.unused_for()
                && !self.model.may_be_pinned(&image, &watch.pins)
                && !(watch.kind == Kind::Evict && self.has_just_changed(watch, image.of));
            ensure!(!was_selected, "{image:?} stayed, unused for {unused:?}");
        }
        let referenced = self.model.referenced();
        for item in self.model.blobs.keys().filter(|item| !referenced.contains(item)) {
            let age = age(watch.began, watch.snapshot.modified(&self.layout().blob(&item.digest)));
            ensure!(age < GRACE + TICK, "no image needs {item:?}, and it stayed at {age:?}");
        }
        for (source, item) in self.model.partials.keys() {
            let path = self.layout().partial(&source.upstream(), &item.digest);
            let age = age(watch.began, watch.snapshot.modified(&path));
            ensure!(
                age < watch.kind.partial_age() + TICK || self.is_being_written(*source, *item),
                "the partial of {item:?} stayed at {age:?}"
            );
        }
        self.tally.complete_removals += 1;
        Ok(())
    }

    /// Checks that an eviction removed the least recently used images.
    fn must_be_oldest(&self, watch: &Watch) -> Result<(), Failed> {
        let left = self.model.images();
        let is_left = |(image, _): &&(Image, Option<SystemTime>)| left.contains(image);
        let (left, gone): (Vec<_>, Vec<_>) = watch.candidates.iter().partition(is_left);
        let newest = gone.iter().filter_map(|(_, used)| *used).max();
        if watch.had_damage || newest.is_none() {
            return Ok(());
        }
        for (image, used) in left {
            let is_passed_over = used < newest && !self.has_just_changed(watch, image.of);
            ensure!(!is_passed_over, "{image:?} was used before an image that was evicted");
        }
        Ok(())
    }
}
