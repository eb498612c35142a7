//! Ownership of files that root creates in another user's cache.

use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};

use super::*;
use crate::store::{DiskUsage, PeriodicJob};

/// A user ID that no machine uses; root may use any.
const OTHER_USER: u32 = 65_532;

fn below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(below(&path));
        }
        found.push(path);
    }
    found
}

#[test]
fn files_that_root_creates_belong_to_the_owner_of_the_cache() {
    let directory = tempfile::tempdir().unwrap();
    // Only root may change owners; other users skip this test.
    if chown(directory.path(), Some(OTHER_USER), Some(OTHER_USER)).is_err() {
        return;
    }
    let store = open(directory.path());
    let manifest = put(&store, b"{}");
    let image = name("quay.io/team/app");
    let media_type = MediaType::parse("application/vnd.oci.image.manifest.v1+json").unwrap();
    let now = SystemTime::now();
    let record = ManifestRecord { media_type: media_type.clone(), size: 2, fetched: now };
    store.put_manifest(&image, &manifest, &record).unwrap();
    let (fetched, checked) = (now, now);
    let tag = TagRecord::new(manifest, media_type, 2, fetched, checked);
    store.put_tag(&image, &"v1".parse().unwrap(), &tag).unwrap();
    let mut partial = begin(&store, &sha256(b"a layer"));
    partial.write(b"a la").unwrap();
    partial.note(&image, None).unwrap();
    drop(partial);
    let mut whole = begin(&store, &sha256(b"another"));
    whole.write(b"another").unwrap();
    whole.verify(None).unwrap().commit().unwrap();
    store.add_pins(&["quay.io/*".to_owned()]).unwrap();
    store.set_offline(true).unwrap();
    store.settle_index().unwrap();
    assert!(store.acquire_lease(PeriodicJob::Scrub, Duration::ZERO, now).is_none());
    drop(store.begin_sweep().unwrap());
    let mut writer = store.digesting_writer(Algorithm::Sha256).unwrap();
    writer.write(b"imported").unwrap();
    // As left by a kill.
    let _unfinished = store.digesting_writer(Algorithm::Sha256).unwrap();
    writer.commit(None).unwrap();

    let made = below(directory.path());
    assert!(made.len() > 25, "{made:?}");
    for path in made {
        let metadata = fs::symlink_metadata(&path).unwrap();
        assert_eq!(
            (metadata.uid(), metadata.gid()),
            (OTHER_USER, OTHER_USER),
            "{}",
            path.display()
        );
    }
}

#[test]
fn the_target_of_a_link_keeps_its_owner_and_is_not_written() {
    let (directory, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let secret = outside.path().join("secret");
    fs::write(&secret, "root's").unwrap();
    let layer = sha256(b"a layer");
    drop(open(directory.path()));
    let incoming = directory.path().join("incoming");
    let partials = directory.path().join("partials/quay.io");
    fs::create_dir_all(&partials).unwrap();
    let made = outside.path().join("made");
    symlink(&made, directory.path().join("scrubbed")).unwrap();
    for name in ["prune.lock", "pins.lock", "index.lock", "../offline"] {
        symlink(&secret, incoming.join(name)).unwrap();
    }
    symlink(&secret, partials.join(layer.dashed())).unwrap();
    // If links to other users' files are allowed, a hard link works as well.
    fs::hard_link(&secret, incoming.join("usage.lock")).unwrap();
    if chown(directory.path(), Some(OTHER_USER), Some(OTHER_USER)).is_err() {
        return;
    }
    let store = open(directory.path());
    assert!(store.begin_sweep().is_err());
    assert!(store.add_pins(&["quay.io/*".to_owned()]).is_err());
    assert!(store.write_index().is_err());
    assert!(store.set_offline(true).is_err());
    assert!(store.ingest(&quay(), &layer, None).is_err());
    assert!(store.acquire_lease(PeriodicJob::Scrub, Duration::ZERO, SystemTime::now()).is_none());
    let _ = store.walk_usage(&DiskUsage::default(), &SystemTime::now, &mut || true).unwrap();
    assert_eq!(fs::metadata(&secret).unwrap().uid(), 0);
    assert!(fs::read(&secret).unwrap() == b"root's" && !made.exists());

    fs::remove_file(incoming.join("sweep.lock")).unwrap();
    symlink(&secret, incoming.join("sweep.lock")).unwrap();
    let store = open(directory.path());
    assert!(store.set_offline(true).is_err());
    assert_eq!(fs::metadata(&secret).unwrap().uid(), 0);
}
