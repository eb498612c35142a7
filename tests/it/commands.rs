//! The commands beside the server: what they print, and that it heeds them.

use std::path::Path;

use crate::support::client::get;
use crate::support::larder::{blob, manifest, until};
use crate::support::process::{Process, run};
use crate::support::{FakeRegistry, Image, Publish};

const REPOSITORY: &str = "team/app";

#[test]
fn offline_is_switched_from_beside_a_running_server() {
    let directory = tempfile::tempdir().expect("a directory");
    let registry = FakeRegistry::start();
    let image = Image::sample("v1");
    registry.add(REPOSITORY, "v1", &image);
    let mut process = Process::serve(directory.path(), &registry);
    let cache = directory.path().join("cache").display().to_string();
    let offline = |words: &[&str]| run(&[&["--image-path", &cache, "offline"], words].concat());
    let said = |words: &[&str]| offline(words).1;
    assert!(said(&[]).starts_with("online"));
    assert!(said(&["on"]).starts_with("offline"));
    let path = manifest(REPOSITORY, "v1");
    process.wait_until_it_logs("offline: no upstream is asked");
    assert_eq!(get(process.address, &path).status, 404);
    assert!(said(&["off"]).starts_with("online"));
    process.wait_until_it_logs("online again");
    assert!(get(process.address, &path).body == image.manifest());
    let (code, _, stderr) = offline(&["maybe"]);
    assert!(code == Some(2) && stderr.contains("neither on nor off"), "{stderr}");
}

#[test]
fn list_says_what_is_here_and_what_is_missing() {
    let directory = tempfile::tempdir().expect("a directory");
    let registry = FakeRegistry::start();
    let (whole, partial) = (Image::sample("whole"), Image::sample("partial"));
    registry.add(REPOSITORY, "v1", &whole);
    registry.add(REPOSITORY, "v2", &partial);
    // What cannot be had keeps an image from being completed.
    let missing = &partial.layers()[0];
    registry.remove_blob(REPOSITORY, &missing.digest);
    registry.expect_unknown(&blob(REPOSITORY, &missing.digest));
    let process = Process::serve(directory.path(), &registry);
    let cache = directory.path().join("cache");
    for tag in ["v1", "v2"] {
        assert_eq!(get(process.address, &manifest(REPOSITORY, tag)).status, 200);
    }
    let has = |digest: &str| cache.join("blobs").join(digest.replace(':', "/")).exists();
    let here = |image: &Image| {
        let mut digests: Vec<String> = image.blobs().iter().map(|b| b.digest.clone()).collect();
        digests.push(image.digest());
        digests
    };
    let mut expected = [here(&whole), here(&partial)].concat();
    expected.retain(|digest| *digest != missing.digest);
    until("all that can be had", || expected.iter().all(|digest| has(digest)));
    expected.sort();
    expected.dedup();

    let cache = cache.display().to_string();
    let list = |words: &[&str]| run(&[&["--image-path", &cache, "list"], words].concat());
    let host = registry.host();
    let (code, table, _) = list(&[]);
    let line = |tag: &str| {
        let name = format!("{host}/{REPOSITORY}:{tag} ");
        table.lines().find(|line| line.starts_with(&name)).unwrap_or_else(|| panic!("{table}"))
    };
    assert_eq!(code, Some(0));
    assert!(line("v1").ends_with("complete") && line("v2").contains("partial, "), "{table}");
    assert_eq!(list(&["--digests"]).1.lines().collect::<Vec<_>>(), expected);
    let (_, one, _) = list(&["*:v1", "--json"]);
    let one: serde_json::Value = serde_json::from_str(&one).expect("JSON");
    assert_eq!(one[0]["digest"], whole.digest());
    assert_eq!((&one[0]["complete"], one.as_array().map(Vec::len)), (&true.into(), Some(1)));
    let (_, tree, _) = list(&["/v2$/", "--tree"]);
    let lost = tree.lines().find(|line| line.contains(&missing.digest)).expect("it is in the tree");
    assert!(lost.ends_with("missing") && !tree.contains(":v1"), "{tree}");
    for (words, said) in [(&["/(/"][..], "not a pattern"), (&["--sort", "age"], "none of name")] {
        let (code, _, stderr) = list(words);
        assert!(code == Some(2) && stderr.contains(said), "{stderr}");
    }
    let nowhere = directory.path().join("nowhere");
    let nowhere = nowhere.display().to_string();
    let (code, _, stderr) = run(&["--image-path", &nowhere, "list"]);
    assert!(code == Some(2) && stderr.contains("there is no cache in"), "{stderr}");
    assert!(!Path::new(&nowhere).exists());
}
