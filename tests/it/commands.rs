//! The commands beside the server: what they print, and that it heeds them.

use std::fs;
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
fn what_is_typed_wrong_is_answered_with_what_to_do() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    let (none, list, log) = (path("none"), path("list"), path("none/log"));
    let at = format!("@{list}");
    for (words, code, said) in [
        (vec!["list", "--image-path", &none], 2, "--image-path must precede the command".into()),
        (
            vec!["--image-path", &none, "--log-file", &log, "serve"],
            1,
            format!("cannot open the log file {log}: "),
        ),
        (vec!["load", &at], 2, format!("cannot read {list}: ")),
        (vec!["list", "--pattern", "("], 2, "--pattern: ( is not a regular expression".into()),
        (vec!["list", "A:B"], 2, "A:B: ".into()),
        (vec!["verify", "/(/"], 2, "/(/: not a pattern".into()),
    ] {
        let (status, _, stderr) = run(&words);
        assert!(status == Some(code) && stderr.contains(&said), "{words:?}: {stderr}");
    }
    let (status, _, stderr) =
        run(&["--image-path", &none, "export", "--all", "--output", &path("bundle.tar")]);
    assert!(status == Some(2) && stderr.contains("there is no cache in"), "{stderr}");
    assert!(!Path::new(&none).exists(), "a place that was mistyped is not made a cache");
}

#[test]
fn a_login_that_cannot_be_read_is_no_error_yet_and_is_said() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("larder.yaml");
    let entry = "{name: a.example, auth: {user: u, passwordFile: /nonexistent/password}}";
    fs::write(&file, format!("registries: [{entry}]")).expect("a file");
    let (status, _, stderr) =
        run(&["--config-file", &file.display().to_string(), "config", "check"]);
    let said = "error: registries: a.example: passwordFile: /nonexistent/password: ";
    assert!(status == Some(0) && stderr.contains(said), "{stderr}");
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
    for (words, said) in [(&["/(/"][..], "not a pattern"), (&["--sort", "age"], "use name, size")] {
        let (code, _, stderr) = list(words);
        assert!(code == Some(2) && stderr.contains(said), "{stderr}");
    }
    let nowhere = directory.path().join("nowhere");
    let nowhere = nowhere.display().to_string();
    let (code, _, stderr) = run(&["--image-path", &nowhere, "list"]);
    assert!(code == Some(2) && stderr.contains("there is no cache in"), "{stderr}");
    assert!(!Path::new(&nowhere).exists());
}

/// A configuration that lists the registry, and a cache directory.
fn site(directory: &Path, registry: &FakeRegistry) -> (String, String) {
    let config = directory.join("larder.yaml");
    let text = format!(
        "fsync: false\nregistries: [{{name: \"{}\", scheme: http}}]\nplatforms: [all]\n",
        registry.host()
    );
    fs::write(&config, text).expect("a file can be written");
    (config.display().to_string(), directory.join("cache").display().to_string())
}

/// Runs a command on that site.
fn on(site: &(String, String), words: &[&str]) -> (Option<i32>, String, String) {
    run(&[&["--config-file", &site.0, "--image-path", &site.1], words].concat())
}

#[test]
fn load_takes_lists_and_bundles_and_says_what_could_not_be_had() {
    let registry = FakeRegistry::start();
    let (one, two) = (Image::sample("one"), Image::sample("two"));
    registry.add(REPOSITORY, "v1", &one);
    registry.add(REPOSITORY, "v2", &two);
    registry.expect_unknown(&manifest(REPOSITORY, "v9"));
    let host = registry.host();
    let (near, far) =
        (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let (here, there) = (site(near.path(), &registry), site(far.path(), &registry));
    let name = |tag: &str| format!("{host}/{REPOSITORY}:{tag}");
    let (code, _, said) = on(&here, &["load", &name("v1")]);
    assert!(code == Some(0) && said.contains("1 of 1 image in the cache"), "{said}");
    let bundle = far.path().join("one.tar").display().to_string();
    let (code, _, said) = on(&here, &["export", "--all", "--output", &bundle]);
    assert_eq!(code, Some(0), "{said}");

    let list = far.path().join("list.txt");
    fs::write(&list, format!("# the rest\n{}, {}\n", name("v2"), name("v9"))).expect("a file");
    let files = format!("{}/*.tar,{}", far.path().display(), list.display());
    let (code, _, said) = on(&there, &["load", "--attempts", "1", "--image-file", &files]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("failed: {}: ", name("v9"))), "{said}");
    assert!(said.contains("1 of 2 images in the cache"), "{said}");
    let (_, table, _) = on(&there, &["list"]);
    for tag in ["v1", "v2"] {
        let line = table.lines().find(|line| line.starts_with(&name(tag)));
        assert!(line.is_some_and(|line| line.ends_with("complete")), "{table}");
    }
    for (words, said) in [
        (&["load"][..], "name images"),
        (&["load", "a b"], "a b: "),
        (&["load", "@/nonexistent"], "/nonexistent"),
        (&["load", "x", "--platform", "linux"], "linux/amd64"),
    ] {
        let (code, _, stderr) = on(&there, words);
        assert!(code == Some(2) && stderr.contains(said), "{words:?}: {stderr}");
    }
}

#[test]
fn preloaded_images_are_there_without_a_client() {
    let registry = FakeRegistry::start();
    let image = Image::sample("v1");
    registry.add(REPOSITORY, "v1", &image);
    let directory = tempfile::tempdir().expect("a directory");
    let list = directory.path().join("list.txt");
    fs::write(&list, format!("{}/{REPOSITORY}:v1\n", registry.host())).expect("a file");
    let list = list.display().to_string();
    let mut process = Process::serve_and(directory.path(), &registry, &["--preload-images", &list]);
    process.wait_until_it_logs("preload: 1 of 1 image in the cache");
    registry.stop();
    for each in image.blobs() {
        assert!(get(process.address, &blob(REPOSITORY, &each.digest)).body == each.bytes);
    }
}

#[test]
fn verify_names_what_is_wrong_and_mends_it_where_that_is_wished() {
    let registry = FakeRegistry::start();
    let image = Image::sample("v1");
    registry.add(REPOSITORY, "v1", &image);
    let directory = tempfile::tempdir().expect("a directory");
    let site = site(directory.path(), &registry);
    let name = format!("{}/{REPOSITORY}:v1", registry.host());
    assert_eq!(on(&site, &["load", &name]).0, Some(0));
    let (code, said, _) = on(&site, &["verify", "--rate", "1GB"]);
    assert_eq!((code, said.as_str()), (Some(0), "1 image, 0 incomplete; 0 damaged blobs\n"));

    let file = |digest: &str| Path::new(&site.1).join("blobs").join(digest.replace(':', "/"));
    let layers = image.layers();
    let (flipped, removed) = (&layers[0], &layers[1]);
    fs::write(file(&flipped.digest), vec![0; flipped.bytes.len()]).expect("it can be written");
    fs::remove_file(file(&removed.digest)).expect("it can be removed");
    fs::write(file(&image.digest()), b"{}").expect("it can be written");
    let (code, said, stderr) = on(&site, &["verify"]);
    assert_eq!(code, Some(1), "{said}{stderr}");
    for digest in [&flipped.digest, &image.digest()] {
        let line = said.lines().find(|line| line.starts_with(digest));
        assert!(line.is_some_and(|line| line.contains("damaged") && line.contains("quarantine")));
    }
    assert!(said.contains(&format!("{name}: manifest {}", image.digest())), "{said}");
    let (code, said, _) = on(&site, &["verify"]);
    assert!(code == Some(1) && said.ends_with("1 incomplete; 0 damaged blobs\n"), "{said}");

    let (code, said, stderr) = on(&site, &["verify", "--repair"]);
    assert!(code == Some(0) && said.contains("; repaired"), "{said}{stderr}");
    for each in [flipped, removed] {
        assert!(fs::read(file(&each.digest)).expect("it is there") == each.bytes);
    }
    assert_eq!(on(&site, &["verify"]).0, Some(0));
    registry.stop();
    fs::remove_file(file(&removed.digest)).expect("it can be removed");
    let (code, said, _) = on(&site, &["verify", "--repair"]);
    assert!(code == Some(1) && said.contains("not repaired: "), "{said}");
}
