//! An entry of `sync`: which images are kept present, and when.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::schedule::Schedule;
use crate::bundle::{Newest, Wanted};
use crate::oci::{Algorithm, Digest, Platforms};

/// The name of the entry that loads the list of `preloadImages`.
pub const PRELOAD: &str = "preload";

/// Replaces the alias of a registry in an entry of an image list.
pub type Expand = Arc<dyn Fn(&str) -> String + Send + Sync>;

/// An entry of `sync`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncEntry {
    /// Its name, in the API, the log and metrics.
    pub name: String,
    /// The images, and patterns for tags.
    pub images: Vec<Wanted>,
    /// Files with more of them, read by each run.
    pub lists: Vec<PathBuf>,
    /// How many tags of each pattern; all of them if `None`.
    pub newest: Option<Newest>,
    /// When it runs.
    pub schedule: Schedule,
    /// The platforms to load of multi-platform images.
    pub platforms: Platforms,
    /// Whether to load signatures, attestations and SBOMs as well.
    pub referrers: bool,
}

impl SyncEntry {
    /// Whether its images are pinned: they are, unless the entry does not keep them present.
    pub(super) fn pins(&self) -> bool {
        self.schedule != Schedule::AtStart
    }

    /// Identifies what the entry loads, so that a record of another one with its name does not apply. When it runs does
    /// not matter.
    pub(super) fn identity(&self) -> String {
        let SyncEntry { images, lists, newest, platforms, referrers, .. } = self;
        let mut text = String::new();
        // Writing to a text cannot fail.
        let _ = write!(text, "{lists:?} {newest:?} {platforms:?} {referrers}");
        images.iter().for_each(|wanted| text.push_str(&format!(" {wanted}")));
        Digest::of(Algorithm::Sha256, text.as_bytes()).to_string()
    }

    /// What the entry and its lists name, and the lists that cannot be read, with the reasons.
    pub(super) fn wanted(&self, expand: &Expand) -> (Vec<Wanted>, Vec<Unreadable>) {
        let (listed, unreadable) = read_lists(&self.lists, expand);
        (self.images.iter().cloned().chain(listed).collect(), unreadable)
    }
}

/// A list that cannot be read, with the reason.
pub(super) type Unreadable = (PathBuf, String);

/// What lists name, and those that cannot be read.
pub(super) fn read_lists(lists: &[PathBuf], expand: &Expand) -> (Vec<Wanted>, Vec<Unreadable>) {
    let (mut wanted, mut unreadable) = (Vec::new(), Vec::new());
    for path in lists {
        match read_list(path, &**expand) {
            Ok(listed) => wanted.extend(listed),
            Err(reason) => unreadable.push((path.clone(), reason)),
        }
    }
    (wanted, unreadable)
}

/// Reads a list of images.
///
/// # Errors
/// Why it cannot be read, or its first entry that is not an image.
pub fn read_list(path: &Path, expand: &dyn Fn(&str) -> String) -> Result<Vec<Wanted>, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("cannot read it: {error}"))?;
    Wanted::parse_list(&text, expand).map_err(|error| error.to_string())
}
