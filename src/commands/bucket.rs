//! `larder list --bucket`, `larder prune --bucket`, and `larder export` and `import` with `s3://…`.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::progress::note_unless;
use super::selection::Selected;
use super::{CommandError, existing_store, note, printed, table};
use crate::bundle::BundleError;
use crate::cache::{
    BucketImage, CopyError, CopyEvent, CopySummary, SweepError, SweepTimes, Sweeper,
    copy_from_bucket, copy_to_bucket,
};
use crate::cli;
use crate::config::{self, Settings};
use crate::oci::{ImageName, PartReference, Reference, quoted};
use crate::prune::timestamp;
use crate::store::{Store, StoredImage};
use crate::units::{self, plural, size};
use crate::upstream::{Bucket, ObjectStore, ObjectStoreSettings, Sources};

/// How many digits of a digest are printed.
const SHORT_DIGEST: usize = 12;

/// Prints the images in the bucket.
///
/// # Errors
/// [`CommandError`] if there is no bucket, or it cannot be read.
pub(super) fn list(
    settings: &Settings,
    selected: &Selected,
    command: &cli::List,
) -> Result<(), CommandError> {
    refuse_for_bucket(command)?;
    let bucket = bucket(settings)?;
    let images = with_sweeper(settings, &bucket, |sweeper| sweeper.list())?;
    let names: Vec<Option<(ImageName, Reference)>> = images.iter().map(name).collect();
    let matched = selected.check(names.iter().flatten().map(|(name, reference)| (name, reference)));
    let is_selected = |name: &Option<(ImageName, Reference)>| match name {
        Some((name, reference)) => selected.covers(name, reference),
        None => selected.is_everything(),
    };
    let selected_ones = images.into_iter().zip(&names).filter(|(_, name)| is_selected(name));
    let images: Vec<BucketImage> = selected_ones.map(|(image, _)| image).collect();
    let out = &mut io::stdout().lock();
    printed(match command {
        cli::List { json: true, .. } => print_json(out, &images),
        cli::List { quiet: true, .. } => {
            images.iter().try_for_each(|image| writeln!(out, "{}", image.image))
        }
        _ if images.is_empty() && matched.is_err() => Ok(()),
        _ => print_table(out, &images),
    })?;
    matched
}

/// The bucket is listed by name, and what is known about it has the form of a table.
fn refuse_for_bucket(command: &cli::List) -> Result<(), CommandError> {
    let given = [
        ("--tree", command.tree),
        ("--digests", command.digests),
        ("--pinned", command.pinned),
        ("--sort", command.sort.is_some()),
    ];
    match given.iter().find(|(_, is_given)| *is_given) {
        Some((flag, _)) => Err(CommandError::usage(
            flag,
            &"does not apply with --bucket, which takes patterns, --json and --quiet",
        )),
        None => Ok(()),
    }
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
    let is_read_only = settings.bucket.as_ref().is_some_and(|(_, tier)| tier.uploads.is_read_only);
    if is_read_only && !is_dry_run {
        let text = "prune --bucket: nothing may be removed, since objectStore.readOnly is set; \
                    use --dry-run to see what could be";
        return Err(CommandError::Running(text.into()));
    }
    let report = with_sweeper(settings, &bucket, |sweeper| match is_dry_run {
        true => sweeper.preview(),
        false => {
            note(&format!(
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

/// A place in a bucket, `s3://BUCKET/PREFIX`. The store and the keys are those of `objectStore`.
pub(super) struct Place {
    bucket: String,
    prefix: String,
}

impl Place {
    /// Parses a path; `None` if it does not begin with `s3://`.
    ///
    /// # Errors
    /// [`CommandError::Usage`] if it has no bucket, or a prefix that a bucket of Larder cannot have.
    pub(super) fn parse(path: &Path) -> Option<Result<Place, CommandError>> {
        let rest = path.to_str()?.strip_prefix("s3://")?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let parsed = config::bucket_prefix(prefix).and_then(|prefix| match bucket {
            "" => Err("it names no bucket".to_owned()),
            bucket => {
                config::check_bucket(bucket)?;
                Ok(Place { bucket: bucket.to_owned(), prefix })
            }
        });
        Some(parsed.map_err(|reason| {
            let path = quoted(path.display());
            CommandError::Usage(format!("{path}: {reason}; use s3://BUCKET/PREFIX"))
        }))
    }

    fn open(self, settings: &Settings) -> Result<ObjectStore, CommandError> {
        let (store, _) = settings.bucket.as_ref().ok_or_else(no_bucket)?;
        let Place { bucket, prefix } = self;
        let there = ObjectStoreSettings { bucket, prefix, ..store.clone() };
        Ok(ObjectStore::new(there, Arc::new(settings.upstream.proxies.clone())))
    }
}

/// Copies images to a bucket.
///
/// # Errors
/// [`CommandError`] if there is no store, or it fails.
pub(super) fn export(
    settings: &Settings,
    place: Place,
    store: &Store,
    images: &[StoredImage],
    is_quiet: bool,
) -> Result<(), CommandError> {
    let bucket = place.open(settings)?;
    let summary = copy_to_bucket(store, &bucket, images).map_err(failed)?;
    note_unless(is_quiet, &described(&summary, &format!("written to {}", bucket.url())));
    Ok(())
}

/// Copies the images of a bucket into the cache, and calls `named` with the name of each.
///
/// # Errors
/// [`CommandError`] if there is no store, if it fails, if it has no image there, and if an image was not imported.
pub(super) fn import(
    settings: &Settings,
    place: Place,
    store: &Store,
    is_quiet: bool,
    named: &mut dyn FnMut(&str),
) -> Result<(), CommandError> {
    let bucket = place.open(settings)?;
    let sweeper = sweeper(settings, &bucket, store);
    let mut report = |event: &CopyEvent<'_>| match event {
        CopyEvent::Imported(image) => {
            named(&image.image);
            note_unless(is_quiet, &image.image);
        }
        CopyEvent::NotImported(image, failure) => {
            note(&format!("{}: not imported; {failure}", image.image));
        }
    };
    let is_private = |name: &ImageName| settings.cache.access.is_private(name);
    let summary = copy_from_bucket(&sweeper, &is_private, &mut report).map_err(failed)?;
    note_unless(is_quiet, &described(&summary, &format!("imported from {}", bucket.url())));
    match summary {
        CopySummary { failures: 0, images: 0, .. } => {
            let text = format!("{}: no image is there; check bucket and prefix", bucket.url());
            Err(CommandError::Running(text))
        }
        CopySummary { failures: 0, .. } => Ok(()),
        CopySummary { failures, .. } => Err(BundleError::SomeFailed { failures }.into()),
    }
}

fn described(summary: &CopySummary, done: &str) -> String {
    format!(
        "{}, {} ({}) {done}; {} there already",
        plural(summary.images, "image"),
        plural(summary.blobs, "blob"),
        size(summary.bytes),
        plural(summary.blobs_there, "blob")
    )
}

fn failed(error: CopyError) -> CommandError {
    match error {
        CopyError::Store(error) => error.into(),
        error => CommandError::Running(format!("objectStore: {error}")),
    }
}

fn no_bucket() -> CommandError {
    let text =
        "the configuration has no objectStore; pass the file of the server with --config-file";
    CommandError::Running(text.into())
}

fn bucket(settings: &Settings) -> Result<Bucket, CommandError> {
    settings.registries().shared_bucket().ok_or_else(no_bucket)
}

fn with_sweeper<T>(
    settings: &Settings,
    bucket: &Bucket,
    work: impl FnOnce(&Sweeper<'_>) -> Result<T, SweepError>,
) -> Result<T, CommandError> {
    let store = existing_store(&settings.store)?;
    work(&sweeper(settings, &bucket.store, &store))
        .map_err(|error| CommandError::Running(format!("objectStore: {error}")))
}

fn sweeper<'a>(settings: &'a Settings, bucket: &'a ObjectStore, store: &'a Store) -> Sweeper<'a> {
    Sweeper {
        bucket,
        local: store,
        pins: &settings.cache.maintenance.pins,
        limits: settings.bucket.as_ref().map(|(_, tier)| tier.limits).unwrap_or_default(),
        times: SweepTimes::default(),
        should_go_on: &|| true,
        wait: &|time: Duration| std::thread::sleep(time),
    }
}

fn name(image: &BucketImage) -> Option<(ImageName, Reference)> {
    let PartReference { name, reference } = PartReference::parse(&image.image).ok()?;
    Some((name, reference?))
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
