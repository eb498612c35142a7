//! Management of downloads: listing, cancelling, resuming and prefetching.

use super::*;
use crate::oci::Platforms;

fn upstream() -> Upstream {
    name().upstream
}

/// Publishes an image of one layer. Returns the digests of its manifest and its layer.
fn image(bench: &Bench, layer: &[u8]) -> (Digest, Digest) {
    let (blob, sender) = bench.source.stream(layer);
    send_all(sender, layer);
    let descriptor = format!(
        r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{blob}","size":{}}}"#,
        layer.len()
    );
    let text = format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[{descriptor}]}}"#);
    (bench.source.publish("image", text.as_bytes()), blob)
}

#[test]
fn a_cancelled_download_ends_at_its_next_bytes_and_can_be_resumed() {
    let bench = Bench::new();
    let (digest, sender) = bench.source.stream(b"hello world");
    let waiting = bench.follow(&digest);
    sender.send(Ok(b"hel".to_vec())).unwrap();
    wait(|waker| waiting.poll_available(2, waker)).unwrap();
    let [flight] = &bench.cache.flights()[..] else { panic!("one download") };
    assert_eq!((&flight.digest, flight.bytes, flight.size), (&digest, 3, Some(11)));
    assert_eq!(flight.origin, Some(name()));

    assert!(bench.cache.cancel(&upstream(), &digest));
    // The fetcher may have noticed the cancellation already, before it waited for more.
    let _ = sender.send(Ok(b"lo".to_vec()));
    assert!(matches!(read_all(&waiting), Err(CacheError::GivenUp)));
    until(|| bench.cache.flights().is_empty() && bench.cache.load().blob_pool.busy == 0);
    let came = fs::metadata(bench.partial(&digest)).unwrap().len();
    assert!((3..=5).contains(&came), "{came}");

    let (_, sender) = bench.source.stream(b"hello world");
    let waiting = bench.follow(&digest);
    let rest = usize::try_from(came).unwrap();
    send_all(sender, &b"hello world"[rest..]);
    assert_eq!(read_all(&waiting).unwrap(), b"hello world");
    assert_eq!(bench.source.calls(), ["GET blob a", &format!("GET blob a from {came}")]);
}

#[test]
fn cancelling_an_absent_download_does_not_affect_later_ones() {
    let bench = Bench::new();
    let digest = Digest::of(Algorithm::Sha256, b"content");
    assert!(!bench.cache.cancel(&upstream(), &digest));
    assert_eq!(bench.deliver(b"content"), digest);
    assert!(!bench.cache.cancel(&upstream(), &digest), "the download has ended");
    fs::remove_file(bench.file_of(&digest)).unwrap();
    assert_eq!(bench.deliver(b"content"), digest);
}

#[test]
fn a_queued_download_can_be_cancelled_and_the_others_continue() {
    let bench = Bench::with(|settings| settings.blob_fetchers = 1);
    let (running, sender) = bench.source.stream(b"running");
    let (queued, _sender) = bench.source.stream(b"queued");
    let first = bench.follow(&running);
    sender.send(Ok(b"run".to_vec())).unwrap();
    wait(|waker| first.poll_size(waker)).unwrap();
    let second = bench.follow(&queued);
    let flights = bench.cache.flights();
    let waiting = flights.iter().find(|flight| flight.digest == queued).unwrap();
    assert_eq!((&waiting.origin, waiting.bytes, waiting.size), (&None, 0, None));
    let load = bench.cache.load();
    assert_eq!((load.blobs, load.blob_pool.busy, load.blob_pool.queued), (2, 1, 1));
    assert!(bench.cache.cancel(&upstream(), &queued));
    send_all(sender, b"ning");
    assert_eq!(read_all(&first).unwrap(), b"running");
    assert!(matches!(read_all(&second), Err(CacheError::GivenUp)));
}

#[test]
fn a_download_that_was_cancelled_in_the_queue_and_left_by_its_client_does_not_end_the_next_one() {
    let bench = Bench::with(|settings| settings.blob_fetchers = 1);
    let (running, sender) = bench.source.stream(b"running");
    let queued = Digest::of(Algorithm::Sha256, b"queued");
    let first = bench.follow(&running);
    sender.send(Ok(b"run".to_vec())).unwrap();
    wait(|waker| first.poll_size(waker)).unwrap();
    let second = bench.follow(&queued);
    assert!(bench.cache.cancel(&upstream(), &queued));
    // Without followers, the queued download is dropped and does not run.
    drop(second);
    send_all(sender, b"ning");
    assert_eq!(read_all(&first).unwrap(), b"running");
    until(|| bench.cache.flights().is_empty());
    assert_eq!(bench.deliver(b"queued"), queued);
    assert_eq!(bench.source.calls(), ["GET blob a", "GET blob a"]);
}

#[test]
fn interrupted_downloads_are_counted_once_and_not_while_under_way() {
    let bench = Bench::new();
    let mut digests = Vec::new();
    for (content, begun) in [(&b"hello world"[..], &b"hello"[..]), (b"other bytes", b"ot")] {
        let digest = Digest::of(Algorithm::Sha256, content);
        let partial = bench.partial(&digest);
        fs::write(&partial, begun).unwrap();
        fs::write(partial.with_extension("json"), r#"{"repository":"a"}"#).unwrap();
        digests.push(digest);
    }
    // Its repository is unknown, so it waits for a client.
    let unknown = bench.partial(&Digest::of(Algorithm::Sha256, b"unknown"));
    fs::write(&unknown, b"un").unwrap();
    let (_, hello) = bench.source.stream(b"hello world");
    let (_, other) = bench.source.stream(b"other bytes");
    assert_eq!(bench.cache.resume_downloads(), 2);
    assert_eq!(bench.cache.resume_downloads(), 0, "they are queued or under way");
    send_all(hello, b" world");
    send_all(other, b"her bytes");
    until(|| digests.iter().all(|digest| bench.cache.store().blob(digest, None).is_some()));
    assert_eq!(bench.stored(&digests[0]).unwrap(), b"hello world");
    assert_eq!(bench.stored(&digests[1]).unwrap(), b"other bytes");
    assert_eq!(bench.cache.resume_downloads(), 0);
    assert!(unknown.exists());
    assert_eq!(bench.cache.metrics().resumed.get(), 2);
}

#[test]
fn nothing_is_resumed_or_prefetched_offline() {
    let bench = Bench::with(|settings| settings.air_gapped = true);
    let partial = bench.partial(&Digest::of(Algorithm::Sha256, b"hello world"));
    fs::write(&partial, b"hello").unwrap();
    fs::write(partial.with_extension("json"), r#"{"repository":"a"}"#).unwrap();
    assert_eq!(bench.cache.resume_downloads(), 0);
    let tag = "v1".parse().unwrap();
    let refused = bench.cache.prefetch(&name(), &tag, Platforms::NONE);
    assert!(matches!(refused, Err(CacheError::NotCached)));
    assert!(bench.source.calls().is_empty());
}

#[test]
fn a_prefetch_fetches_only_the_wanted_platforms() {
    for (wanted, expected) in [
        (Platforms::parse(["linux/arm64"]).unwrap(), [false, true]),
        (Platforms::parse(["linux/amd64", "linux/arm64"]).unwrap(), [true, true]),
        (Platforms::parse(["all"]).unwrap(), [true, true]),
        (Platforms::NONE, [false, false]),
    ] {
        let bench = Bench::new();
        let images = [b"amd64 layer", b"arm64 layer"].map(|layer| image(&bench, layer));
        let child = |(digest, _): &(Digest, Digest), architecture: &str| {
            let size = bench.source.manifests.lock().unwrap()[&digest.to_string()].len();
            format!(
                r#"{{"mediaType":"{}","digest":"{digest}","size":{size},
                    "platform":{{"os":"linux","architecture":"{architecture}"}}}}"#,
                MediaType::OCI_MANIFEST
            )
        };
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{},{}]}}"#,
            child(&images[0], "amd64"),
            child(&images[1], "arm64")
        );
        let digest = bench.source.publish("v1", index.as_bytes());
        bench.cache.prefetch(&name(), &"v1".parse().unwrap(), wanted.clone()).unwrap();
        let here = |digest: &Digest| bench.file_of(digest).exists();
        let is_done = || {
            let load = bench.cache.load();
            let pools = [load.blob_pool, load.manifest_pool];
            here(&digest)
                && pools.iter().all(|pool| pool.busy + pool.queued_in_background == 0)
                && !bench.cache.is_fetching()
        };
        until(is_done);
        for ((manifest, layer), expected) in images.iter().zip(expected) {
            assert_eq!([here(manifest), here(layer)], [expected; 2], "{wanted:?}");
        }
    }
}

#[test]
fn a_prefetch_of_an_absent_digest_stores_nothing() {
    let bench = Bench::new();
    let (digest, layer) = image(&bench, b"a layer");
    let absent = Reference::Digest(Digest::of(Algorithm::Sha256, b"absent"));
    bench.cache.prefetch(&name(), &absent, Platforms::NONE).unwrap();
    bench.cache.prefetch(&name(), &Reference::Digest(digest), Platforms::NONE).unwrap();
    until(|| bench.file_of(&layer).exists());
    assert!(bench.file_of(&digest).exists());
    assert_eq!(bench.cache.store().manifests(&name()), [digest]);
}
