//! Referrers: relayed, served from the cache while the registry is unreachable, and listed for registries without the
//! referrers API.
//!
//! Proves protocol 7.3 and 7.4 (docs/protocol.md).

use larder::cache::Prefetch;
use larder::upstream::BreakerPolicy;
use serde_json::{Value, json};

use crate::support::larder::{manifest, seconds};
use crate::support::{
    FakeRegistry, Fault, Gate, Image, Larder, On, Response, TokenAnswer, TokenServer,
    absent_digest, media_type,
};

const REPOSITORY: &str = "team/app";

fn referrers(digest: &str) -> String {
    format!("/v2/{REPOSITORY}/referrers/{digest}")
}

/// A registry with an image and its two referrers of the types `a/signature` and `a/sbom+json`.
fn registry_with_referrers() -> (FakeRegistry, String) {
    let registry = FakeRegistry::start();
    registry.enable_referrers();
    let image = Image::sample("v1");
    let digest = registry.add(REPOSITORY, "v1", &image);
    for kind in ["a/signature", "a/sbom+json"] {
        let referrer = Image::new(kind).artifact_type(kind).subject(image.descriptor());
        registry.add_untagged(REPOSITORY, &referrer);
    }
    (registry, digest)
}

#[track_caller]
fn check_index(got: &Response) -> Vec<Value> {
    assert_eq!((got.status, got.header("content-type")), (200, Some(media_type::OCI_INDEX)));
    let index = got.json();
    assert_eq!(
        (&index["schemaVersion"], &index["mediaType"]),
        (&json!(2), &json!(media_type::OCI_INDEX))
    );
    index["manifests"].as_array().cloned().unwrap_or_else(|| panic!("no manifests: {got:?}"))
}

#[test]
fn referrers_are_relayed_and_filtered_if_upstream_filters() {
    let (registry, digest) = registry_with_referrers();
    let larder = Larder::start(&registry);
    let all = larder.get(&referrers(&digest));
    assert_eq!((check_index(&all).len(), all.header("oci-filters-applied")), (2, None));
    // In a query, `+` is a space; a literal plus is `%2B`.
    for kind in ["a/sbom%2Bjson", "a%2Fsbom%2Bjson"] {
        let got = larder.get(&format!("{}?artifactType={kind}", referrers(&digest)));
        let entries = check_index(&got);
        assert_eq!(entries.len(), 1, "{kind}");
        assert_eq!(entries[0]["artifactType"], "a/sbom+json");
        assert_eq!(got.header("oci-filters-applied"), Some("artifactType"));
    }
    assert!(check_index(&larder.get(&referrers(&absent_digest(1)))).is_empty());
}

#[test]
fn new_referrer_is_listed_after_the_ttl() {
    let (registry, digest) = registry_with_referrers();
    let larder = Larder::start(&registry);
    assert_eq!(check_index(&larder.get(&referrers(&digest))).len(), 2);
    let late = Image::new("late").subject(Image::sample("v1").descriptor());
    registry.add_untagged(REPOSITORY, &late);
    larder.advance(seconds(3600));
    assert_eq!(check_index(&larder.get(&referrers(&digest))).len(), 3);
    registry.stop();
    larder.advance(seconds(3600));
    assert_eq!(check_index(&larder.get(&referrers(&digest))).len(), 3, "the last good answer");
}

#[test]
fn registry_without_referrers_api_gets_404_unsupported() {
    let elsewhere = FakeRegistry::start();
    for (name, fault) in [
        ("404", Fault::status(404)),
        ("400", Fault::status(400)),
        ("405", Fault::status(405)),
        ("406", Fault::status(406)),
        ("a page", Fault::Html200),
        ("a redirect to a web page", Fault::Redirect(303, elsewhere.url("/page"))),
        ("another type", Fault::content_type("application/json")),
        ("403", Fault::status(403)),
        ("501", Fault::status(501)),
    ] {
        let (registry, digest) = registry_with_referrers();
        registry.expect_unknown("*/manifests/sha256-*");
        registry.fault(On::referrers(&digest), fault);
        let larder = Larder::start(&registry);
        let got = larder.get(&referrers(&digest));
        assert_eq!(
            (got.status, got.error_code().as_str()),
            (404, "UNSUPPORTED"),
            "{name}: {got:?}"
        );
        assert!(larder.get(&manifest(REPOSITORY, "v1")).status == 200, "{name}");
    }
    assert_eq!(elsewhere.connection_count(), 0);
}

#[test]
fn referrers_of_an_unlisted_registry_are_not_answered_with_name_unknown() {
    let registry = FakeRegistry::start();
    let larder = Larder::start(&registry);
    let got = larder.get(&format!("{}?ns=quay.io", referrers(&absent_digest(1))));
    assert_eq!(got.status, 404);
    assert_ne!(got.error_code(), "NAME_UNKNOWN", "oras would give up");
}

#[test]
fn cached_referrers_are_listed_during_an_outage() {
    for is_restarted in [false, true] {
        let (registry, digest) = registry_with_referrers();
        // Without the referrers API, clients store an index under a tag.
        registry.fault(On::referrers(&digest), Fault::status(404));
        let mut larder = Larder::start(&registry);
        let image = Image::sample("v1");
        let signature = Image::new("a/signature").artifact_type("a/signature");
        let signature = signature.subject(image.descriptor()).digest();
        for reference in ["v1", signature.as_str()] {
            assert_eq!(larder.get(&manifest(REPOSITORY, reference)).status, 200);
        }
        registry.stop();
        if is_restarted {
            larder.restart();
        }
        for _ in 0..3 {
            larder.advance(seconds(60));
            let got = larder.get(&referrers(&digest));
            assert_eq!(check_index(&got).len(), 1);
            assert!(got.header("warning").is_some(), "{got:?}");
            let filtered = format!("{}?artifactType=a/nothing", referrers(&digest));
            let got = larder.get(&filtered);
            assert_eq!(
                (check_index(&got).len(), got.header("oci-filters-applied")),
                (0, Some("artifactType"))
            );
            // Nothing refers to this signature.
            assert!(check_index(&larder.get(&referrers(&signature))).is_empty());
        }
        let got = larder.get(&referrers(&absent_digest(1)));
        assert_ne!(got.status, 200, "this image has no cached referrers: {got:?}");
    }
}

/// The index under a tag of `digest` that clients store without the referrers API.
fn add_index_under_tag(registry: &FakeRegistry, digest: &str, entries: &[Value]) -> String {
    let index =
        json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": entries });
    let tag = digest.replace(':', "-");
    registry.add_manifest(REPOSITORY, &tag, media_type::OCI_INDEX, index.to_string().as_bytes());
    tag
}

fn entry(image: &Image, artifact_type: &str) -> Value {
    json!({
        "mediaType": image.media_type(),
        "digest": image.digest(),
        "size": image.manifest().len(),
        "artifactType": artifact_type,
    })
}

#[test]
fn referrers_tag_is_listed_for_a_registry_without_the_api() {
    let registry = FakeRegistry::start();
    let digest = registry.add(REPOSITORY, "v1", &Image::sample("v1"));
    let entries = [entry(&Image::new("sig"), "a/sig"), entry(&Image::new("sbom"), "a/sbom")];
    let tag = add_index_under_tag(&registry, &digest, &entries);
    let mut larder = Larder::start(&registry);
    let ask = |larder: &Larder, query: &str| larder.get(&format!("{}{query}", referrers(&digest)));
    registry.expect_unknown("*/referrers/*");
    assert_eq!(check_index(&ask(&larder, "")), entries);
    let filtered = ask(&larder, "?artifactType=a/sbom");
    assert_eq!(check_index(&filtered), entries[1..]);
    assert_eq!(filtered.header("oci-filters-applied"), Some("artifactType"));
    assert_eq!(registry.count("GET", &manifest(REPOSITORY, &tag)), 1, "believed as any tag is");

    // A new signature is listed once the tag is no longer fresh.
    let entries = [&entries[..], &[entry(&Image::new("late"), "a/sig")]].concat();
    add_index_under_tag(&registry, &digest, &entries);
    larder.advance(seconds(301));
    assert_eq!(check_index(&ask(&larder, "")), entries);

    registry.stop();
    larder.restart();
    for _ in 0..2 {
        larder.advance(seconds(3600));
        assert_eq!(check_index(&ask(&larder, "")), entries);
        assert_eq!(check_index(&ask(&larder, "?artifactType=a/sig")).len(), 2);
    }
}

#[test]
fn referrers_tag_is_listed_while_it_cannot_be_confirmed() {
    let registry = FakeRegistry::start();
    let digest = registry.add(REPOSITORY, "v1", &Image::sample("v1"));
    let entries = [entry(&Image::new("sig"), "a/sig")];
    let tag = add_index_under_tag(&registry, &digest, &entries);
    registry.expect_unknown("*/referrers/*");
    let larder = Larder::start(&registry);
    assert_eq!(check_index(&larder.get(&referrers(&digest))), entries);
    larder.advance(seconds(3600));
    registry.fault(On::manifest(&tag), Fault::status(500));
    assert_eq!(check_index(&larder.get(&referrers(&digest))), entries);
}

#[test]
fn signature_is_found_among_hundreds_of_cached_manifests() {
    let (registry, digest) = registry_with_referrers();
    let mut larder = Larder::start_with(&registry, |settings| {
        settings.cache.prefetch = Prefetch { blobs: false, ..Prefetch::default() };
    });
    let signature = Image::new("a/signature").artifact_type("a/signature");
    let signature = signature.subject(Image::sample("v1").descriptor()).digest();
    assert_eq!(larder.get(&manifest(REPOSITORY, &signature)).status, 200);
    for number in 0..300 {
        let other = registry.add_untagged(REPOSITORY, &Image::sample(&number.to_string()));
        assert_eq!(larder.get(&manifest(REPOSITORY, &other)).status, 200);
    }
    registry.stop();
    larder.restart_with(|settings| settings.cache.air_gapped = true);
    // The second request does not read the manifests again.
    for query in ["", "?artifactType=a/signature"] {
        let found = check_index(&larder.get(&format!("{}{query}", referrers(&digest))));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0]["digest"], signature);
    }
}

#[test]
fn referrers_on_further_pages_are_prefetched() {
    let registry = FakeRegistry::start();
    registry.enable_referrers();
    registry.expect_unknown("*/manifests/sha256-*");
    let image = Image::sample("v1");
    let digest = registry.add(REPOSITORY, "v1", &image);
    let pages = ["one", "two"].map(|name| {
        let referrer = Image::new(name).artifact_type("a/sig").subject(image.descriptor());
        registry.add_untagged(REPOSITORY, &referrer);
        let index = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_INDEX,
            "manifests": [entry(&referrer, "a/sig")],
        });
        (referrer.digest(), index.to_string().into_bytes())
    });
    let page = |at: usize, link: &str| {
        let headers = [("Content-Type", media_type::OCI_INDEX), ("Link", link)];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Fault::Status(200, headers.into(), pages[at].1.clone())
    };
    registry.fault(On::referrers(&digest).times(1), page(0, "</x?page=2>; rel=\"next\""));
    registry.fault(On::referrers(&digest), page(1, "</x?page=1>; rel=\"prev\""));
    let larder = Larder::start_with(&registry, |settings| {
        settings.cache.prefetch = Prefetch { referrers: true, ..Prefetch::default() };
    });
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    for (referrer, _) in &pages {
        larder.wait_until_cached(referrer);
    }
}

#[test]
fn hanging_referrers_request_does_not_block_later_cached_answers() {
    let (registry, digest) = registry_with_referrers();
    let larder = Larder::start_with(&registry, |settings| {
        let wait = seconds(3600);
        settings.upstream.breaker =
            BreakerPolicy { failures: 1, first_wait: wait, longest_wait: wait };
    });
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    let gate = Gate::new();
    registry.fault(On::referrers(&digest), Fault::Gate(gate.clone()));
    let mut hanging = larder.begin(&referrers(&digest));
    gate.wait_until_reached(1);
    // Meanwhile the first failure opens the circuit breaker of the registry, which the second request notices.
    registry.fault(On::ping(), Fault::status(500));
    registry.fault(On::any_manifest(), Fault::status(500));
    for _ in 0..2 {
        larder.advance(seconds(3600));
        assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    }
    let got = larder.get(&referrers(&digest));
    assert!(check_index(&got).is_empty() && got.header("warning").is_some(), "{got:?}");
    gate.open();
    assert_eq!(check_index(&hanging.read_response()).len(), 2);
}

#[test]
fn cached_referrers_are_listed_while_another_server_answers_for_the_registry() {
    let stranger = |status: u16, content_type: &str, body: &str| {
        Fault::Stranger(status, content_type.to_owned(), body.to_owned())
    };
    let portal = FakeRegistry::start();
    portal.add_file("/login", "text/html", b"<!doctype html>");
    for (what, fault) in [
        ("an ingress", stranger(404, "text/plain", "default backend - 404")),
        ("other JSON", stranger(404, "application/json", r#"{"message":"no route"}"#)),
        ("a captive portal", Fault::Html200),
        ("a redirect to a portal", Fault::Redirect(302, portal.url("/login"))),
        ("401", Fault::status(401)),
        ("502", Fault::status(502)),
        ("503", Fault::status(503)),
    ] {
        check_cached_referrers(what, |registry| registry.fault(On::anything(), fault));
    }
    for (what, answer) in [
        ("a token service that answers 404", TokenAnswer::Refuse(404)),
        ("a token service that answers 503", TokenAnswer::Refuse(503)),
        ("a token service that sends a page", TokenAnswer::Html),
    ] {
        check_cached_referrers(what, |registry| {
            let tokens = TokenServer::new();
            tokens.answer_with(answer);
            registry.require_bearer(&tokens);
        });
    }
}

/// With and without a filter, and for an image without referrers.
fn check_cached_referrers(what: &str, fail: impl FnOnce(&FakeRegistry)) {
    let (registry, digest) = registry_with_referrers();
    let image = Image::sample("v1");
    let signature = Image::new("a/signature").artifact_type("a/signature");
    let signature = signature.subject(image.descriptor()).digest();
    let leaf = registry.add(REPOSITORY, "leaf", &Image::sample("leaf"));
    let larder = Larder::start(&registry);
    for reference in ["v1", "leaf", &signature] {
        assert_eq!(larder.get(&manifest(REPOSITORY, reference)).status, 200, "{what}");
    }
    fail(&registry);
    larder.advance(seconds(3600));
    for (subject, query, expected) in [
        (&digest, "", 1),
        (&digest, "?artifactType=a/signature", 1),
        (&digest, "?artifactType=a/nothing", 0),
        (&leaf, "", 0),
        (&leaf, "?artifactType=a/signature", 0),
    ] {
        let got = larder.get(&format!("{}{query}", referrers(subject)));
        assert_eq!(check_index(&got).len(), expected, "{what}: {query}");
        assert!(got.header("warning").is_some(), "{what}: {query}: {got:?}");
    }
}

#[test]
fn lists_of_referrers_that_other_clients_accept_are_accepted() {
    let one = entry(&Image::new("sig"), "a/sig");
    let kind = media_type::OCI_INDEX;
    for (body, expected) in [
        (format!(r#"{{"mediaType":"{kind}","manifests":[{one}]}}"#), 1),
        (format!(r#"{{"schemaVersion":2,"mediaType":"","manifests":[{one}]}}"#), 1),
        (format!(r#"{{"schemaVersion":2,"schemaVersion":2,"manifests":[{one}]}}"#), 1),
        (format!(r#"{{"schemaVersion":2,"mediaType":"{kind}","manifests":null}}"#), 0),
        (format!(r#"{{"schemaVersion":2,"mediaType":"{kind}"}}"#), 0),
    ] {
        let (registry, digest) = registry_with_referrers();
        let headers = vec![("Content-Type".to_owned(), kind.to_owned())];
        let answer = Fault::Status(200, headers, body.clone().into_bytes());
        registry.fault(On::referrers(&digest), answer);
        let larder = Larder::start(&registry);
        let got = larder.get(&referrers(&digest));
        assert_eq!(got.status, 200, "{body}: {got:?}");
        let listed = got.json()["manifests"].as_array().map(Vec::len);
        assert_eq!(listed, Some(expected), "{body}: {got:?}");
    }
}

#[test]
fn referrers_tag_with_an_index_whose_list_is_null_lists_nothing() {
    let registry = FakeRegistry::start();
    let digest = registry.add(REPOSITORY, "v1", &Image::sample("v1"));
    let body = json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": null });
    let tag = digest.replace(':', "-");
    registry.add_manifest(REPOSITORY, &tag, media_type::OCI_INDEX, body.to_string().as_bytes());
    registry.expect_unknown("*/referrers/*");
    let larder = Larder::start(&registry);
    assert!(check_index(&larder.get(&referrers(&digest))).is_empty());
}
