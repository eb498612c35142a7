//! A catalogue: all images with the content that they need, small enough for memory. Decisions that involve several
//! images, such as which to remove and how much that frees, use a catalogue.
//!
//! Content is numbered, so that an image is a list of small numbers: a hundred thousand images with ten layers each
//! take about forty megabytes for the duration of the decision. Only cached content gets a number, so that memory
//! use depends on the files that exist and not on what a manifest lists.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use super::images::walk;
use super::walk::foreign_entry;
use crate::oci::{Algorithm, Descriptor, Digest, ImageName, Reference, Tag};
use crate::store::files::layout::{Layout, digest_of};
use crate::store::files::record::Access;
use crate::store::{Store, StoreError};

/// All images at the time of the scan.
#[derive(Debug, Default)]
pub struct Catalogue {
    /// Repositories, in the order of the directories.
    pub repositories: Vec<CatalogueRepository>,
    /// Images, grouped by repository.
    pub images: Vec<CatalogueImage>,
    /// The cached content that images need, and the manifest of each image.
    pub content: Vec<Content>,
    /// Number of names whose content is unknown: they or their manifests are damaged, or they were added during the
    /// scan. A blob that seems unreferenced may belong to them.
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
    /// Its names, read before its images.
    pub names: RepositoryNames,
}

/// The names of a repository: the manifest of each tag, and when a manifest was last added or removed. A
/// confirmation of a tag does not change them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryNames {
    tags: Vec<(Tag, Option<Digest>)>,
    manifests: [Option<SystemTime>; Algorithm::ALL.len()],
}

/// An image that may be removed.
#[derive(Debug)]
pub struct CatalogueImage {
    /// The index of its repository.
    pub repository: usize,
    /// Its tag, or its digest if it has none.
    pub reference: Reference,
    /// When it was fetched.
    pub fetched: SystemTime,
    /// When it was last pulled, by tag or by digest.
    pub pulled: Option<SystemTime>,
    /// When it or a descendant manifest was last pulled.
    pub used: Option<SystemTime>,
    /// Its subject, if it is a signature, an attestation or a bill of materials.
    pub refers_to: Option<Digest>,
    /// How many entries of `content` are manifests. They come first, beginning with the image's own.
    pub manifests: usize,
    /// The cached content that it needs, as indexes into the catalogue's content.
    pub content: Vec<u32>,
}

/// A manifest, config or layer.
#[derive(Debug, Clone, Copy)]
pub struct Content {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes; 0 if it is not cached.
    pub size: u64,
}

/// When the directories of a repository changed. Adding, removing or replacing a name changes its directory; a pull
/// does not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepositoryTimes {
    tags: Option<SystemTime>,
    manifests: [Option<SystemTime>; Algorithm::ALL.len()],
}

impl RepositoryTimes {
    /// Whether no name was added, removed or replaced at or after `time`.
    pub(in crate::store) fn are_before(&self, time: SystemTime) -> bool {
        std::iter::once(&self.tags).chain(&self.manifests).flatten().all(|changed| *changed < time)
    }

    /// The directories and their times.
    pub(in crate::store) fn directories(
        &self,
        layout: &Layout,
        name: &ImageName,
    ) -> Vec<(PathBuf, Option<SystemTime>)> {
        let manifests = Algorithm::ALL.map(|algorithm| layout.manifests(name, algorithm));
        let manifests = manifests.into_iter().zip(self.manifests);
        std::iter::once((layout.tags(name), self.tags)).chain(manifests).collect()
    }

    /// A text for later comparison.
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
    pub(in crate::store) fn repository_names(&self, name: &ImageName) -> RepositoryNames {
        let digest = |tag: &Tag| Some(self.tag(name, tag, Access::Look)?.digest);
        RepositoryNames {
            manifests: self.repository_times(name).manifests,
            tags: self.tags(name).into_iter().map(|tag| (tag.clone(), digest(&tag))).collect(),
        }
    }

    /// Scans all images. Calls `keep_going` before each repository; it may block, and stops the scan by
    /// returning `false`, which yields `None`.
    ///
    /// # Errors
    /// [`StoreError::IncompleteScan`] if any file that may refer to content cannot be read: a removal based on the
    /// catalogue would remove that content.
    pub fn catalogue(
        &self,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Catalogue>, StoreError> {
        let sizes: HashMap<Digest, u64> = self.blobs()?.into_iter().collect();
        let mut catalogue = Catalogue::default();
        let mut was_ended = false;
        let unreadable = self.unreadable_files();
        let walked = self.each_repository_strict(&mut |name| {
            was_ended = !keep_going();
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
        // A temporary read error makes a name look absent.
        if self.unreadable_files() != unreadable {
            return Err(StoreError::unreadable_meanwhile(self.root()));
        }
        let content = sizes.iter().map(|(digest, size)| Content { digest: *digest, size: *size });
        catalogue.unreferenced =
            content.filter(|each| !catalogue.numbers.contains_key(&each.digest)).collect();
        Ok(Some(catalogue))
    }

    /// Checks that all names of a repository can be read. Returns how many manifest records are damaged, or names
    /// missing from the catalogue; their content is unknown.
    ///
    /// # Errors
    /// The first directory or file that cannot be read, and a tag whose record is damaged.
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
            let path = layout.tag(name, &tag);
            let is_there = self.inner.is_readable(&path)?;
            // Any image of the repository may be the one that it names, and be pinned by that name.
            if is_there
                && !known.contains(&Reference::Tag(tag.clone()))
                && self.tag(name, &tag, Access::Look).is_none()
            {
                let path = path.display();
                let reason = format!(
                    "{path}: the record of a tag is damaged; remove it, or pull the tag again"
                );
                return Err(io::Error::other(reason));
            }
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
                // Missing content has no number. Content that was added since is young and stays for that reason.
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
    /// The numbers of its manifests.
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

    /// The images of a repository with their indexes.
    pub fn images_of(&self, repository: usize) -> impl Iterator<Item = (usize, &CatalogueImage)> {
        let begin = self.images.partition_point(|image| image.repository < repository);
        let images = self.images.iter().enumerate().skip(begin);
        images.take_while(move |(_, image)| image.repository == repository)
    }

    /// For each number of the content, how many images need it.
    pub fn references(&self) -> Vec<u32> {
        let mut counts = vec![0; self.content.len()];
        for number in self.images.iter().flat_map(|image| &image.content) {
            counts[*number as usize] += 1;
        }
        counts
    }

    /// The number of a digest, if an image needs it.
    pub fn number_of(&self, digest: &Digest) -> Option<u32> {
        self.numbers.get(digest).copied()
    }

    fn add(&mut self, store: &Store, name: &ImageName, sizes: &HashMap<Digest, u64>) {
        // Read before the images, so that a concurrent change can be detected.
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
            // A record is a file as well, even if its manifest is lost.
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
            // Four billion entries do not fit into memory.
            u32::try_from(content.len() - 1).unwrap_or(u32::MAX)
        })
    }
}
