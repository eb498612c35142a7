//! Attacks on private images, and what must not keep those out who may pull them. Proves docs/security.md.

use std::fs;

use larder::certificates::IdentityFiles;
use larder::upstream::{
    Credentials, Endpoint, EndpointSettings, PeerMembers, PeerSettings, Scheme,
};

use crate::private_images::{
    OURS, Private, THEIRS, accounts, authorization, client, get, status, two_images,
};
use crate::support::larder::{Settings, blob, manifest, seconds, until};
use crate::support::{
    Account, FakeRegistry, Fault, Gate, Image, Larder, On, TokenServer, absent_digest, bytes,
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const PEER: (&str, &str) = ("Via", "1.1 larder-00000000000000bb (peer)");

/// A registry that is open, and that an attacker may push to.
fn open_registry() -> FakeRegistry {
    let open = FakeRegistry::start();
    open.add("pub/app", "v1", &Image::sample("open"));
    open.expect_unknown("*");
    open
}

fn refusal(message: &str) -> Fault {
    let body = format!(r#"{{"errors":[{{"code":"DENIED","message":"{message}"}}]}}"#);
    Fault::Status(403, vec![], body.into_bytes())
}

fn peers(credentials: Credentials) -> Option<PeerSettings> {
    let nobody = Endpoint::new(Scheme::Http, "127.0.0.1:9");
    let access = EndpointSettings { credentials, ..EndpointSettings::at(nobody.clone()) };
    Some(PeerSettings { members: PeerMembers::Listed(vec![nobody]), access })
}

/// Pulls all of the private image as its user.
fn pull(larder: &Larder, image: &Image, repository: &str, user: &str, password: &str) {
    assert_eq!(status(larder, &manifest(repository, "v1"), user, password), 200);
    for layer in image.layers() {
        assert_eq!(status(larder, &blob(repository, &layer.digest), user, password), 200);
    }
}

#[test]
fn claiming_to_be_a_peer_opens_no_blob() {
    let (Private { registry, theirs, .. }, open) = (Private::start(), open_registry());
    let larder = Larder::start_with(&registry, |settings| {
        client(settings);
        settings.list("open.test", &open);
        settings.upstream.peers = peers(Credentials::Anonymous);
    });
    pull(&larder, &theirs, THEIRS, "bob", "hidden");
    let target = format!("/v2/open.test/pub/app/blobs/{}", theirs.layers()[0].digest);
    assert_eq!(larder.get(&target).status, 404);
    assert_eq!(larder.request("GET", &target, &[PEER]).status, 404);
}

#[test]
fn a_manifest_of_someone_else_opens_no_private_blob() {
    let (Private { registry, theirs, .. }, open) = (Private::start(), open_registry());
    let layer = theirs.layers()[0].clone();
    let forged = Image::new("forged").layer(layer.bytes.clone()).manifest();
    let of_image = Image::new("forged").layer(theirs.manifest()).manifest();
    open.add_manifest("evil/app", "v1", MANIFEST, &forged);
    open.add_manifest("evil/app", "v2", MANIFEST, &of_image);
    registry.add_manifest(OURS, "evil", MANIFEST, &forged);
    registry.expect_unknown("*");
    let mut larder = Larder::start_with(&registry, |settings| {
        client(settings);
        settings.list("open.test", &open);
    });
    let attack = |larder: &Larder| {
        for tag in ["v1", "v2"] {
            let target = format!("/v2/open.test/evil/app/manifests/{tag}");
            assert_eq!(larder.get(&target).status, 200);
        }
        for digest in [&layer.digest, &theirs.digest()] {
            let target = format!("/v2/open.test/evil/app/blobs/{digest}");
            assert_eq!(larder.get(&target).status, 404, "{digest}");
            assert_eq!(larder.head(&target).status, 404, "{digest}");
        }
        assert_eq!(status(larder, &manifest(OURS, "evil"), "ann", "secret"), 200);
        assert_eq!(status(larder, &blob(OURS, &layer.digest), "ann", "secret"), 404);
    };
    // Before and after the private image is cached, after a restart, and while the registries are down.
    attack(&larder);
    pull(&larder, &theirs, THEIRS, "bob", "hidden");
    larder.advance(seconds(60));
    attack(&larder);
    larder.restart();
    attack(&larder);
    pull(&larder, &theirs, THEIRS, "bob", "hidden");
    open.stop();
    registry.stop();
    larder.restart();
    larder.advance(seconds(60));
    let target = format!("/v2/open.test/evil/app/blobs/{}", layer.digest);
    assert!(larder.get(&target).status != 200);
    assert!(status(&larder, &blob(OURS, &layer.digest), "ann", "secret") != 200);
    pull(&larder, &theirs, THEIRS, "bob", "hidden");
}

#[test]
fn images_that_share_a_layer_with_a_private_one_are_served_while_the_registries_are_down() {
    let open = FakeRegistry::start();
    let shared = bytes(4_000, 9);
    let public = Image::new("public").layer(shared.clone());
    open.add("pub/base", "v1", &public);
    let registry = FakeRegistry::start();
    let private = Image::new("private").layer(shared).layer(bytes(3_000, 8));
    registry.add(OURS, "v1", &private);
    registry.require_accounts(&accounts("secret"), 403);
    for is_private_first in [true, false] {
        let mut larder = Larder::start_with(&registry, |settings| {
            client(settings);
            settings.list("open.test", &open);
        });
        let pull_public = |larder: &Larder| {
            assert_eq!(larder.get("/v2/open.test/pub/base/manifests/v1").status, 200);
            for layer in public.layers() {
                let target = format!("/v2/open.test/pub/base/blobs/{}", layer.digest);
                assert_eq!(larder.get(&target).status, 200);
            }
        };
        let pull_private = |larder: &Larder| pull(larder, &private, OURS, "ann", "secret");
        match is_private_first {
            true => [pull_private(&larder), pull_public(&larder)],
            false => [pull_public(&larder), pull_private(&larder)],
        };
        open.stop();
        registry.stop();
        larder.restart();
        pull_public(&larder);
        pull_private(&larder);
        open.start_again();
        registry.start_again();
    }
}

/// Eve's request waits in the queue of her registry while Bob pulls the blob that she wants.
fn queued(is_other_process: bool) {
    let (Private { registry, .. }, open) = (Private::start(), open_registry());
    let secret = bytes(5_000, 77);
    let digest = registry.add_blob(THEIRS, &secret);
    let slow = open.add_blob("pub/app", &bytes(5_000, 78));
    let gate = Gate::new();
    open.fault(On::get_blob(&slow), Fault::Gate(gate.clone()));
    let larder = Larder::start_with(&registry, |settings| {
        client(settings);
        settings.list("open.test", &open);
        let upstream = "open.test".parse().expect("a name");
        settings.cache.downloads_per_upstream.insert(upstream, 1);
    });
    let second = larder.second();
    let waiting = larder.begin(&format!("/v2/open.test/pub/app/blobs/{slow}"));
    gate.wait_until_reached(1);
    let target = format!("/v2/open.test/pub/app/blobs/{digest}");
    let mut eve = larder.begin(&target);
    until("Eve's request is queued", || larder.cache().load().blobs == 2);
    let of_bob = if is_other_process { &second } else { &larder };
    assert_eq!(status(of_bob, &blob(THEIRS, &digest), "bob", "hidden"), 200);
    of_bob.wait_until_cached(&digest);
    gate.open();
    assert_eq!(eve.read_response().status, 404);
    assert_eq!(larder.get(&target).status, 404);
    drop(waiting);
}

#[test]
fn a_request_that_waited_in_the_queue_gets_no_blob_of_others() {
    queued(false);
    queued(true);
}

#[test]
fn the_download_of_another_process_is_for_its_own_repository() {
    let Private { registry, .. } = Private::start();
    let content = bytes(3 << 20, 3);
    let digest = registry.add_blob(THEIRS, &content);
    let gate = Gate::new();
    let slow = Fault::GateAfter(1 << 20, gate.clone());
    registry.fault(On::get_blob(&digest).with_header("authorization"), slow);
    registry.expect_unknown("*");
    let first = Larder::start_with(&registry, client);
    let second = first.second();
    let mut bob = first.connect();
    let login = authorization("bob", "hidden");
    bob.send("GET", &blob(THEIRS, &digest), &[("Authorization", &login)]);
    assert_eq!(bob.read_head().status, 200);
    bob.read_body(1_000);
    assert_eq!(status(&second, &manifest(OURS, "v1"), "ann", "secret"), 200);
    assert_eq!(status(&second, &blob(OURS, &digest), "ann", "secret"), 404);
    gate.open();
}

#[test]
fn servers_in_place_of_the_registry_let_nobody_in_and_revoke_nothing() {
    let text = |status, content_type: &str, body: &str| {
        Fault::Stranger(status, content_type.into(), body.into())
    };
    for fault in [
        text(200, "text/plain", "ok"),
        text(200, "application/json", r#"{"status":"maintenance"}"#),
        text(404, "text/plain", "404 page not found"),
        text(403, "text/html", "<p>blocked</p>"),
        text(401, "text/plain", "who are you"),
        Fault::Html200,
    ] {
        let Private { registry, ours, .. } = Private::start();
        let larder = Larder::start_with(&registry, client);
        let (target, list) = (manifest(OURS, "v1"), format!("/v2/{OURS}/tags/list"));
        pull(&larder, &ours, OURS, "ann", "secret");
        let layer = blob(OURS, &ours.layers()[0].digest);
        larder.advance(seconds(11 * 60));
        registry.require_nothing();
        registry.fault(On::anything(), fault);
        for target in [&layer, &list, &target] {
            assert_eq!(status(&larder, target, "eve", "guess"), 503, "{target}");
        }
        assert_eq!(status(&larder, &target, "ann", "secret"), 200, "allowed before");
        assert_eq!(larder.store().grants().unwrap().len(), 1);
    }
}

#[test]
fn passwords_go_to_the_registry_however_its_address_is_written() {
    let (registry, mirror) = (FakeRegistry::start(), FakeRegistry::start());
    for each in [&registry, &mirror] {
        each.add(OURS, "v1", &Image::sample("ours"));
        each.require_accounts(&accounts("secret"), 403);
    }
    let port = registry.address().port();
    let name = format!("localhost:{port}");
    let larder = Larder::start_alone(|settings: &mut Settings| {
        let at = |host: &str| EndpointSettings::at(Endpoint::new(Scheme::Http, host));
        settings.list(&name, &registry);
        settings.upstream.registries[0].endpoints =
            vec![at(&format!("LOCALHOST:{port}")), at(&mirror.host())];
        settings.naming.default_upstream = name.parse().ok();
        client(settings);
    });
    assert_eq!(status(&larder, &manifest(OURS, "v1"), "ann", "secret"), 200);
    for asked in mirror.requests() {
        assert_eq!(asked.header("authorization"), None, "{asked:?}");
    }
}

#[test]
fn permission_to_list_is_no_permission_to_pull() {
    let Private { registry, ours, .. } = Private::start();
    let larder = Larder::start_with(&registry, client);
    let list = format!("/v2/{OURS}/tags/list");
    registry.require_accounts(&[Account::new("lister", "x", &[OURS])], 403);
    for on in [On::any_manifest(), On::any_blob()] {
        registry.fault(on, refusal("metadata only"));
    }
    assert_eq!(status(&larder, &list, "lister", "x"), 200);
    assert_eq!(status(&larder, &manifest(OURS, "v1"), "lister", "x"), 403);
    larder.advance(seconds(11));
    let layer = blob(OURS, &ours.layers()[0].digest);
    assert_eq!(status(&larder, &layer, "lister", "x"), 403);
}

#[test]
fn a_login_that_may_only_pull_keeps_its_permission() {
    let Private { registry, .. } = Private::start();
    registry.fault(On::tags(OURS), refusal("no list"));
    registry.expect_unknown("*");
    let larder = Larder::start_with(&registry, client);
    let target = manifest(OURS, "v1");
    let others = [manifest(OURS, "sha256-00.sig"), blob(OURS, &absent_digest(1))];
    for other in others {
        assert_eq!(status(&larder, &target, "ann", "secret"), 200);
        larder.advance(seconds(11 * 60));
        assert_eq!(status(&larder, &other, "ann", "secret"), 404, "{other}");
        assert_eq!(status(&larder, &target, "ann", "secret"), 200, "{other}");
    }
    larder.advance(seconds(11 * 60));
    let _ = status(&larder, &format!("/v2/{OURS}/tags/list"), "ann", "secret");
    assert_eq!(larder.store().grants().unwrap().len(), 1);
    registry.stop();
    assert_eq!(status(&larder, &target, "ann", "secret"), 200);
}

#[test]
fn one_login_counts_once_as_a_guess_and_keeps_nobody_out() {
    let Private { registry, .. } = Private::start();
    let larder = Larder::start_with(&registry, client);
    let target = manifest(OURS, "v1");
    assert_eq!(status(&larder, &target, "ann", "secret"), 200);
    for repository in 0..12 {
        let other = manifest(&format!("ours/app{repository}"), "v1");
        assert_eq!(status(&larder, &other, "old", "expired"), 401);
        assert_eq!(status(&larder, &other, "ann", "secret"), 403, "a valid login is no guess");
    }
    assert_eq!(status(&larder, &manifest(THEIRS, "v1"), "bob", "hidden"), 200);
    for guess in 0..20 {
        let _ = status(&larder, &target, "ann", &format!("guess-{guess}"));
    }
    let layer = blob(OURS, &absent_digest(1));
    assert_eq!(status(&larder, &target, "ann", "another"), 429);
    assert_eq!(status(&larder, &layer, "ann", "another"), 503, "429 makes clients retry at once");
    larder.advance(seconds(10 * 60 - 1));
    for guess in 0..20 {
        let _ = status(&larder, &target, "ann", &format!("guess-{guess}"));
    }
    larder.advance(seconds(2));
    assert_eq!(status(&larder, &target, "ann", "secret"), 200, "its permission has just ended");
    registry.stop();
    larder.advance(seconds(11 * 60));
    assert_eq!(status(&larder, &target, "ann", "secret"), 200);
}

#[test]
fn what_the_registry_tells_one_login_does_not_count_for_others() {
    let Private { registry, .. } = Private::start();
    let carol = Account::new("carol", "own", &[OURS]);
    for tag in ["v2", "v3"] {
        registry.add(OURS, tag, &Image::sample(tag));
    }
    let ann = |repositories: &[&str]| Account::new("ann", "secret", repositories);
    registry.require_accounts(&[ann(&[OURS]), carol.clone()], 404);
    let larder = Larder::start_with(&registry, client);
    let limited = Fault::Status(429, vec![("Retry-After".into(), "50".into())], b"{}".to_vec());
    registry.fault(On::get_manifest("v1").times(1), limited);
    assert_eq!(status(&larder, &manifest(OURS, "v1"), "ann", "secret"), 429);
    assert_eq!(status(&larder, &manifest(OURS, "v2"), "carol", "own"), 200);
    registry.require_accounts(&[ann(&[]), carol], 404);
    registry.expect_unknown("*");
    assert_eq!(status(&larder, &manifest(OURS, "v3"), "ann", "secret"), 404);
    assert_eq!(status(&larder, &manifest(OURS, "v3"), "carol", "own"), 200);
}

#[test]
fn a_peer_without_a_login_does_not_make_content_missing() {
    let registry = FakeRegistry::start();
    let _ = two_images(&registry);
    let tokens = TokenServer::new().accounts(&accounts("secret")).expires_in(3600);
    registry.require_bearer(&tokens);
    let larder = Larder::start_with(&registry, |settings| {
        client(settings);
        settings.upstream.peers = peers(Credentials::of_client("member", "pw"));
    });
    let member = authorization("member", "pw");
    let asked =
        larder.request("GET", &manifest(OURS, "v1"), &[PEER, ("Authorization", member.as_str())]);
    assert_ne!(asked.status, 200, "Larder has no login");
    assert_eq!(status(&larder, &manifest(OURS, "v1"), "ann", "secret"), 200);
}

#[test]
fn the_certificate_of_larder_lets_no_client_in() {
    let registry = FakeRegistry::start_mtls();
    registry.add(OURS, "v1", &Image::sample("ours"));
    let directory = tempfile::tempdir().unwrap();
    let [ca, cert, key] = ["ca", "cert", "key"].map(|name| directory.path().join(name));
    let identity = registry.client_identity("larder");
    fs::write(&ca, registry.ca_pem()).unwrap();
    fs::write(&cert, &identity.certificate_pem).unwrap();
    fs::write(&key, &identity.key_pem).unwrap();
    let larder = Larder::start_with(&registry, |settings| {
        client(settings);
        let tls = &mut settings.upstream.registries[0].endpoints[0].tls;
        tls.ca = Some(ca);
        tls.identity = Some(IdentityFiles { cert, key });
    });
    let got = get(&larder, &manifest(OURS, "v1"), "anyone", "anything");
    assert_eq!(got.status, 503, "{got:?}");
    assert!(got.text().contains("tls.cert"), "{}", got.text());
}

#[test]
fn registries_without_head_decide_with_get() {
    for fault in [Fault::HeadNotAllowed, Fault::Status(400, vec![], vec![])] {
        let Private { registry, .. } = Private::start();
        registry.fault(On::head_manifest("v1"), fault);
        let larder = Larder::start_with(&registry, client);
        assert_eq!(status(&larder, &manifest(OURS, "v1"), "ann", "secret"), 200);
        assert_eq!(status(&larder, &manifest(OURS, "v1"), "bob", "hidden"), 403);
    }
}

#[test]
fn logins_that_nobody_demanded_are_not_recorded() {
    let registry = FakeRegistry::start();
    registry.add(OURS, "v1", &Image::sample("ours"));
    let larder = Larder::start_with(&registry, client);
    for guess in 0..5 {
        let user = format!("nobody-{guess}");
        assert_eq!(status(&larder, &manifest(OURS, "v1"), &user, "x"), 200);
    }
    assert!(larder.store().grants().unwrap().is_empty());
}

#[test]
fn whether_a_private_blob_is_cached_cannot_be_told() {
    let (Private { registry, theirs, .. }, open) = (Private::start(), open_registry());
    let larder = Larder::start_with(&registry, |settings| {
        client(settings);
        settings.list("open.test", &open);
    });
    pull(&larder, &theirs, THEIRS, "bob", "hidden");
    let [cached, not] = [theirs.layers()[0].digest.clone(), absent_digest(7)].map(|digest| {
        let got = larder.get(&format!("/v2/open.test/pub/app/blobs/{digest}"));
        (got.status, got.text())
    });
    assert_eq!(cached, not);
}

#[test]
fn docker_gets_a_token_with_and_without_a_login() {
    let Private { registry, ours, .. } = Private::start();
    let larder = Larder::start_with(&registry, client);
    let docker = ("User-Agent", "docker/20.10.24 go/go1.19 os/linux");
    let ping = larder.request("GET", "/v2/", &[docker, ("Host", "larder.test:8080")]);
    assert_eq!(ping.status, 401);
    let challenge = ping.header("www-authenticate").unwrap_or_default();
    assert!(challenge.starts_with("Bearer realm=\"http://larder.test:8080/token\""), "{challenge}");
    let tls = [docker, ("Host", "larder.test"), ("X-Forwarded-Proto", "https")];
    let ping = larder.request("GET", "/v2/", &tls);
    let challenge = ping.header("www-authenticate").unwrap_or_default();
    assert!(challenge.contains("https://larder.test/token"), "{challenge}");
    let token = |headers: &[(&str, &str)]| {
        let got = larder.request("GET", "/token?service=larder&scope=x", headers);
        assert_eq!((got.status, got.header("cache-control")), (200, Some("no-store")));
        format!("Bearer {}", got.json()["token"].as_str().expect("a token"))
    };
    let login = authorization("ann", "secret");
    let mine = token(&[("Authorization", login.as_str())]);
    let got = larder.request("GET", &manifest(OURS, "v1"), &[("Authorization", mine.as_str())]);
    assert!(got.status == 200 && got.body == ours.manifest(), "{got:?}");
    let nobody = token(&[]);
    let got = larder.request("GET", &manifest(OURS, "v1"), &[("Authorization", nobody.as_str())]);
    assert_eq!(got.status, 401);
    assert!(registry.requests().iter().all(|asked| asked.header("authorization") != Some(&nobody)));
    let open = Larder::start(&registry);
    assert_eq!(open.get("/token").status, 404, "only where it is needed");
}
