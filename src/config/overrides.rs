//! Flags of the command line, which override keys of the file.

use std::path::PathBuf;

use super::file::File;
use super::number::{Port, Timeout};
use super::value::{Interface, LogFormat, LogLevel, Text};
use crate::oci::Upstream;

/// The flags that were given.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--config-file`.
    pub config_file: Option<PathBuf>,
    /// `--image-path`.
    pub image_path: Option<PathBuf>,
    /// `--log-level`.
    pub log_level: Option<LogLevel>,
    /// `--log-format`.
    pub log_format: Option<LogFormat>,
    /// `--log-file`.
    pub log_file: Option<PathBuf>,
    /// `--port`.
    pub port: Option<Port>,
    /// `--host`.
    pub host: Option<Interface>,
    /// `--health`.
    pub health: Option<Port>,
    /// `--metrics`.
    pub metrics: Option<Port>,
    /// `--default-ns`.
    pub default_ns: Option<Upstream>,
    /// `--pull-timeout`.
    pub pull_timeout: Option<Timeout>,
    /// `--preload-images`.
    pub preload_images: Option<PathBuf>,
    /// `--os`.
    pub os: Option<String>,
    /// `--arch`.
    pub arch: Option<String>,
    /// `--air-gapped`.
    pub air_gapped: bool,
    /// `--always-pull-latest`.
    pub always_pull_latest: bool,
    /// `--hello-world`.
    pub hello_world: bool,
}

impl Overrides {
    /// Sets the keys for which a flag was given.
    pub(super) fn apply(self, file: &mut File) {
        set(&mut file.image_path, self.image_path);
        set(&mut file.log_level, self.log_level.map(Text));
        set(&mut file.log_format, self.log_format.map(Text));
        set(&mut file.log_file, self.log_file.map(Some));
        set(&mut file.port, self.port);
        set(&mut file.host, self.host.map(Text));
        set(&mut file.health, self.health.map(Some));
        set(&mut file.metrics, self.metrics.map(Some));
        set(&mut file.default_ns, self.default_ns.map(Text).map(Some));
        set(&mut file.pull_timeout, self.pull_timeout.map(Text).map(Some));
        set(&mut file.preload_images, self.preload_images.map(Some));
        set(&mut file.os, self.os.map(Some));
        set(&mut file.arch, self.arch.map(Some));
        file.air_gapped |= self.air_gapped;
        file.always_pull_latest |= self.always_pull_latest;
        file.hello_world |= self.hello_world;
    }
}

fn set<T>(key: &mut T, flag: Option<T>) {
    if let Some(value) = flag {
        *key = value;
    }
}
