//! A directory with two processes on it, and the operations on content.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use super::super::*;
use super::content::{Item, Source};
use super::disk::{Snapshot, back, shift};
use super::expected::{Model, State};
use super::operation::{Act, By, Op, Size, SpoolAct};
use super::{Failed, Tally, ensure};

/// A running process: everything that it holds besides files.
pub(super) struct Process {
    pub(super) store: Store,
    pub(super) evictor: Evictor,
    pub(super) is_index_built: bool,
    ingests: BTreeMap<(Source, Item), Ingest>,
    import: Option<(Item, DigestingWriter, PathBuf)>,
    pub(super) bundle: Option<BundleLock>,
    /// How far the followed disk usage may be from the real one; `None` before the first count.
    pub(super) drift_max: Option<u64>,
}

impl Process {
    fn start(root: &Path) -> Process {
        Process {
            store: open(root),
            evictor: Evictor::default(),
            is_index_built: false,
            ingests: BTreeMap::new(),
            import: None,
            bundle: None,
            drift_max: None,
        }
    }

    pub(super) fn has_import(&self) -> bool {
        self.import.is_some()
    }
}

pub(super) struct World {
    directory: tempfile::TempDir,
    processes: [Process; 2],
    pub(super) model: Model,
    /// What has happened, to prove that the sequences reach it.
    pub(super) tally: Tally,
    /// Whether the last usage walk may keep what it knew before files were damaged.
    pub(super) has_stale_usage: bool,
    /// Whether `index.json` may name tags whose records were damaged.
    pub(super) has_stale_index: bool,
    /// Files that were compared with the model, as of their last change.
    pub(super) compared: BTreeMap<PathBuf, (u64, (i64, i64))>,
    pub(super) steps: usize,
    /// The directory after the last operation.
    pub(super) last: Snapshot,
}

impl World {
    pub(super) fn new() -> World {
        let directory = tempfile::tempdir().unwrap();
        let processes = [Process::start(directory.path()), Process::start(directory.path())];
        let last = Snapshot::of(directory.path());
        World {
            directory,
            last,
            processes,
            model: Model::default(),
            tally: Tally::default(),
            has_stale_usage: false,
            has_stale_index: false,
            compared: BTreeMap::new(),
            steps: 0,
        }
    }

    pub(super) fn root(&self) -> &Path {
        self.directory.path()
    }

    pub(super) fn process(&self, by: By) -> &Process {
        &self.processes[by as usize]
    }

    pub(super) fn process_mut(&mut self, by: By) -> &mut Process {
        &mut self.processes[by as usize]
    }

    pub(super) fn store(&self, by: By) -> &Store {
        &self.process(by).store
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot::of(self.root())
    }

    pub(super) fn is_bundle_locked(&self) -> bool {
        self.processes.iter().any(|process| process.bundle.is_some())
    }

    pub(super) fn running_imports(&self) -> usize {
        self.processes.iter().filter(|process| process.has_import()).count()
    }

    pub(super) fn is_being_written(&self, source: Source, item: Item) -> bool {
        self.processes.iter().any(|process| process.ingests.contains_key(&(source, item)))
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.processes[0].store.inner.layout
    }

    /// Runs an operation and updates the model.
    pub(super) fn run(&mut self, op: &Op) -> Result<(), Failed> {
        match op {
            Op::Ingest(by, source, item, act) => self.ingest(*by, *source, *item, *act),
            Op::Abort(by, source, item, quarters) => {
                self.ingest(*by, *source, *item, Act::Begin)?;
                self.ingest(*by, *source, *item, Act::Write(*quarters))?;
                self.ingest(*by, *source, *item, Act::Drop)
            }
            Op::Fetch(by, source, item) => self.fetch(*by, *source, *item),
            Op::Spool(by, item, act) => self.import(*by, *item, *act),
            Op::Store(by, item) => self.put_document(*by, *item),
            Op::StoreWrong(by, item) => self.put_wrong_document(*by, *item),
            Op::Publish(by, of, item, tag) => self.publish(*by, *of, *item, *tag),
            Op::Tag(by, of, tag, item) => self.tag(*by, *of, *tag, *item),
            Op::Untag(by, of, tag) => {
                self.store(*by).remove_tag(&of.name(), &tag.tag()).map_err(Failed::of)?;
                self.model.tags.remove(&(*of, *tag));
                Ok(())
            }
            Op::Pull(by, of, tag) => self.pull(*by, *of, *tag),
            Op::PullDigest(by, of, item) => self.pull_digest(*by, *of, *item),
            Op::Pin(by, pin) => self.pin(*by, *pin),
            Op::Unpin(by, pin) => {
                let removed = self.store(*by).remove_pins(&[pin.pattern()]).map_err(Failed::of)?;
                ensure!(removed == usize::from(self.model.pins.remove(pin)), "pins {removed}");
                Ok(())
            }
            Op::Prune(by, unused, meanwhile) => self.prune(*by, *unused, meanwhile),
            Op::Evict(by, enough, meanwhile) => self.evict(*by, *enough, meanwhile),
            Op::Scrub(by) => self.scrub(*by),
            Op::EmptyQuarantine(by, was) => self.empty_quarantine(*by, *was),
            Op::Leftovers(by) => {
                ensure!(!self.store(*by).remove_leftovers(SystemTime::now()), "more leftovers");
                self.model.abandoned_imports = 0;
                Ok(())
            }
            Op::Count(by) => self.count(*by),
            Op::Usage(by) => self.usage(*by),
            Op::WriteIndex(by) => self.write_index(*by),
            Op::LockBundle(by) => {
                if self.process(*by).bundle.is_none() {
                    let lock = self.store(*by).bundle_lock().map_err(Failed::of)?;
                    self.process_mut(*by).bundle = Some(lock);
                }
                Ok(())
            }
            Op::UnlockBundle(by) => {
                self.process_mut(*by).bundle = None;
                Ok(())
            }
            Op::Kill(by) => self.kill(*by),
            Op::Reopen(by) => self.reopen(*by),
            Op::Jump(seconds) => {
                shift(self.root(), *seconds);
                for process in &mut self.processes {
                    process.evictor.shift_times(|time| back(time, *seconds));
                }
                self.has_stale_usage = false;
                Ok(())
            }
            Op::Damage(damage) => self.damage(*damage),
        }
    }

    // ---- Downloads ----

    fn ingest(&mut self, by: By, source: Source, item: Item, act: Act) -> Result<(), Failed> {
        let key = (source, item);
        match act {
            Act::Begin => {
                let begun =
                    self.store(by).ingest(&source.upstream(), &item.digest, Some(item.size()));
                self.begun(by, source, item, begun.map_err(Failed::of)?, true)
            }
            Act::Resume => {
                let begun =
                    self.store(by).resume(&source.upstream(), &item.digest, Some(item.size()));
                self.begun(by, source, item, begun.map_err(Failed::of)?, false)
            }
            Act::Write(_) | Act::WriteWrong | Act::Finish(_) | Act::KillBeforeRename
                if !self.process(by).ingests.contains_key(&key) =>
            {
                self.ingest(by, source, item, Act::Begin)?;
                match self.process(by).ingests.contains_key(&key) {
                    true => self.ingest(by, source, item, act),
                    false => Ok(()),
                }
            }
            _ => match self.process_mut(by).ingests.remove(&key) {
                Some(ingest) => self.go_on(by, source, item, ingest, act),
                None => Ok(()),
            },
        }
    }

    /// Checks how an ingest begins: who writes, and where a partial is resumed.
    fn begun(
        &mut self,
        by: By,
        source: Source,
        item: Item,
        begun: Begin,
        creates: bool,
    ) -> Result<(), Failed> {
        let key = (source, item);
        let is_there = self.model.partials.contains_key(&key);
        let expected = match () {
            () if self.is_being_written(source, item) => "Locked",
            () if self.model.is_present(item) => "Present",
            () if is_there || creates => "Writing",
            () => "Absent",
        };
        let actual = match &begun {
            Begin::Writing(_) => "Writing",
            Begin::Present(_) => "Present",
            Begin::Locked => "Locked",
            Begin::Absent => "Absent",
        };
        ensure!(actual == expected, "an ingest began as {actual} instead of {expected}");
        match begun {
            Begin::Writing(ingest) => {
                let partial = self.model.partials.entry(key).or_default();
                let mut buffer = vec![0; 7_000];
                while ingest.partial().hash_next(&mut buffer).map_err(Failed::of)? {}
                let (resumed, length) = (ingest.bytes_written(), partial.bytes.len() as u64);
                ensure!(resumed == length, "resumed at {resumed} instead of {length}");
                let is_complete = !partial.bytes.is_empty() && partial.bytes == item.bytes;
                ensure!(
                    ingest.is_complete().map_err(Failed::of)? == is_complete,
                    "is_complete is not {is_complete}"
                );
                self.tally.resumed += usize::from(resumed > 0);
                self.process_mut(by).ingests.insert(key, *ingest);
            }
            Begin::Present(_) => {
                self.model.partials.remove(&key);
            }
            Begin::Locked => self.tally.locked += 1,
            Begin::Absent => {}
        }
        Ok(())
    }

    fn go_on(
        &mut self,
        by: By,
        source: Source,
        item: Item,
        mut ingest: Ingest,
        act: Act,
    ) -> Result<(), Failed> {
        let key = (source, item);
        let Some(partial) = self.model.partials.get_mut(&key) else {
            return Err(Failed::new("the partial of a running ingest is gone"));
        };
        match act {
            Act::Begin | Act::Resume => {}
            Act::Note(of) => {
                ingest.note(&of.name(), None).map_err(Failed::of)?;
                partial.note = Some(of);
            }
            Act::Write(quarters) => {
                let rest = item.bytes.get(partial.bytes.len()..).unwrap_or_default();
                let length = (item.bytes.len() * usize::from(quarters)).div_ceil(4);
                let next = &rest[..rest.len().min(length)];
                ingest.write(next).map_err(Failed::of)?;
                partial.bytes.extend(next);
            }
            Act::WriteWrong => {
                ingest.write(b"wrong").map_err(Failed::of)?;
                partial.bytes.extend(b"wrong");
            }
            Act::Drop => {
                if partial.bytes.is_empty() {
                    self.model.partials.remove(&key);
                }
                return Ok(());
            }
            Act::Discard => {
                ingest.discard();
                self.model.partials.remove(&key);
                return Ok(());
            }
            Act::Finish(size) => return self.finish(source, item, ingest, size),
            Act::KillBeforeRename => {
                let is_right = partial.bytes == item.bytes;
                let verified = ingest.verify(Some(item.size()));
                ensure!(verified.is_ok() == is_right, "verified {}", verified.is_ok());
                match verified {
                    Ok(verified) => self.vanish(source, item, verified)?,
                    Err(_) => drop(self.model.partials.remove(&key)),
                }
                return Ok(());
            }
        }
        self.process_mut(by).ingests.insert(key, ingest);
        Ok(())
    }

    fn finish(
        &mut self,
        source: Source,
        item: Item,
        ingest: Ingest,
        size: Size,
    ) -> Result<(), Failed> {
        let partial = self.model.partials.remove(&(source, item)).unwrap_or_default();
        let is_right = partial.bytes == item.bytes;
        match ingest.verify((size == Size::Announced).then_some(item.size())) {
            Ok(verified) => {
                ensure!(is_right, "wrong bytes were verified");
                let blob = verified.commit().map_err(Failed::of)?;
                ensure!(content(&blob) == item.bytes, "a commit returns other bytes");
                self.model.blobs.insert(item, State::Sound);
                self.tally.committed += 1;
                self.expect_renewed(&[item])
            }
            Err(IngestError::Store(error)) => Err(Failed::of(error)),
            Err(error) => {
                ensure!(!is_right, "the right bytes were refused: {error}");
                self.tally.refused += 1;
                Ok(())
            }
        }
    }

    fn fetch(&mut self, by: By, source: Source, item: Item) -> Result<(), Failed> {
        // Wrong bytes of an earlier download are discarded by the first attempt.
        for _ in 0..2 {
            self.ingest(by, source, item, Act::Begin)?;
            let is_writing = self.process(by).ingests.contains_key(&(source, item));
            if !is_writing || self.model.is_present(item) {
                return Ok(());
            }
            self.ingest(by, source, item, Act::Write(4))?;
            self.ingest(by, source, item, Act::Finish(Size::Announced))?;
        }
        ensure!(self.model.is_present(item), "two attempts did not fetch {item:?}");
        Ok(())
    }

    /// Ends an ingest as a kill does: the lock ends, and nothing is cleaned up. The file is elsewhere when the
    /// guard would remove it.
    fn vanish(&self, source: Source, item: Item, guard: impl Sized) -> Result<(), Failed> {
        let path = self.layout().partial(&source.upstream(), &item.digest);
        let aside = self.root().with_extension("aside");
        fs::rename(&path, &aside).map_err(Failed::of)?;
        drop(guard);
        fs::rename(&aside, &path).map_err(Failed::of)
    }

    fn kill(&mut self, by: By) -> Result<(), Failed> {
        let root = self.root().to_owned();
        let killed = std::mem::replace(self.process_mut(by), Process::start(&root));
        for ((source, item), ingest) in killed.ingests {
            self.vanish(source, item, ingest)?;
        }
        if let Some((_, import, path)) = killed.import {
            let aside = self.root().with_extension("aside");
            fs::rename(&path, &aside).map_err(Failed::of)?;
            drop(import);
            fs::rename(&aside, &path).map_err(Failed::of)?;
            self.model.abandoned_imports += 1;
        }
        self.tally.killed += 1;
        Ok(())
    }

    /// Opening a directory changes nothing in it.
    fn reopen(&mut self, by: By) -> Result<(), Failed> {
        let process = self.process_mut(by);
        process.import = None;
        process.bundle = None;
        for (key, ingest) in std::mem::take(&mut process.ingests) {
            drop(ingest);
            if self.model.partials.get(&key).is_some_and(|partial| partial.bytes.is_empty()) {
                self.model.partials.remove(&key);
            }
        }
        let root = self.root().to_owned();
        let before = self.snapshot();
        *self.process_mut(by) = Process::start(&root);
        let after = self.snapshot();
        ensure!(before.files() == after.files(), "reopening changed files");
        Ok(())
    }

    // ---- Imports ----

    fn import(&mut self, by: By, item: Item, act: SpoolAct) -> Result<(), Failed> {
        if !self.process(by).has_import() && !matches!(act, SpoolAct::Begin | SpoolAct::Drop) {
            self.import(by, item, SpoolAct::Begin)?;
        }
        let process = self.process_mut(by);
        match act {
            SpoolAct::Begin if process.import.is_none() => {
                let before = imports(&process.store);
                let writer = process.store.digesting_writer(item.digest.algorithm());
                let mut writer = writer.map_err(Failed::of)?;
                writer.write(&item.bytes[..item.bytes.len() / 2]).map_err(Failed::of)?;
                let path = imports(&process.store).difference(&before).next().cloned();
                let path = path.ok_or_else(|| Failed::new("an import has no file"))?;
                process.import = Some((item, writer, path));
            }
            SpoolAct::Begin => {}
            SpoolAct::Drop => process.import = None,
            SpoolAct::Finish => {
                let Some((item, mut writer, _)) = process.import.take() else { return Ok(()) };
                writer.write(&item.bytes[item.bytes.len() / 2..]).map_err(Failed::of)?;
                let done = writer.commit(None).map_err(Failed::of)?;
                ensure!(done == (item.digest, item.size()), "an import has another digest");
                self.model.blobs.insert(item, State::Sound);
                self.tally.imported += 1;
            }
            SpoolAct::FinishWrong => {
                let Some((item, mut writer, _)) = process.import.take() else { return Ok(()) };
                writer.write(b"wrong").map_err(Failed::of)?;
                let refused = writer.commit(Some(&item.digest));
                ensure!(matches!(refused, Err(IngestError::WrongDigest { .. })), "{refused:?}");
            }
        }
        Ok(())
    }
}

/// The files of imports.
fn imports(store: &Store) -> BTreeSet<PathBuf> {
    let incoming = fs::read_dir(store.inner.layout.incoming()).unwrap();
    incoming.map(|entry| entry.unwrap().path()).collect()
}
