//! The location of an endpoint: scheme, authority and API path; and the ports of unlisted registries.

use crate::oci::Upstream;

pub(in crate::upstream) const HTTPS_PORT: u16 = 443;

/// Where a registry's API is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `https` unless the configuration says otherwise.
    pub scheme: Scheme,
    /// `host[:port]`.
    pub authority: String,
    /// What precedes the repository in every URL.
    pub api: ApiPath,
}

/// The path of a registry's API, below which its repositories are: `/v2`, or a longer one if one host serves several
/// registries by path, e.g. `/v2/hub-cache` or `/artifactory/api/docker/hub/v2`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiPath(String);

impl ApiPath {
    /// Parses the path of a URL and removes the trailing slash. If none of its segments is `v2`, `/v2` is appended, as
    /// containerd does; otherwise the path is used unchanged (containerd's `override_path`). `None` if a segment is
    /// empty or contains anything but letters, digits, and `-._~`.
    pub fn parse(path: &str) -> Option<ApiPath> {
        let trimmed = path.strip_suffix('/').unwrap_or(path);
        if trimmed.is_empty() {
            return Some(ApiPath::default());
        }
        let is_legal = |segment: &str| {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
            !matches!(segment, "" | "." | "..") && segment.bytes().all(is_plain)
        };
        let segments: Vec<&str> = trimmed.strip_prefix('/')?.split('/').collect();
        let is_complete = segments.contains(&"v2");
        segments.iter().all(|segment| is_legal(segment)).then(|| {
            ApiPath(if is_complete { trimmed.to_owned() } else { format!("{trimmed}/v2") })
        })
    }

    /// The path, with a leading and without a trailing slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The prefix of repository names in the scope of a token: `hub-cache/` for `/v2/hub-cache`.
    pub(in crate::upstream) fn repository_prefix(&self) -> String {
        match self.0.rsplit_once("/v2/") {
            Some((_, prefix)) => format!("{prefix}/"),
            None => String::new(),
        }
    }
}

impl Default for ApiPath {
    fn default() -> ApiPath {
        ApiPath("/v2".to_owned())
    }
}

/// The scheme of an endpoint's URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

impl Endpoint {
    /// The default endpoint of a registry: its own name. Docker Hub's API has another host than its image names.
    pub fn of(upstream: &Upstream, scheme: Scheme) -> Endpoint {
        Endpoint::new(scheme, upstream.api_authority())
    }

    /// An endpoint whose API is at `/v2`.
    pub fn new(scheme: Scheme, authority: &str) -> Endpoint {
        Endpoint { scheme, authority: authority.to_owned(), api: ApiPath::default() }
    }

    /// Its URL, with the path of its API if that is not `/v2`.
    pub fn url(&self) -> String {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        let path = if self.api == ApiPath::default() { "" } else { self.api.as_str() };
        format!("{scheme}://{}{path}", self.authority)
    }

    /// The registry name under which credential files and helpers know the endpoint: its own host, whatever the
    /// registry is called in the configuration.
    pub fn identity(&self, name: &Upstream) -> Upstream {
        self.authority.parse().unwrap_or_else(|_| name.clone())
    }
}

/// The ports at which unlisted registries, and the hosts of their redirects and token realms, may be contacted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnlistedPorts(Vec<u16>);

impl UnlistedPorts {
    /// Creates the set; duplicates are dropped.
    pub fn new(ports: impl IntoIterator<Item = u16>) -> UnlistedPorts {
        let mut ports: Vec<u16> = ports.into_iter().collect();
        ports.sort_unstable();
        ports.dedup();
        UnlistedPorts(ports)
    }

    /// Whether the set contains a port.
    pub fn allows(&self, port: u16) -> bool {
        self.0.binary_search(&port).is_ok()
    }

    /// The ports in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        self.0.iter().copied()
    }
}

/// HTTPS only: other ports of a public host may be any service, and Larder must not become a port scanner.
impl Default for UnlistedPorts {
    fn default() -> UnlistedPorts {
        UnlistedPorts(vec![HTTPS_PORT])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_hub_api_has_another_host() {
        let hub: Upstream = "index.docker.io".parse().unwrap();
        assert_eq!(Endpoint::of(&hub, Scheme::Https).authority, "registry-1.docker.io");
    }

    #[test]
    fn api_paths() {
        for (path, api, prefix) in [
            ("", Some("/v2"), ""),
            ("/", Some("/v2"), ""),
            ("/v2", Some("/v2"), ""),
            ("/v2/", Some("/v2"), ""),
            ("/v2/hub-cache", Some("/v2/hub-cache"), "hub-cache/"),
            ("/v2/a/b/", Some("/v2/a/b"), "a/b/"),
            ("/artifactory/api/docker/x", Some("/artifactory/api/docker/x/v2"), ""),
            ("/artifactory/api/docker/x/v2", Some("/artifactory/api/docker/x/v2"), ""),
            ("/a//b", None, ""),
            ("/../v2", None, ""),
            ("/a?b", None, ""),
            ("/a%2Fb", None, ""),
            ("v2", None, ""),
        ] {
            let parsed = ApiPath::parse(path);
            assert_eq!(parsed.as_ref().map(ApiPath::as_str), api, "{path}");
            let found = parsed.map(|api| api.repository_prefix()).unwrap_or_default();
            assert_eq!(found, prefix, "{path}");
        }
    }
}
