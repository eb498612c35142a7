//! A catalogue: all images with all that they need, small enough to be held in memory as a whole. What is
//! decided about images together (which of them may go, and what that would free) is decided from one.
//!
//! Content is numbered, so that an image is a list of small numbers: a hundred thousand images with ten
//! layers each are some forty megabytes while it is needed. Only what is here has a number, so that memory
//! is in proportion to the files that exist, whatever a manifest lists.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use super::Store;
use super::error::StoreError;
use super::images::walk;
use super::layout::{Layout, digest_of};
use super::refs::Access;
use super::walk::foreign_entry;
use crate::oci::{Algorithm, Descriptor, Digest, ImageName, Reference, Tag};

/// All images, as they were while it was read.
#[derive(Debug, Default)]
pub struct Catalogue {
    /// Repositories, in the order of the directories.
    pub repositories: Vec<CatalogueRepository>,
    /// Images, those of a repository together.
    pub images: Vec<CatalogueImage>,
    /// What images need and is here, and the manifest of each image.
    pub content: Vec<Content>,
    /// Names that lead to nothing, since they or their manifest are damaged, or that came while it was read.
    /// What they need is not known, so a blob that nobody seems to need may be theirs.
    pub damaged: usize,
    /// Blobs that no image needs.
    pub unreferenced: Vec<Content>,
    numbers: HashMap<Digest, u32>,
}

/// A repository that has images.
#[derive(Debug)]
pub struct CatalogueRepository {
    /// Its name.
    pub name: ImageName,
    /// Its names, before they were read.
    pub names: RepositoryNames,
}

/// What a repository's names are: which tag is which manifest, and when a manifest last came or went. A
/// confirmation of a tag changes nothing of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryNames {
    tags: Vec<(Tag, Option<Digest>)>,
    manifests: [Option<SystemTime>; Algorithm::ALL.len()],
}

/// An image: what is decided about.
#[derive(Debug)]
pub struct CatalogueImage {
    /// Which of the repositories it is in.
    pub repository: usize,
    /// Its tag, or its digest if it has none.
    pub reference: Reference,
    /// When the cache got it.
    pub fetched: SystemTime,
    /// When it was last pulled, by its name or by its digest.
    pub pulled: Option<SystemTime>,
    /// When it, or a manifest below it, was last pulled.
    pub used: Option<SystemTime>,
    /// What it is a signature of, or an attestation or a bill of materials.
    pub refers_to: Option<Digest>,
    /// How many of `content` are manifests; they come first, and its own is the first of all.
    pub manifests: usize,
    /// All that it needs and that is here: indexes into the catalogue's content.
    pub content: Vec<u32>,
}

/// A manifest, config or layer.
#[derive(Debug, Clone, Copy)]
pub struct Content {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes; nothing if it is not here.
    pub size: u64,
}

/// When the directories of a repository changed: a name that comes, goes or is replaced changes its
/// directory, and a pull does not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepositoryTimes {
    tags: Option<SystemTime>,
    manifests: [Option<SystemTime>; Algorithm::ALL.len()],
}

impl RepositoryTimes {
    /// Whether no name came, went or was replaced at or after that time.
    pub(super) fn are_before(&self, time: SystemTime) -> bool {
        std::iter::once(&self.tags).chain(&self.manifests).flatten().all(|changed| *changed < time)
    }

    /// The directories, and their times.
    pub(super) fn directories(
        &self,
        layout: &Layout,
        name: &ImageName,
    ) -> Vec<(PathBuf, Option<SystemTime>)> {
        let manifests = Algorithm::ALL.map(|algorithm| layout.manifests(name, algorithm));
        let manifests = manifests.into_iter().zip(self.manifests);
        std::iter::once((layout.tags(name), self.tags)).chain(manifests).collect()
    }

    /// As one text, to be compared with that of another time.
    pub fn fingerprint(&self) -> String {
        let all = std::iter::once(&self.tags).chain(&self.manifests);
        let text = all.map(|time| {
            let since = time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
            since.map_or_else(|| "-".to_owned(), |since| format!("{:x}", since.as_nanos()))
        });
        text.collect::<Vec<_>>().join(".")
    }
}

impl Store {
    /// The times of a repository's directories.
    pub fn repository_times(&self, name: &ImageName) -> RepositoryTimes {
        let layout = &self.inner.layout;
        RepositoryTimes {
            tags: self.modified(&layout.tags(name)),
            manifests: Algorithm::ALL
                .map(|algorithm| self.modified(&layout.manifests(name, algorithm))),
        }
    }

    /// The names of a repository.
    pub(super) fn repository_names(&self, name: &ImageName) -> RepositoryNames {
        let digest = |tag: &Tag| Some(self.tag(name, tag, Access::Look)?.digest);
        RepositoryNames {
            manifests: self.repository_times(name).manifests,
            tags: self.tags(name).into_iter().map(|tag| (tag.clone(), digest(&tag))).collect(),
        }
    }

    /// Looks at all images. `should_continue` is asked before each repository, may take its time, and ends it by
    /// `false`: then there is no catalogue.
    ///
    /// # Errors
    /// [`StoreError::IncompleteScan`] if anything cannot be read that may name something: who goes by what is not
    /// named would remove it.
    pub fn catalogue(
        &self,
        should_continue: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Catalogue>, StoreError> {
        let sizes: HashMap<Digest, u64> = self.blobs()?.into_iter().collect();
        let mut catalogue = Catalogue::default();
        let mut was_ended = false;
        let unreadable = self.unreadable_files();
        let walked = self.each_repository_strict(&mut |name| {
            was_ended = !should_continue();
            if was_ended {
                return Err(io::ErrorKind::Interrupted.into());
            }
            catalogue.add(self, name, &sizes);
            catalogue.damaged += self.check_repository(name, &catalogue, &sizes)?;
            Ok(())
        });
        match walked {
            Err(_) if was_ended => return Ok(None),
            other => other.map_err(|source| StoreError::IncompleteScan { source })?,
        }
        // A name that could not be read for a moment looks like one that does not exist.
        if self.unreadable_files() != unreadable {
            return Err(StoreError::unreadable_meanwhile(self.root()));
        }
        let content = sizes.iter().map(|(digest, size)| Content { digest: *digest, size: *size });
        catalogue.unreferenced =
            content.filter(|each| !catalogue.numbers.contains_key(&each.digest)).collect();
        Ok(Some(catalogue))
    }

    /// Looks whether all names of a repository can be read, and were. Returns how many are damaged, or not
    /// in the catalogue: what they lead to is not known.
    fn check_repository(
        &self,
        name: &ImageName,
        catalogue: &Catalogue,
        sizes: &HashMap<Digest, u64>,
    ) -> io::Result<usize> {
        let (layout, mut unknown) = (&self.inner.layout, 0);
        let images = catalogue.images_of(catalogue.repositories.len() - 1);
        let known: HashSet<&Reference> = images.map(|(_, image)| &image.reference).collect();
        for tag in self.inner.list_strict(&layout.tags(name))? {
            let Ok(tag) = tag.parse() else {
                return Err(foreign_entry(&layout.tags(name).join(&tag)));
            };
            let is_there = self.inner.is_readable(&layout.tag(name, &tag))?;
            unknown += usize::from(is_there && !known.contains(&Reference::Tag(tag)));
        }
        for algorithm in Algorithm::ALL {
            for hex in self.inner.list_strict(&layout.manifests(name, algorithm))? {
                let Some(digest) = digest_of(algorithm, &hex) else {
                    return Err(foreign_entry(&layout.manifests(name, algorithm).join(&hex)));
                };
                let Some(manifest) = self.stored_manifest(name, &digest) else {
                    let is_there = self.inner.is_readable(&layout.manifest(name, &digest))?;
                    self.inner.is_readable(&layout.blob(&digest))?;
                    unknown += usize::from(is_there);
                    continue;
                };
                // What is not here has no number. What came since is young, and stays for that reason.
                let is_known = |digest: &Digest| {
                    catalogue.numbers.contains_key(digest) || !sizes.contains_key(digest)
                };
                let knows_all = manifest.descriptors().all(|each| is_known(&each.digest));
                unknown += usize::from(!(is_known(&digest) && knows_all));
            }
        }
        Ok(unknown)
    }
}

impl CatalogueImage {
    /// Its manifests, by number.
    pub fn manifest_numbers(&self) -> &[u32] {
        &self.content[..self.manifests]
    }
}

impl Catalogue {
    /// The repository of an image.
    pub fn repository_of(&self, image: &CatalogueImage) -> &CatalogueRepository {
        &self.repositories[image.repository]
    }

    /// An image's full reference.
    pub fn full_reference(&self, image: &CatalogueImage) -> String {
        self.repository_of(image).name.with(&image.reference)
    }

    /// The images of a repository, with their places.
    pub fn images_of(&self, repository: usize) -> impl Iterator<Item = (usize, &CatalogueImage)> {
        let begin = self.images.partition_point(|image| image.repository < repository);
        let images = self.images.iter().enumerate().skip(begin);
        images.take_while(move |(_, image)| image.repository == repository)
    }

    /// How many images need each chunk of content.
    pub fn references(&self) -> Vec<u32> {
        let mut counts = vec![0; self.content.len()];
        for number in self.images.iter().flat_map(|image| &image.content) {
            counts[*number as usize] += 1;
        }
        counts
    }

    /// The number of a digest, if some image needs it.
    pub fn number_of(&self, digest: &Digest) -> Option<u32> {
        self.numbers.get(digest).copied()
    }

    fn add(&mut self, store: &Store, name: &ImageName, sizes: &HashMap<Digest, u64>) {
        // Before it is read, so that a change meanwhile shows.
        let names = store.repository_names(name);
        let repository = self.repositories.len();
        let load = |descriptor: &Descriptor| store.stored_manifest(name, &descriptor.digest);
        let is_present = |descriptor: &Descriptor| {
            sizes.get(&descriptor.digest).is_some_and(|bytes| descriptor.is_of_size(*bytes))
        };
        for image in store.images_of(name) {
            let root = Descriptor::new(image.digest, image.size);
            let graph = walk(root, &load, &|_| true, &is_present);
            let manifests = graph.manifests.iter().map(|each| each.descriptor.digest);
            let used = manifests
                .clone()
                .map(|digest| store.modified(&store.inner.layout.manifest(name, &digest)))
                .fold(image.pulled, Option::max);
            let by_field =
                graph.manifests.first().and_then(|root| root.manifest.as_ref()?.subject());
            let by_tag = match &image.reference {
                Reference::Tag(tag) => tag.subject(),
                Reference::Digest(_) => None,
            };
            let refers_to = by_field.map(|subject| subject.digest).or(by_tag);
            let is_here = |digest: &Digest| sizes.contains_key(digest);
            // A record is a file as well, even where its manifest was lost.
            let has_record = |digest: &Digest| store.inner.layout.manifest(name, digest).exists();
            let manifests = manifests
                .filter(|digest| *digest == image.digest || is_here(digest) || has_record(digest));
            let manifests: Vec<u32> = manifests.map(|digest| self.number(digest, sizes)).collect();
            let blobs = graph.blobs.iter().map(|each| each.descriptor.digest).filter(is_here);
            let count = manifests.len();
            let mut content = manifests;
            content.extend(blobs.map(|digest| self.number(digest, sizes)));
            self.images.push(CatalogueImage {
                repository,
                reference: image.reference,
                fetched: image.fetched,
                pulled: image.pulled,
                used,
                refers_to,
                manifests: count,
                content,
            });
        }
        self.repositories.push(CatalogueRepository { name: name.clone(), names });
    }

    fn number(&mut self, digest: Digest, sizes: &HashMap<Digest, u64>) -> u32 {
        let content = &mut self.content;
        *self.numbers.entry(digest).or_insert_with(|| {
            let size = sizes.get(&digest).copied().unwrap_or_default();
            content.push(Content { digest, size });
            // Four milliards of blobs do not fit into the memory that would have to hold them.
            u32::try_from(content.len() - 1).unwrap_or(u32::MAX)
        })
    }
}
