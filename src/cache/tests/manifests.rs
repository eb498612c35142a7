//! Manifests: freshness, single flight, stale answers, misses.

use super::*;

#[test]
fn a_manifest_is_fetched_once_and_then_served_from_the_store() {
    let bench = Bench::new();
    let digest = bench.source.publish("v1", &manifest("one"));
    assert_eq!(bench.pull("v1").unwrap(), (manifest("one"), How::Miss));
    assert_eq!(bench.pull("v1").unwrap(), (manifest("one"), How::Hit));
    assert_eq!(bench.how(&digest.to_string()), How::Hit, "its digest was stored with it");
    assert_eq!(bench.source.calls(), ["GET v1"]);
}

#[test]
fn an_old_tag_is_confirmed_by_head_and_a_moved_one_fetched_by_its_digest() {
    let bench = Bench::new();
    bench.source.publish("v1", &manifest("one"));
    bench.how("v1");
    bench.advance(Duration::from_secs(301));
    assert_eq!(bench.how("v1"), How::Hit);
    let moved = bench.source.publish("v1", &manifest("two"));
    assert_eq!(bench.how("v1"), How::Hit, "it was confirmed recently");
    bench.advance(Duration::from_secs(301));
    assert_eq!(bench.pull("v1").unwrap(), (manifest("two"), How::Miss));
    assert_eq!(bench.source.calls(), ["GET v1", "HEAD v1", "HEAD v1", &format!("GET {moved}")]);
}

#[test]
fn a_hundred_clients_of_one_tag_cause_one_request() {
    let bench = Bench::new();
    bench.source.publish("v1", &manifest("one"));
    let gate = Arc::new(Gate::default());
    *bench.source.gate.lock().unwrap() = Some(Arc::clone(&gate));
    let reference: Reference = "v1".parse().unwrap();
    let waits: Vec<_> = (0..100)
        .map(|_| match bench.cache.manifest(&name(), &reference).unwrap() {
            ManifestLookup::Wait(waiting) => waiting,
            ManifestLookup::Ready(_) => panic!("nothing is cached yet"),
        })
        .collect();
    gate.open();
    let hows: Vec<How> =
        waits.iter().map(|waiting| wait(|waker| waiting.poll(waker)).unwrap().how).collect();
    assert_eq!(hows.iter().filter(|how| **how == How::Miss).count(), 1);
    assert_eq!(hows.iter().filter(|how| **how == How::Join).count(), 99);
    assert_eq!(bench.source.calls(), ["GET v1"]);
}

#[test]
fn a_cached_tag_of_a_failing_registry_is_stale_without_further_requests() {
    let bench = Bench::new();
    bench.source.publish("v1", &manifest("one"));
    bench.how("v1");
    bench.source.fail(Some(unreachable_kind()));
    bench.advance(Duration::from_secs(301));
    assert_eq!(bench.pull("v1").unwrap(), (manifest("one"), How::Stale));
    assert_eq!(bench.how("v1"), How::Stale);
    assert_eq!(
        bench.source.calls().len(),
        2,
        "the second client did not wait for a failing registry"
    );
    bench.source.fail(None);
    bench.advance(Duration::from_secs(10));
    assert_eq!(bench.how("v1"), How::Hit);
}

#[test]
fn a_slow_registry_counts_as_failing_after_clients_time_out() {
    let bench = Bench::new();
    bench.source.publish("v1", &manifest("one"));
    bench.how("v1");
    bench.advance(Duration::from_secs(301));
    let gate = Arc::new(Gate::default());
    *bench.source.gate.lock().unwrap() = Some(Arc::clone(&gate));
    let ManifestLookup::Wait(waiting) =
        bench.cache.manifest(&name(), &"v1".parse().unwrap()).unwrap()
    else {
        panic!("the tag is old")
    };
    gate.wait_until_reached();
    assert_eq!(waiting.patience(), Duration::from_secs(2));
    assert_eq!(waiting.give_up(Waker::noop()).unwrap().how, How::Stale);
    assert_eq!(bench.how("v1"), How::Stale, "the next client does not wait");
    gate.open();
}

#[test]
fn a_tag_deleted_upstream_is_kept() {
    let bench = Bench::new();
    bench.source.publish("v1", &manifest("one"));
    bench.how("v1");
    bench.source.manifests.lock().unwrap().clear();
    bench.advance(Duration::from_secs(301));
    assert_eq!(bench.pull("v1").unwrap(), (manifest("one"), How::Stale));
}

#[test]
fn missing_manifests_are_remembered_for_the_negative_ttl() {
    let bench = Bench::new();
    assert!(bench.pull("v1").unwrap_err().is_not_found());
    bench.source.publish("v1", &manifest("one"));
    assert!(matches!(bench.pull("v1"), Err(CacheError::KnownMissing)));
    assert_eq!(bench.source.calls(), ["GET v1"]);
    bench.advance(Duration::from_secs(10));
    assert_eq!(bench.how("v1"), How::Miss);
}

#[test]
fn an_uncached_manifest_of_a_failing_registry_fails_with_its_reason() {
    let bench = Bench::new();
    bench.source.fail(Some(UpstreamErrorKind::RateLimited { retry_after: None }));
    let error = bench.pull("v1").unwrap_err();
    assert_eq!(error.reason(), Reason::RateLimited { retry_after: None });
}

#[test]
fn a_truncated_manifest_on_disk_is_fetched_again() {
    let bench = Bench::new();
    let digest = bench.source.publish("v1", &manifest("one"));
    bench.how("v1");
    fs::write(bench.file_of(&digest), b"{").unwrap();
    bench.advance(Duration::from_secs(1));
    assert_eq!(bench.pull("v1").unwrap(), (manifest("one"), How::Miss));
    assert!(bench.cache.store().damaged_files() > 0);
    bench.advance(Duration::from_secs(1));
    assert_eq!(bench.how("v1"), How::Hit);
}

#[test]
fn a_lookup_before_the_end_of_a_flight_and_a_join_after_it_send_no_request() {
    let bench = Bench::new();
    let published = bench.source.publish("v1", &manifest("one"));
    bench.how("v1");
    let services = &bench.cache.services;
    let joined =
        services.manifests.flights.join(&(name(), "v1".parse().unwrap()), || CacheError::GivenUp);
    services.manifests.fetch_manifest(joined.leader.unwrap());
    let content = wait(|waker| joined.flight.poll_outcome(waker)).unwrap();
    assert_eq!(*content.content.digest(), published);
    assert_eq!(bench.source.calls(), ["GET v1"]);

    let question = ListQuestion::Tags { query: String::new() };
    let listed = services.lists.fetch_list(&name(), &question).unwrap().body.read().unwrap();
    let calls = bench.source.calls();
    let again = services.lists.fresh_list(&name(), &question).unwrap().body.read().unwrap();
    assert_eq!(again, listed);
    assert_eq!(bench.source.calls(), calls);
}
