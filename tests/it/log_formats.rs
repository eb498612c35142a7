//! The log of a running server: both formats, request ids, and why a response was not a hit (`docs/log.md`).

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::private_images::authorization;
use crate::support::client::{get, request};
use crate::support::larder::{blob, manifest};
use crate::support::process::Process;
use crate::support::site::Site;
use crate::support::{Connection, FakeRegistry, Fault, Gate, Image, On, digest_of};

/// Output of `htpasswd -nbB -C 4` for demo:secret.
const DEMO: &str = "demo:$2y$04$5TeKT.s9FsTxS3i9dnaT.eeZsnvHkTXDfq6YA/Pb9LXeQk3bD5R2m\n";
/// Above the size from which the log has a line for the start and the end of a download.
const LARGE_BYTES: usize = 2_000_000;
const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// A JSON line of the log.
fn parsed(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// The keys that the document explains: the first cells of the rows of its tables.
fn documented() -> BTreeSet<String> {
    let document = include_str!("../../docs/log.md");
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| row.split('`').next()).map(str::to_owned).collect()
}

#[test]
fn every_line_of_a_json_log_is_an_object_with_documented_keys() {
    let (registry, content, digest) = FakeRegistry::with_blob("library/big", LARGE_BYTES);
    let image = Image::sample("a");
    registry.add("library/app", "1", &image);
    registry.expect_unknown("/v2/library/none/manifests/1");
    let site = Site::new(&registry, "");
    fs::write(site.path("htpasswd"), DEMO).unwrap();
    let users = format!("serverAuthConfig: {{htpasswd: {}}}", site.path("htpasswd").display());
    site.configure(&format!("logFormat: json\nlogLevel: debug\n{users}"));
    let mut server = site.serve();
    let (address, login) = (server.address(), authorization("demo", "secret"));
    let ask = |target: &str, id: &str| {
        let headers = [
            ("Authorization", login.as_str()),
            ("User-Agent", "agent/1 \"="),
            ("traceparent", TRACE),
            ("X-Request-Id", id),
        ];
        request(address, "GET", target, &headers)
    };
    let tag = manifest("library/app", "1");
    for (target, id, status) in [
        (tag.clone(), "miss", 200),
        (tag.clone(), "hit", 200),
        (blob("library/big", &digest), "big", 200),
        (manifest("library/none", "1"), "missing", 404),
    ] {
        let got = ask(&target, id);
        assert_eq!((got.status, got.header("x-request-id")), (status, Some(id)), "{got:?}");
    }
    let refused = request(address, "GET", &tag, &[("X-Request-Id", "no good")]);
    let generated = refused.header("x-request-id").expect("an id").to_owned();
    assert!(refused.status == 401 && generated != "no good", "{refused:?}");
    let probe = server.get("/health");
    assert!(probe.header("x-request-id").is_some(), "{probe:?}");
    // This client leaves before its response.
    let (gate, other) = (Gate::new(), registry.add_blob("library/big", b"other"));
    registry.fault(On::get_blob(&other), Fault::Gate(gate.clone()));
    let mut leaving = Connection::open(address);
    leaving.send("GET", &blob("library/big", &other), &[("Authorization", &login)]);
    registry.wait_for("GET", &blob("library/big", &other), 1);
    leaving.reset();
    server.process.wait_until_it_logs("client-gone");
    gate.open();

    let log = server.log();
    let lines: Vec<Value> = log.lines().map(parsed).collect();
    let known = documented();
    for line in &lines {
        let keys: BTreeSet<String> = line.as_object().expect("an object").keys().cloned().collect();
        assert!(keys.is_subset(&known), "{:?} in {line}", keys.difference(&known));
        for key in ["time", "level", "target", "message"] {
            assert!(line[key].is_string(), "{line}");
        }
    }
    let of = |id: &str| {
        let found = lines.iter().find(|line| line["request_id"] == id);
        found.unwrap_or_else(|| panic!("{id} is not in:\n{log}")).clone()
    };
    for (id, cache, reason) in [
        ("miss", "miss", Value::from("not-cached")),
        ("hit", "hit", Value::Null),
        ("big", "miss", Value::from("not-cached")),
        ("missing", "none", Value::from("not-found")),
    ] {
        let line = of(id);
        assert!(line["cache"] == cache && line["reason"] == reason, "{line}");
        assert!(line["target"] == "access" && line["upstream"] == "docker.io", "{line}");
        assert!(line["user"] == "demo" && line["agent"] == "agent/1 \"=", "{line}");
        assert!(line["trace_parent"] == TRACE && line["ip"] == "127.0.0.1", "{line}");
        assert!(line["duration_ms"].is_f64() && line["first_byte_ms"].is_f64(), "{line}");
    }
    assert_eq!(of("hit")["digest"], image.digest());
    assert_eq!(of("big")["bytes"], content.len());
    let refusal = of(&generated);
    assert!(refusal["status"] == 401 && refusal["user"].is_null(), "{refusal}");
    let gone = lines.iter().find(|line| line["ended"] == "client-gone").expect("a line");
    assert!(gone["status"] == 499 && gone["bytes"] == 0 && gone["user"] == "demo", "{gone}");

    assert!(lines[0]["message"].as_str().unwrap().starts_with("larder "), "{}", lines[0]);
    assert!(lines[0]["pid"].is_u64() && lines[0]["air_gapped"] == false, "{}", lines[0]);
    let events = |message: &str| {
        let of_blob = |line: &&Value| line["message"] == message && line["digest"] == digest;
        lines.iter().filter(of_blob).cloned().collect::<Vec<_>>()
    };
    let (started, finished) = (events("download started"), events("download finished"));
    assert_eq!((started.len(), finished.len()), (1, 1), "{log}");
    assert_eq!(started[0]["endpoint"], registry.url("").trim_end_matches('/'));
    assert!(started[0]["from"] == "registry" && started[0]["size_bytes"] == LARGE_BYTES, "{log}");
    assert!(
        finished[0]["bytes"] == LARGE_BYTES && finished[0]["bytes_per_second"].is_u64(),
        "{log}"
    );
    for secret in [login.as_str(), "secret"] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[test]
fn the_text_begins_with_the_settings_and_each_failure_has_one_warning() {
    let (registry, image) = FakeRegistry::with_image("library/app");
    let site = Site::new(&registry, "tagTtl: 0");
    let mut server = site.serve();
    let first = server.process.banner.lines().next().unwrap_or_default().to_owned();
    let pid = server.process.id();
    let start = format!(" INFO  larder {} pid={pid} ", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        first.get("2026-11-29T15:56:13.242Z".len()..).map(|rest| rest.starts_with(&start)),
        Some(true),
        "{first}"
    );
    for field in
        ["directory=", "listen=127.0.0.1:0", "tls=none", "management=127.0.0.1:0", "command="]
    {
        assert!(first.contains(&format!(" {field}")), "{first}");
    }
    let target = manifest("library/app", "v1");
    assert_eq!(get(server.address(), &target).status, 200);
    assert_eq!(get(server.address(), &target).status, 200);
    let confirmed = server.process.wait_until_it_logs("cache=hit");
    assert!(confirmed.contains(" reason=confirmed "), "{confirmed}");
    registry.stop();
    assert_eq!(get(server.address(), &target).status, 200);
    let stale = server.process.wait_until_it_logs("cache=stale");
    for field in
        ["reason=registry-unreachable", &format!("digest={}", image.digest()), "ttfb=", "id="]
    {
        assert!(stale.contains(&format!(" {field}")), "{stale}");
    }
    let digest = digest_of(b"missing");
    for (target, status) in
        [(manifest("library/app", "v2"), 502), (blob("library/app", &digest), 503)]
    {
        assert_eq!(get(server.address(), &target).status, status);
        server.process.wait_until_it_logs(&target);
    }
    let log = server.log();
    // The breaker quotes the request that has opened it.
    let lines: Vec<&str> =
        log.lines().filter(|line| !line.contains("not asked for a while")).collect();
    let about =
        |word: &str| lines.iter().copied().filter(|line| line.contains(word)).collect::<Vec<_>>();
    assert_eq!(about("Connection refused").len(), 3, "one for each request that failed: {log}");
    assert!(matches!(*about("cannot fetch"), [line] if line.contains(":v1 ")), "{log}");
    for word in ["app/manifests/v2", &digest] {
        let lines = about(word);
        assert_eq!(lines.len(), 1, "{log}");
        assert!(lines[0].contains(" WARN  GET:/v2/"), "{}", lines[0]);
        assert!(lines[0].contains(" error=\"") && lines[0].contains("refused"), "{}", lines[0]);
    }
}

#[test]
fn refusals_are_no_warnings_and_a_login_that_cannot_be_checked_is_one() {
    let registry = FakeRegistry::start();
    registry.stop();
    let directory = tempfile::tempdir().expect("a directory");
    let config = format!(
        "unlistedRegistries: deny\nregistries:\n  - {{name: reg.test, access: client, endpoints: [\"{}\"]}}\n",
        registry.url("")
    );
    let mut larder = Process::serve_file(directory.path(), &config);
    let login = authorization("ann", "secret");
    let login = [("Authorization", login.as_str())];
    for (target, status, level, word) in [
        ("/v2/other.test/app/manifests/v1", 404, "INFO", " reason=not-allowed "),
        ("/v2/reg.test/app/manifests/v1", 503, "WARN", " reason=unconfirmed "),
    ] {
        assert_eq!(request(larder.address, "GET", target, &login).status, status, "{target}");
        let line = larder.wait_until_it_logs(&format!("GET:{target} "));
        assert!(line.contains(&format!(" {level}  GET:")) && line.contains(word), "{line}");
        assert_eq!(line.contains(" error=\""), level == "WARN", "{line}");
    }
}
