//! Tag lists and referrers: relayed, kept for a short time, and the last good answer when upstream is
//! down.

use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, SystemTime};

use super::{Cache, CacheError, How, Inner, PATIENCE, Reason, lock};
use crate::flight::{Flights, Follower};
use crate::oci::{Digest, ImageName, TagPage, TagQuery};
use crate::store::{ListBody, ListRecord, ListWriter};
use crate::upstream::{List, ListSink, TagListWriter};

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

pub(super) type ListFlights = Flights<(ImageName, ListQuestion), (), ListRecord, CacheError>;

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

/// What is answered if upstream does not.
enum Fallback {
    /// The last good answer, unless upstream says that there is no such thing.
    LastGood(ListRecord),
    /// The tags that are cached. They are but some of the tags: a client that looks for the newest would take
    /// an old one. So they are answered only if upstream cannot be reached, and not if it refuses the list.
    Cached {
        query: String,
    },
    /// The cached manifests that refer to one, if upstream cannot be reached.
    CachedReferrers {
        digest: Digest,
        query: String,
    },
    Nothing,
}

/// Waits for upstream, with a fallback.
pub struct ListWait {
    flight: Follower<(), ListRecord, CacheError>,
    inner: Arc<Inner>,
    name: ImageName,
    patience: Duration,
    fallback: Fallback,
    how: How,
}

impl ListWait {
    /// The answer, or the failure, once the flight has ended.
    pub fn poll(&self, waker: &Waker) -> Poll<Result<ListAnswer, CacheError>> {
        self.flight.poll_outcome(waker).map(|outcome| match outcome {
            Ok(list) => Ok(ListAnswer::new(list, self.how)),
            Err(error) => self.fall_back(error),
        })
    }

    /// How long to wait before [`ListWait::give_up`].
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// The answer when patience is over. `waker` is the one that was polled with, and is no longer woken.
    ///
    /// # Errors
    /// [`CacheError::TimedOut`] if there is no last good answer.
    pub fn give_up(self, waker: &Waker) -> Result<ListAnswer, CacheError> {
        self.flight.forget(waker);
        self.fall_back(CacheError::TimedOut)
    }

    fn fall_back(&self, error: CacheError) -> Result<ListAnswer, CacheError> {
        match &self.fallback {
            Fallback::LastGood(list) if !error.is_not_found() => {
                Ok(ListAnswer::new(list.clone(), How::Stale))
            }
            Fallback::Cached { query } if cannot_be_reached(&error) => {
                let list = self.inner.local_tags(&self.name, query)?.ok_or(error)?;
                Ok(ListAnswer::new(list, How::Stale))
            }
            Fallback::CachedReferrers { digest, query } if cannot_be_reached(&error) => {
                let list = self.inner.local_referrers(&self.name, digest, query)?.ok_or(error)?;
                Ok(ListAnswer::new(list, How::Stale))
            }
            _ => Err(error),
        }
    }
}

/// Whether the failure is that of the way to the registry. One that refuses, or limits the rate, is well.
fn cannot_be_reached(error: &CacheError) -> bool {
    match error {
        CacheError::TimedOut | CacheError::GivenUp => true,
        CacheError::Upstream(cause) => {
            cause.is_trouble() && !matches!(error.reason(), Reason::RateLimited { .. })
        }
        _ => false,
    }
}

impl Cache {
    /// A list. Does not wait for anything but the local disk.
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
        if inner.is_offline() {
            return match (record, &question) {
                (Some(list), _) => ready(list, How::Hit),
                (None, ListQuestion::Tags { query }) => {
                    ready(inner.local_tags(name, query)?.ok_or(CacheError::NotCached)?, How::Stale)
                }
                (None, ListQuestion::Referrers { digest, query }) => {
                    let local = inner.local_referrers(name, digest, query)?;
                    ready(local.ok_or(CacheError::NotCached)?, How::Hit)
                }
            };
        }
        // What is here of referrers may be but some of them, so it is told only where nobody is asked:
        // a registry that does not list them has clients look elsewhere.
        let record = match &question {
            ListQuestion::Referrers { digest, query } if record.is_none() && is_troubled => {
                inner.local_referrers(name, digest, query)?
            }
            _ => record,
        };
        match record {
            Some(list) if is_fresh => ready(list, How::Hit),
            Some(list) if is_troubled => ready(list, How::Stale),
            Some(list) => {
                match self.ask_for_list(name, question, Fallback::LastGood(list.clone())) {
                    Ok(waiting) => Ok(ListLookup::Wait(waiting)),
                    Err(_) => ready(list, How::Stale),
                }
            }
            None => {
                let fallback = match &question {
                    ListQuestion::Tags { query } if inner.store.has_tags(name) => {
                        Fallback::Cached { query: query.clone() }
                    }
                    ListQuestion::Tags { .. } => Fallback::Nothing,
                    ListQuestion::Referrers { digest, query } => {
                        Fallback::CachedReferrers { digest: *digest, query: query.clone() }
                    }
                };
                Ok(ListLookup::Wait(self.ask_for_list(name, question, fallback)?))
            }
        }
    }

    fn ask_for_list(
        &self,
        name: &ImageName,
        question: ListQuestion,
        fallback: Fallback,
    ) -> Result<ListWait, CacheError> {
        let purpose = self.purpose(name)?;
        let joined = self.inner.lists.join(&(name.clone(), question), || CacheError::GivenUp);
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
                    pilot.land(inner.fresh_list(&name, &question));
                },
            );
        }
        let patience = match fallback {
            Fallback::LastGood(_) => self.inner.settings().revalidate_timeout,
            // Some of it is worse than all of it a little later.
            _ => PATIENCE,
        };
        let (inner, name) = (Arc::clone(&self.inner), name.clone());
        Ok(ListWait { flight: joined.flight, inner, name, patience, fallback, how })
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
        let is_trouble = |error: &crate::upstream::UpstreamError| {
            error.is_trouble() && !error.may_be_of_one_request()
        };
        if asked.as_ref().is_err_and(is_trouble) {
            self.misses.note_trouble(&name.upstream, self.now());
        }
        let list = asked?;
        let record = self.record_of(writer, list)?;
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
        let of_cache = self.settings().upkeep.room.cap_bytes.map(|bytes| bytes / 100);
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

    /// The tags that are in the cache, where no answer of upstream's is: what can be pulled, at least.
    fn local_tags(&self, name: &ImageName, query: &str) -> Result<Option<ListRecord>, CacheError> {
        let tags = self.store.tags(name);
        if tags.is_empty() {
            return Ok(None);
        }
        log::info!(
            "{name}: no list of the registry's is at hand, answering the tags that are cached"
        );
        let tags = tags.iter().map(|tag| tag.as_str().to_owned()).collect();
        let TagPage { tags, next } = TagQuery::parse(query).page(tags);
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
