//! Referrers that the cache can tell by itself: signatures and the like that are here, for the day nobody
//! can be asked. distribution-spec, "Listing Referrers" and "Referrers Tag Schema".

use std::collections::HashSet;

use serde_json::{Value, json};

use super::lists::ListQuestion;
use super::{CacheError, Inner};
use crate::oci::{Digest, ImageName, Manifest, MediaType, Tag};
use crate::store::{Access, ListRecord, TagRecord};
use crate::upstream::List;

/// Manifests of a repository that are looked through, and how large each may be: some milliseconds' worth,
/// since a client waits, and a worker with it.
const MANIFESTS_MAX: usize = 256;
const MANIFEST_BYTES_MAX: u64 = 64 * 1024;
/// How many referrers are told; more than signers and scanners attach.
const REFERRERS_MAX: usize = 256;
/// The largest list of the registry's that is filtered here, in bytes.
const LISTED_BYTES_MAX: u64 = 256 * 1024;

impl Inner {
    /// The manifests of this repository that refer to `digest`, as the referrers API lists them: what the
    /// registry listed last, if that is here, and what is cached. `None` if there are none and the manifest
    /// itself is not cached. `query` may filter by `artifactType`.
    pub(super) fn local_referrers(
        &self,
        name: &ImageName,
        digest: &Digest,
        query: &str,
    ) -> Result<Option<ListRecord>, CacheError> {
        let (mut found, mut seen) = (Vec::new(), HashSet::new());
        let referring = self.store.manifests(name).into_iter().take(MANIFESTS_MAX);
        let referring = referring.filter_map(|each| {
            let record = self.store.manifest(name, &each, Access::Look)?;
            let is_small = record.size <= MANIFEST_BYTES_MAX;
            let manifest = is_small.then(|| self.store.stored_manifest(name, &each)).flatten()?;
            let refers = manifest.subject().is_some_and(|subject| subject.digest == *digest);
            refers.then(|| (each, descriptor(&each, &manifest)))
        });
        let listed = self.listed_before(name, digest).into_iter();
        for (each, descriptor) in listed.chain(referring).chain(self.by_tag_schema(name, digest)) {
            if found.len() < REFERRERS_MAX && seen.insert(each) {
                found.push(descriptor);
            }
        }
        let wanted = artifact_type(query);
        if let Some(wanted) = &wanted {
            found.retain(|descriptor| descriptor["artifactType"] == **wanted);
        }
        if found.is_empty() && self.store.manifest(name, digest, Access::Look).is_none() {
            return Ok(None);
        }
        let body = json!({
            "schemaVersion": 2,
            "mediaType": MediaType::OCI_INDEX,
            "manifests": found,
        });
        let filters_applied = wanted.map(|_| "artifactType".to_owned());
        self.own_list(&body.to_string(), List { next: None, filters_applied }).map(Some)
    }

    /// What the index says that clients keep under the tag `sha256-…` where there is no referrers API.
    fn by_tag_schema(&self, name: &ImageName, digest: &Digest) -> Vec<(Digest, Value)> {
        let record =
            Tag::of_digest(digest, "").and_then(|tag| self.store.tag(name, &tag, Access::Look));
        let is_usable =
            |record: &TagRecord| record.media_type.is_index() && record.size <= MANIFEST_BYTES_MAX;
        let bytes = record
            .filter(is_usable)
            .and_then(|record| self.store.read(&record.digest, record.size));
        bytes.map(|bytes| descriptors(&bytes)).unwrap_or_default()
    }

    /// What the registry listed when it was last asked for all referrers.
    fn listed_before(&self, name: &ImageName, digest: &Digest) -> Vec<(Digest, Value)> {
        let question = ListQuestion::Referrers { digest: *digest, query: String::new() };
        let record = self.known_list(name, &question);
        let body = record.filter(|record| record.body.length() <= LISTED_BYTES_MAX);
        let bytes = body.and_then(|record| record.body.read().ok());
        bytes.map(|bytes| descriptors(&bytes)).unwrap_or_default()
    }
}

/// The descriptors in an index.
fn descriptors(index: &[u8]) -> Vec<(Digest, Value)> {
    let index: Value = serde_json::from_slice(index).unwrap_or_default();
    let listed = index["manifests"].as_array().cloned().unwrap_or_default();
    // What is no descriptor is nothing to a client either.
    let parsed =
        listed.into_iter().filter_map(|each| Some((each["digest"].as_str()?.parse().ok()?, each)));
    parsed.collect()
}

/// A descriptor as the referrers API has it: with what the manifest says of itself.
fn descriptor(digest: &Digest, manifest: &Manifest) -> Value {
    let document: Value = serde_json::from_slice(manifest.bytes()).unwrap_or_default();
    let own = document["artifactType"].as_str();
    let artifact_type = own.or_else(|| document["config"]["mediaType"].as_str());
    let mut descriptor = json!({
        "mediaType": manifest.media_type().as_str(),
        "digest": digest.to_string(),
        "size": manifest.bytes().len(),
    });
    if let Some(artifact_type) = artifact_type {
        descriptor["artifactType"] = artifact_type.into();
    }
    if document["annotations"].is_object() {
        descriptor["annotations"] = document["annotations"].clone();
    }
    descriptor
}

/// The filter of a query, decoded.
fn artifact_type(query: &str) -> Option<String> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix("artifactType="))?;
    let mut bytes = value.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_decoded() {
        for (query, wanted) in [
            ("", None),
            ("n=5", None),
            ("artifactType=a%2Fb%2Bjson", Some("a/b+json")),
            ("n=5&artifactType=a/b", Some("a/b")),
            ("artifactType=%zz", None),
            ("artifactType=%2", None),
        ] {
            assert_eq!(artifact_type(query).as_deref(), wanted, "{query}");
        }
    }
}
