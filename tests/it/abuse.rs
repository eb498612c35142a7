//! What one client, or one registry, can do to the others: nothing.

use larder::cache::BreakerState;

use crate::support::larder::{blob, files, manifest};
use crate::support::{FakeRegistry, Fault, Image, Larder, On, absent_digest};

const REPOSITORY: &str = "team/app";

#[test]
fn requests_for_what_does_not_exist_create_nothing_on_disk() {
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

/// Files and directories below the cache directory, at any depth.
fn entries(larder: &Larder) -> Vec<std::path::PathBuf> {
    let mut all = files(&larder.root());
    let directories = ["partials", "refs", "incoming"].map(|name| larder.root().join(name));
    for directory in directories {
        all.extend(
            std::fs::read_dir(directory).expect("it is there").flatten().map(|entry| entry.path()),
        );
    }
    all.sort();
    all.dedup();
    all
}

#[test]
fn a_request_that_always_fails_takes_the_registry_away_from_nobody() {
    let registry = FakeRegistry::start();
    let image = Image::sample("v1");
    registry.add(REPOSITORY, "v1", &image);
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
