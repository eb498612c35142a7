//! TLS to clients and passwords of clients, from the configuration and through its changes.

use std::path::PathBuf;

use crate::support::client::{get, request};
use crate::support::larder::{blob, manifest};
use crate::support::process::{Process, run};
use crate::support::{Authority, Connection, FakeRegistry, Image, Response, base64, replace_file};

const REPOSITORY: &str = "team/app";
const NAME: &str = "registry.test";
/// Output of `htpasswd -nbB -C 4` for demo:secret and for other:password.
const DEMO: &str = "demo:$2y$04$5TeKT.s9FsTxS3i9dnaT.eeZsnvHkTXDfq6YA/Pb9LXeQk3bD5R2m\n";
const OTHER: &str = "other:$2y$04$OyNSuvihB58NTnDjQCILHOTlu4bkEMBpUPJLl40qbbIdvjP7z6l6O\n";

struct Site {
    directory: tempfile::TempDir,
    authority: Authority,
    registry: FakeRegistry,
    image: Image,
}

impl Site {
    fn new() -> Site {
        let (registry, image) = FakeRegistry::with_image(REPOSITORY);
        let directory = tempfile::tempdir().expect("a directory");
        let site = Site { directory, authority: Authority::new("clients"), registry, image };
        site.issue();
        site.put("ca.pem", &site.authority.pem());
        site.put("htpasswd", DEMO);
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        replace_file(&self.path(name), text);
    }

    /// Writes the certificate and key of the server.
    fn issue(&self) {
        let identity = self.authority.issue(&["localhost", "127.0.0.1"]);
        self.put("cert.pem", &identity.certificate_pem);
        self.put("key.pem", &identity.key_pem);
    }

    fn config(&self, extra: &str) -> String {
        let url = self.registry.url("");
        format!(
            "fsync: false\nprefetch: false\ndefaultNs: {NAME}\n{extra}\n\
             registries: [{{name: {NAME}, endpoints: ['{url}']}}]\n"
        )
    }

    fn tls(&self, extra: &str) -> String {
        let (cert, key) = (self.path("cert.pem"), self.path("key.pem"));
        let (cert, key) = (cert.display(), key.display());
        self.config(&format!("serverTlsConfig: {{cert: {cert}, key: {key}{extra}}}"))
    }

    fn users(&self, file: &str) -> String {
        let file = self.path(file);
        self.config(&format!("serverAuthConfig: {{htpasswd: {}}}", file.display()))
    }

    fn serve(&self, text: &str) -> Process {
        Process::serve_file(self.directory.path(), text)
    }

    fn reload(&self, process: &mut Process, text: &str) -> String {
        Process::put_config(self.directory.path(), text);
        process.signal("HUP");
        process.wait_until_it_logs("configuration reloaded after SIGHUP")
    }

    fn open(&self, process: &Process) -> Connection {
        Connection::open_tls(process.address, "localhost", &self.authority.pem(), None)
    }
}

fn by(process: &Process, user: &str, password: &str, method: &str, target: &str) -> Response {
    let credentials = base64(format!("{user}:{password}").as_bytes());
    request(process.address, method, target, &[("Authorization", &format!("Basic {credentials}"))])
}

#[test]
fn image_is_pulled_over_tls_while_the_certificate_changes() {
    let site = Site::new();
    let mut process = site.serve(&site.tls(""));
    assert!(process.banner.contains(" tls=server"), "{}", process.banner);
    let mut early = site.open(&process);
    let target = manifest(REPOSITORY, "v1");
    assert!(early.request("GET", &target, &[]).body == site.image.manifest());
    site.issue();
    process.signal("HUP");
    process.wait_until_it_logs("serverTlsConfig: reloaded");
    let layer = &site.image.layers()[0];
    let target = blob(REPOSITORY, &layer.digest);
    assert!(early.request("GET", &target, &[]).body == layer.bytes);
    assert!(site.open(&process).request("GET", &target, &[]).body == layer.bytes);
}

#[test]
fn changed_certificate_is_noticed_without_a_signal() {
    let site = Site::new();
    let mut process = site.serve(&site.tls(""));
    site.issue();
    process.wait_until_it_logs("serverTlsConfig: reloaded");
    assert_eq!(site.open(&process).request("GET", "/v2/", &[]).status, 200);
}

#[test]
fn plaintext_request_to_a_tls_port_gets_an_explanation() {
    let site = Site::new();
    let process = site.serve(&site.tls(""));
    let answer = get(process.address, "/v2/");
    assert!(answer.status == 400 && answer.text().contains("https://"), "{answer:?}");
}

#[test]
fn client_certificates_are_verified_after_a_reload_requires_them() {
    let site = Site::new();
    let mut process = site.serve(&site.tls(""));
    assert_eq!(site.open(&process).request("GET", "/v2/", &[]).status, 200);
    let ca = format!(", clientAuth: verify, ca: {}", site.path("ca.pem").display());
    let message = site.reload(&mut process, &site.tls(&ca));
    assert!(message.contains("keys=serverTlsConfig"), "{message}");
    let identity = site.authority.issue(&["node.test"]);
    let pem = site.authority.pem();
    let mut known = Connection::open_tls(process.address, "localhost", &pem, Some(&identity));
    assert_eq!(known.request("GET", "/v2/", &[]).status, 200);
    let mut stranger = site.open(&process);
    // The client notices at its next read or write, because of TLS 1.3.
    let _ = stranger.try_send_raw(b"GET /v2/ HTTP/1.1\r\nHost: h\r\n\r\n");
    let message = process.wait_until_it_logs("no TLS session");
    assert!(message.contains("presented no certificate"), "{message}");
    let message = site.reload(&mut process, &site.config(""));
    assert!(message.ends_with(" keys=\"\"\n"), "{message}");
    process.wait_until_it_logs("take effect after a restart keys=serverTlsConfig\n");
}

#[test]
fn invalid_tls_settings_prevent_the_start_and_are_refused_by_a_reload() {
    let site = Site::new();
    let start = |text: &str| {
        Process::put_config(site.directory.path(), text);
        let config = site.path("larder.yaml").display().to_string();
        let cache = site.path("cache").display().to_string();
        let message = [&["serve"][..], &["config", "check"]].map(|command| {
            let options = ["--config-file", &config, "--image-path", &cache];
            let (code, _, message) = run(&[&options[..], command].concat());
            assert_eq!(code, Some(2), "{message}");
            message
        });
        assert_eq!(message[0], message[1]);
        message[0].clone()
    };
    let key = site.path("key.pem").display().to_string();
    let cert = site.path("cert.pem").display().to_string();
    let swapped = format!("serverTlsConfig: {{cert: {key}, key: {cert}}}");
    assert!(start(&site.config(&swapped)).contains("serverTlsConfig: there is no certificate in"));
    assert!(start(&site.config("serverTlsConfig: {cert: /x}")).contains("both are needed"));
    let p521 = include_str!("support/certificates/p521-self-signed.pem");
    site.put("p521.pem", p521);
    let p521 = site.path("p521.pem").display().to_string();
    let message = start(&site.config(&format!("serverTlsConfig: {{cert: {p521}, key: {p521}}}")));
    assert!(
        message.contains("ECDSA with P-256 or P-384"),
        "says which keys can be used: {message}"
    );
    assert!(start(&site.users("nowhere")).contains("serverAuthConfig: cannot read"));

    let mut process = site.serve(&site.tls(""));
    Process::put_config(site.directory.path(), &site.config(&swapped));
    process.signal("HUP");
    process.wait_until_it_logs("stays in effect");
    assert_eq!(site.open(&process).request("GET", "/v2/", &[]).status, 200);
}

#[test]
fn request_without_a_password_gets_a_challenge_only() {
    let site = Site::new();
    let process = site.serve(&site.users("htpasswd"));
    let layer = &site.image.layers()[0].digest;
    let targets = [
        "/v2/".to_owned(),
        manifest(REPOSITORY, "v1"),
        blob(REPOSITORY, layer),
        format!("/v2/{REPOSITORY}/tags/list"),
        "/nonsense".to_owned(),
    ];
    for target in &targets {
        for method in ["GET", "HEAD"] {
            let answers = [
                request(process.address, method, target, &[]),
                request(process.address, method, target, &[("Authorization", "Bearer x")]),
                by(&process, "demo", "Secret", method, target),
                by(&process, "nobody", "secret", method, target),
            ];
            for answer in answers {
                assert_eq!(answer.status, 401, "{method} {target}");
                let challenge = answer.header("www-authenticate").expect("a challenge");
                assert!(challenge.starts_with("Basic realm="), "{challenge}");
                let version = answer.header("docker-distribution-api-version");
                assert_eq!(version, Some("registry/2.0"));
                if method == "GET" {
                    assert_eq!(answer.error_code(), "UNAUTHORIZED");
                }
            }
        }
    }
    assert_eq!(site.registry.count("*", "*"), 0, "no upstream request without a valid password");
}

#[test]
fn check_pulls_with_the_password_or_the_authority_that_clients_need() {
    let site = Site::new();
    site.put("password", "secret\n");
    site.put("wrong", "Secret\n");
    let pull = |server: &str, name: &str, options: &[&str]| {
        let image = format!("{NAME}/{REPOSITORY}:v1");
        let file = site.path(name).display().to_string();
        let (code, stdout, stderr) =
            run(&[&["check", "--server", server], options, &[&file, &image]].concat());
        (code, format!("{stdout}{stderr}"))
    };
    let process = site.serve(&site.users("htpasswd"));
    let server = format!("http://{}", process.address);
    let user = ["--user", "demo", "--password-file"];
    let (code, text) = pull(&server, "password", &user);
    assert!(code == Some(0) && text.contains("with the right digests"), "{text}");
    let (code, text) = pull(&server, "wrong", &user);
    assert!(code == Some(1) && text.contains("401"), "{text}");
    drop(process);
    let process = site.serve(&site.tls(""));
    let server = format!("https://{}", process.address);
    let (code, text) = pull(&server, "ca.pem", &["--ca"]);
    assert!(code == Some(0) && text.contains("with the right digests"), "{text}");
    let (code, text) = pull(&server, "htpasswd", &["--ca"]);
    assert!(code == Some(2) && text.contains("htpasswd"), "{text}");
}

#[test]
fn valid_password_is_accepted_and_not_forwarded() {
    let site = Site::new();
    let process = site.serve(&site.users("htpasswd"));
    let ask = |method, target: &str| by(&process, "demo", "secret", method, target);
    assert_eq!(ask("GET", "/v2/").status, 200);
    assert!(ask("GET", &manifest(REPOSITORY, "v1")).body == site.image.manifest());
    let layer = &site.image.layers()[0];
    assert!(ask("GET", &blob(REPOSITORY, &layer.digest)).body == layer.bytes);
    assert_eq!(ask("GET", "/nonsense").status, 404);
    for recorded in site.registry.requests() {
        let names = recorded.headers.iter().map(|(name, _)| name.to_ascii_lowercase());
        assert!(!names.into_iter().any(|name| name == "authorization"), "{recorded:?}");
    }
    process.signal("TERM");
    let (_, log) = process.wait();
    assert!(!log.contains("secret") && !log.contains("$2y$"), "{log}");
}

#[test]
fn users_follow_changes_of_their_file_and_of_the_configuration() {
    let site = Site::new();
    let mut process = site.serve(&site.users("htpasswd"));
    let demo = |process: &Process| by(process, "demo", "secret", "GET", "/v2/").status;
    let other = |process: &Process| by(process, "other", "password", "GET", "/v2/").status;
    assert_eq!((demo(&process), other(&process)), (200, 401));

    site.put("htpasswd", OTHER);
    process.wait_until_it_logs(" count=1\n");
    assert_eq!((demo(&process), other(&process)), (401, 200));

    site.put("both", &format!("{DEMO}{OTHER}"));
    let message = site.reload(&mut process, &site.users("both"));
    assert!(message.contains("keys=serverAuthConfig"), "{message}");
    assert_eq!((demo(&process), other(&process)), (200, 200));

    site.put("both", "demo:plain");
    process.wait_until_it_logs("not a bcrypt hash");
    assert_eq!((demo(&process), other(&process)), (200, 200), "the former users stay");

    site.reload(&mut process, &site.config(""));
    assert_eq!(get(process.address, "/v2/").status, 200, "all clients are served again");
}
