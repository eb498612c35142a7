//! Private blobs stay private wherever a server has them from: without their manifest, from another process, from a bucket, and
//! for a bundle. Nor does an error name them. Proves docs/private-images.md.

use std::fs::OpenOptions;
use std::io::Write as _;

use larder::cache::BlobAccess;

use crate::private_images::{
    OURS, Private, THEIRS, authorization, client, client_for_ours, get, status,
};
use crate::support::larder::{Settings, blob, manifest, seconds};
use crate::support::{
    Account, Connection, FakeBucket, FakeRegistry, Fault, Gate, Image, Larder, On, absent_digest,
    bytes,
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// A repository of an attacker, in a registry that is open.
const EVIL: &str = "open.test/evil/app";

/// The private registry, and an open one with a manifest that names a layer of the private image.
fn registries() -> (Private, FakeRegistry) {
    let (private, open) = (Private::start(), FakeRegistry::start());
    forge(&open, &private.theirs);
    open.add("pub/app", "v1", &Image::sample("open").layer(bytes(50_000, 5)));
    open.expect_unknown("*");
    (private, open)
}

/// The manifest of an attacker, which names the first layer of an image.
fn forge(registry: &FakeRegistry, image: &Image) {
    let layer = image.layers()[0].clone();
    let forged = Image::new("forged").layer(layer.bytes).manifest();
    registry.add_manifest("evil/app", "v1", MANIFEST, &forged);
}

fn with_open<'a>(open: &'a FakeRegistry) -> impl Fn(&mut Settings) + 'a {
    |settings| {
        client(settings);
        settings.list("open.test", open);
    }
}

fn layer_of(private: &Private) -> String {
    private.theirs.layers()[0].digest.clone()
}

/// What an anonymous client gets that names the layer in its own manifest.
fn attack(larder: &Larder, layer: &str) -> u16 {
    assert_eq!(larder.get(&manifest(EVIL, "v1")).status, 200);
    larder.get(&blob(EVIL, layer)).status
}

/// Whatever name an anonymous client uses while the registries are down.
#[track_caller]
fn assert_opens_nothing(larder: &Larder, layer: &str) {
    for name in [EVIL, "open.test/no/such"] {
        assert_ne!(larder.get(&blob(name, layer)).status, 200, "{name}");
    }
}

#[test]
fn blob_that_was_pulled_without_its_manifest_is_private() {
    let (private, open) = registries();
    let layer = layer_of(&private);
    let mut larder = Larder::start_with(&private.registry, with_open(&open));
    assert_eq!(status(&larder, &blob(THEIRS, &layer), "bob", "hidden"), 200);
    larder.wait_until_cached(&layer);
    assert_eq!(attack(&larder, &layer), 404);
    larder.restart();
    assert_eq!(attack(&larder, &layer), 404);
    // With the registries down, names that nothing is known of open nothing either.
    private.registry.stop();
    open.stop();
    assert_opens_nothing(&larder, &layer);
}

#[test]
fn repositories_with_any_blob_have_no_private_ones() {
    let (private, open) = registries();
    let layer = layer_of(&private);
    let larder = Larder::start_with(&private.registry, |settings| {
        with_open(&open)(settings);
        settings.cache.access.blobs = BlobAccess::Any;
    });
    assert_eq!(status(&larder, &blob(THEIRS, &layer), "bob", "hidden"), 200);
    larder.wait_until_cached(&layer);
    assert_eq!(attack(&larder, &layer), 404);
    let public = Image::sample("open").layers()[0].clone();
    for target in [manifest("open.test/pub/app", "v1"), blob("open.test/pub/app", &public.digest)] {
        assert_eq!(larder.get(&target).status, 200);
    }
    larder.wait_until_cached(&public.digest);
    assert!(larder.get(&blob("open.test/no/such", &public.digest)).body == public.bytes);
}

#[test]
fn blob_of_another_process_is_private() {
    let (private, open) = registries();
    let layer = layer_of(&private);
    let first = Larder::start_with(&private.registry, with_open(&open));
    // It learns what is private on the disk before anything is: when an open blob is wanted in another repository.
    let public = Image::sample("open").layers()[0].digest.clone();
    for target in [manifest("open.test/pub/app", "v1"), blob("open.test/pub/app", &public)] {
        assert_eq!(first.get(&target).status, 200);
    }
    first.wait_until_cached(&public);
    assert_eq!(attack(&first, &public), 404);
    let second = first.second();
    for target in [manifest(THEIRS, "v1"), blob(THEIRS, &layer)] {
        assert_eq!(status(&second, &target, "bob", "hidden"), 200);
    }
    second.wait_until_cached(&layer);
    first.advance(seconds(60));
    assert_eq!(attack(&first, &layer), 404);
    assert_eq!(status(&first, &blob(THEIRS, &layer), "bob", "hidden"), 200);
}

#[test]
fn bucket_opens_no_private_blob_to_a_replica_that_has_never_seen_it() {
    let (private, open) = registries();
    let (bucket, layer) = (FakeBucket::start(), layer_of(&private));
    let replica = || {
        Larder::start_with(&private.registry, |settings| {
            with_open(&open)(settings);
            settings.use_bucket(&bucket);
        })
    };
    let public = Image::sample("open").layer(bytes(50_000, 5));
    let first = replica();
    for target in [manifest(THEIRS, "v1"), blob(THEIRS, &layer)] {
        assert_eq!(status(&first, &target, "bob", "hidden"), 200);
    }
    assert_eq!(first.get(&manifest("open.test/pub/app", "v1")).status, 200);
    for each in public.layers() {
        assert!(first.get(&blob("open.test/pub/app", &each.digest)).body == each.bytes);
    }
    first.wait_until_uploaded(&bucket);
    let second = replica();
    assert_eq!(attack(&second, &layer), 404);
    assert_eq!(second.head(&blob(EVIL, &layer)).status, 404);
    // What the registry says that the repository contains comes from the bucket.
    let sent = open.body_bytes_sent();
    for each in public.layers() {
        assert!(second.get(&blob("open.test/pub/app", &each.digest)).body == each.bytes);
    }
    assert_eq!(open.body_bytes_sent(), sent);
    assert_eq!(status(&second, &blob(THEIRS, &layer), "bob", "hidden"), 200);
    let third = replica();
    private.registry.stop();
    open.stop();
    assert_opens_nothing(&third, &layer);
}

#[test]
fn failures_do_not_tell_whether_a_private_blob_is_cached() {
    let (private, open) = registries();
    let layer = layer_of(&private);
    let larder = Larder::start_with(&private.registry, with_open(&open));
    for target in [manifest(THEIRS, "v1"), blob(THEIRS, &layer)] {
        assert_eq!(status(&larder, &target, "bob", "hidden"), 200);
    }
    larder.wait_until_cached(&layer);
    open.stop();
    let [cached, not] = [layer, absent_digest(7)].map(|digest| {
        let got = larder.get(&blob("open.test/pub/app", &digest));
        (got.status, got.text().replace(&digest, "DIGEST"))
    });
    assert_eq!(cached, not);
    assert!(matches!(not.0, 502..=504), "{not:?}");
}

#[test]
fn errors_do_not_name_what_others_have_asked_for() {
    let (private, open) = registries();
    let registry = &private.registry;
    let larder = Larder::start_with(registry, |settings| {
        with_open(&open)(settings);
        settings.upstream.breaker.failures = 1;
    });
    assert_eq!(status(&larder, &manifest(THEIRS, "v1"), "bob", "hidden"), 200);
    registry.stop();
    larder.advance(seconds(24 * 3600));
    for target in [manifest(THEIRS, "secret-tag"), manifest(THEIRS, "v1")] {
        status(&larder, &target, "bob", "hidden");
    }
    let secrets = [private.theirs.digest(), "secret-tag".to_owned()];
    for target in [manifest(OURS, "v1"), format!("/v2/{THEIRS}/tags/list")] {
        let got = get(&larder, &target, "mallory", "guess");
        assert_eq!(got.status, 503, "{got:?}");
        assert!(!secrets.iter().any(|secret| got.text().contains(secret)), "{got:?}");
    }
}

#[test]
fn registry_that_hides_a_repository_ends_the_offline_permission() {
    let private = Private::start();
    let registry = &private.registry;
    let larder = Larder::start_with(registry, client);
    let target = manifest(THEIRS, "v1");
    assert_eq!(status(&larder, &target, "bob", "hidden"), 200);
    registry.require_accounts(&[Account::new("bob", "hidden", &[])], 404);
    registry.expect_unknown("*");
    larder.advance(seconds(3600));
    assert_eq!(status(&larder, &target, "bob", "hidden"), 404);
    registry.stop();
    larder.advance(seconds(3600));
    assert_eq!(status(&larder, &target, "bob", "hidden"), 503);
}

#[test]
fn wrong_login_is_sent_once_whether_the_repository_is_cached_or_not() {
    let private = Private::start();
    let larder = Larder::start_with(&private.registry, client);
    assert_eq!(status(&larder, &manifest(OURS, "v1"), "ann", "secret"), 200);
    for (repository, target) in [
        (OURS, manifest(OURS, "other")),
        (OURS, format!("/v2/{OURS}/tags/list")),
        (THEIRS, manifest(THEIRS, "v1")),
        (THEIRS, format!("/v2/{THEIRS}/tags/list")),
    ] {
        private.registry.clear_requests();
        assert_eq!(status(&larder, &target, "mallory", &target), 401, "{target}");
        let with_login = private.registry.requests();
        let with_login = with_login.iter().filter(|it| it.header("authorization").is_some());
        assert_eq!(with_login.count(), 1, "{repository} {target}");
    }
}

/// A registry with the private repository [`OURS`], and an open one of an attacker, whose manifest names a private layer.
fn one_registry() -> (FakeRegistry, Image) {
    let registry = FakeRegistry::start();
    let image = Image::new("ours").layer(bytes(50_000, 6));
    registry.add(OURS, "v1", &image);
    forge(&registry, &image);
    registry.expect_unknown(&blob("evil/app", &image.layers()[0].digest));
    (registry, image)
}

#[test]
fn download_of_a_private_blob_is_not_joined_before_its_response() {
    let (registry, image) = one_registry();
    let (layer, gate) = (&image.layers()[0], Gate::new());
    let target = blob(OURS, &layer.digest);
    registry.fault(On::path("GET", &target), Fault::Gate(gate.clone()));
    let larder = Larder::start_with(&registry, client_for_ours);
    let mut ann = Connection::open(larder.address());
    ann.send("GET", &target, &[("Authorization", &authorization("ann", "secret"))]);
    gate.wait_until_reached(1);
    assert_eq!(larder.get(&manifest("evil/app", "v1")).status, 200);
    assert_eq!(larder.get(&blob("evil/app", &layer.digest)).status, 404);
    gate.open();
    assert!(ann.read_response().body == layer.bytes);
    assert_eq!(larder.get(&blob("evil/app", &layer.digest)).status, 404);
}

#[test]
fn complete_download_of_a_private_blob_without_its_name_is_private() {
    let (registry, image) = one_registry();
    let layer = &image.layers()[0];
    let target = blob(OURS, &layer.digest);
    registry.fault(On::path("GET", &target).times(1), Fault::CutAfter(layer.bytes.len() - 1));
    let mut larder = Larder::start_with(&registry, client_for_ours);
    let cut = get(&larder, &target, "ann", "secret");
    assert!(cut.status != 200 || !cut.complete, "{cut:?}");
    larder.wait_until_published();
    larder.stop();
    // As after a kill between the last byte and the commit.
    let [partial] = &larder.partials()[..] else { panic!("one partial") };
    let mut file = OpenOptions::new().append(true).open(partial).expect("the partial");
    file.write_all(&layer.bytes[layer.bytes.len() - 1..]).expect("the last byte");
    larder.run();
    assert_eq!(larder.get(&manifest("evil/app", "v1")).status, 200);
    assert_eq!(larder.get(&blob("evil/app", &layer.digest)).status, 404);
    assert!(get(&larder, &target, "ann", "secret").body == layer.bytes);
}
