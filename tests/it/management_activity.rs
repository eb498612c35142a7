//! What the management API reports about the recent past: requests, warnings, pulls, traffic, and the configuration.

use std::fs;

use serde_json::{Value, json};

use crate::support::client::{get, request};
use crate::support::larder::{manifest, until};
use crate::support::site::{NamedImage, RunningServer, Site, TOKEN};
use crate::support::{FakeRegistry, Image};

/// The entries of a list, such as `requests`.
fn list(server: &RunningServer, what: &str, key: &str) -> Vec<Value> {
    server.api(what)[key].as_array().expect("a list").clone()
}

#[test]
fn recent_requests_are_listed_without_queries_and_probes() {
    let (registry, site, images) = Site::with_samples(&["app:1"]);
    registry.expect_unknown("*/none/*");
    let server = site.serve();
    assert_eq!(get(server.address(), "/v2/").status, 200);
    let target = format!("{}?ns=docker.io&token=s3cret-in-a-query", images[0].target());
    let headers = [("User-Agent", "containerd/2.1"), ("Authorization", "Basic czNjcmV0")];
    // A request is listed once its response has been sent, and two connections do not wait for each other.
    let listed = |count| until("request", || list(&server, "requests", "requests").len() == count);
    assert_eq!(request(server.address(), "GET", &target, &headers).status, 200);
    listed(1);
    assert_eq!(get(server.address(), &manifest("library/none", "1")).status, 404);
    listed(2);
    let requests = list(&server, "requests", "requests");
    let (failed, hit) = (&requests[0], &requests[1]);
    assert_eq!((&failed["status"], &failed["cache"]), (&json!(404), &json!("none")));
    assert_eq!(
        [&hit["path"], &hit["cache"], &hit["agent"], &hit["client"], &hit["upstream"]],
        [&images[0].target(), "hit", "containerd/2.1", "127.0.0.1", "docker.io"]
    );
    assert!(hit["bytes"].as_u64() > Some(0) && hit["ended"].is_null(), "{hit}");
    let text = server.api("requests").to_string();
    assert!(!text.contains("s3cret") && !text.contains("czNjcmV0"), "{text}");
}

#[test]
fn pulls_are_counted_by_image_with_the_last_client() {
    let (_registry, site, images) = Site::with_samples(&["app:1", "app:2"]);
    let server = site.serve();
    server.wait_for_images(2);
    for method in ["HEAD", "GET"] {
        let headers = [("User-Agent", "containerd/2.1")];
        assert_eq!(request(server.address(), method, &images[1].target(), &headers).status, 200);
    }
    let pulled = server.api("image?image=app:2")["pulls"].clone();
    let expected =
        json!({ "sinceStart": 1, "lastClient": "127.0.0.1", "lastAgent": "containerd/2.1" });
    assert_eq!(pulled, expected);
    let sorted = list(&server, "images?sort=pulls", "images");
    assert_eq!((&sorted[0]["pulls"], &sorted[1]["pulls"]["sinceStart"]), (&expected, &json!(0)));
    let other = list(&server, "images?sort=pulls&order=ascending", "images");
    assert_eq!(other[1]["image"], images[1].full());
    assert_eq!(server.get("/api/v1/images?order=up").status, 400);
}

#[test]
fn warnings_and_errors_of_the_log_are_listed() {
    let (_registry, site, _) = Site::with_samples(&["app:1"]);
    let server = site.serve();
    assert_eq!(server.call_with_token("wrong", "POST", "pins?pattern=a").status, 401);
    let lines = list(&server, "log", "lines");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["level"], "warning");
    let text = lines[0]["text"].as_str().expect("a text");
    assert!(text.contains("wrong token") && !text.contains(TOKEN), "{text}");
}

#[test]
fn history_survives_a_restart_and_a_damaged_record_does_not_prevent_the_start() {
    let (_registry, site, images) = Site::with_samples(&["app:1"]);
    let server = site.serve();
    images[0].pull(server.address());
    server.log();
    let hits = |server: &RunningServer, what: &str| {
        let steps = list(server, what, "history");
        steps.iter().map(|step| step["hits"].as_u64().expect("a number")).sum::<u64>()
    };
    let server = site.serve();
    for what in ["history", "history?span=hour", "history?span=day", "history?span=week"] {
        // A thread reads the record after the start.
        until(what, || hits(&server, what) > 0);
    }
    assert_eq!(server.api("history?span=week")["stepSeconds"], 3600);
    assert_eq!(server.get("/api/v1/history?span=year").status, 400);
    server.log();
    fs::write(site.root().join("usage/traffic.json"), "{\"minutes\": [[1, 2]]").unwrap();
    let server = site.serve();
    assert_eq!(hits(&server, "history"), 0);
}

#[test]
fn requested_pulls_report_success_and_failure() {
    let registry = FakeRegistry::start();
    let site = Site::new(&registry, "");
    let app = NamedImage::new("app", "1", &Image::sample("a"));
    app.publish(&registry);
    registry.expect_unknown("*/none/*");
    let server = site.serve();
    for image in ["app:1", "none:1"] {
        assert_eq!(server.call("POST", &format!("prefetch?image={image}")).status, 202);
    }
    let state = |name: &str| {
        let all = list(&server, "prefetches", "prefetches");
        all.into_iter().find(|pull| pull["image"] == format!("docker.io/library/{name}"))
    };
    until("the end of both", || {
        let is = |name: &str, word: &str| state(name).is_some_and(|pull| pull["state"] == word);
        is("app:1", "found") && is("none:1", "failed")
    });
    assert!(state("none:1").is_some_and(|pull| pull["reason"].is_string()));
    site.wait_for(&app);
}

#[test]
fn configuration_is_shown_without_secrets_and_a_refused_file_is_a_problem() {
    let (_registry, site, _) = Site::with_samples(&["app:1"]);
    site.configure(
        "objectStore: {endpoint: 'http://127.0.0.1:1', bucket: b, accessKeyId: a, secretAccessKey: hush}",
    );
    let mut server = site.serve();
    let shown = server.api("configuration");
    let effective = shown["effective"].as_str().expect("a text");
    assert!(effective.contains("objectStore") && !effective.contains("hush"), "{effective}");
    assert_eq!((&shown["refused"], &shown["afterRestart"]), (&Value::Null, &json!([])));
    assert!(shown["file"].as_str().is_some_and(|file| file.ends_with("larder.yaml")));

    site.configure("prt: 1");
    server.process.signal("HUP");
    server.wait_for_log("the previous configuration stays in effect");
    until("the refusal", || server.api("configuration")["refused"].is_object());
    let refused = server.api("configuration")["refused"].clone();
    assert!(refused["text"].as_str().is_some_and(|text| text.contains("prt")), "{refused}");
    let state = server.api("status")["state"].clone();
    let problems = state["problems"].as_array().expect("problems");
    let about = problems.iter().find(|problem| problem["kind"] == "configuration");
    assert_eq!(about.expect("a problem")["since"], refused["since"]);

    site.configure("");
    server.process.signal("HUP");
    server.wait_for_log("configuration reloaded after SIGHUP");
    until("the reload", || server.api("configuration")["refused"].is_null());
    let after_restart = server.api("configuration")["afterRestart"].clone();
    assert_eq!(after_restart, json!(["objectStore"]));
}

#[test]
fn client_configuration_has_the_host_of_the_request_and_the_port_for_clients() {
    let (_registry, site, _) = Site::with_samples(&["app:1"]);
    let server = site.serve();
    let shown = server.api("client-configuration");
    let url = format!("http://{}", server.address());
    assert_eq!((&shown["server"], &shown["client"]), (&json!(url), &json!("containerd")));
    let files = shown["files"].as_array().expect("files");
    let path = |file: &Value| file["path"].as_str().map(str::to_owned).expect("a path");
    assert!(files.iter().any(|file| path(file) == "/etc/containerd/certs.d/_default/hosts.toml"));
    assert!(files[0]["text"].as_str().is_some_and(|text| text.contains(&url)), "{shown}");
    assert!(!shown["assumptions"].as_array().expect("a list").is_empty());
    let other = server.api("client-configuration?client=podman&server=https://larder.test");
    assert_eq!(
        (&other["server"], &other["assumptions"]),
        (&json!("https://larder.test"), &json!([]))
    );
    for query in ["client=wget", "server=ftp://x"] {
        let got = server.get(&format!("/api/v1/client-configuration?{query}"));
        assert_eq!(got.status, 400, "{query}");
    }
}
