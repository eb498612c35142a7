//! TLS to registries: configured authorities and client certificates, which apply to their registry only.
//!
//! Covers the permutations of the reference server: HTTPS with a given CA, mTLS with a given CA, mTLS unverified.

use std::fs;
use std::path::PathBuf;

use larder::certificates::IdentityFiles;
use larder::upstream::TlsSettings;

use crate::support::larder::{Settings, blob, manifest};
use crate::support::{FakeRegistry, Fault, Larder, On, self_signed};

const REPOSITORY: &str = "team/app";

/// A directory with the authority of the registry and a client certificate.
struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    fn of(registry: &FakeRegistry) -> Files {
        let files = Files { directory: tempfile::tempdir().expect("a directory") };
        files.put("ca.pem", &registry.ca_pem());
        files
    }

    fn put(&self, name: &str, content: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, content).expect("a file");
        path
    }

    fn ca(&self) -> Option<PathBuf> {
        Some(self.directory.path().join("ca.pem"))
    }

    fn identity(&self, registry: &FakeRegistry) -> Option<IdentityFiles> {
        let identity = registry.client_identity("larder");
        let cert = self.put("cert.pem", &identity.certificate_pem);
        let key = self.put("key.pem", &identity.key_pem);
        Some(IdentityFiles { cert, key })
    }
}

fn set(tls: TlsSettings) -> impl FnOnce(&mut Settings) {
    move |settings| settings.upstream.registries[0].endpoints[0].tls = tls
}

#[test]
fn registry_of_the_configured_authority_is_trusted() {
    let registry = FakeRegistry::start_tls();
    let image = registry.add_sample(REPOSITORY);
    let files = Files::of(&registry);
    let larder = Larder::start_with(
        &registry,
        set(TlsSettings { ca: files.ca(), ..TlsSettings::default() }),
    );
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    assert!(got.body == image.manifest(), "{got:?}");
}

#[test]
fn registry_of_another_authority_is_not_trusted() {
    let (registry, other) = (FakeRegistry::start_tls(), FakeRegistry::start_tls());
    registry.add_sample(REPOSITORY);
    let files = Files::of(&other);
    let larder = Larder::start_with(
        &registry,
        set(TlsSettings { ca: files.ca(), ..TlsSettings::default() }),
    );
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    assert!(got.status == 502 && got.text().contains("TLS"), "{got:?}");
    assert!(registry.requests().is_empty());
}

#[test]
fn client_certificate_is_accepted_by_a_registry_that_requires_one() {
    for insecure_skip_verify in [false, true] {
        let registry = FakeRegistry::start_mtls();
        let image = registry.add_sample(REPOSITORY);
        let files = Files::of(&registry);
        let ca = files.ca().filter(|_| !insecure_skip_verify);
        let without =
            TlsSettings { ca: ca.clone(), insecure_skip_verify, ..TlsSettings::default() };
        let larder = Larder::start_with(&registry, set(without));
        let got = larder.get(&manifest(REPOSITORY, "v1"));
        assert!(got.status >= 500, "no certificate: {got:?}");
        drop(larder);
        let identity = files.identity(&registry);
        let larder = Larder::start_with(
            &registry,
            set(TlsSettings { ca, identity, insecure_skip_verify, ..TlsSettings::default() }),
        );
        let got = larder.get(&manifest(REPOSITORY, "v1"));
        assert!(got.body == image.manifest(), "{got:?}");
        for layer in image.layers() {
            assert!(larder.get(&blob(REPOSITORY, &layer.digest)).body == layer.bytes);
        }
    }
}

fn trusting(ca_pem: &str) -> (Files, TlsSettings) {
    let files = Files { directory: tempfile::tempdir().expect("a directory") };
    files.put("ca.pem", ca_pem);
    let tls = TlsSettings { ca: files.ca(), ..TlsSettings::default() };
    (files, tls)
}

#[test]
fn certificate_may_be_for_a_name_that_is_not_in_the_url() {
    let identity = self_signed(&["peers.test"]);
    let pem = format!("{}{}", identity.certificate_pem, identity.key_pem);
    let registry = FakeRegistry::start_with_certificate(&pem);
    let image = registry.add_sample(REPOSITORY);
    let (_files, tls) = trusting(&identity.certificate_pem);
    let named = |name: &str| TlsSettings { server_name: Some(name.into()), ..tls.clone() };
    let larder = Larder::start_with(&registry, set(named("peers.test")));
    assert!(larder.get(&manifest(REPOSITORY, "v1")).body == image.manifest());
    let larder = Larder::start_with(&registry, set(named("others.test")));
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 502);
}

#[test]
fn self_signed_certificate_given_as_authority_is_trusted_for_its_names() {
    let identity = self_signed(&["127.0.0.1", "localhost"]);
    let pem = format!("{}{}", identity.certificate_pem, identity.key_pem);
    let registry = FakeRegistry::start_with_certificate(&pem);
    let image = registry.add_sample(REPOSITORY);
    let (_files, tls) = trusting(&identity.certificate_pem);
    let larder = Larder::start_with(&registry, set(tls));
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    assert!(got.body == image.manifest(), "{got:?}");

    // Another certificate for the same names, and one for another name.
    let (_files, tls) = trusting(&self_signed(&["127.0.0.1"]).certificate_pem);
    let larder = Larder::start_with(&registry, set(tls));
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 502);
    let elsewhere = self_signed(&["reg.corp"]);
    let pem = format!("{}{}", elsewhere.certificate_pem, elsewhere.key_pem);
    let registry = FakeRegistry::start_with_certificate(&pem);
    let (_files, tls) = trusting(&elsewhere.certificate_pem);
    let larder = Larder::start_with(&registry, set(tls));
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    assert!(got.status == 502 && got.text().contains("subjectAltName"), "{got:?}");
}

#[test]
fn self_signed_certificate_that_is_not_configured_is_refused_with_the_remedy() {
    let identity = self_signed(&["127.0.0.1", "localhost"]);
    let pem = format!("{}{}", identity.certificate_pem, identity.key_pem);
    let registry = FakeRegistry::start_with_certificate(&pem);
    registry.add_sample(REPOSITORY);
    let (_files, of_another) = trusting(&self_signed(&["127.0.0.1"]).certificate_pem);
    for tls in [TlsSettings::default(), of_another] {
        let larder = Larder::start_with(&registry, set(tls));
        let got = larder.get(&manifest(REPOSITORY, "v1"));
        assert!(got.status == 502 && got.text().contains("self-signed"), "{got:?}");
        assert!(got.text().contains("tls.ca"), "the remedy: {got:?}");
        assert!(!got.text().contains("CaUsedAsEndEntity"), "{got:?}");
    }
    assert!(registry.requests().is_empty());
}

#[test]
fn chains_with_p_521_and_sha_512_are_trusted() {
    let p521 = include_str!("support/certificates/p521-authority.pem");
    let p384 = include_str!("support/certificates/p384-sha512-authority.pem");
    for (name, registry, ca) in [
        (
            "an authority with P-521",
            FakeRegistry::start_with_certificate(include_str!(
                "support/certificates/p521-authority-p256-server.pem"
            )),
            p521,
        ),
        (
            "an authority with P-384 and SHA-512",
            FakeRegistry::start_with_certificate(include_str!(
                "support/certificates/p384-sha512-server.pem"
            )),
            p384,
        ),
        ("a server with P-521", FakeRegistry::start_p521(), p521),
    ] {
        let image = registry.add_sample(REPOSITORY);
        let (_files, tls) = trusting(ca);
        let larder = Larder::start_with(&registry, set(tls));
        let got = larder.get(&manifest(REPOSITORY, "v1"));
        assert!(got.body == image.manifest(), "{name}: {got:?}");
        let (_files, tls) = trusting(if ca == p521 { p384 } else { p521 });
        let larder = Larder::start_with(&registry, set(tls));
        assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 502, "{name}");
    }
}

#[test]
fn authority_applies_to_redirects_and_the_client_certificate_does_not() {
    let registry = FakeRegistry::start_mtls();
    let image = registry.add_sample(REPOSITORY);
    let layer = &image.layers()[0];
    let files = Files::of(&registry);
    // Another server that requires a certificate. Larder's must not be sent to it.
    let other = FakeRegistry::start_mtls();
    other.add_file("/store/layer", "application/octet-stream", &layer.bytes);
    let both = format!("{}{}", registry.ca_pem(), other.ca_pem());
    files.put("ca.pem", &both);
    registry.fault(On::get_blob(&layer.digest), Fault::redirect_to(&other.url("/store/layer")));
    let identity = files.identity(&registry);
    let larder = Larder::start_with(
        &registry,
        set(TlsSettings { ca: files.ca(), identity, ..TlsSettings::default() }),
    );
    let got = larder.get(&blob(REPOSITORY, &layer.digest));
    assert!(matches!(got.status, 502 | 503), "{got:?}");
    assert!(other.requests().is_empty(), "{:?}", other.requests());

    let plain = FakeRegistry::start_tls();
    plain.add_file("/store/layer", "application/octet-stream", &layer.bytes);
    drop(larder);
    files.put("ca.pem", &format!("{both}{}", plain.ca_pem()));
    registry.clear_faults();
    registry.fault(On::get_blob(&layer.digest), Fault::redirect_to(&plain.url("/store/layer")));
    let identity = files.identity(&registry);
    let larder = Larder::start_with(
        &registry,
        set(TlsSettings { ca: files.ca(), identity, ..TlsSettings::default() }),
    );
    let got = larder.get(&blob(REPOSITORY, &layer.digest));
    assert!(got.body == layer.bytes, "the private authority applies to redirects: {got:?}");
}
