//! `larder check`: what a pull needs, tried for real.

use std::fs;

use serde_json::Value;

use crate::support::larder::{Larder, manifest};
use crate::support::process::run;
use crate::support::{FakeBucket, FakeRegistry, Fault, Image, On, TokenServer, bytes};

const REPOSITORY: &str = "team/app";

/// Runs a check with this configuration, and returns the exit code and the documents of all endpoints.
fn check(configuration: &str, targets: &[&str]) -> (Option<i32>, Vec<Value>, String) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("larder.yaml");
    fs::write(&file, configuration).expect("a file");
    let file = file.display().to_string();
    let (code, stdout, stderr) = run(&[&["-c", &file, "check", "--json"], targets].concat());
    let documents: Value = serde_json::from_str(&stdout).unwrap_or_default();
    (code, documents.as_array().cloned().unwrap_or_default(), stderr)
}

fn listed(registry: &FakeRegistry, more: &str) -> String {
    let url = registry.url("");
    let url = url.trim_end_matches('/');
    format!("registries: [{{name: r.example, endpoints: [{{url: '{url}'{more}}}]}}]\n")
}

/// The states of the steps, in order.
fn states(document: &Value) -> Vec<String> {
    let steps = document["steps"].as_array().expect("steps").iter();
    let text = |step: &Value, key: &str| step[key].as_str().expect("a text").to_owned();
    steps.map(|step| format!("{} {}", text(step, "name"), text(step, "state"))).collect()
}

fn step<'a>(document: &'a Value, name: &str) -> &'a Value {
    let steps = document["steps"].as_array().expect("steps");
    steps.iter().find(|step| step["name"] == name).unwrap_or_else(|| panic!("{document:#}"))
}

#[test]
fn everything_that_a_pull_needs_is_tried() {
    let registry = FakeRegistry::start();
    let image = Image::sample("v1").layer(bytes(300_000, 7));
    registry.add(REPOSITORY, "v1", &image);
    let tokens = TokenServer::new();
    registry.require_bearer(&tokens);
    let image_name = format!("r.example/{REPOSITORY}:v1");
    let (code, documents, stderr) = check(&listed(&registry, ""), &["r.example", &image_name]);
    assert_eq!(code, Some(0), "{stderr} {documents:#?}");
    let reach = ["name ok", "address ok", "proxy ok", "connection ok", "api ok"];
    assert_eq!(states(&documents[0]), [&reach[..], &["image skipped"]].concat());
    assert!(step(&documents[0], "api")["text"].as_str().unwrap().contains("Bearer realm="));
    let pull = ["image ok", "blob ok", "ranges ok", "throughput ok"];
    assert_eq!(states(&documents[1]), [&reach[..], &pull].concat());
    let text = step(&documents[1], "image")["text"].as_str().unwrap().to_owned();
    assert!(text.contains(&image.digest()), "{text}");
    let text = step(&documents[1], "throughput")["text"].as_str().unwrap().to_owned();
    assert!(text.contains("299.9 kB in "), "all but the first byte: {text}");
}

#[test]
fn each_failure_has_a_remedy() {
    let (registry, _) = FakeRegistry::with_image(REPOSITORY);
    let configuration = listed(&registry, "");
    registry.expect_unknown(&manifest(REPOSITORY, "absent"));
    let (code, documents, stderr) = check(&configuration, &["r.example/team/app:absent"]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("1 of 1 endpoint cannot be used"), "{stderr}");
    let failed = step(&documents[0], "image");
    assert!(failed["remedy"].as_str().unwrap().contains("auth"), "{failed}");

    registry.fault(On::any_manifest(), Fault::rate_limited(60));
    let (_, documents, _) = check(&configuration, &["r.example/team/app:v1"]);
    assert!(step(&documents[0], "image")["remedy"].as_str().unwrap().starts_with("wait"));
    registry.clear_faults();

    registry.stop();
    let (code, documents, _) = check(&configuration, &[]);
    assert_eq!(code, Some(1));
    let failed = step(&documents[0], "connection");
    assert!(failed["remedy"].as_str().unwrap().starts_with("correct the port"), "{failed}");
    assert_eq!(states(&documents[0]).last().unwrap(), "connection failed", "nothing else is tried");

    let (_, documents, _) = check("", &["127.0.0.1:5000/team/app:v1"]);
    let failed = step(&documents[0], "address");
    assert!(failed["text"].as_str().unwrap().contains("127.0.0.1"), "{failed}");
    assert!(failed["remedy"].as_str().unwrap().contains("registries"), "{failed}");
    let (_, documents, _) = check("registries: [{name: nosuch.invalid}]", &[]);
    let failed = step(&documents[0], "name");
    assert!(failed["remedy"].as_str().unwrap().contains("name server"), "{failed}");
    let (code, _, stderr) = check("", &[]);
    assert!(code == Some(2) && stderr.contains("name registries or images"), "{stderr}");
    let (code, _, stderr) = check("", &["A/b"]);
    assert!(code == Some(2) && stderr.contains("A/b: "), "{stderr}");
}

#[test]
fn certificate_of_a_registry_is_examined() {
    let registry = FakeRegistry::start_tls();
    let directory = tempfile::tempdir().expect("a directory");
    let ca = directory.path().join("ca.pem");
    fs::write(&ca, registry.ca_pem()).expect("a file");
    let trusted = listed(&registry, &format!(", tls: {{ca: {}}}", ca.display()));
    let (code, documents, stderr) = check(&trusted, &[]);
    assert_eq!(code, Some(0), "{stderr} {documents:#?}");
    let text = step(&documents[0], "tls")["text"].as_str().unwrap();
    assert!(text.starts_with("TLS 1.3; the certificate is valid for "), "{text}");
    let (code, documents, _) = check(&listed(&registry, ""), &[]);
    assert_eq!(code, Some(1));
    let text = step(&documents[0], "connection")["text"].as_str().unwrap();
    assert!(text.contains("TLS failed") && text.contains("tls.ca"), "{text}");
    let remedy = step(&documents[0], "connection")["remedy"].as_str().unwrap();
    assert!(remedy.contains("certificate"), "{remedy}");
}

#[test]
fn rules_of_the_configuration_apply_to_checks() {
    let (registry, _) = FakeRegistry::with_image(REPOSITORY);
    let image = format!("r.example/{REPOSITORY}:v1");
    let rules = format!("{}deny: [r.example/team/app]\n", listed(&registry, ""));
    let (code, documents, stderr) = check(&rules, &[&image]);
    assert_eq!(code, Some(1), "{stderr}");
    assert_eq!(states(&documents[0]), ["rules failed"], "nothing is requested");
    let failed = step(&documents[0], "rules");
    assert!(failed["text"].as_str().unwrap().contains("the rule r.example/team/app of deny"));
    assert!(failed["remedy"].as_str().unwrap().contains("deny"), "{failed}");
    assert_eq!(registry.requests().len(), 0);
    let rules = format!("{}allow: ['r.example/*']\n", listed(&registry, ""));
    let (code, documents, stderr) = check(&rules, &[&image]);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(states(&documents[0])[0], "rules ok");
}

#[test]
fn offline_checks_contact_no_registry() {
    let registry = FakeRegistry::start();
    let configuration = format!("{}airGapped: true\n", listed(&registry, ""));
    for targets in [&[][..], &["r.example"]] {
        let (code, _, stderr) = check(&configuration, targets);
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains("may not be contacted (airGapped, or larder offline on)"));
    }
    let cache = tempfile::tempdir().expect("a directory");
    let path = cache.path().display().to_string();
    let configuration = format!("{}imagePath: {path}\n", listed(&registry, ""));
    fs::write(cache.path().join("oci-layout"), "{\"imageLayoutVersion\": \"1.0.0\"}")
        .expect("a file");
    let (code, _, stderr) = run(&["--image-path", &path, "offline", "on"]);
    assert_eq!(code, Some(0), "{stderr}");
    let (code, _, stderr) = check(&configuration, &["r.example"]);
    assert!(code == Some(1) && stderr.contains("may not be contacted"), "{stderr}");
    assert_eq!(registry.requests().len(), 0);
}

#[test]
fn parents_and_the_bucket_are_checked_as_well() {
    let (parent, bucket) = (FakeRegistry::start(), FakeBucket::start());
    let url = parent.url("");
    let url = url.trim_end_matches('/');
    let configuration = format!("parents: [{{url: '{url}'}}]\n{}", bucket.configuration());
    let (code, documents, stderr) = check(&configuration, &[]);
    assert_eq!(code, Some(0), "{stderr} {documents:#?}");
    let kinds: Vec<&str> =
        documents.iter().map(|document| document["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["parent", "bucket"]);
    let text = step(&documents[0], "image")["text"].as_str().unwrap();
    assert!(text.starts_with("no image is cached"), "why there is no throughput: {text}");
    assert!(step(&documents[1], "bucket")["text"].as_str().unwrap().contains("writable"));
    bucket.down();
    let (code, documents, _) = check(&configuration, &[]);
    assert!(code == Some(1) && documents[1]["ok"] == false, "{documents:#?}");
    assert_ne!(step(&documents[1], "bucket")["remedy"], Value::Null);
    bucket.up();
}

#[test]
fn cached_image_shows_the_throughput_of_a_parent() {
    let (registry, _) = FakeRegistry::with_image(REPOSITORY);
    let cache = tempfile::tempdir().expect("a directory");
    let file = cache.path().join("larder.yaml");
    let image_path = format!("imagePath: {}\n", cache.path().join("images").display());
    fs::write(&file, format!("{image_path}{}", listed(&registry, ""))).expect("a file");
    let image = format!("r.example/{REPOSITORY}:v1");
    let (code, _, stderr) = run(&["-c", &file.display().to_string(), "load", &image]);
    assert_eq!(code, Some(0), "{stderr}");
    let parents = format!("{image_path}parents: ['{}']\n", registry.url("").trim_end_matches('/'));
    let (code, documents, stderr) = check(&parents, &[]);
    assert_eq!(code, Some(0), "{stderr} {documents:#?}");
    assert_eq!(step(&documents[0], "throughput")["state"], "ok");
    // A parent need not have it.
    registry.fault(On::any_manifest(), Fault::status(404));
    let (code, documents, stderr) = check(&parents, &[]);
    assert_eq!(code, Some(0), "{stderr} {documents:#?}");
    assert_eq!(step(&documents[0], "image")["state"], "warning");
}

#[test]
fn with_server_all_of_an_image_is_pulled_from_that_larder() {
    let registry = FakeRegistry::start();
    let image = Image::sample("v1").layer(bytes(300_000, 7));
    registry.add(REPOSITORY, "v1", &image);
    let larder = Larder::start(&registry);
    let server = format!("http://{}", larder.address());
    let name = format!("{}/{REPOSITORY}:v1", registry.host());
    // The registries in the configuration are not used.
    let elsewhere = format!("registries: [{{name: '{}', scheme: https}}]\n", registry.host());
    let (code, documents, stderr) = check(&elsewhere, &["--server", &server, &name]);
    assert_eq!(code, Some(0), "{stderr} {documents:#?}");
    assert_eq!((documents.len(), &documents[0]["url"]), (1, &Value::from(server.clone())));
    let steps = ["name ok", "proxy ok", "connection ok", "api ok", "image ok", "content ok"];
    assert_eq!(states(&documents[0]), steps);
    let text = step(&documents[0], "image")["text"].as_str().unwrap();
    assert!(text.contains(&image.digest()), "{text}");
    let count = image.layers().len() + 1;
    let text = step(&documents[0], "content")["text"].as_str().unwrap();
    assert!(text.starts_with(&format!("{count} blobs with the right digests: ")), "{text}");
    for layer in image.layers() {
        assert!(larder.has(&layer.digest), "it went through the cache");
    }
}

#[test]
fn with_server_wrong_content_is_a_failure() {
    let registry = FakeRegistry::start();
    let image = Image::sample("v1");
    registry.add(REPOSITORY, "v1", &image);
    // A server in between that changes bytes.
    let layer = image.layers()[0].digest.clone();
    let (server, name) = (registry.url(""), format!("r.example/{REPOSITORY}:v1"));
    for fault in [Fault::WrongBytes, Fault::Truncate(1)] {
        registry.fault(On::get_blob(&layer), fault);
        let (code, documents, _) = check("", &["--server", &server, &name]);
        assert_eq!(code, Some(1), "{documents:#?}");
        let failed = step(&documents[0], "content");
        assert_eq!(failed["state"], "failed", "{failed}");
        assert!(failed["text"].as_str().unwrap().starts_with(&layer), "{failed}");
        registry.clear_faults();
    }
    let (code, documents, _) = check("", &["--server", &server, &name]);
    assert_eq!(code, Some(0), "{documents:#?}");
}

#[test]
fn options_of_server_are_checked() {
    for (options, reason) in [
        (&["--server", "http://127.0.0.1:1"][..], "name an image"),
        (&["--server", "http://127.0.0.1:1", "docker.io"], "docker.io is a registry"),
        (&["--server", "ftp://a", "docker.io/a/b:1"], "--server"),
        (&["--server", "https://a", "--client-cert", "a.crt", "docker.io/a/b:1"], "--client-key"),
        (&["--server", "https://a", "--ca", "/nonexistent", "docker.io/a/b:1"], "/nonexistent"),
        (&["--server", "https://a", "--user", "a", "docker.io/a/b:1"], "--password-file"),
        (&["--skip-verify", "docker.io"], "need --server"),
        (&["--user", "a", "--password-file", "b", "docker.io"], "need --server"),
    ] {
        let (code, _, stderr) = check("", options);
        assert!(code == Some(2) && stderr.contains(reason), "{options:?}: {stderr}");
    }
}
