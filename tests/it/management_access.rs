//! Authorization on the management port, and errors for refused and invalid requests.

use std::fs;

use serde_json::json;

use crate::support::client::{get, request};
use crate::support::openapi::Description;
use crate::support::process::{Process, address_in};
use crate::support::site::{Site, TOKEN};
use crate::support::{FakeRegistry, Response, absent_digest};

#[test]
fn changes_require_the_token_and_local_reads_do_not() {
    let (registry, site) = Site::empty("");
    let server = site.serve();
    let plain = |method: &str, what: &str, headers: &[(&str, &str)]| {
        request(server.management, method, &format!("/api/v1/{what}"), headers)
    };
    let digest = absent_digest(1);
    let cancel = format!("flights?upstream=docker.io&digest={digest}");
    let changes = [
        ("POST", "pins?pattern=a"),
        ("DELETE", "pins?pattern=a"),
        ("POST", "prune?pattern=*"),
        ("POST", "prefetch?image=a"),
        ("POST", "check?target=docker.io"),
        ("POST", "flights/resume"),
        ("DELETE", &cancel),
    ];
    for (method, what) in changes {
        let got = plain(method, what, &[]);
        assert!(
            got.status == 401 && got.text().contains("management.tokenFile"),
            "{what}: {got:?}"
        );
        assert_eq!(got.header("www-authenticate"), Some("Bearer realm=\"larder\""), "{what}");
        let got = server.call_with_token("gu3ssed", method, what);
        assert!(got.status == 401 && got.text().contains("wrong token"), "{what}: {got:?}");
        assert_eq!(
            plain(method, what, &[("Authorization", "Basic czNjcmV0")]).status,
            401,
            "{what}"
        );
    }
    assert_eq!(registry.requests().len(), 0);
    assert_eq!(server.api("pins")["pins"], json!([]));
    assert_eq!(server.call("POST", "pins?pattern=a").status, 200);

    // DNS rebinding: requests from a foreign page carry its own host name.
    for what in ["status", "images", "pins"] {
        assert_eq!(plain("GET", what, &[("Host", "evil.test")]).status, 401, "{what}");
        assert_eq!(plain("GET", what, &[("Host", "localhost")]).status, 200, "{what}");
        assert_eq!(server.call("GET", what).status, 200, "{what}");
        assert_eq!(server.call_with_token("gu3ssed", "GET", what).status, 401, "{what}");
    }
    let foreign =
        |path: &str| request(server.management, "GET", path, &[("Host", "evil.test")]).status;
    assert_eq!(foreign("/health?verbose"), 401);
    for path in ["/livez", "/readyz", "/health", "/metrics", "/", "/page.js", "/openapi.yaml"] {
        assert_eq!(foreign(path), 200, "{path}");
    }

    fs::write(site.path("token"), "another").expect("a file");
    assert_eq!(server.call("POST", "pins?pattern=b").status, 401, "the previous token is invalid");
    assert_eq!(server.call_with_token("another", "POST", "pins?pattern=b").status, 200);
    for broken in ["", "\n"] {
        fs::write(site.path("token"), broken).expect("a file");
        assert_eq!(server.call_with_token("", "POST", "pins?pattern=c").status, 403);
    }
    fs::remove_file(site.path("token")).expect("an existing file");
    let got = server.call_with_token("another", "POST", "pins?pattern=c");
    assert!(got.status == 403 && got.text().contains("see the log for the reason"), "{got:?}");
    assert_eq!(server.api("pins")["pins"].as_array().map(Vec::len), Some(2));
    let log = server.log();
    assert!(log.contains("management: wrong token (logged once a minute) ip=127.0.0.1"), "{log}");
    for secret in [TOKEN, "another", "gu3ssed"] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[test]
fn changes_are_forbidden_without_a_token_file() {
    let registry = FakeRegistry::start();
    let directory = tempfile::tempdir().expect("a directory");
    let text = format!(
        "fsync: false\nmanagement: {{port: 0}}\nregistries: [{{name: docker.io, endpoints: [\"{}\"]}}]\n",
        registry.url("")
    );
    let process = Process::serve_file(directory.path(), &text);
    let management = address_in(&process.banner, "serving the management port", "management");
    for headers in [&[][..], &[("Authorization", "Bearer ")], &[("Authorization", "Bearer x")]] {
        let got = request(management, "POST", "/api/v1/pins?pattern=a", headers);
        assert!(got.status == 403 && got.text().contains("management.tokenFile"), "{got:?}");
    }
    assert_eq!(get(management, "/api/v1/pins").json(), json!({"pins": [], "problem": null}));
}

#[test]
fn invalid_parameters_are_refused_with_the_valid_ones() {
    let (_registry, site) = Site::empty("");
    let server = site.serve();
    for (method, what, message) in [
        ("GET", "status?x=1", "unknown parameter x; this request takes no parameters"),
        ("GET", "flights?x", "unknown parameter x"),
        ("GET", "images?limt=1", "unknown parameter limt; known parameters: pattern, registry"),
        ("GET", "images?limit=0", "limit must be a number from 1 to 1000"),
        ("GET", "images?limit=1001", "limit must be a number from 1 to 1000"),
        ("GET", "images?offset=-1", "offset must be a number from 0"),
        ("GET", "images?limit=1&limit=2", "limit is given twice"),
        (
            "GET",
            "images?sort=age",
            "sort must be one of name, size, pulled, pulls, fetched, created",
        ),
        ("GET", "images?state=whole", "state must be one of complete, partial"),
        ("GET", "images?pinned=yes", "pinned must be true or false"),
        ("GET", "images?pattern=/(/", "pattern: not a pattern"),
        ("GET", "images?pattern=", "pattern: not a pattern"),
        ("GET", "images?digest=sha256:1", "digest: "),
        ("GET", "images?registry=a%20b", "registry: "),
        ("GET", "images?pattern=%zz", "invalid percent escape"),
        ("GET", "image", "image is missing"),
        ("GET", "image?image=", "image is missing"),
        ("GET", "image?image=A", "image: "),
        ("GET", "blobs?sort=name", "sort must be one of digest, size, references"),
        ("GET", "blobs?digest=x", "digest: "),
        ("POST", "prune", "select images with"),
        ("POST", "prune?count=3", "select images with"),
        ("POST", "prune?dryRun=true", "select images with"),
        ("POST", "prune?unusedFor=30", "unusedFor: 30 is not a duration"),
        ("POST", "prune?createdBefore=yesterday", "createdBefore: "),
        ("POST", "prune?pattern=*&count=x", "count must be a number from 0"),
        ("POST", "prune?pattern=*&dryRun=1", "dryRun must be true or false"),
        ("POST", "prune?pattern=A", "pattern: A: "),
        ("POST", "pins", "pattern is missing"),
        ("POST", "pins?pattern=a&pattern=b", "pattern is given twice"),
        ("DELETE", "pins?pattern=%20", "pattern: "),
        ("POST", "prefetch", "image is missing"),
        ("POST", "check", "target is missing"),
        ("POST", "check?target=A/b", "target: A/b: "),
        ("POST", "prefetch?image=http://a/b", "image: "),
        ("POST", "flights/resume?x=1", "takes no parameters"),
        ("DELETE", "flights?upstream=docker.io", "digest is missing"),
        ("DELETE", "flights?digest=sha256:1", "upstream is missing"),
        ("DELETE", "flights?upstream=docker.io&digest=1", "digest: "),
    ] {
        let got = server.call(method, what);
        let text = got.json()["error"].as_str().map(str::to_owned).unwrap_or_default();
        assert!(got.status == 400 && text.contains(message), "{method} {what}: {got:?}");
    }
}

#[test]
fn unknown_paths_get_404_and_other_methods_405_with_allow() {
    let (_registry, site) = Site::empty("");
    let server = site.serve();
    for path in [
        "/x",
        "/v2/",
        "/api",
        "/api/v1",
        "/api/v1/",
        "/api/v1/x",
        "/api/v2/status",
        "/api/v1/status/",
        "/page.css/..",
        "/index.html",
    ] {
        let got = server.get(path);
        assert!(got.status == 404 && got.json()["error"].is_string(), "{path}: {got:?}");
    }
    let read = "GET, HEAD";
    for (method, path, allowed) in [
        ("POST", "/livez", read),
        ("DELETE", "/metrics", read),
        ("POST", "/", read),
        ("PUT", "/page.js", read),
        ("POST", "/api/v1/status", read),
        ("DELETE", "/api/v1/images", read),
        ("POST", "/api/v1/image", read),
        ("POST", "/api/v1/blobs", read),
        ("POST", "/api/v1/upstreams", read),
        ("POST", "/api/v1/flights", "GET, HEAD, DELETE"),
        ("PUT", "/api/v1/pins", "GET, HEAD, POST, DELETE"),
        ("GET", "/api/v1/flights/resume", "POST"),
        ("GET", "/api/v1/prune", "POST"),
        ("HEAD", "/api/v1/prefetch", "POST"),
        ("DELETE", "/api/v1/prune", "POST"),
    ] {
        let headers = [("Authorization", &*format!("Bearer {TOKEN}")), ("Content-Length", "0")];
        let got = request(server.management, method, path, &headers);
        assert_eq!((got.status, got.header("allow")), (405, Some(allowed)), "{method} {path}");
    }
}

#[test]
fn management_api_is_not_on_the_serving_port() {
    let (registry, site) = Site::empty("");
    let server = site.serve();
    let operations = Description::read().operations();
    let bearer = format!("Bearer {TOKEN}");
    let headers = [("Authorization", bearer.as_str())];
    let others =
        ["GET /", "GET /page.js", "GET /page.css", "GET /health?verbose"].map(str::to_owned);
    for operation in operations.into_iter().chain(others) {
        let (method, path) = operation.split_once(' ').expect("a method and a path");
        let got = request(server.address(), method, path, &headers);
        assert!(matches!(got.status, 404 | 405), "{operation}: {got:?}");
    }
    assert_eq!(registry.requests().len(), 0);
}

#[test]
fn errors_are_reported_as_json() {
    let (_registry, site) = Site::empty("airGapped: true");
    let server = site.serve();
    let refused = |got: Response, status: u16| {
        assert_eq!((got.status, got.header("content-type")), (status, Some("application/json")));
        assert!(got.json()["error"].as_str().is_some_and(|text| text.len() > 10), "{got:?}");
    };
    refused(server.get("/nothing"), 404);
    refused(server.call("POST", "prefetch?image=app"), 409);
    refused(server.call("POST", "flights/resume"), 409);
    refused(server.call_with_token("gu3ssed", "POST", "flights/resume"), 401);
    refused(server.call("POST", "status"), 405);
    assert_eq!(server.api("status")["airGapped"], true);
}
