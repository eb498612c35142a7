//! The walk over all repositories: one for showing, which passes over what it cannot read, and one for
//! removing, which stops there.

use std::fs;
use std::io;
use std::path::Path;

use super::Store;
use super::layout::{LISTS, MANIFESTS, TAGS};
use crate::oci::{ImageName, Upstream};

impl Store {
    /// Calls `visit` with every repository of which there is a tag or a manifest. For showing: directories that
    /// cannot be read are passed over. `each_repository_for_certain` is for removing.
    ///
    /// # Errors
    /// The first error of `visit`.
    pub fn each_repository(
        &self,
        visit: &mut dyn FnMut(&ImageName) -> io::Result<()>,
    ) -> io::Result<()> {
        self.walk_repositories(Unknown::PassOver, visit)
    }

    /// Like [`Store::each_repository`], for callers that must not miss any: they remove what nothing names.
    ///
    /// # Errors
    /// The first directory that cannot be read, the first name that is not ours, or the first error of
    /// `visit`.
    pub(super) fn each_repository_for_certain(
        &self,
        visit: &mut dyn FnMut(&ImageName) -> io::Result<()>,
    ) -> io::Result<()> {
        self.walk_repositories(Unknown::Refuse, visit)
    }

    /// One walk for both: what it reads is what it visits.
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
            if [TAGS, MANIFESTS, LISTS].contains(&entry.as_str()) {
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

    /// The names in a directory, in order.
    fn sorted_names(&self, directory: &Path, unknown: Unknown) -> io::Result<Vec<String>> {
        let mut names = match unknown {
            Unknown::PassOver => self.names_in(directory),
            Unknown::Refuse => {
                self.inner.faults.check(directory).map_err(|error| about(directory, &error))?;
                list_for_certain(directory)?
            }
        };
        names.sort();
        Ok(names)
    }
}

/// What becomes of names that a walk does not know, and of directories that it cannot read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unknown {
    /// They are passed over.
    PassOver,
    /// They end the walk.
    Refuse,
}

impl Unknown {
    fn refuse(self, path: &Path) -> io::Result<()> {
        match self {
            Unknown::PassOver => Ok(()),
            Unknown::Refuse => Err(not_ours(path)),
        }
    }
}

/// What something is that Larder has not created: it may name content in a way that is not known here.
pub(super) fn not_ours(path: &Path) -> io::Error {
    let path = path.display();
    io::Error::other(format!(
        "{path}: Larder gives no such name; move it out of the cache directory"
    ))
}

/// The names in a directory; none if it is gone.
///
/// # Errors
/// If it cannot be read, or one of them is not UTF-8, with its path.
pub(super) fn list_for_certain(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| about(directory, &error))?,
    };
    let name = |entry: io::Result<fs::DirEntry>| {
        let entry = entry.map_err(|error| about(directory, &error))?;
        entry.file_name().into_string().map_err(|_| {
            io::Error::other(format!("{}: a name in it is not UTF-8", directory.display()))
        })
    };
    entries.map(name).collect()
}

/// An error with the path that it is about.
fn about(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
