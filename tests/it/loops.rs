//! Larders that use each other as registries: chains work, loops fail at once.

use crate::support::client::get;
use crate::support::larder::manifest;
use crate::support::process::Process;
use crate::support::{FakeRegistry, Larder};

const REPOSITORY: &str = "team/app";

/// A configuration with the registry `reg.test` at `url`.
fn config(url: &str) -> String {
    format!(
        "fsync: false\nunlistedRegistries: deny\nregistries:\n  - {{name: reg.test, endpoints: [\"{url}\"]}}\n"
    )
}

#[test]
fn two_larders_in_a_loop_fail_at_once_and_name_each_other() {
    let directories = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    let mut first = Process::serve_file(directories[0].path(), &config("http://127.0.0.1:1"));
    let to = |address: std::net::SocketAddr| config(&format!("http://{address}/v2/reg.test"));
    let second = Process::serve_file(directories[1].path(), &to(first.address));
    Process::put_config(directories[0].path(), &to(second.address));
    first.signal("HUP");
    first.wait_until_it_logs("configuration reloaded");
    for path in [
        manifest(&format!("reg.test/{REPOSITORY}"), "v1"),
        format!("/v2/reg.test/{REPOSITORY}/blobs/sha256:{}", "0".repeat(64)),
    ] {
        let got = get(first.address, &path);
        assert_eq!(got.status, 508, "{got:?}");
    }
    let line = first.wait_until_it_logs("request loop: ");
    let names = line.matches("larder-").count();
    assert!(names == 2 && line.contains("reg.test") && line.contains("ERROR"), "{line}");
}

#[test]
fn chained_larders_serve_content_of_the_last_one() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let directories = [(); 3].map(|()| tempfile::tempdir().expect("a directory"));
    let parent = Process::serve_file(directories[0].path(), &config(&registry.url("")));
    let url = format!("http://{}/v2/reg.test", parent.address);
    let middle = Process::serve_file(directories[1].path(), &config(&url));
    let url = format!("http://{}/v2/reg.test", middle.address);
    let child = Process::serve_file(directories[2].path(), &config(&url));
    let path = |reference: &str| manifest(&format!("reg.test/{REPOSITORY}"), reference);
    assert!(get(child.address, &path("v1")).body == image.manifest());
    for layer in image.layers() {
        let path = format!("/v2/reg.test/{REPOSITORY}/blobs/{}", layer.digest);
        assert!(get(child.address, &path).body == layer.bytes);
    }
    let asked = &registry.requests()[0];
    let via = asked.header("via").expect("a Via header");
    assert_eq!(via.matches("1.1 larder-").count(), 3, "{via}");
}

#[test]
fn via_of_other_intermediaries_is_ignored_and_not_forwarded() {
    let registry = FakeRegistry::start();
    registry.add_sample(REPOSITORY);
    let larder = Larder::start(&registry);
    let headers = [("Via", "1.1 nginx, 1.0 larder-x (secret)")];
    assert_eq!(larder.request("GET", &manifest(REPOSITORY, "v1"), &headers).status, 200);
    let via = registry.requests()[0].header("via").map(str::to_owned).expect("its own");
    assert!(!via.contains("nginx") && !via.contains("secret"), "{via}");
}
