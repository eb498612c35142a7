//! A bucket that fails, lies or loses objects, and content that must not be uploaded.

use std::fs;

use larder::cache::{BlobAccess, BucketStatus, FreshnessPolicy, OnUpstreamDelete, Ttl};
use larder::oci::{Record, TagRecord};
use larder::upstream::BreakerState;

use crate::support::larder::{Larder, Settings, blob, manifest, seconds, until};
use crate::support::{FakeBucket, FakeRegistry, Fault, Image, On, Operation, bytes};

const REPOSITORY: &str = "team/app";
const MIB: usize = 1 << 20;

/// Uses the bucket, and confirms tags after `ttl` seconds.
fn confirming(bucket: &FakeBucket, ttl: u64) -> impl Fn(&mut Settings) + '_ {
    move |settings| {
        settings.use_bucket(bucket);
        settings.cache.freshness = FreshnessPolicy::of(Ttl::For(seconds(ttl)));
    }
}

/// A bucket, a registry with an image as `v1`, and the image, which has a layer of this size.
fn site(layer: usize) -> (FakeBucket, FakeRegistry, Image) {
    let (bucket, registry) = (FakeBucket::start(), FakeRegistry::start());
    let image = Image::sample("v1").layer(bytes(layer, 3));
    registry.add(REPOSITORY, "v1", &image);
    (bucket, registry, image)
}

fn larder(registry: &FakeRegistry, bucket: &FakeBucket) -> Larder {
    Larder::start_with(registry, |settings| settings.use_bucket(bucket))
}

/// A cache that has pulled `v1` and uploaded it.
fn filled(registry: &FakeRegistry, bucket: &FakeBucket, image: &Image) -> Larder {
    Larder::filling(bucket, registry, REPOSITORY, image)
}

/// The digest of the last layer, which `site` has added, and its key.
fn last_layer(image: &Image) -> (String, String) {
    let digest = image.layers().pop().expect("a layer").digest;
    let key = format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"));
    (digest, key)
}

/// The key of the only object whose key contains this.
#[track_caller]
fn key_with(bucket: &FakeBucket, part: &str) -> String {
    bucket.keys().into_iter().find(|key| key.contains(part)).expect("an object")
}

fn tag_in(bucket: &FakeBucket) -> TagRecord {
    let object = bucket.object(&key_with(bucket, "/_tags/")).expect("an object");
    TagRecord::from_json(&object).expect("a record")
}

#[track_caller]
fn wait_for_empty_queue(larder: &Larder) {
    until("an empty queue", || larder.is_queue_empty());
}

#[test]
fn content_that_the_bucket_refuses_does_not_delay_other_content() {
    let (bucket, registry, refused) = site(MIB);
    let good = Image::sample("good");
    registry.add(REPOSITORY, "good", &good);
    bucket.expect_refusals();
    let (digest, key) = last_layer(&refused);
    // Nothing is uploaded before the layer is cached: a tag does not wait for what the cache does not have.
    bucket.deny_writes(true);
    let mut larder = larder(&registry, &bucket);
    larder.pull_image(REPOSITORY, "v1", &refused);
    larder.pull_image(REPOSITORY, "good", &good);
    larder.wait_until_cached(&digest);
    larder.stop();
    bucket.deny_writes(false);
    bucket.fault(On::s3(Operation::PutObject, &key), Fault::status(413));
    larder.run();
    bucket.wait_for(Operation::PutObject, "*/_tags/good", 1);
    assert!(!larder.is_queue_empty() && larder.has(&digest));
    assert!(!bucket.keys().iter().any(|key| key.ends_with("/_tags/v1")), "incomplete");
}

#[test]
fn damaged_content_is_not_uploaded_and_does_not_delay_other_content() {
    for size in [MIB, 6 * MIB] {
        let (bucket, registry, image) = site(size);
        let good = Image::sample("good");
        registry.add(REPOSITORY, "good", &good);
        bucket.expect_refusals();
        bucket.deny_writes(true);
        let mut larder = larder(&registry, &bucket);
        larder.pull_image(REPOSITORY, "v1", &image);
        larder.pull_image(REPOSITORY, "good", &good);
        larder.stop();
        let (digest, key) = last_layer(&image);
        let path = larder.blob_file(&digest);
        let mut content = fs::read(&path).expect("it can be read");
        content[1000] ^= 1;
        fs::write(&path, content).expect("it can be written");
        bucket.deny_writes(false);
        larder.run();
        bucket.wait_for(Operation::PutObject, "*/_tags/good", 1);
        until("quarantine", || !path.exists());
        assert!(bucket.object(&key).is_none());
        // It is fetched again, and then uploaded.
        larder.pull_image(REPOSITORY, "v1", &image);
        larder.wait_until_uploaded(&bucket);
        assert!(bucket.object(&key) == Some(image.layers().pop().expect("a layer").bytes));
    }
}

#[test]
fn damaged_record_of_a_tag_is_not_uploaded() {
    let (bucket, registry, image) = site(MIB);
    let mut larder = filled(&registry, &bucket, &image);
    let before = tag_in(&bucket);
    bucket.deny_writes(true);
    bucket.expect_refusals();
    larder.advance(seconds(86_400));
    larder.pull_image(REPOSITORY, "v1", &image);
    until("a queued tag", || !larder.is_queue_empty());
    larder.stop();
    let path = larder.root().join(key_with(&bucket, "/_tags/"));
    fs::write(path, b"").expect("it can be written");
    bucket.deny_writes(false);
    larder.run();
    wait_for_empty_queue(&larder);
    assert_eq!(tag_in(&bucket), before);
}

#[test]
fn bucket_that_was_emptied_is_filled_by_what_is_fetched_again() {
    let (bucket, registry, image) = site(MIB);
    let larder = filled(&registry, &bucket, &image);
    bucket.clear();
    fs::remove_dir_all(larder.root().join("blobs/sha256")).expect("it can be removed");
    fs::remove_dir_all(larder.root().join("refs")).expect("it can be removed");
    larder.advance(seconds(3600));
    larder.pull_image(REPOSITORY, "v1", &image);
    larder.wait_until_uploaded(&bucket);
}

#[test]
fn objects_of_a_wrong_size_are_replaced() {
    for size in [0, 1, MIB / 2, MIB + 1] {
        let (bucket, registry, image) = site(MIB);
        let (digest, key) = last_layer(&image);
        let right = image.layers().pop().expect("a layer").bytes;
        let mut wrong = right.clone();
        wrong.resize(size, 7);
        bucket.put(&key, &wrong);
        let larder = larder(&registry, &bucket);
        let path = blob(REPOSITORY, &digest);
        until("the right bytes", || {
            let got = larder.get(&path);
            assert!(!(got.complete && got.status == 200) || got.body == right, "{size}");
            got.complete && got.status == 200
        });
        until("the right object", || bucket.object(&key).as_deref() == Some(&right));
        wait_for_empty_queue(&larder);
    }
}

#[test]
fn object_of_a_wrong_size_is_replaced_by_what_was_cached_before() {
    let (bucket, registry, image) = site(9_000);
    let mut larder = Larder::start(&registry);
    larder.pull_image(REPOSITORY, "v1", &image);
    let (_, key) = last_layer(&image);
    bucket.put(&key, b"cut");
    larder.restart_with(|settings| settings.use_bucket(&bucket));
    larder.wait_until_uploaded(&bucket);
    assert!(bucket.object(&key) == Some(image.layers().pop().expect("a layer").bytes));
}

#[test]
fn damaged_record_of_a_manifest_in_the_bucket_is_replaced() {
    let (bucket, registry, image) = site(9_000);
    drop(filled(&registry, &bucket, &image));
    let record = key_with(&bucket, "/_manifests/");
    let right = bucket.object(&record).expect("an object");
    for wrong in [&b""[..], b"{}", &b"[".repeat(60_000)] {
        bucket.put(&record, wrong);
        let larder = larder(&registry, &bucket);
        larder.pull_image(REPOSITORY, "v1", &image);
        until("a record", || bucket.object(&record).as_deref() != Some(wrong));
        assert_eq!(bucket.object(&record).map(|record| record.len()), Some(right.len()));
        wait_for_empty_queue(&larder);
    }
}

#[test]
fn tag_of_a_cache_whose_clock_is_wrong_is_replaced() {
    let (bucket, registry, old) = site(9_000);
    let first = larder(&registry, &bucket);
    first.advance(seconds(400 * 86_400));
    first.pull_image(REPOSITORY, "v1", &old);
    first.wait_until_uploaded(&bucket);
    let new = Image::sample("new");
    registry.add(REPOSITORY, "v1", &new);
    let second = Larder::start_with(&registry, confirming(&bucket, 60));
    second.pull_image(REPOSITORY, "v1", &new);
    until("the new tag", || tag_in(&bucket).digest.to_string() == new.digest());
    wait_for_empty_queue(&second);
}

#[test]
fn mark_of_a_tag_that_the_registry_has_deleted_is_uploaded() {
    let (bucket, registry, image) = site(9_000);
    let larder = Larder::start_with(&registry, confirming(&bucket, 60));
    larder.pull_image(REPOSITORY, "v1", &image);
    larder.wait_until_uploaded(&bucket);
    registry.remove_tag(REPOSITORY, "v1");
    larder.advance(seconds(100));
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    until("the mark", || tag_in(&bucket).gone.is_some());
    registry.take_unscripted();
}

#[test]
fn tag_that_the_registry_has_deleted_does_not_come_back_with_drop() {
    let (bucket, registry, image) = site(9_000);
    let larder = Larder::start_with(&registry, |settings| {
        confirming(&bucket, 60)(settings);
        settings.cache.freshness.on_upstream_delete = OnUpstreamDelete::Drop;
    });
    larder.pull_image(REPOSITORY, "v1", &image);
    larder.wait_until_uploaded(&bucket);
    registry.remove_tag(REPOSITORY, "v1");
    for _ in 0..4 {
        larder.advance(seconds(300));
        assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 404);
        assert_eq!(larder.head(&manifest(REPOSITORY, "v1")).status, 404);
    }
    // By default, it is kept.
    let other = Larder::start_with(&registry, confirming(&bucket, 60));
    other.advance(seconds(300));
    let got = other.get(&manifest(REPOSITORY, "v1"));
    assert!(got.status == 200 && got.header("warning").is_some(), "{got:?}");
    registry.take_unscripted();
}

#[test]
fn registry_that_does_not_support_head_decides_with_get() {
    let (bucket, registry, old) = site(9_000);
    drop(filled(&registry, &bucket, &old));
    let new = Image::sample("new");
    registry.add(REPOSITORY, "v1", &new);
    for status in [403, 404, 405] {
        registry.fault(On::head_manifest("v1"), Fault::status(status));
        let larder = Larder::start_with(&registry, |settings| {
            confirming(&bucket, 0)(settings);
            settings.uploads = None;
        });
        for request in [Larder::get, Larder::head] {
            let got = request(&larder, &manifest(REPOSITORY, "v1"));
            assert_eq!(got.header("docker-content-digest"), Some(&*new.digest()), "{got:?}");
            assert_eq!(got.header("warning"), None, "{got:?}");
        }
        registry.clear_faults();
    }
}

#[test]
fn rate_limit_is_respected_while_the_bucket_is_asked() {
    let (bucket, registry, image) = site(9_000);
    drop(filled(&registry, &bucket, &image));
    registry.fault(On::anything(), Fault::rate_limited(60));
    let larder = Larder::start_with(&registry, confirming(&bucket, 0));
    assert_eq!(larder.get(&manifest(REPOSITORY, "v2")).status, 429);
    registry.clear_requests();
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    assert!(got.status == 200 && got.header("warning").is_some(), "{got:?}");
    larder.pull_image(REPOSITORY, "v1", &image);
    // Also if the bucket has the tag and not its manifest.
    let digest = image.digest();
    bucket.remove(&format!("blobs/sha256/{}", digest.trim_start_matches("sha256:")));
    let other = Larder::start_with(&registry, confirming(&bucket, 0));
    assert_eq!(other.get(&manifest(REPOSITORY, "v2")).status, 429);
    registry.clear_requests();
    for _ in 0..3 {
        assert_eq!(other.get(&manifest(REPOSITORY, "v1")).status, 429);
    }
    assert!(registry.requests().is_empty(), "{:?}", registry.requests());
}

#[test]
fn bucket_that_does_not_respond_is_skipped() {
    let (bucket, registry, image) = site(MIB);
    bucket.fault(On::anything(), Fault::StallForever);
    let larder = Larder::start_with(&registry, |settings| {
        settings.be_impatient();
        settings.use_bucket(&bucket);
        settings.uploads = None;
    });
    let (digest, _) = last_layer(&image);
    assert_eq!(larder.head(&blob(REPOSITORY, &digest)).status, 200);
    bucket.clear_requests();
    larder.pull_image(REPOSITORY, "v1", &image);
    assert!(bucket.requests().is_empty(), "{:?}", bucket.requests());
}

#[test]
fn queue_that_was_removed_is_made_again() {
    let (bucket, registry, image) = site(MIB);
    bucket.deny_writes(true);
    bucket.expect_refusals();
    let mut larder = larder(&registry, &bucket);
    larder.pull_image(REPOSITORY, "v1", &image);
    larder.wait_until_published();
    larder.stop();
    fs::remove_dir_all(larder.root().join("outgoing")).expect("it can be removed");
    bucket.deny_writes(false);
    larder.run();
    larder.wait_until_uploaded(&bucket);
}

#[test]
fn queue_that_cannot_be_written_does_not_fail_pulls() {
    let (bucket, registry, image) = site(MIB);
    let larder = filled(&registry, &bucket, &image);
    let new = Image::sample("new").layer(bytes(MIB, 4));
    registry.add(REPOSITORY, "new", &new);
    let queue = larder.root().join("outgoing");
    // The server may make the directory again in between.
    let replaced = |_| fs::remove_dir_all(&queue).and_then(|()| fs::write(&queue, b"")).is_ok();
    assert!((0..1000).any(replaced), "{} cannot be replaced", queue.display());
    larder.pull_image(REPOSITORY, "new", &new);
    registry.stop();
    larder.pull_image(REPOSITORY, "v1", &image);
}

#[test]
fn response_of_the_bucket_is_not_one_of_the_registry() {
    let (bucket, registry, image) = site(9_000);
    registry.add(REPOSITORY, "v2", &image);
    let other = bytes(7_000, 8);
    let digest = registry.add_blob(REPOSITORY, &other);
    bucket.put(&format!("blobs/sha256/{}", digest.trim_start_matches("sha256:")), &other);
    let larder = Larder::start_with(&registry, |settings| {
        confirming(&bucket, 60)(settings);
        settings.uploads = None;
        // No manifest has the blob, so the registry would be asked whether the repository does.
        settings.cache.access.blobs = BlobAccess::Any;
    });
    for tag in ["v1", "v2"] {
        assert_eq!(larder.get(&manifest(REPOSITORY, tag)).status, 200);
    }
    larder.advance(seconds(100));
    registry.stop();
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    registry.start_again();
    registry.clear_requests();
    assert_eq!(larder.get(&blob(REPOSITORY, &digest)).status, 200);
    // The registry still counts as failing.
    assert_eq!(larder.get(&manifest(REPOSITORY, "v2")).status, 200);
    assert!(registry.requests().is_empty(), "{:?}", registry.requests());
}

#[test]
fn wrong_object_is_not_read_again_and_again() {
    let (bucket, registry, image) = site(MIB);
    let (digest, key) = last_layer(&image);
    bucket.put(&key, &bytes(MIB, 99));
    bucket.deny_writes(true);
    bucket.expect_refusals();
    registry.fault(On::get_blob(&digest), Fault::status(503));
    let larder = larder(&registry, &bucket);
    for _ in 0..4 {
        let got = larder.get(&blob(REPOSITORY, &digest));
        assert!(got.status != 200 || !got.complete, "{}", got.status);
    }
    let reads = bucket.count_of(Operation::GetObject, &key);
    assert!(reads <= 2, "{reads}");
    registry.clear_faults();
    until("the right bytes", || {
        larder.advance(seconds(60));
        let got = larder.get(&blob(REPOSITORY, &digest));
        got.status == 200 && got.complete
    });
}

fn status(larder: &Larder) -> BucketStatus {
    larder.cache().bucket_status().expect("a bucket")
}

#[test]
fn uploads_count_as_failing_until_everything_that_has_failed_is_uploaded() {
    let (bucket, registry, refused) = site(MIB);
    let good = Image::sample("good");
    registry.add(REPOSITORY, "good", &good);
    let (digest, key) = last_layer(&refused);
    bucket.fault(On::s3(Operation::PutObject, &key), Fault::s3_error(400, "EntityTooLarge"));
    let larder = larder(&registry, &bucket);
    larder.pull_image(REPOSITORY, "v1", &refused);
    larder.wait_until_cached(&digest);
    until("a failure", || status(&larder).failure.is_some());
    larder.pull_image(REPOSITORY, "good", &good);
    bucket.wait_for(Operation::PutObject, "*/_tags/good", 1);
    until("the end of that upload", || status(&larder).running == 0);
    assert!(status(&larder).failure.is_some(), "the layer is not uploaded");
    bucket.clear_faults();
    larder.wait_until_uploaded(&bucket);
    until("the end of the failure", || status(&larder).failure.is_none());
}

#[test]
fn bucket_that_fails_at_the_start_is_examined_again() {
    let (bucket, registry, _) = site(1);
    let probe = |larder: &Larder| status(larder).probe;
    bucket.down();
    let larder = larder(&registry, &bucket);
    until("a probe", || probe(&larder).is_some_and(|probe| probe.error.is_some()));
    bucket.up();
    until("another probe", || {
        probe(&larder).is_some_and(|probe| probe.error.is_none() && probe.has_create_if_absent)
    });
    // One that may only be written.
    bucket.fault(On::s3(Operation::GetObject, "probe/*"), Fault::s3_error(403, "AccessDenied"));
    let second = self::larder(&registry, &bucket);
    until("a probe", || probe(&second).is_some_and(|probe| !probe.is_readable));
    bucket.clear_faults();
    until("another probe", || probe(&second).is_some_and(|probe| probe.is_readable));
}

#[test]
fn bucket_that_refuses_to_be_read_is_reported_and_skipped() {
    for (code, refusal) in
        [(403, "AccessDenied"), (404, "NoSuchBucket"), (301, "PermanentRedirect")]
    {
        let (bucket, registry, image) = site(1);
        bucket.fault(On::s3(Operation::GetObject, "*"), Fault::s3_error(code, refusal));
        let larder = larder(&registry, &bucket);
        larder.pull_image(REPOSITORY, "v1", &image);
        let reads = status(&larder).reads.expect("it was read");
        assert_ne!(reads.breaker, BreakerState::Closed, "{refusal}");
        let failure = reads.last_failure.expect("a failure");
        assert!(failure.contains(refusal) && reads.failing_since.is_some(), "{failure}");
    }
}

#[test]
fn object_that_is_missing_does_not_count_as_a_failure_of_the_bucket() {
    let (bucket, registry, image) = site(1);
    let larder = larder(&registry, &bucket);
    larder.pull_image(REPOSITORY, "v1", &image);
    let reads = status(&larder).reads.expect("it was read");
    assert_eq!((reads.breaker, reads.last_failure), (BreakerState::Closed, None));
}
