//! The operations on names: manifests, tags, pulls and pins.

use std::time::SystemTime;

use super::super::*;
use super::content::{Item, Repo, Tagged};
use super::expected::State;
use super::operation::{By, Pin};
use super::world::World;
use super::{Failed, ensure};

impl World {
    pub(super) fn document(&self, by: By, item: Item) -> Result<Document, Failed> {
        let mut writer = self.store(by).manifest_writer();
        item.bytes.chunks(30_000).for_each(|chunk| writer.write(chunk));
        writer.finish().ok_or_else(|| Failed::new("a manifest does not fit"))
    }

    pub(super) fn put_document(&mut self, by: By, item: Item) -> Result<(), Failed> {
        let document = self.document(by, item)?;
        self.store(by).ingest_document(&item.digest, &document).map_err(Failed::of)?;
        self.model.blobs.insert(item, State::Sound);
        Ok(())
    }

    pub(super) fn put_wrong_document(&mut self, by: By, item: Item) -> Result<(), Failed> {
        let other = Item::all().find(|other| *other != item).expect("there are several");
        let document = self.document(by, item)?;
        let refused = self.store(by).ingest_document(&other.digest, &document);
        ensure!(matches!(refused, Err(IngestError::WrongDigest { .. })), "{refused:?}");
        Ok(())
    }

    // ---- Names ----

    pub(super) fn publish(
        &mut self,
        by: By,
        of: Repo,
        item: Item,
        tag: Option<Tagged>,
    ) -> Result<(), Failed> {
        self.put_document(by, item)?;
        let record = ManifestRecord {
            media_type: item.media_type.clone(),
            size: item.size(),
            fetched: at(1_000),
        };
        let store = self.store(by);
        store.put_manifest(&of.name(), &item.digest, &record).map_err(Failed::of)?;
        self.model.records.insert((of, item), State::Sound);
        let named: Vec<Item> = item.below.iter().copied().chain([item]).collect();
        self.expect_renewed(&named)?;
        tag.map_or(Ok(()), |tag| self.tag(by, of, tag, item))
    }

    /// Tags a manifest that is in the store, as callers do.
    pub(super) fn tag(&mut self, by: By, of: Repo, tag: Tagged, item: Item) -> Result<(), Failed> {
        let is_recorded = self.model.records.get(&(of, item)) == Some(&State::Sound);
        if !is_recorded && !self.model.is_present(item) {
            return Ok(());
        }
        let is =
            TagRecord::new(item.digest, item.media_type.clone(), item.size(), at(1_000), at(2_000));
        self.store(by).put_tag(&of.name(), &tag.tag(), &is).map_err(Failed::of)?;
        self.model.tags.insert((of, tag), Some(item));
        self.model.records.insert((of, item), State::Sound);
        Ok(())
    }

    pub(super) fn pull(&mut self, by: By, of: Repo, tag: Tagged) -> Result<(), Failed> {
        let (now, store) = (SystemTime::now(), self.store(by));
        let found = store.tag(&of.name(), &tag.tag(), Access::Pull(now));
        let expected = self.model.tags.get(&(of, tag)).copied().flatten();
        ensure!(
            found.as_ref().map(|it| it.digest) == expected.map(|it| it.digest),
            "a pull found {found:?} instead of {expected:?}"
        );
        match expected {
            Some(item) => self.pull_digest(by, of, item),
            None => Ok(()),
        }
    }

    pub(super) fn pull_digest(&mut self, by: By, of: Repo, item: Item) -> Result<(), Failed> {
        let (now, store) = (SystemTime::now(), self.store(by));
        let found = store.manifest(&of.name(), &item.digest, Access::Pull(now)).is_some();
        let expected = self.model.records.get(&(of, item)) == Some(&State::Sound);
        ensure!(found == expected, "a pull found {found} instead of {expected}");
        let path = self.layout().manifest(&of.name(), &item.digest);
        let used = fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        let minute_ago = now - Duration::from_secs(61);
        ensure!(!expected || used > Some(minute_ago), "a pull does not count as use");
        Ok(())
    }

    pub(super) fn pin(&mut self, by: By, pin: Pin) -> Result<(), Failed> {
        let added = self.store(by).add_pins(&[pin.pattern()]).map_err(Failed::of)?;
        ensure!(added == usize::from(self.model.pins.insert(pin)), "{added} pins were added");
        Ok(())
    }

    /// What a commit names counts as new from then on.
    pub(super) fn expect_renewed(&self, items: &[Item]) -> Result<(), Failed> {
        let minute_ago = SystemTime::now() - Duration::from_secs(60);
        for item in items {
            let modified = fs::metadata(self.layout().blob(&item.digest));
            let modified = modified.and_then(|metadata| metadata.modified());
            let is_old = modified.is_ok_and(|modified| modified < minute_ago);
            ensure!(!is_old, "{item:?} does not count as new after a commit that names it");
        }
        Ok(())
    }

    // ---- Damage ----
}
