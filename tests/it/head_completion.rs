//! An image that nodes have, and therefore check with HEAD only, is completed in the background.
//!
//! Proves `prefetchOnHead` (docs/configuration.md).

use larder::cache::{Prefetch, PrefetchOnHead, Ttl};
use serde_json::Value;

use crate::support::larder::{blob, manifest, seconds, until};
use crate::support::site::{NamedImage, Site};
use crate::support::{FakeRegistry, Fault, Image, Index, Larder, On, Publish, bytes, media_type};

const REPOSITORY: &str = "team/app";
const CONTAINERD: &str = "containerd/v2.2.9";
const CRANE: &str = "crane/v0.20.2 go-containerregistry/v0.20.2";
/// Longer than the delay for a client that may be pulling.
const AFTER_THE_DELAY: u64 = 5;

fn start(registry: &FakeRegistry, on_head: PrefetchOnHead) -> Larder {
    Larder::start_with(registry, |settings| {
        settings.cache.prefetch = Prefetch { on_head, ..Prefetch::default() };
    })
}

fn check(larder: &Larder, target: &str, agent: &str) {
    assert_eq!(larder.request("HEAD", target, &[("User-Agent", agent)]).status, 200, "{target}");
}

/// Lets the time pass after which the image of a HEAD request is fetched.
fn after(larder: &Larder, time: u64) {
    larder.advance(seconds(time));
    larder.cache().complete_due_images();
}

fn wait_for(larder: &Larder, image: &Image) {
    image.blobs().iter().for_each(|each| larder.wait_until_cached(&each.digest));
}

/// Waits until the background fetches of this image's repository have ended: they run in order.
fn wait_for_the_queue(larder: &Larder, registry: &FakeRegistry) {
    let last = Image::sample("last in the queue");
    registry.add("team/last", "v1", &last);
    larder.get(&manifest("team/last", "v1"));
    wait_for(larder, &last);
}

fn reasons(larder: &Larder) -> Vec<(String, String)> {
    let images = larder.cache().incomplete_images().into_iter();
    images.map(|image| (image.state, image.reason)).collect()
}

#[test]
fn image_that_nodes_only_check_survives_an_outage() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let larder = start(&registry, PrefetchOnHead::Runtimes);
    check(&larder, &manifest(REPOSITORY, "v1"), CONTAINERD);
    after(&larder, AFTER_THE_DELAY);
    wait_for(&larder, &image);
    assert_eq!(registry.count("GET", &manifest(REPOSITORY, "v1")), 1);

    registry.fault(On::anything(), Fault::status(503));
    larder.advance(seconds(3600));
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).body, image.manifest());
    for each in image.blobs() {
        assert!(larder.get(&blob(REPOSITORY, &each.digest)).body == each.bytes);
    }
}

#[test]
fn tag_that_one_server_checked_and_another_one_pulled_survives_an_outage() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let one = start(&registry, PrefetchOnHead::Runtimes);
    let other = one.second();
    check(&one, &manifest(REPOSITORY, "v1"), CONTAINERD);
    let by_digest = manifest(REPOSITORY, &image.digest());
    assert_eq!(other.request("GET", &by_digest, &[("User-Agent", CONTAINERD)]).status, 200);
    registry.fault(On::anything(), Fault::status(503));
    after(&one, AFTER_THE_DELAY);
    for larder in [&one, &other] {
        assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).body, image.manifest());
    }
}

#[test]
fn check_by_digest_completes_the_image_too() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let larder = start(&registry, PrefetchOnHead::Runtimes);
    check(&larder, &manifest(REPOSITORY, &image.digest()), CONTAINERD);
    after(&larder, AFTER_THE_DELAY);
    wait_for(&larder, &image);
}

#[test]
fn cached_image_that_lost_a_layer_is_completed_again() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let larder = start(&registry, PrefetchOnHead::Runtimes);
    larder.get(&manifest(REPOSITORY, "v1"));
    wait_for(&larder, &image);
    let layer = &image.layers()[0];
    std::fs::remove_file(larder.blob_file(&layer.digest)).expect("a cached layer");
    larder.advance(seconds(1));
    check(&larder, &manifest(REPOSITORY, "v1"), CONTAINERD);
    after(&larder, AFTER_THE_DELAY);
    wait_for(&larder, &image);
}

#[test]
fn which_clients_complete_images_is_configurable() {
    for (on_head, agent, completes) in [
        (PrefetchOnHead::Runtimes, CONTAINERD, true),
        (PrefetchOnHead::Runtimes, "cri-o/1.30.0 go/go1.22.0 os/linux arch/amd64", true),
        (PrefetchOnHead::Runtimes, "docker/24.0.7 go/go1.20 os/linux arch/amd64", true),
        (PrefetchOnHead::Runtimes, CRANE, false),
        (PrefetchOnHead::Runtimes, "", false),
        (PrefetchOnHead::Always, CRANE, true),
        (PrefetchOnHead::Never, CONTAINERD, false),
    ] {
        let (registry, image) = FakeRegistry::with_image(REPOSITORY);
        let larder = start(&registry, on_head);
        check(&larder, &manifest(REPOSITORY, "v1"), agent);
        after(&larder, AFTER_THE_DELAY);
        if completes {
            wait_for(&larder, &image);
        }
        wait_for_the_queue(&larder, &registry);
        assert_eq!(larder.has(&image.layers()[0].digest), completes, "{on_head:?} {agent:?}");
    }
}

#[test]
fn pull_that_begins_with_head_is_not_fetched_twice() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let larder = start(&registry, PrefetchOnHead::Runtimes);
    check(&larder, &manifest(REPOSITORY, "v1"), CONTAINERD);
    larder.get(&manifest(REPOSITORY, &image.digest()));
    wait_for(&larder, &image);
    after(&larder, AFTER_THE_DELAY);
    wait_for_the_queue(&larder, &registry);
    assert_eq!(registry.count("GET", &manifest(REPOSITORY, "v1")), 0);
    assert_eq!(registry.count("GET", &manifest(REPOSITORY, &image.digest())), 1);
}

#[test]
fn platform_of_an_index_is_that_of_the_nodes() {
    let amd = Image::sample("amd").platform("linux", "amd64").layer(bytes(1000, 1));
    let arm = Image::sample("arm").platform("linux", "arm64").layer(bytes(1000, 2));
    let images = [amd, arm];
    let index = images.iter().fold(Index::new(), Index::image);
    let (docker_on_arm, docker_on_amd) =
        ("docker/24 os/linux arch/arm64", "docker/24 os/linux arch/amd64");
    // What a node pulled before, the client that checks, and what is cached in the end.
    for (pulled, agent, expected) in [
        (None, docker_on_arm, [false, true]),
        (None, docker_on_amd, [true, false]),
        (None, CONTAINERD, [true, false]),
        (Some(&images[1]), CONTAINERD, [false, true]),
        (Some(&images[1]), docker_on_amd, [true, true]),
    ] {
        let registry = FakeRegistry::start();
        images.iter().for_each(|image| drop(registry.add_untagged(REPOSITORY, image)));
        registry.add(REPOSITORY, "v1", &index);
        let larder = Larder::start_with(&registry, |settings| {
            let default_platform = "linux/amd64".parse().expect("a platform");
            settings.cache.prefetch = Prefetch { default_platform, ..Prefetch::default() };
        });
        if let Some(image) = pulled {
            larder.get(&manifest(REPOSITORY, &image.digest()));
            wait_for(&larder, image);
        }
        check(&larder, &manifest(REPOSITORY, "v1"), agent);
        after(&larder, AFTER_THE_DELAY);
        for (image, is_expected) in images.iter().zip(expected) {
            if is_expected {
                wait_for(&larder, image);
            }
        }
        wait_for_the_queue(&larder, &registry);
        let cached = images.each_ref().map(|image| larder.has(&image.layers()[0].digest));
        assert_eq!(cached, expected, "{agent}");
    }
}

#[test]
fn children_without_a_platform_and_nested_indexes_are_completed() {
    let amd = Image::sample("amd").platform("linux", "amd64").layer(bytes(1000, 1));
    let registry = FakeRegistry::start();
    registry.add_untagged(REPOSITORY, &amd);
    let inner = Index::new().image(&amd);
    let inner_digest = registry.add_untagged(REPOSITORY, &inner);
    let entry = |digest: &str, size: usize, kind: &str| {
        format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":{size}}}"#)
    };
    let index = |child: String| {
        let kind = media_type::OCI_INDEX;
        format!(r#"{{"schemaVersion":2,"mediaType":"{kind}","manifests":[{child}]}}"#).into_bytes()
    };
    let plain = entry(&amd.digest(), amd.manifest().len(), media_type::OCI_MANIFEST);
    let nested = entry(&inner_digest, inner.manifest().len(), media_type::OCI_INDEX);
    for child in [plain, nested] {
        let bytes = index(child);
        registry.add_manifest(REPOSITORY, "v1", media_type::OCI_INDEX, &bytes);
        let larder = Larder::start_with(&registry, |settings| {
            let default_platform = "linux/amd64".parse().expect("a platform");
            settings.cache.prefetch = Prefetch { default_platform, ..Prefetch::default() };
        });
        check(&larder, &manifest(REPOSITORY, "v1"), CONTAINERD);
        after(&larder, AFTER_THE_DELAY);
        wait_for(&larder, &amd);
    }
}

#[test]
fn check_leaves_the_tag_of_a_cached_image_to_the_freshness_policy() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let larder = Larder::start_with(&registry, |settings| {
        settings.cache.prefetch = Prefetch::default();
        settings.cache.freshness.rules.otherwise = Some(Ttl::Forever);
    });
    larder.get(&manifest(REPOSITORY, "v1"));
    wait_for(&larder, &image);
    registry.add(REPOSITORY, "v1", &Image::sample("moved"));
    let requests = registry.requests().len();
    larder.advance(seconds(3600));
    // With a missing layer there is something to fetch.
    let layer = &image.layers()[0];
    std::fs::remove_file(larder.blob_file(&layer.digest)).expect("a cached layer");
    check(&larder, &manifest(REPOSITORY, "v1"), CONTAINERD);
    after(&larder, AFTER_THE_DELAY);
    wait_for(&larder, &image);
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).body, image.manifest());
    assert_eq!(registry.requests().len(), requests + 1, "the layer only");
}

#[test]
fn complete_image_is_not_reported_while_its_registry_is_down() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let larder = start(&registry, PrefetchOnHead::Runtimes);
    larder.get(&manifest(REPOSITORY, "v1"));
    wait_for(&larder, &image);
    registry.fault(On::anything(), Fault::status(503));
    larder.advance(seconds(3600));
    check(&larder, &manifest(REPOSITORY, "v1"), CONTAINERD);
    after(&larder, AFTER_THE_DELAY);
    assert_eq!(reasons(&larder), []);
}

#[test]
fn queued_images_are_dropped_when_the_setting_is_turned_off() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let mut larder = start(&registry, PrefetchOnHead::Runtimes);
    check(&larder, &manifest(REPOSITORY, "v1"), CONTAINERD);
    larder.restart_with(|settings| settings.cache.prefetch.on_head = PrefetchOnHead::Never);
    after(&larder, AFTER_THE_DELAY);
    wait_for_the_queue(&larder, &registry);
    assert!(!larder.has(&image.layers()[0].digest));
    assert_eq!(reasons(&larder), []);
}

#[test]
fn scanner_with_the_name_of_a_runtime_downloads_nothing() {
    let registry = FakeRegistry::start();
    let image = Image::sample("v1");
    (0..40).for_each(|number| drop(registry.add(REPOSITORY, &format!("v{number}"), &image)));
    let larder = start(&registry, PrefetchOnHead::Runtimes);
    for number in 0..40 {
        check(&larder, &manifest(REPOSITORY, &format!("v{number}")), CONTAINERD);
    }
    after(&larder, 3600);
    wait_for_the_queue(&larder, &registry);
    assert!(!larder.has(&image.layers()[0].digest));
    assert_eq!(reasons(&larder), []);
}

#[test]
fn rest_of_a_rate_limit_is_kept_for_pulls() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let larder = start(&registry, PrefetchOnHead::Runtimes);
    let limit = |remaining: &str| {
        registry.clear_faults();
        let headers = [("ratelimit-limit", "100"), ("ratelimit-remaining", remaining)];
        let header = |(name, value)| Fault::extra_header(name, &format!("{value};w=21600"));
        registry.fault(On::anything(), Fault::All(headers.map(header).into()));
    };
    limit("24");
    check(&larder, &manifest(REPOSITORY, "v1"), CONTAINERD);
    after(&larder, AFTER_THE_DELAY);
    let reason = "the rest of the registry's rate limit is kept for pulls";
    assert_eq!(reasons(&larder), [("retrying".to_owned(), reason.to_owned())]);
    assert_eq!(registry.count("GET", &manifest(REPOSITORY, "v1")), 0);

    limit("25");
    larder.advance(seconds(3600));
    check(&larder, &manifest(REPOSITORY, "v1"), CONTAINERD);
    after(&larder, AFTER_THE_DELAY);
    wait_for(&larder, &image);
}

#[test]
fn failed_completion_is_retried_and_explained() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let layer = &image.layers()[0];
    let larder = start(&registry, PrefetchOnHead::Runtimes);
    registry.fault(On::get_blob(&layer.digest), Fault::status(500));
    check(&larder, &manifest(REPOSITORY, "v1"), CONTAINERD);
    assert_eq!(reasons(&larder), [("queued".to_owned(), "waiting to be fetched".to_owned())]);
    after(&larder, AFTER_THE_DELAY);
    registry.wait_for("GET", &blob(REPOSITORY, &layer.digest), 1);
    until("the failure to be noticed", || {
        after(&larder, 10);
        reasons(&larder).iter().any(|(state, _)| state == "retrying")
    });
    let [(_, reason)] = &reasons(&larder)[..] else { panic!("one image") };
    assert!(reason.contains("has failed") || reason.contains("does not respond"), "{reason}");

    registry.clear_faults();
    after(&larder, 300);
    wait_for(&larder, &image);
    after(&larder, 10);
    until("the image to be complete", || {
        after(&larder, 10);
        reasons(&larder).is_empty()
    });
}

#[test]
fn layer_that_the_registry_lacks_is_not_requested_for_ever() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let layer = &image.layers()[0];
    registry.remove_blob(REPOSITORY, &layer.digest);
    let target = blob(REPOSITORY, &layer.digest);
    registry.expect_unknown(&target);
    let larder = start(&registry, PrefetchOnHead::Runtimes);
    check(&larder, &manifest(REPOSITORY, "v1"), CONTAINERD);
    for _ in 0..200 {
        after(&larder, 300);
        wait_for_the_queue(&larder, &registry);
        if reasons(&larder).iter().any(|(state, _)| state == "failed") {
            break;
        }
    }
    let requests = registry.count("GET", &target);
    assert!((1..=8).contains(&requests), "{requests}");
    assert_eq!(reasons(&larder)[0].0, "failed");
    (0..50).for_each(|_| after(&larder, 300));
    assert_eq!(registry.count("GET", &target), requests);
}

#[test]
fn list_metrics_and_api_show_what_is_missing_and_why() {
    let registry = FakeRegistry::start();
    let site = Site::with_prefetch(&registry);
    let named = NamedImage::new("team/app", "v1", &Image::sample("v1"));
    named.publish(&registry);
    let layer = &named.image.layers()[0];
    registry.fault(On::get_blob(&layer.digest), Fault::status(500));
    let server = site.serve();
    let address = server.address();
    let head = || {
        let agent = [("User-Agent", CONTAINERD)];
        crate::support::client::request(address, "HEAD", &named.target(), &agent)
    };
    assert_eq!(head().status, 200);
    let state = |server: &crate::support::site::RunningServer| {
        let all = server.api("incomplete")["incomplete"].clone();
        all[0]["state"].as_str().unwrap_or_default().to_owned()
    };
    until("the image to be known", || !state(&server).is_empty());
    until("the failure", || state(&server) == "retrying");
    let all: Value = server.api("incomplete");
    let image = &all["incomplete"][0];
    assert!(image["image"].as_str().is_some_and(|name| name.ends_with("team/app:v1")), "{all}");
    assert!(image["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{all}");
    assert!(server.metric("larder_incomplete_images{state=\"retrying\"}") >= 1.0);
    let reason = image["reason"].as_str().expect("a reason");
    let state = format!("missing ({reason})");
    until("the reason in the list", || site.run_ok(&["list"]).contains(&state));
    let json: Value = serde_json::from_str(&site.run_ok(&["list", "--json"])).expect("JSON");
    assert_eq!(json[0]["reason"], reason);
}
