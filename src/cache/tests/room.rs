//! Whether room is made for a blob, and when it is not even tried.

use super::*;
use crate::prune::{FreeSpace, PinSettings, RoomPolicy};
use crate::store::StoreError;

/// How long after a try in vain the next one is made.
const A_WHILE: Duration = Duration::from_secs(31);

/// A cache that may hold so many bytes, with an image and its size.
fn bench(cap_bytes: u64, change: impl FnOnce(&mut Settings)) -> (Bench, u64) {
    let bench = Bench::with(|settings| {
        settings.upkeep.room = RoomPolicy { cap_bytes: Some(cap_bytes), floor: None };
        change(settings);
    });
    let digest = bench.source.publish("v1", &manifest("one"));
    bench.how("v1");
    let size = fs::metadata(bench.file_of(&digest)).unwrap().len();
    bench.cache.store().count_disk(&mut || true).unwrap();
    (bench, size)
}

/// Lets the image have been used long before the test's time, and its files be as old.
fn make_old(bench: &Bench) {
    let mut directories =
        vec![bench.directory.path().join("refs"), bench.directory.path().join("blobs")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                let file = fs::File::options().append(true).open(path).unwrap();
                file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1000)).unwrap();
            }
        }
    }
}

fn has_image(bench: &Bench) -> bool {
    !bench.cache.store().tags(&name()).is_empty()
}

/// Why there is no room; nothing if there is.
fn refusal(bench: &Bench, bytes: u64) -> Option<String> {
    let key = (name().upstream, Digest::of(Algorithm::Sha256, b"what is to come"));
    match bench.cache.inner.make_room_for_blob(&key, bytes) {
        Ok(()) => None,
        Err(CacheError::Store(error)) => {
            assert!(error.is_full() && matches!(&*error, StoreError::NoLeave { .. }), "{error}");
            Some(error.to_string())
        }
        Err(error) => panic!("{error}"),
    }
}

#[track_caller]
fn refuses(bench: &Bench, bytes: u64, words: &str) {
    let why = refusal(bench, bytes).unwrap_or_default();
    assert!(why.contains(words), "{words} is not in {why:?}");
    assert!(has_image(bench));
}

#[test]
fn what_fits_evicts_nothing() {
    let (bench, size) = bench(1000, |_| {});
    make_old(&bench);
    assert_eq!(refusal(&bench, 1000 - size), None);
    assert!(has_image(&bench));
    assert_eq!(refusal(&bench, 1001 - size), None);
    assert!(!has_image(&bench), "one byte more does not fit");
    assert_eq!(bench.cache.store().disk_bytes(), Some(0));
    let counts = bench.cache.counts();
    assert_eq!((counts.images_evicted, counts.bytes_evicted), (1, size));
}

#[test]
fn a_try_in_vain_is_not_repeated_at_once_although_it_could_succeed_by_then() {
    let (bench, _) = bench(1000, |_| {});
    refuses(
        &bench,
        990,
        "everything else is pinned (0 images) or was used in the last ten minutes",
    );
    make_old(&bench);
    refuses(&bench, 990, "there was nothing to evict a moment ago");
    bench.advance(A_WHILE);
    assert_eq!(refusal(&bench, 990), None);
    assert!(!has_image(&bench));
}

#[test]
fn what_was_in_vain_for_much_is_tried_for_less() {
    let (bench, size) = bench(1000, |_| {});
    make_old(&bench);
    bench.deliver(&[7; 500]);
    refuses(&bench, 501, "the cache has reached cacheSize");
    refuses(&bench, 501, "there was nothing to evict a moment ago");
    assert_eq!(refusal(&bench, 500), None);
    assert_eq!(bench.cache.counts().bytes_evicted, size);
}

#[test]
fn what_is_larger_than_the_bound_evicts_nothing_and_stands_in_nobodys_way() {
    let (bench, _) = bench(1000, |_| {});
    make_old(&bench);
    refuses(&bench, 1001, "it is larger than the bound itself");
    assert_eq!(refusal(&bench, 1000), None);
    assert!(!has_image(&bench));
}

#[test]
fn nothing_goes_where_not_enough_can_go() {
    let (bench, size) = bench(1000, |_| {});
    make_old(&bench);
    bench.deliver(&[7; 500]);
    // What was delivered is young: with the image gone it would still not fit.
    refuses(&bench, 501, "the cache has reached cacheSize");
    bench.advance(A_WHILE);
    assert_eq!(refusal(&bench, 500), None);
    assert!(!has_image(&bench));
    assert_eq!(bench.cache.counts().bytes_evicted, size);
}

#[test]
fn what_is_still_to_come_of_other_downloads_needs_room_as_well() {
    let (bench, size) = bench(1000, |_| {});
    make_old(&bench);
    let inner = &bench.cache.inner;
    let key = (name().upstream, Digest::of(Algorithm::Sha256, b"another"));
    let joined = inner.blobs.join(&key, || super::super::blobs::given_up(&name()));
    let pilot = joined.pilot.unwrap();
    let file = Arc::new(fs::File::open(bench.directory.path().join("oci-layout")).unwrap());
    pilot.announce(Incoming { origin: name(), file, size: Some(300) });
    pilot.advance(100);
    assert_eq!(refusal(&bench, 800 - size), None);
    assert!(has_image(&bench));
    // Its own size counts once, however often its download has begun.
    assert!(inner.make_room_for_blob(&key, 1000 - size).is_ok());
    assert!(has_image(&bench));
    assert_eq!(refusal(&bench, 801 - size), None);
    assert!(!has_image(&bench), "one byte more does not fit beside it");
}

#[test]
fn young_blobs_that_nothing_names_are_no_room_and_old_ones_are() {
    for is_old in [false, true] {
        let (bench, _) = bench(1000, |_| {});
        let stray = bench.deliver(&[7; 600]);
        let file = fs::File::options().append(true).open(bench.file_of(&stray)).unwrap();
        let young = file.metadata().unwrap().modified().unwrap();
        make_old(&bench);
        if !is_old {
            file.set_modified(young).unwrap();
        }
        assert_eq!(refusal(&bench, 400), None);
        assert_eq!((has_image(&bench), bench.file_of(&stray).exists()), (is_old, !is_old));
    }
}

#[test]
fn pinned_images_are_counted_in_what_is_said() {
    let pins = PinSettings { pins: vec!["reg.test/a".parse().unwrap()], ..PinSettings::default() };
    let (bench, _) = bench(1000, |settings| settings.upkeep.pins = pins);
    make_old(&bench);
    refuses(&bench, 990, "everything else is pinned (1 images)");
}

#[test]
fn pins_that_cannot_be_read_are_the_reason_that_is_said() {
    let missing = PinSettings { lists: vec!["/nonexistent/pins".into()], ..PinSettings::default() };
    let (bench, _) = bench(1000, |settings| settings.upkeep.pins = missing);
    make_old(&bench);
    refuses(&bench, 990, "cannot read the pins in /nonexistent/pins");
}

#[test]
fn a_floor_that_the_disk_does_not_have_is_larger_than_the_bound() {
    let (bench, _) = bench(1000, |settings| {
        settings.upkeep.room =
            RoomPolicy { cap_bytes: None, floor: Some(FreeSpace::Bytes(u64::MAX)) };
    });
    make_old(&bench);
    refuses(&bench, 1, "the disk has no more than freeSpace left, and it is larger than the bound");
}

#[test]
fn without_a_count_of_the_disk_the_cap_bounds_nothing() {
    let bench = Bench::with(|settings| {
        settings.upkeep.room = RoomPolicy { cap_bytes: Some(1000), floor: None };
    });
    assert_eq!(refusal(&bench, 900), None);
    bench.cache.store().count_disk(&mut || true).unwrap();
    assert!(refusal(&bench, 1001).is_some());
}
