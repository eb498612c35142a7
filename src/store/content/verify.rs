//! Checks that blobs still match their digests. Disks lose data, so a name alone proves nothing.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use super::blobs::CHUNK_BYTES;
use crate::oci::{Algorithm, Digest, Verifier};
use crate::store::files::observer::StoreEvent;
use crate::store::files::outgoing::OutgoingKind;
use crate::store::files::read::{is_same_file, names_in, open_to_read};
use crate::store::files::record::from_seconds;
use crate::store::files::write::renew_path;
use crate::store::{Store, StoreError};
use crate::units::plural;

/// Damaged blobs are kept this long for inspection: one week.
const QUARANTINE_AGE: Duration = Duration::from_secs(7 * 86_400);
/// The maximum number of damaged blobs. They count towards the cache size and are evicted first.
const QUARANTINE_FILES_MAX: usize = 1000;
/// The error number of a disk read failure.
const EIO: i32 = 5;

/// The result of checking a blob.
#[derive(Debug)]
pub enum Checked {
    /// The content matches the digest.
    Sound,
    /// The content does not match, or the disk cannot read it.
    Damaged(Damage),
    /// The blob cannot be read now for a reason unrelated to its content: permissions, open files, a network file
    /// system.
    Unreadable(io::Error),
    /// The blob no longer exists.
    Gone,
    /// The caller stopped the check.
    Stopped,
}

/// A damaged blob.
#[derive(Debug)]
pub struct Damage {
    digest: Digest,
    file: File,
    /// Whether the disk cannot read it, so that its content is unknown.
    is_unreadable: bool,
    /// A description of the damage.
    pub reason: String,
}

impl Store {
    /// The stored blobs with their sizes in bytes, unordered.
    ///
    /// # Errors
    /// [`StoreError::IncompleteScan`] if they cannot all be listed.
    pub fn blobs(&self) -> Result<Vec<(Digest, u64)>, StoreError> {
        let incomplete = |source| StoreError::IncompleteScan { source };
        let mut blobs = Vec::new();
        for algorithm in Algorithm::ALL {
            for digest in self.digests_strict(algorithm).map_err(incomplete)? {
                let digest = digest.map_err(incomplete)?;
                let path = self.inner.layout.blob(&digest);
                match self.inner.metadata(&path) {
                    Ok(metadata) => blobs.push((digest, metadata.len())),
                    // It has been removed since.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(StoreError::read(&path, error)),
                }
            }
        }
        Ok(blobs)
    }

    /// Hashes a blob, one buffer at a time. Calls `pace` with the number of bytes read; it may block, and stops the
    /// check by returning `false`.
    pub fn check_blob(
        &self,
        digest: &Digest,
        buffer: &mut [u8],
        pace: &mut dyn FnMut(u64) -> bool,
    ) -> Checked {
        let path = self.inner.layout.blob(digest);
        match self.inner.faults.check(&path).and_then(|()| open_to_read(&path)) {
            Ok(file) => hash(file, digest, buffer, pace),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Checked::Gone,
            Err(error) => Checked::Unreadable(error),
        }
    }

    /// The blobs in `quarantine/`.
    pub fn quarantined(&self) -> Vec<Digest> {
        let names = names_in(&self.inner.layout.quarantine());
        names.filter_map(|name| Digest::from_dashed(&name)).collect()
    }

    /// Moves a damaged blob to `quarantine/`, so that it is fetched again on the next request. Returns the new
    /// path; `None` if another file has replaced the blob.
    ///
    /// # Errors
    /// [`StoreError`] if a write fails.
    pub fn quarantine(&self, damage: &Damage) -> Result<Option<PathBuf>, StoreError> {
        let path = self.inner.layout.blob(&damage.digest);
        if !is_same_file(&path, &damage.file) {
            return Ok(None);
        }
        let to = self.inner.layout.quarantined(&damage.digest);
        let parent = to.parent().unwrap_or(self.root());
        let made = self.inner.layout.create_directories(parent);
        let moved = made.and_then(|_| fs::rename(&path, &to));
        match moved {
            Ok(()) => {
                self.inner.damaged_files.fetch_add(1, Ordering::Relaxed);
                let (what, reason) = (&damage.digest, damage.reason.as_str());
                self.observe(&StoreEvent::Damaged { what, reason });
                Ok(Some(to))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::write(&to, error)),
        }
    }

    /// Removes blobs that have been in `quarantine/` for a week, and the oldest beyond the limit of a thousand.
    /// Each is hashed again first: if it matches its digest after all (faulty memory, a loose cable), it becomes a
    /// normal blob again. A file that the disk cannot read stays, unless there are too many, since it may become
    /// readable. Calls `keep_going` while hashing; it stops the work by returning `false`. Returns the freed
    /// bytes.
    ///
    /// # Errors
    /// [`StoreError`] if the directory cannot be listed, or a write fails.
    pub fn trim_quarantine(
        &self,
        now: SystemTime,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<u64, StoreError> {
        let directory = self.inner.layout.quarantine();
        let names = self.inner.list_strict(&directory);
        let names = names.map_err(|source| StoreError::IncompleteScan { source })?;
        let mut kept = Vec::new();
        for digest in names.iter().filter_map(|name| Digest::from_dashed(name)) {
            let path = self.inner.layout.quarantined(&digest);
            match self.inner.metadata(&path) {
                Ok(metadata) if metadata.is_file() => kept.push((moved(&metadata), digest)),
                // Larder did not put it here, or it is gone.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(StoreError::read(&path, error)),
            }
        }
        kept.sort_unstable_by_key(|(moved, digest)| (*moved, digest.to_string()));
        let (mut excess, mut freed) = (kept.len().saturating_sub(QUARANTINE_FILES_MAX), 0);
        let mut buffer = vec![0; CHUNK_BYTES];
        for (moved, digest) in kept {
            let is_old = now.duration_since(moved).is_ok_and(|age| age >= QUARANTINE_AGE);
            if (!is_old && excess == 0) || !keep_going() {
                break;
            }
            let path = self.inner.layout.quarantined(&digest);
            let checked = match open_to_read(&path) {
                Ok(file) => hash(file, &digest, &mut buffer, &mut |_| keep_going()),
                Err(error) => Checked::Unreadable(error),
            };
            match checked {
                Checked::Sound => self.put_back(&path, &digest)?,
                Checked::Damaged(damage) if !damage.is_unreadable => {
                    freed += self.inner.remove_counted(&path)?;
                }
                Checked::Damaged(_) if excess > 0 => freed += self.inner.remove_counted(&path)?,
                Checked::Stopped => break,
                Checked::Damaged(_) | Checked::Unreadable(_) | Checked::Gone => continue,
            }
            excess = excess.saturating_sub(1);
        }
        Ok(freed)
    }

    /// Moves a blob out of quarantine. A copy that was fetched in the meantime is identical and is replaced.
    fn put_back(&self, path: &Path, digest: &Digest) -> Result<(), StoreError> {
        // As young as a new blob, since the names that refer to it may have been removed.
        renew_path(path);
        let to = self.inner.layout.blob(digest);
        let publish = || self.inner.publish_counted(path, &to);
        self.inner.queued(OutgoingKind::Blob, &to, publish)?;
        log::info!(digest:%; "a blob from quarantine/ is intact after all and is served again");
        Ok(())
    }
}

/// When a file was moved here: a rename keeps the mtime and updates the ctime.
fn moved(metadata: &Metadata) -> SystemTime {
    let seconds = u64::try_from(metadata.ctime()).unwrap_or_default();
    from_seconds(seconds).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Hashes an open blob.
fn hash(
    file: File,
    digest: &Digest,
    buffer: &mut [u8],
    pace: &mut dyn FnMut(u64) -> bool,
) -> Checked {
    match file.metadata() {
        Ok(metadata) if metadata.is_dir() => {
            return Checked::Unreadable(io::ErrorKind::IsADirectory.into());
        }
        Ok(metadata) if !metadata.is_file() => {
            return damaged(digest, file, "it is not a regular file".to_owned());
        }
        Ok(_) => {}
        Err(error) => return Checked::Unreadable(error),
    }
    let (mut verifier, mut position) = (Verifier::new(digest.algorithm()), 0);
    loop {
        match file.read_at(buffer, position) {
            Ok(0) => break,
            Ok(read) => {
                verifier.update(&buffer[..read]);
                position += read as u64;
                if !pace(read as u64) {
                    return Checked::Stopped;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The disk reports lost data.
            Err(error) if error.raw_os_error() == Some(EIO) => {
                let reason = error.to_string();
                return Checked::Damaged(Damage {
                    digest: *digest,
                    file,
                    reason,
                    is_unreadable: true,
                });
            }
            Err(error) => return Checked::Unreadable(error),
        }
    }
    let actual = verifier.finish();
    match actual == *digest {
        true => Checked::Sound,
        false => {
            let reason =
                format!("its content ({}) has the digest {actual}", plural(position, "byte"));
            damaged(digest, file, reason)
        }
    }
}

fn damaged(digest: &Digest, file: File, reason: String) -> Checked {
    Checked::Damaged(Damage { digest: *digest, file, reason, is_unreadable: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Settings;

    fn fresh() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_owned();
        let store = Store::open(&Settings { root, fsync: false }).unwrap();
        (directory, store)
    }

    fn put(store: &Store, bytes: &[u8]) -> Digest {
        let digest = Digest::of(Algorithm::Sha256, bytes);
        store.ingest_bytes(&digest, bytes).unwrap();
        digest
    }

    fn check(store: &Store, digest: &Digest) -> Checked {
        store.check_blob(digest, &mut [0; 3], &mut |_| true)
    }

    #[test]
    fn a_blob_is_sound_damaged_or_gone() {
        let (directory, store) = fresh();
        let digest = put(&store, b"hello world");
        let path = directory.path().join("blobs/sha256").join(digest.hex());
        assert_eq!(store.blobs().unwrap(), [(digest, 11)]);
        assert!(matches!(check(&store, &digest), Checked::Sound));
        for wrong in [&b"hello w0rld"[..], b"hello", b""] {
            fs::write(&path, wrong).unwrap();
            assert!(matches!(check(&store, &digest), Checked::Damaged(_)), "{wrong:?}");
        }
        fs::remove_file(&path).unwrap();
        assert!(matches!(check(&store, &digest), Checked::Gone));
        assert!(store.blobs().unwrap().is_empty());
    }

    #[test]
    fn a_damaged_blob_is_quarantined_and_a_new_one_is_left_alone() {
        let (directory, store) = fresh();
        let digest = put(&store, b"hello world");
        let path = directory.path().join("blobs/sha256").join(digest.hex());
        fs::write(&path, b"hello w0rld").unwrap();
        let Checked::Damaged(damage) = check(&store, &digest) else { panic!("expected damage") };
        let aside = store.quarantine(&damage).unwrap().unwrap();
        assert_eq!(fs::read(aside).unwrap(), b"hello w0rld");
        assert!(store.blob(&digest, None).is_none());
        assert!(store.quarantine(&damage).unwrap().is_none());
        // The blob has been fetched again.
        put(&store, b"hello world");
        assert!(store.quarantine(&damage).unwrap().is_none());
        assert!(store.blob(&digest, Some(11)).is_some());
    }

    #[test]
    fn the_caller_can_stop_a_check() {
        let (_directory, store) = fresh();
        let digest = put(&store, b"hello world");
        let mut read = 0;
        let checked = store.check_blob(&digest, &mut [0; 3], &mut |bytes| {
            read += bytes;
            read < 6
        });
        assert!(matches!(checked, Checked::Stopped) && read == 6);
    }

    fn trim(store: &Store, days: u64) -> u64 {
        let now = SystemTime::now() + Duration::from_secs(days * 86_400);
        store.trim_quarantine(now, &mut || true).unwrap()
    }

    #[test]
    fn quarantine_is_emptied_after_a_week_and_intact_blobs_are_restored() {
        let (directory, store) = fresh();
        assert_eq!(trim(&store, 8), 0, "the directory does not exist yet");
        let (wrong, sound) = (put(&store, b"hello world"), put(&store, b"sound"));
        for digest in [&wrong, &sound] {
            let path = store.inner.layout.blob(digest);
            let content = fs::read(&path).unwrap();
            fs::write(&path, b"damaged").unwrap();
            let Checked::Damaged(damage) = check(&store, digest) else { panic!("expected damage") };
            let aside = store.quarantine(&damage).unwrap().unwrap();
            if digest == &sound {
                fs::write(aside, content).unwrap();
            }
        }
        // Files that Larder did not put here stay.
        fs::create_dir(store.inner.layout.quarantined(&Digest::of(Algorithm::Sha256, b"x")))
            .unwrap();
        fs::write(directory.path().join("quarantine/notes"), b"keep").unwrap();
        assert_eq!((trim(&store, 6), store.quarantined().len()), (0, 3));
        assert!(trim(&store, 8) > 0);
        assert_eq!(store.quarantined().len(), 1);
        assert!(directory.path().join("quarantine/notes").exists());
        assert_eq!(store.read(&sound, 5).unwrap(), b"sound");
        assert!(store.blob(&wrong, None).is_none());
    }

    #[test]
    fn quarantine_is_bounded_and_a_failed_listing_removes_nothing() {
        let (_directory, store) = fresh();
        let quarantine = store.inner.layout.quarantine();
        fs::create_dir(&quarantine).unwrap();
        for number in 0..QUARANTINE_FILES_MAX + 3 {
            let digest = Digest::of(Algorithm::Sha256, &number.to_be_bytes());
            fs::write(store.inner.layout.quarantined(&digest), b"damaged").unwrap();
        }
        store.fail_reads("quarantine", 0, 1, rustix::io::Errno::MFILE);
        assert!(store.trim_quarantine(SystemTime::now(), &mut || true).is_err());
        assert_eq!(store.quarantined().len(), QUARANTINE_FILES_MAX + 3);
        trim(&store, 0);
        assert_eq!(store.quarantined().len(), QUARANTINE_FILES_MAX);
    }
}
