//! `index.json`: what a write copies, what it reads, and what other processes and killed ones leave.

use super::*;

const NAMES: [&str; 3] = ["docker.io/alpine", "quay.io/a", "quay.io/a/b"];

/// The entries of `index.json`, which must be valid, as name and digest.
fn entries(store: &Store) -> Vec<(String, String)> {
    let index = fs::read(store.root().join("index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let entries = index["manifests"].as_array().unwrap().iter().map(|entry| {
        (text(&entry["annotations"]["org.opencontainers.image.ref.name"]), text(&entry["digest"]))
    });
    let mut entries: Vec<_> = entries.collect();
    entries.sort();
    entries
}

fn set(store: &Store, image: &str, version: &str, digest: Digest) {
    store.put_tag(&name(image), &tag(version), &record(digest, 8)).unwrap();
}

/// A directory whose index was written, and its three entries.
fn written() -> (tempfile::TempDir, Store, Vec<(String, String)>) {
    let (directory, store) = fresh();
    let digest = put(&store, b"manifest");
    NAMES.iter().for_each(|image| set(&store, image, "v1", digest));
    store.write_index().unwrap();
    let found = entries(&store);
    assert_eq!(found.len(), 3);
    (directory, store, found)
}

#[test]
fn the_directory_is_an_oci_layout_that_names_every_tag() {
    let (_directory, store) = fresh();
    let digest = put(&store, b"manifest");
    for text in ["docker.io/alpine", "reg.local:5000/a/b/c", "quay.io/a", "quay.io/a/b"] {
        store.put_tag(&name(text), &tag("v1"), &record(digest, 8)).unwrap();
    }
    assert!(store.is_index_outdated());
    store.write_index().unwrap();
    assert!(!store.is_index_outdated());
    let layout = fs::read_to_string(store.root().join("oci-layout")).unwrap();
    assert_eq!(layout, r#"{"imageLayoutVersion":"1.0.0"}"#);
    let index = fs::read(store.root().join("index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    let names = index["manifests"].as_array().unwrap().iter().map(|entry| {
        assert_eq!(entry["digest"], digest.to_string());
        entry["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap().to_owned()
    });
    let names = names.collect::<Vec<_>>();
    assert_eq!(
        names,
        [
            "docker.io/library/alpine:v1",
            "quay.io/a:v1",
            "quay.io/a/b:v1",
            "reg.local:5000/a/b/c:v1"
        ]
    );
    let reference: Reference = "v1".parse().unwrap();
    assert_eq!(name("quay.io/a").with(&reference), names[1]);
}

#[test]
fn a_settled_index_has_the_newest_tag() {
    let (directory, store) = fresh();
    let digest = put(&store, b"manifest");
    store.put_tag(&name("quay.io/a"), &tag("v1"), &record(digest, 8)).unwrap();
    store.settle_index().unwrap();
    assert!(!store.is_index_outdated());
    let index = fs::read_to_string(directory.path().join("index.json")).unwrap();
    assert!(index.contains("quay.io/a:v1"), "{index}");
}

#[test]
fn changed_tags_are_replaced_added_and_removed_and_the_others_copied() {
    let (_directory, store, before) = written();
    let other = put(&store, b"another manifest");
    set(&store, NAMES[1], "v1", other);
    set(&store, NAMES[1], "v2", other);
    store.remove_tag(&name(NAMES[2]), &tag("v1")).unwrap();
    // A write that read all records would find this one missing.
    fs::remove_file(store.inner.layout.tag(&name(NAMES[0]), &tag("v1"))).unwrap();
    store.write_index().unwrap();
    let entry = |name: &str| (name.to_owned(), other.to_string());
    let expected = [before[0].clone(), entry("quay.io/a:v1"), entry("quay.io/a:v2")];
    assert_eq!(entries(&store), expected);
    store.note_unknown_changes();
    store.write_index().unwrap();
    assert_eq!(entries(&store), expected[1..]);
}

#[test]
fn last_tag_leaves_an_empty_index() {
    let (_directory, store, _) = written();
    for image in NAMES {
        store.remove_tag(&name(image), &tag("v1")).unwrap();
    }
    store.write_index().unwrap();
    assert_eq!(entries(&store), []);
    set(&store, NAMES[0], "v1", put(&store, b"manifest"));
    store.write_index().unwrap();
    assert_eq!(entries(&store).len(), 1);
}

#[test]
fn two_processes_write_their_own_changes() {
    let (directory, first, before) = written();
    let second = open(directory.path());
    second.write_index().unwrap();
    let digest = put(&first, b"another manifest");
    set(&first, NAMES[2], "v1", digest);
    set(&second, NAMES[1], "v1", digest);
    second.write_index().unwrap();
    assert_eq!(entries(&first)[1], before[1], "the first process has not written it yet");
    first.write_index().unwrap();
    let digests: Vec<_> = entries(&first).into_iter().map(|(_, digest)| digest).collect();
    assert_eq!(digests, [before[0].1.clone(), digest.to_string(), digest.to_string()]);
}

#[test]
fn changes_of_a_killed_process_are_found_by_the_next() {
    let (directory, store, before) = written();
    set(&store, NAMES[0], "v2", put(&store, b"manifest"));
    drop(store);
    let next = open(directory.path());
    assert!(next.is_index_outdated());
    next.write_index().unwrap();
    assert_eq!(entries(&next).len(), before.len() + 1);
}

#[test]
fn file_that_larder_did_not_write_is_replaced() {
    let (_directory, store, before) = written();
    let path = store.root().join("index.json");
    let sound = fs::read_to_string(&path).unwrap();
    let foreign = [
        String::new(),
        "{}".to_owned(),
        sound.replace('\n', ""),
        sound.replace("org.opencontainers", "com.example"),
        sound.replace("]}", ""),
        sound.replace("]}\n", "]}"),
        sound.replace("schemaVersion", "version"),
        format!("{}\n{}", sound.lines().next().unwrap(), "x".repeat(10_000)),
    ];
    for text in foreign {
        fs::write(&path, &text).unwrap();
        set(&store, NAMES[1], "v1", put(&store, text.as_bytes()));
        store.write_index().unwrap();
        let found = entries(&store);
        assert_eq!(found.len(), 3, "{text}");
        assert_eq!(found[..2], before[..2], "{text}");
    }
    fs::remove_file(&path).unwrap();
    set(&store, NAMES[1], "v2", put(&store, b"manifest"));
    store.write_index().unwrap();
    assert_eq!(entries(&store).len(), 4);
}
