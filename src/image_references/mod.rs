//! Finds the image references in Kubernetes manifests, compose files, kustomizations and other documents in YAML or
//! JSON.
//!
//! No schema is known here: a field is recognized by its name, so custom resources are covered too. What a controller
//! or a template engine adds later cannot be found.
//!
//! This module must not know files, registries or the command line.

mod document;
mod fields;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::de::IgnoredAny;

use crate::oci::{ImageName, Reference};
use document::{Documents, Unreadable};

/// The most documents of a text that are reported as unreadable. A file with more is of another kind.
const UNREADABLE_MAX: usize = 20;

/// The kind of text that is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Objects whose references are complete strings.
    Manifests,
    /// As [`Form::Manifests`], and references in parts: Helm values files with `repository` and `tag`.
    Values,
}

/// Where a value is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line, from 1.
    pub line: usize,
    /// The path in the document, such as `spec.containers[0].image`. Long paths are cut.
    pub field: String,
}

/// A field that names an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The repository.
    pub name: ImageName,
    /// The digest, else the tag, else `latest`.
    pub reference: Reference,
    /// The field.
    pub place: Place,
}

/// A field that should name an image and does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The field.
    pub place: Place,
    /// Its value and what is wrong with it, safe to print.
    pub reason: String,
}

/// A document that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentError {
    /// The line of the error, from 1.
    pub line: usize,
    reason: String,
    is_template: bool,
}

/// What a text contains, in the order of the text.
#[derive(Debug, Default)]
pub struct Findings {
    /// The references.
    pub found: Vec<Found>,
    /// The fields that could not be read as references.
    pub skipped: Vec<Skipped>,
    /// The documents that could not be read. Nothing of them is in the other lists.
    pub errors: Vec<DocumentError>,
}

/// Finds the references in a text of one or several documents.
///
/// Takes memory and time in proportion to the text: aliases are not expanded.
pub fn find(text: &str, form: Form) -> Findings {
    let mut findings = Findings::default();
    for (lines_before, text) in json_values(text).unwrap_or_else(|| vec![(0, text)]) {
        let (found, skipped) = (findings.found.len(), findings.skipped.len());
        for document in Documents::new(text) {
            match document {
                Ok(document) => fields::find(&document, form, &mut findings),
                Err(Unreadable { line, reason }) => {
                    let is_template = has_template(text, line);
                    let line = lines_before + line;
                    findings.errors.push(DocumentError { line, reason, is_template });
                    // The other documents of a template are templates as well.
                    if is_template || findings.errors.len() == UNREADABLE_MAX {
                        return findings;
                    }
                }
            }
        }
        findings.found[found..].iter_mut().for_each(|each| each.place.line += lines_before);
        findings.skipped[skipped..].iter_mut().for_each(|each| each.place.line += lines_before);
    }
    findings
}

/// The values of a stream of JSON values, as `jq -c` prints them, each with the number of lines before it. `None` for other
/// texts: a single value is YAML as well.
fn json_values(text: &str) -> Option<Vec<(usize, &str)>> {
    if !text.trim_start().starts_with('{') {
        return None;
    }
    let mut values = Vec::new();
    let (mut begin, mut lines_before) = (0, 0);
    let mut parsed = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    while let Some(value) = parsed.next() {
        value.ok()?;
        let value = &text[begin..parsed.byte_offset()];
        values.push((lines_before, value));
        begin = parsed.byte_offset();
        lines_before += value.matches('\n').count();
    }
    (values.len() > 1).then_some(values)
}

/// Whether one of the lines up to this one has an action of a Go template, as in the sources of a Helm chart. The parser
/// may notice it some lines later. In quotes, `{{` is valid YAML, and has a meaning in Argo Workflows.
fn has_template(text: &str, line: usize) -> bool {
    let is_action = |line: &str| {
        line.trim_start().starts_with("{{") || line.contains(": {{") || line.contains("- {{")
    };
    text.lines().take(line).any(is_action)
}

impl fmt::Display for DocumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_template {
            true => write!(
                f,
                "this looks like a template ({}); run helm template, and search its output",
                self.reason
            ),
            false => write!(f, "not valid YAML: {}", self.reason),
        }
    }
}

impl std::error::Error for DocumentError {}
