//! The management API: every operation as documented in `docs/openapi.yaml`, and what can be read.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

use crate::support::client::{get, request};
use crate::support::larder::{blob, manifest, until};
use crate::support::openapi::Description;
use crate::support::site::{NamedImage, RunningServer, Site, TOKEN, escaped, names};
use crate::support::{
    Connection, FakeRegistry, Fault, Gate, Image, Index, On, absent_digest, bytes,
};

#[test]
fn every_operation_matches_the_openapi_document() {
    let description = Description::read();
    let (registry, site, _) = Site::with_samples(&["app:1", "app:2"]);
    site.configure(
        "pin: [nginx]\ncacheSize: 1GB\nfreeSpace: 1kB\npeers: {urls: ['http://127.0.0.1:1']}\n\
         sync: [{name: apps, images: [app:1], every: 1h}]\n\
         objectStore: {endpoint: 'http://127.0.0.1:1', bucket: b, accessKeyId: a, secretAccessKey: b}",
    );
    let digest = registry.add_blob("library/big", &bytes(100_000, 1));
    let gate = Gate::new();
    registry.fault(On::get_blob(&digest), Fault::GateAfter(50_000, gate.clone()));
    let server = site.serve();
    server.wait_for_images(2);
    let mut client = server.begin(&blob("library/big", &digest));
    client.read_head();
    client.read_body(40_000);

    let bearer = format!("Bearer {TOKEN}");
    let mut covered = BTreeSet::new();
    let mut check = |operation: &str, query: &str, status: u16| {
        let (method, path) = operation.split_once(' ').expect("a method and a path");
        let authorization = [("Authorization", bearer.as_str())];
        let headers = if method == "GET" { &[][..] } else { &authorization[..] };
        let got = request(server.management, method, &format!("{path}{query}"), headers);
        assert_eq!(got.status, status, "{operation}{query}: {got:?}");
        let kind = got.header("content-type").unwrap_or_default();
        description.check(operation, status, kind, &got.text());
        assert_eq!(got.header("cache-control"), Some("no-store"), "{operation}");
        assert_eq!(got.header("x-content-type-options"), Some("nosniff"), "{operation}");
        covered.insert(operation.to_owned());
        if method == "GET" {
            let head = request(server.management, "HEAD", &format!("{path}{query}"), headers);
            assert_eq!((head.status, head.body.len()), (status, 0), "HEAD {path}");
        }
    };
    for operation in ["livez", "readyz", "health", "metrics", "openapi.yaml"] {
        check(&format!("GET /{operation}"), "", 200);
    }
    let big = format!("?upstream=docker.io&digest={digest}");
    for (operation, query, status) in [
        ("GET /api/v1/status", "", 200),
        ("GET /api/v1/history", "", 200),
        ("GET /api/v1/history", "?span=week", 200),
        ("GET /api/v1/history", "?since=1h", 400),
        ("GET /api/v1/requests", "", 200),
        ("GET /api/v1/requests", "?limit=1", 400),
        ("GET /api/v1/log", "", 200),
        ("GET /api/v1/log", "?limit=1", 400),
        ("GET /api/v1/configuration", "", 200),
        ("GET /api/v1/configuration", "?key=port", 400),
        ("GET /api/v1/client-configuration", "", 200),
        ("GET /api/v1/client-configuration", "?client=k3s&server=https://l.test", 200),
        ("GET /api/v1/client-configuration", "?client=wget", 400),
        ("GET /api/v1/repositories", "?registry=docker.io", 200),
        ("GET /api/v1/repositories", "?registry=:", 400),
        ("GET /api/v1/images", "", 200),
        ("GET /api/v1/images", "?limit=0", 400),
        ("GET /api/v1/image", "?image=app:1", 200),
        ("GET /api/v1/image", "?image=app:9", 404),
        ("GET /api/v1/image", "", 400),
        ("GET /api/v1/blobs", "", 200),
        ("GET /api/v1/blobs", "?sort=age", 400),
        ("GET /api/v1/incomplete", "", 200),
        ("GET /api/v1/incomplete", "?limit=1", 400),
        ("GET /api/v1/events", "", 200),
        ("GET /api/v1/events", "?limit=1", 400),
        ("GET /api/v1/flights", "", 200),
        ("DELETE /api/v1/flights", &big, 202),
        ("DELETE /api/v1/flights", "?upstream=docker.io", 400),
        ("GET /api/v1/upstreams", "", 200),
        ("GET /api/v1/peers", "", 200),
        ("GET /api/v1/peers", "?image=app:1", 200),
        ("GET /api/v1/peers", "?digest=x", 400),
        ("GET /api/v1/bucket", "", 200),
        ("GET /api/v1/sync", "", 200),
        ("GET /api/v1/sync", "?name=apps", 400),
        ("POST /api/v1/sync", "?name=apps", 202),
        ("POST /api/v1/sync", "", 202),
        ("POST /api/v1/sync", "?name=nosuch", 404),
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
        ("POST /api/v1/tags/accept", "?image=app:1", 404),
        ("POST /api/v1/tags/accept", "", 400),
        ("POST /api/v1/tags/reject", "?image=app:1", 404),
        ("POST /api/v1/tags/reject", "?image=A", 400),
        ("GET /api/v1/prefetches", "", 200),
        ("GET /api/v1/prefetches", "?image=app:2", 400),
        ("POST /api/v1/flights/resume", "", 202),
        ("POST /api/v1/check", "?target=docker.io", 200),
        ("POST /api/v1/check", "?target=app:1", 200),
        ("POST /api/v1/check", "", 400),
        ("POST /api/v1/check", "?target=A/b", 400),
    ] {
        check(operation, query, status);
    }
    let absent = format!("?upstream=docker.io&digest={}", absent_digest(1));
    check("DELETE /api/v1/flights", &absent, 404);
    gate.open();
    assert_eq!(covered, description.operations());
}

#[test]
fn repositories_are_listed_with_their_contents_in_pages() {
    let image = Image::sample("a");
    let (_registry, site, _) =
        Site::filled(&[("app:1", &image), ("app:2", &Image::sample("b")), ("base:1", &image)]);
    let server = site.serve();
    server.wait_for_images(3);
    let first = server.api("repositories?limit=1");
    assert_eq!((first["total"].as_u64(), first["next"].as_u64()), (Some(2), Some(1)));
    let app = &first["repositories"][0];
    assert_eq!(app["repository"], "docker.io/library/app");
    assert_eq!((&app["images"], &app["completeImages"]), (&json!(2), &json!(2)));
    assert!(app["bytes"].as_u64() > Some(0) && app["pulled"].is_string(), "{app}");
    let second = server.api("repositories?limit=1&offset=1&registry=docker.io");
    assert_eq!(second["repositories"][0]["repository"], "docker.io/library/base");
    assert!(second["next"].is_null());
    assert_eq!(server.api("repositories?registry=quay.io")["total"], 0);
}

#[test]
fn status_reports_everything_in_one_response() {
    let (image, other) = (Image::sample("a"), Image::sample("b"));
    let (_registry, site, _) = Site::filled(&[("app:1", &image), ("db:1", &other)]);
    site.configure("cacheSize: 1GB");
    let server = site.serve();
    server.wait_for_images(2);
    server.wait_until_counted();
    let status = server.api("status");
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
    let used = status["disk"]["usedBytes"].as_u64();
    assert!(used > u64::try_from(manifests + blobs).ok(), "records take space as well: {used:?}");
    assert_eq!(status["disk"]["cacheSizeBytes"], 1_000_000_000);
    let connection = Connection::open(server.address());
    until("the new connection", || server.api("status")["connections"] == 1);
    drop(connection);
    site.run_ok(&["offline", "on"]);
    until("offline mode", || server.api("status")["offline"] == true);
    assert_eq!(server.metric("larder_offline"), 1.0);
    for what in ["flights/resume", "prefetch?image=app:1", "check?target=docker.io", "sync"] {
        let got = server.call("POST", what);
        assert!(got.status == 409 && got.text().contains("larder offline"), "{what}: {got:?}");
    }
}

#[test]
fn images_are_filtered_sorted_and_paged() {
    let (small, middle) = (Image::sample("a"), Image::sample("b").layer(bytes(9000, 3)));
    let (large, partial) = (Image::sample("c").layer(bytes(90_000, 4)), Image::sample("d"));
    let (registry, site, complete) =
        Site::filled(&[("alpha:1", &small), ("alpha:2", &large), ("beta:1", &middle)]);
    site.configure("pin: [beta]\ntags: [{pattern: '2', tagTtl: always}]");
    for (each, hours) in complete.iter().zip([3, 9, 6]) {
        site.fetched_ago(each, hours);
        site.unused_for(each, 10 - hours);
    }
    // Only its manifest, and after all the others.
    NamedImage::new("gamma", "1", &partial).publish(&registry);
    let server = site.serve();
    assert_eq!(get(server.address(), &manifest("library/gamma", "1")).status, 200);
    server.log();
    let server = site.serve();
    // The first server may have listed it between its manifest and its tag.
    until("the tag is listed", || {
        names(&server.api("images")).iter().any(|name| name.ends_with("gamma:1"))
    });
    let all = server.wait_for_images(4);
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
        let list = server.api(&format!("images?{query}"));
        let short = names(&list).into_iter().map(|name| name.replace("docker.io/library/", ""));
        assert_eq!(short.collect::<Vec<_>>(), expected, "{query}");
    }
    let page = server.api("images?limit=3");
    assert_eq!((&page["total"], &page["next"]), (&json!(4), &json!(3)));
    assert_eq!(server.api("images?limit=3&offset=3")["next"], Value::Null);
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
    // This tag would be revalidated before it is served.
    assert_eq!(all["images"][1]["stale"], true);
}

#[test]
fn image_shows_its_tree_and_blobs_their_references() {
    let registry = FakeRegistry::start();
    let (amd64, arm64) = (Image::sample("a"), Image::sample("b").platform("linux", "arm64"));
    let index = Index::new().image(&amd64).image(&arm64);
    registry.add("library/app", "1", &index);
    registry.add("library/copy", "1", &amd64);
    let site = Site::new(&registry, "");
    site.run_ok(&["load", "copy:1"]);
    let server = site.serve();
    assert_eq!(get(server.address(), &manifest("library/app", "1")).status, 200);
    assert_eq!(get(server.address(), &manifest("library/app", &amd64.digest())).status, 200);
    // Its tag is stored after the response.
    until("the tag", || server.get("/api/v1/image?image=app:1").status == 200);
    let copy = server.api("image?image=copy:1");
    assert_eq!(copy["platforms"], json!(["linux/amd64"]), "its config states the platform");
    assert_eq!(copy["tree"][0]["platform"], "linux/amd64");
    for name in ["app:1", "docker.io/library/app:1"] {
        let shown = server.api(&format!("image?image={}", escaped(name)));
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
        let shown = blobs
            .iter()
            .find(|each| each["digest"] == layer.digest)
            .expect("the layer among the blobs");
        assert_eq!(
            (&shown["sizeBytes"], &shown["present"]),
            (&json!(layer.bytes.len()), &json!(true))
        );
    }
    let got = server.get("/api/v1/image?image=app");
    assert!(got.status == 404 && got.text().contains("docker.io/library/app:latest"), "{got:?}");

    let stray = registry.add_blob("library/stray", &bytes(10, 5));
    assert_eq!(get(server.address(), &blob("library/stray", &stray)).status, 200);
    until("the blob to be published", || site.has(&stray));
    let layer = &amd64.layers()[1];
    for (digest, references) in
        [(&layer.digest, 2), (&amd64.digest(), 2), (&index.digest(), 1), (&stray, 0)]
    {
        let shown = server.api(&format!("blobs?digest={digest}"));
        assert_eq!((&shown["total"], &shown["next"]), (&json!(1), &Value::Null));
        assert_eq!(shown["blobs"][0]["references"], references, "{shown}");
    }
    let all = server.api("blobs");
    assert_eq!((&all["total"], &all["blobs"][0]["digest"]), (&json!(6), &json!(layer.digest)));
    let page = server.api("blobs?sort=references&limit=4");
    assert_eq!(page["next"], 4);
    let page = page["blobs"].as_array().expect("blobs");
    assert!(page.iter().all(|each| each["references"] == 2), "{page:?}");
    let by_digest = server.api("blobs?sort=digest");
    let digests: Vec<&str> = by_digest["blobs"]
        .as_array()
        .expect("blobs")
        .iter()
        .filter_map(|each| each["digest"].as_str())
        .collect();
    assert!(digests.is_sorted(), "{digests:?}");
}

#[test]
fn upstreams_show_an_open_breaker() {
    let registry = FakeRegistry::start();
    let image = Image::sample("a");
    let site = Site::new(&registry, "");
    NamedImage::new("app", "1", &image).publish(&registry);
    let server = site.serve();
    assert_eq!(get(server.address(), &manifest("library/app", "1")).status, 200);
    let endpoint =
        |server: &RunningServer| server.api("upstreams")["upstreams"][0]["endpoints"][0].clone();
    let first = endpoint(&server);
    assert_eq!((&first["breaker"], &first["failuresInARow"]), (&json!("closed"), &json!(0)));
    assert_eq!(
        (&first["askedAgainInSeconds"], &first["lastFailure"]),
        (&Value::Null, &Value::Null)
    );
    registry.fault(On::anything(), Fault::status(500));
    for tag in ["7", "8", "9"] {
        assert!(get(server.address(), &manifest("library/app", tag)).status >= 500);
    }
    let upstreams = server.api("upstreams");
    assert_eq!(upstreams["upstreams"][0]["name"], "docker.io");
    let open = endpoint(&server);
    assert_eq!((&open["url"], &open["breaker"]), (&json!(registry.url("")), &json!("open")));
    assert_eq!(open["failuresInARow"], 3);
    assert!(first["lastSuccess"].is_string() && first["unreachableSince"].is_null(), "{first}");
    assert!(open["lastFailureTime"].is_string() && open["unreachableSince"].is_string(), "{open}");
    let state = &server.api("status")["state"];
    let problem = &state["problems"][0];
    assert_eq!((&state["level"], &problem["text"]), (&json!("error"), &json!("1 upstream down")));
    assert_eq!(
        (&problem["since"], &problem["kind"]),
        (&open["unreachableSince"], &json!("upstreams"))
    );
    assert!(open["askedAgainInSeconds"].as_f64().is_some_and(|wait| wait > 0.0), "{open}");
    assert!(open["lastFailure"].as_str().is_some_and(|why| why.contains("500")), "{open}");
    let verbose = server.get("/health?verbose").json();
    assert_eq!(
        (&verbose["status"], &verbose["upstreams"][0]["endpoints"][0]["breaker"]),
        (&json!("UP"), &json!("open"))
    );
    let labels = format!("registry=\"docker.io\",endpoint=\"{}\"", registry.url(""));
    assert_eq!(server.metric(&format!("larder_upstream_breaker_open{{{labels}}}")), 1.0);
}

#[test]
fn commands_and_the_api_understand_aliases() {
    let registry = FakeRegistry::start();
    let image = Image::sample("a");
    registry.add("library/app", "1", &image);
    registry.add("library/base", "1", &Image::sample("b"));
    let site = Site::new(&registry, "");
    let config = fs::read_to_string(site.path("larder.yaml")).expect("a configuration");
    let config = config.replace("{name: docker.io,", "{name: docker.io, aliases: [Corp],");
    fs::write(site.path("larder.yaml"), config).expect("a file can be written");
    let (code, stdout, stderr) = site.run(&["load", "corp/library/app:1"]);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    let list = site.path("list");
    fs::write(&list, "CORP/library/base:1\n").expect("a file can be written");
    let (code, stdout, stderr) = site.run(&["load", &format!("@{}", list.display())]);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    let (code, stdout, _) = site.run(&["list", "corp/library/*"]);
    assert!(code == Some(0) && stdout.contains("app"), "{stdout}");
    let server = site.serve();
    server.wait_for_images(2);
    let found = server.api("image?image=corp/library/app:1");
    assert_eq!(found["image"], "docker.io/library/app:1");
    for (query, total) in [
        ("images?pattern=corp/library/*", 2),
        ("images?registry=corp", 2),
        ("images?registry=Corp&pattern=*base*", 1),
        ("images?registry=docker.io", 2),
        ("images?registry=other", 0),
        ("repositories?registry=CORP", 2),
        // The search of the page surrounds what is typed with asterisks.
        ("images?pattern=*corp/library/app*", 1),
        ("images?pattern=*library/app*", 1),
    ] {
        assert_eq!(server.api(query)["total"], total, "{query}");
    }
}
