//! The walk over all repositories: a lenient one for display, which skips what it cannot read, and a strict one for
//! removals, which stops there.

use std::io;
use std::path::Path;

use crate::oci::{ImageName, MANIFESTS, TAGS, Upstream};
use crate::store::Store;
use crate::store::files::layout::LEGACY_LISTS;

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

    /// As [`Store::each_repository`], for one registry, and without missing a repository.
    ///
    /// # Errors
    /// The first directory that cannot be read, or the first error of `visit`.
    pub fn each_repository_of(
        &self,
        upstream: &Upstream,
        visit: &mut dyn FnMut(&ImageName) -> io::Result<()>,
    ) -> io::Result<()> {
        let directory = self.inner.layout.refs().join(upstream.as_str());
        self.walk_below(&directory, upstream, "", Unknown::Ignore, visit)
    }

    /// Like [`Store::each_repository`], for removals, which must not miss any repository.
    ///
    /// # Errors
    /// The first directory that cannot be read, the first name that Larder did not create, or the first error of
    /// `visit`.
    pub(in crate::store) fn each_repository_strict(
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
            Unknown::Ignore => self.find_names_in(directory).map_err(io::Error::other)?,
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
    /// It skips unknown names, and stops at unreadable directories.
    Ignore,
    /// It stops with an error.
    Refuse,
}

impl Unknown {
    fn refuse(self, path: &Path) -> io::Result<()> {
        match self {
            Unknown::Skip | Unknown::Ignore => Ok(()),
            Unknown::Refuse => Err(foreign_entry(path)),
        }
    }
}

/// The error for an entry that Larder did not create: it may refer to content in an unknown way.
pub(in crate::store) fn foreign_entry(path: &Path) -> io::Error {
    let path = path.display();
    io::Error::other(format!(
        "{path}: Larder does not create such a name; move it out of the cache directory"
    ))
}
