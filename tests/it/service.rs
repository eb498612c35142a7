//! Larder as a service: notifications to systemd by sd_notify(3), and the installed files.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use crate::support::client::get;
use crate::support::process::{Process, run};
use crate::support::{FakeRegistry, PATIENCE};

/// A fake service manager.
struct Manager {
    directory: tempfile::TempDir,
    socket: UnixDatagram,
}

impl Manager {
    fn new() -> Manager {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = UnixDatagram::bind(directory.path().join("notify")).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket with a timeout");
        Manager { directory, socket }
    }

    /// The next notification.
    fn notification(&self) -> String {
        let mut buffer = [0; 4096];
        let count = self.socket.recv(&mut buffer).expect("a notification");
        String::from_utf8(buffer[..count].to_vec()).expect("text")
    }

    fn serve(&self, directory: &Path, registry: &FakeRegistry) -> Process {
        let socket = self.directory.path().join("notify").display().to_string();
        let entry = format!("{{name: \"{}\", scheme: http}}", registry.host());
        Process::serve_with(directory, &registry.host(), &entry, &[("NOTIFY_SOCKET", &socket)])
    }
}

#[test]
fn service_manager_is_notified_of_readiness_and_stop() {
    let registry = FakeRegistry::start();
    let directory = tempfile::tempdir().expect("a directory");
    let manager = Manager::new();
    let mut process = manager.serve(directory.path(), &registry);
    let notification = manager.notification();
    assert!(notification.lines().any(|line| line == "READY=1"), "{notification}");
    assert!(
        notification.contains(&format!("STATUS=serving on {}", process.address)),
        "{notification}"
    );
    assert_eq!(get(process.address, "/v2/").status, 200);

    process.signal("HUP");
    let notification = manager.notification();
    assert!(
        notification.contains("RELOADING=1\n") && notification.contains("MONOTONIC_USEC="),
        "{notification}"
    );
    assert!(manager.notification().contains("READY=1\n"));
    Process::put_config(directory.path(), "prt: 1");
    process.signal("HUP");
    assert!(manager.notification().contains("RELOADING=1\n"));
    let notification = manager.notification();
    assert!(
        notification.contains("READY=1\n") && notification.contains("not in effect"),
        "{notification}"
    );
    process.wait_until_it_logs("stays in effect");

    process.signal("TERM");
    assert!(manager.notification().contains("STOPPING=1\n"));
    assert!(process.wait().0.success());
}

#[test]
fn unreachable_service_manager_has_no_effect() {
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
fn installed_configuration_is_valid_with_and_without_its_comments() {
    let installed = include_str!("../../contrib/larder.yaml");
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("larder.yaml");
    let name = path.display().to_string();
    // The commented-out lines name files that do not exist; only those may be reported.
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
        let (found, _, message) = run(&["--config-file", &name, "config", "check"]);
        assert!(found == Some(code) && message.contains(words), "{found:?} {message}\n{text}");
    }
}

#[test]
fn unreadable_files_needed_later_are_reported_at_once_and_do_not_prevent_the_start() {
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
    let (code, _, message) = check();
    assert!(code == Some(1) && missing.iter().all(|words| message.contains(words)), "{message}");
    let process = Process::serve_file(directory.path(), &text);
    assert!(missing.iter().all(|words| process.banner.contains(words)), "{}", process.banner);
    drop(process);

    fs::write(&list, "alpine\nA\n").expect("a file can be written");
    fs::write(&token, "\n").expect("a file can be written");
    let (code, _, message) = check();
    assert!(
        code == Some(1) && message.contains("line 2: A: ") && message.contains("it is empty"),
        "{message}"
    );
    fs::write(&list, "alpine\n").expect("a file can be written");
    fs::write(&token, "t\n").expect("a file can be written");
    assert_eq!(check().2, "");
}

#[test]
fn unit_allows_the_drain_timeout_and_starts_the_installed_program() {
    let unit = include_str!("../../contrib/systemd/larder.service");
    let value = |key: &str| {
        let line = unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("the unit has no {key}"))
    };
    let seconds: u64 = value("TimeoutStopSec").parse().expect("seconds");
    assert!(seconds >= 60 + 5, "drainTimeout plus the last commits");
    assert!(
        value("ExecStart")
            .starts_with("/usr/local/bin/larder --config-file /etc/larder/larder.yaml ")
    );
    let files: u64 = value("LimitNOFILE").parse().expect("a number");
    assert!(files >= 2 * 16_384 + 256, "enough for the default maximum of connections");
}
