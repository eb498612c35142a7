//! The binary: arguments to command to exit code.

use std::io::Write;
use std::process::ExitCode;

use argh::FromArgs;
use larder::bundle::STANDARD_INPUT;
use larder::cli::Arguments;

/// The exit code for what was typed wrong.
const USAGE: u8 = 2;
/// Options that stand before the command.
const OF_ALL_COMMANDS: [&str; 4] = ["--config-file", "--image-path", "--log-level", "--log-file"];

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
            if let Some(option) = misplaced(&words) {
                let _ = writeln!(
                    std::io::stderr(),
                    "{option} stands before the command: larder {option} … COMMAND"
                );
            }
            let _ = writeln!(std::io::stderr(), "Run larder --help for more information.");
            ExitCode::from(USAGE)
        }
    }
}

/// The words that were typed, as `argh` understands them: `--option=value` as two words, `-h` and
/// `--version` by their names here, and a lone `-` that is not where an export goes as a path, since `argh` takes
/// whatever begins with a dash for an option. What stands behind `--` is left alone.
fn spelled_out(typed: &[String]) -> Vec<&str> {
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

/// An option of all commands that stands behind the command, where `argh` knows none of them.
fn misplaced<'words>(words: &[&'words str]) -> Option<&'words str> {
    let of_all = |word: &&str| OF_ALL_COMMANDS.contains(word);
    let before = words.chunks(2).take_while(|pair| of_all(&pair[0])).count() * 2;
    let behind = words.get(before..)?.iter().copied().take_while(|word| *word != "--");
    behind.skip(1).find(of_all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_understood_as_they_are_typed_elsewhere() {
        for (typed, understood) in [
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
            assert_eq!(spelled_out(&typed).join(" "), understood, "{typed:?}");
        }
    }

    #[test]
    fn options_of_all_commands_are_found_behind_one() {
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
