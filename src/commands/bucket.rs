//! `larder list --bucket` and `larder prune --bucket`.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::{CommandError, existing_store, printed, table};
use crate::cache::{BucketImage, SweepError, SweepTimes, Sweeper};
use crate::config::Settings;
use crate::oci::{Choice, PartReference, Reference};
use crate::prune::timestamp;
use crate::units::{self, plural, size};
use crate::upstream::{Bucket, Sources};

/// How many digits of a digest are printed.
const SHORT_DIGEST: usize = 12;

/// Prints the images in the bucket.
///
/// # Errors
/// [`CommandError`] if there is no bucket, or it cannot be read.
pub(super) fn list(
    settings: &Settings,
    selected: &[Choice],
    is_json: bool,
) -> Result<(), CommandError> {
    let bucket = bucket(settings)?;
    let mut images = with_sweeper(settings, &bucket, |sweeper| sweeper.list())?;
    images.retain(|image| is_selected(image, selected));
    let out = &mut io::stdout().lock();
    printed(match is_json {
        true => print_json(out, &images),
        false => print_table(out, &images),
    })
}

/// Removes from the bucket what exceeds its limits.
///
/// # Errors
/// [`CommandError`] if there is no bucket, or it fails.
pub(super) fn prune(
    settings: &Settings,
    is_dry_run: bool,
    is_json: bool,
) -> Result<(), CommandError> {
    let bucket = bucket(settings)?;
    let report = with_sweeper(settings, &bucket, |sweeper| match is_dry_run {
        true => sweeper.preview(),
        false => {
            super::note(&format!(
                "planning; caches get {} to notice before anything is removed",
                units::duration(sweeper.times.wait)
            ));
            sweeper.sweep_now()
        }
    })?;
    let out = &mut io::stdout().lock();
    if is_json {
        let document = json!({
            "dryRun": is_dry_run,
            "images": report.images,
            "blobsRemoved": report.blobs,
            "freedBytes": report.freed_bytes,
        });
        return printed(writeln!(out, "{document:#}"));
    }
    let would = if is_dry_run { "would be " } else { "" };
    let mut lines = report.images.clone();
    lines.push(format!(
        "{} and {} {would}removed from the bucket, {} {would}freed",
        plural(report.images.len(), "image"),
        plural(report.blobs, "blob"),
        size(report.freed_bytes)
    ));
    printed(lines.iter().try_for_each(|line| writeln!(out, "{line}")))
}

fn bucket(settings: &Settings) -> Result<Bucket, CommandError> {
    settings.registries().shared_bucket().ok_or_else(|| {
        let text =
            "the configuration has no objectStore; pass the file of the server with --config-file";
        CommandError::Running(text.into())
    })
}

fn with_sweeper<T>(
    settings: &Settings,
    bucket: &Bucket,
    work: impl FnOnce(&Sweeper<'_>) -> Result<T, SweepError>,
) -> Result<T, CommandError> {
    let store = existing_store(&settings.store)?;
    let limits = settings.bucket.as_ref().map(|(_, tier)| tier.limits);
    let sweeper = Sweeper {
        bucket: &bucket.store,
        local: &store,
        pins: &settings.cache.maintenance.pins,
        limits: limits.unwrap_or_default(),
        times: SweepTimes::default(),
        should_go_on: &|| true,
        wait: &|time: Duration| std::thread::sleep(time),
    };
    work(&sweeper).map_err(|error| CommandError::Running(format!("objectStore: {error}")))
}

fn is_selected(image: &BucketImage, selected: &[Choice]) -> bool {
    let Ok(PartReference { name, reference: Some(reference) }) = PartReference::parse(&image.image)
    else {
        return selected.is_empty();
    };
    let covers = |choice: &Choice| match &reference {
        Reference::Tag(_) | Reference::Digest(_) => choice.covers(&name, &reference),
    };
    selected.is_empty() || selected.iter().any(covers)
}

fn print_table(out: &mut dyn Write, images: &[BucketImage]) -> io::Result<()> {
    let now = SystemTime::now();
    let mut lines = vec![["IMAGE", "DIGEST", "SIZE", "WRITTEN", "STATE"].map(str::to_owned)];
    lines.extend(images.iter().map(|image| {
        [
            image.image.clone(),
            image.digest.hex().chars().take(SHORT_DIGEST).collect(),
            size(image.size_bytes),
            units::ago(image.written, now),
            match image.missing {
                0 => "complete".to_owned(),
                // Parts that no cache has, such as other platforms.
                missing => format!("{} not uploaded", plural(missing, "blob")),
            },
        ]
    }));
    table::print(out, &lines)
}

fn print_json(out: &mut dyn Write, images: &[BucketImage]) -> io::Result<()> {
    let documents: Vec<Value> = images
        .iter()
        .map(|image| {
            json!({
                "image": image.image,
                "digest": image.digest.to_string(),
                "sizeBytes": image.size_bytes,
                "blobsNotUploaded": image.missing,
                "written": timestamp(image.written),
            })
        })
        .collect();
    writeln!(out, "{:#}", Value::from(documents))
}
