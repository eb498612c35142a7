//! The images whose content is being completed, or could not be.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use crate::cache::access::{self, Pass};
use crate::client_address::ClientAddress;
use crate::oci::{Digest, ImageName, Platform, Reference, Upstream};

/// How many images are tracked.
const IMAGES_MAX: usize = 1024;
/// How many clients and platforms of an image are remembered.
const CLIENTS_MAX: usize = 8;
/// The longest time for which an image can wait. A later time means that the clock was set back.
const WAIT_MAX: Duration = Duration::from_secs(2 * 3600);
/// How long an image that was given up is reported, if nothing displaces it and no node checks it again.
const GIVEN_UP_KEPT: Duration = Duration::from_secs(24 * 3600);
/// After this time, a check of an image that was given up starts over.
const START_OVER: Duration = Duration::from_secs(600);

pub(super) type Key = (ImageName, Reference);

/// How far an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    /// It is about to be fetched.
    Queued,
    /// Its manifests and blobs are being fetched.
    Fetching,
    /// It is fetched again later, for this reason.
    Retrying(String),
    /// It is not fetched any more, for this reason.
    GivenUp(String),
}

/// An image that is not complete, as far as is known.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Its manifest or index.
    pub(super) digest: Digest,
    /// The platforms of the nodes that have checked it, as far as they report them.
    pub(super) platforms: Vec<Platform>,
    /// The clients that have checked or pulled it.
    clients: Vec<Option<ClientAddress>>,
    /// When a client first checked or pulled it.
    pub(super) since: SystemTime,
    /// When it is considered next.
    pub(super) due: SystemTime,
    pub(super) attempts: u32,
    pub(super) stage: Stage,
    /// Whether a client pulls it now, so that the fetch has begun already.
    pub(super) is_pulled: bool,
    /// Whether only clients that may be scanners have checked it.
    pub(super) is_undecided: bool,
    /// How many of `platforms` the current fetch includes.
    pub(super) platforms_fetched: usize,
    /// The login with which it is fetched.
    pub(super) pass: Option<Pass>,
}

impl Entry {
    pub(super) fn new(digest: Digest, since: SystemTime, due: SystemTime) -> Entry {
        Entry {
            digest,
            platforms: Vec::new(),
            clients: Vec::new(),
            since,
            due,
            attempts: 0,
            stage: Stage::Queued,
            is_pulled: false,
            is_undecided: false,
            platforms_fetched: 0,
            pass: None,
        }
    }

    pub(super) fn undecided(self) -> Entry {
        Entry { is_undecided: true, ..self }
    }

    pub(super) fn client(&self) -> Option<ClientAddress> {
        self.clients.first().copied().flatten()
    }

    pub(super) fn add(&mut self, client: Option<ClientAddress>, platform: Option<Platform>) {
        // The latest login is valid for the longest time.
        self.pass = access::current().or(self.pass.take());
        if self.clients.len() < CLIENTS_MAX && !self.clients.contains(&client) {
            self.clients.push(client);
        }
        if let Some(platform) = platform
            && self.platforms.len() < CLIENTS_MAX
            && !self.platforms.contains(&platform)
        {
            self.platforms.push(platform);
        }
    }

    fn is_due(&self, now: SystemTime) -> bool {
        match self.due.duration_since(now) {
            Ok(wait) => wait.is_zero() || wait > WAIT_MAX,
            Err(_) => true,
        }
    }

    fn is_given_up(&self) -> bool {
        matches!(self.stage, Stage::GivenUp(_))
    }
}

#[derive(Debug, Default)]
pub(super) struct Table {
    entries: HashMap<Key, Entry>,
}

impl Table {
    /// The entry of an image, created by `new` if there is none. `None` if the table is full.
    pub(super) fn entry(&mut self, key: &Key, new: impl FnOnce() -> Entry) -> Option<&mut Entry> {
        if !self.entries.contains_key(key) {
            if self.entries.len() >= IMAGES_MAX {
                let given_up = self.entries.iter().filter(|(_, entry)| entry.is_given_up());
                let oldest = given_up.min_by_key(|(_, entry)| entry.since)?.0.clone();
                self.entries.remove(&oldest);
            }
            self.entries.insert(key.clone(), new());
        }
        self.entries.get_mut(key)
    }

    /// Lets an image that was given up long ago start over.
    pub(super) fn revive(&mut self, key: &Key, now: SystemTime, due: SystemTime) {
        if let Some(entry) = self.entries.get_mut(key)
            && entry.is_given_up()
            && now.duration_since(entry.due).is_ok_and(|age| age >= START_OVER)
        {
            *entry = Entry { stage: Stage::Queued, attempts: 0, due, since: now, ..entry.clone() };
        }
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// Removes the entries of this manifest that are not being fetched.
    pub(super) fn forget_failures(&mut self, name: &ImageName, digest: &Digest) {
        self.entries.retain(|(of, _), entry| {
            of != name || entry.digest != *digest || entry.stage == Stage::Fetching
        });
    }

    pub(super) fn get_mut(&mut self, key: &Key) -> Option<&mut Entry> {
        self.entries.get_mut(key)
    }

    pub(super) fn remove(&mut self, key: &Key) {
        self.entries.remove(key);
    }

    /// Forgets a client, and the images that only it has checked and that are not being fetched.
    pub(super) fn forget_client(&mut self, client: Option<ClientAddress>) {
        self.entries.retain(|_, entry| {
            let is_known = entry.clients.contains(&client);
            entry.clients.retain(|each| *each != client);
            !is_known || !entry.clients.is_empty() || entry.stage == Stage::Fetching
        });
    }

    /// The entries that are due, those that have waited longest first. Removes those that were given up long ago.
    pub(super) fn due(&mut self, now: SystemTime) -> Vec<(Key, Entry)> {
        self.entries.retain(|_, entry| {
            !entry.is_given_up()
                || now.duration_since(entry.due).is_ok_and(|age| age < GIVEN_UP_KEPT)
        });
        let is_due = |entry: &Entry| !entry.is_given_up() && entry.is_due(now);
        let mut due: Vec<(Key, Entry)> = self
            .entries
            .iter()
            .filter(|(_, entry)| is_due(entry))
            .map(|(key, entry)| (key.clone(), entry.clone()))
            .collect();
        due.sort_by_key(|(_, entry)| entry.due);
        due
    }

    /// How many images of each registry are being fetched because nodes checked them.
    pub(super) fn fetching(&self) -> HashMap<Upstream, usize> {
        let mut fetching = HashMap::new();
        for ((name, _), entry) in &self.entries {
            if entry.stage == Stage::Fetching && !entry.is_pulled {
                *fetching.entry(name.upstream.clone()).or_default() += 1;
            }
        }
        fetching
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &Entry)> {
        self.entries.iter()
    }
}
