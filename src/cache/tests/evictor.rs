//! Which bytes are admitted, and what is evicted for them.

use super::*;
use crate::prune::{CacheLimits, FreeSpace, PinSettings};
use crate::store::StoreError;

/// Longer than the delay after a failed eviction.
const A_WHILE: Duration = Duration::from_secs(31);
/// The free space below the limit, in bytes.
const SPARE: u64 = 1_000_000;

/// A cache with an image, and a limit that leaves [`SPARE`] bytes.
fn bench(change: impl FnOnce(&mut Settings)) -> Bench {
    let bench = Bench::with(change);
    bench.source.publish("v1", &manifest("one"));
    bench.how("v1");
    limit(&bench, SPARE);
    bench
}

/// Sets a limit that leaves `spare` bytes.
fn limit(bench: &Bench, spare: u64) {
    bench.cache.store().count_disk(&mut || true).unwrap();
    let used = bench.cache.store().disk_bytes().unwrap();
    let mut settings = Settings::clone(&bench.cache.core().settings());
    settings.maintenance.room = CacheLimits { cap_bytes: Some(used + spare), floor: None };
    bench.cache.reconfigure(settings);
}

/// Sets the last use of the image, and the times of its files, to long ago.
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

/// The reason why bytes are not admitted; `None` if they are.
fn refusal(bench: &Bench, bytes: u64) -> Option<String> {
    reason(bench.cache.services.eviction.admit(bytes))
}

fn reason(admitted: Result<(), CacheError>) -> Option<String> {
    match admitted {
        Ok(()) => None,
        Err(CacheError::Store(error)) => {
            assert!(
                error.is_full() && matches!(&*error, StoreError::LimitReached { .. }),
                "{error}"
            );
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
fn bytes_that_fit_evict_nothing_and_one_more_evicts() {
    let bench = bench(|_| {});
    make_old(&bench);
    assert_eq!(refusal(&bench, SPARE), None);
    assert!(has_image(&bench));
    assert_eq!(refusal(&bench, SPARE + 1), None);
    assert!(!has_image(&bench), "one byte more does not fit");
    let counts = bench.cache.counts();
    assert!(counts.images_evicted == 1 && counts.bytes_evicted > 0);
}

#[test]
fn a_failed_eviction_is_not_repeated_at_once() {
    let bench = bench(|_| {});
    let words = "everything else is pinned (0 images) or was used in the last ten minutes";
    refuses(&bench, SPARE + 1, words);
    make_old(&bench);
    refuses(&bench, SPARE + 1, "there was nothing to evict a moment ago");
    bench.advance(A_WHILE);
    assert_eq!(refusal(&bench, SPARE + 1), None);
    assert!(!has_image(&bench));
}

#[test]
fn a_size_that_can_never_fit_is_refused_before_anything_is_evicted() {
    let bench = bench(|_| {});
    make_old(&bench);
    let cap = bench.cache.core().settings().maintenance.room.cap_bytes.unwrap();
    let why = reason(bench.cache.services.eviction.check_size(cap + 1)).unwrap();
    assert!(why.contains("it is larger than the limit itself"), "{why}");
    assert_eq!(reason(bench.cache.services.eviction.check_size(cap)), None);
    assert!(has_image(&bench), "nothing is evicted for a reported size");
}

#[test]
fn old_unreferenced_blobs_are_evicted_before_images_and_young_ones_stay() {
    for is_old in [false, true] {
        let bench = bench(|_| {});
        let stray = bench.deliver(&[7; 600_000]);
        let file = fs::File::options().append(true).open(bench.file_of(&stray)).unwrap();
        let young = file.metadata().unwrap().modified().unwrap();
        make_old(&bench);
        if !is_old {
            file.set_modified(young).unwrap();
        }
        limit(&bench, 0);
        assert_eq!(refusal(&bench, 1), None);
        assert_eq!((has_image(&bench), bench.file_of(&stray).exists()), (is_old, !is_old));
    }
}

#[test]
fn pinned_images_are_counted_in_the_refusal() {
    let pins = PinSettings { pins: vec!["reg.test/a".parse().unwrap()], ..PinSettings::default() };
    let bench = bench(|settings| settings.maintenance.pins = pins);
    make_old(&bench);
    refuses(&bench, SPARE + 1, "everything else is pinned (1 image)");
}

#[test]
fn pins_that_cannot_be_read_are_the_reason_for_the_refusal() {
    let missing = PinSettings { lists: vec!["/nonexistent/pins".into()], ..PinSettings::default() };
    let bench = bench(|settings| settings.maintenance.pins = missing);
    make_old(&bench);
    refuses(&bench, SPARE + 1, "cannot read the pins in /nonexistent/pins");
}

#[test]
fn a_floor_that_the_disk_does_not_have_refuses_every_size() {
    let bench = bench(|_| {});
    let mut settings = Settings::clone(&bench.cache.core().settings());
    settings.maintenance.room =
        CacheLimits { cap_bytes: None, floor: Some(FreeSpace::Bytes(u64::MAX)) };
    bench.cache.reconfigure(settings);
    let why = reason(bench.cache.services.eviction.check_size(1)).unwrap();
    let words = "the disk has no more than freeSpace left, and it is larger than the limit";
    assert!(why.contains(words), "{why}");
}

#[test]
fn the_cap_has_no_effect_before_the_disk_is_counted() {
    let bench = Bench::with(|settings| {
        settings.maintenance.room = CacheLimits { cap_bytes: Some(1000), floor: None };
    });
    assert_eq!(refusal(&bench, 900), None);
    bench.cache.store().count_disk(&mut || true).unwrap();
    assert!(refusal(&bench, 1001).is_some());
}

#[test]
fn the_thread_evicts_above_the_high_watermark_before_any_download_waits() {
    let bench = bench(|_| {});
    make_old(&bench);
    bench.cache.services.eviction.evict_ahead(&mut || true);
    assert!(has_image(&bench), "the high watermark is not reached");
    limit(&bench, 100);
    assert_eq!(refusal(&bench, 50), None, "it would fit");
    assert!(has_image(&bench));
    bench.cache.services.eviction.evict_ahead(&mut || true);
    assert!(!has_image(&bench));
    assert_eq!(bench.cache.counts().images_evicted, 1);
}
