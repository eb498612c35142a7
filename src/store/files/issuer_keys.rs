//! The last public keys of each issuer of tokens, so that its tokens can be verified after a restart while it cannot be
//! reached. One small file for each issuer, in the directory of the grants. Whoever can write it can let in anyone, which is
//! why the directory belongs to the server alone.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::record::Access;
use crate::oci::{Algorithm, Digest};
use crate::store::{Store, StoreError};

#[derive(Serialize, Deserialize)]
struct Record {
    issuer: String,
    /// A JSON Web Key Set.
    keys: Value,
}

impl Store {
    /// The key set of an issuer, as JSON. `None` also if it cannot be read.
    pub fn issuer_keys(&self, issuer: &str) -> Option<Vec<u8>> {
        let path = self.inner.layout.issuer_keys(&hash(issuer));
        let record: Record = self.record(&path, Access::Look)?;
        (record.issuer == issuer).then(|| record.keys.to_string().into_bytes())
    }

    /// Stores the key set of an issuer, if it has changed. `keys` is JSON.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be written.
    pub fn put_issuer_keys(&self, issuer: &str, keys: &[u8]) -> Result<(), StoreError> {
        // It was parsed before; anything else is stored as a set that is refused when it is read.
        let keys: Value = serde_json::from_slice(keys).unwrap_or_default();
        if self.issuer_keys(issuer).is_some_and(|stored| stored == keys.to_string().as_bytes()) {
            return Ok(());
        }
        self.prepare_grants()?;
        let record = Record { issuer: issuer.to_owned(), keys };
        self.put_record(&self.inner.layout.issuer_keys(&hash(issuer)), &record)
    }
}

/// The name of the file: an issuer is a URL.
fn hash(issuer: &str) -> String {
    Digest::of(Algorithm::Sha256, issuer.as_bytes()).hex()
}

#[cfg(test)]
mod tests {
    use crate::store::Settings;

    use super::*;

    #[test]
    fn keys_of_issuers_survive_a_restart_and_are_not_grants() {
        let directory = tempfile::tempdir().unwrap();
        let open =
            || Store::open(&Settings { root: directory.path().to_owned(), fsync: false }).unwrap();
        let (one, other) = ("https://one.example", "https://other.example");
        assert_eq!(open().issuer_keys(one), None);
        for keys in [r#"{"keys":[1]}"#, r#"{"keys":[2]}"#, r#"{"keys":[2]}"#] {
            open().put_issuer_keys(one, keys.as_bytes()).unwrap();
            assert_eq!(open().issuer_keys(one).as_deref(), Some(keys.as_bytes()));
        }
        assert_eq!(open().issuer_keys(other), None);
        assert!(open().grants().unwrap().is_empty());
    }
}
