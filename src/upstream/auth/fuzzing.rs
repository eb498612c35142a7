//! Fuzz targets: Docker's `config.json`, the output of credential helpers, and Amazon's responses.

use super::challenge::Challenge;
use super::credentials::{HelperProgram, Login};
use super::docker_config::{DockerConfig, Found};
use super::helper;
use crate::fuzzing::line;
use crate::oci::{Repository, Upstream};

pub(crate) use super::aws::fuzzing::aws;

/// Input: a line with a registry, a line with a repository, and the file.
pub(crate) fn docker_config(data: &[u8]) {
    let (upstream, rest) = line(data);
    let (repository, file) = line(rest);
    let upstream: Upstream =
        upstream.parse().unwrap_or_else(|_| "docker.io".parse().expect("valid"));
    let repository: Repository =
        repository.parse().unwrap_or_else(|_| "team/app".parse().expect("valid"));
    let Ok(text) = std::str::from_utf8(file) else { return };
    let Ok(config) = serde_json::from_str::<DockerConfig>(text) else { return };
    match config.find(&upstream, &repository) {
        Found::Login(login) => assert_is_hidden(&login),
        // The file chooses a name, not a program.
        Found::Helper(name) => {
            if let Ok(program) = HelperProgram::named(&name) {
                assert!(!program.command().contains('/'), "{}", program.command());
            }
        }
        Found::Nothing => {}
    }
}

/// Input: what a helper printed.
pub(crate) fn credential_helper(data: &[u8]) {
    if let Some(login) = helper::parse(data) {
        assert_is_hidden(&login);
    }
}

/// A challenge as a header that another parser reads in the same way: every value is quoted.
pub(in crate::upstream) fn rendered(challenge: &Challenge) -> String {
    let escaped = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"");
    let pairs = challenge.parameters.iter();
    let pairs: Vec<String> =
        pairs.map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    format!("{} {}", challenge.scheme, pairs.join(", "))
}

/// A login becomes a header, and is never displayed.
pub(super) fn assert_is_hidden(login: &Login) {
    let shown = format!("{login:?}");
    assert!(shown.contains("***"), "{shown}");
    let header = login.header();
    let is_plain =
        |value: &String| value.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    assert!(header.iter().all(is_plain), "a header that cannot be sent");
}
