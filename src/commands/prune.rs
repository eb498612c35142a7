//! `larder prune`: images that are not wanted any more, out of the cache, beside running servers.

use std::io::{self, Write};
use std::time::SystemTime;

use super::export::choices;
use super::{CommandError, existing_store, list, logging, say, units};
use crate::api::report_document;
use crate::cli;
use crate::config::Settings;
use crate::oci::Choice;
use crate::prune::{self, Criteria, Report, Request, parse_duration, parse_since};

/// Removes what is asked for, and says what went.
///
/// # Errors
/// [`CommandError`] for what was typed wrong, for pins that cannot be read, and if the disk refuses.
pub(super) fn prune(settings: &Settings, command: &cli::Prune) -> Result<(), CommandError> {
    logging::start(settings.log_level.at_least_warn(), settings.log_file.as_deref())?;
    let now = SystemTime::now();
    let (criteria, choices) = wanted(settings, command, now)?;
    let store = existing_store(&settings.store)?;
    let is_dry_run = command.dry_run;
    let request = Request::Matching { criteria: &criteria, choices: &choices, is_dry_run };
    let report = prune::prune(&store, &settings.cache.upkeep.pins, request, now, &mut || true)?;
    if !is_dry_run {
        store.settle_index()?;
    }
    match command.json {
        true => print_json(&report, is_dry_run),
        false => print_text(&report, is_dry_run),
    }
    Ok(())
}

/// What has to hold of the images that go. Something has to be said: a bare `larder prune` is somebody
/// who wants to see what it does.
fn wanted(
    settings: &Settings,
    command: &cli::Prune,
    now: SystemTime,
) -> Result<(Criteria, Vec<Choice>), CommandError> {
    let mut choices = choices(settings, &command.images, &[])?;
    let patterns = list::expressions(command.pattern.as_deref())?;
    choices.extend(patterns.into_iter().map(Choice::Matching));
    let before = [
        ("--created-before", &command.created_before),
        ("--prune-before", &command.prune_before),
        ("--date", &command.date),
    ];
    let given: Vec<(&str, &String)> =
        before.iter().filter_map(|(flag, text)| Some((*flag, text.as_ref()?))).collect();
    let fetched_before = match given[..] {
        [] => None,
        [(flag, text)] => {
            Some(parse_since(text, now).map_err(|error| CommandError::usage(flag, &error))?)
        }
        [(one, _), (other, _), ..] => {
            let text = format!("{one} and {other} are the same; give one of them");
            return Err(CommandError::Usage(text));
        }
    };
    let unused_for = command.unused_for.as_deref().map(parse_duration).transpose();
    let unused_for = unused_for.map_err(|error| CommandError::usage("--unused-for", &error))?;
    if choices.is_empty() && fetched_before.is_none() && unused_for.is_none() {
        let text = "prune: which images? Name some, or say --unused-for 30d or --created-before \
                    2026-01-31; '*' is all of them, and --dry-run says what would go";
        return Err(CommandError::Usage(text.into()));
    }
    let (count, include_pinned) = (command.count, command.include_pinned);
    Ok((Criteria { unused_for, fetched_before, count, include_pinned }, choices))
}

fn print_text(report: &Report, is_dry_run: bool) {
    report.images.iter().for_each(|image| say(image));
    if report.removed > report.images.len() {
        say(&format!("and {} more", report.removed - report.images.len()));
    }
    let would = if is_dry_run { "would be " } else { "" };
    say(&format!(
        "{} images {would}removed, {} {would}freed; {} blobs {would}removed, {} are needed by other images",
        report.removed,
        units::size(report.freed_bytes),
        report.blobs_removed,
        report.blobs_shared
    ));
    let rest = [
        (report.kept_pinned, "images match and are pinned (--include-pinned)"),
        (report.kept_in_use, "images were used meanwhile, and stay"),
    ];
    for (count, what) in rest.iter().filter(|(count, _)| *count > 0) {
        say(&format!("{count} {what}"));
    }
    if report.blobs_young > 0 {
        say(&format!(
            "{} blobs that nothing needs are younger than ten minutes, and go the next time",
            report.blobs_young
        ));
    }
    if report.is_partial {
        say("an import or export began meanwhile: blobs that nothing needs go the next time");
    }
}

fn print_json(report: &Report, is_dry_run: bool) {
    // A closed pipe is the reader's choice and no failure.
    let _ = writeln!(io::stdout(), "{:#}", report_document(report, is_dry_run));
}
