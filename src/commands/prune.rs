//! `larder prune`: removes images from the cache, also while servers run.

use std::io::{self, Write};
use std::time::SystemTime;

use super::selection::Selected;
use super::{CommandError, bucket, existing_store, logging, note, parsed, say};
use crate::api::report_document;
use crate::cli;
use crate::config::{Count, Settings};
use crate::prune::{self, Criteria, Report, Request, parse_duration, parse_since};
use crate::units::{plural, size};

/// Removes the selected images, and prints which.
///
/// # Errors
/// [`CommandError`] for an invalid command line, for unreadable pins, and for I/O errors.
pub(super) fn prune(settings: &Settings, command: &cli::Prune) -> Result<(), CommandError> {
    logging::start(settings.log_level.at_least_warn(), settings)?;
    if command.bucket {
        return prune_bucket(settings, command);
    }
    let now = SystemTime::now();
    let (criteria, selected) = wanted(settings, command, now)?;
    let store = existing_store(&settings.store)?;
    let (matched, all_matched) = (selected.check_names_in(&store), selected.check_in(&store));
    let is_dry_run = command.dry_run;
    let choices = selected.choices();
    let request = Request::Matching { criteria: &criteria, choices, is_dry_run };
    let report =
        prune::prune(&store, &settings.cache.maintenance.pins, request, now, &mut || true)?;
    if !is_dry_run {
        store.settle_index()?;
    }
    match command.json {
        true => print_json(&report, is_dry_run),
        false => print_text(&report, is_dry_run),
    }
    if let (Ok(()), Err(unmatched)) = (&matched, all_matched) {
        // Not an error: a scheduled command may have nothing to do. But a pattern may be mistyped.
        note(&unmatched);
    }
    // The others are removed nevertheless.
    matched
}

/// Carries out what the configuration says about the bucket.
fn prune_bucket(settings: &Settings, command: &cli::Prune) -> Result<(), CommandError> {
    let has_conditions = !command.images.is_empty()
        || command.count.is_some()
        || command.include_pinned
        || [
            &command.pattern,
            &command.unused_for,
            &command.created_before,
            &command.prune_before,
            &command.date,
        ]
        .iter()
        .any(|given| given.is_some());
    if has_conditions {
        let text = "prune --bucket follows maxSize and unusedFor of objectStore, and takes only --dry-run \
                    and --json";
        return Err(CommandError::Usage(text.into()));
    }
    bucket::prune(settings, command.dry_run, command.json)
}

/// The conditions on the images to remove. There must be at least one: a bare `larder prune` is probably
/// somebody trying the command, and must not empty the cache.
fn wanted(
    settings: &Settings,
    command: &cli::Prune,
    now: SystemTime,
) -> Result<(Criteria, Selected), CommandError> {
    let selected = Selected::parse(settings, &command.images, command.pattern.as_deref())?;
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
            let text = format!("{one} and {other} have the same meaning; use one of them");
            return Err(CommandError::Usage(text));
        }
    };
    let unused_for = command.unused_for.as_deref().map(parse_duration).transpose();
    let unused_for = unused_for.map_err(|error| CommandError::usage("--unused-for", &error))?;
    if selected.is_everything() && fetched_before.is_none() && unused_for.is_none() {
        let text = "prune: select images by name, or with --unused-for 30d or --created-before \
                    2026-01-31; '*' selects all, and --dry-run prints what would be removed";
        return Err(CommandError::Usage(text.into()));
    }
    let count: Option<Count> = parsed("--count", command.count.as_deref())?;
    let count = count.and_then(|Count(count)| usize::try_from(count).ok());
    let include_pinned = command.include_pinned;
    Ok((Criteria { unused_for, fetched_before, count, include_pinned }, selected))
}

fn print_text(report: &Report, is_dry_run: bool) {
    report.images.iter().for_each(|image| say(image));
    if report.removed > report.images.len() {
        say(&format!("and {} more", report.removed - report.images.len()));
    }
    let would = if is_dry_run { "would be " } else { "" };
    say(&format!(
        "{} {would}removed, {} {would}freed; {} {would}removed, {} kept for other images",
        plural(report.removed, "image"),
        size(report.freed_bytes),
        plural(report.blobs_removed, "blob"),
        report.blobs_shared
    ));
    let kept = [
        (report.kept_pinned, "pinned; --include-pinned removes pinned images"),
        (report.kept_in_use, "used in the meantime"),
    ];
    for (count, reason) in kept.into_iter().filter(|(count, _)| *count > 0) {
        say(&format!("{} kept: {reason}", plural(count, "image")));
    }
    if report.blobs_young > 0 {
        say(&format!(
            "{} kept: no image needs them, but they are younger than ten minutes; the next prune removes them",
            plural(report.blobs_young, "blob")
        ));
    }
    if report.is_partial {
        say(
            "an import or export started in the meantime; the next prune removes the blobs that no image needs",
        );
    }
}

fn print_json(report: &Report, is_dry_run: bool) {
    // A closed pipe is not an error.
    let _ = writeln!(io::stdout(), "{:#}", report_document(report, is_dry_run));
}
