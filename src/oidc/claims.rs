//! Claims: how a configuration names them, and which tokens a rule is for.

use serde_json::{Map, Value};

use super::{Rule, SUBJECT};
use crate::oci::quoted;

/// The claims of a token.
pub(super) type Claims = Map<String, Value>;

/// The claim that `path` names: a key, or keys joined by dots. Keys contain dots themselves (`kubernetes.io`), so the
/// longest key that the path begins with is tried first.
pub(super) fn find<'a>(claims: &'a Claims, path: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(path) {
        return Some(value);
    }
    path.rmatch_indices('.').find_map(|(at, _)| {
        let below = claims.get(&path[..at])?.as_object()?;
        find(below, &path[at + 1..])
    })
}

/// The user that a token is for, by this claim.
pub(super) fn user(claims: &Claims, path: &str) -> Option<String> {
    let user = find(claims, path)?.as_str().filter(|user| !user.is_empty())?;
    Some(quoted(user))
}

impl Rule {
    /// Whether all claims of the rule match.
    pub(super) fn is_for(&self, claims: &Claims) -> bool {
        self.claims.iter().all(|(path, pattern)| {
            let is_match = |value: &Value| text(value).is_some_and(|text| pattern.matches(&text));
            match find(claims, path) {
                Some(Value::Array(values)) => values.iter().any(is_match),
                Some(value) => is_match(value),
                None => false,
            }
        })
    }
}

/// A value as patterns see it. Objects and `null` match nothing.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Whether `path` can name a claim.
///
/// # Errors
/// The reason.
pub fn check_path(path: &str) -> Result<(), String> {
    match path.is_empty() || path.len() > PATH_BYTES_MAX || path.chars().any(char::is_control) {
        true => Err(format!(
            "{}: a claim is a key such as {SUBJECT}, or keys joined by dots, of at most {PATH_BYTES_MAX} bytes",
            quoted(path)
        )),
        false => Ok(()),
    }
}

/// The longest path of a claim. The keys of GitHub and Kubernetes are URLs at most.
const PATH_BYTES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn claims(value: Value) -> Claims {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn nested_claims_are_found_by_dotted_paths() {
        let claims = claims(json!({
            "sub": "a",
            "kubernetes.io": {"namespace": "team-a", "serviceaccount": {"name": "builder", "a.b": "c"}},
            "a": {"b": {"c": 1}, "b.c": 2},
            "https://example.com/role": "x",
        }));
        for (path, expected) in [
            ("sub", json!("a")),
            ("kubernetes.io.namespace", json!("team-a")),
            ("kubernetes.io.serviceaccount.name", json!("builder")),
            ("kubernetes.io.serviceaccount.a.b", json!("c")),
            ("a.b.c", json!(2)),
            ("https://example.com/role", json!("x")),
        ] {
            assert_eq!(find(&claims, path), Some(&expected), "{path}");
        }
        for path in ["", ".", "su", "sub.", ".sub", "kubernetes.namespace", "sub.a", "a..b"] {
            assert_eq!(find(&claims, path), None, "{path}");
        }
    }

    #[test]
    fn a_rule_is_for_tokens_with_all_of_its_claims() {
        let rule = |text: &[(&str, &str)]| Rule {
            claims: text
                .iter()
                .map(|(path, glob)| ((*path).into(), glob.parse().unwrap()))
                .collect(),
            repositories: Arc::default(),
        };
        let claims = claims(json!({
            "sub": "repo:org/app:ref:refs/heads/main", "groups": ["dev", "ops"], "admin": true,
            "run": 7, "none": null, "map": {"a": "b"}, "lists": [["x"]],
        }));
        for (wanted, expected) in [
            (&[("sub", "repo:org/app:*")][..], true),
            (&[("sub", "repo:org/app")], false),
            (&[("sub", "*"), ("groups", "ops")], true),
            (&[("sub", "*"), ("groups", "op")], false),
            (&[("admin", "true"), ("run", "7")], true),
            (&[("missing", "*")], false),
            (&[("none", "*")], false),
            (&[("map", "*")], false),
            (&[("map.a", "b")], true),
            (&[("lists", "*")], false),
        ] {
            assert_eq!(rule(wanted).is_for(&claims), expected, "{wanted:?}");
        }
    }

    #[test]
    fn the_user_is_a_text_that_is_safe_to_print() {
        let claims = claims(json!({"sub": "a\u{1b}b", "empty": "", "number": 7}));
        assert_eq!(user(&claims, "sub").as_deref(), Some("a\\u{1b}b"));
        for path in ["empty", "number", "missing"] {
            assert_eq!(user(&claims, path), None, "{path}");
        }
    }
}
