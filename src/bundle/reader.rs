//! Reads a bundle in one pass: content goes into the store, documents into memory.
//!
//! A tar archive may list its images before or after their content, so this pass only decides what is content.
//! Blobs of an image layout carry their digest in their path. Layers and configs of `docker save` get their
//! digests once they have been read. Content that no image needs becomes an unreferenced blob.

use std::collections::HashMap;
use std::io::{self, Read};

use super::error::BundleError;
use super::event::ImportEvent;
use super::source::{BundleSource, Item};
use crate::oci::{Algorithm, Digest, MANIFEST_BYTES_MAX};
use crate::store::{DigestingWriter, IngestError, Store};

/// The largest `index.json` or `manifest.json`: enough for several hundred thousand images.
const INDEX_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The most strings in an `index.json` or `manifest.json`. Each costs some tens of bytes of memory, however
/// short it is: without this limit, 64 MiB of empty strings would take gigabytes.
const INDEX_STRINGS_MAX: usize = 4_000_000;
/// Bytes copied at a time.
const PIECE_BYTES: usize = 256 * 1024;
/// The most links to follow to a file: `docker save` writes one.
const LINKS_MAX: usize = 8;
/// How many files and links are remembered for `manifest.json`. A thousand images with thirty layers each, in
/// separate files, are 30,000.
const REMEMBERED_MAX: usize = 100_000;
/// The longest path that is remembered, in bytes: tools write paths of about 80.
const PATH_BYTES_MAX: usize = 255;

/// What a bundle contains.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// `index.json`.
    pub(super) index: Option<Vec<u8>>,
    /// `manifest.json`.
    pub(super) docker: Option<Vec<u8>>,
    /// Whether the bundle has a file `repositories`, which only `docker save` and `podman save` write.
    pub(super) has_repositories: bool,
    /// Digest and size of the files that `manifest.json` may name by their paths. Blobs of a layout are not
    /// among them: their paths are their digests.
    files: HashMap<String, (Digest, u64)>,
    links: HashMap<String, String>,
    /// How many entries the bundle has.
    pub(super) entries: u64,
    /// The size of their content in bytes.
    pub(super) content_bytes: u64,
    /// Blobs written because the store did not have them.
    pub(super) blobs_written: u64,
    /// Bytes written.
    pub(super) bytes_written: u64,
    /// Blobs skipped because the store had them.
    pub(super) blobs_present: u64,
    /// Blobs that do not match their digests.
    pub(super) failures: usize,
}

impl Contents {
    /// Digest and size of the file at a path of `manifest.json`. Follows the links that `docker save` and
    /// `podman save` write for layers that occur twice.
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
/// [`BundleError`] if the bundle cannot be read, or the cache cannot be written. Content read before the
/// failure stays in the store, without a name.
pub(super) fn read(
    store: &Store,
    source: &BundleSource,
    report: &mut dyn FnMut(&ImportEvent<'_>),
) -> Result<Contents, BundleError> {
    let mut reader = Reader { store, bundle: source.name(), report, contents: Contents::default() };
    source.each_entry(&mut |path, item| reader.entry(path, item))?;
    Ok(reader.contents)
}

/// The role of an entry, determined by its path.
#[derive(Debug, PartialEq, Eq)]
enum Role {
    Index,
    Docker,
    Repositories,
    /// Content with this digest.
    Blob(Digest),
    /// A layer of `docker save`, and the digest that the path claims, if any.
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

struct Reader<'a> {
    store: &'a Store,
    bundle: String,
    report: &'a mut dyn FnMut(&ImportEvent<'_>),
    contents: Contents,
}

impl Reader<'_> {
    fn entry(&mut self, path: &str, item: Item<'_>) -> Result<(), BundleError> {
        self.contents.entries += 1;
        let (size, content) = match item {
            Item::File { size, content } => (size, content),
            Item::Link { target } => {
                let is_short = |path: &str| path.len() <= PATH_BYTES_MAX;
                let target = target.filter(|target| is_short(target) && is_short(path));
                self.check_remembered()?;
                self.contents.links.extend(target.map(|target| (path.to_owned(), target)));
                return Ok(());
            }
        };
        self.contents.content_bytes = self.contents.content_bytes.saturating_add(size);
        if path.len() > PATH_BYTES_MAX {
            return Ok(());
        }
        match Role::of(path) {
            Role::Index => {
                self.contents.index = Some(self.list(path, size, content)?);
            }
            Role::Docker => {
                self.contents.docker = Some(self.list(path, size, content)?);
            }
            Role::Repositories => self.contents.has_repositories = true,
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
        // A manifest may be damaged and still have the right size. Its bytes are verified, so that a damaged
        // copy is replaced.
        let is_present = match size <= MANIFEST_BYTES_MAX as u64 {
            true => self.store.read(digest, size).is_some(),
            false => self.store.blob(digest, Some(size)).is_some(),
        };
        self.contents.blobs_present += u64::from(is_present);
        is_present
    }

    fn note_stored(
        &mut self,
        path: &str,
        stored: Result<(Digest, u64), IngestError>,
    ) -> Result<(), BundleError> {
        match stored {
            Ok((digest, size)) => {
                self.contents.blobs_written += 1;
                self.contents.bytes_written += size;
                if !matches!(Role::of(path), Role::Blob(_)) {
                    self.remember(path, (digest, size))?;
                }
            }
            Err(IngestError::Store(error)) => return Err(error.into()),
            Err(error) => {
                let reason = error.to_string();
                (self.report)(&ImportEvent::Refused {
                    bundle: &self.bundle,
                    entry: path,
                    reason: &reason,
                });
                self.contents.failures += 1;
            }
        }
        Ok(())
    }

    fn remember(&mut self, path: &str, file: (Digest, u64)) -> Result<(), BundleError> {
        self.check_remembered()?;
        self.contents.files.insert(path.to_owned(), file);
        Ok(())
    }

    fn check_remembered(&self) -> Result<(), BundleError> {
        match self.contents.files.len() + self.contents.links.len() < REMEMBERED_MAX {
            true => Ok(()),
            false => {
                let limit = REMEMBERED_MAX as u64;
                Err(BundleError::TooManyEntries { bundle: self.bundle.clone(), limit })
            }
        }
    }

    /// Copies content into a temporary file and hashes it.
    fn spool(
        &mut self,
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
            (self.report)(&ImportEvent::Progress { bytes: read as u64 });
        }
        Ok(spool)
    }

    /// Reads a document that lists images.
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
    fn the_role_of_an_entry_follows_from_its_path() {
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
    fn circular_links_are_not_followed_forever() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&crate::store::Settings {
            root: directory.path().to_owned(),
            fsync: false,
        })
        .unwrap();
        let mut contents = Contents::default();
        contents.links.insert("a".into(), "b".into());
        contents.links.insert("b".into(), "a".into());
        assert_eq!(contents.file(&store, "a"), None);
        let file = (Digest::of(Algorithm::Sha256, b"x"), 1);
        contents.files.insert("c".into(), file);
        contents.links.insert("d".into(), "c".into());
        assert_eq!(contents.file(&store, "./d"), Some(file));
    }
}
