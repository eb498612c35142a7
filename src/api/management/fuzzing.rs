//! Fuzz target: the parameters of requests to the management port.

use super::query::Query;
use crate::api::fuzzing::naming;
use crate::oci::Choice;

/// Input: the query of a request to the management port.
pub(crate) fn management_query(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let known = ["pattern", "image", "limit", "flag"];
    let Ok(query) = Query::parse(text, &known) else { return };
    let query = query.expanded(&naming());
    let _ = query.patterns::<Choice>();
    let _ = query.required("image");
    if let Ok(Some(number)) = query.number("limit", 1, 100) {
        assert!((1..=100).contains(&number));
    }
    let _ = query.flag("flag");
    let _ = query.word("flag", &["true", "some"]);
    let _ = query.parsed::<Choice>("image");
}
