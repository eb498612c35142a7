//! Media types of manifests, as in `Content-Type` headers and descriptors.

use std::fmt;
use std::sync::Arc;

/// A media type without parameters, lower-case, e.g. `application/vnd.oci.image.index.v1+json`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MediaType(Arc<str>);

impl MediaType {
    /// OCI image index.
    pub const OCI_INDEX: &'static str = "application/vnd.oci.image.index.v1+json";
    /// OCI image manifest.
    pub const OCI_MANIFEST: &'static str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI artifact manifest, withdrawn from the specification but still found in registries.
    pub const OCI_ARTIFACT: &'static str = "application/vnd.oci.artifact.manifest.v1+json";
    /// Docker manifest list.
    pub const DOCKER_LIST: &'static str =
        "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker image manifest, schema 2.
    pub const DOCKER_MANIFEST: &'static str =
        "application/vnd.docker.distribution.manifest.v2+json";

    /// The `Accept` value of every request for a manifest, whatever the client accepts: the manifest that a tag
    /// refers to must not depend on which client pulled it first. It excludes schema 1 and `*/*`, because both make
    /// some registries convert the manifest, and a converted manifest has a different digest.
    pub const ACCEPTED_MANIFESTS: &'static str = concat!(
        "application/vnd.oci.image.index.v1+json, ",
        "application/vnd.docker.distribution.manifest.list.v2+json, ",
        "application/vnd.oci.image.manifest.v1+json, ",
        "application/vnd.docker.distribution.manifest.v2+json, ",
        "application/vnd.oci.artifact.manifest.v1+json"
    );

    /// Parses the value of a `Content-Type` header or a `mediaType` field, without its parameters.
    /// `None` if it is not `type/subtype` in the characters of RFC 6838.
    pub fn parse(text: &str) -> Option<MediaType> {
        let essence = text.split(';').next().unwrap_or_default().trim();
        let (kind, subtype) = essence.split_once('/')?;
        let valid = |part: &str| {
            !part.is_empty()
                && part.len() <= 127
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte))
        };
        (valid(kind) && valid(subtype)).then(|| MediaType(essence.to_ascii_lowercase().into()))
    }

    /// The text, without parameters.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this names an index or a manifest list.
    pub fn is_index(&self) -> bool {
        matches!(self.as_str(), Self::OCI_INDEX | Self::DOCKER_LIST)
    }

    /// Whether this is one of the manifest types that Larder requests.
    pub fn is_manifest(&self) -> bool {
        self.is_index()
            || matches!(
                self.as_str(),
                Self::OCI_MANIFEST | Self::DOCKER_MANIFEST | Self::OCI_ARTIFACT
            )
    }

    /// Whether this is Docker's schema 1, whose digest is not the digest of its bytes.
    pub fn is_schema1(&self) -> bool {
        matches!(
            self.as_str(),
            "application/vnd.docker.distribution.manifest.v1+json"
                | "application/vnd.docker.distribution.manifest.v1+prettyjws"
        )
    }

    /// Whether browsers treat content of this type as data. This holds for the types of containers and artifacts, as
    /// RFC 6838 names them. It does not hold for types that some browser renders or executes: text, images, scripts,
    /// XML (including `…+xml`) and PDF.
    pub fn is_inert(&self) -> bool {
        let Some(subtype) = self.as_str().strip_prefix("application/") else { return false };
        let (name, suffix) = match subtype.rsplit_once('+') {
            Some((name, suffix)) => (name, Some(suffix)),
            None => (subtype, None),
        };
        let is_plain = matches!(name, "json" | "octet-stream") && suffix.is_none();
        let is_vendor = name.starts_with("vnd.") || name.starts_with("prs.");
        match suffix {
            Some("json") => true,
            Some("xml" | "xhtml" | "html" | "svg") => false,
            _ => is_plain || (is_vendor && !name.ends_with("xml") && !name.ends_with("html")),
        }
    }

    /// Whether this type does not identify the kind of a manifest, so that the body decides. All types are vague
    /// except vendor types in JSON, which may be a kind of manifest that is not known here. Object stores and web
    /// servers label files `binary/octet-stream`, `text/json` and many others.
    pub fn is_vague(&self) -> bool {
        let is_specific = self.as_str().starts_with("application/vnd.")
            && (self.as_str().ends_with("+json") || self.is_schema1());
        !is_specific
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_dropped_and_case_is_normalized() {
        let parsed = MediaType::parse("Application/JSON; charset=utf-8").unwrap();
        assert_eq!(parsed.as_str(), "application/json");
        assert!(parsed.is_vague());
    }

    #[test]
    fn refused_media_types() {
        for text in ["", "json", "/", "a/", "/b", "a/b/c", "a b/c", "a/b\r\nX: y", "é/x"] {
            assert_eq!(MediaType::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn container_and_artifact_types_are_inert_and_page_types_are_not() {
        let is_inert = |text: &str| MediaType::parse(text).unwrap().is_inert();
        for text in MediaType::ACCEPTED_MANIFESTS.split(", ").chain([
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            "application/vnd.docker.plugin.v1+json",
            "application/vnd.cncf.helm.config.v1+json",
            "application/vnd.wasm.content.layer.v1+wasm",
            "application/vnd.example.artifact",
            "application/spdx+json",
            "application/json",
            "application/octet-stream",
        ]) {
            assert!(is_inert(text), "{text}");
        }
        for text in [
            "text/html",
            "TEXT/HTML; charset=utf-8",
            "text/xml",
            "text/plain",
            "text/javascript",
            "application/xhtml+xml",
            "application/xml",
            "application/vnd.example+xml",
            "application/vnd.wap.xhtml+xml",
            "application/vnd.mozilla.xul+xml",
            "application/vnd.example.html",
            "application/rss+xml",
            "application/xslt+xml",
            "application/mathml+xml",
            "application/javascript",
            "application/x-javascript",
            "application/ecmascript",
            "application/pdf",
            "application/x-shockwave-flash",
            "application/wasm",
            "image/svg+xml",
            "image/png",
            "multipart/x-mixed-replace",
            "message/rfc822",
            "x/y",
        ] {
            assert!(!is_inert(text), "{text}");
        }
    }

    #[test]
    fn every_accepted_type_is_a_manifest_and_schema_1_is_not_among_them() {
        for text in MediaType::ACCEPTED_MANIFESTS.split(", ") {
            let media_type = MediaType::parse(text).unwrap();
            assert!(media_type.is_manifest() && !media_type.is_schema1(), "{text}");
        }
    }
}
