//! `larder import` of foreign and damaged bundles, and interrupted imports.
//!
//! Proves that tags point to complete images only, that content must match its digest, and that a running server
//! serves an image as soon as it is imported.

use std::io::Write;

use serde_json::{Value, json};

use crate::support::bundle::{
    CONTAINERD_NAME, REF_NAME, Site, Tar, docker_save, entry, hex, index_json, layout,
};
use crate::support::{Image, Index, Larder, Publish, bytes, digest_of};

const LARDER: &str = env!("CARGO_BIN_EXE_larder");
const HELLO: &str = "docker.io/library/hello:v1";

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(content).expect("memory takes it");
    out.finish().expect("memory takes it")
}

#[test]
fn imported_names_are_normalised_as_clients_do() {
    let image = Image::sample("hello");
    for (annotation, written, expected) in [
        (REF_NAME, "hello:v1", HELLO),
        (REF_NAME, "docker.io/library/hello:v1", HELLO),
        (CONTAINERD_NAME, "docker.io/library/hello:v1", HELLO),
        (REF_NAME, "quay.io/team/app", "quay.io/team/app:latest"),
        (REF_NAME, "localhost/app:1", "localhost/app:1"),
    ] {
        let site = Site::new();
        site.import_bytes(&layout(annotation, &[(written, &image)])).succeeds().says(&[expected]);
        assert_eq!(site.tags().into_keys().collect::<Vec<_>>(), [expected]);
    }
}

#[test]
fn import_of_a_bundle_without_names_requires_a_name() {
    let image = Image::sample("hello");
    let other = Image::sample("other");
    for (written, given, expected) in [
        ("", "hello:v1", HELLO),
        ("v1", "hello", HELLO),
        ("quay.io/a/b:v1", "hello", HELLO),
        ("quay.io/a/b:v7", "hello:v1", HELLO),
        ("", "hello", "docker.io/library/hello:latest"),
    ] {
        let site = Site::new();
        let path = site.write("b.tar", &layout(REF_NAME, &[(written, &image)]));
        let path = path.display().to_string();
        if !written.contains('/') {
            site.larder(&["import", &path]).fails(1, &["--name", &image.digest()]);
            assert!(site.tags().is_empty());
        }
        for flag in ["--name", "--resolve-ref"] {
            site.larder(&["import", &path, flag, given]).succeeds();
            assert_eq!(site.tags().into_keys().collect::<Vec<_>>(), [expected]);
        }
    }
    let site = Site::new();
    let two = site.write("two.tar", &layout(REF_NAME, &[("v1", &image), ("v2", &other)]));
    let two = two.display().to_string();
    site.larder(&["import", &two, "--name", "hello:v1"]).fails(1, &["2 images", "--name"]);
    site.larder(&["import", &two, "--name", "hello"]).succeeds();
    assert_eq!(site.tags().len(), 2);
    for arguments in [&["import"][..], &["import", &two, "--name", "A"], &["import", "--name", "a"]]
    {
        site.larder(arguments).fails(2, &[]);
    }
    site.larder(&["import", "nowhere.tar"]).fails(1, &["nowhere.tar"]);
}

#[test]
fn docker_save_archive_is_rebuilt_and_reported() {
    let twice = bytes(3_000, 1);
    let image = Image::new("old").layer(twice.clone()).layer(bytes(100, 2)).layer(twice.clone());
    let bundle = docker_save(&image, &["hello:v1", "quay.io/team/app:2"]);
    let site = Site::new();
    site.import_bytes(&bundle).succeeds().says(&[
        HELLO,
        "quay.io/team/app:2",
        "digest",
        "2 images",
    ]);
    let tags = site.tags();
    assert_eq!(tags[HELLO], tags["quay.io/team/app:2"]);
    let manifest = site.blobs()[&tags[HELLO].replace(':', "/")].clone();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
    assert_eq!(manifest["config"]["digest"], image.config().digest);
    let layers: Vec<&str> = manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer["digest"].as_str().unwrap())
        .collect();
    assert_eq!(layers, [digest_of(&twice), digest_of(&bytes(100, 2)), digest_of(&twice)]);
    // The same content always yields the same manifest.
    let other = Site::new();
    other.import_bytes(&gzip(&bundle)).succeeds();
    assert_eq!(other.tags(), tags);
}

#[test]
fn docker_save_with_compressed_layers_or_blobs_is_accepted() {
    let image = Image::sample("hello");
    let (config, layers) = (image.config(), image.layers());
    let packed: Vec<Vec<u8>> = layers.iter().map(|layer| gzip(&layer.bytes)).collect();
    let names = ["a.tar.gz".to_owned(), "b.tar.gz".to_owned()];
    let manifest = |config: &str, layers: &[String]| {
        json!([{"Config": config, "RepoTags": ["hello:v1"], "Layers": layers}]).to_string()
    };
    let crane = Tar::default()
        .file(&config.digest, &config.bytes)
        .file(&names[0], &packed[0])
        .file(&names[1], &packed[1])
        .file("manifest.json", manifest(&config.digest, &names).as_bytes())
        .end();
    let blob_path = |digest: &str| format!("blobs/{}", digest.replace(':', "/"));
    let paths = [blob_path(&layers[0].digest), blob_path(&layers[1].digest)];
    let blobs = Tar::default()
        .file("manifest.json", manifest(&blob_path(&config.digest), &paths).as_bytes())
        .blob(&config.digest, &config.bytes)
        .blob(&layers[0].digest, &layers[0].bytes)
        .blob(&layers[1].digest, &layers[1].bytes)
        .end();
    let site = Site::new();
    for (bundle, layer) in [(crane, digest_of(&packed[0])), (blobs, layers[0].digest.clone())] {
        site.import_bytes(&bundle).succeeds();
        let manifest = site.blobs()[&site.tags()[HELLO].replace(':', "/")].clone();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(manifest["layers"][0]["digest"], layer);
    }
}

#[test]
fn docker_save_with_an_image_layout_uses_the_layout() {
    let image = Image::sample("hello");
    let manifest = String::from_utf8(image.manifest()).unwrap().replace("v1.tar+gzip", "v1.tar");
    let digest = digest_of(manifest.as_bytes());
    let index = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest, "size": manifest.len(),
        "annotations": {CONTAINERD_NAME: HELLO, REF_NAME: "v1"},
    });
    let mut tar = Tar::default().blob(&digest, manifest.as_bytes());
    for blob in image.blobs() {
        tar = tar.blob(&blob.digest, &blob.bytes);
    }
    let docker = json!([{"Config": "blobs/sha256/x", "RepoTags": ["hello:v1"], "Layers": []}]);
    let tar = tar.file("index.json", &index_json(&[index]));
    let tar = tar.file("manifest.json", docker.to_string().as_bytes());
    let site = Site::new();
    site.import_bytes(&tar.file("repositories", b"{}").end())
        .succeeds()
        .says(&[HELLO, "by digest"]);
    assert_eq!(site.tags()[HELLO], digest);
}

#[test]
fn docker_save_with_a_wrong_layer_or_config_is_refused() {
    let image = Image::sample("hello");
    let (config, layers) = (image.config(), image.layers());
    let config_path = format!("{}.json", hex(&config));
    let manifest = |layers: &[&str]| {
        json!([{"Config": config_path, "RepoTags": ["hello:v1"], "Layers": layers}]).to_string()
    };
    let both = manifest(&["a/layer.tar", "b/layer.tar"]);
    let table = [
        (&config.bytes[..], &b"other"[..], &both, "a/layer.tar"),
        (b"{}", &layers[0].bytes, &both, &config.digest),
        (&config.bytes, &layers[0].bytes, &manifest(&["a/layer.tar"]), "1 layer,"),
        (&config.bytes, &layers[0].bytes, &manifest(&["a/layer.tar", "../x"]), "../x"),
    ];
    for (config, first, manifest, words) in table {
        let bundle = Tar::default()
            .file(&config_path, config)
            .file("a/layer.tar", first)
            .file("b/layer.tar", &layers[1].bytes)
            .file("manifest.json", manifest.as_bytes())
            .end();
        let site = Site::new();
        site.import_bytes(&bundle).fails(1, &["hello:v1", words]);
        assert!(site.tags().is_empty());
        site.is_sound();
    }
}

#[test]
fn damaged_blob_in_a_bundle_fails_its_image_only() {
    let (good, bad) = (Image::sample("good"), Image::sample("bad"));
    let mut bundle = layout(REF_NAME, &[(HELLO, &good), ("quay.io/a:1", &bad)]);
    let layer = &bad.layers()[0];
    let at = bundle.windows(64).position(|window| window == &layer.bytes[..64]).unwrap();
    bundle[at + 1_000] ^= 1;
    let site = Site::new();
    let path = format!("blobs/{}", layer.digest.replace(':', "/"));
    site.import_bytes(&bundle).fails(1, &[&path, "have the digest", "quay.io/a:1", HELLO]);
    assert_eq!(site.tags().into_keys().collect::<Vec<_>>(), [HELLO]);
    assert!(!site.has(&layer.digest));
    assert_eq!(site.leftovers(), Vec::<String>::new());
    site.is_sound();
}

#[test]
fn import_repairs_a_damaged_cached_manifest() {
    let image = Image::sample("hello");
    let bundle = layout(REF_NAME, &[(HELLO, &image)]);
    let site = Site::new();
    site.import_bytes(&bundle).succeeds();
    let path = site.cache().join("blobs").join(image.digest().replace(':', "/"));
    std::fs::write(path, vec![b' '; image.manifest().len()]).unwrap();
    site.import_bytes(&bundle).succeeds().says(&["1 blob "]);
    site.is_sound();
}

#[test]
fn truncated_bundle_tags_nothing_and_the_complete_one_imports() {
    let bundle = layout(REF_NAME, &[(HELLO, &Image::sample("hello"))]);
    for packed in [bundle.clone(), gzip(&bundle)] {
        let site = Site::new();
        for end in (0..10).map(|tenth| packed.len() * tenth / 10) {
            site.import_bytes(&packed[..end]).fails(1, &["given.tar"]);
            assert!(site.tags().is_empty() && site.manifests().is_empty(), "cut at {end}");
            assert_eq!(site.leftovers(), Vec::<String>::new());
        }
        site.import_bytes(&packed).succeeds();
        site.is_sound();
    }
}

#[test]
fn archive_entries_outside_the_archive_are_refused() {
    let image = Image::sample("hello");
    for path in ["../escaped", "/tmp/larder-escaped", "blobs/../../escaped"] {
        let site = Site::new();
        let bundle = Tar::default().file(path, b"x").end();
        site.import_bytes(&bundle).fails(1, &["leads outside", path]);
        assert!(!site.path("escaped").exists());
    }
    // A link refers to an entry of the bundle, never to a local file.
    let secret = Site::new();
    let target = secret.write("secret.tar", &image.layers()[0].bytes);
    let (config, layers) = (image.config(), image.layers());
    let config_path = format!("{}.json", hex(&config));
    let manifest = json!([{
        "Config": config_path, "RepoTags": ["hello:v1"], "Layers": ["a/layer.tar", "b/layer.tar"],
    }]);
    let bundle = Tar::default()
        .file(&config_path, &config.bytes)
        .symlink("a/layer.tar", &target.display().to_string())
        .file("b/layer.tar", &layers[1].bytes)
        .file("manifest.json", manifest.to_string().as_bytes())
        .end();
    let site = Site::new();
    site.import_bytes(&bundle).fails(1, &["a/layer.tar is not in the bundle"]);
    assert!(!site.has(&layers[0].digest));
}

#[test]
fn invalid_or_oversized_bundles_are_refused() {
    let site = Site::new();
    let large = bytes(5 * 1024 * 1024, 1);
    let index = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest_of(&large), "size": large.len(), "annotations": {REF_NAME: HELLO}});
    let too_large =
        Tar::default().blob(&digest_of(&large), &large).file("index.json", &index_json(&[index]));
    for (bundle, words) in [
        (b"no tar at all".to_vec(), "given.tar"),
        (Tar::default().file("readme", b"x").end(), "neither an index.json"),
        (Tar::default().file("index.json", b"{").end(), "index.json"),
        (Tar::default().file("manifest.json", b"{}").end(), "dir:"),
        (too_large.end(), "not a manifest that clients accept"),
    ] {
        site.import_bytes(&bundle).fails(1, &[words]);
    }
    assert!(site.tags().is_empty() && site.manifests().is_empty());
}

#[test]
fn index_without_other_platforms_is_complete() {
    let (amd, arm) = (Image::sample("amd"), Image::sample("arm").platform("linux", "arm64"));
    let index = Index::new().image(&amd).image(&arm);
    let mut tar = Tar::default().blob(&index.digest(), &index.manifest());
    tar = tar.blob(&amd.digest(), &amd.manifest());
    for blob in amd.blobs() {
        tar = tar.blob(&blob.digest, &blob.bytes);
    }
    let site = Site::new();
    let bundle = tar.file("index.json", &index_json(&[entry(REF_NAME, HELLO, &index)])).end();
    site.import_bytes(&bundle).succeeds().says(&["linux/amd64"]);
    assert_eq!(site.tags()[HELLO], index.digest());
    assert_eq!(site.manifests().len(), 2);
}

#[test]
fn running_server_serves_imported_images_at_once() {
    let image = Image::sample("hello");
    let larder = Larder::start_alone(|settings| settings.cache.air_gapped = true);
    let target = "/v2/docker.io/library/hello/manifests/v1";
    assert_eq!(larder.get(target).status, 404);
    let site = Site::new();
    let bundle = site.write("b.tar", &layout(REF_NAME, &[(HELLO, &image)]));
    let import = std::process::Command::new(LARDER)
        .arg("--image-path")
        .arg(larder.root())
        .arg("import")
        .arg(bundle)
        .output()
        .unwrap();
    assert!(import.status.success(), "{import:?}");
    let answer = larder.get(target);
    assert_eq!((answer.status, &answer.body), (200, &image.manifest()));
    let index = std::fs::read_to_string(larder.root().join("index.json")).unwrap();
    assert!(index.contains(HELLO), "the layout lists it as well: {index}");
}

#[test]
fn killed_import_leaves_no_partial_image_and_can_be_repeated() {
    let images: Vec<Image> = (0..4)
        .map(|number| {
            let label = format!("image {number}");
            Image::new(&label).layer(bytes(300_000, number)).layer(bytes(200_000, 100 + number))
        })
        .collect();
    let names: Vec<String> = (0..4).map(|number| format!("quay.io/team/app:{number}")).collect();
    let content: Vec<(&str, &dyn Publish)> = names
        .iter()
        .zip(&images)
        .map(|(name, image)| (name.as_str(), image as &dyn Publish))
        .collect();
    let bundle = layout(REF_NAME, &content);
    let site = Site::new();
    for round in 1..=12 {
        // The import blocks on its input at this point, so no clock is needed.
        let mut child = site
            .command(LARDER, &[])
            .args(["import", "-"])
            .stdin(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&bundle[..bundle.len() * round / 12]).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        site.is_sound();
        for (name, digest) in site.tags() {
            let at = names.iter().position(|each| *each == name).unwrap();
            assert_eq!(digest, images[at].digest());
            for blob in images[at].blobs() {
                assert!(site.has(&blob.digest), "{name} lacks {}", blob.digest);
            }
        }
    }
    site.import_bytes(&bundle).succeeds().says(&["4 images imported"]);
    assert_eq!(site.tags().into_keys().collect::<Vec<_>>(), names);
    assert_eq!(site.leftovers(), Vec::<String>::new(), "leftovers of killed imports are removed");
    site.import_bytes(&bundle).succeeds().says(&["0 blobs"]);
}

#[test]
fn import_to_a_full_disk_fails_and_tags_nothing() {
    let image = Image::new("big").layer(bytes(1_000_000, 1));
    let site = Site::new();
    site.write("b.tar", &layout(REF_NAME, &[(HELLO, &image)]));
    // With the signal ignored, a write beyond the limit fails. The unit is 512 or 1024 bytes, by shell.
    let limited = "trap '' XFSZ; ulimit -f 150; exec \"$@\"";
    let output = site
        .command("sh", &["-c", limited, "sh", LARDER])
        .args(["import", "b.tar"])
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("cannot write") && message.contains("cache"), "{message}");
    assert!(site.tags().is_empty() && site.manifests().is_empty());
    assert_eq!(site.leftovers(), Vec::<String>::new());
    site.larder(&["import", "b.tar"]).succeeds();
}
