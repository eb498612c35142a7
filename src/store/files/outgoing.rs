//! The queue of content that is to be uploaded to the bucket: one small file in `outgoing/` for each blob and record.
//!
//! The path of a file below the cache directory is also its key in the bucket, so an entry needs to name only that. An
//! entry is written before its content gets its name, and noted again afterwards. So content without an entry has been
//! uploaded, or was there before the queue existed (`store/names/seeding.rs`).
//!
//! # Interleavings
//! * *Upload between the entry and the rename*: the content is missing. The entry stays while it is young
//!   ([`YOUNG`]), and the second note revives it if it took longer.
//! * *A record that is replaced during its upload*: the upload claims the entry by renaming it, and removes only its claim.
//!   The second version has an entry of its own, or is found to be another file than the uploaded one.
//! * *Eviction against upload*: an image is not evicted while there is an entry, claimed or not, for a part of it. The
//!   claim is removed when the server has confirmed the upload.
//! * *Two processes*: one uploads at a time ([`Store::lock_uploads`]); both write entries.
//!
//! # Crash points
//! * Killed between the entry and the rename: an entry without content, which is removed when it is old.
//! * Killed between the rename and the second note: the first entry stands, unless it was uploaded in between, with another
//!   file, which is noticed at its end.
//! * Killed during an upload: the claim is found again and treated as an entry.
//! * Killed between the confirmation and the removal of the claim: uploaded again, which the server answers with
//!   "exists".

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::read::{is_same_file, names_in, read_file};
use crate::oci::{Algorithm, Digest, StoredPath};
use crate::store::{Inner, Store, StoreError};

/// How long content may take to appear after its entry.
const YOUNG: Duration = Duration::from_secs(600);
/// The end of the name of a claimed entry.
const CLAIMED: &str = ".claimed";

/// What an entry is for. In the order in which they are uploaded: content before names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OutgoingKind {
    /// A blob, which may be a manifest.
    Blob,
    /// A repository's record of a manifest.
    Manifest,
    /// A tag.
    Tag,
}

impl OutgoingKind {
    const ALL: [OutgoingKind; 3] = [OutgoingKind::Blob, OutgoingKind::Manifest, OutgoingKind::Tag];

    fn word(self) -> &'static str {
        match self {
            OutgoingKind::Blob => "blob",
            OutgoingKind::Manifest => "manifest",
            OutgoingKind::Tag => "tag",
        }
    }
}

/// An entry of the queue. It is a symbolic link whose target is the key: created in one step, and durable as soon as its
/// directory is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OutgoingEntry {
    /// What it is for.
    pub kind: OutgoingKind,
    /// Its file name, without the mark of a claim: the kind, and the hash of the key.
    name: String,
}

/// What an entry asks for.
#[derive(Debug)]
pub enum OutgoingContent {
    /// This file is to be uploaded.
    File(OutgoingFile),
    /// It is not there yet.
    NotYet,
    /// It is no longer there: it was pruned, or uploaded by another process.
    Gone,
}

/// A file that is to be uploaded.
#[derive(Debug)]
pub struct OutgoingFile {
    /// Its path below the cache directory, which is its key.
    pub key: String,
    /// Its size in bytes.
    pub size: u64,
    file: File,
}

impl OutgoingFile {
    /// Reads bytes at an offset; 0 at the end of the file.
    ///
    /// # Errors
    /// The system's error.
    pub fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        self.file.read_at(bytes, at)
    }

    /// The digest of a blob.
    pub fn digest(&self) -> Option<Digest> {
        let (algorithm, hex) = self.key.strip_prefix("blobs/")?.split_once('/')?;
        format!("{algorithm}:{hex}").parse().ok()
    }
}

impl OutgoingEntry {
    fn of(kind: OutgoingKind, key: &str) -> OutgoingEntry {
        let hashed = Digest::of(Algorithm::Sha256, key.as_bytes());
        OutgoingEntry { kind, name: format!("{}-{}", kind.word(), hashed.hex()) }
    }

    fn parse(file_name: &str) -> Option<OutgoingEntry> {
        let name = file_name.strip_suffix(CLAIMED).unwrap_or(file_name);
        let (word, hash) = name.split_once('-')?;
        let kind = OutgoingKind::ALL.into_iter().find(|kind| kind.word() == word)?;
        let is_hash = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hash.then(|| OutgoingEntry { kind, name: name.to_owned() })
    }
}

impl Inner {
    /// Gives the file at a path its name, and queues it, if there is a queue.
    pub(in crate::store) fn queued(
        &self,
        kind: OutgoingKind,
        path: &Path,
        publish: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.note_outgoing(kind, path)?;
        publish()?;
        // Unless the first one was uploaded, this changes nothing.
        self.note_outgoing_for_now(kind, path).map(|_| ())
    }

    /// Writes an entry for the file at a path, if there is a queue. It is durable then, whoever has written it.
    pub(in crate::store) fn note_outgoing(
        &self,
        kind: OutgoingKind,
        path: &Path,
    ) -> Result<(), StoreError> {
        match self.note_outgoing_for_now(kind, path)? {
            true => self.sync_outgoing(),
            false => Ok(()),
        }
    }

    /// As [`Inner::note_outgoing`], until [`Inner::sync_outgoing`]. Returns whether there is a queue.
    pub(in crate::store) fn note_outgoing_for_now(
        &self,
        kind: OutgoingKind,
        path: &Path,
    ) -> Result<bool, StoreError> {
        let Some(key) = self.key(path) else { return Ok(false) };
        let entry = self.entry(&OutgoingEntry::of(kind, &key));
        match symlink(&key, &entry) {
            // It may not be durable yet.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(true),
            // The queue was removed: there is no bucket any more.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(StoreError::write(&entry, error)),
            Ok(()) => Ok(true),
        }
    }

    /// Makes all entries durable.
    pub(in crate::store) fn sync_outgoing(&self) -> Result<(), StoreError> {
        let queue = self.layout.outgoing();
        self.sync_directory(&queue).map_err(|error| StoreError::write(&queue, error))
    }

    /// Whether the file at a path waits for its upload or is being uploaded.
    pub(in crate::store) fn is_outgoing(&self, kind: OutgoingKind, path: &Path) -> bool {
        let Some(key) = self.key(path) else { return false };
        let entry = OutgoingEntry::of(kind, &key);
        let is_there = |path: PathBuf| fs::symlink_metadata(path).is_ok();
        // In this order: an entry becomes a claim by a rename, and a claim never becomes an entry.
        is_there(self.entry(&entry)) || is_there(self.claim(&entry))
    }

    /// Whether there is a queue. A server with a bucket creates it, at any time, and all processes on the directory use it.
    pub(in crate::store) fn has_outgoing(&self) -> bool {
        self.layout.outgoing().exists()
    }

    /// The key of a file, if there is a queue.
    fn key(&self, path: &Path) -> Option<String> {
        let below = path.strip_prefix(self.layout.root()).ok().filter(|_| self.has_outgoing())?;
        below.to_str().map(str::to_owned)
    }

    fn entry(&self, entry: &OutgoingEntry) -> PathBuf {
        self.layout.outgoing().join(&entry.name)
    }

    fn claim(&self, entry: &OutgoingEntry) -> PathBuf {
        self.layout.outgoing().join(format!("{}{CLAIMED}", entry.name))
    }
}

impl Store {
    /// Creates the queue, for a server that uploads to this bucket, or removes it. Then what was queued prevents no eviction any
    /// more, and everything is queued again when there is a bucket again.
    pub fn set_outgoing(&self, bucket: Option<&str>) {
        let layout = &self.inner.layout;
        if !bucket.is_some_and(|bucket| self.is_seeded_for(bucket)) {
            // Durable before anything else is removed: otherwise what is not queued would count as uploaded.
            let _ = fs::remove_file(layout.outgoing_seeded());
            let _ = self.inner.sync_outgoing();
        }
        match bucket {
            Some(_) => drop(self.inner.create_directories(&layout.outgoing())),
            None => drop(fs::remove_dir_all(layout.outgoing())),
        }
    }

    /// Whether everything that is older than the queue has been queued for this bucket. Until then, nothing is evicted.
    pub fn is_seeded_for(&self, bucket: &str) -> bool {
        read_file(&self.inner.layout.outgoing_seeded()).is_ok_and(|text| text == bucket.as_bytes())
    }

    /// Up to `at_most` entries in the order in which they should be uploaded, and how many there are.
    pub fn outgoing(&self, at_most: usize) -> (Vec<OutgoingEntry>, usize) {
        let names = names_in(&self.inner.layout.outgoing());
        let mut entries: Vec<OutgoingEntry> =
            names.filter_map(|name| OutgoingEntry::parse(&name)).collect();
        entries.sort_by(|one, other| (one.kind, &one.name).cmp(&(other.kind, &other.name)));
        entries.dedup();
        let count = entries.len();
        entries.truncate(at_most);
        (entries, count)
    }

    /// Claims an entry and opens its file.
    ///
    /// # Errors
    /// [`StoreError`] if the directory cannot be read or written.
    pub fn claim_outgoing(
        &self,
        entry: &OutgoingEntry,
        now: SystemTime,
    ) -> Result<OutgoingContent, StoreError> {
        let (path, claim) = (self.inner.entry(entry), self.inner.claim(entry));
        match fs::rename(&path, &claim) {
            // A claim without an entry is that of a process that was killed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(StoreError::write(&claim, error)),
            Ok(()) => {}
        }
        let Ok(key) = fs::read_link(&claim) else { return Ok(OutgoingContent::Gone) };
        let key = key.to_str().map(str::to_owned).unwrap_or_default();
        let kind = StoredPath::parse(&key).map(|path| match path {
            StoredPath::Blob(_) => OutgoingKind::Blob,
            StoredPath::Manifest(..) => OutgoingKind::Manifest,
            StoredPath::Tag(..) => OutgoingKind::Tag,
        });
        if kind != Some(entry.kind) || OutgoingEntry::of(entry.kind, &key) != *entry {
            log::warn!(
                file:% = claim.display();
                "a file in the queue of uploads was not written by Larder and is removed"
            );
            let _ = fs::remove_file(&claim);
            return Ok(OutgoingContent::Gone);
        }
        if let Some((file, size)) = self.open_file(&self.inner.layout.root().join(&key))? {
            return Ok(OutgoingContent::File(OutgoingFile { key, size, file }));
        }
        let written = fs::symlink_metadata(&claim).and_then(|is| is.modified()).unwrap_or(now);
        if now.duration_since(written).is_ok_and(|age| age > YOUNG) {
            let _ = fs::remove_file(&claim);
            return Ok(OutgoingContent::Gone);
        }
        Ok(OutgoingContent::NotYet)
    }

    /// Removes a claimed entry: this file is in the bucket. If another one has taken its place meanwhile, it is queued, whether
    /// the process that wrote it still lives or not.
    pub fn finish_outgoing(&self, entry: &OutgoingEntry, file: &OutgoingFile) {
        let path = self.inner.layout.root().join(&file.key);
        if !is_same_file(&path, &file.file)
            && path.exists()
            && let Err(error) = self.inner.note_outgoing(entry.kind, &path)
        {
            log::warn!(error:%; "cannot queue a file that was replaced; it is uploaded again");
            return;
        }
        // One that cannot be removed is uploaded again, which costs a request.
        let _ = fs::remove_file(self.inner.claim(entry));
    }

    /// Removes a claimed entry whose file must not be uploaded: it is damaged.
    pub fn drop_outgoing(&self, entry: &OutgoingEntry) {
        let _ = fs::remove_file(self.inner.claim(entry));
    }

    /// Queues a file again, by its path: the bucket does not have it any more.
    ///
    /// # Errors
    /// [`StoreError`] if a write fails.
    pub fn queue_again(&self, kind: OutgoingKind, path: &str) -> Result<(), StoreError> {
        self.inner.note_outgoing(kind, &self.inner.layout.root().join(path))
    }

    /// The file at a path, for an upload without the queue. `None` if it is not here.
    ///
    /// # Errors
    /// [`StoreError::Read`] if it cannot be read.
    pub fn outgoing_file(&self, path: &str) -> Result<Option<OutgoingFile>, StoreError> {
        let opened = self.open_file(&self.inner.layout.root().join(path))?;
        Ok(opened.map(|(file, size)| OutgoingFile { key: path.to_owned(), size, file }))
    }

    /// Whether the file at a path is here.
    pub fn has_file(&self, path: &str) -> bool {
        self.inner.layout.root().join(path).is_file()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Settings;

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_owned();
        let store = Store::open(&Settings { root, fsync: true }).unwrap();
        store.set_outgoing(Some("bucket"));
        (directory, store)
    }

    fn claim(store: &Store, entry: &OutgoingEntry) -> OutgoingFile {
        match store.claim_outgoing(entry, SystemTime::now()).unwrap() {
            OutgoingContent::File(file) => file,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn content_is_queued_before_it_has_a_name_and_stays_until_it_is_uploaded() {
        let (_directory, store) = store();
        let digest = Digest::of(Algorithm::Sha256, b"content");
        let path = store.inner.layout.blob(&digest);
        store.inner.note_outgoing(OutgoingKind::Blob, &path).unwrap();
        let (entries, count) = store.outgoing(10);
        assert_eq!((entries.len(), count), (1, 1));
        let claimed = store.claim_outgoing(&entries[0], SystemTime::now()).unwrap();
        assert!(matches!(claimed, OutgoingContent::NotYet), "it is not there yet: {claimed:?}");
        assert_eq!(store.outgoing(10).1, 1, "a claim is an entry after a restart");
        store.ingest_bytes(&digest, b"content").unwrap();
        assert!(store.inner.is_outgoing(OutgoingKind::Blob, &path));
        let file = claim(&store, &entries[0]);
        assert_eq!(file.key, format!("blobs/sha256/{}", digest.hex()));
        store.finish_outgoing(&entries[0], &file);
        assert!(!store.inner.is_outgoing(OutgoingKind::Blob, &path));
        assert_eq!(store.outgoing(10), (vec![], 0));
    }

    #[test]
    fn record_that_changes_during_its_upload_is_uploaded_again() {
        let (_directory, store) = store();
        let path = store.inner.layout.root().join("refs/a.io/b/_tags/v1");
        let write = |text: &str| {
            store.inner.note_outgoing(OutgoingKind::Tag, &path).unwrap();
            store.inner.replace(&path, text.as_bytes()).unwrap();
        };
        write("one");
        let (entries, _) = store.outgoing(10);
        let first = claim(&store, &entries[0]);
        assert_eq!(first.key, "refs/a.io/b/_tags/v1");
        write("two");
        store.finish_outgoing(&entries[0], &first);
        assert_eq!(store.outgoing(10), (entries.clone(), 1));
        let second = claim(&store, &entries[0]);
        store.finish_outgoing(&entries[0], &second);
        assert_eq!(store.outgoing(10).1, 0);
    }

    #[test]
    fn record_whose_writer_is_killed_after_the_rename_is_uploaded() {
        let (_directory, store) = store();
        let path = store.inner.layout.root().join("refs/a.io/b/_tags/v1");
        store.inner.note_outgoing(OutgoingKind::Tag, &path).unwrap();
        store.inner.replace(&path, b"one").unwrap();
        // The second version relies on the entry of the first one, which is claimed before the rename.
        store.inner.note_outgoing(OutgoingKind::Tag, &path).unwrap();
        let (entries, _) = store.outgoing(10);
        let first = claim(&store, &entries[0]);
        store.inner.replace(&path, b"two").unwrap();
        store.finish_outgoing(&entries[0], &first);
        assert_eq!(store.outgoing(10), (entries, 1));
    }

    #[test]
    fn queue_that_is_created_later_is_used_by_all_processes() {
        let directory = tempfile::tempdir().unwrap();
        let open = || {
            let root = directory.path().to_owned();
            Store::open(&Settings { root, fsync: false }).unwrap()
        };
        let (older, server) = (open(), open());
        server.set_outgoing(Some("bucket"));
        let digest = Digest::of(Algorithm::Sha256, b"content");
        older.ingest_bytes(&digest, b"content").unwrap();
        assert_eq!(server.outgoing(10).1, 1);
    }

    #[test]
    fn links_that_larder_has_not_written_are_removed() {
        let (directory, store) = store();
        fs::write(directory.path().join("secret"), "secret").unwrap();
        for key in ["secret", "../secret", "/etc/passwd", "blobs/../secret", "refs/../secret"] {
            for kind in OutgoingKind::ALL {
                let entry = OutgoingEntry::of(kind, key);
                symlink(key, store.inner.entry(&entry)).unwrap();
                let claimed = store.claim_outgoing(&entry, SystemTime::now()).unwrap();
                assert!(matches!(claimed, OutgoingContent::Gone), "{key}: {claimed:?}");
            }
        }
        assert_eq!(store.outgoing(10).1, 0);
    }

    #[test]
    fn entry_without_content_is_removed_when_it_is_old() {
        let (_directory, store) = store();
        let digest = Digest::of(Algorithm::Sha256, b"pruned");
        let path = format!("blobs/sha256/{}", digest.hex());
        store.queue_again(OutgoingKind::Blob, &path).unwrap();
        let (entries, _) = store.outgoing(10);
        let later = SystemTime::now() + 2 * YOUNG;
        let claimed = store.claim_outgoing(&entries[0], later).unwrap();
        assert!(matches!(claimed, OutgoingContent::Gone));
        assert_eq!(store.outgoing(10).1, 0);
    }

    #[test]
    fn without_a_queue_nothing_is_written() {
        let (_directory, store) = store();
        store.set_outgoing(None);
        let digest = Digest::of(Algorithm::Sha256, b"content");
        store.ingest_bytes(&digest, b"content").unwrap();
        assert_eq!(store.outgoing(10).1, 0);
        assert!(!store.inner.layout.outgoing().exists());
    }
}
