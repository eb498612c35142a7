//! The binary: arguments to command to exit code.

use std::io::Write;
use std::process::ExitCode;

use argh::FromArgs;
use larder::bundle::STANDARD_INPUT;
use larder::cli::Arguments;

/// The exit code for what was typed wrong.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let typed: Vec<String> =
        std::env::args_os().map(|each| each.to_string_lossy().into_owned()).collect();
    let words = spelled_out(&typed[1.min(typed.len())..]);
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

/// The words that were typed, with a lone `-` that is no option's value spelled out as a path: `argh`
/// takes whatever begins with a dash for an option.
fn spelled_out(typed: &[String]) -> Vec<&str> {
    let before = std::iter::once("").chain(typed.iter().map(String::as_str));
    let pairs = before.zip(typed.iter().map(String::as_str));
    pairs
        .map(|(before, word)| match word {
            "-" if !before.starts_with("--") => STANDARD_INPUT,
            word => word,
        })
        .collect()
}
