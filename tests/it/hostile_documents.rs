//! Malicious manifests, configs and archives: too many descriptors, texts of megabytes, control characters, archives
//! that demand the same work many times.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::time::Duration;

use larder::bundle::{LoadSettings, Manner, Wanted, load};
use larder::oci::Platforms;
use serde_json::{Value, json};

use crate::support::bundle::{self, REF_NAME, Site, Tar};
use crate::support::larder::manifest;
use crate::support::site::{NamedImage, Site as Cache};
use crate::support::{FakeRegistry, Image, Larder, digest_of, media_type};

const REPOSITORY: &str = "team/app";
/// Clears the screen, reverses the following text, forges a line.
const HOSTILE: &str = "\u{1b}[2J\u{202e}\u{2066}\nforged: line\r\u{7}";

fn layers(count: usize) -> Value {
    let layer = json!({"mediaType": "application/vnd.oci.image.layer.v1.tar",
                       "digest": digest_of(b"layer"), "size": 5});
    Value::Array(vec![layer; count])
}

fn image(layers: &Value) -> String {
    let config =
        json!({"mediaType": media_type::OCI_CONFIG, "digest": digest_of(b"{}"), "size": 2});
    json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": layers})
        .to_string()
}

/// Asserts that a text has no characters that terminals or readers interpret.
#[track_caller]
fn is_harmless(text: &str) {
    let is_harmful = |char: char| {
        (char.is_control() && char != '\n') || ('\u{202a}'..='\u{2069}').contains(&char)
    };
    assert!(!text.contains(is_harmful), "{text:?}");
    assert!(!text.lines().any(|line| line.starts_with("forged")), "{text}");
}

#[test]
fn manifest_with_too_many_descriptors_is_refused_from_every_source() {
    let registry = FakeRegistry::start();
    let (most, more) = (image(&layers(4095)), image(&layers(4096)));
    registry.add_manifest(REPOSITORY, "most", media_type::OCI_MANIFEST, most.as_bytes());
    registry.add_manifest(REPOSITORY, "more", media_type::OCI_MANIFEST, more.as_bytes());
    let larder = Larder::start(&registry);
    assert_eq!(larder.get(&manifest(REPOSITORY, "most")).status, 200);
    let got = larder.get(&manifest(REPOSITORY, "more"));
    assert!(got.status == 502 && got.text().contains("4097 descriptors"), "{got:?}");
    let entry = json!({"mediaType": media_type::OCI_MANIFEST, "digest": digest_of(more.as_bytes()),
                       "size": more.len(), "annotations": {REF_NAME: "quay.io/a:1"}});
    let tar = Tar::default()
        .blob(&digest_of(more.as_bytes()), more.as_bytes())
        .file("index.json", &bundle::index_json(&[entry]))
        .end();
    let site = Site::new();
    site.import_bytes(&tar).fails(1, &["quay.io/a:1", "4096 descriptors"]);
    assert!(site.tags().is_empty());
}

#[test]
fn oversized_upstream_texts_reach_neither_client_nor_log() {
    let registry = FakeRegistry::start();
    let long = "x".repeat(3_000_000);
    let cache = Cache::new(&registry, "logLevel: debug");
    for (tag, text) in [
        ("layers", format!(r#"{{"schemaVersion":2,"config":{{}},"layers":"{long}"}}"#)),
        ("size", format!(r#"{{"schemaVersion":2,"config":{{"size":"{long}"}},"layers":[]}}"#)),
        ("version", format!(r#"{{"schemaVersion":"{long}"}}"#)),
        ("nothing", format!(r#""{long}""#)),
    ] {
        registry.add_manifest("library/a", tag, media_type::OCI_MANIFEST, text.as_bytes());
    }
    let server = cache.serve();
    for tag in ["layers", "size", "version", "nothing"] {
        let target = manifest("library/a", tag);
        let got = crate::support::client::get(server.address(), &target);
        assert!(got.status == 502 && got.body.len() < 2_000, "{tag}: {} bytes", got.body.len());
    }
    let log = server.log();
    assert!(log.len() < 50_000 && log.contains("xxx"), "{} bytes", log.len());
}

#[test]
fn control_characters_in_manifests_reach_neither_terminals_nor_the_management_port() {
    let registry = FakeRegistry::start();
    let config = json!({"architecture": "amd64", "os": "linux", "created": HOSTILE}).to_string();
    let layer = registry.add_blob("library/a", b"layer");
    registry.add_blob("library/a", config.as_bytes());
    let image = json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "config": {"mediaType": HOSTILE, "digest": digest_of(config.as_bytes()), "size": config.len()},
        "layers": [{"mediaType": HOSTILE, "digest": layer, "size": 5, "annotations": {"a": HOSTILE}}],
        "annotations": {"org.opencontainers.image.created": HOSTILE}, "artifactType": HOSTILE});
    let image = image.to_string();
    let child =
        registry.add_manifest("library/a", "child", media_type::OCI_MANIFEST, image.as_bytes());
    let platform =
        json!({"os": HOSTILE, "architecture": format!("amd64{HOSTILE}"), "variant": HOSTILE});
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [
        {"mediaType": media_type::OCI_MANIFEST, "digest": child, "size": image.len(), "platform": platform}]});
    registry.add_manifest("library/a", "v1", media_type::OCI_INDEX, index.to_string().as_bytes());
    let cache = Cache::new(&registry, "");
    for words in [
        &["load", "a:v1"][..],
        &["load", "--platform", "linux/s390x", "a:v1"],
        &["list"],
        &["list", "--tree"],
        &["list", "--json"],
        &["verify"],
        &["export", "a:v1", "--platform", "linux/s390x", "--dry-run"],
        &["export", "a:v1", "--dry-run"],
        &["prune", "*", "--dry-run"],
    ] {
        let (_, stdout, stderr) = cache.run(words);
        is_harmless(&stdout);
        is_harmless(&stderr);
        let is_listed = words == ["list"] && stdout.contains("a:v1");
        assert!(is_listed || words != ["list"], "{stdout}");
    }
    let server = cache.serve();
    server.wait_for_images(1);
    for target in ["/api/v1/images", "/api/v1/image?image=a:v1", "/api/v1/blobs"] {
        let text = server.get(target).text();
        is_harmless(&text);
        assert!(text.contains("digest") && !text.contains(r"\u001b"), "{target}: {text}");
    }
    is_harmless(&server.log());
}

#[test]
fn names_and_paths_in_archives_are_escaped() {
    let name = format!("quay.io/a{HOSTILE}:1");
    let image = Image::sample("v1");
    let saved = json!([{"Config": HOSTILE, "RepoTags": [name], "Layers": [HOSTILE]}]);
    let long = format!("{}{}", HOSTILE, "x".repeat(40_000));
    for (what, tar) in [
        ("a name in an index", bundle::layout(REF_NAME, &[(&name, &image)])),
        ("a saved image", Tar::default().file("manifest.json", saved.to_string().as_bytes()).end()),
        ("a path that leads out", Tar::default().file(&format!("../{HOSTILE}"), b"x").end()),
        ("an end in the middle", {
            let mut tar = Tar::default().file(HOSTILE, b"x").file("y", &[0; 5000]).end();
            tar.truncate(3000);
            tar
        }),
        (
            "an index that is none",
            Tar::default()
                .file("index.json", json!({ "manifests": long }).to_string().as_bytes())
                .end(),
        ),
        ("a digest that is none", {
            let entry = json!({"digest": long, "size": 1, "mediaType": long});
            Tar::default().file("index.json", &bundle::index_json(&[entry])).end()
        }),
    ] {
        let site = Site::new();
        let done = site.import_bytes(&tar);
        let message = String::from_utf8_lossy(&done.stdout) + &*done.message;
        assert!(done.code == Some(1) && message.len() < 3_000, "{what}: {message}");
        is_harmless(&message);
    }
}

/// A layer of megabytes compressed to kilobytes, shared by thousands of images.
fn shared_layer_archive(images: usize) -> Vec<u8> {
    let content = vec![0; 2_000_000];
    let layer = {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        packed.write_all(&content).expect("memory takes it");
        packed.finish().expect("memory takes it")
    };
    let config =
        json!({"rootfs": {"type": "layers", "diff_ids": [digest_of(&content)]}}).to_string();
    let path = format!("{}.json", digest_of(config.as_bytes()).replace("sha256:", ""));
    let saved: Vec<Value> = (0..images)
        .map(|n| json!({"Config": path, "RepoTags": [format!("quay.io/a/b{n}:1")], "Layers": ["l/layer.tar"]}))
        .collect();
    Tar::default()
        .file("l/layer.tar", &layer)
        .file(&path, config.as_bytes())
        .file("manifest.json", json!(saved).to_string().as_bytes())
        .end()
}

#[test]
fn archive_of_many_images_that_share_a_layer_is_imported() {
    let site = Site::new();
    site.import_bytes(&shared_layer_archive(500)).succeeds().says(&["500 images imported"]);
    assert_eq!((site.tags().len(), site.manifests().len()), (500, 500));
}

#[test]
fn export_follows_no_planted_symbolic_link() {
    let registry = FakeRegistry::start();
    let image = Image::sample("v1");
    let named = NamedImage::new("a", "v1", &image);
    named.publish(&registry);
    let cache = Cache::new(&registry, "");
    cache.run_ok(&["load", "a:v1"]);
    let victim = cache.path("victim");
    for (output, planted, extra) in [
        ("b.tar", "b.tar.part", &[][..]),
        ("c.tar", "c.tar.001.part", &["--volume-size", "4kB"]),
        ("d/", "d/oci-layout.part", &[]),
    ] {
        fs::write(&victim, "untouched").expect("a file can be written");
        let planted = cache.path(planted);
        fs::create_dir_all(planted.parent().expect("a file is in a directory"))
            .expect("a directory");
        symlink(&victim, &planted).expect("a link can be made");
        let path = format!(
            "{}{}",
            cache.path(output).display(),
            if output.ends_with('/') { "/" } else { "" }
        );
        cache.run_ok(&[&["export", "a:v1", "--output", &path], extra].concat());
        assert_eq!(fs::read_to_string(&victim).expect("an existing file"), "untouched", "{output}");
        assert!(fs::symlink_metadata(&planted).is_err(), "{output}: nothing unfinished is left");
    }
    let far = Site::new();
    let written = cache.path("b.tar").display().to_string();
    far.larder(&["import", &written]).succeeds().says(&["1 image imported"]);
}

#[test]
fn repeated_index_child_is_visited_once() {
    let registry = FakeRegistry::start();
    let image = Image::sample("v1").platform("linux", "amd64");
    registry.add_untagged(REPOSITORY, &image);
    let entry = |media_type: &str, digest: &str, size: usize| json!({"mediaType": media_type, "digest": digest, "size": size});
    let mut child = entry(media_type::OCI_MANIFEST, &image.digest(), image.manifest().len());
    // 4,096 paths at each of four levels.
    for level in 0..4 {
        let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX,
                           "annotations": {"level": level.to_string()},
                           "manifests": vec![child; 4096]})
        .to_string();
        let tag = format!("level-{level}");
        let digest =
            registry.add_manifest(REPOSITORY, &tag, media_type::OCI_INDEX, index.as_bytes());
        child = entry(media_type::OCI_INDEX, &digest, index.len());
    }
    let larder = Larder::start_with(&registry, |settings| {
        settings.cache.prefetch.blobs = true;
        settings.cache.prefetch.platforms = Platforms::All;
    });
    assert_eq!(larder.get(&manifest(REPOSITORY, "level-3")).status, 200);
    image.layers().iter().for_each(|layer| larder.wait_until_cached(&layer.digest));
    assert_eq!(registry.count("GET", &manifest(REPOSITORY, &image.digest())), 1);
    let wanted =
        Wanted::parse(&format!("{}/{REPOSITORY}:level-3", registry.host())).expect("a name");
    let settings = LoadSettings {
        platforms: Platforms::All,
        parallel: 1,
        attempts: 1,
        first_wait: Duration::ZERO,
        referrers: false,
        newest: None,
        manner: Manner::Command,
    };
    let summary = load(&larder.cache(), &[wanted], &settings, &|_| {});
    assert_eq!(summary.failed().count(), 0, "{summary:?}");
}
