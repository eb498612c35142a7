//! What the configs of an image state: when it was built, and for which platform.

use crate::oci::{Descriptor, ImageConfig, ImageDetails, ManifestKind};
use crate::store::Store;
use crate::store::names::images::Graph;

/// The largest config that is read, in bytes. Real ones have some kilobytes.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;
/// The number of configs that are read for an image. An image without an index has one. Several are needed only
/// for an index that states no platforms, which is rare and small.
const CONFIGS_MAX: usize = 16;

impl Store {
    /// Reads the configs of an image: adds the platforms that no index states to its graph, and returns when the
    /// image was built, according to the first config that states it. Content that is absent or damaged states
    /// nothing.
    pub fn read_configs(&self, graph: &mut Graph) -> Option<String> {
        let mut created = None;
        let mut is_first = true;
        let mut left = CONFIGS_MAX;
        for each in &mut graph.manifests {
            let Some(manifest) = &each.manifest else { continue };
            let ManifestKind::Image { config: Some(config), .. } = manifest.kind() else {
                continue;
            };
            let has_platform =
                each.descriptor.platform.is_some() || each.descriptor.attests.is_some();
            if left == 0 || (has_platform && !is_first) {
                continue;
            }
            (is_first, left) = (false, left - 1);
            let stated = self.read_config(config).unwrap_or_default();
            created = created.or(stated.created);
            if !has_platform {
                each.descriptor.platform = stated.platform;
            }
        }
        created
    }

    fn read_config(&self, config: &Descriptor) -> Option<ImageConfig> {
        Some(ImageConfig::parse(&self.config(config)?))
    }

    /// What a config tells people; `None` if it is absent, damaged or too large.
    pub fn image_details(&self, config: &Descriptor) -> Option<ImageDetails> {
        Some(ImageDetails::parse(&self.config(config)?))
    }

    fn config(&self, config: &Descriptor) -> Option<Vec<u8>> {
        let size = self.blob(&config.digest, config.known_size())?.size;
        (size <= CONFIG_BYTES_MAX).then(|| self.read(&config.digest, size))?
    }
}
