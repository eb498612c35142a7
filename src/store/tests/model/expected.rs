//! The model: what must be in the store, as plain maps.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use super::content::{Item, Repo, Source, Tagged};
use super::operation::Pin;

/// The content of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Sound,
    /// Other bytes of the same length.
    Flipped,
    Truncated,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Partial {
    pub(super) bytes: Vec<u8>,
    pub(super) note: Option<Repo>,
}

#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) blobs: BTreeMap<Item, State>,
    pub(super) quarantine: BTreeMap<Item, State>,
    pub(super) partials: BTreeMap<(Source, Item), Partial>,
    /// `None` if the record is damaged.
    pub(super) tags: BTreeMap<(Repo, Tagged), Option<Item>>,
    /// Which manifests a repository has, and whether the record can be read.
    pub(super) records: BTreeMap<(Repo, Item), State>,
    pub(super) pins: BTreeSet<Pin>,
    /// Imports that were begun by processes that have been killed since.
    pub(super) abandoned_imports: usize,
}

/// A tag, or a manifest that no tag and no index of its repository refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Image {
    pub(super) of: Repo,
    pub(super) tag: Option<Tagged>,
    pub(super) root: Item,
}

/// The times of names.
pub(super) trait Times {
    fn of_tag(&self, of: Repo, tag: Tagged) -> Option<SystemTime>;
    fn of_record(&self, of: Repo, item: Item) -> Option<SystemTime>;
}

impl Model {
    /// Whether the blob is served: its size is checked when it is opened.
    pub(super) fn is_present(&self, item: Item) -> bool {
        matches!(self.blobs.get(&item), Some(State::Sound | State::Flipped))
    }

    pub(super) fn is_sound(&self, item: Item) -> bool {
        self.blobs.get(&item) == Some(&State::Sound)
    }

    /// Whether a repository's manifest can be read.
    pub(super) fn is_loaded(&self, of: Repo, item: Item) -> bool {
        self.records.get(&(of, item)) == Some(&State::Sound) && self.is_sound(item)
    }

    /// Whether a record or the manifest of a record is damaged or missing, so that what it needs is unknown.
    pub(super) fn has_damaged_names(&self) -> bool {
        self.has_damaged_tags() || self.records.keys().any(|(of, item)| !self.is_loaded(*of, *item))
    }

    pub(super) fn has_damaged_tags(&self) -> bool {
        self.tags.values().any(Option::is_none)
    }

    /// A manifest and the manifests below it, including those that were never pulled.
    pub(super) fn manifests_at(&self, of: Repo, root: Item) -> Vec<Item> {
        let mut found = vec![root];
        let mut next = 0;
        while next < found.len() {
            let item = found[next];
            next += 1;
            if item.is_index && self.is_loaded(of, item) {
                let fresh: Vec<Item> =
                    item.below.iter().copied().filter(|it| !found.contains(it)).collect();
                found.extend(fresh);
            }
        }
        found
    }

    /// As [`Model::manifests_at`], without manifests of which this cache has nothing.
    pub(super) fn known_manifests_at(&self, of: Repo, root: Item) -> Vec<Item> {
        let mut found = self.manifests_at(of, root);
        let is_known = |item: Item| {
            item == root || self.blobs.contains_key(&item) || self.records.contains_key(&(of, item))
        };
        found.retain(|item| is_known(*item));
        found
    }

    /// Everything that an image needs, present or not.
    pub(super) fn content_of(&self, image: &Image) -> BTreeSet<Item> {
        let manifests = self.manifests_at(image.of, image.root);
        let loaded = manifests.iter().filter(|item| self.is_loaded(image.of, **item));
        loaded.flat_map(|item| item.below.iter().copied()).chain(manifests.clone()).collect()
    }

    /// Everything that a readable record refers to.
    pub(super) fn referenced(&self) -> BTreeSet<Item> {
        let loaded = self.records.keys().filter(|(of, item)| self.is_loaded(*of, *item));
        loaded.flat_map(|(_, item)| item.below.iter().copied().chain([*item])).collect()
    }

    pub(super) fn images(&self) -> Vec<Image> {
        Repo::ALL.into_iter().flat_map(|of| self.images_of(of)).collect()
    }

    fn images_of(&self, of: Repo) -> Vec<Image> {
        let mut images = Vec::new();
        let mut below = BTreeSet::new();
        for tag in Tagged::ALL {
            if let Some(Some(root)) = self.tags.get(&(of, tag)) {
                below.extend(self.manifests_at(of, *root));
                images.push(Image { of, tag: Some(tag), root: *root });
            }
        }
        let records = self.records.keys().filter(|(repo, _)| *repo == of).map(|(_, item)| *item);
        let untagged: Vec<Item> = records.filter(|item| !below.contains(item)).collect();
        let children: BTreeSet<Item> = untagged
            .iter()
            .flat_map(|item| self.manifests_at(of, *item).into_iter().skip(1))
            .collect();
        for root in untagged.into_iter().filter(|item| !children.contains(item)) {
            if self.records[&(of, root)] == State::Sound {
                images.push(Image { of, tag: None, root });
            }
        }
        images
    }

    /// The images that an image refers to as a signature.
    fn subjects<'a>(
        &'a self,
        image: &Image,
        manifests: &'a dyn Fn(&Image) -> Vec<Item>,
    ) -> impl Iterator<Item = Image> + 'a {
        let subject = image.root.subject.filter(|_| self.is_loaded(image.of, image.root));
        let others = self.images_of(image.of).into_iter();
        others.filter(move |other| subject.is_some_and(|it| manifests(other).contains(&it)))
    }

    /// Whether an image must stay because of these pins.
    pub(super) fn is_pinned(&self, image: &Image, pins: &BTreeSet<Pin>) -> bool {
        let known = |image: &Image| self.known_manifests_at(image.of, image.root);
        let is_covered = |image: &Image| covers(pins, image, &known(image));
        is_covered(image) || self.subjects(image, &known).any(|it| is_covered(&it))
    }

    /// Whether an image may stay because of these pins: removals differ in how they treat manifests of which the
    /// cache has nothing.
    pub(super) fn may_be_pinned(&self, image: &Image, pins: &BTreeSet<Pin>) -> bool {
        let all = |image: &Image| self.manifests_at(image.of, image.root);
        let is_covered = |image: &Image| covers(pins, image, &all(image));
        is_covered(image) || self.subjects(image, &all).any(|it| is_covered(&it))
    }

    /// When an image was last used: a signature counts as used with its subject.
    pub(super) fn used(&self, image: &Image, times: &dyn Times) -> Option<SystemTime> {
        let known = |image: &Image| self.known_manifests_at(image.of, image.root);
        let own = |image: &Image| {
            let by_tag = image.tag.and_then(|tag| times.of_tag(image.of, tag));
            let by_digest = known(image).into_iter().map(|item| times.of_record(image.of, item));
            by_digest.fold(by_tag, Option::max)
        };
        self.subjects(image, &known).map(|it| own(&it)).fold(own(image), Option::max)
    }

    /// Whether an image can be pulled without an upstream.
    pub(super) fn is_complete(&self, image: &Image) -> bool {
        let manifests = self.manifests_at(image.of, image.root);
        let mut loaded = manifests.iter().filter(|item| self.is_loaded(image.of, **item));
        let blobs = loaded.clone().filter(|item| !item.is_index).flat_map(|item| &item.below);
        loaded.any(|item| !item.is_index) && blobs.into_iter().all(|item| self.is_present(*item))
    }

    /// The content of an image that is cached.
    pub(super) fn present(&self, image: &Image) -> BTreeSet<Item> {
        let mut content = self.content_of(image);
        content.retain(|item| match item.is_manifest() {
            true => self.is_loaded(image.of, *item),
            false => self.is_present(*item),
        });
        content
    }

    /// Its size.
    pub(super) fn present_bytes(&self, image: &Image) -> u64 {
        self.present(image).into_iter().map(Item::size).sum()
    }
}

fn covers(pins: &BTreeSet<Pin>, image: &Image, manifests: &[Item]) -> bool {
    pins.iter().any(|pin| match *pin {
        Pin::Repository(of) => of == image.of,
        Pin::Tag(of, tag) => of == image.of && image.tag == Some(tag),
        Pin::Digest(of, item) => of == image.of && manifests.contains(&item),
        Pin::AllOfQuay => image.of != Repo::Docker,
    })
}
