//! The scenarios.

use std::fs;
use std::time::Duration;

use super::run::{Action, Scenario, survives};
use crate::site::{Site, incomplete};
use crate::support::bundle::{CONTAINERD_NAME, layout};
use crate::support::larder::{blob, files};
use crate::support::site::{NamedImage, set_back};
use crate::support::{Connection, FakeRegistry, Fault, Gate, Image, On, bytes};

/// Older than the time for which unreferenced blobs are kept.
const HOUR: Duration = Duration::from_secs(3600);

/// An image with a layer of several chunks.
fn named(repository: &str, tag: &str, seed: u64) -> NamedImage {
    let image = Image::new(&format!("{repository}:{tag}")).layer(bytes(3000, seed));
    NamedImage::new(repository, tag, &image.layer(bytes(150_000, seed + 1)))
}

/// An image whose last layer is large enough for a note beside its partial.
fn large(repository: &str, tag: &str, seed: u64) -> NamedImage {
    let image = Image::new(&format!("{repository}:{tag}")).layer(bytes(3000, seed));
    NamedImage::new(repository, tag, &image.layer(bytes(600_000, seed + 1)))
}

/// A registry with these images, and a cache with the first `cached` of them, an hour old.
fn site(images: &[NamedImage], cached: usize, extra: &str) -> (FakeRegistry, Site) {
    let registry = FakeRegistry::start();
    images.iter().for_each(|image| image.publish(&registry));
    let site = Site::new(&registry, extra);
    let names: Vec<String> = images[..cached].iter().map(NamedImage::full).collect();
    if !names.is_empty() {
        let mut words = vec!["load"];
        words.extend(names.iter().map(String::as_str));
        site.run_ok(&words);
        make_old(&site);
    }
    (registry, site)
}

fn make_old(site: &Site) {
    for directory in ["blobs", "refs"] {
        files(&site.root().join(directory)).iter().for_each(|path| set_back(path, HOUR));
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn nothing(_: &Site) -> Vec<String> {
    Vec::new()
}

fn scenario(name: &'static str, site: Site, action: Action) -> Scenario {
    Scenario {
        name,
        site,
        action,
        kept: Vec::new(),
        complete: Vec::new(),
        pulled: Vec::new(),
        check: nothing,
    }
}

#[test]
fn cold_pull_by_several_clients() {
    let images = [named("other", "1", 1), named("app", "1", 10)];
    let (_registry, site) = site(&images, 1, "");
    let [other, app] = images;
    let action = Action::Serve { clients: 3, image: Box::new(app.clone()) };
    survives(&Scenario {
        kept: vec![other],
        complete: vec![app],
        ..scenario("cold pull", site, action)
    });
}

#[test]
fn warm_pull() {
    let images = [named("app", "1", 10)];
    let (_registry, site) = site(&images, 1, "");
    let [app] = images;
    let action = Action::Serve { clients: 1, image: Box::new(app.clone()) };
    survives(&Scenario {
        kept: vec![app.clone()],
        complete: vec![app],
        ..scenario("warm pull", site, action)
    });
}

#[test]
fn start_of_a_server() {
    let images = [named("app", "1", 10), large("big", "1", 20)];
    let (registry, site) = site(&images, 1, "");
    leave_a_partial(&registry, &site, &images[1]);
    let [app, big] = images;
    let complete = vec![app.clone(), big];
    survives(&Scenario { kept: vec![app], complete, ..scenario("start", site, Action::Start) });
}

#[test]
fn resumed_download_after_a_kill() {
    let images = [named("other", "1", 1), large("app", "1", 10)];
    let (registry, site) = site(&images, 1, "resumeOnStart: false");
    leave_a_partial(&registry, &site, &images[1]);
    let [other, app] = images;
    let action = Action::Serve { clients: 2, image: Box::new(app.clone()) };
    survives(&Scenario {
        kept: vec![other],
        complete: vec![app],
        ..scenario("resume", site, action)
    });
}

#[test]
fn load() {
    let images = [named("other", "1", 1), named("app", "1", 10)];
    let (_registry, site) = site(&images, 1, "");
    let [other, app] = images;
    let action = Action::Command(words(&["load", "--attempts", "1", &app.full()]));
    survives(&Scenario {
        kept: vec![other],
        complete: vec![app],
        ..scenario("load", site, action)
    });
}

#[test]
fn import() {
    let images = [named("other", "1", 1), named("app", "1", 10)];
    let (_registry, site) = site(&images, 1, "");
    let [other, app] = images;
    // Next to the configuration, so that each copy of the site has it.
    let archive = std::env::temp_dir().join(format!("larder-faults-{}.tar", std::process::id()));
    fs::write(&archive, layout(CONTAINERD_NAME, &[(&app.full(), &app.image)])).expect("a file");
    let action = Action::Command(words(&["import", &archive.display().to_string()]));
    survives(&Scenario {
        kept: vec![other],
        complete: vec![app],
        ..scenario("import", site, action)
    });
    fs::remove_file(archive).expect("it was created above");
}

#[test]
fn prune() {
    fn is_removed(site: &Site) -> Vec<String> {
        let tag = site.root().join("refs/docker.io/library/old/_tags/1");
        if tag.exists() { vec![format!("{} was not removed", tag.display())] } else { Vec::new() }
    }
    let images = [named("other", "1", 1), named("pinned", "1", 10), named("old", "1", 20)];
    let (_registry, site) = site(&images, 3, "");
    let [other, pinned, _] = images;
    site.run_ok(&["pin", &pinned.full()]);
    // A pattern may match nothing, so the command can be repeated after it has removed the image.
    let action = Action::Command(words(&["prune", "docker.io/library/old:*", &pinned.full()]));
    let kept = vec![other, pinned];
    survives(&Scenario { kept, check: is_removed, ..scenario("prune", site, action) });
}

#[test]
fn pin() {
    fn is_pinned(site: &Site) -> Vec<String> {
        let pins = fs::read_to_string(site.root().join("pins")).unwrap_or_default();
        let missing = ["docker.io/library/app:1", "docker.io/library/earlier:1"]
            .into_iter()
            .filter(|pin| !pins.contains(pin));
        missing.map(|pin| format!("{pin} is not pinned")).collect()
    }
    let images = [named("app", "1", 10)];
    let (_registry, site) = site(&images, 1, "");
    let [app] = images;
    site.run_ok(&["pin", "earlier:1"]);
    let action = Action::Command(words(&["pin", &app.full()]));
    survives(&Scenario { kept: vec![app], check: is_pinned, ..scenario("pin", site, action) });
}

#[test]
fn eviction_during_a_pull() {
    let images = [
        named("pinned", "1", 1),
        named("old", "1", 10),
        named("older", "1", 20),
        named("app", "1", 30),
    ];
    let (_registry, site) = site(&images, 3, "cacheSize: 550kB");
    let [pinned, _, _, app] = images;
    site.run_ok(&["pin", &pinned.full()]);
    let action = Action::Serve { clients: 2, image: Box::new(app.clone()) };
    // If an eviction fails, the next one is tried half a minute later. Until then nothing is stored.
    let pulled = vec![app];
    survives(&Scenario { kept: vec![pinned], pulled, ..scenario("eviction", site, action) });
}

/// Leaves a partial download of the image's last layer, as a killed server does.
fn leave_a_partial(registry: &FakeRegistry, site: &Site, image: &NamedImage) {
    let layer = image.image.layers().pop().expect("it has layers");
    let gate = Gate::new();
    registry.fault(On::get_blob(&layer.digest).times(1), Fault::GateAfter(70_000, gate.clone()));
    let watch = super::unwatched();
    let (server, address) = site.serve(&watch);
    let address = address.expect("a server");
    assert!(incomplete(&site.root(), image).len() > 1);
    let mut client = Connection::open(address);
    client.send("GET", &image.target(), &[]);
    client.read_response();
    client.send("GET", &blob(&image.path(), &layer.digest), &[]);
    client.read_head();
    client.read_body(60_000);
    drop(server);
    gate.open();
    let partials = files(&site.root().join("partials"));
    assert_eq!(partials.len(), 2, "a partial and its note: {partials:?}");
    make_old(site);
}
