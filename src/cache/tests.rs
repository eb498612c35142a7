//! The decision with a fake source: interleavings are forced by gates, time is the test's own.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Condvar, Mutex};
use std::task::{Poll, Wake, Waker};

use super::*;
use crate::oci::{Algorithm, Manifest, MediaType, Repository, Tag, Upstream};
use crate::store;
use crate::upstream::{BlobBody, List, Source, UpstreamError, UpstreamErrorKind};

/// A registry of values. Every call is recorded; content and failures are set by the test.
#[derive(Default)]
struct FakeSource {
    calls: Mutex<Vec<String>>,
    manifests: Mutex<HashMap<String, Vec<u8>>>,
    blobs: Mutex<HashMap<Digest, VecDeque<Receiver<io::Result<Vec<u8>>>>>>,
    /// Whether a blob is sent from its beginning whatever was asked for.
    ignores_ranges: AtomicBool,
    sizes: Mutex<HashMap<Digest, u64>>,
    failure: Mutex<Option<UpstreamErrorKind>>,
    gate: Mutex<Option<Arc<Gate>>>,
}

/// Holds callers until it is opened.
#[derive(Default)]
struct Gate {
    /// How many have come, and whether it is open.
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |(_, open)| !*open).unwrap());
    }

    fn open(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }

    fn wait_until_reached(&self) {
        let state = self.state.lock().unwrap();
        let limit = Duration::from_secs(10);
        let waited = self.changed.wait_timeout_while(state, limit, |(come, _)| *come == 0);
        assert!(!waited.unwrap().1.timed_out(), "nobody came to the gate");
    }
}

impl FakeSource {
    fn call(&self, call: String) -> Result<(), UpstreamError> {
        self.calls.lock().unwrap().push(call.clone());
        let gate = self.gate.lock().unwrap().clone();
        if let Some(gate) = gate {
            gate.pass();
        }
        match self.failure.lock().unwrap().clone() {
            Some(kind) => Err(UpstreamError::new(call, kind)),
            None => Ok(()),
        }
    }

    fn not_found<T>(call: String) -> Result<T, UpstreamError> {
        Err(UpstreamError::new(call, UpstreamErrorKind::NotFound))
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    fn fail(&self, kind: Option<UpstreamErrorKind>) {
        *self.failure.lock().unwrap() = kind;
    }

    /// Publishes a manifest under a tag and its digest.
    fn publish(&self, tag: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(Algorithm::Sha256, bytes);
        let mut manifests = self.manifests.lock().unwrap();
        manifests.insert(tag.to_owned(), bytes.to_vec());
        manifests.insert(digest.to_string(), bytes.to_vec());
        digest
    }

    /// Announces a blob whose bytes the test sends piece by piece.
    fn stream(&self, content: &[u8]) -> (Digest, Sender<io::Result<Vec<u8>>>) {
        let digest = Digest::of(Algorithm::Sha256, content);
        let (sender, receiver) = mpsc::channel();
        self.blobs.lock().unwrap().entry(digest).or_default().push_back(receiver);
        self.sizes.lock().unwrap().insert(digest, content.len() as u64);
        (digest, sender)
    }
}

/// Reads what the test sends; the end of sending is the end of the body.
struct Pieces {
    receiver: Receiver<io::Result<Vec<u8>>>,
    rest: Vec<u8>,
}

impl Read for Pieces {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.receiver.recv() {
                Ok(piece) => self.rest = piece?,
                Err(_) => return Ok(0),
            }
        }
        let count = out.len().min(self.rest.len());
        out[..count].copy_from_slice(&self.rest[..count]);
        self.rest.drain(..count);
        Ok(count)
    }
}

impl Source for FakeSource {
    fn resolve(&self, _: &Repository, tag: &Tag) -> Result<Option<Digest>, UpstreamError> {
        self.call(format!("HEAD {tag}"))?;
        match self.manifests.lock().unwrap().get(tag.as_str()) {
            Some(bytes) => Ok(Some(Digest::of(Algorithm::Sha256, bytes))),
            None => Self::not_found(format!("HEAD {tag}")),
        }
    }

    fn manifest(
        &self,
        _: &Repository,
        reference: &Reference,
    ) -> Result<(Digest, Manifest), UpstreamError> {
        self.call(format!("GET {reference}"))?;
        match self.manifests.lock().unwrap().get(&reference.to_string()) {
            Some(bytes) => Ok((
                Digest::of(Algorithm::Sha256, bytes),
                Manifest::parse(bytes.as_slice().into(), Some(MediaType::OCI_MANIFEST)).unwrap(),
            )),
            None => Self::not_found(format!("GET {reference}")),
        }
    }

    fn blob_size(&self, _: &Repository, digest: &Digest) -> Result<Option<u64>, UpstreamError> {
        self.call("HEAD blob".into())?;
        match self.sizes.lock().unwrap().get(digest) {
            Some(size) => Ok(Some(*size)),
            None => Self::not_found("HEAD blob".into()),
        }
    }

    fn blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        from: u64,
    ) -> Result<BlobBody, UpstreamError> {
        let call = match from {
            0 => format!("GET blob {repository}"),
            from => format!("GET blob {repository} from {from}"),
        };
        self.call(call.clone())?;
        let next = self.blobs.lock().unwrap().get_mut(digest).and_then(VecDeque::pop_front);
        match next {
            Some(receiver) => Ok(BlobBody {
                start: if self.ignores_ranges.load(Ordering::SeqCst) { 0 } else { from },
                size: self.sizes.lock().unwrap().get(digest).copied(),
                reader: Box::new(Pieces { receiver, rest: Vec::new() }),
            }),
            None => Self::not_found(call),
        }
    }

    fn tags(&self, _: &Repository, query: &str) -> Result<List, UpstreamError> {
        self.call(format!("tags {query}"))?;
        Ok(List { body: r#"{"name":"a","tags":["x"]}"#.into(), next: None, filters_applied: None })
    }

    fn referrers(&self, _: &Repository, _: &Digest, _: &str) -> Result<List, UpstreamError> {
        self.call("referrers".into())?;
        Self::not_found("referrers".into())
    }
}

struct OneSource(Arc<FakeSource>);

impl Sources for OneSource {
    fn source(&self, _: &Upstream) -> Result<Arc<dyn Source>, UpstreamError> {
        Ok(Arc::clone(&self.0) as Arc<dyn Source>)
    }
}

/// A waker that a test thread can sleep on.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

/// Polls until ready, sleeping until woken in between.
fn wait<T>(mut poll: impl FnMut(&Waker) -> Poll<T>) -> T {
    let bell = Arc::new(Bell::default());
    let waker = Waker::from(Arc::clone(&bell));
    loop {
        if let Poll::Ready(value) = poll(&waker) {
            return value;
        }
        let rung = bell.rung.lock().unwrap();
        let limit = Duration::from_secs(10);
        let (mut rung, timeout) =
            bell.changed.wait_timeout_while(rung, limit, |rung| !*rung).unwrap();
        assert!(!timeout.timed_out(), "nobody woke the waiter");
        *rung = false;
    }
}

struct Bench {
    cache: Cache,
    source: Arc<FakeSource>,
    now: Arc<Mutex<SystemTime>>,
    directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Settings)) -> Bench {
        Bench::over(tempfile::tempdir().unwrap(), Arc::new(FakeSource::default()), change)
    }

    fn over(
        directory: tempfile::TempDir,
        source: Arc<FakeSource>,
        change: impl FnOnce(&mut Settings),
    ) -> Bench {
        let root = directory.path().to_owned();
        let store = Store::open(&store::Settings { root, fsync: false }).unwrap();
        let retry =
            RetryPolicy { first_wait: Duration::ZERO, fruitless_max: 2, ..RetryPolicy::default() };
        let mut settings = Settings { retry, ..Settings::default() };
        change(&mut settings);
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let now = Arc::new(Mutex::new(start));
        let clock = Arc::clone(&now);
        let sources = Arc::new(OneSource(Arc::clone(&source)));
        let cache = Cache::new(store, sources, settings, Arc::new(move || *clock.lock().unwrap()));
        Bench { cache, source, now, directory }
    }

    /// The same directory and registry with another process's memory.
    fn restarted(self, change: impl FnOnce(&mut Settings)) -> Bench {
        let Bench { source, directory, .. } = self;
        Bench::over(directory, source, change)
    }

    fn advance(&self, duration: Duration) {
        *self.now.lock().unwrap() += duration;
    }

    fn pull(&self, reference: &str) -> Result<(Vec<u8>, How), CacheError> {
        let reference: Reference = reference.parse().unwrap();
        let answer = match self.cache.manifest(&name(), &reference)? {
            ManifestLookup::Ready(answer) => answer,
            ManifestLookup::Wait(waiting) => wait(|waker| waiting.poll(waker))?,
        };
        Ok((answer.bytes().to_vec(), answer.how))
    }

    fn how(&self, reference: &str) -> How {
        self.pull(reference).unwrap().1
    }

    fn follow(&self, digest: &Digest) -> BlobWait {
        match self.cache.blob(&name(), digest, Purpose::Read).unwrap() {
            BlobLookup::Wait(waiting) => waiting,
            BlobLookup::Ready(_) => panic!("the blob is in the store"),
        }
    }

    /// Bytes are shown when they are verified, which is before they are committed.
    fn wait_for_landing(&self, digest: &Digest) {
        if let Some(flight) = self.cache.inner.blobs.find(digest) {
            drop(wait(|waker| flight.poll_outcome(waker)));
        }
    }

    fn stored(&self, digest: &Digest) -> Option<Vec<u8>> {
        self.wait_for_landing(digest);
        match self.cache.blob(&name(), digest, Purpose::Read) {
            Ok(BlobLookup::Ready(blob)) => {
                let mut bytes = vec![0; usize::try_from(blob.size).unwrap()];
                blob.file.read_exact_at(&mut bytes, 0).unwrap();
                Some(bytes)
            }
            _ => None,
        }
    }

    /// Streams a blob through in one piece.
    fn deliver(&self, content: &[u8]) -> Digest {
        let (digest, sender) = self.source.stream(content);
        let waiting = self.follow(&digest);
        send_all(sender, content);
        assert_eq!(read_all(&waiting).unwrap(), content);
        digest
    }

    fn file_of(&self, digest: &Digest) -> std::path::PathBuf {
        self.directory.path().join("blobs/sha256").join(digest.hex())
    }
}

fn name() -> ImageName {
    ImageName::new("reg.test".parse().unwrap(), "a".parse().unwrap())
}

fn manifest(label: &str) -> Vec<u8> {
    format!(r#"{{"schemaVersion":2,"config":{{}},"layers":[],"label":"{label}"}}"#).into_bytes()
}

/// Sends a body and ends it.
fn send_all(sender: Sender<io::Result<Vec<u8>>>, bytes: &[u8]) {
    sender.send(Ok(bytes.to_vec())).unwrap();
}

/// Reads a followed blob to its end as a client would, in steps of what is available.
fn read_all(waiting: &BlobWait) -> Result<Vec<u8>, CacheError> {
    let size = wait(|waker| waiting.poll_size(waker))?;
    let incoming = wait(|waker| waiting.poll_file(waker))?;
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < size {
        let position = bytes.len();
        let available = wait(|waker| waiting.poll_available(position as u64, waker))?;
        bytes.resize(usize::try_from(available.min(size)).unwrap(), 0);
        incoming.file.read_exact_at(&mut bytes[position..], position as u64).unwrap();
    }
    Ok(bytes)
}

fn unreachable_kind() -> UpstreamErrorKind {
    UpstreamErrorKind::Unreachable { source: Arc::new(io::ErrorKind::ConnectionRefused.into()) }
}

#[test]
fn a_manifest_is_fetched_once_and_then_served_from_the_store() {
    let bench = Bench::new();
    let digest = bench.source.publish("v1", &manifest("one"));
    assert_eq!(bench.pull("v1").unwrap(), (manifest("one"), How::Miss));
    assert_eq!(bench.pull("v1").unwrap(), (manifest("one"), How::Hit));
    assert_eq!(bench.how(&digest.to_string()), How::Hit, "its digest was stored with it");
    assert_eq!(bench.source.calls(), ["GET v1"]);
}

#[test]
fn an_old_tag_is_confirmed_by_head_and_a_moved_one_fetched_by_its_digest() {
    let bench = Bench::new();
    bench.source.publish("v1", &manifest("one"));
    bench.how("v1");
    bench.advance(Duration::from_secs(301));
    assert_eq!(bench.how("v1"), How::Hit);
    let moved = bench.source.publish("v1", &manifest("two"));
    assert_eq!(bench.how("v1"), How::Hit, "it was confirmed just now");
    bench.advance(Duration::from_secs(301));
    assert_eq!(bench.pull("v1").unwrap(), (manifest("two"), How::Miss));
    assert_eq!(bench.source.calls(), ["GET v1", "HEAD v1", "HEAD v1", &format!("GET {moved}")]);
}

#[test]
fn a_hundred_clients_of_one_tag_ask_upstream_once() {
    let bench = Bench::new();
    bench.source.publish("v1", &manifest("one"));
    let gate = Arc::new(Gate::default());
    *bench.source.gate.lock().unwrap() = Some(Arc::clone(&gate));
    let reference: Reference = "v1".parse().unwrap();
    let waits: Vec<_> = (0..100)
        .map(|_| match bench.cache.manifest(&name(), &reference).unwrap() {
            ManifestLookup::Wait(waiting) => waiting,
            ManifestLookup::Ready(_) => panic!("nothing is cached yet"),
        })
        .collect();
    gate.open();
    let hows: Vec<How> =
        waits.iter().map(|waiting| wait(|waker| waiting.poll(waker)).unwrap().how).collect();
    assert_eq!(hows.iter().filter(|how| **how == How::Miss).count(), 1);
    assert_eq!(hows.iter().filter(|how| **how == How::Join).count(), 99);
    assert_eq!(bench.source.calls(), ["GET v1"]);
}

#[test]
fn a_dead_upstream_leaves_a_cached_tag_stale_and_is_not_asked_again_at_once() {
    let bench = Bench::new();
    bench.source.publish("v1", &manifest("one"));
    bench.how("v1");
    bench.source.fail(Some(unreachable_kind()));
    bench.advance(Duration::from_secs(301));
    assert_eq!(bench.pull("v1").unwrap(), (manifest("one"), How::Stale));
    assert_eq!(bench.how("v1"), How::Stale);
    assert_eq!(bench.source.calls().len(), 2, "the second client did not wait for a dead upstream");
    bench.source.fail(None);
    bench.advance(Duration::from_secs(10));
    assert_eq!(bench.how("v1"), How::Hit);
}

#[test]
fn a_slow_upstream_counts_as_down_after_the_clients_patience() {
    let bench = Bench::new();
    bench.source.publish("v1", &manifest("one"));
    bench.how("v1");
    bench.advance(Duration::from_secs(301));
    let gate = Arc::new(Gate::default());
    *bench.source.gate.lock().unwrap() = Some(Arc::clone(&gate));
    let ManifestLookup::Wait(waiting) =
        bench.cache.manifest(&name(), &"v1".parse().unwrap()).unwrap()
    else {
        panic!("the tag is old")
    };
    gate.wait_until_reached();
    assert_eq!(waiting.patience(), Duration::from_secs(2));
    assert_eq!(waiting.give_up().unwrap().how, How::Stale);
    assert_eq!(bench.how("v1"), How::Stale, "the next client waits for nobody");
    gate.open();
}

#[test]
fn a_tag_deleted_upstream_is_kept() {
    let bench = Bench::new();
    bench.source.publish("v1", &manifest("one"));
    bench.how("v1");
    bench.source.manifests.lock().unwrap().clear();
    bench.advance(Duration::from_secs(301));
    assert_eq!(bench.pull("v1").unwrap(), (manifest("one"), How::Stale));
}

#[test]
fn what_is_missing_is_known_to_be_missing_for_a_moment_only() {
    let bench = Bench::new();
    assert!(bench.pull("v1").unwrap_err().is_not_found());
    bench.source.publish("v1", &manifest("one"));
    assert!(matches!(bench.pull("v1"), Err(CacheError::KnownMissing)));
    assert_eq!(bench.source.calls(), ["GET v1"]);
    bench.advance(Duration::from_secs(10));
    assert_eq!(bench.how("v1"), How::Miss);
}

#[test]
fn an_uncached_manifest_of_a_dead_upstream_fails_with_its_reason() {
    let bench = Bench::new();
    bench.source.fail(Some(UpstreamErrorKind::RateLimited { retry_after: None }));
    let error = bench.pull("v1").unwrap_err();
    assert_eq!(error.reason(), Reason::RateLimited { retry_after: None });
}

#[test]
fn air_gapped_serves_what_it_has_and_asks_nobody() {
    let bench = Bench::new();
    bench.source.publish("v1", &manifest("one"));
    bench.how("v1");
    let digest = bench.deliver(b"layer");
    let before = bench.source.calls().len();

    let bench = bench.restarted(|settings| settings.air_gapped = true);
    bench.advance(Duration::from_secs(1_000_000));
    assert_eq!(bench.pull("v1").unwrap(), (manifest("one"), How::Hit));
    assert_eq!(bench.stored(&digest).unwrap(), b"layer");
    assert!(matches!(bench.pull("v2"), Err(CacheError::NotCached)));
    let absent = Digest::of(Algorithm::Sha256, b"absent");
    let missing = bench.cache.blob(&name(), &absent, Purpose::Read);
    assert!(matches!(missing, Err(CacheError::NotCached)));
    assert_eq!(bench.source.calls().len(), before);
}

#[test]
fn a_truncated_manifest_on_disk_is_fetched_again() {
    let bench = Bench::new();
    let digest = bench.source.publish("v1", &manifest("one"));
    bench.how("v1");
    fs::write(bench.file_of(&digest), b"{").unwrap();
    bench.advance(Duration::from_secs(1));
    assert_eq!(bench.pull("v1").unwrap(), (manifest("one"), How::Miss));
    assert!(bench.cache.store().damaged_files() > 0);
    bench.advance(Duration::from_secs(1));
    assert_eq!(bench.how("v1"), How::Hit);
}

#[test]
fn readers_follow_the_download_and_the_last_byte_waits_for_the_digest() {
    let bench = Bench::new();
    let (digest, sender) = bench.source.stream(b"hello world");
    let first = bench.follow(&digest);
    sender.send(Ok(b"hello".to_vec())).unwrap();
    assert_eq!(wait(|waker| first.poll_size(waker)).unwrap(), 11);
    assert_eq!(wait(|waker| first.poll_available(0, waker)).unwrap(), 5);

    let late = bench.follow(&digest);
    assert_eq!((first.how, late.how), (How::Miss, How::Join));
    sender.send(Ok(b" world".to_vec())).unwrap();
    assert_eq!(wait(|waker| late.poll_available(5, waker)).unwrap(), 10, "all but the last byte");
    assert!(late.poll_available(10, Waker::noop()).is_pending(), "upstream has not ended");
    assert!(!bench.file_of(&digest).exists(), "and nothing has a name");
    drop(sender);
    assert_eq!(read_all(&first).unwrap(), b"hello world");
    assert_eq!(read_all(&late).unwrap(), b"hello world");
    assert_eq!(bench.source.calls(), ["GET blob a"]);
}

#[test]
fn wrong_bytes_never_complete_and_are_not_kept() {
    let bench = Bench::new();
    let (digest, sender) = bench.source.stream(b"hello world");
    let waiting = bench.follow(&digest);
    send_all(sender, b"hello w0rld");
    let error = read_all(&waiting).unwrap_err();
    assert!(matches!(error, CacheError::WrongContent(_)), "{error}");
    assert!(bench.stored(&digest).is_none());
    assert!(!bench.file_of(&digest).exists());
}

#[test]
fn a_body_that_is_too_long_fails_everybody_who_waits() {
    let bench = Bench::new();
    let (digest, sender) = bench.source.stream(b"hello world");
    let waits = [bench.follow(&digest), bench.follow(&digest)];
    send_all(sender, b"hello world and more");
    for waiting in &waits {
        assert!(matches!(read_all(waiting), Err(CacheError::WrongContent(_))));
    }
    assert!(bench.stored(&digest).is_none());
}

fn reset() -> io::Result<Vec<u8>> {
    Err(io::ErrorKind::ConnectionReset.into())
}

#[test]
fn a_broken_connection_is_gone_on_with_behind_what_came() {
    let bench = Bench::new();
    let (digest, first) = bench.source.stream(b"hello world");
    let (_, second) = bench.source.stream(b"hello world");
    let (_, third) = bench.source.stream(b"hello world");
    let waits = [bench.follow(&digest), bench.follow(&digest)];
    first.send(Ok(b"hello".to_vec())).unwrap();
    first.send(reset()).unwrap();
    // A body that ends early without an error is as broken.
    send_all(second, b" w");
    send_all(third, b"orld");
    for waiting in &waits {
        assert_eq!(read_all(waiting).unwrap(), b"hello world");
    }
    let calls = bench.source.calls();
    assert_eq!(calls, ["GET blob a", "GET blob a from 5", "GET blob a from 7"]);
    assert_eq!(bench.stored(&digest).unwrap(), b"hello world");
}

#[test]
fn a_registry_without_ranges_sends_again_what_clients_have_had() {
    let bench = Bench::new();
    bench.source.ignores_ranges.store(true, Ordering::SeqCst);
    let (digest, first) = bench.source.stream(b"hello world");
    let (_, second) = bench.source.stream(b"hello world");
    let waiting = bench.follow(&digest);
    first.send(Ok(b"hello".to_vec())).unwrap();
    first.send(reset()).unwrap();
    for piece in [&b"hel"[..], b"lo wo", b"rld"] {
        second.send(Ok(piece.to_vec())).unwrap();
    }
    drop(second);
    assert_eq!(read_all(&waiting).unwrap(), b"hello world");
}

#[test]
fn retries_that_bring_nothing_end_and_what_came_is_gone_on_with_after_a_restart() {
    let bench = Bench::new();
    let (digest, first) = bench.source.stream(b"hello world");
    let rest: Vec<_> = (0..2).map(|_| bench.source.stream(b"hello world").1).collect();
    let waiting = bench.follow(&digest);
    first.send(Ok(b"hello".to_vec())).unwrap();
    for sender in [&first, &rest[0], &rest[1]] {
        sender.send(reset()).unwrap();
    }
    assert!(matches!(read_all(&waiting), Err(CacheError::Upstream(_))));
    assert_eq!(bench.source.calls().len(), 3);
    assert!(bench.stored(&digest).is_none());

    let bench = bench.restarted(|_| {});
    let (_, sender) = bench.source.stream(b"hello world");
    let waiting = bench.follow(&digest);
    send_all(sender, b" world");
    assert_eq!(read_all(&waiting).unwrap(), b"hello world");
    assert_eq!(bench.source.calls().last().unwrap(), "GET blob a from 5");
}

#[test]
fn a_download_that_has_not_begun_fails_at_once() {
    let bench = Bench::new();
    let (digest, sender) = bench.source.stream(b"hello world");
    let waiting = bench.follow(&digest);
    sender.send(reset()).unwrap();
    assert!(matches!(read_all(&waiting), Err(CacheError::Upstream(_))));
    assert_eq!(bench.source.calls().len(), 1);
}

#[test]
fn a_partial_that_was_damaged_on_disk_is_thrown_away_and_the_next_begins_at_zero() {
    let bench = Bench::new();
    let digest = Digest::of(Algorithm::Sha256, b"hello world");
    let partial = bench.directory.path().join(format!("incoming/sha256-{}", digest.hex()));
    fs::write(&partial, b"hEllo").unwrap();
    let (_, sender) = bench.source.stream(b"hello world");
    let waiting = bench.follow(&digest);
    send_all(sender, b" world");
    assert!(matches!(read_all(&waiting), Err(CacheError::WrongContent(_))));
    bench.wait_for_landing(&digest);
    assert!(!partial.exists());
    assert_eq!(bench.deliver(b"hello world"), digest);
    assert_eq!(bench.source.calls(), ["GET blob a from 5", "GET blob a"]);
}

#[test]
fn a_partial_that_is_longer_than_the_blob_is_thrown_away() {
    let bench = Bench::new();
    let digest = Digest::of(Algorithm::Sha256, b"hello");
    let partial = bench.directory.path().join(format!("incoming/sha256-{}", digest.hex()));
    fs::write(&partial, b"hello and more").unwrap();
    let (_, sender) = bench.source.stream(b"hello");
    let waiting = bench.follow(&digest);
    send_all(sender, b"x");
    assert!(matches!(read_all(&waiting), Err(CacheError::WrongContent(_))));
    bench.wait_for_landing(&digest);
    assert!(!partial.exists());
}

#[test]
fn a_partial_that_is_whole_needs_no_upstream() {
    let bench = Bench::new();
    let digest = Digest::of(Algorithm::Sha256, b"hello world");
    let partial = bench.directory.path().join(format!("incoming/sha256-{}", digest.hex()));
    fs::write(&partial, b"hello world").unwrap();
    let waiting = bench.follow(&digest);
    assert_eq!(read_all(&waiting).unwrap(), b"hello world");
    assert!(bench.source.calls().is_empty());
    assert_eq!(bench.stored(&digest).unwrap(), b"hello world");
}

#[test]
fn content_that_vanishes_upstream_in_mid_download_ends_it() {
    let bench = Bench::new();
    let (digest, sender) = bench.source.stream(b"hello world");
    let waiting = bench.follow(&digest);
    sender.send(Ok(b"hello".to_vec())).unwrap();
    sender.send(reset()).unwrap();
    assert!(read_all(&waiting).unwrap_err().is_not_found());
    assert_eq!(bench.source.calls(), ["GET blob a", "GET blob a from 5"]);
}

#[test]
fn a_download_goes_on_when_every_client_has_left() {
    let bench = Bench::new();
    let (digest, sender) = bench.source.stream(b"hello world");
    drop(bench.follow(&digest));
    sender.send(Ok(b"hello world".to_vec())).unwrap();
    let watcher = bench.follow(&digest);
    drop(sender);
    assert_eq!(read_all(&watcher).unwrap(), b"hello world");
    assert_eq!(bench.stored(&digest).unwrap(), b"hello world");
    assert_eq!(bench.source.calls(), ["GET blob a"]);
}

#[test]
fn a_body_without_a_length_is_answered_when_it_is_whole() {
    let bench = Bench::new();
    let (digest, sender) = bench.source.stream(b"hello world");
    bench.source.sizes.lock().unwrap().clear();
    let waiting = bench.follow(&digest);
    sender.send(Ok(b"hello world".to_vec())).unwrap();
    assert!(waiting.poll_size(Waker::noop()).is_pending());
    drop(sender);
    assert_eq!(read_all(&waiting).unwrap(), b"hello world");
}

#[test]
fn a_size_alone_does_not_download() {
    let bench = Bench::new();
    let (digest, _sender) = bench.source.stream(b"hello world");
    let Ok(BlobLookup::Wait(waiting)) = bench.cache.blob(&name(), &digest, Purpose::Size) else {
        panic!("the blob is not cached")
    };
    assert_eq!(wait(|waker| waiting.poll_size(waker)).unwrap(), 11);
    assert_eq!(bench.source.calls(), ["HEAD blob"]);
}

#[test]
fn a_manifest_that_lies_about_a_size_harms_only_its_own_repository() {
    let bench = Bench::new();
    let digest = bench.deliver(b"layer");
    let lie = format!(
        r#"{{"schemaVersion":2,"config":{{}},"layers":[{{"digest":"{digest}","size":99}}]}}"#
    );
    bench.source.publish("evil", lie.as_bytes());
    let evil = ImageName::new("reg.test".parse().unwrap(), "evil".parse().unwrap());
    if let ManifestLookup::Wait(waiting) =
        bench.cache.manifest(&evil, &"evil".parse().unwrap()).unwrap()
    {
        wait(|waker| waiting.poll(waker)).unwrap();
    }
    assert_eq!(bench.stored(&digest).unwrap(), b"layer");
    let restarted = bench.restarted(|_| {});
    assert_eq!(restarted.stored(&digest).unwrap(), b"layer");
}

#[test]
fn a_blob_shorter_than_its_manifest_says_is_fetched_again() {
    let bench = Bench::new();
    let (digest, sender) = bench.source.stream(b"layer");
    let body = format!(
        r#"{{"schemaVersion":2,"config":{{}},"layers":[{{"digest":"{digest}","size":5}}]}}"#
    );
    bench.source.publish("v1", body.as_bytes());
    bench.how("v1");
    fs::create_dir_all(bench.directory.path().join("blobs/sha256")).unwrap();
    fs::write(bench.file_of(&digest), b"lay").unwrap();
    let waiting = bench.follow(&digest);
    send_all(sender, b"layer");
    assert_eq!(read_all(&waiting).unwrap(), b"layer");
    assert_eq!(bench.stored(&digest).unwrap(), b"layer");
}

#[test]
fn a_landing_between_look_and_join_is_noticed() {
    let bench = Bench::new();
    let digest = bench.deliver(b"layer");
    bench.wait_for_landing(&digest);
    // As if the look into the store had come before the commit, and the joining after the landing.
    let late = bench.cache.ask_for_blob(&name(), &digest, None);
    assert_eq!(read_all(&late).unwrap(), b"layer");
    assert_eq!(bench.source.calls(), ["GET blob a"]);
}

#[test]
fn closing_tells_everybody_who_waits() {
    let bench = Bench::with(|settings| settings.blob_fetchers = 1);
    let (running, sender) = bench.source.stream(b"running");
    let (queued, _sender) = bench.source.stream(b"queued");
    let first = bench.follow(&running);
    wait(|waker| first.poll_size(waker)).unwrap();
    let second = bench.follow(&queued);
    bench.cache.close();
    assert!(matches!(read_all(&second), Err(CacheError::GivenUp)));
    sender.send(Ok(b"run".to_vec())).unwrap();
    assert!(matches!(read_all(&first), Err(CacheError::GivenUp)));
}

#[test]
fn a_list_is_relayed_for_a_minute_and_the_last_good_one_afterwards() {
    let bench = Bench::new();
    let ask = || {
        let question = ListQuestion::Tags { query: String::new() };
        match bench.cache.list(&name(), question)? {
            ListLookup::Ready(answer) => Ok(answer),
            ListLookup::Wait(waiting) => wait(|waker| waiting.poll(waker)),
        }
    };
    assert_eq!(ask().unwrap().how, How::Miss);
    assert_eq!(ask().unwrap().how, How::Hit);
    bench.source.fail(Some(unreachable_kind()));
    bench.advance(Duration::from_secs(61));
    let stale: Result<ListAnswer, CacheError> = ask();
    assert_eq!(stale.unwrap().how, How::Stale);
    assert_eq!(bench.source.calls().len(), 2);
}

#[test]
fn cached_tags_are_listed_when_upstream_never_was_asked() {
    let bench = Bench::new();
    for tag in ["v2", "v1"] {
        bench.source.publish(tag, &manifest(tag));
        bench.how(tag);
    }
    let bench = bench.restarted(|settings| settings.air_gapped = true);
    let question = ListQuestion::Tags { query: "n=1".into() };
    let Ok(ListLookup::Ready(answer)) = bench.cache.list(&name(), question) else {
        panic!("a local answer")
    };
    assert_eq!(answer.list.body, r#"{"name":"a","tags":["v1"]}"#);
    assert_eq!(answer.list.next.as_deref(), Some("n=1&last=v1"));
}

#[test]
fn the_keeper_writes_the_index_when_it_ends() {
    let bench = Bench::new();
    let keeper = Keeper::start(bench.cache.store().clone()).unwrap();
    bench.source.publish("v1", &manifest("one"));
    bench.how("v1");
    drop(keeper);
    let index = fs::read_to_string(bench.directory.path().join("index.json")).unwrap();
    assert!(index.contains("reg.test/a:v1"), "{index}");
}
