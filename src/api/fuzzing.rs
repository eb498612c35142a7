//! Fuzz targets: the requests of clients, to the registry and to the management port.

pub(crate) use super::management::fuzzing::management_query;
use super::range::{Part, is_not_modified, part};
use super::route::{Naming, Route, Target, word};
use super::{hosts, login};
use crate::cache::ListQuestion;
use crate::fuzzing::assert_is_safe_text;
use crate::http::Request;
use crate::oci::{Algorithm, Digest, ImageName, Upstream};
use crate::via::Via;

/// Input: a request head, and the bytes after it.
pub(crate) fn request(data: &[u8]) {
    let Some(request) = crate::http::fuzzing::request_head(data) else { return };
    let naming = naming();
    match naming.target(&request) {
        Ok(Target::Content(route, addressing)) => {
            let (name, path) = path_of(&route);
            assert_eq!(name.upstream, addressing.upstream);
            assert!(addressing.namespace.is_none_or(|namespace| namespace == name.upstream));
            // A registry without a dot, a colon or a port has to be named by `ns`.
            let prefix = match Upstream::looks_like_host(name.upstream.as_str()) {
                true => name.to_string(),
                false => name.repository.to_string(),
            };
            let (path, query) = (format!("/v2/{prefix}/{path}"), query_of(&route));
            let query = format!("ns={}&{query}", name.upstream);
            assert_eq!(target(&naming, &path, &query), Some(route.clone()), "{path}?{query}");
            assert_ne!(word(request.path()), "other");
        }
        Ok(Target::Ping) => assert_eq!(word(request.path()), "ping"),
        Err(error) => {
            assert_is_safe_text(&error.to_string());
        }
    }
    check_headers(&request);
}

fn check_headers(request: &Request) {
    let digest = Digest::of(Algorithm::Sha256, b"content");
    for size in [0, 1, 1000, u64::MAX] {
        if let Part::Bytes(range) = part(request, &digest, size) {
            assert!(range.start < range.end && range.end <= size, "{range:?} of {size}");
        }
    }
    is_not_modified(request, &digest);
    let allowed = ["larder.example.com".parse().expect("valid")];
    let host = request.header("host").unwrap_or_default();
    let is_allowed = hosts::refusal(&allowed, request).is_none();
    let lower = host.to_ascii_lowercase();
    // A name on the list, this machine, or an address; whatever else, a page could have chosen it.
    assert!(
        !is_allowed
            || request.header("host").is_none()
            || lower.starts_with("larder.example.com")
            || lower.starts_with("localhost")
            || lower.chars().any(|char| char.is_ascii_digit() || char == ':'),
        "{host:?} is allowed"
    );
    if let Some((user, _)) = request.header("authorization").and_then(login::credentials) {
        assert!(!user.contains(':'));
    }
    if let Ok(chain) = Via::parse(request.headers("via")) {
        // The next Larder finds this process in the chain.
        assert!(Via::parse([&*chain.to_string()]).is_err());
    }
}

/// Names with a default registry and one alias.
pub(super) fn naming() -> Naming {
    let hub: Upstream = "docker.io".parse().expect("valid");
    let aliases = [("hub".to_owned(), hub.clone())].into();
    Naming { default_upstream: Some(hub), aliases }
}

/// The image and the rest of the path.
fn path_of(route: &Route) -> (&ImageName, String) {
    match route {
        Route::Manifest { name, reference } => (name, format!("manifests/{reference}")),
        Route::Blob { name, digest } => (name, format!("blobs/{digest}")),
        Route::List { name, question: ListQuestion::Tags { .. } } => (name, "tags/list".into()),
        Route::List { name, question: ListQuestion::Referrers { digest, .. } } => {
            (name, format!("referrers/{digest}"))
        }
    }
}

/// The query that is sent to the registry.
fn query_of(route: &Route) -> &str {
    let Route::List { question, .. } = route else { return "" };
    let (ListQuestion::Tags { query } | ListQuestion::Referrers { query, .. }) = question;
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"\"<>\\#".contains(&byte);
    assert!(query.bytes().all(is_plain), "{query:?}");
    assert!(!query.split('&').any(|pair| pair.starts_with("ns=")), "{query:?}");
    query
}

fn target(naming: &Naming, path: &str, query: &str) -> Option<Route> {
    let head = format!("GET {path}?{query} HTTP/1.1\r\nHost: h\r\n\r\n");
    let peer = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 1));
    let request = Request::parse(&head, peer, std::time::Instant::now()).ok()?;
    match naming.target(&request) {
        Ok(Target::Content(route, _)) => Some(route),
        _ => None,
    }
}
