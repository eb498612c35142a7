//! The program as a process: output, exit codes, logs.
//!
//! Proves the exit statuses and the drain of docs/operations.md, and that no upstream secret is logged.

use std::fs;
use std::net::{SocketAddr, TcpListener};

use crate::support::client::get;
use crate::support::larder::{blob, manifest, until};
use crate::support::process::{Process, larder, run};
use crate::support::{
    Connection, FakeProxy, FakeRegistry, Fault, Gate, Image, On, bytes, reserve_port,
};

const REPOSITORY: &str = "team/app";

#[test]
fn version_is_printed() {
    let expected = format!("larder {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(run(&["version"]), (Some(0), expected, String::new()));
}

#[test]
fn help_exits_with_0() {
    for arguments in [&["--help"][..], &["serve", "--help"]] {
        let (code, stdout, _) = run(arguments);
        assert_eq!(code, Some(0), "{arguments:?}");
        assert!(stdout.contains("--"), "{stdout}");
    }
}

#[test]
fn usage_error_exits_with_2_and_a_reason() {
    for (arguments, words) in [
        (&["--no-such-flag"][..], "no-such-flag"),
        (&["no-such-command"], "no-such-command"),
        (&["serve", "--port", "many"], "many"),
        (&["serve", "--port", "99999"], "99999"),
        (&["serve", "--host", "nowhere"], "nowhere"),
        (&["serve", "--default-ns", "a b"], "--default-ns"),
        (&["--log-level", "loud", "serve"], "--log-level"),
        (&["--config-file", "/nonexistent.yaml", "serve"], "/nonexistent.yaml"),
    ] {
        let (code, stdout, stderr) = run(arguments);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{arguments:?}: {stderr}");
        assert!(stderr.contains(words), "{arguments:?}: {stderr}");
    }
}

#[test]
fn configuration_is_checked_without_a_server() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("larder.yaml");
    let name = path.display().to_string();
    let check = |text: &str| {
        fs::write(&path, text).expect("a file can be written");
        run(&["--config-file", &name, "config", "check"])
    };
    let (code, stdout, stderr) = check("registries: [{name: a.io}, {name: b.io}]");
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert_eq!(stdout, format!("{name}: valid, 2 registry entries\n"));
    fs::write(
        directory.path().join("users"),
        "u:$2y$04$5TeKT.s9FsTxS3i9dnaT.eeZsnvHkTXDfq6YA/Pb9LXeQk3bD5R2m",
    )
    .expect("a file can be written");
    let users = directory.path().join("users").display().to_string();
    let (code, _, stderr) = check(&format!("serverAuthConfig: {{htpasswd: {users}}}"));
    assert!(code == Some(0) && stderr.starts_with("warning: serverAuthConfig without"), "{stderr}");
    for (text, words) in [
        ("prt: 1", ":1:1:"),
        (
            "registries: [{name: a.io, tls: {ca: /nonexistent}}]",
            "registries: a.io: tls: cannot read",
        ),
        ("serverAuthConfig: {htpasswd: /nonexistent}", "serverAuthConfig: cannot read"),
        ("preloadImages: /nonexistent", "/nonexistent"),
    ] {
        let (code, stdout, stderr) = check(text);
        assert!(code == Some(2) && stdout.is_empty(), "{text}: {code:?} {stderr}");
        assert!(stderr.contains(words), "{text}: {stderr}");
    }
}

#[test]
fn configuration_error_exits_with_2_and_a_location() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("larder.yaml");
    for (text, place) in [
        ("port: 1\nprt: 2\n", ":2:1:"),
        ("port: many\n", ":1:7:"),
        ("registries:\n  - name: quay.io\n    scheme: ftp\n", ":3:13:"),
        ("port: [\n", "larder.yaml:"),
    ] {
        fs::write(&path, text).expect("a file can be written");
        let name = path.display().to_string();
        let (code, _, stderr) = run(&["--config-file", &name, "serve"]);
        assert_eq!(code, Some(2), "{text}: {stderr}");
        assert!(stderr.contains("larder.yaml") && stderr.contains(place), "{text}: {stderr}");
    }
}

#[test]
fn port_in_use_exits_with_1_and_advice() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let port = taken.local_addr().expect("a bound socket").port().to_string();
    let directory = tempfile::tempdir().expect("a directory");
    let cache = directory.path().join("cache").display().to_string();
    let (code, _, stderr) =
        run(&["--image-path", &cache, "serve", "--host", "127.0.0.1", "--port", &port]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains(&port) && stderr.contains("--port"), "{stderr}");
}

#[test]
fn invalid_cache_directory_exits_with_1_and_advice() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("file");
    fs::write(&file, b"no directory").expect("a file can be written");
    for path in [file.clone(), file.join("below")] {
        let name = path.display().to_string();
        let (code, _, stderr) = run(&["--image-path", &name, "serve", "--port", "0"]);
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains(&name) && stderr.contains("--image-path"), "{stderr}");
    }
}

#[test]
fn signal_drains_responses_and_exits_with_0() {
    for signal in ["TERM", "INT"] {
        let (registry, content, digest) = FakeRegistry::with_blob(REPOSITORY, 100_000);
        let gate = Gate::new();
        registry.fault(On::get_blob(&digest), Fault::GateAfter(50_000, gate.clone()));
        let directory = tempfile::tempdir().expect("a directory");
        let process = Process::serve(directory.path(), &registry);
        let mut busy = Connection::open(process.address);
        busy.send("GET", &blob(REPOSITORY, &digest), &[]);
        assert_eq!(busy.read_head().status, 200);
        busy.read_body(50_000);
        let mut idle = Connection::open(process.address);
        assert_eq!(idle.get("/v2/").status, 200);
        process.signal(signal);
        idle.eof();
        until("the end of listening", || Connection::try_open(process.address).is_err());
        gate.open();
        let (rest, complete) = busy.read_to_end();
        assert!(complete && rest == content[50_000..]);
        let (status, log) = process.wait();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(log.contains("drain"), "{log}");
    }
}

#[test]
fn drain_that_serves_answers_clients_until_the_last_response_has_ended() {
    let (registry, content, digest) = FakeRegistry::with_blob(REPOSITORY, 100_000);
    let gate = Gate::new();
    registry.fault(On::get_blob(&digest), Fault::GateAfter(50_000, gate.clone()));
    let directory = tempfile::tempdir().expect("a directory");
    let text = format!(
        "drain: serve\nfsync: false\nport: 0\nhost: 127.0.0.1\nimagePath: {}\nregistries: [{{name: \"{}\", scheme: http}}]\n",
        directory.path().join("cache").display(),
        registry.host()
    );
    let mut process = Process::serve_file(directory.path(), &text);
    let target = format!("/v2/{}/{REPOSITORY}/blobs/{digest}", registry.host());
    let mut busy = Connection::open(process.address);
    busy.send("GET", &target, &[]);
    assert_eq!(busy.read_head().status, 200);
    busy.read_body(50_000);
    process.signal("TERM");
    process.wait_until_it_logs("draining");
    let got = get(process.address, "/v2/");
    assert_eq!((got.status, got.header("connection")), (200, Some("close")));
    // Content that is cached, or that arrives, is served as well.
    let mut late = Connection::open(process.address);
    late.send("GET", &target, &[]);
    assert_eq!(late.read_head().status, 200);
    gate.open();
    let (rest, complete) = busy.read_to_end();
    assert!(complete && rest == content[50_000..]);
    let (all, complete) = late.read_to_end();
    assert!(complete && all == content);
    let (status, log) = process.wait();
    assert_eq!(status.code(), Some(0), "{log}");
}

/// The number of sockets that listen on a port.
fn listeners(address: SocketAddr) -> usize {
    let sockets = fs::read_to_string("/proc/self/net/tcp").expect("the table of sockets");
    let (end, state) = (format!(":{:04X}", address.port()), " 00000000:0000 0A ");
    sockets.lines().filter(|line| line.contains(&format!("{end}{state}"))).count()
}

#[test]
fn successor_takes_over_all_ports_before_the_first_process_ends() {
    let (registry, content, digest) = FakeRegistry::with_blob(REPOSITORY, 100_000);
    let gate = Gate::new();
    registry.fault(On::get_blob(&digest), Fault::GateAfter(50_000, gate.clone()));
    let directory = tempfile::tempdir().expect("a directory");
    let (_held, health) = reserve_port();
    let text = format!(
        "drain: handover\nfsync: false\nhealth: {}\nhost: 127.0.0.1\nimagePath: {}\nregistries: [{{name: \"{}\", scheme: http}}]\n",
        health.port(),
        directory.path().join("cache").display(),
        registry.host()
    );
    let mut old = Process::serve_file(directory.path(), &text);
    let address = old.address;
    let target = format!("/v2/{}/{REPOSITORY}/blobs/{digest}", registry.host());
    let mut busy = Connection::open(address);
    busy.send("GET", &target, &[]);
    assert_eq!(busy.read_head().status, 200);
    busy.read_body(50_000);
    let config = directory.path().join("larder.yaml").display().to_string();
    let port = address.port().to_string();
    let mut new =
        Process::begin(&mut larder(&["--config-file", &config, "serve", "--port", &port]));
    new.wait_until_it_listens();
    old.signal("TERM");
    old.wait_until_it_logs("draining");
    until("the end of listening", || [address, health].map(listeners) == [1, 1]);
    // The first process has not ended, but does not answer any more: it would not be ready.
    for _ in 0..64 {
        assert_eq!((get(address, "/v2/").status, get(health, "/readyz").status), (200, 200));
    }
    gate.open();
    let (rest, complete) = busy.read_to_end();
    assert!(complete && rest == content[50_000..]);
    let (status, log) = old.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert_eq!(get(address, &target).body, content);
    new.signal("TERM");
    assert_eq!(new.wait().0.code(), Some(0));
}

#[test]
fn next_process_uses_the_cache() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let directory = tempfile::tempdir().expect("a directory");
    for signal in ["TERM", "KILL", "TERM"] {
        let process = Process::serve(directory.path(), &registry);
        assert!(get(process.address, &manifest(REPOSITORY, "v1")).body == image.manifest());
        let layer = &image.layers()[0];
        assert!(get(process.address, &blob(REPOSITORY, &layer.digest)).body == layer.bytes);
        let file = directory.path().join("cache/blobs").join(layer.digest.replace(':', "/"));
        until("the blob's name", || file.exists());
        process.signal(signal);
        process.wait();
    }
    let layer = blob(REPOSITORY, &image.layers()[0].digest);
    let asked = [manifest(REPOSITORY, "v1"), layer].map(|path| registry.count("GET", &path));
    assert_eq!(asked, [1, 1]);
}

#[test]
fn killed_process_leaves_no_incomplete_blob() {
    let (registry, content, digest) = FakeRegistry::with_blob(REPOSITORY, 100_000);
    let gate = Gate::new();
    registry.fault(On::get_blob(&digest).times(1), Fault::GateAfter(50_000, gate.clone()));
    let directory = tempfile::tempdir().expect("a directory");
    let process = Process::serve(directory.path(), &registry);
    let mut client = Connection::open(process.address);
    client.send("GET", &blob(REPOSITORY, &digest), &[]);
    client.read_head();
    client.read_body(50_000);
    process.signal("KILL");
    process.wait();
    let blobs = directory.path().join("cache/blobs/sha256");
    assert_eq!(fs::read_dir(&blobs).expect("it was made").count(), 0);
    let process = Process::serve(directory.path(), &registry);
    assert!(get(process.address, &blob(REPOSITORY, &digest)).body == content);
    process.signal("TERM");
    process.wait();
}

#[test]
fn log_contains_no_signature_and_no_token() {
    let (registry, storage) = (FakeRegistry::start(), FakeRegistry::start());
    let image = Image::sample("v1");
    registry.add(REPOSITORY, "v1", &image);
    let tokens = crate::support::TokenServer::new();
    registry.require_bearer(&tokens);
    let layers = image.layers();
    storage.add_file("/good", "binary/octet-stream", &layers[0].bytes);
    storage.expect_unknown("/bad");
    for (layer, path) in layers.iter().zip(["/good", "/bad"]) {
        let location = storage.url(&format!("{path}?X-Signature=hunter2"));
        registry.fault(On::get_blob(&layer.digest), Fault::redirect_to(&location));
    }
    let directory = tempfile::tempdir().expect("a directory");
    let process = Process::serve(directory.path(), &registry);
    let headers = [("Authorization", "Basic aHVudGVyMg==")];
    let ask =
        |path: &str| crate::support::client::request(process.address, "GET", path, &headers).status;
    assert_eq!(ask(&manifest(REPOSITORY, "v1")), 200);
    assert_eq!(ask(&blob(REPOSITORY, &layers[0].digest)), 200);
    assert_eq!(ask(&blob(REPOSITORY, &layers[1].digest)), 404);
    process.signal("TERM");
    let (_, log) = process.wait();
    assert!(log.contains("status=200") && log.contains("status=404"), "{log}");
    for secret in ["hunter2", "X-Signature", "fake-token", "aHVudGVyMg"] {
        assert!(!log.contains(secret), "{secret} in:\n{log}");
    }
}

#[test]
fn disconnecting_clients_are_not_logged_as_errors() {
    let (registry, content, digest) = FakeRegistry::with_blob(REPOSITORY, 200_000);
    let gate = Gate::new();
    registry.fault(On::get_blob(&digest), Fault::GateAfter(100_000, gate.clone()));
    let directory = tempfile::tempdir().expect("a directory");
    let process = Process::serve(directory.path(), &registry);
    for _ in 0..100 {
        let mut client = Connection::open(process.address);
        client.send("GET", &blob(REPOSITORY, &digest), &[]);
        client.read_head();
        client.read_body(1000);
        client.reset();
    }
    gate.open();
    assert!(get(process.address, &blob(REPOSITORY, &digest)).body == content);
    process.signal("TERM");
    let (_, log) = process.wait();
    assert!(!log.contains(" ERROR ") && !log.contains(" WARN "), "{log}");
    assert_eq!(registry.requests().len(), 1);
}

#[test]
fn disk_that_fills_up_during_a_download_does_not_disconnect_its_clients() {
    let directory = tempfile::tempdir().expect("a directory");
    let (registry, content, digest) = FakeRegistry::with_blob(REPOSITORY, 1_000_000);
    let gate = Gate::new();
    registry.fault(On::get_blob(&digest).times(1), Fault::GateAfter(60_000, gate.clone()));
    let process = Process::serve_small_files(directory.path(), &registry);
    let mut client = Connection::open(process.address);
    client.send("GET", &blob(REPOSITORY, &digest), &[]);
    client.read_head();
    // Served from the file, before the disk is full.
    assert!(client.read_body(50_000) == content[..50_000]);
    gate.open();
    let (rest, complete) = client.read_to_end();
    assert!(complete && rest == content[50_000..], "{} bytes came", rest.len());
    // From now on the server knows this before the first byte.
    let again = get(process.address, &blob(REPOSITORY, &digest));
    assert!(again.complete && again.body == content);
    process.signal("TERM");
    let (status, log) = process.wait();
    assert!(status.success(), "{log}");
    assert!(log.contains("cannot write") && log.contains("without caching it"), "{log}");
}

#[test]
fn range_beyond_what_a_full_disk_has_stored_is_complete() {
    let directory = tempfile::tempdir().expect("a directory");
    let (registry, content, digest) = FakeRegistry::with_blob(REPOSITORY, 1_000_000);
    let gate = Gate::new();
    registry.fault(On::get_blob(&digest).times(1), Fault::GateAfter(60_000, gate.clone()));
    let process = Process::serve_small_files(directory.path(), &registry);
    let mut clients =
        [("bytes=20000-", 20_000), ("bytes=700000-", 700_000)].map(|(range, from)| {
            let mut client = Connection::open(process.address);
            client.send("GET", &blob(REPOSITORY, &digest), &[("Range", range)]);
            assert_eq!(client.read_head().status, 206);
            (client, from)
        });
    // The first client has received a part of its range from the file, the second one nothing.
    let part = clients[0].0.read_body(30_000);
    assert!(part == content[20_000..50_000]);
    clients[0].1 = 50_000;
    gate.open();
    for (client, from) in &mut clients {
        let (rest, complete) = client.read_to_end();
        assert!(complete && rest == content[*from..], "from {from}: {} bytes came", rest.len());
    }
    process.signal("TERM");
    let (status, log) = process.wait();
    assert!(status.success(), "{log}");
    assert!(log.contains("cannot write") && log.contains("without caching it"), "{log}");
}

#[test]
fn environment_proxies_are_used_and_logged_without_credentials() {
    let registry = FakeRegistry::start_tls();
    let image = Image::sample("v1");
    registry.add(REPOSITORY, "v1", &image);
    // A proxy with TLS, so that there is TLS inside TLS.
    let proxy = FakeProxy::start_tls();
    proxy.route("registry.test:443", registry.address());
    proxy.demand("user", "hunter2");
    let directory = tempfile::tempdir().expect("a directory");
    let put = |name: &str, content: String| {
        let path = directory.path().join(name);
        fs::write(&path, content).expect("a file can be written");
        path.display().to_string()
    };
    let (ca, roots) = (put("ca.pem", registry.ca_pem()), put("roots.pem", proxy.ca_pem()));
    let process = Process::serve_with(
        directory.path(),
        "registry.test",
        &format!("{{name: registry.test, tls: {{ca: \"{ca}\"}}}}"),
        &[
            ("HTTPS_PROXY", &proxy.url_with("user", "hunter2")),
            ("NO_PROXY", "10.0.0.0/8,10.*"),
            // The operating system's roots, which must include the proxy's authority.
            ("SSL_CERT_FILE", &roots),
        ],
    );
    let message = format!("a proxy is used for https registries proxy={}\n", proxy.url());
    assert!(process.banner.contains(&message), "{}", process.banner);
    assert!(process.banner.contains(" is ignored entry=10.*\n"), "{}", process.banner);
    assert!(get(process.address, &manifest(REPOSITORY, "v1")).body == image.manifest());
    for layer in image.layers() {
        assert!(get(process.address, &blob(REPOSITORY, &layer.digest)).body == layer.bytes);
    }
    assert!(proxy.targets().iter().all(|target| target == "registry.test:443"));
    process.signal("TERM");
    let (status, log) = process.wait();
    assert!(status.success() && !log.contains("hunter2"), "{log}");
}

#[test]
fn invalid_proxy_prevents_the_start() {
    for (variable, value) in
        [("HTTPS_PROXY", "http://user:hunter2@p:port"), ("all_proxy", "socks5://u:hunter2@p:1080")]
    {
        let output = larder(&["serve", "--port", "0"]).env(variable, value).output();
        let output = output.expect("it can be started");
        let stderr = String::from_utf8(output.stderr).expect("it prints UTF-8");
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(variable) && !stderr.contains("hunter2"), "{stderr}");
    }
}

#[test]
fn bytes_sent_before_the_disk_filled_must_match_the_pass_through() {
    let directory = tempfile::tempdir().expect("a directory");
    let registry = FakeRegistry::start();
    let content = bytes(1_000_000, 1);
    let digest = crate::support::digest_of(&content);
    // The first response starts with wrong bytes. The pass-through response has the right ones.
    registry.add_blob_as(REPOSITORY, &digest, &bytes(1_000_000, 2));
    let gate = Gate::new();
    registry.fault(On::get_blob(&digest).times(1), Fault::GateAfter(60_000, gate.clone()));
    let process = Process::serve_small_files(directory.path(), &registry);
    let mut client = Connection::open(process.address);
    client.send("GET", &blob(REPOSITORY, &digest), &[]);
    client.read_head();
    client.read_body(50_000);
    registry.add_blob_as(REPOSITORY, &digest, &content);
    gate.open();
    assert!(!client.read_to_end().1, "a wrong beginning never gets an end");
}
