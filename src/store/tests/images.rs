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

/// Stores an image with this config under a tag, and returns what its configs state.
fn described(config: &[u8], prepare: impl Fn(&Path)) -> (Vec<String>, Option<String>) {
    let (directory, store) = fresh();
    let document = json!({ "schemaVersion": 2, "config": layer(config), "layers": [] });
    let (digest, size) = publish(&store, "quay.io/a", MediaType::OCI_MANIFEST, &document);
    store.put_tag(&name("quay.io/a"), &tag("v1"), &record(digest, size)).unwrap();
    put(&store, config);
    prepare(&directory.path().join("blobs/sha256").join(sha256(config).hex()));
    let mut graph = store.graph_of(&store.images_of(&name("quay.io/a"))[0]);
    let created = store.read_configs(&mut graph);
    (graph.platforms().map(str::to_owned).collect(), created)
}

#[test]
fn the_config_states_the_platform_of_an_image_without_an_index() {
    let config =
        br#"{"created":"2020-01-02T03:04:05Z","os":"linux","architecture":"arm","variant":"v7"}"#;
    let (platforms, created) = described(config, |_| {});
    assert_eq!(platforms, ["linux/arm/v7"]);
    assert_eq!(created.as_deref(), Some("2020-01-02T03:04:05Z"));
    let damaged = |blob: &Path| fs::write(blob, vec![b'x'; config.len()]).unwrap();
    assert_eq!(described(config, damaged), (vec![], None));
    assert_eq!(described(config, |blob| fs::remove_file(blob).unwrap()), (vec![], None));
    assert_eq!(described(b"{}", |_| {}), (vec![], None));
}

#[test]
fn a_large_config_is_not_read() {
    let config = |padding: usize| {
        let padding = "x".repeat(padding);
        format!(r#"{{"os":"linux","architecture":"amd64","padding":"{padding}"}}"#).into_bytes()
    };
    assert_eq!(described(&config(1000), |_| {}).0, ["linux/amd64"]);
    assert_eq!(described(&config(1024 * 1024), |_| {}).0, Vec::<String>::new());
}

#[test]
fn configs_are_read_only_where_an_index_states_no_platform() {
    let (_directory, store) = fresh();
    let child = |architecture: &str| {
        let config = json!({ "os": "linux", "architecture": architecture }).to_string();
        put(&store, config.as_bytes());
        let config = layer(config.as_bytes());
        let document = json!({ "schemaVersion": 2, "config": config, "layers": [] });
        let (digest, size) = publish(&store, "quay.io/a", MediaType::OCI_MANIFEST, &document);
        json!({ "digest": digest.to_string(), "size": size })
    };
    let platforms = |children: &[Value]| {
        let document = json!({ "schemaVersion": 2, "manifests": children });
        let (digest, size) = publish(&store, "quay.io/a", MediaType::OCI_INDEX, &document);
        let mut graph = store.graph(&name("quay.io/a"), Descriptor::new(digest, size));
        store.read_configs(&mut graph);
        graph.platforms().map(str::to_owned).collect::<Vec<_>>()
    };
    let (mut listed, other) = (child("amd64"), child("arm64"));
    assert_eq!(platforms(&[listed.clone(), other.clone()]), ["linux/amd64", "linux/arm64"]);
    listed["platform"] = json!({ "os": "linux", "architecture": "386" });
    assert_eq!(platforms(&[listed, other]), ["linux/386", "linux/arm64"], "the index decides");
    let many: Vec<Value> = (0..40).map(|number| child(&format!("cpu{number}"))).collect();
    assert_eq!(platforms(&many).len(), 16, "the number of configs is limited");
}
