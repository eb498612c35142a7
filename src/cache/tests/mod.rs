//! Tests of the cache with a fake source. Gates force interleavings, and the tests control the time.
//!
//! This file contains the fake and the helpers. There is one file of tests per subject.

mod blobs;
mod evictor;
mod housekeeping;
mod manifests;
mod traffic;

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
use crate::upstream::{
    BlobAsk, BlobBody, Confirmation, DocumentSink, EndpointKind, List, Permission, Source,
    Standing, UpstreamError, UpstreamErrorKind, Wanted,
};

/// The response bodies for a blob, in order.
type Bodies = VecDeque<Receiver<io::Result<Vec<u8>>>>;

type Hook = Option<Box<dyn FnOnce() + Send>>;

/// A fake registry. It records every call. The test sets content and failures.
#[derive(Default)]
struct FakeSource {
    calls: Mutex<Vec<String>>,
    manifests: Mutex<HashMap<String, Vec<u8>>>,
    blobs: Mutex<HashMap<Digest, Bodies>>,
    /// Whether blobs are sent from their beginning, whatever range is requested.
    ignores_ranges: AtomicBool,
    sizes: Mutex<HashMap<Digest, u64>>,
    failure: Mutex<Option<UpstreamErrorKind>>,
    gate: Mutex<Option<Arc<Gate>>>,
    /// Called when the next body of a blob is dropped.
    on_drop: Arc<Mutex<Hook>>,
}

/// Blocks callers until it is opened.
#[derive(Default)]
struct Gate {
    /// The number of callers, and whether it is open.
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
        assert!(!waited.unwrap().1.timed_out(), "no call reached the gate");
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

    /// Publishes a blob whose bytes the test sends piece by piece.
    fn stream(&self, content: &[u8]) -> (Digest, Sender<io::Result<Vec<u8>>>) {
        let digest = Digest::of(Algorithm::Sha256, content);
        let (sender, receiver) = mpsc::channel();
        self.blobs.lock().unwrap().entry(digest).or_default().push_back(receiver);
        self.sizes.lock().unwrap().insert(digest, content.len() as u64);
        (digest, sender)
    }
}

/// Reads what the test sends. The body ends when the sender is dropped.
struct Pieces {
    receiver: Receiver<io::Result<Vec<u8>>>,
    rest: Vec<u8>,
    on_drop: Arc<Mutex<Hook>>,
}

impl Drop for Pieces {
    fn drop(&mut self) {
        let call = self.on_drop.lock().unwrap().take();
        call.into_iter().for_each(|call| call());
    }
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
    fn endpoints(&self) -> usize {
        1
    }

    fn resolve(
        &self,
        _: &Repository,
        tag: &Tag,
    ) -> Result<Option<(Digest, Confirmation)>, UpstreamError> {
        self.call(format!("HEAD {tag}"))?;
        match self.manifests.lock().unwrap().get(tag.as_str()) {
            Some(bytes) => {
                let digest = Digest::of(Algorithm::Sha256, bytes);
                Ok(Some((digest, Confirmation::default())))
            }
            None => Self::not_found(format!("HEAD {tag}")),
        }
    }

    fn ask_to_pull(
        &self,
        repository: &Repository,
        wanted: &Wanted,
    ) -> Result<Permission, UpstreamError> {
        match wanted {
            Wanted::Blob(digest) => self.blob_size(repository, digest).map(drop),
            wanted => self.call(format!("{wanted:?}")),
        }
        .map(|()| Permission { was_demanded: true })
    }

    fn manifest(
        &self,
        _: &Repository,
        reference: &Reference,
        sink: &mut dyn DocumentSink,
    ) -> Result<(Digest, Manifest, Confirmation), UpstreamError> {
        self.call(format!("GET {reference}"))?;
        match self.manifests.lock().unwrap().get(&reference.to_string()) {
            Some(bytes) => {
                let is_index = bytes.windows(11).any(|part| part == b"\"manifests\"");
                let kind = if is_index { MediaType::OCI_INDEX } else { MediaType::OCI_MANIFEST };
                let manifest = Manifest::parse(bytes, Some(kind)).unwrap();
                sink.restart();
                sink.write(bytes);
                let digest = Digest::of(Algorithm::Sha256, bytes);
                Ok((digest, manifest, Confirmation::default()))
            }
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

    fn blob(&self, ask: &BlobAsk<'_>) -> Result<BlobBody, UpstreamError> {
        let BlobAsk { repository, digest, from, .. } = *ask;
        let call = match from {
            0 => format!("GET blob {repository}"),
            from => format!("GET blob {repository} from {from}"),
        };
        self.call(call.clone())?;
        let next = self.blobs.lock().unwrap().get_mut(digest).and_then(VecDeque::pop_front);
        match next {
            Some(receiver) => Ok(BlobBody {
                sender: EndpointKind::Registry,
                url: "http://fake".into(),
                endpoint: 0,
                end: None,
                start: if self.ignores_ranges.load(Ordering::SeqCst) { 0 } else { from },
                size: self.sizes.lock().unwrap().get(digest).copied(),
                reader: Box::new(Pieces {
                    receiver,
                    rest: Vec::new(),
                    on_drop: Arc::clone(&self.on_drop),
                }),
            }),
            None => Self::not_found(call),
        }
    }

    fn tags(
        &self,
        _: &Repository,
        query: &str,
        sink: &mut dyn DocumentSink,
    ) -> Result<List, UpstreamError> {
        self.call(format!("tags {query}"))?;
        sink.write(br#"{"name":"a","tags":["x"]}"#);
        Ok(List::default())
    }

    fn referrers(
        &self,
        _: &Repository,
        _: &Digest,
        _: &str,
        _: &mut dyn DocumentSink,
    ) -> Result<List, UpstreamError> {
        self.call("referrers".into())?;
        Self::not_found("referrers".into())
    }
}

struct OneSource(Arc<FakeSource>);

impl Sources for OneSource {
    fn source(&self, _: &Upstream) -> Result<Arc<dyn Source>, UpstreamError> {
        Ok(Arc::clone(&self.0) as Arc<dyn Source>)
    }

    fn standing(&self, _: &Upstream) -> Result<Standing, UpstreamError> {
        Ok(Standing::Listed)
    }

    fn statuses(&self) -> Vec<UpstreamStatus> {
        Vec::new()
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
        assert!(!timeout.timed_out(), "the waiter was not woken");
        *rung = false;
    }
}

/// Polls until a condition holds that is not signalled.
#[track_caller]
fn until(holds: impl Fn() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(std::time::Instant::now() < end, "the condition did not hold within ten seconds");
        std::thread::yield_now();
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

    /// The same directory and registry in a new cache, as after a restart.
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
        self.cache.wait_until_stored(None);
        Ok((answer.body().read().unwrap(), answer.how))
    }

    fn how(&self, reference: &str) -> How {
        self.pull(reference).unwrap().1
    }

    fn follow(&self, digest: &Digest) -> BlobWait {
        match self.cache.blob(&name(), digest, Purpose::Read).unwrap() {
            BlobLookup::Wait(waiting) => waiting,
            BlobLookup::Ready(_) => panic!("the blob is in the store"),
            BlobLookup::Unlinked(_) => panic!("Larder itself needs no link"),
        }
    }

    /// Waits for the end of a flight: bytes are available once they are verified, which is before they are committed.
    fn wait_for_finish(&self, digest: &Digest) {
        if let Some(flight) = self.cache.services.blobs.flights.find(&key(digest)) {
            drop(wait(|waker| flight.poll_outcome(waker)));
        }
    }

    fn stored(&self, digest: &Digest) -> Option<Vec<u8>> {
        self.wait_for_finish(digest);
        match self.cache.blob(&name(), digest, Purpose::Read) {
            Ok(BlobLookup::Ready(blob)) => {
                let mut bytes = vec![0; usize::try_from(blob.size).unwrap()];
                blob.file.read_exact_at(&mut bytes, 0).unwrap();
                Some(bytes)
            }
            _ => None,
        }
    }

    /// Downloads a blob in one piece.
    fn deliver(&self, content: &[u8]) -> Digest {
        let (digest, sender) = self.source.stream(content);
        let waiting = self.follow(&digest);
        send_all(sender, content);
        assert_eq!(read_all(&waiting).unwrap(), content);
        self.wait_for_finish(&digest);
        digest
    }

    /// The path where an earlier download would have left its bytes.
    fn partial(&self, digest: &Digest) -> std::path::PathBuf {
        let directory = self.directory.path().join("partials/reg.test");
        fs::create_dir_all(&directory).unwrap();
        directory.join(format!("sha256-{}", digest.hex()))
    }

    fn file_of(&self, digest: &Digest) -> std::path::PathBuf {
        self.directory.path().join("blobs/sha256").join(digest.hex())
    }
}

fn key(digest: &Digest) -> (Upstream, Digest) {
    (name().upstream, *digest)
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

/// Reads a followed blob to its end as a client would, as bytes become available.
fn read_all(waiting: &BlobWait) -> Result<Vec<u8>, CacheError> {
    read_followed(waiting).map_err(|failure| failure.error)
}

fn read_followed(waiting: &BlobWait) -> Result<Vec<u8>, BlobFailure> {
    let size = wait(|waker| waiting.poll_size(waker))?;
    let incoming = wait(|waker| waiting.poll_file(waker))?;
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < size {
        let position = bytes.len();
        let available = wait(|waker| waiting.poll_available(position as u64, waker))?;
        bytes.resize(usize::try_from(available.min(size)).unwrap(), 0);
        incoming.file.now().read_exact_at(&mut bytes[position..], position as u64).unwrap();
    }
    Ok(bytes)
}

fn unreachable_kind() -> UpstreamErrorKind {
    UpstreamErrorKind::Unreachable { source: Arc::new(io::ErrorKind::ConnectionRefused.into()) }
}
