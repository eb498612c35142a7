//! Referrers that the cache lists itself: cached signatures and the like while the registry is unreachable, and those of
//! registries without the referrers API, which clients list under a tag.
//! distribution-spec, "Listing Referrers" and "Referrers Tag Schema".
//!
//! All of this reads many files or sends requests, so it runs on fetchers.

use std::collections::{BTreeMap, HashSet};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{ListCache, ListQuestion};
use crate::cache::negative::Asked;
use crate::cache::{CacheError, lock};
use crate::oci::{Digest, ImageName, Manifest, MediaType, Reference, Tag};
use crate::store::{Access, ListRecord};
use crate::upstream::List;

/// How many manifests of a repository are searched. Each is read once, and its subject is remembered.
const MANIFESTS_MAX: usize = 16_384;
/// The maximum size of a referrer, and of a list that is merged or filtered here, in bytes. A few dozen may be in
/// memory at a time.
const MANIFEST_BYTES_MAX: u64 = 1024 * 1024;
/// How many referrers are listed; more than signers and scanners attach.
const REFERRERS_MAX: usize = 1024;
/// The maximum size of the annotations in one list, in bytes. Further referrers are listed without annotations.
const ANNOTATION_BYTES_MAX: usize = 1024 * 1024;

impl ListCache {
    /// The manifests of this repository that refer to `digest`, in the format of the referrers API: those in the
    /// registry's last list, if it is cached, and the cached ones. `None` if there are none and the manifest itself is
    /// not cached. `query` may filter by `artifactType`.
    pub(super) fn cached_referrers(
        &self,
        name: &ImageName,
        digest: &Digest,
        query: &str,
    ) -> Result<Option<ListRecord>, CacheError> {
        let mut found = self.listed_before(name, digest);
        found.extend(self.cached_index_of_tag(name, digest)?);
        self.add_cached_manifests(name, digest, &mut found)?;
        if found.is_empty() && self.core.store.find_manifest(name, digest, Access::Look)?.is_none()
        {
            return Ok(None);
        }
        self.list_of_referrers(found, query).map(Some)
    }

    /// The referrers listed under the tag `sha256-…` at a registry without the referrers API. A client would request
    /// that tag next. `None` if the tag does not exist.
    pub(super) fn referrers_by_tag(
        &self,
        name: &ImageName,
        digest: &Digest,
        query: &str,
    ) -> Result<Option<ListRecord>, CacheError> {
        let Some(tag) = Tag::of_digest(digest, "") else { return Ok(None) };
        let index = match self.core.store.find_tag(name, &tag, Access::Look)? {
            Some(record) if self.is_believed(name, &tag, record.checked) => {
                self.cached_index_of_tag(name, digest)?
            }
            None if self.is_known_missing(name, &tag) => return Ok(None),
            known => match self.manifests.fetch_by_tag(name, &tag) {
                Ok(index) if index.size() <= MANIFEST_BYTES_MAX => {
                    index.body.read().map(|bytes| descriptors(&bytes)).unwrap_or_default()
                }
                Ok(_) => return Ok(None),
                Err(error) if known.is_some() && !error.is_not_found() => {
                    error.log_manifest(&format!("{name}:{tag}"), false);
                    self.cached_index_of_tag(name, digest)?
                }
                Err(error) if is_certainly_missing(&error) => return Ok(None),
                Err(error) => return Err(error),
            },
        };
        self.list_of_referrers(index, query).map(Some)
    }

    fn is_believed(&self, name: &ImageName, tag: &Tag, checked: std::time::SystemTime) -> bool {
        self.core.settings().freshness.is_fresh(name, tag, checked, self.core.now())
    }

    fn is_known_missing(&self, name: &ImageName, tag: &Tag) -> bool {
        let asked = Asked::Manifest(name.clone(), Reference::Tag(tag.clone()));
        self.core.negative.is_missing(&asked, self.core.now())
    }

    /// An index of the descriptors that match the query, without duplicates.
    fn list_of_referrers(
        &self,
        mut found: Vec<(Digest, Value)>,
        query: &str,
    ) -> Result<ListRecord, CacheError> {
        let mut seen = HashSet::new();
        found.retain(|(digest, _)| seen.insert(*digest));
        let wanted = artifact_type(query);
        if let Some(wanted) = &wanted {
            found.retain(|(_, descriptor)| descriptor["artifactType"] == **wanted);
        }
        let listed = found.into_iter().take(REFERRERS_MAX).map(|(_, descriptor)| descriptor);
        let body = json!({
            "schemaVersion": 2,
            "mediaType": MediaType::OCI_INDEX,
            "manifests": listed.collect::<Vec<_>>(),
        });
        let filters_applied = wanted.map(|_| "artifactType".to_owned());
        self.own_list(&body.to_string(), List { next: None, filters_applied })
    }

    /// Adds the cached manifests of the repository that refer to `digest`.
    fn add_cached_manifests(
        &self,
        name: &ImageName,
        digest: &Digest,
        found: &mut Vec<(Digest, Value)>,
    ) -> Result<(), CacheError> {
        let mut annotation_bytes = 0;
        for each in self.core.store.find_manifests(name)?.iter().take(MANIFESTS_MAX) {
            let known = lock(&self.subjects).get(each).copied();
            if known.is_some_and(|subject| subject != Some(*digest)) {
                continue;
            }
            let Some(record) = self.core.store.find_manifest(name, each, Access::Look)? else {
                continue;
            };
            let is_small = record.size <= MANIFEST_BYTES_MAX;
            let bytes =
                if is_small { self.core.store.find_bytes(each, record.size)? } else { None };
            let bytes = bytes.unwrap_or_default();
            let manifest = Manifest::parse(&bytes, Some(record.media_type.as_str())).ok();
            let subject = manifest.as_ref().and_then(Manifest::subject).map(|is| is.digest);
            // Not recorded for a blob that is missing now: it may return.
            if manifest.is_some() || !is_small {
                lock(&self.subjects).insert(*each, subject);
            }
            if let Some(manifest) = manifest.filter(|_| subject == Some(*digest)) {
                found.push((*each, descriptor(each, &manifest, &bytes, &mut annotation_bytes)));
            }
        }
        Ok(())
    }

    /// The cached index under the tag `sha256-…`, if there is one.
    fn cached_index_of_tag(
        &self,
        name: &ImageName,
        digest: &Digest,
    ) -> Result<Vec<(Digest, Value)>, CacheError> {
        let Some(tag) = Tag::of_digest(digest, "") else { return Ok(Vec::new()) };
        let record = self.core.store.find_tag(name, &tag, Access::Look)?;
        match record.filter(|record| record.size <= MANIFEST_BYTES_MAX) {
            Some(record) => {
                let bytes = self.core.store.find_bytes(&record.digest, record.size)?;
                Ok(bytes.map(|bytes| descriptors(&bytes)).unwrap_or_default())
            }
            None => Ok(Vec::new()),
        }
    }

    /// The registry's last list of all referrers.
    fn listed_before(&self, name: &ImageName, digest: &Digest) -> Vec<(Digest, Value)> {
        let question = ListQuestion::Referrers { digest: *digest, query: String::new() };
        let record = self.known_list(name, &question);
        let body = record.filter(|record| record.body.length() <= MANIFEST_BYTES_MAX);
        let bytes = body.and_then(|record| record.body.read().ok());
        bytes.map(|bytes| descriptors(&bytes)).unwrap_or_default()
    }
}

/// Whether the registry itself reported that the tag does not exist, rather than a proxy or a token service.
fn is_certainly_missing(error: &CacheError) -> bool {
    match error {
        CacheError::Upstream(cause) => cause.is_certainly_not_found(),
        other => matches!(other, CacheError::KnownMissing),
    }
}

/// The descriptors in an index.
fn descriptors(index: &[u8]) -> Vec<(Digest, Value)> {
    let index: Value = serde_json::from_slice(index).unwrap_or_default();
    let listed = index["manifests"].as_array().cloned().unwrap_or_default();
    // Entries that are not descriptors are useless to clients too.
    let parsed =
        listed.into_iter().filter_map(|each| Some((each["digest"].as_str()?.parse().ok()?, each)));
    parsed.collect()
}

/// The fields of a manifest that the referrers API lists.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Described {
    artifact_type: Option<String>,
    config: Option<ConfigType>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigType {
    media_type: Option<String>,
}

/// A descriptor as the referrers API returns it. `annotation_bytes` is the total of the list so far.
fn descriptor(
    digest: &Digest,
    manifest: &Manifest,
    bytes: &[u8],
    annotation_bytes: &mut usize,
) -> Value {
    let described: Described = serde_json::from_slice(bytes).unwrap_or_default();
    let own = described.artifact_type.filter(|own| !own.is_empty());
    let artifact_type = own.or_else(|| described.config.and_then(|config| config.media_type));
    let mut descriptor = json!({
        "mediaType": manifest.media_type().as_str(),
        "digest": digest.to_string(),
        "size": manifest.size(),
    });
    if let Some(artifact_type) = artifact_type {
        descriptor["artifactType"] = artifact_type.into();
    }
    if let Some(annotations) = described.annotations.filter(|all| !all.is_empty()) {
        let bytes: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
        if *annotation_bytes + bytes <= ANNOTATION_BYTES_MAX {
            *annotation_bytes += bytes;
            descriptor["annotations"] = json!(annotations);
        }
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
