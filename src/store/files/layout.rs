//! File paths below the cache directory. No other module joins paths. Those of blobs and records are also keys in a
//! bucket: see [`crate::oci::blob_path`].

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::owner::Owner;
use super::read::open_to_read;
use crate::oci::{
    Algorithm, BLOBS, Digest, ImageName, MANIFESTS, REFS, TAGS, Tag, Upstream, blob_path,
    manifest_path, repository_path, tag_path,
};
use crate::store::StoreError;

pub(in crate::store) const LEGACY_LISTS: &str = "_lists";

/// The prefix of temporary files in `incoming/`.
pub(in crate::store) const TEMPORARY: &str = "tmp-";
/// The prefix of the locks of requests for documents.
pub(in crate::store) const FETCH_LOCK: &str = "tmp-fetch-";

/// The prefix of files with the keys of an issuer.
pub(in crate::store) const ISSUER_KEYS: &str = "keys-";

/// The content of `oci-layout` (image-spec, image-layout.md, "oci-layout file").
const OCI_LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// `index.json` of a cache without tags.
const EMPTY_INDEX: &[u8] =
    br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

#[derive(Debug)]
pub(in crate::store) struct Layout {
    root: PathBuf,
    /// Owner of the files created below the root.
    owner: Owner,
    /// Counter that makes this process's temporary names unique.
    temporary_names: AtomicU64,
}

impl Layout {
    pub(in crate::store) fn new(root: PathBuf) -> Layout {
        Layout { owner: Owner::of(&root), root, temporary_names: AtomicU64::new(0) }
    }

    pub(in crate::store) fn owner(&self) -> Owner {
        self.owner
    }

    /// A name in `incoming/` that no other thread or process uses. Cleanup removes files with such names after a
    /// kill.
    pub(in crate::store) fn temporary(&self) -> PathBuf {
        let number = self.temporary_names.fetch_add(1, Ordering::Relaxed);
        // In containers all processes may have the same process ID.
        let since_epoch = std::time::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_nanos());
        let name = format!("{TEMPORARY}{}-{since_epoch}-{number}", std::process::id());
        self.incoming().join(name)
    }

    /// Creates a directory and its missing parents. Returns the created directories, outermost first.
    pub(in crate::store) fn create_directories(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let missing = path.ancestors().take_while(|each| !each.exists());
        let mut missing: Vec<PathBuf> = missing.map(Path::to_owned).collect();
        missing.reverse();
        fs::create_dir_all(path)?;
        missing.iter().for_each(|made| self.owner.give_path(made));
        Ok(missing)
    }

    /// Opens a lock file and creates it if it does not exist.
    pub(in crate::store) fn open_lock(&self, path: &Path) -> io::Result<File> {
        let open = || self.owner.open(File::options().create(true).append(true), path);
        match open() {
            // Another user's command created it. Locking needs no write permission.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => open_to_read(path),
            // A process of version 0.1 on this directory created it for a client.
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                self.clear_lock(path);
                open()
            }
            other => other,
        }
    }

    pub(in crate::store) fn root(&self) -> &Path {
        &self.root
    }

    pub(in crate::store) fn index(&self) -> PathBuf {
        self.root.join("index.json")
    }

    /// Exists in offline mode (`larder offline`).
    pub(in crate::store) fn offline_switch(&self) -> PathBuf {
        self.root.join("offline")
    }

    /// Damaged blobs, kept for inspection.
    pub(in crate::store) fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    pub(in crate::store) fn quarantined(&self, digest: &Digest) -> PathBuf {
        self.quarantine().join(digest.dashed())
    }

    pub(in crate::store) fn blobs(&self, algorithm: Algorithm) -> PathBuf {
        self.root.join(BLOBS).join(algorithm.as_str())
    }

    pub(in crate::store) fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join(blob_path(digest))
    }

    /// What is to be uploaded.
    pub(in crate::store) fn outgoing(&self) -> PathBuf {
        self.root.join("outgoing")
    }

    /// Names the bucket for which everything older than the queue has been queued.
    pub(in crate::store) fn outgoing_seeded(&self) -> PathBuf {
        self.outgoing().join("seeded")
    }

    /// Held by the process that uploads.
    pub(in crate::store) fn outgoing_lock(&self) -> PathBuf {
        self.incoming().join("outgoing.lock")
    }

    /// Locks and temporary files. Nothing below it has a name that a client chose.
    pub(in crate::store) fn incoming(&self) -> PathBuf {
        self.root.join("incoming")
    }

    /// Partial downloads, and nothing else: the directories in it have names that clients chose.
    pub(in crate::store) fn all_partials(&self) -> PathBuf {
        self.root.join("partials")
    }

    /// Partials of one upstream. Another upstream may send different bytes for the same digest.
    pub(in crate::store) fn partials(&self, upstream: &Upstream) -> PathBuf {
        self.all_partials().join(upstream.as_str())
    }

    pub(in crate::store) fn partial(&self, upstream: &Upstream, digest: &Digest) -> PathBuf {
        self.partials(upstream).join(digest.dashed())
    }

    /// The note beside a partial, which names its repository.
    pub(in crate::store) fn partial_note(&self, upstream: &Upstream, digest: &Digest) -> PathBuf {
        self.partial(upstream, digest).with_extension("json")
    }

    /// Held shared by the commit of a manifest, exclusively by a sweep of unreferenced blobs.
    pub(in crate::store) fn sweep_lock(&self) -> PathBuf {
        self.incoming().join("sweep.lock")
    }

    /// Commits pass through it; a removal holds it while it waits for the sweep lock.
    /// Held while the record of a tag is replaced that is or was held.
    pub(in crate::store) fn tags_lock(&self) -> PathBuf {
        self.incoming().join("tags.lock")
    }

    pub(in crate::store) fn sweep_gate(&self) -> PathBuf {
        self.incoming().join("sweep-gate.lock")
    }

    /// Held shared by imports and exports.
    pub(in crate::store) fn bundle_lock(&self) -> PathBuf {
        self.incoming().join("bundle.lock")
    }

    /// Held by the process that requests a document. One that nobody holds is a leftover.
    pub(in crate::store) fn fetch_lock(&self, document: &Digest) -> PathBuf {
        self.incoming().join(format!("{FETCH_LOCK}{}", document.hex()))
    }

    /// Held by the process that rewrites `index.json`.
    pub(in crate::store) fn index_lock(&self) -> PathBuf {
        self.incoming().join("index.lock")
    }

    /// Held by the process that prunes.
    pub(in crate::store) fn prune_lock(&self) -> PathBuf {
        self.incoming().join("prune.lock")
    }

    /// Pins from the server's configuration.
    pub(in crate::store) fn configured_pins(&self) -> PathBuf {
        self.root.join("pins-configured")
    }

    /// The images that `sync` keeps present, which are pinned.
    pub(in crate::store) fn synced_pins(&self) -> PathBuf {
        self.root.join("pins-synced")
    }

    /// When each entry of `sync` last ran.
    pub(in crate::store) fn sync_records(&self) -> PathBuf {
        self.root.join("usage").join("sync.json")
    }

    /// The blobs that are proven to be in a repository.
    pub(in crate::store) fn links(&self, name: &ImageName) -> PathBuf {
        let hashed = Digest::of(Algorithm::Sha256, name.to_string().as_bytes());
        self.root.join("links").join(hashed.hex())
    }

    /// The marks of digests that are in private repositories.
    pub(in crate::store) fn private_marks(&self) -> PathBuf {
        self.root.join("private")
    }

    pub(in crate::store) fn private(&self, digest: &Digest) -> PathBuf {
        self.private_marks().join(digest.algorithm().as_str()).join(digest.hex())
    }

    /// Which clients have been allowed to pull what.
    pub(in crate::store) fn grants(&self) -> PathBuf {
        self.root.join("access")
    }

    /// `key`: a keyed hash in hexadecimal.
    pub(in crate::store) fn grant(&self, key: &str) -> PathBuf {
        self.grants().join(key).with_extension("json")
    }

    /// The key of these hashes.
    pub(in crate::store) fn access_secret(&self) -> PathBuf {
        self.grants().join("secret")
    }

    /// The public keys of an issuer. `hash` is that of its URL, in hexadecimal.
    pub(in crate::store) fn issuer_keys(&self, hash: &str) -> PathBuf {
        self.grants().join(format!("{ISSUER_KEYS}{hash}")).with_extension("json")
    }

    /// Its modification time is when processes were last told to forget what they know of logins.
    pub(in crate::store) fn grants_forgotten(&self) -> PathBuf {
        self.grants().join("forgotten")
    }

    /// Held by the process that runs entries of `sync`.
    pub(in crate::store) fn image_sync_lock(&self) -> PathBuf {
        self.incoming().join("image-sync.lock")
    }

    /// Pinned images, which are never evicted: one pattern per line.
    pub(in crate::store) fn pins(&self) -> PathBuf {
        self.root.join("pins")
    }

    /// Results of the usage walk: the totals in `summary.json`, one image per line in `images.jsonl`.
    pub(in crate::store) fn usage_summary(&self) -> PathBuf {
        self.root.join("usage").join("summary.json")
    }

    pub(in crate::store) fn usage_images(&self) -> PathBuf {
        self.root.join("usage").join("images.jsonl")
    }

    /// The images that the server has not completed.
    pub(in crate::store) fn incomplete(&self) -> PathBuf {
        self.root.join("usage").join("incomplete.json")
    }

    /// The traffic of the last week, for the history.
    pub(in crate::store) fn traffic(&self) -> PathBuf {
        self.root.join("usage").join("traffic.json")
    }

    /// Held by the process that walks the images.
    pub(in crate::store) fn usage_lock(&self) -> PathBuf {
        self.incoming().join("usage.lock")
    }

    /// Held by the process that changes the pins.
    pub(in crate::store) fn pins_lock(&self) -> PathBuf {
        self.incoming().join("pins.lock")
    }

    pub(in crate::store) fn refs(&self) -> PathBuf {
        self.root.join(REFS)
    }

    pub(in crate::store) fn repository(&self, name: &ImageName) -> PathBuf {
        self.root.join(repository_path(name))
    }

    pub(in crate::store) fn tags(&self, name: &ImageName) -> PathBuf {
        self.repository(name).join(TAGS)
    }

    pub(in crate::store) fn tag(&self, name: &ImageName, tag: &Tag) -> PathBuf {
        self.root.join(tag_path(name, tag))
    }

    pub(in crate::store) fn manifests(&self, name: &ImageName, algorithm: Algorithm) -> PathBuf {
        self.repository(name).join(MANIFESTS).join(algorithm.as_str())
    }

    pub(in crate::store) fn manifest(&self, name: &ImageName, digest: &Digest) -> PathBuf {
        self.root.join(manifest_path(name, digest))
    }

    /// Where an earlier version stored the lists of a repository.
    pub(in crate::store) fn legacy_lists(&self, name: &ImageName) -> PathBuf {
        self.repository(name).join(LEGACY_LISTS)
    }

    /// Stored lists of all repositories, and nothing else.
    pub(in crate::store) fn lists(&self) -> PathBuf {
        self.root.join("lists")
    }

    /// The prefix of the file names of a repository's lists.
    pub(in crate::store) fn list_prefix(&self, name: &ImageName) -> String {
        let hashed = Digest::of(Algorithm::Sha256, name.to_string().as_bytes());
        format!("{}-", hashed.hex())
    }

    pub(in crate::store) fn list(&self, name: &ImageName, key: &str) -> PathBuf {
        let hashed = Digest::of(Algorithm::Sha256, key.as_bytes());
        self.lists().join(format!("{}{}", self.list_prefix(name), hashed.hex()))
    }

    /// Creates the directories and the two files that mark an OCI layout, and syncs them if `fsync`: content is only as
    /// durable as the path to it. Returns whether the directory is writable; a read-only one is fine if it exists.
    pub(in crate::store) fn prepare(&self, fsync: bool) -> Result<bool, StoreError> {
        if self.root.exists() && !self.root.is_dir() {
            return Err(StoreError::NotADirectory { path: self.root.clone() });
        }
        match self.create_and_probe(fsync) {
            Ok(()) => Ok(true),
            Err((path, source)) if self.root.join("blobs").is_dir() => {
                log::warn!(
                    directory:% = self.root.display(), file:% = path.display(), error:% = source;
                    "the cache directory is read-only: cached content is served, nothing is added"
                );
                Ok(false)
            }
            Err((path, source)) => Err(StoreError::Create { path, source }),
        }
    }

    /// Whether the directory is writable. Logs nothing, since it is called again and again while it is not.
    pub(in crate::store) fn probe(&self, fsync: bool) -> bool {
        let created = self.create_directories(&self.incoming());
        created.is_ok() && self.open_probe().is_ok() && self.create_and_probe(fsync).is_ok()
    }

    fn open_probe(&self) -> io::Result<File> {
        self.owner.open(File::options().create(true).append(true), &self.sweep_lock())
    }

    fn create_and_probe(&self, fsync: bool) -> Result<(), (PathBuf, io::Error)> {
        let blobs = Algorithm::ALL.map(|algorithm| self.blobs(algorithm));
        for directory in
            blobs.into_iter().chain([self.refs(), self.incoming(), self.all_partials()])
        {
            let made = self.create_directories(&directory);
            let synced = made.and_then(|made| {
                let mut parents = made.iter().filter(|_| fsync).filter_map(|made| made.parent());
                parents.try_for_each(sync_directory)
            });
            synced.map_err(|source| (directory, source))?;
        }
        self.clear_locks();
        // This is also the probe: a process that can create these files and the lock can write to the cache.
        for (name, content) in [("oci-layout", OCI_LAYOUT), ("index.json", EMPTY_INDEX)] {
            let path = self.root.join(name);
            self.create_if_missing(&path, content, fsync).map_err(|source| (path, source))?;
        }
        self.open_probe().map(drop).map_err(|source| (self.sweep_lock(), source))
    }

    /// Moves directories away from the paths of the lock files. Version 0.1 kept partial downloads in `incoming/`,
    /// where a client could name its registry `prune.lock` and so block every removal for good.
    fn clear_locks(&self) {
        let locks = [
            self.sweep_lock(),
            self.sweep_gate(),
            self.tags_lock(),
            self.bundle_lock(),
            self.index_lock(),
            self.prune_lock(),
            self.usage_lock(),
            self.pins_lock(),
            self.outgoing_lock(),
            self.image_sync_lock(),
        ];
        locks.iter().for_each(|lock| self.clear_lock(lock));
    }

    fn clear_lock(&self, lock: &Path) {
        if !fs::symlink_metadata(lock).is_ok_and(|is| is.is_dir()) {
            return;
        }
        // Cleanup recognizes the temporary name.
        match move_directory(lock, &self.temporary()) {
            Ok(()) => log::warn!(
                file:% = lock.display();
                "a directory in place of a lock file blocked every removal; it has been moved away"
            ),
            // Another process was faster.
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {}
            Err(error) => log::warn!(
                file:% = lock.display(), error:%;
                "a directory in place of a lock file blocks every removal, and cannot be moved"
            ),
        }
    }

    /// Creates a file with its content unless it exists. An empty file is left over from a kill of an earlier
    /// version and is replaced.
    fn create_if_missing(&self, path: &Path, content: &[u8], fsync: bool) -> io::Result<()> {
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
        if fsync {
            // Otherwise a power failure could leave a part of it, which is never replaced.
            file.sync_data()?;
        }
        let placed = match is_empty {
            true => fs::rename(&temporary, path),
            // Fails if another process was faster; its file may contain more by now. Not all file systems support
            // links.
            false => match fs::hard_link(&temporary, path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    fs::rename(&temporary, path)
                }
                other => other,
            },
        };
        // After a rename it no longer exists.
        let _ = fs::remove_file(&temporary);
        match placed {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Ok(()) if fsync => sync_directory(&self.root),
            other => other,
        }
    }
}

/// Makes the names in a directory durable.
pub(in crate::store) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Renames a directory and nothing else. If another process has replaced it with a file in the meantime, the file
/// stays, since it may be locked or hold content.
pub(in crate::store) fn move_directory(from: &Path, to: &Path) -> io::Result<()> {
    // A path that ends with a slash refers to a directory.
    fs::rename(from.join(""), to)
}

/// The digest with this hex part, if it is valid.
pub(in crate::store) fn digest_of(algorithm: Algorithm, hex: &str) -> Option<Digest> {
    format!("{}:{hex}", algorithm.as_str()).parse().ok()
}
