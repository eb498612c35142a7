//! Tag lists: relayed, paginated, cached for a while, and never treated as immutable.
//!
//! Proves protocol 7.1, 7.2, 7.3 and 7.4 (docs/protocol.md).

use serde_json::{Value, json};

use crate::support::larder::{manifest, seconds};
use crate::support::{FakeRegistry, Fault, Image, Larder, On, Response};

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
fn tags_are_listed_under_the_repository_name() {
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
fn pages_are_linked_relative_to_the_requested_path() {
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
fn n_and_last_are_honoured() {
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
fn larder_paginates_for_a_registry_that_ignores_n_and_last() {
    let registry = FakeRegistry::start();
    let body = br#"{"name":"team/app","tags":["d","b","a","c"]}"#.to_vec();
    let headers = vec![("Content-Type".to_owned(), "application/json".to_owned())];
    registry.fault(On::tags(REPOSITORY), Fault::Status(200, headers, body));
    let larder = Larder::start(&registry);
    let first = larder.get(&format!("{TAGS}?n=3"));
    assert_eq!(tags(&first), ["a", "b", "c"]);
    let second = larder.get(&next(&first).expect("another page"));
    assert_eq!((tags(&second), next(&second)), (vec!["d".to_owned()], None));
}

#[test]
fn unusual_lists_are_normalized_and_invalid_ones_refused() {
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
fn list_is_refreshed_after_its_ttl_and_kept_during_an_outage() {
    let registry = registry_with_tags(&["a"]);
    let mut larder = Larder::start(&registry);
    // Lists are stored for repositories that have a cached image.
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
fn cached_tags_are_listed_if_upstream_never_sent_a_list() {
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
    assert_eq!(tags(&larder.get(&next(&first).expect("another page"))), ["d"]);
    let nothing = larder.get("/v2/team/other/tags/list");
    assert!(matches!(nothing.status, 502..=504), "{nothing:?}");
}

/// A tag list from a registry, with this link to the next page.
fn page(tags: &[&str], link: &str) -> Fault {
    let body = json!({ "name": REPOSITORY, "tags": tags }).to_string().into_bytes();
    let mut headers = vec![("Content-Type".to_owned(), "application/json".to_owned())];
    if !link.is_empty() {
        headers.push(("Link".to_owned(), link.to_owned()));
    }
    Fault::Status(200, headers, body)
}

#[test]
fn pages_with_opaque_tokens_in_any_order_are_followed_to_the_end() {
    let long = format!("last={}", "x".repeat(4000));
    for (name, query) in [
        ("a token, as of ECR", "last=eyJuIjo1fQ%3D%3D"),
        ("n=0, as of ghcr.io", "last=111&n=0"),
        ("a long token", long.as_str()),
        ("n=0 and a token, as of Quay", "n=0&next_page=gAAAAAB"),
        ("a page with more than n", "n=1&page=2"),
    ] {
        let registry = FakeRegistry::start();
        let link = format!("</v2/another/place?{query}> ; title=\"a, b\" ; rel=\"last next\"");
        registry.fault(On::tags(REPOSITORY).times(1), page(&["18", "161", "111"], &link));
        registry.fault(On::tags(REPOSITORY), page(&["7", "1021", "3"], ""));
        let larder = Larder::start(&registry);
        let first = larder.get(TAGS);
        assert_eq!(tags(&first), ["18", "161", "111"], "{name}");
        let last = larder.get(&next(&first).expect("another page"));
        assert_eq!((tags(&last).join(" ").as_str(), next(&last)), ("7 1021 3", None), "{name}");
        let asked = registry.requests().pop().expect("a request");
        assert_eq!(asked.query.as_deref(), Some(query));
    }
}

#[test]
fn links_that_other_clients_follow_lead_to_the_next_page() {
    for (link, has_next) in [
        // crane and oras ignore the relation.
        ("</v2/team/app/tags/list?last=b>", true),
        ("</v2/team/app/tags/list?last=b>; title=more", true),
        ("</v2/team/app/tags/list?last=b>; rel='next'", true),
        // regctl does not need the brackets.
        ("/v2/team/app/tags/list?last=b; rel=\"next\"", true),
        ("</v2/team/app/tags/list?last=b>; rel=\"prev\"", false),
        ("/v2/team/app/tags/list?last=b; rel=prev", false),
    ] {
        let registry = FakeRegistry::start();
        registry.fault(On::tags(REPOSITORY).times(1), page(&["a", "b"], link));
        registry.fault(On::tags(REPOSITORY), page(&["c", "d"], ""));
        let larder = Larder::start(&registry);
        let first = larder.get(TAGS);
        assert_eq!(tags(&first), ["a", "b"], "{link}");
        let target = next(&first);
        assert_eq!(target.is_some(), has_next, "{link}: {first:?}");
        if let Some(target) = target {
            assert_eq!(tags(&larder.get(&target)), ["c", "d"], "{link}");
            let asked = registry.requests().pop().expect("a request");
            assert_eq!(asked.query.as_deref(), Some("last=b"), "{link}");
        }
    }
}

#[test]
fn unusable_next_page_link_is_an_error() {
    let too_long = format!("</x?{}>; rel=next", "x".repeat(7000));
    for link in
        ["</page/2>; rel=next", "</x?last=\u{e9}>; rel=next", "</x?last=b", "page 2", &too_long]
    {
        let registry = registry_with_tags(&["a"]);
        let larder = Larder::start(&registry);
        assert_eq!(larder.get(&manifest(REPOSITORY, "a")).status, 200);
        registry.fault(On::tags(REPOSITORY), page(&["a"], link));
        let got = larder.get(TAGS);
        assert_eq!(got.status, 502, "{got:?}");
    }
}

#[test]
fn tag_list_redirected_to_another_host_is_followed_without_credentials() {
    let (front, back) = (FakeRegistry::start(), registry_with_tags(&["3.9", "3.10"]));
    front.fault(On::tags(REPOSITORY), Fault::Redirect(307, back.url(TAGS)));
    let larder = Larder::start(&front);
    assert_eq!(tags(&larder.get(TAGS)), ["3.10", "3.9"]);
    let asked = back.requests();
    assert!(asked.iter().all(|each| each.headers_named("authorization").is_empty()));
}

#[test]
fn refused_list_is_not_replaced_by_the_cached_tags() {
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
fn large_list_with_few_tags_is_served() {
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
fn large_list_is_served_completely_and_again_from_the_cache() {
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

/// A registry with two tags, one of them pulled. Its list was requested once; an hour later requests for it get `fault`.
fn listed_once_and_then(fault: Fault) -> (FakeRegistry, Larder) {
    let registry = registry_with_tags(&["v1", "v9"]);
    let larder = Larder::start(&registry);
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    assert_eq!(tags(&larder.get(TAGS)), ["v1", "v9"]);
    larder.advance(seconds(3600));
    registry.fault(On::tags(REPOSITORY), fault);
    (registry, larder)
}

#[test]
fn refused_list_is_not_replaced_by_an_earlier_one() {
    for (name, fault) in [
        ("400", Fault::status(400)),
        ("401", Fault::status(401)),
        ("403", Fault::status(403)),
        ("404", Fault::status(404)),
        ("405", Fault::status(405)),
        ("a page", Fault::Html200),
        ("a link that cannot be passed on", page(&["v1"], "</page/2>; rel=next")),
    ] {
        let (_registry, larder) = listed_once_and_then(fault);
        for _ in 0..2 {
            let got = larder.get(TAGS);
            assert!(got.status >= 400, "{name}: {got:?}");
        }
    }
}

#[test]
fn last_list_is_served_while_its_registry_fails() {
    for fault in [500, 502, 503].map(Fault::status).into_iter().chain([Fault::rate_limited(60)]) {
        let (_registry, larder) = listed_once_and_then(fault);
        let got = larder.get(TAGS);
        assert_eq!(tags(&got), ["v1", "v9"]);
        assert!(got.header("warning").is_some_and(|text| text.starts_with("110")), "{got:?}");
    }
}

#[test]
fn cached_tags_are_listed_if_the_registry_is_unreachable_but_not_if_it_fails() {
    for (status, is_reached) in
        [(500, true), (501, true), (502, false), (503, false), (504, false), (522, false)]
    {
        let registry = registry_with_tags(&["v1", "v9"]);
        let larder = Larder::start(&registry);
        assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
        registry.fault(On::tags(REPOSITORY), Fault::status(status));
        let got = larder.get(TAGS);
        match is_reached {
            true => assert!(got.status >= 500, "{status}: {got:?}"),
            false => assert_eq!(tags(&got), ["v1"], "{status}"),
        }
    }
}

#[test]
fn failing_list_does_not_make_tags_stale() {
    let registry = registry_with_tags(&["v1"]);
    let larder = Larder::start(&registry);
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    let moved = registry.add(REPOSITORY, "v1", &Image::sample("v2"));
    larder.advance(seconds(3600));
    registry.fault(On::tags(REPOSITORY), Fault::status(500));
    assert!(larder.get(TAGS).status >= 500);
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).digest(), moved);
}

#[test]
fn page_with_an_upstream_token_fails_during_an_outage() {
    let registry = registry_with_tags(&["a", "b"]);
    let larder = Larder::start(&registry);
    assert_eq!(larder.get(&manifest(REPOSITORY, "b")).status, 200);
    registry.stop();
    for query in ["n=1&last=eyJuIjo1fQ%3D%3D", "n=1&next_page=gAAAAAB"] {
        let got = larder.get(&format!("{TAGS}?{query}"));
        assert!(got.status >= 500, "{query}: {got:?}");
    }
    assert_eq!(tags(&larder.get(&format!("{TAGS}?n=1&last=a"))), ["b"]);
}

#[test]
fn tag_list_404_of_another_server_does_not_deny_the_repository() {
    for (content_type, body) in [
        ("text/plain", "default backend - 404"),
        ("text/html", "<!doctype html>"),
        ("application/json", r#"{"message":"no Route matched with those values"}"#),
        ("application/octet-stream", ""),
    ] {
        let fault = Fault::Stranger(404, content_type.to_owned(), body.to_owned());
        let (registry, larder) = listed_once_and_then(fault);
        for target in [TAGS.to_owned(), format!("{TAGS}?n=1")] {
            let got = larder.get(&target);
            assert_eq!(got.status, 502, "{target}: {body}: {got:?}");
            assert_ne!(got.error_code(), "NAME_UNKNOWN", "{target}: {body}");
        }
        registry.clear_faults();
        larder.advance(seconds(60));
        assert_eq!(tags(&larder.get(TAGS)), ["v1", "v9"], "{body}");
    }
}
