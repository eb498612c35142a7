//! Clients that speak TLS, and those that should.

use super::client::Client;
use super::server::{
    Gate, Running, SHORT, Source, echo, echoed, few_workers, serve_tls, text, wait_until,
};
use super::timeouts::huge_file;
use crate::certificates::IdentityFiles;
use crate::http::{
    Body, ClientAuth, Outcome, Reply, ServerTls, ServerTlsError, ServerTlsSettings, Settings, Step,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// An authority, and the files of a server that it has vouched for.
struct Site {
    directory: tempfile::TempDir,
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Which of several certificates is meant: its common name is no name of a host.
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

    /// A certificate and its key, as PEM.
    fn issue(&self, mark: &str) -> (String, String) {
        let names = vec!["localhost".into(), mark.into()];
        let params = CertificateParams::new(names).unwrap();
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// Gives the server another certificate.
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

    /// How a client trusts this authority, with these versions, as nobody in particular.
    fn trust(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        Arc::new(self.client(versions).with_no_client_auth())
    }

    /// The same as somebody whom `other` vouches for.
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

/// Another file of that name, so that it differs whatever the clock of the file system.
fn replace(path: &Path, content: &str) {
    let new = path.with_extension("new");
    fs::write(&new, content).unwrap();
    fs::rename(new, path).unwrap();
}

/// Whether the client was shown the certificate of that mark.
fn was_shown(client: &Client, mark: &str) -> bool {
    let shown = &client.session().peer_certificates().unwrap()[0];
    shown.windows(mark.len()).any(|part| part == mark.as_bytes())
}

#[test]
fn both_versions_are_spoken_and_connections_kept() {
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
        // An end without close_notify would be an error of this read.
        client.assert_closed();
    }
}

#[test]
fn http_1_1_is_agreed_on_where_the_client_knows_better() {
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
fn files_and_growing_files_and_memory_arrive_whole() {
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
fn what_was_decrypted_already_is_not_waited_for() {
    let site = Site::new();
    let server = site.echo(ClientAuth::None);
    let mut client = server.client();
    // Requests that are decrypted together and do not fit into the room for heads together, so that the
    // last of them is in no socket when its turn has come.
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
fn a_request_in_the_clear_is_told_what_to_do() {
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
fn tls_to_a_port_in_the_clear_ends_at_once() {
    let server = echo();
    let site = Site::new();
    let mut client = Client::connect(server.address).secure(site.trust(BOTH));
    let error = client.try_get().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{error}");
    server.assert_answers();
}

#[test]
fn noise_and_silence_cost_a_connection_and_nothing_else() {
    let site = Site::new();
    let settings = Settings { head_timeout: SHORT, idle_timeout: SHORT, ..few_workers() };
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
    assert_eq!(server.controller.failed_handshakes(), 2, "who says nothing has begun nothing");
    server.assert_answers();
}

#[test]
fn clients_show_a_certificate_where_that_is_wanted() {
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
fn a_client_that_does_not_trust_us_is_counted() {
    let site = Site::new();
    let server = site.echo(ClientAuth::None);
    Client::connect(server.address).secure(Site::new().trust(BOTH)).try_get().unwrap_err();
    wait_until(|| server.controller.failed_handshakes() == 1);
    server.assert_answers();
}

#[test]
fn changed_files_are_shown_to_new_clients_and_drop_nobody() {
    let site = Site::new();
    let tls = site.load(ClientAuth::None);
    let server = site.serve(few_workers(), Arc::clone(&tls));
    let mut early = server.get("/1");
    assert_eq!(early.response().text(), "GET /1");
    assert!(was_shown(&early, FIRST));
    let shown = |mark| {
        let mut client = server.get("/");
        assert_eq!(client.response().status, 200);
        was_shown(&client, mark)
    };

    // Half of a rotation: the certificate of one key, and another key.
    let (cert, key) = site.issue(SECOND);
    replace(&site.path("cert"), &cert);
    tls.look();
    tls.look();
    assert!(shown(FIRST));
    replace(&site.path("key"), &key);
    tls.look();
    assert!(shown(SECOND));

    fs::remove_file(site.path("key")).unwrap();
    tls.look();
    assert!(shown(SECOND), "what is gone is no reason to stop");
    early.get("/2");
    assert_eq!(early.response().text(), "GET /2");
}

#[test]
fn other_settings_are_in_force_for_new_clients() {
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
fn a_ticket_does_not_open_what_was_closed_since() {
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
fn a_reader_that_reads_nothing_is_closed_by_tls_as_well() {
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
fn surplus_clients_are_told_by_tls_as_well() {
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
fn a_drain_finishes_what_runs_and_says_goodbye() {
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
fn files_that_cannot_be_used_are_said() {
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
