//! Commands that copy images to and from a bucket, list them and remove them.

use std::fs;
use std::time::Duration;

use crate::support::{FakeBucket, Operation};
use crate::support::site::Site;

/// The entry for a bucket in the store of `bucket`, and more keys of it.
fn object_store(bucket: &FakeBucket, more: &str) -> String {
    let endpoint = bucket.endpoint();
    format!(
        "objectStore: {{endpoint: '{endpoint}', bucket: larder-test, accessKeyId: test, \
         secretAccessKey: s{more}}}"
    )
}

#[test]
fn images_are_exported_to_a_bucket_and_imported_from_it() {
    let bucket = FakeBucket::start();
    let (registry, site, images) = Site::with_samples(&["app:1", "app:2"]);
    drop(registry);
    let keys = object_store(&bucket, "").replace("larder-test", "other");
    site.configure(&keys);
    let place = "s3://larder-test/bundles/one/";
    let (code, _, stderr) = site.run(&["export", "app:1", "--output", place]);
    assert_eq!(code, Some(0), "{stderr}");
    let prefix = "bundles/one/";
    assert!(bucket.keys().iter().all(|key| key.starts_with(prefix)), "{:?}", bucket.keys());
    // A repeated export sends only names.
    bucket.clear_requests();
    site.run_ok(&["export", "app:1", "--output", place]);
    assert_eq!(bucket.count_of(Operation::PutObject, "bundles/one/blobs/*"), 0);
    let (code, _, stderr) = site.run(&["export", "app:1", "--output", place, "--compress", "gzip"]);
    assert!(code == Some(2) && stderr.contains("--compress: does not apply"), "{stderr}");
    let (code, _, stderr) = site.run(&["export", "app:1", "--output", "s3:///x"]);
    assert!(code == Some(2) && stderr.contains("names no bucket"), "{stderr}");

    let (_registry, other) = Site::empty(&keys);
    let (code, _, stderr) = other.run(&["import", place, "--pin"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("1 image, ") && stderr.contains("1 image pinned"), "{stderr}");
    assert_eq!(other.listed(&[]), site.listed(&["app:1"]));
    assert!(other.has_all(&images[0]));
    // Wrong bytes are not imported.
    let (_registry, third) = Site::empty(&keys);
    let layer = &images[0].image.layers()[0].digest;
    bucket.corrupt(&format!("bundles/one/blobs/sha256/{}", layer.trim_start_matches("sha256:")));
    let (code, _, stderr) = third.run(&["import", place]);
    assert!(code == Some(1) && stderr.contains("the bytes have the digest"), "{stderr}");
    assert!(!third.has(layer) && third.listed(&[]).is_empty());
}

#[test]
fn images_of_a_bucket_are_listed_and_pruned_by_commands() {
    let bucket = FakeBucket::start();
    let (registry, site, images) = Site::with_samples(&["app:1", "app:2"]);
    drop(registry);
    let keys = object_store(&bucket, ", unusedFor: 30d");
    site.configure(&keys);
    site.run_ok(&["export", "--all", "--output", "s3://larder-test"]);
    let listed = site.run_ok(&["list", "--bucket", "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed}");
    assert_eq!(listed[0]["image"], images[0].full());
    assert_eq!(listed[0]["blobsNotUploaded"], 0);
    assert!(site.run_ok(&["list", "--bucket", "app:2"]).contains("app:2"));
    assert!(!site.run_ok(&["list", "--bucket", "app:2"]).contains("app:1"));
    let past = std::time::SystemTime::now() - Duration::from_secs(40 * 86_400);
    for key in bucket.keys() {
        bucket.set_modified(&key, past);
    }
    let preview = site.run_ok(&["prune", "--bucket", "--dry-run"]);
    assert!(preview.contains("2 images and ") && preview.contains("would be removed"), "{preview}");
    let (code, _, stderr) = site.run(&["prune", "--bucket", "app:1"]);
    assert!(code == Some(2) && stderr.contains("takes only --dry-run"), "{stderr}");
    site.configure("");
    let (code, _, stderr) = site.run(&["list", "--bucket"]);
    assert!(code == Some(1) && stderr.contains("has no objectStore"), "{stderr}");
}

#[test]
fn bucket_that_is_only_read_is_neither_swept_nor_pruned() {
    let bucket = FakeBucket::start();
    let (registry, site, _) = Site::with_samples(&["app:1"]);
    drop(registry);
    site.configure(&object_store(&bucket, ""));
    site.run_ok(&["export", "--all", "--output", "s3://larder-test"]);
    let past = std::time::SystemTime::now() - Duration::from_secs(40 * 86_400);
    bucket.put(&format!("blobs/sha256/{}", "a".repeat(64)), b"of nobody");
    for key in bucket.keys() {
        bucket.set_modified(&key, past);
    }
    let before = bucket.keys();
    site.configure(&object_store(&bucket, ", readOnly: true"));
    let (code, _, stderr) = site.run(&["prune", "--bucket"]);
    assert!(code == Some(1) && stderr.contains("objectStore.readOnly is set"), "{stderr}");
    assert!(site.run_ok(&["prune", "--bucket", "--dry-run"]).contains("1 blob would be removed"));
    assert_eq!(bucket.keys(), before);

    let threads = |keys: &str| {
        site.configure(keys);
        let server = site.serve();
        let tasks = fs::read_dir(format!("/proc/{}/task", server.process.id())).expect("threads");
        let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).ok();
        let names: Vec<String> = tasks.filter_map(|task| name(task.ok()?)).collect();
        names
    };
    let sweeps = "bucket-sweep\n".to_owned();
    assert!(threads(&object_store(&bucket, "")).contains(&sweeps));
    assert!(!threads(&object_store(&bucket, ", readOnly: true")).contains(&sweeps));
}
