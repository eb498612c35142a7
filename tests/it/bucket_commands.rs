//! Commands that copy images to and from a bucket, list them and remove them.

use std::fs;
use std::time::Duration;

use crate::support::site::{NamedImage, Site};
use crate::support::{FakeBucket, Operation};

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
    bucket.expect_refusals();
    let (code, _, stderr) = site.run(&["export", "app:1", "--output", "s3://nope/x"]);
    assert!(code == Some(1) && stderr.contains("s3:// URL of the command"), "{stderr}");
    // A mistyped prefix, and what cannot be the name of a bucket.
    let (code, _, stderr) = other.run(&["import", "s3://larder-test/bundles/on"]);
    assert!(code == Some(1) && stderr.contains("bundles/on/: no image is there"), "{stderr}");
    let (code, _, stderr) = other.run(&["import", "s3://lar\u{1b}[31mder/x"]);
    assert!(code == Some(2) && stderr.contains("not the name of a bucket"), "{stderr}");
    assert!(!stderr.contains('\u{1b}'), "{stderr:?}");
}

/// The key of a blob.
fn blob_key(digest: &str) -> String {
    format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"))
}

/// The digest of a layer that no other image has.
fn last_layer(named: &NamedImage) -> String {
    named.image.layers().pop().expect("a layer").digest
}

#[test]
fn damaged_object_prevents_only_the_import_of_its_image() {
    let bucket = FakeBucket::start();
    let (registry, site, images) = Site::with_samples(&["app:1", "app:2"]);
    drop(registry);
    let keys = object_store(&bucket, "");
    site.configure(&keys);
    let place = "s3://larder-test/one";
    let (_, _, stderr) = site.run(&["export", "--all", "--output", place]);
    assert_eq!(stderr.matches(&images[0].full()).count(), 1, "each image once: {stderr}");
    let key = format!("one/{}", blob_key(&last_layer(&images[0])));
    let bytes = bucket.object(&key).expect("an object");
    bucket.corrupt(&key);

    let (_registry, other) = Site::empty(&keys);
    let (code, _, stderr) = other.run(&["import", place, "--pin"]);
    assert!(code == Some(1) && stderr.contains("1 image pinned"), "{stderr}");
    let url = format!("{}/larder-test/{key}", bucket.endpoint());
    for words in ["app:1: not imported; ", &url, "the bytes have the digest", "delete this object"]
    {
        assert!(stderr.contains(words), "{words}: {stderr}");
    }
    assert_eq!(other.listed(&[]), [images[1].full()]);
    bucket.put(&key, &bytes);
    other.run_ok(&["import", place]);
    assert!(other.listed(&[]).len() == 2 && other.has_all(&images[0]));
}

#[test]
fn incomplete_images_of_a_bucket_are_not_imported_and_replace_no_tag() {
    let bucket = FakeBucket::start();
    let (registry, site, images) = Site::with_samples(&["app:1", "app:2"]);
    drop(registry);
    let keys = object_store(&bucket, "");
    site.configure(&keys);
    let place = "s3://larder-test/one";
    site.run_ok(&["export", "--all", "--output", place]);
    let key_of = |digest: &str| format!("one/{}", blob_key(digest));
    let layer = key_of(&last_layer(&images[0]));
    let record = |part: &str| {
        let mut keys = bucket.keys().into_iter();
        keys.find(|key| key.contains(part)).expect("an object")
    };
    let manifest = images[0].image.digest();
    let hex = manifest.trim_start_matches("sha256:").to_owned();
    for missing in [layer, key_of(&manifest), record(&format!("/_manifests/sha256/{hex}"))] {
        let bytes = bucket.object(&missing).expect("an object");
        bucket.remove(&missing);
        let (_registry, other) = Site::empty(&keys);
        let (code, _, stderr) = other.run(&["import", place]);
        let key = missing.trim_start_matches("one/");
        assert!(
            code == Some(1) && stderr.contains("app:1: not imported; 1 object missing"),
            "{stderr}"
        );
        assert!(stderr.contains(key), "{key}: {stderr}");
        assert_eq!(other.listed(&[]), [images[1].full()]);
        bucket.put(&missing, &bytes);
    }
    // The tag of a complete image, and a record of it whose manifest is nowhere.
    let tag = record("/_tags/1");
    let text = String::from_utf8(bucket.object(&tag).expect("an object")).expect("JSON");
    bucket.put(&tag, text.replace(&hex, &"a".repeat(64)).as_bytes());
    let (code, _, stderr) = site.run(&["import", place]);
    assert!(code == Some(1) && stderr.contains(&"a".repeat(64)), "{stderr}");
    assert!(site.run_ok(&["list", "app:1"]).contains("complete"));
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
    for flag in ["--tree", "--digests", "--pinned", "--sort=size"] {
        let (code, _, stderr) = site.run(&["list", "--bucket", flag]);
        assert!(code == Some(2) && stderr.contains("does not apply with --bucket"), "{stderr}");
    }
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
