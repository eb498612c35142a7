//! Platforms: selects children of an index.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use super::digest::Digest;
use super::manifest::Descriptor;
use super::quoted::quoted;

/// The versions of 32-bit ARM for which images exist.
const ARM_OLDEST: u8 = 5;
const ARM_NEWEST: u8 = 8;

/// A platform in the form `os/architecture[/variant]`, for example `linux/arm64`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// A selection of children of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Platforms {
    /// All children.
    All,
    /// The children for these platforms.
    Only(Vec<Platform>),
}

impl Platform {
    /// Linux on the processor that this program runs on.
    pub fn of_this_machine() -> Platform {
        let architecture = if cfg!(target_arch = "x86_64") {
            "amd64"
        } else if cfg!(target_arch = "aarch64") {
            "arm64"
        } else if cfg!(target_arch = "x86") {
            "386"
        } else if cfg!(target_arch = "arm") {
            "arm"
        } else if cfg!(target_arch = "powerpc64") {
            "ppc64le"
        } else if cfg!(target_arch = "riscv64") {
            "riscv64"
        } else if cfg!(target_arch = "s390x") {
            "s390x"
        } else {
            "amd64"
        };
        Platform { os: "linux".into(), architecture: architecture.into(), variant: None }
    }

    /// The operating system.
    pub fn os(&self) -> &str {
        &self.os
    }

    /// The processor architecture.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Whether the platform of a child of an index is this one. A platform without a variant includes all variants.
    pub fn is(&self, listed: &str) -> bool {
        listed.parse::<Platform>().is_ok_and(|listed| {
            (&listed.os, &listed.architecture) == (&self.os, &self.architecture)
                && (self.variant.is_none() || self.variant == listed.variant)
        })
    }

    /// Whether an image for the listed platform runs on this one: the image is for this platform, or for another one
    /// that its processors support.
    pub fn runs(&self, listed: &str) -> bool {
        self.is(listed) || self.substitutes().iter().any(|each| each.is(listed))
    }

    /// The other platforms that its processors support, the best first, as in containerd (`platforms.Only`).
    fn substitutes(&self) -> Vec<Platform> {
        let arm = |newest: u8| {
            let older = (ARM_OLDEST..=newest).rev();
            older.map(|version| ("arm", Some(format!("v{version}")))).collect::<Vec<_>>()
        };
        let version =
            self.variant.as_ref().and_then(|variant| variant.strip_prefix('v')?.parse().ok());
        let substitutes = match (self.architecture.as_str(), version) {
            ("amd64", _) => vec![("386", None)],
            ("arm64", _) => arm(ARM_NEWEST),
            ("arm", Some(version)) => arm(ARM_NEWEST.min(version).saturating_sub(1)),
            _ => Vec::new(),
        };
        let platform = |(architecture, variant): (&str, Option<String>)| Platform {
            os: self.os.clone(),
            architecture: architecture.to_owned(),
            variant,
        };
        substitutes.into_iter().map(platform).collect()
    }

    /// The platform to select from an index: this one if the index lists it, otherwise the best substitute that the
    /// index lists.
    fn best_in(&self, index: &[Descriptor]) -> Platform {
        let has = |platform: &Platform| {
            index
                .iter()
                .any(|child| child.platform.as_ref().is_some_and(|listed| platform.is(listed)))
        };
        let substitute = || self.substitutes().into_iter().find(has);
        if has(self) { self.clone() } else { substitute().unwrap_or_else(|| self.clone()) }
    }
}

impl Platforms {
    /// No children.
    pub const NONE: Platforms = Platforms::Only(Vec::new());

    /// Whether no child is selected.
    pub fn is_none(&self) -> bool {
        *self == Platforms::NONE
    }

    /// The selected children of an index, in their order. The rules are those of containerd: a child without a
    /// platform (an artifact, an index within an index) matches every platform. If a platform is absent, the best
    /// platform that its processors support is selected instead (`linux/arm/v6` for `linux/arm/v7`). An attestation
    /// is selected together with the manifest that it attests.
    pub fn select<'a>(&self, children: &'a [Descriptor]) -> Vec<&'a Descriptor> {
        let platforms = match self {
            Platforms::All => return children.iter().collect(),
            Platforms::Only(platforms) if platforms.is_empty() => return Vec::new(),
            Platforms::Only(platforms) => platforms,
        };
        let platforms: Vec<Platform> =
            platforms.iter().map(|each| each.best_in(children)).collect();
        let matches = |child: &Descriptor| match &child.platform {
            Some(listed) => platforms.iter().any(|platform| platform.is(listed)),
            None => true,
        };
        let matching: HashSet<Digest> =
            children.iter().filter(|child| matches(child)).map(|child| child.digest).collect();
        let is_selected = |child: &&Descriptor| {
            matching.contains(&child.digest)
                || child.attests.is_some_and(|attested| matching.contains(&attested))
        };
        children.iter().filter(is_selected).collect()
    }

    /// Parses `all`, or platforms.
    ///
    /// # Errors
    /// The first text that is not a platform.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Platforms, PlatformError> {
        let texts: Vec<&str> = texts.into_iter().collect();
        if texts.contains(&"all") {
            return Ok(Platforms::All);
        }
        texts.into_iter().map(str::parse).collect::<Result<_, _>>().map(Platforms::Only)
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Platform, PlatformError> {
        let refuse = || PlatformError(quoted(text));
        // As containerd normalizes platforms.
        let lower = text.to_ascii_lowercase();
        let parts: Vec<&str> = lower.split('/').collect();
        let is_part = |part: &&str| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        if !parts.iter().all(is_part) {
            return Err(refuse());
        }
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => return Err(refuse()),
        };
        let architecture = match architecture {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            "i386" => "386",
            other => other,
        };
        // No other 64-bit ARM is in use, and most indexes omit the variant.
        let variant =
            variant.filter(|variant| !matches!((architecture, *variant), ("arm64", "v8" | "8")));
        Ok(Platform {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// A text that is not a platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlatformError(String);

impl fmt::Display for PlatformError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} is not a platform: must be os/architecture[/variant], e.g. linux/amd64, or all",
            self.0
        )
    }
}

impl std::error::Error for PlatformError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn child(platform: Option<&str>) -> Descriptor {
        let digest = Digest::of(Algorithm::Sha256, platform.unwrap_or_default().as_bytes());
        Descriptor { platform: platform.map(str::to_owned), ..Descriptor::new(digest, 1) }
    }

    #[test]
    fn platforms_include_their_variants_and_substitutes() {
        for (wanted, platform, expected) in [
            (&["linux/amd64"][..], Some("linux/amd64"), true),
            (&["linux/arm64"], Some("linux/arm64/v8"), true),
            (&["linux/arm/v7"], Some("linux/arm/v6"), true),
            (&["linux/arm/v6"], Some("linux/arm/v7"), false),
            (&["linux/amd64"], Some("linux/386"), true),
            (&["linux/386"], Some("linux/amd64"), false),
            (&["linux/arm64"], Some("linux/arm/v7"), true),
            (&["windows/amd64"], Some("linux/386"), false),
            (&["linux/arm"], Some("linux/arm64"), false),
            (&["linux/arm64/v8"], Some("linux/arm64"), true),
            (&["linux/x86_64"], Some("linux/amd64"), true),
            (&["linux/amd64"], Some("Linux/AMD64"), true),
            (&["linux/386"], Some("linux/i386"), true),
            (&["linux/amd64"], Some("unknown/unknown"), false),
            (&["linux/amd64", "windows/amd64"], Some("windows/amd64"), true),
            (&["linux/amd64"], None, true),
            (&["all"], None, true),
            (&["linux/amd64", "all"], Some("plan9/386"), true),
            (&[], Some("linux/amd64"), false),
            (&[], None, false),
        ] {
            let platforms = Platforms::parse(wanted.iter().copied()).unwrap();
            let children = [child(platform)];
            assert_eq!(platforms.select(&children).len() == 1, expected, "{wanted:?} {platform:?}");
        }
        for text in ["", "linux", "linux/", "a/b/c/d", "linux/amd 64"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_attestation_is_selected_with_its_manifest() {
        let (amd64, arm64) = (child(Some("linux/amd64")), child(Some("linux/arm64")));
        let attestation = |of: &Descriptor, number: u8| Descriptor {
            platform: Some("unknown/unknown".to_owned()),
            attests: Some(of.digest),
            ..Descriptor::new(Digest::of(Algorithm::Sha256, &[number]), 1)
        };
        let index = [amd64.clone(), attestation(&amd64, 1), attestation(&arm64, 2), arm64.clone()];
        let select = |wanted: &[&str]| {
            let platforms = Platforms::parse(wanted.iter().copied()).unwrap();
            let selected = platforms.select(&index).into_iter();
            selected
                .map(|each| index.iter().position(|child| child == each).unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(select(&["linux/amd64"]), [0, 1]);
        assert_eq!(select(&["linux/arm64"]), [2, 3]);
        assert_eq!(select(&["linux/s390x"]), [0; 0]);
        assert_eq!(select(&["all"]), [0, 1, 2, 3]);
    }

    #[test]
    fn the_best_platform_of_an_index_is_selected() {
        let index = ["linux/386", "linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "linux/arm64"];
        let index: Vec<Descriptor> = index.into_iter().map(|listed| child(Some(listed))).collect();
        for (wanted, without, expected) in [
            ("linux/arm/v7", "", &["linux/arm/v7"][..]),
            ("linux/arm/v7", "linux/arm/v7", &["linux/arm/v6"]),
            ("linux/arm64", "", &["linux/arm64"]),
            ("linux/arm64", "linux/arm64", &["linux/arm/v7"]),
            ("linux/amd64", "", &["linux/386"]),
            ("linux/arm/v5", "linux/arm/v5", &[]),
        ] {
            let mut children = index.clone();
            children.retain(|each| each.platform.as_deref() != Some(without));
            let selected = Platforms::parse([wanted]).unwrap();
            let selected = selected.select(&children).into_iter();
            let platforms: Vec<&str> =
                selected.filter_map(|each| each.platform.as_deref()).collect();
            assert_eq!(platforms, expected, "{wanted} without {without}");
        }
    }
}
