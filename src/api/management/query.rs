//! Query parameters. Unknown, duplicate and invalid ones are refused.

use std::borrow::Cow;
use std::str::FromStr;

use super::super::route::{Naming, decode};
use super::super::status::Refusal;
use crate::http::Request;

/// The parameters of a request.
#[derive(Debug)]
pub(super) struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Parses the parameters, of which only those in `known` are allowed. `pattern` may be repeated.
    pub(super) fn of(request: &Request, known: &[&str]) -> Result<Query, Refusal> {
        Query::parse(request.query().unwrap_or_default(), known)
    }

    pub(super) fn parse(query: &str, known: &[&str]) -> Result<Query, Refusal> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            // The encoding of forms.
            let decoded = |text: &str| decode(&text.replace('+', " ")).map(Cow::into_owned);
            let (Some(key), Some(value)) = (decoded(key), decoded(value)) else {
                return Err(Refusal::Parameter("the query has an invalid percent escape".into()));
            };
            if !known.contains(&key.as_str()) {
                let known = match known {
                    [] => "this request takes no parameters".to_owned(),
                    known => format!("known parameters: {}", known.join(", ")),
                };
                return Err(Refusal::Parameter(format!("unknown parameter {key}; {known}")));
            }
            if key != "pattern" && pairs.iter().any(|(before, _)| *before == key) {
                return Err(Refusal::Parameter(format!("{key} is given twice")));
            }
            pairs.push((key, value));
        }
        Ok(Query { pairs })
    }

    /// Replaces aliases by the names of registries in parameters that contain images or registries.
    pub(super) fn expanded(mut self, naming: &Naming) -> Query {
        for (key, value) in &mut self.pairs {
            match key.as_str() {
                "image" | "repository" => *value = naming.expand(value),
                // The search of the page looks for a part of a name, which may begin with an alias.
                "pattern" => {
                    let part = value.strip_prefix('*').unwrap_or(value);
                    let expanded = naming.expand(part);
                    if expanded != part {
                        *value = expanded;
                    }
                }
                "upstream" | "registry" => {
                    let upstream = naming.aliases.get(&value.to_ascii_lowercase());
                    upstream.iter().for_each(|upstream| *value = upstream.to_string());
                }
                _ => {}
            }
        }
        self
    }

    /// The value of a parameter.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The value of a required parameter.
    pub(super) fn required(&self, key: &str) -> Result<&str, Refusal> {
        let missing = || Refusal::Parameter(format!("{key} is missing"));
        self.text(key).filter(|value| !value.is_empty()).ok_or_else(missing)
    }

    /// All values of `pattern`, parsed.
    pub(super) fn patterns<T: FromStr>(&self) -> Result<Vec<T>, Refusal>
    where
        T::Err: std::fmt::Display,
    {
        let values = self.pairs.iter().filter(|(key, _)| key == "pattern");
        values.map(|(_, value)| parse("pattern", value)).collect()
    }

    /// The parsed value of a parameter.
    pub(super) fn parsed<T: FromStr>(&self, key: &str) -> Result<Option<T>, Refusal>
    where
        T::Err: std::fmt::Display,
    {
        self.text(key).map(|value| parse(key, value)).transpose()
    }

    /// A number within bounds.
    pub(super) fn number(
        &self,
        key: &str,
        least: u32,
        most: u32,
    ) -> Result<Option<usize>, Refusal> {
        let Some(text) = self.text(key) else { return Ok(None) };
        // Rust would also accept a sign.
        let number =
            text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u32>().ok());
        match number.flatten().filter(|number| (least..=most).contains(number)) {
            Some(number) => Ok(usize::try_from(number).ok()),
            None => {
                Err(Refusal::Parameter(format!("{key} must be a number from {least} to {most}")))
            }
        }
    }

    /// `true` or `false`.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, Refusal> {
        match self.text(key) {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(_) => Err(Refusal::Parameter(format!("{key} must be true or false"))),
        }
    }

    /// One of some words.
    pub(super) fn word<'a>(
        &self,
        key: &str,
        words: &[&'a str],
    ) -> Result<Option<&'a str>, Refusal> {
        let Some(text) = self.text(key) else { return Ok(None) };
        match words.iter().find(|word| **word == text) {
            Some(word) => Ok(Some(word)),
            None => Err(Refusal::Parameter(format!("{key} must be one of {}", words.join(", ")))),
        }
    }
}

fn parse<T: FromStr>(key: &str, value: &str) -> Result<T, Refusal>
where
    T::Err: std::fmt::Display,
{
    value.parse().map_err(|error| Refusal::Parameter(format!("{key}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Pattern;

    fn parse(query: &str) -> Result<Query, Refusal> {
        Query::parse(query, &["pattern", "limit", "pinned", "sort"])
    }

    #[test]
    fn parameters_are_decoded() {
        let query = parse("pattern=a%2Fb*&pattern=/x+y/&limit=7&pinned=true&&sort=size").unwrap();
        let patterns: Vec<Pattern> = query.patterns().unwrap();
        assert_eq!(patterns.iter().map(Pattern::to_string).collect::<Vec<_>>(), ["a/b*", "/x y/"]);
        assert_eq!(query.number("limit", 1, 10).unwrap(), Some(7));
        assert_eq!(query.flag("pinned").unwrap(), Some(true));
        assert_eq!(query.word("sort", &["name", "size"]).unwrap(), Some("size"));
        assert!(query.required("offset").is_err());
        let query = parse("").unwrap();
        assert_eq!(
            (query.number("limit", 1, 10).unwrap(), query.flag("pinned").unwrap()),
            (None, None)
        );
    }

    #[test]
    fn invalid_parameters_are_refused() {
        for query in ["x=1", "limit=1&limit=2", "limit=%zz", "%ff=1"] {
            assert!(parse(query).is_err(), "{query}");
        }
        for limit in ["", "-1", "+1", "0", "11", "1.0", "x", "4294967296"] {
            let query = parse(&format!("limit={}", limit.replace('+', "%2B"))).unwrap();
            assert!(query.number("limit", 1, 10).is_err(), "{limit}");
        }
        assert!(parse("pinned=yes").unwrap().flag("pinned").is_err());
        assert!(parse("sort=colour").unwrap().word("sort", &["name"]).is_err());
        assert!(parse("pattern=/(/").unwrap().patterns::<Pattern>().is_err());
    }
}
