//! Tables for terminals.

use std::io::{self, Write};

/// Prints lines of cells in columns. The first line is the heading.
pub(super) fn print<const COLUMNS: usize>(
    out: &mut dyn Write,
    lines: &[[String; COLUMNS]],
) -> io::Result<()> {
    let widths: [usize; COLUMNS] = std::array::from_fn(|column| {
        lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default()
    });
    for line in lines {
        let cells = line.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}
