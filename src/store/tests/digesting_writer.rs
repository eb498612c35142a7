//! Content whose digest is only known at its end.

use super::*;

fn writer(store: &Store, bytes: &[u8]) -> DigestingWriter {
    let mut writer = store.digesting_writer(Algorithm::Sha256).unwrap();
    for chunk in bytes.chunks(3) {
        writer.write(chunk).unwrap();
    }
    writer
}

fn imports(store: &Store) -> usize {
    let incoming = fs::read_dir(store.inner.layout.incoming()).unwrap();
    let names = incoming.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("spool-")).count()
}

#[test]
fn a_blob_that_is_imported_again_uses_space_once() {
    let (_directory, store) = fresh();
    let content = vec![b'x'; 1_000_000];
    put(&store, &content);
    let before = store.count_disk(&mut || true).unwrap().allocated_bytes;
    let mut writer = store.digesting_writer(Algorithm::Sha256).unwrap();
    writer.write(&content).unwrap();
    writer.commit(None).unwrap();
    let followed = store.disk_bytes().unwrap();
    assert!(followed.abs_diff(before) <= 4 * 4096, "{before} before, {followed} now");
}

#[test]
fn imported_content_gets_the_name_of_its_digest() {
    let (_directory, store) = fresh();
    let digest = sha256(b"some layer");
    assert_eq!(writer(&store, b"some layer").commit(None).unwrap(), (digest, 10));
    assert_eq!(content(&store.blob(&digest, Some(10)).unwrap()), b"some layer");
    assert_eq!(imports(&store), 0);
}

#[test]
fn imported_content_with_an_unexpected_digest_leaves_nothing() {
    let (_directory, store) = fresh();
    let expected = sha256(b"this");
    let refused = writer(&store, b"that").commit(Some(&expected));
    assert!(matches!(refused, Err(IngestError::WrongDigest { .. })), "{refused:?}");
    assert!(store.blob(&expected, None).is_none() && store.blob(&sha256(b"that"), None).is_none());
    assert_eq!(imports(&store), 0);
}

#[test]
fn imported_content_replaces_a_damaged_blob() {
    let (_directory, store) = fresh();
    let digest = put(&store, b"content");
    let path = store.inner.layout.blob(&digest);
    for damage in [&b"cont"[..], b"CONTENT"] {
        fs::write(&path, damage).unwrap();
        writer(&store, b"content").commit(Some(&digest)).unwrap();
        assert_eq!(content(&store.blob(&digest, Some(7)).unwrap()), b"content");
    }
}

#[test]
fn files_of_killed_processes_are_removed_and_those_of_running_ones_stay() {
    let (_directory, store) = fresh();
    let living = writer(&store, b"on its way");
    fs::write(store.inner.layout.incoming().join("spool-of-a-killed-process"), b"half").unwrap();
    assert_eq!(imports(&store), 2);
    store.remove_abandoned_imports();
    assert_eq!(imports(&store), 1);
    living.commit(Some(&sha256(b"on its way"))).unwrap();
    let dropped = writer(&store, b"x");
    drop(dropped);
    assert_eq!(imports(&store), 0);
}
