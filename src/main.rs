//! The binary: parses the arguments, runs the command, and returns its exit code.

use std::io::Write;
use std::process::ExitCode;

use argh::{ArgsInfo, FlagInfoKind, FromArgs};
use larder::bundle::STANDARD_INPUT;
use larder::cli::Arguments;

/// The exit code for an invalid command line.
const USAGE: u8 = 2;
/// Options that must precede the command.
const GLOBAL_OPTIONS: [&str; 4] = ["--config-file", "--image-path", "--log-level", "--log-file"];
/// How similar a word must be to the mistyped one to be suggested, from 0 to 1. Most single typing errors in
/// short words are above it.
const SUGGESTION_SIMILARITY_MIN: f64 = 0.8;

fn main() -> ExitCode {
    let typed: Vec<String> =
        std::env::args_os().map(|each| each.to_string_lossy().into_owned()).collect();
    let words = normalized(&typed[1.min(typed.len())..]);
    // Errors of writing are ignored: there is no other place to report them, and readers may close pipes.
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
            if let Some(option) = misplaced(&words) {
                let _ = writeln!(
                    std::io::stderr(),
                    "{option} must precede the command: larder {option} … COMMAND"
                );
            } else if let Some(word) = suggestion(&words) {
                let _ = writeln!(std::io::stderr(), "Did you mean {word}?");
            }
            let _ = writeln!(std::io::stderr(), "Run larder --help for more information.");
            ExitCode::from(USAGE)
        }
    }
}

/// The command line in the form that `argh` understands: `--option=value` as two words, `-h` and `--version`
/// as `--help` and `version`, and a lone `-` as the path of standard input, because `argh` takes every word
/// that begins with a dash for an option. `-` after `--output` and the options after `--` are unchanged.
fn normalized(typed: &[String]) -> Vec<&str> {
    let mut words: Vec<&str> = Vec::new();
    let mut typed = typed.iter().map(String::as_str);
    for word in typed.by_ref() {
        match word {
            "--" => {
                words.push(word);
                break;
            }
            "-" if words.last() != Some(&"--output") => words.push(STANDARD_INPUT),
            "-h" => words.push("--help"),
            "-V" | "--version" if words.is_empty() => words.push("version"),
            word => match word.split_once('=').filter(|_| word.starts_with("--")) {
                Some((option, value)) => words.extend([option, value]),
                None => words.push(word),
            },
        }
    }
    words.extend(typed.map(|word| if word == "-" { STANDARD_INPUT } else { word }));
    words
}

/// A global option after the command, where `argh` does not accept it.
fn misplaced<'words>(words: &[&'words str]) -> Option<&'words str> {
    let is_global = |word: &&str| GLOBAL_OPTIONS.contains(word);
    let before = words.chunks(2).take_while(|pair| is_global(&pair[0])).count() * 2;
    let after = words.get(before..)?.iter().copied().take_while(|word| *word != "--");
    after.skip(1).find(is_global)
}

/// The command or option that was probably meant by the first word that is neither.
fn suggestion(words: &[&str]) -> Option<&'static str> {
    let mut info = Arguments::get_args_info();
    let mut words = words.iter().take_while(|word| **word != "--");
    while let Some(word) = words.next() {
        if word.starts_with('-') {
            match info.flags.iter().find(|flag| flag.long == *word) {
                None => return most_similar(word, info.flags.iter().map(|flag| flag.long)),
                Some(flag) if flag.kind == FlagInfoKind::Switch => {}
                // Its value.
                Some(_) => drop(words.next()),
            }
        } else if !info.commands.is_empty() {
            match info.commands.iter().position(|each| each.name == *word) {
                None => {
                    return most_similar(word, info.commands.iter().map(|each| each.command.name));
                }
                Some(index) => info = info.commands.swap_remove(index).command,
            }
        }
    }
    None
}

fn most_similar(
    word: &str,
    candidates: impl Iterator<Item = &'static str>,
) -> Option<&'static str> {
    candidates
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(similarity, _)| *similarity >= SUGGESTION_SIMILARITY_MIN)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_spellings_are_normalized() {
        for (typed, expected) in [
            ("--version", "version"),
            ("-V", "version"),
            ("list -h", "list --help"),
            ("--config-file=/a=b list", "--config-file /a=b list"),
            ("export --all --output -", "export --all --output -"),
            ("export --all --output=-", "export --all --output -"),
            ("import -", "import /dev/stdin"),
            ("import --pin -", "import --pin /dev/stdin"),
            ("import -- - --name=x", "import -- /dev/stdin --name=x"),
            ("list a=b", "list a=b"),
            ("", ""),
        ] {
            let typed: Vec<String> = typed.split_whitespace().map(str::to_owned).collect();
            assert_eq!(normalized(&typed).join(" "), expected, "{typed:?}");
        }
    }

    #[test]
    fn a_mistyped_word_suggests_a_command_or_an_option_of_the_command() {
        for (typed, expected) in [
            ("lst", Some("list")),
            ("--config-file list imprt", Some("import")),
            ("--confg-file x list", Some("--config-file")),
            ("config shwo", Some("show")),
            ("prune --unused-fo 30d", Some("--unused-for")),
            ("prune --dryrun", Some("--dry-run")),
            ("serve --air-gaped --port 1", Some("--air-gapped")),
            ("frobnicate", None),
            ("list alpine", None),
            ("list -- --tre", None),
            ("", None),
        ] {
            let words: Vec<&str> = typed.split_whitespace().collect();
            assert_eq!(suggestion(&words), expected, "{typed}");
        }
    }

    #[test]
    fn global_options_after_a_command_are_found() {
        for (typed, found) in [
            ("list --image-path x", Some("--image-path")),
            ("--config-file x serve --port 1 --log-level info", Some("--log-level")),
            ("--config-file --image-path list", None),
            ("--config-file x list", None),
            ("list -- --image-path", None),
            ("--config-file", None),
            ("", None),
        ] {
            let words: Vec<&str> = typed.split_whitespace().collect();
            assert_eq!(misplaced(&words), found, "{typed}");
        }
    }
}
