//! Clients that use TLS, and those that should.

use super::client::Client;
use super::server::{
    Gate, Running, SHORT, Source, echo, echoed, few_workers, serve_tls, text, wait_until,
};
use super::timeouts::huge_file;
use crate::certificates::IdentityFiles;
use crate::http::{
    Body, ClientAuth, Outcome, Reply, ServerTls, ServerTlsError, ServerTlsSettings, Settings, Step,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A certificate authority, and the files of a server with a certificate of it.
struct Site {
    directory: tempfile::TempDir,
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Marks that tell certificates apart, as additional names of the host.
const FIRST: &str = "first.test";
const SECOND: &str = "second.test";

impl Site {
    fn new() -> Site {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca_pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let site = Site { directory: tempfile::tempdir().unwrap(), ca_pem, issuer };
        fs::write(site.path("ca"), &site.ca_pem).unwrap();
        site.put(FIRST);
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Issues a certificate. Returns it and its key as PEM.
    fn issue(&self, mark: &str) -> (String, String) {
        let names = vec!["localhost".into(), mark.into()];
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, mark);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// Replaces the server's certificate.
    fn put(&self, mark: &str) {
        let (cert, key) = self.issue(mark);
        replace(&self.path("cert"), &cert);
        replace(&self.path("key"), &key);
    }

    fn settings(&self, clients: ClientAuth) -> ServerTlsSettings {
        let identity = IdentityFiles { cert: self.path("cert"), key: self.path("key") };
        ServerTlsSettings { identity, clients }
    }

    fn load(&self, clients: ClientAuth) -> Arc<ServerTls> {
        Arc::new(ServerTls::load(&self.settings(clients)).unwrap())
    }

    fn verifying(&self) -> ClientAuth {
        ClientAuth::Verify { ca: Some(self.path("ca")) }
    }

    /// The configuration of a client that trusts this authority and has no certificate.
    fn trust(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        Arc::new(self.client(versions).with_no_client_auth())
    }

    /// The configuration of a client that trusts this authority and has a certificate of `other`.
    fn trust_as(&self, other: &Site) -> Arc<ClientConfig> {
        let (cert, key) = other.issue("client.test");
        let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        Arc::new(self.client(BOTH).with_client_auth_cert(chain, key).unwrap())
    }

    fn client(
        &self,
        versions: &[&'static SupportedProtocolVersion],
    ) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
    }

    fn echo(&self, clients: ClientAuth) -> Running {
        self.serve(few_workers(), self.load(clients))
    }

    fn serve(&self, settings: Settings, tls: Arc<ServerTls>) -> Running {
        serve_tls(settings, tls, self.trust(BOTH), |request, _| text(echoed(request)))
    }
}

const BOTH: &[&SupportedProtocolVersion] = rustls::ALL_VERSIONS;

/// Replaces a file by another one, so that the change is noticed even with coarse file times.
fn replace(path: &Path, content: &str) {
    let new = path.with_extension("new");
    fs::write(&new, content).unwrap();
    fs::rename(new, path).unwrap();
}

/// Whether the server presented the certificate with this mark.
fn was_presented(client: &Client, mark: &str) -> bool {
    let presented = &client.session().peer_certificates().unwrap()[0];
    presented.windows(mark.len()).any(|part| part == mark.as_bytes())
}

#[test]
fn both_tls_versions_work_and_connections_are_kept() {
    let site = Site::new();
    let server = site.echo(ClientAuth::None);
    for (version, name) in [
        (&rustls::version::TLS12, ProtocolVersion::TLSv1_2),
        (&rustls::version::TLS13, ProtocolVersion::TLSv1_3),
    ] {
        let mut client = Client::connect(server.address).secure(site.trust(&[version]));
        for target in ["/1", "/2"] {
            client.get(target);
            assert_eq!(client.response().text(), format!("GET {target}"));
        }
        assert_eq!(client.session().protocol_version(), Some(name));
        client.send("GET /3 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        assert_eq!(client.response().text(), "GET /3");
        // Without close_notify, this read would fail.
        client.assert_closed();
    }
}

#[test]
fn http_1_1_is_negotiated_with_clients_that_support_http_2() {
    let site = Site::new();
    let server = site.echo(ClientAuth::None);
    let mut trust = (*site.trust(BOTH)).clone();
    trust.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut client = Client::connect(server.address).secure(Arc::new(trust));
    client.get("/");
    assert_eq!(client.response().status, 200);
    assert_eq!(client.session().alpn_protocol(), Some(&b"http/1.1"[..]));
}

#[test]
fn files_and_growing_files_and_memory_arrive_completely() {
    let site = Site::new();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|number| (number / 7) as u8).collect();
    let length = bytes.len() as u64;
    let source = Source::new();
    source.grow(&bytes[..1_000]);
    let shared: Arc<[u8]> = bytes.clone().into();
    let tailed = Arc::clone(&source);
    let server = serve_tls(
        few_workers(),
        site.load(ClientAuth::None),
        site.trust(BOTH),
        move |request, _| match request.path() {
            "/tail" => tailed.reply(0..length),
            "/memory" => Step::Reply(Reply::new(200, Body::Bytes(Arc::clone(&shared)))),
            _ => {
                let file = Arc::new(tailed.file.try_clone().unwrap());
                Step::Reply(Reply::new(200, Body::File { file, range: 5..length - 5 }))
            }
        },
    );
    let mut client = server.get("/tail");
    client.head();
    assert_eq!(client.bytes(1_000), bytes[..1_000]);
    wait_until(|| source.is_awaited());
    source.grow(&bytes[1_000..]);
    assert!(client.bytes(bytes.len() - 1_000) == bytes[1_000..]);
    client.get("/memory");
    assert!(client.response().body == bytes);
    client.get("/file");
    assert!(client.response().body == bytes[5..bytes.len() - 5]);
    for path in ["/tail", "/memory", "/file"] {
        assert_eq!(server.ending_of(path).outcome, Outcome::Complete);
    }
}

#[test]
fn requests_that_are_already_decrypted_are_answered() {
    let site = Site::new();
    let server = site.echo(ClientAuth::None);
    let mut client = server.client();
    // These requests are decrypted together but do not all fit into the input buffer, so the last of them is not in the
    // socket any more when it is read.
    let pad = "x".repeat(900);
    let requests: String = (0..60)
        .map(|number| format!("GET /{number} HTTP/1.1\r\nHost: h\r\nX: {pad}\r\n\r\n"))
        .collect();
    client.send(requests);
    for number in 0..60 {
        assert_eq!(client.response().text(), format!("GET /{number}"));
    }
}

#[test]
fn a_plaintext_request_gets_an_explanation() {
    let site = Site::new();
    let server = site.echo(ClientAuth::None);
    let mut client = Client::connect(server.address);
    client.get("/v2/");
    let response = client.response();
    assert_eq!(response.status, 400);
    assert!(response.text().contains("https://"), "{}", response.text());
    client.finish();
    client.assert_closed();
    server.assert_answers();
}

#[test]
fn tls_to_a_plaintext_port_fails_at_once() {
    let server = echo();
    let site = Site::new();
    let mut client = Client::connect(server.address).secure(site.trust(BOTH));
    let error = client.try_get().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{error}");
    server.assert_answers();
}

#[test]
fn noise_and_silence_cost_only_one_connection() {
    let site = Site::new();
    // A handshake takes longer than a request.
    let timeout = 4 * SHORT;
    let settings = Settings { head_timeout: timeout, idle_timeout: timeout, ..few_workers() };
    let server =
        serve_tls(settings, site.load(ClientAuth::None), site.trust(BOTH), |_, _| text("x"));
    let mut noise = Client::connect(server.address);
    noise.send([0x16, 3, 1, 0, 4, 1, 2, 3, 4]);
    noise.assert_gone();
    let mut half = Client::connect(server.address);
    half.send([0x16, 3, 1]);
    half.assert_gone();
    assert_eq!(server.controller.failed_handshakes(), 2);
    let mut silent = Client::connect(server.address);
    silent.assert_closed();
    assert_eq!(
        server.controller.failed_handshakes(),
        2,
        "a silent client has not started a handshake"
    );
    server.assert_answers();
}

#[test]
fn clients_need_a_certificate_if_the_server_verifies_them() {
    let (site, other) = (Site::new(), Site::new());
    let server = site.echo(site.verifying());
    let client = |trust| Client::connect(server.address).secure(trust);
    let mut known = client(site.trust_as(&site));
    known.get("/");
    assert_eq!(known.response().text(), "GET /");
    for version in BOTH {
        client(site.trust(&[version])).try_get().unwrap_err();
    }
    client(site.trust_as(&other)).try_get().unwrap_err();
    wait_until(|| server.controller.failed_handshakes() == 3);
}

#[test]
fn a_verified_client_is_named_by_its_certificate_until_it_logs_in() {
    let site = Site::new();
    let tls = site.load(site.verifying());
    let server = serve_tls(few_workers(), tls, site.trust_as(&site), |request, _| {
        let name = || request.user().map_or_else(String::new, |user| user.to_string());
        let before = name();
        if request.path() == "/login" {
            request.set_user("ann");
        }
        text(format!("{before} {}", name()))
    });
    let mut client = server.client();
    for (target, names) in [
        ("/", "client.test client.test"),
        ("/login", "client.test ann"),
        ("/", "client.test client.test"),
    ] {
        client.get(target);
        assert_eq!(client.response().text(), names);
    }
}

#[test]
fn a_client_that_does_not_trust_the_server_is_counted() {
    let site = Site::new();
    let server = site.echo(ClientAuth::None);
    Client::connect(server.address).secure(Site::new().trust(BOTH)).try_get().unwrap_err();
    wait_until(|| server.controller.failed_handshakes() == 1);
    server.assert_answers();
}

#[test]
fn a_new_certificate_is_used_for_new_clients_and_closes_no_connection() {
    let site = Site::new();
    let tls = site.load(ClientAuth::None);
    let server = site.serve(few_workers(), Arc::clone(&tls));
    let mut early = server.get("/1");
    assert_eq!(early.response().text(), "GET /1");
    assert!(was_presented(&early, FIRST));
    let presents = |mark| {
        let mut client = server.get("/");
        assert_eq!(client.response().status, 200);
        was_presented(&client, mark)
    };

    // Half of a rotation: the new certificate and the old key.
    let (cert, key) = site.issue(SECOND);
    replace(&site.path("cert"), &cert);
    tls.look();
    tls.look();
    assert!(presents(FIRST));
    replace(&site.path("key"), &key);
    tls.look();
    assert!(presents(SECOND));

    fs::remove_file(site.path("key")).unwrap();
    tls.look();
    assert!(presents(SECOND), "a missing file does not stop the server");
    early.get("/2");
    assert_eq!(early.response().text(), "GET /2");
}

#[test]
fn new_settings_apply_to_new_clients() {
    let site = Site::new();
    let tls = site.load(ClientAuth::None);
    let server = site.serve(few_workers(), Arc::clone(&tls));
    let mut early = server.get("/1");
    early.response();
    tls.reconfigure(&site.settings(site.verifying()));
    server.client().try_get().unwrap_err();
    let mut known = Client::connect(server.address).secure(site.trust_as(&site));
    known.get("/");
    assert_eq!(known.response().status, 200);
    early.get("/2");
    assert_eq!(early.response().status, 200);
}

#[test]
fn a_session_ticket_is_void_after_the_authorities_change() {
    let (site, other) = (Site::new(), Site::new());
    let tls = site.load(ClientAuth::Verify { ca: Some(other.path("ca")) });
    let server = site.serve(few_workers(), Arc::clone(&tls));
    let trust = site.trust_as(&other);
    for _ in 0..2 {
        let mut client = Client::connect(server.address).secure(Arc::clone(&trust));
        client.get("/");
        assert_eq!(client.response().status, 200);
    }
    tls.reconfigure(&site.settings(site.verifying()));
    Client::connect(server.address).secure(trust).try_get().unwrap_err();
}

#[test]
fn a_tls_client_that_reads_nothing_is_closed() {
    let site = Site::new();
    let (file, length) = huge_file();
    let settings = Settings { write_stall_timeout: Duration::from_millis(300), ..few_workers() };
    let server = serve_tls(settings, site.load(ClientAuth::None), site.trust(BOTH), move |_, _| {
        Step::Reply(Reply::new(200, Body::File { file: file.clone(), range: 0..length }))
    });
    let mut client = server.get("/");
    client.head();
    let ending = server.ending();
    assert_eq!(ending.outcome, Outcome::WriteStalled);
    assert!(ending.bytes_sent < length);
    client.assert_gone();
}

#[test]
fn surplus_tls_clients_get_503() {
    let site = Site::new();
    let gate = Gate::new();
    let waited = Arc::clone(&gate);
    let settings = Settings { max_connections: 1, ..few_workers() };
    let server = serve_tls(settings, site.load(ClientAuth::None), site.trust(BOTH), {
        move |_, context| waited.wait(context, Duration::from_secs(60))
    });
    let mut first = server.get("/1");
    wait_until(|| gate.waiting() == 1);
    let mut surplus = server.get("/2");
    assert_eq!(surplus.response().status, 503);
    let mut silent = Client::connect(server.address);
    silent.assert_closed();
    gate.open();
    assert_eq!(first.response().text(), "GET /1");
}

#[test]
fn a_drain_finishes_running_tls_responses_and_sends_close_notify() {
    let site = Site::new();
    let gate = Gate::new();
    let waited = Arc::clone(&gate);
    let server = serve_tls(few_workers(), site.load(ClientAuth::None), site.trust(BOTH), {
        move |request, context| match request.path() {
            "/wait" => waited.wait(context, Duration::from_secs(60)),
            _ => text("x"),
        }
    });
    let mut idle = server.get("/");
    idle.response();
    let mut running = server.get("/wait");
    wait_until(|| gate.waiting() == 1);
    server.controller.drain();
    idle.assert_closed();
    gate.open();
    assert_eq!(running.response().text(), "GET /wait");
    running.assert_closed();
    assert_eq!(server.join().cut, 0);
}

#[test]
fn invalid_files_are_reported() {
    let site = Site::new();
    fs::write(site.path("text"), "no PEM").unwrap();
    let ca = |name: &str| ClientAuth::Verify { ca: Some(site.path(name)) };
    for (clients, words) in
        [(ca("missing"), "cannot read"), (ca("text"), "not a PEM"), (ca("key"), "no certificate")]
    {
        let error = site.settings(clients).check().unwrap_err();
        assert!(error.to_string().contains(words), "{words}: {error}");
    }
    let mut settings = site.settings(ClientAuth::None);
    settings.identity.key = site.path("cert");
    let error = settings.check().unwrap_err();
    assert!(matches!(error, ServerTlsError::File(_)), "{error}");
    assert!(ServerTlsError::NoAuthorities.to_string().contains("ca"));
}
