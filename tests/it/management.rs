//! The management port: probes, metrics, the API of `docs/openapi.yaml`, the page, and who may do what.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

use crate::support::client::{get, request};
use crate::support::larder::{blob, manifest, until};
use crate::support::openapi::Description;
use crate::support::process::Process;
use crate::support::site::{Desk, Named, Site, TOKEN, address_in};
use crate::support::{
    Connection, FakeRegistry, Fault, Gate, Image, Index, On, Response, absent_digest, bytes,
    reserve_port,
};

fn named<'a>(repository: &'a str, tag: &'a str, image: &'a Image) -> Named<'a> {
    Named { repository, tag, image }
}

/// A path and its query.
fn escaped(text: &str) -> String {
    text.replace('/', "%2F").replace('@', "%40").replace('?', "%3F")
}

/// The names in a list of images.
fn names(list: &Value) -> Vec<String> {
    let images = list["images"].as_array().expect("images").iter();
    images.map(|each| each["image"].as_str().expect("a name").to_owned()).collect()
}

/// Waits until the list of images has that many, and returns it.
#[track_caller]
fn images(desk: &Desk, many: u64) -> Value {
    until("the list of images", || desk.look("images")["total"] == many);
    desk.look("images")
}

/// A cache with one image, and a blob of a million bytes of which so many come before a gate.
fn gated(come: usize) -> (FakeRegistry, Site, Vec<u8>, String, Gate) {
    let registry = FakeRegistry::start();
    let site = Site::new(&registry, "");
    let content = bytes(1_000_000, 1);
    let digest = registry.add_blob("library/big", &content);
    let gate = Gate::new();
    registry.fault(On::get_blob(&digest).times(1), Fault::GateAfter(come, gate.clone()));
    (registry, site, content, digest, gate)
}

#[test]
fn every_operation_is_answered_as_the_document_says() {
    let description = Description::read();
    let registry = FakeRegistry::start();
    let (image, other) = (Image::sample("a"), Image::sample("b"));
    let site = Site::new(&registry, "");
    site.fill(&registry, &[named("app", "1", &image), named("app", "2", &other)]);
    site.configure("pin: [nginx]\ncacheSize: 1GB\nfreeSpace: 1kB");
    let digest = registry.add_blob("library/big", &bytes(100_000, 1));
    let gate = Gate::new();
    registry.fault(On::get_blob(&digest), Fault::GateAfter(50_000, gate.clone()));
    let desk = site.serve();
    images(&desk, 2);
    let mut client = desk.begin(&blob("library/big", &digest));
    client.read_head();
    client.read_body(40_000);

    let bearer = format!("Bearer {TOKEN}");
    let mut covered = BTreeSet::new();
    let mut check = |operation: &str, query: &str, status: u16| {
        let (method, path) = operation.split_once(' ').expect("a method and a path");
        let authorization = [("Authorization", bearer.as_str())];
        let headers = if method == "GET" { &[][..] } else { &authorization[..] };
        let got = request(desk.management, method, &format!("{path}{query}"), headers);
        assert_eq!(got.status, status, "{operation}{query}: {got:?}");
        let kind = got.header("content-type").unwrap_or_default();
        description.check(operation, status, kind, &got.text());
        assert_eq!(got.header("cache-control"), Some("no-store"), "{operation}");
        assert_eq!(got.header("x-content-type-options"), Some("nosniff"), "{operation}");
        covered.insert(operation.to_owned());
        if method == "GET" {
            let head = request(desk.management, "HEAD", &format!("{path}{query}"), headers);
            assert_eq!((head.status, head.body.len()), (status, 0), "HEAD {path}");
        }
    };
    for operation in ["livez", "readyz", "health", "metrics", "openapi.yaml"] {
        check(&format!("GET /{operation}"), "", 200);
    }
    let big = format!("?upstream=docker.io&digest={digest}");
    for (operation, query, status) in [
        ("GET /api/v1/status", "", 200),
        ("GET /api/v1/images", "", 200),
        ("GET /api/v1/images", "?limit=0", 400),
        ("GET /api/v1/image", "?image=app:1", 200),
        ("GET /api/v1/image", "?image=app:9", 404),
        ("GET /api/v1/image", "", 400),
        ("GET /api/v1/blobs", "", 200),
        ("GET /api/v1/blobs", "?sort=age", 400),
        ("GET /api/v1/flights", "", 200),
        ("DELETE /api/v1/flights", &big, 202),
        ("DELETE /api/v1/flights", "?upstream=docker.io", 400),
        ("GET /api/v1/upstreams", "", 200),
        ("POST /api/v1/pins", "?pattern=app:1", 200),
        ("POST /api/v1/pins", "", 400),
        ("GET /api/v1/pins", "", 200),
        ("DELETE /api/v1/pins", "?pattern=app:1", 200),
        ("DELETE /api/v1/pins", "?pattern=app:1", 404),
        ("POST /api/v1/prune", "?pattern=app:2&dryRun=true", 200),
        ("POST /api/v1/prune", "?pattern=app:2", 200),
        ("POST /api/v1/prune", "", 400),
        ("POST /api/v1/prefetch", "?image=app:2", 202),
        ("POST /api/v1/prefetch", "", 400),
        ("POST /api/v1/flights/resume", "", 202),
    ] {
        check(operation, query, status);
    }
    let absent = format!("?upstream=docker.io&digest={}", absent_digest(1));
    check("DELETE /api/v1/flights", &absent, 404);
    gate.open();
    assert_eq!(covered, description.operations());
}

#[test]
fn probes_say_that_it_lives_and_that_it_is_drained() {
    let (_registry, site, content, digest, gate) = gated(500_000);
    let desk = site.serve();
    for (path, body) in
        [("/livez", "ok\n"), ("/readyz", "ok\n"), ("/health", "{\"status\":\"UP\"}")]
    {
        let got = desk.ask(path);
        assert_eq!((got.status, got.text().as_str()), (200, body), "{path}");
    }
    let mut client = desk.begin(&blob("library/big", &digest));
    client.read_head();
    client.read_body(400_000);
    desk.process.signal("TERM");
    until("the drain", || desk.ask("/readyz").status == 503);
    assert_eq!(desk.ask("/readyz").text(), "draining\n");
    assert_eq!((desk.ask("/livez").status, desk.ask("/health").status), (200, 200));
    assert_eq!(desk.look("status")["ready"], false);
    assert_eq!(desk.metric("larder_ready"), 0.0);
    gate.open();
    let (rest, complete) = client.read_to_end();
    assert!(complete && rest == content[400_000..]);
    let (status, log) = desk.process.wait();
    assert!(status.success(), "{log}");
}

#[test]
fn counters_move_with_what_happens() {
    let (registry, site, content, digest, gate) = gated(500_000);
    let image = Image::sample("a");
    let app = named("app", "1", &image);
    app.publish(&registry);
    registry.expect_unknown("/v2/library/app/manifests/9");
    let desk = site.serve();
    let answers = |kind: &str, how: &str| {
        let labels = format!("kind=\"{kind}\",how=\"{how}\",registry=\"docker.io\"");
        desk.metric(&format!("larder_answers_total{{{labels}}}"))
    };
    app.pull(desk.serving());
    site.wait_for(&app);
    assert_eq!([answers("manifest", "miss"), answers("manifest", "hit")], [1.0, 0.0]);
    assert_eq!([answers("blob", "miss"), answers("blob", "hit")], [3.0, 0.0]);
    app.pull(desk.serving());
    assert_eq!([answers("manifest", "miss"), answers("manifest", "hit")], [1.0, 1.0]);
    assert_eq!([answers("blob", "miss"), answers("blob", "hit")], [3.0, 3.0]);
    assert_eq!(get(desk.serving(), &manifest("library/app", "9")).status, 404);

    let path = blob("library/big", &digest);
    let mut clients = [desk.begin(&path), desk.begin(&path)];
    for client in &mut clients {
        assert_eq!(client.read_head().status, 200);
        client.read_body(400_000);
    }
    assert_eq!([answers("blob", "miss"), answers("blob", "join")], [4.0, 1.0]);
    assert_eq!(desk.metric("larder_flights{kind=\"blob\"}"), 1.0);
    gate.open();
    for client in &mut clients {
        assert!(client.read_to_end().1);
    }
    let blobs = image.layers().iter().map(|each| each.bytes.len()).sum::<usize>()
        + image.config().bytes.len()
        + image.manifest().len();
    let fetched = (blobs + content.len()) as f64;
    until("the end of the download", || {
        desk.metric("larder_downloads_total{outcome=\"done\"}") == 4.0
    });
    assert_eq!(desk.metric("larder_fetched_bytes_total"), fetched);
    // What was sent is counted when a response has ended, which its client knows first.
    let requests = |route: &str, status: u16| {
        let labels = format!("route=\"{route}\",status=\"{status}\"");
        desk.metric(&format!("larder_requests_total{{{labels}}}"))
    };
    until("the end of all responses", || requests("blob", 200) == 8.0);
    assert_eq!([requests("manifest", 200), requests("manifest", 404)], [2.0, 1.0]);
    let served = desk.metric("larder_served_bytes_total");
    assert!(served >= (2 * blobs + 2 * content.len()) as f64, "{served}");
    let asked = |outcome: &str| {
        let labels = format!("registry=\"docker.io\",outcome=\"{outcome}\"");
        desk.metric(&format!("larder_upstream_requests_total{{{labels}}}"))
    };
    let all = registry.requests().len() as f64;
    assert_eq!(asked("ok") + asked("404"), all);
    assert_eq!(asked("404"), registry.count("*", "/v2/library/app/manifests/9") as f64);
    let traffic = &desk.look("status")["traffic"];
    let told = ["miss", "hit", "join", "stale", "bypass"].map(|how| traffic[how].as_u64());
    assert_eq!(told, [Some(5), Some(4), Some(1), Some(0), Some(0)], "{traffic}");
    assert_eq!(traffic["bytesFetched"].as_f64(), Some(fetched));
    assert!(desk.ask("/metrics").text().ends_with("# EOF\n"));
}

#[test]
fn status_tells_the_whole_in_one_answer() {
    let registry = FakeRegistry::start();
    let (image, other) = (Image::sample("a"), Image::sample("b"));
    let site = Site::new(&registry, "cacheSize: 1GB");
    site.fill(&registry, &[named("app", "1", &image), named("db", "1", &other)]);
    let desk = site.serve();
    images(&desk, 2);
    desk.wait_until_counted();
    let status = desk.look("status");
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    for (field, expected) in
        [("ready", true), ("offline", false), ("airGapped", false), ("readOnly", false)]
    {
        assert_eq!(status[field], expected, "{field}");
    }
    let usage = &status["usage"];
    for (field, expected) in
        [("images", 2), ("completeImages", 2), ("repositories", 2), ("manifests", 2), ("blobs", 6)]
    {
        assert_eq!(usage[field], expected, "{field}: {usage}");
    }
    let manifests = image.manifest().len() + other.manifest().len();
    assert_eq!(usage["manifestBytes"], manifests);
    let of = |image: &Image| {
        image.config().bytes.len()
            + image.layers().iter().map(|each| each.bytes.len()).sum::<usize>()
    };
    let blobs = of(&image) + of(&other);
    assert_eq!(usage["blobBytes"], blobs);
    assert_eq!(usage["registries"][0]["name"], "docker.io");
    assert_eq!(usage["registries"][0]["bytes"], manifests + blobs);
    assert_eq!(status["disk"]["usedBytes"], manifests + blobs);
    assert_eq!(status["disk"]["cacheSizeBytes"], 1_000_000_000);
    let connection = Connection::open(desk.serving());
    until("one more connection", || desk.look("status")["connections"] == 1);
    drop(connection);
    site.done(&["offline", "on"]);
    until("the switch", || desk.look("status")["offline"] == true);
    assert_eq!(desk.metric("larder_offline"), 1.0);
    for what in ["flights/resume", "prefetch?image=app:1"] {
        let got = desk.change("POST", what);
        assert!(got.status == 409 && got.text().contains("larder offline"), "{what}: {got:?}");
    }
}

#[test]
fn images_are_filtered_sorted_and_paged() {
    let registry = FakeRegistry::start();
    let (small, middle) = (Image::sample("a"), Image::sample("b").layer(bytes(9000, 3)));
    let (large, partial) = (Image::sample("c").layer(bytes(90_000, 4)), Image::sample("d"));
    let site = Site::new(&registry, "pin: [beta]\ntags: [{pattern: '2', tagTtl: always}]");
    let whole =
        [named("alpha", "1", &small), named("alpha", "2", &large), named("beta", "1", &middle)];
    site.fill(&registry, &whole);
    for (each, hours) in whole.iter().zip([3, 9, 6]) {
        site.fetched_ago(each, hours);
        site.unused_for(each, 10 - hours);
    }
    // Its manifest alone, and after all of the others.
    named("gamma", "1", &partial).publish(&registry);
    let desk = site.serve();
    assert_eq!(get(desk.serving(), &manifest("library/gamma", "1")).status, 200);
    desk.log();
    let desk = site.serve();
    let all = images(&desk, 4);
    assert!(all["asOf"].is_string() && all["next"].is_null(), "{all}");
    let layer = &large.layers()[2].digest;
    for (query, expected) in [
        ("", &["alpha:1", "alpha:2", "beta:1", "gamma:1"][..]),
        ("pattern=*alpha*", &["alpha:1", "alpha:2"]),
        ("pattern=docker.io/library/beta", &["beta:1"]),
        ("pattern=*:2&pattern=/gam+a/", &["alpha:2"]),
        ("pattern=*:2&pattern=/gam%2Ba/", &["alpha:2", "gamma:1"]),
        ("registry=docker.io&pattern=*:2", &["alpha:2"]),
        ("registry=quay.io", &[]),
        ("state=complete", &["alpha:1", "alpha:2", "beta:1"]),
        ("state=partial", &["gamma:1"]),
        ("pinned=true", &["beta:1"]),
        ("pinned=false&state=complete", &["alpha:1", "alpha:2"]),
        ("sort=name", &["alpha:1", "alpha:2", "beta:1", "gamma:1"]),
        ("sort=size", &["alpha:2", "beta:1", "alpha:1", "gamma:1"]),
        ("sort=pulled", &["gamma:1", "alpha:2", "beta:1", "alpha:1"]),
        ("sort=fetched", &["gamma:1", "alpha:1", "beta:1", "alpha:2"]),
        ("sort=size&limit=2", &["alpha:2", "beta:1"]),
        ("sort=size&limit=2&offset=2", &["alpha:1", "gamma:1"]),
        ("offset=4", &[]),
        ("limit=1&offset=3", &["gamma:1"]),
        (&format!("digest={layer}"), &["alpha:2"]),
        (&format!("digest={}", middle.digest()), &["beta:1"]),
        (&format!("digest={}", absent_digest(1)), &[]),
    ] {
        let list = desk.look(&format!("images?{query}"));
        let short = names(&list).into_iter().map(|name| name.replace("docker.io/library/", ""));
        assert_eq!(short.collect::<Vec<_>>(), expected, "{query}");
    }
    let page = desk.look("images?limit=3");
    assert_eq!((&page["total"], &page["next"]), (&json!(4), &json!(3)));
    assert_eq!(desk.look("images?limit=3&offset=3")["next"], Value::Null);
    let beta = &all["images"][2];
    assert_eq!(beta["digest"], middle.digest());
    assert_eq!(beta["mediaType"], middle.media_type());
    assert_eq!(
        [&beta["complete"], &beta["pinned"], &beta["stale"]],
        [&json!(true), &json!(true), &json!(false)]
    );
    assert_eq!(
        [&beta["manifests"], &beta["blobs"], &beta["missingBytes"]],
        [&json!(1), &json!(4), &json!(0)]
    );
    let missing = partial.layers().iter().map(|each| each.bytes.len()).sum::<usize>()
        + partial.config().bytes.len();
    let gamma = &all["images"][3];
    assert_eq!([&gamma["complete"], &gamma["missingBytes"]], [&json!(false), &json!(missing)]);
    // Upstream would be asked before this one is served.
    assert_eq!(all["images"][1]["stale"], true);
}

#[test]
fn image_is_shown_with_its_tree_and_blobs_with_their_references() {
    let registry = FakeRegistry::start();
    let (amd64, arm64) = (Image::sample("a"), Image::sample("b").platform("linux", "arm64"));
    let index = Index::new().image(&amd64).image(&arm64);
    registry.add("library/app", "1", &index);
    registry.add("library/copy", "1", &amd64);
    let site = Site::new(&registry, "");
    site.done(&["load", "copy:1"]);
    let desk = site.serve();
    assert_eq!(get(desk.serving(), &manifest("library/app", "1")).status, 200);
    assert_eq!(get(desk.serving(), &manifest("library/app", &amd64.digest())).status, 200);
    for name in ["app:1", "docker.io/library/app:1"] {
        let shown = desk.look(&format!("image?image={}", escaped(name)));
        assert_eq!(shown["image"], "docker.io/library/app:1");
        assert_eq!(shown["digest"], index.digest());
        assert_eq!(
            (&shown["complete"], &shown["platforms"]),
            (&json!(true), &json!(["linux/amd64"]))
        );
        let tree = shown["tree"].as_array().expect("a tree");
        let nodes: Vec<[&Value; 3]> = tree
            .iter()
            .map(|each| [&each["digest"], &each["platform"], &each["present"]])
            .collect();
        let expected = [
            [json!(index.digest()), Value::Null, json!(true)],
            [json!(amd64.digest()), json!("linux/amd64"), json!(true)],
            [json!(arm64.digest()), json!("linux/arm64"), json!(false)],
        ];
        assert_eq!(nodes, expected.each_ref().map(|each| each.each_ref()));
        let blobs = tree[1]["blobs"].as_array().expect("blobs");
        assert_eq!(blobs.len(), 3);
        let layer = &amd64.layers()[1];
        let shown = blobs.iter().find(|each| each["digest"] == layer.digest).expect("it is there");
        assert_eq!(
            (&shown["sizeBytes"], &shown["present"]),
            (&json!(layer.bytes.len()), &json!(true))
        );
    }
    let got = desk.ask("/api/v1/image?image=app");
    assert!(got.status == 404 && got.text().contains("docker.io/library/app:latest"), "{got:?}");

    let stray = registry.add_blob("library/stray", &bytes(10, 5));
    assert_eq!(get(desk.serving(), &blob("library/stray", &stray)).status, 200);
    until("the blob's name", || site.has(&stray));
    let layer = &amd64.layers()[1];
    for (digest, references) in
        [(&layer.digest, 2), (&amd64.digest(), 2), (&index.digest(), 1), (&stray, 0)]
    {
        let shown = desk.look(&format!("blobs?digest={digest}"));
        assert_eq!((&shown["total"], &shown["next"]), (&json!(1), &Value::Null));
        assert_eq!(shown["blobs"][0]["references"], references, "{shown}");
    }
    let all = desk.look("blobs");
    assert_eq!((&all["total"], &all["blobs"][0]["digest"]), (&json!(6), &json!(layer.digest)));
    let page = desk.look("blobs?sort=references&limit=4");
    assert_eq!(page["next"], 4);
    let page = page["blobs"].as_array().expect("blobs");
    assert!(page.iter().all(|each| each["references"] == 2), "{page:?}");
    let by_digest = desk.look("blobs?sort=digest");
    let digests: Vec<&str> = by_digest["blobs"]
        .as_array()
        .expect("blobs")
        .iter()
        .filter_map(|each| each["digest"].as_str())
        .collect();
    assert!(digests.is_sorted(), "{digests:?}");
}

#[test]
fn cancelled_download_cuts_its_client_leaves_what_came_and_is_resumed() {
    let (registry, site, content, digest, gate) = gated(300_000);
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
    let (_registry, site, content, digest, gate) = gated(300_000);
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
fn upstreams_are_told_with_a_breaker_that_is_open() {
    let registry = FakeRegistry::start();
    let image = Image::sample("a");
    let site = Site::new(&registry, "");
    named("app", "1", &image).publish(&registry);
    let desk = site.serve();
    assert_eq!(get(desk.serving(), &manifest("library/app", "1")).status, 200);
    let endpoint = |desk: &Desk| desk.look("upstreams")["upstreams"][0]["endpoints"][0].clone();
    let first = endpoint(&desk);
    assert_eq!((&first["breaker"], &first["failuresInARow"]), (&json!("closed"), &json!(0)));
    assert_eq!(
        (&first["askedAgainInSeconds"], &first["lastFailure"]),
        (&Value::Null, &Value::Null)
    );
    registry.fault(On::anything(), Fault::status(500));
    for tag in ["7", "8", "9"] {
        assert!(get(desk.serving(), &manifest("library/app", tag)).status >= 500);
    }
    let upstreams = desk.look("upstreams");
    assert_eq!(upstreams["upstreams"][0]["name"], "docker.io");
    let open = endpoint(&desk);
    assert_eq!((&open["url"], &open["breaker"]), (&json!(registry.url("")), &json!("open")));
    assert_eq!(open["failuresInARow"], 3);
    assert!(open["askedAgainInSeconds"].as_f64().is_some_and(|wait| wait > 0.0), "{open}");
    assert!(open["lastFailure"].as_str().is_some_and(|why| why.contains("500")), "{open}");
    let verbose = desk.ask("/health?verbose").json();
    assert_eq!(
        (&verbose["status"], &verbose["upstreams"][0]["endpoints"][0]["breaker"]),
        (&json!("UP"), &json!("open"))
    );
    let labels = format!("registry=\"docker.io\",endpoint=\"{}\"", registry.url(""));
    assert_eq!(desk.metric(&format!("larder_upstream_breaker_open{{{labels}}}")), 1.0);
}

#[test]
fn pins_are_set_and_taken_off_and_all_of_them_shown() {
    let registry = FakeRegistry::start();
    let image = Image::sample("a");
    let site = Site::new(&registry, "");
    site.fill(&registry, &[named("app", "1", &image)]);
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
                    .is_some_and(|text| text.contains("is no pin of the cache directory")),
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
        || ["1", "2", "3"].into_iter().zip(&all).map(|(tag, image)| named("app", tag, image));
    site.fill(&registry, &named_all().collect::<Vec<_>>());
    named_all().zip([5, 3, 7]).for_each(|(each, hours)| site.unused_for(&each, hours));
    let desk = site.serve();
    images(&desk, 3);
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
    let list = images(&desk, 2);
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
    images(&desk, 0);
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
        site.wait_for(&named("app", "latest", image));
    }
    let shown = desk.look("image?image=app");
    assert_eq!((&shown["complete"], &shown["missingBytes"]), (&json!(true), &json!(0)));
    assert_eq!(shown["platforms"].as_array().map(Vec::len), Some(2));
    registry.stop();
    named("app", &amd64.digest(), &amd64).pull(desk.serving());
}

#[test]
fn what_changes_something_wants_the_token_and_reading_from_here_does_not() {
    let registry = FakeRegistry::start();
    let site = Site::new(&registry, "");
    let desk = site.serve();
    let plain = |method: &str, what: &str, headers: &[(&str, &str)]| {
        request(desk.management, method, &format!("/api/v1/{what}"), headers)
    };
    let digest = absent_digest(1);
    let cancel = format!("flights?upstream=docker.io&digest={digest}");
    let changes = [
        ("POST", "pins?pattern=a"),
        ("DELETE", "pins?pattern=a"),
        ("POST", "prune?pattern=*"),
        ("POST", "prefetch?image=a"),
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
        let got = desk.change_by("wrong", method, what);
        assert!(
            got.status == 401 && got.text().contains("this is not the token"),
            "{what}: {got:?}"
        );
        assert_eq!(
            plain(method, what, &[("Authorization", "Basic czNjcmV0")]).status,
            401,
            "{what}"
        );
    }
    assert_eq!(registry.requests().len(), 0);
    assert_eq!(desk.look("pins")["pins"], json!([]));
    assert_eq!(desk.change("POST", "pins?pattern=a").status, 200);

    // A page of somebody else's whose name leads here has that name in its requests.
    for what in ["status", "images", "pins"] {
        assert_eq!(plain("GET", what, &[("Host", "evil.test")]).status, 401, "{what}");
        assert_eq!(plain("GET", what, &[("Host", "localhost")]).status, 200, "{what}");
        assert_eq!(desk.change("GET", what).status, 200, "{what}");
        assert_eq!(desk.change_by("wrong", "GET", what).status, 401, "{what}");
    }
    let foreign =
        |path: &str| request(desk.management, "GET", path, &[("Host", "evil.test")]).status;
    assert_eq!(foreign("/health?verbose"), 401);
    for path in ["/livez", "/readyz", "/health", "/metrics", "/", "/page.js", "/openapi.yaml"] {
        assert_eq!(foreign(path), 200, "{path}");
    }

    fs::write(site.path("token"), "another").expect("a file");
    assert_eq!(desk.change("POST", "pins?pattern=b").status, 401, "the former one counts no more");
    assert_eq!(desk.change_by("another", "POST", "pins?pattern=b").status, 200);
    for broken in ["", "\n"] {
        fs::write(site.path("token"), broken).expect("a file");
        assert_eq!(desk.change_by("", "POST", "pins?pattern=c").status, 403);
    }
    fs::remove_file(site.path("token")).expect("it is there");
    let got = desk.change_by("another", "POST", "pins?pattern=c");
    assert!(got.status == 403 && got.text().contains("the log says why"), "{got:?}");
    assert_eq!(desk.look("pins")["pins"].as_array().map(Vec::len), Some(2));
    let log = desk.log();
    for secret in [TOKEN, "another", "wrong"] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[test]
fn without_a_token_file_nothing_can_be_changed() {
    let registry = FakeRegistry::start();
    let directory = tempfile::tempdir().expect("a directory");
    let text = format!(
        "fsync: false\nmanagement: {{port: 0}}\nregistries: [{{name: docker.io, endpoints: [\"{}\"]}}]\n",
        registry.url("")
    );
    let process = Process::serve_file(directory.path(), &text);
    let management = address_in(&process.banner, "management on http://");
    for headers in [&[][..], &[("Authorization", "Bearer ")], &[("Authorization", "Bearer x")]] {
        let got = request(management, "POST", "/api/v1/pins?pattern=a", headers);
        assert!(got.status == 403 && got.text().contains("management.tokenFile"), "{got:?}");
    }
    assert_eq!(get(management, "/api/v1/pins").json(), json!({"pins": [], "problem": null}));
}

#[test]
fn wrong_parameters_are_refused_with_what_would_be_right() {
    let registry = FakeRegistry::start();
    let site = Site::new(&registry, "");
    let desk = site.serve();
    for (method, what, said) in [
        ("GET", "status?x=1", "no such parameter: x; there are none"),
        ("GET", "flights?x", "no such parameter: x"),
        ("GET", "images?limt=1", "no such parameter: limt; there are pattern, registry"),
        ("GET", "images?limit=0", "limit is a number from 1 to 1000"),
        ("GET", "images?limit=1001", "limit is a number from 1 to 1000"),
        ("GET", "images?offset=-1", "offset is a number from 0"),
        ("GET", "images?limit=1&limit=2", "limit is given twice"),
        ("GET", "images?sort=age", "sort is one of name, size, pulled, fetched, created"),
        ("GET", "images?state=whole", "state is one of complete, partial"),
        ("GET", "images?pinned=yes", "pinned is true or false"),
        ("GET", "images?pattern=/(/", "pattern: not a pattern"),
        ("GET", "images?pattern=", "pattern: not a pattern"),
        ("GET", "images?digest=sha256:1", "digest: "),
        ("GET", "images?registry=a%20b", "registry: "),
        ("GET", "images?pattern=%zz", "broken escape"),
        ("GET", "image", "image is missing"),
        ("GET", "image?image=", "image is missing"),
        ("GET", "image?image=A", "image: "),
        ("GET", "blobs?sort=name", "sort is one of digest, size, references"),
        ("GET", "blobs?digest=x", "digest: "),
        ("POST", "prune", "say which images"),
        ("POST", "prune?count=3", "say which images"),
        ("POST", "prune?dryRun=true", "say which images"),
        ("POST", "prune?unusedFor=30", "unusedFor: a duration is"),
        ("POST", "prune?createdBefore=yesterday", "createdBefore: "),
        ("POST", "prune?pattern=*&count=x", "count is a number from 0"),
        ("POST", "prune?pattern=*&dryRun=1", "dryRun is true or false"),
        ("POST", "prune?pattern=A", "pattern: A: "),
        ("POST", "pins", "pattern is missing"),
        ("POST", "pins?pattern=a&pattern=b", "pattern is given twice"),
        ("DELETE", "pins?pattern=%20", "pattern: "),
        ("POST", "prefetch", "image is missing"),
        ("POST", "prefetch?image=http://a/b", "image: "),
        ("POST", "flights/resume?x=1", "there are none"),
        ("DELETE", "flights?upstream=docker.io", "digest is missing"),
        ("DELETE", "flights?digest=sha256:1", "upstream is missing"),
        ("DELETE", "flights?upstream=docker.io&digest=1", "digest: "),
    ] {
        let got = desk.change(method, what);
        let text = got.json()["error"].as_str().map(str::to_owned).unwrap_or_default();
        assert!(got.status == 400 && text.contains(said), "{method} {what}: {got:?}");
    }
}

#[test]
fn unknown_paths_are_404_and_other_methods_405_with_what_is_allowed() {
    let registry = FakeRegistry::start();
    let site = Site::new(&registry, "");
    let desk = site.serve();
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
        let got = desk.ask(path);
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
        let got = request(desk.management, method, path, &headers);
        assert_eq!((got.status, got.header("allow")), (405, Some(allowed)), "{method} {path}");
    }
}

#[test]
fn nothing_of_it_is_on_the_serving_port() {
    let registry = FakeRegistry::start();
    let site = Site::new(&registry, "");
    let desk = site.serve();
    let operations = Description::read().operations();
    let bearer = format!("Bearer {TOKEN}");
    let headers = [("Authorization", bearer.as_str())];
    let others =
        ["GET /", "GET /page.js", "GET /page.css", "GET /health?verbose"].map(str::to_owned);
    for operation in operations.into_iter().chain(others) {
        let (method, path) = operation.split_once(' ').expect("a method and a path");
        let got = request(desk.serving(), method, path, &headers);
        assert!(matches!(got.status, 404 | 405), "{operation}: {got:?}");
    }
    assert_eq!(registry.requests().len(), 0);
}

#[test]
fn page_and_its_files_may_load_nothing_from_elsewhere() {
    let registry = FakeRegistry::start();
    let site = Site::new(&registry, "");
    let desk = site.serve();
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/page.css", "text/css; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
        ("/openapi.yaml", "application/yaml"),
    ] {
        let got = desk.ask(path);
        assert_eq!((got.status, got.header("content-type")), (200, Some(kind)), "{path}");
        let policy = got.header("content-security-policy").unwrap_or_default();
        for part in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{path}: {policy}");
        assert_eq!(got.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(got.header("referrer-policy"), Some("no-referrer"), "{path}");
    }
    let page = desk.ask("/").text();
    assert!(page.contains("src=\"/page.js\"") && page.contains("href=\"/page.css\""), "{page}");
    for inline in ["src=\"http", "href=\"http", " style=", " onclick=", "<script>", "<style>"] {
        assert!(!page.contains(inline), "{inline} in {page}");
    }
}

/// A server with these keys beside its registry.
fn with_ports(registry: &FakeRegistry, keys: &str) -> (Process, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let host = registry.host();
    let text = format!("fsync: false\nregistries: [{{name: \"{host}\", scheme: http}}]\n{keys}\n");
    (Process::serve_file(directory.path(), &text), directory)
}

#[test]
fn health_and_metrics_have_ports_of_their_own_as_the_reference_server_has_them() {
    let registry = FakeRegistry::start();
    let (process, _directory) = with_ports(&registry, "health: 0\nmetrics: 0");
    let health = address_in(&process.banner, "health on http://");
    let metrics = address_in(&process.banner, "metrics on http://");
    let answers = |at, paths: &[&str]| -> Vec<u16> {
        paths.iter().map(|path| get(at, path).status).collect()
    };
    let paths = ["/health", "/livez", "/readyz", "/v2/", "/metrics", "/", "/api/v1/status"];
    assert_eq!(answers(health, &paths), [200, 200, 200, 200, 404, 404, 404]);
    assert_eq!(answers(metrics, &paths), [404, 404, 404, 404, 200, 404, 404]);
    assert_eq!(get(health, "/health").json(), json!({"status": "UP"}));
    // Who was given this port may know, by whatever name it is asked.
    let told = request(health, "GET", "/health?verbose", &[("Host", "larder.test")]).json();
    assert_eq!(told["upstreams"][0]["name"], registry.host());
    assert_eq!(told["upstreams"][0]["endpoints"][0]["breaker"], "closed");
    assert_eq!(told["servedWithoutCaching"], json!({"blobs": 0, "manifests": 0}));
    assert_eq!(told["damagedFiles"], 0);
    assert_eq!(request(health, "POST", "/health", &[("Content-Length", "0")]).status, 405);
    let version = format!("larder_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
    assert!(get(metrics, "/metrics").text().contains(&version));
}

#[test]
fn health_and_metrics_may_be_on_one_port_and_all_of_it_on_that_of_the_management() {
    let registry = FakeRegistry::start();
    let (_held, one) = reserve_port();
    let port = one.port();
    let (process, _directory) = with_ports(&registry, &format!("health: {port}\nmetrics: {port}"));
    assert!(
        process.banner.contains(&format!("health and metrics on http://{one}/")),
        "{}",
        process.banner
    );
    let statuses =
        |paths: &[&str]| -> Vec<u16> { paths.iter().map(|path| get(one, path).status).collect() };
    let paths = ["/health", "/livez", "/metrics", "/", "/api/v1/status"];
    assert_eq!(statuses(&paths), [200, 200, 200, 404, 404]);
    drop(process);
    let keys = format!("health: {port}\nmetrics: {port}\nmanagement: {{port: {port}}}");
    let (process, _directory) = with_ports(&registry, &keys);
    assert_eq!(address_in(&process.banner, "management on http://"), one);
    assert_eq!(statuses(&paths), [200; 5]);
}

#[test]
fn answer_says_what_is_wrong_as_json_whatever_it_is() {
    let registry = FakeRegistry::start();
    let site = Site::new(&registry, "airGapped: true");
    let desk = site.serve();
    let refused = |got: Response, status: u16| {
        assert_eq!((got.status, got.header("content-type")), (status, Some("application/json")));
        assert!(got.json()["error"].as_str().is_some_and(|text| text.len() > 10), "{got:?}");
    };
    refused(desk.ask("/nothing"), 404);
    refused(desk.change("POST", "prefetch?image=app"), 409);
    refused(desk.change("POST", "flights/resume"), 409);
    refused(desk.change_by("wrong", "POST", "flights/resume"), 401);
    refused(desk.change("POST", "status"), 405);
    assert_eq!(desk.look("status")["airGapped"], true);
}
