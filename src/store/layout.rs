//! Where everything lies: the one place that joins paths.
//!
//! Path components come from validated names only. None of them can be `..`, contain `/` or begin
//! with `_`, so `_tags`, `_manifests` and `_lists` cannot collide with a repository's component.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::OFlags;

use super::error::StoreError;
use super::owner::Owner;
use super::sweep::TEMPORARY;
use crate::oci::{Algorithm, Digest, ImageName, Tag, Upstream};

pub(super) const TAGS: &str = "_tags";
pub(super) const MANIFESTS: &str = "_manifests";
pub(super) const LEGACY_LISTS: &str = "_lists";

/// The content of `oci-layout`: image-spec, image-layout.md, "oci-layout file".
const OCI_LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// `index.json` of a cache without tags.
const EMPTY_INDEX: &[u8] =
    br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

#[derive(Debug)]
pub(super) struct Layout {
    root: PathBuf,
    /// Of what is made below the root.
    owner: Owner,
    /// Distinguishes this process's temporary names from each other.
    temporary_names: AtomicU64,
}

impl Layout {
    pub(super) fn new(root: PathBuf) -> Layout {
        Layout { owner: Owner::of(&root), root, temporary_names: AtomicU64::new(0) }
    }

    pub(super) fn owner(&self) -> Owner {
        self.owner
    }

    /// A name in `incoming/` that no other thread or process uses, and where what a kill has left is swept.
    pub(super) fn temporary(&self) -> PathBuf {
        let number = self.temporary_names.fetch_add(1, Ordering::Relaxed);
        // In containers all processes have the same number.
        let since_epoch = std::time::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_nanos());
        let name = format!("{TEMPORARY}{}-{since_epoch}-{number}", std::process::id());
        self.incoming().join(name)
    }

    /// Makes a directory and its missing parents, and says which were missing, the outermost first.
    pub(super) fn create_directories(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let missing = path.ancestors().take_while(|each| !each.exists());
        let mut missing: Vec<PathBuf> = missing.map(Path::to_owned).collect();
        missing.reverse();
        fs::create_dir_all(path)?;
        missing.iter().for_each(|made| self.owner.give_path(made));
        Ok(missing)
    }

    /// Opens a file that is there to be locked, and creates it if it is not.
    pub(super) fn open_lock(&self, path: &Path) -> io::Result<File> {
        let open = || self.owner.open(File::options().create(true).append(true), path);
        match open() {
            // Another user's command has created it; to be locked it need not be written.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => open_to_read(path),
            // A process of version 0.1 on this directory has created it for a client.
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                self.clear_lock(path);
                open()
            }
            other => other,
        }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn index(&self) -> PathBuf {
        self.root.join("index.json")
    }

    /// There while `larder offline` is on.
    pub(super) fn offline_switch(&self) -> PathBuf {
        self.root.join("offline")
    }

    /// Where damaged blobs are kept, for whoever wants to know what became of them.
    pub(super) fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    pub(super) fn quarantined(&self, digest: &Digest) -> PathBuf {
        self.quarantine().join(digest.dashed())
    }

    pub(super) fn blobs(&self, algorithm: Algorithm) -> PathBuf {
        self.root.join("blobs").join(algorithm.as_str())
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs(digest.algorithm()).join(digest.hex())
    }

    /// Locks and temporary files. Nothing below it has a name that a client chose.
    pub(super) fn incoming(&self) -> PathBuf {
        self.root.join("incoming")
    }

    /// Partial downloads, and nothing else: the directories in it have names that clients chose.
    pub(super) fn all_partials(&self) -> PathBuf {
        self.root.join("partials")
    }

    /// Partials of one upstream: another upstream may send something else for the same digest.
    pub(super) fn partials(&self, upstream: &Upstream) -> PathBuf {
        self.all_partials().join(upstream.as_str())
    }

    pub(super) fn partial(&self, upstream: &Upstream, digest: &Digest) -> PathBuf {
        self.partials(upstream).join(digest.dashed())
    }

    /// Whose partial it is: beside it.
    pub(super) fn partial_note(&self, upstream: &Upstream, digest: &Digest) -> PathBuf {
        self.partial(upstream, digest).with_extension("json")
    }

    /// Held shared by the commit of a manifest, exclusively by a sweep of unreferenced blobs.
    pub(super) fn sweep_lock(&self) -> PathBuf {
        self.incoming().join("sweep.lock")
    }

    /// Passed by commits, and held by a removal that waits for the sweep lock.
    pub(super) fn sweep_gate(&self) -> PathBuf {
        self.incoming().join("sweep-gate.lock")
    }

    /// Held shared by imports and exports.
    pub(super) fn bundle_lock(&self) -> PathBuf {
        self.incoming().join("bundle.lock")
    }

    /// Held by the one process that rewrites `index.json`.
    pub(super) fn index_lock(&self) -> PathBuf {
        self.incoming().join("index.lock")
    }

    /// Held by the one process that prunes.
    pub(super) fn prune_lock(&self) -> PathBuf {
        self.incoming().join("prune.lock")
    }

    /// The same of a server's configuration.
    pub(super) fn configured_pins(&self) -> PathBuf {
        self.root.join("pins-configured")
    }

    /// Which images are never evicted: a pattern a line.
    pub(super) fn pins(&self) -> PathBuf {
        self.root.join("pins")
    }

    /// What a walk of all images has found: totals, and an image a line.
    pub(super) fn usage_summary(&self) -> PathBuf {
        self.root.join("usage").join("summary.json")
    }

    pub(super) fn usage_images(&self) -> PathBuf {
        self.root.join("usage").join("images.jsonl")
    }

    /// Held by the one process that walks them.
    pub(super) fn usage_lock(&self) -> PathBuf {
        self.incoming().join("usage.lock")
    }

    /// Held by the one process that changes the pins.
    pub(super) fn pins_lock(&self) -> PathBuf {
        self.incoming().join("pins.lock")
    }

    pub(super) fn refs(&self) -> PathBuf {
        self.root.join("refs")
    }

    pub(super) fn repository(&self, name: &ImageName) -> PathBuf {
        self.refs().join(name.upstream.as_str()).join(name.repository.as_str())
    }

    pub(super) fn tags(&self, name: &ImageName) -> PathBuf {
        self.repository(name).join(TAGS)
    }

    pub(super) fn tag(&self, name: &ImageName, tag: &Tag) -> PathBuf {
        self.tags(name).join(tag.as_str())
    }

    pub(super) fn manifests(&self, name: &ImageName, algorithm: Algorithm) -> PathBuf {
        self.repository(name).join(MANIFESTS).join(algorithm.as_str())
    }

    pub(super) fn manifest(&self, name: &ImageName, digest: &Digest) -> PathBuf {
        self.manifests(name, digest.algorithm()).join(digest.hex())
    }

    /// Where a version before kept the lists of a repository.
    pub(super) fn legacy_lists(&self, name: &ImageName) -> PathBuf {
        self.repository(name).join(LEGACY_LISTS)
    }

    /// Stored lists of all repositories, and nothing else.
    pub(super) fn lists(&self) -> PathBuf {
        self.root.join("lists")
    }

    /// What the names of a repository's lists begin with.
    pub(super) fn list_prefix(&self, name: &ImageName) -> String {
        let hashed = Digest::of(Algorithm::Sha256, name.to_string().as_bytes());
        format!("{}-", hashed.hex())
    }

    pub(super) fn list(&self, name: &ImageName, key: &str) -> PathBuf {
        let hashed = Digest::of(Algorithm::Sha256, key.as_bytes());
        self.lists().join(format!("{}{}", self.list_prefix(name), hashed.hex()))
    }

    /// Makes the directories and the two files that mark an OCI layout. Says whether the directory
    /// can be written; a read-only one is fine as long as it is there.
    pub(super) fn prepare(&self) -> Result<bool, StoreError> {
        if self.root.exists() && !self.root.is_dir() {
            return Err(StoreError::NotADirectory { path: self.root.clone() });
        }
        match self.create_and_probe() {
            Ok(()) => Ok(true),
            Err((path, source)) if self.root.join("blobs").is_dir() => {
                log::warn!(
                    "the cache directory {} is read-only ({}: {source}): what is in it is served, \
                     nothing is added",
                    self.root.display(),
                    path.display()
                );
                Ok(false)
            }
            Err((path, source)) => Err(StoreError::Create { path, source }),
        }
    }

    fn create_and_probe(&self) -> Result<(), (PathBuf, io::Error)> {
        let blobs = Algorithm::ALL.map(|algorithm| self.blobs(algorithm));
        for directory in
            blobs.into_iter().chain([self.refs(), self.incoming(), self.all_partials()])
        {
            self.create_directories(&directory).map_err(|source| (directory, source))?;
        }
        self.clear_locks();
        // Also the probe: whoever can create these files and the lock can write the cache.
        for (name, content) in [("oci-layout", OCI_LAYOUT), ("index.json", EMPTY_INDEX)] {
            let path = self.root.join(name);
            self.create_if_missing(&path, content).map_err(|source| (path, source))?;
        }
        let lock = self.sweep_lock();
        let made = self.owner.open(File::options().create(true).append(true), &lock);
        made.map(drop).map_err(|source| (lock, source))
    }

    /// Moves directories out of the places of the lock files. Version 0.1 kept partial downloads in
    /// `incoming/`, where a client could name its registry `prune.lock` and so block every removal for good.
    fn clear_locks(&self) {
        let locks = [
            self.sweep_lock(),
            self.sweep_gate(),
            self.bundle_lock(),
            self.index_lock(),
            self.prune_lock(),
            self.usage_lock(),
            self.pins_lock(),
        ];
        locks.iter().for_each(|lock| self.clear_lock(lock));
    }

    fn clear_lock(&self, lock: &Path) {
        if !fs::symlink_metadata(lock).is_ok_and(|is| is.is_dir()) {
            return;
        }
        // The temporary name is one that the removal of leftovers knows.
        match move_directory(lock, &self.temporary()) {
            Ok(()) => log::warn!(
                "{} was a directory, which blocked every removal; it was moved out of the way",
                lock.display()
            ),
            // Another process was faster.
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {}
            Err(error) => log::warn!(
                "{} is a directory, which blocks every removal, and cannot be moved: {error}",
                lock.display()
            ),
        }
    }

    /// Creates a file with its content, or leaves the one that is there. One without content is what a kill in
    /// the middle of an earlier version of this has left, and is replaced.
    fn create_if_missing(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let is_empty = match fs::metadata(path) {
            Ok(metadata) if metadata.len() > 0 => return Ok(()),
            Ok(_) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        let temporary = self.temporary();
        let mut file = File::create_new(&temporary)?;
        self.owner.give(&file);
        file.write_all(content)?;
        let placed = match is_empty {
            true => fs::rename(&temporary, path),
            // Fails if another process was faster, whose file may hold more by now. Not all file systems have
            // links.
            false => match fs::hard_link(&temporary, path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    fs::rename(&temporary, path)
                }
                other => other,
            },
        };
        // Gone after a rename.
        let _ = fs::remove_file(&temporary);
        match placed {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }
}

/// Renames a directory, and nothing but a directory: where another process has replaced it by a file since it was
/// seen, that stays, since it may be locked or hold content.
pub(super) fn move_directory(from: &Path, to: &Path) -> io::Result<()> {
    // A path that ends with a slash means a directory.
    fs::rename(from.join(""), to)
}

/// Opens a file below the cache directory to read it. A link is an error: it may lead anywhere. A pipe that
/// somebody has put there blocks nobody.
pub(super) fn open_to_read(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}

/// The content of a small file below the cache directory.
pub(super) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let file = open_to_read(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
    }
    let mut content = Vec::new();
    (&file).read_to_end(&mut content)?;
    Ok(content)
}

/// The names in a directory; none if there is no such directory.
pub(super) fn names_in(directory: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

/// The digest of that hex, if it is one.
pub(super) fn digest_of(algorithm: Algorithm, hex: &str) -> Option<Digest> {
    format!("{}:{hex}", algorithm.as_str()).parse().ok()
}
