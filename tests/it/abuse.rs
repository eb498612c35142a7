//! Isolation: no client and no registry can harm the others.

use std::time::Duration;

use larder::cache::{BreakerState, Prefetch};
use larder::upstream::{BreakerPolicy, UnlistedRegistries};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::larder::{Settings, blob, files, manifest, until};
use crate::support::{
    Connection, FakeRegistry, Fault, Gate, Image, Larder, On, Publish, absent_digest,
};
use crate::support::{bytes, media_type};

const REPOSITORY: &str = "team/app";

#[test]
fn requests_for_missing_content_create_no_files() {
    let registry = FakeRegistry::start();
    registry.expect_unknown("*");
    let larder = Larder::start(&registry);
    let absent = absent_digest(1);
    let before = entries(&larder);
    for name in ["prune.lock", "pins.lock", "index.lock", "usage.lock", "sweep.lock", "tmp-1"] {
        for target in [blob("x", &absent), manifest("x", "v1"), "/v2/x/tags/list".to_owned()] {
            assert_eq!(larder.get(&format!("{target}?ns={name}")).status, 404, "{name} {target}");
        }
    }
    let deep = "a/".repeat(100) + "a";
    for repository in [REPOSITORY, &deep] {
        assert_eq!(larder.get(&blob(repository, &absent)).status, 404);
        assert_eq!(larder.get(&manifest(repository, "v1")).status, 404);
        assert_eq!(larder.get(&format!("/v2/{repository}/tags/list")).status, 404);
    }
    assert_eq!(entries(&larder), before);
}

/// Two registries. Requests without a registry name address the first; the second is `hostile`.
fn beside_a_hostile_registry(
    change: impl FnOnce(&mut Settings),
) -> (FakeRegistry, FakeRegistry, Larder) {
    let (good, hostile) = (FakeRegistry::start(), FakeRegistry::start());
    let larder = Larder::start_with(&good, |settings| {
        settings.list("hostile.test", &hostile);
        settings.alias("hostile", "hostile.test");
        (settings.cache.manifest_fetchers, settings.cache.blob_fetchers) = (4, 4);
        change(settings);
    });
    (good, hostile, larder)
}

fn begin_many(larder: &Larder, targets: impl IntoIterator<Item = String>) -> Vec<Connection> {
    targets.into_iter().map(|target| larder.begin(&target)).collect()
}

#[test]
fn requests_of_disconnected_clients_are_not_sent_to_the_registry() {
    let (good, hostile, larder) = beside_a_hostile_registry(|_| {});
    let image = Image::sample("v1");
    hostile.add(REPOSITORY, "v1", &image);
    let gate = Gate::new();
    hostile.expect_unknown("/v2/burst/*");
    hostile.fault(On::path("*", "/v2/burst/*"), Fault::Gate(gate.clone()));
    let burst = (0..300).map(|n| manifest("hostile/burst/a", &format!("v{n}")));
    let clients = begin_many(&larder, burst);
    gate.wait_until_reached(2);
    until("the burst in the queue", || larder.cache().load().manifest_pool.queued == 298);
    // Some clients reset their connections, the others close them cleanly.
    let (crashed, closed): (Vec<_>, Vec<_>) =
        clients.into_iter().enumerate().partition(|(n, _)| n % 2 == 0);
    crashed.into_iter().for_each(|(_, client)| client.reset());
    drop(closed);
    until("all clients to disconnect", || larder.connections() == 0);
    gate.open();
    let got = larder.get(&manifest(&format!("hostile/{REPOSITORY}"), "v1"));
    assert!(got.body == image.manifest(), "{got:?}");
    until("an empty queue", || larder.cache().load().manifest_pool.queued == 0);
    assert_eq!(gate.reached(), 2, "the two requests that had a fetcher when their clients left");
    assert!(good.requests().is_empty());
}

#[test]
fn slow_registries_leave_fetchers_for_the_others() {
    let (good, hostile, larder) = beside_a_hostile_registry(|settings| {
        settings.cache.prefetch = Prefetch { blobs: true, ..Prefetch::default() };
    });
    let gate = Gate::new();
    let digests: Vec<String> = (0..10).map(|n| hostile.add_blob("a", &bytes(1000, n))).collect();
    hostile.fault(On::any_blob(), Fault::GateAfter(1, gate.clone()));
    hostile.fault(On::any_manifest(), Fault::Gate(gate.clone()));
    let blobs = digests.iter().map(|digest| blob("hostile/a", digest));
    let manifests = (0..10).map(|n| manifest("hostile/a", &format!("v{n}")));
    hostile.expect_unknown("/v2/a/manifests/*");
    let _clients = begin_many(&larder, blobs.chain(manifests));
    // Two of four manifest fetchers, and two of four blob fetchers.
    gate.wait_until_reached(4);
    for n in 0..5 {
        let image = Image::sample(&n.to_string());
        good.add(REPOSITORY, &n.to_string(), &image);
        assert!(larder.get(&manifest(REPOSITORY, &n.to_string())).body == image.manifest());
        // Layers are fetched in the background, and the slow registry does not delay them either.
        image.layers().iter().for_each(|layer| larder.wait_until_cached(&layer.digest));
    }
    assert_eq!(gate.reached(), 4);
    gate.open();
}

#[test]
fn partial_downloads_of_unlisted_registries_are_not_resumed_at_start() {
    let (_good, hostile, mut larder) = beside_a_hostile_registry(|_| {});
    let digest = hostile.add_blob("a", &bytes(100_000, 1));
    hostile.fault(On::get_blob(&digest), Fault::CutAfter(50_000));
    // The download breaks off, before or after its head has reached the client.
    larder.get(&blob("hostile/a", &digest));
    until("the end of the download", || larder.cache().load().blob_pool.busy == 0);
    assert_eq!(larder.partials().len(), 1);
    let asked = hostile.requests().len();
    larder.restart_with(|settings| {
        settings.upstream.registries.retain(|entry| entry.upstream.as_str() != "hostile.test");
        settings.upstream.unlisted = UnlistedRegistries::Allow;
    });
    assert_eq!(larder.cache().resume_downloads(), 0);
    let load = larder.cache().load().blob_pool;
    assert_eq!((load.busy, load.queued, load.queued_in_background), (0, 0, 0));
    assert_eq!(hostile.requests().len(), asked);
}

#[test]
fn one_failing_request_opens_no_circuit_breaker_and_freezes_no_other_tag() {
    let registry = FakeRegistry::start();
    registry.add(REPOSITORY, "v1", &Image::sample("old"));
    registry.fault(On::path("GET", "/v2/*/tags/list*"), Fault::status(500));
    registry.fault(On::manifest("bad"), Fault::status(503));
    registry.fault(On::manifest("limited"), Fault::ResetBeforeHead);
    let larder = Larder::start_with(&registry, |settings| {
        settings.upstream.breaker = BreakerPolicy::default();
    });
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    for n in 0..20 {
        assert!(larder.get(&format!("/v2/x{n}/y/tags/list?n=-1")).status >= 500);
        assert!(larder.get(&manifest(&format!("x{n}/y"), "bad")).status >= 500);
        assert!(larder.get(&manifest(&format!("x{n}/y"), "limited")).status >= 500);
    }
    let breaker = larder.upstreams()[0].endpoints[0].breaker;
    assert_eq!(breaker, BreakerState::Closed);
    assert_eq!(registry.count("GET", "/v2/"), 1, "at most one probe per interval");
    larder.advance(Duration::from_secs(3600));
    let new = Image::sample("new");
    registry.add(REPOSITORY, "v1", &new);
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    assert!(got.body == new.manifest() && got.header("warning").is_none(), "{got:?}");
    let cold = Image::sample("cold");
    registry.add("team/cold", "v1", &cold);
    assert!(larder.get(&manifest("team/cold", "v1")).body == cold.manifest());
}

#[test]
fn rate_limit_on_lists_does_not_delay_pulls() {
    let registry = FakeRegistry::start();
    registry.fault(On::tags("*"), Fault::rate_limited(60));
    let larder = Larder::start_with(&registry, |settings| {
        settings.upstream.breaker = BreakerPolicy::default();
    });
    for _ in 0..5 {
        assert_eq!(larder.get(&format!("/v2/{REPOSITORY}/tags/list")).status, 429);
    }
    let image = Image::sample("v1");
    registry.add(REPOSITORY, "v1", &image);
    assert!(larder.get(&manifest(REPOSITORY, "v1")).body == image.manifest());
}

#[test]
fn request_that_was_never_sent_does_not_mark_its_registry_as_failing() {
    let (good, _hostile, larder) = beside_a_hostile_registry(|settings| {
        settings.cache.manifest_fetchers = 1;
        settings.cache.revalidate_timeout = Duration::from_millis(50);
    });
    good.add(REPOSITORY, "v1", &Image::sample("old"));
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    let gate = Gate::new();
    good.expect_unknown(&manifest("team/slow", "v1"));
    good.fault(On::path("*", "/v2/team/slow/*"), Fault::Gate(gate.clone()));
    let _slow = larder.begin(&manifest("team/slow", "v1"));
    gate.wait_until_reached(1);
    larder.advance(Duration::from_secs(3600));
    for _ in 0..5 {
        let stale = larder.get(&manifest(REPOSITORY, "v1"));
        assert!(stale.status == 200 && stale.header("warning").is_some(), "{stale:?}");
    }
    gate.open();
    let new = Image::sample("new");
    good.add(REPOSITORY, "v1", &new);
    // Time does not advance: if the registry counted as failing, it would not be asked.
    until("the new manifest", || larder.get(&manifest(REPOSITORY, "v1")).body == new.manifest());
}

#[test]
fn wrong_size_in_a_manifest_does_not_affect_other_repositories() {
    for stated in [500, 900_000] {
        let (registry, content, digest) = FakeRegistry::with_blob(REPOSITORY, 300_000);
        registry.add_blob("evil/app", &content);
        let layer = format!(
            r#"{{"mediaType":"application/octet-stream","digest":"{digest}","size":{stated}}}"#
        );
        let lie = format!(r#"{{"schemaVersion":2,"config":{layer},"layers":[]}}"#);
        registry.add_manifest("evil/app", "v1", media_type::OCI_MANIFEST, lie.as_bytes());
        let gate = Gate::new();
        let fault = Fault::All(vec![Fault::NoContentLength, Fault::GateAfter(400, gate.clone())]);
        registry.fault(On::get_blob(&digest), fault);
        let larder = Larder::start(&registry);
        assert_eq!(larder.get(&manifest("evil/app", "v1")).status, 200);
        let mut evil = larder.begin(&blob("evil/app", &digest));
        gate.wait_until_reached(1);
        assert_eq!(evil.read_head().header("content-length"), Some(&*stated.to_string()));
        let mut good = larder.begin(&blob(REPOSITORY, &digest));
        until("the second client to connect", || larder.connections() == 2);
        gate.open();
        let got = good.read_response();
        assert!(got.status == 200 && got.complete && got.body == content, "{stated}: {got:?}");
        let (body, _) = evil.read_to_end();
        assert!(body.len() < stated, "{stated}: wrong bytes never look complete");
    }
}

/// All files and directories below the cache directory.
fn entries(larder: &Larder) -> Vec<std::path::PathBuf> {
    let mut all = files(&larder.root());
    let directories = ["partials", "refs", "incoming"].map(|name| larder.root().join(name));
    for directory in directories {
        all.extend(
            std::fs::read_dir(directory)
                .expect("an existing directory")
                .flatten()
                .map(|entry| entry.path()),
        );
    }
    all.sort();
    all.dedup();
    all
}

/// The next test runs this one in a separate process, which takes its own file descriptors away.
#[test]
fn child_process_without_file_descriptors() {
    if std::env::var_os("LARDER_TEST_NO_DESCRIPTORS").is_none() {
        return;
    }
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    for is_air_gapped in [false, true] {
        let mut larder = Larder::start(&registry);
        let layer = &image.blobs()[0];
        let targets = [blob(REPOSITORY, &layer.digest), manifest(REPOSITORY, "v1")];
        for target in targets.iter().rev() {
            assert_eq!(larder.get(target).status, 200);
        }
        larder.wait_until_cached(&layer.digest);
        // Clear the memory caches, so that the next requests have to read the disk.
        larder.restart_with(|settings| settings.cache.air_gapped = is_air_gapped);
        let mut connection = larder.connect();
        assert_eq!(connection.get("/v2/").status, 200);
        let before = registry.requests().len();
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(0), maximum: limit.maximum })
            .expect("a lower limit is allowed");
        let answers = targets.each_ref().map(|target| connection.get(target));
        setrlimit(Resource::Nofile, limit).expect("the original limit is allowed");
        for (answer, target) in answers.iter().zip(&targets) {
            assert_eq!(answer.status, 503, "{target}: {answer:?}");
        }
        assert_eq!(registry.requests().len(), before, "nothing is downloaded again");
        for target in &targets {
            assert_eq!(connection.get(target).status, 200, "{target}");
        }
    }
    println!("passed");
}

#[test]
fn cached_content_that_cannot_be_opened_is_answered_with_503_and_not_downloaded_again() {
    let output = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "abuse::child_process_without_file_descriptors", "--nocapture"])
        .env("LARDER_TEST_NO_DESCRIPTORS", "1")
        .output()
        .expect("it can be started");
    let message = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && message.contains("passed"), "{message}\n{errors}");
}

#[test]
fn request_that_always_fails_does_not_block_other_pulls() {
    let (registry, _) = FakeRegistry::with_image(REPOSITORY);
    for kind in ["tags/list", "manifests/bad"] {
        registry.fault(On::path("GET", &format!("/v2/odd/app/{kind}")), Fault::status(500));
    }
    let larder = Larder::start(&registry);
    for round in 0..20 {
        for kind in ["tags/list", "manifests/bad"] {
            assert_eq!(larder.get(&format!("/v2/odd/app/{kind}")).status, 502, "{kind}");
        }
        let tag = format!("v{round}");
        registry.add(REPOSITORY, &tag, &Image::sample(&tag));
        assert_eq!(larder.get(&manifest(REPOSITORY, &tag)).status, 200, "round {round}");
    }
    assert_eq!(larder.upstreams()[0].endpoints[0].breaker, BreakerState::Closed);
}
