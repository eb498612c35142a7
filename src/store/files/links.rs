//! Which blobs are proven to be in which repositories: one file for each repository, to which digests are appended.
//!
//! A file that cannot be read is a miss: the registry is asked again.

use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};

use crate::oci::{Digest, ImageName};
use crate::store::files::read::read_file;
use crate::store::{Inner, Store, StoreError};

impl Store {
    /// The blobs that are proven to be in a repository.
    ///
    /// # Errors
    /// [`StoreError`] if the file cannot be read.
    pub fn links(&self, name: &ImageName) -> Result<HashSet<Digest>, StoreError> {
        let path = self.inner.layout.links(name);
        match read_file(&path) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(HashSet::new()),
            Err(error) => Err(StoreError::read(&path, error)),
        }
    }

    /// Adds blobs to those of a repository.
    ///
    /// # Errors
    /// [`StoreError`] if the file cannot be written.
    pub fn put_links<'a>(
        &self,
        name: &ImageName,
        digests: impl IntoIterator<Item = &'a Digest>,
    ) -> Result<(), StoreError> {
        let lines: String = digests.into_iter().map(|digest| format!("{digest}\n")).collect();
        self.require_writable()?;
        let path = self.inner.layout.links(name);
        let append = || {
            if let Some(directory) = path.parent() {
                self.inner.layout.create_directories(directory)?;
            }
            let mut options = OpenOptions::new();
            let mut file =
                self.inner.layout.owner().open(options.create(true).append(true), &path)?;
            // One write, so that lines of several processes do not mix.
            file.write_all(lines.as_bytes())
        };
        append().map_err(|error| StoreError::write(&path, error))
    }
}

impl Inner {
    /// Removes what is known of a repository that is no longer cached.
    pub(in crate::store) fn remove_links(&self, name: &ImageName) {
        // Without the file, or with an old one, nothing is served that should not be.
        let _ = fs::remove_file(self.layout.links(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use crate::store::Settings;

    #[test]
    fn links_are_kept_for_each_repository_and_damage_is_a_miss() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_owned();
        let store = Store::open(&Settings { root, fsync: false }).unwrap();
        let name = |text: &str| ImageName::new("quay.io".parse().unwrap(), text.parse().unwrap());
        let [one, other] = ["a", "b"].map(|text| Digest::of(Algorithm::Sha256, text.as_bytes()));
        assert!(store.links(&name("app")).unwrap().is_empty());
        store.put_links(&name("app"), [&one]).unwrap();
        store.put_links(&name("app"), [&other, &one]).unwrap();
        store.put_links(&name("base"), [&other]).unwrap();
        assert_eq!(store.links(&name("app")).unwrap(), [one, other].into());
        assert_eq!(store.links(&name("base")).unwrap(), [other].into());
        let path = store.inner.layout.links(&name("app"));
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace(&one.to_string(), "sha256:torn")).unwrap();
        assert_eq!(store.links(&name("app")).unwrap(), [other].into());
        store.inner.remove_links(&name("app"));
        assert!(store.links(&name("app")).unwrap().is_empty());
    }
}
