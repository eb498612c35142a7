//! A file that is read again when it has changed.

use std::path::{Path, PathBuf};

use super::Stamp;

/// A file, and its state when it was last read.
pub struct WatchedFile {
    path: PathBuf,
    stamp: Stamp,
    /// Why the current file cannot be used, once that was returned.
    refused: Option<String>,
}

impl WatchedFile {
    /// Reads a file for the first time.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn open<T, E>(
        path: &Path,
        read: impl FnOnce(&Path) -> Result<T, E>,
    ) -> Result<(WatchedFile, T), E> {
        // Taken before the file is read, so that the next call finds a change that happens meanwhile.
        let stamp = Stamp::of([&path.to_owned()]);
        let content = read(path)?;
        Ok((WatchedFile { path: path.to_owned(), stamp, refused: None }, content))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file if it has changed, or could not be used before. `None` if not, or if the error is still the same.
    pub fn reread<T, E: ToString>(
        &mut self,
        read: impl FnOnce(&Path) -> Result<T, E>,
    ) -> Option<Result<T, String>> {
        // Taken before the file is read, as above.
        let stamp = Stamp::of([&self.path]);
        if stamp == self.stamp && self.refused.is_none() {
            return None;
        }
        match read(&self.path) {
            Ok(content) => {
                (self.stamp, self.refused) = (stamp, None);
                Some(Ok(content))
            }
            Err(error) => {
                let text = error.to_string();
                let is_new = self.refused.as_ref() != Some(&text);
                self.refused = Some(text.clone());
                is_new.then_some(Err(text))
            }
        }
    }
}
