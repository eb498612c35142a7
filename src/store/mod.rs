//! The cache directory: verified content, and the names under which clients pulled it.
//!
//! ```text
//! <root>/oci-layout, index.json                     a valid OCI image layout (image-spec, image-layout.md)
//! <root>/blobs/<alg>/<hex>                          immutable, verified: layers, configs, manifests
//! <root>/refs/<upstream>/<repo>/_tags/<tag>         JSON: digest, mediaType, size, fetched, checked
//! <root>/refs/<upstream>/<repo>/_manifests/<alg>/<hex>   JSON: mediaType, size, fetched
//! <root>/lists/<hash of repo>-<hash of query>       the last good tag list or referrers answer
//! <root>/partials/<upstream>/<alg>-<hex>            the partial download of that digest
//! <root>/partials/<upstream>/<alg>-<hex>.json       JSON: the repository of the download
//! <root>/incoming/spool-…                           content that is being imported, and large manifests
//! <root>/incoming/*.lock, tmp-…                     locks, and replacement files before their rename
//! <root>/quarantine/<alg>-<hex>                     damaged blobs
//! <root>/scrubbed, pruned                           mtime: when the job last ran
//! <root>/outgoing/<kind>-<hash of key>                symbolic links: what is to be uploaded to the bucket
//! <root>/outgoing/seeded                            the bucket for which all older content has been queued
//! <root>/offline                                    exists in offline mode (`larder offline`)
//! <root>/pins                                       one pattern per line: images that are never evicted
//! <root>/pins-configured                            the server's configured pins, for commands that do not read
//! its configuration
//! <root>/pins-synced                                the images that `sync` keeps present
//! <root>/usage/summary.json, images.jsonl           results of the last usage walk, for immediate use
//! <root>/usage/incomplete.json                      images that the server has not completed, and why
//! <root>/access/secret, forgotten, <hash>.json      who may pull from registries that decide it (mode 0700)
//! <root>/links/<hash of repo>                       digests of blobs that are proven to be in the repository
//! <root>/access/keys-<hash>.json                    the last public keys of an issuer of tokens
//! <root>/usage/sync.json                            when each entry of `sync` last ran
//! ```
//!
//! This module must not know that upstreams exist, what HTTP is, or how long anything stays fresh.
//!
//! Its folders, each of which uses only those before it: `files`, `locks`, `content`, `names`, `usage`, `gc`.
//!
//! # Invariants
//! * **Content before names.** A file under `blobs/` is complete and verified: a rename gives it its name after
//!   size and digest agree and after `fdatasync`. A tag is written after its manifest.
//! * **Damage is a miss.** A file that is missing, short, unreadable or not JSON counts as absent, with a log line
//!   and a counter. Only failures of the operator's disk are errors.
//! * **No scan at start.** [`Store::open`] does the same small amount of work for an empty cache and for a million
//!   images.
//! * **Processes may share a directory.** Temporary names are unique, files are published by rename, and `flock`
//!   allows one writer per partial. The locks are those of the local kernel; on network file systems they work only
//!   if the file system forwards them.
//!
//! # Crash points
//! * Killed before the rename: a partial stays in `partials/` and no name refers to it. The next ingest of that
//!   digest hashes it again and appends to it.
//! * Killed between a manifest's rename and its tag: an unreferenced blob, which a sweep removes.
//! * Killed while a record is replaced: the complete old record.
//!
//! There is no fourth state.

mod content;
mod error;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod gc;
mod locks;
mod names;
mod usage;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

pub use crate::oci::{ManifestRecord, TagRecord};
pub use content::{
    ALIGNMENT_BYTES, Begin, Blob, Checked, Damage, DigestingWriter, Document, DocumentWriter,
    Ingest, IngestError, Partial, PartialFile, Verified, WatchedPartial, have_same_bytes,
};
pub use error::StoreError;
pub use files::grants::{AccessSecret, GrantRecord, random_secret};
pub use files::observer::StoreEvent;
pub use files::outgoing::{OutgoingContent, OutgoingEntry, OutgoingFile, OutgoingKind};
pub use files::record::Access;
pub use files::write::FUTURE_TOLERANCE;
pub use gc::{
    Eviction, Evictor, GRACE, PinError, PinSettings, Pins, PruneError, Removal, Sweep, Swept,
    read_pins,
};
pub use locks::{
    BundleLock, CommitLock, FetchLock, ImageSyncLock, JobLease, PeriodicJob, SweepLocked,
    UploadLock,
};
pub use names::{
    Catalogue, CatalogueImage, CatalogueRepository, Content, Graph, GraphBlob, GraphManifest,
    ListRecord, RepositoryNames, RepositoryTimes, StoredImage,
};
pub use usage::{
    DiskUsage, ImageUsage, IncompleteImage, RegistryUsage, RepositoryUsage, Space, SyncRecord,
    TrafficRecord, TrafficRow, UsageSummary,
};

use content::documents;
use content::large_documents::LargeDocuments;
use files::directory_sync::DirectorySyncs;
use files::faults::Faults;
use files::layout::Layout;
use files::observer::Observer;
use files::read::read_file;
use names::index::IndexChanges;
use usage::SpaceSeen;

/// How the directory is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The cache directory; created if missing.
    pub root: PathBuf,
    /// Whether content and names are synced to the disk before they count. Only tests and throw-away caches turn it
    /// off.
    pub fsync: bool,
}

/// An open cache directory. Clones share it; every method may be called from any thread.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    layout: Layout,
    fsync: bool,
    /// False while the directory refuses writes. Hits are still served.
    writable: AtomicBool,
    /// Number of files found missing, short, or with the wrong content for their name, since the start.
    damaged_files: AtomicU64,
    /// Number of failed reads of files and directories since the start.
    unreadable_files: AtomicU64,
    faults: Faults,
    observer: Observer,
    /// What `index.json` lacks. Locked for an insertion or to take it.
    index_changes: Mutex<IndexChanges>,
    /// Bytes on the disk at the last count; negative before the first count.
    bytes_counted: AtomicI64,
    /// Bytes that this process has added (positive) or removed (negative) since that count.
    bytes_changed: AtomicI64,
    /// The same since the last look at the free space of the file system.
    bytes_since_look: AtomicI64,
    /// Held during a count: two concurrent counts would subtract the changes twice.
    counting: Mutex<()>,
    /// Budgets for documents that are being sent, by kind.
    budgets: [documents::DocumentBudgets; documents::KINDS],
    large_documents: LargeDocuments,
    directory_syncs: DirectorySyncs,
    /// The space of the file system at the last look.
    space: Mutex<Option<SpaceSeen>>,
}

impl Store {
    /// Opens the directory and creates what is missing. The amount of work does not depend on its content.
    ///
    /// # Errors
    /// [`StoreError`] if the root is a file, or cannot be created. A directory that exists but cannot
    /// be written opens as read-only: see [`Store::is_writable`].
    pub fn open(settings: &Settings) -> Result<Store, StoreError> {
        // The parent of a relative path may be the empty one, which is no directory.
        let root = std::path::absolute(&settings.root).unwrap_or_else(|_| settings.root.clone());
        let layout = Layout::new(root);
        let writable = layout.prepare(settings.fsync)?;
        let inner = Inner {
            layout,
            fsync: settings.fsync,
            writable: AtomicBool::new(writable),
            damaged_files: AtomicU64::new(0),
            unreadable_files: AtomicU64::new(0),
            faults: Faults::default(),
            observer: Observer::default(),
            directory_syncs: DirectorySyncs::default(),
            space: Mutex::default(),
            index_changes: Mutex::new(IndexChanges::at_start(writable)),
            bytes_counted: AtomicI64::new(-1),
            bytes_changed: AtomicI64::new(0),
            bytes_since_look: AtomicI64::new(0),
            counting: Mutex::new(()),
            budgets: Default::default(),
            large_documents: LargeDocuments::default(),
        };
        Ok(Store { inner: Arc::new(inner) })
    }

    /// The cache directory.
    pub fn root(&self) -> &Path {
        self.inner.layout.root()
    }

    /// Whether the directory accepted a write when it was opened, or at the last [`Store::probe`].
    pub fn is_writable(&self) -> bool {
        self.inner.writable.load(Ordering::Acquire)
    }

    /// # Errors
    /// [`StoreError::ReadOnly`] unless [`Store::is_writable`].
    pub(in crate::store) fn require_writable(&self) -> Result<(), StoreError> {
        match self.is_writable() {
            true => Ok(()),
            false => Err(StoreError::ReadOnly { root: self.root().to_owned() }),
        }
    }

    /// Checks again whether a directory that refused writes accepts them: a process may have been started while
    /// descriptors or space were missing, or before a volume became writable.
    pub fn probe(&self) {
        if !self.is_writable() && self.inner.layout.probe(self.inner.fsync) {
            log::info!(
                directory:% = self.root().display(); "the cache directory can be written again"
            );
            self.inner.writable.store(true, Ordering::Release);
            self.note_unknown_changes();
        }
    }

    /// Whether the directory can be read now: a volume may have been unmounted.
    pub fn is_readable(&self) -> bool {
        read_file(&self.root().join("oci-layout")).is_ok()
    }

    /// Free space on the disk for an unprivileged process, in bytes; `None` if the system does not report it.
    pub fn free_bytes(&self) -> Option<u64> {
        self.space().map(|space| space.free_bytes)
    }

    /// Whether offline mode is on (`larder offline`). All processes on this directory follow it.
    pub fn is_offline(&self) -> bool {
        self.inner.layout.offline_switch().exists()
    }

    /// Turns offline mode on or off.
    ///
    /// # Errors
    /// [`StoreError`] if the write fails.
    pub fn set_offline(&self, offline: bool) -> Result<(), StoreError> {
        let path = self.inner.layout.offline_switch();
        let switched = match offline {
            true => {
                let mut options = File::options();
                options.write(true).create(true).truncate(true);
                self.inner.layout.owner().open(&mut options, &path).map(drop)
            }
            false => fs::remove_file(&path),
        };
        match switched {
            Err(error) if offline || error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::write(&path, error))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
