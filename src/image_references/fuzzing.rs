//! Fuzz target: documents that are searched for image references.

use super::{Form, find};
use crate::fuzzing::assert_is_safe_text;
use crate::oci::PartReference;

/// Input: the text of a file.
pub(crate) fn image_references(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let lines = text.len() + 1;
    for form in [Form::Manifests, Form::Values] {
        let findings = find(text, form);
        for found in &findings.found {
            // What is printed can be read again.
            let full = found.name.with(&found.reference);
            let parsed = PartReference::parse(&full).expect("the reference was valid").or_latest();
            assert_eq!(parsed, (found.name.clone(), found.reference.clone()));
        }
        let places = findings.found.iter().map(|found| &found.place);
        for place in places.chain(findings.skipped.iter().map(|skipped| &skipped.place)) {
            assert!((1..=lines).contains(&place.line), "{place:?}");
            assert!(!place.field.contains(char::is_control), "{place:?}");
        }
        for error in &findings.errors {
            assert!((1..=lines).contains(&error.line), "{error:?}");
            assert_is_safe_text(&error.to_string());
        }
    }
}
