//! Larders that ask another Larder first: `parents`, and endpoints of kind `larder`.
//!
//! Two Larders in one process have the same name and would be a loop, so parents are processes here, or scripted.

use std::net::SocketAddr;
use std::sync::Barrier;
use std::thread;

use larder::cache::{OnUpstreamDelete, TagRule, TagRules, Ttl};
use larder::upstream::{EndpointKind, EndpointSettings};

use crate::support::client::get;
use crate::support::larder::{Settings, blob, manifest, seconds};
use crate::support::process::Process;
use crate::support::{FakeRegistry, Fault, Image, Larder, On, bytes};

const REPOSITORY: &str = "team/app";
const NAME: &str = "reg.test";

/// A child of `parent`, whose own registry is `registry`.
fn child_of(parent: &FakeRegistry, registry: &FakeRegistry) -> Larder {
    Larder::start_alone(|settings: &mut Settings| {
        settings.list(NAME, registry);
        settings.naming.default_upstream = NAME.parse().ok();
        let endpoint = Settings::endpoint(parent);
        settings.upstream.parents =
            vec![EndpointSettings { kind: EndpointKind::Larder, ..endpoint }];
    })
}

/// Scripts the age of all tags at a parent.
fn age(parent: &FakeRegistry, seconds: u32) {
    parent.clear_faults();
    parent.fault(On::any_manifest(), Fault::extra_header("Age", &seconds.to_string()));
}

#[test]
fn parent_is_asked_first_and_told_which_registry_is_meant() {
    let (parent, registry) = (FakeRegistry::start(), FakeRegistry::start());
    let image = Image::sample("v1");
    parent.add(REPOSITORY, "v1", &image);
    let child = child_of(&parent, &registry);
    assert!(child.get(&manifest(REPOSITORY, "v1")).body == image.manifest());
    for layer in image.layers() {
        assert!(child.get(&blob(REPOSITORY, &layer.digest)).body == layer.bytes);
    }
    let page = child.get(&format!("/v2/{REPOSITORY}/tags/list?n=5"));
    assert_eq!(page.json()["tags"][0], "v1");
    let (pings, others): (Vec<_>, Vec<_>) =
        parent.requests().into_iter().partition(|request| request.path == "/v2/");
    assert_eq!(pings.len(), 1, "its name is asked for once");
    for request in others {
        let query = request.query.as_deref().unwrap_or_default();
        assert!(query.split('&').any(|pair| pair == "ns=reg.test"), "{request:?}");
    }
    assert_eq!(registry.count("*", "*"), 0);
}

#[test]
fn registry_itself_is_asked_if_the_parent_lacks_the_content_or_is_down() {
    let (parent, registry) = (FakeRegistry::start(), FakeRegistry::start());
    parent.expect_unknown("*");
    let image = Image::sample("v1");
    registry.add(REPOSITORY, "v1", &image);
    let child = child_of(&parent, &registry);
    assert!(child.get(&manifest(REPOSITORY, "v1")).body == image.manifest());
    assert_eq!(parent.count("*", &manifest(REPOSITORY, "v1")), 1);
    parent.stop();
    for layer in image.layers() {
        assert!(child.get(&blob(REPOSITORY, &layer.digest)).body == layer.bytes);
    }
}

#[test]
fn ttl_of_a_tag_counts_once_along_a_chain() {
    let (parent, registry) = (FakeRegistry::start(), FakeRegistry::start());
    parent.add(REPOSITORY, "v1", &Image::sample("v1"));
    age(&parent, 200);
    let child = child_of(&parent, &registry);
    let path = manifest(REPOSITORY, "v1");
    let first = child.get(&path);
    assert_eq!(first.header("age"), Some("200"));
    assert_eq!(first.header("warning"), None);
    let asked = parent.count("*", "*");
    child.advance(seconds(99));
    assert_eq!(child.get(&path).header("age"), Some("299"));
    assert_eq!(parent.count("*", "*"), asked);
    child.advance(seconds(2));
    age(&parent, 7);
    assert_eq!(child.get(&path).header("age"), Some("7"));
    assert_eq!(parent.count("*", "*"), asked + 1, "HEAD confirms it");
    child.advance(seconds(240));
    assert_eq!(child.get(&path).header("age"), Some("247"));
    assert_eq!(parent.count("*", "*"), asked + 1);
}

#[test]
fn pull_that_begins_with_head_keeps_the_age_of_the_tag() {
    let (parent, registry) = (FakeRegistry::start(), FakeRegistry::start());
    let image = Image::sample("v1");
    parent.add(REPOSITORY, "v1", &image);
    age(&parent, 250);
    let child = child_of(&parent, &registry);
    let head = child.request("HEAD", &manifest(REPOSITORY, "v1"), &[]);
    assert_eq!(head.header("age"), Some("250"));
    let by_digest = child.get(&manifest(REPOSITORY, &image.digest()));
    assert_eq!(by_digest.header("age"), None);
    child.cache().wait_until_stored(None);
    assert_eq!(child.get(&manifest(REPOSITORY, "v1")).header("age"), Some("250"));
}

#[test]
fn stale_answer_of_a_parent_is_stale_here_too() {
    let (parent, registry) = (FakeRegistry::start(), FakeRegistry::start());
    parent.add(REPOSITORY, "v1", &Image::sample("v1"));
    let stale = vec![
        Fault::extra_header("Age", "4000"),
        Fault::extra_header("Warning", "110 - \"Response is Stale\""),
    ];
    parent.fault(On::any_manifest(), Fault::All(stale));
    let child = child_of(&parent, &registry);
    for method in ["GET", "HEAD", "GET"] {
        let got = child.request(method, &manifest(REPOSITORY, "v1"), &[]);
        assert_eq!((got.status, got.header("age")), (200, Some("4000")), "{method}");
        let warning = got.header("warning").unwrap_or_default();
        assert!(warning.starts_with("110 "), "{method}: {warning}");
    }
}

#[test]
fn age_of_a_registry_is_ignored() {
    let registry = FakeRegistry::start();
    registry.add(REPOSITORY, "v1", &Image::sample("v1"));
    age(&registry, 200);
    let larder = Larder::start(&registry);
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).header("age"), Some("0"));
}

#[test]
fn parent_without_a_tag_does_not_prove_that_it_was_deleted() {
    let (parent, registry) = (FakeRegistry::start(), FakeRegistry::start());
    let image = Image::sample("v1");
    parent.add(REPOSITORY, "v1", &image);
    let child = Larder::start_alone(|settings| {
        let endpoint = settings.list(NAME, &parent);
        endpoint.kind = EndpointKind::Larder;
        settings.naming.default_upstream = NAME.parse().ok();
        settings.cache.freshness.on_upstream_delete = OnUpstreamDelete::Drop;
    });
    assert_eq!(child.get(&manifest(REPOSITORY, "v1")).status, 200);
    child.cache().wait_until_stored(None);
    parent.remove_tag(REPOSITORY, "v1");
    parent.expect_unknown("*");
    child.advance(seconds(600));
    for _ in 0..2 {
        let got = child.get(&manifest(REPOSITORY, "v1"));
        assert!(got.body == image.manifest() && got.header("warning").is_some());
    }
    assert_eq!(registry.count("*", "*"), 0);
}

/// A configuration whose registry `reg.test` is at `url`, with these parents.
fn config(url: &str, parents: &[SocketAddr]) -> String {
    let parents: Vec<String> =
        parents.iter().map(|address| format!("\"http://{address}\"")).collect();
    format!(
        "fsync: false\nunlistedRegistries: deny\nparents: [{}]\nregistries:\n  - {{name: reg.test, \
         endpoints: [\"{url}\"]}}\n",
        parents.join(", ")
    )
}

#[test]
fn chain_of_three_fetches_everything_once() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let directories = [(); 3].map(|()| tempfile::tempdir().expect("a directory"));
    let top = Process::serve_file(directories[0].path(), &config(&registry.url(""), &[]));
    // Nobody listens at their own registry.
    let nowhere = "http://127.0.0.1:1";
    let middle = Process::serve_file(directories[1].path(), &config(nowhere, &[top.address]));
    let child = Process::serve_file(directories[2].path(), &config(nowhere, &[middle.address]));
    let name = format!("reg.test/{REPOSITORY}");
    assert!(get(child.address, &manifest(&name, "v1")).body == image.manifest());
    for layer in image.layers() {
        assert!(get(child.address, &blob(&name, &layer.digest)).body == layer.bytes);
        let path = format!("/v2/{REPOSITORY}/blobs/{}", layer.digest);
        assert_eq!(registry.count("GET", &path), 1);
    }
    let asked = &registry.requests()[0];
    let via = asked.header("via").expect("a Via header");
    assert_eq!(via.matches("1.1 larder-").count(), 3, "{via}");
}

/// Two Larders that are each other's parent.
fn ring(registry: &FakeRegistry) -> ([tempfile::TempDir; 2], [Process; 2]) {
    let directories = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    let mut first = Process::serve_file(directories[0].path(), &config(&registry.url(""), &[]));
    let second =
        Process::serve_file(directories[1].path(), &config(&registry.url(""), &[first.address]));
    Process::put_config(directories[0].path(), &config(&registry.url(""), &[second.address]));
    first.signal("HUP");
    first.wait_until_it_logs("configuration reloaded");
    (directories, [first, second])
}

#[test]
fn larder_that_is_its_own_parent_says_so_and_asks_the_registry() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let directory = tempfile::tempdir().expect("a directory");
    let mut larder = Process::serve_file(directory.path(), &config(&registry.url(""), &[]));
    let own = larder.address;
    Process::put_config(directory.path(), &config(&registry.url(""), &[own]));
    larder.signal("HUP");
    larder.wait_until_it_logs("configuration reloaded");
    let name = format!("reg.test/{REPOSITORY}");
    assert!(get(own, &manifest(&name, "v1")).body == image.manifest());
    let line = larder.wait_until_it_logs("an endpoint is this Larder itself");
    assert!(line.contains("ERROR parents: ") && line.contains(&own.to_string()), "{line}");
}

#[test]
fn ring_of_two_asks_the_registry() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let (_directories, larders) = ring(&registry);
    let name = format!("reg.test/{REPOSITORY}");
    for larder in &larders {
        assert!(get(larder.address, &manifest(&name, "v1")).body == image.manifest());
    }
    for layer in image.layers() {
        assert!(get(larders[0].address, &blob(&name, &layer.digest)).body == layer.bytes);
    }
}

#[test]
fn downloads_of_a_ring_do_not_wait_for_each_other() {
    let registry = FakeRegistry::start();
    let contents: Vec<Vec<u8>> = (0..40).map(|seed| bytes(5_000, seed)).collect();
    let digests: Vec<String> =
        contents.iter().map(|content| registry.add_blob(REPOSITORY, content)).collect();
    let (_directories, larders) = ring(&registry);
    for (content, digest) in contents.iter().zip(&digests) {
        let path = blob(&format!("reg.test/{REPOSITORY}"), digest);
        // Both begin at the same time, so that each may ask the other while it is asked.
        let start = Barrier::new(2);
        thread::scope(|scope| {
            for larder in &larders {
                scope.spawn(|| {
                    start.wait();
                    let got = get(larder.address, &path);
                    assert!(got.status == 200 && got.body == *content, "{got:?}");
                });
            }
        });
    }
}

#[test]
fn move_that_the_parent_has_held_is_not_held_again() {
    let (parent, registry) = (FakeRegistry::start(), FakeRegistry::start());
    let images = ["one", "two", "three"].map(Image::sample);
    parent.add(REPOSITORY, "v1", &images[0]);
    let mut child = child_of(&parent, &registry);
    child.restart_with(|settings| {
        let hold = Some(seconds(86_400));
        let rule = TagRule { pattern: "*".parse().expect("a pattern"), ttl: None, hold };
        let otherwise = Some(Ttl::For(seconds(60)));
        settings.cache.freshness.rules = TagRules { patterns: vec![rule], otherwise };
    });
    let served = || child.get(&manifest(REPOSITORY, "v1"));
    assert_eq!(served().digest(), images[0].digest());
    parent.add(REPOSITORY, "v1", &images[1]);
    child.advance(seconds(60));
    assert_eq!(
        served().digest(),
        images[0].digest(),
        "the parent does not say that it has held it"
    );
    parent.fault(On::any_manifest(), Fault::extra_header("Larder-Hold", "passed"));
    child.advance(seconds(60));
    let got = served();
    assert_eq!(got.digest(), images[1].digest());
    // What the child says to those that ask it.
    assert_eq!(served().header("larder-hold"), Some("passed"));
}
