//! `helloWorld`: a built-in image for testing whether a cluster can pull, even if no registry is reachable.
//!
//! The image is put together when it is needed, with the same bytes each time, as an ordinary bundle. This module
//! must not access files, or know how images are served.

use serde_json::{Value, json};

use crate::oci::{Algorithm, Digest, PartReference};

/// The full name of the image.
const NAME: &str = "docker.io/library/hello-world:latest";
/// The user that distroless images call nonroot; it needs no entry in /etc/passwd.
const USER: &str = "65532:65532";

/// The program of the image for each processor, with the name that images use for it. It writes `program/hello.txt` and
/// exits with 0. `program/build` assembles it; a change changes the image's digest.
const PROGRAMS: [(&str, &[u8]); 2] = [
    ("amd64", include_bytes!("program/hello-amd64")),
    ("arm64", include_bytes!("program/hello-arm64")),
];

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
    let manifests: Vec<Value> = PROGRAMS
        .iter()
        .map(|(architecture, program)| bundle.platform(architecture, program))
        .collect();
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
    fn platform(&mut self, architecture: &str, program: &[u8]) -> Value {
        let mut layer = Bundle(tar::Builder::new(Vec::new()));
        layer.file("hello", 0o755, program);
        let layer = self.blob(LAYER, &layer.finish());
        let platform = json!({"os": "linux", "architecture": architecture});
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
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn the_program_for_this_processor_writes_the_text() {
        let own = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            // There is no program for other processors.
            _ => return,
        };
        let (_, program) = PROGRAMS.iter().find(|(name, _)| *name == own).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hello");
        fs::write(&path, program).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let output = Command::new(&path).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), include_str!("program/hello.txt"));
    }

    #[test]
    fn every_program_contains_the_text() {
        let text = include_bytes!("program/hello.txt");
        for (architecture, program) in PROGRAMS {
            let mut windows = program.windows(text.len());
            assert!(windows.any(|window| window == text), "{architecture}: run program/build");
        }
    }

    #[test]
    fn the_bytes_are_reproducible() {
        // Nodes may have pulled this image already: another digest would be another image.
        let digest = Digest::of(Algorithm::Sha256, &bundle()).to_string();
        assert_eq!(
            digest,
            "sha256:c9605b757d79c43f467c09bbb75d526c19c0d5514d64830e4a7e124227d95429"
        );
    }

    #[test]
    fn the_name_is_a_full_reference() {
        assert_eq!(PartReference::parse("hello-world:latest").unwrap(), reference());
    }
}
