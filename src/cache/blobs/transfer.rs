//! What the threads of one large download share: which connection receives which part of the blob, and how far its bytes
//! are written.
//!
//! The fetcher of the flight receives on the first connection. Others (`additional.rs`) receive parts further ahead, and
//! one thread hashes the bytes behind the connections.
//!
//! # Rules
//! * A missing byte belongs to one connection at most, and the parts are assigned in ascending order, so each byte is
//!   requested once and followers of the flight continue to receive bytes.
//! * A connection writes while it holds the lock, and only to a part that still belongs to it. So nothing is written after
//!   [`Transfer::end`], when the partial is verified or given to another download.
//! * The first connection waits for another one only if all missing bytes are assigned. If the next byte does not arrive
//!   for [`ConnectionPolicy::stalled_after`], it takes the part over.
//!
//! # Interleavings
//! * *Growth against the hashing thread.* The number of written bytes changes under the lock, and the thread waits for a
//!   change of the number that it has seen.
//! * *The end against a write.* Either the write is first and counts, or it finds the end and is refused.
//! * *Taking over against a write.* The same: the former owner finds that the part does not belong to it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::growth::{ConnectionPolicy, Growth};
use crate::cache::{CacheError, lock};
use crate::store::{ALIGNMENT_BYTES, Partial};

/// The first request asks for this much, so that it is known whether more connections are worthwhile before too much is
/// requested from one.
const FIRST_BYTES: u64 = 4 * ALIGNMENT_BYTES;
/// The largest and the smallest part.
const PART_BYTES_MAX: u64 = 16 * ALIGNMENT_BYTES;
const PART_BYTES_MIN: u64 = ALIGNMENT_BYTES;
/// How far ahead of the first missing byte other connections may receive, in bytes.
const AHEAD_BYTES_MAX: u64 = 128 * ALIGNMENT_BYTES;
/// How many bytes are hashed at a time.
const HASHED_BYTES: usize = 256 * 1024;

/// Called with the number of bytes from the beginning that are written.
pub(super) type Show = Arc<dyn Fn(u64) + Send + Sync>;

/// See the description of the module.
pub(super) struct Transfer {
    state: Mutex<State>,
    changed: Condvar,
    /// The open connections, for the status of the flight.
    connections: Arc<AtomicUsize>,
}

/// A part of the blob that belongs to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    id: u64,
    /// The offset of its first byte.
    pub(super) from: u64,
    /// The offset after its last byte; `None` for the end of the blob, whether its size is known or not.
    pub(super) to: Option<u64>,
}

impl Part {
    /// All bytes from an offset on, for a download over one connection.
    pub(super) fn all_from(from: u64) -> Part {
        Part { id: 0, from, to: None }
    }
}

/// What a connection should do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Request this part.
    Receive(Part),
    /// Wait: all missing bytes belong to other connections, or are too far ahead.
    Wait,
    /// Nothing: all bytes are written, or the download has ended.
    Nothing,
}

struct State {
    /// `None` until the registry has confirmed that it has the blob.
    partial: Option<Arc<Partial>>,
    /// The size of the blob: first that in a manifest, then that of the registry.
    size: Option<u64>,
    show: Option<Show>,
    taken: Vec<Taken>,
    next_id: u64,
    growth: Growth,
    stalled_after: Duration,
    /// Whether the download has ended, and whether its bytes should be hashed to the end.
    ended: Option<Hash>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hash {
    All,
    Nothing,
}

struct Taken {
    id: u64,
    next: u64,
    /// `u64::MAX` if the size is unknown.
    end: u64,
    progressed: Instant,
}

impl State {
    fn bytes_written(&self) -> u64 {
        self.partial.as_ref().map_or(0, |partial| partial.bytes_written())
    }

    /// The first missing bytes at or after `from` that belong to no connection, up to those that are written or belong to
    /// one.
    fn free(&self, mut from: u64) -> Option<(u64, u64)> {
        let size = self.size.unwrap_or(u64::MAX);
        loop {
            let missing = self.partial.as_ref().map(|partial| partial.missing_from(from));
            let (start, end) = missing.unwrap_or((from, None));
            if start >= size {
                return None;
            }
            match self.taken.iter().find(|taken| (taken.next..taken.end).contains(&start)) {
                Some(taken) => from = taken.end,
                None => {
                    let others = self.taken.iter().map(|taken| taken.next);
                    let end = others.filter(|next| *next > start).chain(end).min();
                    return Some((start, end.unwrap_or(size).min(size)));
                }
            }
        }
    }

    fn take(&mut self, from: u64, end: u64, now: Instant) -> Part {
        let id = self.next_id;
        self.next_id += 1;
        // An open request needs no size, and its response ends with the blob.
        let is_open = self.size.is_none_or(|size| end >= size) && !self.growth.is_possible();
        let end = if is_open { self.size.unwrap_or(u64::MAX) } else { end };
        self.taken.push(Taken { id, next: from, end, progressed: now });
        Part { id, from, to: (!is_open).then_some(end) }
    }

    /// The length of the next part.
    fn part_bytes(&self) -> u64 {
        let Some(bytes) = self.growth.request_bytes() else { return FIRST_BYTES };
        let written = self.partial.as_ref().map_or(0, |partial| partial.total_bytes());
        let left = self.size.unwrap_or_default().saturating_sub(written);
        let connections = self.growth.allowed() as u64;
        let share = left / connections;
        // All connections should end at about the same time: of long requests a quarter is left for shorter ones.
        let share = if connections > 1 && share > bytes / 2 { share / 4 * 3 } else { share };
        bytes.min(share).next_multiple_of(ALIGNMENT_BYTES).clamp(PART_BYTES_MIN, PART_BYTES_MAX)
    }
}

impl Transfer {
    /// A transfer of `size` bytes, according to a manifest. `connections` is where their number is published.
    pub(super) fn new(
        partial: Option<&Arc<Partial>>,
        size: Option<u64>,
        policy: ConnectionPolicy,
        connections: Arc<AtomicUsize>,
    ) -> Transfer {
        connections.store(1, Ordering::Relaxed);
        // Without a size, the parts are not known.
        let max = if size.is_some() { policy.max } else { 1 };
        let stalled_after = policy.stalled_after;
        let state = State {
            partial: partial.map(Arc::clone),
            size,
            show: None,
            taken: Vec::new(),
            next_id: 0,
            growth: Growth::new(ConnectionPolicy { max, ..policy }),
            stalled_after,
            ended: None,
        };
        Transfer { state: Mutex::new(state), changed: Condvar::new(), connections }
    }

    /// The registry has responded: the partial exists, `size` is what the registry reports, and `show` is called with each
    /// growth.
    pub(super) fn begin(&self, partial: &Arc<Partial>, size: Option<u64>, show: Show) {
        let mut state = self.lock();
        state.partial = Some(Arc::clone(partial));
        if size.is_none() {
            state.growth.settle_for_one();
        }
        // A request that was to reach the end reaches the one that the registry reports.
        let (before, end) = (state.size.unwrap_or(u64::MAX), size.unwrap_or(u64::MAX));
        state
            .taken
            .iter_mut()
            .filter(|taken| taken.end >= before)
            .for_each(|taken| taken.end = end);
        state.size = size;
        state.show = Some(Arc::clone(&show));
        let written = state.bytes_written();
        drop(state);
        show(written);
        self.changed.notify_all();
    }

    /// Where the number of connections is published.
    pub(super) fn connections(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.connections)
    }

    /// The next part for the first connection, whose former part is given back if it is not complete.
    pub(super) fn next_for_first(&self, former: Option<Part>, now: Instant) -> Next {
        let mut state = self.lock();
        state.taken.retain(|taken| former.is_none_or(|former| taken.id != former.id));
        if let Some((from, end)) = state.free(0) {
            let end = match state.growth.is_possible() {
                true => end
                    .min((from + state.part_bytes()) / ALIGNMENT_BYTES * ALIGNMENT_BYTES)
                    .max(from + 1),
                false => end,
            };
            return Next::Receive(state.take(from, end, now));
        }
        let first = state.bytes_written();
        let stalled = state.taken.iter().position(|taken| {
            taken.next <= first
                && first < taken.end
                && now.saturating_duration_since(taken.progressed) >= state.stalled_after
        });
        match stalled {
            Some(at) => {
                let Taken { next, end, .. } = state.taken.remove(at);
                state.growth.settle();
                Next::Receive(state.take(next, end, now))
            }
            None if state.taken.is_empty() => Next::Nothing,
            None => Next::Wait,
        }
    }

    /// The next part for an additional connection.
    pub(super) fn next_for_additional(&self, now: Instant) -> Next {
        let mut state = self.lock();
        let is_surplus = state.growth.open() > state.growth.allowed();
        if state.ended.is_some() || is_surplus {
            return Next::Nothing;
        }
        let limit = state.bytes_written() + AHEAD_BYTES_MAX;
        let mut free = state.free(0);
        if free.is_none() {
            return Next::Nothing;
        }
        while let Some((start, end)) = free.filter(|(start, _)| *start < limit) {
            // What is below the alignment, after a connection that broke off, is left to the first connection.
            let from = start.next_multiple_of(ALIGNMENT_BYTES);
            let part_end = end.min((from + state.part_bytes()) / ALIGNMENT_BYTES * ALIGNMENT_BYTES);
            if from < part_end {
                return Next::Receive(state.take(from, part_end, now));
            }
            free = state.free(end);
        }
        Next::Wait
    }

    /// Gives back a part that is not complete.
    pub(super) fn give_back(&self, part: Part) {
        self.lock().taken.retain(|taken| taken.id != part.id);
        self.changed.notify_all();
    }

    /// The registry sends the complete blob although a part was requested: the first connection receives all that is
    /// missing.
    pub(super) fn take_all(&self, part: Part) {
        let mut state = self.lock();
        state.growth.settle_for_one();
        let end = state.size.unwrap_or(u64::MAX);
        state.taken.retain_mut(|taken| {
            taken.end = end;
            taken.id == part.id
        });
    }

    /// Writes bytes of a part. Returns `false` if the part does not belong to the connection any more.
    pub(super) fn write(
        &self,
        part: Part,
        at: u64,
        bytes: &[u8],
        now: Instant,
    ) -> Result<bool, CacheError> {
        let mut state = self.lock();
        let State { partial: Some(partial), taken, ended: None, .. } = &mut *state else {
            return Ok(false);
        };
        let Some(owned) = taken.iter_mut().find(|taken| taken.id == part.id) else {
            return Ok(false);
        };
        let before = partial.bytes_written();
        let written = partial.write_at(at, bytes)?;
        owned.next = at + bytes.len() as u64;
        owned.progressed = now;
        taken.retain(|taken| taken.next < taken.end);
        state.growth.received(bytes.len() as u64, now);
        let show = state.show.clone().filter(|_| written > before);
        drop(state);
        if let Some(show) = show {
            show(written);
            self.changed.notify_all();
        }
        Ok(true)
    }

    /// How many connections should be opened now.
    pub(super) fn wanted(&self, now: Instant) -> usize {
        let mut state = self.lock();
        let written = state.partial.as_ref().map_or(0, |partial| partial.total_bytes());
        let left = state.size.map_or(0, |size| size.saturating_sub(written));
        state.growth.wanted(left, now)
    }

    /// Records how many of the wanted connections were opened.
    pub(super) fn opened(&self, count: usize, now: Instant) {
        let mut state = self.lock();
        state.growth.opened(count, now);
        self.publish(&state);
    }

    /// An additional connection receives its first bytes.
    pub(super) fn connected(&self, now: Instant) {
        self.lock().growth.connected(now);
    }

    /// An additional connection has ended. No more are opened if it failed, or if it had received nothing yet.
    pub(super) fn closed(&self, is_failed: bool, was_connected: bool, now: Instant) {
        let mut state = self.lock();
        state.growth.closed(is_failed, was_connected, now);
        self.publish(&state);
        drop(state);
        self.changed.notify_all();
    }

    /// The registry refuses the first connection: it gets no others.
    pub(super) fn refused(&self) {
        self.lock().growth.settle_for_one();
    }

    /// Publishes the number of connections, unless the flight goes on without this transfer.
    fn publish(&self, state: &State) {
        if state.ended.is_none() {
            self.connections.store(state.growth.open(), Ordering::Relaxed);
        }
    }

    /// Waits until something changes, at most for `at_most`.
    pub(super) fn wait(&self, at_most: Duration) {
        let state = self.lock();
        drop(self.changed.wait_timeout(state, at_most));
    }

    /// Whether the size of the blob is known to be `size`.
    pub(super) fn has_size(&self, size: Option<u64>) -> bool {
        size.is_some() && self.lock().size == size
    }

    /// Runs the download, while a thread hashes what is written. Afterwards no connection writes any more.
    pub(super) fn hash_during(
        &self,
        download: impl FnOnce() -> Result<(), CacheError>,
    ) -> Result<(), CacheError> {
        thread::scope(|scope| {
            // Also after a panic, for which the thread would wait forever.
            let _end = EndOnDrop(self);
            let hashing = thread::Builder::new().name("blob hash".into());
            if let Err(error) = hashing.spawn_scoped(scope, || self.hash_behind()) {
                log::debug!(
                    error:%; "cannot start a thread to hash a blob; it is hashed at its end"
                );
            }
            let result = download();
            self.end(result.is_ok());
            result
        })
    }

    /// Hashes what is written, until the download has ended.
    fn hash_behind(&self) {
        let mut buffer = vec![0; HASHED_BYTES];
        let mut seen = 0;
        loop {
            let (partial, ended) = {
                let state = self.lock();
                let is_idle = |state: &mut State| {
                    state.ended.is_none()
                        && (state.partial.is_none() || state.bytes_written() == seen)
                };
                let waited = self.changed.wait_while(state, is_idle);
                let state = waited.unwrap_or_else(PoisonError::into_inner);
                seen = state.bytes_written();
                (state.partial.clone(), state.ended)
            };
            let Some(partial) = partial.filter(|_| ended != Some(Hash::Nothing)) else { return };
            loop {
                match partial.hash_next(&mut buffer) {
                    Ok(true) if self.hashes() => {}
                    Ok(true) => return,
                    Ok(false) => break,
                    Err(error) => {
                        // The verification reads the bytes again, and reports the error.
                        log::debug!(error:%; "cannot hash a download");
                        return;
                    }
                }
            }
            if ended.is_some() {
                return;
            }
        }
    }

    /// Whether hashing is still of use.
    fn hashes(&self) -> bool {
        self.lock().ended != Some(Hash::Nothing)
    }

    /// Ends the transfer: no connection writes any more. If `is_complete`, the rest is hashed.
    fn end(&self, is_complete: bool) {
        let hash = if is_complete { Hash::All } else { Hash::Nothing };
        self.lock().ended.get_or_insert(hash);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in between could only be one of a hash map or of the store, before the state changes.
        lock(&self.state)
    }
}

struct EndOnDrop<'a>(&'a Transfer);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.end(false);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::oci::{Algorithm, Digest, Upstream};
    use crate::store::{Begin, Ingest, Settings, Store};

    const SIZE: u64 = 13 * ALIGNMENT_BYTES + 777;

    /// Opens connections whenever it is asked.
    const EAGER: ConnectionPolicy = ConnectionPolicy {
        max: 4,
        measured: Duration::ZERO,
        worthwhile: Duration::ZERO,
        gain_min: -1_000_000,
        stalled_after: Duration::from_secs(5),
    };

    struct Blob {
        content: Vec<u8>,
        ingest: Ingest,
        transfer: Arc<Transfer>,
        _directory: tempfile::TempDir,
    }

    impl Blob {
        fn new(policy: ConnectionPolicy) -> Blob {
            let content: Vec<u8> = (0..SIZE).map(|at| (at % 251) as u8).collect();
            let digest = Digest::of(Algorithm::Sha256, &content);
            let directory = tempfile::tempdir().unwrap();
            let root = directory.path().join("cache");
            let store = Store::open(&Settings { root, fsync: false }).unwrap();
            let upstream: Upstream = "quay.io".parse().unwrap();
            let Begin::Writing(ingest) = store.ingest(&upstream, &digest, None).unwrap() else {
                panic!("no other process is writing")
            };
            let connections = Arc::default();
            let transfer = Transfer::new(None, Some(SIZE), policy, connections);
            Blob { content, ingest: *ingest, transfer: Arc::new(transfer), _directory: directory }
        }

        fn begin(&self) {
            self.transfer.begin(self.ingest.partial(), Some(SIZE), Arc::new(|_| {}));
        }

        fn write(&self, part: Part, at: u64, length: u64, now: Instant) -> bool {
            let bytes = &self.content[at as usize..(at + length) as usize];
            self.transfer.write(part, at, bytes, now).unwrap()
        }

        /// Opens as many connections as are wanted, after the rate was measured.
        fn open(&self, now: Instant) -> usize {
            let wanted = self.transfer.wanted(now);
            self.transfer.opened(wanted, now);
            (0..wanted).for_each(|_| self.transfer.connected(now));
            wanted
        }

        /// The first connection receives what no other one does. The digest must be right.
        fn finish(self, now: Instant) {
            let mut former = None;
            while let Next::Receive(part) = self.transfer.next_for_first(former, now) {
                let end = part.to.unwrap_or(SIZE);
                assert!(self.write(part, part.from, end - part.from, now));
                former = Some(part);
            }
            self.transfer.end(true);
            self.transfer.hash_behind();
            assert_eq!(self.ingest.bytes_written(), SIZE);
            self.ingest.verify(Some(SIZE)).unwrap();
        }
    }

    /// What a connection of the property below has been assigned, and the offset up to which it has received.
    type Assigned = Option<(Part, u64)>;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn parts_do_not_overlap_and_cover_the_blob(
            steps in proptest::collection::vec((0..4_usize, 1..(3 * ALIGNMENT_BYTES), 0..8_u8), 0..60),
        ) {
            let blob = Blob::new(EAGER);
            let now = Instant::now();
            let mut assigned: [Assigned; 4] = [None; 4];
            let mut is_open = false;
            for (connection, length, end_of_it) in steps {
                if !is_open && connection > 0 {
                    continue;
                }
                if assigned[connection].is_none() {
                    let next = match connection {
                        0 => blob.transfer.next_for_first(None, now),
                        _ => blob.transfer.next_for_additional(now),
                    };
                    let Next::Receive(part) = next else { continue };
                    let (from, to) = (part.from, part.to.unwrap_or(SIZE));
                    prop_assert!(from < to && to <= SIZE);
                    prop_assert!(connection == 0 || from % ALIGNMENT_BYTES == 0);
                    for (other, at) in assigned.iter().flatten() {
                        let end = other.to.unwrap_or(SIZE);
                        prop_assert!(to <= *at || end <= from, "{other:?} and {part:?}");
                    }
                    let missing = blob.ingest.partial().missing_from(from);
                    prop_assert!(missing.0 == from && missing.1.is_none_or(|end| to <= end));
                    assigned[connection] = Some((part, from));
                }
                let Some((part, at)) = assigned[connection] else { continue };
                blob.begin();
                let end = part.to.unwrap_or(SIZE).min(at + length);
                prop_assert!(blob.write(part, at, end - at, now));
                if !is_open && connection == 0 {
                    is_open = blob.open(now) > 0;
                }
                assigned[connection] = Some((part, end));
                if end == part.to.unwrap_or(SIZE) || end_of_it == 0 {
                    blob.transfer.give_back(part);
                    assigned[connection] = None;
                }
            }
            assigned.iter().flatten().for_each(|(part, _)| blob.transfer.give_back(*part));
            blob.begin();
            blob.finish(now);
        }
    }

    /// A transfer whose first connection has received its part, and one additional connection that has a part.
    fn with_two_connections() -> (Blob, Instant, Part) {
        let blob = Blob::new(ConnectionPolicy { max: 2, ..EAGER });
        let now = Instant::now();
        let Next::Receive(first) = blob.transfer.next_for_first(None, now) else {
            panic!("all bytes are missing")
        };
        blob.begin();
        assert!(blob.write(first, 0, 1000, now));
        assert!(blob.write(first, 1000, 1000, now));
        assert_eq!(blob.open(now), 1);
        let Next::Receive(additional) = blob.transfer.next_for_additional(now) else {
            panic!("most bytes are missing")
        };
        let end = first.to.unwrap();
        assert_eq!(additional.from, end);
        assert!(blob.write(first, 2000, end - 2000, now));
        (blob, now, additional)
    }

    #[test]
    fn stalled_part_is_taken_over_and_its_former_owner_cannot_write() {
        let (blob, now, stalled) = with_two_connections();
        assert!(blob.write(stalled, stalled.from, 5000, now));
        let mut former = None;
        // Everything else first.
        while let Next::Receive(part) = blob.transfer.next_for_first(former, now) {
            let end = part.to.unwrap_or(SIZE);
            assert!(part.from >= stalled.to.unwrap());
            assert!(blob.write(part, part.from, end - part.from, now));
            former = Some(part);
        }
        assert_eq!(blob.transfer.next_for_first(None, now), Next::Wait);
        let later = now + EAGER.stalled_after;
        let Next::Receive(part) = blob.transfer.next_for_first(None, later) else {
            panic!("the part has stalled")
        };
        assert_eq!((part.from, part.to), (stalled.from + 5000, stalled.to));
        assert!(!blob.write(stalled, stalled.from + 5000, 1, later));
        blob.transfer.give_back(part);
        blob.finish(later);
    }

    #[test]
    fn nothing_is_written_after_the_end() {
        let (blob, now, additional) = with_two_connections();
        blob.transfer.end(false);
        assert!(!blob.write(additional, additional.from, 1, now));
        assert_eq!(blob.transfer.next_for_additional(now), Next::Nothing);
        // Returns at once, although bytes are not hashed.
        blob.transfer.hash_behind();
    }

    #[test]
    fn complete_blob_in_place_of_a_part_belongs_to_the_first_connection() {
        let (blob, now, additional) = with_two_connections();
        let Next::Receive(first) = blob.transfer.next_for_first(None, now) else {
            panic!("bytes are missing")
        };
        blob.transfer.take_all(first);
        assert!(!blob.write(additional, additional.from, 1, now));
        assert_eq!(blob.transfer.next_for_additional(now), Next::Nothing);
        assert!(blob.write(first, first.from, SIZE - first.from, now));
    }

    #[test]
    fn bytes_that_were_written_are_not_replaced() {
        let (blob, now, additional) = with_two_connections();
        let end = additional.to.unwrap();
        assert!(blob.write(additional, additional.from, end - additional.from, now));
        // Another part is written apart, so that a gap is left.
        let Next::Receive(first) = blob.transfer.next_for_first(None, now) else {
            panic!("bytes are missing")
        };
        let Next::Receive(apart) = blob.transfer.next_for_additional(now) else {
            panic!("bytes are missing")
        };
        let apart_end = apart.to.unwrap();
        assert!(blob.write(apart, apart.from, apart_end - apart.from, now));
        // The registry sends everything again, and other bytes where there are some.
        blob.transfer.take_all(first);
        let mut bytes = blob.content[first.from as usize..].to_vec();
        let (from, to) = ((apart.from - first.from) as usize, (apart_end - first.from) as usize);
        bytes[from..to].fill(0);
        assert!(blob.transfer.write(first, first.from, &bytes, now).unwrap());
        blob.finish(now);
    }

    #[test]
    fn bytes_are_hashed_while_they_are_received() {
        let (blob, now, additional) = with_two_connections();
        let transfer = Arc::clone(&blob.transfer);
        let hashing = thread::spawn(move || transfer.hash_behind());
        blob.transfer.give_back(additional);
        blob.finish(now);
        hashing.join().unwrap();
    }
}
