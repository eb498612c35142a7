//! `tags[].hold`: a tag that moves at its registry, while the previous manifest is served.
//!
//! Proves docs/configuration.md, "Tags that move".

use std::time::Duration;

use larder::cache::{FreshnessPolicy, OnUpstreamDelete, TagRule, TagRules, Ttl};
use larder::oci::{Decision, ImageName};

use crate::support::client::get;
use crate::support::larder::{blob, manifest, seconds, until};
use crate::support::site::{NamedImage, Site};
use crate::support::{FakeRegistry, Fault, Image, Larder, On, Response};

const REPOSITORY: &str = "team/app";
const HELD: &str = "199 - \"Tag Has Moved\"";

/// A policy that checks tags after a minute, and accepts moves after an hour.
fn policy() -> FreshnessPolicy {
    let rule = TagRule {
        pattern: "*".parse().expect("a pattern"),
        ttl: None,
        hold: Some(Duration::from_secs(3600)),
    };
    let rules = TagRules { patterns: vec![rule], otherwise: Some(Ttl::For(seconds(60))) };
    FreshnessPolicy { rules, ..FreshnessPolicy::default() }
}

/// A server that has cached the tag `v1`.
fn site() -> (FakeRegistry, Larder, Image) {
    let registry = FakeRegistry::start();
    let old = Image::sample("old");
    registry.add(REPOSITORY, "v1", &old);
    let larder = Larder::start_with(&registry, |settings| settings.cache.freshness = policy());
    assert_eq!(pull(&larder).digest(), old.digest());
    (registry, larder, old)
}

fn pull(larder: &Larder) -> Response {
    larder.get(&manifest(REPOSITORY, "v1"))
}

/// Moves the tag, and returns the image that it refers to now.
fn move_tag(registry: &FakeRegistry, label: &str) -> Image {
    let image = Image::sample(label);
    registry.add(REPOSITORY, "v1", &image);
    image
}

/// Removes the manifest from the cache, as a damaged disk would.
fn lose(larder: &Larder, image: &Image) {
    std::fs::remove_file(larder.blob_file(&image.digest())).expect("a manifest");
}

fn decide(registry: &FakeRegistry, larder: &Larder, decision: Decision) -> bool {
    let upstream = registry.host().parse().expect("a registry");
    let name = ImageName::new(upstream, REPOSITORY.parse().expect("a repository"));
    let tag = "v1".parse().expect("a tag");
    larder.store().decide_tag(&name, &tag, None, decision).expect("a decision").is_some()
}

#[track_caller]
fn assert_held(larder: &Larder, old: &Image) {
    let got = pull(larder);
    assert_eq!((got.status, got.digest()), (200, old.digest()));
    assert_eq!(got.header("warning"), Some(HELD));
}

#[track_caller]
fn assert_served(larder: &Larder, image: &Image) {
    let got = pull(larder);
    assert_eq!((got.status, got.digest(), got.header("warning")), (200, image.digest(), None));
}

#[test]
fn moved_tag_is_held_until_it_was_observed_for_long_enough() {
    let (registry, mut larder, old) = site();
    let new = move_tag(&registry, "new");
    larder.advance(seconds(60));
    assert_held(&larder, &old);
    let head = larder.head(&manifest(REPOSITORY, "v1"));
    assert_eq!(head.header("docker-content-digest"), Some(old.digest().as_str()));
    assert_eq!(head.header("warning"), Some(HELD));
    larder.advance(seconds(1800));
    assert_held(&larder, &old);
    larder.restart();
    assert_held(&larder, &old);
    larder.advance(seconds(1800));
    assert_served(&larder, &new);
    let by_digest = larder.get(&manifest(REPOSITORY, &old.digest()));
    assert_eq!((by_digest.status, by_digest.header("warning")), (200, None), "old digests stay");
}

#[test]
fn held_manifest_is_held_too_if_the_registry_does_not_support_head() {
    let (registry, larder, old) = site();
    registry.fault(On::manifest("v1"), Fault::HeadNotAllowed);
    let new = move_tag(&registry, "new");
    larder.advance(seconds(60));
    assert_held(&larder, &old);
    larder.advance(seconds(3600));
    assert_served(&larder, &new);
}

#[test]
fn tag_that_moves_back_is_no_longer_held() {
    let (registry, larder, old) = site();
    move_tag(&registry, "new");
    larder.advance(seconds(60));
    assert_held(&larder, &old);
    registry.tag(REPOSITORY, "v1", &old.digest());
    larder.advance(seconds(60));
    assert_served(&larder, &old);
    let newer = move_tag(&registry, "newer");
    larder.advance(seconds(3600));
    assert_held(&larder, &old);
    larder.advance(seconds(3600));
    assert_served(&larder, &newer);
}

#[test]
fn tag_that_moves_again_begins_to_wait_again() {
    let (registry, larder, old) = site();
    move_tag(&registry, "new");
    larder.advance(seconds(60));
    assert_held(&larder, &old);
    let newer = move_tag(&registry, "newer");
    larder.advance(seconds(3600));
    assert_held(&larder, &old);
    larder.advance(seconds(3599));
    assert_held(&larder, &old);
    larder.advance(seconds(60));
    assert_served(&larder, &newer);
}

#[test]
fn operators_decision_counts() {
    let (registry, larder, old) = site();
    assert!(!decide(&registry, &larder, Decision::Accepted), "nothing is held");
    move_tag(&registry, "new");
    larder.advance(seconds(60));
    assert_held(&larder, &old);
    assert!(decide(&registry, &larder, Decision::Rejected));
    larder.advance(seconds(7200));
    assert_held(&larder, &old);
    let newer = move_tag(&registry, "newer");
    larder.advance(seconds(60));
    assert_held(&larder, &old);
    assert!(decide(&registry, &larder, Decision::Accepted));
    // A manifest in memory is served for a second.
    larder.advance(seconds(1));
    assert_served(&larder, &newer);
}

#[test]
fn previous_manifest_that_was_lost_is_fetched_again_while_the_registry_has_it() {
    let (registry, larder, old) = site();
    lose(&larder, &old);
    move_tag(&registry, "new");
    larder.advance(seconds(60));
    assert_held(&larder, &old);
    lose(&larder, &old);
    registry.fault(On::get_manifest(&old.digest()), Fault::Status(404, vec![], vec![]));
    larder.advance(seconds(60));
    let got = pull(&larder);
    assert_eq!(got.status, 403, "not what the registry has now");
    assert!(got.text().contains("larder tags accept"), "{}", got.text());
}

#[test]
fn previous_manifest_that_was_lost_before_the_move_can_be_replaced() {
    let (registry, larder, old) = site();
    lose(&larder, &old);
    registry.fault(On::get_manifest(&old.digest()), Fault::Status(404, vec![], vec![]));
    let new = move_tag(&registry, "new");
    larder.advance(seconds(60));
    assert_eq!(pull(&larder).status, 403);
    let newer = move_tag(&registry, "newer");
    larder.advance(seconds(60));
    assert_eq!(pull(&larder).status, 403);
    let (upstream, repository) = (registry.host().parse().expect("a registry"), REPOSITORY.parse());
    let name = ImageName::new(upstream, repository.expect("a repository"));
    let (tag, store) = ("v1".parse().expect("a tag"), larder.store());
    let accept = |image: &Image| {
        let digest = image.digest().parse().expect("a digest");
        let decided = store.decide_tag(&name, &tag, Some(&digest), Decision::Accepted);
        decided.expect("a decision").is_some()
    };
    assert!(!accept(&new), "the tag has moved again");
    assert!(accept(&newer));
    larder.advance(seconds(60));
    assert_served(&larder, &newer);
}

#[test]
fn tag_that_is_deleted_and_created_again_is_held() {
    let registry = FakeRegistry::start();
    let old = Image::sample("old");
    registry.add(REPOSITORY, "v1", &old);
    let larder = Larder::start_with(&registry, |settings| {
        let on_upstream_delete = OnUpstreamDelete::Drop;
        settings.cache.freshness = FreshnessPolicy { on_upstream_delete, ..policy() };
    });
    assert_served(&larder, &old);
    registry.remove_tag(REPOSITORY, "v1");
    registry.expect_unknown(&manifest(REPOSITORY, "v1"));
    larder.advance(seconds(60));
    assert_eq!(pull(&larder).digest(), old.digest(), "stale");
    move_tag(&registry, "new");
    larder.advance(seconds(60));
    assert_held(&larder, &old);
}

#[test]
fn rejected_manifest_stays_rejected_when_the_tag_moves_elsewhere_and_back() {
    let (registry, larder, old) = site();
    let new = move_tag(&registry, "new");
    larder.advance(seconds(60));
    assert_held(&larder, &old);
    assert!(decide(&registry, &larder, Decision::Rejected));
    registry.tag(REPOSITORY, "v1", &old.digest());
    larder.advance(seconds(60));
    assert_served(&larder, &old);
    registry.tag(REPOSITORY, "v1", &new.digest());
    for _ in 0..3 {
        larder.advance(seconds(3600));
        assert_held(&larder, &old);
    }
}

#[test]
fn manifest_that_is_held_is_no_incomplete_image() {
    let (registry, site, images) = Site::with_samples(&["app:1"]);
    site.configure("tagTtl: always\ntags: [{pattern: '1', hold: 72h}]");
    let server = site.serve();
    let old = images[0].image.digest();
    let bundle = site.path("out.tar").display().to_string();
    for label in ["moved", "moved again"] {
        let new = NamedImage::new("app", "1", &Image::sample(label));
        new.publish(&registry);
        assert_eq!(get(server.address(), &new.target()).digest(), old);
        let verified = site.run_ok(&["verify", "--repair"]);
        assert!(verified.contains("1 image, 0 incomplete"), "{verified}");
        assert_eq!(registry.count("GET", &blob("library/app", &new.image.layers()[0].digest)), 0);
        let (code, _, stderr) = site.run(&["export", "--all", "-o", &bundle]);
        assert!(code == Some(0) && stderr.contains("that was not accepted"), "{stderr}");
        let listed = site.run_ok(&["list"]);
        assert!(listed.contains("not accepted for its tag"), "{listed}");
        assert!(!listed.contains("partial"), "{listed}");
        let named = format!("app@{}", new.image.digest());
        let (code, _, stderr) = site.run(&["export", &named, "-o", &bundle]);
        assert!(code == Some(1) && stderr.contains("incomplete"), "{stderr}");
    }
}

#[test]
fn commands_list_tags_that_moved_and_decide_about_held_ones() {
    let (registry, site, images) = Site::with_samples(&["app:1", "base:1"]);
    site.configure("tagTtl: always\ntags: [{pattern: '1', hold: 72h}]");
    assert_eq!(site.run_ok(&["tags"]), "no cached tag has moved\n");
    let server = site.serve();
    let new = NamedImage::new("app", "1", &Image::sample("moved"));
    new.publish(&registry);
    let (old, path) = (images[0].image.digest(), new.target());
    assert_eq!(get(server.address(), &path).digest(), old);
    // Images are listed when a server starts, and later from time to time.
    drop(server);
    let server = site.serve();
    let served = || get(server.address(), &path).digest();
    let listed = site.run_ok(&["tags", "list", "--held"]);
    assert!(listed.contains("docker.io/library/app:1") && listed.contains("waiting"), "{listed}");
    assert!(listed.contains("waiting, 2d") && listed.contains(" left"), "{listed}");
    let documents = crate::support::site::report(&site.run_ok(&["tags", "list", "--json"]));
    let time = |key: &str| documents[0]["held"][key].as_str().expect("a time").to_owned();
    assert!(time("until") > time("since"), "{documents}");
    assert_eq!(documents[0]["held"]["digest"], serde_json::json!(new.image.digest()));
    until("the list of held images", || server.api("images?state=held")["total"] == 1);
    assert_eq!(server.api("images?state=held")["images"][0]["held"], new.image.digest());

    let (code, _, stderr) = site.run(&["tags", "accept", "base:1"]);
    assert!(
        code == Some(1) && stderr.contains("nothing is held for docker.io/library/base:1"),
        "{stderr}"
    );
    let (code, _, stderr) = site.run(&["tags", "accept", "app:1", "--digest", &old]);
    let message = format!("another manifest than --digest is held: {} for", new.image.digest());
    assert!(code == Some(1) && stderr.contains(&message), "{stderr}");
    let (code, _, stderr) = site.run(&["tags", "accept"]);
    assert!(code == Some(2) && stderr.contains("larder tags list --held"), "{stderr}");
    assert!(site.run_ok(&["tags", "reject", "app:1"]).contains("rejected"));
    assert!(site.run_ok(&["tags"]).contains("rejected"));
    assert_eq!(served(), old);
    assert_eq!(server.call("POST", "tags/accept?image=app:1").status, 200);
    until("the new manifest", || served() == new.image.digest());
    assert_eq!(
        server.call("POST", "tags/accept?image=app:1").status,
        404,
        "nothing is held any more"
    );
    let listed = site.run_ok(&["tags"]);
    assert!(!listed.contains("waiting") && listed.contains("docker.io/library/app:1"), "{listed}");
    assert_eq!(site.run_ok(&["tags", "list", "--held"]), "no move of a tag is held\n");
}
