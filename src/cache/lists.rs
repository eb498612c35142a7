//! Tag lists and referrers: passed on, kept for a short time, and the last good answer while upstream cannot be
//! reached.
//!
//! # Interleavings
//! * *A flight ends between a look and a join.* The next flight looks once more before it asks ([`Inner::fresh_list`]).
//! * *The registry fails while some wait with a last good answer and some without.* The flight looks whether there is
//!   one when it has failed: if so, all that wait have it, or get the failure. Else it makes a list of what is cached.
//! * *A list is asked for while the flight of the same question hangs at a registry that has since been found
//!   unreachable.* Lists of what is cached have flights of their own, so that nobody joins the one that hangs.

use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, SystemTime};

use super::scheduler::{Class, Purpose as JobPurpose};
use super::{Cache, CacheError, How, Inner, PATIENCE, Reason, lock};
use crate::flight::{Flights, Follower};
use crate::oci::{Digest, ImageName, TagPage, TagQuery};
use crate::store::{Access, ListBody, ListRecord, ListWriter};
use crate::upstream::{List, ListSink, TagListWriter, UpstreamError};

/// How long a list is answered without asking again: enough for a client that pages back and forth,
/// short enough that a new tag shows.
const LIST_TTL: Duration = Duration::from_secs(60);
/// Stored lists altogether, in bytes; or a hundredth of `cacheSize`, if that is less.
const STORED_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A question whose answer changes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListQuestion {
    /// A page of the tag list.
    Tags {
        /// `n=…&last=…`, or empty.
        query: String,
    },
    /// What refers to a manifest.
    Referrers {
        /// The manifest.
        digest: Digest,
        /// Filter and page, or empty.
        query: String,
    },
}

impl ListQuestion {
    fn key(&self) -> String {
        match self {
            ListQuestion::Tags { query } => format!("tags?{query}"),
            ListQuestion::Referrers { digest, query } => format!("referrers/{digest}?{query}"),
        }
    }
}

/// A list, as a flight ends with it.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    record: ListRecord,
    origin: Origin,
}

/// What a list is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// The registry's answer.
    Registry,
    /// What is cached, which may be only a part of what the registry has.
    Cache,
}

pub(super) type ListFlights = Flights<(ImageName, ListQuestion), (), Listed, CacheError>;

/// A list that can be answered.
#[derive(Debug, Clone)]
pub struct ListAnswer {
    /// The document, shared with everybody else who reads it.
    pub body: ListBody,
    /// The query of the next page.
    pub next: Option<String>,
    /// `OCI-Filters-Applied`.
    pub filters_applied: Option<String>,
    /// How it came about.
    pub how: How,
}

impl ListAnswer {
    fn new(record: ListRecord, how: How) -> ListAnswer {
        let ListRecord { body, next, filters_applied, .. } = record;
        ListAnswer { body, next, filters_applied, how }
    }
}

/// What a lookup found.
pub enum ListLookup {
    /// The answer.
    Ready(ListAnswer),
    /// Upstream is being asked.
    Wait(ListWait),
}

/// Waits for upstream, with the last good answer as the fallback.
pub struct ListWait {
    flight: Follower<(), Listed, CacheError>,
    patience: Duration,
    last_good: Option<ListRecord>,
    is_about_tags: bool,
    how: How,
}

impl ListWait {
    /// The answer, or the failure, once the flight has ended.
    pub fn poll(&self, waker: &Waker) -> Poll<Result<ListAnswer, CacheError>> {
        self.flight.poll_outcome(waker).map(|outcome| match (outcome, &self.last_good) {
            (Ok(Listed { record, origin: Origin::Registry }), _) => {
                Ok(ListAnswer::new(record, self.how))
            }
            (Ok(Listed { record, origin: Origin::Cache }), _) => {
                Ok(ListAnswer::new(record, How::Stale))
            }
            (Err(error), Some(list)) if !self.is_final(&error) => {
                Ok(ListAnswer::new(list.clone(), How::Stale))
            }
            (Err(error), _) => Err(error),
        })
    }

    /// Whether the registry has refused, so that its last good answer is not repeated. Tags are listed by
    /// programs that look for the newest one, and none of them reads `Warning`. Referrers are looked up by
    /// digest, and what was signed once stays signed.
    fn is_final(&self, error: &CacheError) -> bool {
        let is_refused = matches!(error, CacheError::Upstream(cause) if !cause.is_trouble());
        error.is_not_found() || (self.is_about_tags && is_refused)
    }

    /// How long to wait before [`ListWait::give_up`].
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// The answer when patience is over. `waker` is the one that was polled with, and is no longer woken.
    /// What is cached is not looked through here, on a worker: the flight does so as soon as it has failed,
    /// and later requests do so at once.
    ///
    /// # Errors
    /// [`CacheError::TimedOut`] if there is no last good answer; [`CacheError::GivenUp`] if upstream was not
    /// even asked.
    pub fn give_up(self, waker: &Waker) -> Result<ListAnswer, CacheError> {
        self.flight.forget(waker);
        match self.last_good {
            Some(list) => Ok(ListAnswer::new(list, How::Stale)),
            None if self.flight.has_begun() => Err(CacheError::TimedOut),
            None => Err(CacheError::GivenUp),
        }
    }
}

/// Whether the registry cannot be reached. One that refuses, limits the rate or fails at this one request can be.
/// Where it can, cached tags are no answer: a client that looks for the newest would take an old one.
fn cannot_be_reached(error: &CacheError, question: &ListQuestion) -> bool {
    let CacheError::Upstream(cause) = error else {
        return matches!(error, CacheError::TimedOut | CacheError::NotCached);
    };
    let is_limited = matches!(error.reason(), Reason::RateLimited { .. });
    match question {
        ListQuestion::Tags { .. } => cause.is_unreachable() && !is_limited,
        ListQuestion::Referrers { .. } => cause.is_trouble() && !is_limited,
    }
}

impl Cache {
    /// A list. Does not wait for anything but the local disk, of which it reads one small file.
    ///
    /// # Errors
    /// [`CacheError`] if it is known that there is none to be had.
    pub fn list(&self, name: &ImageName, question: ListQuestion) -> Result<ListLookup, CacheError> {
        let inner = &self.inner;
        let now = inner.now();
        let record = inner.known_list(name, &question);
        let is_fresh = record.as_ref().is_some_and(|record| is_fresh(record, now));
        let ready = |list, how| Ok(ListLookup::Ready(ListAnswer::new(list, how)));
        let is_troubled = inner.misses.is_troubled(&name.upstream, now);
        match record {
            Some(list) if is_fresh || inner.is_offline() => ready(list, How::Hit),
            Some(list) if is_troubled => ready(list, How::Stale),
            Some(list) => match self.ask_for_list(name, question, Some(list.clone())) {
                Ok(waiting) => Ok(ListLookup::Wait(waiting)),
                Err(_) => ready(list, How::Stale),
            },
            None if inner.is_offline() => match inner.store.has_images(name)? {
                true => Ok(ListLookup::Wait(self.look_through_cached(name, question))),
                false => Err(CacheError::NotCached),
            },
            None if is_troubled && inner.has_cached_list(name, &question) => {
                Ok(ListLookup::Wait(self.look_through_cached(name, question)))
            }
            None => Ok(ListLookup::Wait(self.ask_for_list(name, question, None)?)),
        }
    }

    fn ask_for_list(
        &self,
        name: &ImageName,
        question: ListQuestion,
        last_good: Option<ListRecord>,
    ) -> Result<ListWait, CacheError> {
        let purpose = self.purpose(name)?;
        let patience = match last_good {
            Some(_) => self.inner.settings().revalidate_timeout,
            // Some of it is worse than all of it a little later.
            None => PATIENCE,
        };
        let work = Inner::fresh_or_cached_list;
        let run = self.run_list_flight(&self.inner.lists, purpose, name, question, work);
        Ok(ListWait { patience, last_good, ..run })
    }

    /// Makes a list of what is cached. Many files may have to be read, so a fetcher does it. Its class is not that
    /// of the registry, whose fetchers may all be waiting for it.
    fn look_through_cached(&self, name: &ImageName, question: ListQuestion) -> ListWait {
        let purpose = JobPurpose { class: Class::Local, name: name.clone(), client: self.client };
        let work = |inner: &Inner, name: &ImageName, question: &ListQuestion| {
            let record = inner.cached_list(name, question)?.ok_or(CacheError::NotCached)?;
            Ok(Listed { record, origin: Origin::Cache })
        };
        self.run_list_flight(&self.inner.cached_lists, purpose, name, question, work)
    }

    /// Joins the flight of a list, or starts it with `work`.
    fn run_list_flight(
        &self,
        flights: &ListFlights,
        purpose: JobPurpose,
        name: &ImageName,
        question: ListQuestion,
        work: fn(&Inner, &ImageName, &ListQuestion) -> Result<Listed, CacheError>,
    ) -> ListWait {
        let is_about_tags = matches!(question, ListQuestion::Tags { .. });
        let joined = flights.join(&(name.clone(), question), || CacheError::GivenUp);
        let how = if joined.pilot.is_some() { How::Miss } else { How::Join };
        if let Some(pilot) = joined.pilot {
            let inner = Arc::clone(&self.inner);
            let flight = Arc::clone(joined.flight.flight());
            self.inner.metadata_pool.submit(
                purpose,
                move || flight.has_followers(),
                move || {
                    pilot.begin();
                    let (name, question) = pilot.key().clone();
                    pilot.land(work(&inner, &name, &question));
                },
            );
        }
        let flight = joined.flight;
        ListWait { flight, patience: PATIENCE, last_good: None, is_about_tags, how }
    }
}

impl Inner {
    pub(super) fn known_list(
        &self,
        name: &ImageName,
        question: &ListQuestion,
    ) -> Option<ListRecord> {
        let key = question.key();
        let unstored = lock(&self.unstored_lists).get(name, &key);
        unstored.or_else(|| self.store.list(name, &key))
    }

    /// The work of a list flight: asks upstream, unless a flight that landed just now has done so.
    pub(super) fn fresh_list(
        &self,
        name: &ImageName,
        question: &ListQuestion,
    ) -> Result<ListRecord, CacheError> {
        match self.known_list(name, question) {
            Some(record) if is_fresh(&record, self.now()) => Ok(record),
            _ => self.fetch_list(name, question),
        }
    }

    /// As [`Inner::fresh_list`]; if the registry cannot be reached and has never answered, what is cached.
    fn fresh_or_cached_list(
        &self,
        name: &ImageName,
        question: &ListQuestion,
    ) -> Result<Listed, CacheError> {
        match self.fresh_list(name, question) {
            Ok(record) => Ok(Listed { record, origin: Origin::Registry }),
            Err(error) if !cannot_be_reached(&error, question) => Err(error),
            // It is what those that wait fall back to.
            Err(error) if self.known_list(name, question).is_some() => Err(error),
            Err(error) => {
                let record = self.cached_list(name, question)?.ok_or(error)?;
                Ok(Listed { record, origin: Origin::Cache })
            }
        }
    }

    /// Whether a list can certainly be made of what is cached.
    fn has_cached_list(&self, name: &ImageName, question: &ListQuestion) -> bool {
        match question {
            // The registry is asked once more: cached tags are only some of its tags.
            ListQuestion::Tags { .. } => false,
            ListQuestion::Referrers { digest, .. } => {
                self.store.manifest(name, digest, Access::Look).is_some()
            }
        }
    }

    /// A list made of what is cached: what can be pulled, at least. Reads many files.
    fn cached_list(
        &self,
        name: &ImageName,
        question: &ListQuestion,
    ) -> Result<Option<ListRecord>, CacheError> {
        let made = match question {
            ListQuestion::Tags { query } => self.cached_tags(name, query)?,
            ListQuestion::Referrers { digest, query } => {
                self.cached_referrers(name, digest, query)?
            }
        };
        if made.is_some() {
            let what = match question {
                ListQuestion::Tags { .. } => "tags",
                ListQuestion::Referrers { .. } => "referrers",
            };
            log::info!(
                "{name}: the registry cannot list its {what}, answering those that are cached"
            );
        }
        Ok(made)
    }

    pub(super) fn fetch_list(
        &self,
        name: &ImageName,
        question: &ListQuestion,
    ) -> Result<ListRecord, CacheError> {
        let source = self.source(&name.upstream)?;
        let mut writer = self.store.list_writer();
        let asked = match question {
            ListQuestion::Tags { query } => source.tags(&name.repository, query, &mut writer),
            ListQuestion::Referrers { digest, query } => {
                source.referrers(&name.repository, digest, query, &mut writer)
            }
        };
        if asked.as_ref().is_err_and(UpstreamError::is_about_the_registry) {
            self.misses.note_trouble(&name.upstream, self.now());
        }
        let record = match (asked.map_err(CacheError::from), question) {
            (Ok(list), _) => self.record_of(writer, list)?,
            (Err(error), ListQuestion::Referrers { digest, query })
                if error.reason() == Reason::Unsupported =>
            {
                // Not kept: the tag is stored itself, and is believed for as long as any tag.
                return self.referrers_by_tag(name, digest, query)?.ok_or(error);
            }
            (Err(error), _) => return Err(error),
        };
        self.keep_list(name, &question.key(), &record);
        Ok(record)
    }

    fn record_of(&self, writer: ListWriter, list: List) -> Result<ListRecord, CacheError> {
        let since_epoch = self.now().duration_since(SystemTime::UNIX_EPOCH);
        Ok(ListRecord {
            checked: since_epoch.map_or(0, |since| since.as_secs()),
            body: writer.finish().ok_or(CacheError::NoRoomForList)?,
            next: list.next,
            filters_applied: list.filters_applied,
        })
    }

    /// Stores a list of a repository that has images, and holds another for a while.
    fn keep_list(&self, name: &ImageName, key: &str, record: &ListRecord) {
        let of_cache = self.settings().maintenance.room.cap_bytes.map(|bytes| bytes / 100);
        let total_bytes_max = of_cache.map_or(STORED_BYTES_MAX, |max| max.min(STORED_BYTES_MAX));
        let stored = self.store.put_list(name, key, record, total_bytes_max);
        if let Err(error) = &stored {
            log::warn!("{name}: a list is answered but not stored: {error}");
        }
        let mut unstored = lock(&self.unstored_lists);
        match stored {
            Ok(true) => unstored.remove(name, key),
            _ => unstored.insert(name, key, record.clone()),
        }
    }

    /// The page of the cached tags that a query asks for; `None` if there are none, or if the query continues a
    /// list of the registry's in a way that only the registry understands.
    fn cached_tags(&self, name: &ImageName, query: &str) -> Result<Option<ListRecord>, CacheError> {
        let query = TagQuery::parse(query);
        let tags = self.store.find_tags(name)?;
        if tags.is_empty() || !query.is_by_name() {
            return Ok(None);
        }
        let tags = tags.iter().map(|tag| tag.as_str().to_owned()).collect();
        let TagPage { tags, next } = query.page(tags);
        let mut writer = self.store.list_writer();
        let mut document = TagListWriter::start(&mut writer, &name.repository);
        tags.iter().for_each(|tag| document.push(tag));
        document.finish();
        self.record_of(writer, List { next, filters_applied: None }).map(Some)
    }

    /// A document of ours as a list.
    pub(super) fn own_list(&self, document: &str, list: List) -> Result<ListRecord, CacheError> {
        let mut writer = self.store.list_writer();
        writer.write(document.as_bytes());
        self.record_of(writer, list)
    }
}

impl ListSink for ListWriter {
    fn restart(&mut self) {
        ListWriter::restart(self);
    }

    fn write(&mut self, bytes: &[u8]) {
        ListWriter::write(self, bytes);
    }
}

fn is_fresh(record: &ListRecord, now: SystemTime) -> bool {
    let checked = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(record.checked));
    checked.is_some_and(|checked| now.duration_since(checked).is_ok_and(|age| age < LIST_TTL))
}
