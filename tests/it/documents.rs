//! Claims of the documents, compared with the code.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use crate::support::source::sources;

const SECURITY: &str = "docs/security.md";

/// The rows of the threat table: the threat, and the column that lists its tests.
fn threats(text: &str) -> Vec<(String, String)> {
    let table = text.lines().skip_while(|line| !line.starts_with("| threat |")).skip(2);
    let rows = table.take_while(|line| line.starts_with('|')).map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        (cells[0].to_owned(), cells.last().copied().unwrap_or_default().to_owned())
    });
    rows.collect()
}

/// The texts in backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The end-to-end cases that a cell names: quoted names in the part that starts with "case" or "cases".
fn cases(cell: &str) -> Vec<&str> {
    cell.split(';').filter(|part| part.trim_start().starts_with("case")).flat_map(quoted).collect()
}

#[test]
fn every_threat_names_an_existing_test_or_case() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut functions = HashSet::new();
    for source in sources(root) {
        for line in source.text.lines() {
            let name = line.trim_start().trim_start_matches("pub ").strip_prefix("fn ");
            functions.extend(name.and_then(|rest| rest.split('(').next()).map(str::to_owned));
        }
    }
    let text = fs::read_to_string(root.join(SECURITY)).unwrap();
    let (mut missing, mut unproven) = (Vec::new(), Vec::new());
    for (threat, shown_by) in threats(&text) {
        let cases = cases(&shown_by);
        for case in &cases {
            if !root.join(format!("tests/e2e/cases/{case}.sh")).exists() {
                missing.push(format!("case {case}"));
            }
        }
        let is_test = |name: &&str| name.contains('_') && !name.contains(['.', '/', ' ', '{']);
        let tests: Vec<&str> =
            quoted(&shown_by).filter(|name| !cases.contains(name)).filter(is_test).collect();
        missing.extend(
            tests.iter().filter(|test| !functions.contains(**test)).map(|test| (*test).to_owned()),
        );
        let names_a_program =
            shown_by.contains("tests/install/run") || shown_by.contains("cargo deny");
        if tests.is_empty() && cases.is_empty() && !names_a_program {
            unproven.push(threat);
        }
    }
    assert!(missing.is_empty(), "{SECURITY} names tests that do not exist: {missing:#?}");
    assert!(unproven.is_empty(), "{SECURITY} has threats without a test: {unproven:#?}");
}

#[test]
fn threat_table_is_parsed() {
    let text = "| threat | defence | shown by |\n| --- | --- | --- |\n\
                | A | b | `some_test`, `other_test`; cases `one`, `two` |\n\nafter";
    let rows = threats(text);
    assert_eq!(rows.len(), 1);
    assert_eq!(quoted(&rows[0].1).count(), 4);
    assert_eq!(cases(&rows[0].1), ["one", "two"]);
}
