//! `larder export`: exports images from the cache, also while a server runs.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::progress::{Progress, note_unless};
use super::selection::{choices, hint_in, invalid, read};
use super::{CommandError, bucket, existing_store, logging, note, parsed};
use crate::bundle::{
    self, BundleError, Chosen, Compression, Destination, ExportEvent, ExportSummary, Form, Have,
    Missing, OpenOutput, STANDARD_INPUT, Selection,
};
use crate::cli::Export;
use crate::config::Settings;
use crate::oci::{Choice, PartReference, PlatformError};
use crate::prune::parse_since;
use crate::store::StoredImage;
use crate::units::{plural, size};

/// Exports the selected images. If something is missing, prints what and writes nothing.
///
/// # Errors
/// [`CommandError`] for an invalid command line, for incomplete images, and for I/O errors.
pub(super) fn export(typed: &Export, settings: &Settings) -> Result<(), CommandError> {
    logging::start(settings.log_level, settings)?;
    let place = bucket::Place::parse(&typed.output).transpose()?;
    if place.is_some() {
        refuse_for_bucket(typed)?;
    }
    let (selection, form) = (selection(settings, typed)?, form(typed)?);
    let have = have(typed)?;
    let store = existing_store(&settings.store)?;
    // Before the cache is read, which takes time.
    let output = place.is_none().then(|| OpenOutput::open(form)).transpose()?;
    let doing = "list the images in the cache";
    let plan = bundle::select(&store, &selection)
        .map_err(|source| CommandError::System { doing, source })?;
    let hint = wanted(&selection, &plan.missing).and_then(|name| hint_in(&store, name));
    for missing in plan.missing.iter().chain(&plan.left_out) {
        match (missing, &hint) {
            (Missing::Nothing { .. }, Some(hint)) => note(&format!("{missing}; {hint}")),
            _ => note(missing),
        }
    }
    if !plan.missing.is_empty() && !typed.partial {
        return Err(BundleError::Refused { images: plan.missing.len() }.into());
    }
    if plan.images.is_empty() && selection.since.is_none() {
        return Err(BundleError::NothingChosen.into());
    }
    plan.images.iter().for_each(|chosen| note_unless(typed.quiet, &Line(chosen)));
    let Some(output) = output else {
        let images: Vec<StoredImage> = plan.images.into_iter().map(|chosen| chosen.image).collect();
        return place
            .map_or(Ok(()), |place| bucket::export(settings, place, &store, &images, typed.quiet));
    };
    let mut progress = Progress::start(true, "exported", None);
    let exported = bundle::export(&store, &plan.images, &have, output, &mut |event| match event {
        ExportEvent::Begins { bytes } => {
            progress = Progress::start(typed.quiet, "exported", Some(bytes));
        }
        ExportEvent::Progress { bytes } => progress.add(bytes),
    });
    progress.end();
    let summary = exported?;
    note_unless(typed.quiet, &Summary(&summary, &typed.output));
    Ok(())
}

/// The name of an image that is not in the cache, if it is the only one.
fn wanted<'a>(selection: &'a Selection, missing: &[Missing]) -> Option<&'a PartReference> {
    let unmatched = missing.iter().filter_map(|missing| match missing {
        Missing::Nothing { choice } => Some(choice),
        _ => None,
    });
    let [text] = unmatched.collect::<Vec<_>>()[..] else { return None };
    selection.choices.iter().flatten().find_map(|choice| match choice {
        Choice::Exact(name) if choice.to_string() == *text => Some(name),
        _ => None,
    })
}

/// A bucket gets complete images as they are in the cache.
fn refuse_for_bucket(typed: &Export) -> Result<(), CommandError> {
    let given = [
        ("--format", typed.format.is_some()),
        ("--compress", typed.compress.is_some()),
        ("--volume-size", typed.volume_size.is_some()),
        ("--platform", !typed.platform.is_empty()),
        ("--except", typed.except.is_some()),
    ];
    match given.iter().find(|(_, is_given)| *is_given) {
        Some((flag, _)) => Err(CommandError::usage(
            flag,
            &"does not apply to a bucket, which gets what is missing there",
        )),
        None => Ok(()),
    }
}

fn selection(settings: &Settings, typed: &Export) -> Result<Selection, CommandError> {
    let choices = choices(settings, &typed.images, &typed.list)?;
    if typed.all != choices.is_empty() {
        let text = "export: select images with names or patterns, --list FILE, or --all (but not --all with others)";
        return Err(CommandError::Usage(text.into()));
    }
    let since = typed.since.as_deref().map(|text| parse_since(text, SystemTime::now()));
    let platforms = typed.platform.iter().map(|text| text.parse());
    Ok(Selection {
        choices: (!typed.all).then_some(choices),
        since: since.transpose().map_err(|error| CommandError::usage("--since", &error))?,
        platforms: platforms
            .collect::<Result<_, PlatformError>>()
            .map_err(|error| CommandError::usage("--platform", &error))?,
    })
}

fn form(typed: &Export) -> Result<Form, CommandError> {
    let output = &typed.output;
    if output == Path::new(STANDARD_INPUT) {
        let text = "--output: standard input cannot be written; use - for standard output";
        return Err(CommandError::Usage(text.into()));
    }
    let is_named_directory = output.as_os_str().as_encoded_bytes().ends_with(b"/");
    let is_directory = match typed.format.as_deref() {
        None => is_named_directory,
        Some("tar") => false,
        Some("dir") => true,
        Some(other) => {
            return Err(CommandError::usage(
                "--format",
                &format!("unknown format {other}; use tar or dir"),
            ));
        }
    };
    let volume_bytes = typed.volume_size.as_deref().map(bundle::parse_size).transpose();
    let volume_bytes =
        volume_bytes.map_err(|error| CommandError::usage("--volume-size", &error))?;
    let compression: Option<Compression> = parsed("--compress", typed.compress.as_deref())?;
    let is_standard_output = output == Path::new("-");
    let destination = match volume_bytes {
        _ if is_directory && (volume_bytes.is_some() || compression.is_some()) => {
            let text = "--volume-size and --compress apply to tar files only, but the output is a directory";
            return Err(CommandError::Usage(text.into()));
        }
        Some(_) if is_standard_output => {
            let text = "--volume-size: standard output cannot be split; set a file with --output";
            return Err(CommandError::Usage(text.into()));
        }
        _ if is_directory => Destination::Directory(output.clone()),
        Some(volume_bytes) => Destination::Volumes { prefix: output.clone(), volume_bytes },
        None if is_standard_output => Destination::StandardOutput,
        None => Destination::File(output.clone()),
    };
    Ok(Form { destination, compression: compression.unwrap_or(Compression::of_name(output)) })
}

fn have(typed: &Export) -> Result<Have, CommandError> {
    let Some(path) = &typed.except else { return Ok(Have::default()) };
    Have::parse(&read("--except", path)?).map_err(|error| invalid(path, &error))
}

/// The output line of an exported image.
struct Line<'a>(&'a Chosen);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Line(chosen @ Chosen { image, platforms, .. }) = self;
        write!(f, "{}", image.full_reference())?;
        if !image.full_reference().contains('@') {
            write!(f, " {}", image.digest)?;
        }
        if !platforms.is_empty() {
            write!(f, " {}", platforms.join(", "))?;
        }
        write!(f, " {}", size(chosen.bytes()))
    }
}

struct Summary<'a>(&'a ExportSummary, &'a PathBuf);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary(summary, output) = self;
        write!(
            f,
            "{}, {} ({}) written to {}",
            plural(summary.images, "image"),
            plural(summary.blobs, "blob"),
            size(summary.bytes),
            output.display()
        )?;
        if let Some(volumes) = summary.volumes {
            write!(f, " in {}", plural(volumes, "volume"))?;
        }
        if summary.blobs_left_out > 0 {
            let left_out = size(summary.bytes_left_out);
            let blobs = plural(summary.blobs_left_out, "blob");
            write!(f, "; {blobs} ({left_out}) left out because of --except")?;
        }
        Ok(())
    }
}
