//! Tokens of an issuer as passwords: `serverAuthConfig.oidc`. Proves docs/configuration.md, "Tokens".

use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::client::get;
use crate::support::issuer::{Key, NAME, OURS, Site, THEIRS, by, message, now, started};
use crate::support::larder::{blob, manifest};
use crate::support::process::{Process, larder, run};

#[test]
fn a_token_pulls_what_its_claims_allow_and_is_not_forwarded() {
    let site = Site::new();
    let process = started(&site, &site.discovered());
    let token = site.token(json!({}));
    for user in ["token", "", "demo"] {
        assert_eq!(by(&process, user, &token, "/v2/").status, 200, "{user}");
    }
    let got = by(&process, "token", &token, &manifest(OURS, "v1"));
    assert!(got.status == 200 && got.body == site.ours.manifest(), "{got:?}");
    for layer in site.ours.layers() {
        assert!(by(&process, "token", &token, &blob(OURS, &layer.digest)).body == layer.bytes);
    }
    let tags = format!("/v2/{THEIRS}/tags/list");
    for target in [manifest(THEIRS, "v1"), blob(THEIRS, &site.ours.layers()[0].digest), tags] {
        let refused = by(&process, "token", &token, &target);
        assert_eq!((refused.status, refused.error_code().as_str()), (403, "DENIED"), "{target}");
        assert!(message(&refused).contains(&format!("{NAME}/{THEIRS}")), "{refused:?}");
    }
    let of_ops = site.token(json!({"groups": ["dev", "ops"], "kubernetes.io": {}}));
    assert_eq!(by(&process, "token", &of_ops, &manifest(THEIRS, "v1")).status, 200);
    let stranger = "system:serviceaccount:team-c:default";
    let other = site.token(json!({"sub": stranger, "kubernetes.io": {"namespace": "team-c"}}));
    for target in ["/v2/", &manifest(OURS, "v1")] {
        let refused = by(&process, "token", &other, target);
        assert_eq!((refused.status, refused.error_code().as_str()), (403, "DENIED"), "{target}");
    }
    for recorded in site.registry.requests() {
        assert_eq!(recorded.header("authorization"), None, "{recorded:?}");
    }
    process.signal("TERM");
    let (_, log) = process.wait();
    assert!(log.contains(" user=system:serviceaccount:team-a:default "), "{log}");
    for user in ["system:serviceaccount:team-a:default", stranger] {
        let of_user = |line: &&str| line.contains(&format!(" user={user} "));
        let denied = log
            .lines()
            .filter(of_user)
            .any(|line| line.contains(" status=403 ") && line.contains(" reason=token-denied "));
        assert!(denied, "{user}: {log}");
    }
    assert!(!log.contains(&token), "tokens are not logged: {log}");
}

#[test]
fn a_wrong_token_gets_a_challenge_with_the_reason() {
    let site = Site::new();
    let process = started(&site, &site.discovered());
    let (foreign, unknown) = (Key::new("one"), Key::new("two"));
    for (token, words) in [
        (site.token(json!({"exp": now() - 61})), "expired"),
        (site.token(json!({"nbf": now() + 600})), "not valid yet"),
        (site.token(json!({"aud": "other"})), "another audience"),
        (foreign.token(&site.claims(json!({}))), "wrong signature"),
        (unknown.token(&site.claims(json!({}))), "unknown key"),
        (site.token(json!({"iss": "https://issuer.example"})), "the user or the password is wrong"),
    ] {
        for target in ["/v2/", &manifest(OURS, "v1")] {
            let refused = by(&process, "token", &token, target);
            assert_eq!((refused.status, refused.error_code().as_str()), (401, "UNAUTHORIZED"));
            assert!(message(&refused).contains(words), "{words}: {refused:?}");
            let challenge = refused.header("www-authenticate").expect("a challenge");
            assert!(challenge.starts_with("Basic "), "{challenge}");
        }
    }
    let refused = get(process.address, "/v2/");
    assert_eq!(refused.status, 401, "without credentials");
    assert!(site.registry.requests().is_empty(), "no registry is asked");
}

#[test]
fn users_and_tokens_work_side_by_side_and_follow_the_configuration() {
    let site = Site::new();
    let mut process = started(&site, &site.discovered());
    let token = site.token(json!({}));
    let status = |process: &Process| {
        let of = |password: &str| by(process, "demo", password, "/v2/").status;
        (of("secret"), of(&token), get(process.address, "/v2/").status)
    };
    assert_eq!(status(&process), (200, 200, 401));
    let mut reload = |text: &str| {
        Process::put_config(site.directory.path(), text);
        process.signal("HUP");
        process.wait_until_it_logs("configuration reloaded after SIGHUP");
        status(&process)
    };
    let with_tokens = site.discovered();
    let open = with_tokens.split("serverAuthConfig").next().expect("a text").to_owned();
    let with_users = with_tokens.split("  oidc:").next().expect("a text").to_owned();
    assert_eq!(reload(&with_users), (200, 401, 401));
    assert_eq!(reload(&open), (200, 200, 200));
    let htpasswd = format!("  htpasswd: {}\n", site.path("htpasswd").display());
    // The keys are those that were stored, so no fetch has to be awaited.
    assert_eq!(reload(&with_tokens.replace(&htpasswd, "")), (401, 200, 401));
    assert_eq!(reload(&with_tokens.replace("audience: larder", "audience: x")), (200, 401, 401));
}

#[test]
fn a_token_is_never_sent_to_a_registry_that_decides_who_may_pull() {
    let site = Site::new();
    let config = site.discovered().replace("endpoints:", "access: client, endpoints:");
    let process = started(&site, &config);
    let expired = site.token(json!({"exp": 1}));
    for token in [site.token(json!({})), expired] {
        let refused = by(&process, "ann", &token, &manifest(OURS, "v1"));
        assert_eq!(refused.status, 401, "{refused:?}");
    }
    assert!(site.registry.requests().is_empty());
}

/// Runs `larder credential-provider` as the kubelet does.
fn provide(flags: &[&str], request: &Value) -> (Option<i32>, String, String) {
    let mut command = larder(&[&["credential-provider"], flags].concat());
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let mut stdin = child.stdin.take().expect("it was piped");
    stdin.write_all(request.to_string().as_bytes()).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn image_request(token: Option<&str>) -> Value {
    json!({
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderRequest",
        "image": format!("{NAME}/{OURS}"), "serviceAccountToken": token,
    })
}

#[test]
fn the_response_of_the_credential_provider_is_a_login_that_pulls() {
    let site = Site::new();
    let process = started(&site, &site.discovered());
    let token = site.token(json!({}));
    let (code, stdout, stderr) = provide(&[], &image_request(Some(&token)));
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let response: Value = serde_json::from_str(&stdout).expect("JSON");
    let login = &response["auth"][NAME];
    let text = |name: &str| login[name].as_str().expect("a text").to_owned();
    let got = by(&process, &text("username"), &text("password"), &manifest(OURS, "v1"));
    assert!(got.status == 200 && got.body == site.ours.manifest(), "{got:?}");

    let (code, stdout, stderr) = provide(&[], &image_request(None));
    let response: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((code, &response["auth"]), (Some(0), &json!({})));
    assert!(stderr.contains("tokenAttributes"), "{stderr}");

    site.put("token", "of-the-node\n");
    let file = site.path("token").display().to_string();
    let (_, stdout, stderr) = provide(&["--token-file", &file], &image_request(None));
    let response: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(response["auth"][NAME]["password"], "of-the-node", "{stderr}");
    let (code, _, stderr) = provide(&["--token-file", "/nowhere"], &image_request(None));
    assert!(code == Some(1) && stderr.contains("/nowhere"), "{code:?} {stderr}");
    site.put("token", "\n");
    let (code, _, stderr) = provide(&["--token-file", &file], &image_request(None));
    assert!(code == Some(2) && stderr.contains("it is empty"), "{code:?} {stderr}");
    let (code, stdout, stderr) = provide(&[], &json!({}));
    assert!(code == Some(2) && stdout.is_empty() && stderr.contains("invalid"), "{stderr}");
}

#[test]
fn another_larder_logs_in_with_a_token_in_a_file() {
    let site = Site::new();
    let parent = started(&site, &site.discovered());
    site.put("token", &site.token(json!({"sub": "child"})));
    let auth = format!("{{user: token, passwordFile: {}}}", site.path("token").display());
    let child = tempfile::tempdir().expect("a directory");
    let config = format!(
        "fsync: false\nprefetch: false\ndefaultNs: {NAME}\nparents: [{{url: 'http://{}', auth: {auth}}}]\n\
         registries: [{{name: {NAME}, endpoints: ['http://127.0.0.1:9']}}]\n",
        parent.address
    );
    let process = Process::serve_file(child.path(), &config);
    let got = get(process.address, &manifest(OURS, "v1"));
    assert!(got.status == 200 && got.body == site.ours.manifest(), "{got:?}");
    parent.signal("TERM");
    let (_, log) = parent.wait();
    assert!(log.contains(" user=child "), "{log}");
}

#[test]
fn files_that_cannot_be_used_prevent_the_start() {
    let site = Site::new();
    site.put("jwks.json", "{}");
    for (keys, words) in [
        (format!("keys: {}", site.path("nowhere").display()), "oidc: keys: cannot read"),
        (format!("keys: {}", site.path("jwks.json").display()), "not a JSON Web Key Set"),
        (format!("ca: {}", site.path("nowhere").display()), "serverAuthConfig.oidc: https://"),
    ] {
        site.put("larder.yaml", &site.config(&keys, ""));
        let (file, cache) = (site.path("larder.yaml"), site.path("cache"));
        let (file, cache) = (file.display().to_string(), cache.display().to_string());
        let (code, _, stderr) =
            run(&["--config-file", &file, "--image-path", &cache, "serve", "--port", "0"]);
        assert!(code == Some(2) && stderr.contains(words), "{words}: {code:?} {stderr}");
    }
}
