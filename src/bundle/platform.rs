//! Platforms as people type them, compared with what indexes say: image-spec, image-index.md.

use std::fmt;
use std::str::FromStr;

/// `os/architecture[/variant]`, e.g. `linux/arm64`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Platform {
    /// Whether that is the platform of an index's child. Without a variant any is meant.
    pub fn is(&self, told: &str) -> bool {
        told.parse::<Platform>().is_ok_and(|told| {
            (&told.os, &told.architecture) == (&self.os, &self.architecture)
                && (self.variant.is_none() || self.variant == told.variant)
        })
    }
}

impl FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> Result<Platform, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => ("", "", None),
        };
        if [Some(os), Some(architecture), variant].into_iter().flatten().any(str::is_empty) {
            return Err(format!(
                "{text:?} is no platform: os/architecture[/variant], e.g. linux/arm64"
            ));
        }
        let architecture = match architecture {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        // There is no other 64-bit ARM in use, and most indexes do not say it.
        let variant = variant.filter(|variant| (architecture, *variant) != ("arm64", "v8"));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_told_apart() {
        for (asked, told, expected) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/amd64", "linux/arm64", false),
            ("linux/amd64", "windows/amd64", false),
            ("linux/x86_64", "linux/amd64", true),
            ("linux/arm64", "linux/arm64/v8", true),
            ("linux/arm64/v8", "linux/arm64", true),
            ("linux/arm", "linux/arm/v7", true),
            ("linux/arm/v7", "linux/arm/v6", false),
            ("linux/amd64", "unknown/unknown", false),
        ] {
            let platform: Platform = asked.parse().unwrap();
            assert_eq!(platform.is(told), expected, "{asked} {told}");
        }
        for text in ["", "linux", "linux/", "/amd64", "linux/amd64/", "a/b/c/d"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }
}
