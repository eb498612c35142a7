//! `access: client` with several Larders: peers prove that they are members, and parents decide if they say so.
//!
//! Two Larders in one process have the same name and would be a loop, so these are processes.

use std::net::SocketAddr;

use crate::support::client::request;
use crate::support::larder::{blob, manifest};
use crate::support::process::Process;
use crate::support::{Account, FakeRegistry, Image, Response, base64, bytes};

const REPOSITORY: &str = "team/app";
const NAME: &str = "reg.test/team/app";

/// A registry with one user, and its image.
fn registry() -> (FakeRegistry, Image) {
    let registry = FakeRegistry::start();
    let image = (0..6).map(|seed| bytes(5_000, seed)).fold(Image::new("app"), Image::layer);
    registry.add(REPOSITORY, "v1", &image);
    let [ann, robot] = [("ann", "secret"), ("robot", "own")]
        .map(|(user, password)| Account::new(user, password, &[REPOSITORY]));
    registry.require_accounts(&[ann, robot], 403);
    (registry, image)
}

fn get(address: SocketAddr, target: &str, user: &str, password: &str) -> Response {
    let login = format!("Basic {}", base64(format!("{user}:{password}").as_bytes()));
    request(address, "GET", target, &[("Authorization", &login)])
}

/// A configuration without credentials for the registry.
fn config(registry: &str, more: &str) -> String {
    format!(
        "fsync: false\nmanagement: {{port: 0}}\nunlistedRegistries: deny\n{more}\nregistries:\n  - {{name: reg.test, \
         access: client, endpoints: [\"{registry}\"]}}\n"
    )
}

#[test]
fn members_serve_each_other_and_nobody_who_only_claims_to_be_one() {
    let (registry, image) = registry();
    let directories = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    let url = registry.url("");
    let config = |url: &str, more: &str| {
        let own = "access: client, auth: {user: robot, password: own}";
        config(url, more).replace("access: client", own)
    };
    let mut members: Vec<Process> = directories
        .iter()
        .map(|directory| Process::serve_file(directory.path(), &config(&url, "")))
        .collect();
    let addresses: Vec<SocketAddr> = members.iter().map(|member| member.address).collect();
    let urls: Vec<String> =
        addresses.iter().map(|address| format!("\"http://{address}\"")).collect();
    let group =
        format!("peers: {{urls: [{}], auth: {{user: group, password: shared}}}}", urls.join(", "));
    for (member, directory) in members.iter_mut().zip(&directories) {
        Process::put_config(directory.path(), &config(&url, &group));
        member.signal("HUP");
        member.wait_until_it_logs("configuration reloaded");
    }
    for address in &addresses {
        let got = get(*address, &manifest(NAME, "v1"), "ann", "secret");
        assert!(got.status == 200 && got.body == image.manifest(), "{got:?}");
        for layer in image.layers() {
            let got = get(*address, &blob(NAME, &layer.digest), "ann", "secret");
            assert!(got.status == 200 && got.body == layer.bytes, "{got:?}");
        }
    }
    let own = format!("Basic {}", base64(b"robot:own"));
    for layer in image.layers() {
        let path = format!("/v2/{REPOSITORY}/blobs/{}", layer.digest);
        let asked = registry.requests_for("GET", &path);
        let own = asked.iter().filter(|asked| asked.header("authorization") == Some(own.as_str()));
        assert_eq!(own.count(), 1, "each layer is downloaded once: {asked:?}");
    }
    // What a member sends, without the credentials of the group.
    let target = format!("{}?ns=reg.test", blob(REPOSITORY, &image.layers()[0].digest));
    let via = ("Via", "1.1 larder-00000000000000aa (peer)");
    let claimed = request(addresses[0], "GET", &target, &[via]);
    assert_eq!(claimed.status, 401, "{claimed:?}");
    for login in ["ann:secret", "group:wrong", "other:shared"] {
        let login = format!("Basic {}", base64(login.as_bytes()));
        let claimed =
            request(addresses[0], "GET", &target, &[via, ("Authorization", login.as_str())]);
        assert_eq!(claimed.status, 401, "{login}");
    }
    let group = format!("Basic {}", base64(b"group:shared"));
    let proven = request(
        addresses[0],
        "GET",
        &target,
        &[via, ("Authorization", group.as_str()), ("Larder-User", "ann")],
    );
    assert_eq!(proven.status, 200, "{proven:?}");
    for asked in registry.requests() {
        assert_ne!(asked.header("authorization"), Some(group.as_str()), "{asked:?}");
    }
    members[0].wait_until_it_logs("user=ann");
}

#[test]
fn parent_decides_if_the_registry_is_out_of_reach() {
    let (registry, image) = registry();
    let directories = [(); 3].map(|()| tempfile::tempdir().expect("a directory"));
    let unreachable = FakeRegistry::start();
    let dead = unreachable.url("");
    unreachable.stop();
    let parent = Process::serve_file(directories[0].path(), &config(&registry.url(""), ""));
    let own = "auth: {user: robot, password: own}";
    let open = config(&registry.url(""), "").replace("access: client", own);
    let open_parent = Process::serve_file(directories[1].path(), &open);
    let parents = |address: SocketAddr, access: &str| {
        format!("parents: [{{url: \"http://{address}\"{access}}}]\nnegativeTtl: 0s")
    };
    let child = |parents: &str, directory| {
        let directory: &tempfile::TempDir = directory;
        Process::serve_file(directory.path(), &config(&dead, parents))
    };
    let deciding = child(&parents(parent.address, ", access: client"), &directories[2]);
    let got = get(deciding.address, &manifest(NAME, "v1"), "ann", "secret");
    assert!(got.status == 200 && got.body == image.manifest(), "{got:?}");
    for layer in image.layers() {
        let got = get(deciding.address, &blob(NAME, &layer.digest), "ann", "secret");
        assert!(got.status == 200 && got.body == layer.bytes, "{got:?}");
    }
    assert_eq!(get(deciding.address, &manifest(NAME, "v1"), "ann", "wrong").status, 401);
    drop(deciding);
    let fresh = tempfile::tempdir().expect("a directory");
    let silent = child(&parents(parent.address, ""), &fresh);
    let got = get(silent.address, &manifest(NAME, "v1"), "ann", "secret");
    assert_eq!(got.status, 503, "the parent gets no login: {got:?}");
    drop(silent);
    let fresh = tempfile::tempdir().expect("a directory");
    let fooled = child(&parents(open_parent.address, ", access: client"), &fresh);
    let got = get(fooled.address, &manifest(NAME, "v1"), "eve", "guess");
    assert_eq!(got.status, 503, "a parent that lets everyone in decides nothing: {got:?}");
}

#[test]
fn a_parent_without_these_rules_proves_nothing_about_private_blobs() {
    let (registry, image) = registry();
    let open = FakeRegistry::start();
    let layer = image.layers()[0].clone();
    let forged = Image::new("forged").layer(layer.bytes.clone()).manifest();
    open.add_manifest("evil/app", "v1", "application/vnd.oci.image.manifest.v1+json", &forged);
    open.expect_unknown("*");
    let both = |more: &str| {
        let config = config(&registry.url(""), more);
        format!("{config}  - {{name: open.test, endpoints: [\"{}\"]}}\n", open.url(""))
    };
    let directories = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    let own = "auth: {user: robot, password: own}";
    let parent =
        Process::serve_file(directories[0].path(), &both("").replace("access: client", own));
    let parents = format!("parents: [\"http://{}\"]\nnegativeTtl: 0s", parent.address);
    let child = Process::serve_file(directories[1].path(), &both(&parents));
    for target in [manifest(NAME, "v1"), blob(NAME, &layer.digest)] {
        assert_eq!(get(child.address, &target, "ann", "secret").status, 200, "{target}");
    }
    let anonymous = |target: &str| request(child.address, "GET", target, &[]);
    for _ in 0..2 {
        assert_eq!(anonymous(&manifest("open.test/evil/app", "v1")).status, 200);
        let got = anonymous(&blob("open.test/evil/app", &layer.digest));
        assert_eq!(got.status, 404, "{got:?}");
    }
}
