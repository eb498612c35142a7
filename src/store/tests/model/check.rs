//! The invariants, which are checked after every operation, and the operations that report or repair.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use super::super::*;
use super::content::{Item, Repo, Source, Tagged};
use super::disk::Snapshot;
use super::expected::State;
use super::operation::{By, Meanwhile, Op, Was};
use super::world::World;
use super::{Failed, ensure};

/// How far each change of a file may move the followed disk usage from the real one: a file is followed by its
/// length and uses whole blocks, and directories are not followed.
const DRIFT_BYTES: u64 = 3 * 4096;

impl World {
    /// Runs an operation and then checks every invariant.
    pub(super) fn step(&mut self, op: &Op) -> Result<(), Failed> {
        let before = std::mem::take(&mut self.last);
        self.run(op)?;
        let after = self.snapshot();
        self.steps += 1;
        self.follow_usage(op, &before, &after);
        let by = if self.steps.is_multiple_of(2) { By::A } else { By::B };
        self.check_files(&after)?;
        self.check_content(by)?;
        self.check_names(by)?;
        self.check_partials(by)?;
        self.check_usage(&after)?;
        self.last = after;
        Ok(())
    }

    /// The files are those of the model, with the bytes of the model.
    fn check_files(&mut self, after: &Snapshot) -> Result<(), Failed> {
        let layout = self.layout();
        let mut expected: BTreeMap<PathBuf, Option<Vec<u8>>> = BTreeMap::new();
        for (item, state) in &self.model.blobs {
            let bytes = (*state == State::Sound).then(|| item.bytes.clone());
            expected.insert(layout.blob(&item.digest), bytes);
        }
        for item in self.model.quarantine.keys() {
            expected.insert(layout.quarantined(&item.digest), None);
        }
        for ((source, item), partial) in &self.model.partials {
            let upstream = source.upstream();
            expected.insert(layout.partial(&upstream, &item.digest), Some(partial.bytes.clone()));
            if partial.note.is_some() {
                expected.insert(layout.partial_note(&upstream, &item.digest), None);
            }
        }
        for (of, tag) in self.model.tags.keys() {
            expected.insert(layout.tag(&of.name(), &tag.tag()), None);
        }
        for (of, item) in self.model.records.keys() {
            expected.insert(layout.manifest(&of.name(), &item.digest), None);
        }
        let places = [
            layout.root().join("blobs"),
            layout.quarantine(),
            layout.all_partials(),
            layout.refs(),
        ];
        let mut changed = Vec::new();
        for (path, entry) in after.0.iter().filter(|(_, entry)| !entry.is_directory) {
            if !places.iter().any(|place| path.starts_with(place)) {
                continue;
            }
            let Some(bytes) = expected.remove(path) else {
                // A note without its partial is ignored.
                if path.extension().is_some_and(|extension| extension == "json") {
                    continue;
                }
                return Err(Failed::new(format!("{} should not exist", path.display())));
            };
            let version = (entry.inode, entry.changed);
            if let Some(bytes) = bytes
                && self.compared.get(path) != Some(&version)
            {
                let found = fs::read(path).map_err(Failed::of)?;
                ensure!(found == bytes, "{} has other bytes", path.display());
                changed.push((path.clone(), version));
            }
        }
        expected.retain(|path, _| path.extension().is_none());
        ensure!(expected.is_empty(), "missing: {:?}", expected.keys());
        self.compared.extend(changed);
        let incoming = self.layout().incoming();
        let temporary = after.0.keys().filter(|path| path.parent() == Some(&incoming));
        let temporary = temporary.filter(|path| path.extension().is_none()).count();
        let imports = self.running_imports() + self.model.abandoned_imports;
        ensure!(temporary == imports, "{temporary} files of {imports} imports");
        Ok(())
    }

    /// What exists is served with the right bytes, and nothing else is served.
    fn check_content(&mut self, by: By) -> Result<(), Failed> {
        let store = self.store(by);
        for item in Item::all() {
            let served = store.find_blob(&item.digest, Some(item.size())).map_err(Failed::of)?;
            let is_present = self.model.is_present(item);
            ensure!(served.is_some() == is_present, "{item:?} is not present: {is_present}");
            if item.is_manifest() {
                let found = store.find_verified(&item.digest, item.size()).map_err(Failed::of)?;
                let is_sound = self.model.is_sound(item);
                ensure!(found.is_some() == is_sound, "{item:?} is not sound: {is_sound}");
            }
        }
        Ok(())
    }

    /// Tags refer to what was set last, and each process sees the same names.
    fn check_names(&self, by: By) -> Result<(), Failed> {
        let store = self.store(by);
        for of in Repo::ALL {
            let name = of.name();
            for tag in Tagged::ALL {
                let found = store.find_tag(&name, &tag.tag(), Access::Look).map_err(Failed::of)?;
                let found = found.map(|record| record.digest);
                let expected = self.model.tags.get(&(of, tag)).copied().flatten();
                let expected = expected.map(|item| item.digest);
                ensure!(found == expected, "{of:?}:{tag:?} is {found:?}, not {expected:?}");
            }
            let listed: BTreeSet<Digest> = store.manifests(&name).into_iter().collect();
            let records = self.model.records.keys().filter(|(repo, _)| *repo == of);
            let expected: BTreeSet<Digest> = records.map(|(_, item)| item.digest).collect();
            ensure!(listed == expected, "{of:?} has other manifests");
            for ((_, item), state) in self.model.records.iter().filter(|((repo, _), _)| *repo == of)
            {
                let found = store.find_manifest(&name, &item.digest, Access::Look);
                let (found, is_sound) =
                    (found.map_err(Failed::of)?.is_some(), *state == State::Sound);
                ensure!(found == is_sound, "{of:?}@{item:?} is not recorded: {is_sound}");
            }
        }
        let pins: BTreeSet<String> = store.pins().map_err(Failed::of)?.into_iter().collect();
        let expected: BTreeSet<String> = self.model.pins.iter().map(|pin| pin.pattern()).collect();
        ensure!(pins == expected, "the pins are {pins:?}, not {expected:?}");
        Ok(())
    }

    /// Partial downloads are listed with their lengths and repositories, and as idle if no process writes them.
    fn check_partials(&self, by: By) -> Result<(), Failed> {
        let store = self.store(by);
        let key = |upstream: &Upstream, digest: &Digest| {
            let source = Source::ALL.into_iter().find(|each| each.upstream() == *upstream);
            (source, Item::all().find(|item| item.digest == *digest))
        };
        let listed: BTreeMap<_, u64> = store
            .partial_files()
            .iter()
            .map(|file| (key(file.upstream(), file.digest()), file.bytes))
            .collect();
        let expected = self.model.partials.iter();
        let expected: BTreeMap<_, u64> = expected
            .map(|((source, item), partial)| {
                ((Some(*source), Some(*item)), partial.bytes.len() as u64)
            })
            .collect();
        ensure!(listed == expected, "the partials are {listed:?}, not {expected:?}");
        let idle = store.idle_partials().into_iter();
        let idle: BTreeSet<_> = idle.map(|file| key(file.upstream(), file.digest())).collect();
        let expected = self.model.partials.keys();
        let expected = expected.filter(|(source, item)| !self.is_being_written(*source, *item));
        let expected: BTreeSet<_> =
            expected.map(|(source, item)| (Some(*source), Some(*item))).collect();
        ensure!(idle == expected, "the idle partials are {idle:?}, not {expected:?}");
        let noted: BTreeSet<String> =
            store.partials().iter().map(|(name, digest)| format!("{name}@{digest}")).collect();
        let expected = self.model.partials.iter();
        let expected: BTreeSet<String> = expected
            .filter_map(|((source, item), partial)| {
                let repository = partial.note?.name().repository;
                let name = ImageName { upstream: source.upstream(), repository };
                Some(format!("{name}@{}", item.digest))
            })
            .collect();
        ensure!(noted == expected, "the noted partials are {noted:?}, not {expected:?}");
        Ok(())
    }

    // ---- Disk usage ----

    /// Allows the followed disk usage to move by what an operation explains.
    fn follow_usage(&mut self, op: &Op, before: &Snapshot, after: &Snapshot) {
        let moved = before.allocated_bytes().abs_diff(after.allocated_bytes());
        let own = (1 + before.changes(after)) * DRIFT_BYTES;
        let (actors, is_mixed) = actors(op);
        for by in [By::A, By::B] {
            let explained = match (actors.contains(&by), is_mixed) {
                (true, false) => own,
                // Each process sees its own part.
                (_, true) => own + before.allocated_bytes() + after.allocated_bytes(),
                (false, false) => moved,
            };
            let process = self.process_mut(by);
            if let Some(drift) = &mut process.drift_max {
                *drift += explained;
            }
        }
    }

    /// The followed disk usage agrees with `du`.
    fn check_usage(&mut self, after: &Snapshot) -> Result<(), Failed> {
        let actual = after.allocated_bytes();
        for by in [By::A, By::B] {
            if let Some(drift) = self.process(by).drift_max {
                let followed = self.store(by).disk_bytes();
                let off = followed.map_or(u64::MAX, |followed| followed.abs_diff(actual));
                ensure!(
                    off <= drift,
                    "the disk usage of {by:?} is {followed:?} instead of {actual} (± {drift})"
                );
            }
        }
        Ok(())
    }

    pub(super) fn count(&mut self, by: By) -> Result<(), Failed> {
        let counted = self.store(by).count_disk(&mut || true).expect("nothing stops it");
        let snapshot = self.snapshot();
        let actual = snapshot.allocated_bytes();
        let counted_bytes = counted.allocated_bytes;
        ensure!(counted_bytes == actual, "counted {counted_bytes} bytes instead of {actual}");
        let files = self.model.blobs.len() as u64;
        ensure!(counted.files == files, "counted {} blobs instead of {files}", counted.files);
        let latest = SystemTime::now() + FUTURE_TOLERANCE;
        let mut below = snapshot.0.iter().filter(|(path, _)| *path != self.root());
        let future = below.find(|(_, entry)| entry.modified > latest);
        ensure!(future.is_none(), "a time in the future stays: {future:?}");
        self.process_mut(by).drift_max = Some(0);
        self.tally.counted += 1;
        Ok(())
    }

    pub(super) fn usage(&mut self, by: By) -> Result<(), Failed> {
        self.count(by)?;
        let store = self.store(by);
        let disk = store.count_disk(&mut || true).expect("nothing stops it");
        let walked = store.walk_usage(&disk, &SystemTime::now, &mut || true).map_err(Failed::of)?;
        let Some(summary) = walked else { return Err(Failed::new("no other process walks")) };
        self.process_mut(by).drift_max = None;
        if self.has_stale_usage {
            return Ok(());
        }
        let images = self.model.images();
        let mut expected: BTreeMap<String, (u64, bool)> = BTreeMap::new();
        for image in &images {
            let name = image.of.name();
            let reference = match image.tag {
                Some(tag) => Reference::Tag(tag.tag()),
                None => Reference::Digest(image.root.digest),
            };
            let usage = (self.model.present_bytes(image), self.model.is_complete(image));
            expected.insert(name.with(&reference), usage);
        }
        let mut found = BTreeMap::new();
        self.store(by).each_usage(&mut |image| {
            found.insert(image.image, (image.size_bytes, image.complete));
            true
        });
        ensure!(found == expected, "the usage is {found:?} instead of {expected:?}");
        let mut of_repositories = BTreeMap::new();
        self.store(by).each_repository_usage(&mut |each| {
            of_repositories.insert(each.of.clone(), each.bytes);
            true
        });
        let mut wanted: BTreeMap<String, u64> = BTreeMap::new();
        for of in Repo::ALL {
            let mut images = images.iter().filter(|image| image.of == of).peekable();
            if images.peek().is_some() {
                let content: BTreeSet<Item> =
                    images.flat_map(|image| self.model.present(image)).collect();
                wanted.insert(of.name().to_string(), content.into_iter().map(Item::size).sum());
            }
        }
        of_repositories.retain(|of, _| wanted.contains_key(of));
        ensure!(of_repositories == wanted, "the usage is {of_repositories:?}, not {wanted:?}");
        let complete = expected.values().filter(|(_, is_complete)| *is_complete).count() as u64;
        let manifests: BTreeSet<Item> = self.model.records.keys().map(|(_, item)| *item).collect();
        let manifests = manifests.iter().filter(|item| self.model.blobs.contains_key(item));
        let counts = (summary.images, summary.complete_images, summary.manifests);
        let wanted = (images.len() as u64, complete, manifests.count() as u64);
        ensure!(counts == wanted, "the summary has {counts:?} instead of {wanted:?}");
        self.tally.walked += 1;
        Ok(())
    }

    pub(super) fn write_index(&mut self, by: By) -> Result<(), Failed> {
        if std::mem::take(&mut self.has_stale_index) {
            self.store(by).note_unknown_changes();
        }
        // Each process writes what it has changed.
        for by in [By::A, By::B, by] {
            self.store(by).write_index().map_err(Failed::of)?;
        }
        let index = fs::read(self.layout().index()).map_err(Failed::of)?;
        let index: serde_json::Value = serde_json::from_slice(&index).map_err(Failed::of)?;
        let entries = index["manifests"].as_array().into_iter().flatten();
        let listed: BTreeSet<String> = entries
            .map(|entry| {
                let name = &entry["annotations"]["org.opencontainers.image.ref.name"];
                format!("{} {}", name.as_str().unwrap_or_default(), entry["digest"])
            })
            .collect();
        let tags = self.model.tags.iter().filter_map(|((of, tag), item)| {
            let name = of.name().with(&Reference::Tag(tag.tag()));
            item.map(|item| format!("{name} \"{}\"", item.digest))
        });
        let expected: BTreeSet<String> = tags.collect();
        ensure!(listed == expected, "index.json has {listed:?} instead of {expected:?}");
        Ok(())
    }

    // ---- Damage ----

    pub(super) fn scrub(&mut self, by: By) -> Result<(), Failed> {
        let store = self.store(by).clone();
        let blobs = store.blobs().map_err(Failed::of)?;
        ensure!(blobs.len() == self.model.blobs.len(), "{} blobs are listed", blobs.len());
        for (digest, _) in blobs {
            let Some(item) = Item::all().find(|item| item.digest == digest) else {
                return Err(Failed::new("an unknown blob is listed"));
            };
            let checked = store.check_blob(&digest, &mut vec![0; 50_000], &mut |_| true);
            let is_sound = self.model.is_sound(item);
            ensure!(matches!(checked, Checked::Sound) == is_sound, "{item:?}: {checked:?}");
            if let Checked::Damaged(damage) = checked {
                let moved = store.quarantine(&damage).map_err(Failed::of)?;
                ensure!(moved.is_some(), "{item:?} was not moved");
                let state = self.model.blobs.remove(&item).unwrap_or(State::Flipped);
                self.model.quarantine.insert(item, state);
                self.has_stale_usage = true;
                self.tally.quarantined += 1;
            }
        }
        Ok(())
    }

    pub(super) fn empty_quarantine(&mut self, by: By, was: Was) -> Result<(), Failed> {
        if was == Was::Sound {
            let items: Vec<Item> = self.model.quarantine.keys().copied().collect();
            for item in items {
                fs::write(self.layout().quarantined(&item.digest), &item.bytes)
                    .map_err(Failed::of)?;
                self.model.quarantine.insert(item, State::Sound);
            }
            self.process_mut(by).drift_max = None;
        }
        let in_nine_days = SystemTime::now() + Duration::from_secs(9 * 86_400);
        self.store(by).trim_quarantine(in_nine_days, &mut || true).map_err(Failed::of)?;
        for (item, state) in std::mem::take(&mut self.model.quarantine) {
            if state == State::Sound {
                self.model.blobs.insert(item, State::Sound);
                self.has_stale_usage = true;
                self.tally.put_back += 1;
            }
        }
        Ok(())
    }
}

/// The processes that an operation belongs to, and whether several change files during it.
fn actors(op: &Op) -> (Vec<By>, bool) {
    let is_mixed =
        matches!(op, Op::Prune(_, _, Meanwhile::Other(..)) | Op::Evict(_, _, Meanwhile::Other(..)));
    let by = match op {
        Op::Ingest(by, ..)
        | Op::Abort(by, ..)
        | Op::Fetch(by, ..)
        | Op::Spool(by, ..)
        | Op::Store(by, _)
        | Op::StoreWrong(by, _)
        | Op::Publish(by, ..)
        | Op::Tag(by, ..)
        | Op::Untag(by, ..)
        | Op::Pull(by, ..)
        | Op::PullDigest(by, ..)
        | Op::Pin(by, _)
        | Op::Unpin(by, _)
        | Op::Prune(by, ..)
        | Op::Evict(by, ..)
        | Op::Scrub(by)
        | Op::EmptyQuarantine(by, _)
        | Op::Leftovers(by)
        | Op::Count(by)
        | Op::Usage(by)
        | Op::WriteIndex(by)
        | Op::LockBundle(by)
        | Op::UnlockBundle(by)
        | Op::Kill(by)
        | Op::Reopen(by) => vec![*by],
        Op::Jump(_) | Op::Damage(_) => Vec::new(),
    };
    (by, is_mixed)
}
