//! Images and their graphs.

use serde_json::{Value, json};

use super::*;

/// Stores a manifest in a repository.
pub(super) fn publish(
    store: &Store,
    of: &str,
    media_type: &str,
    document: &Value,
) -> (Digest, u64) {
    let bytes = document.to_string().into_bytes();
    let digest = put(store, &bytes);
    let media_type = MediaType::parse(media_type).unwrap();
    let record = ManifestRecord { media_type, size: bytes.len() as u64, fetched: at(1) };
    store.put_manifest(&name(of), &digest, &record).unwrap();
    (digest, bytes.len() as u64)
}

pub(super) fn layer(bytes: &[u8]) -> Value {
    json!({ "digest": sha256(bytes).to_string(), "size": bytes.len() })
}

pub(super) fn image(store: &Store, of: &str, layers: &[&[u8]]) -> (Digest, u64) {
    let layers: Vec<Value> = layers.iter().map(|bytes| layer(bytes)).collect();
    let document = json!({ "schemaVersion": 2, "config": layer(b"config"), "layers": layers });
    publish(store, of, MediaType::OCI_MANIFEST, &document)
}

pub(super) fn index(store: &Store, of: &str, children: &[(Digest, u64, &str)]) -> (Digest, u64) {
    let children = children.iter().map(|(digest, size, architecture)| {
        let platform = json!({ "os": "linux", "architecture": architecture });
        json!({ "digest": digest.to_string(), "size": size, "platform": platform })
    });
    let document = json!({ "schemaVersion": 2, "manifests": children.collect::<Vec<_>>() });
    publish(store, of, MediaType::OCI_INDEX, &document)
}

fn references(store: &Store) -> Vec<String> {
    let mut all = Vec::new();
    let mut visit = |image: &StoredImage| {
        all.push(image.full_reference());
        Ok(())
    };
    store.each_image(&mut visit).unwrap();
    all
}

#[test]
fn an_image_is_a_tag_or_a_digest_without_a_parent() {
    let (_directory, store) = fresh();
    let (child, size) = image(&store, "quay.io/a", &[b"one"]);
    let (root, root_size) = index(&store, "quay.io/a", &[(child, size, "amd64")]);
    let (alone, _) = image(&store, "quay.io/a", &[b"two"]);
    let (inner, inner_size) = image(&store, "quay.io/a/b", &[b"three"]);
    let (outer, _) = index(&store, "quay.io/a/b", &[(inner, inner_size, "arm64")]);
    store.put_tag(&name("quay.io/a"), &tag("v1"), &record(root, root_size)).unwrap();
    let expected =
        ["quay.io/a:v1".to_owned(), format!("quay.io/a@{alone}"), format!("quay.io/a/b@{outer}")];
    assert_eq!(references(&store), expected);
}

#[test]
fn a_graph_lists_present_and_missing_content() {
    let (_directory, store) = fresh();
    let (child, size) = image(&store, "quay.io/a", &[b"layer one", b"layer two"]);
    let elsewhere = sha256(b"never asked for");
    let children = [(child, size, "amd64"), (elsewhere, 99, "arm64")];
    let (root, root_size) = index(&store, "quay.io/a", &children);
    store.put_tag(&name("quay.io/a"), &tag("v1"), &record(root, root_size)).unwrap();
    let graph = || store.graph_of(&store.images_of(&name("quay.io/a"))[0]);

    assert_eq!(graph().missing_bytes(), 6 + 9 + 9);
    assert!(!graph().is_complete());
    put(&store, b"config");
    put(&store, b"layer one");
    assert_eq!(graph().missing_bytes(), 9);
    put(&store, b"layer two");
    let whole = graph();
    assert!(whole.is_complete() && whole.missing_bytes() == 0);
    assert_eq!(whole.platforms().collect::<Vec<_>>(), ["linux/amd64"]);
    assert_eq!(whole.present_bytes(), root_size + size + 6 + 9 + 9);
    assert_eq!(whole.present_digests().count(), 5);
    assert_eq!((whole.manifests.len(), whole.blobs.len()), (3, 3));
}

#[test]
fn an_index_without_any_cached_image_is_not_complete() {
    let (_directory, store) = fresh();
    let (root, size) = index(&store, "quay.io/a", &[(sha256(b"x"), 1, "amd64")]);
    store.put_tag(&name("quay.io/a"), &tag("v1"), &record(root, size)).unwrap();
    assert!(!store.graph_of(&store.images_of(&name("quay.io/a"))[0]).is_complete());
}

#[test]
fn the_walk_of_a_cyclic_or_deep_index_ends() {
    let (_directory, store) = fresh();
    let (mut digest, mut size) = image(&store, "quay.io/a", &[b"x"]);
    for _ in 0..50 {
        (digest, size) = index(&store, "quay.io/a", &[(digest, size, "amd64")]);
    }
    store.put_tag(&name("quay.io/a"), &tag("v1"), &record(digest, size)).unwrap();
    let images = store.images_of(&name("quay.io/a"));
    assert!(store.graph_of(&images[0]).manifests.len() < 20);
}
