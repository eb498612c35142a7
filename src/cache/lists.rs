//! Tag lists and referrers: relayed, kept for a short time, and the last good answer when upstream is
//! down.

use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, SystemTime};

use super::{Cache, CacheError, How, Inner, PATIENCE};
use crate::flight::{Flights, Follower};
use crate::oci::{Digest, ImageName, TagQuery};
use crate::store::ListRecord;
use crate::upstream::{List, UpstreamError};

/// How long a list is answered without asking again: enough for a client that pages back and forth,
/// short enough that a new tag shows.
const LIST_TTL: Duration = Duration::from_secs(60);

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

pub(super) type ListFlights = Flights<(ImageName, ListQuestion), (), List, CacheError>;

/// A list that can be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListAnswer {
    /// The document and its next page.
    pub list: List,
    /// How it came about.
    pub how: How,
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
    flight: Follower<(), List, CacheError>,
    patience: Duration,
    fallback: Option<List>,
    how: How,
}

impl ListWait {
    /// The answer, or the failure, once the flight has ended.
    pub fn poll(&self, waker: &Waker) -> Poll<Result<ListAnswer, CacheError>> {
        self.flight.poll_outcome(waker).map(|outcome| match (outcome, &self.fallback) {
            (Ok(list), _) => Ok(ListAnswer { list, how: self.how }),
            (Err(error), Some(list)) if !error.is_not_found() => {
                Ok(ListAnswer { list: list.clone(), how: How::Stale })
            }
            (Err(error), _) => Err(error),
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
        match self.fallback {
            Some(list) => Ok(ListAnswer { list, how: How::Stale }),
            None => Err(CacheError::TimedOut),
        }
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
        let record = inner.store.list(name, &question.key());
        let is_fresh = record.as_ref().is_some_and(|record| is_fresh(record, now));
        let known = record.map(to_list).or_else(|| match &question {
            ListQuestion::Tags { query } => inner.local_tags(name, query),
            ListQuestion::Referrers { .. } => None,
        });
        let ready = |list, how| Ok(ListLookup::Ready(ListAnswer { list, how }));
        let (is_offline, is_troubled) =
            (inner.is_offline(), inner.misses.is_troubled(&name.upstream, now));
        // What is here of referrers may be but some of them, so it is told only where nobody is asked:
        // a registry that does not list them has clients look elsewhere.
        let known = match &question {
            ListQuestion::Referrers { digest, query } if is_offline || is_troubled => {
                known.or_else(|| inner.local_referrers(name, digest, query))
            }
            _ => known,
        };
        match known {
            Some(list) if is_fresh || is_offline => ready(list, How::Hit),
            Some(list) if is_troubled => ready(list, How::Stale),
            None if is_offline => Err(CacheError::NotCached),
            known => match (self.ask_for_list(name, question, known.clone()), known) {
                (Err(_), Some(list)) => ready(list, How::Stale),
                (asked, _) => Ok(ListLookup::Wait(asked?)),
            },
        }
    }

    fn ask_for_list(
        &self,
        name: &ImageName,
        question: ListQuestion,
        fallback: Option<List>,
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
            Some(_) => self.inner.settings().revalidate_timeout,
            None => PATIENCE,
        };
        Ok(ListWait { flight: joined.flight, patience, fallback, how })
    }
}

impl Inner {
    /// The work of a list flight: asks upstream, unless a flight that landed just now has done so.
    pub(super) fn fresh_list(
        &self,
        name: &ImageName,
        question: &ListQuestion,
    ) -> Result<List, CacheError> {
        match self.store.list(name, &question.key()) {
            Some(record) if is_fresh(&record, self.now()) => Ok(to_list(record)),
            _ => self.fetch_list(name, question),
        }
    }

    pub(super) fn fetch_list(
        &self,
        name: &ImageName,
        question: &ListQuestion,
    ) -> Result<List, CacheError> {
        let source = self.source(&name.upstream)?;
        let asked = match question {
            ListQuestion::Tags { query } => source.tags(&name.repository, query),
            ListQuestion::Referrers { digest, query } => {
                source.referrers(&name.repository, digest, query)
            }
        };
        if asked.as_ref().is_err_and(UpstreamError::is_about_the_registry) {
            self.misses.note_trouble(&name.upstream, self.now());
        }
        let list = asked?;
        let since_epoch = self.now().duration_since(SystemTime::UNIX_EPOCH);
        let record = ListRecord {
            checked: since_epoch.map_or(0, |since| since.as_secs()),
            body: list.body.clone(),
            next: list.next.clone(),
            filters_applied: list.filters_applied.clone(),
        };
        if let Err(error) = self.store.put_list(name, &question.key(), &record) {
            log::warn!("{name}: a list is answered but not cached: {error}");
        }
        Ok(list)
    }

    /// The tags that are in the cache, where no answer of upstream's is: what can be pulled, at least.
    fn local_tags(&self, name: &ImageName, query: &str) -> Option<List> {
        let tags = self.store.tags(name);
        if tags.is_empty() {
            return None;
        }
        let tags = tags.iter().map(|tag| tag.as_str().to_owned()).collect();
        Some(List::of_tags(name.repository.as_str(), TagQuery::parse(query).page(tags)))
    }
}

fn is_fresh(record: &ListRecord, now: SystemTime) -> bool {
    let checked = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(record.checked));
    checked.is_some_and(|checked| now.duration_since(checked).is_ok_and(|age| age < LIST_TTL))
}

fn to_list(record: ListRecord) -> List {
    List { body: record.body, next: record.next, filters_applied: record.filters_applied }
}
