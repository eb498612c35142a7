//! The program as a process: what it prints, how it ends, what it logs.
//!
//! Proves the exit codes of DESIGN.md section 8, the drain of section 6, and that no secret of an
//! upstream reaches the log.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use crate::support::client::get;
use crate::support::larder::{blob, manifest, until};
use crate::support::{Connection, FakeProxy, FakeRegistry, Fault, Gate, Image, On, Publish, bytes};

const REPOSITORY: &str = "team/app";

const LARDER: &str = env!("CARGO_BIN_EXE_larder");

fn larder(arguments: &[&str]) -> Command {
    let mut command = Command::new(LARDER);
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs to the end, which must come by itself.
fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = larder(arguments).output().expect("it can be started");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it prints UTF-8");
    (status.code(), text(stdout), text(stderr))
}

/// A server, until it is dropped.
struct Process {
    child: Child,
    address: SocketAddr,
    /// What it has logged and nobody has read.
    log: BufReader<std::process::ChildStderr>,
    /// What it has logged until it listened.
    banner: String,
}

impl Process {
    /// Serves that directory; requests that name no registry mean `registry`.
    fn serve(directory: &Path, registry: &FakeRegistry) -> Process {
        Process::serve_by(Command::new(LARDER), directory, registry)
    }

    /// As [`Process::serve`], with no room for a file of more than about 150 kB, whoever runs the test.
    fn serve_small_files(directory: &Path, registry: &FakeRegistry) -> Process {
        let mut shell = Command::new("sh");
        // A write beyond the limit fails instead of killing. The unit is half a kibibyte or a whole one.
        shell.args(["-c", "trap '' XFSZ; ulimit -f 150; exec \"$@\"", "sh", LARDER]);
        Process::serve_by(shell, directory, registry)
    }

    fn serve_by(command: Command, directory: &Path, registry: &FakeRegistry) -> Process {
        let host = registry.host();
        let entry = format!("{{name: \"{host}\", scheme: http}}");
        Process::spawn(command, directory, &host, &entry, &[])
    }

    /// Serves that directory with one entry of `registries`, and variables in its environment.
    fn serve_with(
        directory: &Path,
        host: &str,
        entry: &str,
        variables: &[(&str, &str)],
    ) -> Process {
        Process::spawn(Command::new(LARDER), directory, host, entry, variables)
    }

    fn spawn(
        mut command: Command,
        directory: &Path,
        host: &str,
        entry: &str,
        variables: &[(&str, &str)],
    ) -> Process {
        let config = directory.join("larder.yaml");
        let text = format!("logLevel: debug\nfsync: false\nregistries:\n  - {entry}\n");
        fs::write(&config, text).expect("a file can be written");
        let (config, cache) = (config.display().to_string(), directory.join("cache"));
        let mut child = command
            .args(["--config-file", &config, "--image-path"])
            .arg(cache)
            .args(["serve", "--port", "0", "--host", "127.0.0.1", "--default-ns", host])
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it can be started");
        let log = BufReader::new(child.stderr.take().expect("it was piped"));
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut process = Process { child, address, log, banner: String::new() };
        process.wait_until_it_listens();
        process
    }

    fn wait_until_it_listens(&mut self) {
        loop {
            let mut line = String::new();
            self.log.read_line(&mut line).expect("its log can be read");
            self.banner.push_str(&line);
            assert!(!line.is_empty(), "it ended instead of listening:\n{}", self.banner);
            if let Some((_, address)) = line.trim_end().split_once("listening on ") {
                self.address = address.parse().expect("it says where it listens");
                return;
            }
        }
    }

    fn wait_until_it_logs(&mut self, words: &str) {
        let mut line = String::new();
        while !line.contains(words) {
            line.clear();
            self.log.read_line(&mut line).expect("its log can be read");
            assert!(!line.is_empty(), "it ended without saying {words}");
        }
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &id]).status();
        assert!(sent.expect("there is a kill").success());
    }

    /// How it ended, and all that it has logged.
    fn wait(mut self) -> (ExitStatus, String) {
        let mut log = std::mem::take(&mut self.banner);
        self.log.read_to_string(&mut log).expect("its log can be read");
        (self.child.wait().expect("it was started"), log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended, as it should; and if the test fails it must not stay.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn version_is_printed() {
    let expected = format!("larder {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(run(&["version"]), (Some(0), expected, String::new()));
}

#[test]
fn help_is_no_error() {
    for arguments in [&["--help"][..], &["serve", "--help"]] {
        let (code, stdout, _) = run(arguments);
        assert_eq!(code, Some(0), "{arguments:?}");
        assert!(stdout.contains("--"), "{stdout}");
    }
}

#[test]
fn what_is_typed_wrong_ends_with_2_and_says_what() {
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
fn what_is_configured_wrong_ends_with_2_and_says_where() {
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
fn port_in_use_ends_with_1_and_advice() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let port = taken.local_addr().expect("it is bound").port().to_string();
    let directory = tempfile::tempdir().expect("a directory");
    let cache = directory.path().join("cache").display().to_string();
    let (code, _, stderr) =
        run(&["--image-path", &cache, "serve", "--host", "127.0.0.1", "--port", &port]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains(&port) && stderr.contains("--port"), "{stderr}");
}

#[test]
fn cache_directory_that_is_none_ends_with_1_and_advice() {
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
fn signal_ends_it_with_0_after_the_responses_under_way() {
    for signal in ["TERM", "INT"] {
        let registry = FakeRegistry::start();
        let content = bytes(100_000, 1);
        let digest = registry.add_blob(REPOSITORY, &content);
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
fn cache_of_one_process_is_the_next_ones() {
    let registry = FakeRegistry::start();
    let image = Image::sample("v1");
    registry.add(REPOSITORY, "v1", &image);
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
fn killed_process_leaves_no_blob_that_is_not_whole() {
    let registry = FakeRegistry::start();
    let content = bytes(100_000, 1);
    let digest = registry.add_blob(REPOSITORY, &content);
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
fn log_holds_no_signature_and_no_token() {
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
fn clients_that_leave_are_no_errors_in_the_log() {
    let registry = FakeRegistry::start();
    let content = bytes(200_000, 1);
    let digest = registry.add_blob(REPOSITORY, &content);
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
    assert!(!log.contains("[ERROR]") && !log.contains("[WARN]"), "{log}");
    assert_eq!(registry.requests().len(), 1);
}

#[test]
fn disk_that_fills_up_in_the_middle_of_a_blob_does_not_cut_its_clients() {
    let directory = tempfile::tempdir().expect("a directory");
    let registry = FakeRegistry::start();
    let content = bytes(1_000_000, 1);
    let digest = registry.add_blob(REPOSITORY, &content);
    let gate = Gate::new();
    registry.fault(On::get_blob(&digest).times(1), Fault::GateAfter(60_000, gate.clone()));
    let process = Process::serve_small_files(directory.path(), &registry);
    let mut client = Connection::open(process.address);
    client.send("GET", &blob(REPOSITORY, &digest), &[]);
    client.read_head();
    // From the file, before it is full.
    assert!(client.read_body(50_000) == content[..50_000]);
    gate.open();
    let (rest, complete) = client.read_to_end();
    assert!(complete && rest == content[50_000..], "{} bytes came", rest.len());
    // From now on it is known before a byte has come.
    let again = get(process.address, &blob(REPOSITORY, &digest));
    assert!(again.complete && again.body == content);
    process.signal("TERM");
    let (status, log) = process.wait();
    assert!(status.success(), "{log}");
    assert!(log.contains("cannot write") && log.contains("without caching it"), "{log}");
}

#[test]
fn proxies_of_the_environment_are_heeded_and_said_without_their_credentials() {
    let registry = FakeRegistry::start_tls();
    let image = Image::sample("v1");
    registry.add(REPOSITORY, "v1", &image);
    // One that is spoken to by TLS, so that there is TLS within TLS.
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
            // The operating system's roots, which must know the proxy.
            ("SSL_CERT_FILE", &roots),
        ],
    );
    let said = format!("https registries are reached by way of the proxy {}\n", proxy.url());
    assert!(process.banner.contains(&said), "{}", process.banner);
    assert!(process.banner.contains("NO_PROXY: 10.* is no name"), "{}", process.banner);
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
fn proxy_that_is_none_keeps_it_from_starting() {
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
fn offline_is_switched_from_beside_a_running_server() {
    let directory = tempfile::tempdir().expect("a directory");
    let registry = FakeRegistry::start();
    let image = Image::sample("v1");
    registry.add(REPOSITORY, "v1", &image);
    let mut process = Process::serve(directory.path(), &registry);
    let cache = directory.path().join("cache").display().to_string();
    let offline = |words: &[&str]| run(&[&["--image-path", &cache, "offline"], words].concat());
    let said = |words: &[&str]| offline(words).1;
    assert!(said(&[]).starts_with("online"));
    assert!(said(&["on"]).starts_with("offline"));
    let path = manifest(REPOSITORY, "v1");
    process.wait_until_it_logs("offline: no upstream is asked");
    assert_eq!(get(process.address, &path).status, 404);
    assert!(said(&["off"]).starts_with("online"));
    process.wait_until_it_logs("online again");
    assert!(get(process.address, &path).body == image.manifest());
    let (code, _, stderr) = offline(&["maybe"]);
    assert!(code == Some(2) && stderr.contains("neither on nor off"), "{stderr}");
}

#[test]
fn list_says_what_is_here_and_what_is_missing() {
    let directory = tempfile::tempdir().expect("a directory");
    let registry = FakeRegistry::start();
    let (whole, partial) = (Image::sample("whole"), Image::sample("partial"));
    registry.add(REPOSITORY, "v1", &whole);
    registry.add(REPOSITORY, "v2", &partial);
    // What cannot be had keeps an image from being completed.
    let missing = &partial.layers()[0];
    registry.remove_blob(REPOSITORY, &missing.digest);
    registry.expect_unknown(&blob(REPOSITORY, &missing.digest));
    let process = Process::serve(directory.path(), &registry);
    let cache = directory.path().join("cache");
    for tag in ["v1", "v2"] {
        assert_eq!(get(process.address, &manifest(REPOSITORY, tag)).status, 200);
    }
    let has = |digest: &str| cache.join("blobs").join(digest.replace(':', "/")).exists();
    let here = |image: &Image| {
        let mut digests: Vec<String> = image.blobs().iter().map(|b| b.digest.clone()).collect();
        digests.push(image.digest());
        digests
    };
    let mut expected = [here(&whole), here(&partial)].concat();
    expected.retain(|digest| *digest != missing.digest);
    until("all that can be had", || expected.iter().all(|digest| has(digest)));
    expected.sort();
    expected.dedup();

    let cache = cache.display().to_string();
    let list = |words: &[&str]| run(&[&["--image-path", &cache, "list"], words].concat());
    let host = registry.host();
    let (code, table, _) = list(&[]);
    let line = |tag: &str| {
        let name = format!("{host}/{REPOSITORY}:{tag} ");
        table.lines().find(|line| line.starts_with(&name)).unwrap_or_else(|| panic!("{table}"))
    };
    assert_eq!(code, Some(0));
    assert!(line("v1").ends_with("complete") && line("v2").contains("partial, "), "{table}");
    assert_eq!(list(&["--digests"]).1.lines().collect::<Vec<_>>(), expected);
    let (_, one, _) = list(&["*:v1", "--json"]);
    let one: serde_json::Value = serde_json::from_str(&one).expect("JSON");
    assert_eq!(one[0]["digest"], whole.digest());
    assert_eq!((&one[0]["complete"], one.as_array().map(Vec::len)), (&true.into(), Some(1)));
    let (_, tree, _) = list(&["/v2$/", "--tree"]);
    let lost = tree.lines().find(|line| line.contains(&missing.digest)).expect("it is in the tree");
    assert!(lost.ends_with("missing") && !tree.contains(":v1"), "{tree}");
    for (words, said) in [(&["/(/"][..], "not a pattern"), (&["--sort", "age"], "none of name")] {
        let (code, _, stderr) = list(words);
        assert!(code == Some(2) && stderr.contains(said), "{stderr}");
    }
    let nowhere = directory.path().join("nowhere");
    let nowhere = nowhere.display().to_string();
    let (code, _, stderr) = run(&["--image-path", &nowhere, "list"]);
    assert!(code == Some(2) && stderr.contains("there is no cache in"), "{stderr}");
    assert!(!Path::new(&nowhere).exists());
}
