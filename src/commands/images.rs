//! `larder images`: lists the images that Kubernetes manifests, compose files and similar documents name.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{CommandError, note, printed};
use crate::bundle::STANDARD_INPUT;
use crate::cli;
use crate::image_references::{self, Form, Place};
use crate::oci::{ImageName, Reference, quoted_up_to};
use crate::units::size;

/// The largest file that is read: all objects of a cluster with thousands of pods.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// The extensions of the files that are read in a directory.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];
/// The most levels of directories below a given one.
const LEVELS_MAX: usize = 32;
/// The most locations in a line of the list.
const LOCATIONS_MAX: usize = 3;
/// The longest path that is printed in full: the longest one that Linux accepts.
const PATH_CHARS_MAX: usize = 4096;

/// Prints the references in the given files, also if others could not be read.
///
/// # Errors
/// [`CommandError`] if there is no reference, or a file could not be read completely.
pub(super) fn images(command: &cli::Images) -> Result<(), CommandError> {
    if command.files.is_empty() {
        let text = "images: name files or directories, or - for standard input";
        return Err(CommandError::Usage(text.into()));
    }
    let form = if command.values { Form::Values } else { Form::Manifests };
    let images = find(&command.files, form);
    let out = &mut io::stdout().lock();
    printed(match command.json {
        true => images.print_json(out),
        false => images.print_list(out),
    })?;
    images.complete().map(|_| ())
}

/// The references in files.
pub(super) struct Images {
    /// The locations of each, in the order of the files.
    found: BTreeMap<(ImageName, Reference), Vec<Location>>,
    /// The files and directories that were given.
    given: Vec<String>,
    form: Form,
    /// The number of files, and of those that could not be read completely.
    files: usize,
    failed: usize,
}

/// A field of a file.
struct Location {
    file: String,
    place: Place,
}

/// Finds the references in the given files and directories. Reports files that cannot be read, and fields that should
/// be references and are not, on standard error.
pub(super) fn find(paths: &[PathBuf], form: Form) -> Images {
    let given = paths.iter().map(|path| shown(path)).collect();
    let mut images = Images { found: BTreeMap::new(), given, form, files: 0, failed: 0 };
    for path in paths {
        match path.is_dir() {
            true => images.add_directory(path, LEVELS_MAX),
            false => images.add_file(path),
        }
    }
    images
}

impl Images {
    /// The references, if all files were read completely.
    ///
    /// # Errors
    /// [`CommandError::Unread`], and [`CommandError::NoImages`] if there are none.
    pub(super) fn complete(
        self,
    ) -> Result<impl Iterator<Item = (ImageName, Reference)>, CommandError> {
        if self.failed > 0 {
            return Err(CommandError::Unread { failed: self.failed, of: self.files });
        }
        if self.found.is_empty() {
            let advice = match self.form {
                Form::Manifests => "; larder images --values reads the values file of a Helm chart",
                Form::Values => "",
            };
            let text = format!("{}{advice}", self.given.join(", "));
            return Err(CommandError::NoImages { text });
        }
        Ok(self.found.into_keys())
    }

    /// Adds the files in a directory and those below it, except hidden ones, by name.
    fn add_directory(&mut self, path: &Path, levels_left: usize) {
        let entries = fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut entries = match entries {
            Ok(_) if levels_left == 0 => {
                return self.fail(path, None, "too many levels of directories");
            }
            Ok(entries) => entries,
            Err(error) => return self.fail(path, None, &format!("cannot be read: {error}")),
        };
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            // Links to directories are not followed, because they may form a loop.
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let is_document = path
                .extension()
                .is_some_and(|extension| EXTENSIONS.iter().any(|each| extension == *each));
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            } else if is_directory {
                self.add_directory(&path, levels_left - 1);
            } else if is_document && path.is_file() {
                self.add_file(&path);
            }
        }
    }

    fn add_file(&mut self, path: &Path) {
        let text = match read(path) {
            Ok(text) => text,
            Err((line, reason)) => return self.fail(path, line, &reason),
        };
        self.files += 1;
        let file = shown(path);
        let findings = image_references::find(&text, self.form);
        for each in findings.skipped {
            let Place { line, field } = each.place;
            note(&format!("{file}:{line}: skipped {field}: {}", each.reason));
        }
        for error in &findings.errors {
            note(&format!("{file}:{}: {error}", error.line));
        }
        self.failed += usize::from(!findings.errors.is_empty());
        for each in findings.found {
            let location = Location { file: file.clone(), place: each.place };
            self.found.entry((each.name, each.reference)).or_default().push(location);
        }
    }

    fn fail(&mut self, path: &Path, line: Option<usize>, reason: &str) {
        let line = line.map(|line| format!(":{line}")).unwrap_or_default();
        note(&format!("{}{line}: {reason}", shown(path)));
        self.files += 1;
        self.failed += 1;
    }

    /// An image list. The locations are comments.
    fn print_list(&self, out: &mut dyn Write) -> io::Result<()> {
        for ((name, reference), locations) in &self.found {
            let first = locations.iter().take(LOCATIONS_MAX);
            let first: Vec<String> =
                first.map(|each| format!("{}:{}", each.file, each.place.line)).collect();
            let more = match locations.len().saturating_sub(LOCATIONS_MAX) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            writeln!(out, "{}  # {}{more}", name.with(reference), first.join(", "))?;
        }
        Ok(())
    }

    fn print_json(&self, out: &mut dyn Write) -> io::Result<()> {
        let location = |each: &Location| json!({"file": each.file, "line": each.place.line, "field": each.place.field});
        let image = |((name, reference), locations): (&(ImageName, Reference), &Vec<Location>)| {
            let locations: Vec<Value> = locations.iter().map(location).collect();
            json!({"image": name.with(reference), "locations": locations})
        };
        let all: Vec<Value> = self.found.iter().map(image).collect();
        let text = serde_json::to_string_pretty(&all).map_err(io::Error::other)?;
        writeln!(out, "{text}")
    }
}

/// The text of a file.
///
/// # Errors
/// The reason, and the line if there is one.
fn read(path: &Path) -> Result<String, (Option<usize>, String)> {
    let mut bytes = Vec::new();
    let read = match path == Path::new(STANDARD_INPUT) {
        true => io::stdin().lock().take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes),
        false => {
            File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        }
    };
    read.map_err(|error| (None, format!("cannot be read: {error}")))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err((None, format!("larger than {}", size(FILE_BYTES_MAX))));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
        (Some(line), "not text in UTF-8".to_owned())
    })
}

/// The path as it is printed, in one line.
fn shown(path: &Path) -> String {
    match path == Path::new(STANDARD_INPUT) {
        true => "-".to_owned(),
        false => quoted_up_to(PATH_CHARS_MAX, path.display()),
    }
}
