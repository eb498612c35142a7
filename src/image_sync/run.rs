//! An attempt of a run: loads what an entry names, or what the last attempt has left.

use std::time::Duration;

use super::entry::Expand;
use super::pinned::still_wanted;
use super::table::{Attempt, Attempted};
use crate::bundle::{self, LoadEvent, LoadSettings, Manner, Outcome, Wanted};
use crate::cache::Cache;

/// How many images are loaded at the same time: clients need a share of the link.
const PARALLEL: usize = 2;

/// What an attempt tells its caller while it runs.
pub(super) trait Observer: Sync {
    /// The images are known: their references, and those that were pinned before and belong to patterns whose tags are
    /// not known. They are loaded now.
    fn expanded(&self, images: Vec<String>, count: usize);
    /// An image was loaded, or has failed.
    fn loaded(&self);
}

/// Loads what is wanted. `pinned` are the images that were pinned before. Blocks.
pub(super) fn attempt(
    cache: &Cache,
    attempt: &Attempt,
    pinned: &[String],
    expand: &Expand,
    observer: &dyn Observer,
) -> Attempted {
    let entry = &attempt.entry;
    let settings = LoadSettings {
        platforms: entry.platforms.clone(),
        parallel: PARALLEL,
        // The next attempt is made later, and other entries run in the meantime.
        attempts: 1,
        first_wait: Duration::ZERO,
        referrers: entry.referrers,
        newest: entry.newest,
        manner: Manner::Background,
    };
    let mut attempted = attempt.attempted.clone();
    attempted.attempts += 1;
    let (wanted, unreadable) = match attempted.pending.take() {
        Some(pending) => (pending, Vec::new()),
        None => {
            attempted.outcomes.clear();
            entry.wanted(expand)
        }
    };
    wanted.iter().for_each(|each| drop(attempted.outcomes.remove(&each.to_string())));
    let has_unreadable = !unreadable.is_empty();
    attempted.outcomes.extend(
        unreadable
            .into_iter()
            .map(|(list, reason)| (list, Outcome::Failed { reason, is_permanent: false })),
    );
    let images = bundle::expand(cache, &wanted, &settings, &|_| {});
    let (known, failed): (Vec<_>, Vec<_>) = images.iter().partition(|image| image.is_known());
    let mut kept: Vec<String> = known.iter().map(|image| image.reference().to_owned()).collect();
    // What a pattern matched before stays, while its tags are not known.
    let failed = failed.iter().filter_map(|image| Wanted::parse(image.reference()).ok());
    kept.extend(still_wanted(pinned, &failed.collect::<Vec<_>>()));
    if has_unreadable {
        kept.extend(pinned.iter().cloned());
    }
    observer.expanded(kept, images.len());
    let summary = bundle::load_images(cache, images, &settings, &|event| {
        if let LoadEvent::Image { .. } = event {
            observer.loaded();
        }
    });
    attempted.outcomes.extend(summary.images);
    if !has_unreadable {
        let pending = attempted.retriable().filter_map(|image| Wanted::parse(image).ok());
        attempted.pending = Some(pending.collect());
    }
    attempted
}
