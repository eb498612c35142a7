//! The config of an image: what it states about the image as a whole.

use super::manifest_wire::WireConfig;
use super::timestamp::is_timestamp;

/// The properties that the config of an image states.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// When the image was built.
    pub created: Option<String>,
    /// Its platform as `os/architecture[/variant]`, without control characters.
    pub platform: Option<String>,
}

impl ImageConfig {
    /// Parses a config, as Go clients do. A config that is not a JSON object, such as that of an artifact, states
    /// nothing.
    pub fn parse(bytes: &[u8]) -> ImageConfig {
        let Ok(mut wire) = serde_json::from_slice::<WireConfig>(bytes) else {
            return ImageConfig::default();
        };
        let created = wire.created.take().filter(|created| is_timestamp(created));
        ImageConfig { created, platform: wire.platform() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_states_the_platform_only_with_both_parts() {
        for (config, expected) in [
            (r#"{"os":"linux","architecture":"amd64"}"#, Some("linux/amd64")),
            (r#"{"os":"linux","architecture":"arm","variant":"v7"}"#, Some("linux/arm/v7")),
            (r#"{"OS":"windows","Architecture":"amd64","variant":null}"#, Some("windows/amd64")),
            (r#"{"os":"linux\u001b[2J","architecture":"amd64"}"#, Some(r"linux\u{1b}[2J/amd64")),
            (r#"{"os":"linux"}"#, None),
            (r#"{"architecture":"amd64"}"#, None),
            (r#"{"os":"","architecture":""}"#, None),
            (r#"{"os":7,"architecture":"amd64"}"#, None),
            ("{}", None),
            ("[]", None),
            ("", None),
        ] {
            let platform = ImageConfig::parse(config.as_bytes()).platform;
            assert_eq!(platform.as_deref(), expected, "{config}");
        }
    }

    #[test]
    fn only_timestamps_are_accepted_as_the_creation_time() {
        for (created, is_accepted) in [("2020-01-02T03:04:05Z", true), ("yesterday", false)] {
            let config =
                format!(r#"{{"created":"{created}","os":"linux","architecture":"amd64"}}"#);
            let parsed = ImageConfig::parse(config.as_bytes());
            assert_eq!(parsed.created.is_some(), is_accepted, "{created}");
            assert_eq!(parsed.platform.as_deref(), Some("linux/amd64"));
        }
    }
}
