//! Selection: finds the images to export, and the content that the cache lacks.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::io;
use std::iter;
use std::time::SystemTime;

use super::completeness::is_complete;
use super::docker::{self, SavedImage};
use super::layout::Audience;
use crate::oci::{
    Choice, Descriptor, Digest, ImageName, Manifest, ManifestKind, PartReference, Platform,
    Platforms, Reference, Tag, quoted, uncommented,
};
use crate::store::{Graph, Store, StoredImage};
use crate::units::{plural, size};

/// Parses a list of digests, one per line, as the destination prints them.
///
/// # Errors
/// A description of the error, with its line number.
pub(super) fn parse_digests(text: &str) -> Result<HashSet<Digest>, String> {
    let lines = text.lines().zip(1..).map(|(line, number)| (uncommented(line), number));
    let digests = lines.filter(|(line, _)| !line.is_empty()).map(|(line, number)| {
        line.parse().map_err(|error| format!("line {number}: {}: {error}", quoted(line)))
    });
    digests.collect()
}

/// The images that a user selects for an export.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// The selected images; [`None`] selects all.
    pub choices: Option<Vec<Choice>>,
    /// Selects only images that were fetched since this time.
    pub since: Option<SystemTime>,
    /// The platforms to export from an index; if empty, all that are cached.
    pub platforms: Vec<Platform>,
}

/// An image to export.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// The image.
    pub image: StoredImage,
    /// The platforms to export, as the index names them.
    pub platforms: Vec<String>,
    /// The manifests in the cache: digests and sizes.
    pub(super) manifests: Vec<(Digest, u64)>,
    /// The configs and layers in the cache.
    pub(super) blobs: Vec<(Digest, u64)>,
    /// The entry for `docker load`.
    pub(super) saved: Option<SavedImage>,
    pub(super) audience: Audience,
}

impl Chosen {
    /// Keeps digests and sizes, not the manifests themselves: a cache may have more of them than fit in memory.
    fn new(store: &Store, image: &StoredImage, graph: &Graph, audience: Audience) -> Chosen {
        let manifests = graph
            .manifests
            .iter()
            .filter_map(|each| Some((each.descriptor.digest, each.manifest.as_ref()?.size())));
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
                Audience::AllTools => docker::saved(store, image, graph),
                Audience::Larder => None,
            },
            audience,
        }
    }

    /// The size of the image's content in bytes.
    pub fn bytes(&self) -> u64 {
        self.manifests.iter().chain(&self.blobs).map(|(_, size)| size).sum()
    }
}

/// A selected image or content that is not in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// No image in the cache matches.
    Nothing {
        /// The selection.
        choice: String,
    },
    /// The index does not list the platform, or its image is not in the cache.
    Platform {
        /// The image.
        reference: String,
        /// The platform.
        platform: String,
    },
    /// Manifests or blobs are not in the cache.
    Content {
        /// The image.
        reference: String,
        /// Digest and size of each manifest or blob.
        missing: Vec<(Digest, u64)>,
    },
    /// A referrer of a selected image, such as a signature, is incomplete in the cache. It is omitted.
    Referrer {
        /// The referrer.
        reference: String,
    },
    /// A tag has moved to the image and that is held or was rejected. It is omitted unless its digest is named.
    Unaccepted {
        /// The image, by its digest.
        reference: String,
    },
}

/// The plan of an export.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The images, ordered by their full references.
    pub images: Vec<Chosen>,
    /// The selected content that is missing.
    pub missing: Vec<Missing>,
    /// Referrers, and images that were not accepted for their tag, that are omitted. This is not an error.
    pub left_out: Vec<Missing>,
}

/// Selects the images to export.
///
/// # Errors
/// If the cache cannot be read.
pub fn select(store: &Store, selection: &Selection) -> io::Result<Plan> {
    let mut selecting =
        Selecting { store, selection, chosen: BTreeMap::new(), plan: Plan::default() };
    let unreadable = store.unreadable_files();
    selecting.choose()?;
    selecting.add_referrers();
    if store.unreadable_files() != unreadable {
        // Unreadable content would look missing, or be omitted without a message.
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
                match image.is_unaccepted {
                    true => self.leave_out(image),
                    false => self.add_if_recent(image),
                }
                Ok(())
            });
        };
        let mut is_matched = vec![false; choices.len()];
        if choices.iter().all(|choice| matches!(choice, Choice::Exact(_))) {
            let names: HashSet<&ImageName> = choices.iter().filter_map(name_of).collect();
            for image in names.into_iter().flat_map(|name| store.images_of(name)) {
                self.consider(&image, choices, &mut is_matched);
            }
        } else {
            store.each_image(&mut |image| {
                self.consider(image, choices, &mut is_matched);
                Ok(())
            })?;
        }
        for (choice, is_matched) in choices.iter().zip(is_matched) {
            match by_digest(store, choice) {
                _ if is_matched => {}
                Some(image) => self.add_if_recent(&image),
                None => self.plan.missing.push(Missing::Nothing { choice: choice.to_string() }),
            }
        }
        Ok(())
    }

    fn consider(&mut self, image: &StoredImage, choices: &[Choice], is_matched: &mut [bool]) {
        let (mut is_chosen, mut is_named) = (false, false);
        for (choice, is_matched) in choices.iter().zip(is_matched) {
            if choice.covers(&image.name, &image.reference) {
                (is_chosen, *is_matched) = (true, true);
                is_named |=
                    matches!(choice, Choice::Exact(PartReference { reference: Some(_), .. }));
            }
        }
        match is_chosen {
            true if image.is_unaccepted && !is_named => self.leave_out(image),
            true => self.add_if_recent(image),
            false => {}
        }
    }

    fn leave_out(&mut self, image: &StoredImage) {
        self.plan.left_out.push(Missing::Unaccepted { reference: image.full_reference() });
    }

    fn add_if_recent(&mut self, image: &StoredImage) {
        if self.selection.since.is_some_and(|since| image.fetched < since) {
            return;
        }
        let platforms = &self.selection.platforms;
        let graph = self.graph_of(image, platforms);
        let reference = image.full_reference();
        let mut missing: Vec<&Descriptor> = graph.missing();
        for platform in platforms.iter().filter(|_| image.media_type.is_index()) {
            if !has_platform(&graph, platform) {
                let (reference, platform) = (reference.clone(), platform.to_string());
                self.plan.missing.push(Missing::Platform { reference, platform });
                // A missing platform is reported by its name only, without its manifest.
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
        let selected = selected_below(&root, &load, &Platforms::Only(platforms.to_vec()));
        self.store.graph_by(root, &load, &|child| selected.contains(&child.digest))
    }

    /// Adds the referrers of selected manifests, and the referrers of those.
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
                    let referrer = Chosen::new(self.store, &image, &graph, Audience::Larder);
                    self.chosen.insert(reference, referrer.clone());
                    left.push(referrer);
                }
            }
        }
        self.plan.left_out.dedup();
    }
}

/// The manifests below an index that match the platforms.
fn selected_below(
    root: &Descriptor,
    load: &dyn Fn(&Descriptor) -> Option<Manifest>,
    platforms: &Platforms,
) -> HashSet<Digest> {
    let (mut selected, mut left) = (HashSet::new(), vec![root.clone()]);
    while let Some(descriptor) = left.pop() {
        let manifest = load(&descriptor);
        if let Some(ManifestKind::Index { manifests }) = manifest.as_ref().map(Manifest::kind) {
            let children = platforms.select(manifests).into_iter();
            left.extend(children.filter(|child| selected.insert(child.digest)).cloned());
        }
    }
    selected
}

/// Whether the cache has an image of the index for this platform. An image without a platform in the index fits
/// every platform.
fn has_platform(graph: &Graph, platform: &Platform) -> bool {
    graph.manifests.iter().skip(1).any(|each| {
        let kind = each.manifest.as_ref().map(Manifest::kind);
        let fits = |listed: &String| platform.runs(listed);
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

/// The image for a choice by digest, if the cache has a manifest with that digest. A tag or an index may refer to it
/// as well.
fn by_digest(store: &Store, choice: &Choice) -> Option<StoredImage> {
    match choice {
        Choice::Exact(PartReference { name, reference: Some(digest @ Reference::Digest(_)) }) => {
            store.image(name, digest)
        }
        _ => None,
    }
}

/// The manifests of a repository that have a subject, by its digest.
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

/// The suffixes of tags that contain a digest and mark a referrer: none in the referrers tag schema of the
/// distribution-spec, and cosign's.
fn referrer_suffixes() -> impl Iterator<Item = &'static str> {
    iter::once("").chain(Tag::COSIGN_SUFFIXES)
}

/// The tags of a repository that contain the digest of a manifest and so refer to it.
fn by_tag(store: &Store, name: &ImageName, digest: &Digest) -> Vec<StoredImage> {
    let tags = referrer_suffixes().filter_map(|suffix| Tag::of_digest(digest, suffix));
    tags.filter_map(|tag| store.image(name, &Reference::Tag(tag))).collect()
}

/// The audience of a selected image. Signatures and other referrers are not images to other tools, even if the user
/// selected them together with everything else.
fn audience_of(image: &StoredImage, graph: &Graph) -> Audience {
    let root = graph.manifests.first().and_then(|root| root.manifest.as_ref());
    let has_subject = root.is_some_and(|manifest| manifest.subject().is_some());
    let tag = image.reference.to_string();
    let is_referrer_tag = referrer_suffixes().any(|suffix| {
        let digest = tag.strip_suffix(suffix).and_then(|tag| tag.split_once('-'));
        digest
            .is_some_and(|(algorithm, hex)| format!("{algorithm}:{hex}").parse::<Digest>().is_ok())
    });
    if has_subject || is_referrer_tag { Audience::Larder } else { Audience::AllTools }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Missing::Nothing { choice } => write!(f, "{choice}: nothing in the cache matches"),
            Missing::Platform { reference, platform } => {
                write!(f, "{reference}: the cache has no {platform} image of it")
            }
            Missing::Content { reference, missing } => {
                let sizes = missing.iter().map(|(_, size)| *size);
                let bytes = sizes.fold(0, u64::saturating_add);
                write!(
                    f,
                    "{reference}: incomplete; {} ({}) missing in the cache:",
                    plural(missing.len(), "blob"),
                    size(bytes)
                )?;
                missing
                    .iter()
                    .try_for_each(|(digest, bytes)| write!(f, "\n    {digest} ({})", size(*bytes)))
            }
            Missing::Referrer { reference } => {
                write!(f, "{reference}: omitted, because it is incomplete in the cache")
            }
            Missing::Unaccepted { reference } => write!(
                f,
                "{reference}: omitted, because a tag has moved to it and that was not accepted"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_allow_comments_and_several_entries_per_line() {
        let text = "# far side\n\nalpine:3, quay.io/a/*  # all of a\n/^ghcr.io.#/\n";
        let choices = Choice::parse_list(text).unwrap();
        let printed: Vec<String> = choices.iter().map(Choice::to_string).collect();
        assert_eq!(printed, ["docker.io/library/alpine:3", "quay.io/a/*", "/^ghcr.io.#/"]);
        let error = Choice::parse_list("alpine\nA B\n").unwrap_err();
        assert!(error.starts_with("line 2"), "{error}");
    }

    #[test]
    fn digest_lists_have_one_digest_per_line() {
        let digest = Digest::of(crate::oci::Algorithm::Sha256, b"x");
        let text = format!("# have\n\n{digest}\n  {digest} # twice\n");
        assert_eq!(parse_digests(&text).unwrap(), HashSet::from([digest]));
        assert!(parse_digests("x\n").unwrap_err().starts_with("line 1"));
    }
}
