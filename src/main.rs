//! The binary: parses the arguments, runs the command, and returns its exit code.

use std::io::Write;
use std::process::ExitCode;

use argh::{ArgsInfo, FlagInfo, FlagInfoKind, FromArgs};
use larder::bundle::STANDARD_INPUT;
use larder::cli::Arguments;
use larder::oci::quoted_up_to;

/// The exit code for an invalid command line.
const USAGE: u8 = 2;
/// The options whose value is written: there, `-` is standard output.
const OUTPUT: [&str; 2] = ["--output", "-o"];
/// How similar a word must be to the mistyped one to be suggested, from 0 to 1. Most single typing errors in
/// short words are above it.
const SUGGESTION_SIMILARITY_MIN: f64 = 0.8;

fn main() -> ExitCode {
    let typed: Vec<String> =
        std::env::args_os().map(|each| each.to_string_lossy().into_owned()).collect();
    let words = hoisted(&normalized(&typed[1.min(typed.len())..]));
    // Errors of writing are ignored: there is no other place to report them, and readers may close pipes.
    match Arguments::from_args(&["larder"], &words) {
        Ok(arguments) => match larder::commands::run(arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "larder: {}", quoted_up_to(usize::MAX, &error));
                ExitCode::from(error.exit_code())
            }
        },
        Err(exit) if exit.status.is_ok() => {
            let _ = write!(std::io::stdout(), "{}", exit.output);
            ExitCode::SUCCESS
        }
        Err(exit) => {
            let _ = write!(std::io::stderr(), "larder: {}", printable(&exit.output));
            if let Some(word) = suggestion(&words) {
                let _ = writeln!(std::io::stderr(), "Did you mean {word}?");
            }
            let command = recognised(&words);
            let _ = writeln!(std::io::stderr(), "Run {command} --help for more information.");
            ExitCode::from(USAGE)
        }
    }
}

/// The lines of a text without control characters: the words of a command line may come from anywhere.
fn printable(text: &str) -> String {
    let lines = text.split('\n').map(|line| quoted_up_to(usize::MAX, line));
    lines.collect::<Vec<_>>().join("\n")
}

/// The command line in the form that `argh` understands: `--option=value` as two words, `-h` and `--version`
/// as `--help` and `version`, and a lone `-` as the path of standard input, because `argh` takes every word
/// that begins with a dash for an option. `-` as the output of a command and the options after `--` are unchanged.
fn normalized(typed: &[String]) -> Vec<&str> {
    let mut words: Vec<&str> = Vec::new();
    let mut typed = typed.iter().map(String::as_str);
    for word in typed.by_ref() {
        match word {
            "--" => {
                words.push(word);
                break;
            }
            "-" if words.last().is_none_or(|word| !OUTPUT.contains(word)) => {
                words.push(STANDARD_INPUT);
            }
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

/// A word of the command line, with its value if it is an option that takes one.
struct Word<'words> {
    text: &'words str,
    value: Option<&'words str>,
    kind: Kind,
}

enum Kind {
    /// An option of the program, or of the command.
    Option {
        is_global: bool,
    },
    Command,
    Argument,
    /// Neither an option nor a command, with those that could be here.
    Unknown(Vec<&'static str>),
}

/// The words up to `--`.
fn classified<'words>(words: &[&'words str]) -> Vec<Word<'words>> {
    let global = Arguments::get_args_info().flags;
    let mut info = Arguments::get_args_info();
    let mut words = words.iter().copied().take_while(|word| *word != "--");
    let mut all = Vec::new();
    while let Some(text) = words.next() {
        let is_it = |flag: &&FlagInfo<'static>| {
            flag.long == text || flag.short.is_some_and(|letter| text == format!("-{letter}"))
        };
        let (own, of_program) = (info.flags.iter().find(is_it), global.iter().find(is_it));
        let (kind, value) = match own.or(of_program) {
            Some(flag) => {
                let value = if flag.kind == FlagInfoKind::Switch { None } else { words.next() };
                (Kind::Option { is_global: of_program.is_some() && flag.long != "--help" }, value)
            }
            None if text.starts_with('-') && text.len() > 1 => {
                let known = info.flags.iter().chain(global).map(|flag| flag.long);
                (Kind::Unknown(known.collect()), None)
            }
            None if info.commands.is_empty() => (Kind::Argument, None),
            None => match info.commands.iter().position(|each| each.name == text) {
                Some(index) => {
                    info = info.commands.swap_remove(index).command;
                    (Kind::Command, None)
                }
                None => {
                    let known = info.commands.iter().map(|each| each.command.name);
                    (Kind::Unknown(known.collect()), None)
                }
            },
        };
        all.push(Word { text, value, kind });
    }
    all
}

/// The same command line with the program's options before the command, where `argh` accepts them.
fn hoisted<'words>(words: &[&'words str]) -> Vec<&'words str> {
    let all = classified(words);
    let classified: usize = all.iter().map(|word| 1 + usize::from(word.value.is_some())).sum();
    let is_global = |word: &&Word<'_>| matches!(word.kind, Kind::Option { is_global: true });
    let (before, after): (Vec<&Word<'_>>, Vec<_>) = all.iter().partition(is_global);
    let typed = before.into_iter().chain(after);
    let mut hoisted: Vec<&str> =
        typed.flat_map(|word| [Some(word.text), word.value]).flatten().collect();
    hoisted.extend(&words[classified..]);
    hoisted
}

/// The command or option that was probably meant by the first word that is neither.
fn suggestion(words: &[&str]) -> Option<&'static str> {
    let all = classified(words);
    let (word, known) = all.iter().find_map(|word| match &word.kind {
        Kind::Unknown(known) => Some((word.text, known)),
        _ => None,
    })?;
    most_similar(word, known.iter().copied())
}

/// The program and the commands that were recognised, for example `larder config check`.
fn recognised(words: &[&str]) -> String {
    let all = classified(words);
    let commands = all.iter().filter(|word| matches!(word.kind, Kind::Command));
    std::iter::once("larder").chain(commands.map(|word| word.text)).collect::<Vec<_>>().join(" ")
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
            ("export --all -o -", "export --all -o -"),
            ("export - -o out.tar", "export /dev/stdin -o out.tar"),
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
    fn every_option_that_is_written_keeps_its_dash() {
        for command in Arguments::get_args_info().commands {
            for flag in command.command.flags.iter().filter(|flag| flag.long == "--output") {
                let short = flag.short.map(|letter| format!("-{letter}"));
                assert!(OUTPUT.contains(&flag.long));
                assert!(short.is_none_or(|short| OUTPUT.contains(&short.as_str())));
            }
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
            ("list --image-pat x", Some("--image-path")),
            ("list -- --tre", None),
            ("", None),
        ] {
            let words: Vec<&str> = typed.split_whitespace().collect();
            assert_eq!(suggestion(&words), expected, "{typed}");
        }
    }

    #[test]
    fn options_of_the_program_may_follow_the_command() {
        for (typed, expected) in [
            ("list --image-path x", "--image-path x list"),
            ("-c x serve --port 1 -v", "-c x -v serve --port 1"),
            ("config show --config-file x", "--config-file x config show"),
            ("--config-file --image-path list", "--config-file --image-path list"),
            ("export -o --image-path -q", "export -o --image-path -q"),
            ("list a -- --image-path", "list a -- --image-path"),
            ("list --image-path", "--image-path list"),
            ("list --nosuch --image-path x", "--image-path x list --nosuch"),
            ("list --help", "list --help"),
            ("--help", "--help"),
            ("", ""),
        ] {
            let words: Vec<&str> = typed.split_whitespace().collect();
            assert_eq!(hoisted(&words).join(" "), expected, "{typed}");
        }
    }

    #[test]
    fn help_is_offered_for_the_command_that_was_meant() {
        for (typed, expected) in [
            ("load --atempts 3", "larder load"),
            ("-c x config chek", "larder config"),
            ("config show --x", "larder config show"),
            ("lod x", "larder"),
            ("", "larder"),
        ] {
            let words: Vec<&str> = typed.split_whitespace().collect();
            assert_eq!(recognised(&words), expected, "{typed}");
        }
    }
}
