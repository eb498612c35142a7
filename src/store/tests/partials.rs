//! Ingest: partials, their writers, and their leftovers.

use super::*;
use crate::store::files::layout::move_directory;

#[test]
fn a_partial_has_no_name_until_it_is_committed() {
    let (_directory, store) = fresh();
    let digest = sha256(b"hello");
    let mut ingest = begin(&store, &digest);
    ingest.write(b"hel").unwrap();
    assert!(store.blob(&digest, None).is_none());
    ingest.write(b"lo").unwrap();
    let verified = ingest.verify(Some(5)).unwrap();
    assert!(store.blob(&digest, None).is_none(), "verified is not committed");
    verified.commit().unwrap();
    assert_eq!(content(&store.blob(&digest, None).unwrap()), b"hello");
    assert!(!store.inner.layout.partial(&quay(), &digest).exists());
}

#[test]
fn wrong_bytes_never_get_a_name_and_leave_nothing() {
    let (_directory, store) = fresh();
    let digest = sha256(b"hello");
    for (bytes, expected) in [(&b"hellO"[..], None), (b"hell", Some(5)), (b"hello!", Some(5))] {
        let mut ingest = begin(&store, &digest);
        ingest.write(bytes).unwrap();
        assert!(ingest.verify(expected).is_err());
        assert!(store.blob(&digest, None).is_none());
        assert!(!store.inner.layout.partial(&quay(), &digest).exists());
    }
}

#[test]
fn a_directory_that_cannot_be_created_is_an_error_and_no_other_writer() {
    let (_directory, store) = fresh();
    let partials = store.inner.layout.all_partials();
    fs::remove_dir(&partials).unwrap();
    // Fails for root as well, as on a full disk.
    fs::write(&partials, b"in the way").unwrap();
    let begun = store.ingest(&quay(), &sha256(b"hello"), None);
    assert!(matches!(begun, Err(StoreError::Write { .. })), "{begun:?}");
}

#[test]
fn readers_follow_the_growing_file_and_outlive_the_commit() {
    let (_directory, store) = fresh();
    let digest = sha256(b"hello");
    let mut ingest = begin(&store, &digest);
    let follower = Arc::clone(ingest.file());
    ingest.write(b"hel").unwrap();
    let mut head = [0; 3];
    follower.read_exact_at(&mut head, 0).unwrap();
    assert_eq!(&head, b"hel");
    ingest.write(b"lo").unwrap();
    ingest.verify(None).unwrap().commit().unwrap();
    let mut tail = [0; 2];
    follower.read_exact_at(&mut tail, 3).unwrap();
    assert_eq!(&tail, b"lo");
}

#[test]
fn of_two_writers_one_gets_the_lock() {
    let (_directory, store) = fresh();
    let other_process = open(store.root());
    let digest = sha256(b"hello");
    let mut first = begin(&store, &digest);
    assert!(matches!(other_process.ingest(&quay(), &digest, None).unwrap(), Begin::Locked));
    first.write(b"hello").unwrap();
    let blob = first.verify(None).unwrap().commit().unwrap();
    let found = other_process.ingest(&quay(), &digest, None).unwrap();
    assert!(matches!(found, Begin::Present(_)), "although a reader holds the file");
    assert_eq!(content(&blob), b"hello", "and the finished blob was not truncated");
}

#[test]
fn a_dropped_writer_leaves_its_bytes_and_no_lock_while_readers_follow() {
    let (_directory, store) = fresh();
    let digest = sha256(b"hello");
    let mut first = begin(&store, &digest);
    first.write(b"hel").unwrap();
    let _slow_reader = Arc::clone(first.file());
    drop(first);
    let mut second = begin(&store, &digest);
    recover(&mut second);
    assert_eq!(second.bytes_written(), 3);
    second.write(b"lo").unwrap();
    second.verify(Some(5)).unwrap().commit().unwrap();
    assert_eq!(content(&store.blob(&digest, None).unwrap()), b"hello");
}

#[test]
fn a_partial_with_the_wrong_digest_is_removed() {
    let (_directory, store) = fresh();
    let digest = sha256(b"hello");
    let mut first = begin(&store, &digest);
    first.write(b"hEl").unwrap();
    drop(first);
    let mut second = begin(&store, &digest);
    recover(&mut second);
    second.write(b"lo").unwrap();
    assert!(matches!(second.verify(Some(5)), Err(IngestError::WrongDigest { .. })));
    let third = begin(&store, &digest);
    assert_eq!(third.file().metadata().unwrap().len(), 0, "the next one begins at zero");
}

#[test]
fn resumed_bytes_are_verified_whether_they_were_hashed_before_or_not() {
    for (earlier, is_right) in [(b"hel", true), (b"hEl", false)] {
        let (_directory, store) = fresh();
        let digest = sha256(b"hello");
        let mut first = begin(&store, &digest);
        first.write(earlier).unwrap();
        drop(first);
        let mut second = begin(&store, &digest);
        assert_eq!(second.bytes_written(), 3);
        second.write(b"lo").unwrap();
        let verified = second.verify(Some(5));
        assert_eq!(verified.is_ok(), is_right, "{verified:?}");
    }
}

#[test]
fn a_partial_is_found_with_its_repository_until_it_is_a_blob() {
    let (_directory, store) = fresh();
    let (digest, origin) = (sha256(b"hello"), name("quay.io/a/b"));
    let mut first = begin(&store, &digest);
    first.note(&origin, Some(5)).unwrap();
    assert_eq!(store.partials(), [(origin.clone(), digest)]);
    first.write(b"hel").unwrap();
    drop(first);
    assert_eq!(store.partials(), [(origin, digest)]);
    let mut second = begin(&store, &digest);
    assert_eq!(second.noted_size(), Some(5));
    recover(&mut second);
    second.write(b"lo").unwrap();
    second.verify(None).unwrap().commit().unwrap();
    assert_eq!(store.partials(), []);
    assert!(!store.inner.layout.partial_note(&quay(), &digest).exists());
}

#[test]
fn a_note_of_version_0_1_has_no_size() {
    let (_directory, store) = fresh();
    let digest = sha256(b"hello");
    begin(&store, &digest).write(b"hel").unwrap();
    let note = store.inner.layout.partial_note(&quay(), &digest);
    fs::write(note, br#"{"repository":"a/b"}"#).unwrap();
    assert_eq!(store.partials(), [(name("quay.io/a/b"), digest)]);
    assert_eq!(begin(&store, &digest).noted_size(), None);
}

#[test]
fn a_partial_is_not_resumed_from_another_upstream() {
    let (_directory, store) = fresh();
    let digest = sha256(b"hello");
    let mut first = begin(&store, &digest);
    first.write(b"hEl").unwrap();
    let other: Upstream = "evil.example".parse().unwrap();
    let Begin::Writing(mut second) = store.ingest(&other, &digest, None).unwrap() else {
        panic!("no process is writing for that upstream")
    };
    recover(&mut second);
    assert_eq!(second.bytes_written(), 0);
    second.write(b"hello").unwrap();
    second.verify(Some(5)).unwrap().commit().unwrap();
    assert_eq!(content(&store.blob(&digest, None).unwrap()), b"hello");
}

#[test]
fn damaged_notes_and_notes_without_a_partial_are_ignored() {
    let (_directory, store) = fresh();
    let digest = sha256(b"hello");
    let note = store.inner.layout.partial_note(&quay(), &digest);
    fs::create_dir_all(note.parent().unwrap()).unwrap();
    fs::write(&note, br#"{"repository":"a"}"#).unwrap();
    assert_eq!(store.partials(), [], "no partial beside it");
    fs::write(store.inner.layout.partial(&quay(), &digest), b"hel").unwrap();
    assert_eq!(store.partials().len(), 1);
    for content in ["", "{}", r#"{"repository":"../a"}"#] {
        fs::write(&note, content).unwrap();
        assert_eq!(store.partials(), [], "{content}");
    }
}

#[test]
fn a_writer_that_wrote_nothing_leaves_nothing() {
    let (_directory, store) = fresh();
    let digest = sha256(b"hello");
    drop(begin(&store, &digest));
    assert!(!store.inner.layout.partial(&quay(), &digest).exists());
}

#[test]
fn a_small_blob_is_written_despite_another_writer() {
    let (_directory, store) = fresh();
    let digest = sha256(b"manifest");
    let _busy = begin(&store, &digest);
    store.ingest_bytes(&digest, b"manifest").unwrap();
    assert_eq!(store.read(&digest, 8).unwrap(), b"manifest");
    let wrong = store.ingest_bytes(&digest, b"mAnifest");
    assert!(matches!(wrong, Ok(()) | Err(IngestError::WrongDigest { .. })));
    assert_eq!(store.read(&digest, 8).unwrap(), b"manifest");
}

/// Run by the next test in its own process: writes half a blob, reports it, and waits to be killed.
#[test]
fn helper_that_is_killed_during_an_ingest() {
    let Ok(root) = std::env::var("LARDER_TEST_KILLED_ROOT") else { return };
    let store = open(Path::new(&root));
    let mut ingest = begin(&store, &sha256(b"hello"));
    ingest.write(b"hel").unwrap();
    println!("half written");
    let mut end_of_input = Vec::new();
    io::stdin().read_to_end(&mut end_of_input).unwrap();
    panic!("the test should have killed this process");
}

#[test]
fn a_process_killed_during_an_ingest_leaves_no_name_and_no_lock() {
    let (directory, store) = fresh();
    let digest = sha256(b"hello");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "store::tests::partials::helper_that_is_killed_during_an_ingest",
            "--nocapture",
        ])
        .env("LARDER_TEST_KILLED_ROOT", directory.path())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut output = Vec::new();
    let stdout = child.stdout.as_mut().unwrap();
    let mut byte = [0];
    while !output.ends_with(b"half written") {
        assert_eq!(stdout.read(&mut byte).unwrap(), 1, "the helper ended early");
        output.push(byte[0]);
    }
    assert!(
        matches!(store.ingest(&quay(), &digest, None).unwrap(), Begin::Locked),
        "its lock is held"
    );
    child.kill().unwrap();
    child.wait().unwrap();

    assert!(store.blob(&digest, None).is_none());
    assert!(store.inner.layout.partial(&quay(), &digest).exists(), "the partial stays");
    let mut ingest = begin(&store, &digest);
    recover(&mut ingest);
    assert_eq!(ingest.bytes_written(), 3);
    ingest.write(b"lo").unwrap();
    ingest.verify(Some(5)).unwrap().commit().unwrap();
    assert_eq!(content(&store.blob(&digest, Some(5)).unwrap()), b"hello");
}

#[test]
fn resuming_without_a_partial_creates_nothing() {
    let (_directory, store) = fresh();
    let digest = sha256(b"never stored");
    assert!(matches!(store.resume(&quay(), &digest, None).unwrap(), Begin::Absent));
    assert_eq!(entries(&store.inner.layout.all_partials()), Vec::<String>::new());
    put(&store, b"hello");
    let found = store.resume(&quay(), &sha256(b"hello"), Some(5)).unwrap();
    assert!(matches!(found, Begin::Present(_)));
    assert_eq!(entries(&store.inner.layout.all_partials()), Vec::<String>::new());
}

#[test]
fn the_directory_of_an_upstream_is_removed_with_its_last_partial() {
    let (_directory, store) = fresh();
    let partials = store.inner.layout.partials(&quay());
    let (one, other) = (sha256(b"hello"), sha256(b"other"));
    let mut first = begin(&store, &one);
    let mut second = begin(&store, &other);
    first.write(b"hello").unwrap();
    second.write(b"o").unwrap();
    first.verify(None).unwrap().commit().unwrap();
    store.remove_empty_partials(&quay());
    assert!(partials.exists(), "the other one is in it");
    second.discard();
    store.remove_empty_partials(&quay());
    assert!(!partials.exists());

    let mut kept = begin(&store, &other);
    kept.write(b"o").unwrap();
    drop(kept);
    assert!(partials.exists(), "a partial that has bytes stays");
    let [partial] = &store.idle_partials()[..] else { panic!("expected one partial") };
    assert_eq!(store.remove_partial(partial).unwrap(), Some(1));
    assert!(!partials.exists());
}

/// Two threads begin and discard partials of one upstream, so that each removes the directory that the other is
/// about to use.
#[test]
fn a_directory_that_is_removed_between_creation_and_opening_is_created_again() {
    let (_directory, store) = fresh();
    let work = |content: &'static [u8]| {
        let store = store.clone();
        move || {
            for _ in 0..500 {
                match store.ingest(&quay(), &sha256(content), None).unwrap() {
                    Begin::Writing(ingest) => {
                        ingest.discard();
                        store.remove_empty_partials(&quay());
                    }
                    // Only after losing the race in every round.
                    other => assert!(matches!(other, Begin::Locked)),
                }
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work(b"one"));
        scope.spawn(work(b"two"));
    });
    assert_eq!(entries(&store.inner.layout.all_partials()), Vec::<String>::new());
}

#[test]
fn directories_in_place_of_locks_are_moved_away_on_open() {
    let (directory, store) = fresh();
    drop(store);
    let incoming = directory.path().join("incoming");
    for name in ["prune.lock", "pins.lock", "index.lock", "usage.lock", "sweep.lock"] {
        let _ = fs::remove_file(incoming.join(name));
        fs::create_dir(incoming.join(name)).unwrap();
        fs::write(incoming.join(name).join(sha256(b"x").dashed()), b"x").unwrap();
    }
    let store = open(directory.path());
    assert!(store.is_writable());
    assert!(store.begin_sweep().unwrap().is_ok());
    assert_eq!(store.add_pins(&["quay.io/*".to_owned()]).unwrap(), 1);
    store.write_index().unwrap();
    drop(store.commit_lock().unwrap());
    store.remove_leftovers(SystemTime::now());
    let left = entries(&incoming);
    assert!(left.iter().all(|name| name.ends_with(".lock")), "{left:?}");
}

#[test]
fn partials_of_version_0_1_are_moved_and_what_else_clients_had_created_is_removed() {
    let (directory, store) = fresh();
    let incoming = directory.path().join("incoming");
    let (digest, outside) = (sha256(b"hello"), directory.path().join("outside"));
    for name in ["quay.io", "invented.example", "busy.example"] {
        fs::create_dir(incoming.join(name)).unwrap();
    }
    fs::write(incoming.join("quay.io").join(digest.dashed()), b"hel").unwrap();
    let note = format!("{}.json", digest.dashed());
    fs::write(incoming.join("quay.io").join(&note), br#"{"repository":"a"}"#).unwrap();
    fs::write(incoming.join("busy.example").join(digest.dashed()), b"he").unwrap();
    fs::write(&outside, b"not ours").unwrap();
    std::os::unix::fs::symlink(&outside, incoming.join("link.example")).unwrap();
    let busy = File::open(incoming.join("busy.example").join(digest.dashed())).unwrap();
    busy.lock().unwrap();

    store.remove_leftovers(SystemTime::now());
    assert!(!incoming.join("quay.io").exists() && !incoming.join("invented.example").exists());
    assert!(incoming.join("busy.example").exists(), "an older process is writing it");
    assert_eq!(fs::read(&outside).unwrap(), b"not ours");
    assert_eq!(store.partials(), [(name("quay.io/a"), digest)]);
    let mut ingest = begin(&store, &digest);
    recover(&mut ingest);
    assert_eq!(ingest.bytes_written(), 3);
}

fn entries(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn the_oldest_idle_partials_beyond_the_limit_are_removed() {
    let (directory, store) = fresh();
    let other: Upstream = "other.test".parse().unwrap();
    let mut idle = Vec::new();
    for number in 0..5u8 {
        for upstream in [&quay(), &other] {
            let digest = sha256(&[number]);
            let Begin::Writing(mut ingest) = store.ingest(upstream, &digest, None).unwrap() else {
                panic!("no other writer exists")
            };
            ingest.write(b"part").unwrap();
            ingest.file().set_modified(at(1_000_000 + u64::from(number))).unwrap();
            idle.push(ingest);
        }
    }
    // The oldest partial of the other registry is still being written.
    let under_way = idle.remove(1);
    drop(idle);
    let freed = store.bound_partials(2, &|upstream| *upstream == other).unwrap();
    assert_eq!(freed, 3 * 4);
    let left = |of: &Upstream| {
        let files = store.partial_files().into_iter().filter(|file| file.upstream() == of);
        let mut digests: Vec<Digest> = files.map(|file| *file.digest()).collect();
        digests.sort();
        digests
    };
    let mut expected = [sha256(&[0]), sha256(&[4])];
    expected.sort();
    assert_eq!(left(&other), expected);
    assert_eq!(left(&quay()).len(), 5);
    drop((under_way, directory));
}

#[test]
fn a_partial_that_was_replaced_by_another_file_is_never_committed() {
    let (_directory, store) = fresh();
    let digest = sha256(b"hello");
    let path = store.inner.layout.partial(&quay(), &digest);
    let mut ingest = begin(&store, &digest);
    ingest.write(b"hello").unwrap();
    fs::write(path.with_extension("other"), b"WRONG").unwrap();
    fs::rename(path.with_extension("other"), &path).unwrap();
    assert!(ingest.verify(Some(5)).unwrap().commit().is_err());
    assert!(store.blob(&digest, None).is_none());
    assert_eq!(fs::read(&path).unwrap(), b"WRONG", "it is not ours to remove");
}

#[test]
fn what_version_0_1_left_never_takes_the_place_of_a_partial_that_is_being_written() {
    let (_directory, store) = fresh();
    let digest = sha256(b"hello");
    let old = store.inner.layout.incoming().join("quay.io");
    fs::create_dir(&old).unwrap();
    fs::write(old.join(digest.dashed()), b"WRO").unwrap();
    let mut ingest = begin(&store, &digest);
    ingest.write(b"hel").unwrap();
    store.remove_leftovers(SystemTime::now());
    assert!(!old.exists());
    ingest.write(b"lo").unwrap();
    ingest.verify(Some(5)).unwrap().commit().unwrap();
    assert_eq!(store.read(&digest, 5).unwrap(), b"hello");
}

#[test]
fn foreign_files_in_incoming_stay() {
    let (_directory, store) = fresh();
    let incoming = store.inner.layout.incoming();
    let kept = ["lost+found/file", "quay.io/notes.txt", "tmp-1-2-3/notes.txt", "notes.txt"];
    for path in kept.map(|path| incoming.join(path)) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"foreign").unwrap();
    }
    let empty = store.inner.layout.partials(&quay());
    fs::create_dir_all(&empty).unwrap();
    assert!(!store.remove_leftovers(SystemTime::now() + Duration::from_secs(86_400)));
    for path in kept {
        assert_eq!(fs::read(incoming.join(path)).unwrap(), b"foreign", "{path}");
    }
    assert!(!empty.exists(), "a writer was killed before its first byte");
}

#[test]
fn a_directory_that_replaces_a_lock_later_is_moved_away() {
    let (_directory, store) = fresh();
    for lock in [store.inner.layout.prune_lock(), store.inner.layout.sweep_gate()] {
        let _ = fs::remove_file(&lock);
        fs::create_dir(&lock).unwrap();
        drop(store.begin_sweep().unwrap().unwrap());
        assert!(lock.is_file());
    }
}

#[test]
fn a_lock_file_is_never_moved_in_place_of_a_directory() {
    let (_directory, store) = fresh();
    let (lock, to) = (store.inner.layout.sweep_lock(), store.inner.layout.temporary());
    let error = move_directory(&lock, &to).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
    assert!(lock.is_file() && !to.exists());
}
