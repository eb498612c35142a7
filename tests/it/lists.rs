//! Tag lists and referrers: relayed, paged, kept for a while, and never taken for immutable.
//!
//! Proves P-38, P-39.

use serde_json::{Value, json};

use crate::support::larder::{manifest, seconds};
use crate::support::{FakeRegistry, Fault, Image, Larder, On, Response, absent_digest, media_type};

const REPOSITORY: &str = "team/app";
const TAGS: &str = "/v2/team/app/tags/list";

fn registry_with_tags(tags: &[&str]) -> FakeRegistry {
    let registry = FakeRegistry::start();
    let digest = registry.add_untagged(REPOSITORY, &Image::sample("v1"));
    tags.iter().for_each(|tag| registry.tag(REPOSITORY, tag, &digest));
    registry
}

fn tags(got: &Response) -> Vec<String> {
    assert_eq!((got.status, got.header("content-type")), (200, Some("application/json")));
    let list = got.json()["tags"].clone();
    serde_json::from_value(list).unwrap_or_else(|_| panic!("no list of tags: {got:?}"))
}

/// The target of a `rel="next"` link.
fn next(got: &Response) -> Option<String> {
    let link = got.header("link")?;
    let (target, relation) = link.strip_prefix('<')?.split_once('>')?;
    assert!(relation.contains("rel=\"next\""), "{link}");
    Some(target.to_owned())
}

#[test]
fn tags_are_listed_under_the_repositorys_name() {
    let registry = registry_with_tags(&["b", "a", "10", "9", "B"]);
    let larder = Larder::start(&registry);
    let got = larder.get(TAGS);
    assert_eq!(got.json()["name"], REPOSITORY);
    assert_eq!(
        (tags(&got), next(&got)),
        (["10", "9", "B", "a", "b"].map(String::from).into(), None)
    );
}

#[test]
fn pages_are_followed_to_the_end_by_relative_links_on_our_own_path() {
    let all: Vec<String> = (10..35).map(|n| format!("v{n}")).collect();
    let names: Vec<&str> = all.iter().map(String::as_str).collect();
    for (absolute, page_of_upstream) in [(false, None), (true, None), (true, Some(4))] {
        let registry = registry_with_tags(&names);
        if absolute {
            registry.absolute_links();
        }
        page_of_upstream.into_iter().for_each(|n| registry.tags_page(n));
        let host = registry.host();
        let larder = Larder::start(&registry);
        for start in [
            format!("{TAGS}?n=10"),
            format!("{TAGS}?n=10&ns={host}"),
            format!("{TAGS}?ns={host}&n=10"),
            format!("/v2/{host}/team/app/tags/list?n=10"),
        ] {
            let has_namespace = start.contains("ns=");
            let path = start.split('?').next().unwrap_or_default().to_owned();
            let (mut target, mut seen, mut pages) = (Some(start.clone()), Vec::new(), 0);
            while let Some(page) = target {
                let got = larder.get(&page);
                assert!(tags(&got).len() <= 10, "{page}");
                seen.extend(tags(&got));
                target = next(&got);
                pages += 1;
                assert!(pages < 20, "{start} does not end");
                if let Some(link) = &target {
                    assert!(link.starts_with(&format!("{path}?")), "{link}");
                    assert_eq!(link.contains("ns="), has_namespace, "{link}");
                }
            }
            assert_eq!(seen, all, "{start}");
        }
    }
}

#[test]
fn number_and_last_are_heeded() {
    let registry = registry_with_tags(&["a", "b", "c", "d"]);
    let larder = Larder::start(&registry);
    for (query, expected, has_next) in [
        ("", "a b c d", false),
        ("?n=0", "", false),
        ("?n=2", "a b", true),
        ("?n=4", "a b c d", false),
        ("?n=100", "a b c d", false),
        ("?last=b", "c d", false),
        ("?last=bb", "c d", false),
        ("?last=d", "", false),
        ("?n=1&last=b", "c", true),
        ("?n=2&last=b", "c d", false),
    ] {
        let got = larder.get(&format!("{TAGS}{query}"));
        assert_eq!((tags(&got).join(" ").as_str(), next(&got).is_some()), (expected, has_next));
    }
}

#[test]
fn registry_that_ignores_number_and_last_is_paged_for() {
    let registry = FakeRegistry::start();
    let body = br#"{"name":"team/app","tags":["d","b","a","c"]}"#.to_vec();
    let headers = vec![("Content-Type".to_owned(), "application/json".to_owned())];
    registry.fault(On::tags(REPOSITORY), Fault::Status(200, headers, body));
    let larder = Larder::start(&registry);
    let first = larder.get(&format!("{TAGS}?n=3"));
    assert_eq!(tags(&first), ["a", "b", "c"]);
    let second = larder.get(&next(&first).expect("there is one more"));
    assert_eq!((tags(&second), next(&second)), (vec!["d".to_owned()], None));
}

#[test]
fn odd_lists_are_put_right_and_what_is_none_is_refused() {
    for (body, expected) in [
        (r#"{"name":"x","tags":null}"#, Some("")),
        (r#"{"name":"x","tags":[]}"#, Some("")),
        (r#"{"name":"x","tags":["a",null,"b"]}"#, Some("a b")),
        (r#"{"name":"x"}"#, Some("")),
        ("<!doctype html>", None),
        ("{}", None),
        ("[]", None),
        ("", None),
    ] {
        let registry = FakeRegistry::start();
        let headers = vec![("Content-Type".to_owned(), "application/json".to_owned())];
        let answer = Fault::Status(200, headers, body.as_bytes().to_vec());
        registry.fault(On::tags(REPOSITORY), answer);
        let larder = Larder::start(&registry);
        let got = larder.get(TAGS);
        match expected {
            Some(expected) => assert_eq!(tags(&got).join(" "), expected, "{body}"),
            None => assert!(matches!(got.status, 404 | 502), "{body}: {got:?}"),
        }
    }
}

#[test]
fn new_tag_shows_after_a_while_and_the_last_list_stays_while_upstream_is_gone() {
    let registry = registry_with_tags(&["a"]);
    let mut larder = Larder::start(&registry);
    // Lists are stored of repositories that have an image here.
    assert_eq!(larder.get(&manifest(REPOSITORY, "a")).status, 200);
    assert_eq!(tags(&larder.get(TAGS)), ["a"]);
    let digest = Image::sample("v1").digest();
    registry.tag(REPOSITORY, "b", &digest);
    larder.advance(seconds(3600));
    assert_eq!(tags(&larder.get(TAGS)), ["a", "b"]);
    registry.stop();
    larder.advance(seconds(3600));
    for _ in 0..2 {
        let got = larder.get(TAGS);
        assert_eq!(tags(&got), ["a", "b"]);
        assert!(got.header("warning").is_some_and(|text| text.starts_with("110")), "{got:?}");
        larder.restart();
    }
}

#[test]
fn cached_tags_are_the_list_where_upstream_never_gave_one() {
    let registry = registry_with_tags(&["a", "b", "c", "d"]);
    let larder = Larder::start(&registry);
    for tag in ["d", "b", "a"] {
        assert_eq!(larder.get(&manifest(REPOSITORY, tag)).status, 200);
    }
    registry.stop();
    let got = larder.get(TAGS);
    assert_eq!(tags(&got), ["a", "b", "d"]);
    assert!(got.header("warning").is_some(), "{got:?}");
    let first = larder.get(&format!("{TAGS}?n=2"));
    assert_eq!(tags(&first), ["a", "b"]);
    assert_eq!(tags(&larder.get(&next(&first).expect("one more"))), ["d"]);
    let nothing = larder.get("/v2/team/other/tags/list");
    assert!(matches!(nothing.status, 502..=504), "{nothing:?}");
}

/// A list as a registry sends it, with this link to the next page.
fn page(tags: &[&str], link: &str) -> Fault {
    let body = json!({ "name": REPOSITORY, "tags": tags }).to_string().into_bytes();
    let mut headers = vec![("Content-Type".to_owned(), "application/json".to_owned())];
    if !link.is_empty() {
        headers.push(("Link".to_owned(), link.to_owned()));
    }
    Fault::Status(200, headers, body)
}

#[test]
fn pages_with_opaque_tokens_and_in_any_order_are_followed_to_the_end() {
    let long = format!("last={}", "x".repeat(4000));
    for (name, query) in [
        ("a token, as of ECR", "last=eyJuIjo1fQ%3D%3D"),
        ("n=0, as of ghcr.io", "last=111&n=0"),
        ("a long token", long.as_str()),
    ] {
        let registry = FakeRegistry::start();
        let link = format!("</v2/another/place?{query}> ; title=\"a, b\" ; rel=\"last next\"");
        registry.fault(On::tags(REPOSITORY).times(1), page(&["18", "161", "111"], &link));
        registry.fault(On::tags(REPOSITORY), page(&["7", "1021", "3"], ""));
        let larder = Larder::start(&registry);
        let first = larder.get(TAGS);
        assert_eq!(tags(&first), ["18", "161", "111"], "{name}");
        let last = larder.get(&next(&first).expect("there is one more"));
        assert_eq!((tags(&last).join(" ").as_str(), next(&last)), ("7 1021 3", None), "{name}");
        let asked = registry.requests().pop().expect("a request");
        assert_eq!(asked.query.as_deref(), Some(query));
    }
}

#[test]
fn next_page_that_cannot_be_asked_for_is_an_error_and_not_the_end() {
    let too_long = format!("</x?{}>; rel=next", "x".repeat(7000));
    for link in ["</page/2>; rel=next", "</x?last=\u{e9}>; rel=next", &too_long] {
        let registry = registry_with_tags(&["a"]);
        let larder = Larder::start(&registry);
        assert_eq!(larder.get(&manifest(REPOSITORY, "a")).status, 200);
        registry.fault(On::tags(REPOSITORY), page(&["a"], link));
        let got = larder.get(TAGS);
        assert_eq!(got.status, 502, "{got:?}");
    }
}

#[test]
fn tag_list_behind_a_redirect_to_another_host_is_followed_without_credentials() {
    let (front, back) = (FakeRegistry::start(), registry_with_tags(&["3.9", "3.10"]));
    front.fault(On::tags(REPOSITORY), Fault::Redirect(307, back.url(TAGS)));
    let larder = Larder::start(&front);
    assert_eq!(tags(&larder.get(TAGS)), ["3.10", "3.9"]);
    let asked = back.requests();
    assert!(asked.iter().all(|each| each.headers_named("authorization").is_empty()));
}

#[test]
fn refused_list_is_not_answered_with_the_tags_that_are_cached() {
    let headers = || vec![("Content-Type".to_owned(), "application/json".to_owned())];
    let huge = format!("{{\"tags\":[\"v9\"],\"manifest\":\"{}\"}}", "x".repeat(100_000));
    for (name, fault) in [
        ("400", Fault::status(400)),
        ("401", Fault::status(401)),
        ("403", Fault::status(403)),
        ("404", Fault::status(404)),
        ("405", Fault::status(405)),
        ("429", Fault::rate_limited(60)),
        ("a page", Fault::Html200),
        ("no list", Fault::Status(200, headers(), b"{}".to_vec())),
        ("a huge string", Fault::Status(200, headers(), huge.into_bytes())),
    ] {
        let registry = registry_with_tags(&["v1", "v9"]);
        let larder = Larder::start(&registry);
        assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
        registry.fault(On::tags(REPOSITORY), fault);
        for _ in 0..2 {
            let got = larder.get(TAGS);
            assert!(got.status >= 400, "{name}: {got:?}");
        }
    }
}

#[test]
fn list_of_many_megabytes_is_passed_on_where_only_the_tags_are_few() {
    let registry = FakeRegistry::start();
    let described: serde_json::Map<String, Value> = (0..60_000)
        .map(|number| {
            (format!("sha256:{number:064}"), json!({ "imageSizeBytes": "1", "tag": ["a"] }))
        })
        .collect();
    let body =
        json!({ "child": [], "manifest": described, "name": REPOSITORY, "tags": ["b", "a"] });
    let body = body.to_string().into_bytes();
    assert!(body.len() > 6_000_000, "{}", body.len());
    let headers = vec![("Content-Type".to_owned(), "application/json".to_owned())];
    registry.fault(On::tags(REPOSITORY), Fault::Status(200, headers, body));
    assert_eq!(tags(&Larder::start(&registry).get(TAGS)), ["b", "a"]);
}

#[test]
fn large_list_is_sent_whole_with_and_without_an_image_and_again_from_the_cache() {
    let all: Vec<String> = (0..6_000).map(|number| format!("{number:0100}")).collect();
    let names: Vec<&str> = all.iter().map(String::as_str).collect();
    for has_image in [false, true] {
        let registry = registry_with_tags(&["v1"]);
        let mut larder = Larder::start(&registry);
        if has_image {
            assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
        }
        registry.fault(On::tags(REPOSITORY), page(&names, ""));
        for _ in 0..2 {
            assert_eq!(tags(&larder.get(TAGS)), all);
        }
        assert_eq!(registry.count("GET", TAGS), 1);
        let stored = std::fs::read_dir(larder.root().join("lists")).into_iter().flatten().count();
        assert_eq!(stored, usize::from(has_image));
        registry.stop();
        larder.restart();
        assert_eq!(larder.get(TAGS).status == 200, has_image);
    }
}

fn referrers(digest: &str) -> String {
    format!("/v2/{REPOSITORY}/referrers/{digest}")
}

/// A registry with an image and two referrers of it, of the types `a/signature` and `a/sbom+json`.
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
fn referrers_are_relayed_and_filtered_where_upstream_filters() {
    let (registry, digest) = registry_with_referrers();
    let larder = Larder::start(&registry);
    let all = larder.get(&referrers(&digest));
    assert_eq!((check_index(&all).len(), all.header("oci-filters-applied")), (2, None));
    // A plus is a space in a query; who means a plus says %2B.
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
fn new_referrer_shows_after_a_while() {
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
fn registry_without_referrers_is_said_to_have_none_such() {
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
    ] {
        let (registry, digest) = registry_with_referrers();
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
fn referrers_of_an_unlisted_registry_are_not_a_missing_repository() {
    let registry = FakeRegistry::start();
    let larder = Larder::start(&registry);
    let got = larder.get(&format!("{}?ns=quay.io", referrers(&absent_digest(1))));
    assert_eq!(got.status, 404);
    assert_ne!(got.error_code(), "NAME_UNKNOWN", "oras would give up");
}

#[test]
fn cached_referrers_are_found_while_the_registry_is_gone() {
    for is_restarted in [false, true] {
        let (registry, digest) = registry_with_referrers();
        // No referrers API: clients keep an index under a tag.
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
            // A leaf: nothing refers to it.
            assert!(check_index(&larder.get(&referrers(&signature))).is_empty());
        }
        let got = larder.get(&referrers(&absent_digest(1)));
        assert_ne!(got.status, 200, "nothing is known of it: {got:?}");
    }
}
