//! The keys of issuers of tokens: from where they come, how long they stay valid, and what operators see of them. Proves
//! docs/configuration.md, "Tokens".

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::client::get;
use crate::support::issuer::{DOCUMENT, KEYS, Key, OURS, Site, by, started};
use crate::support::larder::manifest;
use crate::support::process::{Process, run};
use crate::support::reserve_port;

#[test]
fn tokens_are_verified_after_a_restart_while_the_issuer_is_down() {
    let site = Site::new();
    drop(started(&site, &site.discovered()));
    site.issuer.stop();
    let process = Process::serve_file(site.directory.path(), &site.discovered());
    assert_eq!(by(&process, "token", &site.token(json!({})), "/v2/").status, 200);
    let other = Key::new("two").token(&site.claims(json!({})));
    assert_eq!(by(&process, "token", &other, "/v2/").status, 401);
    process.signal("TERM");
    let (_, log) = process.wait();
    let failed =
        "cannot fetch the keys of an issuer; the last ones stay valid issuer=https://127.0.0.1:";
    assert!(log.contains(failed), "{log}");
    // Without the stored keys, nothing is known of the token.
    let stored = fs::read_dir(site.path("cache/access")).expect("a directory");
    let stored: Vec<PathBuf> = stored.map(|entry| entry.expect("an entry").path()).collect();
    assert_eq!(stored.len(), 1, "{stored:?}");
    fs::remove_file(&stored[0]).expect("a file");
    let process = Process::serve_file(site.directory.path(), &site.discovered());
    let refused = by(&process, "token", &site.token(json!({})), "/v2/");
    assert!(refused.status == 503 && refused.header("retry-after").is_some(), "{refused:?}");
}

#[test]
fn keys_are_fetched_with_the_token_of_a_file_that_no_registry_gets() {
    let site = Site::new();
    site.put("bearer", "own-token\n");
    let (ca, bearer) = (site.path("ca.pem"), site.path("bearer"));
    let keys = format!("ca: {}\n      tokenFile: {}", ca.display(), bearer.display());
    let process = started(&site, &site.config(&keys, ""));
    let requests = site.issuer.requests();
    let paths: Vec<&str> = requests.iter().map(|request| request.path.as_str()).collect();
    assert_eq!(paths, [DOCUMENT, KEYS]);
    for recorded in &requests {
        assert_eq!(recorded.header("authorization"), Some("Bearer own-token"));
    }
    assert_eq!(by(&process, "token", &site.token(json!({})), &manifest(OURS, "v1")).status, 200);
    for recorded in site.registry.requests() {
        assert_eq!(recorded.header("authorization"), None, "{recorded:?}");
    }
}

#[test]
fn an_unusable_answer_of_the_issuer_is_logged_and_its_tokens_get_503() {
    let large = format!("{{\"keys\": [], \"more\": \"{}\"}}", "x".repeat(300 * 1024));
    let other = json!({"issuer": "https://other.example", "jwks_uri": "https://other.example"});
    let plain = |site: &Site| {
        json!({"issuer": site.issuer.url(""), "jwks_uri": "http://127.0.0.1/keys"}).to_string()
    };
    for (path, answer, words) in [
        (KEYS, large.as_str(), "it is larger than 262144 bytes"),
        (KEYS, "<html>", "not a JSON Web Key Set"),
        (KEYS, "{\"keys\": []}", "the set has no key for signatures"),
        (DOCUMENT, &other.to_string(), "it describes another issuer: https://other.example"),
        (DOCUMENT, "", "jwks_uri is not an https URL"),
        (DOCUMENT, "{}", "missing field"),
    ] {
        let site = Site::new();
        let plain = plain(&site);
        let answer = if answer.is_empty() { plain.as_str() } else { answer };
        site.issuer.add_file(path, "application/json", answer.as_bytes());
        let process = Process::serve_file(site.directory.path(), &site.discovered());
        assert_eq!(by(&process, "token", &site.token(json!({})), "/v2/").status, 503, "{words}");
        process.signal("TERM");
        let (_, log) = process.wait();
        let is_about_keys = |line: &&str| {
            line.contains("cannot fetch the keys of an issuer")
                || line.contains("an issuer has no usable keys")
        };
        let line = log.lines().find(is_about_keys);
        assert!(line.is_some_and(|line| line.contains(words)), "{words}: {log}");
    }
}

#[test]
fn keys_of_a_file_are_read_again_when_it_changes() {
    let site = Site::new();
    let put = |key: &Key| site.put("jwks.json", &String::from_utf8_lossy(&key.jwks()));
    let config = site.config(&format!("keys: {}", site.path("jwks.json").display()), "");
    put(&site.key);
    let mut process = Process::serve_file(site.directory.path(), &config);
    let (old, new) = (site.token(json!({})), Key::new("two"));
    let (new, new_key) = (new.token(&site.claims(json!({}))), new);
    let status = |process: &Process, token: &str| by(process, "token", token, "/v2/").status;
    assert_eq!((status(&process, &old), status(&process, &new)), (200, 401));
    put(&new_key);
    process.wait_until_it_logs("serverAuthConfig.oidc: keys reloaded");
    assert_eq!((status(&process, &old), status(&process, &new)), (401, 200));
    assert!(site.issuer.requests().is_empty(), "the issuer is not asked");
}

#[test]
fn operators_see_that_keys_are_missing_or_cannot_be_updated() {
    let site = Site::new();
    let (_held, management) = reserve_port();
    let ca = format!("ca: {}", site.path("ca.pem").display());
    let config = site.config(&ca, &format!("management: {{port: {}}}", management.port()));
    let name = site.issuer.url("");
    let metric = |name: &str| {
        let (name, metrics) = (
            format!("{name}{{issuer=\"{}\"}} ", site.issuer.url("")),
            get(management, "/metrics").text(),
        );
        let line = metrics.lines().find_map(|line| line.strip_prefix(&name)).map(str::to_owned);
        line.unwrap_or_else(|| panic!("{name}in {metrics}"))
    };
    let observed = || {
        let state = get(management, "/api/v1/status").json()["state"].clone();
        let texts: Vec<String> = state["problems"]
            .as_array()
            .expect("a list")
            .iter()
            .filter(|problem| problem["kind"] == "issuers")
            .map(|problem| format!("{}: {}", problem["level"], problem["text"]).replace('"', ""))
            .collect();
        (metric("larder_issuer_keys"), metric("larder_issuer_keys_failing"), texts)
    };
    let expected = |keys: &str, failing: &str, problem: Option<String>| {
        (keys.to_owned(), failing.to_owned(), problem.into_iter().collect::<Vec<String>>())
    };
    // One at a time, because they use the same port.
    let process = started(&site, &config);
    assert_eq!(observed(), expected("1", "0", None));
    drop(process);
    site.issuer.add_file(KEYS, "application/json", b"<html>");
    let mut process = Process::serve_file(site.directory.path(), &config);
    process.wait_until_it_logs("cannot fetch the keys of an issuer");
    let problem = format!("warning: keys of the issuer {name} cannot be updated");
    assert_eq!(observed(), expected("1", "1", Some(problem)));
    drop(process);
    fs::remove_dir_all(site.path("cache/access")).expect("a directory");
    let mut process = Process::serve_file(site.directory.path(), &config);
    process.wait_until_it_logs("there are none, so its tokens are refused");
    let problem = format!("error: no keys of the issuer {name}");
    assert_eq!(observed(), expected("0", "1", Some(problem)));
}

#[test]
fn a_check_tries_the_issuers() {
    let site = Site::new();
    let check = |config: &str| {
        Process::put_config(site.directory.path(), config);
        let file = site.path("larder.yaml").display().to_string();
        let (code, stdout, stderr) = run(&["-c", &file, "check", "--json"]);
        let documents: Value = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stderr}"));
        let is_issuer = |document: &&Value| document["kind"] == "issuer";
        let all = documents.as_array().expect("a list").clone();
        let issuer = all.iter().find(is_issuer).expect("an issuer").clone();
        assert_eq!(
            (&issuer["target"], &issuer["url"]),
            (&json!("serverAuthConfig.oidc"), &json!(site.issuer.url("")))
        );
        let steps = issuer["steps"].as_array().expect("steps").clone();
        let steps: Vec<String> = steps
            .iter()
            .map(|step| {
                format!("{} {} {} {}", step["name"], step["state"], step["text"], step["remedy"])
            })
            .map(|step| step.replace('"', ""))
            .collect();
        (code, steps)
    };
    let (code, steps) = check(&site.discovered());
    let names =
        ["name ok", "address ok", "proxy ok", "connection ok", "tls ok", "discovery ok", "keys ok"];
    assert_eq!((code, steps.len()), (Some(0), names.len()), "{steps:?}");
    assert!(steps.iter().zip(names).all(|(step, name)| step.starts_with(name)), "{steps:?}");
    assert_eq!(steps[6], "keys ok 1 key (EdDSA) null");
    assert!(steps[5].contains(&format!("its keys are at {}", site.issuer.url(KEYS))), "{steps:?}");
    // With keys from a file, the issuer is not asked.
    site.put("jwks.json", &String::from_utf8_lossy(&site.key.jwks()));
    site.issuer.clear_requests();
    let from_file = site.config(&format!("keys: {}", site.path("jwks.json").display()), "");
    assert_eq!(check(&from_file), (Some(0), vec!["keys ok 1 key (EdDSA) null".to_owned()]));
    assert!(site.issuer.requests().is_empty());
    for (path, answer, step, words) in [
        (KEYS, "{\"keys\": []}", "keys failed", "the set has no key for signatures"),
        (KEYS, "<html>", "keys failed", "not a JSON Web Key Set"),
        (DOCUMENT, "<html>", "discovery failed", "the claim iss"),
    ] {
        site.issuer.add_file(path, "application/json", answer.as_bytes());
        let (code, steps) = check(&site.discovered());
        let last = steps.last().expect("a step");
        assert!(
            code == Some(1) && last.starts_with(step) && last.contains(words),
            "{words}: {steps:?}"
        );
    }
    site.issuer.stop();
    let (code, steps) = check(&site.discovered());
    assert!(
        code == Some(1) && steps.last().expect("a step").starts_with("connection failed"),
        "{steps:?}"
    );
}
