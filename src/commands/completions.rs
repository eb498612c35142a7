//! `larder completions`: scripts that complete commands, options, and the values of both.
//!
//! Generated from the structures that parse the command line. What the generator does not know, which values an option
//! has and which commands take images, is added to its scripts.

use argh::ArgsInfo;
use argh_complete::Generator;
use argh_complete::{bash::Bash, fish::Fish, zsh::Zsh};

use super::{CommandError, say};
use crate::cli::Arguments;

const NAME: &str = "larder";

/// The options with few values.
const VALUES: [(&str, &str); 6] = [
    ("--log-level", "debug info warn error"),
    ("--log-format", "text json"),
    ("--sort", "name size pulled created"),
    ("--format", "tar dir"),
    ("--compress", "gzip zstd none"),
    ("--for", "containerd crio podman docker k3s rke2 buildkit kubelet"),
];
/// The commands whose arguments are words.
const WORDS: [(&str, &str); 2] = [("offline", "on off"), ("completions", "bash zsh fish")];
/// The commands whose arguments are cached images.
const IMAGES: [&str; 10] = [
    "list",
    "prune",
    "pin",
    "unpin",
    "export",
    "verify",
    "check",
    "tags list",
    "tags accept",
    "tags reject",
];

/// Prints the names of the cached images, in the directory that the line names. Not `_larder_images`, which completes the
/// command of that name.
const BASH_IMAGES: &str = r#"_larder_cached_images() {
    local i options=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "${COMP_WORDS[i]}" in
            -c | --config-file | --image-path) options+=("${COMP_WORDS[i]}" "${COMP_WORDS[i + 1]}") ;;
        esac
    done
    "${COMP_WORDS[0]}" "${options[@]}" list --quiet 2>/dev/null
}

# The names of images contain colons.
COMP_WORDBREAKS=${COMP_WORDBREAKS//:/}

"#;
const ZSH_IMAGES: &str = r#"_larder_cached_images() {
    local -a options images
    local i
    for ((i = 2; i < CURRENT; i++)); do
        case "${words[i]}" in
            (-c|--config-file|--image-path) options+=("${words[i]}" "${words[i + 1]}") ;;
        esac
    done
    images=(${(f)"$(larder "${options[@]}" list --quiet 2>/dev/null)"})
    compadd -a images
}

"#;

/// Prints the completions for a shell.
///
/// # Errors
/// [`CommandError::Usage`] for an unknown shell.
pub(super) fn completions(shell: &str) -> Result<(), CommandError> {
    let script = match shell {
        "bash" => bash(),
        "zsh" => zsh(),
        "fish" => fish(),
        other => {
            let text = format!("unknown shell {other}; use bash, zsh or fish");
            return Err(CommandError::usage("completions", &text));
        }
    };
    say(script.trim_end());
    Ok(())
}

fn bash() -> String {
    let mut script = Bash::generate(NAME, &Arguments::get_args_info());
    let words = |words: &str| format!("COMPREPLY=( $(compgen -W \"{words}\" -- \"${{cur}}\") )");
    for (flag, values) in VALUES {
        let none = format!("{flag})\n                    COMPREPLY=()");
        script = script.replace(&none, &format!("{flag})\n                    {}", words(values)));
    }
    let of_images = IMAGES.iter().map(|command| (*command, "$(_larder_cached_images)"));
    for (command, values) in WORDS.into_iter().chain(of_images) {
        let heading = format!("        larder_{})\n", command.replace(' ', "_"));
        script = in_function(&script, &heading, |body| {
            body.replacen("${opts} ${cmds}", &format!("${{opts}} {values}"), 1)
        });
    }
    format!("{BASH_IMAGES}{}", with_global_options(&by_place(&script)))
}

/// The generated script takes every word for a command wherever it is: `tags list` for `list`. Here, a word is a command
/// only after the one that it belongs to.
fn by_place(script: &str) -> String {
    let script = script
        .replacen("cmd=\"\"", "cmd=\"larder\"", 1)
        .replacen(
            "for i in ${COMP_WORDS[@]}; do",
            "for i in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do",
            1,
        )
        .replacen("case \"${i}\" in", "case \"${cmd},${i}\" in", 1)
        .replacen(
            "            larder | */larder)\n                cmd=\"larder\"\n                ;;\n",
            "",
            1,
        );
    let mut lines: Vec<String> = script.lines().map(str::to_owned).collect();
    for index in 1..lines.len() {
        let command =
            lines[index].trim().strip_prefix("cmd=\"").and_then(|rest| rest.strip_suffix('"'));
        let Some((parent, word)) = command.and_then(|command| command.rsplit_once('_')) else {
            continue;
        };
        lines[index - 1] = format!("            {parent},{word})");
    }
    lines.join("\n") + "\n"
}

/// The options of the program are accepted after a command as well.
fn with_global_options(script: &str) -> String {
    let between = |text: &str, from: &str, to: &str| {
        let (_, rest) = text.split_once(from)?;
        rest.split_once(to).map(|(found, _)| found.to_owned())
    };
    let Some((head, program)) = script.split_once("        larder)\n") else {
        return script.to_owned();
    };
    let cases = between(program, "case \"${prev}\" in\n", "                *)").unwrap_or_default();
    let options = between(program, "opts=\"--help", "\"").unwrap_or_default();
    let Some((program, commands)) = program.split_once("        larder_") else {
        return script.to_owned();
    };
    let commands = commands
        .replace("opts=\"--help", &format!("opts=\"--help{options}"))
        .replace("case \"${prev}\" in\n", &format!("case \"${{prev}}\" in\n{cases}"));
    format!("{head}        larder)\n{program}        larder_{commands}")
}

fn zsh() -> String {
    let mut script = Zsh::generate(NAME, &Arguments::get_args_info());
    for (flag, values) in VALUES {
        let lines = script.lines().map(|line| match line.contains(&format!("{flag}[")) {
            true => line.replace("'': :'", &format!("'':value:({values})'")) + "\n",
            false => line.to_owned() + "\n",
        });
        script = lines.collect();
    }
    let words = WORDS.map(|(command, words)| (command, format!("({words})")));
    let of_images = IMAGES.map(|command| (command, "_larder_cached_images".to_owned()));
    for (command, values) in words.into_iter().chain(of_images) {
        let heading = format!("\n_larder_{}() {{\n", command.replace(' ', "_"));
        script = in_function(&script, &heading, |body| {
            let argument = format!("'*:argument:{values}' \\\n        && return 0");
            body.replacen("&& return 0", &argument, 1)
        });
    }
    script.replacen("_larder() {\n", &format!("{ZSH_IMAGES}_larder() {{\n"), 1)
}

fn fish() -> String {
    let generated = Fish::generate(NAME, &Arguments::get_args_info());
    // -x needs fish 4; -opc is the equivalent since fish 2.
    let mut script = generated.replace("commandline -xpc", "commandline -opc");
    let mut line = |condition: &str, rest: &str| {
        script.push_str(&format!("complete -c {NAME}{condition} {rest}\n"));
    };
    for (flag, values) in VALUES {
        line("", &format!("-l {} -x -a '{values}'", flag.trim_start_matches('-')));
    }
    let in_command = |command: &str| format!(" -n '__fish_larder_using_command {command}'");
    for (command, words) in WORDS {
        line(&in_command(command), &format!("-f -a '{words}'"));
    }
    for command in IMAGES {
        line(&in_command(command), &format!("-f -a '({NAME} list --quiet 2>/dev/null)'"));
    }
    script
}

/// Changes the text after a heading.
fn in_function(script: &str, heading: &str, change: impl FnOnce(&str) -> String) -> String {
    match script.split_once(heading) {
        Some((before, after)) => format!("{before}{heading}{}", change(after)),
        None => script.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn values_are_in_every_script() {
        let scripts = [bash(), zsh(), fish()];
        for (word, values) in VALUES.into_iter().chain(WORDS) {
            for script in &scripts {
                let found = script.lines().any(|line| {
                    line.contains(values) && !line.contains("display usage information")
                });
                assert!(found, "{word}: {values} is not in\n{script}");
            }
        }
        for (script, call) in scripts.iter().zip([
            "$(_larder_cached_images)",
            ":_larder_cached_images'",
            "list --quiet",
        ]) {
            let calls = script.lines().filter(|line| line.contains(call)).count();
            assert!(calls >= IMAGES.len(), "{calls} of {call} in\n{script}");
        }
    }

    #[test]
    fn every_function_of_zsh_is_defined_once() {
        let script = zsh();
        let mut names: Vec<&str> = script.lines().filter(|line| line.ends_with("() {")).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all, "{names:#?}");
    }

    #[test]
    fn bash_completes_commands_in_their_place_with_the_options_of_the_program() {
        let source = bash();
        let complete = |line: &str| {
            let script = format!(
                "{source}\nCOMP_WORDS=({line} ''); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _larder; \
                 echo \"${{COMPREPLY[*]}}\""
            );
            let done = Command::new("bash").args(["-c", &script]).output().unwrap();
            String::from_utf8(done.stdout).unwrap()
        };
        for (line, words) in [
            ("larder", "serve list load"),
            ("larder tags", "list accept reject"),
            ("larder tags accept", "--digest"),
            ("larder tags list", "--held --json"),
            ("larder config check", "--help --config-file -c --image-path"),
            ("larder serve", "--config-file"),
            ("larder serve --log-level", "debug info warn error"),
            ("larder --log-format", "text json"),
            ("larder list --log-format", "text json"),
            ("larder list --sort", "name size pulled created"),
            ("larder offline", "on off"),
        ] {
            let found = complete(line);
            assert!(found.contains(words), "{line}: {found}");
        }
        assert!(!complete("larder config check").contains("--server"));
    }

    #[test]
    fn values_are_accepted() {
        for (flag, values) in VALUES {
            let info = Arguments::get_args_info();
            let flags = info
                .flags
                .iter()
                .chain(info.commands.iter().flat_map(|each| each.command.flags.iter()));
            assert!(flags.into_iter().any(|known| known.long == flag), "{flag} of {values}");
        }
    }
}
