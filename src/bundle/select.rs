//! Selection: from what was asked for to the images that an export carries, and what they lack.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::io;
use std::iter;
use std::time::SystemTime;

use super::completeness::{is_complete, missing};
use super::docker::{self, SavedImage};
use super::event::Bytes;
use super::layout::Audience;
use crate::oci::{
    Choice, Descriptor, Digest, ImageName, Manifest, ManifestKind, PartReference, Platform,
    Platforms, Reference, Tag, quoted, uncommented,
};
use crate::store::{Graph, Store, StoredImage};

/// Reads a file of digests, one a line, as the far side lists them.
///
/// # Errors
/// What is wrong, with the number of its line.
pub(super) fn parse_digests(text: &str) -> Result<HashSet<Digest>, String> {
    let lines = text.lines().zip(1..).map(|(line, number)| (uncommented(line), number));
    let digests = lines.filter(|(line, _)| !line.is_empty()).map(|(line, number)| {
        line.parse().map_err(|error| format!("line {number}: {}: {error}", quoted(line)))
    });
    digests.collect()
}

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// The images; [`None`] is all of them.
    pub choices: Option<Vec<Choice>>,
    /// Only images that were fetched since then.
    pub since: Option<SystemTime>,
    /// Of an index only these; all that are in the cache if empty.
    pub platforms: Vec<Platform>,
}

/// An image to be carried.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// The image.
    pub image: StoredImage,
    /// The platforms that are carried, as an index tells them.
    pub platforms: Vec<String>,
    /// Manifests that are here: digests and sizes.
    pub(super) manifests: Vec<(Digest, u64)>,
    /// Configs and layers that are here.
    pub(super) blobs: Vec<(Digest, u64)>,
    /// How `docker load` knows it.
    pub(super) saved: Option<SavedImage>,
    pub(super) audience: Audience,
}

impl Chosen {
    /// Without the manifests themselves: a cache may have more of them than there is memory.
    fn new(store: &Store, image: &StoredImage, graph: &Graph, audience: Audience) -> Chosen {
        let manifests = graph.manifests.iter().filter_map(|each| {
            Some((each.descriptor.digest, each.manifest.as_ref()?.bytes().len() as u64))
        });
        let blobs = graph.blobs.iter().filter(|blob| blob.is_present).map(|blob| &blob.descriptor);
        let size_of = |blob: &Descriptor| {
            let found = || store.blob(&blob.digest, None).map(|found| found.size);
            blob.known_size().or_else(found).unwrap_or_default()
        };
        Chosen {
            image: image.clone(),
            platforms: graph.platforms().map(str::to_owned).collect(),
            manifests: manifests.collect(),
            blobs: blobs.map(|blob| (blob.digest, size_of(blob))).collect(),
            saved: match audience {
                Audience::Everybody => docker::saved(image, graph),
                Audience::Larder => None,
            },
            audience,
        }
    }

    /// The bytes of all that is carried of it.
    pub fn bytes(&self) -> u64 {
        self.manifests.iter().chain(&self.blobs).map(|(_, size)| size).sum()
    }
}

/// Something that was asked for and is not in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// No image matches.
    Nothing {
        /// What was asked for.
        choice: String,
    },
    /// An index has no such platform, or its image is not here.
    Platform {
        /// The image.
        reference: String,
        /// The platform.
        platform: String,
    },
    /// Manifests or blobs are not here.
    Content {
        /// The image.
        reference: String,
        /// Digest and size of each.
        missing: Vec<(Digest, u64)>,
    },
    /// A signature or the like of a chosen image is not here as a whole; it is left out.
    Referrer {
        /// The signature.
        reference: String,
    },
}

/// What an export would carry.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The images, by their full references in order.
    pub images: Vec<Chosen>,
    /// What is missing of what was asked for.
    pub missing: Vec<Missing>,
    /// What is missing of what came along, and does not matter.
    pub left_out: Vec<Missing>,
}

/// Chooses images.
///
/// # Errors
/// If the cache cannot be walked.
pub fn select(store: &Store, selection: &Selection) -> io::Result<Plan> {
    let mut selecting =
        Selecting { store, selection, chosen: BTreeMap::new(), plan: Plan::default() };
    let unreadable = store.unreadable_files();
    selecting.choose()?;
    selecting.add_referrers();
    if store.unreadable_files() != unreadable {
        // What could not be read would be reported as missing, or left out without a word.
        return Err(io::Error::other("some files in the cache cannot be read, see the log"));
    }
    let Selecting { chosen, mut plan, .. } = selecting;
    plan.images = chosen.into_values().collect();
    Ok(plan)
}

struct Selecting<'a> {
    store: &'a Store,
    selection: &'a Selection,
    chosen: BTreeMap<String, Chosen>,
    plan: Plan,
}

impl Selecting<'_> {
    fn choose(&mut self) -> io::Result<()> {
        let (store, selection) = (self.store, self.selection);
        let Some(choices) = &selection.choices else {
            return store.each_image(&mut |image| {
                self.add_if_recent(image);
                Ok(())
            });
        };
        let mut is_met = vec![false; choices.len()];
        if choices.iter().all(|choice| matches!(choice, Choice::Exact(_))) {
            let names: HashSet<&ImageName> = choices.iter().filter_map(name_of).collect();
            for image in names.into_iter().flat_map(|name| store.images_of(name)) {
                self.consider(&image, choices, &mut is_met);
            }
        } else {
            store.each_image(&mut |image| {
                self.consider(image, choices, &mut is_met);
                Ok(())
            })?;
        }
        for (choice, is_met) in choices.iter().zip(is_met) {
            match by_digest(store, choice) {
                _ if is_met => {}
                Some(image) => self.add_if_recent(&image),
                None => self.plan.missing.push(Missing::Nothing { choice: choice.to_string() }),
            }
        }
        Ok(())
    }

    fn consider(&mut self, image: &StoredImage, choices: &[Choice], is_met: &mut [bool]) {
        let mut is_chosen = false;
        for (choice, is_met) in choices.iter().zip(is_met) {
            if choice.covers(&image.name, &image.reference) {
                (is_chosen, *is_met) = (true, true);
            }
        }
        if is_chosen {
            self.add_if_recent(image);
        }
    }

    fn add_if_recent(&mut self, image: &StoredImage) {
        if self.selection.since.is_some_and(|since| image.fetched < since) {
            return;
        }
        let platforms = &self.selection.platforms;
        let graph = self.graph_of(image, platforms);
        let reference = image.full_reference();
        let mut missing: Vec<&Descriptor> = missing(&graph);
        for platform in platforms.iter().filter(|_| image.media_type.is_index()) {
            if !has_platform(&graph, platform) {
                let (reference, platform) = (reference.clone(), platform.to_string());
                self.plan.missing.push(Missing::Platform { reference, platform });
                // A platform that is not here is said by its name, and not by its manifest as well.
                missing = graph.missing_blobs().collect();
            }
        }
        if !missing.is_empty() {
            let missing = missing.into_iter().map(|each| (each.digest, each.size)).collect();
            self.plan.missing.push(Missing::Content { reference: reference.clone(), missing });
        }
        if graph.manifests.first().is_some_and(|root| root.manifest.is_some()) {
            let audience = audience_of(image, &graph);
            self.chosen.insert(reference, Chosen::new(self.store, image, &graph, audience));
        }
    }

    fn graph_of(&self, image: &StoredImage, platforms: &[Platform]) -> Graph {
        let root = Descriptor::new(image.digest, image.size);
        let load =
            |descriptor: &Descriptor| self.store.stored_manifest(&image.name, &descriptor.digest);
        if platforms.is_empty() {
            return self.store.graph_by(root, &load, &|_| true);
        }
        let meant = meant_below(&root, &load, &Platforms::Only(platforms.to_vec()));
        self.store.graph_by(root, &load, &|child| meant.contains(&child.digest))
    }

    /// What refers to a chosen manifest comes along, and what refers to that.
    fn add_referrers(&mut self) {
        let mut subjects: HashMap<ImageName, HashMap<Digest, Vec<StoredImage>>> = HashMap::new();
        let mut left: Vec<Chosen> = self.chosen.values().cloned().collect();
        while let Some(chosen) = left.pop() {
            let name = &chosen.image.name;
            let by_subject =
                subjects.entry(name.clone()).or_insert_with(|| by_subject(self.store, name));
            for (digest, _) in &chosen.manifests {
                let tagged = by_tag(self.store, name, digest);
                let referring = by_subject.get(digest).into_iter().flatten().cloned();
                for image in tagged.into_iter().chain(referring) {
                    let reference = image.full_reference();
                    if self.chosen.contains_key(&reference) {
                        continue;
                    }
                    let graph = self.graph_of(&image, &[]);
                    if !is_complete(&graph) {
                        self.plan.left_out.push(Missing::Referrer { reference });
                        continue;
                    }
                    let along = Chosen::new(self.store, &image, &graph, Audience::Larder);
                    self.chosen.insert(reference, along.clone());
                    left.push(along);
                }
            }
        }
        self.plan.left_out.dedup();
    }
}

/// The manifests below an index that those platforms mean.
fn meant_below(
    root: &Descriptor,
    load: &dyn Fn(&Descriptor) -> Option<Manifest>,
    platforms: &Platforms,
) -> HashSet<Digest> {
    let (mut meant, mut left) = (HashSet::new(), vec![root.clone()]);
    while let Some(descriptor) = left.pop() {
        let manifest = load(&descriptor);
        if let Some(ManifestKind::Index { manifests }) = manifest.as_ref().map(Manifest::kind) {
            let children = platforms.select(manifests).into_iter();
            left.extend(children.filter(|child| meant.insert(child.digest)).cloned());
        }
    }
    meant
}

/// Whether an index has an image for that platform here. One that the index gives no platform for fits
/// every platform.
fn has_platform(graph: &Graph, platform: &Platform) -> bool {
    graph.manifests.iter().skip(1).any(|each| {
        let kind = each.manifest.as_ref().map(Manifest::kind);
        let fits = |told: &String| platform.runs(told);
        matches!(kind, Some(ManifestKind::Image { .. }))
            && each.descriptor.platform.as_ref().is_none_or(fits)
    })
}

fn name_of(choice: &Choice) -> Option<&ImageName> {
    match choice {
        Choice::Exact(reference) => Some(&reference.name),
        Choice::Matching(_) => None,
    }
}

/// A manifest that is meant by its digest though a tag or an index leads to it.
fn by_digest(store: &Store, choice: &Choice) -> Option<StoredImage> {
    match choice {
        Choice::Exact(PartReference { name, reference: Some(digest @ Reference::Digest(_)) }) => {
            store.image(name, digest)
        }
        _ => None,
    }
}

/// The manifests of a repository that refer to another, by that.
fn by_subject(store: &Store, name: &ImageName) -> HashMap<Digest, Vec<StoredImage>> {
    let mut found: HashMap<Digest, Vec<StoredImage>> = HashMap::new();
    for digest in store.manifests(name) {
        let manifest = store.stored_manifest(name, &digest);
        let subject = manifest.and_then(|manifest| manifest.subject().cloned());
        if let Some(subject) = subject
            && let Some(image) = store.image(name, &Reference::Digest(digest))
        {
            found.entry(subject.digest).or_default().push(image);
        }
    }
    found
}

/// What stands behind a digest in tags by which signatures and the like hang on it: nothing in the
/// referrers tag schema of the distribution-spec, and cosign's.
fn referrer_suffixes() -> impl Iterator<Item = &'static str> {
    iter::once("").chain(Tag::COSIGN_SUFFIXES)
}

/// The tags of a repository that refer to a manifest by their own names.
fn by_tag(store: &Store, name: &ImageName, digest: &Digest) -> Vec<StoredImage> {
    let tags = referrer_suffixes().filter_map(|suffix| Tag::of_digest(digest, suffix));
    tags.filter_map(|tag| store.image(name, &Reference::Tag(tag))).collect()
}

/// Signatures and the like are no images to other tools, also if they were chosen with all the rest.
fn audience_of(image: &StoredImage, graph: &Graph) -> Audience {
    let root = graph.manifests.first().and_then(|root| root.manifest.as_ref());
    let has_subject = root.is_some_and(|manifest| manifest.subject().is_some());
    let tag = image.reference.to_string();
    let is_referrer_tag = referrer_suffixes().any(|suffix| {
        let digest = tag.strip_suffix(suffix).and_then(|tag| tag.split_once('-'));
        digest
            .is_some_and(|(algorithm, hex)| format!("{algorithm}:{hex}").parse::<Digest>().is_ok())
    });
    if has_subject || is_referrer_tag { Audience::Larder } else { Audience::Everybody }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Missing::Nothing { choice } => write!(f, "{choice}: nothing in the cache matches"),
            Missing::Platform { reference, platform } => {
                write!(f, "{reference}: there is no {platform} of it in the cache")
            }
            Missing::Content { reference, missing } => {
                let sizes = missing.iter().map(|(_, size)| *size);
                let bytes = sizes.fold(0, u64::saturating_add);
                write!(
                    f,
                    "{reference}: incomplete; {} of its blobs ({}) are not in the cache:",
                    missing.len(),
                    Bytes(bytes)
                )?;
                missing
                    .iter()
                    .try_for_each(|(digest, size)| write!(f, "\n    {digest} ({size} bytes)"))
            }
            Missing::Referrer { reference } => {
                write!(f, "{reference}: left out, since it is not whole in the cache")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_have_comments_and_several_a_line() {
        let text = "# far side\n\nalpine:3, quay.io/a/*  # all of a\n/^ghcr.io.#/\n";
        let choices = Choice::parse_list(text).unwrap();
        let told: Vec<String> = choices.iter().map(Choice::to_string).collect();
        assert_eq!(told, ["docker.io/library/alpine:3", "quay.io/a/*", "/^ghcr.io.#/"]);
        let error = Choice::parse_list("alpine\nA B\n").unwrap_err();
        assert!(error.starts_with("line 2"), "{error}");
    }

    #[test]
    fn digests_are_one_a_line() {
        let digest = Digest::of(crate::oci::Algorithm::Sha256, b"x");
        let text = format!("# have\n\n{digest}\n  {digest} # twice\n");
        assert_eq!(parse_digests(&text).unwrap(), HashSet::from([digest]));
        assert!(parse_digests("x\n").unwrap_err().starts_with("line 1"));
    }
}
