//! Blobs: followers, the last byte, failures, resuming, sizes.

use super::*;

#[test]
fn air_gapped_serves_cached_content_and_sends_no_request() {
    let bench = Bench::new();
    bench.source.publish("v1", &manifest("one"));
    bench.how("v1");
    let digest = bench.deliver(b"layer");
    let before = bench.source.calls().len();

    let bench = bench.restarted(|settings| settings.air_gapped = true);
    bench.advance(Duration::from_secs(1_000_000));
    assert_eq!(bench.pull("v1").unwrap(), (manifest("one"), How::Hit));
    assert_eq!(bench.stored(&digest).unwrap(), b"layer");
    assert!(matches!(bench.pull("v2"), Err(CacheError::NotCached)));
    let absent = Digest::of(Algorithm::Sha256, b"absent");
    let missing = bench.cache.blob(&name(), &absent, Purpose::Read);
    assert!(matches!(missing, Err(CacheError::NotCached)));
    assert_eq!(bench.source.calls().len(), before);
}

#[test]
fn readers_follow_the_download_and_the_last_byte_waits_for_the_digest() {
    let bench = Bench::new();
    let (digest, sender) = bench.source.stream(b"hello world");
    let first = bench.follow(&digest);
    sender.send(Ok(b"hello".to_vec())).unwrap();
    assert_eq!(wait(|waker| first.poll_size(waker)).unwrap(), 11);
    assert_eq!(wait(|waker| first.poll_available(0, waker)).unwrap(), 5);

    let late = bench.follow(&digest);
    assert_eq!((first.how, late.how), (How::Miss, How::Join));
    sender.send(Ok(b" world".to_vec())).unwrap();
    assert_eq!(wait(|waker| late.poll_available(5, waker)).unwrap(), 10, "all but the last byte");
    assert!(late.poll_available(10, Waker::noop()).is_pending(), "the body has not ended");
    assert!(!bench.file_of(&digest).exists(), "the blob is not committed");
    drop(sender);
    assert_eq!(read_all(&first).unwrap(), b"hello world");
    assert_eq!(read_all(&late).unwrap(), b"hello world");
    assert_eq!(bench.source.calls(), ["GET blob a"]);
}

#[test]
fn wrong_bytes_never_complete_and_are_not_stored() {
    let bench = Bench::new();
    let (digest, sender) = bench.source.stream(b"hello world");
    let waiting = bench.follow(&digest);
    send_all(sender, b"hello w0rld");
    let error = read_all(&waiting).unwrap_err();
    assert!(matches!(error, CacheError::WrongContent { .. }), "{error}");
    assert!(bench.stored(&digest).is_none());
    assert!(!bench.file_of(&digest).exists());
}

#[test]
fn wrong_content_is_fetched_once_more_without_a_client() {
    let bench = Bench::new();
    let (digest, sender) = bench.source.stream(b"hello world");
    let (_, again) = bench.source.stream(b"hello world");
    let waiting = bench.follow(&digest);
    send_all(sender, b"hello w0rld");
    assert!(matches!(read_all(&waiting), Err(CacheError::WrongContent { .. })));
    let second = bench.follow(&digest);
    send_all(again, b"hello wOrld");
    assert!(matches!(read_all(&second), Err(CacheError::WrongContent { .. })));
    bench.wait_for_finish(&digest);
    assert_eq!(bench.source.calls(), ["GET blob a", "GET blob a"]);
}

#[test]
fn a_body_that_is_too_long_fails_all_followers() {
    let bench = Bench::new();
    let (digest, sender) = bench.source.stream(b"hello world");
    let waits = [bench.follow(&digest), bench.follow(&digest)];
    send_all(sender, b"hello world and more");
    for waiting in &waits {
        assert!(matches!(read_all(waiting), Err(CacheError::WrongContent { .. })));
    }
    assert!(bench.stored(&digest).is_none());
}

fn reset() -> io::Result<Vec<u8>> {
    Err(io::ErrorKind::ConnectionReset.into())
}

#[test]
fn a_broken_connection_is_resumed_after_the_received_bytes() {
    let bench = Bench::new();
    let (digest, first) = bench.source.stream(b"hello world");
    let (_, second) = bench.source.stream(b"hello world");
    let (_, third) = bench.source.stream(b"hello world");
    let waits = [bench.follow(&digest), bench.follow(&digest)];
    first.send(Ok(b"hello".to_vec())).unwrap();
    first.send(reset()).unwrap();
    // A body that ends early without an error is also resumed.
    send_all(second, b" w");
    send_all(third, b"orld");
    for waiting in &waits {
        assert_eq!(read_all(waiting).unwrap(), b"hello world");
    }
    let calls = bench.source.calls();
    assert_eq!(calls, ["GET blob a", "GET blob a from 5", "GET blob a from 7"]);
    assert_eq!(bench.stored(&digest).unwrap(), b"hello world");
}

#[test]
fn a_registry_without_ranges_sends_the_first_bytes_again() {
    let bench = Bench::new();
    bench.source.ignores_ranges.store(true, Ordering::SeqCst);
    let (digest, first) = bench.source.stream(b"hello world");
    let (_, second) = bench.source.stream(b"hello world");
    let waiting = bench.follow(&digest);
    first.send(Ok(b"hello".to_vec())).unwrap();
    first.send(reset()).unwrap();
    for piece in [&b"hel"[..], b"lo wo", b"rld"] {
        second.send(Ok(piece.to_vec())).unwrap();
    }
    drop(second);
    assert_eq!(read_all(&waiting).unwrap(), b"hello world");
}

#[test]
fn retries_without_progress_end_and_a_restart_resumes_the_download() {
    let bench = Bench::new();
    let (digest, first) = bench.source.stream(b"hello world");
    let rest: Vec<_> = (0..2).map(|_| bench.source.stream(b"hello world").1).collect();
    let waiting = bench.follow(&digest);
    first.send(Ok(b"hello".to_vec())).unwrap();
    for sender in [&first, &rest[0], &rest[1]] {
        sender.send(reset()).unwrap();
    }
    assert!(matches!(read_all(&waiting), Err(CacheError::Upstream(_))));
    assert_eq!(bench.source.calls().len(), 3);
    assert!(bench.stored(&digest).is_none());

    let bench = bench.restarted(|_| {});
    let (_, sender) = bench.source.stream(b"hello world");
    let waiting = bench.follow(&digest);
    send_all(sender, b" world");
    assert_eq!(read_all(&waiting).unwrap(), b"hello world");
    assert_eq!(bench.source.calls().last().unwrap(), "GET blob a from 5");
}

#[test]
fn a_download_without_a_byte_fails_at_once() {
    let bench = Bench::new();
    let (digest, sender) = bench.source.stream(b"hello world");
    let waiting = bench.follow(&digest);
    sender.send(reset()).unwrap();
    assert!(matches!(read_all(&waiting), Err(CacheError::Upstream(_))));
    assert_eq!(bench.source.calls().len(), 1);
}

#[test]
fn a_damaged_partial_is_discarded_and_the_next_download_starts_at_zero() {
    let bench = Bench::new();
    let digest = Digest::of(Algorithm::Sha256, b"hello world");
    let partial = bench.partial(&digest);
    fs::write(&partial, b"hEllo").unwrap();
    let (_, sender) = bench.source.stream(b"hello world");
    let (_, again) = bench.source.stream(b"hello world");
    send_all(again, b"hello world");
    let waiting = bench.follow(&digest);
    send_all(sender, b" world");
    assert!(matches!(read_all(&waiting), Err(CacheError::WrongContent { .. })));
    // The second attempt is under way or has ended.
    if let Ok(BlobLookup::Wait(waiting)) = bench.cache.blob(&name(), &digest, Purpose::Read) {
        assert_eq!(read_all(&waiting).unwrap(), b"hello world");
    }
    assert_eq!(bench.stored(&digest).unwrap(), b"hello world");
    assert_eq!(bench.source.calls(), ["GET blob a from 5", "GET blob a"]);
}

#[test]
fn a_partial_that_is_longer_than_the_blob_is_discarded() {
    let bench = Bench::new();
    let digest = Digest::of(Algorithm::Sha256, b"hello");
    let partial = bench.partial(&digest);
    fs::write(&partial, b"hello and more").unwrap();
    let (_, _sender) = bench.source.stream(b"hello");
    // The size is sufficient: the download fails before the first byte.
    let waiting = bench.follow(&digest);
    assert!(matches!(read_all(&waiting), Err(CacheError::WrongContent { .. })));
    bench.wait_for_finish(&digest);
    assert!(!partial.exists());
}

#[test]
fn a_complete_partial_needs_no_request() {
    let bench = Bench::new();
    let digest = Digest::of(Algorithm::Sha256, b"hello world");
    let partial = bench.partial(&digest);
    fs::write(&partial, b"hello world").unwrap();
    let waiting = bench.follow(&digest);
    assert_eq!(read_all(&waiting).unwrap(), b"hello world");
    assert!(bench.source.calls().is_empty());
    assert_eq!(bench.stored(&digest).unwrap(), b"hello world");
}

#[test]
fn a_blob_deleted_upstream_ends_its_download() {
    let bench = Bench::new();
    let (digest, sender) = bench.source.stream(b"hello world");
    let waiting = bench.follow(&digest);
    sender.send(Ok(b"hello".to_vec())).unwrap();
    sender.send(reset()).unwrap();
    assert!(read_all(&waiting).unwrap_err().is_not_found());
    assert_eq!(bench.source.calls(), ["GET blob a", "GET blob a from 5"]);
}

#[test]
fn a_download_continues_after_every_client_has_left() {
    let bench = Bench::new();
    let (digest, sender) = bench.source.stream(b"hello world");
    drop(bench.follow(&digest));
    sender.send(Ok(b"hello world".to_vec())).unwrap();
    let watcher = bench.follow(&digest);
    drop(sender);
    assert_eq!(read_all(&watcher).unwrap(), b"hello world");
    assert_eq!(bench.stored(&digest).unwrap(), b"hello world");
    assert_eq!(bench.source.calls(), ["GET blob a"]);
}

#[test]
fn a_body_without_a_length_is_served_when_it_is_complete() {
    let bench = Bench::new();
    let (digest, sender) = bench.source.stream(b"hello world");
    bench.source.sizes.lock().unwrap().clear();
    let waiting = bench.follow(&digest);
    sender.send(Ok(b"hello world".to_vec())).unwrap();
    assert!(waiting.poll_size(Waker::noop()).is_pending());
    drop(sender);
    assert_eq!(read_all(&waiting).unwrap(), b"hello world");
}

#[test]
fn a_request_for_the_size_does_not_download() {
    let bench = Bench::new();
    let (digest, _sender) = bench.source.stream(b"hello world");
    let Ok(BlobLookup::Wait(waiting)) = bench.cache.blob(&name(), &digest, Purpose::Size) else {
        panic!("the blob is not cached")
    };
    assert_eq!(wait(|waker| waiting.poll_size(waker)).unwrap(), 11);
    assert_eq!(bench.source.calls(), ["HEAD blob"]);
}

#[test]
fn a_manifest_with_a_wrong_size_affects_only_its_own_repository() {
    let bench = Bench::new();
    let digest = bench.deliver(b"layer");
    let lie = format!(
        r#"{{"schemaVersion":2,"config":{{}},"layers":[{{"digest":"{digest}","size":99}}]}}"#
    );
    bench.source.publish("evil", lie.as_bytes());
    let evil = ImageName::new("reg.test".parse().unwrap(), "evil".parse().unwrap());
    if let ManifestLookup::Wait(waiting) =
        bench.cache.manifest(&evil, &"evil".parse().unwrap()).unwrap()
    {
        wait(|waker| waiting.poll(waker)).unwrap();
    }
    assert_eq!(bench.stored(&digest).unwrap(), b"layer");
    let restarted = bench.restarted(|_| {});
    assert_eq!(restarted.stored(&digest).unwrap(), b"layer");
}

/// Pulls a manifest that states this size for its one layer.
fn pull_image_of(bench: &Bench, layer: &Digest, size: u64) {
    let text = format!(
        r#"{{"schemaVersion":2,"config":{{}},"layers":[{{"digest":"{layer}","size":{size}}}]}}"#
    );
    bench.source.publish("v1", text.as_bytes());
    bench.how("v1");
}

#[test]
fn a_size_from_a_manifest_applies_only_to_its_own_repository() {
    for stated in [5, 99] {
        let bench = Bench::new();
        let (digest, sender) = bench.source.stream(b"hello world");
        bench.source.sizes.lock().unwrap().clear();
        pull_image_of(&bench, &digest, stated);
        let liar = bench.follow(&digest);
        sender.send(Ok(b"hello".to_vec())).unwrap();
        assert_eq!(wait(|waker| liar.poll_size(waker)).unwrap(), stated);
        let other = ImageName::new(name().upstream, "other".parse().unwrap());
        let found = bench.cache.blob(&other, &digest, Purpose::Read).unwrap();
        let BlobLookup::Wait(honest) = found else { panic!("it is under way") };
        assert!(honest.poll_size(Waker::noop()).is_pending(), "no size applies to it yet");
        send_all(sender, b" world");
        assert_eq!(read_all(&honest).unwrap(), b"hello world", "{stated}");
        let error = read_all(&liar).unwrap_err();
        assert!(matches!(error, CacheError::WrongContent { .. }), "{stated}: {error}");
        assert_eq!(bench.stored(&digest).unwrap(), b"hello world", "{stated}");
        assert_eq!(bench.source.calls().len(), 2, "{stated}: one manifest and one blob");
    }
}

#[test]
fn a_correct_size_from_a_manifest_is_enough_to_stream() {
    let bench = Bench::new();
    let (digest, sender) = bench.source.stream(b"hello world");
    bench.source.sizes.lock().unwrap().clear();
    pull_image_of(&bench, &digest, 11);
    let waiting = bench.follow(&digest);
    sender.send(Ok(b"hello world".to_vec())).unwrap();
    assert_eq!(wait(|waker| waiting.poll_size(waker)).unwrap(), 11);
    assert_eq!(wait(|waker| waiting.poll_available(9, waker)).unwrap(), 10);
    drop(sender);
    assert_eq!(read_all(&waiting).unwrap(), b"hello world");
}

#[test]
fn a_blob_shorter_than_its_manifest_says_is_fetched_again() {
    let bench = Bench::new();
    let (digest, sender) = bench.source.stream(b"layer");
    let body = format!(
        r#"{{"schemaVersion":2,"config":{{}},"layers":[{{"digest":"{digest}","size":5}}]}}"#
    );
    bench.source.publish("v1", body.as_bytes());
    bench.how("v1");
    fs::create_dir_all(bench.directory.path().join("blobs/sha256")).unwrap();
    fs::write(bench.file_of(&digest), b"lay").unwrap();
    let waiting = bench.follow(&digest);
    send_all(sender, b"layer");
    assert_eq!(read_all(&waiting).unwrap(), b"layer");
    assert_eq!(bench.stored(&digest).unwrap(), b"layer");
}

#[test]
fn a_flight_that_ends_between_lookup_and_join_is_noticed() {
    let bench = Bench::new();
    let digest = bench.deliver(b"layer");
    bench.wait_for_finish(&digest);
    // As if the lookup in the store had preceded the commit, and the join had followed the end of the flight.
    let late = bench.cache.services.blobs.ask_for_blob(&name(), &digest, None, None).unwrap();
    assert_eq!(read_all(&late).unwrap(), b"layer");
    assert_eq!(bench.source.calls(), ["GET blob a"]);
}

#[test]
fn a_size_that_changes_between_connections_ends_the_download() {
    let bench = Bench::new();
    let (digest, first) = bench.source.stream(b"hello world");
    let waiting = bench.follow(&digest);
    first.send(Ok(b"hello".to_vec())).unwrap();
    assert_eq!(wait(|waker| waiting.poll_size(waker)).unwrap(), 11);
    bench.source.sizes.lock().unwrap().insert(digest, 99);
    let (sender, receiver) = mpsc::channel();
    bench.source.blobs.lock().unwrap().entry(digest).or_default().push_back(receiver);
    send_all(sender, b" world and more");
    first.send(reset()).unwrap();
    // The readers' Content-Length is 11: they must not receive an unverified eleventh byte.
    let failure = read_followed(&waiting).unwrap_err();
    assert!(failure.error.to_string().contains("from 11 to 99 bytes"), "{}", failure.error);
    assert!(
        bench
            .cache
            .services
            .blobs
            .flights
            .find(&key(&digest))
            .is_none_or(|flight| flight.available() < 11)
    );
}

#[test]
fn the_last_byte_of_a_damaged_partial_is_never_available() {
    for size in [5, 99] {
        let bench = Bench::new();
        let digest = Digest::of(Algorithm::Sha256, b"hello");
        let lie = format!(
            r#"{{"schemaVersion":2,"config":{{}},"layers":[{{"digest":"{digest}","size":{size}}}]}}"#
        );
        bench.source.publish("v1", lie.as_bytes());
        bench.how("v1");
        let partial = bench.partial(&digest);
        fs::write(&partial, b"hEllo").unwrap();
        let (_, sender) = bench.source.stream(b"hello");
        let gate = Arc::new(Gate::default());
        *bench.source.gate.lock().unwrap() = Some(Arc::clone(&gate));
        let waiting = bench.follow(&digest);
        gate.wait_until_reached();
        let flight = bench.cache.services.blobs.flights.find(&key(&digest)).unwrap();
        assert_eq!(flight.available(), 0, "nothing is available before the size is known");
        gate.open();
        drop(sender);
        assert!(read_followed(&waiting).is_err(), "{size}");
        assert!(flight.available() < 5, "{size}");
    }
}

#[test]
fn a_start_resumes_unfinished_downloads() {
    let bench = Bench::new();
    // Smaller blobs have no note of their origin.
    let content = vec![b'x'; 1024 * 1024];
    let (digest, sender) = bench.source.stream(&content);
    let waiting = bench.follow(&digest);
    sender.send(Ok(content[..5].to_vec())).unwrap();
    assert_eq!(wait(|waker| waiting.poll_available(0, waker)).unwrap(), 5);
    bench.cache.close();
    drop(sender);
    assert!(read_followed(&waiting).is_err());

    let bench = bench.restarted(|_| {});
    let (_, sender) = bench.source.stream(&content);
    send_all(sender, &content[5..]);
    bench.cache.resume_downloads();
    until(|| bench.cache.store().blob(&digest, None).is_some());
    assert_eq!(bench.stored(&digest).unwrap(), content);
    assert_eq!(bench.source.calls(), ["GET blob a", "GET blob a from 5"]);
    assert!(bench.cache.store().partials().is_empty());
}

#[test]
fn an_air_gapped_start_sends_no_request_for_unfinished_downloads() {
    let bench = Bench::with(|settings| settings.air_gapped = true);
    let digest = Digest::of(Algorithm::Sha256, b"hello world");
    let partial = bench.partial(&digest);
    fs::write(&partial, b"hello").unwrap();
    let note = r#"{"repository":"a"}"#;
    fs::write(partial.with_extension("json"), note).unwrap();
    bench.cache.resume_downloads();
    assert!(bench.source.calls().is_empty() && partial.exists());
}

#[test]
fn a_client_that_joins_a_download_while_it_is_suspended_gets_all_bytes() {
    let bench = Bench::with(|settings| settings.blob_fetchers = 1);
    // A small one would not be suspended.
    let content = vec![b'x'; 1_000_000];
    let (digest, _suspended) = bench.source.stream(&content);
    let (_, resumed) = bench.source.stream(&content);
    let (other, sender) = bench.source.stream(b"for a client");
    send_all(sender, b"for a client");
    send_all(resumed, &content);
    let gate = Arc::new(Gate::default());
    *bench.source.gate.lock().unwrap() = Some(Arc::clone(&gate));
    assert!(bench.cache.services.blobs.fetch_in_background(&name(), &digest, None, None));
    gate.wait_until_reached();
    // It is suspended for this client when its first response arrives, before its first byte.
    let waiting = bench.follow(&other);
    let joined = Arc::new(Mutex::new(None));
    let (cache, slot) = (bench.cache.clone(), Arc::clone(&joined));
    *bench.source.on_drop.lock().unwrap() = Some(Box::new(move || {
        // After the announcement of the file, and before the flight is given up.
        if let Ok(BlobLookup::Wait(joins)) = cache.blob(&name(), &digest, Purpose::Read) {
            let incoming = wait(|waker| joins.poll_file(waker));
            *slot.lock().unwrap() = incoming.is_ok().then_some(joins);
        }
    }));
    gate.open();
    assert_eq!(read_all(&waiting).unwrap(), b"for a client");
    let joined = joined.lock().unwrap().take().expect("a follower of the announced file");
    assert_eq!(joined.how, How::Join);
    assert_eq!(read_all(&joined).unwrap(), content);
    assert_eq!(bench.stored(&digest).unwrap(), content);
}
