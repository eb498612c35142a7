//! Refused requests: statuses that make clients try their next host, with bodies in the form of the specification.
//!
//! Proves protocol 8.1, 8.2, 8.3 and 8.5 (docs/protocol.md), and that no error text contains the query of a signed URL.

use crate::support::larder::{Settings, blob, manifest};
use crate::support::{
    End, FakeRegistry, Fault, Image, Larder, On, Response, absent_digest, bytes, digest_of,
};

const REPOSITORY: &str = "team/app";

#[track_caller]
fn check_error(got: &Response, status: u16, code: &str) {
    assert_eq!((got.status, got.error_code().as_str()), (status, code), "{got:?}");
    assert_eq!(got.header("content-type"), Some("application/json"), "{got:?}");
    let length = got.body.len().to_string();
    assert_eq!(got.header("content-length"), Some(length.as_str()), "{got:?}");
    assert!(got.complete && got.json()["errors"][0]["message"].is_string(), "{got:?}");
}

#[test]
fn only_get_and_head_are_answered() {
    let registry = FakeRegistry::start();
    let larder = Larder::start(&registry);
    let digest = absent_digest(1);
    for method in ["PUT", "POST", "DELETE", "PATCH", "OPTIONS"] {
        for path in [
            manifest(REPOSITORY, "v1"),
            blob(REPOSITORY, &digest),
            format!("/v2/{REPOSITORY}/blobs/uploads/"),
            "/v2/".to_owned(),
        ] {
            let mut connection = larder.connect();
            let got = connection.request(method, &path, &[]);
            check_error(&got, 405, "UNSUPPORTED");
            assert_eq!(got.header("allow"), Some("GET, HEAD"), "{method} {path}");
            match got.end {
                End::Open => assert_eq!(connection.get("/v2/").status, 200, "{method} {path}"),
                end => assert_eq!(end, End::Closed, "{method} {path}"),
            }
        }
    }
    assert_eq!(registry.connection_count(), 0);
}

#[test]
fn refused_upload_does_not_desynchronise_its_connection() {
    let registry = FakeRegistry::start();
    let larder = Larder::start(&registry);
    for length in [5, 100_000, 10_000_000] {
        let mut connection = larder.connect();
        let head = format!(
            "PUT {} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n",
            manifest(REPOSITORY, "v1")
        );
        connection.send_raw(head.as_bytes());
        // The server may have closed the connection by then.
        let _ = connection.try_send_raw(&vec![b'x'; length]);
        let _ = connection.try_send_raw(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n");
        check_error(&connection.read_response(), 405, "UNSUPPORTED");
        if let Some(head) = connection.try_read_head() {
            assert_eq!(head.status, 200, "the body of {length} was parsed as a request");
        }
    }
}

#[test]
fn malformed_requests_get_the_errors_of_the_specification() {
    let registry = FakeRegistry::start();
    let larder = Larder::start(&registry);
    let upper = digest_of(b"x").to_uppercase().replace("SHA256", "sha256");
    for (path, status, code) in [
        (manifest(REPOSITORY, ".INVALID_MANIFEST_NAME"), 404, "MANIFEST_UNKNOWN"),
        (manifest(REPOSITORY, "-x"), 404, "MANIFEST_UNKNOWN"),
        (manifest(REPOSITORY, &"t".repeat(129)), 404, "MANIFEST_UNKNOWN"),
        (manifest(REPOSITORY, "sha256:totallywrong"), 400, "DIGEST_INVALID"),
        (manifest(REPOSITORY, "md5:d41d8cd98f00b204e9800998ecf8427e"), 400, "DIGEST_INVALID"),
        (blob(REPOSITORY, "sha256:baddigeststring"), 400, "DIGEST_INVALID"),
        (blob(REPOSITORY, "latest"), 400, "DIGEST_INVALID"),
        (blob(REPOSITORY, &upper), 400, "DIGEST_INVALID"),
        (format!("/v2/{REPOSITORY}/referrers/sha256:bad"), 400, "DIGEST_INVALID"),
        (manifest("Team/App", "v1"), 400, "NAME_INVALID"),
        (manifest("team/-app", "v1"), 400, "NAME_INVALID"),
        (manifest("team/a..b", "v1"), 400, "NAME_INVALID"),
    ] {
        let got = larder.get(&path);
        check_error(&got, status, code);
        let head = larder.head(&path);
        assert_eq!((head.status, head.body.len()), (status, 0), "HEAD {path}");
        assert_eq!(head.header("content-length"), got.header("content-length"), "HEAD {path}");
    }
    assert_eq!(registry.connection_count(), 0);
}

#[test]
fn other_paths_get_404_in_json() {
    let larder = Larder::start_alone(|_| {});
    for path in ["/v2/_catalog", "/v1/_ping", "/v1/repositories/x/tags", "/", "/healthz", "/v3/"] {
        let got = larder.get(path);
        assert_eq!((got.status, got.header("content-type")), (404, Some("application/json")));
        assert!(!got.error_code().is_empty(), "{path}: {got:?}");
    }
}

#[test]
fn missing_upstream_content_gets_404_with_the_right_code() {
    let registry = FakeRegistry::start();
    registry.expect_unknown("*");
    let larder = Larder::start(&registry);
    check_error(&larder.get(&manifest(REPOSITORY, "v1")), 404, "MANIFEST_UNKNOWN");
    check_error(&larder.get(&manifest(REPOSITORY, &absent_digest(1))), 404, "MANIFEST_UNKNOWN");
    check_error(&larder.get(&blob(REPOSITORY, &absent_digest(2))), 404, "BLOB_UNKNOWN");
    check_error(&larder.get(&format!("/v2/{REPOSITORY}/tags/list")), 404, "NAME_UNKNOWN");
    let head = larder.head(&blob(REPOSITORY, &absent_digest(3)));
    assert_eq!((head.status, head.body.len(), head.end), (404, 0, End::Open));
}

/// Every kind of upstream failure, and the expected response to a manifest request.
fn failures() -> Vec<(&'static str, Fault, &'static [u16])> {
    vec![
        ("400", Fault::status(400), &[404, 502]),
        ("403", Fault::status(403), &[403, 404]),
        ("404", Fault::status(404), &[404]),
        ("410", Fault::status(410), &[404]),
        ("418", Fault::status(418), &[404, 502]),
        ("429", Fault::rate_limited(77), &[429]),
        ("500", Fault::status(500), &[502, 503]),
        ("502", Fault::status(502), &[502, 503]),
        ("503", Fault::status(503), &[503]),
        ("504", Fault::status(504), &[502, 503, 504]),
        ("closed", Fault::CloseBeforeHead, &[502, 503]),
        ("reset", Fault::ResetBeforeHead, &[502, 503]),
        ("garbage", Fault::Raw(b"SSH-2.0-OpenSSH\r\n\r\n".to_vec()), &[502, 503]),
        ("a redirect to nowhere", Fault::Redirect(307, String::new()), &[502, 503]),
        ("204", Fault::Status(204, vec![], vec![]), &[404, 502, 503]),
        ("206", Fault::Status(206, vec![], b"x".to_vec()), &[502, 503]),
        ("304", Fault::Status(304, vec![], vec![]), &[502, 503]),
    ]
}

#[test]
fn upstream_failures_of_a_manifest_become_statuses_that_clients_handle() {
    for (name, fault, statuses) in failures() {
        let registry = FakeRegistry::start();
        registry.add_sample(REPOSITORY);
        registry.fault(On::anything(), fault);
        let larder = Larder::start(&registry);
        let got = larder.get(&manifest(REPOSITORY, "v1"));
        assert!(statuses.contains(&got.status), "{name}: {got:?}");
        assert!(!got.error_code().is_empty() && got.end == End::Open, "{name}: {got:?}");
        assert!(larder.names().is_empty(), "{name}");
    }
}

#[test]
fn blob_failures_let_clients_fall_back() {
    // podman and CRI-O treat any other 4xx for a blob as final.
    for (name, fault, _) in failures() {
        let registry = FakeRegistry::start();
        let digest = registry.add_blob(REPOSITORY, &bytes(5000, 1));
        registry.fault(On::anything(), fault);
        let larder = Larder::start(&registry);
        for method in ["GET", "HEAD"] {
            let got = larder.request(method, &blob(REPOSITORY, &digest), &[]);
            let status = got.status;
            assert!(matches!(status, 404 | 429 | 502..=504), "{method} {name}: {got:?}");
            assert!(got.end == End::Open, "{method} {name}: {got:?}");
        }
        assert!(larder.names().is_empty(), "{name}");
    }
}

#[test]
fn rate_limit_of_a_manifest_is_passed_on_with_retry_after() {
    let registry = FakeRegistry::start();
    registry.fault(On::anything(), Fault::rate_limited(77));
    let larder = Larder::start(&registry);
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    check_error(&got, 429, "TOOMANYREQUESTS");
    assert_eq!(got.header("retry-after"), Some("77"));
    assert_eq!(registry.requests().len(), 1, "no new request before Retry-After");
}

#[test]
fn unreachable_or_silent_upstream_is_a_bad_gateway() {
    let registry = FakeRegistry::start();
    registry.fault(On::anything(), Fault::StallForever);
    let larder = Larder::start_with(&registry, Settings::be_impatient);
    let silent = larder.get(&manifest(REPOSITORY, "v1"));
    check_error(&silent, 504, "UNAVAILABLE");
    let silent = larder.get(&blob(REPOSITORY, &absent_digest(1)));
    assert!(matches!(silent.status, 503 | 504), "{silent:?}");
    registry.stop();
    let gone = larder.get(&manifest(REPOSITORY, "v2"));
    assert!(matches!(gone.status, 502..=504), "{gone:?}");
    assert!(gone.text().contains(&registry.host()), "the error names the registry: {gone:?}");
}

#[test]
fn upstream_whose_name_does_not_resolve_is_a_bad_gateway() {
    let larder = Larder::start_alone(|settings| {
        settings.naming.default_upstream = "registry.invalid".parse().ok();
        let registry = FakeRegistry::start();
        settings.list("registry.invalid", &registry).endpoint.authority =
            "registry.invalid".to_owned();
    });
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    assert!(matches!(got.status, 502..=504), "{got:?}");
    assert!(got.text().contains("registry.invalid"), "{got:?}");
}

#[test]
fn error_texts_never_contain_the_query_of_a_signed_url() {
    for fault in [
        Fault::status(500),
        Fault::status(403),
        Fault::status(404),
        Fault::Html200,
        Fault::WrongBytes,
        Fault::CloseBeforeHead,
        Fault::StallForever,
        Fault::Redirect(307, "ftp://x/?signature=hunter2".into()),
        Fault::Redirect(307, "http://169.254.169.254/?signature=hunter2".into()),
        Fault::Redirect(307, "/elsewhere?signature=hunter2".into()),
    ] {
        let (registry, storage) = (FakeRegistry::start(), FakeRegistry::start());
        storage.expect_unknown("*");
        let digest = registry.add(REPOSITORY, "v1", &Image::sample("v1"));
        let location = storage.url("/bucket/thing?signature=hunter2");
        registry.fault(On::anything(), Fault::redirect_to(&location));
        storage.fault(On::path("*", "/bucket/*").times(4), fault);
        let larder = Larder::start_with(&registry, Settings::be_impatient);
        for path in [manifest(REPOSITORY, "v1"), blob(REPOSITORY, &digest)] {
            let got = larder.get(&path);
            assert!(got.status >= 400, "{got:?}");
            let shown = format!("{:?} {}", got.headers, got.text());
            assert!(!shown.contains("hunter2") && !shown.contains("signature"), "{got:?}");
        }
    }
}
