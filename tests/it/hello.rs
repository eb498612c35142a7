//! `helloWorld`: a built-in image for sites that cannot reach a registry.

use crate::support::client::get;
use crate::support::process::{Process, run};

const PATH: &str = "/v2/library/hello-world";

/// This server revalidates tags on every request, and may not contact the registry.
const CLOSED: &str = "fsync: false\ntagTtl: 0\nalwaysPullLatest: true\nunlistedRegistries: deny\n";

fn serve(directory: &std::path::Path) -> Process {
    Process::serve_file(directory, &format!("{CLOSED}helloWorld: true\n"))
}

#[test]
fn hello_image_is_complete_and_needs_no_upstream() {
    let directory = tempfile::tempdir().expect("a directory");
    let process = serve(directory.path());
    let got = |what: &str| {
        let got = get(process.address, &format!("{PATH}/{what}?ns=docker.io"));
        assert_eq!((got.status, got.header("warning")), (200, None), "{what}: {got:?}");
        got
    };
    let index = got("manifests/latest").json();
    let platforms = index["manifests"].as_array().expect("an index");
    assert_eq!(platforms.len(), 2);
    for (descriptor, architecture) in platforms.iter().zip(["amd64", "arm64"]) {
        assert_eq!(descriptor["platform"]["architecture"], architecture);
        let digest = descriptor["digest"].as_str().expect("a digest");
        let manifest = got(&format!("manifests/{digest}"));
        assert_eq!(manifest.digest(), digest);
        let manifest = manifest.json();
        let config = manifest["config"]["digest"].as_str().expect("a digest");
        let layer = manifest["layers"][0]["digest"].as_str().expect("a digest");
        for digest in [config, layer] {
            assert_eq!(got(&format!("blobs/{digest}")).digest(), digest);
        }
        let config = got(&format!("blobs/{config}")).json();
        assert_eq!(config["architecture"], architecture);
        assert_eq!(config["rootfs"]["diff_ids"][0], layer);
    }
    let other = get(process.address, "/v2/library/alpine/manifests/latest?ns=docker.io");
    assert_eq!(other.status, 404, "{other:?}");
}

#[test]
fn hello_image_is_pinned_while_served_and_restored_at_start() {
    let directory = tempfile::tempdir().expect("a directory");
    drop(serve(directory.path()));
    let config = directory.path().join("larder.yaml").display().to_string();
    let cache = directory.path().join("cache").display().to_string();
    let larder = |words: &[&str]| {
        run(&[&["--config-file", &config, "--image-path", &cache], words].concat())
    };
    let (_, pinned, _) = larder(&["list", "--pinned"]);
    assert!(pinned.contains("docker.io/library/hello-world:latest "), "{pinned}");
    assert!(pinned.contains("complete, pinned"), "{pinned}");
    let all = ["prune", "--include-pinned", "--pattern", "."];
    assert_eq!(larder(&all).0, Some(0));
    assert!(!larder(&["list"]).1.contains("hello-world"));
    let process = serve(directory.path());
    assert_eq!(get(process.address, &format!("{PATH}/manifests/latest?ns=docker.io")).status, 200);
}

#[test]
fn reload_does_not_change_the_hello_setting() {
    let ask = |process: &Process| {
        let got = get(process.address, &format!("{PATH}/manifests/latest?ns=docker.io"));
        (got.status, got.header("warning").is_some())
    };
    let reload = |process: &mut Process, directory: &std::path::Path, text: &str| {
        Process::put_config(directory, &format!("{CLOSED}{text}"));
        process.signal("HUP");
        process.wait_until_it_logs("take effect after a restart keys=helloWorld\n");
    };
    let directory = tempfile::tempdir().expect("a directory");
    let mut process = serve(directory.path());
    reload(&mut process, directory.path(), "pin: [alpine]\n");
    assert_eq!(ask(&process), (200, false), "no registry is contacted");

    let directory = tempfile::tempdir().expect("a directory");
    let mut process = Process::serve_file(directory.path(), CLOSED);
    reload(&mut process, directory.path(), "helloWorld: true\n");
    assert_eq!(ask(&process), (404, false));
}

#[test]
fn hello_image_is_absent_when_disabled() {
    let directory = tempfile::tempdir().expect("a directory");
    let process = Process::serve_file(directory.path(), "fsync: false\nunlistedRegistries: deny\n");
    let got = get(process.address, &format!("{PATH}/manifests/latest?ns=docker.io"));
    assert_eq!(got.status, 404, "{got:?}");
}
