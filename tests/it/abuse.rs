//! What one client, or one registry, can do to the others: nothing.

use crate::support::larder::{blob, files, manifest};
use crate::support::{FakeRegistry, Larder, absent_digest};

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
