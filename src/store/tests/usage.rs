//! Results of the usage walk.

use super::images::{image, index};
use super::*;

fn walk(store: &Store) -> UsageSummary {
    walk_at(store, 5_000_000)
}

fn walk_at(store: &Store, seconds: u64) -> UsageSummary {
    let disk = store.count_disk(&mut || true).unwrap();
    store.walk_usage(&disk, &|| at(seconds), &mut || true).unwrap().unwrap()
}

fn images(store: &Store) -> Vec<ImageUsage> {
    let mut all = Vec::new();
    store.each_usage(&mut |image| {
        all.push(image);
        true
    });
    all
}

fn names(store: &Store) -> Vec<String> {
    images(store).into_iter().map(|image| image.image).collect()
}

/// Stores two registries, an index of two platforms of which one is cached, and a layer that two images share.
fn cache() -> (tempfile::TempDir, Store) {
    let (directory, store) = fresh();
    put(&store, br#"{"created":"2020-01-02T03:04:05Z"}"#);
    put(&store, b"config");
    put(&store, b"shared");
    let (child, size) = image(&store, "docker.io/a", &[b"shared"]);
    let children = [(child, size, "amd64"), (sha256(b"elsewhere"), 9, "arm64")];
    let (root, root_size) = index(&store, "docker.io/a", &children);
    store.put_tag(&name("docker.io/a"), &tag("v1"), &record(root, root_size)).unwrap();
    let (other, size) = image(&store, "quay.io/b/c", &[b"shared", b"missing"]);
    store.put_tag(&name("quay.io/b/c"), &tag("v2"), &record(other, size)).unwrap();
    (directory, store)
}

#[test]
fn what_was_not_accepted_for_a_tag_is_no_incomplete_image() {
    let (_directory, store) = cache();
    let (held, _) = image(&store, "docker.io/a", &[b"not pulled"]);
    assert_eq!(walk(&store).images, 3);
    let before = store.tag(&name("docker.io/a"), &tag("v1"), Access::Look).unwrap();
    let waiting = HeldManifest { digest: held, since: at(1), decision: Decision::Waiting };
    let record = TagRecord { held: Some(waiting), ..before };
    store.put_tag(&name("docker.io/a"), &tag("v1"), &record).unwrap();
    let summary = walk(&store);
    assert_eq!((summary.images, summary.complete_images), (2, 1));
    assert!(!names(&store).iter().any(|image| image.contains(&held.to_string())));
    // A client may pull it by its digest.
    put(&store, b"not pulled");
    store
        .put_tag(&name("docker.io/a"), &tag("v1"), &TagRecord { gone: Some(at(2)), ..record })
        .unwrap();
    assert_eq!(walk(&store).images, 3);
}

#[test]
fn a_walk_reports_present_and_missing_content() {
    let (_directory, store) = cache();
    assert!(store.usage().is_none() && images(&store).is_empty());
    let summary = walk(&store);
    assert_eq!(store.usage(), Some(summary.clone()));
    assert_eq!((summary.images, summary.complete_images, summary.repositories), (2, 1, 2));
    assert_eq!((summary.manifests, summary.blobs, summary.as_of), (3, 3, 5_000_000));
    let disk = store.count_disk(&mut || true).unwrap();
    assert_eq!(summary.manifest_bytes + summary.blob_bytes, disk.bytes);
    let registries: Vec<_> =
        summary.registries.iter().map(|each| (each.name.as_str(), each.images)).collect();
    assert_eq!(registries, [("docker.io", 1), ("quay.io", 1)]);

    let mut repositories = Vec::new();
    store.each_repository_usage(&mut |each| {
        repositories.push((each.of, each.images, each.complete_images));
        true
    });
    let expected = [("docker.io/library/a".to_owned(), 1, 1), ("quay.io/b/c".to_owned(), 1, 0)];
    assert_eq!(repositories, expected);
    let [one, two] = &images(&store)[..] else { panic!("{:?}", images(&store)) };
    assert_eq!((one.image.as_str(), one.complete), ("docker.io/library/a:v1", true));
    assert_eq!((one.platforms.as_slice(), one.blobs), (&["linux/amd64".to_owned()][..], 2));
    assert_eq!((two.image.as_str(), two.complete), ("quay.io/b/c:v2", false));
    assert_eq!((two.missing_bytes, two.checked), (7, Some(2_000)));
}

#[test]
fn a_walk_reads_only_what_has_changed() {
    let (directory, store) = cache();
    walk(&store);
    // If a walk read the manifest, it would find it damaged.
    let damaged = store.tag(&name("docker.io/a"), &tag("v1"), Access::Look).unwrap().digest;
    fs::write(directory.path().join("blobs/sha256").join(damaged.hex()), "x").unwrap();
    let later = at(6_000_000);
    store.tag(&name("docker.io/a"), &tag("v1"), Access::Pull(later)).unwrap();
    put(&store, b"missing");
    let (new, size) = image(&store, "quay.io/b/d", &[b"shared"]);
    store.put_tag(&name("quay.io/b/d"), &tag("v3"), &record(new, size)).unwrap();
    let before = images(&store)[0].pulled;
    walk_at(&store, 5_000_001);
    let [one, two, three] = &images(&store)[..] else { panic!("{:?}", images(&store)) };
    assert!(one.complete && one.pulled >= before, "{one:?}");
    assert!(two.complete, "it was incomplete, so it was read again: {two:?}");
    assert_eq!(three.image, "quay.io/b/d:v3");

    walk_at(&store, 5_000_000 + 7 * 3600);
    assert!(!images(&store)[0].complete, "after some hours everything is read again");
}

#[test]
fn a_walk_writes_nothing_when_nothing_has_changed() {
    let (directory, store) = fresh();
    put(&store, b"config");
    let (digest, size) = image(&store, "quay.io/a", &[]);
    store.put_tag(&name("quay.io/a"), &tag("v"), &record(digest, size)).unwrap();
    let used = SystemTime::now() - Duration::from_secs(7_200);
    let path = store.inner.layout.manifest(&name("quay.io/a"), &digest);
    File::open(path).unwrap().set_modified(used).unwrap();
    let path = store.inner.layout.tag(&name("quay.io/a"), &tag("v"));
    File::open(path).unwrap().set_modified(used).unwrap();
    walk_at(&store, 5_000_000);
    let list = directory.path().join("usage/images.jsonl");
    let long_ago = at(1_000);
    File::open(&list).unwrap().set_modified(long_ago).unwrap();
    let was_written = || fs::metadata(&list).unwrap().modified().unwrap() != long_ago;

    let summary = walk_at(&store, 5_000_100);
    assert_eq!((summary.as_of, summary.images), (5_000_100, 1));
    assert!(!was_written());
    // A pull does not change any directory.
    let pulled = SystemTime::now();
    store.manifest(&name("quay.io/a"), &digest, Access::Pull(pulled)).unwrap();
    walk_at(&store, 5_000_200);
    assert!(was_written());
    File::open(&list).unwrap().set_modified(long_ago).unwrap();
    fs::remove_dir_all(directory.path().join("refs/quay.io")).unwrap();
    assert_eq!(walk_at(&store, 5_000_300).images, 0);
    assert!(was_written() && images(&store).is_empty());
}

#[test]
fn added_and_removed_repositories_leave_the_others_unchanged() {
    let (_directory, store) = fresh();
    let add = |repository: &str| {
        let (digest, size) = image(&store, repository, &[]);
        store.put_tag(&name(repository), &tag("v"), &record(digest, size)).unwrap();
    };
    put(&store, b"config");
    for each in ["a.io/m", "a.io/m/n", "a.io/m-o", "b.io/z"] {
        add(each);
    }
    walk(&store);
    let all = ["a.io/m:v", "a.io/m/n:v", "a.io/m-o:v", "b.io/z:v"];
    assert_eq!(names(&store), all);
    add("a.io/a");
    store.remove_tag(&name("a.io/m"), &tag("v")).unwrap();
    let gone = store.manifests(&name("a.io/m"))[0];
    fs::remove_file(store.inner.layout.manifest(&name("a.io/m"), &gone)).unwrap();
    add("c.io/c");
    walk(&store);
    let expected = ["a.io/a:v", "a.io/m/n:v", "a.io/m-o:v", "b.io/z:v", "c.io/c:v"];
    assert_eq!(names(&store), expected);
}

#[test]
fn a_stopped_walk_keeps_the_last_results_and_one_process_walks_at_a_time() {
    let (directory, store) = cache();
    let summary = walk(&store);
    let disk = DiskUsage::default();
    assert!(store.walk_usage(&disk, &|| at(9), &mut || false).unwrap().is_none());
    assert_eq!(store.usage(), Some(summary));
    let temporary = fs::read_dir(directory.path().join("incoming")).unwrap().flatten();
    let left = temporary.filter(|entry| entry.file_name().to_string_lossy().starts_with("tmp-"));
    assert_eq!(left.count(), 0);
    let lock = File::options().append(true).open(store.inner.layout.usage_lock()).unwrap();
    lock.lock().unwrap();
    assert!(store.walk_usage(&disk, &|| at(9), &mut || true).unwrap().is_none());
}

#[test]
fn a_walk_can_pause_and_stop_within_a_large_repository() {
    let (_directory, store) = fresh();
    put(&store, b"config");
    for number in 0..20u8 {
        put(&store, &[number]);
        let (digest, size) = image(&store, "quay.io/large", &[&[number]]);
        let tag = tag(&format!("v{number}"));
        store.put_tag(&name("quay.io/large"), &tag, &record(digest, size)).unwrap();
    }
    let disk = DiskUsage::default();
    let walk_for = |most: usize| {
        let mut asked = 0;
        let mut keep_going = || {
            asked += 1;
            asked <= most
        };
        let walked = store.walk_usage(&disk, &|| at(5_000_000), &mut keep_going).unwrap();
        (walked.is_some(), asked)
    };
    assert_eq!(walk_for(30), (false, 31), "stopped in the middle of the repository");
    let (is_done, asked) = walk_for(usize::MAX);
    assert!(is_done && asked >= 40, "each image is found and read: {asked}");
    assert_eq!(walk_for(10), (false, 11), "it also stops if nothing has changed");
    let (is_done, asked) = walk_for(usize::MAX);
    assert!(is_done && (20..40).contains(&asked), "nothing is read again: {asked}");
}

#[test]
fn the_disk_usage_is_updated_between_counts() {
    let (_directory, store) = fresh();
    assert_eq!(store.disk_bytes(), None);
    put(&store, b"before");
    let counted = store.count_disk(&mut || true).unwrap();
    assert_eq!((counted.files, counted.bytes), (1, 6));
    let used = || store.disk_bytes().unwrap() - counted.allocated_bytes;
    assert_eq!(used(), 0);
    let mut ingest = begin(&store, &sha256(b"partial"));
    ingest.write(b"par").unwrap();
    drop(ingest);
    assert_eq!(used(), 3);
    let mut ingest = begin(&store, &sha256(b"partial"));
    recover(&mut ingest);
    ingest.write(b"tial").unwrap();
    ingest.verify(None).unwrap().commit().unwrap();
    let mut wrong = begin(&store, &sha256(b"wrong"));
    wrong.write(b"not that").unwrap();
    assert_eq!(used(), 7 + 8);
    assert!(wrong.verify(None).is_err());
    drop(store.digesting_writer(Algorithm::Sha256).unwrap());
    assert_eq!(used(), 7);
    let counted = store.count_disk(&mut || true).unwrap();
    assert_eq!((counted.bytes, counted.files), (13, 2));
    assert_eq!(store.disk_bytes(), Some(counted.allocated_bytes));
}

#[test]
fn everything_below_the_directory_counts_with_its_allocated_size() {
    let (directory, store) = fresh();
    put(&store, b"config");
    let (digest, size) = image(&store, "quay.io/a", &[]);
    store.put_tag(&name("quay.io/a"), &tag("v"), &record(digest, size)).unwrap();
    let list = ListRecord {
        checked: 1,
        body: Document::Memory([b'x'; 100_000].as_slice().into()),
        next: None,
        filters_applied: None,
    };
    store.put_list(&name("quay.io/a"), "tags", &list, u64::MAX).unwrap();
    let mut ingest = begin(&store, &sha256(b"partial"));
    ingest.write(&[1; 50_000]).unwrap();
    drop(ingest);
    fs::create_dir(directory.path().join("quarantine")).unwrap();
    fs::write(directory.path().join("quarantine/sha256-00"), [2; 70_000]).unwrap();
    walk(&store);
    let counted = store.count_disk(&mut || true).unwrap();
    let du = Command::new("du").arg("-sB1").arg(directory.path()).output().unwrap().stdout;
    let du = String::from_utf8(du).unwrap();
    assert_eq!(du.split_whitespace().next(), Some(&*counted.allocated_bytes.to_string()));
    assert!(counted.allocated_bytes > 220_000);
}

#[test]
fn a_removed_repository_is_no_longer_listed_whatever_its_position() {
    for removed in ["a.io/first", "a.io/middle", "b.io/last"] {
        let (directory, store) = fresh();
        put(&store, b"config");
        for each in ["a.io/first", "a.io/middle", "b.io/last"] {
            let (digest, size) = image(&store, each, &[]);
            store.put_tag(&name(each), &tag("v"), &record(digest, size)).unwrap();
        }
        assert_eq!(walk_at(&store, 5_000_000).images, 3);
        fs::remove_dir_all(directory.path().join("refs").join(removed)).unwrap();
        let summary = walk_at(&store, 5_000_100);
        assert_eq!((summary.images, summary.repositories), (2, 2), "{removed}");
        assert!(!names(&store).contains(&format!("{removed}:v")), "{removed}");
    }
}
