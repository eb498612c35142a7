//! Queues what was in the directory before there was a queue: see [`crate::store::files::outgoing`].

use std::io;

use crate::oci::ImageName;
use crate::store::files::outgoing::OutgoingKind;
use crate::store::{Store, StoreError};

impl Store {
    /// Queues all blobs, manifests and tags for a bucket. `should_go_on` is called after each; if it returns false, the
    /// rest is queued by the next call.
    ///
    /// # Errors
    /// [`StoreError`] if the directory cannot be read or written.
    pub fn seed_outgoing(
        &self,
        bucket: &str,
        should_go_on: &mut dyn FnMut() -> bool,
    ) -> Result<(), StoreError> {
        let layout = &self.inner.layout;
        for (digest, _) in self.blobs()? {
            self.inner.note_outgoing_for_now(OutgoingKind::Blob, &layout.blob(&digest))?;
            if !should_go_on() {
                return Ok(());
            }
        }
        let mut is_complete = true;
        let walked = self.each_repository(&mut |name| {
            is_complete = is_complete && self.seed_names(name, should_go_on)?;
            Ok(())
        });
        walked.map_err(|error| StoreError::read(&layout.refs(), error))?;
        self.inner.sync_outgoing()?;
        match is_complete {
            true => self.inner.replace(&layout.outgoing_seeded(), bucket.as_bytes()),
            false => Ok(()),
        }
    }

    fn seed_names(
        &self,
        name: &ImageName,
        should_go_on: &mut dyn FnMut() -> bool,
    ) -> io::Result<bool> {
        let layout = &self.inner.layout;
        let manifests = self.find_manifests(name).map_err(io::Error::other)?;
        let tags = self.find_tags(name).map_err(io::Error::other)?;
        let manifests =
            manifests.iter().map(|digest| (OutgoingKind::Manifest, layout.manifest(name, digest)));
        let tags = tags.iter().map(|tag| (OutgoingKind::Tag, layout.tag(name, tag)));
        for (kind, path) in manifests.chain(tags) {
            self.inner.note_outgoing_for_now(kind, &path).map_err(io::Error::other)?;
            if !should_go_on() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
