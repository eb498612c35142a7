//! `helloWorld`: a built-in image for testing whether a cluster can pull, even if no registry is reachable.
//!
//! The image is generated when it is needed, with the same bytes each time, as an ordinary bundle. This module
//! must not access files, or know how images are served.

mod program;

use serde_json::{Value, json};

use crate::oci::{Algorithm, Digest, PartReference};
use program::{Architecture, program};

/// The full name of the image.
const NAME: &str = "docker.io/library/hello-world:latest";
/// The user that distroless images call nonroot; it needs no entry in /etc/passwd.
const USER: &str = "65532:65532";

/// The output of the image. A change of the text changes the image's digest.
const TEXT: &str = "
Hello from Larder!

This image came out of Larder itself (helloWorld: true), and no registry was asked for it.
That it runs shows that your container client
 1. finds Larder,
 2. gets manifests and layers from it, byte for byte, and
 3. takes the platform that it needs.

";

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// The reference of the image.
pub fn reference() -> PartReference {
    // The constant is a valid reference, which a test checks.
    PartReference::parse(NAME).expect("the constant is a full reference")
}

/// The image with all its platforms, as the tar of an OCI image layout.
pub fn bundle() -> Vec<u8> {
    let mut bundle = Bundle(tar::Builder::new(Vec::new()));
    let manifests: Vec<Value> =
        Architecture::ALL.iter().map(|architecture| bundle.platform(*architecture)).collect();
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    let mut root = bundle.blob(INDEX, index.to_string().as_bytes());
    root["annotations"] = json!({"org.opencontainers.image.ref.name": NAME});
    bundle.file(
        "index.json",
        0o644,
        json!({"schemaVersion": 2, "manifests": [root]}).to_string().as_bytes(),
    );
    bundle.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#);
    bundle.finish()
}

/// A tar in memory, to which writing cannot fail.
struct Bundle(tar::Builder<Vec<u8>>);

impl Bundle {
    /// Adds config, layer and manifest of a platform, and returns the manifest's descriptor.
    fn platform(&mut self, architecture: Architecture) -> Value {
        let mut layer = Bundle(tar::Builder::new(Vec::new()));
        layer.file("hello", 0o755, &program(architecture, TEXT));
        let layer = self.blob(LAYER, &layer.finish());
        let platform = json!({"os": "linux", "architecture": architecture.as_str()});
        let mut config = platform.clone();
        config["config"] = json!({"Cmd": ["/hello"], "User": USER});
        // The layer is not compressed, so its digest is also its diff ID.
        config["rootfs"] = json!({"type": "layers", "diff_ids": [layer["digest"]]});
        let config = self.blob(CONFIG, config.to_string().as_bytes());
        let manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
        let mut descriptor = self.blob(MANIFEST, manifest.to_string().as_bytes());
        descriptor["platform"] = platform;
        descriptor
    }

    fn blob(&mut self, media_type: &str, content: &[u8]) -> Value {
        let digest = Digest::of(Algorithm::Sha256, content);
        self.file(
            &format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex()),
            0o644,
            content,
        );
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": content.len()})
    }

    /// Adds a file with the default owner and time 0, so that the bytes are reproducible.
    fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        let mut header = tar::Header::new_ustar();
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        // The path is short, and writing to memory cannot fail.
        self.0.append_data(&mut header, path, content).expect("a short path and a tar in memory");
    }

    fn finish(self) -> Vec<u8> {
        // The builder writes to memory directly.
        self.0.into_inner().expect("writing to memory cannot fail")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_reproducible() {
        // Nodes may have pulled this image already: another digest would be another image.
        let digest = Digest::of(Algorithm::Sha256, &bundle()).to_string();
        assert_eq!(
            digest,
            "sha256:d59b6a978a271d68aa3a1af98d6e415464a4e7bccdcb93c6292fe5dff6dc39e3"
        );
    }

    #[test]
    fn the_name_is_a_full_reference() {
        assert_eq!(PartReference::parse("hello-world:latest").unwrap(), reference());
    }
}
