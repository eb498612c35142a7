//! `larder export`, and `larder import` of its bundles.
//!
//! Proves that content survives the round trip byte for byte in every format, what a delta omits, and what is refused
//! before anything is written.

use std::fs;

use serde_json::{Value, json};

use crate::support::bundle::{Site, blobs_in, entries, files};
use crate::support::{Image, Index, Publish, bytes, digest_of};

const HELLO: &str = "docker.io/library/hello:v1";
const OTHER: &str = "quay.io/team/app:2";

fn two_platforms() -> Index {
    let arm = Image::sample("arm").platform("linux", "arm64");
    Index::new().image(&Image::sample("amd")).image(&arm)
}

/// The images that a bundle lists: name from an annotation, digest.
fn listed(tar: &[u8], annotation: &str) -> Vec<(String, String)> {
    let index =
        entries(tar).into_iter().find(|(path, _)| path == "index.json").expect("an index.json");
    let index: Value = serde_json::from_slice(&index.1).expect("JSON");
    let entries = index["manifests"].as_array().expect("a list").iter();
    let entries = entries.filter_map(|entry| {
        let name = entry["annotations"][annotation].as_str()?;
        Some((name.to_owned(), entry["digest"].as_str()?.to_owned()))
    });
    entries.collect()
}

#[test]
fn exported_images_are_imported_byte_for_byte() {
    let (index, docker) = (two_platforms(), Image::sample("docker").docker());
    let exotic = Image::sample("exotic").sha512();
    let site = Site::with(&[(HELLO, &index), (OTHER, &docker), ("ghcr.io/a/b/c:x", &exotic)]);
    for form in ["b.tar", "b.tar.gz", "b.tar.zst", "layout/", "b.volumes"] {
        let volumes = ["--volume-size", "5kB"];
        let more: &[&str] = if form == "b.volumes" { &volumes } else { &[] };
        let arguments = [&["export", "--all", "--output", form], more].concat();
        site.larder(&arguments).succeeds().says(&["3 images", HELLO, OTHER, "linux/arm64"]);
        let far = Site::new();
        let bundle = site.path(form).display().to_string();
        far.larder(&["import", &bundle]).succeeds().says(&["3 images imported", HELLO]);
        assert!(far.blobs() == site.blobs(), "{form}");
        assert_eq!(far.tags(), site.tags(), "{form}");
        assert_eq!(far.manifests(), site.manifests(), "{form}");
        far.larder(&["import", &bundle]).succeeds().says(&["0 blobs", "unchanged"]);
        assert_eq!(far.leftovers(), Vec::<String>::new());
    }
}

#[test]
fn exports_of_the_same_images_are_identical() {
    let (one, two) = (Image::sample("one"), two_platforms());
    let site = Site::with(&[(HELLO, &one), (OTHER, &two)]);
    let other_way = Site::with(&[(OTHER, &two), (HELLO, &one)]);
    for name in ["b.tar", "b.tar.gz", "b.tar.zst"] {
        for site in [&site, &other_way] {
            site.larder(&["export", "--all", "--output", name]).succeeds();
        }
        assert!(site.read(name) == other_way.read(name), "{name}");
    }
}

#[test]
fn bundle_names_are_found_by_other_tools() {
    let (hello, other) = (Image::sample("hello"), two_platforms());
    let site = Site::with(&[(HELLO, &hello), (OTHER, &other)]);
    site.larder(&["export", "--all", "--output", "b.tar"]).succeeds();
    let tar = site.read("b.tar");
    let expected = [(HELLO.to_owned(), hello.digest()), (OTHER.to_owned(), other.digest())];
    for annotation in ["org.opencontainers.image.ref.name", "io.containerd.image.name"] {
        assert_eq!(listed(&tar, annotation), expected);
    }
    let paths: Vec<String> = entries(&tar).into_iter().map(|(path, _)| path).collect();
    assert_eq!(paths[..3], ["oci-layout", "manifest.json", "index.json"]);
}

#[test]
fn bundle_can_be_piped() {
    let site = Site::with(&[(HELLO, &Image::sample("hello"))]);
    let exported = site.larder(&["export", "--all", "--output", "-", "--compress", "zstd"]);
    let exported = exported.succeeds();
    let far = Site::new();
    far.larder_with(&["import", "-"], &exported.stdout).succeeds().says(&["1 image imported"]);
    assert!(far.blobs() == site.blobs());
}

#[test]
fn delta_contains_only_what_the_target_lacks() {
    let base = bytes(5_000, 1);
    let old = Image::new("old").layer(base.clone());
    let new = Image::new("new").layer(base.clone()).layer(bytes(3_000, 2));
    let site = Site::with(&[(HELLO, &old)]);
    let far = Site::with(&[(HELLO, &old)]);
    site.import_bytes(&crate::support::bundle::layout(
        "org.opencontainers.image.ref.name",
        &[(HELLO, &new)],
    ))
    .succeeds()
    .says(&["was "]);
    let have: String = far.blobs().keys().map(|path| path.replace('/', ":") + "\n").collect();
    site.write("have.txt", format!("# far side\n\n{have}").as_bytes());
    site.larder(&["export", HELLO, "--except", "have.txt", "--output", "delta.tar"])
        .succeeds()
        .says(&["1 blob (", "left out"]);
    let carried = blobs_in(&site.read("delta.tar"));
    assert!(!carried.contains_key(&digest_of(&base)));
    assert!(carried.contains_key(&new.digest()));
    let delta = site.path("delta.tar").display().to_string();
    far.larder(&["import", &delta]).succeeds();
    assert_eq!(far.tags()[HELLO], new.digest());

    let empty = Site::new();
    let missing = digest_of(&base);
    empty.larder(&["import", &delta]).fails(1, &[HELLO, &missing, "(5.0 kB)", "not imported"]);
    assert!(empty.tags().is_empty() && empty.manifests().is_empty());
    // The imported part is kept, and the rest completes it.
    far.larder(&["export", HELLO, "--output", "all.tar"]).succeeds();
    empty.larder(&["import", &far.path("all.tar").display().to_string()]).succeeds();
    assert!(empty.tags().contains_key(HELLO));
}

#[test]
fn missing_volume_is_named() {
    let site = Site::with(&[(HELLO, &Image::sample("hello"))]);
    site.larder(&["export", "--all", "--output", "v", "--volume-size", "4000"]).succeeds();
    let volumes: Vec<String> =
        files(&site.path("")).into_keys().filter(|name| name.starts_with("v.")).collect();
    assert!(volumes.len() > 2, "{volumes:?}");
    let joined: Vec<u8> = volumes.iter().flat_map(|name| site.read(name)).collect();
    site.larder(&["export", "--all", "--output", "whole.tar"]).succeeds();
    assert!(joined == site.read("whole.tar"), "the concatenated volumes equal the bundle");

    let all: Vec<&str> = ["import"].into_iter().chain(volumes.iter().map(String::as_str)).collect();
    site.larder(&all).succeeds().says(&["1 image imported"]);
    site.larder(&["import", "v.001"]).succeeds();
    let second = site.read("v.002");
    fs::remove_file(site.path("v.002")).unwrap();
    for given in ["v", "v.001", "v.003"] {
        site.larder(&["import", given]).fails(1, &["v.002", "missing"]);
    }
    fs::remove_file(site.path(&volumes[volumes.len() - 1])).unwrap();
    fs::write(site.path("v.002"), &second).unwrap();
    site.larder(&["import", "v"])
        .fails(1, &["the last volume is truncated", &volumes[volumes.len() - 1]]);
}

#[test]
fn platform_filter_keeps_the_index_and_omits_other_platforms() {
    let index = two_platforms();
    let (amd, arm) = (Image::sample("amd"), Image::sample("arm").platform("linux", "arm64"));
    let site = Site::with(&[(HELLO, &index), (OTHER, &Image::sample("single"))]);
    site.larder(&["export", "--all", "--platform", "linux/arm64", "--output", "b.tar"])
        .succeeds()
        .says(&["linux/arm64"]);
    let carried = blobs_in(&site.read("b.tar"));
    assert!(carried[&index.digest()] == index.manifest());
    assert!(carried.contains_key(&arm.digest()) && !carried.contains_key(&amd.digest()));
    for layer in amd.layers() {
        assert!(!carried.contains_key(&layer.digest));
    }
    let far = Site::new();
    far.larder(&["import", &site.path("b.tar").display().to_string()]).succeeds();
    assert_eq!(far.tags()[HELLO], index.digest());

    let refused = ["export", "--all", "--platform", "linux/s390x", "--output", "c.tar"];
    site.larder(&refused).fails(1, &[HELLO, "linux/s390x"]);
    assert!(!site.path("c.tar").exists());
    site.larder(&["export", "--all", "--platform", "linux", "--output", "c.tar"])
        .fails(2, &["--platform"]);
}

#[test]
fn signatures_are_exported_but_not_listed_as_images() {
    let image = Image::sample("hello");
    let signature = Image::new("signature")
        .layer(bytes(100, 9))
        .artifact_type("application/vnd.example.signature")
        .subject(image.descriptor());
    let of_signature = Image::new("of signature").subject(signature.descriptor());
    let cosign = Image::new("cosign").layer(bytes(100, 8));
    let tag = format!("docker.io/library/hello:{}.sig", image.digest().replace(':', "-"));
    let unrelated = Image::new("unrelated").subject(Image::sample("else").descriptor());
    let site = Site::with(&[
        (HELLO, &image),
        ("", &of_signature),
        ("", &signature),
        (&tag, &cosign),
        ("docker.io/library/hello:unrelated", &unrelated),
    ]);
    site.larder(&["export", HELLO, "--output", "b.tar"]).succeeds().says(&["4 images"]);
    let tar = site.read("b.tar");
    let hello = [(HELLO.to_owned(), image.digest())];
    assert_eq!(listed(&tar, "io.containerd.image.name"), hello);
    assert_eq!(listed(&tar, "larder.image.name").len(), 3);
    assert!(!blobs_in(&tar).contains_key(&unrelated.digest()));
    let far = Site::new();
    far.larder(&["import", &site.path("b.tar").display().to_string()]).succeeds();
    assert_eq!(far.tags().into_keys().collect::<Vec<_>>(), [&tag, HELLO]);
    for manifest in [image.digest(), signature.digest(), of_signature.digest()] {
        let record = format!("docker.io/library/hello/_manifests/{}", manifest.replace(':', "/"));
        assert!(far.manifests().contains(&record), "{record}");
    }
}

#[test]
fn export_of_incomplete_images_is_refused_and_names_them() {
    let (whole, torn) = (Image::sample("whole"), Image::sample("torn"));
    let site = Site::with(&[(HELLO, &whole), (OTHER, &torn)]);
    let lost = &torn.layers()[0].digest;
    site.remove_blob(lost);
    site.larder(&["export", "--all", "--output", "b.tar"])
        .fails(1, &[OTHER, lost, "(2.0 kB)", "--partial"]);
    assert!(!site.path("b.tar").exists());
    site.larder(&["export", "--all", "--partial", "--output", "b.tar"]).succeeds().says(&[OTHER]);
    let far = Site::new();
    far.larder(&["import", &site.path("b.tar").display().to_string()]).fails(1, &[OTHER, lost]);
    assert_eq!(far.tags().into_keys().collect::<Vec<_>>(), [HELLO]);
}

#[test]
fn images_are_selected_by_name_pattern_list_and_digest() {
    let (one, two) = (Image::sample("one"), two_platforms());
    let second = "docker.io/library/hello:v2";
    let site = Site::with(&[(HELLO, &one), (second, &two), (OTHER, &one)]);
    site.write("list.txt", b"# images\nhello:v1, quay.io/*  # two\n\n");
    let pinned = format!("hello@{}", two.digest());
    let child = format!("hello@{}", Image::sample("amd").digest());
    for (arguments, expected) in [
        (&["hello:v1"][..], vec![HELLO.to_owned()]),
        (&["docker.io/library/hello"], vec![HELLO.into(), second.into()]),
        (&["*:v?"], vec![HELLO.into(), second.into()]),
        (&["/^quay[.]/"], vec![OTHER.into()]),
        (&["--list", "list.txt"], vec![HELLO.into(), OTHER.into()]),
        (&[&pinned], vec![format!("docker.io/library/{pinned}")]),
        (&[&child], vec![format!("docker.io/library/{child}")]),
        (&["--all", "--since", "1h"], vec![HELLO.into(), second.into(), OTHER.into()]),
        (&["--all", "--since", "2200-01-01"], vec![]),
    ] {
        let arguments = [&["export", "--output", "b.tar"], arguments].concat();
        site.larder(&arguments).succeeds();
        let listed = listed(&site.read("b.tar"), "io.containerd.image.name");
        let names: Vec<String> = listed.into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, expected, "{arguments:?}");
    }
    site.larder(&["export", "hello:v3", "hello:v1", "--output", "c.tar"])
        .fails(1, &["docker.io/library/hello:v3", "nothing in the cache"]);
    for (arguments, words) in [
        (&["--output", "c.tar"][..], "--all"),
        (&["hello", "--all", "--output", "c.tar"], "--all"),
        (&["HELLO", "--output", "c.tar"], "HELLO"),
        (&["/(/", "--output", "c.tar"], "/(/"),
        (&["--list", "none.txt", "--output", "c.tar"], "none.txt"),
        (&["--all", "--except", "larder.yaml", "--output", "c.tar"], "line 1"),
        (&["--all", "--since", "soon", "--output", "c.tar"], "--since"),
        (&["--all", "--volume-size", "big", "--output", "c.tar"], "--volume-size"),
        (&["--all", "--volume-size", "1MB", "--output", "-"], "--volume-size"),
        (&["--all", "--compress", "xz", "--output", "c.tar"], "--compress"),
        (&["--all", "--format", "zip", "--output", "c.tar"], "--format"),
        (&["--all", "--compress", "gzip", "--output", "c/"], "--compress"),
        (&["--all"], "--output"),
    ] {
        site.larder(&[&["export"], arguments].concat()).fails(2, &[words]);
    }
    assert!(!site.path("c.tar").exists() && !site.path("c").exists());
}

#[test]
fn damaged_blob_is_not_exported() {
    let image = Image::sample("hello");
    let site = Site::with(&[(HELLO, &image)]);
    let layer = &image.layers()[1];
    let path = site.cache().join("blobs").join(layer.digest.replace(':', "/"));
    let mut spoilt = layer.bytes.clone();
    spoilt[4_000] ^= 1;
    fs::write(&path, spoilt).unwrap();
    for output in ["b.tar", "layout/"] {
        site.larder(&["export", "--all", "--output", output]).fails(1, &[&layer.digest, "damaged"]);
    }
    let left: Vec<String> = files(&site.path("")).into_keys().collect();
    assert!(left.iter().all(|name| !name.starts_with("b.tar")), "{left:?}");
    assert!(!site.path("layout/index.json").exists(), "content before names");
}

#[test]
fn export_adds_to_a_layout_directory_and_refuses_other_directories() {
    let (one, two) = (Image::sample("one"), Image::sample("two"));
    let site = Site::with(&[(HELLO, &one), (OTHER, &two)]);
    site.larder(&["export", HELLO, "--output", "stick", "--format", "dir"]).succeeds();
    site.larder(&["export", "--all", "--output", "stick/"]).succeeds();
    let stick = files(&site.path("stick"));
    let index: Value = serde_json::from_slice(&stick["index.json"]).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
    assert_eq!(stick["oci-layout"], json!({"imageLayoutVersion": "1.0.0"}).to_string().as_bytes());
    for manifest in [one.top(), two.top()] {
        assert!(stick[&format!("blobs/{}", manifest.digest.replace(':', "/"))] == manifest.bytes);
    }
    site.write("home/letter", b"dear");
    site.larder(&["export", "--all", "--output", "home/"]).fails(1, &["home", "neither empty"]);
    assert_eq!(files(&site.path("home")).len(), 1);
}
