//! Strict reading of a repository's records, one at a time: a record that cannot be read is an error and does not
//! count as absent.

use std::collections::HashSet;
use std::fs::{File, FileTimes};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::oci::{Algorithm, Digest, ImageName, Manifest, ManifestKind, Reference, Tag};
use crate::store::files::layout::digest_of;
use crate::store::files::outgoing::OutgoingKind;
use crate::store::files::record::Access;
use crate::store::files::write::renew;
use crate::store::names::walk::foreign_entry;
use crate::store::{RepositoryTimes, Store};

/// The maximum depth of nested indexes; the listing of images uses the same limit.
const DEPTH_MAX: usize = 8;
/// The maximum number of manifests removed with an image; others become images themselves.
const PARTS_MAX: usize = 65_536;

/// What a manifest refers to.
pub(super) struct Names {
    pub(super) is_index: bool,
    /// Without duplicates.
    pub(super) digests: Vec<Digest>,
}

impl Names {
    pub(super) fn of(manifest: &Manifest) -> Names {
        let mut seen = HashSet::new();
        let digests = manifest.descriptors().map(|each| each.digest);
        Names {
            is_index: matches!(manifest.kind(), ManifestKind::Index { .. }),
            digests: digests.filter(|digest| seen.insert(*digest)).collect(),
        }
    }
}

/// The manifests of an image and its subject.
pub(super) struct Parts {
    /// Its manifest and the descendants, parents before children.
    pub(super) manifests: Vec<Digest>,
    pub(super) subject: Option<Digest>,
}

impl Store {
    /// The manifest of a reference.
    pub(super) fn root_of(&self, name: &ImageName, reference: &Reference) -> Option<Digest> {
        match reference {
            Reference::Tag(tag) => self.tag(name, tag, Access::Look).map(|record| record.digest),
            Reference::Digest(digest) => {
                self.inner.layout.manifest(name, digest).exists().then_some(*digest)
            }
        }
    }

    /// Whether the bucket lacks a part of an image that is stored here, so that it must not be evicted.
    pub(super) fn waits_for_upload(
        &self,
        name: &ImageName,
        reference: &Reference,
        manifests: &[Digest],
    ) -> bool {
        let (inner, layout) = (&self.inner, &self.inner.layout);
        let is_outgoing = |kind, path: &Path| inner.is_outgoing(kind, path);
        let is_blob_outgoing =
            |digest: &Digest| is_outgoing(OutgoingKind::Blob, &layout.blob(digest));
        if !inner.has_outgoing() {
            return false;
        }
        if !layout.outgoing_seeded().exists() {
            // Not everything that must be uploaded is queued yet.
            return true;
        }
        if let Reference::Tag(tag) = reference
            && is_outgoing(OutgoingKind::Tag, &layout.tag(name, tag))
        {
            return true;
        }
        manifests.iter().any(|digest| {
            is_blob_outgoing(digest)
                || is_outgoing(OutgoingKind::Manifest, &layout.manifest(name, digest))
                || self.stored_manifest(name, digest).is_some_and(|manifest| {
                    manifest.descriptors().any(|each| is_blob_outgoing(&each.digest))
                })
        })
    }

    /// `root` and its descendants, as far as this repository has their indexes.
    pub(super) fn parts(&self, name: &ImageName, root: &Digest) -> Parts {
        let mut parts = Parts { manifests: vec![*root], subject: None };
        let mut seen = HashSet::from([*root]);
        let (mut begin, mut depth) = (0, 0);
        while begin < parts.manifests.len() && depth <= DEPTH_MAX {
            let end = parts.manifests.len();
            for place in begin..end {
                let digest = parts.manifests[place];
                let is_root = place == 0;
                if !is_root && !self.is_index(name, &digest) {
                    continue;
                }
                let Some(manifest) = self.stored_manifest(name, &digest) else { continue };
                if is_root {
                    parts.subject = manifest.subject().map(|subject| subject.digest);
                }
                if let ManifestKind::Index { manifests } = manifest.kind() {
                    let children = manifests.iter().map(|child| child.digest);
                    let capacity = PARTS_MAX.saturating_sub(parts.manifests.len());
                    parts
                        .manifests
                        .extend(children.filter(|each| seen.insert(*each)).take(capacity));
                }
            }
            (begin, depth) = (end, depth + 1);
        }
        parts
    }

    /// Whether a manifest of this repository is an index, according to its record.
    fn is_index(&self, name: &ImageName, digest: &Digest) -> bool {
        let record = self.manifest(name, digest, Access::Look);
        record.is_some_and(|record| record.media_type.is_index())
    }

    /// When an image or a descendant manifest was last pulled.
    pub(super) fn last_use(
        &self,
        name: &ImageName,
        reference: &Reference,
        manifests: &[Digest],
    ) -> Option<SystemTime> {
        let layout = &self.inner.layout;
        let by_tag = match reference {
            Reference::Tag(tag) => self.modified(&layout.tag(name, tag)),
            Reference::Digest(_) => None,
        };
        let by_digest =
            manifests.iter().map(|digest| self.modified(&layout.manifest(name, digest)));
        by_digest.fold(by_tag, Option::max)
    }

    /// Calls `visit` with every reference from the tags and indexes of a repository.
    pub(super) fn each_reference(
        &self,
        name: &ImageName,
        visit: &mut dyn FnMut(Digest),
    ) -> io::Result<()> {
        self.each_tag_of_repository(name, &mut |_, root| {
            root.into_iter().for_each(&mut *visit);
            Ok(())
        })?;
        self.each_manifest(name, &mut |_, names| {
            if let Some(index) = names.filter(|names| names.is_index) {
                index.digests.into_iter().for_each(&mut *visit);
            }
            Ok(())
        })
    }

    /// Calls `visit` with every tag and its manifest; with `None` if the tag's record is damaged.
    pub(super) fn each_tag_of_repository(
        &self,
        name: &ImageName,
        visit: &mut dyn FnMut(Tag, Option<Digest>) -> io::Result<()>,
    ) -> io::Result<()> {
        let tags = self.inner.layout.tags(name);
        for entry in self.inner.names_strict(&tags)? {
            let entry = entry?;
            let Ok(tag) = entry.parse::<Tag>() else {
                return Err(foreign_entry(&tags.join(entry)));
            };
            match self.tag(name, &tag, Access::Look) {
                Some(record) => visit(tag, Some(record.digest))?,
                None if self.inner.is_readable(&self.inner.layout.tag(name, &tag))? => {
                    visit(tag, None)?;
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Calls `visit` with the digest of every manifest record.
    pub(super) fn each_record(
        &self,
        name: &ImageName,
        visit: &mut dyn FnMut(Digest) -> io::Result<()>,
    ) -> io::Result<()> {
        for algorithm in Algorithm::ALL {
            let manifests = self.inner.layout.manifests(name, algorithm);
            for hex in self.inner.names_strict(&manifests)? {
                let hex = hex?;
                let digest = digest_of(algorithm, &hex);
                visit(digest.ok_or_else(|| foreign_entry(&manifests.join(hex)))?)?;
            }
        }
        Ok(())
    }

    /// Calls `visit` with every manifest record and what the manifest refers to; with `None` if the manifest is
    /// absent or damaged, or its record is damaged.
    pub(super) fn each_manifest(
        &self,
        name: &ImageName,
        visit: &mut dyn FnMut(Digest, Option<Names>) -> io::Result<()>,
    ) -> io::Result<()> {
        self.each_record(name, &mut |digest| {
            if let Some(manifest) = self.stored_manifest(name, &digest) {
                return visit(digest, Some(Names::of(&manifest)));
            }
            self.inner.is_readable(&self.inner.layout.blob(&digest))?;
            match self.inner.is_readable(&self.inner.layout.manifest(name, &digest))? {
                true => visit(digest, None),
                false => Ok(()),
            }
        })
    }

    /// Sets the directories of a repository back to their former times plus one nanosecond; see the module
    /// documentation.
    pub(super) fn keep_times(&self, name: &ImageName, before: &RepositoryTimes) {
        for (path, time) in before.directories(&self.inner.layout, name) {
            let Some(time) = time else { continue };
            let times = FileTimes::new().set_modified(time + Duration::from_nanos(1));
            let kept = File::open(&path).and_then(|directory| directory.set_times(times));
            if kept.is_ok() && self.modified(&path) == Some(time) {
                // The file system does not store nanoseconds, and the removal must be visible.
                let _ = File::open(&path).map(|directory| renew(&directory));
            }
        }
    }
}
