//! Foreign entries in the directory: pipes, links, directories, and unknown names.

use std::os::unix::fs::symlink;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::images::image;
use super::*;

fn pipe(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
}

#[test]
fn anything_but_a_file_in_place_of_a_blob_is_a_miss_and_is_replaced() {
    let (directory, store) = fresh();
    let digest = sha256(b"content");
    let path = store.inner.layout.blob(&digest);
    let outside = directory.path().join("outside");
    fs::write(&outside, b"content").unwrap();
    let plant: [(&str, &dyn Fn()); 4] = [
        ("a pipe", &|| pipe(&path)),
        ("a link", &|| symlink(&outside, &path).unwrap()),
        ("a link to itself", &|| symlink(&path, &path).unwrap()),
        ("a directory", &|| {
            fs::create_dir(&path).unwrap();
            fs::write(path.join("foreign"), b"content").unwrap();
        }),
    ];
    for (what, plant) in plant {
        let _ = fs::remove_file(&path);
        plant();
        assert!(store.find_blob(&digest, Some(7)).unwrap().is_none(), "{what}");
        assert!(store.find_bytes(&digest, 7).unwrap().is_none(), "{what}");
        assert!(!matches!(store.check_blob(&digest, &mut [0; 8], &mut |_| true), Checked::Sound));
        store.ingest_bytes(&digest, b"content").unwrap();
        assert_eq!(store.read(&digest, 7).unwrap(), b"content", "{what}");
    }
    assert_eq!(fs::read(&outside).unwrap(), b"content");
}

#[test]
fn pipes_in_place_of_records_partials_and_locks_do_not_block() {
    let (_directory, store) = fresh();
    let (layout, of) = (&store.inner.layout, name("quay.io/a"));
    let (manifest, size) = image(&store, "quay.io/a", &[b"layer"]);
    store.put_tag(&of, &tag("v1"), &record(manifest, size)).unwrap();
    let partial = layout.partial(&quay(), &sha256(b"partial"));
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    let leftover = layout.incoming().join("spool-1");
    let usage = layout.usage_summary();
    fs::create_dir_all(usage.parent().unwrap()).unwrap();
    for path in [
        &layout.tag(&of, &tag("v1")),
        &layout.manifest(&of, &manifest),
        &layout.pins(),
        &layout.usage_images(),
        &layout.index_lock(),
        &partial,
        &leftover,
        &usage,
    ] {
        let _ = fs::remove_file(path);
        pipe(path);
    }
    assert!(store.tag(&of, &tag("v1"), Access::Look).is_none());
    assert!(store.manifest(&of, &manifest, Access::Look).is_none());
    assert!(store.pins().is_err() && store.usage().is_none() && store.write_index().is_err());
    store.each_usage(&mut |_| true);
    assert!(store.ingest(&quay(), &sha256(b"partial"), None).is_err());
    store.idle_partials();
    store.remove_leftovers(SystemTime::now());
    // A tag that cannot be read may be what pins an image.
    let refused = store.catalogue(&mut || true).unwrap_err().to_string();
    assert!(refused.contains("_tags/v1: the record of a tag is damaged"), "{refused}");
    // Names with unknown content: everything stays.
    fs::remove_file(layout.tag(&of, &tag("v1"))).unwrap();
    assert_eq!(store.catalogue(&mut || true).unwrap().unwrap().damaged, 1);
    let sweep = store.begin_sweep().unwrap().unwrap();
    sweep.eviction_index(SystemTime::now(), &Pins::default(), &mut || true).unwrap().unwrap();
}

#[test]
fn leftovers_of_a_network_file_system_are_ignored() {
    let (_directory, store) = fresh();
    let of = name("quay.io/a");
    let (manifest, size) = image(&store, "quay.io/a", &[b"layer"]);
    store.put_tag(&of, &tag("v1"), &record(manifest, size)).unwrap();
    let layout = &store.inner.layout;
    let kept = ".nfs00000000000a1b2c00000001";
    for directory in [layout.tags(&of), layout.manifests(&of, Algorithm::Sha256), layout.refs()] {
        fs::write(directory.join(kept), b"removed").unwrap();
    }
    let catalogue = store.catalogue(&mut || true).unwrap().unwrap();
    assert_eq!((catalogue.images.len(), catalogue.damaged), (1, 0));
}

#[test]
fn a_foreign_record_stops_pruning_and_eviction() {
    for strange in ["_tags/not a tag", "_manifests/sha256/abc"] {
        let (_directory, store) = fresh();
        let of = name("quay.io/a");
        let (manifest, size) = image(&store, "quay.io/a", &[b"layer"]);
        store.put_tag(&of, &tag("v1"), &record(manifest, size)).unwrap();
        fs::write(store.inner.layout.repository(&of).join(strange), b"?").unwrap();
        let error = store.catalogue(&mut || true).unwrap_err().to_string();
        assert!(error.contains(strange), "{error}");
        let sweep = store.begin_sweep().unwrap().unwrap();
        let built = sweep.eviction_index(SystemTime::now(), &Pins::default(), &mut || true);
        let error = built.unwrap_err().to_string();
        assert!(error.contains(strange), "{error}");
    }
}
