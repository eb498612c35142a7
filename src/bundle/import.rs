//! Import: stores the content of a bundle, then names the images that are complete.
//!
//! Content comes before names: before a name is written, the store is checked for everything that it needs. An
//! import that is killed leaves only unreferenced blobs, and repeating it skips the content that is stored.
//! The import holds the commit lock from the first blob to the last name. Otherwise a sweep could remove the
//! blobs of an image that has no name yet.
//!
//! Work is proportional to the size of the bundle. Its documents may name one manifest half a million times, or
//! half a million indexes that share one large child. So each distinct image is looked up once, and every
//! manifest that is read is charged against a budget that grows with the bundle ([`Budget`]).

use std::cell::Cell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::SystemTime;

use super::completeness::{is_complete, manifest_by_digest};
use super::docker::{self, Rebuild, SavedImage};
use super::error::BundleError;
use super::event::{Before, ImportEvent, ImportSummary, Origin};
use super::layout::{EntryName, parse_index};
use super::reader::{Contents, read};
use super::source::BundleSource;
use crate::oci::{
    DESCRIPTORS_MAX, Descriptor, Digest, ImageName, MANIFEST_BYTES_MAX, Manifest, PartReference,
    Reference, Tag,
};
use crate::store::{Access, Graph, ManifestRecord, Store, StoreError, TagRecord};
use crate::units::size;

/// How many manifests an import may read per entry of the bundle, and how many bytes of manifests per byte. A
/// bundle from an image tool needs each of its manifests once or twice.
const PER_ENTRY: u64 = 8;
/// The most names that a bundle may give to images. With the annotations that tools write, `index.json` cannot
/// hold this many.
const NAMES_MAX: usize = 200_000;
/// The minimum budget: a small bundle may name images whose content is already in the cache.
const MANIFESTS_MIN: u64 = 100_000;
const BYTES_MIN: u64 = 1 << 30;

/// How a bundle is imported.
#[derive(Clone)]
pub struct ImportSettings<'a> {
    /// The name to import under, instead of the names in the bundle.
    pub name: Option<PartReference>,
    /// The time to record as the time at which the names were fetched and confirmed.
    pub now: SystemTime,
    /// Whether the registry of a repository decides who may pull.
    pub is_private: &'a dyn Fn(&ImageName) -> bool,
}

/// A manifest that a bundle lists.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) descriptor: Descriptor,
    pub(super) media_type: Option<String>,
    pub(super) name: EntryName,
    pub(super) origin: Origin,
}

/// Imports a bundle, and reports every image and every refusal.
///
/// # Errors
/// [`BundleError`] if the bundle cannot be read to its end, or the cache cannot be written. Images that were
/// reported before stay named.
pub fn import(
    store: &Store,
    source: &BundleSource,
    settings: &ImportSettings<'_>,
    report: &mut dyn FnMut(&ImportEvent<'_>),
) -> Result<ImportSummary, BundleError> {
    import_within(&Budget::of, store, source, settings, report)
}

fn import_within(
    budget_of: &dyn Fn(&Contents) -> Budget,
    store: &Store,
    source: &BundleSource,
    settings: &ImportSettings<'_>,
    report: &mut dyn FnMut(&ImportEvent<'_>),
) -> Result<ImportSummary, BundleError> {
    store.remove_abandoned_imports();
    let _lock = store.bundle_lock()?;
    let contents = read(store, source, report)?;
    let bundle = source.name();
    let summary = ImportSummary {
        failures: contents.failures,
        blobs_written: contents.blobs_written,
        bytes_written: contents.bytes_written,
        blobs_present: contents.blobs_present,
        images: 0,
    };
    let budget = budget_of(&contents);
    let (waiting, recorded) = (HashMap::new(), Recorded::default());
    let mut naming =
        Naming { store, bundle: &bundle, settings, report, summary, budget, waiting, recorded };
    let roots = naming.roots(&contents)?;
    naming.name_all(roots)?;
    let summary = naming.summary;
    store.settle_index()?;
    Ok(summary)
}

struct Naming<'a> {
    store: &'a Store,
    bundle: &'a str,
    settings: &'a ImportSettings<'a>,
    report: &'a mut dyn FnMut(&ImportEvent<'_>),
    summary: ImportSummary,
    budget: Budget,
    /// Manifests without a name, by the digest of their subject.
    waiting: HashMap<Digest, Vec<Root>>,
    recorded: Recorded,
}

/// Manifests that were recorded and that others refer to.
#[derive(Default)]
struct Recorded {
    seen: HashSet<(ImageName, Digest)>,
    left: VecDeque<(ImageName, Digest)>,
}

/// How much of manifests may still be read.
struct Budget {
    manifests: Cell<u64>,
    bytes: Cell<u64>,
}

impl Budget {
    fn of(contents: &Contents) -> Budget {
        let allowed = |min: u64, size: u64| Cell::new(size.saturating_mul(PER_ENTRY).max(min));
        Budget {
            manifests: allowed(MANIFESTS_MIN, contents.entries),
            bytes: allowed(BYTES_MIN, contents.content_bytes),
        }
    }

    /// Charges this much, down to an empty budget.
    fn charge(&self, manifests: u64, bytes: u64) {
        self.manifests.set(self.manifests.get().saturating_sub(manifests));
        self.bytes.set(self.bytes.get().saturating_sub(bytes));
    }

    fn is_spent(&self) -> bool {
        self.manifests.get() == 0 || self.bytes.get() == 0
    }
}

impl Naming<'_> {
    fn roots(&mut self, contents: &Contents) -> Result<Vec<Root>, BundleError> {
        let malformed = |entry: &str, reason| BundleError::Document {
            bundle: self.bundle.to_owned(),
            entry: entry.to_owned(),
            reason,
        };
        match (&contents.index, &contents.docker) {
            (Some(index), _) => {
                let entries =
                    parse_index(index).map_err(|reason| malformed("index.json", reason))?;
                self.check_names(entries.len())?;
                let roots = entries.into_iter().map(|entry| {
                    let origin = match contents.has_repositories {
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
                let names = |image: &SavedImage| {
                    image.repo_tags.as_ref().map_or(1, |tags| tags.len().max(1))
                };
                self.check_names(images.iter().map(names).sum())?;
                let mut roots = Vec::new();
                let rebuilt = Rebuild::new(self.store, contents).all(&images)?;
                for (image, rebuilt) in images.iter().zip(rebuilt) {
                    match rebuilt {
                        Ok(of_image) => roots.extend(of_image),
                        Err(reason) => self.refuse(&image.label(), &reason),
                    }
                }
                Ok(roots)
            }
            (None, None) => Err(BundleError::NoImages { bundle: self.bundle.to_owned() }),
        }
    }

    /// Whether the manifest is the original one. Without containerd's image store, `docker save` also writes an
    /// image layout, with its own manifests over the layers that it unpacked.
    fn origin(&self, descriptor: &Descriptor) -> Origin {
        match manifest_by_digest(self.store, descriptor, None) {
            Some(manifest)
                if docker::is_over_unpacked_layers(self.store, &descriptor.digest, &manifest) =>
            {
                Origin::Rebuilt
            }
            _ => Origin::Original,
        }
    }

    fn name_all(&mut self, roots: Vec<Root>) -> Result<(), BundleError> {
        let mut images = Vec::new();
        for root in roots {
            match self.subject_of(&root) {
                Some(subject) => self.waiting.entry(subject).or_default().push(root),
                None => images.push(root),
            }
            self.check_budget()?;
        }
        let names = self.names_of(&images)?;
        let mut named: Vec<(Root, (ImageName, Reference))> =
            images.into_iter().zip(names).filter_map(|(root, name)| Some((root, name?))).collect();
        keep_last_of_each_name(&mut named);
        // Group the names of each manifest, so that it is looked up once.
        let mut first_positions: HashMap<Digest, usize> = HashMap::new();
        for (at, (root, _)) in named.iter().enumerate() {
            first_positions.entry(root.descriptor.digest).or_insert(at);
        }
        named.sort_by_key(|(root, _)| first_positions[&root.descriptor.digest]);
        let mut found: Option<(Digest, Option<String>, Graph)> = None;
        for (root, (name, reference)) in &named {
            let is_same = found.as_ref().is_some_and(|(digest, media_type, _)| {
                (digest, media_type) == (&root.descriptor.digest, &root.media_type)
            });
            if !is_same {
                let graph = self.graph(root)?;
                found = Some((root.descriptor.digest, root.media_type.clone(), graph));
            }
            if let Some((_, _, graph)) = &found {
                self.name(root, graph, name, reference)?;
            }
        }
        self.attach()
    }

    fn check_names(&self, names: usize) -> Result<(), BundleError> {
        match names > NAMES_MAX {
            true => Err(BundleError::TooManyEntries {
                bundle: self.bundle.to_owned(),
                limit: NAMES_MAX as u64,
            }),
            false => Ok(()),
        }
    }

    fn check_budget(&self) -> Result<(), BundleError> {
        match self.budget.is_spent() {
            true => Err(BundleError::Entangled { bundle: self.bundle.to_owned() }),
            false => Ok(()),
        }
    }

    /// The subject of a manifest without a name.
    fn subject_of(&self, root: &Root) -> Option<Digest> {
        let manifest = match root.name {
            EntryName::None => self.load(root, &root.descriptor)?,
            EntryName::Full(_) | EntryName::Tag(_) => return None,
        };
        manifest.subject().map(|subject| subject.digest)
    }

    /// Determines the name of each root. Reports roots that cannot be named.
    fn names_of(
        &mut self,
        roots: &[Root],
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
                    self.refuse(&label, &format!("the bundle gives it {tag}; set one with --name"));
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
        // Without --name, a name may occur twice: the last one counts, as at a registry.
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
        graph: &Graph,
        name: &ImageName,
        reference: &Reference,
    ) -> Result<(), BundleError> {
        let full = name.with(reference);
        let digest = &root.descriptor.digest;
        if let Reference::Digest(named) = reference
            && named != digest
        {
            self.refuse(&full, &format!("the manifest under that name is {digest}"));
            return Ok(());
        }
        if !self.check_complete(root, graph, &full) {
            return Ok(());
        }
        self.budget.charge(graph.manifests.len() as u64, 0);
        self.check_budget()?;
        let before = self.record(name, reference, graph)?;
        if (self.settings.is_private)(name) {
            self.store.mark_private(graph.digests())?;
        }
        // The operator says that the image has these blobs; there may be no registry to ask.
        if let Err(error) = self.store.put_links(name, graph.digests()) {
            log::debug!(repository:% = name, error:% = error; "cannot record the blobs of an imported image");
        }
        self.summary.images += 1;
        (self.report)(&ImportEvent::Imported {
            reference: &full,
            digest,
            platforms: graph.platforms().collect(),
            before,
            origin: root.origin,
        });
        Ok(())
    }

    /// The image's manifests and content, each present or absent.
    fn graph(&self, root: &Root) -> Result<Graph, BundleError> {
        let load = |descriptor: &Descriptor| self.load(root, descriptor);
        let graph = self.store.graph_by(root.descriptor.clone(), &load, &|_| true);
        // Once the budget is spent, manifests that exist are not read and look absent.
        self.check_budget()?;
        Ok(graph)
    }

    /// Whether the store has everything that an image needs. Reports what is missing.
    fn check_complete(&mut self, root: &Root, graph: &Graph, label: &str) -> bool {
        if is_complete(graph) {
            return true;
        }
        let digest = &root.descriptor.digest;
        let is_stored = self.store.blob(digest, root.descriptor.known_size()).is_some();
        if is_stored && graph.manifests.iter().all(|each| each.manifest.is_none()) {
            let limit = size(MANIFEST_BYTES_MAX as u64);
            let reason = format!(
                "{digest} is not a manifest that clients accept, or exceeds {limit} or \
                 {DESCRIPTORS_MAX} descriptors"
            );
            self.refuse(label, &reason);
            return false;
        }
        self.summary.failures += 1;
        (self.report)(&ImportEvent::Incomplete { reference: label, missing: graph.missing() });
        false
    }

    fn load(&self, root: &Root, descriptor: &Descriptor) -> Option<Manifest> {
        if self.budget.is_spent() {
            return None;
        }
        let is_root = descriptor.digest == root.descriptor.digest;
        let media_type = root.media_type.as_deref().filter(|_| is_root);
        let manifest = manifest_by_digest(self.store, descriptor, media_type);
        self.budget.charge(1, manifest.as_ref().map_or(0, Manifest::size));
        manifest
    }

    /// Records an image's manifests, children before parents, and the tag last.
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
        let mut top = None;
        for (digest, manifest) in present {
            if self.waiting.contains_key(&digest) {
                self.recorded.add(name, digest);
            }
            let (media_type, size) = (manifest.media_type().clone(), manifest.size());
            top = Some((digest, media_type.clone(), size));
            let known = self.store.manifest(name, &digest, Access::Look);
            if known.is_none_or(|known| (&known.media_type, known.size) != (&media_type, size)) {
                let record = ManifestRecord { media_type, size, fetched: now };
                self.store.put_manifest(name, &digest, &record)?;
            }
        }
        match (reference, top) {
            (Reference::Tag(tag), Some((digest, media_type, size))) => {
                let record = TagRecord::new(digest, media_type, size, now, now);
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

    /// Records signatures and other referrers without a name of their own under the name of their subject, then
    /// the referrers of those.
    fn attach(&mut self) -> Result<(), BundleError> {
        let mut attached: HashSet<Digest> = HashSet::new();
        while let Some((name, subject)) = self.recorded.left.pop_front() {
            // Inserted again below: a subject may be recorded under several names.
            let Some(roots) = self.waiting.remove(&subject) else { continue };
            for root in &roots {
                let graph = self.graph(root)?;
                self.name(root, &graph, &name, &Reference::Digest(root.descriptor.digest))?;
            }
            attached.insert(subject);
            self.waiting.insert(subject, roots);
        }
        let mut left: Vec<(Digest, Digest)> = Vec::new();
        for (subject, roots) in &self.waiting {
            if !attached.contains(subject) {
                left.extend(roots.iter().map(|root| (root.descriptor.digest, *subject)));
            }
        }
        left.sort();
        for (digest, subject) in left {
            let reason = format!("it refers to {subject}, which was not imported");
            self.refuse(&digest.to_string(), &reason);
        }
        Ok(())
    }

    fn refuse(&mut self, entry: &str, reason: &str) {
        self.summary.failures += 1;
        (self.report)(&ImportEvent::Refused { bundle: self.bundle, entry, reason });
    }
}

impl Recorded {
    fn add(&mut self, name: &ImageName, digest: Digest) {
        let recorded = (name.clone(), digest);
        if self.seen.insert(recorded.clone()) {
            self.left.push_back(recorded);
        }
    }
}

/// A bundle may give the same name to several manifests. The last one counts, as at a registry.
fn keep_last_of_each_name(named: &mut Vec<(Root, (ImageName, Reference))>) {
    let mut seen = HashSet::new();
    let mut is_last: Vec<bool> =
        named.iter().rev().map(|(_, name)| seen.insert(name.clone())).collect();
    named.retain(|_| is_last.pop().unwrap_or(true));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::oci::{Algorithm, MediaType};
    use crate::store::Settings;

    const REF_NAME: &str = "org.opencontainers.image.ref.name";

    #[derive(Default)]
    struct Bundle {
        files: Vec<(String, Vec<u8>)>,
    }

    impl Bundle {
        fn blob(&mut self, media_type: &str, content: &[u8]) -> Value {
            let digest = Digest::of(Algorithm::Sha256, content);
            self.files.push((format!("blobs/sha256/{}", digest.hex()), content.to_vec()));
            json!({"mediaType": media_type, "digest": digest.to_string(), "size": content.len()})
        }

        fn image(&mut self, label: &str) -> Value {
            let config = self.blob("application/vnd.oci.image.config.v1+json", label.as_bytes());
            let manifest = json!({"schemaVersion": 2, "config": config, "layers": []});
            self.blob(MediaType::OCI_MANIFEST, manifest.to_string().as_bytes())
        }

        fn index(&mut self, children: &[&Value], label: usize) -> Value {
            let index =
                json!({"schemaVersion": 2, "manifests": children, "annotations": {"n": label}});
            self.blob(MediaType::OCI_INDEX, index.to_string().as_bytes())
        }

        fn end(mut self, entries: &[(&Value, String)]) -> BundleSource {
            let manifests: Vec<Value> = entries
                .iter()
                .map(|(descriptor, name)| {
                    let mut entry = (*descriptor).clone();
                    entry["annotations"] = json!({ REF_NAME: name });
                    entry
                })
                .collect();
            let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
            self.files.push(("index.json".to_owned(), index.into_bytes()));
            let mut tar = tar::Builder::new(Vec::new());
            for (path, content) in &self.files {
                let mut header = tar::Header::new_gnu();
                header.set_size(content.len() as u64);
                tar.append_data(&mut header, path, content.as_slice()).unwrap();
            }
            BundleSource::Memory { name: "test", tar: tar.into_inner().unwrap().into() }
        }
    }

    fn import_with(
        manifests: u64,
        bytes: u64,
        source: &BundleSource,
    ) -> (Result<ImportSummary, BundleError>, Vec<String>) {
        let directory = tempfile::tempdir().unwrap();
        let store =
            Store::open(&Settings { root: directory.path().to_owned(), fsync: false }).unwrap();
        let settings =
            ImportSettings { name: None, now: SystemTime::now(), is_private: &|_| false };
        let budget =
            |_: &Contents| Budget { manifests: Cell::new(manifests), bytes: Cell::new(bytes) };
        let imported = import_within(&budget, &store, source, &settings, &mut |_| {});
        let mut tags = Vec::new();
        let visited = store.each_image(&mut |image| {
            tags.push(format!("{} {}", image.full_reference(), image.digest));
            Ok(())
        });
        visited.unwrap();
        (imported, tags)
    }

    #[test]
    fn a_manifest_with_many_names_is_read_once() {
        let mut bundle = Bundle::default();
        let (one, two) = (bundle.image("one"), bundle.image("two"));
        // The names of the two alternate, so that it is not enough to remember the last one.
        let names: Vec<_> =
            (0..40).map(|n| ([&one, &two][n % 2], format!("quay.io/a:{n}"))).collect();
        let source = bundle.end(&names);
        let manifest_bytes: u64 =
            [&one, &two].iter().map(|each| each["size"].as_u64().unwrap()).sum();
        let (imported, tags) = import_with(1_000, manifest_bytes + 1, &source);
        assert_eq!((imported.unwrap().images, tags.len()), (40, 40));
    }

    #[test]
    fn the_last_of_two_manifests_with_the_same_name_wins() {
        let mut bundle = Bundle::default();
        let (one, two) = (bundle.image("one"), bundle.image("two"));
        let name = || "quay.io/a:1".to_owned();
        for (entries, last) in
            [([(&one, name()), (&two, name())], &two), ([(&two, name()), (&one, name())], &one)]
        {
            let source = Bundle { files: bundle.files.clone() }.end(&entries);
            let (imported, tags) = import_with(1_000, 1_000_000, &source);
            assert_eq!(imported.unwrap().images, 1);
            assert_eq!(tags, [format!("quay.io/a:1 {}", last["digest"].as_str().unwrap())]);
        }
    }

    #[test]
    fn indexes_that_share_a_child_too_often_are_refused() {
        let mut bundle = Bundle::default();
        let child = bundle.image(&"x".repeat(10_000));
        let indexes: Vec<Value> = (0..50).map(|n| bundle.index(&[&child], n)).collect();
        let names: Vec<_> =
            indexes.iter().zip(0..).map(|(index, n)| (index, format!("quay.io/a:{n}"))).collect();
        let source = bundle.end(&names);
        let (imported, tags) = import_with(1_000, 1_000_000, &source);
        assert_eq!((imported.unwrap().images, tags.len()), (50, 50));
        for (manifests, bytes) in [(20, 1_000_000), (1_000, 2_000)] {
            let (imported, tags) = import_with(manifests, bytes, &source);
            assert!(matches!(imported, Err(BundleError::Entangled { .. })), "{imported:?}");
            assert!(tags.len() < 50, "{tags:?}");
        }
    }

    #[test]
    fn content_of_private_repositories_is_marked() {
        let mut bundle = Bundle::default();
        let names: Vec<_> = ["open", "private"].map(|name| (bundle.image(name), name)).into();
        let names: Vec<_> =
            names.iter().map(|(image, name)| (image, format!("quay.io/{name}:1"))).collect();
        let source = bundle.end(&names);
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_owned();
        let store = Store::open(&Settings { root, fsync: false }).unwrap();
        let is_private = |name: &ImageName| name.repository.to_string() == "private";
        let settings =
            ImportSettings { name: None, now: SystemTime::now(), is_private: &is_private };
        import(&store, &source, &settings, &mut |_| {}).unwrap();
        let mut marked = Vec::new();
        let visited = store.each_image(&mut |image| {
            marked.push((image.full_reference().to_string(), store.is_private(&image.digest)));
            Ok(())
        });
        visited.unwrap();
        marked.sort();
        let expected = [("quay.io/open:1", false), ("quay.io/private:1", true)];
        assert_eq!(marked, expected.map(|(name, is)| (name.to_owned(), is)));
    }

    #[test]
    fn lists_with_too_many_names_are_refused_before_they_use_memory() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_owned();
        let store = Store::open(&Settings { root, fsync: false }).unwrap();
        let settings =
            ImportSettings { name: None, now: SystemTime::now(), is_private: &|_| false };
        let digest = Digest::of(Algorithm::Sha256, b"x").to_string();
        let entry = format!(r#"{{"digest":"{digest}","size":1}},"#);
        let list = |text: &str, count: usize| text.repeat(count).trim_end_matches(',').to_owned();
        for (path, text, words) in [
            (
                "index.json",
                format!(r#"{{"manifests":[{}]}}"#, list(&entry, NAMES_MAX + 1)),
                "more than 200000 entries",
            ),
            (
                "manifest.json",
                format!(
                    r#"[{{"Config":"c","Layers":[],"RepoTags":[{}]}}]"#,
                    list(r#""","#, NAMES_MAX + 1)
                ),
                "more than 200000 entries",
            ),
            (
                "manifest.json",
                format!(r#"[{{"Config":"c","Layers":[{}]}}]"#, list(r#""","#, 4_000_001)),
                "manifest.json is malformed: it has more than 4000000 strings",
            ),
        ] {
            let mut bundle = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            bundle.append_data(&mut header, path, text.as_bytes()).unwrap();
            let tar = bundle.into_inner().unwrap().into();
            let source = BundleSource::Memory { name: "test", tar };
            let error = import(&store, &source, &settings, &mut |_| {}).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn the_budget_grows_with_the_bundle() {
        let budget = |entries, content_bytes| {
            let mut contents = Contents::default();
            (contents.entries, contents.content_bytes) = (entries, content_bytes);
            let Budget { manifests, bytes } = Budget::of(&contents);
            (manifests.get(), bytes.get())
        };
        assert_eq!(budget(0, 0), (MANIFESTS_MIN, BYTES_MIN));
        assert_eq!(budget(1 << 20, 1 << 40), (PER_ENTRY << 20, PER_ENTRY << 40));
        assert_eq!(budget(u64::MAX, u64::MAX), (u64::MAX, u64::MAX));
    }

    #[test]
    fn chains_of_referrers_are_attached_in_any_order() {
        let mut bundle = Bundle::default();
        let image = bundle.image("image");
        let mut chain = vec![image.clone()];
        for n in 0..5 {
            let config =
                bundle.blob("application/vnd.oci.empty.v1+json", format!("{n}").as_bytes());
            let manifest =
                json!({"schemaVersion": 2, "config": config, "layers": [], "subject": chain[n]});
            chain.push(bundle.blob(MediaType::OCI_MANIFEST, manifest.to_string().as_bytes()));
        }
        let lone = json!({"schemaVersion": 2, "config": chain[0], "layers": [], "subject": {
            "digest": Digest::of(Algorithm::Sha256, b"elsewhere").to_string(), "size": 1}});
        let lone = bundle.blob(MediaType::OCI_MANIFEST, lone.to_string().as_bytes());
        let mut entries: Vec<_> =
            chain[1..].iter().rev().map(|each| (each, String::new())).collect();
        entries.push((&lone, String::new()));
        entries.push((&image, "quay.io/a:1".to_owned()));
        entries.push((&image, "ghcr.io/b:1".to_owned()));
        let (imported, tags) = import_with(1_000, 1_000_000, &bundle.end(&entries));
        let summary = imported.unwrap();
        assert_eq!((summary.images, summary.failures, tags.len()), (12, 1, 12), "{tags:?}");
    }

    #[test]
    fn a_layer_shared_by_many_images_is_unpacked_once() {
        use crate::bundle::compression::{Compression, Compressor};
        use std::io::Write;
        let directory = tempfile::tempdir().unwrap();
        let store =
            Store::open(&Settings { root: directory.path().to_owned(), fsync: false }).unwrap();
        let content = vec![7; 100_000];
        let mut packed = Compressor::new(Compression::Gzip, Vec::new());
        packed.write_all(&content).unwrap();
        let layer = packed.finish().unwrap();
        let diff_id = Digest::of(Algorithm::Sha256, &content).to_string();
        let config = |n: usize| json!({"n": n, "rootfs": {"diff_ids": [diff_id]}}).to_string();
        let mut images = Vec::new();
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |path: &str, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, path, content).unwrap();
        };
        add("a/layer.tar", &layer);
        for n in 0..3 {
            let config = config(n);
            let path = format!("{}.json", Digest::of(Algorithm::Sha256, config.as_bytes()).hex());
            add(&path, config.as_bytes());
            for tag in ["x", "y"] {
                images.push(json!({"Config": path, "RepoTags": [format!("quay.io/a:{n}{tag}")], "Layers": ["a/layer.tar"]}));
            }
        }
        // Images with the same config are not adjacent.
        images.sort_by_key(|image| {
            image["RepoTags"][0].as_str().unwrap().chars().rev().collect::<String>()
        });
        let images = docker::parse(json!(images).to_string().as_bytes()).unwrap();
        let tar: Arc<[u8]> = tar.into_inner().unwrap().into();
        let contents =
            read(&store, &BundleSource::Memory { name: "test", tar }, &mut |_| {}).unwrap();
        let mut rebuild = Rebuild::new(&store, &contents);
        assert!(rebuild.all(&images[..1]).unwrap()[0].is_ok());
        // Without the file, the layer cannot be unpacked a second time.
        let digest = Digest::of(Algorithm::Sha256, &layer);
        std::fs::remove_file(directory.path().join("blobs/sha256").join(digest.hex())).unwrap();
        let rebuilt = rebuild.all(&images).unwrap();
        assert!(rebuilt.iter().all(Result::is_ok) && rebuilt.len() == 6, "{rebuilt:?}");
        let mut fresh = Rebuild::new(&store, &contents);
        assert!(fresh.all(&images).unwrap().iter().all(Result::is_err));
        // The results have the order of the images, whatever the order of rebuilding.
        for (image, roots) in images.iter().zip(rebuilt) {
            let names: Vec<_> = roots.unwrap().into_iter().map(|root| root.name).collect();
            assert_eq!(names, [EntryName::Full(image.repo_tags.as_ref().unwrap()[0].clone())]);
        }
    }
}
