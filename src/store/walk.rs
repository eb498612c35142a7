//! The walk over all repositories: a lenient one for display, which skips what it cannot read, and a strict one for
//! removals, which stops there.

use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use super::layout::{LEGACY_LISTS, MANIFESTS, TAGS, digest_of, open_to_read};
use super::{Inner, Store};
use crate::oci::{Algorithm, Digest, ImageName, Upstream};

impl Store {
    /// Calls `visit` with every repository that has a tag or a manifest. For display: directories that cannot be
    /// read are skipped. Removals use `each_repository_strict`.
    ///
    /// # Errors
    /// The first error of `visit`.
    pub fn each_repository(
        &self,
        visit: &mut dyn FnMut(&ImageName) -> io::Result<()>,
    ) -> io::Result<()> {
        self.walk_repositories(Unknown::Skip, visit)
    }

    /// Like [`Store::each_repository`], for removals, which must not miss any repository.
    ///
    /// # Errors
    /// The first directory that cannot be read, the first name that Larder did not create, or the first error of
    /// `visit`.
    pub(super) fn each_repository_strict(
        &self,
        visit: &mut dyn FnMut(&ImageName) -> io::Result<()>,
    ) -> io::Result<()> {
        self.walk_repositories(Unknown::Refuse, visit)
    }

    /// The common implementation of both walks.
    fn walk_repositories(
        &self,
        unknown: Unknown,
        visit: &mut dyn FnMut(&ImageName) -> io::Result<()>,
    ) -> io::Result<()> {
        let refs = self.inner.layout.refs();
        for entry in self.sorted_names(&refs, unknown)? {
            let path = refs.join(&entry);
            match entry.parse() {
                Ok(upstream) => {
                    self.walk_below(&path, &upstream, "", unknown, visit)?;
                }
                Err(_) => unknown.refuse(&path)?,
            }
        }
        Ok(())
    }

    fn walk_below(
        &self,
        directory: &Path,
        upstream: &Upstream,
        repository: &str,
        unknown: Unknown,
        visit: &mut dyn FnMut(&ImageName) -> io::Result<()>,
    ) -> io::Result<()> {
        let entries = self.sorted_names(directory, unknown)?;
        let is_repository = entries.iter().any(|entry| entry == TAGS || entry == MANIFESTS);
        match repository.parse() {
            Ok(repository) if is_repository => {
                visit(&ImageName { upstream: upstream.clone(), repository })?;
            }
            Ok(_) => {}
            // The directory of the upstream itself.
            Err(_) if repository.is_empty() && !is_repository => {}
            Err(_) => unknown.refuse(directory)?,
        }
        for entry in &entries {
            if [TAGS, MANIFESTS, LEGACY_LISTS].contains(&entry.as_str()) {
                continue;
            }
            let path = directory.join(entry);
            if entry.starts_with('_') {
                unknown.refuse(&path)?;
                continue;
            }
            let below = match repository {
                "" => entry.clone(),
                _ => format!("{repository}/{entry}"),
            };
            self.walk_below(&path, upstream, &below, unknown, visit)?;
        }
        Ok(())
    }

    /// The sorted names in a directory.
    fn sorted_names(&self, directory: &Path, unknown: Unknown) -> io::Result<Vec<String>> {
        let mut names = match unknown {
            Unknown::Skip => self.find_names_in(directory).unwrap_or_default(),
            Unknown::Refuse => self.inner.list_strict(directory)?,
        };
        names.sort();
        Ok(names)
    }
}

/// What a walk does with unknown names and unreadable directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unknown {
    /// It skips them.
    Skip,
    /// It stops with an error.
    Refuse,
}

impl Unknown {
    fn refuse(self, path: &Path) -> io::Result<()> {
        match self {
            Unknown::Skip => Ok(()),
            Unknown::Refuse => Err(foreign_entry(path)),
        }
    }
}

/// The error for an entry that Larder did not create: it may refer to content in an unknown way.
pub(super) fn foreign_entry(path: &Path) -> io::Error {
    let path = path.display();
    io::Error::other(format!(
        "{path}: Larder does not create such a name; move it out of the cache directory"
    ))
}

/// The prefix that a network file system gives to a file that was removed while a process had it open. The file
/// vanishes with that process and refers to nothing.
const REMOVED_WHILE_OPEN: &str = ".nfs";

impl Inner {
    /// Iterates over the names in a directory; yields nothing if it does not exist.
    ///
    /// # Errors
    /// If it cannot be read, or a name is not UTF-8; the error contains the path.
    pub(super) fn names_strict(
        &self,
        directory: &Path,
    ) -> io::Result<impl Iterator<Item = io::Result<String>> + use<>> {
        let read = self.faults.check(directory).and_then(|()| fs::read_dir(directory));
        let entries = match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            other => Some(other.map_err(|error| with_path(directory, &error))?),
        };
        let directory = directory.to_owned();
        let names = entries.into_iter().flatten().map(move |entry| {
            let entry = entry.map_err(|error| with_path(&directory, &error))?;
            entry.file_name().into_string().map_err(|_| {
                io::Error::other(format!("{}: a name in it is not UTF-8", directory.display()))
            })
        });
        let is_left_over = |name: &io::Result<String>| {
            name.as_ref().is_ok_and(|it| it.starts_with(REMOVED_WHILE_OPEN))
        };
        Ok(names.filter(move |name| !is_left_over(name)))
    }

    /// Like [`Inner::names_strict`], as a list.
    ///
    /// # Errors
    /// As [`Inner::names_strict`].
    pub(super) fn list_strict(&self, directory: &Path) -> io::Result<Vec<String>> {
        self.names_strict(directory)?.collect()
    }

    /// Whether a file exists. Reads it completely to be sure that it is readable.
    ///
    /// # Errors
    /// If it cannot be read, or its existence is unknown; the error contains the path.
    pub(super) fn is_readable(&self, path: &Path) -> io::Result<bool> {
        let read = self.faults.check(path).and_then(|()| {
            let file = open_to_read(path)?;
            // A pipe or a directory contains no references that could be read.
            let is_file = file.metadata()?.is_file();
            if is_file { io::copy(&mut &file, &mut io::sink()) } else { Ok(0) }
        });
        match read {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(with_path(path, &error)),
        }
    }

    /// A file's metadata, without following a link.
    pub(super) fn metadata(&self, path: &Path) -> io::Result<fs::Metadata> {
        self.faults.check(path).and_then(|()| fs::symlink_metadata(path))
    }
}

impl Store {
    /// Iterates over the digests of the stored blobs.
    ///
    /// # Errors
    /// If the blobs cannot be listed completely.
    pub(super) fn digests_strict(
        &self,
        algorithm: Algorithm,
    ) -> io::Result<impl Iterator<Item = io::Result<Digest>> + use<>> {
        let names = self.inner.names_strict(&self.inner.layout.blobs(algorithm))?;
        // A file whose name is not a digest is not a blob and is never removed.
        Ok(names.filter_map(move |name| name.map(|hex| digest_of(algorithm, &hex)).transpose()))
    }

    /// When a record or a directory was last changed. A failure counts as a failed read, for callers that must see
    /// everything ([`Store::unreadable_files`]).
    pub(super) fn modified(&self, path: &Path) -> Option<SystemTime> {
        let modified = self.inner.metadata(path).and_then(|metadata| metadata.modified());
        match modified {
            Ok(time) => Some(time),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => self.failed_to_read(path, error).unwrap_or_default(),
        }
    }
}

/// Adds the path to an error.
fn with_path(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
