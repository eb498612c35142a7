//! Parses the target of a request, and determines its upstream.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use crate::cache::ListQuestion;
use crate::http::{Method, Request};
use crate::oci::{Digest, DigestError, ImageName, NameError, Reference, Repository, Upstream};

/// The target of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `/v2/`: this server itself.
    Ping,
    /// An upstream's content.
    Content(Route, Addressing),
}

/// The requested content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `/v2/<name>/manifests/<reference>`.
    Manifest {
        /// Registry and repository.
        name: ImageName,
        /// Tag or digest.
        reference: Reference,
    },
    /// `/v2/<name>/blobs/<digest>`.
    Blob {
        /// Registry and repository.
        name: ImageName,
        /// The blob.
        digest: Digest,
    },
    /// `/v2/<name>/tags/list` or `/v2/<name>/referrers/<digest>`.
    List {
        /// Registry and repository.
        name: ImageName,
        /// Which list.
        question: ListQuestion,
    },
}

impl Route {
    /// Registry and repository.
    pub fn name(&self) -> &ImageName {
        let (Route::Manifest { name, .. } | Route::Blob { name, .. } | Route::List { name, .. }) =
            self;
        name
    }
}

/// How a request named its upstream, as far as the answer depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addressing {
    /// The upstream.
    pub upstream: Upstream,
    /// The namespace from `?ns=` or a header, which the answer confirms.
    pub namespace: Option<Upstream>,
}

/// The rules by which a request names its upstream: `?ns=`, then the `OCI-Namespace` or `X-Registry`
/// header, then a first path component that looks like a host or is an alias, then the default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Naming {
    /// `defaultNs`.
    pub default_upstream: Option<Upstream>,
    /// `registries[].aliases`, lower-case.
    pub aliases: HashMap<String, Upstream>,
}

impl Naming {
    /// The aliases of a registry, sorted.
    pub fn aliases_of(&self, upstream: &Upstream) -> Vec<&str> {
        let matching = self.aliases.iter().filter(|(_, target)| *target == upstream);
        let mut aliases: Vec<&str> = matching.map(|(alias, _)| alias.as_str()).collect();
        aliases.sort_unstable();
        aliases
    }

    /// Replaces an alias at the beginning of a reference or a pattern by the registry's name: with the alias
    /// `hub`, `hub/library/alpine:3` becomes `docker.io/library/alpine:3`.
    pub fn expand(&self, text: &str) -> String {
        let expanded = text.split_once('/').and_then(|(first, rest)| {
            let upstream = self.alias(first)?;
            Some(format!("{upstream}/{rest}"))
        });
        expanded.unwrap_or_else(|| text.to_owned())
    }

    /// The target of a request.
    ///
    /// # Errors
    /// [`RouteError`], which `status.rs` maps to a response.
    pub fn target(&self, request: &Request) -> Result<Target, RouteError> {
        let headers = ["OCI-Namespace", "X-Registry"];
        let header = headers.into_iter().find_map(|name| request.header(name));
        self.parse(request.method(), request.path(), request.query().unwrap_or_default(), header)
    }

    fn parse(
        &self,
        method: Method,
        path: &str,
        query: &str,
        header: Option<&str>,
    ) -> Result<Target, RouteError> {
        let Some(rest) = path.strip_prefix("/v2") else { return Err(RouteError::NotFound) };
        if !rest.is_empty() && !rest.starts_with('/') {
            return Err(RouteError::NotFound);
        }
        if !matches!(method, Method::Get | Method::Head) {
            return Err(RouteError::Method);
        }
        let rest = rest.strip_prefix('/').unwrap_or_default();
        if rest.is_empty() {
            return Ok(Target::Ping);
        }
        let segments = decode_segments(rest)?;
        let (name, endpoint) = split(&segments)?;
        let namespace = self.namespace(query, header)?;
        let (name, namespace) = self.resolve(name, namespace)?;
        let addressing = Addressing { upstream: name.upstream.clone(), namespace };
        Ok(Target::Content(endpoint.into_route(name, query)?, addressing))
    }

    /// The upstream that the client names outside of the path.
    fn namespace(&self, query: &str, header: Option<&str>) -> Result<Option<Upstream>, RouteError> {
        let mut given: Option<Cow<'_, str>> = None;
        for value in query.split('&').filter_map(|pair| pair.strip_prefix("ns=")) {
            let value = decode(value).ok_or_else(|| RouteError::Namespace(value.to_owned()))?;
            match &given {
                Some(before) if *before != value => {
                    return Err(RouteError::Namespace(value.into_owned()));
                }
                _ => given = Some(value),
            }
        }
        let given = given.filter(|given| !given.is_empty());
        match given.as_deref().or(header.filter(|header| !header.is_empty())) {
            None => Ok(None),
            Some(text) => match self.alias_or_host(text) {
                Ok(upstream) => Ok(Some(upstream)),
                Err(_) => Err(RouteError::Namespace(text.to_owned())),
            },
        }
    }

    fn alias_or_host(&self, text: &str) -> Result<Upstream, NameError> {
        match self.alias(text) {
            Some(upstream) => Ok(upstream.clone()),
            None => text.parse(),
        }
    }

    fn alias(&self, text: &str) -> Option<&Upstream> {
        // Every request comes here, and few configurations have aliases.
        if self.aliases.is_empty() { None } else { self.aliases.get(&text.to_ascii_lowercase()) }
    }

    fn resolve(
        &self,
        path: &[Cow<'_, str>],
        namespace: Option<Upstream>,
    ) -> Result<(ImageName, Option<Upstream>), RouteError> {
        let repository =
            |path: &[Cow<'_, str>]| path.join("/").parse::<Repository>().map_err(RouteError::Name);
        let [first, rest @ ..] = path else { return Err(RouteError::NotFound) };
        if let Some(upstream) = namespace {
            // If the path also begins with this host, the host is not part of the repository.
            let is_repeated = !rest.is_empty()
                && self.names_host(first)
                && self.alias_or_host(first).is_ok_and(|host| host == upstream);
            let repository = repository(if is_repeated { rest } else { path })?;
            return Ok((ImageName::new(upstream.clone(), repository), Some(upstream)));
        }
        if !rest.is_empty() && self.names_host(first) {
            let upstream = self.alias_or_host(first).map_err(RouteError::Name)?;
            return Ok((ImageName::new(upstream, repository(rest)?), None));
        }
        let repository = repository(path)?;
        match &self.default_upstream {
            Some(upstream) => Ok((ImageName::new(upstream.clone(), repository), None)),
            None => Err(RouteError::NoUpstream),
        }
    }

    fn names_host(&self, component: &str) -> bool {
        Upstream::looks_like_host(component) || self.alias(component).is_some()
    }
}

/// The label value of a path in metrics: one of a few words, whatever the client sends.
pub(super) fn word(path: &str) -> &'static str {
    let Some(rest) = path.strip_prefix("/v2") else { return "other" };
    let mut segments = rest.rsplit('/');
    match (segments.next(), segments.next()) {
        (Some("") | None, None | Some("")) => "ping",
        (Some("list"), Some("tags")) => "tags",
        (_, Some("manifests")) => "manifest",
        (_, Some("blobs")) => "blob",
        (_, Some("referrers")) => "referrers",
        _ => "other",
    }
}

/// The part after the name, not parsed yet.
enum Endpoint<'a> {
    Manifest(&'a str),
    Blob(&'a str),
    Referrers(&'a str),
    Tags,
}

impl Endpoint<'_> {
    fn into_route(self, name: ImageName, query: &str) -> Result<Route, RouteError> {
        let digest = |text: &str| text.parse::<Digest>().map_err(RouteError::Digest);
        Ok(match self {
            Endpoint::Manifest(text) => match text.parse() {
                Ok(reference) => Route::Manifest { name, reference },
                Err(NameError::Digest(error)) => return Err(RouteError::Digest(error)),
                Err(error) => return Err(RouteError::Tag(error)),
            },
            Endpoint::Blob(text) => Route::Blob { name, digest: digest(text)? },
            Endpoint::Tags => {
                Route::List { name, question: ListQuestion::Tags { query: upstream_query(query) } }
            }
            Endpoint::Referrers(text) => {
                let question =
                    ListQuestion::Referrers { digest: digest(text)?, query: upstream_query(query) };
                Route::List { name, question }
            }
        })
    }
}

/// Splits `<name>/<endpoint>` from the right, since `manifests`, `blobs` and `tags` are legal
/// components of a name.
fn split<'a>(
    segments: &'a [Cow<'a, str>],
) -> Result<(&'a [Cow<'a, str>], Endpoint<'a>), RouteError> {
    match segments {
        [name @ .., kind, last] if !name.is_empty() => {
            let endpoint = match (&**kind, &**last) {
                ("manifests", reference) => Endpoint::Manifest(reference),
                ("blobs", digest) => Endpoint::Blob(digest),
                ("referrers", digest) => Endpoint::Referrers(digest),
                ("tags", "list") => Endpoint::Tags,
                _ => return Err(RouteError::NotFound),
            };
            Ok((name, endpoint))
        }
        _ => Err(RouteError::NotFound),
    }
}

/// How many segments a path has usually, at most: allocated at once.
const SEGMENTS_USUAL: usize = 8;

/// Decodes each path segment once. Refuses empty segments, dot segments and encoded slashes before anything
/// interprets them.
fn decode_segments(path: &str) -> Result<Vec<Cow<'_, str>>, RouteError> {
    let mut segments = Vec::with_capacity(SEGMENTS_USUAL);
    for segment in path.split('/') {
        let decoded = decode(segment).ok_or(RouteError::Path)?;
        let is_plain = !decoded.is_empty()
            && decoded != "."
            && decoded != ".."
            && !decoded.contains(['/', '\\', '\0']);
        if !is_plain {
            return Err(RouteError::Path);
        }
        segments.push(decoded);
    }
    Ok(segments)
}

/// Percent-decodes. `None` for a broken escape or for bytes that are not UTF-8.
pub(super) fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match first {
            b'%' => {
                let [high, low, tail @ ..] = tail else { return None };
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                bytes.push(u8::try_from(digit(high)? * 16 + digit(low)?).ok()?);
                rest = tail;
            }
            byte => bytes.push(*byte),
        }
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

/// The query for the upstream: everything but `ns`, unchanged, because registries have their own parameters for
/// paging, and without `last` the first page would be returned again. Bytes that are not allowed in a URL are
/// encoded.
fn upstream_query(query: &str) -> String {
    let pairs = query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("ns="));
    let mut kept = String::with_capacity(query.len());
    for byte in pairs.collect::<Vec<_>>().join("&").bytes() {
        match byte.is_ascii_graphic() && !b"\"<>\\#".contains(&byte) {
            true => kept.push(char::from(byte)),
            false => kept.push_str(&format!("%{byte:02X}")),
        }
    }
    kept
}

/// Why a target is invalid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteError {
    /// No such endpoint.
    NotFound,
    /// Something other than GET and HEAD.
    Method,
    /// The path has an empty segment, a dot segment or a broken escape.
    Path,
    /// The repository or the registry in the path breaks the grammar.
    Name(NameError),
    /// The tag breaks the grammar, so it cannot exist.
    Tag(NameError),
    /// The digest is malformed.
    Digest(DigestError),
    /// `ns` or its header is not a registry, or has two values.
    Namespace(String),
    /// The request does not name an upstream, and there is no default.
    NoUpstream,
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RouteError::NotFound => write!(
                f,
                "no such endpoint; images are under /v2/<registry>/<repository>/manifests/<tag>"
            ),
            RouteError::Method => write!(f, "this registry is pull-only: use GET or HEAD"),
            RouteError::Path => {
                write!(f, "the path has an empty or dot segment, or a broken percent escape")
            }
            RouteError::Name(error) | RouteError::Tag(error) => error.fmt(f),
            RouteError::Digest(error) => error.fmt(f),
            RouteError::Namespace(text) => {
                write!(f, "ns={} does not name one registry", text.escape_debug())
            }
            RouteError::NoUpstream => write!(
                f,
                "the request does not name a registry: add ?ns=<registry>, put the \
                 registry first in the path (/v2/docker.io/library/alpine/...), or set defaultNs"
            ),
        }
    }
}

impl std::error::Error for RouteError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            RouteError::Name(error) | RouteError::Tag(error) => Some(error),
            RouteError::Digest(error) => Some(error),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn naming() -> Naming {
        let hub: Upstream = "docker.io".parse().unwrap();
        let aliases = [("hub".to_owned(), hub)].into();
        Naming { default_upstream: None, aliases }
    }

    fn parse(target: &str) -> Result<Target, RouteError> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        naming().parse(Method::Get, path, query, None)
    }

    /// A route as text: the image name and the last part.
    fn parsed(target: &str) -> String {
        let route = match parse(target).unwrap() {
            Target::Ping => return "ping".into(),
            Target::Content(route, _) => route,
        };
        match route {
            Route::Manifest { name, reference } => name.with(&reference),
            Route::Blob { name, digest } => format!("{name}@@{digest}"),
            Route::List { name, question: ListQuestion::Tags { query } } => {
                format!("{name} tags {query}")
            }
            Route::List { name, question: ListQuestion::Referrers { query, .. } } => {
                format!("{name} referrers {query}")
            }
        }
    }

    #[test]
    fn accepted_targets() {
        let encoded = DIGEST.replace(':', "%3A");
        let table = [
            ("/v2", "ping".to_owned()),
            ("/v2/", "ping".to_owned()),
            (
                "/v2/library/alpine/manifests/3.20?ns=docker.io",
                "docker.io/library/alpine:3.20".into(),
            ),
            (
                "/v2/alpine/manifests/3.20?ns=index.docker.io",
                "docker.io/library/alpine:3.20".into(),
            ),
            ("/v2/a/manifests/1?ns=REG.Example.COM", "reg.example.com/a:1".into()),
            ("/v2/a/manifests/1?ns=reg:5000", "reg:5000/a:1".into()),
            ("/v2/a/manifests/1?ns=reg%3A5000", "reg:5000/a:1".into()),
            ("/v2/a/manifests/1?ns=%5B%3A%3A1%5D%3A5000", "[::1]:5000/a:1".into()),
            ("/v2/a/manifests/1?ns=localhost", "localhost/a:1".into()),
            ("/v2/a/manifests/1?ns=127.0.0.1:5000&ns=127.0.0.1:5000", "127.0.0.1:5000/a:1".into()),
            ("/v2/quay.io/a/b/c/d/manifests/1", "quay.io/a/b/c/d:1".into()),
            ("/v2/localhost/a/manifests/1", "localhost/a:1".into()),
            ("/v2/reg.local:5000/a/manifests/1", "reg.local:5000/a:1".into()),
            ("/v2/reg.local%3A5000/a/manifests/1", "reg.local:5000/a:1".into()),
            ("/v2/hub/alpine/manifests/1", "docker.io/library/alpine:1".into()),
            ("/v2/alpine/manifests/1?ns=HUB", "docker.io/library/alpine:1".into()),
            ("/v2/docker.io/alpine/manifests/1?ns=docker.io", "docker.io/library/alpine:1".into()),
            ("/v2/quay.io/a/manifests/1?ns=docker.io", "docker.io/quay.io/a:1".into()),
            ("/v2/quay.io/a/manifests/1?ns=", "quay.io/a:1".into()),
            (
                "/v2/quay.io/blobs/uploads/manifests/x/manifests/1",
                "quay.io/blobs/uploads/manifests/x:1".into(),
            ),
            ("/v2/quay.io/a/tags/list?n=5&ns=quay.io&last=x", "quay.io/a tags n=5&last=x".into()),
            ("/v2/quay.io/tags/tags/list", "quay.io/tags tags ".into()),
        ];
        for (target, expected) in table {
            assert_eq!(parsed(target), expected, "{target}");
        }
        assert_eq!(
            parsed(&format!("/v2/quay.io/a/manifests/{encoded}")),
            format!("quay.io/a@{DIGEST}")
        );
        assert_eq!(
            parsed(&format!("/v2/quay.io/a/blobs/{DIGEST}")),
            format!("quay.io/a@@{DIGEST}")
        );
        let referrers = format!("/v2/quay.io/a/referrers/{DIGEST}?artifactType=a%2Fb%2Bc");
        assert_eq!(parsed(&referrers), "quay.io/a referrers artifactType=a%2Fb%2Bc");
    }

    #[test]
    fn refused_targets() {
        type Check = fn(&RouteError) -> bool;
        let name: Check = |error| matches!(error, RouteError::Name(_));
        let path: Check = |error| *error == RouteError::Path;
        let missing: Check = |error| *error == RouteError::NotFound;
        let namespace: Check = |error| matches!(error, RouteError::Namespace(_));
        let long_tag = format!("/v2/quay.io/a/manifests/{}", "x".repeat(129));
        let upper =
            format!("/v2/quay.io/a/blobs/{}", DIGEST.to_uppercase().replace("SHA256", "sha256"));
        let table: [(&str, Check); 25] = [
            ("/", missing),
            ("/v1/_ping", missing),
            ("/v2x/a/manifests/1", missing),
            ("/v2/_catalog", missing),
            ("/v2/manifests/1", missing),
            ("/v2/a/b/c", missing),
            ("/v2/a/tags/other", missing),
            ("/v2//a/manifests/1", path),
            ("/v2/a/manifests/", path),
            ("/v2/x/../y/manifests/1", path),
            ("/v2/x/%2e%2e/y/manifests/1", path),
            ("/v2/x/%2Fetc/manifests/1", path),
            ("/v2/x/%00/manifests/1", path),
            ("/v2/x/%zz/manifests/1", path),
            ("/v2/x/%ff/manifests/1", path),
            ("/v2/quay.io/UPPER/manifests/1", name),
            ("/v2/-a.io/a/manifests/1", name),
            ("/v2/a/manifests/1", |error| *error == RouteError::NoUpstream),
            ("/v2/a/manifests/1?ns=a%20b", namespace),
            ("/v2/a/manifests/1?ns=a+b", namespace),
            ("/v2/a/manifests/1?ns=http://x", namespace),
            ("/v2/a/manifests/1?ns=a.io&ns=b.io", namespace),
            (&long_tag, |error| matches!(error, RouteError::Tag(_))),
            ("/v2/quay.io/a/manifests/sha256:totallywrong", |error| {
                matches!(error, RouteError::Digest(_))
            }),
            (&upper, |error| matches!(error, RouteError::Digest(_))),
        ];
        for (target, expected) in table {
            let error = parse(target).unwrap_err();
            assert!(expected(&error), "{target}: {error:?}");
        }
    }

    #[test]
    fn only_get_and_head_are_answered() {
        for method in [Method::Put, Method::Post, Method::Delete, Method::Patch, Method::Options] {
            let path = "/v2/quay.io/a/blobs/uploads/";
            assert_eq!(naming().parse(method, path, "", None), Err(RouteError::Method));
        }
    }

    fn addressing(naming: &Naming, path: &str, query: &str, header: Option<&str>) -> Addressing {
        match naming.parse(Method::Head, path, query, header).unwrap() {
            Target::Content(_, addressing) => addressing,
            Target::Ping => panic!("{path} is a ping"),
        }
    }

    #[test]
    fn a_namespace_is_confirmed_and_the_query_takes_precedence_over_the_header() {
        let quay: Upstream = "quay.io".parse().unwrap();
        let by_header = addressing(&naming(), "/v2/a/manifests/1", "", Some("quay.io"));
        assert_eq!(by_header, Addressing { upstream: quay.clone(), namespace: Some(quay) });
        let both = addressing(&naming(), "/v2/a/manifests/1", "ns=gcr.io", Some("quay.io"));
        assert_eq!(both.upstream.as_str(), "gcr.io");
        let in_path = addressing(&naming(), "/v2/quay.io/a/manifests/1", "", None);
        assert_eq!(in_path.namespace, None);
    }

    #[test]
    fn the_default_is_last() {
        let naming = Naming { default_upstream: Some("docker.io".parse().unwrap()), ..naming() };
        for (path, upstream) in
            [("/v2/alpine/manifests/1", "docker.io"), ("/v2/quay.io/a/manifests/1", "quay.io")]
        {
            assert_eq!(addressing(&naming, path, "", None).upstream.as_str(), upstream);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_target_panics(path in "(/v2/)?[a-z0-9./%:_A-Z-]{0,80}(/manifests/|/blobs/|/tags/list|/referrers/)?.{0,40}", query in ".{0,60}") {
            let _ = naming().parse(Method::Get, &path, &query, None);
        }
    }

    #[test]
    fn metrics_label_paths_with_a_few_words() {
        for (path, expected) in [
            ("/v2/", "ping"),
            ("/v2", "ping"),
            ("/v2/a/manifests/v1", "manifest"),
            ("/v2/docker.io/library/a/blobs/sha256:00", "blob"),
            ("/v2/a/tags/list", "tags"),
            ("/v2/a/referrers/sha256:00", "referrers"),
            ("/v2/a/manifests", "other"),
            ("/", "other"),
            ("/metrics", "other"),
        ] {
            assert_eq!(word(path), expected, "{path}");
        }
    }
}
