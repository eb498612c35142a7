//! The binary: arguments to command to exit code.

use std::io::Write;
use std::process::ExitCode;

use argh::FromArgs;
use larder::cli::Arguments;

/// The exit code for what was typed wrong.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let typed: Vec<String> =
        std::env::args_os().map(|each| each.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = typed.iter().skip(1).map(String::as_str).collect();
    // What cannot be reported cannot be helped: a closed pipe is the reader's choice.
    match Arguments::from_args(&["larder"], &words) {
        Ok(arguments) => match larder::commands::run(arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "larder: {error}");
                ExitCode::from(error.exit_code())
            }
        },
        Err(exit) if exit.status.is_ok() => {
            let _ = write!(std::io::stdout(), "{}", exit.output);
            ExitCode::SUCCESS
        }
        Err(exit) => {
            let _ = write!(std::io::stderr(), "larder: {}", exit.output);
            let _ = writeln!(std::io::stderr(), "Run larder --help for more information.");
            ExitCode::from(USAGE)
        }
    }
}
