//! Content that does not match its digest is neither kept nor ever looks complete, and damaged files are fetched again.
//!
//! Proves protocol 4.6, 5.1, 9.2, 12.2, 12.4, 13.1 (without the kill), 13.2 and 13.3 (docs/protocol.md).

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::larder::{blob, manifest, seconds, until};
use crate::support::{
    Blob, FakeRegistry, Fault, Gate, Image, Larder, On, bytes, digest_of, media_type, sha512_of,
};

const REPOSITORY: &str = "team/app";

#[test]
fn content_is_published_only_when_complete_and_verified() {
    let registry = FakeRegistry::start();
    let digest = registry.add_blob(REPOSITORY, &bytes(100_000, 1));
    let gate = Gate::new();
    registry.fault(On::get_blob(&digest), Fault::GateAfter(99_999, gate.clone()));
    let larder = Larder::start(&registry);
    let mut client = larder.begin(&blob(REPOSITORY, &digest));
    client.read_head();
    client.read_body(90_000);
    gate.wait_until_reached(1);
    assert_eq!((larder.names(), larder.partials().len()), (vec![], 1));
    gate.open();
    assert!(client.read_to_end().1);
    larder.wait_until_cached(&digest);
    assert_eq!(larder.names(), [larder.blob_file(&digest)]);
    assert!(larder.partials().is_empty());
}

#[test]
fn wrong_blob_never_looks_complete_and_the_retry_starts_over() {
    let chunked = |fault| Fault::All(vec![fault, Fault::NoContentLength]);
    let to_the_end = |fault| Fault::All(vec![fault, Fault::CloseDelimited]);
    for (name, fault) in [
        ("a flipped bit", Fault::WrongBytes),
        ("too short, and the length says so", Fault::Truncate(50_000)),
        ("too long, and the length says so", Fault::TooLong(10)),
        ("a flipped bit in chunks", chunked(Fault::WrongBytes)),
        ("chunks that end early", chunked(Fault::Truncate(50_000))),
        ("chunks that end in the middle", chunked(Fault::CutAfter(50_000))),
        ("no length and too short", to_the_end(Fault::Truncate(50_000))),
        ("no length and a flipped bit", to_the_end(Fault::WrongBytes)),
        ("a login page", Fault::Html200),
        ("cut off", Fault::CutAfter(99_999)),
    ] {
        for digest_of in [digest_of, sha512_of] {
            let registry = FakeRegistry::start();
            let content = bytes(100_000, 1);
            let digest = digest_of(&content);
            registry.add_blob_as(REPOSITORY, &digest, &content);
            registry.fault(On::get_blob(&digest), fault.clone());
            let mut larder = Larder::start(&registry);
            let path = blob(REPOSITORY, &digest);
            let got = larder.get(&path);
            let looks_right = got.complete && matches!(got.status, 200 | 206 | 304);
            assert!(!looks_right, "{name}: {got:?}");
            assert_eq!(larder.names(), Vec::<PathBuf>::new(), "{name}");
            // An interrupted download is resumed. A complete but wrong one is restarted once without a client.
            let is_broken_off = name == "cut off" || name == "chunks that end in the middle";
            if !is_broken_off && name != "a login page" {
                registry.wait_for("GET", &path, 2);
                let has_ended = || larder.cache().load().blobs == 0 && larder.partials().is_empty();
                until("the end of the second attempt", has_ended);
            }
            registry.clear_faults();
            registry.clear_requests();
            larder.restart();
            let again = larder.get(&path);
            assert!(again.complete && again.body == content, "{name}: {again:?}");
            let asked = registry.requests();
            let range = asked[0].header("range").map(str::to_owned);
            assert_eq!(range.is_some(), is_broken_off, "{name}: {range:?}");
        }
    }
}

#[test]
fn followers_do_not_get_the_last_byte_of_a_wrong_blob() {
    let registry = FakeRegistry::start();
    let digest = registry.add_blob(REPOSITORY, &bytes(100_000, 1));
    let gate = Gate::new();
    let wrong = vec![Fault::WrongBytes, Fault::GateAfter(50_000, gate.clone())];
    registry.fault(On::get_blob(&digest), Fault::All(wrong));
    let larder = Larder::start(&registry);
    let path = blob(REPOSITORY, &digest);
    let mut clients: Vec<_> = (0..10).map(|_| larder.begin(&path)).collect();
    let mut end = larder.connect();
    end.send("GET", &path, &[("Range", "bytes=-1")]);
    clients.push(end);
    for client in &mut clients {
        client.read_head();
    }
    gate.open();
    for client in &mut clients {
        assert!(!client.read_to_end().1);
    }
}

#[test]
fn wrong_size_in_a_manifest_does_not_invalidate_the_blob() {
    let (registry, content, digest) = FakeRegistry::with_blob(REPOSITORY, 5000);
    let lie = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"digest":"{digest}","size":4}},"layers":[]}}"#,
        media_type::OCI_MANIFEST
    );
    registry.add_manifest(REPOSITORY, "lie", media_type::OCI_MANIFEST, lie.as_bytes());
    let larder = Larder::start(&registry);
    assert_eq!(larder.get(&manifest(REPOSITORY, "lie")).status, 200);
    let got = larder.get(&blob(REPOSITORY, &digest));
    assert!(got.complete && got.body == content, "{got:?}");
}

#[test]
fn wrong_manifest_is_refused_and_the_retry_succeeds() {
    for (name, by_digest, fault) in [
        ("a flipped bit, by tag", false, Fault::WrongBytes),
        ("a flipped bit, by digest", true, Fault::WrongBytes),
        ("cut short, by digest", true, Fault::Truncate(100)),
        ("cut off, by tag", false, Fault::CutAfter(100)),
        ("the digest of something else, by tag", false, Fault::WrongDigestHeader),
        ("a login page, by tag", false, Fault::Html200),
        ("a login page, by digest", true, Fault::Html200),
        ("an unrequested encoding", false, Fault::ContentEncoding("gzip".into())),
    ] {
        let (registry, image) = FakeRegistry::with_image(REPOSITORY);
        let digest = image.digest();
        registry.fault(On::any_manifest(), fault);
        let larder = Larder::start(&registry);
        let path = manifest(REPOSITORY, if by_digest { &digest } else { "v1" });
        let got = larder.get(&path);
        assert_eq!((got.status, got.complete), (502, true), "{name}: {got:?}");
        assert!(larder.names().is_empty(), "{name}");
        registry.clear_faults();
        larder.advance(seconds(60));
        assert!(larder.get(&path).body == image.manifest(), "{name}");
    }
}

#[test]
fn page_in_place_of_a_manifest_is_never_cached() {
    for (claimed, body) in [
        ("text/html", "<!doctype html>"),
        (media_type::OCI_MANIFEST, "<!doctype html>"),
        (media_type::OCI_MANIFEST, ""),
        (media_type::OCI_MANIFEST, "null"),
        (media_type::OCI_MANIFEST, "[]"),
        ("application/json", "{}"),
        ("application/json", r#"{"errors":[{"code":"DENIED"}]}"#),
        (media_type::SCHEMA1, r#"{"schemaVersion":1,"name":"x","tag":"y"}"#),
        (media_type::OCI_MANIFEST, r#"{"schemaVersion":1,"name":"x","tag":"y"}"#),
    ] {
        let registry = FakeRegistry::start();
        let digest = registry.add_manifest(REPOSITORY, "v1", claimed, body.as_bytes());
        let larder = Larder::start(&registry);
        for reference in ["v1", &digest] {
            let got = larder.get(&manifest(REPOSITORY, reference));
            assert!(matches!(got.status, 404 | 502), "{claimed} {body:?}: {got:?}");
            assert_eq!(got.header("content-type"), Some("application/json"));
        }
        assert!(larder.names().is_empty(), "{claimed} {body:?}");
    }
}

#[test]
fn manifests_above_four_mebibytes_are_refused() {
    for (padding, status) in [(4 * 1024 * 1024 - 4096, 200), (4 * 1024 * 1024 + 1, 502)] {
        let registry = FakeRegistry::start();
        let image = Image::sample("v1").annotation("padding", &"x".repeat(padding));
        registry.add(REPOSITORY, "v1", &image);
        let larder = Larder::start(&registry);
        let got = larder.get(&manifest(REPOSITORY, "v1"));
        assert_eq!(got.status, status, "{padding}: {got:?}");
        assert_eq!(larder.names().is_empty(), status == 502);
    }
}

#[test]
fn compressed_blob_is_refused_and_identity_encoding_requested() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let layer = &image.layers()[0];
    registry.fault(On::get_blob(&layer.digest), Fault::ContentEncoding("gzip".into()));
    let larder = Larder::start(&registry);
    let headers = [("Accept-Encoding", "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5")];
    let ask = |path: &str| larder.request("GET", path, &headers);
    let got = ask(&manifest(REPOSITORY, "v1"));
    assert_eq!((got.status, got.header("content-encoding")), (200, None));
    let refused = ask(&blob(REPOSITORY, &layer.digest));
    assert!(matches!(refused.status, 502..=504), "{refused:?}");
    registry.clear_faults();
    let got = ask(&blob(REPOSITORY, &layer.digest));
    assert_eq!((got.status, got.header("content-encoding")), (200, None));
    assert!(got.body == layer.bytes);
    for request in registry.requests() {
        assert_eq!(request.headers_named("accept-encoding"), ["identity"], "{request:?}");
    }
}

#[test]
fn blob_is_an_octet_stream_whatever_type_upstream_sends() {
    for called in ["application/gzip", "text/plain", "nonsense"] {
        let (registry, content, digest) = FakeRegistry::with_blob(REPOSITORY, 5000);
        registry.fault(On::any_blob(), Fault::content_type(called));
        let larder = Larder::start(&registry);
        for _ in 0..2 {
            let got = larder.get(&blob(REPOSITORY, &digest));
            assert!(got.status == 200 && got.body == content, "{called}");
            assert_eq!(got.header("content-type"), Some("application/octet-stream"), "{called}");
        }
    }
}

/// Damage to a file in the cache that the server does not notice.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Removed,
    Emptied,
    Truncated,
    Grown,
    FlippedBit,
}

/// The kinds of damage that change the length.
const DAMAGES: [Damage; 4] = [Damage::Removed, Damage::Emptied, Damage::Truncated, Damage::Grown];

impl Damage {
    fn to(self, path: &Path) {
        let mut bytes = fs::read(path).expect("an existing file");
        match self {
            Damage::Removed => return fs::remove_file(path).expect("it can be removed"),
            Damage::Emptied => bytes.clear(),
            Damage::Truncated => bytes.truncate(bytes.len() / 2),
            Damage::Grown => bytes.push(b'x'),
            Damage::FlippedBit => bytes[10] ^= 1,
        }
        fs::write(path, bytes).expect("it can be written");
    }
}

#[test]
fn damaged_blob_file_is_fetched_again() {
    for damage in DAMAGES {
        let (registry, image) = FakeRegistry::with_image(REPOSITORY);
        let layer = &image.layers()[0];
        let path = blob(REPOSITORY, &layer.digest);
        // A prefetch that runs late would serve the file that is damaged here.
        let larder =
            Larder::start_with(&registry, |settings| settings.cache.prefetch.blobs = false);
        let pull = || {
            assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
            larder.get(&path)
        };
        assert!(pull().body == layer.bytes);
        larder.wait_until_cached(&layer.digest);
        damage.to(&larder.blob_file(&layer.digest));
        let got = pull();
        assert!(got.complete && got.body == layer.bytes, "{damage:?}: {got:?}");
        assert_eq!(registry.count("GET", &path), 2, "{damage:?}");
    }
}

/// A server that was restarted after damage to a cached layer: with its registry, the layer and its path.
fn restarted_after(damage: Damage) -> (FakeRegistry, Larder, Blob, String) {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let layer = image.layers().remove(0);
    let path = blob(REPOSITORY, &layer.digest);
    let mut larder = Larder::start(&registry);
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    assert!(larder.get(&path).body == layer.bytes);
    larder.wait_until_cached(&layer.digest);
    larder.stop();
    damage.to(&larder.blob_file(&layer.digest));
    larder.run();
    (registry, larder, layer, path)
}

#[test]
fn blob_file_damaged_while_the_server_was_down_is_fetched_again() {
    for damage in DAMAGES {
        let (registry, larder, layer, path) = restarted_after(damage);
        // As every client does, and as they all did before the power failure.
        assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
        let got = larder.get(&path);
        assert!(got.complete && got.body == layer.bytes, "{damage:?}: {got:?}");
        assert_eq!(registry.count("GET", &path), 2, "{damage:?}");
    }
}

#[test]
fn truncated_blob_file_is_fetched_again_without_its_manifest() {
    let (_registry, larder, layer, path) = restarted_after(Damage::Truncated);
    let got = larder.get(&path);
    assert!(got.complete && got.body == layer.bytes, "{got:?}");
}

/// Pulls by tag and by digest, each time after damaging the manifest file.
fn damage_manifest(damage: Damage) {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let digest = image.digest();
    let larder = Larder::start(&registry);
    for reference in ["v1", &digest] {
        let path = manifest(REPOSITORY, reference);
        assert_eq!(larder.get(&path).digest(), digest);
        damage.to(&larder.blob_file(&digest));
        // The server trusts its memory for a moment.
        larder.advance(seconds(2));
        let got = larder.get(&path);
        assert_eq!((got.status, got.digest()), (200, digest.clone()), "{damage:?} {reference}");
        let file = fs::read(larder.blob_file(&digest)).unwrap_or_default();
        assert!(file == image.manifest(), "{damage:?} {reference}: the file is not repaired");
    }
}

#[test]
fn damaged_manifest_file_is_fetched_again() {
    DAMAGES.into_iter().for_each(damage_manifest);
}

#[test]
fn manifest_file_with_a_flipped_bit_is_fetched_again_and_repaired() {
    damage_manifest(Damage::FlippedBit);
}

#[test]
fn damaged_tag_or_manifest_record_is_rewritten() {
    for damage in ["", "{", "null", r#"{"digest":"sha256:00"}"#] {
        let (registry, image) = FakeRegistry::with_image(REPOSITORY);
        let digest = image.digest();
        let larder = Larder::start(&registry);
        for reference in ["v1", &digest] {
            let path = manifest(REPOSITORY, reference);
            assert_eq!(larder.get(&path).digest(), digest);
            for record in
                larder.names().iter().filter(|path| path.starts_with(larder.root().join("refs")))
            {
                fs::write(record, damage).expect("it can be written");
            }
            larder.advance(seconds(2));
            assert_eq!(larder.get(&path).digest(), digest, "{damage:?} {reference}");
        }
    }
}
