//! What a complete image consists of, for every kind of image that registries serve.
//!
//! Windows base images have layers that registries may not distribute. Children of an index may have no platform, or
//! be indexes or attestations themselves. Manifests that Go clients accept are accepted.

use serde_json::{Value, json};

use crate::support::bundle::{Site, blobs_in};
use crate::support::larder::{blob, manifest, seconds};
use crate::support::{FakeRegistry, Larder, absent_digest, bytes, digest_of, media_type};

const REPOSITORY: &str = "team/app";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A registry and the manifests that a test adds to it.
struct Shelf(FakeRegistry);

impl Shelf {
    fn new() -> Shelf {
        Shelf(FakeRegistry::start())
    }

    fn blob(&self, media_type: &str, content: &[u8]) -> Value {
        let digest = self.0.add_blob(REPOSITORY, content);
        json!({"mediaType": media_type, "digest": digest, "size": content.len()})
    }

    /// An image with a layer of its own and the given additional layers.
    fn image(&self, label: &str, extra: &[Value]) -> Value {
        let config = json!({"architecture": "amd64", "os": "linux", "label": label}).to_string();
        let config = self.blob(media_type::OCI_CONFIG, config.as_bytes());
        let mut layers = vec![self.blob(LAYER, format!("layer of {label}").as_bytes())];
        layers.extend_from_slice(extra);
        let image = json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
                           "config": config, "layers": layers});
        self.manifest(media_type::OCI_MANIFEST, &image.to_string())
    }

    fn index(&self, children: &[&Value]) -> Value {
        let index =
            json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": children});
        self.manifest(media_type::OCI_INDEX, &index.to_string())
    }

    fn manifest(&self, media_type: &str, text: &str) -> Value {
        let tag = format!("untagged-{}", text.len());
        let digest = self.0.add_manifest(REPOSITORY, &tag, media_type, text.as_bytes());
        self.0.remove_tag(REPOSITORY, &tag);
        json!({"mediaType": media_type, "digest": digest, "size": text.len()})
    }

    fn tag(&self, tag: &str, manifest: &Value) {
        self.0.tag(REPOSITORY, tag, digest(manifest));
    }

    fn has_asked_for(&self, digest: &str) -> bool {
        self.0.requests().iter().any(|request| request.path.contains(digest))
    }

    /// A cache for commands, with this registry only.
    fn site(&self) -> Commands {
        let site = Site::new();
        let registry = format!("{{name: \"{}\", scheme: http}}", self.0.host());
        site.write("larder.yaml", format!("fsync: false\nregistries: [{registry}]\n").as_bytes());
        Commands(site)
    }

    fn name(&self, tag: &str) -> String {
        format!("{}/{REPOSITORY}:{tag}", self.0.host())
    }
}

/// Commands on one cache.
struct Commands(Site);

impl Commands {
    #[track_caller]
    fn run(&self, words: &[&str]) -> String {
        let done = self.0.larder(words).succeeds();
        String::from_utf8(done.stdout).expect("it speaks UTF-8") + &done.message
    }

    fn has(&self, descriptor: &Value) -> bool {
        self.0.has(digest(descriptor))
    }
}

fn digest(descriptor: &Value) -> &str {
    descriptor["digest"].as_str().expect("a descriptor has one")
}

fn with(mut descriptor: Value, member: &str, value: Value) -> Value {
    descriptor[member] = value;
    descriptor
}

fn on(descriptor: Value, os: &str, architecture: &str) -> Value {
    with(descriptor, "platform", json!({"os": os, "architecture": architecture}))
}

fn attestation_of(image: &Value, descriptor: Value) -> Value {
    let annotations = json!({"vnd.docker.reference.type": "attestation-manifest",
                             "vnd.docker.reference.digest": digest(image)});
    with(on(descriptor, "unknown", "unknown"), "annotations", annotations)
}

/// Layers that the registry does not serve, in every form.
fn foreign_layers() -> Vec<Value> {
    let urls = json!(["http://127.0.0.1:1/never-asked"]);
    [
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Some(urls.clone())),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Some(urls.clone())),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", None),
        (LAYER, Some(urls)),
    ]
    .into_iter()
    .zip(0..)
    .map(|((media_type, urls), n)| {
        let layer = json!({"mediaType": media_type, "digest": absent_digest(n), "size": 2000});
        urls.map_or(layer.clone(), |urls| with(layer, "urls", urls))
    })
    .collect()
}

#[test]
fn foreign_layers_do_not_keep_images_from_loading_exporting_importing_or_being_complete() {
    let shelf = Shelf::new();
    let foreign = foreign_layers();
    shelf.tag("v1", &shelf.image("windows", &foreign));
    let commands = shelf.site();
    let name = shelf.name("v1");
    commands.run(&["load", &name]);
    for layer in &foreign {
        assert!(!shelf.has_asked_for(digest(layer)), "{layer}");
    }
    let listed = commands.run(&["list"]);
    assert!(listed.contains("complete") && !listed.contains("missing"), "{listed}");
    commands.run(&["verify"]);
    let bundle = "b.tar";
    commands.run(&["export", &name, "--output", bundle]);
    let far = Site::new();
    far.import_bytes(&commands.0.read(bundle)).succeeds().says(&["1 image imported"]);
    let listed = far.larder(&["list"]).succeeds().stdout;
    assert!(String::from_utf8_lossy(&listed).contains("complete"));
}

#[test]
fn foreign_layer_is_fetched_for_a_client_and_then_cached() {
    let shelf = Shelf::new();
    let content = bytes(3000, 5);
    let layer = shelf.blob("application/vnd.oci.image.layer.nondistributable.v1.tar", &content);
    let layer = with(layer, "urls", json!(["http://127.0.0.1:1/never-asked"]));
    let image = shelf.image("windows", std::slice::from_ref(&layer));
    shelf.tag("v1", &image);
    let larder = Larder::start(&shelf.0);
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    assert!(larder.get(&blob(REPOSITORY, digest(&layer))).body == content);
    shelf.0.stop();
    larder.advance(seconds(3600));
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    assert!(larder.get(&blob(REPOSITORY, digest(&layer))).body == content);
}

#[test]
fn children_without_a_platform_are_loaded_for_every_platform() {
    let shelf = Shelf::new();
    let chart = with(shelf.image("chart", &[]), "artifactType", json!("a/chart"));
    let bill = with(shelf.image("bill", &[]), "artifactType", json!("a/bom"));
    let (amd, arm) = (shelf.image("amd", &[]), shelf.image("arm", &[]));
    let inner =
        shelf.index(&[&on(amd.clone(), "linux", "amd64"), &on(arm.clone(), "linux", "arm64")]);
    for (tag, top) in [
        ("artifacts", shelf.index(&[&chart, &bill])),
        ("one", shelf.index(&[&chart])),
        ("nested", shelf.index(&[&shelf.index(&[&inner])])),
        ("mixed", shelf.index(&[&on(arm.clone(), "linux", "arm64"), &chart, &inner])),
        ("empty-platform", shelf.index(&[&with(bill.clone(), "platform", json!({}))])),
    ] {
        shelf.tag(tag, &top);
    }
    for (tag, wanted, others) in [
        ("artifacts", vec![&chart, &bill], vec![]),
        ("one", vec![&chart], vec![]),
        ("nested", vec![&amd], vec![&arm]),
        ("mixed", vec![&chart, &amd], vec![&arm]),
        ("empty-platform", vec![&bill], vec![]),
    ] {
        let commands = shelf.site();
        let (name, bundle) = (shelf.name(tag), "b.tar");
        commands.run(&["load", "--platform", "linux/amd64", &name]);
        assert!(wanted.iter().all(|each| commands.has(each)), "{tag}");
        assert!(!others.iter().any(|each| commands.has(each)), "{tag}");
        assert!(commands.run(&["list"]).contains("complete"), "{tag}");
        commands.run(&["export", "--platform", "linux/amd64", &name, "--output", bundle]);
        let carried = blobs_in(&commands.0.read(bundle));
        assert!(wanted.iter().all(|each| carried.contains_key(digest(each))), "{tag}");
    }
}

#[test]
fn missing_platform_is_an_error_that_lists_the_available_ones() {
    let shelf = Shelf::new();
    let inner = shelf.index(&[&on(shelf.image("arm", &[]), "linux", "arm64")]);
    shelf.tag("v1", &shelf.index(&[&inner]));
    let commands = shelf.site();
    let words = ["load", "--platform", "linux/s390x", &shelf.name("v1")];
    commands.0.larder(&words).fails(1, &["none of the requested platforms", "linux/arm64"]);
}

#[test]
fn attestations_are_loaded_with_their_platform() {
    let shelf = Shelf::new();
    let (amd, arm) = (shelf.image("amd", &[]), shelf.image("arm", &[]));
    let of_amd = attestation_of(&amd, shelf.image("attestation of amd", &[]));
    let of_arm = attestation_of(&arm, shelf.image("attestation of arm", &[]));
    let (amd, arm) = (on(amd, "linux", "amd64"), on(arm, "linux", "arm64"));
    shelf.tag("v1", &shelf.index(&[&amd, &arm, &of_arm, &of_amd]));
    let commands = shelf.site();
    let name = shelf.name("v1");
    commands.run(&["load", "--platform", "linux/amd64", &name]);
    assert!(commands.has(&amd) && commands.has(&of_amd));
    assert!(!commands.has(&arm) && !commands.has(&of_arm));
    commands.run(&["load", "--platform", "all", &name]);
    let listed = commands.run(&["list"]);
    assert!(listed.contains("linux/amd64,linux/arm64 ") && !listed.contains("unknown"), "{listed}");
    let bundle = "b.tar";
    commands.run(&["export", "--platform", "linux/arm64", &name, "--output", bundle]);
    let carried = blobs_in(&commands.0.read(bundle));
    for (each, expected) in [(&amd, false), (&of_amd, false), (&arm, true), (&of_arm, true)] {
        assert_eq!(carried.contains_key(digest(each)), expected, "{each}");
    }
}

#[test]
fn manifests_that_go_clients_accept_are_served_and_complete() {
    let shelf = Shelf::new();
    let (config, layer) = (shelf.blob(media_type::OCI_CONFIG, b"{}"), shelf.blob(LAYER, b"layer"));
    let sizeless = with(layer.clone(), "size", json!(-1));
    let head = format!(r#""schemaVersion":2,"mediaType":"{}""#, media_type::OCI_MANIFEST);
    let schema1 = media_type::SCHEMA1;
    for (tag, content_type, text) in [
        (
            "size",
            media_type::OCI_MANIFEST,
            format!(r#"{{{head},"config":{config},"layers":[{sizeless}]}}"#),
        ),
        (
            "twice",
            media_type::OCI_MANIFEST,
            format!(
                r#"{{{head},"schemaVersion":2,"config":{config},"layers":[],"layers":[{layer}]}}"#
            ),
        ),
        (
            "case",
            media_type::OCI_MANIFEST,
            format!(r#"{{{head},"CONFIG":{config},"Layers":[{layer}]}}"#),
        ),
        ("label", schema1, format!(r#"{{{head},"config":{config},"layers":[{layer}]}}"#)),
    ] {
        let served = shelf.manifest(content_type, &text);
        shelf.tag(tag, &served);
        let commands = shelf.site();
        let (name, bundle) = (shelf.name(tag), "b.tar");
        commands.run(&["load", &name]);
        assert!(commands.has(&layer) && commands.has(&served), "{tag}");
        assert!(commands.run(&["list"]).contains("complete"), "{tag}");
        commands.run(&["export", &name, "--output", bundle]);
        Site::new().import_bytes(&commands.0.read(bundle)).succeeds().says(&["1 image imported"]);
        let larder = Larder::start(&shelf.0);
        let got = larder.get(&manifest(REPOSITORY, tag));
        assert!(got.body == text.as_bytes(), "{got:?}");
        assert_eq!(got.header("content-type"), Some(media_type::OCI_MANIFEST), "{tag}");
        assert_eq!(got.header("docker-content-digest"), Some(digest_of(text.as_bytes()).as_str()));
    }
}

#[test]
fn prefetch_skips_foreign_layers_and_follows_attestations() {
    let shelf = Shelf::new();
    let foreign = foreign_layers();
    let amd = shelf.image("windows", &foreign);
    let attestation = attestation_of(&amd, shelf.image("attestation", &[]));
    let other = attestation_of(&json!({"digest": absent_digest(9)}), shelf.image("other", &[]));
    let top = shelf.index(&[&on(amd.clone(), "linux", "amd64"), &attestation, &other]);
    shelf.tag("v1", &top);
    let larder = Larder::start_with(&shelf.0, |settings| {
        settings.cache.prefetch.blobs = true;
        settings.cache.prefetch.platforms =
            larder::oci::Platforms::parse(["linux/amd64"]).expect("a platform");
    });
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    larder.wait_until_cached(&digest_of(b"layer of windows"));
    larder.wait_until_cached(&digest_of(b"layer of attestation"));
    assert!(!shelf.has_asked_for(digest(&other)));
    assert!(foreign.iter().all(|layer| !shelf.has_asked_for(digest(layer))));
}

#[test]
fn index_with_blobs_among_its_children_is_loaded_and_prefetched() {
    let shelf = Shelf::new();
    let (amd, text) =
        (shelf.image("amd", &[]), shelf.blob("text/spdx+json", b"a bill of materials"));
    shelf.tag("v1", &shelf.index(&[&on(amd.clone(), "linux", "amd64"), &text]));
    let commands = shelf.site();
    commands.run(&["load", "--platform", "linux/amd64", &shelf.name("v1")]);
    assert!(commands.has(&amd) && commands.has(&text));
    assert!(commands.run(&["list"]).contains("complete"));
    commands.run(&["export", &shelf.name("v1"), "--output", "b.tar"]);
    assert!(blobs_in(&commands.0.read("b.tar")).contains_key(digest(&text)));
    let larder = Larder::start_with(&shelf.0, |settings| {
        settings.cache.prefetch.blobs = true;
        settings.cache.prefetch.platforms =
            larder::oci::Platforms::parse(["linux/amd64"]).expect("a platform");
    });
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    larder.wait_until_cached(digest(&text));
}

#[test]
fn missing_attestation_does_not_fail_a_load() {
    let shelf = Shelf::new();
    let amd = shelf.image("amd", &[]);
    let lost =
        json!({"mediaType": media_type::OCI_MANIFEST, "digest": absent_digest(3), "size": 400});
    let top = shelf.index(&[&attestation_of(&amd, lost), &on(amd.clone(), "linux", "amd64")]);
    shelf.tag("v1", &top);
    shelf.0.expect_unknown("*");
    let commands = shelf.site();
    commands.run(&["load", "--platform", "linux/amd64", &shelf.name("v1")]);
    assert!(commands.has(&amd) && commands.run(&["list"]).contains("complete"));
}

#[test]
fn windows_images_are_selected_by_platform() {
    let shelf = Shelf::new();
    let (windows, linux) = (shelf.image("windows", &foreign_layers()), shelf.image("linux", &[]));
    let windows = with(
        windows,
        "platform",
        json!({"os": "windows", "architecture": "amd64", "os.version": "10.0.20348.2527"}),
    );
    shelf.tag("v1", &shelf.index(&[&windows, &on(linux.clone(), "linux", "amd64")]));
    let commands = shelf.site();
    let (name, bundle) = (shelf.name("v1"), "b.tar");
    commands.run(&["load", "--platform", "windows/amd64", &name]);
    assert!(commands.has(&windows) && !commands.has(&linux));
    commands.run(&["export", "--platform", "windows/amd64", &name, "--output", bundle]);
    let far = Site::new();
    far.import_bytes(&commands.0.read(bundle))
        .succeeds()
        .says(&["1 image imported", "windows/amd64"]);
}
