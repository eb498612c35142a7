//! Decides what a sweep removes. Pure: an inventory, uses, pins and limits in, a plan out.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use super::inventory::Inventory;
use super::{BucketImage, Parts};
use crate::oci::{Digest, ImageName, Reference, Tag, blob_path, manifest_path, tag_path};

/// A blob that no name refers to stays for this long: its names may still be on their way.
pub(super) const YOUNG: Duration = Duration::from_secs(24 * 3600);

/// How many images a plan removes, so that it is not too large to be read. The next sweep removes others.
const IMAGES_MAX: usize = 10_000;

/// What may stay in the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BucketLimits {
    /// The size of the bucket in bytes, above which the images that were used least recently are removed.
    pub max_bytes: Option<u64>,
    /// Images that were not pulled for this long are removed.
    pub unused_for: Option<Duration>,
}

impl BucketLimits {
    /// Whether anything is ever removed.
    pub fn is_bounded(&self) -> bool {
        *self != BucketLimits::default()
    }
}

/// What a sweep removes, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Plan {
    /// The images, for people, each with the key of its tag or record.
    pub(super) images: Vec<(String, String)>,
    /// The keys of tags, and of records that only these tags needed.
    pub(super) names: Vec<String>,
    /// The keys of blobs that no remaining record refers to, and their sizes in bytes.
    pub(super) blobs: Vec<(String, u64)>,
}

/// A tag, or a manifest that no tag needs.
struct Candidate<'a> {
    name: &'a ImageName,
    tag: Option<&'a Tag>,
    root: Digest,
    used: SystemTime,
    is_pinned: bool,
    /// The manifests that it consists of, root included.
    manifests: Vec<Digest>,
}

impl Candidate<'_> {
    /// Its full reference, and the key of its tag or record.
    fn image(&self) -> (String, String) {
        match self.tag {
            Some(tag) => (self.name.with(&Reference::Tag(tag.clone())), tag_path(self.name, tag)),
            None => {
                let reference = Reference::Digest(self.root);
                (self.name.with(&reference), manifest_path(self.name, &self.root))
            }
        }
    }
}

/// Whether an image is pinned, which consists of these manifests.
pub(super) type IsPinned<'a> = &'a dyn Fn(&ImageName, &Reference, &[Digest]) -> bool;

/// What is to be removed. `uses` is when each image was last pulled, by its full reference.
pub(super) fn plan(
    inventory: &Inventory,
    uses: &HashMap<String, SystemTime>,
    is_pinned: IsPinned<'_>,
    limits: &BucketLimits,
    now: SystemTime,
) -> Plan {
    let mut candidates = candidates(inventory, uses, is_pinned);
    candidates.sort_by_key(|candidate| candidate.used);
    let mut needed: HashMap<Digest, u32> = HashMap::new();
    for candidate in &candidates {
        for digest in content(inventory, candidate) {
            *needed.entry(digest).or_default() += 1;
        }
    }
    let total: u64 = inventory.blobs.values().map(|blob| blob.size).sum();
    let mut freed = 0;
    let (mut going, mut staying) = (Vec::new(), Vec::new());
    for candidate in candidates {
        let unused = now.duration_since(candidate.used).unwrap_or_default();
        let is_unused = limits.unused_for.is_some_and(|span| unused >= span);
        let is_over = limits.max_bytes.is_some_and(|max| total - freed > max) && unused >= YOUNG;
        if candidate.is_pinned || !(is_unused || is_over) || going.len() == IMAGES_MAX {
            staying.push(candidate);
            continue;
        }
        for digest in content(inventory, &candidate) {
            let count = needed.entry(digest).or_default();
            *count = count.saturating_sub(1);
            if *count == 0 {
                freed += inventory.blobs.get(&digest).map_or(0, |blob| blob.size);
            }
        }
        going.push(candidate);
    }
    removal(inventory, &going, &staying, now)
}

fn removal(
    inventory: &Inventory,
    going: &[Candidate<'_>],
    staying: &[Candidate<'_>],
    now: SystemTime,
) -> Plan {
    let mut plan = Plan::default();
    let kept: HashSet<(&ImageName, Digest)> = staying
        .iter()
        .flat_map(|candidate| candidate.manifests.iter().map(|each| (candidate.name, *each)))
        .collect();
    for candidate in going {
        plan.images.push(candidate.image());
        plan.names.extend(candidate.tag.map(|tag| tag_path(candidate.name, tag)));
    }
    let mut removed: HashSet<(&ImageName, Digest)> = HashSet::new();
    for candidate in going {
        for digest in &candidate.manifests {
            let record = (candidate.name, *digest);
            let is_there = inventory.manifests.contains_key(&(candidate.name.clone(), *digest));
            if is_there && !kept.contains(&record) && removed.insert(record) {
                plan.names.push(manifest_path(candidate.name, digest));
            }
        }
    }
    // Whatever a record or a tag that stays refers to, whether it is an image of its own or not.
    let mut referred: HashSet<Digest> = HashSet::new();
    let records =
        inventory.manifests.keys().filter(|(name, digest)| !removed.contains(&(name, *digest)));
    let gone: HashSet<&str> = plan.names.iter().map(String::as_str).collect();
    let tags =
        inventory.tags.iter().filter(|((name, tag), _)| !gone.contains(&*tag_path(name, tag)));
    let roots = records.map(|(_, digest)| *digest).chain(tags.map(|(_, tag)| tag.digest));
    for digest in roots {
        referred.insert(digest);
        referred.extend(inventory.refers_to(&digest));
    }
    for (digest, blob) in &inventory.blobs {
        let is_old = now.duration_since(blob.modified).is_ok_and(|age| age >= YOUNG);
        if is_old && !referred.contains(digest) {
            plan.blobs.push((blob_path(digest), blob.size));
        }
    }
    plan.blobs.sort();
    plan
}

/// All images in the bucket, in the order of their names.
pub(super) fn images(inventory: &Inventory) -> Vec<(BucketImage, Parts)> {
    let describe = |candidate: &Candidate<'_>| {
        let all: Vec<Digest> = content(inventory, candidate).collect();
        let sizes: Vec<u64> = all
            .iter()
            .filter_map(|digest| inventory.blobs.get(digest).map(|blob| blob.size))
            .collect();
        let image = BucketImage {
            image: candidate.image().0,
            digest: candidate.root,
            size_bytes: sizes.iter().sum(),
            missing: all.len() - sizes.len(),
            written: candidate.used,
        };
        (image, Parts { manifests: candidate.manifests.clone(), blobs: all })
    };
    let never = |_: &ImageName, _: &Reference, _: &[Digest]| false;
    let found = candidates(inventory, &HashMap::new(), &never);
    let mut images: Vec<(BucketImage, Parts)> = found.iter().map(describe).collect();
    images.sort_by(|(one, _), (other, _)| one.image.cmp(&other.image));
    images
}

/// The blobs of an image, manifests included.
fn content<'a>(
    inventory: &'a Inventory,
    candidate: &'a Candidate<'_>,
) -> impl Iterator<Item = Digest> + 'a {
    let mut all: HashSet<Digest> = candidate.manifests.iter().copied().collect();
    for digest in &candidate.manifests {
        all.extend(inventory.refers_to(digest));
    }
    all.into_iter()
}

/// All images: tags, and manifests that are part of no other image of their repository.
fn candidates<'a>(
    inventory: &'a Inventory,
    uses: &HashMap<String, SystemTime>,
    is_pinned: IsPinned<'_>,
) -> Vec<Candidate<'a>> {
    let used = |image: String, modified: SystemTime| {
        uses.get(&image).map_or(modified, |used| (*used).max(modified))
    };
    let mut found = Vec::new();
    let mut covered: HashSet<(&ImageName, Digest)> = HashSet::new();
    for ((name, tag), entry) in &inventory.tags {
        let manifests = closure(inventory, name, entry.digest);
        covered.extend(manifests.iter().map(|digest| (name, *digest)));
        let reference = Reference::Tag(tag.clone());
        let by_tag = used(name.with(&reference), entry.modified);
        let by_digest = used(name.with(&Reference::Digest(entry.digest)), entry.modified);
        found.push(Candidate {
            name,
            tag: Some(tag),
            root: entry.digest,
            used: by_tag.max(by_digest),
            is_pinned: is_pinned(name, &reference, &manifests),
            manifests,
        });
    }
    // Indexes first, so that their children are not images of their own.
    let mut rest: Vec<_> = inventory.manifests.iter().collect();
    rest.sort_by_key(|((_, digest), _)| !inventory.is_index(digest));
    for ((name, digest), modified) in rest {
        if covered.contains(&(name, *digest)) {
            continue;
        }
        let manifests = closure(inventory, name, *digest);
        covered.extend(manifests.iter().map(|each| (name, *each)));
        let reference = Reference::Digest(*digest);
        found.push(Candidate {
            name,
            tag: None,
            root: *digest,
            used: used(name.with(&reference), *modified),
            is_pinned: is_pinned(name, &reference, &manifests),
            manifests,
        });
    }
    // A signature is used with its subject.
    let mut used_with: HashMap<(&ImageName, Digest), (SystemTime, bool)> = HashMap::new();
    for candidate in &found {
        for digest in &candidate.manifests {
            let entry = used_with
                .entry((candidate.name, *digest))
                .or_insert((candidate.used, candidate.is_pinned));
            *entry = (entry.0.max(candidate.used), entry.1 | candidate.is_pinned);
        }
    }
    for candidate in &mut found {
        if let Some(subject) = inventory.subject_of(&candidate.root)
            && let Some((used, is_pinned)) = used_with.get(&(candidate.name, subject))
        {
            candidate.used = candidate.used.max(*used);
            candidate.is_pinned |= is_pinned;
        }
    }
    found
}

/// A manifest, and the manifests below it of which the repository has a record.
fn closure(inventory: &Inventory, name: &ImageName, root: Digest) -> Vec<Digest> {
    let (mut all, mut seen, mut at) = (vec![root], HashSet::from([root]), 0);
    while let Some(digest) = all.get(at).copied() {
        for child in inventory.refers_to(&digest) {
            let is_recorded = inventory.manifests.contains_key(&(name.clone(), child));
            if is_recorded && inventory.is_index(&digest) && seen.insert(child) {
                all.push(child);
            }
        }
        at += 1;
    }
    all
}
