//! The binary: arguments to command to exit code.

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: larder::cli::Arguments = argh::from_env();
    match larder::commands::run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to report a failure to report to.
            let _ = writeln!(std::io::stderr(), "larder: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
