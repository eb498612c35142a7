//! An attempt of a run: loads what an entry names, or what the last attempt has left.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::entry::{Expand, read_lists};
use super::pinned::still_wanted;
use super::table::{Attempt, Attempted, Pending};
use crate::bundle::{self, LoadEvent, LoadSettings, Manner, Outcome, Wanted};
use crate::cache::Cache;

/// How many images are loaded at the same time: clients need a share of the link.
const PARALLEL: usize = 2;

/// The images that stay pinned.
pub(super) enum Kept {
    /// These, and no others.
    Exactly(BTreeSet<String>),
    /// These, in addition to those of the attempts before, which were about other images.
    Also(BTreeSet<String>),
}

/// What an attempt tells its caller while it runs.
pub(super) trait Observer: Sync {
    /// The images are known: their references, and those that were pinned before and belong to patterns whose tags are
    /// not known. They are loaded now.
    fn expanded(&self, images: Kept, count: usize);
    /// An image was loaded, or has failed.
    fn loaded(&self);
}

/// Loads what is wanted. `pinned` are the images that were pinned before. Blocks.
pub(super) fn attempt(
    cache: &Cache,
    attempt: &Attempt,
    pinned: &BTreeSet<String>,
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
    let pending = attempted.pending.take();
    // What such a list names was not known to the last attempt, which therefore has kept all pins.
    let had_unreadable = pending.as_ref().is_some_and(|pending| !pending.lists.is_empty());
    let is_first = pending.is_none();
    let (wanted, unreadable) = match pending {
        Some(pending) => {
            let (listed, unreadable) = read_lists(&pending.lists, expand);
            pending.lists.iter().for_each(|list| drop(attempted.outcomes.remove(&name_of(list))));
            (pending.wanted.into_iter().chain(listed).collect(), unreadable)
        }
        None => {
            attempted.outcomes.clear();
            entry.wanted(expand)
        }
    };
    wanted.iter().for_each(|each| drop(attempted.outcomes.remove(&each.to_string())));
    let lists: Vec<PathBuf> = unreadable.iter().map(|(list, _)| list.clone()).collect();
    attempted.outcomes.extend(
        unreadable.into_iter().map(|(list, reason)| {
            (name_of(&list), Outcome::Failed { reason, is_permanent: false })
        }),
    );
    let images = bundle::expand(cache, &wanted, &settings, &|_| {});
    let (known, failed): (Vec<_>, Vec<_>) = images.iter().partition(|image| image.is_known());
    let mut kept: BTreeSet<String> =
        known.iter().map(|image| image.reference().to_owned()).collect();
    // What a pattern matched before stays, while its tags are not known.
    let failed = failed.iter().filter_map(|image| Wanted::parse(image.reference()).ok());
    kept.extend(still_wanted(pinned, &failed.collect::<Vec<_>>()));
    if !lists.is_empty() {
        kept.extend(pinned.iter().cloned());
    }
    let kept = match is_first {
        true => Kept::Exactly(kept),
        // Now it is known again what the entry names.
        false if had_unreadable && lists.is_empty() => {
            kept.extend(still_wanted(pinned, &entry.wanted(expand).0));
            Kept::Exactly(kept)
        }
        false => Kept::Also(kept),
    };
    observer.expanded(kept, images.len());
    let summary = bundle::load_images(cache, images, &settings, &|event| {
        if let LoadEvent::Image { .. } = event {
            observer.loaded();
        }
    });
    attempted.outcomes.extend(summary.images);
    let lists_in_outcomes: BTreeSet<String> = lists.iter().map(|list| name_of(list)).collect();
    let images = attempted.retriable().filter(|image| !lists_in_outcomes.contains(*image));
    let wanted = images.filter_map(|image| Wanted::parse(image).ok()).collect();
    attempted.pending = Some(Pending { wanted, lists });
    attempted
}

/// The name of a list among the outcomes.
fn name_of(list: &Path) -> String {
    list.display().to_string()
}
