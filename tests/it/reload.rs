//! Reloading the configuration, on SIGHUP and when the file changes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::support::client::{get, head};
use crate::support::larder::{blob, manifest};
use crate::support::process::Process;
use crate::support::{
    Connection, FakeRegistry, Fault, Gate, Image, On, TokenServer, bytes, script,
};

const REPOSITORY: &str = "team/app";
/// The name of the registry in tests with a single one.
const NAME: &str = "registry.test";

/// A configuration file. Prefetching would make the number of requests unpredictable, so it is off.
fn config(entries: &[String], extra: &str) -> String {
    let entries: String = entries.iter().map(|entry| format!("  - {entry}\n")).collect();
    format!("fsync: false\nprefetch: false\ndefaultNs: {NAME}\n{extra}\nregistries:\n{entries}\n")
}

/// An entry of `registries` with extra keys.
fn entry(name: &str, at: &FakeRegistry, extra: &str) -> String {
    format!("{{name: {name}, endpoints: [\"{}\"]{extra}}}", at.url(""))
}

/// The entry of a single registry.
fn one(at: &FakeRegistry, extra: &str) -> [String; 1] {
    [entry(NAME, at, extra)]
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

/// Writes a configuration, sends SIGHUP, and returns the log message about the reload.
fn reload(process: &mut Process, directory: &Path, text: &str) -> String {
    Process::put_config(directory, text);
    process.signal("HUP");
    process.wait_until_it_logs("configuration reloaded after SIGHUP")
}

/// Stops the server, which must exit successfully, and returns its complete log.
fn log_of(process: Process) -> String {
    process.signal("TERM");
    let (status, log) = process.wait();
    assert!(status.success(), "{log}");
    log
}

#[test]
fn reload_adds_and_removes_registries() {
    let ((first, image), (second, _)) =
        (FakeRegistry::with_image(REPOSITORY), FakeRegistry::with_image(REPOSITORY));
    let directory = directory();
    let closed = "unlistedRegistries: deny";
    let entries =
        [entry("first.test", &first, ""), entry("second.test", &second, ", aliases: [b]")];
    let mut process = Process::serve_file(directory.path(), &config(&entries[..1], closed));
    let ask = |process: &Process, namespace: &str, reference: &str| {
        get(process.address, &format!("{}?ns={namespace}", manifest(REPOSITORY, reference)))
    };
    assert_eq!(ask(&process, "first.test", "v1").status, 200);
    assert_eq!(ask(&process, "second.test", "v1").status, 404);

    let message = reload(&mut process, directory.path(), &config(&entries, closed));
    assert!(message.ends_with(" keys=registries registries=\"added second.test\"\n"), "{message}");
    assert!(ask(&process, "second.test", "v1").body == image.manifest());
    let by_alias = manifest(&format!("b/{REPOSITORY}"), "v1");
    assert!(get(process.address, &by_alias).body == image.manifest());

    let message = reload(&mut process, directory.path(), &config(&entries[1..], closed));
    assert!(message.contains("removed first.test"), "{message}");
    assert_eq!(ask(&process, "first.test", "v1").status, 200, "cached content is served");
    assert_eq!(ask(&process, "first.test", "v2").status, 404);
    assert_eq!(first.count("*", "*"), 1, "no further request");
}

#[test]
fn changed_credentials_are_used_for_the_next_request() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    registry.require_basic("u", "right");
    let directory = directory();
    let text = |password: &str| {
        config(&one(&registry, &format!(", auth: {{user: u, password: {password}}}")), "")
    };
    let mut process = Process::serve_file(directory.path(), &text("wrong"));
    assert_eq!(get(process.address, &manifest(REPOSITORY, "v1")).status, 403);
    reload(&mut process, directory.path(), &text("right"));
    assert!(get(process.address, &manifest(REPOSITORY, "v1")).body == image.manifest());
    let log = log_of(process);
    assert!(!log.contains("right") && !log.contains("wrong"), "{log}");
}

#[test]
fn sighup_rereads_helper_logins_and_certificate_files() {
    let registry = FakeRegistry::start_tls();
    let other = FakeRegistry::start_tls();
    let image = Image::sample("v1");
    registry.add(REPOSITORY, "v1", &image);
    registry.require_basic("u", "new");
    let directory = directory();
    let path = |name: &str| directory.path().join(name);
    let put = |name: &str, text: &str| fs::write(path(name), text).expect("a file can be written");
    let say = |secret: &str| put("says", &format!(r#"{{"Username":"u","Secret":"{secret}"}}"#));
    let helper = path("docker-credential-test");
    script(&helper, &format!("cat {}", path("says").display()));
    let extra = format!(
        ", tls: {{ca: {}}}, auth: {{credentialHelper: {}}}",
        path("ca.pem").display(),
        helper.display()
    );
    let text = config(&one(&registry, &extra), "");
    put("ca.pem", &other.ca_pem());
    say("old");
    let mut process = Process::serve_file(directory.path(), &text);
    let ask = |process: &Process| get(process.address, &manifest(REPOSITORY, "v1"));
    let got = ask(&process);
    assert!(got.status == 502 && got.text().contains("TLS"), "{got:?}");

    put("ca.pem", &format!("{}\n", registry.ca_pem()));
    let message = reload(&mut process, directory.path(), &text);
    assert!(message.ends_with(" keys=\"\"\n"), "{message}");
    assert_eq!(
        ask(&process).status,
        403,
        "the new authority is trusted, the password is still old"
    );

    say("new");
    reload(&mut process, directory.path(), &text);
    assert!(ask(&process).body == image.manifest());
}

/// A registry that sends half of a blob and stops at a gate, with content, digest and gate.
fn gated() -> (FakeRegistry, Vec<u8>, String, Gate) {
    let (registry, content, digest) = FakeRegistry::with_blob(REPOSITORY, 100_000);
    let gate = Gate::new();
    registry.fault(On::get_blob(&digest), Fault::GateAfter(50_000, gate.clone()));
    (registry, content, digest, gate)
}

#[test]
fn downloads_and_connections_survive_a_reload_of_their_registry() {
    let (registry, content, digest, gate) = gated();
    let directory = directory();
    let mut process = Process::serve_file(directory.path(), &config(&one(&registry, ""), ""));
    let mut idle = Connection::open(process.address);
    assert_eq!(idle.get("/v2/").status, 200);
    let mut busy = Connection::open(process.address);
    busy.send("GET", &blob(REPOSITORY, &digest), &[]);
    busy.read_head();
    assert!(busy.read_body(50_000) == content[..50_000]);

    let changed = one(&registry, ", rateLimit: 100M, auth: {user: u, password: p}");
    let message = reload(&mut process, directory.path(), &config(&changed, ""));
    assert!(message.contains(&format!("changed {NAME}")), "{message}");
    let message = reload(&mut process, directory.path(), &config(&[], "unlistedRegistries: deny"));
    assert!(message.contains(&format!("removed {NAME}")), "{message}");
    let mut late = Connection::open(process.address);
    late.send("GET", &blob(REPOSITORY, &digest), &[]);
    late.read_head();
    assert!(late.read_body(50_000) == content[..50_000], "new clients still join the download");
    gate.open();
    for client in [&mut busy, &mut late] {
        let (rest, complete) = client.read_to_end();
        assert!(complete && rest == content[50_000..]);
    }
    assert_eq!(idle.get("/v2/").status, 200);
    assert_eq!(idle.get(&blob(REPOSITORY, &digest)).body.len(), content.len());
    assert_eq!(registry.count("*", "*"), 1);
}

#[test]
fn interrupted_download_resumes_at_the_reloaded_endpoint() {
    let (old, new) = (FakeRegistry::start(), FakeRegistry::start());
    let content = bytes(100_000, 1);
    let digest = old.add_blob(REPOSITORY, &content);
    new.add_blob(REPOSITORY, &content);
    let gate = Gate::new();
    old.fault(On::get_blob(&digest), Fault::GateAfter(50_000, gate.clone()));
    let directory = directory();
    let mut process = Process::serve_file(directory.path(), &config(&one(&old, ""), ""));
    let mut client = Connection::open(process.address);
    client.send("GET", &blob(REPOSITORY, &digest), &[]);
    client.read_head();
    assert!(client.read_body(50_000) == content[..50_000]);
    reload(&mut process, directory.path(), &config(&one(&new, ""), ""));
    old.stop();
    let (rest, complete) = client.read_to_end();
    assert!(complete && rest == content[50_000..]);
    let asked = new.requests();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(asked[0].header("range"), Some("bytes=50000-"));
}

#[test]
fn registry_with_an_unchanged_entry_keeps_its_tokens() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    registry.tag(REPOSITORY, "v2", &image.digest());
    let tokens = TokenServer::new();
    registry.require_bearer(&tokens);
    let directory = directory();
    let text = config(&one(&registry, ""), "");
    let mut process = Process::serve_file(directory.path(), &text);
    assert_eq!(get(process.address, &manifest(REPOSITORY, "v1")).status, 200);
    let another = [entry(NAME, &registry, ""), "{name: quay.io, tagTtl: 1h}".to_owned()];
    reload(&mut process, directory.path(), &config(&another, "logLevel: debug"));
    assert_eq!(get(process.address, &manifest(REPOSITORY, "v2")).status, 200);
    assert_eq!(registry.count("*", "/token"), 1);
    assert_eq!(registry.connection_count(), 1, "and its connection");
}

#[test]
fn invalid_file_changes_nothing_and_the_error_names_the_place() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let directory = directory();
    let good = config(&one(&registry, ""), "");
    let mut process = Process::serve_file(directory.path(), &good);
    let nowhere = one(&registry, ", tls: {ca: /nonexistent/ca.pem}");
    for (text, words) in [
        (config(&[], "prt: 1"), "larder.yaml:4:1: "),
        (config(&[], "registries: ["), "larder.yaml:"),
        (config(&[NAME, NAME].map(|name| format!("{{name: {name}}}")), ""), "listed twice"),
        (config(&nowhere, ""), "cannot read /nonexistent/ca.pem"),
        (config(&one(&registry, ", auth: {user: u}"), ""), NAME),
        // The remains of a file that was saved on a full disk.
        ("\n".to_owned(), "larder.yaml: the file is empty"),
    ] {
        Process::put_config(directory.path(), &text);
        process.signal("HUP");
        let message = process.wait_until_it_logs("the previous configuration stays in effect");
        assert!(message.contains(" ERROR ") && message.contains(words), "{message}");
    }
    assert!(get(process.address, &manifest(REPOSITORY, "v1")).body == image.manifest());
    let message = reload(&mut process, directory.path(), &good);
    assert!(message.ends_with(" keys=\"\"\n"), "{message}");
}

#[test]
fn changed_file_is_noticed_without_a_signal_even_through_symlinks() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let directory = directory();
    let path = |name: &str| directory.path().join(name);
    // The layout of a ConfigMap mounted by Kubernetes.
    let versions = [config(&[], "airGapped: true"), config(&one(&registry, ""), "")];
    for (version, text) in ["v1", "v2"].iter().zip(&versions) {
        fs::create_dir(path(version)).expect("a directory can be made");
        Process::put_config(&path(version), text);
    }
    symlink("v1", path("..data")).expect("a link can be made");
    symlink("..data/larder.yaml", path("larder.yaml")).expect("a link can be made");
    let mut process = Process::serve_file(directory.path(), &versions[0]);
    assert_eq!(get(process.address, &manifest(REPOSITORY, "v1")).status, 404);
    symlink("v2", path("new")).expect("a link can be made");
    fs::rename(path("new"), path("..data")).expect("a link can be moved");
    let message = process.wait_until_it_logs("changed configuration reloaded");
    assert!(
        message.contains(&format!("added {NAME}")) && message.contains("airGapped"),
        "{message}"
    );
    assert!(get(process.address, &manifest(REPOSITORY, "v1")).body == image.manifest());
}

#[test]
fn refused_file_is_reported_once_and_applied_when_its_references_exist() {
    let registry = FakeRegistry::start_tls();
    let image = Image::sample("v1");
    registry.add(REPOSITORY, "v1", &image);
    let directory = directory();
    let ca = directory.path().join("ca.pem");
    let mut process = Process::serve_file(directory.path(), &config(&[], ""));
    let extra = format!(", tls: {{ca: {}}}", ca.display());
    Process::put_config(directory.path(), &config(&one(&registry, &extra), ""));
    process.wait_until_it_logs("the previous configuration stays in effect");
    // A file that has content from the start.
    fs::write(directory.path().join("new"), registry.ca_pem()).expect("a file can be written");
    fs::rename(directory.path().join("new"), &ca).expect("a file can be moved");
    process.wait_until_it_logs("changed configuration reloaded");
    assert!(get(process.address, &manifest(REPOSITORY, "v1")).body == image.manifest());
    let log = log_of(process);
    assert_eq!(log.matches("stays in effect").count(), 1, "{log}");
}

#[test]
fn reload_changes_the_log_level() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    registry.tag(REPOSITORY, "v2", &image.digest());
    let directory = directory();
    let text = |level: &str| config(&one(&registry, ""), &format!("logLevel: {level}"));
    let mut process = Process::serve_file(directory.path(), &text("info"));
    let debug =
        |tag: &str| format!("manifest fetched image={NAME}/{REPOSITORY}:{tag} digest=sha256:");
    get(process.address, &manifest(REPOSITORY, "v1"));
    let message = reload(&mut process, directory.path(), &text("debug"));
    assert!(message.contains(" keys=logLevel\n"), "{message}");
    get(process.address, &manifest(REPOSITORY, "v2"));
    process.wait_until_it_logs(&debug("v2"));
    process.wait_until_it_logs("status=200");
    assert!(!process.banner.contains(&debug("v1")), "{}", process.banner);
    // Only warnings are logged at this level.
    Process::put_config(directory.path(), &text("warn\nworkers: 18"));
    process.signal("HUP");
    process.wait_until_it_logs("take effect after a restart");
    let quiet = process.banner.len();
    get(process.address, &manifest(REPOSITORY, "v1"));
    let log = log_of(process);
    assert!(!log[quiet..].contains(" INFO "), "{log}");
    for secretive in ["ureq", "rustls"] {
        assert!(!log.contains(secretive), "{log}");
    }
}

#[test]
fn reload_turns_air_gapped_mode_on_and_off() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    registry.tag(REPOSITORY, "v2", &image.digest());
    let directory = directory();
    let text = |extra: &str| config(&one(&registry, ""), extra);
    let mut process = Process::serve_file(directory.path(), &text("tagTtl: always"));
    assert_eq!(get(process.address, &manifest(REPOSITORY, "v1")).status, 200);
    reload(&mut process, directory.path(), &text("airGapped: true"));
    registry.clear_requests();
    let cached = get(process.address, &manifest(REPOSITORY, "v1"));
    assert!(cached.body == image.manifest());
    assert_eq!(head(process.address, &manifest(REPOSITORY, "v2")).status, 404);
    assert!(registry.requests().is_empty());
    reload(&mut process, directory.path(), &text(""));
    assert_eq!(get(process.address, &manifest(REPOSITORY, "v2")).status, 200);
}

#[test]
fn reloaded_tag_ttl_applies_at_once() {
    let (registry, old) = FakeRegistry::with_image(REPOSITORY);
    let directory = directory();
    let mut process =
        Process::serve_file(directory.path(), &config(&one(&registry, ", tagTtl: forever"), ""));
    assert!(get(process.address, &manifest(REPOSITORY, "v1")).body == old.manifest());
    let new = Image::sample("v2");
    registry.add(REPOSITORY, "v1", &new);
    assert!(get(process.address, &manifest(REPOSITORY, "v1")).body == old.manifest());
    let text = config(&one(&registry, ", tagTtl: always"), "");
    let message = reload(&mut process, directory.path(), &text);
    assert!(message.ends_with(" keys=registries\n"), "it keeps its connections: {message}");
    assert!(get(process.address, &manifest(REPOSITORY, "v1")).body == new.manifest());
}

#[test]
fn settings_that_need_a_restart_are_reported_until_the_restart() {
    let directory = directory();
    let mut process = Process::serve_file(directory.path(), &config(&[], "workers: 17"));
    let changed = config(&[], "workers: 18\nmaxDownloads: 3\nport: 4000");
    for _ in 0..2 {
        reload(&mut process, directory.path(), &changed);
        let message = process.wait_until_it_logs("take effect after a restart");
        assert!(message.contains(" WARN "), "{message}");
        // A flag sets the port.
        assert!(message.ends_with(" keys=\"workers, maxDownloads\"\n"), "{message}");
    }
    reload(&mut process, directory.path(), &config(&[], "workers: 17"));
    let log = log_of(process);
    assert_eq!(log.matches("after a restart").count(), 2, "{log}");
}

#[test]
fn sighup_without_a_configuration_file_is_reported_and_harmless() {
    let directory = directory();
    let mut process = Process::serve_without_file(directory.path());
    let mut client = Connection::open(process.address);
    for _ in 0..2 {
        process.signal("HUP");
        process.wait_until_it_logs("SIGHUP: nothing to reload");
        assert_eq!(client.get("/v2/").status, 200);
    }
}

#[test]
fn sighup_during_the_start_is_handled_afterwards() {
    let directory = directory();
    let list = directory.path().join("list");
    let made = Command::new("mkfifo").arg(&list).status().expect("the program mkfifo");
    assert!(made.success());
    let text = config(&[], &format!("preloadImages: {}", list.display()));
    let mut process = Process::begin_file(directory.path(), &text);
    // Opening this for writing blocks until the server opens it for reading, so the start has reached the list.
    let writer = fs::File::options().write(true).open(&list).expect("the server opens the list");
    process.signal("HUP");
    drop(writer);
    process.wait_until_it_listens();
    if !process.banner.contains("configuration reloaded") {
        process.wait_until_it_logs("configuration reloaded after SIGHUP");
    }
    assert_eq!(get(process.address, "/v2/").status, 200);
}

#[test]
fn sighup_during_a_drain_disconnects_no_client() {
    let (registry, content, digest, gate) = gated();
    let directory = directory();
    let text = config(&one(&registry, ""), "");
    let mut process = Process::serve_file(directory.path(), &text);
    let mut busy = Connection::open(process.address);
    busy.send("GET", &blob(REPOSITORY, &digest), &[]);
    busy.read_head();
    busy.read_body(50_000);
    process.signal("TERM");
    process.wait_until_it_logs("draining");
    reload(&mut process, directory.path(), &text);
    gate.open();
    let (rest, complete) = busy.read_to_end();
    assert!(complete && rest == content[50_000..]);
    let (status, log) = process.wait();
    assert!(status.success(), "{log}");
}
