//! What any store must do: a conformance suite for one directory on disk.

mod digesting_writer;
mod documents;
mod eviction;
mod eviction_scale;
mod images;
mod index;
mod lists;
mod model;
mod owners;
mod partials;
mod pins;
mod planted;
mod sweeping;
mod usage;

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, SystemTime};

use super::*;
use crate::oci::{
    Algorithm, Decision, Descriptor, Digest, HeldManifest, ImageName, MediaType, Reference, Tag,
    Upstream,
};

fn open(root: &Path) -> Store {
    Store::open(&Settings { root: root.to_owned(), fsync: false }).unwrap()
}

fn fresh() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    (directory, store)
}

fn sha256(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

fn begin(store: &Store, digest: &Digest) -> Ingest {
    match store.ingest(&quay(), digest, None).unwrap() {
        Begin::Writing(ingest) => *ingest,
        other => panic!("expected to write, found {other:?}"),
    }
}

fn quay() -> Upstream {
    "quay.io".parse().unwrap()
}

fn recover(ingest: &mut Ingest) {
    let mut buffer = [0; 2];
    while ingest.partial().hash_next(&mut buffer).unwrap() {}
}

fn put(store: &Store, bytes: &[u8]) -> Digest {
    let digest = sha256(bytes);
    store.ingest_bytes(&digest, bytes).unwrap();
    digest
}

fn content(blob: &Blob) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(blob.size).unwrap()];
    blob.file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn name(text: &str) -> ImageName {
    let (upstream, repository) = text.split_once('/').unwrap();
    ImageName::new(upstream.parse().unwrap(), repository.parse().unwrap())
}

fn tag(text: &str) -> Tag {
    text.parse().unwrap()
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn record(digest: Digest, size: u64) -> TagRecord {
    let media_type = MediaType::parse(MediaType::OCI_MANIFEST).unwrap();
    TagRecord::new(digest, media_type, size, at(1_000), at(2_000))
}

fn files_in_incoming(store: &Store) -> usize {
    fs::read_dir(store.inner.layout.incoming()).unwrap().count()
}

#[test]
fn absent_content_is_a_miss_and_not_damage() {
    let (_directory, store) = fresh();
    assert!(store.blob(&sha256(b"x"), None).is_none());
    assert!(store.tag(&name("quay.io/a"), &tag("v1"), Access::Look).is_none());
    assert_eq!(store.damaged_files(), 0);
}

#[test]
fn committed_content_is_read_back_by_every_algorithm() {
    let (_directory, store) = fresh();
    for algorithm in Algorithm::ALL {
        let digest = Digest::of(algorithm, b"layer");
        store.ingest_bytes(&digest, b"layer").unwrap();
        assert_eq!(content(&store.blob(&digest, Some(5)).unwrap()), b"layer");
        assert_eq!(store.read(&digest, 5).unwrap(), b"layer");
    }
}

#[test]
fn a_damaged_blob_is_a_miss_and_can_be_fetched_again() {
    let (_directory, store) = fresh();
    let digest = put(&store, b"content");
    let path = store.inner.layout.blob(&digest);

    fs::write(&path, b"cont").unwrap();
    assert!(store.blob(&digest, Some(7)).is_none(), "short");
    fs::write(&path, b"").unwrap();
    assert!(store.blob(&digest, None).is_none(), "empty");
    fs::write(&path, b"cOntent").unwrap();
    assert!(store.read(&digest, 7).is_none(), "a flipped bit");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(store.blob(&digest, None).is_none(), "a directory");
    assert_eq!(store.damaged_files(), 4);

    fs::remove_dir(&path).unwrap();
    fs::write(&path, b"cont").unwrap();
    store.ingest_bytes(&digest, b"content").unwrap();
    assert_eq!(store.read(&digest, 7).unwrap(), b"content");
}

#[test]
fn the_empty_blob_is_content_like_any_other() {
    let (_directory, store) = fresh();
    let digest = put(&store, b"");
    assert_eq!(store.blob(&digest, None).unwrap().size, 0);
}

#[test]
fn a_blob_removed_while_open_is_read_to_its_end() {
    let (_directory, store) = fresh();
    let digest = put(&store, b"content");
    let blob = store.blob(&digest, None).unwrap();
    fs::remove_file(store.inner.layout.blob(&digest)).unwrap();
    assert_eq!(content(&blob), b"content");
    assert!(store.blob(&digest, None).is_none());
}

#[test]
fn a_decision_during_a_check_is_kept() {
    let (_directory, store) = fresh();
    let name = name("docker.io/alpine");
    let (old, new) = (put(&store, b"old"), put(&store, b"new!"));
    let held = |decision| Some(HeldManifest { digest: new, since: at(2_000), decision });
    let with = |decision| TagRecord { held: held(decision), ..record(old, 3) };
    for (text, decision) in [("1", Decision::Rejected), ("2", Decision::Accepted)] {
        let tag = tag(text);
        store.put_tag(&name, &tag, &with(Decision::Waiting)).unwrap();
        // A check has read the record; the operator decides; the check writes what it has read.
        let read = store.tag(&name, &tag, Access::Look).unwrap();
        let decided = store.decide_tag(&name, &tag, Some(&new), decision).unwrap();
        assert_eq!(decided, held(decision));
        let checked = TagRecord { checked: at(3_000), ..read };
        store.put_tag(&name, &tag, &checked).unwrap();
        let record = store.tag(&name, &tag, Access::Look).unwrap();
        assert_eq!(record.held, held(decision));
        let is_due = record.checked == SystemTime::UNIX_EPOCH;
        assert_eq!(is_due, decision == Decision::Accepted, "the next pull checks the tag");
    }
    assert_eq!(store.decide_tag(&name, &tag("2"), Some(&old), Decision::Accepted).unwrap(), None);
    assert_eq!(store.decide_tag(&name, &tag("3"), None, Decision::Accepted).unwrap(), None);
}

#[test]
fn a_tag_is_replaced_atomically() {
    let (_directory, store) = fresh();
    let name = name("docker.io/alpine");
    let (old, new) = (put(&store, b"old"), put(&store, b"new!"));
    store.put_tag(&name, &tag("3"), &record(old, 3)).unwrap();
    store.put_tag(&name, &tag("3"), &record(new, 4)).unwrap();
    let expected = record(new, 4).after(&record(old, 3));
    assert_eq!(store.tag(&name, &tag("3"), Access::Look), Some(expected));
    assert_eq!(store.tags(&name), [tag("3")]);
}

#[test]
fn a_damaged_record_is_a_miss() {
    let (_directory, store) = fresh();
    let name = name("reg.local:5000/a/b");
    let digest = put(&store, b"x");
    store.put_tag(&name, &tag("v"), &record(digest, 1)).unwrap();
    let path = store.inner.layout.tag(&name, &tag("v"));
    for content in [
        "",
        "{",
        "[]",
        r#"{"digest":"sha256:x","mediaType":"a/b","size":1,"fetched":1,"checked":1}"#,
    ] {
        fs::write(&path, content).unwrap();
        assert!(store.tag(&name, &tag("v"), Access::Look).is_none(), "{content}");
    }
}

#[test]
fn a_repository_has_only_the_manifests_that_were_pulled_from_it() {
    let (_directory, store) = fresh();
    let digest = put(&store, b"manifest");
    let record = ManifestRecord {
        media_type: MediaType::parse(MediaType::OCI_MANIFEST).unwrap(),
        size: 8,
        fetched: at(5),
    };
    let (private, public) = (name("reg.local:5000/secret"), name("quay.io/a"));
    store.put_manifest(&private, &digest, &record).unwrap();
    assert_eq!(store.manifest(&private, &digest, Access::Look), Some(record));
    assert_eq!(store.manifest(&public, &digest, Access::Look), None);
}

#[test]
fn use_is_recorded_coarsely_and_reading_is_not_use() {
    let (_directory, store) = fresh();
    let name = name("quay.io/a");
    let digest = put(&store, b"x");
    store.put_tag(&name, &tag("v"), &record(digest, 1)).unwrap();
    let path = store.inner.layout.tag(&name, &tag("v"));
    let modified = || fs::metadata(&path).unwrap().modified().unwrap();
    let written = modified();
    store.tag(&name, &tag("v"), Access::Pull(written + Duration::from_secs(59)));
    store.tag(&name, &tag("v"), Access::Look);
    assert_eq!(modified(), written);
    let later = written + Duration::from_secs(61);
    store.tag(&name, &tag("v"), Access::Pull(later));
    assert_eq!(modified(), later);
}

#[test]
fn a_read_only_directory_serves_its_content() {
    let (directory, store) = fresh();
    let digest = put(&store, b"content");
    store.put_tag(&name("quay.io/a"), &tag("v"), &record(digest, 7)).unwrap();
    // Tests may run as root, which ignores permissions. A file in the place of a directory stops root as well.
    fs::remove_dir_all(directory.path().join("incoming")).unwrap();
    fs::write(directory.path().join("incoming"), b"in the way").unwrap();
    let store = open(directory.path());
    assert!(!store.is_writable());
    assert_eq!(store.read(&digest, 7).unwrap(), b"content");
    assert!(store.tag(&name("quay.io/a"), &tag("v"), Access::Pull(at(9))).is_some());
    let refused = store.ingest(&quay(), &sha256(b"new"), None);
    assert!(matches!(refused, Err(StoreError::ReadOnly { .. })));
    assert!(store.put_tag(&name("quay.io/a"), &tag("w"), &record(digest, 7)).is_err());
}

#[test]
fn a_root_that_is_a_file_or_below_one_is_an_error_with_advice() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, b"").unwrap();
    for root in [file.clone(), file.join("below")] {
        let error = Store::open(&Settings { root, fsync: true }).unwrap_err().to_string();
        assert!(error.contains("--image-path"), "{error}");
    }
}

#[test]
fn a_missing_root_is_created() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("a/b/c");
    let store = Store::open(&Settings { root: root.clone(), fsync: true }).unwrap();
    let digest = put(&store, b"x");
    store.put_tag(&name("quay.io/a"), &tag("v"), &record(digest, 1)).unwrap();
    store.write_index().unwrap();
    assert!(root.join("index.json").exists());
}

#[test]
fn opening_changes_no_existing_file() {
    let (directory, store) = fresh();
    let digest = put(&store, b"x");
    store.put_tag(&name("quay.io/a"), &tag("v"), &record(digest, 1)).unwrap();
    store.write_index().unwrap();
    let before = fs::read(directory.path().join("index.json")).unwrap();
    open(directory.path());
    assert_eq!(fs::read(directory.path().join("index.json")).unwrap(), before);
}

#[test]
fn a_pipe_in_place_of_a_file_is_damage_and_does_not_block() {
    let (_directory, store) = fresh();
    let digest = put(&store, b"content");
    store.put_tag(&name("quay.io/a"), &tag("v"), &record(digest, 7)).unwrap();
    let layout = &store.inner.layout;
    for path in [layout.blob(&digest), layout.tag(&name("quay.io/a"), &tag("v"))] {
        fs::remove_file(&path).unwrap();
        let made = Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
    }
    assert!(store.blob(&digest, None).is_none());
    assert!(store.tag(&name("quay.io/a"), &tag("v"), Access::Look).is_none());
    // Regular files can replace them.
    assert_eq!(put(&store, b"content"), digest);
    assert_eq!(store.read(&digest, 7).unwrap(), b"content");
}
