//! Commands next to a running server: their output and their effect on the server.

use std::fs;
use std::path::Path;

use crate::support::client::get;
use crate::support::larder::{blob, manifest, until};
use crate::support::process::{Process, larder, run};
use crate::support::{FakeRegistry, Fault, Image, On, Publish, bytes};

const REPOSITORY: &str = "team/app";

#[test]
fn offline_command_switches_a_running_server() {
    let directory = tempfile::tempdir().expect("a directory");
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let mut process = Process::serve(directory.path(), &registry);
    let cache = directory.path().join("cache").display().to_string();
    let offline = |words: &[&str]| run(&[&["--image-path", &cache, "offline"], words].concat());
    let message = |words: &[&str]| offline(words).1;
    assert!(message(&[]).starts_with("online"));
    assert!(message(&["on"]).starts_with("offline"));
    let path = manifest(REPOSITORY, "v1");
    process.wait_until_it_logs("offline: no registry is contacted");
    assert_eq!(get(process.address, &path).status, 404);
    assert!(message(&["off"]).starts_with("online"));
    process.wait_until_it_logs("online: registries are contacted again");
    assert!(get(process.address, &path).body == image.manifest());
    let (code, _, stderr) = offline(&["maybe"]);
    assert!(code == Some(2) && stderr.contains("neither on nor off"), "{stderr}");
}

#[test]
fn usage_errors_are_answered_with_advice() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    let (none, list, log) = (path("none"), path("list"), path("none/log"));
    let at = format!("@{list}");
    for (words, code, message) in [
        (vec!["list", "--image-path", &none], 2, format!("there is no cache in {none}")),
        (vec!["serve", "--port", "80000"], 2, "--port: 80000 is not a port (0 to 65535)".into()),
        (vec!["serve", "--host", "here"], 2, "--host: here is not an IP address".into()),
        (vec!["serve", "--host", "192.0.2.1"], 1, "this machine has no address 192.0.2.1".into()),
        (vec!["serve", "--pull-timeout", "20x"], 2, "--pull-timeout: 20x is not a timeout".into()),
        (vec!["load", "--parallel", "0", "x"], 2, "--parallel: 0 is not a whole number".into()),
        (vec!["load", "--atempts", "3"], 2, "Run larder load --help".into()),
        (vec!["load", file!()], 2, format!("{} is a file; did you mean @{}?", file!(), file!())),
        (vec!["verify", "--rate", "5"], 2, "--rate: 5 has no unit".into()),
        (vec!["verify", "--rate", "5kb"], 2, "--rate: 5kb is not a size".into()),
        (vec!["prune", "--unused-for", "1y"], 2, "--unused-for: 1y is not a duration".into()),
        (vec!["serve", "--default-ns", ""], 2, "--default-ns: nothing was given".into()),
        (vec!["list", "--sort", "\u{1b}[31m"], 2, "unknown order \\u{1b}[31m".into()),
        (vec!["\u{1b}[31m"], 2, "\\u{1b}[31m".into()),
        (vec!["load", "@\u{1b}[31m"], 2, "@\\u{1b}[31m".replace('@', "")),
        (vec!["prune", "--count", "0", "x"], 2, "--count: 0 is not a whole number".into()),
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
        assert!(status == Some(code) && stderr.contains(&message), "{words:?}: {stderr}");
        assert!(!stderr.contains('\u{1b}'), "{words:?}: {stderr}");
    }
    let (status, _, stderr) =
        run(&["--image-path", &none, "export", "--all", "--output", &path("bundle.tar")]);
    assert!(status == Some(2) && stderr.contains("there is no cache in"), "{stderr}");
    assert!(!Path::new(&none).exists(), "a mistyped directory is not created");
}

#[test]
fn list_shows_cached_and_missing_content() {
    let directory = tempfile::tempdir().expect("a directory");
    let registry = FakeRegistry::start();
    let (whole, partial) = (Image::sample("whole"), Image::sample("partial"));
    registry.add(REPOSITORY, "v1", &whole);
    registry.add(REPOSITORY, "v2", &partial);
    // Missing content keeps an image from being complete.
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
    let path = cache.display().to_string();
    let list = |words: &[&str]| run(&[&["--image-path", &path, "list"], words].concat());
    until("everything available to be cached", || {
        expected.iter().all(|digest| has(digest)) && list(&["--quiet"]).1.lines().count() == 2
    });
    expected.sort();
    expected.dedup();

    let host = registry.host();
    let (code, table, _) = list(&[]);
    let line = |tag: &str| {
        let name = format!("{host}/{REPOSITORY}:{tag} ");
        table.lines().find(|line| line.starts_with(&name)).unwrap_or_else(|| panic!("{table}"))
    };
    assert_eq!(code, Some(0));
    assert!(line("v1").ends_with("complete") && line("v2").contains("partial, "), "{table}");
    assert!(line("v1").contains("  linux/amd64  "), "the config states it: {table}");
    assert_eq!(list(&["--digests"]).1.lines().collect::<Vec<_>>(), expected);
    let (_, one, _) = list(&["*:v1", "--json"]);
    let one: serde_json::Value = serde_json::from_str(&one).expect("JSON");
    assert_eq!(one[0]["digest"], whole.digest());
    assert_eq!((&one[0]["complete"], one.as_array().map(Vec::len)), (&true.into(), Some(1)));
    assert_eq!(one[0]["platforms"], serde_json::json!(["linux/amd64"]));
    let (_, tree, _) = list(&["/v2$/", "--tree"]);
    let lost = tree.lines().find(|line| line.contains(&missing.digest)).expect("it is in the tree");
    assert!(lost.ends_with("missing") && !tree.contains(":v1"), "{tree}");
    for (words, message) in
        [(&["/(/"][..], "not a pattern"), (&["--sort", "age"], "use name, size")]
    {
        let (code, _, stderr) = list(words);
        assert!(code == Some(2) && stderr.contains(message), "{stderr}");
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

/// Runs a command on this cache.
fn on(site: &(String, String), words: &[&str]) -> (Option<i32>, String, String) {
    run(&[&["--config-file", &site.0, "--image-path", &site.1], words].concat())
}

#[test]
fn load_accepts_lists_and_bundles_and_reports_failures() {
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
    let (code, _, message) = on(&here, &["load", &name("v1")]);
    assert!(code == Some(0) && message.contains("1 of 1 image in the cache"), "{message}");
    let bundle = far.path().join("one.tar").display().to_string();
    let (code, _, message) = on(&here, &["export", "--all", "--output", &bundle]);
    assert_eq!(code, Some(0), "{message}");

    let list = far.path().join("list.txt");
    fs::write(&list, format!("# the rest\n{}, {}\n", name("v2"), name("v9"))).expect("a file");
    let files = format!("{}/*.tar,{}", far.path().display(), list.display());
    let (code, _, message) = on(&there, &["load", "--attempts", "1", "--image-file", &files]);
    assert_eq!(code, Some(1), "{message}");
    assert!(message.contains(&format!("{}: cannot be loaded: ", name("v9"))), "{message}");
    assert!(message.contains("1 of 2 images in the cache"), "{message}");
    let (_, table, _) = on(&there, &["list"]);
    for tag in ["v1", "v2"] {
        let line = table.lines().find(|line| line.starts_with(&name(tag)));
        assert!(line.is_some_and(|line| line.ends_with("complete")), "{table}");
    }
    for (words, message) in [
        (&["load"][..], "name images"),
        (&["load", "a b"], "a b: "),
        (&["load", "@/nonexistent"], "/nonexistent"),
        (&["load", "x", "--platform", "linux"], "linux/amd64"),
    ] {
        let (code, _, stderr) = on(&there, words);
        assert!(code == Some(2) && stderr.contains(message), "{words:?}: {stderr}");
    }
}

#[test]
fn load_counts_the_bytes_of_shared_layers_once() {
    let registry = FakeRegistry::start();
    let image = Image::sample("v1").layer(bytes(3_000_000, 1));
    let host = registry.host();
    let names = ["v1", "v2"].map(|tag| {
        registry.add(REPOSITORY, tag, &image);
        format!("{host}/{REPOSITORY}:{tag}")
    });
    let directory = tempfile::tempdir().expect("a directory");
    let site = site(directory.path(), &registry);
    for fetched in ["3.0 MB", "0 bytes"] {
        let (_, _, message) = on(&site, &["load", &names[0], &names[1]]);
        let summary = format!("2 of 2 images in the cache, {fetched} fetched in ");
        assert!(message.contains(&summary), "{message}");
    }
}

#[test]
fn preloaded_images_are_cached_without_a_client() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let directory = tempfile::tempdir().expect("a directory");
    let list = directory.path().join("list.txt");
    fs::write(&list, format!("{}/{REPOSITORY}:v1\n", registry.host())).expect("a file");
    let list = list.display().to_string();
    let mut process = Process::serve_and(directory.path(), &registry, &["--preload-images", &list]);
    process.wait_until_it_logs("sync: finished entry=preload images=1 wanted=1\n");
    registry.stop();
    for each in image.blobs() {
        assert!(get(process.address, &blob(REPOSITORY, &each.digest)).body == each.bytes);
    }
}

#[test]
fn selection_that_matches_nothing_is_an_error() {
    let (registry, _) = FakeRegistry::with_image(REPOSITORY);
    let directory = tempfile::tempdir().expect("a directory");
    let site = site(directory.path(), &registry);
    let name = format!("{}/{REPOSITORY}", registry.host());
    assert_eq!(on(&site, &["load", &format!("{name}:v1")]).0, Some(0));
    let (tag, similar) = (format!("{name}:v9"), format!("{}/team/ap", registry.host()));
    for words in [vec!["list"], vec!["verify"], vec!["prune", "--dry-run"]] {
        for (typed, hint) in [
            ("nosuch", "nothing matches nosuch\n".to_owned()),
            (&*tag, format!("nothing matches {tag}; the tags of {name} are v1\n")),
            (&*similar, format!("nothing matches {similar}; did you mean {name}?\n")),
            ("*nosuch*", "nothing matches *nosuch*\n".to_owned()),
        ] {
            // A scheduled prune has nothing to do then, and says so.
            let is_error = words[0] != "prune" || !typed.contains('*');
            let (code, stdout, stderr) = on(&site, &[&words[..], &[typed]].concat());
            assert!(
                code == Some(i32::from(is_error)) && stderr.ends_with(&hint),
                "{words:?} {typed}: {stderr}"
            );
            assert!(!stdout.contains(&name), "{words:?} {typed}: {stdout}");
        }
    }
    for (typed, hint) in [
        ("nosuch", "nosuch: nothing in the cache matches\n".to_owned()),
        (&*tag, format!("{tag}: nothing in the cache matches; the tags of {name} are v1\n")),
        (&*similar, format!("{similar}: nothing in the cache matches; did you mean {name}?\n")),
    ] {
        let (code, _, stderr) = on(&site, &["export", typed, "--output", "/dev/null"]);
        assert!(code == Some(1) && stderr.contains(&hint), "{typed}: {stderr}");
    }
    // What matches is listed nevertheless.
    let (code, stdout, stderr) = on(&site, &["list", "-q", &name, "nosuch"]);
    assert_eq!((code, stdout), (Some(1), format!("{name}:v1\n")), "{stderr}");
    let (code, stdout, _) = on(&site, &["list", "--quiet"]);
    assert_eq!((code, stdout), (Some(0), format!("{name}:v1\n")));
    assert_eq!(on(&site, &["pin", &name]).0, Some(0));
    let (_, stdout, _) = on(&site, &["pin", "--json"]);
    let pins: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(pins, serde_json::json!([{"pin": name, "in": "directory"}]));
}

#[test]
fn load_says_whether_repeating_can_help() {
    let (registry, _) = FakeRegistry::with_image(REPOSITORY);
    let directory = tempfile::tempdir().expect("a directory");
    let site = site(directory.path(), &registry);
    let name = format!("{}/{REPOSITORY}", registry.host());
    let absent = format!("{name}:absent");
    let down = format!("{}/other/app:v1", registry.host());
    registry.fault(On::path("*", "/v2/other/*"), Fault::status(503));
    registry.expect_unknown(&manifest(REPOSITORY, "absent"));
    let load = |images: &[&str]| on(&site, &[&["load", "--attempts", "1"], images].concat());
    let (code, _, stderr) = load(&[&absent]);
    assert!(code == Some(1) && stderr.contains("repeating the command cannot help"), "{stderr}");
    assert_eq!(stderr.matches(&absent).count(), 1, "{stderr}");
    let (_, _, stderr) = load(&[&down]);
    assert!(stderr.contains(": not loaded yet: "), "{stderr}");
    assert!(stderr.contains("could not be loaded; repeat the command to continue"), "{stderr}");
    let (_, _, stderr) = load(&[&absent, &down, &format!("{name}:v1")]);
    assert!(stderr.contains("2 of 3 images could not be loaded"), "{stderr}");
    assert!(stderr.contains("repeating the command can help with 1, the others"), "{stderr}");
    let (code, stdout, stderr) = load(&["-q", &format!("{name}:v1")]);
    assert_eq!((code, &*stdout, &*stderr), (Some(0), "", ""));
}

#[test]
fn configuration_with_a_broken_reference_is_not_called_valid() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("larder.yaml");
    let check = |text: &str| {
        fs::write(&file, text).expect("it can be written");
        run(&["config", "check", "-c", file.to_str().expect("UTF-8")])
    };
    let (code, stdout, stderr) =
        check("parents: [{url: 'https://p', auth: {passwordFile: /none, user: u}}]");
    assert!(code == Some(1) && stdout.is_empty(), "{stdout}");
    assert!(stderr.contains("error: parents: https://p: passwordFile: /none: "), "{stderr}");
    assert!(
        stderr.contains("a server can start with it, but 1 error must be corrected"),
        "{stderr}"
    );
    let entry = "{name: a.example, auth: {user: u, passwordFile: /nonexistent/password}}";
    let (code, _, stderr) = check(&format!("registries: [{entry}]"));
    let message = "error: registries: a.example: passwordFile: /nonexistent/password: ";
    assert!(code == Some(1) && stderr.contains(message), "{stderr}");
    let empty = directory.path().join("empty");
    fs::write(&empty, "\n").expect("it can be written");
    let (empty, here) = (empty.display().to_string(), directory.path().display().to_string());
    let password = |path: &str| {
        format!("registries: [{{name: a.example, auth: {{user: u, passwordFile: {path}}}}}]")
    };
    let helper = "docker-credential-nosuch is not found";
    let events = "events: {webhook: 'https://h.example/'";
    let peers = "peers: {urls: ['http://192.0.2.1'], auth: {user: u, passwordFile: /none}}";
    for (text, message) in [
        (password(&empty), format!("registries: a.example: passwordFile: {empty}: it is empty; ")),
        (password(&here), format!("registries: a.example: passwordFile: {here}: Is a directory")),
        (
            "registries: [{name: a.example, auth: {credentialHelper: nosuch}}]".into(),
            format!("registries: a.example: credentialHelper: {helper}"),
        ),
        (format!("{events}, tokenFile: /none}}"), "events.tokenFile: /none: ".into()),
        (format!("{events}, tls: {{ca: /none}}}}"), "events.tls: ".into()),
        (peers.into(), "peers: passwordFile: /none: ".into()),
        ("imageFile: /none".into(), "imageFile: /none: ".into()),
        (format!("management: {{port: 0, tokenFile: {empty}}}"), format!("{empty}: it is empty; ")),
    ] {
        let (code, _, stderr) = check(&text);
        assert!(code == Some(1) && stderr.contains("error: "), "{text}: {stderr}");
        assert!(stderr.contains(&message), "{text}: {stderr}");
    }
    let (code, _, stderr) = check("logFile: /none/log");
    assert!(code == Some(1) && stderr.contains("cannot open the log file /none/log"), "{stderr}");
    let log = directory.path().join("log");
    let (code, _, stderr) = check(&format!("logFile: {}", log.display()));
    assert!(code == Some(0) && !log.exists(), "{stderr}");
    let (code, stdout, stderr) = check("serverAuthConfig: {htpasswd: /none}");
    assert!(code == Some(2) && stdout.is_empty(), "{stderr}");
    let htpasswd = directory.path().join("users");
    fs::write(&htpasswd, "u:$2y$05$sMEN6mZ1XZtZmxxdIdLNO.FDA1wVYkgZu7LjgmYXMuTRoXkKKLyVe\n")
        .expect("written");
    let text = format!("serverAuthConfig: {{htpasswd: {}}}", htpasswd.display());
    let (code, stdout, stderr) = check(&text);
    assert!(
        code == Some(0) && stdout.ends_with("valid, 0 registry entries, 1 warning\n"),
        "{stdout}"
    );
    assert!(stderr.starts_with("warning: serverAuthConfig without serverTlsConfig"), "{stderr}");
    let (_, stdout, _) = run(&["config", "show"]);
    assert!(stdout.contains("# pullTimeout: 20s\n"), "{stdout}");
}

#[test]
fn verify_reports_damage_and_repairs_it_on_request() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let directory = tempfile::tempdir().expect("a directory");
    let site = site(directory.path(), &registry);
    let name = format!("{}/{REPOSITORY}:v1", registry.host());
    assert_eq!(on(&site, &["load", &name]).0, Some(0));
    let (code, message, _) = on(&site, &["verify", "--rate", "1GB"]);
    assert_eq!((code, message.as_str()), (Some(0), "1 image, 0 incomplete; 0 damaged blobs\n"));

    let file = |digest: &str| Path::new(&site.1).join("blobs").join(digest.replace(':', "/"));
    let layers = image.layers();
    let (flipped, removed) = (&layers[0], &layers[1]);
    fs::write(file(&flipped.digest), vec![0; flipped.bytes.len()]).expect("it can be written");
    fs::remove_file(file(&removed.digest)).expect("it can be removed");
    fs::write(file(&image.digest()), b"{}").expect("it can be written");
    let (code, message, stderr) = on(&site, &["verify"]);
    assert_eq!(code, Some(1), "{message}{stderr}");
    for digest in [&flipped.digest, &image.digest()] {
        let line = message.lines().find(|line| line.starts_with(digest));
        assert!(line.is_some_and(|line| line.contains("damaged") && line.contains("quarantine")));
    }
    assert!(message.contains(&format!("{name}: manifest {}", image.digest())), "{message}");
    let (code, message, _) = on(&site, &["verify"]);
    assert!(code == Some(1) && message.ends_with("1 incomplete; 0 damaged blobs\n"), "{message}");

    let (code, message, stderr) = on(&site, &["verify", "--repair"]);
    assert!(code == Some(0) && message.contains("; repaired"), "{message}{stderr}");
    for each in [flipped, removed] {
        assert!(fs::read(file(&each.digest)).expect("an existing file") == each.bytes);
    }
    assert_eq!(on(&site, &["verify"]).0, Some(0));
    registry.stop();
    fs::remove_file(file(&removed.digest)).expect("it can be removed");
    let (code, message, _) = on(&site, &["verify", "--repair"]);
    assert!(code == Some(1) && message.contains("not repaired: "), "{message}");
}

#[test]
fn cache_directory_may_be_a_relative_path() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("larder.yaml"), "airGapped: true").expect("it is writable");
    let arguments = ["--config-file", "larder.yaml", "--image-path", "cache", "load", "quay.io/a"];
    let loaded = larder(&arguments).current_dir(directory.path()).output().expect("it runs");
    let errors = String::from_utf8_lossy(&loaded.stderr);
    assert!(errors.contains("not in the cache") && !errors.contains("read-only"), "{errors}");
    assert!(directory.path().join("cache/index.json").is_file(), "{errors}");
}
