//! Larders that share their caches: each content is requested from the registry by one of them.

use std::net::SocketAddr;
use std::sync::Barrier;
use std::thread;

use crate::support::client::{Connection, get, request};
use crate::support::larder::{blob, manifest};
use crate::support::process::{Process, address_in, run};
use crate::support::{FakeRegistry, Fault, Gate, Image, On, Recorded, bytes};

const REPOSITORY: &str = "team/app";
/// Output of `htpasswd -nbB -C 4` for demo:secret.
const DEMO: &str = "demo:$2y$04$5TeKT.s9FsTxS3i9dnaT.eeZsnvHkTXDfq6YA/Pb9LXeQk3bD5R2m\n";
const MIB: usize = 1 << 20;

/// Members of one group, with a directory each.
struct Group {
    larders: Vec<Process>,
    directories: Vec<tempfile::TempDir>,
    registry: String,
}

impl Group {
    fn start(registry: &FakeRegistry, count: usize) -> Group {
        let mut group = Group { larders: vec![], directories: vec![], registry: registry.url("") };
        for _ in 0..count {
            let directory = tempfile::tempdir().expect("a directory");
            group.larders.push(Process::serve_file(directory.path(), &group.config(&[])));
            group.directories.push(directory);
        }
        let members: Vec<SocketAddr> = group.larders.iter().map(|larder| larder.address).collect();
        let config = group.config(&members);
        group.configure(|_| config.clone());
        group
    }

    /// Gives each member its configuration.
    fn configure(&mut self, config: impl Fn(usize) -> String) {
        for (at, (larder, directory)) in self.larders.iter_mut().zip(&self.directories).enumerate()
        {
            Process::put_config(directory.path(), &config(at));
            larder.signal("HUP");
            larder.wait_until_it_logs("configuration reloaded");
        }
    }

    fn config(&self, members: &[SocketAddr]) -> String {
        let urls: Vec<String> =
            members.iter().map(|address| format!("\"http://{address}\"")).collect();
        let peers = match members {
            [] => String::new(),
            _ => format!("peers: {{urls: [{}]}}\n", urls.join(", ")),
        };
        format!(
            "fsync: false\nmanagement: {{port: 0}}\nunlistedRegistries: deny\n{peers}registries:\n  - {{name: reg.test, \
             endpoints: [\"{}\"]}}\n",
            self.registry
        )
    }

    /// The member that has sent a request to the registry: it is named last there, and in its own responses.
    fn sender_of(&self, request: &Recorded) -> usize {
        let via = request.header("via").expect("a Via header");
        let is_named = |larder: &Process| {
            get(larder.address, "/v2/").header("via").is_some_and(|name| via.ends_with(name))
        };
        self.larders.iter().position(is_named).expect("one of them has asked")
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.larders.iter().map(|larder| larder.address).collect()
    }
}

#[test]
fn members_that_demand_logins_recognize_each_other_and_themselves() {
    let registry = FakeRegistry::start();
    let image = (0..8).map(|seed| bytes(20_000, seed)).fold(Image::new("app"), Image::layer);
    registry.add(REPOSITORY, "v1", &image);
    let mut group = Group::start(&registry, 3);
    let htpasswd = group.directories[0].path().join("htpasswd");
    std::fs::write(&htpasswd, DEMO).expect("a file");
    let config = group.config(&group.addresses());
    let config = config.replace("peers: {", "peers: {auth: {user: demo, password: secret}, ");
    let config = format!("{config}serverAuthConfig: {{htpasswd: '{}'}}\n", htpasswd.display());
    group.configure(|_| config.clone());
    let login = [("Authorization", "Basic ZGVtbzpzZWNyZXQ=")];
    for address in group.addresses() {
        for layer in image.layers() {
            let target = blob(&name(), &layer.digest);
            assert_eq!(get(address, &target).status, 401);
            assert!(request(address, "GET", &target, &login).body == layer.bytes, "{target}");
        }
    }
    for layer in image.layers() {
        let requested = registry.requests_for("GET", &format!("*/blobs/{}", layer.digest));
        assert_eq!(requested.len(), 1, "{}", layer.digest);
    }
    for larder in group.larders {
        larder.signal("TERM");
        let (_, log) = larder.wait();
        assert!(!log.contains("request loop") && !log.contains("ERROR"), "{log}");
    }
}

fn name() -> String {
    format!("reg.test/{REPOSITORY}")
}

#[test]
fn cold_image_is_downloaded_once_by_all_members_together() {
    let registry = FakeRegistry::start();
    let layers = (0..12).map(|seed| bytes(20_000 + seed as usize, seed));
    let image = layers.fold(Image::new("app"), Image::layer);
    registry.add(REPOSITORY, "v1", &image);
    let group = Group::start(&registry, 3);
    let start = Barrier::new(6);
    thread::scope(|scope| {
        for address in group.addresses().into_iter().cycle().take(6) {
            let (start, image) = (&start, &image);
            scope.spawn(move || {
                start.wait();
                assert!(get(address, &manifest(&name(), "v1")).body == image.manifest());
                for layer in image.layers() {
                    let got = get(address, &blob(&name(), &layer.digest));
                    assert!(got.status == 200 && got.body == layer.bytes, "{got:?}");
                }
            });
        }
    });
    for layer in image.layers() {
        let requests = registry.count("GET", &format!("/v2/{REPOSITORY}/blobs/{}", layer.digest));
        assert_eq!(requests, 1, "{}", layer.digest);
    }
    let manifests = registry.count("*", &format!("/v2/{REPOSITORY}/manifests/v1"));
    assert_eq!(manifests, 1);
    // Each of them has asked the registry for something.
    let senders: std::collections::HashSet<String> = registry
        .requests()
        .iter()
        .filter(|request| request.path.contains("/blobs/"))
        .filter_map(|request| request.header("via")?.rsplit("larder-").next().map(str::to_owned))
        .collect();
    assert!(senders.len() >= 2, "{senders:?}");
}

#[test]
fn bytes_arrive_while_the_responsible_member_downloads() {
    let registry = FakeRegistry::start();
    let content = bytes(3 * MIB, 1);
    let digest = registry.add_blob(REPOSITORY, &content);
    let gate = Gate::new();
    registry.fault(On::get_blob(&digest), Fault::GateAfter(2 * MIB, gate.clone()));
    let group = Group::start(&registry, 3);
    let mut clients: Vec<Connection> = group
        .addresses()
        .into_iter()
        .map(|address| {
            let mut client = Connection::open(address);
            client.send("GET", &blob(&name(), &digest), &[]);
            client
        })
        .collect();
    for client in &mut clients {
        client.read_head();
        assert!(client.read_body(MIB) == content[..MIB]);
    }
    gate.open();
    for client in &mut clients {
        let (rest, is_complete) = client.read_to_end();
        assert!(is_complete && rest == content[MIB..]);
    }
    assert_eq!(registry.count("GET", &format!("/v2/{REPOSITORY}/blobs/{digest}")), 1);
}

#[test]
fn members_that_are_gone_or_frozen_are_not_waited_for() {
    for signal in ["KILL", "STOP"] {
        let registry = FakeRegistry::start();
        let layers = (0..6).map(|seed| bytes(10_000, seed));
        let image = layers.fold(Image::new("app"), Image::layer);
        registry.add(REPOSITORY, "v1", &image);
        let group = Group::start(&registry, 3);
        group.larders[0].signal(signal);
        let address = group.larders[1].address;
        assert!(get(address, &manifest(&name(), "v1")).body == image.manifest(), "{signal}");
        for layer in image.layers() {
            let got = get(address, &blob(&name(), &layer.digest));
            assert!(got.status == 200 && got.body == layer.bytes, "{signal}: {got:?}");
        }
        group.larders[0].signal("CONT");
    }
}

#[test]
fn member_that_waits_for_the_registry_is_waited_for() {
    let registry = FakeRegistry::start();
    let content = bytes(50_000, 4);
    let image = Image::new("app").layer(content.clone());
    registry.add(REPOSITORY, "v1", &image);
    let targets = [
        (manifest(&name(), "v1"), "manifests/v1".to_owned(), image.manifest().to_vec()),
        (
            blob(&name(), &image.layers()[0].digest),
            format!("blobs/{}", image.layers()[0].digest),
            content,
        ),
    ];
    for (target, path, expected) in targets {
        let mut group = Group::start(&registry, 2);
        let config = format!("logLevel: debug\n{}", group.config(&group.addresses()));
        group.configure(|_| config.clone());
        registry.clear_requests();
        let gate = Gate::new();
        registry
            .fault(On::path("GET", &format!("/v2/{REPOSITORY}/{path}")), Fault::Gate(gate.clone()));
        let mut clients: Vec<Connection> = group
            .addresses()
            .into_iter()
            .map(|address| {
                let mut client = Connection::open(address);
                client.send("GET", &target, &[]);
                client
            })
            .collect();
        let path = format!("/v2/{REPOSITORY}/{path}");
        let asked = registry.wait_for("GET", &path, 1);
        let other = 1 - group.sender_of(&asked[0]);
        group.larders[other].wait_until_it_logs("the peer waits as well");
        gate.open();
        for client in &mut clients {
            client.read_head();
            let (body, is_complete) = client.read_to_end();
            assert!(is_complete && body == expected, "{target}");
        }
        assert_eq!(registry.count("GET", &path), 1, "{target}");
    }
}

#[test]
fn failures_of_the_registry_are_not_those_of_the_members() {
    let registry = FakeRegistry::start();
    let image = (0..16).map(|seed| bytes(1_000, seed)).fold(Image::new("app"), Image::layer);
    registry.add(REPOSITORY, "v1", &image);
    let group = Group::start(&registry, 2);
    let [one, other] = [group.larders[0].address, group.larders[1].address];
    for layer in image.layers() {
        assert_eq!(get(one, &blob(&name(), &layer.digest)).status, 200);
    }
    registry.fault(On::path("*", "/v2/*/manifests/*"), Fault::status(500));
    for tag in 0..16 {
        let status = get(other, &manifest(&name(), &format!("broken-{tag}"))).status;
        assert!((500..=504).contains(&status), "{status}");
    }
    registry.stop();
    for layer in image.layers() {
        let got = get(other, &blob(&name(), &layer.digest));
        assert!(got.status == 200 && got.body == layer.bytes, "{got:?}");
    }
}

/// A Larder whose only peer is a registry that is scripted: it has the image, and does as told with the layer.
struct Scripted {
    larder: Process,
    registry: FakeRegistry,
    member: FakeRegistry,
    image: Image,
    _directory: tempfile::TempDir,
}

fn with_scripted_member(fault: Fault) -> Scripted {
    let (registry, member) = (FakeRegistry::start(), FakeRegistry::start());
    let image = Image::sample("v1");
    registry.add(REPOSITORY, "v1", &image);
    member.add(REPOSITORY, "v1", &image);
    member.fault(On::get_blob(&image.layers()[0].digest), fault);
    let directory = tempfile::tempdir().expect("a directory");
    let config = format!(
        "fsync: false\nprefetch: false\npeers: {{urls: [\"{}\"]}}\nregistries:\n  - {{name: reg.test, \
         endpoints: [\"{}\"]}}\n",
        member.url(""),
        registry.url("")
    );
    let larder = Process::serve_file(directory.path(), &config);
    Scripted { larder, registry, member, image, _directory: directory }
}

#[test]
fn member_that_answers_probes_only_leaves_time_for_the_registry() {
    let Scripted { larder, registry, member, image, .. } =
        &with_scripted_member(Fault::StallForever);
    let layer = &image.layers()[0];
    let got = get(larder.address, &blob(&name(), &layer.digest));
    assert!(got.status == 200 && got.body == layer.bytes, "{got:?}");
    let path = format!("*/blobs/{}", layer.digest);
    assert!(member.count("GET", &path) > 1, "it was asked again");
    assert_eq!(registry.count("GET", &path), 1);
}

#[test]
fn wrong_bytes_of_a_member_are_never_a_complete_response() {
    let Scripted { larder, member, image, .. } = &mut with_scripted_member(Fault::WrongBytes);
    let layer = &image.layers()[0];
    assert!(get(larder.address, &manifest(&name(), "v1")).body == image.manifest());
    let path = blob(&name(), &layer.digest);
    let first = get(larder.address, &path);
    assert!(!first.complete || first.body == layer.bytes);
    let line = larder.wait_until_it_logs("cannot fetch the blob");
    assert!(line.contains(&format!(" endpoint={} ", member.url(""))), "{line}");
    // The member is tried last for it now.
    for _ in 0..50 {
        let got = get(larder.address, &path);
        if got.complete && got.status == 200 {
            assert!(got.body == layer.bytes);
            return;
        }
    }
    panic!("the registry has the right bytes");
}

#[test]
fn request_of_a_peer_is_not_passed_on_to_a_peer_and_prefetches_nothing() {
    let registry = FakeRegistry::start();
    let image = Image::sample("v1").layer(bytes(5_000, 8));
    registry.add(REPOSITORY, "v1", &image);
    let group = Group::start(&registry, 3);
    let via = [("Via", "1.1 larder-00000000000000aa (peer)")];
    for address in group.addresses() {
        let mut client = Connection::open(address);
        let got = client.request("GET", &manifest(&name(), &image.digest()), &via);
        assert!(got.body == image.manifest());
    }
    // Each has asked the registry itself.
    let path = format!("/v2/{REPOSITORY}/manifests/{}", image.digest());
    assert_eq!(registry.count("GET", &path), 3);
    assert_eq!(registry.count("GET", "*/blobs/*"), 0);
}

#[test]
fn member_that_freezes_in_the_middle_of_a_blob_is_replaced() {
    let registry = FakeRegistry::start();
    let content = bytes(3 * MIB, 2);
    let digest = registry.add_blob(REPOSITORY, &content);
    let gate = Gate::new();
    registry.fault(On::get_blob(&digest).times(1), Fault::GateAfter(MIB, gate.clone()));
    let group = Group::start(&registry, 3);
    let path = blob(&name(), &digest);
    let mut clients: Vec<Connection> = group
        .larders
        .iter()
        .map(|larder| {
            let mut client = Connection::open(larder.address);
            client.send("GET", &path, &[]);
            client.read_head();
            assert!(client.read_body(MIB - 100_000) == content[..MIB - 100_000]);
            client
        })
        .collect();
    let asked = registry.requests_for("GET", &format!("/v2/{REPOSITORY}/blobs/{digest}"));
    let responsible = group.sender_of(&asked[0]);
    group.larders[responsible].signal("STOP");
    for (at, client) in clients.iter_mut().enumerate() {
        if at != responsible {
            let (rest, is_complete) = client.read_to_end();
            assert!(is_complete && rest == content[MIB - 100_000..]);
        }
    }
    let requests = registry.requests_for("GET", &format!("/v2/{REPOSITORY}/blobs/{digest}"));
    assert!(requests.len() <= 3, "{requests:?}");
    for request in &requests[1..] {
        let range = request.header("range").expect("only the missing bytes");
        let from = range["bytes=".len()..].split('-').next().expect("a number");
        assert!(from.parse::<usize>().expect("a number") > MIB / 2, "{range}");
    }
    group.larders[responsible].signal("CONT");
    gate.open();
    let (rest, is_complete) = clients[responsible].read_to_end();
    assert!(is_complete && rest == content[MIB - 100_000..]);
}

#[test]
fn members_with_other_settings_work_together_and_the_difference_is_named() {
    let registry = FakeRegistry::start();
    // So many that each member is responsible for some.
    let layers = (0..32).map(|seed| bytes(1_000, seed));
    let image = layers.fold(Image::new("app"), Image::layer);
    registry.add(REPOSITORY, "v1", &image);
    let mut group = Group::start(&registry, 2);
    let config = group.config(&group.addresses());
    group.configure(|at| if at == 1 { format!("tagTtl: 1h\n{config}") } else { config.clone() });
    let address = group.larders[1].address;

    assert!(get(address, &manifest(&name(), "v1")).body == image.manifest());
    for layer in image.layers() {
        assert!(get(address, &blob(&name(), &layer.digest)).body == layer.bytes);
    }
    let line = group.larders[1].wait_until_it_logs("other settings than this Larder");
    let other = format!("http://{}", group.larders[0].address);
    assert!(
        line.contains("peers: ") && line.contains(&format!(" endpoint={other} keys=tagTtl\n")),
        "{line}"
    );
    let port =
        address_in(&group.larders[1].banner, "serving the management port", "management").port();
    let file = group.directories[1].path().join("command.yaml");
    std::fs::write(&file, config.replace("{port: 0}", &format!("{{port: {port}}}")))
        .expect("a file can be written");
    let file = file.display().to_string();
    let cut = &image.layers()[0].digest[..70];
    let (code, _, stderr) = run(&["--config-file", &file, "peers", cut]);
    assert!(code == Some(2) && stderr.contains("not a complete digest"), "{stderr}");
    for layer in image.layers() {
        let digest = layer.digest.to_string();
        let flags = ["--config-file", &file, "peers", &digest, "--json"];
        let (code, json, stderr) = run(&flags);
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        let members: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        let of = |url: &str| {
            let all = members.as_array().expect("a list");
            all.iter().find(|member| member["url"] == url).expect("the member").clone()
        };
        assert_eq!(of(&other)["differences"], serde_json::json!(["tagTtl"]));
        assert_eq!(of(&other)["version"], env!("CARGO_PKG_VERSION"));
        // The first one has asked the registry.
        let via = registry.requests_for("GET", &format!("/v2/{REPOSITORY}/blobs/{digest}"));
        let via = via[0].header("via").expect("a Via header").to_owned();
        let asked = match of(&other)["rank"].as_u64() {
            Some(1) => group.larders[0].address,
            _ => address,
        };
        let asked = get(asked, "/v2/");
        assert!(via.ends_with(asked.header("via").expect("a name")), "{via}");
    }
    let (code, table, _) = run(&["--config-file", &file, "peers"]);
    assert_eq!(code, Some(0));
    assert!(
        table.contains("answers, differs in tagTtl") && table.contains("this server"),
        "{table}"
    );
}
