//! `larder hosts-toml`: what is printed, what is written, and what is left as it is.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::support::process::{Process, larder, run};

fn hosts_toml(words: &[&str]) -> (Option<i32>, String, String) {
    run(&[&["hosts-toml"], words].concat())
}

/// A directory for a client, and a path in it.
fn place(name: &str) -> (tempfile::TempDir, PathBuf, String) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join(name);
    let text = path.display().to_string();
    (directory, path, text)
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).expect("it is there")
}

#[test]
fn one_file_is_printed_as_it_is_and_several_with_their_names() {
    let (code, one, _) = hosts_toml(&["http://localhost:31080"]);
    assert_eq!(code, Some(0));
    assert!(one.starts_with("# Written by larder hosts-toml"), "{one}");
    let (_, two, _) = hosts_toml(&["http://localhost:31080", "--registry", "quay.io"]);
    let names: Vec<&str> = two.lines().filter_map(|line| line.strip_prefix("# ---- ")).collect();
    let expected = [
        "/etc/containerd/certs.d/_default/hosts.toml",
        "/etc/containerd/certs.d/quay.io/hosts.toml",
    ];
    assert_eq!(names, expected);
}

#[test]
fn a_configuration_says_where_larder_is_and_which_registries_there_are() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = directory.path().join("larder.yaml");
    let entry = "{name: 'registry.corp:5000', scheme: http, aliases: [corp]}";
    fs::write(&config, format!("port: 9999\nregistries: [{entry}]\n")).expect("a file");
    let config = config.display().to_string();
    let printed = |client| {
        let (code, printed, said) = run(&["--config-file", &config, "hosts-toml", "--for", client]);
        assert_eq!(code, Some(0), "{said}");
        printed
    };
    let containerd = printed("containerd");
    assert!(containerd.contains("[host.\"http://localhost:9999\"]"), "{containerd}");
    assert!(containerd.contains("server = \"http://registry.corp:5000\""), "{containerd}");
    let podman = printed("podman");
    assert!(podman.contains("location = \"localhost:9999/corp\""), "{podman}");
}

#[test]
fn a_server_that_is_typed_twice_is_told_once() {
    let (_, printed, _) = hosts_toml(&["larder:8080", "http://b:1", "http://larder:8080/"]);
    assert_eq!(printed.matches("[host.\"http://larder:8080\"]").count(), 1, "{printed}");
}

#[test]
fn what_is_written_is_written_once_and_over_what_larder_wrote() {
    let (_directory, path, certs_d) = place("certs.d");
    let write = |server: &str| {
        let (code, printed, said) = hosts_toml(&[server, "--registry", "a:1", "--write", &certs_d]);
        assert_eq!((code, &*printed), (Some(0), ""), "{said}");
        said
    };
    assert!(write("http://one:1").contains("hosts.toml: written"));
    assert!(write("http://one:1").contains("up to date"));
    assert!(write("http://two:2").contains("hosts.toml: written"));
    for name in ["_default", "a:1"] {
        let directory = path.join(name);
        assert!(text(&directory.join("hosts.toml")).contains("http://two:2"));
        assert_eq!(fs::read_dir(directory).expect("it is there").count(), 1, "no leftovers");
    }
}

#[test]
fn what_somebody_else_wrote_stays_unless_it_is_forced_and_then_it_is_kept() {
    let (_directory, path, certs_d) = place("certs.d");
    let theirs = path.join("quay.io/hosts.toml");
    fs::create_dir_all(theirs.parent().expect("it has one")).expect("a directory");
    fs::write(&theirs, "server = \"https://quay.io\"\n").expect("a file");
    let words = ["larder:8080", "--registry", "quay.io", "--write", &certs_d];
    let (code, _, said) = hosts_toml(&words);
    assert!(
        code == Some(2) && said.contains("was not written by Larder") && said.contains("--force"),
        "{said}"
    );
    assert!(!path.join("_default").exists(), "half of a configuration is none");
    assert_eq!(text(&theirs), "server = \"https://quay.io\"\n");

    let (code, _, said) = hosts_toml(&[&words[..], &["--force"]].concat());
    assert!(code == Some(0) && said.contains("copy of the previous file"), "{said}");
    assert_eq!(
        text(&path.join("quay.io/hosts.toml.before-larder")),
        "server = \"https://quay.io\"\n"
    );
    assert!(text(&theirs).contains("http://larder:8080"));
}

#[test]
fn docker_is_told_beside_what_it_is_told_already() {
    let (_directory, path, daemon_json) = place("daemon.json");
    fs::write(&path, "{\"debug\": true}").expect("a file");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("it is ours");
    let write = || hosts_toml(&["larder:8080", "--for", "docker", "--write", &daemon_json]);
    for _ in 0..2 {
        let (code, _, said) = write();
        assert_eq!(code, Some(0), "{said}");
        let told: serde_json::Value = serde_json::from_str(&text(&path)).expect("JSON");
        let expected =
            serde_json::json!({"debug": true, "registry-mirrors": ["http://larder:8080"]});
        assert_eq!(told, expected);
        let mode = fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "Docker is told passwords there");
    }
    assert_eq!(text(&path.with_file_name("daemon.json.before-larder")), "{\"debug\": true}");
    fs::write(&path, "{").expect("a file");
    let (code, _, said) = write();
    assert!(code == Some(2) && said.contains("cannot add to Docker"), "{said}");
    assert!(said.contains("daemon.json: "), "{said}");
    assert_eq!(text(&path), "{");
}

#[test]
fn a_directory_of_drop_ins_gets_a_file_of_its_own() {
    let (directory, _, registries_d) = place("registries.conf.d");
    let (code, _, said) = hosts_toml(&["larder:8080", "--for", "crio", "--write", &registries_d]);
    assert_eq!(code, Some(0), "{said}");
    let written = directory.path().join("registries.conf.d/50-larder.conf");
    assert!(text(&written).contains("location = \"larder:8080/quay.io\""));
}

#[test]
fn who_stays_ends_in_order_when_it_is_told_to() {
    let (_directory, path, certs_d) = place("certs.d");
    let mut command = larder(&["hosts-toml", "larder:8080", "--write", &certs_d, "--stay"]);
    let mut process = Process::begin(&mut command);
    process.wait_until_it_logs("uses it from the next pull on");
    assert!(path.join("_default/hosts.toml").exists());
    process.signal("TERM");
    let (status, said) = process.wait();
    assert!(status.success(), "{said}");
    assert!(
        path.join("_default/hosts.toml").exists(),
        "a node without Larder's pod still has its mirror"
    );
}

#[test]
fn what_is_typed_wrong_is_said() {
    for (words, said) in [
        (&["ftp://larder"][..], "http://HOST:PORT"),
        (&["--for", "cri"], "containerd, crio"),
        (&["--registry", "a b"], "--registry"),
        (&["--dial-timeout", "2"], "--dial-timeout"),
        (&["--ca", "/ca.crt"], "https://"),
        (&["--client-cert", "/c"], "--client-key"),
        (&["--for", "docker", "--no-fallback"], "fall back"),
        (&["--for", "docker", "--registry", "quay.io"], "--registry"),
        (&["--stay"], "--write"),
        (&["--for", "podman", "--registry", "a:1"], "alias"),
    ] {
        let (code, _, stderr) = hosts_toml(words);
        assert!(code == Some(2) && stderr.contains(said), "{words:?}: {stderr}");
    }
    let (code, _, stderr) = hosts_toml(&["larder:1", "--write", "/proc/nowhere"]);
    assert!(code == Some(1) && stderr.contains("cannot write /proc/nowhere"), "{stderr}");
}
