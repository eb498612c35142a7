//! How the program under test uses the bucket.

use std::collections::BTreeSet;
use std::sync::Arc;

use larder::cache::UploadSettings;
use larder::upstream::{
    Addressing, Bucket, Endpoint, FixedKeys, KeySettings, ObjectStoreSettings, Scheme, Secret,
    SecretSource, TlsSettings,
};

use super::{ACCESS_KEY, BUCKET, FakeBucket, REGION, SECRET_KEY};
use crate::support::larder::{Larder, Settings, blob, files, manifest, until};
use crate::support::{FakeRegistry, Image};

impl Settings {
    /// Uses this bucket, and uploads to it in parts of 5 MiB.
    pub fn use_bucket(&mut self, bucket: &FakeBucket) {
        let settings = ObjectStoreSettings {
            endpoint: Endpoint::new(Scheme::Http, &bucket.address().to_string()),
            public_endpoint: None,
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

impl FakeBucket {
    /// The entry for it in a configuration file.
    pub fn configuration(&self) -> String {
        let endpoint = self.endpoint();
        format!(
            "objectStore: {{endpoint: '{endpoint}', bucket: {BUCKET}, region: {REGION}, \
             accessKeyId: {ACCESS_KEY}, secretAccessKey: {SECRET_KEY}}}\n"
        )
    }
}

impl Larder {
    /// A cache that has pulled the tag `v1` of a registry, and uploaded it to a bucket.
    #[track_caller]
    pub fn filling(
        bucket: &FakeBucket,
        registry: &FakeRegistry,
        repository: &str,
        image: &Image,
    ) -> Larder {
        let larder = Larder::start_with(registry, |settings| settings.use_bucket(bucket));
        larder.pull_image(repository, "v1", image);
        larder.wait_until_uploaded(bucket);
        larder
    }

    /// Pulls a tag, its configuration and all layers.
    #[track_caller]
    pub fn pull_image(&self, repository: &str, tag: &str, image: &Image) {
        let got = self.get(&manifest(repository, tag));
        assert!(got.status == 200 && got.body == image.manifest(), "{got:?}");
        let config = image.config();
        for content in image.layers().iter().chain([&config]) {
            let got = self.get(&blob(repository, &content.digest));
            assert!(got.status == 200 && got.body == content.bytes, "{got:?}");
        }
    }

    /// The paths of everything published, which are keys.
    pub fn published_keys(&self) -> BTreeSet<String> {
        let root = self.root();
        let names = self.names().into_iter();
        let below = names.map(|path| path.strip_prefix(&root).expect("below the root").to_owned());
        below.map(|path| path.to_str().expect("UTF-8").to_owned()).collect()
    }

    /// Whether nothing waits for its upload.
    pub fn is_queue_empty(&self) -> bool {
        let queue = files(&self.root().join("outgoing"));
        queue.iter().all(|path| path.ends_with("outgoing/seeded"))
    }

    /// Waits until everything that was requested is in the cache, or has failed: a client may have an image before it is
    /// published.
    #[track_caller]
    pub fn wait_until_published(&self) {
        until("the end of all commits", || !self.cache().is_fetching());
    }

    /// Waits until the bucket has everything that is cached, and nothing is queued.
    #[track_caller]
    pub fn wait_until_uploaded(&self, bucket: &FakeBucket) {
        self.wait_until_published();
        until("uploads", || {
            let keys: BTreeSet<String> = bucket.keys().into_iter().collect();
            self.published_keys().is_subset(&keys) && self.is_queue_empty()
        });
    }
}
