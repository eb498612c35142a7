//! Import: a bundle's content into the store, and then the names of what is whole.
//!
//! Content before names: everything a name needs is looked up in the store before it is written, so an
//! import that is killed at any point leaves blobs that nothing refers to, and repeating it passes over
//! what is there. The commit lock is held from the first blob to the last name: a sweep must not take
//! the blobs of an image whose turn has not come yet.

use std::collections::HashSet;
use std::time::SystemTime;

use super::closure::{is_whole, manifest_by_digest, missing};
use super::docker;
use super::error::BundleError;
use super::layout::{EntryName, parse_index};
use super::source::BundleSource;
use super::take::{Taken, take};
use super::told::{Before, Bytes, ImportSummary, Origin, Told};
use crate::oci::{
    Descriptor, Digest, ImageName, MANIFEST_BYTES_MAX, Manifest, PartReference, Reference, Tag,
};
use crate::store::{Access, Graph, ManifestRecord, Store, StoreError, TagRecord};

/// How a bundle is imported.
#[derive(Debug, Clone)]
pub struct ImportSettings {
    /// The name to import under, instead of what the bundle says.
    pub name: Option<PartReference>,
    /// The time that imported names are said to be fetched and confirmed at.
    pub now: SystemTime,
}

/// A manifest that a bundle lists.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) descriptor: Descriptor,
    pub(super) media_type: Option<String>,
    pub(super) name: EntryName,
    pub(super) origin: Origin,
}

/// Imports a bundle, and tells every image and every refusal.
///
/// # Errors
/// [`BundleError`] if the bundle cannot be read to its end or the disk refuses; then nothing of it was
/// named, or only what had its turn before.
pub fn import(
    store: &Store,
    source: &BundleSource,
    settings: &ImportSettings,
    told: &mut dyn FnMut(&Told<'_>),
) -> Result<ImportSummary, BundleError> {
    store.remove_abandoned_spools();
    let _lock = store.commit_lock()?;
    let taken = take(store, source, told)?;
    let bundle = source.name();
    let summary = ImportSummary {
        failures: taken.failures,
        blobs_written: taken.blobs_written,
        bytes_written: taken.bytes_written,
        blobs_present: taken.blobs_present,
        images: 0,
    };
    let mut naming = Naming { store, bundle: &bundle, settings, told, summary, named: Vec::new() };
    let roots = naming.roots(&taken)?;
    naming.name_all(&roots)?;
    let summary = naming.summary;
    store.settle_index()?;
    Ok(summary)
}

struct Naming<'a> {
    store: &'a Store,
    bundle: &'a str,
    settings: &'a ImportSettings,
    told: &'a mut dyn FnMut(&Told<'_>),
    summary: ImportSummary,
    /// The manifests that were recorded, for what refers to them.
    named: Vec<(ImageName, HashSet<Digest>)>,
}

impl Naming<'_> {
    fn roots(&mut self, taken: &Taken) -> Result<Vec<Root>, BundleError> {
        let malformed = |entry: &str, reason| BundleError::Document {
            bundle: self.bundle.to_owned(),
            entry: entry.to_owned(),
            reason,
        };
        match (&taken.index, &taken.docker) {
            (Some(index), _) => {
                let entries =
                    parse_index(index).map_err(|reason| malformed("index.json", reason))?;
                let roots = entries.into_iter().map(|entry| {
                    let origin = match taken.has_repositories {
                        true => self.origin(&entry.descriptor),
                        false => Origin::Original,
                    };
                    let (descriptor, media_type) = (entry.descriptor, entry.media_type);
                    Root { descriptor, media_type, name: entry.name, origin }
                });
                Ok(roots.collect())
            }
            (None, Some(docker)) => {
                let images =
                    docker::parse(docker).map_err(|reason| malformed("manifest.json", reason))?;
                let mut roots = Vec::new();
                for image in &images {
                    match docker::rebuild(self.store, taken, image)? {
                        Ok(of_image) => roots.extend(of_image),
                        Err(reason) => self.refuse(&image.label(), &reason),
                    }
                }
                Ok(roots)
            }
            (None, None) => Err(BundleError::NoImages { bundle: self.bundle.to_owned() }),
        }
    }

    /// `docker save` without containerd's store writes an image layout as well, with manifests of its
    /// own over layers that it has unpacked.
    fn origin(&self, descriptor: &Descriptor) -> Origin {
        match manifest_by_digest(self.store, descriptor, None) {
            Some(manifest) if docker::is_over_unpacked_layers(&manifest) => Origin::Rebuilt,
            _ => Origin::Original,
        }
    }

    fn name_all(&mut self, roots: &[Root]) -> Result<(), BundleError> {
        let (mut images, mut referrers) = (Vec::new(), Vec::new());
        for root in roots {
            match self.subject_of(root) {
                Some(subject) => referrers.push((root, subject)),
                None => images.push(root),
            }
        }
        let names = self.names_of(&images)?;
        for (root, name) in images.into_iter().zip(names) {
            if let Some((name, reference)) = name {
                self.name(root, &name, &reference)?;
            }
        }
        self.attach(referrers)
    }

    /// What a manifest without a name refers to.
    fn subject_of(&self, root: &Root) -> Option<Digest> {
        let manifest = match root.name {
            EntryName::None => self.load(root, &root.descriptor)?,
            EntryName::Full(_) | EntryName::Tag(_) => return None,
        };
        manifest.subject().map(|subject| subject.digest)
    }

    /// Under which name each of them goes. A refusal is told here.
    fn names_of(
        &mut self,
        roots: &[&Root],
    ) -> Result<Vec<Option<(ImageName, Reference)>>, BundleError> {
        let given = self.settings.name.as_ref();
        let digests: HashSet<Digest> = roots.iter().map(|root| root.descriptor.digest).collect();
        let mut names = Vec::new();
        for root in roots {
            let label = root.descriptor.digest.to_string();
            let name = match root.name.resolve(given) {
                Ok(Some(name)) => Some(name),
                Ok(None) => {
                    let tag = match &root.name {
                        EntryName::Tag(tag) => format!("only the tag {tag}"),
                        EntryName::Full(_) | EntryName::None => "no name".to_owned(),
                    };
                    self.refuse(&label, &format!("it has {tag} there; give one with --name"));
                    None
                }
                Err(error) => {
                    let reason = format!("its name {} cannot be used: {error}", root.name);
                    self.refuse(&label, &reason);
                    None
                }
            };
            names.push(name);
        }
        // What was written may say a name twice, and then the last one counts, as with a registry.
        let ambiguous = given.is_some() && {
            let distinct: HashSet<String> =
                names.iter().flatten().map(|(name, reference)| name.with(reference)).collect();
            distinct.len() < digests.len() && names.iter().all(Option::is_some)
        };
        match ambiguous {
            true => Err(BundleError::OneNameForMany {
                bundle: self.bundle.to_owned(),
                images: digests.len(),
            }),
            false => Ok(names),
        }
    }

    fn name(
        &mut self,
        root: &Root,
        name: &ImageName,
        reference: &Reference,
    ) -> Result<(), BundleError> {
        let full = name.with(reference);
        let digest = &root.descriptor.digest;
        if let Reference::Digest(named) = reference
            && named != digest
        {
            self.refuse(&full, &format!("what is there under that name is {digest}"));
            return Ok(());
        }
        let Some(graph) = self.whole(root, &full) else { return Ok(()) };
        let before = self.record(name, reference, &graph)?;
        self.summary.images += 1;
        (self.told)(&Told::Imported {
            reference: &full,
            digest,
            platforms: graph.platforms().collect(),
            before,
            origin: root.origin,
        });
        Ok(())
    }

    /// Everything that an image needs; if it is not all there, that is told.
    fn whole(&mut self, root: &Root, label: &str) -> Option<Graph> {
        let load = |descriptor: &Descriptor| self.load(root, descriptor);
        let graph = self.store.graph_by(root.descriptor.clone(), &load, &|_| true);
        if is_whole(&graph) {
            return Some(graph);
        }
        let Descriptor { digest, size, .. } = &root.descriptor;
        let is_here = self.store.blob(digest, Some(*size)).is_some();
        if is_here && graph.manifests.iter().all(|each| each.manifest.is_none()) {
            let limit = Bytes(MANIFEST_BYTES_MAX as u64);
            let reason = format!("{digest} is no manifest that clients take, or exceeds {limit}");
            self.refuse(label, &reason);
            return None;
        }
        self.summary.failures += 1;
        (self.told)(&Told::Incomplete { reference: label, missing: missing(&graph) });
        None
    }

    fn load(&self, root: &Root, descriptor: &Descriptor) -> Option<Manifest> {
        let is_root = descriptor.digest == root.descriptor.digest;
        let media_type = root.media_type.as_deref().filter(|_| is_root);
        manifest_by_digest(self.store, descriptor, media_type)
    }

    /// Children before parents, and the tag last.
    fn record(
        &mut self,
        name: &ImageName,
        reference: &Reference,
        graph: &Graph,
    ) -> Result<Before, StoreError> {
        let now = self.settings.now;
        let present = graph.manifests.iter().rev();
        let present =
            present.filter_map(|each| Some((each.descriptor.digest, each.manifest.as_ref()?)));
        let mut recorded = HashSet::new();
        let mut top = None;
        for (digest, manifest) in present {
            recorded.insert(digest);
            let (media_type, size) = (manifest.media_type().clone(), manifest.bytes().len() as u64);
            top = Some((digest, media_type.clone(), size));
            let known = self.store.manifest(name, &digest, Access::Look);
            if known.is_none_or(|known| (&known.media_type, known.size) != (&media_type, size)) {
                let record = ManifestRecord { media_type, size, fetched: now };
                self.store.put_manifest(name, &digest, &record)?;
            }
        }
        self.named.push((name.clone(), recorded));
        match (reference, top) {
            (Reference::Tag(tag), Some((digest, media_type, size))) => {
                let record =
                    TagRecord { digest, media_type, size, fetched: now, checked: now, gone: None };
                self.point_tag(name, tag, record)
            }
            _ => Ok(Before::Absent),
        }
    }

    fn point_tag(
        &self,
        name: &ImageName,
        tag: &Tag,
        record: TagRecord,
    ) -> Result<Before, StoreError> {
        let before = self.store.tag(name, tag, Access::Look);
        let (before, fetched) = match before {
            Some(before) if before.digest == record.digest => (Before::Same, before.fetched),
            Some(before) => (Before::Other(before.digest), record.fetched),
            None => (Before::Absent, record.fetched),
        };
        self.store.put_tag(name, tag, &TagRecord { fetched, ..record })?;
        Ok(before)
    }

    /// Signatures and the like that have no name of their own go where their subject is; those of
    /// signatures come in a later round.
    fn attach(&mut self, mut referrers: Vec<(&Root, Digest)>) -> Result<(), BundleError> {
        loop {
            let before = referrers.len();
            let mut left = Vec::new();
            for (root, subject) in referrers {
                let homes = self.named.iter().filter(|(_, digests)| digests.contains(&subject));
                let mut homes: Vec<ImageName> = homes.map(|(name, _)| name.clone()).collect();
                homes.dedup();
                if homes.is_empty() {
                    left.push((root, subject));
                }
                for name in homes {
                    self.name(root, &name, &Reference::Digest(root.descriptor.digest))?;
                }
            }
            if left.len() == before || left.is_empty() {
                for (root, subject) in left {
                    let reason = format!("it refers to {subject}, which was not imported");
                    self.refuse(&root.descriptor.digest.to_string(), &reason);
                }
                return Ok(());
            }
            referrers = left;
        }
    }

    fn refuse(&mut self, entry: &str, reason: &str) {
        self.summary.failures += 1;
        (self.told)(&Told::Refused { bundle: self.bundle, entry, reason });
    }
}
