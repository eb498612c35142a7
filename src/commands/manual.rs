//! `larder man` and `larder completions`: what the command line says of itself, for `man` and for shells.
//!
//! Both are made of the structures that parse the command line, so that they cannot say anything else.

use argh::{ArgsInfo, CommandInfoWithArgs, FlagInfo, FlagInfoKind, Optionality, PositionalInfo};
use argh_complete::Generator;
use argh_complete::{bash::Bash, fish::Fish, zsh::Zsh};
use roff::{Inline, Roff, bold, italic, roman};

use super::{CommandError, say};
use crate::cli::Arguments;

const NAME: &str = "larder";
/// When the page's own text was last changed.
const WRITTEN: &str = "2026-11-24";

/// What is not in the structures, by section.
const SIGNALS: [(&str, &str); 3] = [
    (
        "SIGTERM, SIGINT",
        "drain: stop listening, finish what is being sent (drainTimeout), end. A second one cuts.",
    ),
    (
        "SIGHUP",
        "read the configuration and the files that it names again; what is wrong changes nothing.",
    ),
    ("SIGPIPE", "is ignored."),
];
const EXIT_STATUS: [(&str, &str); 3] = [
    ("0", "Success. Of serve: it was told to end, and has drained."),
    ("1", "It failed, or not all of it could be done; standard error says what."),
    ("2", "The command line or the configuration makes no sense; nothing was done."),
];
const FILES: [(&str, &str); 2] = [
    (
        "/var/lib/larder",
        "The cache, if nothing else is said: an OCI image layout. Several processes may share it.",
    ),
    (
        "/etc/larder/larder.yaml",
        "The configuration where Larder was installed as a service; elsewhere what --config-file names.",
    ),
];
const EXAMPLES: [(&str, &str); 5] = [
    (
        "larder --image-path ./cache serve --port 8080",
        "Serve every public registry, and private ones that a configuration lists.",
    ),
    (
        "larder --config-file /etc/larder/larder.yaml config check",
        "Say whether a server could start with it.",
    ),
    ("larder list --sort size", "What is here, and what is missing of it."),
    ("larder prune --unused-for 30d --dry-run", "What would go."),
    (
        "larder export 'docker.io/library/*' --output images.tar",
        "Images for where there is no network.",
    ),
];

/// Prints the completions for a shell.
///
/// # Errors
/// [`CommandError::Usage`] for a shell that is not known.
pub(super) fn completions(shell: &str) -> Result<(), CommandError> {
    let info = Arguments::get_args_info();
    let script = match shell {
        "bash" => Bash::generate(NAME, &info),
        "zsh" => Zsh::generate(NAME, &info),
        // The same words by the option that fish has had since version 2: -x is of version 4.
        "fish" => Fish::generate(NAME, &info).replace("commandline -xpc", "commandline -opc"),
        other => {
            let text = format!("{other} is none of bash, zsh and fish");
            return Err(CommandError::usage("completions", &text));
        }
    };
    say(script.trim_end());
    Ok(())
}

/// Prints the manual page.
pub(super) fn page() {
    say(render(&Arguments::get_args_info()).trim_end());
}

fn render(info: &CommandInfoWithArgs) -> String {
    let mut page = Roff::new();
    let version = concat!("larder ", env!("CARGO_PKG_VERSION"));
    page.control("TH", ["LARDER", "8", WRITTEN, version, "System Administration"]);
    page.control("SH", ["NAME"]);
    page.text([roman("larder - pull-through cache for container images")]);
    page.control("SH", ["SYNOPSIS"]);
    page.text([bold(NAME), roman(" [options] "), italic("command"), roman(" [arguments]")]);
    page.control("SH", ["DESCRIPTION"]);
    page.text([roman(info.description)]);
    page.control("SH", ["OPTIONS"]);
    page.text([roman("They stand before the command.")]);
    info.flags.iter().for_each(|flag| option(&mut page, flag));
    page.control("SH", ["COMMANDS"]);
    for each in &info.commands {
        command(&mut page, "", &each.command);
    }
    for (title, entries) in [
        ("SIGNALS", &SIGNALS[..]),
        ("EXIT STATUS", &EXIT_STATUS),
        ("FILES", &FILES),
        ("EXAMPLES", &EXAMPLES),
    ] {
        page.control("SH", [title]);
        for (term, text) in entries {
            entry(&mut page, vec![bold(*term)], text);
        }
    }
    page.control("SH", ["ENVIRONMENT"]);
    entry(
        &mut page,
        vec![bold("HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY")],
        "The way to registries, as elsewhere.",
    );
    page.render()
}

/// A command, or one of a command's own.
fn command(page: &mut Roff, prefix: &str, info: &CommandInfoWithArgs) {
    let name = format!("{prefix}{}", info.name);
    page.control("SS", [synopsis(&name, info).as_str()]);
    page.text([roman(info.description)]);
    for positional in info.positionals {
        let term = if positional.name.is_empty() { "arguments" } else { positional.name };
        entry(page, vec![italic(term)], positional.description);
    }
    info.flags.iter().for_each(|flag| option(page, flag));
    for each in &info.commands {
        command(page, &format!("{name} "), &each.command);
    }
}

fn synopsis(name: &str, info: &CommandInfoWithArgs) -> String {
    let words =
        info.positionals.iter().map(|PositionalInfo { name, optionality, .. }| match optionality {
            Optionality::Required => format!(" {name}"),
            Optionality::Optional => format!(" [{name}]"),
            Optionality::Repeating | Optionality::Greedy => format!(" [{name} ...]"),
        });
    let words: String = words.collect();
    let options = if info.flags.iter().all(is_help) { "" } else { " [options]" };
    let commands = if info.commands.is_empty() { "" } else { " command" };
    format!("{name}{options}{commands}{words}")
}

/// Which every command has, and nobody needs to be told of each time.
fn is_help(flag: &FlagInfo<'_>) -> bool {
    flag.long == "--help"
}

fn option(page: &mut Roff, flag: &FlagInfo<'_>) {
    if is_help(flag) {
        return;
    }
    let mut term = vec![bold(flag.long)];
    if let FlagInfoKind::Option { arg_name } = flag.kind {
        term.push(roman(" "));
        term.push(italic(arg_name));
    }
    entry(page, term, flag.description);
}

fn entry(page: &mut Roff, term: Vec<Inline>, text: &str) {
    page.control("TP", []);
    page.text(term);
    page.text([roman(text)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every flag and every command of the command line, however deep.
    fn words(info: &CommandInfoWithArgs) -> Vec<&'static str> {
        let flags = info.flags.iter().filter(|flag| !is_help(flag)).map(|flag| flag.long);
        let mut words: Vec<&str> = flags.collect();
        for each in &info.commands {
            words.push(each.command.name);
            words.extend(self::words(&each.command));
        }
        words
    }

    #[test]
    fn everything_that_can_be_typed_is_in_the_page_and_in_the_completions() {
        let info = Arguments::get_args_info();
        let words = words(&info);
        assert!(words.contains(&"--image-path") && words.contains(&"serve"), "{words:?}");
        let page = render(&info).replace("\\-", "-");
        let scripts = [Bash::generate(NAME, &info), Zsh::generate(NAME, &info)];
        for word in &words {
            assert!(page.contains(word), "{word} is not in the page");
            for script in &scripts {
                assert!(script.contains(word), "{word} is not in the completions");
            }
        }
        let fish = Fish::generate(NAME, &info);
        for word in &words {
            assert!(fish.contains(word.trim_start_matches('-')), "{word} is not in fish's");
        }
    }

    #[test]
    fn what_the_file_says_of_exit_codes_is_true() {
        let codes: Vec<&str> = EXIT_STATUS.iter().map(|(code, _)| *code).collect();
        let usage = CommandError::Usage("x".into()).exit_code().to_string();
        assert!(codes == ["0", "1", "2"] && usage == "2");
    }
}
