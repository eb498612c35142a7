//! Interleavings of commits, downloads and removals of two processes (`make interleavings`).
//!
//! | Interleaving | Explored |
//! | --- | --- |
//! | two processes download the same blob: one writes, no byte is wrong | some |
//! | one of them gives up halfway, the other one continues | some |
//! | one of them discards wrong bytes while the other one begins | some |
//! | a process removes the directory of its last partial while another one begins | some |
//! | a manifest is committed while a sweep scans and removes: what the commit saw afterwards stays | some |
//! | a manifest gets a tag while an eviction removes its only other tag | some |
//!
//! Files are real. Threads switch before each operation on files that others can observe, and at locks. `flock` is
//! simulated for all threads of this process.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::oci::{Algorithm, Digest, ImageName, MediaType, Upstream};
use crate::store::{
    Access, Begin, Eviction, Evictor, ManifestRecord, PinSettings, Settings, Store, TagRecord,
};
use crate::sync::interleavings::few;
use crate::sync::{may_switch, thread};

// ---- flock ----

/// The holders of a lock.
#[derive(Default)]
struct Held {
    is_exclusive: bool,
    shared: usize,
}

/// The locks that are held, by inode. No thread switches while this is locked.
static HELD: std::sync::Mutex<BTreeMap<(u64, u64), Held>> = std::sync::Mutex::new(BTreeMap::new());

fn with_lock<T>(file: &File, change: impl FnOnce(&mut Held) -> T) -> io::Result<T> {
    let metadata = file.metadata()?;
    let key = (metadata.dev(), metadata.ino());
    let mut all = HELD.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let held = all.entry(key).or_default();
    let result = change(held);
    if !held.is_exclusive && held.shared == 0 {
        all.remove(&key);
    }
    Ok(result)
}

pub(super) fn try_lock(file: &File) -> Result<(), TryLockError> {
    may_switch();
    let taken = with_lock(file, |held| {
        let is_free = !held.is_exclusive && held.shared == 0;
        held.is_exclusive |= is_free;
        is_free
    });
    taken.map_err(TryLockError::Error)?.then_some(()).ok_or(TryLockError::WouldBlock)
}

pub(super) fn try_lock_shared(file: &File) -> Result<(), TryLockError> {
    may_switch();
    let taken = with_lock(file, |held| {
        held.shared += usize::from(!held.is_exclusive);
        !held.is_exclusive
    });
    taken.map_err(TryLockError::Error)?.then_some(()).ok_or(TryLockError::WouldBlock)
}

pub(super) fn lock(file: &File) -> io::Result<()> {
    wait(|| try_lock(file))
}

pub(super) fn lock_shared(file: &File) -> io::Result<()> {
    wait(|| try_lock_shared(file))
}

fn wait(take: impl Fn() -> Result<(), TryLockError>) -> io::Result<()> {
    loop {
        match take() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => thread::yield_now(),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

pub(super) fn unlock(file: &File) -> io::Result<()> {
    may_switch();
    with_lock(file, |held| match held.is_exclusive {
        true => held.is_exclusive = false,
        false => held.shared = held.shared.saturating_sub(1),
    })
}

// ---- Tests ----

/// A directory and two processes.
struct Site {
    directory: tempfile::TempDir,
    one: Store,
    two: Store,
}

impl Site {
    fn new() -> Site {
        let directory = tempfile::tempdir().unwrap();
        let open = || {
            let root = directory.path().to_owned();
            Store::open(&Settings { root, fsync: false }).unwrap()
        };
        let (one, two) = (open(), open());
        Site { directory, one, two }
    }

    /// Makes everything two hours older.
    fn grow_old(&self) {
        grow_old(self.directory.path(), SystemTime::now() - Duration::from_secs(7_200));
    }

    fn put(&self, bytes: &[u8]) -> Digest {
        let digest = sha256(bytes);
        self.one.ingest_bytes(&digest, bytes).unwrap();
        digest
    }
}

fn grow_old(path: &Path, then: SystemTime) {
    if path.is_dir() {
        let entries = std::fs::read_dir(path).unwrap();
        entries.for_each(|entry| grow_old(&entry.unwrap().path(), then));
    }
    File::open(path).unwrap().set_modified(then).unwrap();
}

fn sha256(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

fn quay() -> Upstream {
    "quay.io".parse().unwrap()
}

fn name() -> ImageName {
    ImageName::new(quay(), "a".parse().unwrap())
}

const HELLO: &[u8] = b"hello world";

/// Downloads a blob, or its first bytes.
fn download(store: &Store, until: usize) {
    match store.ingest(&quay(), &sha256(HELLO), Some(HELLO.len() as u64)).unwrap() {
        Begin::Writing(mut ingest) => {
            while ingest.partial().hash_next(&mut [0; 4]).unwrap() {}
            let from = usize::try_from(ingest.bytes_written()).unwrap();
            for byte in HELLO.get(from..until).unwrap_or_default() {
                ingest.write(&[*byte]).unwrap();
                may_switch();
            }
            if until == HELLO.len() {
                ingest.verify(Some(HELLO.len() as u64)).unwrap().commit().unwrap();
                store.remove_empty_partials(&quay());
            }
        }
        Begin::Present(_) | Begin::Locked => {}
        Begin::Absent => panic!("an ingest creates its partial"),
    }
}

fn downloads(first_until: usize) {
    let site = Site::new();
    let one = site.one.clone();
    let first = thread::spawn(move || download(&one, first_until));
    download(&site.two, HELLO.len());
    first.join().unwrap();
    if first_until < HELLO.len() {
        // The second one may have found the partial locked.
        download(&site.two, HELLO.len());
    }
    assert_eq!(site.one.read(&sha256(HELLO), HELLO.len() as u64).as_deref(), Some(HELLO));
    assert!(site.one.partial_files().is_empty(), "a partial stays");
}

#[test]
fn two_processes_that_download_a_blob_store_it_once() {
    few(|| downloads(HELLO.len()));
}

#[test]
fn a_download_that_is_given_up_is_continued() {
    few(|| downloads(5));
}

#[test]
fn a_partial_that_is_discarded_is_not_continued() {
    few(|| {
        let site = Site::new();
        let one = site.one.clone();
        let discards = thread::spawn(move || {
            let begun = one.ingest(&quay(), &sha256(HELLO), Some(HELLO.len() as u64)).unwrap();
            if let Begin::Writing(mut ingest) = begun {
                while ingest.partial().hash_next(&mut [0; 4]).unwrap() {}
                ingest.write(b"wrong").unwrap();
                may_switch();
                assert!(ingest.verify(Some(HELLO.len() as u64)).is_err());
            }
        });
        download(&site.two, HELLO.len());
        discards.join().unwrap();
        download(&site.two, HELLO.len());
        assert_eq!(site.one.read(&sha256(HELLO), HELLO.len() as u64).as_deref(), Some(HELLO));
    });
}

#[test]
fn the_directory_of_partials_may_go_while_another_download_begins() {
    few(|| {
        let site = Site::new();
        let one = site.one.clone();
        let discards = thread::spawn(move || {
            for _ in 0..2 {
                if let Begin::Writing(ingest) = one.ingest(&quay(), &sha256(b"x"), None).unwrap() {
                    ingest.discard();
                }
                one.remove_empty_partials(&quay());
            }
        });
        download(&site.two, HELLO.len());
        discards.join().unwrap();
        assert!(site.two.blob(&sha256(HELLO), None).is_some());
    });
}

fn manifest(layer: &Digest, size: usize) -> Vec<u8> {
    let layer = serde_json::json!({ "digest": layer.to_string(), "size": size });
    serde_json::json!({ "schemaVersion": 2, "config": layer, "layers": [layer] }).to_string().into()
}

fn record(size: usize) -> ManifestRecord {
    let media_type = MediaType::parse(MediaType::OCI_MANIFEST).unwrap();
    ManifestRecord { media_type, size: size as u64, fetched: SystemTime::UNIX_EPOCH }
}

fn tag_of(digest: Digest, size: usize) -> TagRecord {
    let ManifestRecord { media_type, size, fetched } = record(size);
    TagRecord::new(digest, media_type, size, fetched, fetched)
}

#[test]
fn what_a_commit_names_survives_a_sweep() {
    few(|| {
        let site = Site::new();
        let layer = site.put(b"old layer");
        let document = manifest(&layer, 9);
        let digest = site.put(&document);
        site.grow_old();
        let (one, two) = (site.one.clone(), site.two.clone());
        let commits = thread::spawn(move || {
            one.put_manifest(&name(), &digest, &record(document.len())).unwrap();
            // A pull now looks for the content, and fetches what is missing.
            [digest, layer].map(|each| one.blob(&each, None).is_some())
        });
        let sweeps = thread::spawn(move || {
            let Ok(sweep) = two.begin_sweep().unwrap() else { return };
            let seen = two.catalogue(&mut || true).unwrap().unwrap();
            let is_named = |digest: &Digest| seen.number_of(digest).is_some();
            // Without a grace period, only the lock and the times keep what is being committed.
            sweep.sweep(Duration::ZERO, &is_named, &mut || true).unwrap();
        });
        let saw = commits.join().unwrap();
        sweeps.join().unwrap();
        let left = [digest, layer].map(|each| site.one.blob(&each, None).is_some());
        assert!(saw[0] <= left[0] && saw[1] <= left[1], "saw {saw:?}, and left is {left:?}");
    });
}

#[test]
fn a_manifest_that_gets_a_tag_survives_the_eviction_of_its_other_tag() {
    few(|| {
        let site = Site::new();
        let layer = site.put(b"old layer");
        let document = manifest(&layer, 9);
        let digest = site.put(&document);
        let tag = tag_of(digest, document.len());
        site.one.put_tag(&name(), &"old".parse().unwrap(), &tag).unwrap();
        site.grow_old();
        let (one, two) = (site.one.clone(), site.two.clone());
        let tags = thread::spawn(move || {
            let new = "new".parse().unwrap();
            one.put_tag(&name(), &new, &tag).unwrap();
            [
                one.tag(&name(), &new, Access::Look).is_some(),
                one.manifest(&name(), &digest, Access::Look).is_some(),
                one.blob(&digest, None).is_some(),
                one.blob(&layer, None).is_some(),
            ]
        });
        let evicts = thread::spawn(move || {
            let (mut evictor, mut eviction) = (Evictor::default(), Eviction::default());
            let clock = &SystemTime::now;
            let pins = PinSettings::default();
            // Fails if the tag takes unusually long.
            let _ = evictor.evict(&two, &pins, clock, &|| false, &mut || true, &mut eviction);
        });
        let saw = tags.join().unwrap();
        evicts.join().unwrap();
        let left = [
            site.one.tag(&name(), &"new".parse().unwrap(), Access::Look).is_some(),
            site.one.manifest(&name(), &digest, Access::Look).is_some(),
            site.one.blob(&digest, None).is_some(),
            site.one.blob(&layer, None).is_some(),
        ];
        let is_kept = saw.iter().zip(left).all(|(saw, left)| *saw <= left);
        assert!(is_kept, "saw {saw:?}, and left is {left:?}");
    });
}
