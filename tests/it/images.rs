//! `larder images` and `larder load --from`: the images that manifests name.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::larder::manifest;
use crate::support::process::{larder, run};
use crate::support::site::{NamedImage, Site};
use crate::support::{FakeRegistry, Image, Publish};

const POD: &str =
    "kind: Pod\nspec:\n  containers:\n  - image: app:1\n  - image: quay.io/team/app\n";

/// A directory with these files, and its path.
fn directory(files: &[(&str, &str)]) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().expect("a directory");
    for (name, text) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(path, text).expect("a file can be written");
    }
    let path = directory.path().display().to_string();
    (directory, path)
}

/// Runs a command that reads a text from standard input.
fn run_with_input(words: &[&str], input: &str) -> (Option<i32>, String, String) {
    let mut command = larder(words);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let mut pipe = child.stdin.take().expect("a pipe");
    pipe.write_all(input.as_bytes()).expect("the program reads");
    drop(pipe);
    let output = child.wait_with_output().expect("the program ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it prints UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn images_are_listed_once_with_their_locations() {
    let compose = "services: {a: {image: 'app:1'}, b: {image: 'app:${V}'}}\n";
    let (_directory, path) = directory(&[
        ("b/pod.yaml", POD),
        ("a.yml", compose),
        ("list.json", "[{\"image\": \"app:1\"},\n{\"image\": \"docker.io/library/app:1\"}]"),
        (".hidden/pod.yaml", "image: x/y:1"),
        ("README.md", "image: {{"),
    ]);
    let (code, stdout, stderr) = run(&["images", &path]);
    let expected = format!(
        "docker.io/library/app:1  # {path}/a.yml:1, {path}/b/pod.yaml:4, {path}/list.json:1 and 1 more\n\
         quay.io/team/app:latest  # {path}/b/pod.yaml:5\n"
    );
    assert_eq!((code, stdout), (Some(0), expected), "{stderr}");
    let skipped = format!(
        "{path}/a.yml:1: skipped services.b.image: app:${{V}}: a variable that is not expanded\n"
    );
    assert_eq!(stderr, skipped);
}

#[test]
fn images_of_standard_input_as_json() {
    let (code, stdout, stderr) = run_with_input(&["images", "--json", "-"], POD);
    let location = |line: u32, index: u32| json!([{"file": "-", "line": line, "field": format!("spec.containers[{index}].image")}]);
    let expected = json!([
        {"image": "docker.io/library/app:1", "locations": location(4, 0)},
        {"image": "quay.io/team/app:latest", "locations": location(5, 1)},
    ]);
    let actual: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((code, actual, stderr.as_str()), (Some(0), expected, ""));
}

#[test]
fn files_that_cannot_be_read_do_not_hide_the_others() {
    let broken = "image: a/b:1\n---\nimage: [\n---\nimage: c/d:2\n";
    let (_directory, path) = directory(&[
        ("broken.yaml", broken),
        ("chart.yaml", "image: {{ .Values.image }}\n"),
        ("good.yaml", POD),
    ]);
    fs::write(format!("{path}/latin.yaml"), b"a: b\nimage: \xe4\n").expect("a file");
    let none = format!("{path}/none.yaml");
    let (code, stdout, stderr) = run(&["images", &path, &none]);
    let images: Vec<&str> = stdout.lines().filter_map(|line| line.split(' ').next()).collect();
    let expected = [
        "docker.io/a/b:1",
        "docker.io/c/d:2",
        "docker.io/library/app:1",
        "quay.io/team/app:latest",
    ];
    assert_eq!((code, &images[..]), (Some(1), &expected[..]), "{stderr}");
    for message in [
        format!("{path}/broken.yaml:"),
        format!("{path}/chart.yaml:1: this looks like a template ("),
        format!("{path}/latin.yaml:2: not text in UTF-8"),
        format!("{none}: cannot be read: "),
        "larder: 4 of 5 files could not be read completely".to_owned(),
    ] {
        assert!(stderr.contains(&message), "{message}\n{stderr}");
    }
    // Incomplete lists are not loaded.
    let cache = format!("{path}/cache");
    let (code, _, stderr) = run(&["--image-path", &cache, "load", "--from", &path]);
    assert!(code == Some(1) && stderr.contains("3 of 4 files"), "{stderr}");
    assert!(!fs::exists(&cache).expect("it can be checked"));
}

#[test]
fn files_without_images_and_missing_arguments_are_errors() {
    let (_directory, path) =
        directory(&[("values.yaml", "image: {repository: team/app, tag: 1.10}\n")]);
    let values = format!("{path}/values.yaml");
    let (code, stdout, stderr) = run(&["images", &values]);
    let message = format!(
        "larder: no image was found in {values}; larder images --values reads the values file of a Helm chart\n"
    );
    assert_eq!((code, stdout.as_str(), stderr), (Some(1), "", message));
    let (code, stdout, _) = run(&["images", "--values", &values]);
    assert_eq!((code, stdout), (Some(0), format!("docker.io/team/app:1.10  # {values}:1\n")));
    let (code, _, stderr) = run(&["images"]);
    assert!(code == Some(2) && stderr.contains("images: name files"), "{stderr}");
}

#[test]
fn list_of_images_and_manifests_can_be_loaded() {
    let (registry, site) = Site::empty("");
    let images = ["v1", "v2"].map(|tag| NamedImage::new("app", tag, &Image::sample(tag)));
    images.iter().for_each(|image| image.publish(&registry));
    let pod = site.path("pod.yaml").display().to_string();
    fs::write(&pod, "containers: [{image: 'app:v1'}, {image: 'app:$V'}]\n").expect("a file");
    let (code, _, stderr) = site.run(&["load", "app:v2", "--from", &pod]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("skipped containers[1].image: app:$V: "), "{stderr}");
    assert!(stderr.contains("2 of 2 images in the cache"), "{stderr}");
    assert!(images.iter().all(|image| site.has_all(image)));

    let (_, listed, _) = run(&["images", &pod]);
    let list = site.path("list.txt").display().to_string();
    fs::write(&list, listed).expect("a file");
    let (code, _, stderr) = site.run(&["load", &format!("@{list}")]);
    assert!(code == Some(0) && stderr.contains("app:v1: already cached"), "{stderr}");
}

#[test]
fn manifests_on_standard_input_are_loaded() {
    let (registry, image) = FakeRegistry::with_image("library/app");
    let site = Site::new(&registry, "");
    let config = site.path("larder.yaml").display().to_string();
    let root = site.root().display().to_string();
    let words = ["--config-file", &config, "--image-path", &root, "load", "--from", "-"];
    let (code, _, stderr) = run_with_input(&words, "kind: Pod\nspec: {image: 'app:v1'}\n");
    assert!(code == Some(0) && stderr.contains("1 of 1 image in the cache"), "{stderr}");
    assert!(image.blobs().iter().all(|blob| site.has(&blob.digest)));
    assert_eq!(registry.count("GET", &manifest("library/app", "v1")), 1);
}
