//! Removes images from the bucket that are unused, or that exceed its size limit.
//!
//! All caches write hourly when images were pulled. Every six hours, one of them sweeps: the one that creates
//! `sweeps/<time>`. It lists the bucket, reads the records, decides ([`plan`]), writes its plan to `plans/<time>`, waits, reads
//! again what has changed, decides again, and removes what both decisions agree on: tags, then records, then blobs. All
//! times are those of the store.
//!
//! # Why no blob is lost that a record refers to
//! A cache uploads a record only if it has seen the blobs in the bucket within the last 4 minutes, and then no plan contained
//! them, in a list of plans that is at most a minute older than that (`uploads/parts.rs`). The record is written within 8
//! minutes after the blobs were seen, or that is repeated. A sweep removes a blob at the earliest [`WAIT`] after its plan was
//! written, and reads all records after the wait. So one of these holds:
//!
//! * the list has the plan: the cache waits until it has been carried out;
//! * the list has the plan as carried out: the cache looks for the blobs again;
//! * the plan was written after the list was read: the record was written before the sweep read the records again, since
//!   8 minutes after a minute are less than [`WAIT`].
//!
//! Blobs that no record refers to stay for a day, so blobs that precede their records are not in question.
//!
//! # Interleavings
//! * *Two sweeps*: the object with the time decides which cache sweeps. A sweep that takes longer than the period meets the
//!   next one: before each batch, it ends if there is a later `sweeps/<time>`, or if it has taken too long.
//! * *A pull during a sweep* from a cache that has the image: its use is read again after the wait. One that is not known by
//!   then is removed from the bucket and stays in that cache; its tag is uploaded again with everything that is missing, at
//!   the latest a day later.
//! * *A tag that is written between the second reading and the removal* is removed. It is uploaded again in the same way.
//! * *A cache reads a blob that is removed*: it continues at the registry.
//!
//! # Crash points
//! * After `sweeps/<time>`: the next period sweeps.
//! * After the plan: uploads ignore plans that are older than [`OUTDATED`].
//! * Between tags, records and blobs: a record without a tag is an image of its own, and a blob without a record is removed
//!   by a later sweep.
//!
//! A process that is suspended in the middle of a removal for longer than the plan counts, and then continues, can remove a
//! blob that has been referred to meanwhile. Then the bucket lacks it, as if it had never been uploaded.

mod background;
mod inventory;
mod plan;
mod usage;

use std::collections::HashSet;
use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use crate::oci::{Digest, ImageName, Reference, to_seconds};
use crate::store::{PinSettings, Pins, Store, StoreError};
use crate::upstream::{Condition, ObjectStore, Put, UpstreamError};
use crate::via;

pub use background::BucketSweepThread;
use inventory::Inventory;
pub use plan::BucketLimits;
use plan::Plan;
use usage::AllUsage;

/// How often the bucket is swept.
pub(super) const PERIOD: Duration = Duration::from_secs(6 * 3600);
/// How often a cache writes what was pulled.
pub(super) const USAGE_EVERY: Duration = Duration::from_secs(3600);
/// How long a sweep waits between its plan and the removal.
const WAIT: Duration = Duration::from_secs(10 * 60);
/// A sweep ends after this time, whatever is left.
const LIFETIME: Duration = Duration::from_secs(3600);
/// How long uploads take a plan into account: longer than a sweep lasts.
const OUTDATED: Duration = Duration::from_secs(2 * 3600);
/// How long uses of images are remembered without `unusedFor`.
const USES_KEPT: Duration = Duration::from_secs(365 * 86_400);
/// The directory of plans.
pub(super) const PLANS: &str = "plans/";
/// The end of the name of a plan that has been carried out.
pub(super) const DONE: &str = ".done";
/// The directory of the objects that decide who sweeps.
const SWEEPS: &str = "sweeps/";
/// How many of these are kept.
const SWEEPS_KEPT: usize = 8;
/// How many keys a plan contains. The next sweep removes the others.
const PLAN_KEYS_MAX: usize = 200_000;
const PLAN_BYTES_MAX: u64 = 64 << 20;
/// How many objects are removed with one request.
const BATCH: usize = 500;

/// How a sweep is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SweepTimes {
    /// Between the plan and the removal.
    pub wait: Duration,
    /// After which it ends.
    pub lifetime: Duration,
}

impl Default for SweepTimes {
    fn default() -> SweepTimes {
        SweepTimes { wait: WAIT, lifetime: LIFETIME }
    }
}

/// What a sweep has removed, or would remove.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SweepReport {
    /// The images.
    pub images: Vec<String>,
    /// The number of tags and records.
    pub names: usize,
    /// The number of blobs.
    pub blobs: usize,
    /// Their size in bytes.
    pub freed_bytes: u64,
}

/// Why a sweep has ended early. What it had removed until then was right.
#[derive(Debug)]
pub enum SweepError {
    /// The store does not answer as it should.
    Store(UpstreamError),
    /// An object of another cache cannot be parsed.
    Unreadable {
        /// Its key.
        key: String,
        /// The parser's text.
        reason: String,
    },
    /// The pins cannot be read.
    Pins(String),
    /// The cache directory cannot be read.
    Local(Box<StoreError>),
    /// Another sweep has begun.
    Overtaken,
    /// It took too long.
    TooLong,
    /// The process is stopping.
    Stopped,
}

impl From<UpstreamError> for SweepError {
    fn from(error: UpstreamError) -> SweepError {
        SweepError::Store(error)
    }
}

impl fmt::Display for SweepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SweepError::Store(error) => error.fmt(f),
            SweepError::Unreadable { key, reason } => {
                write!(
                    f,
                    "{key} in the bucket cannot be read ({reason}); nothing is removed until it is \
                     correct: delete the object if no cache writes it any more"
                )
            }
            SweepError::Pins(reason) => write!(f, "the pins cannot be read: {reason}"),
            SweepError::Local(error) => error.fmt(f),
            SweepError::Overtaken => f.write_str("another cache has begun a later sweep"),
            SweepError::TooLong => f.write_str("it took too long; the next sweep continues"),
            SweepError::Stopped => f.write_str("the process is stopping"),
        }
    }
}

impl std::error::Error for SweepError {}

/// A cache that may sweep.
pub struct Sweeper<'a> {
    /// The bucket.
    pub bucket: &'a ObjectStore,
    /// The cache directory, where manifests are read without a request.
    pub local: &'a Store,
    /// The pins of this cache. Those of other caches are in their usage.
    pub pins: &'a PinSettings,
    /// What may stay.
    pub limits: BucketLimits,
    /// How it is carried out.
    pub times: SweepTimes,
    /// Returns false if the process is stopping.
    pub should_go_on: &'a (dyn Fn() -> bool + Sync),
    /// Waits, but not longer than the process runs.
    pub wait: &'a (dyn Fn(Duration) + Sync),
}

impl Sweeper<'_> {
    /// Writes what this cache knows about pulls.
    ///
    /// # Errors
    /// [`SweepError`].
    pub fn write_usage(&self) -> Result<(), SweepError> {
        let pins = self.local_pins()?.texts().to_vec();
        Ok(usage::write(self.bucket, self.local, via::instance(), pins)?)
    }

    /// Sweeps if no other cache does in this period.
    ///
    /// # Errors
    /// [`SweepError`].
    pub fn sweep_if_due(&self) -> Result<Option<SweepReport>, SweepError> {
        let now = to_seconds(self.bucket.now());
        let period = Duration::from_secs(now - now % PERIOD.as_secs());
        self.sweep_in(period.as_millis())
    }

    /// Sweeps now.
    ///
    /// # Errors
    /// [`SweepError`].
    pub fn sweep_now(&self) -> Result<SweepReport, SweepError> {
        let since = self.bucket.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.sweep_in(since.as_millis())?.ok_or(SweepError::Overtaken)
    }

    /// What a sweep would remove now.
    ///
    /// # Errors
    /// [`SweepError`].
    pub fn preview(&self) -> Result<SweepReport, SweepError> {
        let inventory = Inventory::read(self.bucket, self.local, None, self.should_go_on)?;
        Ok(report_of(&self.plan(&inventory, &self.read_usage()?)?))
    }

    /// The images in the bucket, in the order of their names.
    ///
    /// # Errors
    /// [`SweepError`].
    pub fn list(&self) -> Result<Vec<BucketImage>, SweepError> {
        Ok(self.list_with_parts()?.into_iter().map(|(image, _)| image).collect())
    }

    /// The images in the bucket, with what they consist of.
    pub(super) fn list_with_parts(&self) -> Result<Vec<(BucketImage, Parts)>, SweepError> {
        let inventory = Inventory::read(self.bucket, self.local, None, self.should_go_on)?;
        Ok(plan::images(&inventory))
    }

    /// Sweeps unless there is an object of this name, a time in milliseconds since 1970.
    fn sweep_in(&self, time: u128) -> Result<Option<SweepReport>, SweepError> {
        let name = format!("{time:016}");
        let key = format!("{SWEEPS}{name}");
        let by = via::instance().as_bytes();
        if let Put::Exists = self.bucket.put(&key, by, Condition::IfAbsent)? {
            return Ok(None);
        }
        let begun = Begun { at: Instant::now(), time: self.bucket.now() };
        self.check(&key, begun)?;
        let first = Inventory::read(self.bucket, self.local, None, self.should_go_on)?;
        let usage = self.read_usage()?;
        let planned = self.plan(&first, &usage)?;
        let forgotten_after = self.limits.unused_for.unwrap_or(USES_KEPT);
        usage::merge(self.bucket, &usage, forgotten_after, self.bucket.now())?;
        if planned == Plan::default() {
            self.forget_old_sweeps()?;
            return Ok(Some(SweepReport::default()));
        }
        let plan_key = format!("{PLANS}{name}");
        let written = write_plan(&planned);
        self.bucket.put(&plan_key, &written, Condition::None)?;
        (self.wait)(self.times.wait);
        self.check(&key, begun)?;
        let second = Inventory::read(self.bucket, self.local, Some(&first), self.should_go_on)?;
        let plan = both(&planned, self.plan(&second, &self.read_usage()?)?);
        let blobs: Vec<String> = plan.blobs.iter().map(|(key, _)| key.clone()).collect();
        for batch in plan.names.chunks(BATCH).chain(blobs.chunks(BATCH)) {
            self.check(&key, begun)?;
            self.bucket.delete(batch)?;
        }
        self.bucket.put(&format!("{plan_key}{DONE}"), &written, Condition::None)?;
        self.bucket.delete(&[plan_key])?;
        self.forget_old_sweeps()?;
        Ok(Some(report_of(&plan)))
    }

    fn read_usage(&self) -> Result<AllUsage, SweepError> {
        usage::read(self.bucket, self.bucket.now())
    }

    /// What is to be removed. Changes nothing.
    fn plan(&self, inventory: &Inventory, usage: &AllUsage) -> Result<Plan, SweepError> {
        let own = self.local_pins()?;
        // They were parsed when they were read.
        let others = Pins::of(usage.pins()).map_err(SweepError::Pins)?;
        let is_pinned = |name: &ImageName, reference: &Reference, manifests: &[_]| {
            [&own, &others]
                .iter()
                .any(|pins| pins.cover_any(name, reference, manifests.iter().copied()))
        };
        let now = self.bucket.now();
        let mut plan = plan::plan(inventory, &usage.uses, &is_pinned, &self.limits, now);
        plan.blobs.truncate(PLAN_KEYS_MAX);
        Ok(plan)
    }

    fn local_pins(&self) -> Result<Pins, SweepError> {
        Pins::load(self.local, self.pins).map_err(|error| SweepError::Pins(error.to_string()))
    }

    /// Ends the sweep if it must not remove anything any more.
    fn check(&self, key: &str, begun: Begun) -> Result<(), SweepError> {
        if !(self.should_go_on)() {
            return Err(SweepError::Stopped);
        }
        // The first clock may stand still while the machine is suspended, and the second one may be set.
        let by_time = self.bucket.now().duration_since(begun.time).unwrap_or_default();
        if begun.at.elapsed().max(by_time) > self.times.lifetime {
            return Err(SweepError::TooLong);
        }
        match self.sweeps()?.last() {
            Some(last) if last.as_str() > key => Err(SweepError::Overtaken),
            _ => Ok(()),
        }
    }

    /// The objects that decide who sweeps, earliest first.
    fn sweeps(&self) -> Result<Vec<String>, SweepError> {
        let objects = self.bucket.list_all(SWEEPS)?;
        let mut keys: Vec<String> = objects.into_iter().map(|object| object.key).collect();
        keys.sort();
        Ok(keys)
    }

    fn forget_old_sweeps(&self) -> Result<(), SweepError> {
        let keys = self.sweeps()?;
        let old = keys.len().saturating_sub(SWEEPS_KEPT);
        self.bucket.delete(&keys[..old])?;
        let now = self.bucket.now();
        let plans = self.bucket.list_all(PLANS)?.into_iter();
        let outdated = plans.filter(|plan| is_outdated(plan.modified, now));
        self.bucket.delete(&outdated.map(|plan| plan.key).collect::<Vec<_>>())?;
        Ok(())
    }
}

/// When a sweep has begun.
#[derive(Clone, Copy)]
struct Begun {
    at: Instant,
    time: SystemTime,
}

/// An image in the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketImage {
    /// Its full reference.
    pub image: String,
    /// Its manifest.
    pub digest: Digest,
    /// The bytes that are there.
    pub size_bytes: u64,
    /// How many blobs and manifests of it are missing.
    pub missing: usize,
    /// When its tag or record was written.
    pub written: SystemTime,
}

/// What an image consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parts {
    /// The manifests of which there are records, root included.
    pub(super) manifests: Vec<Digest>,
    /// All blobs, manifests included, whether they are there or not.
    pub(super) blobs: Vec<Digest>,
}

/// Whether uploads ignore a plan.
pub(super) fn is_outdated(written: SystemTime, now: SystemTime) -> bool {
    now.duration_since(written).is_ok_and(|age| age > OUTDATED)
}

fn write_plan(plan: &Plan) -> Vec<u8> {
    let keys = plan.names.iter().chain(plan.blobs.iter().map(|(key, _)| key));
    keys.map(|key| format!("{key}\n")).collect::<String>().into_bytes()
}

/// The keys in a plan.
///
/// # Errors
/// [`UpstreamError`] if it cannot be read; one that has been removed meanwhile is empty.
pub(super) fn read_plan(bucket: &ObjectStore, key: &str) -> Result<Vec<String>, UpstreamError> {
    let read = bucket.find(key, PLAN_BYTES_MAX)?;
    let text = read.map(|read| String::from_utf8_lossy(&read.bytes).into_owned());
    Ok(text.unwrap_or_default().lines().map(str::to_owned).collect())
}

/// What two plans agree on.
fn both(first: &Plan, second: Plan) -> Plan {
    let planned: HashSet<&String> =
        first.names.iter().chain(first.blobs.iter().map(|(key, _)| key)).collect();
    Plan {
        images: second.images.into_iter().filter(|(_, key)| planned.contains(key)).collect(),
        names: second.names.into_iter().filter(|key| planned.contains(key)).collect(),
        blobs: second.blobs.into_iter().filter(|(key, _)| planned.contains(key)).collect(),
    }
}

fn report_of(plan: &Plan) -> SweepReport {
    SweepReport {
        images: plan.images.iter().map(|(image, _)| image.clone()).collect(),
        names: plan.names.len(),
        blobs: plan.blobs.len(),
        freed_bytes: plan.blobs.iter().map(|(_, size)| size).sum(),
    }
}
