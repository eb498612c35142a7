//! Changing something by the management API: downloads, pins, images.

use std::fs;

use serde_json::{Value, json};

use crate::support::client::get;
use crate::support::larder::{blob, manifest, until};
use crate::support::site::{Named, Site, escaped, names};
use crate::support::{FakeRegistry, Image, Index};

#[test]
fn cancelled_download_cuts_its_client_leaves_what_came_and_is_resumed() {
    let (registry, site, content, digest, gate) = Site::gated(300_000);
    let desk = site.serve();
    let path = blob("library/big", &digest);
    let mut client = desk.begin(&path);
    client.read_head();
    client.read_body(299_000);
    until("all that has come", || desk.look("flights")["flights"][0]["bytes"] == 300_000);
    let expected = json!([{
        "upstream": "docker.io",
        "repository": "docker.io/library/big",
        "digest": digest,
        "bytes": 300_000,
        "sizeBytes": 1_000_000,
    }]);
    assert_eq!(desk.look("flights")["flights"], expected);
    assert_eq!(desk.look("flights")["partials"][0]["digest"], digest);

    let what = format!("flights?upstream=docker.io&digest={digest}");
    let got = desk.change("DELETE", &what);
    assert_eq!((got.status, &got.json()["cancelled"]), (202, &json!(digest)));
    gate.open();
    let (_, complete) = client.read_to_end();
    assert!(!complete, "its client is cut");
    until("the end of the flight", || desk.look("flights")["flights"] == json!([]));
    let left = &desk.look("flights")["partials"][0];
    let bytes = left["bytes"].as_u64().expect("a number");
    assert!((300_000..1_000_000).contains(&bytes) && left["written"].is_string(), "{left}");
    assert_eq!(desk.change("DELETE", &what).status, 404);
    assert!(!site.has(&digest));

    let resumed = desk.change("POST", "flights/resume");
    assert_eq!((resumed.status, &resumed.json()["resumed"]), (202, &json!(1)));
    until("the blob's name", || site.has(&digest));
    let asked = registry.requests_for("GET", &path);
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[1].header("range"), Some(&*format!("bytes={bytes}-")));
    until("nothing to be left", || desk.look("flights")["partials"] == json!([]));
    assert_eq!(desk.change("POST", "flights/resume").json()["resumed"], 0);
    assert!(get(desk.serving(), &path).body == content);
    assert_eq!(desk.metric("larder_download_resumes_total"), 1.0);
    let log = desk.log();
    assert!(log.contains(&format!("cancelled {digest} from docker.io for 127.0.0.1")), "{log}");
}

#[test]
fn cancelled_download_is_begun_anew_by_the_next_client() {
    let (_registry, site, content, digest, gate) = Site::gated(300_000);
    let desk = site.serve();
    let path = blob("library/big", &digest);
    let mut client = desk.begin(&path);
    client.read_head();
    client.read_body(299_000);
    let what = format!("flights?upstream=docker.io&digest={digest}");
    assert_eq!(desk.change("DELETE", &what).status, 202);
    gate.open();
    assert!(!client.read_to_end().1);
    let got = get(desk.serving(), &path);
    assert!(got.status == 200 && got.complete && got.body == content, "{got:?}");
}

#[test]
fn pins_are_set_and_taken_off_and_all_of_them_shown() {
    let registry = FakeRegistry::start();
    let image = Image::sample("a");
    let site = Site::new(&registry, "");
    site.fill(&registry, &[Named::new("app", "1", &image)]);
    let list = site.path("list");
    fs::write(&list, "quay.io/org/app\n").expect("a file");
    site.configure(&format!("pin: ['*/base:*']\npinLists: [{}]", list.display()));
    let desk = site.serve();
    let pin = |method: &str, pattern: &str| {
        let got = desk.change(method, &format!("pins?pattern={}", escaped(pattern)));
        (got.status, got.json())
    };
    let told =
        |pattern: &str, changed: bool| (200, json!({"pattern": pattern, "changed": changed}));
    assert_eq!(pin("POST", "app:1"), told("docker.io/library/app:1", true));
    assert_eq!(pin("POST", "app:1"), told("docker.io/library/app:1", false));
    assert_eq!(pin("POST", "/^ghcr/"), told("/^ghcr/", true));
    let pins = desk.look("pins");
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
    assert_eq!(desk.look("image?image=app:1")["pinned"], true);
    site.done(&["unpin", "/^ghcr/"]);
    assert_eq!(
        desk.look("pins")["pins"].as_array().map(Vec::len),
        Some(3),
        "a command's work shows"
    );
    assert_eq!(pin("DELETE", "app:1"), told("docker.io/library/app:1", true));
    for pattern in ["app:1", "*/base:*", "quay.io/org/app"] {
        let (status, said) = pin("DELETE", pattern);
        assert!(
            status == 404
                && said["error"]
                    .as_str()
                    .is_some_and(|text| text.contains("is not a pin of the cache directory")),
            "{said}"
        );
    }
    assert_eq!(desk.look("image?image=app:1")["pinned"], false);
}

#[test]
fn prune_of_the_api_removes_what_is_said_and_the_list_follows() {
    let registry = FakeRegistry::start();
    let all: Vec<Image> = ["a", "b", "c"].map(Image::sample).into();
    let site = Site::new(&registry, "pin: ['app:3']");
    let named_all =
        || ["1", "2", "3"].into_iter().zip(&all).map(|(tag, image)| Named::new("app", tag, image));
    site.fill(&registry, &named_all().collect::<Vec<_>>());
    named_all().zip([5, 3, 7]).for_each(|(each, hours)| site.unused_for(&each, hours));
    let desk = site.serve();
    desk.wait_for_images(3);
    let prune = |query: &str| {
        let got = desk.change("POST", &format!("prune?{query}"));
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
    let list = desk.wait_for_images(2);
    assert_eq!(names(&list), ["docker.io/library/app:2", "docker.io/library/app:3"]);
    registry.clear_requests();
    assert_eq!(get(desk.serving(), &manifest("library/app", "1")).status, 200);
    assert_eq!(
        registry.count("GET", "/v2/library/app/manifests/1"),
        1,
        "it is a cold pull at once"
    );
    assert_eq!(prune("pattern=*&pattern=app:2&includePinned=true")["removed"], 3);
    assert_eq!(desk.metric("larder_removed_images_total{why=\"pruned\"}"), 4.0);
    desk.wait_for_images(0);
    let log = desk.log();
    assert!(log.contains("pruned 3 images, ") && log.contains("for 127.0.0.1"), "{log}");
}

#[test]
fn prefetched_image_becomes_complete() {
    let registry = FakeRegistry::start();
    let (amd64, arm64) = (Image::sample("a"), Image::sample("b").platform("linux", "arm64"));
    let index = Index::new().image(&amd64).image(&arm64);
    registry.add("library/app", "latest", &index);
    let site = Site::new(&registry, "");
    let desk = site.serve();
    let got = desk.change("POST", "prefetch?image=app");
    assert_eq!((got.status, &got.json()["image"]), (202, &json!("docker.io/library/app:latest")));
    // All platforms are configured.
    for image in [&amd64, &arm64] {
        site.wait_for(&Named::new("app", "latest", image));
    }
    let shown = desk.look("image?image=app");
    assert_eq!((&shown["complete"], &shown["missingBytes"]), (&json!(true), &json!(0)));
    assert_eq!(shown["platforms"].as_array().map(Vec::len), Some(2));
    registry.stop();
    Named::new("app", &amd64.digest(), &amd64).pull(desk.serving());
}

#[test]
fn prefetch_that_fails_is_said_whatever_the_reason() {
    let registry = FakeRegistry::start();
    registry.add("library/app", "1", &Image::sample("a"));
    let site = Site::new(&registry, "");
    let mut desk = site.serve();
    assert_eq!(desk.change("POST", "prefetch?image=app:2").status, 202);
    desk.hear("prefetching docker.io/library/app:2 for 127.0.0.1");
    let said = desk.hear("prefetch of docker.io/library/app:2: ");
    assert!(said.contains("[WARN]") && said.contains("no such content"), "{said}");
    assert_eq!(registry.take_unscripted(), ["GET /v2/library/app/manifests/2"]);
}
