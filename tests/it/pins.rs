//! What is pinned: by the configuration, by lists, by hand; and that it stays.

use std::fs;

use serde_json::json;

use crate::support::larder::until;
use crate::support::process::run;
use crate::support::site::{Named, Site, names, report};
use crate::support::{FakeRegistry, Image, Index};

#[test]
fn pinned_images_stay_unless_they_are_meant_as_well() {
    let registry = FakeRegistry::start();
    let images: Vec<Image> = ["a", "b", "c", "d", "e"].map(Image::sample).into();
    let site = Site::new(&registry, "");
    let list = site.path("list");
    fs::write(&list, "# kept\nbusybox:3, nginx:1\n").expect("a file");
    site.configure(&format!("pin: ['docker.io/library/deb*']\npinLists: [{}]", list.display()));
    let all = || {
        ["alpine", "busybox", "debian", "nginx", "redis"].into_iter().zip(&images).map(
            |(name, image)| {
                let tag = if matches!(name, "alpine" | "busybox") { "3" } else { "1" };
                Named::new(name, tag, image)
            },
        )
    };
    site.fill(&registry, &all().collect::<Vec<_>>());
    site.done(&["pin", "alpine:3"]);
    let said = site.done(&["prune", "*"]);
    assert!(said.contains("4 images kept: pinned; --include-pinned"), "{said}");
    let kept: Vec<String> = all().take(4).map(|each| each.full()).collect();
    assert_eq!(site.listed(&[]), kept);
    assert!(all().take(4).all(|each| site.has_all(&each)));
    let said = report(&site.done(&["prune", "*", "--include-pinned", "--json"]));
    assert_eq!([&said["removed"], &said["keptPinned"]], [&json!(4), &json!(0)]);
    assert!(site.listed(&[]).is_empty());
}

#[test]
fn what_a_servers_configuration_pins_stays_also_for_commands_that_do_not_read_it() {
    let registry = FakeRegistry::start();
    let images: Vec<Image> = ["a", "b", "c"].map(Image::sample).into();
    let site = Site::new(&registry, "");
    let list = site.path("list");
    fs::write(&list, "busybox:1").expect("a file");
    site.configure(&format!("pin: [debian]\npinLists: [{}]", list.display()));
    let names = ["busybox", "debian", "redis"];
    let all: Vec<Named> =
        names.iter().zip(&images).map(|(name, image)| Named::new(name, "1", image)).collect();
    site.fill(&registry, &all);
    let desk = site.serve();
    until("a note of what is pinned", || site.root().join("pins-configured").exists());
    let root = site.root().display().to_string();
    let without = |words: &[&str]| run(&[&["--image-path", &root], words].concat());
    let (code, said, stderr) = without(&["prune", "*"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(said.contains("2 images kept: pinned"), "{said}");
    let kept: Vec<String> = all[..2].iter().map(Named::full).collect();
    assert_eq!(site.listed(&[]), kept);
    let (_, pins, _) = without(&["pin"]);
    assert!(pins.contains("docker.io/library/debian  (configuration of the server)"), "{pins}");
    let (code, _, stderr) = without(&["unpin", "debian"]);
    assert!(code == Some(2) && stderr.contains("pinned by the configuration"), "{stderr}");

    site.configure("pin: [debian]");
    drop(desk);
    let desk = site.serve();
    let noted = || fs::read_to_string(site.root().join("pins-configured")).unwrap_or_default();
    until("a note of what is pinned now", || !noted().contains("busybox"));
    assert_eq!(without(&["prune", "*"]).0, Some(0));
    assert_eq!(site.listed(&[]), [all[1].full()]);
    drop(desk);
}

#[test]
fn image_of_which_one_platform_is_pinned_by_its_digest_is_shown_as_pinned_and_stays() {
    let registry = FakeRegistry::start();
    let (pinned, other) = (Image::sample("a"), Image::sample("b").platform("linux", "arm64"));
    let indexes = ["a", "b"].map(|label| Index::new().image(&pinned).image(&Image::sample(label)));
    registry.add("library/app", "1", &indexes[0]);
    registry.add("library/app", "2", &Index::new().image(&other));
    registry.add("library/copy", "1", &indexes[1]);
    let site = Site::new(&registry, "");
    site.done(&["load", "app:1", "app:2", "copy:1"]);
    site.done(&["pin", &format!("app@{}", pinned.digest())]);
    let kept = ["docker.io/library/app:1"];
    assert_eq!(site.listed(&["--pinned"]), kept);
    let desk = site.serve();
    let is_pinned = |of: &str| desk.look(&format!("image?image={of}"))["pinned"].clone();
    assert_eq!([is_pinned("app:1"), is_pinned("app:2"), is_pinned("copy:1")], [true, false, false]);
    desk.wait_for_images(3);
    assert_eq!(names(&desk.look("images?pinned=true")), kept);
    site.done(&["prune", "*"]);
    assert_eq!(site.listed(&[]), kept);
}

#[test]
fn pins_that_cannot_be_read_stop_a_prune() {
    let registry = FakeRegistry::start();
    let image = Image::sample("v1");
    let site = Site::new(&registry, "");
    site.fill(&registry, &[Named::new("app", "1", &image)]);
    let list = site.path("list");
    site.configure(&format!("pinLists: [{}]", list.display()));
    let refused = |said: &str| {
        let (code, _, stderr) = site.run(&["prune", "*"]);
        assert!(code == Some(1) && stderr.contains(said), "{stderr}");
        assert!(site.has(&image.digest()));
    };
    refused("cannot read the pins in");
    fs::write(&list, "app:1\nA\n").expect("a file");
    refused("line 2: A: ");
    fs::write(&list, "other:1").expect("a file");
    fs::write(site.root().join("pins"), "not a pin\n").expect("a file");
    refused("pins: not a pin: ");
    fs::remove_file(site.root().join("pins")).expect("it is there");
    site.done(&["prune", "*"]);
    assert!(site.listed(&[]).is_empty());
}

#[test]
fn pins_are_set_listed_and_taken_off() {
    let registry = FakeRegistry::start();
    let images: Vec<Image> = ["a", "b", "c"].map(Image::sample).into();
    let site = Site::new(&registry, "pin: [nginx]");
    site.fill(
        &registry,
        &[
            Named::new("alpine", "3", &images[0]),
            Named::new("alpine", "edge", &images[1]),
            Named::new("busybox", "1", &images[2]),
        ],
    );
    let list = site.path("more");
    fs::write(&list, "quay.io/org/*, busybox # both\n/^ghcr/\n").expect("a file");
    let list = list.display().to_string();
    assert_eq!(site.done(&["pin", "alpine:3"]), "pinned docker.io/library/alpine:3\n");
    let said = site.done(&["pin", "alpine:3", "--list", &list]);
    assert!(said.ends_with("1 of them already pinned\n"), "{said}");
    let shown = site.done(&["pin"]);
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
    let table = site.done(&["list"]);
    let shown = |name: &str| {
        let line = table.lines().find(|line| line.contains(name));
        line.is_some_and(|line| line.ends_with("complete, pinned"))
    };
    assert_eq!([shown("alpine:3"), shown("alpine:edge")], [true, false], "{table}");
    for (words, said) in [
        (&["unpin"][..], "name the pins to remove"),
        (&["unpin", "redis"], "docker.io/library/redis is not pinned"),
        (&["unpin", "alpine"], "docker.io/library/alpine is not pinned"),
        (&["unpin", "alpine:3", "redis"], "redis is not pinned"),
        (&["unpin", "nginx"], "pinned by the configuration"),
        (&["pin", "a b"], "a b: "),
        (&["pin", "--list", "/nonexistent"], "--list: cannot read /nonexistent"),
    ] {
        let (code, _, stderr) = site.run(words);
        assert!(code == Some(2) && stderr.contains(said), "{words:?}: {stderr}");
    }
    assert_eq!(site.listed(&["--pinned"]), pinned, "none of them is taken off if one cannot be");
    site.done(&["unpin", "alpine:3", "/^ghcr/"]);
    assert_eq!(site.listed(&["--pinned"]), pinned[1..]);
}

#[test]
fn import_pins_what_it_imports_if_that_is_wished() {
    let registry = FakeRegistry::start();
    let images = [Image::sample("a"), Image::sample("b")];
    let (near, far) = (Site::new(&registry, ""), Site::new(&registry, ""));
    near.fill(&registry, &[Named::new("app", "1", &images[0])]);
    let bundle = near.path("one.tar").display().to_string();
    near.done(&["export", "--all", "--output", &bundle]);
    far.fill(&registry, &[Named::new("app", "2", &images[1])]);
    let (code, _, said) = far.run(&["import", "--pin", &bundle]);
    assert!(code == Some(0) && said.contains("1 image pinned"), "{said}");
    assert_eq!(far.listed(&["--pinned"]), ["docker.io/library/app:1"]);
    far.make_old();
    far.done(&["prune", "*"]);
    assert_eq!(far.listed(&[]), ["docker.io/library/app:1"]);
    near.done(&["import", &bundle]);
    assert!(near.listed(&["--pinned"]).is_empty());
}
