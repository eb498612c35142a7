//! Disk usage by image, repository and registry, collected by a walk in the background.
//!
//! The results are one JSON object per line in `usage/images.jsonl`, with totals in `usage/summary.json`, so every
//! process can list 100,000 images without holding them in memory. The results are only a view: removals read the
//! records again. For a repository that was complete and has not changed since the last walk, only the times of its
//! records are read.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufRead, BufReader, BufWriter, Lines, Write};
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::disk::DiskUsage;
use crate::oci::{Digest, ImageName, Reference};
use crate::store::files::read::{open_to_read, read_file};
use crate::store::files::record::{from_seconds, to_seconds};
use crate::store::locks::FileLock;
use crate::store::names::images::{Graph, StoredImage, check_stopped};
use crate::store::{Store, StoreError};

/// A repository is read again after this long even if its directories did not change: blobs may have been damaged.
const REREAD_AFTER: Duration = Duration::from_secs(6 * 3600);

/// The beginnings of the lines for an image and for a repository: each type's first field.
const IMAGE_LINE: &str = "{\"image\":";
const REPOSITORY_LINE: &str = "{\"of\":";

/// The totals of the last walk of all images.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UsageSummary {
    /// When it ended, in seconds since 1970.
    pub as_of: u64,
    /// How long it took, in milliseconds.
    pub took_milliseconds: u64,
    /// Number of images, without incomplete ones to which a tag has moved and that were not accepted.
    pub images: u64,
    /// Images that can be pulled completely without an upstream.
    pub complete_images: u64,
    /// Repositories that have images.
    pub repositories: u64,
    /// Distinct manifests.
    pub manifests: u64,
    /// Their total size.
    pub manifest_bytes: u64,
    /// Blobs that are not manifests.
    pub blobs: u64,
    /// Their total size.
    pub blob_bytes: u64,
    /// Usage by registry, in order of name.
    pub registries: Vec<RegistryUsage>,
}

/// The cached content of a registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RegistryUsage {
    /// The registry.
    pub name: String,
    /// Number of its repositories.
    pub repositories: u64,
    /// Number of its images.
    pub images: u64,
    /// Bytes of its repositories; content that two of them share counts twice.
    pub bytes: u64,
    /// When one of them was last pulled, in seconds since 1970.
    pub pulled: Option<u64>,
}

/// An image as of the last walk. Times are in seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageUsage {
    /// The full reference.
    pub image: String,
    /// Its repository, with its registry.
    pub repository: String,
    /// Its manifest or index.
    pub digest: String,
    /// The media type of the manifest or index.
    pub media_type: String,
    /// Bytes that are cached, including those shared with other images.
    pub size_bytes: u64,
    /// Bytes that are missing, for the manifests that are cached.
    pub missing_bytes: u64,
    /// Whether it can be pulled completely without an upstream.
    pub complete: bool,
    /// The platforms that are cached, according to an index or to the images' configs.
    pub platforms: Vec<String>,
    /// Number of cached manifests.
    pub manifests: u64,
    /// Number of cached configs and layers.
    pub blobs: u64,
    /// When the image was built, according to its config.
    pub created: Option<String>,
    /// When this tag or digest was first seen with this manifest.
    pub fetched: u64,
    /// When upstream last confirmed the tag.
    pub checked: Option<u64>,
    /// When upstream was first seen without the tag.
    pub gone: Option<u64>,
    /// When a client last pulled it, to the minute.
    pub pulled: Option<u64>,
    /// The manifest that upstream has instead, if the tag has moved there and that is not accepted here.
    #[serde(default)]
    pub held: Option<String>,
    /// When upstream was first seen with it.
    #[serde(default)]
    pub held_since: Option<u64>,
}

/// A repository as of the last walk: the line before those of its images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RepositoryUsage {
    /// The repository of the following lines, with its registry.
    pub of: String,
    /// A fingerprint of its directories, to detect later changes.
    fingerprint: String,
    /// When it was read, in seconds since 1970.
    read: u64,
    /// Number of its images.
    pub images: u64,
    /// Those that can be pulled completely without an upstream.
    pub complete_images: u64,
    /// Bytes; content that its images share counts once.
    pub bytes: u64,
    /// When one of them was last pulled, in seconds since 1970.
    pub pulled: Option<u64>,
}

impl RepositoryUsage {
    /// Whether its images need not be read again. Pulls do not change the fingerprint.
    fn is_unchanged(&self, images: &[ImageUsage], fingerprint: &str, now: SystemTime) -> bool {
        let age = from_seconds(self.read).and_then(|read| now.duration_since(read).ok());
        self.fingerprint == fingerprint
            && age.is_some_and(|age| age < REREAD_AFTER)
            && images.iter().all(|image| image.complete && image.missing_bytes == 0)
    }
}

impl ImageUsage {
    /// Summarizes an image.
    pub fn of(image: &StoredImage, graph: &Graph, created: Option<String>) -> ImageUsage {
        let seconds = |time: Option<SystemTime>| time.map(to_seconds);
        ImageUsage {
            image: image.full_reference(),
            repository: image.name.to_string(),
            digest: image.digest.to_string(),
            media_type: image.media_type.to_string(),
            size_bytes: graph.present_bytes(),
            missing_bytes: graph.missing_bytes(),
            complete: graph.is_complete(),
            platforms: graph.platforms().map(str::to_owned).collect(),
            manifests: graph.manifests.iter().filter(|each| each.manifest.is_some()).count() as u64,
            blobs: graph.blobs.iter().filter(|each| each.is_present).count() as u64,
            created,
            fetched: to_seconds(image.fetched),
            checked: seconds(image.checked),
            gone: seconds(image.gone),
            held: image.held.as_ref().map(|held| held.digest.to_string()),
            held_since: seconds(image.held.as_ref().map(|held| held.since)),
            pulled: seconds(image.pulled),
        }
    }
}

impl Store {
    /// The totals of the last walk, by any process.
    pub fn usage(&self) -> Option<UsageSummary> {
        let bytes = read_file(&self.inner.layout.usage_summary()).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Calls `visit` with every image of the last walk until it returns `false`. Does nothing if there was no walk.
    pub fn each_usage(&self, visit: &mut dyn FnMut(ImageUsage) -> bool) {
        self.each_line(IMAGE_LINE, visit);
    }

    /// Calls `visit` with every repository of the last walk until it returns `false`.
    pub fn each_repository_usage(&self, visit: &mut dyn FnMut(RepositoryUsage) -> bool) {
        self.each_line(REPOSITORY_LINE, visit);
    }

    /// Reads the lines of one kind. The beginning of a line tells its kind, so other lines are not parsed.
    fn each_line<T: DeserializeOwned>(&self, kind: &str, visit: &mut dyn FnMut(T) -> bool) {
        let Ok(file) = open_to_read(&self.inner.layout.usage_images()) else { return };
        let lines = BufReader::new(file).lines().map_while(Result::ok);
        for line in lines.filter(|line| line.starts_with(kind)) {
            if let Ok(found) = serde_json::from_str(&line)
                && !visit(found)
            {
                return;
            }
        }
    }

    /// Walks all images and writes the results; `disk` is the last disk count. Calls `keep_going` before each
    /// repository and image; it may block, and stops the walk by returning `false`. Returns `None` if the walk was
    /// stopped, or if another process is walking.
    ///
    /// # Errors
    /// [`StoreError`] if the directory is read-only or a write fails.
    pub fn walk_usage(
        &self,
        disk: &DiskUsage,
        clock: &dyn Fn() -> SystemTime,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<Option<UsageSummary>, StoreError> {
        self.require_writable()?;
        let path = self.inner.layout.usage_images();
        let write = |error| StoreError::write(&path, error);
        let lock = self.inner.layout.open_lock(&self.inner.layout.usage_lock());
        let lock = lock.and_then(FileLock::try_exclusive).map_err(write)?;
        let Some(_lock) = lock else { return Ok(None) };
        let began = clock();
        match self.is_usage_unchanged(began, keep_going) {
            None => return Ok(None),
            Some(true) if let Some(summary) = self.usage() => {
                return self.finish_usage(summary, disk, began, clock()).map(Some);
            }
            Some(_) => {}
        }
        let temporary = self.inner.layout.temporary();
        let walked = self.stream_usage(&temporary, began, keep_going);
        let Some(summary) =
            walked.inspect_err(|_| drop(fs::remove_file(&temporary))).map_err(write)?
        else {
            let _ = fs::remove_file(&temporary);
            return Ok(None);
        };
        self.inner.publish(&temporary, &path).inspect_err(|_| drop(fs::remove_file(&temporary)))?;
        self.finish_usage(summary, disk, began, clock()).map(Some)
    }

    fn finish_usage(
        &self,
        mut summary: UsageSummary,
        disk: &DiskUsage,
        began: SystemTime,
        ended: SystemTime,
    ) -> Result<UsageSummary, StoreError> {
        summary.as_of = to_seconds(ended);
        let took = ended.duration_since(began).unwrap_or_default().as_millis();
        summary.took_milliseconds = u64::try_from(took).unwrap_or(u64::MAX);
        summary.blobs = disk.files.saturating_sub(summary.manifests);
        summary.blob_bytes = disk.bytes.saturating_sub(summary.manifest_bytes);
        let path = self.inner.layout.usage_summary();
        let json = serde_json::to_vec_pretty(&summary)
            .map_err(|error| StoreError::write(&path, io::Error::other(error)))?;
        self.inner.replace(&path, &json)?;
        Ok(summary)
    }

    /// Whether nothing has changed since the last walk, pulls included, so that nothing need be written. This is
    /// the usual case, and writes wear out disks. `None` if it was stopped.
    fn is_usage_unchanged(
        &self,
        now: SystemTime,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Option<bool> {
        let (mut old, mut was_ended) = (OldUsage::open(self), false);
        let compared = self.each_repository(&mut |name| {
            let mut keep_going = || {
                was_ended |= !keep_going();
                !was_ended
            };
            check_stopped(&mut keep_going)?;
            let fingerprint = self.repository_times(name).fingerprint();
            let is_same = old.take(name).is_some_and(|(line, images)| {
                match line.is_unchanged(&images, &fingerprint, now) {
                    true => images
                        .iter()
                        .all(|image| keep_going() && image.pulled == self.last_pull(name, image)),
                    // Something is missing from it, perhaps for good.
                    false => {
                        line.fingerprint == fingerprint
                            && self
                                .read_usage(name, fingerprint, now, &mut keep_going)
                                .is_ok_and(|(_, found)| found == images)
                    }
                }
            });
            check_stopped(&mut || is_same)
        });
        // A removed repository shows as leftover lines.
        (!was_ended).then(|| compared.is_ok() && old.next.is_none() && !old.has_skipped)
    }

    /// When an image was last pulled, according to its records now.
    fn last_pull(&self, name: &ImageName, image: &ImageUsage) -> Option<u64> {
        let rest = image.image.strip_prefix(&image.repository);
        let reference = rest.and_then(|rest| rest.strip_prefix([':', '@'])?.parse().ok());
        let layout = &self.inner.layout;
        let digest: Option<Digest> = image.digest.parse().ok();
        let by_digest = digest.and_then(|digest| self.modified(&layout.manifest(name, &digest)));
        let by_tag = match &reference {
            Some(Reference::Tag(tag)) => self.modified(&layout.tag(name, tag)),
            _ => None,
        };
        by_digest.max(by_tag).map(to_seconds)
    }

    fn read_usage(
        &self,
        name: &ImageName,
        fingerprint: String,
        now: SystemTime,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> io::Result<(RepositoryUsage, Vec<ImageUsage>)> {
        let (mut images, mut bytes, mut seen) = (Vec::new(), 0, HashSet::new());
        for image in self.images_of_while(name, keep_going)? {
            check_stopped(keep_going)?;
            let mut graph = self.graph_of(&image);
            for each in graph.present() {
                if seen.insert(each.digest) {
                    bytes += each.size;
                }
            }
            // Nobody pulls what was not accepted, so it is never complete, and that is no fault.
            if image.is_unaccepted && !graph.is_complete() {
                continue;
            }
            let created = self.read_configs(&mut graph);
            images.push(ImageUsage::of(&image, &graph, created));
        }
        let line = RepositoryUsage {
            of: name.to_string(),
            fingerprint,
            read: to_seconds(now),
            images: images.len() as u64,
            complete_images: images.iter().filter(|image| image.complete).count() as u64,
            bytes,
            pulled: None,
        };
        Ok((line, images))
    }

    fn stream_usage(
        &self,
        temporary: &std::path::Path,
        now: SystemTime,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> io::Result<Option<UsageSummary>> {
        let out = BufWriter::new(File::create_new(temporary)?);
        let old = OldUsage::open(self);
        let mut walk = UsageWalk {
            store: self,
            now,
            out,
            old,
            seen: HashSet::new(),
            summary: UsageSummary::default(),
        };
        let walked = self.each_repository(&mut |name| walk.visit(name, keep_going));
        match walked {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(None),
            other => other?,
        }
        walk.out.flush()?;
        Ok(Some(walk.summary))
    }
}

struct UsageWalk<'a> {
    store: &'a Store,
    now: SystemTime,
    out: BufWriter<File>,
    old: OldUsage,
    /// Hashes of the manifests counted so far; of two that collide, one is not counted.
    seen: HashSet<u64>,
    summary: UsageSummary,
}

impl UsageWalk<'_> {
    fn visit(&mut self, name: &ImageName, keep_going: &mut dyn FnMut() -> bool) -> io::Result<()> {
        check_stopped(keep_going)?;
        let fingerprint = self.store.repository_times(name).fingerprint();
        let (mut line, images) = match self.old.take(name) {
            Some((line, mut images)) if line.is_unchanged(&images, &fingerprint, self.now) => {
                for image in &mut images {
                    check_stopped(keep_going)?;
                    image.pulled = self.store.last_pull(name, image);
                }
                (line, images)
            }
            _ => self.store.read_usage(name, fingerprint, self.now, keep_going)?,
        };
        line.pulled = images.iter().map(|image| image.pulled).max().flatten();
        self.count(name, &line);
        write_line(&mut self.out, &line)?;
        images.iter().try_for_each(|image| write_line(&mut self.out, image))
    }

    fn count(&mut self, name: &ImageName, line: &RepositoryUsage) {
        let layout = &self.store.inner.layout;
        for digest in self.store.manifests(name) {
            let mut hasher = DefaultHasher::new();
            digest.hash(&mut hasher);
            if self.seen.insert(hasher.finish())
                && let Ok(metadata) = fs::metadata(layout.blob(&digest))
            {
                self.summary.manifests += 1;
                self.summary.manifest_bytes += metadata.len();
            }
        }
        let summary = &mut self.summary;
        summary.images += line.images;
        summary.complete_images += line.complete_images;
        summary.repositories += u64::from(line.images > 0);
        let registry = name.upstream.as_str();
        // The walk visits the repositories of a registry one after another.
        if summary.registries.last().is_none_or(|last| last.name != registry) {
            let name = registry.to_owned();
            summary.registries.push(RegistryUsage { name, ..RegistryUsage::default() });
        }
        if let Some(of) = summary.registries.last_mut() {
            of.repositories += u64::from(line.images > 0);
            of.images += line.images;
            of.bytes += line.bytes;
            of.pulled = of.pulled.max(line.pulled);
        }
    }
}

fn write_line(out: &mut impl Write, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

/// The results of the previous walk, read in step with the walk that replaces them: both follow the order of the
/// directories.
struct OldUsage {
    lines: Option<Lines<BufReader<File>>>,
    /// The next repository's line, read but not yet used.
    next: Option<RepositoryUsage>,
    /// Whether it contains a repository that no longer exists.
    has_skipped: bool,
}

impl OldUsage {
    fn open(store: &Store) -> OldUsage {
        let file = open_to_read(&store.inner.layout.usage_images());
        let lines = file.ok().map(|file| BufReader::new(file).lines());
        let mut old = OldUsage { lines, next: None, has_skipped: false };
        old.images();
        old
    }

    /// Takes the lines of a repository and skips those of the repositories before it.
    fn take(&mut self, name: &ImageName) -> Option<(RepositoryUsage, Vec<ImageUsage>)> {
        let wanted = name.to_string();
        while let Some(next) = &self.next {
            match next.of.split('/').cmp(wanted.split('/')) {
                Ordering::Less => {
                    self.images();
                    self.has_skipped = true;
                }
                Ordering::Equal => {
                    let line = self.next.take()?;
                    return Some((line, self.images()));
                }
                Ordering::Greater => return None,
            }
        }
        None
    }

    /// Reads the images up to the next repository.
    fn images(&mut self) -> Vec<ImageUsage> {
        let mut images = Vec::new();
        self.next = None;
        while let Some(Ok(line)) = self.lines.as_mut().and_then(Iterator::next) {
            if let Ok(image) = serde_json::from_str(&line) {
                images.push(image);
            } else if let Ok(repository) = serde_json::from_str(&line) {
                self.next = Some(repository);
                break;
            }
        }
        images
    }
}
