//! Removing names and blobs, with every kind of concurrent change.

use super::images::{image, index};
use super::*;
use rustix::io::Errno;
use std::sync::atomic::Ordering;

/// Sets the times of everything in the directory to one hour ago.
fn grow_old(directory: &Path) {
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            grow_old(&path);
        }
        File::open(&path).unwrap().set_modified(hour_ago).unwrap();
    }
}

fn sweep(store: &Store) -> Sweep {
    store.begin_sweep().unwrap().unwrap()
}

fn sweep_all_but(sweep: &Sweep, keep: &[Digest]) -> Swept {
    sweep.sweep(GRACE, &|digest| keep.contains(digest), &mut || true).unwrap()
}

fn has(store: &Store, digest: &Digest) -> bool {
    store.blob(digest, None).is_some()
}

/// Removes a tag of `quay.io/a` with these manifests, as listed in `catalogue`.
fn remove(store: &Store, sweep: &Sweep, catalogue: &Catalogue, manifests: &[Digest]) -> bool {
    let (repository, image) = (&catalogue.repositories[0], &catalogue.images[0]);
    assert_eq!(catalogue.full_reference(image), "quay.io/a:v1");
    let removal = Removal {
        name: &repository.name,
        seen: &repository.names,
        images: vec![(&image.reference, image.pulled)],
        manifests: manifests.to_vec(),
    };
    let removed = sweep.remove(&removal).unwrap();
    assert_eq!(removed, store.tag(&repository.name, &tag("v1"), Access::Look).is_none());
    removed
}

fn catalogue(store: &Store) -> Catalogue {
    store.catalogue(&mut || true).unwrap().unwrap()
}

/// Stores `quay.io/a:v1`, one hour old, with its manifest and one layer.
fn one_image() -> (tempfile::TempDir, Store, Digest, Digest) {
    let (directory, store) = fresh();
    let layer = put(&store, b"layer");
    put(&store, b"config");
    let (manifest, size) = image(&store, "quay.io/a", &[b"layer"]);
    store.put_tag(&name("quay.io/a"), &tag("v1"), &record(manifest, size)).unwrap();
    grow_old(directory.path());
    (directory, store, manifest, layer)
}

#[test]
fn a_catalogue_numbers_what_images_need() {
    let (_directory, store, manifest, layer) = one_image();
    let (child, size) = image(&store, "quay.io/b", &[b"layer", b"missing"]);
    let (root, _) = index(&store, "quay.io/b", &[(child, size, "amd64")]);
    put(&store, b"unneeded");
    let catalogue = catalogue(&store);
    assert_eq!(catalogue.repositories.len(), 2);
    let [one, two] = &catalogue.images[..] else { panic!("{:?}", catalogue.images) };
    let digests = |image: &CatalogueImage| -> Vec<Digest> {
        image.content.iter().map(|number| catalogue.content[*number as usize].digest).collect()
    };
    assert_eq!(digests(one), [manifest, sha256(b"config"), layer]);
    assert_eq!(digests(two), [root, child, sha256(b"config"), layer], "what is missing has none");
    assert_eq!((one.manifests, two.manifests), (1, 2));
    assert_eq!(one.content[2], two.content[3], "shared content has one number");
    let bytes = |digest: &Digest| store.blob(digest, None).unwrap().size;
    let sizes = two.content.iter().map(|number| catalogue.content[*number as usize].size);
    assert_eq!(sizes.sum::<u64>(), bytes(&root) + bytes(&child) + 6 + 5);
    assert_eq!(catalogue.unreferenced.iter().map(|each| each.size).sum::<u64>(), 8);
    assert!(store.catalogue(&mut || false).unwrap().is_none());
}

#[test]
fn a_sweep_removes_names_empty_directories_and_unreferenced_blobs() {
    let (directory, store, manifest, layer) = one_image();
    let other = put(&store, b"other");
    grow_old(directory.path());
    let sweep = sweep(&store);
    assert!(remove(&store, &sweep, &catalogue(&store), &[manifest]));
    assert!(!directory.path().join("refs/quay.io").exists());
    let swept = sweep_all_but(&sweep, &[other]);
    assert_eq!((swept.blobs, swept.young, swept.is_partial), (3, 0, false));
    assert!(!has(&store, &layer) && !has(&store, &manifest) && has(&store, &other));
    assert!(store.is_index_outdated());
}

#[test]
fn young_blobs_stay_until_they_are_old() {
    let (directory, store, _, layer) = one_image();
    let young = put(&store, b"young");
    assert_eq!(sweep_all_but(&sweep(&store), &[layer]).young, 1);
    assert!(has(&store, &young));
    grow_old(directory.path());
    sweep_all_but(&sweep(&store), &[layer]);
    assert!(!has(&store, &young) && has(&store, &layer));
}

#[test]
fn a_blob_that_is_referenced_after_the_scan_stays() {
    let (directory, store, _, _) = one_image();
    let old = put(&store, b"old and unreferenced");
    grow_old(directory.path());
    let sweep = sweep(&store);
    let seen = catalogue(&store);
    assert!(seen.number_of(&old).is_none());
    image(&store, "quay.io/b", &[b"old and unreferenced"]);
    sweep.sweep(Duration::ZERO, &|digest| seen.number_of(digest).is_some(), &mut || true).unwrap();
    assert!(has(&store, &old));
}

#[test]
fn an_image_that_is_pulled_after_the_scan_stays() {
    let (_directory, store, manifest, _) = one_image();
    let (sweep, seen) = (sweep(&store), catalogue(&store));
    store.manifest(&name("quay.io/a"), &manifest, Access::Pull(SystemTime::now())).unwrap();
    assert!(!remove(&store, &sweep, &seen, &[manifest]));
}

#[test]
fn a_manifest_that_gets_another_tag_after_the_scan_stays() {
    let (_directory, store, manifest, _) = one_image();
    let (sweep, seen) = (sweep(&store), catalogue(&store));
    let size = store.blob(&manifest, None).unwrap().size;
    store.put_tag(&name("quay.io/a"), &tag("v2"), &record(manifest, size)).unwrap();
    assert!(!remove(&store, &sweep, &seen, &[manifest]));
}

#[test]
fn a_confirmation_of_a_tag_does_not_keep_an_image() {
    let (_directory, store, manifest, _) = one_image();
    let other = name("quay.io/a");
    let size = store.blob(&manifest, None).unwrap().size;
    store.put_tag(&other, &tag("v2"), &record(manifest, size)).unwrap();
    let (sweep, seen) = (sweep(&store), catalogue(&store));
    let confirmed = TagRecord { checked: at(9_000), ..record(manifest, size) };
    store.put_tag(&other, &tag("v2"), &confirmed).unwrap();
    assert!(remove(&store, &sweep, &seen, &[]));
}

#[test]
fn a_tag_restores_the_record_of_its_manifest() {
    let (_directory, store, manifest, layer) = one_image();
    let sweep = sweep(&store);
    let seen = catalogue(&store);
    assert!(remove(&store, &sweep, &seen, &[manifest]));
    // A process read the manifest before its names were removed, and confirms the tag now.
    let size = store.blob(&manifest, None).unwrap().size;
    store.put_tag(&name("quay.io/a"), &tag("v1"), &record(manifest, size)).unwrap();
    sweep_all_but(&sweep, &[]);
    assert!(has(&store, &manifest) && has(&store, &layer));
    assert_eq!(store.manifests(&name("quay.io/a")), [manifest]);
}

#[test]
fn a_blob_with_an_old_partial_counts_as_new() {
    let (directory, store) = fresh();
    let digest = sha256(b"hello world");
    let mut ingest = begin(&store, &digest);
    ingest.write(b"hello world").unwrap();
    drop(ingest);
    grow_old(directory.path());
    let mut ingest = begin(&store, &digest);
    recover(&mut ingest);
    ingest.verify(None).unwrap().commit().unwrap();
    assert_eq!(sweep_all_but(&sweep(&store), &[]).young, 1);
}

#[test]
fn a_running_import_keeps_everything_and_only_one_sweep_runs() {
    let (_directory, store, _, layer) = one_image();
    let import = store.bundle_lock().unwrap();
    assert_eq!(store.begin_sweep().unwrap().unwrap_err(), SweepLocked::Bundle);
    drop(import);
    let commit = store.commit_lock().unwrap();
    assert_eq!(store.begin_sweep().unwrap().unwrap_err(), SweepLocked::Commit);
    drop(commit);
    let first = sweep(&store);
    assert_eq!(store.begin_sweep().unwrap().unwrap_err(), SweepLocked::AnotherSweep);
    let import = store.bundle_lock().unwrap();
    let seen = catalogue(&store);
    assert!(!remove(&store, &first, &seen, &[]));
    assert!(sweep_all_but(&first, &[]).is_partial && has(&store, &layer));
    drop((import, first));
    sweep_all_but(&sweep(&store), &[]);
    assert!(!has(&store, &layer));
}

#[test]
fn an_open_blob_stays_readable() {
    let (_directory, store, _, layer) = one_image();
    let blob = store.blob(&layer, None).unwrap();
    sweep_all_but(&sweep(&store), &[]);
    assert!(!has(&store, &layer));
    assert_eq!(content(&blob), b"layer");
}

#[test]
fn partials_are_removed_unless_they_are_being_written() {
    let (directory, store) = fresh();
    let (busy, idle) = (sha256(b"busy"), sha256(b"idle"));
    let mut at_work = begin(&store, &busy);
    at_work.write(b"bu").unwrap();
    let mut left = begin(&store, &idle);
    left.write(b"id").unwrap();
    left.note(&name("quay.io/a"), None).unwrap();
    drop(left);
    grow_old(directory.path());
    let files = store.partial_files();
    assert_eq!(files.iter().map(|file| file.bytes).sum::<u64>(), 4);
    let freed: Vec<_> = files.iter().map(|file| store.remove_partial(file).unwrap()).collect();
    assert_eq!(freed.iter().flatten().sum::<u64>(), 2);
    assert_eq!(store.partial_files().len(), 1);
    assert!(store.partials().is_empty());
    at_work.write(b"sy").unwrap();
    drop(at_work);
    // It has grown since it was listed.
    let seen = &files.iter().find(|file| store.remove_partial(file).is_ok()).unwrap();
    assert_eq!(store.remove_partial(seen).unwrap(), None);
    assert_eq!(store.remove_old_partials(SystemTime::now(), Duration::from_secs(60)).unwrap(), 0);
    grow_old(directory.path());
    assert_eq!(store.remove_old_partials(SystemTime::now(), Duration::from_secs(60)).unwrap(), 4);
    assert!(store.partial_files().is_empty());
}

#[test]
fn old_leftovers_of_killed_processes_are_removed() {
    let (directory, store) = fresh();
    let left = directory.path().join("incoming/tmp-1-2-3");
    fs::write(&left, "half").unwrap();
    store.remove_leftovers(SystemTime::now());
    assert!(left.exists());
    grow_old(directory.path());
    store.remove_leftovers(SystemTime::now());
    assert!(!left.exists());
}

/// Overlapping commits hold the shared lock all the time. Without the gate, no removal would ever get it.
#[test]
fn overlapping_commits_do_not_starve_a_removal() {
    let (directory, store, _, _) = one_image();
    let is_over = AtomicBool::new(false);
    let is_running = || !is_over.load(Ordering::Relaxed);
    let other_process = open(directory.path());
    std::thread::scope(|scope| {
        for store in [&store, &store, &other_process, &other_process] {
            scope.spawn(move || {
                while is_running() {
                    let held = store.commit_lock().unwrap();
                    std::thread::sleep(Duration::from_micros(500));
                    drop(held);
                }
            });
        }
        for _ in 0..20 {
            drop(store.exclusive_lock().unwrap().unwrap());
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn concurrent_removals_are_not_mistaken_for_an_import() {
    let (directory, store, _, _) = one_image();
    let other_process = open(directory.path());
    std::thread::scope(|scope| {
        for store in [&store, &store, &other_process] {
            scope.spawn(|| {
                for _ in 0..300 {
                    let locked = store.exclusive_lock().unwrap();
                    assert_ne!(locked.err(), Some(SweepLocked::Bundle));
                }
            });
        }
    });
}

#[test]
fn a_blob_with_a_future_time_ages_like_any_other() {
    let (directory, store, _, layer) = one_image();
    let path = store.inner.layout.blob(&layer);
    let year = Duration::from_secs(365 * 86_400);
    let set = |time| File::open(&path).unwrap().set_modified(time).unwrap();
    set(SystemTime::now() + year);
    assert_eq!(sweep_all_but(&sweep(&store), &[]).young, 1);
    assert!(has(&store, &layer));
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    assert!(modified < SystemTime::now() + year / 2, "its time is that of the first scan");
    grow_old(directory.path());
    sweep_all_but(&sweep(&store), &[]);
    assert!(!has(&store, &layer));
}

#[test]
fn a_sweep_that_cannot_list_the_blobs_fails() {
    let (_directory, store, _, layer) = one_image();
    let sweep = sweep(&store);
    store.fail_reads("blobs/sha256", 0, 1, Errno::MFILE);
    let swept = sweep.sweep(GRACE, &|_| false, &mut || true);
    assert!(matches!(swept, Err(StoreError::IncompleteScan { .. })), "{swept:?}");
    store.fail_reads("blobs/sha256", 0, 1, Errno::IO);
    assert!(matches!(store.blobs(), Err(StoreError::IncompleteScan { .. })));
    store.fail_reads("blobs/sha256", 0, 1, Errno::IO);
    assert!(store.catalogue(&mut || true).is_err());
    store.fail_reads(&layer.hex(), 0, 1, Errno::STALE);
    assert!(sweep.sweep(GRACE, &|_| false, &mut || true).is_err());
    assert!(has(&store, &layer));
}
