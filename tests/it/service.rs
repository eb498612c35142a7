//! Larder as a service: what systemd is told by sd_notify(3), and the files that install it.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use crate::support::client::get;
use crate::support::process::{Process, run};
use crate::support::{FakeRegistry, PATIENCE};

/// Stands for the service manager.
struct Manager {
    directory: tempfile::TempDir,
    socket: UnixDatagram,
}

impl Manager {
    fn new() -> Manager {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = UnixDatagram::bind(directory.path().join("notify")).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket with patience");
        Manager { directory, socket }
    }

    /// What it is told next.
    fn told(&self) -> String {
        let mut buffer = [0; 4096];
        let count = self.socket.recv(&mut buffer).expect("to be told something");
        String::from_utf8(buffer[..count].to_vec()).expect("text")
    }

    fn serve(&self, directory: &Path, registry: &FakeRegistry) -> Process {
        let socket = self.directory.path().join("notify").display().to_string();
        let entry = format!("{{name: \"{}\", scheme: http}}", registry.host());
        Process::serve_with(directory, &registry.host(), &entry, &[("NOTIFY_SOCKET", &socket)])
    }
}

#[test]
fn manager_is_told_when_clients_are_served_and_when_no_more() {
    let registry = FakeRegistry::start();
    let directory = tempfile::tempdir().expect("a directory");
    let manager = Manager::new();
    let mut process = manager.serve(directory.path(), &registry);
    let told = manager.told();
    assert!(told.lines().any(|line| line == "READY=1"), "{told}");
    assert!(told.contains(&format!("STATUS=serving on {}", process.address)), "{told}");
    assert_eq!(get(process.address, "/v2/").status, 200);

    process.signal("HUP");
    let told = manager.told();
    assert!(told.contains("RELOADING=1\n") && told.contains("MONOTONIC_USEC="), "{told}");
    assert!(manager.told().contains("READY=1\n"));
    Process::put_config(directory.path(), "prt: 1");
    process.signal("HUP");
    assert!(manager.told().contains("RELOADING=1\n"));
    let told = manager.told();
    assert!(told.contains("READY=1\n") && told.contains("not in effect"), "{told}");
    process.wait_until_it_logs("stays in effect");

    process.signal("TERM");
    assert!(manager.told().contains("STOPPING=1\n"));
    assert!(process.wait().0.success());
}

#[test]
fn manager_that_cannot_be_told_changes_nothing() {
    let registry = FakeRegistry::start();
    let entry = format!("{{name: \"{}\", scheme: http}}", registry.host());
    for socket in ["/nonexistent/notify", "@nobody-listens-here", "relative", ""] {
        let directory = tempfile::tempdir().expect("a directory");
        let variables = [("NOTIFY_SOCKET", socket)];
        let process = Process::serve_with(directory.path(), &registry.host(), &entry, &variables);
        assert_eq!(get(process.address, "/v2/").status, 200, "{socket}");
    }
}

#[test]
fn configuration_that_is_installed_is_good_as_it_is_and_with_every_comment_taken_off() {
    let installed = include_str!("../../contrib/larder.yaml");
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("larder.yaml");
    let name = path.display().to_string();
    // What is commented out names files that are not there: only those are missed.
    let bare: String = installed
        .lines()
        .map(|line| {
            line.strip_prefix('#')
                .filter(|rest| !rest.starts_with(' ') || rest.starts_with("  "))
                .unwrap_or(line)
        })
        .map(|line| format!("{line}\n"))
        .collect();
    assert_ne!(bare, installed);
    for (text, code, words) in [
        (installed, 0, ""),
        (bare.as_str(), 2, "registries: harbor.corp: tls: cannot read /etc/larder/"),
    ] {
        fs::write(&path, text).expect("a file can be written");
        let (found, _, said) = run(&["--config-file", &name, "config", "check"]);
        assert!(found == Some(code) && said.contains(words), "{found:?} {said}\n{text}");
    }
}

#[test]
fn files_that_are_needed_later_and_cannot_be_read_are_said_at_once_and_hinder_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let (path, list) = (directory.path().join("larder.yaml"), directory.path().join("pins"));
    let token = directory.path().join("token");
    let text = format!(
        "pinLists: [{}]\nmanagement: {{port: 0, tokenFile: {}}}\n",
        list.display(),
        token.display()
    );
    fs::write(&path, &text).expect("a file can be written");
    let check = || run(&["--config-file", &path.display().to_string(), "config", "check"]);
    let missing = ["pinLists: cannot read the pins in", "management.tokenFile: "];
    let (code, _, said) = check();
    assert!(code == Some(0) && missing.iter().all(|words| said.contains(words)), "{said}");
    let process = Process::serve_file(directory.path(), &text);
    assert!(missing.iter().all(|words| process.banner.contains(words)), "{}", process.banner);
    drop(process);

    fs::write(&list, "alpine\nA\n").expect("a file can be written");
    fs::write(&token, "\n").expect("a file can be written");
    let (code, _, said) = check();
    assert!(
        code == Some(0) && said.contains("line 2: A: ") && said.contains("it is empty"),
        "{said}"
    );
    fs::write(&list, "alpine\n").expect("a file can be written");
    fs::write(&token, "t\n").expect("a file can be written");
    assert_eq!(check().2, "");
}

#[test]
fn unit_gives_the_drain_its_time_and_starts_what_install_puts_there() {
    let unit = include_str!("../../contrib/systemd/larder.service");
    let value = |key: &str| {
        let line = unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("{key} is not in the unit"))
    };
    let seconds: u64 = value("TimeoutStopSec").parse().expect("seconds");
    assert!(seconds >= 60 + 5, "drainTimeout, and the last commits");
    assert!(
        value("ExecStart")
            .starts_with("/usr/local/bin/larder --config-file /etc/larder/larder.yaml ")
    );
    let files: u64 = value("LimitNOFILE").parse().expect("a number");
    assert!(files >= 2 * 16_384 + 256, "as many connections as the default has");
}
