//! Patterns for repositories, with their registries.

use std::fmt;
use std::str::FromStr;

use super::name::{ImageName, Upstream};
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
    Registry(Upstream),
    Registries(Pattern),
    /// By the full name, and the registry if the pattern names it.
    Names(Pattern, Option<Upstream>),
    Exact(ImageName),
}

impl NamePattern {
    /// The registry that it names; `None` if the registry is a pattern itself.
    pub fn registry(&self) -> Option<&Upstream> {
        match &self.subject {
            Subject::Registry(registry) => Some(registry),
            Subject::Exact(name) => Some(&name.upstream),
            Subject::Names(_, registry) => registry.as_ref(),
            Subject::Registries(_) => None,
        }
    }

    /// Whether the pattern selects a repository.
    pub fn covers(&self, name: &ImageName) -> bool {
        match &self.subject {
            Subject::Registry(registry) => *registry == name.upstream,
            Subject::Registries(pattern) => pattern.matches(name.upstream.as_str()),
            Subject::Names(pattern, _) => {
                let text = name.to_string();
                // As in a pull: `docker.io/alpine` is `docker.io/library/alpine`.
                let short = text.strip_prefix("docker.io/library/");
                pattern.matches(&text)
                    || short.is_some_and(|rest| pattern.matches(&format!("docker.io/{rest}")))
            }
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
        let refused = |reason: &dyn fmt::Display| Err(format!("{}: {reason}", quoted(text)));
        let pattern = |text: &str| {
            text.parse::<Pattern>().map_err(|error| format!("{}: {error}", quoted(text)))
        };
        let has_wildcards = |text: &str| text.contains(['*', '?']);
        let subject = if text.is_empty() {
            return Err("an empty text is not a registry, a repository or a pattern".into());
        } else if text.starts_with('/') {
            if text.len() < 2 || !text.ends_with('/') {
                return refused(&"a regular expression ends with a slash as well");
            }
            Subject::Names(pattern(text)?, None)
        } else if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return refused(&"names are in lower case");
        } else if !has_wildcards(text) {
            match PartReference::parse(text) {
                _ if !text.contains('/') && is_registry(text) => match text.parse() {
                    Ok(registry) => Subject::Registry(registry),
                    Err(error) => return refused(&error),
                },
                Ok(PartReference { name, reference: None }) => Subject::Exact(name),
                Ok(_) => {
                    let all = quoted(format_args!("{text}/*"));
                    return refused(&format!(
                        "rules are for repositories, without tags and digests; all of a registry is {all}"
                    ));
                }
                Err(error) => return refused(&error),
            }
        } else {
            let (first, rest) = text.split_once('/').unwrap_or((text, ""));
            match (has_wildcards(first), rest) {
                (true, "") if first == "*" || first.contains('.') => {
                    Subject::Registries(pattern(first)?)
                }
                (true, "") => {
                    return refused(&format!(
                        "{}; registries have a dot, such as *.example.com",
                        registry_missing(text)
                    ));
                }
                (true, _) => Subject::Names(pattern(text)?, None),
                // The name in which the registry appears after it was resolved.
                (false, _) if Upstream::looks_like_host(first) => match first.parse::<Upstream>() {
                    Ok(registry) => {
                        Subject::Names(pattern(&format!("{registry}/{rest}"))?, Some(registry))
                    }
                    Err(error) => return refused(&error),
                },
                (false, _) => return refused(&registry_missing(text)),
            }
        };
        Ok(NamePattern { text: text.to_owned(), subject })
    }
}

fn registry_missing(text: &str) -> String {
    format!("give the registry as well, such as {}", quoted(format_args!("docker.io/{text}")))
}

/// Whether a name without a slash is that of a registry. Others, such as `alpine`, are repositories of docker.io.
fn is_registry(text: &str) -> bool {
    text.contains('.') || text.split(':').next() == Some("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_of_a_pattern_is_known_if_it_is_named() {
        for (pattern, registry) in [
            ("quay.io", Some("quay.io")),
            ("index.docker.io/library/*", Some("docker.io")),
            ("alpine", Some("docker.io")),
            ("quay.io/org/app", Some("quay.io")),
            ("*", None),
            ("*.example.com", None),
            ("*/org/app", None),
            ("/^quay.io/", None),
        ] {
            let parsed: NamePattern = pattern.parse().unwrap();
            assert_eq!(parsed.registry().map(Upstream::as_str), registry, "{pattern}");
        }
    }

    #[test]
    fn patterns_select_registries_or_repositories() {
        for (pattern, image, expected) in [
            ("index.docker.io", "docker.io/library/alpine", true),
            ("registry-1.docker.io/library/*", "docker.io/library/alpine", true),
            ("quay.io:443", "quay.io/org/app", true),
            ("quay.io:443/org/*", "quay.io/org/app", true),
            ("docker.io/alpine*", "docker.io/library/alpine-git", true),
            ("docker.io/*", "docker.io/org/app", true),
            ("docker.io/bitnami/*", "docker.io/bitnami/redis", true),
            ("registry:5000/*", "registry:5000/app", true),
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
            ("quay.io/ORG", "lower case"),
            ("Quay.io", "lower case"),
            ("bitnami/*", "docker.io/bitnami/*"),
            ("alpine*", "docker.io/alpine*"),
            ("/^ghcr", "ends with a slash"),
            ("/", "ends with a slash"),
            ("registry:5000", "registry:5000/*"),
        ] {
            let error = text.parse::<NamePattern>().unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
