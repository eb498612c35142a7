//! Images whose content follows from their names, so that an upstream can serve any number of them and
//! a client knows every byte.

use std::rc::Rc;

use crate::{MANIFEST_TYPE, Options, Outcome, hex_digest};

/// Images in one repository.
pub(crate) const IMAGES_PER_REPOSITORY: u64 = 100;
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// What all invented images have in common.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    layers: u64,
    layer_bytes: usize,
}

impl Shape {
    /// `--layers`, `--layer-bytes`: the number and size of the layers of every image.
    pub(crate) fn parse(options: &Options) -> Outcome<Shape> {
        let layer_bytes = usize::try_from(options.number("layer-bytes")?)?;
        Ok(Shape { layers: options.number("layers")?, layer_bytes })
    }
}

/// The name of an image, such as `bench/r7:t42`.
pub(crate) struct Name {
    pub(crate) repository: String,
    pub(crate) tag: String,
}

impl Name {
    pub(crate) fn new(group: &str, number: u64) -> Name {
        let (repository, tag) = (number / IMAGES_PER_REPOSITORY, number % IMAGES_PER_REPOSITORY);
        Name { repository: format!("{group}/r{repository}"), tag: format!("t{tag}") }
    }
}

/// A manifest or blob.
#[derive(Clone)]
pub(crate) struct Content {
    pub(crate) hex: String,
    pub(crate) bytes: Rc<[u8]>,
}

impl Content {
    fn new(bytes: Vec<u8>) -> Content {
        Content { hex: hex_digest(&bytes), bytes: bytes.into() }
    }

    fn descriptor(&self, media_type: &str) -> String {
        let (hex, size) = (&self.hex, self.bytes.len());
        format!(r#"{{"mediaType":"{media_type}","digest":"sha256:{hex}","size":{size}}}"#)
    }
}

pub(crate) struct Image {
    pub(crate) manifest: Content,
    /// The config and the layers, in the order in which a client requests them.
    pub(crate) blobs: Vec<Content>,
}

impl Image {
    /// No two images share a config or layer.
    pub(crate) fn invent(name: &Name, shape: Shape) -> Image {
        let name = format!("{}:{}", name.repository, name.tag);
        let config = format!(r#"{{"architecture":"amd64","os":"linux","author":"{name}"}}"#);
        let config = Content::new(config.into_bytes());
        let layers: Vec<Content> = (0..shape.layers)
            .map(|layer| Content::new(noise(&format!("{name}/{layer}"), shape.layer_bytes)))
            .collect();
        let descriptors: Vec<String> =
            layers.iter().map(|layer| layer.descriptor(LAYER_TYPE)).collect();
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST_TYPE}","config":{},"layers":[{}]}}"#,
            config.descriptor(CONFIG_TYPE),
            descriptors.join(",")
        );
        let blobs = std::iter::once(config).chain(layers).collect();
        Image { manifest: Content::new(manifest.into_bytes()), blobs }
    }
}

/// Returns incompressible bytes, which differ for every name.
fn noise(name: &str, length: usize) -> Vec<u8> {
    let seed = hex_digest(name.as_bytes());
    // The first half of 16 hexadecimal digits always parses.
    let mut state = u64::from_str_radix(&seed[..16], 16).unwrap_or_default();
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
