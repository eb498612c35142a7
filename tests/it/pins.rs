//! Pins from the configuration, from lists and from commands, and that pinned images are kept.

use std::fs;

use serde_json::json;

use crate::support::larder::until;
use crate::support::process::run;
use crate::support::site::{NamedImage, Site, names, report};
use crate::support::{FakeRegistry, Image, Index};

#[test]
fn pinned_images_are_kept_unless_pins_are_included() {
    let (_registry, site, images) =
        Site::with_samples(&["alpine:3", "busybox:3", "debian:1", "nginx:1", "redis:1"]);
    let list = site.path("list");
    fs::write(&list, "# kept\nbusybox:3, nginx:1\n").expect("a file");
    site.configure(&format!("pin: ['docker.io/library/deb*']\npinLists: [{}]", list.display()));
    site.run_ok(&["pin", "alpine:3"]);
    let message = site.run_ok(&["prune", "*"]);
    assert!(message.contains("4 images kept: pinned; --include-pinned"), "{message}");
    let kept: Vec<String> = images[..4].iter().map(NamedImage::full).collect();
    assert_eq!(site.listed(&[]), kept);
    assert!(images[..4].iter().all(|each| site.has_all(each)));
    let message = report(&site.run_ok(&["prune", "*", "--include-pinned", "--json"]));
    assert_eq!([&message["removed"], &message["keptPinned"]], [&json!(4), &json!(0)]);
    assert!(site.listed(&[]).is_empty());
}

#[test]
fn configured_pins_of_a_server_apply_to_commands_without_that_configuration() {
    let (_registry, site, images) = Site::with_samples(&["busybox:1", "debian:1", "redis:1"]);
    let list = site.path("list");
    fs::write(&list, "busybox:1").expect("a file");
    site.configure(&format!("pin: [debian]\npinLists: [{}]", list.display()));
    let server = site.serve();
    until("the configured pins to be recorded", || site.root().join("pins-configured").exists());
    let root = site.root().display().to_string();
    let without = |words: &[&str]| run(&[&["--image-path", &root], words].concat());
    let (code, message, stderr) = without(&["prune", "*"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(message.contains("2 images kept: pinned"), "{message}");
    let kept: Vec<String> = images[..2].iter().map(NamedImage::full).collect();
    assert_eq!(site.listed(&[]), kept);
    let (_, pins, _) = without(&["pin"]);
    assert!(pins.contains("docker.io/library/debian  (configuration of the server)"), "{pins}");
    let (code, _, stderr) = without(&["unpin", "debian"]);
    assert!(code == Some(2) && stderr.contains("pinned by the configuration"), "{stderr}");

    site.configure("pin: [debian]");
    drop(server);
    let server = site.serve();
    let recorded = || fs::read_to_string(site.root().join("pins-configured")).unwrap_or_default();
    until("the new pins to be recorded", || !recorded().contains("busybox"));
    assert_eq!(without(&["prune", "*"]).0, Some(0));
    assert_eq!(site.listed(&[]), [images[1].full()]);
    drop(server);
}

#[test]
fn image_with_one_platform_pinned_by_digest_is_pinned_and_kept() {
    let registry = FakeRegistry::start();
    let (pinned, other) = (Image::sample("a"), Image::sample("b").platform("linux", "arm64"));
    let indexes = ["a", "b"].map(|label| Index::new().image(&pinned).image(&Image::sample(label)));
    registry.add("library/app", "1", &indexes[0]);
    registry.add("library/app", "2", &Index::new().image(&other));
    registry.add("library/copy", "1", &indexes[1]);
    let site = Site::new(&registry, "");
    site.run_ok(&["load", "app:1", "app:2", "copy:1"]);
    site.run_ok(&["pin", &format!("app@{}", pinned.digest())]);
    let kept = ["docker.io/library/app:1"];
    assert_eq!(site.listed(&["--pinned"]), kept);
    let server = site.serve();
    let is_pinned = |name: &str| server.api(&format!("image?image={name}"))["pinned"].clone();
    assert_eq!([is_pinned("app:1"), is_pinned("app:2"), is_pinned("copy:1")], [true, false, false]);
    server.wait_for_images(3);
    assert_eq!(names(&server.api("images?pinned=true")), kept);
    site.run_ok(&["prune", "*"]);
    assert_eq!(site.listed(&[]), kept);
}

#[test]
fn unreadable_pins_stop_a_prune() {
    let (_registry, site, images) = Site::with_samples(&["app:1"]);
    let list = site.path("list");
    site.configure(&format!("pinLists: [{}]", list.display()));
    let refused = |message: &str| {
        let (code, _, stderr) = site.run(&["prune", "*"]);
        assert!(code == Some(1) && stderr.contains(message), "{stderr}");
        assert!(site.has_all(&images[0]));
    };
    refused("cannot read the pins in");
    fs::write(&list, "app:1\nA\n").expect("a file");
    refused("line 2: A: ");
    fs::write(&list, "other:1").expect("a file");
    fs::write(site.root().join("pins"), "not a pin\n").expect("a file");
    refused("pins: not a pin: ");
    fs::remove_file(site.root().join("pins")).expect("an existing file");
    site.run_ok(&["prune", "*"]);
    assert!(site.listed(&[]).is_empty());
}

#[test]
fn pins_are_added_listed_and_removed() {
    let (_registry, site, _) = Site::with_samples(&["alpine:3", "alpine:edge", "busybox:1"]);
    site.configure("pin: [nginx]");
    let list = site.path("more");
    fs::write(&list, "quay.io/org/*, busybox # both\n/^ghcr/\n").expect("a file");
    let list = list.display().to_string();
    assert_eq!(site.run_ok(&["pin", "alpine:3"]), "pinned docker.io/library/alpine:3\n");
    let message = site.run_ok(&["pin", "alpine:3", "--list", &list]);
    assert!(message.ends_with("1 of them already pinned\n"), "{message}");
    let shown = site.run_ok(&["pin"]);
    let mut lines: Vec<&str> = shown.lines().collect();
    lines.sort_unstable();
    let expected = [
        "/^ghcr/",
        "docker.io/library/alpine:3",
        "docker.io/library/busybox",
        "docker.io/library/nginx  (configuration)",
        "quay.io/org/*",
    ];
    assert_eq!(lines, expected);
    let pinned = ["docker.io/library/alpine:3", "docker.io/library/busybox:1"];
    assert_eq!(site.listed(&["--pinned"]), pinned);
    let table = site.run_ok(&["list"]);
    let shown = |name: &str| {
        let line = table.lines().find(|line| line.contains(name));
        line.is_some_and(|line| line.ends_with("complete, pinned"))
    };
    assert_eq!([shown("alpine:3"), shown("alpine:edge")], [true, false], "{table}");
    for (words, message) in [
        (&["unpin"][..], "name the pins to remove"),
        (&["unpin", "redis"], "docker.io/library/redis is not pinned"),
        (&["unpin", "alpine"], "docker.io/library/alpine is not pinned"),
        (&["unpin", "alpine:3", "redis"], "redis is not pinned"),
        (&["unpin", "nginx"], "pinned by the configuration"),
        (&["pin", "a b"], "a b: "),
        (&["pin", "--list", "/nonexistent"], "--list: cannot read /nonexistent"),
    ] {
        let (code, _, stderr) = site.run(words);
        assert!(code == Some(2) && stderr.contains(message), "{words:?}: {stderr}");
    }
    assert_eq!(site.listed(&["--pinned"]), pinned, "no pin is removed if one of them cannot be");
    site.run_ok(&["unpin", "alpine:3", "/^ghcr/"]);
    assert_eq!(site.listed(&["--pinned"]), pinned[1..]);
}

#[test]
fn import_pins_images_on_request() {
    let (_near_registry, near, _) = Site::with_samples(&["app:1"]);
    let (_far_registry, far, _) = Site::with_samples(&["app:2"]);
    let bundle = near.path("one.tar").display().to_string();
    near.run_ok(&["export", "--all", "--output", &bundle]);
    let (code, _, message) = far.run(&["import", "--pin", &bundle]);
    assert!(code == Some(0) && message.contains("1 image pinned"), "{message}");
    assert_eq!(far.listed(&["--pinned"]), ["docker.io/library/app:1"]);
    far.make_old();
    far.run_ok(&["prune", "*"]);
    assert_eq!(far.listed(&[]), ["docker.io/library/app:1"]);
    near.run_ok(&["import", &bundle]);
    assert!(near.listed(&["--pinned"]).is_empty());
}
