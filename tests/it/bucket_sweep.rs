//! What is removed from a bucket, and what never is.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use larder::cache::{BucketLimits, SweepError, SweepReport, SweepTimes, Sweeper};
use larder::oci::Manifest;
use larder::store::{PinSettings, Store};
use larder::upstream::Bucket;

use crate::support::larder::{Larder, until};
use crate::support::{FakeBucket, FakeRegistry, Fault, Image, On, Operation, bytes};

const REPOSITORY: &str = "team/app";
const DAY: Duration = Duration::from_secs(86_400);

/// A bucket with images that share a layer, and a cache that has none of them.
struct Site {
    bucket: FakeBucket,
    registry: FakeRegistry,
    images: Vec<Image>,
    /// Has filled the bucket, and keeps the directory of `store`.
    _larder: Larder,
    client: Bucket,
    store: Store,
}

impl Site {
    /// Images `v0`, `v1` and `v2`, of which each has a layer of its own.
    fn filled() -> Site {
        let (bucket, registry) = (FakeBucket::start(), FakeRegistry::start());
        let images: Vec<Image> = (0..3_u64)
            .map(|number| {
                let own = bytes(20_000, number);
                Image::new(&format!("v{number}")).layer(bytes(10_000, 99)).layer(own)
            })
            .collect();
        let larder = Larder::start_with(&registry, |settings| settings.use_bucket(&bucket));
        for (number, image) in images.iter().enumerate() {
            registry.add(REPOSITORY, &format!("v{number}"), image);
            larder.pull_image(REPOSITORY, &format!("v{number}"), image);
        }
        larder.wait_until_uploaded(&bucket);
        let client = larder.bucket();
        let store = larder.store();
        Site { bucket, registry, images, _larder: larder, client, store }
    }

    /// Sets the times of an image in the bucket back.
    fn age(&self, tag: &str, by: Duration) {
        let past = SystemTime::now() - by;
        for key in self.bucket.keys() {
            if key.starts_with("blobs/") || key.ends_with(&format!("/_tags/{tag}")) {
                self.bucket.set_modified(&key, past);
            }
        }
        let number: usize = tag[1..].parse().expect("a number");
        let record = self.images[number].digest();
        for key in self.bucket.keys() {
            if key.contains("/_manifests/") && key.ends_with(record.trim_start_matches("sha256:")) {
                self.bucket.set_modified(&key, past);
            }
        }
    }

    fn sweep(&self) -> Result<SweepReport, SweepError> {
        self.sweep_with(&|| true, &|| {})
    }

    fn sweep_with(
        &self,
        should_go_on: &(dyn Fn() -> bool + Sync),
        meanwhile: &(dyn Fn() + Sync),
    ) -> Result<SweepReport, SweepError> {
        let pins = PinSettings::default();
        let sweeper = self.sweeper(&pins, should_go_on);
        Sweeper { wait: &|_| meanwhile(), ..sweeper }.sweep_now()
    }

    fn sweeper<'a>(
        &'a self,
        pins: &'a PinSettings,
        should_go_on: &'a (dyn Fn() -> bool + Sync),
    ) -> Sweeper<'a> {
        Sweeper {
            bucket: &self.client.store,
            local: &self.store,
            pins,
            limits: BucketLimits { unused_for: Some(30 * DAY), max_bytes: None },
            times: SweepTimes::default(),
            should_go_on,
            wait: &|_| {},
        }
    }

    fn tags(&self) -> BTreeSet<String> {
        let tags = self.bucket.keys().into_iter();
        tags.filter_map(|key| Some(key.split_once("/_tags/")?.1.to_owned())).collect()
    }

    fn has_blob(&self, digest: &str) -> bool {
        let key = format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"));
        self.bucket.object(&key).is_some()
    }

    /// Whether everything is there that records refer to.
    #[track_caller]
    fn check(&self) {
        for key in self.bucket.keys() {
            let Some((_, digest)) = key.split_once("/_manifests/") else { continue };
            let json = self.bucket.object(&format!("blobs/{digest}"));
            let json = json.unwrap_or_else(|| panic!("{key} has no manifest"));
            let parsed = Manifest::parse(&json, None).expect("a manifest");
            for each in parsed.descriptors() {
                assert!(self.has_blob(&each.digest.to_string()), "{key}: {} is gone", each.digest);
            }
        }
    }
}

#[test]
fn unused_images_are_removed_and_shared_blobs_stay() {
    let site = Site::filled();
    site.age("v0", 40 * DAY);
    let report = site.sweep().expect("a sweep");
    assert_eq!((report.images.len(), report.blobs), (1, 3), "{report:?}");
    assert!(report.images[0].ends_with("team/app:v0") && report.freed_bytes > 20_000, "{report:?}");
    assert_eq!(site.tags(), ["v1", "v2"].map(str::to_owned).into());
    let [own, shared] = [1, 0].map(|place| site.images[0].layers()[place].digest.clone());
    assert!(!site.has_blob(&own) && site.has_blob(&shared));
    site.check();
    assert_eq!(site.sweep().expect("a sweep"), SweepReport::default());
}

#[test]
fn image_that_another_cache_has_served_stays() {
    let site = Site::filled();
    site.age("v0", 40 * DAY);
    let image = format!("{}/{REPOSITORY}:v0", site.registry.host());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time").as_secs();
    let usage = serde_json::json!({ "images": { image: now - 3600 } });
    site.bucket.put("usage/larder-00000000000000aa", usage.to_string().as_bytes());
    assert_eq!(site.sweep().expect("a sweep"), SweepReport::default());
    // What a cache knew that has ended is merged, and still counts.
    site.bucket.set_modified("usage/larder-00000000000000aa", SystemTime::now() - 2 * DAY);
    assert_eq!(site.sweep().expect("a sweep"), SweepReport::default());
    assert!(site.bucket.object("usage/larder-00000000000000aa").is_none());
    assert_eq!(site.sweep().expect("a sweep"), SweepReport::default());
    site.bucket.put("usage/merged", b"not JSON");
    assert!(matches!(site.sweep(), Err(SweepError::Unreadable { .. })));
    assert_eq!(site.tags().len(), 3);
}

#[test]
fn pinned_images_of_any_cache_stay() {
    let site = Site::filled();
    site.age("v0", 40 * DAY);
    site.age("v1", 40 * DAY);
    let name = format!("{}/{REPOSITORY}", site.registry.host());
    let usage = serde_json::json!({ "images": {}, "pins": [format!("{name}:v0")] });
    site.bucket.put("usage/larder-00000000000000aa", usage.to_string().as_bytes());
    let pins = PinSettings {
        pins: vec![format!("{name}:v1").parse().expect("a pin")],
        ..PinSettings::default()
    };
    let report = site.sweeper(&pins, &|| true).sweep_now().expect("a sweep");
    assert_eq!(report, SweepReport::default());
}

#[test]
fn pins_of_a_cache_that_is_off_for_days_count_for_a_month() {
    let site = Site::filled();
    site.age("v0", 40 * DAY);
    let pin = format!("{}/{REPOSITORY}:v0", site.registry.host());
    let usage = serde_json::json!({ "images": {}, "pins": [pin] });
    let key = "usage/larder-00000000000000aa";
    site.bucket.put(key, usage.to_string().as_bytes());
    site.bucket.set_modified(key, SystemTime::now() - 2 * DAY);
    for _ in 0..2 {
        assert_eq!(site.sweep().expect("a sweep"), SweepReport::default());
        assert!(site.bucket.object(key).is_none(), "it is merged");
    }
    site.bucket.put(key, usage.to_string().as_bytes());
    site.bucket.set_modified(key, SystemTime::now() - 31 * DAY);
    site.bucket.remove("usage/merged");
    assert_eq!(site.sweep().expect("a sweep").images.len(), 1);
}

#[test]
fn preview_changes_nothing_in_the_bucket() {
    let site = Site::filled();
    site.age("v0", 40 * DAY);
    let key = "usage/larder-00000000000000aa";
    site.bucket.put(key, br#"{"images":{},"pins":[]}"#);
    site.bucket.set_modified(key, SystemTime::now() - 2 * DAY);
    let before = site.bucket.keys();
    let report = site.sweeper(&PinSettings::default(), &|| true).preview().expect("a preview");
    assert_eq!(report.images.len(), 1, "{report:?}");
    assert_eq!(site.bucket.keys(), before);
}

#[test]
fn pins_that_cannot_be_parsed_name_the_object_and_are_printed_without_control_characters() {
    let site = Site::filled();
    site.bucket.put("usage/zy", br#"{"images":{},"pins":["bad pin\u001b[31m"]}"#);
    let error = site.sweep().expect_err("a pin").to_string();
    assert!(error.starts_with("usage/zy in the bucket ") && error.contains("delete"), "{error}");
    assert!(!error.contains(char::is_control), "{error:?}");
}

#[test]
fn largest_size_removes_what_was_used_least_recently() {
    let site = Site::filled();
    for (tag, days) in [("v0", 3), ("v1", 9), ("v2", 6)] {
        site.age(tag, days * DAY);
    }
    // The blobs of all images are old, whichever was set back last.
    let total: usize = site
        .bucket
        .keys()
        .iter()
        .filter(|key| key.starts_with("blobs/"))
        .filter_map(|key| Some(site.bucket.object(key)?.len()))
        .sum();
    let pins = PinSettings::default();
    let sweeper = site.sweeper(&pins, &|| true);
    let limits = BucketLimits { max_bytes: Some(total as u64 - 1), unused_for: None };
    let sweeper = Sweeper { limits, ..sweeper };
    let preview = sweeper.preview().expect("a preview");
    assert_eq!(preview.images.len(), 1);
    assert_eq!(site.tags().len(), 3, "a preview removes nothing");
    assert_eq!(sweeper.sweep_now().expect("a sweep"), preview);
    assert_eq!(site.tags(), ["v0", "v2"].map(str::to_owned).into());
    site.check();
}

#[test]
fn blob_without_a_name_stays_for_a_day() {
    let site = Site::filled();
    let key = format!("blobs/sha256/{}", "a".repeat(64));
    site.bucket.put(&key, b"on its way");
    assert_eq!(site.sweep().expect("a sweep").blobs, 0);
    site.bucket.set_modified(&key, SystemTime::now() - 2 * DAY);
    assert_eq!(site.sweep().expect("a sweep").blobs, 1);
    assert!(site.bucket.object(&key).is_none());
}

#[test]
fn of_two_caches_one_sweeps_in_a_period() {
    let site = Site::filled();
    site.age("v0", 40 * DAY);
    let pins = PinSettings::default();
    let other = AtomicUsize::new(0);
    let meanwhile = |_: Duration| {
        let sweeper = site.sweeper(&pins, &|| true);
        if sweeper.sweep_if_due().expect("no failure").is_none() {
            other.fetch_add(1, Ordering::Relaxed);
        }
    };
    let sweeper = site.sweeper(&pins, &|| true);
    let report = Sweeper { wait: &meanwhile, ..sweeper }.sweep_if_due().expect("a sweep");
    assert_eq!(report.map(|report| report.images.len()), Some(1));
    assert_eq!(other.load(Ordering::Relaxed), 1, "the other one left it to this one");
    site.check();
}

#[test]
fn sweep_that_is_overtaken_removes_nothing_more() {
    let site = Site::filled();
    site.age("v0", 40 * DAY);
    let later = || {
        site.bucket.put("sweeps/999999999999", b"another");
    };
    let result = site.sweep_with(&|| true, &later);
    assert!(matches!(result, Err(SweepError::Overtaken)), "{result:?}");
    assert_eq!(site.tags().len(), 3);
    site.check();
}

#[test]
fn image_that_is_uploaded_or_used_during_a_sweep_stays() {
    // Used: another cache reports it.
    let site = Site::filled();
    site.age("v0", 40 * DAY);
    let image = format!("{}/{REPOSITORY}:v0", site.registry.host());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time").as_secs();
    let usage = serde_json::json!({ "images": { image: now } }).to_string();
    let meanwhile = || site.bucket.put("usage/larder-00000000000000aa", usage.as_bytes());
    assert_eq!(site.sweep_with(&|| true, &meanwhile).expect("a sweep"), SweepReport::default());
    // Uploaded: another name refers to its blobs.
    let site = Site::filled();
    site.age("v0", 40 * DAY);
    let record = site.bucket.keys().into_iter().find(|key| {
        key.contains("/_manifests/")
            && key.ends_with(site.images[0].digest().trim_start_matches("sha256:"))
    });
    let record = record.expect("a record");
    let other = record.replace("/team/app/", "/team/other/");
    let content = site.bucket.object(&record).expect("an object");
    let report = site.sweep_with(&|| true, &|| site.bucket.put(&other, &content));
    let report = report.expect("a sweep");
    assert_eq!((report.images.len(), report.blobs), (1, 0), "{report:?}");
    site.check();
}

#[test]
fn cache_uploads_again_what_a_sweep_is_about_to_remove() {
    let site = Site::filled();
    site.age("v0", 40 * DAY);
    let second = Larder::start_with(&site.registry, |settings| settings.use_bucket(&site.bucket));
    // It gets the image from the registry, and finds its blobs in the bucket, while a plan contains them.
    site.bucket.fault(On::s3(Operation::GetObject, "refs/*"), Fault::no_such_key());
    let report = site.sweep_with(&|| true, &|| {
        second.pull_image(REPOSITORY, "v0", &site.images[0]);
        site.bucket.clear_faults();
    });
    let report = report.expect("a sweep");
    assert!(report.images.len() <= 1, "{report:?}");
    second.wait_until_uploaded(&site.bucket);
    site.check();
    assert!(site.tags().contains("v0"), "{:?}", site.tags());
    for layer in site.images[0].layers() {
        assert!(site.has_blob(&layer.digest));
    }
}

#[test]
fn sweep_that_is_killed_anywhere_loses_nothing_and_is_completed_later() {
    let mut is_done = false;
    for allowed in 0..200 {
        let site = Site::filled();
        site.age("v0", 40 * DAY);
        let calls = AtomicUsize::new(0);
        let should_go_on = || calls.fetch_add(1, Ordering::Relaxed) < allowed;
        let result = site.sweep_with(&should_go_on, &|| {});
        site.check();
        assert!(site.tags().is_superset(&["v1", "v2"].map(str::to_owned).into()));
        let was_killed = matches!(result, Err(SweepError::Stopped));
        // A period is named after its second.
        until("the next sweep", || match site.sweep() {
            Err(SweepError::Overtaken) => false,
            done => done.is_ok(),
        });
        site.check();
        assert_eq!(site.tags(), ["v1", "v2"].map(str::to_owned).into());
        assert!(!site.has_blob(&site.images[0].layers()[1].digest));
        if !was_killed {
            is_done = true;
            break;
        }
    }
    assert!(is_done, "the loop must reach the end of a sweep");
}

#[test]
fn ages_are_those_of_the_store_whatever_the_clock_of_the_cache() {
    for (is_ahead, removed) in [(true, 1), (false, 0)] {
        let site = Site::filled();
        // The first request has the wrong time.
        site.bucket.expect_refusals();
        // All objects are written now. For the store, it is 40 days later or earlier than for this machine.
        let now = SystemTime::now();
        let time = if is_ahead { now + 40 * DAY } else { now - 40 * DAY };
        site.bucket.set_clock(time);
        for tag in ["v1", "v2"] {
            let key = site.bucket.keys().into_iter().find(|key| key.ends_with(tag)).expect("a tag");
            site.bucket.set_modified(&key, time);
        }
        let report = site.sweep().expect("a sweep");
        assert_eq!(report.images.len(), removed, "{report:?}");
        site.check();
    }
}
