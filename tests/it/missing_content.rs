//! Which responses prove that a tag does not exist.
//!
//! Only a response of the registry itself does, to a GET, with a token for this request. HEAD may be wrong, and token
//! services, ingresses without a backend and captive portals know nothing about tags.

use std::sync::{Arc, Barrier};
use std::thread;

use larder::cache::{FreshnessPolicy, OnUpstreamDelete, Ttl};
use larder::store::StoredImage;

use crate::support::larder::{blob, manifest, seconds};
use crate::support::{
    FakeRegistry, Fault, Gate, Image, Larder, On, TokenAnswer, TokenServer, absent_digest,
};

const REPOSITORY: &str = "team/app";
const TAG_LIST: &str = "/v2/team/app/tags/list";

/// A response of a server that is not a registry.
fn other_server(status: u16, content_type: &str, body: &str) -> Fault {
    Fault::Stranger(status, content_type.to_owned(), body.to_owned())
}

/// Responses of an ingress without a backend, of a captive portal, and of a server that sends other JSON.
fn other_servers() -> Vec<(&'static str, Fault)> {
    vec![
        ("ingress", other_server(404, "text/plain; charset=utf-8", "default backend - 404")),
        ("portal", other_server(404, "text/html", "<!doctype html><title>Sign in</title>")),
        ("gone", other_server(410, "text/html", "<html>")),
        (
            "other JSON",
            other_server(404, "application/json", r#"{"message":"no route","error":404}"#),
        ),
        ("an error of another form", other_server(404, "application/json", r#"{"errors":{}}"#)),
        ("no errors", other_server(404, "application/json", r#"{"errors":null}"#)),
        ("nothing", other_server(404, "application/octet-stream", "")),
    ]
}

fn start(registry: &FakeRegistry, on_upstream_delete: OnUpstreamDelete) -> Larder {
    Larder::start_with(registry, |settings| {
        let policy = FreshnessPolicy::of(Ttl::For(seconds(60)));
        settings.cache.freshness = FreshnessPolicy { on_upstream_delete, ..policy };
        settings.cache.negative_ttl = seconds(10);
    })
}

#[test]
fn tag_moves_although_head_names_a_digest_that_cannot_be_fetched() {
    let bogus = absent_digest(1);
    for (what, on, fault) in [
        (
            "no digest is available from the registry",
            On::get_manifest("sha256:*"),
            Fault::status(404),
        ),
        ("by digest it is something else", On::get_manifest("sha256:*"), Fault::WrongBytes),
        ("by digest it is refused", On::get_manifest("sha256:*"), Fault::status(403)),
        ("by digest it fails", On::get_manifest("sha256:*"), Fault::status(500)),
        ("by digest a proxy fails", On::get_manifest("sha256:*"), Fault::status(502)),
        ("by digest it is unavailable", On::get_manifest("sha256:*"), Fault::status(503)),
        ("by digest it breaks off", On::get_manifest("sha256:*"), Fault::CutAfter(10)),
        (
            "HEAD says another digest",
            On::head_manifest("v1"),
            Fault::extra_header("Docker-Content-Digest", &bogus),
        ),
    ] {
        let registry = FakeRegistry::start();
        registry.add(REPOSITORY, "v1", &Image::sample("old"));
        let larder = start(&registry, OnUpstreamDelete::Keep);
        assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200, "{what}");
        let new = Image::sample("new");
        registry.add(REPOSITORY, "v1", &new);
        registry.fault(on, fault);
        registry.expect_unknown("*");
        for _ in 0..2 {
            larder.advance(seconds(61));
            let got = larder.get(&manifest(REPOSITORY, "v1"));
            assert!(got.body == new.manifest(), "{what}: {got:?}");
            assert_eq!(got.header("warning"), None, "{what}");
        }
    }
}

#[test]
fn tag_is_kept_and_moves_although_head_answers_404() {
    for on_upstream_delete in [OnUpstreamDelete::Keep, OnUpstreamDelete::Drop] {
        for (what, fault) in [
            ("404", Fault::status(404)),
            ("403", Fault::status(403)),
            ("401", Fault::status(401)),
            ("500", Fault::status(500)),
            ("502", Fault::status(502)),
            ("503", Fault::status(503)),
            ("504", Fault::status(504)),
            ("no response", Fault::CloseBeforeHead),
            ("an ingress", other_server(404, "text/plain", "default backend - 404")),
        ] {
            let registry = FakeRegistry::start();
            registry.add(REPOSITORY, "v1", &Image::sample("old"));
            registry.fault(On::head_manifest("*"), fault);
            let larder = start(&registry, on_upstream_delete);
            assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200, "{what}");
            let new = Image::sample("new");
            registry.add(REPOSITORY, "v1", &new);
            for _ in 0..2 {
                larder.advance(seconds(61));
                let got = larder.get(&manifest(REPOSITORY, "v1"));
                assert!(got.body == new.manifest(), "{what}: {got:?}");
                assert_eq!(got.header("warning"), None, "{what}");
            }
            let store = larder.store();
            let gone = |image: &StoredImage| {
                assert_eq!(image.gone, None, "{what}");
                Ok(())
            };
            store.each_image(&mut { gone }).expect("the cache can be read");
        }
    }
}

#[test]
fn responses_of_other_servers_say_nothing_about_tags() {
    for (what, fault) in other_servers() {
        let (registry, image) = FakeRegistry::with_image(REPOSITORY);
        let larder = start(&registry, OnUpstreamDelete::Drop);
        assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200, "{what}");
        registry.fault(On::anything(), fault);
        larder.advance(seconds(61));
        for _ in 0..2 {
            let got = larder.get(&manifest(REPOSITORY, "v1"));
            assert!(got.status == 200 && got.body == image.manifest(), "{what}: {got:?}");
            assert!(got.header("warning").is_some(), "{what}");
        }
        let layer = &image.layers()[0];
        let targets = [
            manifest(REPOSITORY, "other"),
            manifest(REPOSITORY, &absent_digest(1)),
            blob(REPOSITORY, &layer.digest),
        ];
        for target in &targets {
            let got = larder.get(target);
            assert!(matches!(got.status, 502 | 503), "{what}: {target}: {got:?}");
        }
        let head = larder.head(&blob(REPOSITORY, &layer.digest)).status;
        assert!(matches!(head, 502 | 503), "{what}: HEAD of a blob: {head}");
        // Nothing was cached: once the registry is back, it is asked at once.
        registry.clear_faults();
        registry.add(REPOSITORY, "other", &Image::sample("other"));
        assert_eq!(larder.get(&manifest(REPOSITORY, "other")).status, 200, "{what}");
        assert!(larder.get(&blob(REPOSITORY, &layer.digest)).body == layer.bytes, "{what}");
        let got = larder.get(&manifest(REPOSITORY, "v1"));
        assert_eq!((got.status, got.header("warning")), (200, None), "{what}");
    }
}

#[test]
fn every_registry_404_is_recognized() {
    for (what, fault) in [
        ("a list of errors", Fault::status(404)),
        ("an empty list", other_server(404, "application/json", r#"{"errors":[]}"#)),
        (
            "a list labelled as text",
            other_server(404, "text/plain", r#"{"errors":[{"code":"X"}]}"#),
        ),
        ("its name in a header", Fault::Status(404, Vec::new(), Vec::new())),
    ] {
        let registry = FakeRegistry::start();
        registry.add_sample(REPOSITORY);
        let larder = start(&registry, OnUpstreamDelete::Drop);
        assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200, "{what}");
        registry.fault(On::anything(), fault);
        larder.advance(seconds(61));
        for reference in ["v1", "other"] {
            let got = larder.get(&manifest(REPOSITORY, reference));
            assert_eq!(
                (got.status, got.error_code().as_str()),
                (404, "MANIFEST_UNKNOWN"),
                "{what}"
            );
        }
    }
}

#[test]
fn token_service_404_says_nothing_about_tags() {
    for (what, answer) in [
        ("404", TokenAnswer::Refuse(404)),
        ("410", TokenAnswer::Refuse(410)),
        ("a web page", TokenAnswer::Html),
    ] {
        let tokens = TokenServer::new();
        let (registry, image) = FakeRegistry::with_image(REPOSITORY);
        registry.require_bearer(&tokens);
        let larder = start(&registry, OnUpstreamDelete::Drop);
        assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200, "{what}");
        tokens.answer_with(answer);
        registry.expire_tokens();
        larder.advance(seconds(61));
        for _ in 0..2 {
            let got = larder.get(&manifest(REPOSITORY, "v1"));
            assert!(got.status == 200 && got.header("warning").is_some(), "{what}: {got:?}");
        }
        let got = larder.get(&manifest("team/other", "v1"));
        assert_eq!(got.status, 502, "{what}: {got:?}");
        tokens.answer_with(TokenAnswer::Issue);
        registry.add("team/other", "v1", &image);
        assert_eq!(larder.get(&manifest("team/other", "v1")).status, 200, "{what}");
    }
}

#[test]
fn tag_lists_and_manifests_use_tokens_of_separate_scopes() {
    for refusal in [401, 403] {
        let tokens =
            TokenServer::new().scope_of_lists("metadata_read").refuses_other_scopes_by(refusal);
        let registry = FakeRegistry::start();
        registry.add_sample(REPOSITORY);
        registry.require_bearer(&tokens);
        let larder = Larder::start_with(&registry, |settings| {
            settings.cache.freshness = FreshnessPolicy::of(Ttl::For(seconds(0)));
        });
        for round in 0..3 {
            assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200, "{round}");
            assert_eq!(larder.get(&format!("{TAG_LIST}?n={}", 10 + round)).status, 200, "{round}");
            larder.advance(seconds(120));
        }
        assert_eq!(tokens.issued(), 2, "one of each scope, {refusal}");
    }
}

#[test]
fn concurrent_requests_for_different_scopes_do_not_refuse_each_other() {
    let tokens = TokenServer::new().scope_of_lists("metadata_read");
    let registry = FakeRegistry::start();
    registry.add_sample(REPOSITORY);
    registry.require_bearer(&tokens);
    let gate = Gate::new();
    // Both requests are challenged before either gets a token.
    registry.fault(On::token(), Fault::Gate(gate.clone()));
    let larder = Arc::new(Larder::start(&registry));
    let barrier = Arc::new(Barrier::new(3));
    let get = |target: String| {
        let (larder, barrier) = (Arc::clone(&larder), Arc::clone(&barrier));
        thread::spawn(move || {
            barrier.wait();
            larder.get(&target).status
        })
    };
    let both = [get(manifest(REPOSITORY, "v1")), get(TAG_LIST.to_owned())];
    barrier.wait();
    registry.wait_for("GET", "/token", 2);
    gate.open();
    for each in both {
        assert_eq!(each.join().expect("it does not panic"), 200);
    }
}

#[test]
fn token_fetched_by_another_request_proves_nothing() {
    // The first token is invalid; all others are valid.
    let tokens = TokenServer::new();
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    registry.add(REPOSITORY, "v2", &image);
    registry.require_bearer(&tokens);
    let gate = Gate::new();
    let useless = r#"{"token":"good-for-nothing"}"#.as_bytes().to_vec();
    let useless = Fault::Status(200, Vec::new(), useless);
    registry.fault(On::token().times(1), Fault::All(vec![useless, Fault::Gate(gate.clone())]));
    let larder = Arc::new(Larder::start(&registry));
    let get = |tag: &str| {
        let (larder, target) = (Arc::clone(&larder), manifest(REPOSITORY, tag));
        thread::spawn(move || larder.get(&target).status)
    };
    let first = get("v1");
    registry.wait_for("GET", "/token", 1);
    let second = get("v2");
    registry.wait_for("GET", &manifest(REPOSITORY, "v2"), 1);
    gate.open();
    // Whether the second request waits for that token or finds it, the token was fetched by another request.
    assert_eq!(second.join().expect("it does not panic"), 200);
    assert_eq!(first.join().expect("it does not panic"), 404, "its own token was refused");
}
