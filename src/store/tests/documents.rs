//! Documents: large ones are files, are verified when they are read, and become blobs.

use super::*;
use crate::oci::MANIFEST_BYTES_MAX;
use crate::store::IngestError;

/// Larger than what stays in memory.
const LARGE: usize = 300_000;

fn manifest_of(store: &Store, bytes: &[u8]) -> Document {
    let mut writer = store.manifest_writer();
    bytes.chunks(1000).for_each(|chunk| writer.write(chunk));
    writer.finish().expect("the manifest fits")
}

#[test]
fn small_manifests_stay_in_memory_and_large_ones_are_unlinked_files() {
    let (_directory, store) = fresh();
    let before = files_in_incoming(&store);
    for (length, is_in_memory) in [(0, true), (100_000, true), (LARGE, false)] {
        let bytes = vec![b'x'; length];
        let document = manifest_of(&store, &bytes);
        assert_eq!(matches!(document, Document::Memory(_)), is_in_memory, "{length}");
        assert_eq!(document.read().unwrap(), bytes);
    }
    assert_eq!(files_in_incoming(&store), before);
}

#[test]
fn a_document_can_be_parsed_before_it_is_finished() {
    let (_directory, store) = fresh();
    for length in [10, LARGE] {
        let mut writer = store.manifest_writer();
        writer.write(b"of another endpoint");
        writer.restart();
        vec![b'x'; length].chunks(7_000).for_each(|chunk| writer.write(chunk));
        let is_complete = move |bytes: &[u8]| bytes == vec![b'x'; length];
        assert_eq!(writer.with_bytes(is_complete), Some(true), "{length}");
        assert_eq!(writer.finish().unwrap().length(), length as u64);
    }
}

#[test]
fn a_document_becomes_a_blob_if_its_digest_is_the_expected_one() {
    let (_directory, store) = fresh();
    let before = files_in_incoming(&store);
    for length in [10, LARGE] {
        let bytes = vec![b'y'; length];
        let digest = Digest::of(Algorithm::Sha512, &bytes);
        let document = manifest_of(&store, &bytes);
        let other = Digest::of(Algorithm::Sha512, b"other");
        let refused = store.ingest_document(&other, &document);
        assert!(matches!(refused, Err(IngestError::WrongDigest { .. })), "{length}");
        // A second time, nothing is left to do.
        for _ in 0..2 {
            store.ingest_document(&digest, &document).unwrap();
            assert_eq!(store.read(&digest, length as u64), Some(bytes.clone()));
        }
        assert!(store.blob(&other, None).is_none() && files_in_incoming(&store) == before);
    }
}

#[test]
fn a_damaged_document_is_never_parsed() {
    let (_directory, store) = fresh();
    for length in [10, LARGE] {
        let digest = put(&store, &vec![b'z'; length]);
        let size = length as u64;
        assert_eq!(store.with_document(&digest, size, <[u8]>::len).unwrap(), Some(length));
        fs::write(store.inner.layout.blob(&digest), vec![b'!'; length]).unwrap();
        assert_eq!(store.with_document(&digest, size, <[u8]>::len).unwrap(), None);
        // The buffer of large documents is usable afterwards.
        let sound = put(&store, &vec![b'w'; length]);
        assert_eq!(store.with_document(&sound, size, <[u8]>::len).unwrap(), Some(length));
    }
}

#[test]
fn readers_of_large_lists_take_no_space_of_manifests() {
    let (directory, store) = fresh();
    // No file can be created any more.
    fs::remove_dir_all(directory.path().join("incoming")).unwrap();
    let mut lists = Vec::new();
    loop {
        let mut list = store.list_writer();
        (0..20).for_each(|_| list.write(&[b'x'; 100_000]));
        match list.finish() {
            Some(list) => lists.push(list),
            None => break,
        }
    }
    assert!(!lists.is_empty());
    assert_eq!(manifest_of(&store, &[b'x'; LARGE]).length(), LARGE as u64);
}

#[test]
fn content_that_is_too_large_for_a_document_is_not_read() {
    let (_directory, store) = fresh();
    let digest = put(&store, &vec![b'z'; MANIFEST_BYTES_MAX + 1]);
    let size = MANIFEST_BYTES_MAX as u64 + 1;
    assert_eq!(store.with_document(&digest, size, <[u8]>::len).unwrap(), None);
}

#[test]
fn a_panic_while_a_large_document_is_parsed_affects_only_that_document() {
    let (_directory, store) = fresh();
    let digest = put(&store, &vec![b'z'; LARGE]);
    let size = LARGE as u64;
    for _ in 0..2 {
        let failed = store.with_document(&digest, size, |_| -> usize { panic!("on purpose") });
        assert!(matches!(failed, Err(StoreError::Read { .. })), "{failed:?}");
        assert_eq!(store.with_document(&digest, size, <[u8]>::len).unwrap(), Some(LARGE));
    }
}

#[test]
fn documents_beyond_the_space_for_files_are_refused_and_do_not_fill_the_memory() {
    let (_directory, store) = fresh();
    let large = || {
        let mut writer = store.list_writer();
        (0..400).for_each(|_| writer.write(&[b'x'; 100_000]));
        writer.finish()
    };
    let mut readers = Vec::new();
    while let Some(document) = large() {
        assert!(matches!(document, Document::File { .. }));
        readers.push(document);
        assert!(readers.len() <= 6, "256 MiB");
    }
    assert!(readers.len() == 6, "{}", readers.len());
    // A refused document whose rest is still arriving takes no space of one that fits.
    let mut refused = store.list_writer();
    (0..400).for_each(|_| refused.write(&[b'x'; 100_000]));
    assert!(refused.with_bytes(<[u8]>::len).is_none());
    let mut fitting = store.list_writer();
    (0..100).for_each(|_| fitting.write(&[b'x'; 100_000]));
    assert_eq!(fitting.with_bytes(<[u8]>::len), Some(10_000_000));
    drop((refused, fitting));
    readers.clear();
    assert!(large().is_some());
}
