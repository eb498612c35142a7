//! Tag lists and referrers: forwarded from the registry and cached for a short time. While the registry is unreachable,
//! its last good response is served.
//!
//! # Interleavings
//! * *A flight ends between a lookup and a join.* The next flight checks again before it sends a request
//!   ([`ListCache::fresh_list`]).
//! * *The registry fails while some clients have a last good response and some do not.* The failed flight checks whether
//!   there is one now. If so, it fails, and clients that have one fall back to it. Otherwise it builds a list of the
//!   cached content.
//! * *A list is requested while the flight of the same question hangs at a registry that has since become unreachable.*
//!   Lists of cached content have separate flights, so that no client joins the one that hangs.

mod referrers;
mod unstored;

use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::{Duration, SystemTime};

use super::bounded::BoundedCache;
use super::core::Core;
use super::manifests::ManifestCache;
use super::scheduler::{Class, Purpose as JobPurpose};
use super::{CacheError, How, PATIENCE, Reason, SIZES_REMEMBERED, Why, lock};
use crate::client_address::ClientAddress;
use crate::flight::{Flights, Follower};
use crate::oci::{Digest, ImageName, TagPage, TagQuery};
use crate::store::{Access, Document, DocumentWriter, ListRecord};
use crate::upstream::{List, TagListWriter, UpstreamError};

/// How long a list is fresh: long enough for a client that pages back and forth, short enough that new tags appear
/// soon.
const LIST_TTL: Duration = Duration::from_secs(60);
/// The maximum size of all stored lists in bytes; 1 % of `cacheSize`, if that is less.
const STORED_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A request for a list.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListQuestion {
    /// A page of the tag list.
    Tags {
        /// `n=…&last=…`, or empty.
        query: String,
    },
    /// The referrers of a manifest.
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

/// The outcome of a list flight.
#[derive(Debug, Clone)]
struct Listed {
    record: ListRecord,
    origin: Origin,
}

/// Where a list comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// The registry.
    Registry,
    /// The cached content, which may be only a part of what the registry has.
    Cache,
}

type ListFlights = Flights<(ImageName, ListQuestion), (), Listed, CacheError>;

/// A list to be served.
#[derive(Debug, Clone)]
pub struct ListAnswer {
    /// The document, shared by all readers.
    pub body: Document,
    /// The query of the next page.
    pub next: Option<String>,
    /// `OCI-Filters-Applied`.
    pub filters_applied: Option<String>,
    /// Where it comes from.
    pub how: How,
    /// Why it is not a plain hit.
    pub why: Option<Why>,
}

impl ListAnswer {
    fn new(record: ListRecord, how: How, why: Option<Why>) -> ListAnswer {
        let ListRecord { body, next, filters_applied, .. } = record;
        ListAnswer { body, next, filters_applied, how, why }
    }
}

/// What a lookup found.
pub enum ListLookup {
    /// The list.
    Ready(ListAnswer),
    /// A flight is under way.
    Wait(ListWait),
}

/// Waits for the registry, with the last good response as the fallback.
pub struct ListWait {
    flight: Follower<(), Listed, CacheError>,
    patience: Duration,
    last_good: Option<ListRecord>,
    is_about_tags: bool,
    how: How,
}

impl ListWait {
    /// The list or the failure, once the flight has ended.
    pub fn poll(&self, waker: &Waker) -> Poll<Result<ListAnswer, CacheError>> {
        self.flight.poll_outcome(waker).map(|outcome| match (outcome, &self.last_good) {
            (Ok(Listed { record, origin: Origin::Registry }), last_good) => {
                let why = if last_good.is_some() { Why::Expired } else { Why::NotCached };
                Ok(ListAnswer::new(record, self.how, Some(why)))
            }
            (Ok(Listed { record, origin: Origin::Cache }), _) => {
                Ok(ListAnswer::new(record, How::Stale, Some(Why::Unreachable)))
            }
            (Err(error), Some(list)) if !self.is_final(&error) => {
                Ok(ListAnswer::new(list.clone(), How::Stale, Some((&error).into())))
            }
            (Err(error), _) => Err(error),
        })
    }

    /// Whether the registry has refused the request, so that its last good response is not served. Programs list tags
    /// to find the newest one, and none of them reads `Warning`. Referrers are looked up by digest, and a signature
    /// remains valid.
    fn is_final(&self, error: &CacheError) -> bool {
        let is_refused = matches!(error, CacheError::Upstream(cause) if !cause.is_trouble());
        error.is_not_found() || (self.is_about_tags && is_refused)
    }

    /// How long to wait before [`ListWait::give_up`].
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// The fallback when the time is over. `waker` is the one that was polled with; it is no longer woken. The cached
    /// content is not searched here, on an HTTP worker: the flight does that as soon as it has failed, and later
    /// requests at once.
    ///
    /// # Errors
    /// [`CacheError::TimedOut`] if there is no last good response; [`CacheError::GivenUp`] if no request was sent.
    pub fn give_up(self, waker: &Waker) -> Result<ListAnswer, CacheError> {
        self.flight.forget(waker);
        match self.last_good {
            Some(list) => {
                let why = Why::Failed(Reason::TimedOut);
                Ok(ListAnswer::new(list, How::Stale, Some(why)))
            }
            None if self.flight.has_begun() => Err(CacheError::TimedOut),
            None => Err(CacheError::GivenUp),
        }
    }
}

/// Whether the registry is unreachable. One that refuses, limits the rate or fails for this request only is reachable.
/// Then cached tags are not served: a client that looks for the newest tag would take an old one.
fn cannot_be_reached(error: &CacheError, question: &ListQuestion) -> bool {
    let CacheError::Upstream(cause) = error else {
        return matches!(error, CacheError::TimedOut | CacheError::NotCached);
    };
    let is_limited = matches!(error.reason(), Reason::RateLimited { .. });
    match question {
        ListQuestion::Tags { .. } => cause.is_unreachable() && !is_limited,
        // A referrer remains valid, so cached ones are served unless the registry itself reports that there are none.
        ListQuestion::Referrers { .. } => {
            let is_final = matches!(error.reason(), Reason::Unsupported | Reason::NotAllowed);
            !(is_limited || is_final || cause.is_certainly_not_found())
        }
    }
}

/// Looks up and fetches lists.
pub(super) struct ListCache {
    core: Arc<Core>,
    manifests: Arc<ManifestCache>,
    flights: ListFlights,
    /// Flights for lists of cached content, which send no request.
    cached_flights: ListFlights,
    /// Locked for a lookup or an insertion only, as is the next table.
    unstored: Mutex<unstored::UnstoredLists>,
    /// The subject of each cached manifest, if it has one. Content does not change, so entries stay valid.
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

    /// How many lists are being fetched or built.
    pub(super) fn flights(&self) -> usize {
        self.flights.len() + self.cached_flights.len()
    }

    /// A list. Does not wait for anything but the local disk, of which it reads one small file.
    ///
    /// # Errors
    /// [`CacheError`] if it is known that the list is not available.
    pub(super) fn find(
        self: &Arc<Self>,
        name: &ImageName,
        question: ListQuestion,
        client: Option<ClientAddress>,
    ) -> Result<ListLookup, CacheError> {
        let now = self.core.now();
        let record = self.known_list(name, &question);
        let is_fresh = record.as_ref().is_some_and(|record| is_fresh(record, now));
        let stale = |list, why| Ok(ListLookup::Ready(ListAnswer::new(list, How::Stale, Some(why))));
        let is_troubled = self.core.negative.is_troubled(&name.upstream, now);
        match record {
            Some(list) if is_fresh || self.core.is_offline() => {
                Ok(ListLookup::Ready(ListAnswer::new(list, How::Hit, None)))
            }
            Some(list) if is_troubled => stale(list, Why::RecentFailure),
            Some(list) => match self.ask_for_list(name, question, Some(list.clone()), client) {
                Ok(waiting) => Ok(ListLookup::Wait(waiting)),
                Err(error) => stale(list, (&error).into()),
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
            // A partial list is worse than a complete one a little later.
            None => PATIENCE,
        };
        let work = ListCache::fresh_or_cached_list;
        let run = self.run_flight(&self.flights, purpose, name, question, work);
        Ok(ListWait { patience, last_good, ..run })
    }

    /// Builds a list of the cached content. It may read many files, so a fetcher does it. Its class is not that of the
    /// registry, whose fetchers may all be waiting for the registry.
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

    /// The work of a list flight: sends a request, unless a flight that has just finished did so.
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

    /// As [`ListCache::fresh_list`]. If the registry is unreachable and there is no last good response, a list of the
    /// cached content.
    fn fresh_or_cached_list(
        &self,
        name: &ImageName,
        question: &ListQuestion,
    ) -> Result<Listed, CacheError> {
        match self.fresh_list(name, question) {
            Ok(record) => Ok(Listed { record, origin: Origin::Registry }),
            Err(error) if !cannot_be_reached(&error, question) => Err(error),
            // Clients fall back to it.
            Err(error) if self.known_list(name, question).is_some() => Err(error),
            Err(error) => {
                let record = self.cached_list(name, question)?.ok_or(error)?;
                Ok(Listed { record, origin: Origin::Cache })
            }
        }
    }

    /// Whether a list can certainly be built from the cached content.
    fn has_cached_list(&self, name: &ImageName, question: &ListQuestion) -> bool {
        match question {
            // The registry is tried once more: cached tags are only some of its tags.
            ListQuestion::Tags { .. } => false,
            ListQuestion::Referrers { digest, .. } => {
                self.core.store.manifest(name, digest, Access::Look).is_some()
            }
        }
    }

    /// A list of the cached content, which can be pulled. Reads many files.
    fn cached_list(
        &self,
        name: &ImageName,
        question: &ListQuestion,
    ) -> Result<Option<ListRecord>, CacheError> {
        let record = match question {
            ListQuestion::Tags { query } => self.cached_tags(name, query)?,
            ListQuestion::Referrers { digest, query } => {
                self.cached_referrers(name, digest, query)?
            }
        };
        if record.is_some() {
            match question {
                ListQuestion::Tags { .. } => log::info!(
                    repository:% = name;
                    "the registry cannot list its tags, serving those that are cached"
                ),
                ListQuestion::Referrers { digest, .. } => log::info!(
                    digest:%, repository:% = name;
                    "the registry cannot list the referrers, serving those that are cached"
                ),
            }
        }
        Ok(record)
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
                // Not stored: the tag is, and it is fresh for as long as any tag.
                return self.referrers_by_tag(name, digest, query)?.ok_or(error);
            }
            (Err(error), _) => return Err(error),
        };
        self.keep_list(name, &question.key(), &record);
        Ok(record)
    }

    /// A page of tags as the registry lists them now, and the query of the next page.
    pub(super) fn current_tags(
        &self,
        name: &ImageName,
        query: &str,
    ) -> Result<(Document, Option<String>), CacheError> {
        let record = self.fetch_list(name, &ListQuestion::Tags { query: query.to_owned() })?;
        Ok((record.body, record.next))
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

    /// Stores a list of a repository that has cached images. Keeps other lists in the table of unstored lists.
    fn keep_list(&self, name: &ImageName, key: &str, record: &ListRecord) {
        let of_cache = self.core.settings().maintenance.room.cap_bytes.map(|bytes| bytes / 100);
        let total_bytes_max = of_cache.map_or(STORED_BYTES_MAX, |max| max.min(STORED_BYTES_MAX));
        let stored = self.core.store.put_list(name, key, record, total_bytes_max);
        if let Err(error) = &stored {
            log::warn!(repository:% = name, error:%; "a list is served but could not be stored");
        }
        let mut unstored = lock(&self.unstored);
        match stored {
            Ok(true) => unstored.remove(name, key),
            _ => unstored.insert(name, key, record.clone()),
        }
    }

    /// The requested page of the cached tags; `None` if there are none, or if the query continues the registry's list
    /// in a form that only the registry understands.
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

    /// A document created by this server as a list.
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
