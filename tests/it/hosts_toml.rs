//! `larder hosts-toml`: printed output, written files, and files that are left unchanged.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::support::process::{Process, larder, run};

fn hosts_toml(words: &[&str]) -> (Option<i32>, String, String) {
    run(&[&["hosts-toml"], words].concat())
}

/// A client's directory and a path in it.
fn place(name: &str) -> (tempfile::TempDir, PathBuf, String) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join(name);
    let text = path.display().to_string();
    (directory, path, text)
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).expect("an existing path")
}

#[test]
fn one_file_is_printed_alone_and_several_with_headings() {
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
fn configuration_file_supplies_the_server_and_registries() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = directory.path().join("larder.yaml");
    let entry = "{name: 'registry.corp:5000', scheme: http, aliases: [corp]}";
    fs::write(&config, format!("port: 9999\nregistries: [{entry}]\n")).expect("a file");
    let config = config.display().to_string();
    let printed = |client| {
        let (code, printed, message) =
            run(&["--config-file", &config, "hosts-toml", "--for", client]);
        assert_eq!(code, Some(0), "{message}");
        printed
    };
    let containerd = printed("containerd");
    assert!(containerd.contains("[host.\"http://localhost:9999\"]"), "{containerd}");
    assert!(containerd.contains("server = \"http://registry.corp:5000\""), "{containerd}");
    let podman = printed("podman");
    assert!(podman.contains("location = \"localhost:9999/corp\""), "{podman}");
}

#[test]
fn the_kubelets_configuration_has_the_audience_and_the_registries() {
    let (directory, path, target) = place("providers.yaml");
    let words = ["--for", "kubelet", "--registry", "quay.io", "--audience", "pulls"];
    let (code, printed, message) = hosts_toml(&words);
    assert_eq!(code, Some(0), "{message}");
    assert!(printed.contains("serviceAccountTokenAudience: \"pulls\""), "{printed}");
    assert!(printed.contains("matchImages:\n      - \"quay.io\"\n    default"), "{printed}");
    let (code, _, message) = hosts_toml(&[&words[..], &["--write", &target]].concat());
    assert!(code == Some(0) && message.contains("after a restart"), "{message}");
    assert_eq!(text(&path), printed);
    drop(directory);
    for (words, why) in [
        (["--for", "docker", "--audience", "a"], "--audience is for --for kubelet"),
        (["--for", "kubelet", "--audience", ""], "--audience is empty"),
    ] {
        let (code, _, message) = hosts_toml(&words);
        assert!(code == Some(2) && message.contains(why), "{message}");
    }
}

#[test]
fn duplicate_servers_are_written_once() {
    let (_, printed, _) = hosts_toml(&["larder:8080", "http://b:1", "http://larder:8080/"]);
    assert_eq!(printed.matches("[host.\"http://larder:8080\"]").count(), 1, "{printed}");
}

#[test]
fn files_are_written_only_if_they_change_and_replace_earlier_versions() {
    let (_directory, path, certs_d) = place("certs.d");
    let write = |server: &str| {
        let (code, printed, message) =
            hosts_toml(&[server, "--registry", "a:1", "--write", &certs_d]);
        assert_eq!((code, &*printed), (Some(0), ""), "{message}");
        message
    };
    assert!(write("http://one:1").contains("hosts.toml: written"));
    assert!(write("http://one:1").contains("up to date"));
    assert!(write("http://two:2").contains("hosts.toml: written"));
    for name in ["_default", "a:1"] {
        let directory = path.join(name);
        assert!(text(&directory.join("hosts.toml")).contains("http://two:2"));
        assert_eq!(fs::read_dir(directory).expect("an existing path").count(), 1, "no leftovers");
    }
}

#[test]
fn foreign_files_are_replaced_only_with_force_and_backed_up() {
    let (_directory, path, certs_d) = place("certs.d");
    let theirs = path.join("quay.io/hosts.toml");
    fs::create_dir_all(theirs.parent().expect("a parent directory")).expect("a directory");
    fs::write(&theirs, "server = \"https://quay.io\"\n").expect("a file");
    let words = ["larder:8080", "--registry", "quay.io", "--write", &certs_d];
    let (code, _, message) = hosts_toml(&words);
    assert!(
        code == Some(2)
            && message.contains("was not written by Larder")
            && message.contains("--force"),
        "{message}"
    );
    assert!(!path.join("_default").exists(), "nothing is written if one file is refused");
    assert_eq!(text(&theirs), "server = \"https://quay.io\"\n");

    let (code, _, message) = hosts_toml(&[&words[..], &["--force"]].concat());
    assert!(code == Some(0) && message.contains("copy of the previous file"), "{message}");
    assert_eq!(
        text(&path.join("quay.io/hosts.toml.before-larder")),
        "server = \"https://quay.io\"\n"
    );
    assert!(text(&theirs).contains("http://larder:8080"));
}

#[test]
fn file_as_in_the_notes_is_replaced_and_backed_up() {
    let (_directory, path, certs_d) = place("certs.d");
    let hosts = path.join("_default/hosts.toml");
    fs::create_dir_all(hosts.parent().expect("a parent directory")).expect("a directory");
    let noted = "[host.\"http://127.0.0.1:31080\"]\n  capabilities = [\"pull\", \"resolve\"]\n";
    let write = || hosts_toml(&["http://[10.0.0.5]:31080", "--write", &certs_d]);
    fs::write(&hosts, noted).expect("a file");
    let (code, _, message) = write();
    assert!(code == Some(0) && message.contains("hosts.toml: written"), "{message}");
    assert!(text(&hosts).contains("[host.\"http://10.0.0.5:31080\"]"), "{}", text(&hosts));
    assert_eq!(text(&path.join("_default/hosts.toml.before-larder")), noted);

    let more = format!("{noted}[host.\"https://mirror.corp\"]\n");
    fs::write(&hosts, &more).expect("a file");
    let (code, _, message) = write();
    assert!(
        code == Some(2) && message.contains("(line 3 is [host.\"https://mirror.corp\"])"),
        "{message}"
    );
    assert_eq!(text(&hosts), more);
}

#[test]
fn mirror_is_merged_into_the_docker_configuration() {
    let (_directory, path, daemon_json) = place("daemon.json");
    fs::write(&path, "{\"debug\": true}").expect("a file");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("an own file");
    let write = || hosts_toml(&["larder:8080", "--for", "docker", "--write", &daemon_json]);
    for _ in 0..2 {
        let (code, _, message) = write();
        assert_eq!(code, Some(0), "{message}");
        let written: serde_json::Value = serde_json::from_str(&text(&path)).expect("JSON");
        let expected =
            serde_json::json!({"debug": true, "registry-mirrors": ["http://larder:8080"]});
        assert_eq!(written, expected);
        let mode = fs::metadata(&path).expect("an existing path").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "the file may contain passwords");
    }
    assert_eq!(text(&path.with_file_name("daemon.json.before-larder")), "{\"debug\": true}");
    fs::write(&path, "{").expect("a file");
    let (code, _, message) = write();
    assert!(code == Some(2) && message.contains("cannot add to Docker"), "{message}");
    assert!(message.contains("daemon.json: "), "{message}");
    assert_eq!(text(&path), "{");
}

#[test]
fn drop_in_directory_gets_a_separate_file() {
    let (directory, _, registries_d) = place("registries.conf.d");
    let (code, _, message) =
        hosts_toml(&["larder:8080", "--for", "crio", "--write", &registries_d]);
    assert_eq!(code, Some(0), "{message}");
    let written = directory.path().join("registries.conf.d/50-larder.conf");
    assert!(text(&written).contains("location = \"larder:8080/quay.io\""));
}

#[test]
fn stay_exits_cleanly_on_sigterm() {
    let (_directory, path, certs_d) = place("certs.d");
    let mut command = larder(&["hosts-toml", "larder:8080", "--write", &certs_d, "--stay"]);
    let mut process = Process::begin(&mut command);
    process.wait_until_it_logs("uses it from the next pull on");
    assert!(path.join("_default/hosts.toml").exists());
    process.signal("TERM");
    let (status, message) = process.wait();
    assert!(status.success(), "{message}");
    assert!(
        path.join("_default/hosts.toml").exists(),
        "a node without Larder's pod still has its mirror"
    );
}

#[test]
fn usage_errors_are_reported() {
    for (words, message) in [
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
        assert!(code == Some(2) && stderr.contains(message), "{words:?}: {stderr}");
    }
    let (code, _, stderr) = hosts_toml(&["larder:1", "--write", "/proc/nowhere"]);
    assert!(code == Some(1) && stderr.contains("cannot write /proc/nowhere"), "{stderr}");
}
