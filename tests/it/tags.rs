//! Freshness of tags: moved, deleted and newly pushed tags.
//!
//! Proves protocol 12.3, 14.1 and 14.3 (docs/protocol.md), and docs/configuration.md, "How long a tag is believed".

use larder::cache::{FreshnessPolicy, OnUpstreamDelete, Ttl};

use crate::support::larder::{blob, manifest, seconds};
use crate::support::{FakeRegistry, Fault, Gate, Image, Larder, On, Response};

const REPOSITORY: &str = "team/app";
const STALE: &str = "110 - \"Response is Stale\"";

/// A registry with the tag `v1`, and a server with a `tagTtl` of one minute.
fn minute() -> (FakeRegistry, Larder, Image) {
    with_ttl(Ttl::For(seconds(60)))
}

fn with_ttl(ttl: Ttl) -> (FakeRegistry, Larder, Image) {
    let registry = FakeRegistry::start();
    let image = Image::sample("old");
    registry.add(REPOSITORY, "v1", &image);
    let larder = Larder::start_with(&registry, |settings| {
        settings.cache.freshness = FreshnessPolicy::of(ttl)
    });
    (registry, larder, image)
}

fn pull(larder: &Larder) -> Response {
    larder.get(&manifest(REPOSITORY, "v1"))
}

/// The upstream requests since the last call: method and last path component.
fn asked(registry: &FakeRegistry) -> Vec<String> {
    let requests = registry.requests();
    registry.clear_requests();
    let last = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    requests.iter().map(|each| format!("{} {}", each.method, last(&each.path))).collect()
}

#[test]
fn tag_is_not_revalidated_within_its_ttl() {
    let (registry, mut larder, old) = minute();
    assert_eq!(pull(&larder).digest(), old.digest());
    registry.add(REPOSITORY, "v1", &Image::sample("new"));
    for passed in [0, 1, 30, 28] {
        larder.advance(seconds(passed));
        assert_eq!(pull(&larder).digest(), old.digest(), "{passed}");
    }
    larder.restart();
    assert_eq!(pull(&larder).digest(), old.digest());
    assert_eq!(asked(&registry), ["GET v1"]);
}

#[test]
fn unchanged_tag_costs_one_head_after_its_ttl() {
    let (registry, larder, old) = minute();
    pull(&larder);
    for _ in 0..3 {
        asked(&registry);
        larder.advance(seconds(60));
        let got = pull(&larder);
        assert_eq!((got.digest(), got.header("warning")), (old.digest(), None));
        assert_eq!(asked(&registry), ["HEAD v1"]);
        pull(&larder);
        assert!(asked(&registry).is_empty(), "fresh for another minute");
    }
}

#[test]
fn moved_tag_is_fetched_by_the_digest_from_head() {
    let (registry, larder, _) = minute();
    pull(&larder);
    let new = Image::sample("new");
    let digest = registry.add(REPOSITORY, "v1", &new);
    larder.advance(seconds(60));
    asked(&registry);
    let got = pull(&larder);
    assert_eq!((got.digest(), got.header("warning")), (new.digest(), None));
    assert_eq!(asked(&registry), ["HEAD v1".to_owned(), format!("GET {digest}")]);
    assert_eq!(pull(&larder).digest(), new.digest());
}

#[test]
fn tag_that_moves_back_to_a_cached_manifest_costs_no_get() {
    let (registry, larder, old) = minute();
    pull(&larder);
    registry.add(REPOSITORY, "v1", &Image::sample("new"));
    larder.advance(seconds(60));
    pull(&larder);
    registry.tag(REPOSITORY, "v1", &old.digest());
    larder.advance(seconds(60));
    asked(&registry);
    assert_eq!(pull(&larder).digest(), old.digest());
    assert_eq!(asked(&registry), ["HEAD v1"]);
}

#[test]
fn tag_that_moves_between_head_and_get_is_the_one_from_head() {
    let (registry, larder, _) = minute();
    pull(&larder);
    let (new, newer) = (Image::sample("new"), Image::sample("newer"));
    let digest = registry.add(REPOSITORY, "v1", &new);
    let gate = Gate::new();
    registry.fault(On::get_manifest(&digest), Fault::Gate(gate.clone()));
    larder.advance(seconds(60));
    let mut client = larder.begin(&manifest(REPOSITORY, "v1"));
    gate.wait_until_reached(1);
    registry.add(REPOSITORY, "v1", &newer);
    gate.open();
    let got = client.read_response();
    assert_eq!(got.header("docker-content-digest"), Some(digest.as_str()));
    assert!(got.body == new.manifest());
}

#[test]
fn ttl_of_zero_revalidates_every_time() {
    let (registry, larder, old) = with_ttl(Ttl::Always);
    assert_eq!(pull(&larder).digest(), old.digest());
    assert_eq!(pull(&larder).digest(), old.digest());
    let new = Image::sample("new");
    registry.add(REPOSITORY, "v1", &new);
    assert_eq!(pull(&larder).digest(), new.digest());
    let digest = new.digest();
    assert_eq!(asked(&registry), ["GET v1", "HEAD v1", "HEAD v1", &format!("GET {digest}")]);
}

#[test]
fn infinite_ttl_never_revalidates() {
    let (registry, mut larder, old) = with_ttl(Ttl::Forever);
    pull(&larder);
    registry.add(REPOSITORY, "v1", &Image::sample("new"));
    larder.advance(seconds(100 * 365 * 24 * 3600));
    assert_eq!(pull(&larder).digest(), old.digest());
    larder.restart();
    assert_eq!(pull(&larder).digest(), old.digest());
    assert_eq!(asked(&registry), ["GET v1"]);
}

#[test]
fn latest_is_always_revalidated_if_configured_and_other_tags_are_not() {
    let registry = FakeRegistry::start();
    let larder = Larder::start_with(&registry, |settings| {
        let always = FreshnessPolicy::of(Ttl::Forever);
        settings.cache.freshness = FreshnessPolicy { always_pull_latest: true, ..always };
    });
    for tag in ["latest", "v1", "latest-1"] {
        registry.add(REPOSITORY, tag, &Image::sample("old"));
        larder.get(&manifest(REPOSITORY, tag));
        registry.add(REPOSITORY, tag, &Image::sample("new"));
        let expected = Image::sample(if tag == "latest" { "new" } else { "old" }).digest();
        assert_eq!(larder.get(&manifest(REPOSITORY, tag)).digest(), expected, "{tag}");
    }
    registry.stop();
    let got = larder.get(&manifest(REPOSITORY, "latest"));
    assert_eq!(
        got.digest(),
        Image::sample("new").digest(),
        "cached tags are served although they are always revalidated"
    );
    assert_eq!(got.header("warning"), Some(STALE));
}

#[test]
fn tag_deleted_upstream_is_served_with_a_warning() {
    let (registry, larder, old) = minute();
    assert_eq!(pull(&larder).header("warning"), None);
    registry.remove_tag(REPOSITORY, "v1");
    registry.expect_unknown("*");
    larder.advance(seconds(60));
    asked(&registry);
    for _ in 0..3 {
        let got = pull(&larder);
        assert_eq!((got.status, got.digest()), (200, old.digest()));
        assert_eq!(got.header("warning"), Some(STALE));
    }
    assert_eq!(asked(&registry), ["HEAD v1", "GET v1"], "the 404 is cached for seconds");
}

#[test]
fn head_of_a_stale_tag_carries_a_warning() {
    let (registry, larder, old) = minute();
    pull(&larder);
    registry.stop();
    larder.advance(seconds(60));
    let head = larder.head(&manifest(REPOSITORY, "v1"));
    assert_eq!(head.header("docker-content-digest"), Some(old.digest().as_str()));
    assert_eq!(head.header("warning"), Some(STALE));
}

#[test]
fn cached_404_hides_a_push_for_seconds_only() {
    let registry = FakeRegistry::start();
    registry.expect_unknown("*");
    let larder = Larder::start_with(&registry, |settings| {
        settings.cache.negative_ttl = seconds(10);
    });
    let image = Image::sample("v1");
    let digest = image.digest();
    let layer = &image.layers()[0].digest;
    let targets =
        [manifest(REPOSITORY, "v1"), manifest(REPOSITORY, &digest), blob(REPOSITORY, layer)];
    for target in &targets {
        for _ in 0..3 {
            assert_eq!(larder.get(target).status, 404);
        }
    }
    assert_eq!(registry.requests().len(), 3, "one question each");
    registry.add(REPOSITORY, "v1", &image);
    larder.advance(seconds(9));
    for target in &targets {
        assert_eq!(larder.get(target).status, 404, "{target}");
    }
    larder.advance(seconds(1));
    for target in &targets {
        assert_eq!(larder.get(target).status, 200, "{target}");
    }
}

#[test]
fn cached_404_applies_to_its_repository_only() {
    let registry = FakeRegistry::start();
    registry.expect_unknown("/v2/team/other/*");
    let image = Image::sample("v1");
    let digest = registry.add(REPOSITORY, "v1", &image);
    let layer = &image.layers()[0];
    let larder = Larder::start(&registry);
    assert_eq!(larder.get(&manifest("team/other", &digest)).status, 404);
    assert_eq!(larder.get(&blob("team/other", &layer.digest)).status, 404);
    assert_eq!(larder.get(&manifest(REPOSITORY, &digest)).status, 200);
    assert!(larder.get(&blob(REPOSITORY, &layer.digest)).body == layer.bytes);
}

#[test]
fn stale_tag_is_served_at_once_and_revalidated_in_the_background() {
    let registry = FakeRegistry::start();
    let (old, new) = (Image::sample("old"), Image::sample("new"));
    registry.add(REPOSITORY, "v1", &old);
    let larder = Larder::start_with(&registry, |settings| {
        settings.cache.freshness = FreshnessPolicy {
            stale_while_revalidate: seconds(600),
            ..FreshnessPolicy::of(Ttl::For(seconds(60)))
        };
    });
    pull(&larder);
    registry.add(REPOSITORY, "v1", &new);
    let gate = Gate::new();
    registry.fault(On::head_manifest("v1").times(1), Fault::Gate(gate.clone()));
    larder.advance(seconds(120));
    for _ in 0..3 {
        let got = pull(&larder);
        assert_eq!((got.digest(), got.header("warning")), (old.digest(), Some(STALE)));
    }
    // It is revalidated once, in the background.
    gate.wait_until_reached(1);
    gate.open();
    crate::support::larder::until("the new one", || pull(&larder).digest() == new.digest());
    assert_eq!(registry.count("HEAD", &manifest(REPOSITORY, "v1")), 1);
    // A job that checked the tag before the clock advances must not answer for later.
    crate::support::larder::until("the end of all jobs", || {
        let load = larder.cache().load();
        load.manifests + load.manifest_pool.busy + load.manifest_pool.queued_in_background == 0
    });
    // Later than that, the tag is revalidated before it is served.
    registry.add(REPOSITORY, "v1", &old);
    larder.advance(seconds(700));
    let got = pull(&larder);
    assert_eq!((got.digest(), got.header("warning")), (old.digest(), None));
}

#[test]
fn tag_deleted_upstream_is_kept_or_dropped_as_configured() {
    for (on_upstream_delete, statuses) in
        [(OnUpstreamDelete::Keep, [200, 200]), (OnUpstreamDelete::Drop, [404, 404])]
    {
        let (registry, image) = FakeRegistry::with_image(REPOSITORY);
        let larder = Larder::start_with(&registry, |settings| {
            let policy = FreshnessPolicy::of(Ttl::For(seconds(60)));
            settings.cache.freshness = FreshnessPolicy { on_upstream_delete, ..policy };
        });
        pull(&larder);
        registry.expect_unknown(&manifest(REPOSITORY, "v1"));
        registry.remove_tag(REPOSITORY, "v1");
        larder.advance(seconds(120));
        for status in statuses {
            assert_eq!(pull(&larder).status, status, "{on_upstream_delete:?}");
            larder.advance(seconds(120));
        }
        // Pulls by digest are not affected.
        assert_eq!(larder.get(&manifest(REPOSITORY, &image.digest())).status, 200);
        // After the tag returns, it is served as before.
        registry.add(REPOSITORY, "v1", &image);
        let got = pull(&larder);
        assert_eq!((got.status, got.header("warning")), (200, None), "{got:?}");
    }
}

#[test]
fn refused_token_does_not_drop_a_tag() {
    let registry = FakeRegistry::start();
    registry.add_sample(REPOSITORY);
    let larder = Larder::start_with(&registry, |settings| {
        let policy = FreshnessPolicy::of(Ttl::For(seconds(60)));
        settings.cache.freshness =
            FreshnessPolicy { on_upstream_delete: OnUpstreamDelete::Drop, ..policy };
    });
    pull(&larder);
    larder.advance(seconds(120));
    let tokens = crate::support::TokenServer::new();
    registry.require_bearer(&tokens);
    registry.fault(On::anything().without_header("x"), Fault::status(401));
    assert_eq!((pull(&larder).status, pull(&larder).header("warning")), (200, Some(STALE)));
}

#[test]
fn offline_switch_applies_to_the_running_server_and_the_next_process() {
    let (registry, mut larder, image) = minute();
    pull(&larder);
    let store = larder.store();
    store.set_offline(true).expect("the switch can be written");
    larder.check_offline_switch();
    larder.advance(seconds(3600));
    registry.clear_requests();
    for _ in 0..2 {
        let got = pull(&larder);
        assert_eq!((got.status, got.header("warning")), (200, None));
        assert!(got.body == image.manifest());
        let missing = larder.get(&manifest(REPOSITORY, "v2"));
        assert!(missing.status == 404 && missing.text().contains("larder offline"), "{missing:?}");
        larder.restart();
    }
    assert_eq!(registry.requests().len(), 0);
    larder.store().set_offline(false).expect("the switch can be removed");
    larder.check_offline_switch();
    pull(&larder);
    assert_eq!(registry.requests().len(), 1);
}
