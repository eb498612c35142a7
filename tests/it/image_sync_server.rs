//! `sync` of a server process: the management API, metrics, commands, pins, reloads.

use std::fs;

use serde_json::{Value, json};

use crate::support::client::get;
use crate::support::larder::until;
use crate::support::process::run;
use crate::support::site::{NamedImage, RunningServer, Site};
use crate::support::{FakeRegistry, Fault, Image, On, bytes};

/// A registry with two images, and a server that keeps them present.
fn served() -> (FakeRegistry, Site, Vec<NamedImage>, RunningServer) {
    let (registry, site) = Site::empty("");
    let images = ["v1", "v2"].map(|tag| NamedImage::new("app", tag, &Image::sample(tag)));
    images.iter().for_each(|image| image.publish(&registry));
    site.configure("sync: [{name: apps, images: ['app:v*'], every: 6h}]");
    let server = site.serve();
    (registry, site, images.into(), server)
}

fn entry(server: &RunningServer, name: &str) -> Value {
    let document = server.api("sync");
    let entries = document["entries"].as_array().expect("a list");
    entries.iter().find(|entry| entry["name"] == name).cloned().unwrap_or_default()
}

#[test]
fn api_shows_entries_and_requests_runs() {
    let (registry, _site, images, server) = served();
    until("the first run to end", || entry(&server, "apps")["runs"] == 1);
    images.iter().for_each(|image| image.pull(server.address()));
    let shown = entry(&server, "apps");
    for (key, expected) in [
        ("state", json!("idle")),
        ("everySeconds", json!(21_600)),
        ("cron", json!(null)),
        ("images", json!(2)),
        ("missingImages", json!(0)),
        ("missing", json!([])),
    ] {
        assert_eq!(shown[key], expected, "{key}: {shown}");
    }
    assert!(shown["succeeded"].is_string() && shown["next"].is_string(), "{shown}");
    for (metric, expected) in [
        ("larder_sync_images{sync=\"apps\"}", 2.0),
        ("larder_sync_missing_images{sync=\"apps\"}", 0.0),
    ] {
        assert_eq!(server.metric(metric), expected, "{metric}");
    }
    assert!(server.metric("larder_sync_last_success_timestamp_seconds{sync=\"apps\"}") > 1e9);
    let third = NamedImage::new("app", "v3", &Image::sample("v3"));
    third.publish(&registry);
    let got = server.call("POST", "sync?name=apps");
    assert_eq!((got.status, &got.json()["requested"]), (202, &json!([{"name": "apps", "run": 2}])));
    until("the second run to end", || entry(&server, "apps")["runs"] == 2);
    assert_eq!(entry(&server, "apps")["images"], 3);
    let got = server.call("POST", "sync?name=nosuch");
    assert!(got.status == 404 && got.text().contains("there are apps"), "{got:?}");
    assert_eq!(server.call("POST", "sync").status, 202);
    let pins = server.api("pins");
    assert_eq!(pins["pins"][0], json!({"pattern": "docker.io/library/app:v1", "source": "sync"}));
    server.log();
}

#[test]
fn images_that_are_kept_present_are_not_pruned() {
    let (_registry, site, images, server) = served();
    until("the first run to end", || entry(&server, "apps")["runs"] == 1);
    let message = site.run_ok(&["prune", "*"]);
    assert!(message.contains("2 images kept: pinned"), "{message}");
    let pins = site.run_ok(&["pin"]);
    assert!(pins.contains("docker.io/library/app:v2  (sync)"), "{pins}");
    let (code, _, stderr) = site.run(&["unpin", "app:v2"]);
    assert!(code == Some(2) && stderr.contains("kept present by sync"), "{stderr}");
    drop(server);
    site.configure("");
    site.make_old();
    let server = site.serve();
    until("the pins to go", || site.run_ok(&["pin"]).is_empty());
    assert!(site.run_ok(&["prune", "*"]).contains("2 images removed"));
    assert!(!site.has_all(&images[0]));
    drop(server);
}

#[test]
fn reload_adds_an_entry_and_keeps_the_state_of_others() {
    let (registry, site, _, mut server) = served();
    until("the first run to end", || entry(&server, "apps")["runs"] == 1);
    let other = NamedImage::new("base", "1", &Image::sample("base"));
    other.publish(&registry);
    site.configure(
        "sync:\n- {name: apps, images: ['app:v*'], every: 7h}\n\
         - {name: base, images: ['base:1'], cron: '0 3 * * *'}",
    );
    server.process.signal("HUP");
    server.process.wait_until_it_logs("configuration reloaded after SIGHUP keys=sync");
    until("the run of the new entry", || entry(&server, "base")["runs"] == 1);
    site.wait_for(&other);
    let apps = entry(&server, "apps");
    assert_eq!((&apps["runs"], &apps["everySeconds"]), (&json!(1), &json!(25_200)));
    assert_eq!(entry(&server, "base")["cron"], "0 3 * * *");
    server.log();
}

#[test]
fn image_that_does_not_fit_is_missing_and_not_downloaded_again_and_again() {
    let (registry, site) = Site::empty("cacheSize: 100kB");
    let image = NamedImage::new("app", "v1", &Image::new("large").layer(bytes(1_000_000, 1)));
    image.publish(&registry);
    let mut server = site.serve();
    server.wait_until_counted();
    site.configure("cacheSize: 100kB\nsync: [{name: apps, images: ['app:v1'], every: 1h}]");
    server.process.signal("HUP");
    server.process.wait_until_it_logs("configuration reloaded after SIGHUP keys=sync");
    until("the run to end", || entry(&server, "apps")["runs"] == 1);
    let shown = entry(&server, "apps");
    assert_eq!((&shown["images"], &shown["missingImages"]), (&json!(0), &json!(1)), "{shown}");
    let layer = &image.image.layers()[0].digest;
    assert!(registry.count("GET", &format!("/v2/library/app/blobs/{layer}")) <= 1);
    server.log();
}

#[test]
fn command_shows_entries_and_waits_for_a_run() {
    let (registry, site, _, server) = served();
    until("the first run to end", || entry(&server, "apps")["runs"] == 1);
    // The port of the management API was free when the server started.
    let port = server.management.port();
    let with_port = |extra: &str| {
        let config = fs::read_to_string(site.path("larder.yaml")).expect("a configuration");
        let config = config.replace("port: 0", &format!("port: {port}"));
        fs::write(site.path("command.yaml"), format!("{config}{extra}")).expect("a file");
    };
    with_port("");
    let command = |words: &[&str]| {
        let config = site.path("command.yaml").display().to_string();
        run(&[&["--config-file", &config], words].concat())
    };
    let (code, table, stderr) = command(&["sync"]);
    assert!(code == Some(0) && table.contains("apps  idle   2       0"), "{table}{stderr}");
    let (code, document, _) = command(&["sync", "--json"]);
    let document: Value = serde_json::from_str(&document).expect("JSON");
    assert_eq!((code, &document["entries"][0]["images"]), (Some(0), &json!(2)));
    let third = NamedImage::new("app", "v3", &Image::sample("v3"));
    third.publish(&registry);
    let (code, _, stderr) = command(&["sync", "now", "apps"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(
        stderr.ends_with("apps: 3 of 3 images in the cache\n") && site.has_all(&third),
        "{stderr}"
    );
    registry.fault(On::tags("library/app"), Fault::status(403));
    let (code, _, stderr) = command(&["sync", "now"]);
    assert!(code == Some(1) && stderr.contains("apps: docker.io/library/app:v*: "), "{stderr}");
    assert!(stderr.contains("1 of 1 image missing"), "{stderr}");
    let (code, _, stderr) = command(&["sync", "now", "nosuch"]);
    assert!(code == Some(1) && stderr.contains("there are apps"), "{stderr}");
    server.log();
    let (code, _, stderr) = command(&["sync"]);
    assert!(
        code == Some(1) && stderr.contains("is it running with this configuration?"),
        "{stderr}"
    );
    let (code, _, stderr) = run(&["sync"]);
    assert!(code == Some(1) && stderr.contains("the configuration has no sync"), "{stderr}");
}

#[test]
fn unreadable_list_is_an_error_of_the_configuration_check_and_not_of_the_server() {
    let (registry, site) = Site::empty("");
    let image = NamedImage::new("app", "v1", &Image::sample("v1"));
    image.publish(&registry);
    let list = site.path("list").display().to_string();
    site.configure(&format!(
        "sync: [{{name: apps, images: ['app:v1'], lists: [{list}], every: 1h}}]"
    ));
    let (code, _, stderr) = site.run(&["config", "check"]);
    assert!(code == Some(1) && stderr.contains("error: sync: apps: lists: "), "{stderr}");
    let server = site.serve();
    site.wait_for(&image);
    fs::write(&list, "alpine@x\n").expect("a file");
    let (code, _, stderr) = site.run(&["config", "check"]);
    assert!(code == Some(1) && stderr.contains("line 1: alpine@x"), "{stderr}");
    fs::write(&list, "app:v1\n").expect("a file");
    assert_eq!(site.run(&["config", "check"]).0, Some(0));
    let shown = site.run_ok(&["config", "show"]);
    assert!(shown.contains("name: apps") && shown.contains("every: 1h"), "{shown}");
    server.log();
}

#[test]
fn preloaded_images_are_an_entry_that_runs_once_and_pins_nothing() {
    let (registry, site) = Site::empty("");
    let image = NamedImage::new("app", "v1", &Image::sample("v1"));
    image.publish(&registry);
    let list = site.path("list").display().to_string();
    fs::write(&list, "app:v1\n").expect("a file");
    site.configure(&format!("preloadImages: {list}"));
    let server = site.serve();
    until("the run to end", || entry(&server, "preload")["runs"] == 1);
    assert!(site.has_all(&image));
    let shown = entry(&server, "preload");
    assert_eq!(
        (&shown["next"], &shown["everySeconds"], &shown["cron"]),
        (&json!(null), &json!(null), &json!(null))
    );
    assert_eq!(server.api("pins")["pins"], json!([]));
    let got = get(server.address(), &image.target());
    assert_eq!(got.status, 200);
    server.log();
}
