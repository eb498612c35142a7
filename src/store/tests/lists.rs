//! Lists: stored for repositories that have images, bounded, and shared by slow readers.

use super::*;

const TOTAL: u64 = 1 << 30;

fn written(store: &Store, bytes: &[u8]) -> ListBody {
    let mut writer = store.list_writer();
    writer.write(b"of another endpoint");
    writer.restart();
    bytes.chunks(1000).for_each(|chunk| writer.write(chunk));
    writer.finish().expect("the list fits")
}

fn record(store: &Store, bytes: &[u8]) -> ListRecord {
    let (next, filters_applied) = (Some("last=x".to_owned()), Some("artifactType".to_owned()));
    ListRecord { checked: 7, body: written(store, bytes), next, filters_applied }
}

/// Stores an image in a repository.
fn pulled(store: &Store, name: &ImageName) {
    let digest = put(store, b"manifest");
    let media_type = MediaType::parse(MediaType::OCI_MANIFEST).unwrap();
    let is = ManifestRecord { media_type, size: 8, fetched: SystemTime::UNIX_EPOCH };
    store.put_manifest(name, &digest, &is).unwrap();
}

fn stored(store: &Store) -> Vec<PathBuf> {
    let entries = fs::read_dir(store.inner.layout.lists()).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn files_in_incoming(store: &Store) -> usize {
    fs::read_dir(store.inner.layout.incoming()).unwrap().count()
}

#[test]
fn a_list_is_read_back_unchanged_and_damage_is_a_miss() {
    let (_directory, store) = fresh();
    let name = name("quay.io/a");
    pulled(&store, &name);
    for size in [0, 1, 8 * 1024, 8 * 1024 + 1, 40_000, 500_000] {
        let bytes: Vec<u8> = (0..size).map(|number: u32| number.to_le_bytes()[0]).collect();
        let is = record(&store, &bytes);
        assert_eq!(matches!(is.body, ListBody::Memory(_)), size <= 8 * 1024, "{size}");
        assert!(store.put_list(&name, "tags?", &is, TOTAL).unwrap());
        let got = store.list(&name, "tags?").unwrap();
        assert_eq!((got.checked, got.body.read().unwrap()), (7, bytes));
        assert_eq!((got.next, got.filters_applied), (is.next, is.filters_applied));
    }
    let [path] = &stored(&store)[..] else { panic!("one list") };
    let bytes = fs::read(path).unwrap();
    for damaged in [&bytes[..bytes.len() - 1], b"", b"{}\n", b"x"] {
        fs::write(path, damaged).unwrap();
        assert!(store.list(&name, "tags?").is_none());
    }
}

#[test]
fn clients_cannot_fill_the_disk_with_lists() {
    let (_directory, store) = fresh();
    let (here, other, absent) = (name("quay.io/a"), name("quay.io/b"), name("quay.io/a/c"));
    pulled(&store, &here);
    pulled(&store, &other);
    assert!(!store.put_list(&absent, "tags?", &record(&store, b"[]"), TOTAL).unwrap());
    assert!(!store.inner.layout.repository(&absent).exists() && stored(&store).is_empty());
    store.put_list(&other, "tags?", &record(&store, b"[]"), TOTAL).unwrap();
    for number in 0..40 {
        let key = format!("tags?n={number}");
        assert!(store.put_list(&here, &key, &record(&store, b"[]"), TOTAL).unwrap());
        assert!(store.list(&here, &key).is_some());
    }
    assert_eq!(stored(&store).len(), 16 + 1);
    assert!(store.list(&other, "tags?").is_some());
    // The total limit: no other list fits.
    let large = record(&store, &[b'x'; 100_000]);
    assert!(store.put_list(&here, "large", &large, 100_100).unwrap());
    assert_eq!(stored(&store).len(), 1);
    assert!(!store.put_list(&here, "larger", &large, 100_000).unwrap());
    let usage = store.count_disk(&mut || true).unwrap();
    assert!(usage.allocated_bytes > 100_000);
}

#[test]
fn a_large_list_is_an_unlinked_file() {
    let (_directory, store) = fresh();
    let before = files_in_incoming(&store);
    let body = written(&store, &[b'x'; 1_000_000]);
    assert_eq!(files_in_incoming(&store), before);
    assert!(matches!(body, ListBody::File { .. }));
    assert_eq!(body.read().unwrap(), [b'x'; 1_000_000]);
}

#[test]
fn lists_of_slow_readers_are_bounded_and_release_their_budget() {
    let (directory, store) = fresh();
    // No file can be created any more.
    fs::remove_dir_all(directory.path().join("incoming")).unwrap();
    let large = |store: &Store| -> Option<ListBody> {
        let mut writer: ListWriter = store.list_writer();
        (0..2_000).for_each(|_| writer.write(&[b'x'; 1_000]));
        writer.finish()
    };
    let mut readers: Vec<ListBody> = Vec::new();
    while let Some(body) = large(&store) {
        assert_eq!(body.read().unwrap(), vec![b'x'; 2_000_000]);
        readers.push(body);
        assert!(readers.len() <= 8, "16 MiB");
    }
    assert!(readers.len() >= 6, "{}", readers.len());
    assert!(matches!(written(&store, b"small"), ListBody::Memory(_)));
    readers.clear();
    assert!(large(&store).is_some());
}
