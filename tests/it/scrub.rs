//! Scrubbing: damaged content is found, quarantined, and fetched again.
//!
//! Proves protocol 13.4 (docs/protocol.md).

use std::fs;

use crate::support::larder::{blob, manifest};
use crate::support::{FakeRegistry, Image, Larder, Publish};

const REPOSITORY: &str = "team/app";

/// A completely pulled image.
fn pulled() -> (FakeRegistry, Larder, Image) {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let larder = Larder::start(&registry);
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    for each in image.blobs() {
        larder.get(&blob(REPOSITORY, &each.digest));
        larder.wait_until_cached(&each.digest);
    }
    (registry, larder, image)
}

/// Flips a bit and keeps the length.
fn damage(larder: &Larder, digest: &str) {
    let path = larder.blob_file(digest);
    let mut bytes = fs::read(&path).expect("an existing file");
    bytes[0] ^= 1;
    fs::write(&path, bytes).expect("it can be written");
}

#[test]
fn scrub_quarantines_damaged_content_which_is_then_fetched_again() {
    let (registry, larder, image) = pulled();
    let sound = larder.cache().scrub(&mut |_| true).expect("an uninterrupted scrub");
    assert_eq!((sound.blobs, sound.damaged.len()), (image.blobs().len() as u64 + 1, 0));
    let layer = &image.layers()[0];
    for damaged in [layer.digest.clone(), image.digest()] {
        damage(&larder, &damaged);
        registry.clear_requests();
        let report = larder.cache().scrub(&mut |_| true).expect("an uninterrupted scrub");
        assert_eq!(report.damaged.iter().map(ToString::to_string).collect::<Vec<_>>(), [&*damaged]);
        let aside = larder.root().join("quarantine").join(damaged.replace(':', "-"));
        assert!(aside.exists() && !larder.has(&damaged));
        larder.cache().refetch_damaged(&report.damaged, &mut || true);
        larder.wait_until_cached(&damaged);
        assert_eq!(registry.requests().len(), 1);
    }
    assert_eq!(larder.counts().damaged_files, 2);
    assert!(larder.get(&blob(REPOSITORY, &layer.digest)).body == layer.bytes);
}

#[test]
fn interrupted_scrub_reports_nothing() {
    let (_registry, larder, _image) = pulled();
    assert_eq!(larder.cache().scrub(&mut |_| false), None);
}
