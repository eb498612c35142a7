//! `helloWorld`: an image of Larder's own, for a look whether a cluster can pull where no registry can be
//! reached at all.
//!
//! It is made when it is wanted, the same bytes each time, as a bundle like any other. This room must not
//! know files, or how images are served.

mod program;

use serde_json::{Value, json};

use crate::oci::{Algorithm, Digest, PartReference};
use program::{Architecture, program};

/// The name that people type, in full.
const NAME: &str = "docker.io/library/hello-world:latest";
/// The nobody of images without a user's name.
const USER: &str = "65532:65532";

/// What it says when it is run.
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

/// The name that it is served under.
pub fn reference() -> PartReference {
    // It is in full.
    PartReference::parse(NAME).expect("the constant is a reference")
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

/// A tar that is written into memory, which takes everything.
struct Bundle(tar::Builder<Vec<u8>>);

impl Bundle {
    /// Config, layer and manifest of a platform; gives the manifest's descriptor.
    fn platform(&mut self, architecture: Architecture) -> Value {
        let mut layer = Bundle(tar::Builder::new(Vec::new()));
        layer.file("hello", 0o755, &program(architecture, TEXT));
        let layer = self.blob(LAYER, &layer.finish());
        let platform = json!({"os": "linux", "architecture": architecture.as_str()});
        let mut config = platform.clone();
        config["config"] = json!({"Cmd": ["/hello"], "User": USER});
        // The layer is not packed, so that its digest is the same on both sides.
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

    /// Nobody's, and of no time.
    fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        let mut header = tar::Header::new_ustar();
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        // Paths here are short, and memory takes what is written to it.
        self.0.append_data(&mut header, path, content).expect("a short path, and memory");
    }

    fn finish(self) -> Vec<u8> {
        // Nothing is between the builder and its memory.
        self.0.into_inner().expect("memory takes what is written to it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_same_bytes_each_time() {
        // Whoever has pulled it has these: another digest is another image to every node.
        let digest = Digest::of(Algorithm::Sha256, &bundle()).to_string();
        assert_eq!(
            digest,
            "sha256:d59b6a978a271d68aa3a1af98d6e415464a4e7bccdcb93c6292fe5dff6dc39e3"
        );
    }

    #[test]
    fn its_name_is_in_full() {
        assert_eq!(PartReference::parse("hello-world:latest").unwrap(), reference());
    }
}
