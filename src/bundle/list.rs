//! Image lists: the images to load, as users write them.

use std::fmt;

use crate::oci::{ImageName, PartReference, Pattern, Reference, entries, quoted};

/// An entry of an image list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// One image.
    Image(ImageName, Reference),
    /// The tags of a repository that match a pattern.
    Tags(ImageName, Pattern),
}

/// Why a text is not an entry of an image list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListError {
    /// The line in the list, from 1; `None` for an argument of a command.
    line: Option<usize>,
    text: String,
    reason: String,
}

impl Wanted {
    /// Parses one entry: a reference in the form that clients accept (`alpine` is
    /// `docker.io/library/alpine:latest`), or one whose tag is a pattern (`quay.io/org/app:v1.*`,
    /// `app:/^v[0-9]+$/`).
    ///
    /// # Errors
    /// [`ListError`].
    pub fn parse(text: &str) -> Result<Wanted, ListError> {
        let refuse = |reason: String| ListError { line: None, text: text.to_owned(), reason };
        if text.contains("://") {
            return Err(refuse("a reference has no scheme such as https://".into()));
        }
        let (name, tag) = match text.split_once(":/") {
            // A regular expression may contain slashes.
            Some((name, tag)) => (name, Some(format!("/{tag}"))),
            None => {
                let after_path = text.rfind('/').map_or(0, |at| at + 1);
                match text[after_path..].split_once(':') {
                    Some((last, tag)) if tag.contains(['*', '?']) => {
                        (&text[..after_path + last.len()], Some(tag.to_owned()))
                    }
                    _ => (text, None),
                }
            }
        };
        if name.contains(['*', '?']) {
            return Err(refuse(
                "only the tag can be a pattern: registries do not list their repositories".into(),
            ));
        }
        let parsed = PartReference::parse(name).map_err(|error| refuse(error.to_string()))?;
        match tag {
            Some(tag) => match tag.parse() {
                Ok(pattern) => Ok(Wanted::Tags(parsed.name, pattern)),
                Err(error) => Err(refuse(error.to_string())),
            },
            None => {
                let (name, reference) = parsed.or_latest();
                Ok(Wanted::Image(name, reference))
            }
        }
    }

    /// Parses a list: entries on separate lines or separated by commas, `#` before a comment. `expand` replaces
    /// aliases.
    ///
    /// # Errors
    /// The first [`ListError`].
    pub fn parse_list(
        text: &str,
        expand: impl Fn(&str) -> String,
    ) -> Result<Vec<Wanted>, ListError> {
        let mut all = Vec::new();
        for (number, entry) in entries(text) {
            let parsed = Wanted::parse(&expand(entry));
            all.push(parsed.map_err(|error| ListError { line: Some(number), ..error })?);
        }
        Ok(all)
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wanted::Image(name, reference) => f.write_str(&name.with(reference)),
            Wanted::Tags(name, pattern) => write!(f, "{name}:{pattern}"),
        }
    }
}

impl fmt::Display for ListError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        write!(f, "{}: {}", quoted(&self.text), self.reason)
    }
}

impl std::error::Error for ListError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_parsed_as_clients_parse_references() {
        for (text, full) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3.*", "docker.io/library/alpine:3.*"),
            ("quay.io/org/app:v?", "quay.io/org/app:v?"),
            ("reg:5000/app:/^v[0-9]+/x$/", "reg:5000/app:/^v[0-9]+/x$/"),
            ("reg:5000/app", "reg:5000/app:latest"),
        ] {
            let wanted = Wanted::parse(text).unwrap();
            assert_eq!(wanted.to_string(), full, "{text}");
            assert_eq!(Wanted::parse(full), Ok(wanted));
        }
        for (text, words) in [
            ("quay.io/*", "only the tag"),
            ("app:/(/", "not a pattern"),
            ("a b", "a b: "),
            ("http://a/b:c", "no scheme"),
        ] {
            let error = Wanted::parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn lists_allow_comments_blank_lines_and_commas() {
        let list = "# base images\n\nalpine:3.20, busybox # small ones\n  quay.io/org/app:v1  \n";
        let all: Vec<String> = Wanted::parse_list(list, str::to_owned)
            .unwrap()
            .iter()
            .map(Wanted::to_string)
            .collect();
        let expected = [
            "docker.io/library/alpine:3.20",
            "docker.io/library/busybox:latest",
            "quay.io/org/app:v1",
        ];
        assert_eq!(all, expected);
        let error = Wanted::parse_list("alpine\n\nA B\n", str::to_owned).unwrap_err();
        assert!(error.to_string().starts_with("line 3: A B: "), "{error}");
    }
}
