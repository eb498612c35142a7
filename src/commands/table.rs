//! Tables for terminals.

use std::io::{self, Write};

use crate::oci::quoted_up_to;

/// Hexadecimal characters of a digest in a table, as in other tools.
const SHORT_DIGEST: usize = 12;
/// The length of a cell. Names of images are shorter.
const CELL_CHARS_MAX: usize = 1000;

/// A digest in a table.
pub(super) fn short(hex: &str) -> String {
    hex.chars().take(SHORT_DIGEST).collect()
}

/// Prints lines of cells in columns. The first line is the heading. Cells may contain any text.
pub(super) fn print<const COLUMNS: usize>(
    out: &mut dyn Write,
    lines: &[[String; COLUMNS]],
) -> io::Result<()> {
    let cell = |text: &String| quoted_up_to(CELL_CHARS_MAX, text);
    let lines: Vec<[String; COLUMNS]> =
        lines.iter().map(|line| line.each_ref().map(cell)).collect();
    let widths: [usize; COLUMNS] = std::array::from_fn(|column| {
        lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default()
    });
    for line in lines {
        let cells = line.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}
