//! `registries[].access: client`: the registry decides which clients may pull. Proves docs/private-images.md.

use std::fs;

use larder::cache::{AccessPolicy, PullAccess, RegistryAccess};

use crate::support::larder::{Settings, blob, manifest, seconds};
use crate::support::{
    Account, FakeRegistry, Fault, Image, Larder, On, Response, TokenServer, base64,
};

pub(crate) const OURS: &str = "ours/app";
pub(crate) const THEIRS: &str = "theirs/app";

/// A registry with two repositories of one user each.
pub(crate) struct Private {
    pub(crate) registry: FakeRegistry,
    pub(crate) ours: Image,
    pub(crate) theirs: Image,
}

impl Private {
    pub(crate) fn start() -> Private {
        let registry = FakeRegistry::start();
        let (ours, theirs) = two_images(&registry);
        registry.require_accounts(&accounts("secret"), 403);
        Private { registry, ours, theirs }
    }
}

/// Images with different layers in the two repositories.
pub(crate) fn two_images(registry: &FakeRegistry) -> (Image, Image) {
    let (ours, theirs) = (Image::sample("ours"), Image::sample("theirs"));
    registry.add(OURS, "v1", &ours);
    registry.add(THEIRS, "v1", &theirs);
    (ours, theirs)
}

pub(crate) fn accounts(password: &str) -> [Account; 2] {
    [Account::new("ann", password, &[OURS]), Account::new("bob", "hidden", &[THEIRS])]
}

pub(crate) fn client(settings: &mut Settings) {
    let upstream = settings.naming.default_upstream.clone().expect("the fake registry");
    let registry = RegistryAccess { otherwise: PullAccess::Client, ..RegistryAccess::default() };
    settings.cache.access.by_upstream.insert(upstream, registry);
}

/// Only [`OURS`] is private.
pub(crate) fn client_for_ours(settings: &mut Settings) {
    let upstream = settings.naming.default_upstream.clone().expect("the fake registry");
    let part = (OURS.parse().expect("a prefix"), PullAccess::Client);
    let registry = RegistryAccess { parts: vec![part], ..RegistryAccess::default() };
    settings.cache.access =
        AccessPolicy { by_upstream: [(upstream, registry)].into(), ..AccessPolicy::default() };
}

pub(crate) fn authorization(user: &str, password: &str) -> String {
    format!("Basic {}", base64(format!("{user}:{password}").as_bytes()))
}

pub(crate) fn get(larder: &Larder, target: &str, user: &str, password: &str) -> Response {
    larder.request("GET", target, &[("Authorization", &authorization(user, password))])
}

pub(crate) fn status(larder: &Larder, target: &str, user: &str, password: &str) -> u16 {
    get(larder, target, user, password).status
}

#[test]
fn each_client_gets_what_its_own_credentials_are_good_for() {
    let Private { registry, ours, theirs } = Private::start();
    let larder = Larder::start_with(&registry, client);
    let got = larder.get(&manifest(OURS, "v1"));
    assert_eq!((got.status, got.error_code().as_str()), (401, "UNAUTHORIZED"), "{got:?}");
    assert!(got.header("www-authenticate").is_some_and(|value| value.starts_with("Basic ")));
    let empty = status(&larder, &manifest(OURS, "v1"), "", "");
    assert_eq!(empty, 401, "podman sends this without a login");
    assert!(registry.requests().is_empty(), "nothing is asked without credentials");
    for _ in 0..2 {
        assert!(get(&larder, &manifest(OURS, "v1"), "ann", "secret").body == ours.manifest());
        assert!(get(&larder, &manifest(THEIRS, "v1"), "bob", "hidden").body == theirs.manifest());
        for (image, repository, user, password) in
            [(&ours, OURS, "ann", "secret"), (&theirs, THEIRS, "bob", "hidden")]
        {
            for layer in image.layers() {
                let got = get(&larder, &blob(repository, &layer.digest), user, password);
                assert!(got.body == layer.bytes, "{got:?}");
            }
            assert_eq!(larder.get(&blob(repository, &image.layers()[0].digest)).status, 401);
            let lists = format!("/v2/{repository}/tags/list");
            assert_eq!(status(&larder, &lists, user, password), 200);
        }
        assert_eq!(status(&larder, &manifest(OURS, "v1"), "bob", "hidden"), 403);
        assert_eq!(status(&larder, &format!("/v2/{OURS}/tags/list"), "bob", "hidden"), 403);
        assert_eq!(status(&larder, &blob(OURS, &ours.layers()[0].digest), "bob", "hidden"), 403);
        assert_eq!(status(&larder, &manifest(OURS, "v1"), "ann", "wrong"), 401);
    }
}

#[test]
fn a_blob_is_served_only_in_a_repository_that_contains_it() {
    let Private { registry, ours, theirs } = Private::start();
    let larder = Larder::start_with(&registry, client);
    for (repository, user, password) in [(OURS, "ann", "secret"), (THEIRS, "bob", "hidden")] {
        assert_eq!(status(&larder, &manifest(repository, "v1"), user, password), 200);
    }
    let (mine, other) = (&ours.layers()[0].digest, &theirs.layers()[0].digest);
    assert_eq!(status(&larder, &blob(THEIRS, other), "bob", "hidden"), 200);
    registry.expect_unknown(&blob(OURS, other));
    for _ in 0..2 {
        let got = get(&larder, &blob(OURS, other), "ann", "secret");
        assert_eq!((got.status, got.error_code().as_str()), (404, "BLOB_UNKNOWN"), "{got:?}");
    }
    assert_eq!(status(&larder, &blob(OURS, mine), "ann", "secret"), 200);
    registry.add_blob(OURS, &theirs.layers()[0].bytes);
    larder.advance(seconds(60));
    assert_eq!(status(&larder, &blob(OURS, other), "ann", "secret"), 200, "the registry has it");
}

#[test]
fn the_registry_is_asked_once_for_each_login_and_repository_in_a_while() {
    let Private { registry, ours, .. } = Private::start();
    let larder = Larder::start_with(&registry, client);
    let layers = ours.layers().into_iter().map(|layer| blob(OURS, &layer.digest));
    let targets: Vec<String> = [manifest(OURS, "v1")].into_iter().chain(layers).collect();
    let pull = || {
        for target in &targets {
            assert_eq!(status(&larder, target, "ann", "secret"), 200);
        }
    };
    pull();
    registry.clear_requests();
    pull();
    assert!(registry.requests().is_empty(), "{:?}", registry.requests());
    larder.advance(seconds(10 * 60));
    pull();
    let heads = registry.requests_for("HEAD", &manifest(OURS, "v1"));
    let with_login = heads.iter().filter(|asked| asked.header("authorization").is_some());
    assert!(with_login.count() >= 1, "{heads:?}");
}

#[test]
fn a_changed_password_takes_effect_when_the_permission_ends() {
    let Private { registry, .. } = Private::start();
    let larder = Larder::start_with(&registry, client);
    let target = manifest(OURS, "v1");
    assert_eq!(status(&larder, &target, "ann", "secret"), 200);
    registry.require_accounts(&accounts("new"), 403);
    assert_eq!(status(&larder, &target, "ann", "secret"), 200, "within accessTtl");
    assert_eq!(status(&larder, &target, "ann", "new"), 200);
    larder.advance(seconds(10 * 60));
    assert_eq!(status(&larder, &target, "ann", "secret"), 401);
    registry.stop();
    larder.advance(seconds(60));
    assert_eq!(status(&larder, &target, "ann", "secret"), 503, "nor while the registry is down");
    assert_eq!(status(&larder, &target, "ann", "new"), 200);
}

#[test]
fn confirmed_logins_are_served_while_the_registry_is_down_also_after_a_restart() {
    let Private { registry, ours, .. } = Private::start();
    let mut larder = Larder::start_with(&registry, client);
    let (target, layer) = (manifest(OURS, "v1"), blob(OURS, &ours.layers()[0].digest));
    for target in [&target, &layer] {
        assert_eq!(status(&larder, target, "ann", "secret"), 200);
    }
    let list = format!("/v2/{OURS}/tags/list");
    registry.stop();
    larder.restart();
    larder.advance(seconds(6 * 24 * 3600));
    for target in [&target, &layer] {
        assert_eq!(status(&larder, target, "ann", "secret"), 200, "{target}");
    }
    let unknown = get(&larder, &list, "ann", "guess");
    assert_eq!((unknown.status, unknown.error_code().as_str()), (503, "UNAVAILABLE"));
    assert!(unknown.text().contains("accessOffline"), "{}", unknown.text());
    assert_eq!(status(&larder, &target, "bob", "hidden"), 503);
    larder.advance(seconds(2 * 24 * 3600));
    assert_eq!(status(&larder, &target, "ann", "secret"), 503, "after accessOffline");
    let everything = fs::read_dir(larder.root().join("access")).unwrap();
    for file in everything {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(!text.contains("secret") && !text.contains(&base64(b"ann:secret")), "{text}");
    }
}

#[test]
fn an_air_gapped_server_serves_the_logins_that_were_confirmed() {
    let Private { registry, ours, .. } = Private::start();
    let mut larder = Larder::start_with(&registry, client);
    let target = manifest(OURS, "v1");
    assert_eq!(status(&larder, &target, "ann", "secret"), 200);
    larder.restart_with(|settings| settings.cache.air_gapped = true);
    registry.clear_requests();
    assert!(get(&larder, &target, "ann", "secret").body == ours.manifest());
    assert_eq!(status(&larder, &target, "ann", "wrong"), 503);
    assert!(registry.requests().is_empty());
}

#[test]
fn forgotten_permissions_do_not_count() {
    let Private { registry, .. } = Private::start();
    let larder = Larder::start_with(&registry, client);
    let target = manifest(OURS, "v1");
    assert_eq!(status(&larder, &target, "ann", "secret"), 200);
    let store = larder.store();
    let [(key, record)] = &store.grants().unwrap()[..] else { panic!("one permission") };
    assert_eq!((record.user.as_str(), record.repository.ends_with(OURS)), ("ann", true));
    registry.stop();
    assert_eq!(status(&larder, &target, "ann", "secret"), 200);
    store.remove_grant(key).unwrap();
    store.forget_grants_in_memory().unwrap();
    larder.check_offline_switch();
    assert_eq!(status(&larder, &target, "ann", "secret"), 503);
}

#[test]
fn a_registry_that_hides_repositories_is_hidden_here_as_well() {
    let Private { registry, .. } = Private::start();
    registry.require_accounts(&accounts("secret"), 404);
    let larder = Larder::start_with(&registry, client);
    assert_eq!(status(&larder, &manifest(THEIRS, "v1"), "bob", "hidden"), 200);
    registry.expect_unknown("*");
    let hidden = get(&larder, &manifest(THEIRS, "v1"), "ann", "secret");
    let missing = get(&larder, &manifest("theirs/other", "v1"), "ann", "secret");
    assert_eq!((hidden.status, hidden.error_code().as_str()), (404, "MANIFEST_UNKNOWN"));
    assert_eq!((missing.status, missing.text()), (404, hidden.text()), "no difference");
}

#[test]
fn a_tag_that_the_registry_has_deleted_is_served_to_those_who_may_pull_the_repository() {
    let Private { registry, ours, .. } = Private::start();
    let larder = Larder::start_with(&registry, client);
    let target = manifest(OURS, "v1");
    assert_eq!(status(&larder, &target, "ann", "secret"), 200);
    registry.remove_tag(OURS, "v1");
    registry.expect_unknown(&target);
    larder.advance(seconds(24 * 3600));
    let got = get(&larder, &target, "ann", "secret");
    assert!(got.status == 200 && got.body == ours.manifest(), "{got:?}");
}

#[test]
fn tokens_prove_nothing_and_are_not_shared_between_logins() {
    let registry = FakeRegistry::start();
    let (ours, _) = two_images(&registry);
    let tokens = TokenServer::new().accounts(&accounts("secret")).expires_in(3600);
    registry.require_bearer(&tokens);
    let larder = Larder::start_with(&registry, client);
    assert!(get(&larder, &manifest(OURS, "v1"), "ann", "secret").body == ours.manifest());
    let refused = get(&larder, &manifest(OURS, "v1"), "bob", "hidden");
    assert_eq!(refused.status, 401, "bob gets a token, which does not open the repository");
    assert_eq!(status(&larder, &manifest(OURS, "v1"), "ann", "wrong"), 401);
    for layer in ours.layers() {
        assert!(get(&larder, &blob(OURS, &layer.digest), "ann", "secret").body == layer.bytes);
    }
    let of_bob = authorization("bob", "hidden");
    for asked in registry.requests_for("*", "/v2/*") {
        assert_ne!(asked.header("authorization"), Some(of_bob.as_str()));
    }
}

#[test]
fn content_is_fetched_with_the_credentials_of_the_configuration_if_there_are_some() {
    let Private { registry, ours, .. } = Private::start();
    let robot = Account::new("robot", "own", &[OURS, THEIRS]);
    registry.require_accounts(&[&accounts("secret")[..], &[robot]].concat(), 403);
    let larder = Larder::start_with(&registry, |settings| {
        client(settings);
        settings.upstream.registries[0].endpoints[0].credentials =
            larder::upstream::Credentials::of_client("robot", "own");
    });
    assert!(get(&larder, &manifest(OURS, "v1"), "ann", "secret").body == ours.manifest());
    let gets = registry.requests_for("GET", &manifest(OURS, "*"));
    let own = authorization("robot", "own");
    let presented = gets.iter().filter_map(|asked| asked.header("authorization"));
    assert!(presented.into_iter().all(|header| header == own), "{gets:?}");
    assert_eq!(status(&larder, &manifest(OURS, "v1"), "robot", "wrong"), 401);
}

#[test]
fn password_guessing_is_limited_for_each_address_and_does_not_lock_others_out() {
    let Private { registry, .. } = Private::start();
    let larder = Larder::start_with(&registry, client);
    let target = manifest(OURS, "v1");
    assert_eq!(status(&larder, &target, "ann", "secret"), 200);
    larder.advance(seconds(10 * 60));
    let mut statuses = Vec::new();
    for guess in 0..20 {
        statuses.push(status(&larder, &target, "ann", &format!("guess-{guess}")));
    }
    assert_eq!(statuses.iter().filter(|status| **status == 401).count(), 10, "{statuses:?}");
    assert_eq!(statuses.last(), Some(&429));
    let limited = get(&larder, &target, "ann", "guess-20");
    assert!(limited.header("retry-after").is_some(), "{limited:?}");
    let known = status(&larder, &target, "ann", "secret");
    assert_eq!(known, 200, "known logins are not limited when they have to be confirmed again");
    larder.advance(seconds(61));
    assert_eq!(status(&larder, &target, "ann", "guess-20"), 401);
}

#[test]
fn an_old_password_that_is_tried_again_and_again_is_one_guess() {
    let Private { registry, .. } = Private::start();
    let larder = Larder::start_with(&registry, client);
    let target = manifest(OURS, "v1");
    for _ in 0..20 {
        assert_eq!(status(&larder, &target, "ann", "old"), 401);
        larder.advance(seconds(2));
    }
    let asked = registry.requests_for("HEAD", &target);
    let old = authorization("ann", "old");
    let times = asked.iter().filter(|asked| asked.header("authorization") == Some(old.as_str()));
    assert!(times.count() > 1, "its refusal is remembered for negativeTtl only");
    for guess in 0..8 {
        assert_eq!(status(&larder, &target, "ann", &format!("guess-{guess}")), 401);
    }
    assert_eq!(status(&larder, &target, "ann", "secret"), 200);
}

#[test]
fn a_captive_portal_lets_nobody_in() {
    let Private { registry, .. } = Private::start();
    let larder = Larder::start_with(&registry, client);
    assert_eq!(status(&larder, &manifest(OURS, "v1"), "ann", "secret"), 200);
    registry.require_nothing();
    registry.fault(On::anything(), Fault::Html200);
    assert_eq!(status(&larder, &manifest(OURS, "v1"), "eve", "guess"), 503);
    larder.advance(seconds(3600));
    assert_eq!(status(&larder, &manifest(OURS, "v1"), "ann", "secret"), 200);
}

#[test]
fn other_repositories_and_the_ping_are_open() {
    let Private { registry, .. } = Private::start();
    registry.require_nothing();
    let larder = Larder::start_with(&registry, client_for_ours);
    assert_eq!(larder.get(&manifest(THEIRS, "v1")).status, 200);
    assert_eq!(larder.get(&manifest(OURS, "v1")).status, 401);
    let ping = larder.get("/v2/");
    assert!(ping.status == 200 && ping.header("www-authenticate").is_some(), "{ping:?}");
    for (agent, status) in [
        ("docker/27.0.3 go/go1.21.11 os/linux", 401),
        ("crane/v0.20.2 go-containerregistry/v0.20.2", 401),
        ("containers/5.33.1 (github.com/containers/image)", 200),
        ("curl/8.0", 200),
    ] {
        assert_eq!(larder.request("GET", "/v2/", &[("User-Agent", agent)]).status, status);
    }
    let logged_in = [("User-Agent", "docker/27"), ("Authorization", &authorization("a", "b"))];
    assert_eq!(larder.request("GET", "/v2/", &logged_in).status, 200);
}

#[test]
fn blobs_of_open_registries_are_served_only_where_they_belong() {
    let registry = FakeRegistry::start();
    let (ours, theirs) = two_images(&registry);
    let mut larder = Larder::start(&registry);
    for (image, repository) in [(&ours, OURS), (&theirs, THEIRS)] {
        assert_eq!(larder.get(&manifest(repository, "v1")).status, 200);
        for layer in image.layers() {
            assert_eq!(larder.get(&blob(repository, &layer.digest)).status, 200);
        }
    }
    let (mine, other) = (&ours.layers()[0].digest, &theirs.layers()[0].digest);
    registry.clear_requests();
    registry.expect_unknown(&blob(OURS, other));
    assert_eq!(larder.get(&blob(OURS, other)).status, 404);
    registry.clear_requests();
    assert_eq!(larder.get(&blob(OURS, other)).status, 404);
    assert!(registry.requests().is_empty(), "the answer of the registry is remembered");
    larder.restart();
    registry.clear_requests();
    assert_eq!(larder.get(&blob(OURS, mine)).status, 200);
    assert!(registry.requests().is_empty(), "the cached manifests say so");
    assert_eq!(larder.get(&blob(OURS, other)).status, 404);
    larder.restart_with(|settings| settings.cache.access.blobs = larder::cache::BlobAccess::Any);
    assert_eq!(larder.get(&blob(OURS, other)).status, 200);
}

#[test]
fn cached_blobs_of_open_images_are_served_while_the_registry_is_down_where_nothing_is_known() {
    let registry = FakeRegistry::start();
    let (ours, theirs) = two_images(&registry);
    registry.add("theirs/other", "v1", &Image::sample("other"));
    let mut larder = Larder::start_with(&registry, client_for_ours);
    for (image, repository) in [(&ours, OURS), (&theirs, THEIRS)] {
        assert_eq!(status(&larder, &manifest(repository, "v1"), "ann", "secret"), 200);
        for layer in image.layers() {
            let target = blob(repository, &layer.digest);
            assert_eq!(status(&larder, &target, "ann", "secret"), 200);
        }
    }
    assert_eq!(larder.get(&manifest("theirs/other", "v1")).status, 200);
    registry.stop();
    let (private, open) = (&ours.layers()[0], &theirs.layers()[0].digest);
    for _ in 0..2 {
        assert_eq!(larder.get(&blob("unknown/app", open)).status, 200);
        assert_eq!(larder.get(&blob("theirs/other", open)).status, 503, "it has a manifest");
        for repository in ["unknown/app", "unknown/other", THEIRS] {
            let got = larder.get(&blob(repository, &private.digest));
            assert!(got.status == 503 && got.body != private.bytes, "{repository}: {got:?}");
        }
        larder.restart();
    }
}
