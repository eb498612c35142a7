//! Probes, metrics and the status page: available without a token, on configurable ports.

use serde_json::json;

use crate::support::client::{get, request};
use crate::support::larder::{blob, manifest, until};
use crate::support::process::{Process, address_in};
use crate::support::site::{NamedImage, Site};
use crate::support::{FakeRegistry, Image, reserve_port};

#[test]
fn probes_report_liveness_and_draining() {
    let (_registry, site, content, digest, gate) = Site::gated(500_000);
    let server = site.serve();
    for (path, body) in
        [("/livez", "ok\n"), ("/readyz", "ok\n"), ("/health", "{\"status\":\"UP\"}")]
    {
        let got = server.get(path);
        assert_eq!((got.status, got.text().as_str()), (200, body), "{path}");
    }
    let mut client = server.begin(&blob("library/big", &digest));
    client.read_head();
    client.read_body(400_000);
    server.process.signal("TERM");
    until("the drain", || server.get("/readyz").status == 503);
    assert_eq!(server.get("/readyz").text(), "draining\n");
    assert_eq!((server.get("/livez").status, server.get("/health").status), (200, 200));
    assert_eq!(server.api("status")["ready"], false);
    assert_eq!(server.metric("larder_ready"), 0.0);
    gate.open();
    let (rest, complete) = client.read_to_end();
    assert!(complete && rest == content[400_000..]);
    let (status, log) = server.process.wait();
    assert!(status.success(), "{log}");
}

#[test]
fn counters_follow_events() {
    let (registry, site, content, digest, gate) = Site::gated(500_000);
    let image = Image::sample("a");
    let app = NamedImage::new("app", "1", &image);
    app.publish(&registry);
    registry.expect_unknown("/v2/library/app/manifests/9");
    let server = site.serve();
    let answers = |kind: &str, how: &str| {
        let labels = format!("kind=\"{kind}\",how=\"{how}\",registry=\"docker.io\"");
        server.metric(&format!("larder_answers_total{{{labels}}}"))
    };
    app.pull(server.address());
    site.wait_for(&app);
    assert_eq!([answers("manifest", "miss"), answers("manifest", "hit")], [1.0, 0.0]);
    assert_eq!([answers("blob", "miss"), answers("blob", "hit")], [3.0, 0.0]);
    app.pull(server.address());
    assert_eq!([answers("manifest", "miss"), answers("manifest", "hit")], [1.0, 1.0]);
    assert_eq!([answers("blob", "miss"), answers("blob", "hit")], [3.0, 3.0]);
    assert_eq!(get(server.address(), &manifest("library/app", "9")).status, 404);

    let path = blob("library/big", &digest);
    let mut clients = [server.begin(&path), server.begin(&path)];
    for client in &mut clients {
        assert_eq!(client.read_head().status, 200);
        client.read_body(400_000);
    }
    assert_eq!([answers("blob", "miss"), answers("blob", "join")], [4.0, 1.0]);
    assert_eq!(server.metric("larder_flights{kind=\"blob\"}"), 1.0);
    gate.open();
    for client in &mut clients {
        assert!(client.read_to_end().1);
    }
    let blobs = image.layers().iter().map(|each| each.bytes.len()).sum::<usize>()
        + image.config().bytes.len()
        + image.manifest().len();
    let fetched = (blobs + content.len()) as f64;
    until("the end of the download", || {
        server.metric("larder_downloads_total{outcome=\"done\"}") == 4.0
    });
    assert_eq!(server.metric("larder_fetched_bytes_total"), fetched);
    // Bytes are counted when the response ends, which the client may notice first.
    let requests = |route: &str, status: u16| {
        let labels = format!("route=\"{route}\",status=\"{status}\"");
        server.metric(&format!("larder_requests_total{{{labels}}}"))
    };
    until("the end of all responses", || requests("blob", 200) == 8.0);
    assert_eq!([requests("manifest", 200), requests("manifest", 404)], [2.0, 1.0]);
    let served = server.metric("larder_served_bytes_total");
    assert!(served >= (2 * blobs + 2 * content.len()) as f64, "{served}");
    let asked = |outcome: &str| {
        let labels = format!("registry=\"docker.io\",outcome=\"{outcome}\"");
        server.metric(&format!("larder_upstream_requests_total{{{labels}}}"))
    };
    let all = registry.requests().len() as f64;
    assert_eq!(asked("ok") + asked("404"), all);
    assert_eq!(asked("404"), registry.count("*", "/v2/library/app/manifests/9") as f64);
    let traffic = &server.api("status")["traffic"];
    let counts = ["miss", "hit", "join", "stale", "bypass"].map(|how| traffic[how].as_u64());
    assert_eq!(counts, [Some(5), Some(4), Some(1), Some(0), Some(0)], "{traffic}");
    assert_eq!(traffic["bytesFetched"].as_f64(), Some(fetched));
    assert!(server.get("/metrics").text().ends_with("# EOF\n"));
}

#[test]
fn checks_of_moved_tags_and_lists_are_counted_as_upstream_requests() {
    let (registry, site) = Site::empty("tagTtl: 0");
    let app = NamedImage::new("app", "1", &Image::sample("a"));
    app.publish(&registry);
    registry.enable_referrers();
    registry.expect_unknown("/v2/library/app/manifests/9");
    let server = site.serve();
    app.pull(server.address());
    registry.add(&app.path(), "1", &Image::sample("b"));
    // HEAD reports another digest, which is then fetched.
    assert_eq!(get(server.address(), &app.target()).body, Image::sample("b").manifest());
    // A HEAD that is answered 404 is followed by a GET.
    let missing = manifest(&app.path(), "9");
    assert_eq!(request(server.address(), "HEAD", &missing, &[]).status, 404);
    assert_eq!(get(server.address(), "/v2/library/app/tags/list").status, 200);
    let referrers = format!("/v2/library/app/referrers/{}", app.image.digest());
    assert_eq!(get(server.address(), &referrers).status, 200);
    let counted = |outcome: &str| {
        let labels = format!("registry=\"docker.io\",outcome=\"{outcome}\"");
        server.metric(&format!("larder_upstream_requests_total{{{labels}}}"))
    };
    let missing = registry.count("*", &missing);
    let all = registry.requests().len();
    assert_eq!((counted("404"), counted("ok")), (missing as f64, (all - missing) as f64));
    assert_eq!(missing, 2, "HEAD and GET");
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

#[test]
fn page_may_load_nothing_from_other_origins() {
    let (_registry, site) = Site::empty("");
    let server = site.serve();
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/page.css", "text/css; charset=utf-8"),
        ("/page.js", SCRIPT),
        ("/openapi.yaml", "application/yaml"),
    ] {
        let got = server.get(path);
        assert_eq!((got.status, got.header("content-type")), (200, Some(kind)), "{path}");
        let policy = got.header("content-security-policy").unwrap_or_default();
        for part in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{path}: {policy}");
        assert_eq!(got.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(got.header("referrer-policy"), Some("no-referrer"), "{path}");
    }
    // Modules import each other by paths that are served.
    let mut paths = vec!["/page.js".to_owned()];
    for at in 0.. {
        let Some(path) = paths.get(at).cloned() else { break };
        let got = server.get(&path);
        assert_eq!((got.status, got.header("content-type")), (200, Some(SCRIPT)), "{path}");
        let text = got.text();
        let imports = text.lines().filter(|line| line.starts_with("import "));
        for import in imports.filter_map(|line| line.split('\'').nth(1)) {
            let path = import.replacen("./", "/", 1);
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
    }
    assert!(paths.len() > 5, "{paths:?}");
    let page = server.get("/").text();
    assert!(page.contains("src=\"/page.js\"") && page.contains("href=\"/page.css\""), "{page}");
    for inline in ["src=\"http", "href=\"http", " style=", " onclick=", "<script>", "<style>"] {
        assert!(!page.contains(inline), "{inline} in {page}");
    }
}

/// A server with these additional keys in its configuration.
fn with_ports(registry: &FakeRegistry, keys: &str) -> (Process, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let host = registry.host();
    let text = format!("fsync: false\nregistries: [{{name: \"{host}\", scheme: http}}]\n{keys}\n");
    (Process::serve_file(directory.path(), &text), directory)
}

#[test]
fn health_and_metrics_have_separate_ports_like_the_reference_server() {
    let registry = FakeRegistry::start();
    let (process, _directory) = with_ports(&registry, "health: 0\nmetrics: 0");
    let health = address_in(&process.banner, "serving health", "health");
    let metrics = address_in(&process.banner, "serving metrics", "metrics");
    let answers = |at, paths: &[&str]| -> Vec<u16> {
        paths.iter().map(|path| get(at, path).status).collect()
    };
    let paths = ["/health", "/livez", "/readyz", "/v2/", "/metrics", "/", "/api/v1/status"];
    assert_eq!(answers(health, &paths), [200, 200, 200, 200, 404, 404, 404]);
    assert_eq!(answers(metrics, &paths), [404, 404, 404, 404, 200, 404, 404]);
    assert_eq!(get(health, "/health").json(), json!({"status": "UP"}));
    // The metrics port answers under every host name.
    let verbose = request(health, "GET", "/health?verbose", &[("Host", "larder.test")]).json();
    assert_eq!(verbose["upstreams"][0]["name"], registry.host());
    assert_eq!(verbose["upstreams"][0]["endpoints"][0]["breaker"], "closed");
    assert_eq!(verbose["servedWithoutCaching"], json!({"blobs": 0, "manifests": 0}));
    assert_eq!(verbose["damagedFiles"], 0);
    assert_eq!(request(health, "POST", "/health", &[("Content-Length", "0")]).status, 405);
    let version = format!("larder_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
    assert!(get(metrics, "/metrics").text().contains(&version));
}

#[test]
fn health_and_metrics_may_share_a_port_with_each_other_and_with_management() {
    let registry = FakeRegistry::start();
    let (_held, one) = reserve_port();
    let port = one.port();
    let (process, _directory) = with_ports(&registry, &format!("health: {port}\nmetrics: {port}"));
    assert!(
        process
            .banner
            .contains(&format!("serving health and metrics health={one} metrics={one}\n")),
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
    assert_eq!(address_in(&process.banner, "serving the management port", "management"), one);
    assert_eq!(statuses(&paths), [200; 5]);
}
