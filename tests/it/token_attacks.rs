//! What tokens of issuers must not make possible. Proves docs/configuration.md, "Tokens", and docs/security.md.

use serde_json::json;

use crate::support::issuer::{OURS, Site, THEIRS, by, started, started_in};
use crate::support::larder::{blob, manifest};
use crate::support::process::{Process, run};
use crate::support::{FakeRegistry, Image, bytes};

/// A manifest in an allowed repository that names a layer of a repository that is not allowed.
const EVIL: &str = "team-a/evil";

/// A registry whose content is cached, and the digest of a layer that the token must not get.
fn cached() -> (Site, Process, String) {
    let site = Site::new();
    let process = started(&site, &site.config(&site.ca(), "management: {port: 0}"));
    let theirs = Image::sample("v1").layer(bytes(1000, 9));
    site.registry.add(THEIRS, "v1", &theirs);
    let secret = theirs.layers().last().expect("a layer").digest.clone();
    let everything = site.token(json!({"groups": ["ops"], "kubernetes.io": {"namespace": "ops"}}));
    for target in [manifest(THEIRS, "v1"), blob(THEIRS, &secret)] {
        assert_eq!(by(&process, "token", &everything, &target).status, 200, "{target}");
    }
    site.registry.add(EVIL, "v1", &theirs);
    site.registry.remove_blob(EVIL, &secret);
    (site, process, secret)
}

#[test]
fn a_token_gets_no_blob_of_a_repository_that_it_may_not_pull() {
    let (site, process, secret) = cached();
    let token = site.token(json!({}));
    assert_eq!(by(&process, "token", &token, &blob(THEIRS, &secret)).status, 403);
    assert_eq!(by(&process, "token", &token, &manifest(EVIL, "v1")).status, 200);
    for repository in [EVIL, "team-a/none"] {
        site.registry.expect_unknown(&format!("*/{repository}/*"));
        let refused = by(&process, "token", &token, &blob(repository, &secret));
        assert_eq!(refused.status, 404, "{repository}: {refused:?}");
    }
    // Its own images are served, also when the registry is down.
    let ours = blob(OURS, &site.ours.layers()[0].digest);
    assert_eq!(by(&process, "token", &token, &ours).status, 200);
    site.registry.stop();
    assert_eq!(by(&process, "token", &token, &ours).status, 200);
    for repository in [EVIL, "team-a/other"] {
        let refused = by(&process, "token", &token, &blob(repository, &secret));
        assert!([404, 503].contains(&refused.status), "{repository}: {refused:?}");
    }
    // Users are not restricted, and get what is cached.
    assert_eq!(by(&process, "demo", "secret", &blob(THEIRS, &secret)).status, 200);
}

#[test]
fn what_a_token_has_pulled_is_served_after_a_restart_without_the_registry() {
    let (site, process, secret) = cached();
    let token = site.token(json!({}));
    let ours = blob(OURS, &site.ours.layers()[0].digest);
    assert_eq!(by(&process, "token", &token, &ours).status, 200);
    process.signal("TERM");
    process.wait();
    site.registry.stop();
    let process = started(&site, &site.discovered());
    assert_eq!(by(&process, "token", &token, &ours).status, 200);
    assert_eq!(by(&process, "token", &token, &blob(OURS, &secret)).status, 503);
}

#[test]
fn a_parent_that_has_the_blob_is_not_asked_for_it() {
    let (site, process, secret) = cached();
    process.signal("TERM");
    process.wait();
    // The parent has what the first server has cached, and no users.
    let open = site.discovered();
    let open = open.split_once("serverAuthConfig").expect("the key").0;
    let parent = Process::serve_file(site.directory.path(), open);
    let child = tempfile::tempdir().expect("a directory");
    let parents = format!("parents: ['http://{}']", parent.address);
    let process = started_in(child.path(), &site, &site.config(&site.ca(), &parents));
    let token = site.token(json!({}));
    for layer in site.ours.layers() {
        let target = blob(OURS, &layer.digest);
        assert_eq!(by(&process, "token", &token, &target).body, layer.bytes);
    }
    site.registry.expect_unknown(&format!("*/{EVIL}/*"));
    let refused = by(&process, "token", &token, &blob(EVIL, &secret));
    assert_eq!(refused.status, 404, "{refused:?}");
    // For others, the parent's word is enough.
    assert_eq!(by(&process, "demo", "secret", &blob(THEIRS, &secret)).status, 200);
}

#[test]
fn layers_that_two_repositories_share_are_served_in_both() {
    let site = Site::new();
    let process = started(&site, &site.discovered());
    let token = site.token(json!({}));
    let shared = Image::sample("v1");
    for repository in ["team-a/one", "team-a/two"] {
        site.registry.add(repository, "v1", &shared);
        for layer in shared.layers() {
            let target = blob(repository, &layer.digest);
            assert_eq!(by(&process, "token", &token, &target).body, layer.bytes, "{target}");
        }
    }
}

#[test]
fn no_part_of_a_token_is_sent_to_a_registry_that_decides_who_may_pull() {
    let site = Site::new();
    let decides = FakeRegistry::start();
    let image = Image::sample("v1");
    decides.add("app", "v1", &image);
    decides.require_basic("ann", "right");
    let entry = format!(
        "  - {{name: decides.test, access: client, scheme: http, endpoints: ['{}']}}\n",
        decides.url("").trim_end_matches('/')
    );
    let config =
        site.discovered().replacen("serverAuthConfig", &format!("{entry}serverAuthConfig"), 1);
    let config =
        config.replacen("registries: [", "registries:\n  - ", 1).replacen("}]\n", "}\n", 1);
    let process = started(&site, &config);
    let token = site.token(json!({}));
    let unsigned = token.rsplit_once('.').expect("a signature").0;
    let target = manifest("app", "v1") + "?ns=decides.test";
    assert_eq!(by(&process, "ann", "right", &target).status, 200);
    let before = decides.requests().len();
    let (first, second) = token.split_at(token.len() / 2);
    for (user, password) in [
        ("ann", token.clone()),
        ("ann", format!("{token}\n")),
        ("ann", format!(" {token}")),
        ("ann", format!("{token}=")),
        ("ann", format!("Bearer {token}")),
        ("ann", unsigned.to_owned()),
        ("ann", format!("{first}\r\n{second}")),
        (token.as_str(), "x".to_owned()),
        (unsigned, String::new()),
    ] {
        assert_eq!(by(&process, user, &password, &target).status, 401, "{user} {password}");
    }
    assert_eq!(decides.requests().len(), before, "the registry got a token");
    let file = site.path("larder.yaml").display().to_string();
    let cache = site.path("cache").display().to_string();
    let (_, listed, _) = run(&["-c", &file, "--image-path", &cache, "access", "list"]);
    assert!(listed.contains("ann") && !listed.contains("eyJ"), "{listed}");
}

#[test]
fn an_address_with_many_wrong_tokens_is_stopped_except_for_known_ones() {
    let site = Site::new();
    let process = started(&site, &site.discovered());
    let known = site.token(json!({}));
    let forged = |number: u32| {
        let token = site.token(json!({ "jti": number }));
        let (message, _) = token.rsplit_once('.').expect("a signature");
        format!("{message}.{}", "A".repeat(86))
    };
    let statuses: Vec<u16> =
        (0..25).map(|number| by(&process, "x", &forged(number), "/v2/").status).collect();
    assert_eq!((statuses[0], statuses[24]), (401, 503), "{statuses:?}");
    let stopped = by(&process, "x", &site.token(json!({"jti": "new"})), "/v2/");
    assert!(stopped.status == 503 && stopped.header("retry-after").is_some(), "{stopped:?}");
    assert_eq!(by(&process, "token", &known, &manifest(OURS, "v1")).status, 200);
    assert_eq!(by(&process, "demo", "secret", "/v2/").status, 200);
}
