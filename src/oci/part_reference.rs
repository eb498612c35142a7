//! References as users and tools write them, normalized as in container clients.

use super::name::{ImageName, NameError, Reference, Upstream};

/// The tag of a reference without one.
const DEFAULT_TAG: &str = "latest";

/// A reference whose tag may be absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartReference {
    /// The repository.
    pub name: ImageName,
    /// The tag or digest, if present.
    pub reference: Option<Reference>,
}

impl PartReference {
    /// Parses `alpine`, `alpine:3`, `quay.io/org/app@sha256:…`, `registry:5000/app:1@sha256:…`. If the first
    /// component does not look like a host, the registry is Docker Hub. A digest takes precedence over a tag.
    ///
    /// # Errors
    /// [`NameError`] for a reference that no client accepts.
    pub fn parse(text: &str) -> Result<PartReference, NameError> {
        let (text, digest) = match text.split_once('@') {
            Some((text, digest)) => {
                (text, Some(Reference::Digest(digest.parse().map_err(NameError::Digest)?)))
            }
            None => (text, None),
        };
        let after_path = text.rfind('/').map_or(0, |at| at + 1);
        let (path, tag) = match text[after_path..].split_once(':') {
            Some((last, tag)) => (&text[..after_path + last.len()], Some(tag.parse()?)),
            None => (text, None),
        };
        let (upstream, repository) = match path.split_once('/') {
            Some((host, rest)) if Upstream::looks_like_host(host) => (host, rest),
            _ => (Upstream::DOCKER_HUB, path),
        };
        let name = ImageName::new(upstream.parse()?, repository.parse()?);
        Ok(PartReference { name, reference: digest.or(tag.map(Reference::Tag)) })
    }

    /// The reference, with the tag `latest` if there is neither a tag nor a digest.
    pub fn or_latest(self) -> (ImageName, Reference) {
        let reference = self.reference.unwrap_or_else(|| {
            // Consists of letters only, so it is a valid tag.
            Reference::Tag(DEFAULT_TAG.parse().expect("latest is a tag"))
        });
        (self.name, reference)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn references_are_normalized_as_in_clients() {
        let pinned = format!("quay.io/a/b@{DIGEST}");
        let both = format!("quay.io/a/b:1@{DIGEST}");
        for (text, full) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3", "docker.io/library/alpine:3"),
            ("bitnami/redis", "docker.io/bitnami/redis:latest"),
            ("index.docker.io/alpine", "docker.io/library/alpine:latest"),
            ("localhost/hello:v1", "localhost/hello:v1"),
            ("registry.corp:5000/app", "registry.corp:5000/app:latest"),
            ("registry.corp:5000/app:1", "registry.corp:5000/app:1"),
            ("registry.corp:443/app:1", "registry.corp/app:1"),
            ("registry:443/app:1", "registry:443/app:1"),
            (&pinned, &pinned),
            (&both, &pinned),
        ] {
            let (name, reference) = PartReference::parse(text).unwrap().or_latest();
            assert_eq!(name.with(&reference), full, "{text}");
            assert_eq!(
                PartReference::parse(full).unwrap().or_latest(),
                (name, reference),
                "{full}"
            );
        }
    }

    #[test]
    fn references_that_no_client_accepts_are_refused() {
        for text in ["", ":", "a:", "A", "a@b", "a b", "quay.io/", "/a", "a@sha256:1", "http://a/b"]
        {
            assert!(PartReference::parse(text).is_err(), "{text}");
        }
    }
}
