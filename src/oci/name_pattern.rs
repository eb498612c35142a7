//! Patterns for repositories, with their registries.

use std::fmt;
use std::str::FromStr;

use super::name::ImageName;
use super::part_reference::PartReference;
use super::pattern::Pattern;
use super::quoted::quoted;

/// Selects repositories: `quay.io` and `*.example.com` all repositories of registries, `docker.io/library/*` and `alpine`
/// by the full name, `/^ghcr\.io\/(org|team)\//` by a regular expression for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamePattern {
    /// As it was written.
    text: String,
    subject: Subject,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Subject {
    Registry(Pattern),
    Name(Pattern),
    Exact(ImageName),
}

impl NamePattern {
    /// Whether the pattern selects a repository.
    pub fn covers(&self, name: &ImageName) -> bool {
        match &self.subject {
            Subject::Registry(pattern) => pattern.matches(name.upstream.as_str()),
            Subject::Name(pattern) => pattern.matches(&name.to_string()),
            Subject::Exact(exact) => exact == name,
        }
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for NamePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<NamePattern, String> {
        let pattern =
            || text.parse::<Pattern>().map_err(|error| format!("{}: {error}", quoted(text)));
        let has_wildcards = text.contains(['*', '?']);
        let subject = if text.starts_with('/') {
            Subject::Name(pattern()?)
        } else if !text.contains('/') && (has_wildcards || is_registry(text)) {
            Subject::Registry(pattern()?)
        } else if has_wildcards {
            Subject::Name(pattern()?)
        } else {
            match PartReference::parse(text) {
                Ok(PartReference { name, reference: None }) => Subject::Exact(name),
                Ok(_) => {
                    return Err(format!(
                        "{}: rules are for repositories, without tags and digests; {} is all of a registry",
                        quoted(text),
                        quoted(&format!("{text}/*"))
                    ));
                }
                Err(error) => return Err(format!("{}: {error}", quoted(text))),
            }
        };
        Ok(NamePattern { text: text.to_owned(), subject })
    }
}

/// Whether a name without a slash is that of a registry. Others, such as `alpine`, are repositories of docker.io.
fn is_registry(text: &str) -> bool {
    text.contains('.') || text.split(':').next() == Some("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_select_registries_or_repositories() {
        for (pattern, image, expected) in [
            ("quay.io", "quay.io/org/app", true),
            ("quay.io", "ghcr.io/org/app", false),
            ("quay.io", "ghcr.io/quay.io/app", false),
            ("localhost:5000", "localhost:5000/app", true),
            ("*.example.com", "reg.example.com/org/app", true),
            ("*.example.com", "example.com/org/app", false),
            ("*", "quay.io/org/app", true),
            ("quay.io/org/*", "quay.io/org/app", true),
            ("quay.io/org/*", "quay.io/organ/app", false),
            ("*/org/app", "quay.io/org/app", true),
            ("docker.io/alpine", "docker.io/library/alpine", true),
            ("alpine", "docker.io/library/alpine", true),
            ("alpine", "docker.io/library/alpine-git", false),
            (r"/^ghcr\.io\/(org|team)\//", "ghcr.io/team/app", true),
            (r"/^ghcr\.io\/(org|team)\//", "ghcr.io/others/app", false),
        ] {
            let parsed: NamePattern = pattern.parse().unwrap();
            let name = PartReference::parse(image).unwrap().name;
            assert_eq!(parsed.covers(&name), expected, "{pattern} {image}");
            assert_eq!(parsed.to_string(), pattern);
        }
        for (text, words) in [
            ("", "repository"),
            ("alpine:3", "without tags"),
            ("quay.io/org/app:v1", "without tags"),
            ("/(/", "pattern"),
            ("quay.io/ORG", "lower-case"),
        ] {
            let error = text.parse::<NamePattern>().unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
