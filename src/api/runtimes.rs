//! Recognizes container runtimes by their `User-Agent`.
//!
//! A runtime sends HEAD for an image that it runs. Registries' clients that inspect, copy or scan images (crane, skopeo,
//! regctl, update checkers) send HEAD for images that nobody may run.

use crate::http::Request;
use crate::oci::Platform;

/// The product names of runtimes and of builders, which need their base images as nodes need theirs. k3s and RKE2 use
/// containerd's.
const RUNTIMES: [&str; 9] =
    ["containerd", "cri-o", "docker", "moby", "podman", "libpod", "nerdctl", "buildkit", "buildah"];

/// What a client reports about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Agent {
    /// Whether it is a container runtime.
    pub(super) is_runtime: bool,
    /// The platform of its node.
    pub(super) platform: Option<Platform>,
}

impl Agent {
    pub(super) fn of(request: &Request) -> Agent {
        Agent::parse(request.header("user-agent").unwrap_or_default())
    }

    /// Parses `product/version …` (RFC 9110, section 10.1.5). Docker and CRI-O add `os/linux arch/amd64`.
    fn parse(user_agent: &str) -> Agent {
        let products = || user_agent.split_ascii_whitespace().filter_map(|it| it.split_once('/'));
        let version_of = |name: &str| {
            products().find(|(product, _)| product.eq_ignore_ascii_case(name)).map(|(_, it)| it)
        };
        let first = products().next().map(|(product, _)| product).unwrap_or_default();
        let platform = version_of("os")
            .zip(version_of("arch"))
            .and_then(|(os, architecture)| format!("{os}/{architecture}").parse().ok());
        Agent {
            is_runtime: user_agent.starts_with(first)
                && RUNTIMES.iter().any(|runtime| runtime.eq_ignore_ascii_case(first)),
            platform,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtimes_and_other_clients() {
        for agent in [
            "containerd/v2.2.9",
            "containerd/1.6.20~ds1",
            "containerd/v1.7.23-k3s2",
            "cri-o/1.30.0 go/go1.22.0 os/linux arch/amd64",
            "docker/24.0.7 go/go1.20.10 git-commit/311b9ff kernel/6.1.0 os/linux arch/arm64 \
             UpstreamClient(Docker-Client/24.0.7 \\(linux\\))",
            "libpod/4.3.1",
            "buildkit/v0.12",
            "Buildah/1.28.2",
        ] {
            assert!(Agent::parse(agent).is_runtime, "{agent}");
        }
        for agent in [
            "",
            "containerd",
            "(containerd/1.7)",
            "curl/8.0 containerd/1.7",
            "go-containerregistry/v0.20.2",
            "crane/v0.20.2 go-containerregistry/v0.20.2",
            "skopeo/1.9.3",
            "containers/5.29.2 (github.com/containers/image)",
            "Docker-Client/24.0.7 (linux)",
            "regclient/regctl (v0.8.0)",
            "Watchtower (Docker)",
            "renovate/39 (https://github.com/renovatebot/renovate)",
            "trivy/0.58",
            "diun/4.28.0 go/1.22 Linux",
        ] {
            assert!(!Agent::parse(agent).is_runtime, "{agent}");
        }
    }

    #[test]
    fn platforms_of_nodes() {
        for (agent, platform) in [
            ("cri-o/1.30.0 go/go1.22.0 os/linux arch/amd64", Some("linux/amd64")),
            ("docker/24 os/windows arch/amd64", Some("windows/amd64")),
            ("docker/24 arch/arm64", None),
            ("docker/24 os/linux arch/a:b", None),
            ("containerd/v2.2.9", None),
        ] {
            let parsed = Agent::parse(agent).platform.map(|platform| platform.to_string());
            assert_eq!(parsed.as_deref(), platform, "{agent}");
        }
    }
}
