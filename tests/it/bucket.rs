//! A bucket as the shared, durable tier behind the caches.

use std::fs;
use std::time::Duration;

use larder::cache::{FreshnessPolicy, Ttl};
use larder::oci::{Record, TagRecord};

use crate::support::larder::{Larder, blob, manifest, seconds, until};
use crate::support::{FakeBucket, FakeRegistry, Fault, Gate, Image, On, Operation, bytes};

const REPOSITORY: &str = "team/app";
const MIB: usize = 1 << 20;

fn with_bucket<'a>(bucket: &'a FakeBucket) -> impl Fn(&mut crate::support::larder::Settings) + 'a {
    |settings| settings.use_bucket(bucket)
}

#[track_caller]
fn pull(larder: &Larder, tag: &str, image: &Image) {
    larder.pull_image(REPOSITORY, tag, image);
}

#[test]
fn image_of_a_bucket_is_served_when_the_registry_is_gone() {
    let (bucket, registry) = (FakeBucket::start(), FakeRegistry::start());
    let image = Image::sample("v1").layer(bytes(2 * MIB, 3));
    registry.add(REPOSITORY, "v1", &image);
    let first = Larder::filling(&bucket, &registry, REPOSITORY, &image);
    assert_eq!(first.published_keys(), bucket.keys().into_iter().collect(), "and nothing else");
    registry.stop();

    let second = Larder::start_with(&registry, |settings| {
        settings.use_bucket(&bucket);
        settings.cache.freshness = FreshnessPolicy::of(Ttl::For(seconds(60)));
    });
    let got = second.head(&manifest(REPOSITORY, "v1"));
    assert_eq!(got.header("docker-content-digest"), Some(&*image.digest()), "{got:?}");
    assert_eq!(got.header("warning"), None, "{got:?}");
    pull(&second, "v1", &image);
    assert_eq!(second.get(&manifest(REPOSITORY, "v1")).header("warning"), None);
    assert!(second.get(&manifest(REPOSITORY, &image.digest())).body == image.manifest());
    // A cache that comes later serves it as stale, like one that has had it all the time.
    let third = Larder::start_with(&registry, |settings| {
        settings.use_bucket(&bucket);
        settings.cache.freshness = FreshnessPolicy::of(Ttl::For(seconds(0)));
    });
    let got = third.get(&manifest(REPOSITORY, "v1"));
    assert!(got.status == 200 && got.header("warning").is_some(), "{got:?}");
    assert!(got.body == image.manifest());
    // An image that was never pulled is not in the bucket.
    let got = second.get(&manifest(REPOSITORY, "v2"));
    assert!(matches!(got.status, 502..=504), "{got:?}");
}

#[test]
fn fresh_tag_of_a_bucket_needs_no_request_to_the_registry() {
    let (bucket, registry) = (FakeBucket::start(), FakeRegistry::start());
    let image = registry.add_sample(REPOSITORY);
    let _first = Larder::filling(&bucket, &registry, REPOSITORY, &image);
    let before = registry.requests().len();
    let second = Larder::start_with(&registry, |settings| {
        settings.use_bucket(&bucket);
        settings.cache.freshness = FreshnessPolicy::of(Ttl::For(seconds(60)));
    });
    bucket.clear_requests();
    // As containerd does.
    let got = second.head(&manifest(REPOSITORY, "v1"));
    assert_eq!(got.header("docker-content-digest"), Some(&*image.digest()), "{got:?}");
    assert_eq!(second.get(&manifest(REPOSITORY, &image.digest())).status, 200);
    pull(&second, "v1", &image);
    assert_eq!(registry.requests().len(), before);
    until("an empty queue", || second.is_queue_empty());
    assert_eq!(bucket.count_of(Operation::PutObject, "refs/*"), 0, "nothing new");
}

#[test]
fn copy_of_a_bucket_is_a_directory_that_larder_serves() {
    let (bucket, registry) = (FakeBucket::start(), FakeRegistry::start());
    let image = Image::sample("v1");
    registry.add(REPOSITORY, "v1", &image);
    let _first = Larder::filling(&bucket, &registry, REPOSITORY, &image);

    let mut copy = Larder::start_with(&registry, |settings| settings.cache.air_gapped = true);
    copy.stop();
    for key in bucket.keys() {
        let path = copy.root().join(&key);
        fs::create_dir_all(path.parent().expect("a directory")).expect("it can be created");
        fs::write(path, bucket.object(&key).expect("an object")).expect("it can be written");
    }
    copy.run();
    let before = registry.requests().len();
    pull(&copy, "v1", &image);
    assert_eq!(registry.requests().len(), before);
}

#[test]
fn content_is_uploaded_before_its_names() {
    let (bucket, registry) = (FakeBucket::start(), FakeRegistry::start());
    let image = Image::sample("v1").layer(bytes(9_000, 4));
    registry.add(REPOSITORY, "v1", &image);
    // Everything is queued before anything is uploaded.
    let gate = Gate::new();
    bucket.fault(On::s3(Operation::PutObject, "probe/*").times(1), Fault::Gate(gate.clone()));
    let larder = Larder::start_with(&registry, with_bucket(&bucket));
    pull(&larder, "v1", &image);
    gate.open();
    larder.wait_until_uploaded(&bucket);
    let puts = bucket.requests_of(Operation::PutObject, "*");
    let kinds: Vec<usize> = puts
        .iter()
        .filter_map(|put| {
            let is = |part: &str| put.path.contains(part);
            match () {
                () if is("/blobs/") => Some(0),
                () if is("/_manifests/") => Some(1),
                () if is("/_tags/") => Some(2),
                () => None,
            }
        })
        .collect();
    assert!(
        kinds.is_sorted() && kinds.first() == Some(&0) && kinds.last() == Some(&2),
        "{kinds:?}"
    );
}

#[test]
fn hit_sends_no_request_to_the_bucket() {
    let (bucket, registry) = (FakeBucket::start(), FakeRegistry::start());
    let image = registry.add_sample(REPOSITORY);
    let larder = Larder::filling(&bucket, &registry, REPOSITORY, &image);
    bucket.clear_requests();
    pull(&larder, "v1", &image);
    assert!(bucket.requests().is_empty(), "{:?}", bucket.requests());
}

#[test]
fn pulls_go_on_while_the_bucket_fails_and_nothing_queued_is_lost() {
    let faults: [fn(&FakeBucket, bool); 3] = [
        |bucket, is_on| if is_on { bucket.down() } else { bucket.up() },
        |bucket, is_on| bucket.full(is_on),
        |bucket, is_on| bucket.deny_writes(is_on),
    ];
    for fault in faults {
        let (bucket, registry) = (FakeBucket::start(), FakeRegistry::start());
        let image = Image::sample("v1").layer(bytes(MIB, 5));
        registry.add(REPOSITORY, "v1", &image);
        fault(&bucket, true);
        let mut larder = Larder::start_with(&registry, with_bucket(&bucket));
        pull(&larder, "v1", &image);
        assert!(!larder.is_queue_empty());
        larder.restart();
        pull(&larder, "v1", &image);
        assert!(!larder.is_queue_empty());
        fault(&bucket, false);
        // The next attempt follows within a minute; a restart begins at once.
        larder.restart();
        larder.wait_until_uploaded(&bucket);
    }
}

#[test]
fn wrong_bytes_of_the_bucket_are_never_a_complete_response_and_are_replaced() {
    let (bucket, registry) = (FakeBucket::start(), FakeRegistry::start());
    let image = Image::sample("v1").layer(bytes(MIB, 6));
    registry.add(REPOSITORY, "v1", &image);
    let _first = Larder::filling(&bucket, &registry, REPOSITORY, &image);
    let layer = &image.layers()[image.layers().len() - 1];
    let key = |digest: &str| format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"));
    bucket.corrupt(&key(&layer.digest));
    bucket.corrupt(&key(&image.digest()));

    let second = Larder::start_with(&registry, with_bucket(&bucket));
    assert!(second.get(&manifest(REPOSITORY, "v1")).body == image.manifest());
    let path = blob(REPOSITORY, &layer.digest);
    let got = second.get(&path);
    assert!(!got.complete || got.body == layer.bytes);
    until("the right bytes", || {
        let got = second.get(&path);
        assert!(!(got.complete && got.status == 200) || got.body == layer.bytes);
        got.complete && got.status == 200
    });
    until("the right objects", || {
        bucket.object(&key(&layer.digest)).as_deref() == Some(&layer.bytes)
            && bucket.object(&key(&image.digest())).as_deref() == Some(&image.manifest())
    });
}

#[test]
fn offline_cache_asks_the_bucket_and_no_registry() {
    let (bucket, registry) = (FakeBucket::start(), FakeRegistry::start());
    let image = Image::sample("v1").layer(bytes(MIB, 7));
    registry.add(REPOSITORY, "v1", &image);
    let _first = Larder::filling(&bucket, &registry, REPOSITORY, &image);
    let before = registry.requests().len();
    let second = Larder::start_with(&registry, |settings| {
        settings.use_bucket(&bucket);
        settings.cache.air_gapped = true;
    });
    pull(&second, "v1", &image);
    let layer = &image.layers()[0];
    let head = second.head(&blob(REPOSITORY, &layer.digest));
    assert_eq!(head.status, 200);
    assert_eq!(second.get(&manifest(REPOSITORY, "v2")).status, 404);
    assert_eq!(registry.requests().len(), before);
}

#[test]
fn large_blob_is_uploaded_in_parts_and_continued_after_an_interruption() {
    let (bucket, registry) = (FakeBucket::start(), FakeRegistry::start());
    let image = Image::sample("v1").layer(bytes(12 * MIB, 8));
    registry.add(REPOSITORY, "v1", &image);
    let layer = &image.layers()[image.layers().len() - 1];
    // The second part is cut off again and again until the restart.
    bucket.fault(On::s3(Operation::UploadPart, "*").after(1), Fault::CutRequest(MIB));
    let mut larder = Larder::start_with(&registry, with_bucket(&bucket));
    pull(&larder, "v1", &image);
    bucket.wait_for(Operation::UploadPart, "blobs/*", 2);
    larder.stop();
    bucket.clear_faults();
    bucket.clear_requests();
    larder.run();
    larder.wait_until_uploaded(&bucket);
    let key = format!("blobs/sha256/{}", layer.digest.trim_start_matches("sha256:"));
    assert!(bucket.object(&key).as_deref() == Some(&layer.bytes));
    assert_eq!(bucket.count_of(Operation::UploadPart, "*"), 2, "two of three parts");
    assert!(bucket.uploads().is_empty());
}

#[test]
fn tag_that_another_cache_has_confirmed_later_is_kept() {
    let (bucket, registry) = (FakeBucket::start(), FakeRegistry::start());
    let (old, new) = (Image::sample("old"), Image::sample("new"));
    registry.add(REPOSITORY, "v1", &old);
    let larder = Larder::start_with(&registry, with_bucket(&bucket));
    pull(&larder, "v1", &old);
    larder.wait_until_uploaded(&bucket);
    let key = bucket.keys().into_iter().find(|key| key.contains("/_tags/")).expect("a tag");
    let record = TagRecord::from_json(&bucket.object(&key).expect("an object")).expect("a record");
    let day = Duration::from_secs(86_400);
    // A new day, so the confirmation is uploaded, but after that of the other cache, whose clock is a bit ahead.
    let later = TagRecord {
        digest: new.digest().parse().expect("a digest"),
        checked: record.checked + day + Duration::from_secs(30),
        ..record
    };
    bucket.put(&key, &serde_json::to_vec(&later.wire()).expect("JSON"));
    larder.advance(day);
    assert!(larder.get(&manifest(REPOSITORY, "v1")).body == old.manifest());
    until("an empty queue", || larder.is_queue_empty());
    let kept = TagRecord::from_json(&bucket.object(&key).expect("an object")).expect("a record");
    assert_eq!(kept, later);
    // After that time, the confirmation of this cache is the latest.
    larder.advance(2 * day);
    assert!(larder.get(&manifest(REPOSITORY, "v1")).body == old.manifest());
    until("the tag", || {
        let record = TagRecord::from_json(&bucket.object(&key).unwrap_or_default());
        record.is_some_and(|record| record.digest.to_string() == old.digest())
    });
}

#[test]
fn what_was_cached_before_there_was_a_bucket_is_uploaded() {
    let (bucket, registry) = (FakeBucket::start(), FakeRegistry::start());
    let image = Image::sample("v1").layer(bytes(MIB, 9));
    registry.add(REPOSITORY, "v1", &image);
    let mut larder = Larder::start(&registry);
    pull(&larder, "v1", &image);
    assert!(!larder.root().join("outgoing").exists());
    larder.restart_with(with_bucket(&bucket));
    larder.wait_until_uploaded(&bucket);
    // Once only.
    bucket.clear_requests();
    larder.restart();
    bucket.wait_for(Operation::DeleteObject, "probe/*", 1);
    assert_eq!(bucket.count_of(Operation::PutObject, "blobs/*"), 0);
}

#[test]
fn of_two_servers_on_a_directory_one_uploads() {
    let (bucket, registry) = (FakeBucket::start(), FakeRegistry::start());
    let image = Image::sample("v1").layer(bytes(MIB, 10));
    registry.add(REPOSITORY, "v1", &image);
    let first = Larder::start_with(&registry, with_bucket(&bucket));
    let second = first.second();
    pull(&second, "v1", &image);
    second.wait_until_uploaded(&bucket);
    for key in bucket.keys() {
        assert_eq!(bucket.count_of(Operation::PutObject, &key), 1, "{key}");
    }
}
