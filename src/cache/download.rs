//! The work of a blob flight, on a fetcher: look once more, ingest over as many connections as it takes,
//! verify, commit.
//!
//! What readers are shown is decided here, and with it promise 1: [`Download::show`] never reaches the
//! last byte, and [`Download::settle_size`] keeps what "last" means from changing.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::blobs::{BlobPilot, Incoming};
use super::retry::Retries;
use super::{CacheError, Inner, lock};
use crate::oci::{Digest, ImageName};
use crate::store::{Begin, Blob, Ingest, IngestError};
use crate::upstream::UpstreamError;

/// How much is read from upstream at a time: large enough that system calls cost nothing beside the
/// hash, small enough that the first bytes leave at once.
const CHUNK_BYTES: usize = 128 * 1024;

/// How often it is looked whether another process has finished a partial, and how often in all: a
/// minute, after which the client may ask again.
const OTHER_PROCESS_LOOK_EVERY: Duration = Duration::from_millis(250);
const OTHER_PROCESS_LOOKS_MAX: u32 = 240;

impl Inner {
    /// The work of a blob flight, on a fetcher: store again, ingest, verify, commit.
    pub(super) fn fetch_blob(
        &self,
        name: &ImageName,
        pilot: &BlobPilot,
        size_hint: Option<u64>,
    ) -> Result<Blob, CacheError> {
        let digest = pilot.key().1;
        let mut ingest = match self.begin(name, &digest, size_hint)? {
            Begin::Writing(ingest) => *ingest,
            Begin::Present(blob) => return Ok(arrived(pilot, blob)),
            Begin::Busy => return Err(CacheError::GivenUp),
        };
        let mut download = Download {
            name,
            pilot,
            size: size_hint,
            is_announced: false,
            chunk: vec![0; CHUNK_BYTES],
        };
        self.recover(&mut download, &mut ingest)?;
        if !ingest.is_whole()
            && let Err(error) = self.download(&mut download, &mut ingest)
        {
            // What was kept does not fit what upstream sends, or fills the disk: it is given up.
            let is_full = matches!(&error, CacheError::Store(store) if store.is_full());
            if is_full || matches!(error, CacheError::WrongContent(_)) {
                ingest.discard();
            }
            return Err(error);
        }
        let size = ingest.bytes_written();
        download.size = Some(size);
        download.announce(&ingest);
        let verified = ingest.verify(Some(size))?;
        lock(&self.verified_sizes).insert(digest, size);
        // Verified bytes may be shown before the disk has them: they are right whatever it does.
        pilot.advance(size);
        Ok(verified.commit()?)
    }

    /// Begins the ingest, waiting for another process that is at it as long as it may take.
    fn begin(
        &self,
        name: &ImageName,
        digest: &Digest,
        size_hint: Option<u64>,
    ) -> Result<Begin, CacheError> {
        for _ in 0..OTHER_PROCESS_LOOKS_MAX {
            match self.store.ingest(&name.upstream, digest, size_hint)? {
                Begin::Busy => self.blob_pool.pause(OTHER_PROCESS_LOOK_EVERY),
                begun => return Ok(begun),
            }
            self.stop_if_closed()?;
        }
        Ok(Begin::Busy)
    }

    /// Takes up what an earlier download has left. It is not shown before upstream has told the size:
    /// only then is it known which byte is the last.
    fn recover(&self, download: &mut Download<'_>, ingest: &mut Ingest) -> Result<(), CacheError> {
        while ingest.recover(&mut download.chunk)? {
            self.stop_if_closed()?;
        }
        match ingest.bytes_written() {
            0 => {}
            bytes => log::info!("{}: going on after {bytes} bytes", download.what()),
        }
        Ok(())
    }

    /// Downloads what is missing, over as many connections as it takes.
    fn download(&self, download: &mut Download<'_>, ingest: &mut Ingest) -> Result<(), CacheError> {
        let mut retries = Retries::new(self.settings.retry.clone());
        loop {
            let Err(error) = self.receive(download, ingest) else { return Ok(()) };
            let CacheError::Upstream(upstream) = &error else { return Err(error) };
            if !upstream.is_temporary() {
                return Err(error);
            }
            let asked = upstream.retry_after();
            let Some(wait) = retries.next_wait(ingest.bytes_written(), asked, self.spread()) else {
                return Err(error);
            };
            log::warn!(
                "{}: {error}; going on after {} bytes in {} ms",
                download.what(),
                ingest.bytes_written(),
                wait.as_millis()
            );
            self.blob_pool.pause(wait);
            self.stop_if_closed()?;
        }
    }

    /// One connection: asks for what is missing and takes what comes.
    fn receive(&self, download: &mut Download<'_>, ingest: &mut Ingest) -> Result<(), CacheError> {
        let (name, digest) = (download.name, download.pilot.key().1);
        let source = self.sources.source(&name.upstream)?;
        let begun = source.blob(&name.repository, &digest, ingest.bytes_written());
        self.note_blob(name, &digest, &begun);
        let mut body = begun?;
        download.settle_size(body.size, ingest.bytes_written())?;
        if !download.is_announced
            && let Err(error) = ingest.note_origin(name)
        {
            // The download itself will say what is wrong with the disk, if it matters.
            log::debug!("{}: {error}", download.what());
        }
        download.announce(ingest);
        download.show(ingest);
        // A registry that does not do ranges begins anew; what clients have had is passed over.
        let mut surplus = ingest.bytes_written() - body.start.min(ingest.bytes_written());
        loop {
            self.stop_if_closed()?;
            let read = match body.reader.read(&mut download.chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result.map_err(|error| download.broke_off(error))?,
            };
            if read == 0 {
                return download.check_end(ingest, surplus);
            }
            let passed_over = surplus.min(read as u64);
            surplus -= passed_over;
            // Both are at most `read`, which is a `usize`.
            let fresh = &download.chunk[passed_over as usize..read];
            let written = ingest.bytes_written() + fresh.len() as u64;
            if let Some(expected) = download.size.filter(|size| written > *size) {
                return Err(IngestError::WrongSize { expected, actual: written }.into());
            }
            ingest.write(fresh)?;
            download.show(ingest);
        }
    }

    fn stop_if_closed(&self) -> Result<(), CacheError> {
        if self.blob_pool.is_closed() { Err(CacheError::GivenUp) } else { Ok(()) }
    }

    /// A number from 0 to 1 that differs from download to download; it need not be more random.
    fn spread(&self) -> f64 {
        let since_epoch = self.now().duration_since(SystemTime::UNIX_EPOCH);
        f64::from(since_epoch.map_or(0, |since| since.subsec_nanos()) % 1000) / 1000.0
    }
}

/// A download under way.
struct Download<'a> {
    name: &'a ImageName,
    pilot: &'a BlobPilot,
    /// The size of the blob, as upstream or a manifest told it.
    size: Option<u64>,
    /// Whether clients were told that size.
    is_announced: bool,
    chunk: Vec<u8>,
}

impl Download<'_> {
    fn what(&self) -> String {
        format!("{}@{}", self.name, self.pilot.key().1)
    }

    fn broke_off(&self, error: io::Error) -> CacheError {
        let request = format!("GET blob {}", self.what());
        CacheError::Upstream(UpstreamError::from_body(&request, error))
    }

    /// Decides which size this download has, of which the last byte will be held back.
    ///
    /// Clients compute their `Content-Length` from it, so it cannot change once they were told: with
    /// another one, a byte that is not the last for us would be the last for them.
    fn settle_size(&mut self, told: Option<u64>, have: u64) -> Result<(), CacheError> {
        let bad = |reason: String| {
            let request = format!("GET blob {}", self.what());
            CacheError::from(UpstreamError::bad_answer(&request, reason))
        };
        match (told, self.size) {
            (Some(told), Some(before)) if self.is_announced && told != before => {
                return Err(bad(format!("it has {told} bytes now and had {before} before")));
            }
            (Some(0), _) if !self.pilot.key().1.is_of_nothing() => {
                return Err(bad("an empty body for content that is not empty".into()));
            }
            _ => self.size = told.or(self.size),
        }
        match self.size {
            Some(expected) if expected < have => {
                Err(IngestError::WrongSize { expected, actual: have }.into())
            }
            _ => Ok(()),
        }
    }

    fn announce(&mut self, ingest: &Ingest) {
        self.is_announced = true;
        self.pilot.announce(Incoming { file: Arc::clone(ingest.file()), size: self.size });
    }

    /// Tells the readers how far they may go: never to the last byte.
    fn show(&self, ingest: &Ingest) {
        let written = ingest.bytes_written();
        let held_back_from = self.size.unwrap_or(written).saturating_sub(1);
        self.pilot.advance(written.min(held_back_from));
    }

    /// Whether the end of a body is the end of the blob. Where the size is known, an early end is a
    /// broken connection that was closed politely; where it is not, only the digest can tell.
    fn check_end(&self, ingest: &Ingest, surplus: u64) -> Result<(), CacheError> {
        match self.size {
            Some(size) if ingest.bytes_written() < size || surplus > 0 => {
                Err(self.broke_off(io::ErrorKind::UnexpectedEof.into()))
            }
            _ => Ok(()),
        }
    }
}

/// A blob that somebody else has finished: all of it is available at once.
fn arrived(pilot: &BlobPilot, blob: Blob) -> Blob {
    pilot.announce(Incoming { file: Arc::clone(&blob.file), size: Some(blob.size) });
    pilot.advance(blob.size);
    blob
}
