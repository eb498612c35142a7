//! What commands print.

use std::fmt;
use std::io::{self, ErrorKind, Write};

use super::CommandError;

/// Prints a line to standard output. A closed pipe is not an error.
pub(super) fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// The result of a command that has printed to standard output. A closed pipe is not an error.
pub(super) fn printed(result: io::Result<()>) -> Result<(), CommandError> {
    match result {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other
            .map_err(|source| CommandError::System { doing: "write to standard output", source }),
    }
}

/// Prints a line for the user to standard error; standard output is for other programs to read.
pub(super) fn note(line: &dyn fmt::Display) {
    // A closed terminal is not an error.
    let _ = writeln!(io::stderr(), "{line}");
}
