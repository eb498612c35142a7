//! Runs a prune: scan all images, plan, remove names, remove blobs, report.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::plan::{Candidate, Criteria, Plan, plan_matching};
use crate::oci::{Choice, Digest, Reference};
use crate::store::{
    Catalogue, CatalogueImage, FUTURE_TOLERANCE, GRACE, PinSettings, Pins, PruneError, Removal,
    Store, Sweep,
};

/// Attempts to remove images that were used or changed between the scan and the removal.
const ROUNDS_MAX: usize = 3;
/// The maximum number of images that a report lists; further ones are only counted.
const NAMED_MAX: usize = 10_000;
/// How many steps of references to an image are followed: the signature of a bill of materials, for example.
const REFERRERS_DEPTH: usize = 3;
/// A partial download that has not grown for this long is removed.
const PARTIAL_AGE_MAX: Duration = Duration::from_secs(7 * 86_400);

/// What to prune.
#[derive(Debug, Clone, Copy)]
pub enum Request<'a> {
    /// Images that match all criteria and, if there are any choices, at least one of them.
    Matching {
        /// The criteria.
        criteria: &'a Criteria,
        /// The selected images; empty selects all.
        choices: &'a [Choice],
        /// Whether to only report what would be removed.
        is_dry_run: bool,
    },
}

/// The result of a prune, or the expected result for a dry run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The removed images, least recently used first; limited to the first ones.
    pub images: Vec<String>,
    /// Number of removed images.
    pub removed: usize,
    /// Freed bytes.
    pub freed_bytes: u64,
    /// Number of removed blobs, including manifests.
    pub blobs_removed: u64,
    /// Blobs of the removed images that stay because other images need them.
    pub blobs_shared: u64,
    /// Unreferenced blobs that stay until their grace period ends.
    pub blobs_young: u64,
    /// Number of removed partial downloads.
    pub partials: usize,
    /// Matching images that stay because they are pinned.
    pub kept_pinned: usize,
    /// Matching images that stay because they were used, or their tag changed, during the prune.
    pub kept_in_use: usize,
    /// Whether the sweep of blobs was stopped early; the next one removes the rest.
    #[serde(rename = "partial")]
    pub is_partial: bool,
}

/// Removes the requested images. Calls `keep_going` regularly; it may block, and stops the prune by returning
/// `false`.
///
/// # Errors
/// [`PruneError`]. Images that were removed before stay removed; the next sweep removes their blobs.
pub fn prune(
    store: &Store,
    pins: &PinSettings,
    request: Request<'_>,
    now: SystemTime,
    keep_going: &mut dyn FnMut() -> bool,
) -> Result<Report, PruneError> {
    let Request::Matching { is_dry_run, .. } = request;
    if is_dry_run {
        let catalogue = store.catalogue(keep_going)?.ok_or(PruneError::Stopped)?;
        let round = Round::plan(store, pins, request, now, &catalogue)?;
        return Ok(round.dry_run_report(now));
    }
    let mut report = Report::default();
    for round in 1..=ROUNDS_MAX {
        let sweep = match store.begin_sweep()? {
            Ok(sweep) => sweep,
            // The earlier rounds removed images, which must be reported.
            Err(_) if round > 1 => break,
            Err(locked) => return Err(PruneError::Locked(locked)),
        };
        let catalogue = store.catalogue(keep_going)?.ok_or(PruneError::Stopped)?;
        let latest = now + FUTURE_TOLERANCE;
        if catalogue.images.iter().any(|image| image.used.is_some_and(|used| used > latest)) {
            // It counts as used now, and would until that time comes. A disk count sets such times to now.
            store.count_disk(keep_going);
        }
        let left_of_count;
        let left = match request {
            Request::Matching { criteria, choices, is_dry_run } => {
                let count = criteria.count.map(|count| count.saturating_sub(report.removed));
                left_of_count = Criteria { count, ..*criteria };
                Request::Matching { criteria: &left_of_count, choices, is_dry_run }
            }
        };
        let plan = Round::plan(store, pins, left, now, &catalogue)?;
        report.kept_in_use = plan.apply(&sweep, now, keep_going, &mut report)?;
        if report.kept_in_use == 0 {
            break;
        }
    }
    Ok(report)
}

/// Referrers count as used and pinned when their subject is: a signature is rarely pulled, and without it the image
/// that it signs may be rejected.
fn inherit_use_from_subjects(catalogue: &Catalogue, candidates: &mut [Candidate<'_>]) {
    let images = &catalogue.images;
    let subject_of = |image: &CatalogueImage| {
        let number = catalogue.number_of(&image.refers_to?)?;
        Some((image.repository, number))
    };
    let subjects: Vec<Option<(usize, u32)>> = images.iter().map(subject_of).collect();
    let wanted: HashSet<(usize, u32)> = subjects.iter().flatten().copied().collect();
    for _ in 0..REFERRERS_DEPTH {
        let mut known: HashMap<(usize, u32), (Option<SystemTime>, bool)> = HashMap::new();
        for (image, candidate) in images.iter().zip(&*candidates) {
            for number in image.manifest_numbers() {
                let key = (image.repository, *number);
                if wanted.contains(&key) {
                    let (used, is_pinned) = known.entry(key).or_default();
                    *used = (*used).max(candidate.used);
                    *is_pinned |= candidate.is_pinned;
                }
            }
        }
        for (subject, candidate) in subjects.iter().zip(&mut *candidates) {
            if let Some((used, is_pinned)) = subject.and_then(|subject| known.get(&subject)) {
                candidate.used = candidate.used.max(*used);
                candidate.is_pinned |= is_pinned;
            }
        }
    }
}

/// One scan and its plan.
struct Round<'a> {
    store: &'a Store,
    catalogue: &'a Catalogue,
    plan: Plan,
}

impl<'a> Round<'a> {
    fn plan(
        store: &'a Store,
        pins: &PinSettings,
        request: Request<'_>,
        now: SystemTime,
        catalogue: &'a Catalogue,
    ) -> Result<Round<'a>, PruneError> {
        // Loaded after the scan, so that pins set during it count.
        let pins = Pins::load(store, pins).map_err(PruneError::Pins)?;
        let is_meant = |image: &CatalogueImage| match request {
            Request::Matching { choices, .. } if !choices.is_empty() => {
                let name = &catalogue.repository_of(image).name;
                let by_digest = |each: &Choice| {
                    let root = image.manifest_numbers().first();
                    let digest = root.map(|number| catalogue.content[*number as usize].digest);
                    digest.is_some_and(|digest| each.covers(name, &Reference::Digest(digest)))
                };
                choices.iter().any(|each| each.covers(name, &image.reference) || by_digest(each))
            }
            _ => true,
        };
        let is_pinned = |image: &CatalogueImage| {
            let manifests = image.manifest_numbers().iter();
            let digests = manifests.map(|number| catalogue.content[*number as usize].digest);
            pins.cover_any(&catalogue.repository_of(image).name, &image.reference, digests)
        };
        let mut candidates: Vec<Candidate<'_>> = catalogue
            .images
            .iter()
            .map(|image| Candidate {
                used: image.used,
                fetched: image.fetched,
                is_pinned: is_pinned(image),
                is_meant: is_meant(image),
                content: &image.content,
            })
            .collect();
        inherit_use_from_subjects(catalogue, &mut candidates);
        let sizes: Vec<u64> = catalogue.content.iter().map(|content| content.size).collect();
        let Request::Matching { criteria, .. } = request;
        let plan = plan_matching(&candidates, &sizes, criteria, now);
        Ok(Round { store, catalogue, plan })
    }

    fn images(&self) -> impl Iterator<Item = usize> {
        self.plan.remove.iter().copied()
    }

    /// The report of a dry run.
    fn dry_run_report(&self, now: SystemTime) -> Report {
        let gone: HashSet<usize> = self.images().collect();
        let needed = self.needed(&gone);
        let content: HashSet<u32> = self.content_of(&gone).collect();
        let (staying, going): (Vec<u32>, Vec<u32>) =
            content.into_iter().partition(|number| needed[*number as usize]);
        let names =
            self.images().map(|at| self.catalogue.full_reference(&self.catalogue.images[at]));
        let mut report = Report {
            removed: gone.len(),
            images: names.take(NAMED_MAX).collect(),
            blobs_shared: staying.len() as u64,
            kept_pinned: self.plan.pinned,
            ..Report::default()
        };
        let going = going.iter().map(|number| &self.catalogue.content[*number as usize]);
        // As in a real run: what a damaged record refers to is unknown.
        let is_known = self.catalogue.damaged == 0;
        let rubbish = self.catalogue.unreferenced.iter().filter(|_| is_known);
        for each in going.chain(rubbish) {
            match self.store.blob_age(&each.digest, now) {
                Some(age) if age < GRACE => report.blobs_young += 1,
                Some(_) => {
                    report.blobs_removed += 1;
                    report.freed_bytes += each.size;
                }
                None => {}
            }
        }
        report
    }

    fn content_of(&self, images: &HashSet<usize>) -> impl Iterator<Item = u32> {
        images.iter().flat_map(|place| self.catalogue.images[*place].content.iter().copied())
    }

    /// For each number of the content, whether a remaining image needs it.
    fn needed(&self, gone: &HashSet<usize>) -> Vec<bool> {
        let mut needed = vec![false; self.catalogue.content.len()];
        for (place, image) in self.catalogue.images.iter().enumerate() {
            if !gone.contains(&place) {
                image.content.iter().for_each(|number| needed[*number as usize] = true);
            }
        }
        needed
    }

    /// Removes names, then blobs. Returns how many images stay because they were used in the meantime.
    fn apply(
        &self,
        sweep: &Sweep,
        now: SystemTime,
        keep_going: &mut dyn FnMut() -> bool,
        report: &mut Report,
    ) -> Result<usize, PruneError> {
        report.kept_pinned = self.plan.pinned;
        let gone = self.remove_names(sweep, keep_going)?;
        let in_use = self.images().count() - gone.len();
        for place in self.images().filter(|place| gone.contains(place)) {
            report.removed += 1;
            let name = self.catalogue.full_reference(&self.catalogue.images[place]);
            log::info!(image = name.as_str(); "removed an image");
            if report.images.len() < NAMED_MAX {
                report.images.push(name);
            }
        }
        let needed = self.needed(&gone);
        let content: HashSet<u32> = self.content_of(&gone).collect();
        report.blobs_shared +=
            content.iter().filter(|number| needed[**number as usize]).count() as u64;
        let is_needed = |digest: &Digest| {
            self.catalogue.number_of(digest).is_some_and(|number| needed[number as usize])
        };
        // What a damaged record refers to is unknown, and it may be repaired. So only content of the removed images
        // is removed; the rest stays.
        let is_kept = |digest: &Digest| {
            let number = self.catalogue.number_of(digest);
            is_needed(digest)
                || (self.catalogue.damaged > 0 && number.is_none_or(|it| !content.contains(&it)))
        };
        let swept = sweep.sweep(GRACE, &is_kept, keep_going)?;
        report.blobs_removed += swept.blobs;
        report.freed_bytes += swept.bytes;
        report.blobs_young = swept.young;
        report.is_partial |= swept.is_partial;
        self.store.remove_leftovers(now);
        self.store.remove_old_partials(now, PARTIAL_AGE_MAX)?;
        Ok(in_use)
    }

    /// Removes the names of the planned images, one repository at a time. Returns the places of the removed images.
    fn remove_names(
        &self,
        sweep: &Sweep,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<HashSet<usize>, PruneError> {
        let planned: HashSet<usize> = self.images().collect();
        let mut places: Vec<usize> = planned.iter().copied().collect();
        places.sort_unstable();
        let mut gone = HashSet::new();
        let images = &self.catalogue.images;
        for of_one in
            places.chunk_by(|one, other| images[*one].repository == images[*other].repository)
        {
            if !keep_going() {
                break;
            }
            let repository = images[of_one[0]].repository;
            let staying = self.staying_manifests(repository, &planned);
            let manifests: HashSet<u32> =
                of_one.iter().flat_map(|at| images[*at].manifest_numbers()).copied().collect();
            let of_repository = &self.catalogue.repositories[repository];
            let removal = Removal {
                name: &of_repository.name,
                seen: &of_repository.names,
                images: of_one
                    .iter()
                    .map(|at| (&images[*at].reference, images[*at].pulled))
                    .collect(),
                manifests: manifests
                    .difference(&staying)
                    .map(|number| self.catalogue.content[*number as usize].digest)
                    .collect(),
            };
            if sweep.remove(&removal)? {
                gone.extend(of_one);
            }
        }
        Ok(gone)
    }

    /// The manifests that the remaining images of a repository need.
    fn staying_manifests(&self, repository: usize, planned: &HashSet<usize>) -> HashSet<u32> {
        let images = self.catalogue.images_of(repository);
        let staying = images.filter(|(place, _)| !planned.contains(place));
        staying.flat_map(|(_, image)| image.manifest_numbers()).copied().collect()
    }
}
