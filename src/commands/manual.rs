//! `larder man`: the manual page, generated from the structures that parse the command line, so it always matches them.

use argh::{ArgsInfo, CommandInfoWithArgs, FlagInfo, FlagInfoKind, Optionality, PositionalInfo};
use roff::{Inline, Roff, bold, italic, roman};

use super::say;
use crate::cli::Arguments;

const NAME: &str = "larder";
/// When the text in this file was last changed.
const WRITTEN: &str = "2026-11-29";

/// The sections that are not generated.
const SIGNALS: [(&str, &str); 3] = [
    (
        "SIGTERM, SIGINT",
        "Drain: stop listening, finish responses in progress (up to drainTimeout), exit. A second signal exits at once.",
    ),
    (
        "SIGHUP",
        "Reload the configuration and the files it refers to. If there is an error, nothing changes.",
    ),
    ("SIGPIPE", "Ignored."),
];
const EXIT_STATUS: [(&str, &str); 3] = [
    ("0", "Success. For serve: the server received a signal and has drained."),
    (
        "1",
        "The command failed, completely or in part, or nothing matches what was selected. The reason is on standard error.",
    ),
    ("2", "The command line or the configuration is invalid. Nothing was done."),
];
const FILES: [(&str, &str); 2] = [
    (
        "/var/lib/larder",
        "The default cache directory: an OCI image layout. Several processes may share it.",
    ),
    (
        "/etc/larder/larder.yaml",
        "The configuration file of the systemd service. There is no default without the service: use --config-file.",
    ),
];
const EXAMPLES: [(&str, &str); 6] = [
    (
        "larder --image-path ./cache serve --port 8080",
        "Serve every public registry, and private ones that a configuration lists.",
    ),
    (
        "larder --config-file /etc/larder/larder.yaml config check",
        "Check whether a server can start with this configuration.",
    ),
    ("larder list --sort size", "List cached images, largest first."),
    ("larder prune --unused-for 30d --dry-run", "Print which images would be removed."),
    (
        "helm template ./chart | larder load --from -",
        "Pull the images that a chart needs into the cache.",
    ),
    (
        "larder export 'docker.io/library/*' --output images.tar",
        "Export images for a site without network.",
    ),
];

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
    page.text([roman("These may precede or follow the command.")]);
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
        "Proxies for connections to registries, as in other programs.",
    );
    entry(&mut page, vec![bold("NO_COLOR")], "Has no effect: no output has colors.");
    page.render()
}

/// A command or a subcommand.
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

/// Every command has `--help`, so it is not listed.
fn is_help(flag: &FlagInfo<'_>) -> bool {
    flag.long == "--help"
}

fn option(page: &mut Roff, flag: &FlagInfo<'_>) {
    if is_help(flag) {
        return;
    }
    let mut term = vec![bold(flag.long)];
    if let Some(letter) = flag.short {
        term = vec![bold(format!("-{letter}")), roman(", "), bold(flag.long)];
    }
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
    use argh_complete::Generator;
    use argh_complete::{bash::Bash, fish::Fish, zsh::Zsh};

    use super::*;
    use crate::commands::CommandError;

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
    fn every_option_and_command_is_in_the_page_and_in_the_completions() {
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
    fn the_page_lists_the_exit_codes() {
        let codes: Vec<&str> = EXIT_STATUS.iter().map(|(code, _)| *code).collect();
        let usage = CommandError::Usage("x".into()).exit_code().to_string();
        assert!(codes == ["0", "1", "2"] && usage == "2");
    }
}
