//! Lists, closing, the index writer and unreadable stores.

use rustix::io::Errno;

use super::*;

#[test]
fn closing_fails_all_followers() {
    let bench = Bench::with(|settings| settings.blob_fetchers = 1);
    let (running, sender) = bench.source.stream(b"running");
    let (queued, _sender) = bench.source.stream(b"queued");
    let first = bench.follow(&running);
    sender.send(Ok(b"run".to_vec())).unwrap();
    wait(|waker| first.poll_size(waker)).unwrap();
    let second = bench.follow(&queued);
    bench.cache.close();
    assert!(matches!(read_all(&second), Err(CacheError::GivenUp)));
    // The fetcher may have seen the end already, between two reads.
    let _ = sender.send(Ok(b"ni".to_vec()));
    assert!(matches!(read_all(&first), Err(CacheError::GivenUp)));
}

#[test]
fn a_download_whose_reads_are_interrupted_notices_the_close() {
    let bench = Bench::new();
    let (digest, sender) = bench.source.stream(b"content");
    let waiting = bench.follow(&digest);
    sender.send(Err(io::ErrorKind::Interrupted.into())).unwrap();
    sender.send(Ok(b"con".to_vec())).unwrap();
    wait(|waker| waiting.poll_available(2, waker)).unwrap();
    bench.cache.close();
    // The fetcher may have seen the end already, between two reads.
    let _ = sender.send(Err(io::ErrorKind::Interrupted.into()));
    assert!(matches!(read_all(&waiting), Err(CacheError::GivenUp)));
}

#[test]
fn a_list_is_fresh_for_a_minute_and_stale_while_the_registry_is_unreachable() {
    let bench = Bench::new();
    let ask = || {
        let question = ListQuestion::Tags { query: String::new() };
        match bench.cache.list(&name(), question)? {
            ListLookup::Ready(answer) => Ok(answer),
            ListLookup::Wait(waiting) => wait(|waker| waiting.poll(waker)),
        }
    };
    assert_eq!(ask().unwrap().how, How::Miss);
    assert_eq!(ask().unwrap().how, How::Hit);
    bench.source.fail(Some(unreachable_kind()));
    bench.advance(Duration::from_secs(61));
    let stale: Result<ListAnswer, CacheError> = ask();
    assert_eq!(stale.unwrap().how, How::Stale);
    assert_eq!(bench.source.calls().len(), 2);
}

#[test]
fn cached_tags_are_listed_without_a_list_of_the_registry() {
    let bench = Bench::new();
    for tag in ["v2", "v1"] {
        bench.source.publish(tag, &manifest(tag));
        bench.how(tag);
    }
    let bench = bench.restarted(|settings| settings.air_gapped = true);
    let ask = || {
        let question = ListQuestion::Tags { query: "n=1".into() };
        let Ok(ListLookup::Wait(waiting)) = bench.cache.list(&name(), question) else {
            panic!("a fetcher reads the disk, not an HTTP worker")
        };
        wait(|waker| waiting.poll(waker))
    };
    let answer = ask().unwrap();
    assert_eq!(
        (answer.body.read().unwrap(), answer.how),
        (br#"{"name":"a","tags":["v1"]}"#.into(), How::Stale)
    );
    assert_eq!(answer.next.as_deref(), Some("n=1&last=v1"));
    assert_eq!(bench.source.calls(), ["GET v2", "GET v1"]);

    // Unreadable tags are not treated as missing.
    bench.cache.store().fail_reads("tags", 0, usize::MAX, Errno::MFILE);
    assert_eq!(ask().unwrap_err().reason(), Reason::Overloaded);
}

#[test]
fn the_index_writer_writes_the_index_when_it_ends() {
    let bench = Bench::new();
    let writer = IndexWriter::start(bench.cache.clone()).unwrap();
    bench.source.publish("v1", &manifest("one"));
    bench.how("v1");
    drop(writer);
    let index = fs::read_to_string(bench.directory.path().join("index.json")).unwrap();
    assert!(index.contains("reg.test/a:v1"), "{index}");
}

/// Without file descriptors, or with a failing disk, the content of the cache is unknown. That must neither count as a
/// miss nor cause a download.
#[test]
fn an_unreadable_store_is_an_error_and_not_a_miss() {
    for air_gapped in [false, true] {
        let bench = Bench::new();
        let layer = bench.deliver(b"layer");
        bench.wait_for_finish(&layer);
        bench.source.publish("v1", br#"{"schemaVersion":2,"config":{},"layers":[]}"#);
        bench.how("v1");
        let bench = bench.restarted(|settings| settings.air_gapped = air_gapped);
        let before = bench.source.calls().len();
        for errno in [Errno::MFILE, Errno::NFILE, Errno::IO, Errno::NOMEM] {
            bench.cache.store().fail_reads("", 0, usize::MAX, errno);
            let manifest = bench.pull("v1").unwrap_err();
            let blob = bench.cache.blob(&name(), &layer, Purpose::Read).err().unwrap();
            for error in [manifest, blob] {
                assert_eq!(error.reason(), Reason::Overloaded, "{errno:?}: {error}");
                assert!(!error.is_the_disks(), "it is not passed through either");
            }
        }
        assert_eq!(bench.source.calls().len(), before, "no request is sent");
        bench.cache.store().fail_reads("", 0, 0, Errno::IO);
        assert!(bench.pull("v1").is_ok());
    }
}
