//! What a check is about, and its result as JSON: for `POST /api/v1/check` and for `larder check`.

use serde_json::{Value, json};

use super::super::route::Naming;
use crate::cache::EndpointCheck;
use crate::oci::{PartReference, Reference, Repository, Upstream};

/// A registry, or an image of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckTarget {
    /// As it was written.
    pub text: String,
    /// The registry.
    pub upstream: Upstream,
    /// The image, with which more can be tried.
    pub image: Option<(Repository, Reference)>,
}

impl CheckTarget {
    /// Parses a registry such as `docker.io`, or an image such as `ghcr.io/org/app:1`, after aliases were replaced. A word
    /// without a slash is a registry if it has a dot, or is `localhost`.
    ///
    /// # Errors
    /// What is wrong with the name.
    pub fn parse(text: &str, naming: &Naming) -> Result<CheckTarget, String> {
        let wrong = |error: &dyn std::fmt::Display| format!("{text}: {error}");
        if let Some(upstream) = naming.aliases.get(&text.to_ascii_lowercase()) {
            return Ok(CheckTarget::registry(upstream.clone()));
        }
        let is_registry = !text.contains(['/', '@'])
            && (text.contains('.') || text == "localhost" || text.starts_with("localhost:"));
        if is_registry {
            let upstream = text.parse().map_err(|error: crate::oci::NameError| wrong(&error))?;
            return Ok(CheckTarget::registry(upstream));
        }
        let image = PartReference::parse(&naming.expand(text)).map_err(|error| wrong(&error))?;
        let (name, reference) = image.or_latest();
        let text = name.with(&reference);
        let image = Some((name.repository, reference));
        Ok(CheckTarget { text, upstream: name.upstream, image })
    }

    /// A registry.
    pub fn registry(upstream: Upstream) -> CheckTarget {
        CheckTarget { text: upstream.to_string(), upstream, image: None }
    }

    /// The image, if there is one.
    pub fn image(&self) -> Option<(&Repository, &Reference)> {
        self.image.as_ref().map(|(repository, reference)| (repository, reference))
    }
}

/// What was found out about an endpoint.
pub fn check_document(target: &str, check: &EndpointCheck) -> Value {
    let steps: Vec<Value> = check
        .steps
        .iter()
        .map(|step| {
            json!({
                "name": step.name,
                "state": step.state.as_str(),
                "text": step.text,
                "remedy": step.remedy,
            })
        })
        .collect();
    json!({
        "target": target,
        "url": check.url,
        "kind": check.kind,
        "ok": !check.has_failed(),
        "steps": steps,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_registries_or_images() {
        let mut naming = Naming::default();
        naming.aliases.insert("hub".into(), "docker.io".parse().unwrap());
        for (text, expected, has_image) in [
            ("docker.io", "docker.io", false),
            ("hub", "docker.io", false),
            ("localhost:5000", "localhost:5000", false),
            ("10.0.0.1:5000", "10.0.0.1:5000", false),
            ("alpine", "docker.io/library/alpine:latest", true),
            ("hub/org/app:1", "docker.io/org/app:1", true),
            ("ghcr.io/org/app", "ghcr.io/org/app:latest", true),
        ] {
            let target = CheckTarget::parse(text, &naming).unwrap();
            assert_eq!((&*target.text, target.image.is_some()), (expected, has_image), "{text}");
        }
        for text in ["", "A/b", "a b", "x..y:"] {
            assert!(CheckTarget::parse(text, &naming).is_err(), "{text}");
        }
    }
}
