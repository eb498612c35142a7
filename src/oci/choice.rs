//! Which images are meant, as people write it: one by one, by patterns, and in lists.

use std::fmt;
use std::str::FromStr;

use super::name::{ImageName, Reference};
use super::part_reference::PartReference;
use super::pattern::Pattern;
use super::quoted::quoted;

/// Images that are meant: a reference as clients write it, or a pattern over full references.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// That image; all tags of a repository if there is no tag.
    Exact(PartReference),
    /// What matches.
    Matching(Pattern),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Choice, String> {
        match text.contains(['*', '?']) || text.starts_with('/') {
            true => text
                .parse()
                .map(Choice::Matching)
                .map_err(|error| format!("{}: {error}", quoted(text))),
            false => match PartReference::parse(text) {
                Ok(reference) => Ok(Choice::Exact(reference)),
                Err(error) => Err(format!("{}: {error}", quoted(text))),
            },
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Choice::Matching(pattern) => pattern.fmt(f),
            Choice::Exact(PartReference { name, reference: None }) => name.fmt(f),
            Choice::Exact(PartReference { name, reference: Some(reference) }) => {
                f.write_str(&name.with(reference))
            }
        }
    }
}

impl Choice {
    /// Reads an image list: one or more a line, separated by commas; `#` begins a comment.
    ///
    /// # Errors
    /// What is wrong, with the number of its line.
    pub fn parse_list(text: &str) -> Result<Vec<Choice>, String> {
        Choice::parse_list_with(text, str::to_owned)
    }

    /// The same with other names: `expand` replaces aliases.
    ///
    /// # Errors
    /// As [`Choice::parse_list`].
    pub fn parse_list_with(
        text: &str,
        expand: impl Fn(&str) -> String,
    ) -> Result<Vec<Choice>, String> {
        let mut choices = Vec::new();
        for (number, entry) in entries(text) {
            choices.push(expand(entry).parse().map_err(|error| format!("line {number}: {error}"))?);
        }
        Ok(choices)
    }

    /// Whether an image is one of those.
    pub fn covers(&self, name: &ImageName, reference: &Reference) -> bool {
        match self {
            Choice::Matching(pattern) => pattern.matches_image(name, reference),
            Choice::Exact(PartReference { name: meant, reference: which }) => {
                meant == name && which.as_ref().is_none_or(|which| which == reference)
            }
        }
    }
}

/// The entries of an image list with the numbers of their lines: one or more a line, separated by commas.
pub fn entries(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = (1..).zip(text.lines());
    lines.flat_map(|(number, line)| {
        let entries = uncommented(line).split(',').map(str::trim);
        entries.filter(|entry| !entry.is_empty()).map(move |entry| (number, entry))
    })
}

/// A line without its comment.
pub fn uncommented(line: &str) -> &str {
    // Regular expressions may have the character; a comment stands alone.
    let line = line.split_once(" #").map_or(line, |(before, _)| before).trim();
    if line.starts_with('#') { "" } else { line }
}
