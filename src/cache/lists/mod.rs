//! Tag lists and referrers: passed on, kept for a short time, and the last good answer while upstream cannot be
//! reached.
//!
//! # Interleavings
//! * *A flight ends between a look and a join.* The next flight looks once more before it asks ([`ListCache::fresh_list`]).
//! * *The registry fails while some wait with a last good answer and some without.* The flight looks whether there is
//!   one when it has failed: if so, all that wait have it, or get the failure. Else it makes a list of what is cached.
//! * *A list is asked for while the flight of the same question hangs at a registry that has since been found
//!   unreachable.* Lists of what is cached have flights of their own, so that nobody joins the one that hangs.

mod referrers;
mod unstored;

use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::{Duration, SystemTime};

use super::bounded::BoundedCache;
use super::core::Core;
use super::manifests::ManifestCache;
use super::scheduler::{Class, Purpose as JobPurpose};
use super::{CacheError, How, PATIENCE, Reason, SIZES_REMEMBERED, lock};
use crate::client_address::ClientAddress;
use crate::flight::{Flights, Follower};
use crate::oci::{Digest, ImageName, TagPage, TagQuery};
use crate::store::{Access, Document, DocumentWriter, ListRecord};
use crate::upstream::{List, TagListWriter, UpstreamError};

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
struct Listed {
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

type ListFlights = Flights<(ImageName, ListQuestion), (), Listed, CacheError>;

/// A list that can be answered.
#[derive(Debug, Clone)]
pub struct ListAnswer {
    /// The document, shared with everybody else who reads it.
    pub body: Document,
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
        // Content that refers to a cached manifest stays right, so anything but the registry's own answer will do.
        ListQuestion::Referrers { .. } => {
            let is_final = matches!(error.reason(), Reason::Unsupported | Reason::NotAllowed);
            !(is_limited || is_final || cause.is_certainly_not_found())
        }
    }
}

/// The service.
pub(super) struct ListCache {
    core: Arc<Core>,
    manifests: Arc<ManifestCache>,
    flights: ListFlights,
    /// Lists of what is cached, for which no request is made.
    cached_flights: ListFlights,
    /// Locked for a look-up or an insertion only, as is the next one.
    unstored: Mutex<unstored::UnstoredLists>,
    /// What each cached manifest refers to, if to anything. Content does not change, so this does not either.
    subjects: Mutex<BoundedCache<Digest, Option<Digest>>>,
}

impl ListCache {
    pub(super) fn new(core: Arc<Core>, manifests: Arc<ManifestCache>) -> ListCache {
        ListCache {
            core,
            manifests,
            flights: Flights::new(),
            cached_flights: Flights::new(),
            unstored: Mutex::default(),
            subjects: Mutex::new(BoundedCache::new(SIZES_REMEMBERED)),
        }
    }

    /// How many lists are being requested or made.
    pub(super) fn flights(&self) -> usize {
        self.flights.len() + self.cached_flights.len()
    }

    /// A list. Does not wait for anything but the local disk, of which it reads one small file.
    ///
    /// # Errors
    /// [`CacheError`] if it is known that there is none to be had.
    pub(super) fn find(
        self: &Arc<Self>,
        name: &ImageName,
        question: ListQuestion,
        client: Option<ClientAddress>,
    ) -> Result<ListLookup, CacheError> {
        let now = self.core.now();
        let record = self.known_list(name, &question);
        let is_fresh = record.as_ref().is_some_and(|record| is_fresh(record, now));
        let ready = |list, how| Ok(ListLookup::Ready(ListAnswer::new(list, how)));
        let is_troubled = self.core.negative.is_troubled(&name.upstream, now);
        match record {
            Some(list) if is_fresh || self.core.is_offline() => ready(list, How::Hit),
            Some(list) if is_troubled => ready(list, How::Stale),
            Some(list) => match self.ask_for_list(name, question, Some(list.clone()), client) {
                Ok(waiting) => Ok(ListLookup::Wait(waiting)),
                Err(_) => ready(list, How::Stale),
            },
            None if self.core.is_offline() => match self.core.store.has_images(name)? {
                true => Ok(ListLookup::Wait(self.find_in_cache(name, question, client))),
                false => Err(CacheError::NotCached),
            },
            None if is_troubled && self.has_cached_list(name, &question) => {
                Ok(ListLookup::Wait(self.find_in_cache(name, question, client)))
            }
            None => Ok(ListLookup::Wait(self.ask_for_list(name, question, None, client)?)),
        }
    }

    fn ask_for_list(
        self: &Arc<Self>,
        name: &ImageName,
        question: ListQuestion,
        last_good: Option<ListRecord>,
        client: Option<ClientAddress>,
    ) -> Result<ListWait, CacheError> {
        let purpose = self.core.purpose(name, client)?;
        let patience = match last_good {
            Some(_) => self.core.settings().revalidate_timeout,
            // Some of it is worse than all of it a little later.
            None => PATIENCE,
        };
        let work = ListCache::fresh_or_cached_list;
        let run = self.run_flight(&self.flights, purpose, name, question, work);
        Ok(ListWait { patience, last_good, ..run })
    }

    /// Makes a list of what is cached. Many files may have to be read, so a fetcher does it. Its class is not that
    /// of the registry, whose fetchers may all be waiting for it.
    fn find_in_cache(
        self: &Arc<Self>,
        name: &ImageName,
        question: ListQuestion,
        client: Option<ClientAddress>,
    ) -> ListWait {
        let purpose = JobPurpose { class: Class::Local, name: name.clone(), client };
        let work = |service: &ListCache, name: &ImageName, question: &ListQuestion| {
            let record = service.cached_list(name, question)?.ok_or(CacheError::NotCached)?;
            Ok(Listed { record, origin: Origin::Cache })
        };
        self.run_flight(&self.cached_flights, purpose, name, question, work)
    }

    /// Joins the flight of a list, or starts it with `work`.
    fn run_flight(
        self: &Arc<Self>,
        flights: &ListFlights,
        purpose: JobPurpose,
        name: &ImageName,
        question: ListQuestion,
        work: fn(&ListCache, &ImageName, &ListQuestion) -> Result<Listed, CacheError>,
    ) -> ListWait {
        let is_about_tags = matches!(question, ListQuestion::Tags { .. });
        let joined = flights.join(&(name.clone(), question), || CacheError::GivenUp);
        let service = Arc::clone(self);
        let (flight, how) = self.core.run_metadata_flight(joined, purpose, move |leader| {
            let (name, question) = leader.key().clone();
            leader.finish(work(&service, &name, &question));
        });
        ListWait { flight, patience: PATIENCE, last_good: None, is_about_tags, how }
    }
}

impl ListCache {
    fn known_list(&self, name: &ImageName, question: &ListQuestion) -> Option<ListRecord> {
        let key = question.key();
        let unstored = lock(&self.unstored).get(name, &key);
        unstored.or_else(|| self.core.store.list(name, &key))
    }

    /// The work of a list flight: asks upstream, unless a flight that landed just now has done so.
    pub(super) fn fresh_list(
        &self,
        name: &ImageName,
        question: &ListQuestion,
    ) -> Result<ListRecord, CacheError> {
        match self.known_list(name, question) {
            Some(record) if is_fresh(&record, self.core.now()) => Ok(record),
            _ => self.fetch_list(name, question),
        }
    }

    /// As [`ListCache::fresh_list`]; if the registry cannot be reached and has never answered, what is cached.
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
                self.core.store.manifest(name, digest, Access::Look).is_some()
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
        let source = self.core.source(&name.upstream)?;
        let mut writer = self.core.store.list_writer();
        let asked = match question {
            ListQuestion::Tags { query } => source.tags(&name.repository, query, &mut writer),
            ListQuestion::Referrers { digest, query } => {
                source.referrers(&name.repository, digest, query, &mut writer)
            }
        };
        if asked.as_ref().is_err_and(UpstreamError::is_about_the_registry) {
            self.core.negative.note_trouble(&name.upstream, self.core.now());
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

    fn record_of(&self, writer: DocumentWriter, list: List) -> Result<ListRecord, CacheError> {
        let since_epoch = self.core.now().duration_since(SystemTime::UNIX_EPOCH);
        Ok(ListRecord {
            checked: since_epoch.map_or(0, |since| since.as_secs()),
            body: writer.finish().ok_or(CacheError::NoRoomForDocument)?,
            next: list.next,
            filters_applied: list.filters_applied,
        })
    }

    /// Stores a list of a repository that has images, and holds another for a while.
    fn keep_list(&self, name: &ImageName, key: &str, record: &ListRecord) {
        let of_cache = self.core.settings().maintenance.room.cap_bytes.map(|bytes| bytes / 100);
        let total_bytes_max = of_cache.map_or(STORED_BYTES_MAX, |max| max.min(STORED_BYTES_MAX));
        let stored = self.core.store.put_list(name, key, record, total_bytes_max);
        if let Err(error) = &stored {
            log::warn!("{name}: a list is answered but not stored: {error}");
        }
        let mut unstored = lock(&self.unstored);
        match stored {
            Ok(true) => unstored.remove(name, key),
            _ => unstored.insert(name, key, record.clone()),
        }
    }

    /// The page of the cached tags that a query asks for; `None` if there are none, or if the query continues a
    /// list of the registry's in a way that only the registry understands.
    fn cached_tags(&self, name: &ImageName, query: &str) -> Result<Option<ListRecord>, CacheError> {
        let query = TagQuery::parse(query);
        let tags = self.core.store.find_tags(name)?;
        if tags.is_empty() || !query.is_by_name() {
            return Ok(None);
        }
        let tags = tags.iter().map(|tag| tag.as_str().to_owned()).collect();
        let TagPage { tags, next } = query.page(tags);
        let mut writer = self.core.store.list_writer();
        let mut document = TagListWriter::start(&mut writer, &name.repository);
        tags.iter().for_each(|tag| document.push(tag));
        document.finish();
        self.record_of(writer, List { next, filters_applied: None }).map(Some)
    }

    /// A document of ours as a list.
    fn own_list(&self, document: &str, list: List) -> Result<ListRecord, CacheError> {
        let mut writer = self.core.store.list_writer();
        writer.write(document.as_bytes());
        self.record_of(writer, list)
    }
}

fn is_fresh(record: &ListRecord, now: SystemTime) -> bool {
    let checked = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(record.checked));
    checked.is_some_and(|checked| now.duration_since(checked).is_ok_and(|age| age < LIST_TTL))
}
