//! The one pass over a bundle: content into the store as it comes, documents into memory.
//!
//! A tar may list its images before or behind their content, so nothing is decided here but what is
//! content. Blobs of an image layout carry their digest in their path; layers and configs of `docker
//! save` get theirs when they have been read. What no image turns out to need is an unreferenced blob.

use std::collections::HashMap;
use std::io::{self, Read};

use super::error::BundleError;
use super::source::{BundleSource, Item};
use super::told::Told;
use crate::oci::{Algorithm, Digest, MANIFEST_BYTES_MAX};
use crate::store::{DigestingWriter, IngestError, Store};

/// The largest `index.json` or `manifest.json`: some hundred thousand images.
const INDEX_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The most strings in one of them. Each costs some tens of bytes of memory, however short it is: without
/// this, 64 MiB of empty strings would take gigabytes.
const INDEX_STRINGS_MAX: usize = 4_000_000;
/// Bytes copied at a time.
const PIECE_BYTES: usize = 256 * 1024;
/// How many links may lead to one file: `docker save` writes one.
const LINKS_MAX: usize = 8;
/// How many files and links are remembered for `manifest.json`: a thousand images with thirty layers in
/// files of their own are 30,000.
const REMEMBERED_MAX: usize = 100_000;
/// The longest path that is remembered, in bytes: those that tools write have some 80.
const PATH_BYTES_MAX: usize = 255;

/// What a bundle held.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// `index.json`.
    pub(super) index: Option<Vec<u8>>,
    /// `manifest.json`.
    pub(super) docker: Option<Vec<u8>>,
    /// Whether there is a file `repositories`, which only `docker save` and `podman save` write.
    pub(super) has_repositories: bool,
    /// Digest and size of what `manifest.json` may name by its path, blobs of a layout aside: their
    /// paths are their digests.
    files: HashMap<String, (Digest, u64)>,
    links: HashMap<String, String>,
    /// Entries of the bundle.
    pub(super) entries: u64,
    /// Bytes of their content.
    pub(super) content_bytes: u64,
    /// Blobs that the store did not have.
    pub(super) blobs_written: u64,
    /// Their bytes.
    pub(super) bytes_written: u64,
    /// Blobs that it had.
    pub(super) blobs_present: u64,
    /// Blobs that are not what their name says.
    pub(super) failures: usize,
}

impl Taken {
    /// The file at a path of `manifest.json`, through the links that `docker save` and `podman save` use
    /// for layers that occur twice.
    pub(super) fn file(&self, store: &Store, path: &str) -> Option<(Digest, u64)> {
        let mut path = path.strip_prefix("./").unwrap_or(path);
        for _ in 0..LINKS_MAX {
            if let Some(file) = self.files.get(path) {
                return Some(*file);
            }
            match self.links.get(path) {
                Some(target) => path = target,
                None => {
                    let Role::Blob(digest) = Role::of(path) else { return None };
                    return Some((digest, store.blob(&digest, None)?.size));
                }
            }
        }
        None
    }
}

/// Reads a bundle to its end.
///
/// # Errors
/// [`BundleError`] if it cannot be read or the disk refuses. Content that came before stays, without a
/// name.
pub(super) fn take(
    store: &Store,
    source: &BundleSource,
    told: &mut dyn FnMut(&Told<'_>),
) -> Result<Taken, BundleError> {
    let mut taker = Taker { store, bundle: source.name(), told, taken: Taken::default() };
    source.each_entry(&mut |path, item| taker.entry(path, item))?;
    Ok(taker.taken)
}

/// What an entry is, by its path.
#[derive(Debug, PartialEq, Eq)]
enum Role {
    Index,
    Docker,
    Repositories,
    /// Content of this digest.
    Blob(Digest),
    /// A layer of `docker save`, and its digest if the path claims one.
    Layer(Option<Digest>),
    /// A config of `docker save`.
    Config,
    Other,
}

impl Role {
    fn of(path: &str) -> Role {
        match path {
            "index.json" => return Role::Index,
            "manifest.json" => return Role::Docker,
            "repositories" => return Role::Repositories,
            _ => {}
        }
        if let Some(rest) = path.strip_prefix("blobs/") {
            let digest = rest.split_once('/').map(|(algorithm, hex)| format!("{algorithm}:{hex}"));
            let digest = digest.and_then(|digest| digest.parse().ok());
            return digest.map_or(Role::Other, Role::Blob);
        }
        let stem_of = |suffix| path.strip_suffix(suffix).filter(|stem| !stem.contains('/'));
        match path.split_once('/') {
            Some((_, "layer.tar")) => Role::Layer(None),
            Some(_) => Role::Other,
            None if path.ends_with(".json") || path.starts_with("sha256:") => Role::Config,
            None => match [".tar", ".tar.gz", ".tgz", ".tar.zst"].into_iter().find_map(stem_of) {
                Some(stem) => Role::Layer(format!("sha256:{stem}").parse().ok()),
                None => Role::Other,
            },
        }
    }
}

struct Taker<'a> {
    store: &'a Store,
    bundle: String,
    told: &'a mut dyn FnMut(&Told<'_>),
    taken: Taken,
}

impl Taker<'_> {
    fn entry(&mut self, path: &str, item: Item<'_>) -> Result<(), BundleError> {
        self.taken.entries += 1;
        let (size, content) = match item {
            Item::File { size, content } => (size, content),
            Item::Link { target } => {
                let is_short = |path: &str| path.len() <= PATH_BYTES_MAX;
                let target = target.filter(|target| is_short(target) && is_short(path));
                self.check_remembered()?;
                self.taken.links.extend(target.map(|target| (path.to_owned(), target)));
                return Ok(());
            }
        };
        self.taken.content_bytes = self.taken.content_bytes.saturating_add(size);
        if path.len() > PATH_BYTES_MAX {
            return Ok(());
        }
        match Role::of(path) {
            Role::Index => {
                self.taken.index = Some(self.list(path, size, content)?);
            }
            Role::Docker => {
                self.taken.docker = Some(self.list(path, size, content)?);
            }
            Role::Repositories => self.taken.has_repositories = true,
            Role::Blob(digest) => self.blob(path, &digest, size, content)?,
            Role::Layer(Some(digest)) if self.is_present(&digest, size) => {
                self.remember(path, (digest, size))?;
            }
            Role::Layer(_) => {
                let stored = self.spool(path, Algorithm::Sha256, size, content)?.commit(None);
                self.note_stored(path, stored)?;
            }
            Role::Config if size <= MANIFEST_BYTES_MAX as u64 => {
                let bytes = self.document(path, size, MANIFEST_BYTES_MAX as u64, content)?;
                let digest = Digest::of(Algorithm::Sha256, &bytes);
                let stored = self.store.ingest_bytes(&digest, &bytes).map(|()| (digest, size));
                self.note_stored(path, stored)?;
            }
            Role::Config | Role::Other => {}
        }
        Ok(())
    }

    fn blob(
        &mut self,
        path: &str,
        digest: &Digest,
        size: u64,
        content: &mut dyn Read,
    ) -> Result<(), BundleError> {
        if self.is_present(digest, size) {
            return Ok(());
        }
        let stored = self.spool(path, digest.algorithm(), size, content)?.commit(Some(digest));
        self.note_stored(path, stored)
    }

    fn is_present(&mut self, digest: &Digest, size: u64) -> bool {
        // Of what may be a manifest the bytes are looked at too: a damaged one is replaced.
        let is_present = match size <= MANIFEST_BYTES_MAX as u64 {
            true => self.store.read(digest, size).is_some(),
            false => self.store.blob(digest, Some(size)).is_some(),
        };
        self.taken.blobs_present += u64::from(is_present);
        is_present
    }

    fn note_stored(
        &mut self,
        path: &str,
        stored: Result<(Digest, u64), IngestError>,
    ) -> Result<(), BundleError> {
        match stored {
            Ok((digest, size)) => {
                self.taken.blobs_written += 1;
                self.taken.bytes_written += size;
                if !matches!(Role::of(path), Role::Blob(_)) {
                    self.remember(path, (digest, size))?;
                }
            }
            Err(IngestError::Store(error)) => return Err(error.into()),
            Err(error) => {
                let reason = error.to_string();
                (self.told)(&Told::Refused { bundle: &self.bundle, entry: path, reason: &reason });
                self.taken.failures += 1;
            }
        }
        Ok(())
    }

    fn remember(&mut self, path: &str, file: (Digest, u64)) -> Result<(), BundleError> {
        self.check_remembered()?;
        self.taken.files.insert(path.to_owned(), file);
        Ok(())
    }

    fn check_remembered(&self) -> Result<(), BundleError> {
        match self.taken.files.len() + self.taken.links.len() < REMEMBERED_MAX {
            true => Ok(()),
            false => {
                let limit = REMEMBERED_MAX as u64;
                Err(BundleError::TooManyEntries { bundle: self.bundle.clone(), limit })
            }
        }
    }

    /// Copies content into a spool, hashed as it passes.
    fn spool(
        &self,
        path: &str,
        algorithm: Algorithm,
        size: u64,
        content: &mut dyn Read,
    ) -> Result<DigestingWriter, BundleError> {
        let mut spool = self.store.digesting_writer(algorithm)?;
        spool.check_free_space(size)?;
        let mut piece = vec![0; PIECE_BYTES];
        let mut left = size;
        while left > 0 {
            let read = content.read(&mut piece).map_err(|error| self.unreadable(path, error))?;
            if read == 0 {
                return Err(self.unreadable(path, io::ErrorKind::UnexpectedEof.into()));
            }
            spool.write(&piece[..read])?;
            left = left.saturating_sub(read as u64);
        }
        Ok(spool)
    }

    /// A document that lists images.
    fn list(&self, path: &str, size: u64, content: &mut dyn Read) -> Result<Vec<u8>, BundleError> {
        let bytes = self.document(path, size, INDEX_BYTES_MAX, content)?;
        match bytes.iter().filter(|byte| **byte == b'"').count() / 2 > INDEX_STRINGS_MAX {
            true => Err(BundleError::Document {
                bundle: self.bundle.clone(),
                entry: path.to_owned(),
                reason: format!("it has more than {INDEX_STRINGS_MAX} strings"),
            }),
            false => Ok(bytes),
        }
    }

    fn document(
        &self,
        path: &str,
        size: u64,
        limit: u64,
        content: &mut dyn Read,
    ) -> Result<Vec<u8>, BundleError> {
        if size > limit {
            let (bundle, entry) = (self.bundle.clone(), path.to_owned());
            return Err(BundleError::TooLarge { bundle, entry, bytes: size, limit });
        }
        let mut bytes = Vec::new();
        let read = content.take(limit).read_to_end(&mut bytes);
        read.map_err(|error| self.unreadable(path, error))?;
        match (bytes.len() as u64) < size {
            true => Err(self.unreadable(path, io::ErrorKind::UnexpectedEof.into())),
            false => Ok(bytes),
        }
    }

    fn unreadable(&self, path: &str, source: io::Error) -> BundleError {
        BundleError::Read { bundle: self.bundle.clone(), entry: path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn paths_say_what_an_entry_is() {
        let digest: Digest = format!("sha256:{HEX}").parse().unwrap();
        for (path, role) in [
            ("index.json", Role::Index),
            ("manifest.json", Role::Docker),
            ("oci-layout", Role::Other),
            ("repositories", Role::Repositories),
            (&format!("blobs/sha256/{HEX}"), Role::Blob(digest)),
            (&format!("blobs/sha256/{HEX}/x"), Role::Other),
            ("blobs/sha256/abc", Role::Other),
            ("blobs/md5/abc", Role::Other),
            (&format!("{HEX}.json"), Role::Config),
            (&format!("sha256:{HEX}"), Role::Config),
            (&format!("{HEX}/json"), Role::Other),
            (&format!("{HEX}/layer.tar"), Role::Layer(None)),
            (&format!("{HEX}.tar"), Role::Layer(Some(digest))),
            ("a.tar.gz", Role::Layer(None)),
            ("incoming/a.json", Role::Other),
            ("a/b/layer.tar", Role::Other),
        ] {
            assert_eq!(Role::of(path), role, "{path}");
        }
    }

    #[test]
    fn links_that_lead_in_circles_end() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&crate::store::Settings {
            root: directory.path().to_owned(),
            fsync: false,
        })
        .unwrap();
        let mut taken = Taken::default();
        taken.links.insert("a".into(), "b".into());
        taken.links.insert("b".into(), "a".into());
        assert_eq!(taken.file(&store, "a"), None);
        let file = (Digest::of(Algorithm::Sha256, b"x"), 1);
        taken.files.insert("c".into(), file);
        taken.links.insert("d".into(), "c".into());
        assert_eq!(taken.file(&store, "./d"), Some(file));
    }
}
