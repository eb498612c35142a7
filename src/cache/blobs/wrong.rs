//! Blobs with wrong content: which endpoints sent it, and whether they are fetched once more.

use super::{BlobCache, BlobKey};
use crate::cache::lock;
use crate::oci::{Digest, ImageName};
use crate::upstream::EndpointFailures;

/// What is remembered of a blob with wrong content.
pub(super) struct WrongBlob {
    endpoint_failures: EndpointFailures,
    /// Whether it was fetched again since then.
    is_tried_again: bool,
}

impl BlobCache {
    /// The failures of each endpoint in earlier downloads of this blob, and whether the bucket may be asked.
    pub(super) fn endpoint_failures(&self, name: &ImageName, digest: &Digest) -> EndpointFailures {
        let key = (name.upstream.clone(), *digest);
        let known = lock(&self.wrong).get(&key).map(|blob| blob.endpoint_failures.clone());
        known.unwrap_or_default().with_bucket(self.may_use_bucket(name, digest))
    }

    /// Records which endpoints sent wrong content, so that they are tried last the next time.
    pub(super) fn note_wrong(&self, key: &BlobKey, endpoint_failures: EndpointFailures) {
        let mut wrong = lock(&self.wrong);
        // If there is an entry, this was the second attempt, whether a client or the cache started it.
        let is_tried_again = wrong.get(key).is_some();
        wrong.insert(key.clone(), WrongBlob { endpoint_failures, is_tried_again });
    }

    /// Whether a blob with wrong content should be fetched once more without a client. Returns `true` once.
    pub(super) fn should_try_again(&self, key: &BlobKey) -> bool {
        let mut wrong = lock(&self.wrong);
        match wrong.get(key) {
            Some(blob) if !blob.is_tried_again => {
                let blob = WrongBlob {
                    endpoint_failures: blob.endpoint_failures.clone(),
                    is_tried_again: true,
                };
                wrong.insert(key.clone(), blob);
                true
            }
            _ => false,
        }
    }
}
