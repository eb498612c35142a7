//! Names of images: registry host, repository, tag, reference.
//!
//! Grammars: distribution-spec, "Pulling manifests" (`<name>`, `<reference>`). For the registry host, the reference
//! grammar that container clients share: a domain with an optional port, or an IPv6 literal in brackets.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::digest::{Digest, DigestError};

/// The limit that clients put on the length of host, slash and repository together.
const NAME_CHARS_MAX: usize = 255;
/// How many characters of the hex of a digest a referrers tag contains: distribution-spec.
const REFERRERS_ENCODED_CHARS_MAX: usize = 64;
/// The limit on the length of a tag: distribution-spec.
const TAG_CHARS_MAX: usize = 128;
/// The limit on the length of a domain name: RFC 1035.
const HOST_CHARS_MAX: usize = 253;

/// The key of an upstream registry: its host and port in canonical form.
///
/// The canonical form is lower-case; `index.docker.io` and `registry-1.docker.io` become `docker.io`. `:443` is removed,
/// except from a name without a dot, which references need it to recognise. So a registry has one entry in the cache,
/// however a client spells its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Upstream(Arc<str>);

impl Upstream {
    /// The name that clients use for Docker Hub.
    pub const DOCKER_HUB: &'static str = "docker.io";

    /// Public registries that many clusters use, in canonical form.
    pub const WELL_KNOWN: [&'static str; 9] = [
        "docker.io",
        "gcr.io",
        "ghcr.io",
        "mcr.microsoft.com",
        "nvcr.io",
        "public.ecr.aws",
        "quay.io",
        "registry.gitlab.com",
        "registry.k8s.io",
    ];

    /// Whether it is one of [`Upstream::WELL_KNOWN`]. Those who publish there do not decide what it says.
    pub fn is_well_known(&self) -> bool {
        Self::WELL_KNOWN.contains(&self.as_str())
    }

    /// The canonical text, which is also the directory name under `refs/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host without port and without the brackets of an IPv6 literal.
    pub fn host(&self) -> &str {
        let host = split_port(&self.0).0;
        host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
    }

    /// The port, if the name has one.
    pub fn port(&self) -> Option<u16> {
        split_port(&self.0).1.and_then(|port| port.parse().ok())
    }

    /// Whether this is Docker Hub, the only registry whose short names get `library/`.
    pub fn is_docker_hub(&self) -> bool {
        &*self.0 == Self::DOCKER_HUB
    }

    /// Host and port of the registry's API. Docker Hub's API has a different host name than its images.
    pub fn api_authority(&self) -> &str {
        if self.is_docker_hub() { "registry-1.docker.io" } else { &self.0 }
    }

    /// Whether the first component of a name is a registry host and not part of the repository: it contains `.` or
    /// `:`, or is `localhost`. All container clients use this rule.
    pub fn looks_like_host(component: &str) -> bool {
        component.contains(['.', ':']) || component == "localhost"
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Upstream {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Upstream, NameError> {
        let (host, port) = split_port(text);
        if !is_ipv6_literal(host) && !is_domain(host) {
            return Err(NameError::Host);
        }
        // One to five digits, no sign, no leading zero: each port has one spelling.
        let port = match port {
            None => None,
            Some(digits) => {
                let number: u16 = digits.parse().map_err(|_| NameError::Port)?;
                if number == 0 || number.to_string() != digits {
                    return Err(NameError::Port);
                }
                Some(number)
            }
        };
        let host = match host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            true => Cow::Owned(host.to_ascii_lowercase()),
            false => Cow::Borrowed(host),
        };
        Ok(Upstream(match (&*host, port) {
            ("docker.io" | "index.docker.io" | "registry-1.docker.io", None | Some(443)) => {
                Self::DOCKER_HUB.into()
            }
            (_, None) => host.into(),
            // Without its port, a name without a dot would be a part of a repository in a reference.
            (_, Some(443)) if Self::looks_like_host(&host) => host.into(),
            (_, Some(port)) => format!("{host}:{port}").into(),
        }))
    }
}

/// Splits `host[:port]`; the colons inside an IPv6 literal's brackets belong to the host.
fn split_port(text: &str) -> (&str, Option<&str>) {
    let after_bracket = text.rfind(']').map_or(0, |at| at + 1);
    match text[after_bracket..].rfind(':') {
        Some(at) => (&text[..after_bracket + at], Some(&text[after_bracket + at + 1..])),
        None => (text, None),
    }
}

fn is_ipv6_literal(host: &str) -> bool {
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok())
}

fn is_domain(host: &str) -> bool {
    host.len() <= HOST_CHARS_MAX && host.split('.').all(is_domain_label)
}

fn is_domain_label(label: &str) -> bool {
    !label.is_empty()
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// The path of a repository within its registry, for example `library/alpine`: any number of components.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository(Arc<str>);

impl Repository {
    /// The components joined by `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Repository {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Repository, NameError> {
        if text.len() > NAME_CHARS_MAX {
            return Err(NameError::TooLong);
        }
        match text.split('/').all(is_path_component) {
            true => Ok(Repository(text.into())),
            false => Err(NameError::Repository),
        }
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`: runs of letters and digits with one separator between two.
fn is_path_component(component: &str) -> bool {
    let mut rest = component;
    loop {
        let run =
            rest.bytes().take_while(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        let run = run.count();
        if run == 0 {
            return false;
        }
        rest = &rest[run..];
        let separator = rest.bytes().take_while(|byte| b"._-".contains(byte)).count();
        match &rest[..separator] {
            "" => return rest.is_empty(),
            "." | "_" | "__" => {}
            dashes if dashes.bytes().all(|byte| byte == b'-') => {}
            _ => return false,
        }
        rest = &rest[separator..];
    }
}

/// A tag, for example `3.20`: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

impl Tag {
    /// The suffixes that cosign appends to the dashed digest: for signatures, attestations and SBOMs.
    pub const COSIGN_SUFFIXES: [&str; 3] = [".sig", ".att", ".sbom"];

    /// The tag for the referrers of a digest, for registries without a referrers API. With an empty `suffix`, this is
    /// the tag of the distribution-spec, "Referrers Tag Schema"; with one of cosign's suffixes, it is cosign's tag.
    /// The specification truncates the hex to 64 characters, cosign does not: `None` if the result is too long for a
    /// tag.
    pub fn of_digest(digest: &Digest, suffix: &str) -> Option<Tag> {
        let full = digest.dashed();
        let length = digest.algorithm().as_str().len() + 1 + REFERRERS_ENCODED_CHARS_MAX;
        let base = if suffix.is_empty() { full.get(..length).unwrap_or(&full) } else { &full };
        format!("{base}{suffix}").parse().ok()
    }

    /// The digest whose referrers have this tag, if the tag contains a complete digest.
    pub fn subject(&self) -> Option<Digest> {
        let strip = |suffix: &&str| self.0.strip_suffix(*suffix);
        let base = Self::COSIGN_SUFFIXES.iter().find_map(strip).unwrap_or(&self.0);
        Digest::from_dashed(base)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Tag {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Tag, NameError> {
        let valid = (1..=TAG_CHARS_MAX).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
            && !text.starts_with(['.', '-']);
        if valid { Ok(Tag(text.into())) } else { Err(NameError::Tag) }
    }
}

/// The last component of `/manifests/<reference>`: a tag, which may move, or a digest, which cannot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reference {
    /// A name that the registry can point at another manifest.
    Tag(Tag),
    /// The digest of the manifest itself.
    Digest(Digest),
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Tag(tag) => tag.fmt(f),
            Reference::Digest(digest) => digest.fmt(f),
        }
    }
}

impl FromStr for Reference {
    type Err = NameError;

    /// A text with a colon is a digest, because a tag cannot contain a colon.
    fn from_str(text: &str) -> Result<Reference, NameError> {
        match text.contains(':') {
            true => text.parse().map(Reference::Digest).map_err(NameError::Digest),
            false => text.parse().map(Reference::Tag),
        }
    }
}

/// A repository of an upstream registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageName {
    /// The registry.
    pub upstream: Upstream,
    /// The repository, with `library/` added if Docker Hub requires it.
    pub repository: Repository,
}

impl ImageName {
    /// Joins the two. Adds `library/` to a repository of Docker Hub with only one component; no other registry
    /// has this convention.
    pub fn new(upstream: Upstream, repository: Repository) -> ImageName {
        let repository = match upstream.is_docker_hub() && !repository.as_str().contains('/') {
            true => Repository(format!("library/{repository}").into()),
            false => repository,
        };
        ImageName { upstream, repository }
    }

    /// The full reference: `host/repository:tag` or `host/repository@digest`.
    pub fn with(&self, reference: &Reference) -> String {
        let separator = match reference {
            Reference::Tag(_) => ':',
            Reference::Digest(_) => '@',
        };
        format!("{self}{separator}{reference}")
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.upstream, self.repository)
    }
}

/// Why a text is not a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameError {
    /// The registry host is neither a domain name nor an address.
    Host,
    /// The registry's port is not a number from 1 to 65535.
    Port,
    /// A component of the repository violates the grammar.
    Repository,
    /// The repository is longer than clients support.
    TooLong,
    /// The tag violates the grammar.
    Tag,
    /// The reference contains a colon but is not a digest.
    Digest(DigestError),
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NameError::Host => write!(
                f,
                "a registry must be a host name or an address with an optional port, e.g. quay.io or \
                 registry.local:5000"
            ),
            NameError::Port => write!(f, "the port of a registry must be a number from 1 to 65535"),
            NameError::Repository => write!(
                f,
                "the components of a repository must be lower-case letters and digits, separated by one \
                 of '.', '_', '__' or dashes, and joined by '/'"
            ),
            NameError::TooLong => {
                write!(f, "the name of a repository may have at most {NAME_CHARS_MAX} characters")
            }
            NameError::Tag => write!(
                f,
                "a tag must have 1 to {TAG_CHARS_MAX} letters, digits, '.', '_' and '-', and must not \
                 begin with '.' or '-'"
            ),
            NameError::Digest(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for NameError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            NameError::Digest(error) => Some(error),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_upstreams_have_a_canonical_form() {
        let table = [
            ("docker.io", "docker.io"),
            ("index.docker.io", "docker.io"),
            ("registry-1.docker.io:443", "docker.io"),
            ("DOCKER.IO", "docker.io"),
            ("docker.io:5000", "docker.io:5000"),
            ("REG.Example.COM", "reg.example.com"),
            ("reg.example.com:443", "reg.example.com"),
            ("reg:5000", "reg:5000"),
            ("reg:443", "reg:443"),
            ("localhost:443", "localhost"),
            ("localhost", "localhost"),
            ("localhost:5000", "localhost:5000"),
            ("127.0.0.1:5000", "127.0.0.1:5000"),
            ("169.254.169.254", "169.254.169.254"),
            ("[::1]", "[::1]"),
            ("[::1]:5000", "[::1]:5000"),
            ("[2001:DB8::1]:443", "[2001:db8::1]"),
            ("a-b.c", "a-b.c"),
        ];
        for (text, canonical) in table {
            assert_eq!(text.parse::<Upstream>().unwrap().as_str(), canonical, "{text}");
        }
    }

    #[test]
    fn refused_upstreams() {
        for text in [
            "",
            ".",
            "a..b",
            "-a.b",
            "a-.b",
            "a b",
            "http://x",
            "x/y",
            "user@x",
            "x:",
            "x:0",
            "x:-1",
            "x:+5",
            "x:05",
            "x:65536",
            "x:5000:1",
            "[::1",
            "::1",
            "[::1%eth0]",
            "[]",
            "[::g]",
            "é.io",
            "..",
            "a_b.io",
            "x\0y",
            "x:5000/..",
            "[::1]x",
        ] {
            assert!(text.parse::<Upstream>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn host_and_port_are_separated() {
        let table = [
            ("[::1]:5000", "::1", Some(5000)),
            ("reg:5000", "reg", Some(5000)),
            ("quay.io", "quay.io", None),
            ("[fe80::1]", "fe80::1", None),
        ];
        for (text, host, port) in table {
            let upstream: Upstream = text.parse().unwrap();
            assert_eq!((upstream.host(), upstream.port()), (host, port), "{text}");
        }
    }

    #[test]
    fn accepted_repositories() {
        let ten = ["a"; 10].join("/");
        let long = "a".repeat(255);
        for text in [
            "a",
            "alpine",
            "library/alpine",
            "a/b/c/d",
            &ten,
            "blobs/uploads/manifests/x",
            "tags",
            "a__b",
            "a---b",
            "a.b",
            "a_b",
            "a-b.c_d",
            "0",
            "blobs",
            "manifests",
            "referrers",
            &long,
        ] {
            assert_eq!(text.parse::<Repository>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn refused_repositories() {
        let long = "a".repeat(256);
        for text in [
            "", "/", "a/", "/a", "a//b", "A", "a/B", ".", "..", "a/../b", "a..b", "a___b", "a._b",
            "-a", "a-", "_a", "a_", "a.", "a b", "a%2fb", "a\0", "é", "a:b", &long,
        ] {
            assert!(text.parse::<Repository>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn accepted_and_refused_tags() {
        let longest = "x".repeat(128);
        for text in ["latest", "3.20", "_x", "A", "v1.0-rc_1", &longest] {
            assert!(text.parse::<Tag>().is_ok(), "{text}");
        }
        let too_long = "x".repeat(129);
        for text in ["", ".INVALID_MANIFEST_NAME", "-x", "a/b", "a b", "a:b", "é", "x\n", &too_long]
        {
            assert!(text.parse::<Tag>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_reference_with_a_colon_is_a_digest() {
        let digest = Digest::of(super::super::Algorithm::Sha256, b"");
        assert_eq!(digest.to_string().parse(), Ok(Reference::Digest(digest)));
        assert_eq!("sha256".parse::<Reference>(), Ok(Reference::Tag("sha256".parse().unwrap())));
        assert!(matches!("sha256:bad".parse::<Reference>(), Err(NameError::Digest(_))));
    }

    #[test]
    fn only_docker_hub_gets_library() {
        let name = |upstream: &str, repository: &str| {
            ImageName::new(upstream.parse().unwrap(), repository.parse().unwrap()).to_string()
        };
        assert_eq!(name("index.docker.io", "alpine"), "docker.io/library/alpine");
        assert_eq!(name("docker.io", "bitnami/redis"), "docker.io/bitnami/redis");
        assert_eq!(name("quay.io", "alpine"), "quay.io/alpine");
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics_and_accepted_names_parse_again(text in ".{0,300}") {
            if let Ok(upstream) = text.parse::<Upstream>() {
                proptest::prop_assert_eq!(upstream.as_str().parse(), Ok(upstream.clone()));
                let _ = (upstream.host(), upstream.port());
            }
            let _ = text.parse::<Repository>();
            let _ = text.parse::<Reference>();
        }

        #[test]
        fn the_component_grammar_matches_the_specification(text in "[a-z0-9._-]{0,12}") {
            proptest::prop_assert_eq!(is_path_component(&text), is_component_by_specification(&text), "{}", text);
        }
    }

    /// A slow but obvious implementation of the specification's regular expression: non-empty runs with separators
    /// between them, where each separator is of one of the four kinds.
    fn is_component_by_specification(text: &str) -> bool {
        let runs: Vec<&str> = text.split(['.', '_', '-']).collect();
        let letter = |char: char| char.is_ascii_lowercase() || char.is_ascii_digit();
        if !text.starts_with(letter) || !text.ends_with(letter) || runs.is_empty() {
            return false;
        }
        text.split(letter).filter(|separator| !separator.is_empty()).all(|separator| {
            matches!(separator, "." | "_" | "__") || separator.chars().all(|char| char == '-')
        })
    }

    #[test]
    fn a_digest_has_tags_for_its_referrers() {
        let sha256 = format!("sha256:{}", "a".repeat(64));
        let sha512 = format!("sha512:{}", "b".repeat(128));
        for (digest, suffix, expected) in [
            (&sha256, "", Some(format!("sha256-{}", "a".repeat(64)))),
            (&sha256, ".sig", Some(format!("sha256-{}.sig", "a".repeat(64)))),
            (&sha512, "", Some(format!("sha512-{}", "b".repeat(64)))),
            (&sha512, ".sig", None),
        ] {
            let tag = Tag::of_digest(&digest.parse().unwrap(), suffix);
            assert_eq!(tag.as_ref().map(Tag::as_str), expected.as_deref(), "{digest}{suffix}");
            let is_complete = digest == &sha256;
            let subject = tag.and_then(|tag| tag.subject()).map(|digest| digest.to_string());
            assert_eq!(subject.as_ref(), is_complete.then_some(digest), "{digest}{suffix}");
        }
        for text in ["v1", "sha256-abc", "latest.sig"] {
            assert_eq!(text.parse::<Tag>().unwrap().subject(), None, "{text}");
        }
    }
}
