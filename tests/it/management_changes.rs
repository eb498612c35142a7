//! Changes through the management API: downloads, pins, images.

use std::fs;

use serde_json::{Value, json};

use crate::support::client::get;
use crate::support::larder::{blob, manifest, until};
use crate::support::site::{NamedImage, Site, escaped, names};
use crate::support::{FakeRegistry, Image, Index};

#[test]
fn cancelled_download_disconnects_its_client_and_is_resumed_from_the_partial() {
    let (registry, site, content, digest, gate) = Site::gated(300_000);
    let server = site.serve();
    let path = blob("library/big", &digest);
    let mut client = server.begin(&path);
    client.read_head();
    client.read_body(299_000);
    until("the bytes that were sent", || server.api("flights")["flights"][0]["bytes"] == 300_000);
    let expected = json!([{
        "upstream": "docker.io",
        "repository": "docker.io/library/big",
        "digest": digest,
        "bytes": 300_000,
        "sizeBytes": 1_000_000,
        "connections": 1,
    }]);
    assert_eq!(server.api("flights")["flights"], expected);
    assert_eq!(server.api("flights")["partials"][0]["digest"], digest);

    let what = format!("flights?upstream=docker.io&digest={digest}");
    let got = server.call("DELETE", &what);
    assert_eq!((got.status, &got.json()["cancelled"]), (202, &json!(digest)));
    gate.open();
    let (_, complete) = client.read_to_end();
    assert!(!complete, "its client is disconnected");
    until("the download to end", || server.api("flights")["flights"] == json!([]));
    let partial = &server.api("flights")["partials"][0];
    let bytes = partial["bytes"].as_u64().expect("a number");
    assert!((300_000..1_000_000).contains(&bytes) && partial["written"].is_string(), "{partial}");
    assert_eq!(server.call("DELETE", &what).status, 404);
    assert!(!site.has(&digest));

    let resumed = server.call("POST", "flights/resume");
    assert_eq!((resumed.status, &resumed.json()["resumed"]), (202, &json!(1)));
    until("the blob to be published", || site.has(&digest));
    let asked = registry.requests_for("GET", &path);
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[1].header("range"), Some(&*format!("bytes={bytes}-")));
    until("the partial download to be gone", || server.api("flights")["partials"] == json!([]));
    assert_eq!(server.call("POST", "flights/resume").json()["resumed"], 0);
    assert!(get(server.address(), &path).body == content);
    assert_eq!(server.metric("larder_download_resumes_total"), 1.0);
    let log = server.log();
    let line =
        format!("management: download cancelled digest={digest} upstream=docker.io ip=127.0.0.1\n");
    assert!(log.contains(&line), "{log}");
}

#[test]
fn next_client_restarts_a_cancelled_download() {
    let (_registry, site, content, digest, gate) = Site::gated(300_000);
    let server = site.serve();
    let path = blob("library/big", &digest);
    let mut client = server.begin(&path);
    client.read_head();
    client.read_body(299_000);
    let what = format!("flights?upstream=docker.io&digest={digest}");
    assert_eq!(server.call("DELETE", &what).status, 202);
    gate.open();
    assert!(!client.read_to_end().1);
    let got = get(server.address(), &path);
    assert!(got.status == 200 && got.complete && got.body == content, "{got:?}");
}

#[test]
fn pins_are_added_removed_and_listed_by_the_api() {
    let (_registry, site, _) = Site::with_samples(&["app:1"]);
    let list = site.path("list");
    fs::write(&list, "quay.io/org/app\n").expect("a file");
    site.configure(&format!("pin: ['*/base:*']\npinLists: [{}]", list.display()));
    let server = site.serve();
    let pin = |method: &str, pattern: &str| {
        let got = server.call(method, &format!("pins?pattern={}", escaped(pattern)));
        (got.status, got.json())
    };
    let answer =
        |pattern: &str, changed: bool| (200, json!({"pattern": pattern, "changed": changed}));
    assert_eq!(pin("POST", "app:1"), answer("docker.io/library/app:1", true));
    assert_eq!(pin("POST", "app:1"), answer("docker.io/library/app:1", false));
    assert_eq!(pin("POST", "/^ghcr/"), answer("/^ghcr/", true));
    let pins = server.api("pins");
    let expected = json!([
        {"pattern": "*/base:*", "source": "configuration"},
        {"pattern": "quay.io/org/app", "source": "list"},
        {"pattern": "docker.io/library/app:1", "source": "cache"},
        {"pattern": "/^ghcr/", "source": "cache"},
    ]);
    let sorted = |pins: &Value| {
        let mut all: Vec<String> =
            pins.as_array().expect("pins").iter().map(Value::to_string).collect();
        all.sort();
        all
    };
    assert_eq!(sorted(&pins["pins"]), sorted(&expected));
    assert!(pins["problem"].is_null());
    assert_eq!(site.listed(&["--pinned"]), ["docker.io/library/app:1"]);
    assert_eq!(server.api("image?image=app:1")["pinned"], true);
    site.run_ok(&["unpin", "/^ghcr/"]);
    assert_eq!(
        server.api("pins")["pins"].as_array().map(Vec::len),
        Some(3),
        "the API shows what a command has changed"
    );
    assert_eq!(pin("DELETE", "app:1"), answer("docker.io/library/app:1", true));
    for pattern in ["app:1", "*/base:*", "quay.io/org/app"] {
        let (status, message) = pin("DELETE", pattern);
        assert!(
            status == 404
                && message["error"]
                    .as_str()
                    .is_some_and(|text| text.contains("is not a pin of the cache directory")),
            "{message}"
        );
    }
    assert_eq!(server.api("image?image=app:1")["pinned"], false);
}

#[test]
fn prune_by_the_api_removes_selected_images_and_updates_the_list() {
    let (registry, site, images) = Site::with_samples(&["app:1", "app:2", "app:3"]);
    site.configure("pin: ['app:3']");
    images.iter().zip([5, 3, 7]).for_each(|(each, hours)| site.unused_for(each, hours));
    let server = site.serve();
    server.wait_for_images(3);
    let prune = |query: &str| {
        let got = server.call("POST", &format!("prune?{query}"));
        assert_eq!(got.status, 200, "{query}: {got:?}");
        got.json()
    };
    let dry = prune("unusedFor=2h&count=1&dryRun=true");
    assert_eq!(
        (&dry["images"], &dry["keptPinned"]),
        (&json!(["docker.io/library/app:1"]), &json!(1))
    );
    assert_eq!(prune("createdBefore=2001-01-01")["removed"], 0);
    let real = prune("unusedFor=2h&count=1");
    assert_eq!((&dry["freedBytes"], &dry["images"]), (&real["freedBytes"], &real["images"]));
    assert_eq!((&dry["dryRun"], &real["dryRun"]), (&json!(true), &json!(false)));
    let list = server.wait_for_images(2);
    assert_eq!(names(&list), ["docker.io/library/app:2", "docker.io/library/app:3"]);
    registry.clear_requests();
    assert_eq!(get(server.address(), &manifest("library/app", "1")).status, 200);
    assert_eq!(
        registry.count("GET", "/v2/library/app/manifests/1"),
        1,
        "the next pull is a miss at once"
    );
    // A manifest is served before it is stored.
    until("the stored tag", || site.run_ok(&["list", "-q"]).contains("app:1"));
    assert_eq!(prune("pattern=*&pattern=app:2&includePinned=true")["removed"], 3);
    assert_eq!(server.metric("larder_removed_images_total{why=\"pruned\"}"), 4.0);
    server.wait_for_images(0);
    let log = server.log();
    assert!(
        log.contains("management: pruned images=3 ") && log.contains(" ip=127.0.0.1\n"),
        "{log}"
    );
}

#[test]
fn prefetch_completes_an_image() {
    let registry = FakeRegistry::start();
    let (amd64, arm64) = (Image::sample("a"), Image::sample("b").platform("linux", "arm64"));
    let index = Index::new().image(&amd64).image(&arm64);
    registry.add("library/app", "latest", &index);
    let site = Site::new(&registry, "");
    let server = site.serve();
    let got = server.call("POST", "prefetch?image=app");
    assert_eq!((got.status, &got.json()["image"]), (202, &json!("docker.io/library/app:latest")));
    // The configuration selects all platforms.
    for image in [&amd64, &arm64] {
        site.wait_for(&NamedImage::new("app", "latest", image));
    }
    let shown = server.api("image?image=app");
    assert_eq!((&shown["complete"], &shown["missingBytes"]), (&json!(true), &json!(0)));
    assert_eq!(shown["platforms"].as_array().map(Vec::len), Some(2));
    registry.stop();
    NamedImage::new("app", &amd64.digest(), &amd64).pull(server.address());
}

#[test]
fn failed_prefetch_is_reported_with_its_reason() {
    let registry = FakeRegistry::start();
    registry.add("library/app", "1", &Image::sample("a"));
    let site = Site::new(&registry, "");
    let mut server = site.serve();
    assert_eq!(server.call("POST", "prefetch?image=app:2").status, 202);
    server.wait_for_log("prefetch started image=docker.io/library/app:2 ip=127.0.0.1");
    let message = server.wait_for_log("prefetch failed image=docker.io/library/app:2 ");
    assert!(message.contains(" WARN ") && message.contains("no such content"), "{message}");
    assert_eq!(registry.take_unscripted(), ["GET /v2/library/app/manifests/2"]);
}
