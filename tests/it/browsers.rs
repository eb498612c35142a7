//! Protection of browsers, terminals and logs from untrusted content.

use std::net::SocketAddr;

use crate::support::client::{Connection, request};
use crate::support::larder::{blob, manifest};
use crate::support::process::{Process, address_in};
use crate::support::site::{NamedImage, Site};
use crate::support::{FakeRegistry, Image, Response};

const NO_SNIFFING: &str = "x-content-type-options";
const POLICY: &str = "content-security-policy";
const SANDBOX: &str = "default-src 'none'; sandbox";

fn raw(address: SocketAddr, bytes: &str) -> Response {
    let mut connection = Connection::open(address);
    // The server may refuse the request before it ends.
    let _ = connection.try_send_raw(bytes.as_bytes());
    connection.read_response()
}

#[test]
fn every_response_forbids_sniffing_and_is_sandboxed() {
    let registry = FakeRegistry::start();
    let image = Image::sample("a");
    let app = NamedImage::new("app", "1", &image);
    app.publish(&registry);
    registry.expect_unknown("/v2/library/none/manifests/1");
    let site = Site::new(&registry, "");
    let server = site.serve();
    let (serving, management) = (server.address(), server.management);
    let layer = blob("library/app", &image.layers()[0].digest);
    let tag = format!("\"{}\"", image.digest());
    let long = "x".repeat(20_000);
    let mut answers = Vec::new();
    for (status, method, target, header) in [
        (200, "GET", "/v2/".to_owned(), ("X-A", "b")),
        (200, "GET", manifest("library/app", "1"), ("X-A", "b")),
        (200, "HEAD", manifest("library/app", "1"), ("X-A", "b")),
        (304, "GET", manifest("library/app", "1"), ("If-None-Match", tag.as_str())),
        (200, "GET", layer.clone(), ("X-A", "b")),
        (206, "GET", layer.clone(), ("Range", "bytes=0-1")),
        (416, "GET", layer.clone(), ("Range", "bytes=99999999-")),
        (200, "GET", "/v2/library/app/tags/list".to_owned(), ("X-A", "b")),
        (404, "GET", manifest("library/none", "1"), ("X-A", "b")),
        (400, "GET", manifest("Library/app", "1"), ("X-A", "b")),
        (405, "POST", "/v2/library/app/blobs/uploads/".to_owned(), ("Content-Length", "0")),
        (413, "GET", "/v2/".to_owned(), ("Content-Length", "99999999")),
        (417, "GET", "/v2/".to_owned(), ("Expect", "tea")),
        (431, "GET", "/v2/".to_owned(), ("X-Long", long.as_str())),
    ] {
        let got = request(serving, method, &target, &[header]);
        assert_eq!(got.status, status, "{method} {target} {}", header.0);
        answers.push((format!("{method} {target}"), got));
    }
    for (status, bytes) in [
        (400, "nonsense\r\n\r\n"),
        (505, "GET /v2/ HTTP/2.0\r\nHost: x\r\n\r\n"),
        (414, &format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(9_000))),
    ] {
        let got = raw(serving, bytes);
        assert_eq!(got.status, status);
        answers.push((status.to_string(), got));
    }
    for (status, target) in [
        (200, "/livez"),
        (200, "/readyz"),
        (200, "/health"),
        (200, "/health?verbose"),
        (200, "/metrics"),
        (200, "/api/v1/status"),
        (200, "/api/v1/images"),
        (400, "/api/v1/images?limit=x"),
        (404, "/nothing"),
    ] {
        let got = request(management, "GET", target, &[]);
        assert_eq!(got.status, status, "{target}");
        answers.push((target.to_owned(), got));
    }
    let refused = request(management, "POST", "/api/v1/prune", &[("Content-Length", "0")]);
    assert_eq!(refused.status, 401);
    answers.push(("POST".to_owned(), refused));
    for (what, got) in &answers {
        assert_eq!(got.headers_named(NO_SNIFFING), ["nosniff"], "{what}: {got:?}");
        assert_eq!(got.headers_named(POLICY), [SANDBOX], "{what}: {got:?}");
    }
    // The status page has one policy only, its own.
    for target in ["/", "/page.js", "/page.css"] {
        let got = request(management, "GET", target, &[]);
        assert_eq!(got.headers_named(NO_SNIFFING), ["nosniff"], "{target}");
        let policies = got.headers_named(POLICY);
        assert!(policies.len() == 1 && policies[0].contains("script-src 'self'"), "{policies:?}");
    }
}

#[test]
fn manifest_labelled_as_html_is_not_served_as_html() {
    let digest = "a".repeat(64);
    for media_type in ["text/html", "application/xhtml+xml", "image/svg+xml", "text/javascript"] {
        let body = format!(
            "{{\"schemaVersion\":2,\"mediaType\":\"{media_type}\",\"config\":{{\"mediaType\":\"x/y\",\
             \"digest\":\"sha256:{digest}\",\"size\":1}},\"layers\":[],\
             \"annotations\":{{\"x\":\"<script>alert(1)</script>\"}}}}"
        );
        for claimed in ["application/json", media_type, "application/octet-stream"] {
            let registry = FakeRegistry::start();
            registry.add_manifest("library/app", "1", claimed, body.as_bytes());
            let site = Site::new(&registry, "");
            let server = site.serve();
            for _ in 0..2 {
                let got = request(server.address(), "GET", &manifest("library/app", "1"), &[]);
                let kind = got.header("content-type").unwrap_or_default();
                assert!(
                    kind.starts_with("application/") && !kind.contains("xml"),
                    "{media_type} as {claimed}: {got:?}"
                );
                assert_eq!(got.header(POLICY), Some(SANDBOX));
            }
        }
    }
}

#[test]
fn large_manifest_is_sent_from_its_file() {
    let registry = FakeRegistry::start();
    let image = Image::sample("a").annotation("padding", &"x".repeat(3_000_000));
    let app = NamedImage::new("app", "1", &image);
    app.publish(&registry);
    let site = Site::new(&registry, "");
    let server = site.serve();
    let begin = || {
        let mut client = server.begin(&manifest("library/app", "1"));
        assert_eq!(client.read_head().status, 200);
        client
    };
    // The first is a miss. Each response exceeds what the kernel buffers.
    let mut clients: Vec<_> = (0..20).map(|_| begin()).collect();
    assert_eq!(server.metric("larder_response_memory_bytes"), 0.0);
    for client in &mut clients {
        assert!(client.read_body(image.manifest().len()) == image.manifest());
    }
}

#[test]
fn hosts_outside_allowed_hosts_get_421() {
    let (_registry, site) = Site::empty("allowedHosts: [larder.example.com]\n");
    let mut server = site.serve();
    let status = |at: SocketAddr, host: &str| request(at, "GET", "/v2/", &[("Host", host)]).status;
    for host in ["larder.example.com", "Larder.Example.com:5000", "10.0.0.7:5000", "localhost"] {
        assert_eq!(status(server.address(), host), 200, "{host}");
    }
    for host in ["evil.example", "larder.example.com.evil.example", ""] {
        assert_eq!(status(server.address(), host), 421, "{host}");
    }
    let refused = request(server.address(), "GET", "/v2/", &[("Host", "evil.example")]);
    assert!(refused.text().contains("allowedHosts"), "{refused:?}");
    // The management port is exempt.
    assert_eq!(request(server.management, "GET", "/livez", &[("Host", "a.b")]).status, 200);
    site.configure("allowedHosts: [evil.example]\n");
    server.process.signal("HUP");
    server.process.wait_until_it_logs("allowedHosts");
    assert_eq!(status(server.address(), "evil.example"), 200);
    assert_eq!(status(server.address(), "larder.example.com"), 421);
}

#[test]
fn access_log_records_aborted_requests_and_cannot_be_forged() {
    let (_registry, site, _content, digest, gate) = Site::gated(500_000);
    let mut server = site.serve();
    let mut client = server.begin(&blob("library/big", &digest));
    client.read_head();
    client.read_body(100_000);
    client.reset();
    gate.open();
    let line = server.process.wait_until_it_logs("ended=client-gone");
    assert!(line.contains(" INFO ") && line.contains(&digest), "{line}");
    let bytes = line.split(" bytes=").nth(1).and_then(|rest| rest.split(' ').next());
    assert!(bytes.is_some_and(|bytes| bytes.parse::<u64>().unwrap() >= 100_000), "{line}");

    let forged = "h status=200 ip=10.9.9.9\" \u{202e}x";
    request(server.address(), "GET", "/v2/none", &[("Host", forged)]);
    let line = server.process.wait_until_it_logs("GET:/v2/none");
    assert_eq!(line.matches(" status=").count(), 1, "{line}");
    assert_eq!(line.matches(" ip=").count(), 1, "{line}");
    assert!(line.is_ascii(), "{line}");
}

#[test]
fn registries_requested_by_other_clients_are_not_disclosed() {
    let registry = FakeRegistry::start();
    let directory = tempfile::tempdir().expect("a directory");
    let text = format!(
        "fsync: false\nhealth: 0\nmetrics: 0\nunlistedRegistries: allow\n\
         registries: [{{name: \"{}\", scheme: http}}]\n",
        registry.host()
    );
    let process = Process::serve_file(directory.path(), &text);
    let health = address_in(&process.banner, "serving health", "health");
    let metrics = address_in(&process.banner, "serving metrics", "metrics");
    let target = format!("{}?ns=secret-project.invalid", manifest("a/b", "1"));
    assert_ne!(request(process.address, "GET", &target, &[]).status, 200);
    for (at, target) in [(health, "/health?verbose"), (metrics, "/metrics")] {
        let text = request(at, "GET", target, &[]).text();
        assert!(!text.contains("secret-project"), "{target}: {text}");
        assert!(text.contains(&registry.host()), "{target}: {text}");
    }
    let report = request(health, "GET", "/health?verbose", &[]).json();
    assert_eq!(report["unlistedUpstreams"], 1, "{report}");
}
