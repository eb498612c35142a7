//! Which repositories are served: the rules `allow` and `deny`. Pure.
//!
//! They apply to everything that is requested of a repository, cached or not, by clients and by Larder itself.

use crate::oci::{ImageName, NamePattern, PartReference};

use super::CacheError;

/// The rules of this server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RepositoryRules {
    /// If there are any, only repositories that one of them covers are served.
    pub allow: Vec<NamePattern>,
    /// Repositories that one of these covers are not served, whatever `allow` says.
    pub deny: Vec<NamePattern>,
    /// This server's own image, which is always served.
    pub own: Option<PartReference>,
}

impl RepositoryRules {
    /// Whether everything is served.
    pub fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    /// Whether the repository is that of this server's own image.
    pub(super) fn is_own(&self, name: &ImageName) -> bool {
        self.own.as_ref().is_some_and(|own| own.name == *name)
    }

    /// Checks a repository.
    ///
    /// # Errors
    /// [`CacheError::Refused`], with the rule.
    pub fn check(&self, name: &ImageName) -> Result<(), CacheError> {
        if self.is_empty() {
            return Ok(());
        }
        if self.is_own(name) {
            return Ok(());
        }
        let refused = |rule| Err(CacheError::Refused { name: name.clone().into(), rule });
        if let Some(rule) = self.deny.iter().find(|rule| rule.covers(name)) {
            return refused(Some(rule.to_string().into()));
        }
        match self.allow.is_empty() || self.allow.iter().any(|rule| rule.covers(name)) {
            true => Ok(()),
            false => refused(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ImageName {
        PartReference::parse(text).unwrap().name
    }

    fn rules(allow: &[&str], deny: &[&str]) -> RepositoryRules {
        let parse = |all: &[&str]| all.iter().map(|text| text.parse().unwrap()).collect();
        let own = Some(PartReference::parse("docker.io/library/hello-world:latest").unwrap());
        RepositoryRules { allow: parse(allow), deny: parse(deny), own }
    }

    #[test]
    fn deny_overrides_allow_and_the_error_names_the_rule() {
        let refused = |rule: &str| Err(format!("is refused by the rule {rule} of deny"));
        let not_allowed = || Err("no rule of allow covers it".to_owned());
        for (allow, deny, image, expected) in [
            (&[][..], &[][..], "quay.io/org/app", Ok(())),
            (&[], &["quay.io/org/*"], "quay.io/org/app", refused("quay.io/org/*")),
            (&[], &["quay.io/org/*"], "quay.io/other/app", Ok(())),
            (&["quay.io"], &[], "quay.io/org/app", Ok(())),
            (&["quay.io"], &[], "ghcr.io/org/app", not_allowed()),
            (&["quay.io"], &["*/org/app"], "quay.io/org/app", refused("*/org/app")),
            (&["docker.io/alpine"], &[], "docker.io/library/alpine", Ok(())),
            (&["quay.io"], &["docker.io"], "docker.io/library/hello-world", Ok(())),
        ] {
            let got = rules(allow, deny).check(&name(image)).map_err(|error| error.to_string());
            match (&got, &expected) {
                (Ok(()), Ok(())) => {}
                (Err(got), Err(words)) => assert!(got.contains(words), "{got}: {words}"),
                _ => panic!("{image}, allow {allow:?}, deny {deny:?}: {got:?}"),
            }
        }
    }
}
