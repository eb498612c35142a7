//! The settings with which the program under test uses the bucket.

use std::sync::Arc;

use larder::cache::UploadSettings;
use larder::upstream::{
    Addressing, Bucket, Endpoint, FixedKeys, KeySettings, ObjectStoreSettings, Scheme, Secret,
    SecretSource, TlsSettings,
};

use super::{ACCESS_KEY, BUCKET, FakeBucket, REGION, SECRET_KEY};
use crate::support::larder::Settings;

impl Settings {
    /// Uses this bucket, and uploads to it in parts of 5 MiB.
    pub fn use_bucket(&mut self, bucket: &FakeBucket) {
        let settings = ObjectStoreSettings {
            endpoint: Endpoint::new(Scheme::Http, &bucket.address().to_string()),
            bucket: BUCKET.into(),
            prefix: String::new(),
            region: REGION.into(),
            addressing: Addressing::Path,
            tls: TlsSettings::default(),
            keys: KeySettings {
                fixed: Some(FixedKeys {
                    id: ACCESS_KEY.into(),
                    secret: SecretSource::Literal(Secret::new(SECRET_KEY)),
                    session_token: None,
                }),
                ..KeySettings::default()
            },
            part_bytes: 5 << 20,
        };
        self.upstream.bucket = Some(Bucket::new(&settings, &Arc::default()));
        self.uploads = Some(UploadSettings { is_read_only: false, threads: 2, rate: None });
    }
}
