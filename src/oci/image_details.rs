//! What the config of an image tells people about it: how it starts, and its labels. Nothing depends on it.
//!
//! Environment variables are left out, because some builds leave passwords in them.

use std::collections::BTreeMap;

use serde_json::Value;

use super::quoted_up_to;
use super::timestamp::is_timestamp;

/// The maximum number of labels, words and ports that are kept, and of the characters of each.
const ENTRIES_MAX: usize = 64;
const CHARS_MAX: usize = 1000;

/// See the description of the module. Texts have no control characters. What a config does not state is absent or empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageDetails {
    /// When it was built.
    pub created: Option<String>,
    /// `os/architecture[/variant]`.
    pub platform: Option<String>,
    /// The program that is started.
    pub entrypoint: Vec<String>,
    /// The command, or the arguments of the entrypoint.
    pub command: Vec<String>,
    /// The user that it is started as.
    pub user: Option<String>,
    /// The directory that it is started in.
    pub working_directory: Option<String>,
    /// The ports that it listens on, such as `80/tcp`.
    pub ports: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

impl ImageDetails {
    /// Parses a config. Parts with an unexpected type are skipped.
    pub fn parse(bytes: &[u8]) -> ImageDetails {
        let Ok(wire) = serde_json::from_slice::<Value>(bytes) else {
            return ImageDetails::default();
        };
        let run = &wire["config"];
        let parts = ["os", "architecture", "variant"].map(|key| text(&wire[key]));
        let platform = match parts {
            [Some(os), Some(architecture), variant] => {
                let all = [Some(os), Some(architecture), variant];
                Some(all.into_iter().flatten().collect::<Vec<_>>().join("/"))
            }
            _ => None,
        };
        let labels = run["Labels"].as_object().into_iter().flatten();
        let labels = labels.filter_map(|(key, value)| Some((up_to(key), text(value)?)));
        let ports = run["ExposedPorts"].as_object().into_iter().flatten();
        ImageDetails {
            created: text(&wire["created"]).filter(|created| is_timestamp(created)),
            platform,
            entrypoint: texts(&run["Entrypoint"]),
            command: texts(&run["Cmd"]),
            user: text(&run["User"]),
            working_directory: text(&run["WorkingDir"]),
            ports: ports.take(ENTRIES_MAX).map(|(port, _)| up_to(port)).collect(),
            labels: labels.take(ENTRIES_MAX).collect(),
        }
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(up_to)
}

fn texts(value: &Value) -> Vec<String> {
    let all = value.as_array().into_iter().flatten();
    all.filter_map(Value::as_str).take(ENTRIES_MAX).map(up_to).collect()
}

fn up_to(text: &str) -> String {
    quoted_up_to(CHARS_MAX, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_tells_how_the_image_starts_and_not_its_environment() {
        let config = br#"{"created":"2026-01-02T03:04:05Z","os":"linux","architecture":"arm","variant":"v7","config":{
            "Entrypoint":["/app"],"Cmd":["--port","80"],"User":"65532","WorkingDir":"/srv","Env":["PASSWORD=s3cret"],
            "ExposedPorts":{"80/tcp":{}},"Labels":{"org.opencontainers.image.source":"https://example.org","n":7}}}"#;
        let details = ImageDetails::parse(config);
        assert_eq!(details.platform.as_deref(), Some("linux/arm/v7"));
        assert_eq!((details.entrypoint, details.command.len()), (vec!["/app".to_owned()], 2));
        assert_eq!((details.ports, details.labels.len()), (vec!["80/tcp".to_owned()], 1));
        assert!(!format!("{:?}", ImageDetails::parse(config)).contains("s3cret"));
    }

    #[test]
    fn other_content_tells_nothing_and_long_content_is_cut() {
        for config in ["", "[]", "{}", r#"{"config":7,"created":7}"#, r#"{"config":{"Cmd":"sh"}}"#]
        {
            assert_eq!(ImageDetails::parse(config.as_bytes()), ImageDetails::default(), "{config}");
        }
        let words = vec!["x".repeat(5000); 500];
        let config = serde_json::json!({ "config": { "Cmd": words } }).to_string();
        let command = ImageDetails::parse(config.as_bytes()).command;
        assert_eq!((command.len(), command[0].chars().count()), (ENTRIES_MAX, CHARS_MAX + 1));
    }
}
