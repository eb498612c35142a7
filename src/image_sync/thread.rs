//! The thread that runs the entries, and its handle.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::entry::{Expand, SyncEntry};
use super::pinned::{named, still_wanted};
use super::run::{Kept, Observer, attempt as make_attempt};
use super::table::{Attempt, Attempted, Requested, SyncStatus, Table};
use crate::cache::Cache;
use crate::events::{Event, EventType};
use crate::units::plural;

/// How often the thread checks whether an entry is due.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How many missing images of a run are logged. All of them may be missing.
const LOGGED_MAX: usize = 100;

/// The entries of `sync`.
#[derive(Clone)]
pub struct Settings {
    /// The entries.
    pub entries: Vec<SyncEntry>,
    /// Replaces aliases in lists.
    pub expand: Expand,
}

/// Why no entry runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspension {
    /// Registries are not contacted.
    Offline,
    /// The cache directory cannot be written.
    ReadOnly,
}

impl Suspension {
    /// The reason, and what to do about it.
    pub fn as_str(self) -> &'static str {
        match self {
            Suspension::Offline => {
                "registries may not be contacted (airGapped, or larder offline on)"
            }
            Suspension::ReadOnly => "the cache directory cannot be written; see the log",
        }
    }
}

/// Why a run was not requested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestError {
    /// There is no such entry. These are the entries.
    Unknown(Vec<String>),
    /// No entry runs at present.
    Suspended(Suspension),
}

/// The handle of the thread. Clones share it.
#[derive(Clone)]
pub struct ImageSync {
    shared: Arc<Shared>,
}

struct Shared {
    cache: Cache,
    /// Locked for a lookup or a change only.
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    table: Table,
    expand: Expand,
    is_stopped: bool,
    /// Whether entries have changed.
    is_reconfigured: bool,
    /// Whether entries have changed since the pins were written.
    are_pins_outdated: bool,
}

impl ImageSync {
    /// Starts the thread. Entries whose last run is too long ago run at once.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(cache: Cache, settings: Settings) -> io::Result<ImageSync> {
        let mut table = Table::default();
        table.configure(settings.entries, &cache.store().sync_records());
        let state = State {
            table,
            expand: settings.expand,
            is_stopped: false,
            is_reconfigured: true,
            are_pins_outdated: true,
        };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let shared = Arc::new(Shared { cache, state, changed });
        let sync = ImageSync { shared: Arc::clone(&shared) };
        // Not joined: it ends when the fetches of its attempt have ended, and leaves nothing that a restart misses.
        thread::Builder::new().name("image-sync".into()).spawn(move || shared.work())?;
        Ok(sync)
    }

    /// Replaces the entries. Those that load the same as before keep their state; a run under way finishes.
    pub fn reconfigure(&self, settings: Settings) {
        let mut state = self.shared.lock();
        state.table.configure(settings.entries, &[]);
        state.expand = settings.expand;
        state.is_reconfigured = true;
        self.shared.changed.notify_all();
    }

    /// Requests a run of an entry, or of all entries, as soon as possible. A run under way counts.
    ///
    /// # Errors
    /// [`RequestError`] if nothing will run.
    pub fn request(&self, name: Option<&str>) -> Result<Vec<Requested>, RequestError> {
        if let Some(why) = self.suspension() {
            return Err(RequestError::Suspended(why));
        }
        let mut state = self.shared.lock();
        let requested = state.table.request(name).ok_or_else(|| {
            let names = state.table.entries().map(|entry| entry.name.clone());
            RequestError::Unknown(names.collect())
        })?;
        self.shared.changed.notify_all();
        Ok(requested)
    }

    /// The state of all entries, in the order of the configuration.
    pub fn statuses(&self) -> Vec<SyncStatus> {
        let now = self.shared.cache.now();
        self.shared.lock().table.statuses(now)
    }

    /// Why no entry runs; `None` if they do.
    pub fn suspension(&self) -> Option<Suspension> {
        self.shared.suspension()
    }

    /// Ends the thread as soon as the fetches of the attempt under way have ended. Its result is not recorded.
    pub fn stop(&self) {
        self.shared.lock().is_stopped = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is complete or was not made, so the state is valid even after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn suspension(&self) -> Option<Suspension> {
        let (cache, store) = (&self.cache, self.cache.store());
        let is_read_only = !store.is_writable();
        let read_only = is_read_only.then_some(Suspension::ReadOnly);
        cache.is_offline().then_some(Suspension::Offline).or(read_only)
    }

    fn work(&self) {
        let mut said = None;
        loop {
            if self.lock().is_stopped {
                return;
            }
            self.follow_configuration();
            let suspension = self.suspension();
            if suspension != said && self.lock().table.entries().next().is_some() {
                match suspension {
                    Some(why) => log::info!(error = why.as_str(); "sync: nothing is loaded"),
                    None => log::info!("sync: images are loaded again"),
                }
                said = suspension;
            }
            if suspension.is_none() && self.run_next() {
                continue;
            }
            let state = self.lock();
            if !state.is_stopped && !state.is_reconfigured {
                let waited = self.changed.wait_timeout(state, CHECK_INTERVAL);
                drop(waited.unwrap_or_else(PoisonError::into_inner));
            }
        }
    }

    /// Writes the pins of the entries after they have changed, before anything is loaded.
    fn follow_configuration(&self) {
        let (entries, expand, is_new) = {
            let mut state = self.lock();
            let is_new = std::mem::take(&mut state.is_reconfigured);
            state.are_pins_outdated |= is_new;
            if !state.are_pins_outdated {
                return;
            }
            let entries: Vec<Arc<SyncEntry>> = state.table.entries().cloned().collect();
            (entries, Arc::clone(&state.expand), is_new)
        };
        let store = self.cache.store();
        // Another process may be writing them; it does not change those of other entries.
        if !store.is_writable() {
            return;
        }
        let Some(_lock) = store.lock_image_sync() else { return };
        let Ok(before) = store.synced_pins_by_entry() else { return };
        let mut pinned = BTreeMap::new();
        for entry in entries.iter().filter(|entry| entry.pins()) {
            let before = before.get(&entry.name).cloned().unwrap_or_default();
            let (wanted, unreadable) = entry.wanted(&expand);
            let mut kept: BTreeSet<String> = named(&wanted).collect();
            match unreadable.is_empty() {
                true => kept.extend(still_wanted(&before, &wanted)),
                // What the list named is not known.
                false => kept.extend(before),
            }
            pinned.insert(entry.name.clone(), kept);
        }
        match store.note_synced_pins(&pinned) {
            Ok(()) => self.lock().are_pins_outdated = false,
            // It is tried again, without further lines.
            Err(error) if is_new => log::warn!(error:%; "sync: cannot pin the images"),
            Err(_) => {}
        }
    }

    /// Changes what is pinned for an entry. Called during a run, under the lock of the runs.
    fn pin(&self, entry: &SyncEntry, kept: Kept) {
        let store = self.cache.store();
        let Ok(mut all) = store.synced_pins_by_entry() else { return };
        let pinned = all.entry(entry.name.clone()).or_default();
        match kept {
            Kept::Exactly(images) => *pinned = images,
            Kept::Also(images) => pinned.extend(images),
        }
        if store.is_writable()
            && let Err(error) = store.note_synced_pins(&all)
        {
            log::warn!(error:%; "sync: cannot pin the images");
        }
    }

    /// Runs the entry that is due. Returns whether there was one.
    fn run_next(&self) -> bool {
        let (cache, store) = (&self.cache, self.cache.store());
        if self.lock().table.due(cache.now()).is_none() {
            return false;
        }
        // Another process on this directory may be running the same entry.
        let Some(_lock) = store.lock_image_sync() else { return false };
        let (attempt, expand) = {
            let records = store.sync_records();
            let mut state = self.lock();
            state.table.adopt(&records);
            let now = cache.now();
            let Some(name) = state.table.due(now) else { return false };
            let Some(attempt) = state.table.begin(&name, now) else { return false };
            (attempt, Arc::clone(&state.expand))
        };
        let pinned = store.synced_pins_by_entry().unwrap_or_default();
        let pinned = pinned.get(&attempt.entry.name).cloned().unwrap_or_default();
        let running = Running { shared: self, attempt: &attempt, total: Mutex::default() };
        let attempted = make_attempt(cache, &attempt, &pinned, &expand, &running);
        self.end(&attempt, attempted);
        true
    }

    fn end(&self, attempt: &Attempt, attempted: Attempted) {
        let (cache, entry) = (&self.cache, &attempt.entry);
        let mut state = self.lock();
        if state.is_stopped || self.suspension().is_some() {
            // Its failures say nothing about the images.
            state.table.interrupt(entry);
            return;
        }
        let has_ended = state.table.end(attempt, attempted.clone(), cache.now());
        let records = state.table.records();
        drop(state);
        report(&entry.name, &attempted);
        if has_ended && let Some((image, reason)) = attempted.missing().next() {
            let event = Event::new(EventType::SyncFailed, &entry.name);
            let missing = plural(attempted.missing().count(), "image");
            let event = event.with("missing", missing).with("reason", format!("{image}: {reason}"));
            cache.events().record(cache.now(), event);
        }
        if has_ended && let Err(error) = cache.store().put_sync_records(&records) {
            log::warn!(entry = entry.name.as_str(), error:%; "sync: cannot record the run");
        }
    }
}

/// Logs the result of an attempt.
fn report(name: &str, attempted: &Attempted) {
    let missing: Vec<(&str, &str)> = attempted.missing().collect();
    if let Some(wait) = attempted.next_wait() {
        for (image, reason) in missing.iter().take(LOGGED_MAX) {
            log::info!(
                entry = name, image, wait_ms = wait.as_secs_f64() * 1e3, error = reason;
                "sync: not loaded; retrying"
            );
        }
        return;
    }
    for (image, reason) in missing.iter().take(LOGGED_MAX) {
        log::warn!(entry = name, image, error = reason; "sync: not loaded");
    }
    for (image, reason) in attempted.unconfirmed().take(LOGGED_MAX) {
        log::info!(entry = name, image, error = reason; "sync: cached, but not confirmed");
    }
    let (present, all) = (attempted.outcomes.len() - missing.len(), attempted.outcomes.len());
    log::info!(entry = name, images = present, wanted = all; "sync: finished");
}

/// An attempt under way.
struct Running<'a> {
    shared: &'a Shared,
    attempt: &'a Attempt,
    /// How many images it loads. Locked for an access only.
    total: Mutex<usize>,
}

impl Observer for Running<'_> {
    fn expanded(&self, images: Kept, count: usize) {
        let entry = &self.attempt.entry;
        *self.total.lock().unwrap_or_else(PoisonError::into_inner) = count;
        {
            let mut state = self.shared.lock();
            state.table.progress(entry, 0, count);
            // A reload may have removed the entry.
            if !entry.pins() || !state.table.is_current(entry) {
                return;
            }
        }
        self.shared.pin(entry, images);
    }

    fn loaded(&self) {
        let total = *self.total.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.lock().table.progress(&self.attempt.entry, 1, total);
    }
}
