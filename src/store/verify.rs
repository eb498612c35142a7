//! Looking whether blobs are still what their names say. Disks forget; a name alone proves nothing.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use super::Store;
use super::error::StoreError;
use super::ingest::leads_to;
use super::layout::{digests_in, names_in};
use crate::oci::{Algorithm, Digest, Verifier};

/// The error number of a disk that cannot read what it holds.
const EIO: i32 = 5;

/// What a look at a blob found.
#[derive(Debug)]
pub enum Checked {
    /// Its bytes have the digest of its name.
    Sound,
    /// They have not, or cannot be read.
    Damaged(Damage),
    /// It cannot be read right now, which says nothing about its bytes: rights, open files, a network file
    /// system.
    Unreadable(io::Error),
    /// It is there no more.
    Gone,
    /// The caller has had enough.
    Stopped,
}

/// A blob whose bytes are wrong.
#[derive(Debug)]
pub struct Damage {
    digest: Digest,
    file: File,
    /// What is wrong with it.
    pub reason: String,
}

impl Store {
    /// The blobs that have a name, in no order, with their sizes in bytes.
    pub fn blobs(&self) -> Vec<(Digest, u64)> {
        let of_algorithm = |algorithm: Algorithm| {
            let digests = digests_in(&self.inner.layout.blobs(algorithm), algorithm);
            digests.filter_map(|digest| {
                let metadata = fs::metadata(self.inner.layout.blob(&digest)).ok()?;
                Some((digest, metadata.len()))
            })
        };
        Algorithm::ALL.into_iter().flat_map(of_algorithm).collect()
    }

    /// Hashes a blob, a buffer at a time. `pace` is told how many bytes were read, may take its time, and
    /// ends it by `false`.
    pub fn check_blob(
        &self,
        digest: &Digest,
        buffer: &mut [u8],
        pace: &mut dyn FnMut(u64) -> bool,
    ) -> Checked {
        let file = match File::open(self.inner.layout.blob(digest)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Checked::Gone,
            Err(error) => return Checked::Unreadable(error),
        };
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
                // The disk itself says that it has lost something.
                Err(error) if error.raw_os_error() == Some(EIO) => {
                    return damaged(digest, file, error.to_string());
                }
                Err(error) => return Checked::Unreadable(error),
            }
        }
        let actual = verifier.finish();
        match actual == *digest {
            true => Checked::Sound,
            false => {
                let reason = format!("its {position} bytes have the digest {actual}");
                damaged(digest, file, reason)
            }
        }
    }

    /// The blobs that were found to be damaged, and are kept aside.
    pub fn quarantined(&self) -> Vec<Digest> {
        let names = names_in(&self.inner.layout.quarantine());
        names.filter_map(|name| Digest::from_dashed(&name)).collect()
    }

    /// Takes a damaged blob out of the way, so that it is fetched again when it is next asked for. Nothing
    /// happens if the name leads to another file by now. Says where it went.
    ///
    /// # Errors
    /// [`StoreError`] if the disk refuses.
    pub fn quarantine(&self, damage: &Damage) -> Result<Option<PathBuf>, StoreError> {
        let path = self.inner.layout.blob(&damage.digest);
        if !leads_to(&path, &damage.file) {
            return Ok(None);
        }
        let to = self.inner.layout.quarantined(&damage.digest);
        let parent = to.parent().unwrap_or(self.root());
        let made = self.inner.layout.create_directories(parent);
        let moved = made.and_then(|_| fs::rename(&path, &to));
        match moved {
            Ok(()) => {
                self.inner.damaged_files.fetch_add(1, Ordering::Relaxed);
                Ok(Some(to))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::write(&to, error)),
        }
    }
}

fn damaged(digest: &Digest, file: File, reason: String) -> Checked {
    Checked::Damaged(Damage { digest: *digest, file, reason })
}

#[cfg(test)]
mod tests {
    use super::super::Settings;
    use super::*;

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
        assert_eq!(store.blobs(), [(digest, 11)]);
        assert!(matches!(check(&store, &digest), Checked::Sound));
        for wrong in [&b"hello w0rld"[..], b"hello", b""] {
            fs::write(&path, wrong).unwrap();
            assert!(matches!(check(&store, &digest), Checked::Damaged(_)), "{wrong:?}");
        }
        fs::remove_file(&path).unwrap();
        assert!(matches!(check(&store, &digest), Checked::Gone));
        assert!(store.blobs().is_empty());
    }

    #[test]
    fn a_damaged_blob_is_kept_aside_and_a_new_one_is_left_alone() {
        let (directory, store) = fresh();
        let digest = put(&store, b"hello world");
        let path = directory.path().join("blobs/sha256").join(digest.hex());
        fs::write(&path, b"hello w0rld").unwrap();
        let Checked::Damaged(damage) = check(&store, &digest) else { panic!("it is damaged") };
        let aside = store.quarantine(&damage).unwrap().unwrap();
        assert_eq!(fs::read(aside).unwrap(), b"hello w0rld");
        assert!(store.blob(&digest, None).is_none());
        assert!(store.quarantine(&damage).unwrap().is_none());
        // Somebody has fetched it again meanwhile.
        put(&store, b"hello world");
        assert!(store.quarantine(&damage).unwrap().is_none());
        assert!(store.blob(&digest, Some(11)).is_some());
    }

    #[test]
    fn who_has_had_enough_stops_it() {
        let (_directory, store) = fresh();
        let digest = put(&store, b"hello world");
        let mut read = 0;
        let checked = store.check_blob(&digest, &mut [0; 3], &mut |bytes| {
            read += bytes;
            read < 6
        });
        assert!(matches!(checked, Checked::Stopped) && read == 6);
    }
}
