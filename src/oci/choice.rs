//! The selection of images by users: single references, patterns, and lists of them.

use std::fmt;
use std::str::FromStr;

use super::name::{ImageName, Reference};
use super::part_reference::PartReference;
use super::pattern::Pattern;
use super::quoted::quoted;

/// A selection of images: a reference in the form that clients accept, or a pattern for full references.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// One image, or all tags of a repository if there is no tag.
    Exact(PartReference),
    /// The images that match a pattern.
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
    /// Parses an image list: entries on separate lines or separated by commas; `#` begins a comment.
    ///
    /// # Errors
    /// A description of the error, with its line number.
    pub fn parse_list(text: &str) -> Result<Vec<Choice>, String> {
        Choice::parse_list_with(text, str::to_owned)
    }

    /// Parses an image list after `expand` has replaced the aliases in each entry.
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

    /// Whether the selection includes an image.
    pub fn covers(&self, name: &ImageName, reference: &Reference) -> bool {
        match self {
            Choice::Matching(pattern) => pattern.matches_image(name, reference),
            Choice::Exact(PartReference { name: selected, reference: only }) => {
                selected == name && only.as_ref().is_none_or(|only| only == reference)
            }
        }
    }
}

/// The entries of an image list with their line numbers. Entries are on separate lines or separated by commas.
pub fn entries(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = (1..).zip(text.lines());
    lines.flat_map(|(number, line)| {
        let entries = uncommented(line).split(',').map(str::trim);
        entries.filter(|entry| !entry.is_empty()).map(move |entry| (number, entry))
    })
}

/// A line without its comment.
pub fn uncommented(line: &str) -> &str {
    // Regular expressions may contain `#`, so a comment begins only after a space or at the start of the line.
    let line = line.split_once(" #").map_or(line, |(before, _)| before).trim();
    if line.starts_with('#') { "" } else { line }
}
