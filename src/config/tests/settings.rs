//! What the keys set.

use std::path::Path;
use std::time::Duration;

use super::super::parse::parse;
use super::super::*;
use super::settings;
use crate::cache::{OnUpstreamDelete, Prefetch, PrefetchOnHead, Ttl};
use crate::certificates::IdentityFiles;
use crate::image_sync::{Newest, NewestBy, Schedule};
use crate::oci::ImageName;
use crate::oidc::KeysFrom;
use crate::prune;
use crate::upstream::{Credentials, HelperSettings, Scheme, Secret, TlsSettings};

#[test]
fn no_configuration_serves_any_public_registry() {
    let settings = load(Overrides::default()).unwrap();
    assert_eq!(settings.listen.to_string(), "0.0.0.0:8080");
    assert_eq!(settings.upstream.unlisted, UnlistedRegistries::Allow);
    assert_eq!(settings.naming.default_upstream, None);
    assert!(settings.store.fsync && !settings.cache.air_gapped);
}

#[test]
fn file_of_the_reference_server_is_accepted() {
    let text = "
imagePath: /tmp/images
logLevel: warn
port: 9090
host: 127.0.0.1
os: linux
arch: amd64
pullTimeout: 10000
alwaysPullLatest: true
airGapped: false
helloWorld: false
defaultNs: docker.io
health: 8081
metrics: 9091
preloadImages: /tmp/list
registries:
  - name: localhost:8080
    description: plain
    scheme: http
  - name: quay.io
    tls:
      insecureSkipVerify: true
pruneConfig:
  enabled: false
  duration: 30d
  type: accessed
  frequency: 1d
  count: -1
  dryRun: false
serverTlsConfig: {}
";
    let settings = settings(text).unwrap();
    assert_eq!(settings.listen.to_string(), "127.0.0.1:9090");
    let listeners = &settings.management.listeners;
    let ports: Vec<u16> = listeners.iter().map(|each| each.address.port()).collect();
    assert_eq!(ports, [8081, 9091]);
    assert_eq!(settings.cache.maintenance, cache::Maintenance::default());
    assert_eq!(settings.log_level, LogLevel::Warn);
    assert_eq!(settings.upstream.timeouts.headers, Duration::from_secs(10));
    let [local, quay] = &settings.upstream.registries[..] else { panic!("two registries") };
    let (local, quay) = (&local.endpoints[0], &quay.endpoints[0]);
    assert_eq!(local.endpoint.scheme, Scheme::Http);
    assert!(quay.tls.insecure_skip_verify && quay.endpoint.scheme == Scheme::Https);
    assert!(settings.without_effect.is_empty());
    assert_eq!(settings.preload_images, Some("/tmp/list".into()));
    assert_eq!(settings.load_platforms, Platforms::parse(["linux/amd64"]).unwrap());
}

#[test]
fn keys_that_the_reference_server_does_not_have() {
    let text = "
tagTtl: forever
tags: [{pattern: nightly-*, tagTtl: always}]
staleWhileRevalidate: 1m
onUpstreamDelete: drop
prefetch: false
platforms: [linux/amd64, linux/arm64]
prefetchReferrers: true
prefetchOnHead: always
os: linux
arch: s390x
scrub: {every: 1d, rate: 5MB}
revalidateTimeout: 500ms
negativeTtl: 0
unlistedRegistries: deny
workers: 5
maxConnections: 100
maxDownloads: 3
drainTimeout: 10s
resumeOnStart: false
fsync: false
registries:
  - {name: docker.io, endpoints: [\"http://127.0.0.1:5000\"], aliases: [hub], tagTtl: 1h, tags: [{pattern: '/^[0-9]/', tagTtl: '0'}]}
  - {name: slow.io, rateLimit: 1MiB, maxDownloads: 2}
";
    let settings = settings(&text.replace("\\", "")).unwrap();
    let policy = &settings.cache.freshness;
    let ttl = |upstream: &str, tag: &str| {
        let name = ImageName::new(upstream.parse().unwrap(), "org/app".parse().unwrap());
        policy.ttl(&name, &tag.parse().unwrap())
    };
    assert_eq!(ttl("quay.io", "v1"), Ttl::Forever);
    assert_eq!(ttl("quay.io", "nightly-1"), Ttl::Always);
    assert_eq!(ttl("docker.io", "v1"), Ttl::For(Duration::from_secs(3600)));
    assert_eq!(ttl("docker.io", "1.2"), Ttl::Always);
    assert_eq!(policy.stale_while_revalidate, Duration::from_secs(60));
    assert_eq!(policy.on_upstream_delete, OnUpstreamDelete::Drop);
    let platforms = Platforms::parse(["linux/amd64", "linux/arm64"]).unwrap();
    let prefetch = Prefetch {
        blobs: false,
        platforms,
        referrers: true,
        on_head: PrefetchOnHead::Always,
        default_platform: "linux/s390x".parse().unwrap(),
    };
    assert_eq!(settings.cache.prefetch, prefetch);
    let scrub = settings.scrub.unwrap();
    assert_eq!((scrub.every.as_secs(), scrub.rate.get()), (86_400, 5_000_000));
    assert_eq!(settings.cache.revalidate_timeout, Duration::from_millis(500));
    assert_eq!(settings.upstream.unlisted, UnlistedRegistries::Deny);
    assert_eq!((settings.http.workers, settings.http.max_connections), (5, 100));
    assert!(!settings.resume_on_start);
    let [hub, slow] = &settings.upstream.registries[..] else { panic!("two registries") };
    assert_eq!(hub.endpoints[0].endpoint.authority, "127.0.0.1:5000");
    assert_eq!((hub.rate_limit, slow.rate_limit), (None, NonZeroU64::new(1 << 20)));
    let downloads = HashMap::from([(slow.upstream.clone(), 2)]);
    assert_eq!(settings.cache.downloads_per_upstream, downloads);
    assert_eq!(settings.naming.aliases["hub"].as_str(), "docker.io");
}

#[test]
fn limits_pins_pruning_and_the_management_port() {
    let text = "
cacheSize: 200GB
freeSpace: 10%
pin: ['registry.k8s.io/*', 'alpine:3.20']
pinLists: [/etc/larder/pins]
pruneConfig: {enabled: true, duration: 12h, type: created, frequency: 1h, count: 50, dryRun: true}
management: {port: 8090, tokenFile: /token}
health: 8091
metrics: 8092
";
    let settings = settings(text).unwrap();
    let cache::Maintenance { room, pins, prune: pruned } = &settings.cache.maintenance;
    assert_eq!(room.cap_bytes, Some(200_000_000_000));
    assert_eq!(room.floor, Some(prune::FreeSpace::Percent(10)));
    let named: Vec<String> = pins.pins.iter().map(ToString::to_string).collect();
    assert_eq!(named, ["registry.k8s.io/*", "docker.io/library/alpine:3.20"]);
    assert_eq!(pins.lists, [PathBuf::from("/etc/larder/pins")]);
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let expected = prune::PrunePolicy {
        by: prune::PruneBy::Created,
        duration: hours(12),
        every: hours(1),
        count: Some(50),
        is_dry_run: true,
    };
    assert_eq!(*pruned, Some(expected));
    let listeners: Vec<(String, api::Scope)> = settings
        .management
        .listeners
        .iter()
        .map(|each| (each.address.to_string(), each.scope))
        .collect();
    // The management port is on loopback by default.
    let expected = [
        ("127.0.0.1:8090".to_owned(), api::Scope::Everything),
        ("0.0.0.0:8091".to_owned(), api::Scope::Health),
        ("0.0.0.0:8092".to_owned(), api::Scope::Metrics),
    ];
    assert_eq!(listeners, expected);
}

#[test]
fn keys_with_the_same_address_share_a_listener() {
    let of = |text: &str| {
        let listeners = settings(text).unwrap().management.listeners;
        let scopes: Vec<api::Scope> = listeners.iter().map(|each| each.scope).collect();
        scopes
    };
    assert_eq!(of("health: 1\nmetrics: 1"), [api::Scope::HealthAndMetrics]);
    let all = "host: 127.0.0.1\nmanagement: {port: 1}\nhealth: 1\nmetrics: 1";
    assert_eq!(of(all), [api::Scope::Everything]);
    assert!(of("port: 1").is_empty());
}

#[test]
fn credentials_and_certificates_of_a_registry() {
    let text = "
registries:
  - {name: a.io, auth: {user: u, password: p}, tls: {ca: /ca, cert: /c, key: /k}}
  - {name: b.io, auth: {user: u, passwordFile: /f}}
  - {name: c.io, auth: {dockerConfig: /d}}
  - {name: d.io, auth: {token: {static: t}}}
  - {name: e.io, auth: {}}
  - {name: f.io, auth: {credentialHelper: ecr-login, expiry: 1h}}
";
    let settings = settings(text).unwrap();
    let user = || "u".to_owned();
    let expected = [
        Credentials::Password { user: user(), password: Secret::new("p") },
        Credentials::PasswordFile { user: user(), path: "/f".into() },
        Credentials::DockerConfig { path: "/d".into() },
        Credentials::Bearer(Secret::new("t")),
        Credentials::Anonymous,
        Credentials::Helper(HelperSettings {
            expiry: Duration::from_secs(3600),
            ..HelperSettings::of("ecr-login".parse().unwrap())
        }),
    ];
    for (entry, expected) in settings.upstream.registries.iter().zip(expected) {
        assert_eq!(entry.endpoints[0].credentials, expected, "{}", entry.upstream);
    }
    let identity = IdentityFiles { cert: "/c".into(), key: "/k".into() };
    let tls =
        TlsSettings { ca: Some("/ca".into()), identity: Some(identity), ..TlsSettings::default() };
    assert_eq!(settings.upstream.registries[0].endpoints[0].tls, tls);
}

#[test]
fn each_endpoint_has_its_own_credentials_and_certificates() {
    let text = "
registries:
  - name: docker.io
    endpoints:
      - http://mirror.lan:5000
      - url: https://docker.io
        auth: {user: u, password: p}
        tls: {insecureSkipVerify: true}
  - name: one.io
    endpoints: [{url: https://one.lan}]
    auth: {token: {static: t}}
";
    let settings = settings(text).unwrap();
    let [hub, one] = &settings.upstream.registries[..] else { panic!("two registries") };
    let [mirror, real] = &hub.endpoints[..] else { panic!("two endpoints") };
    assert_eq!(mirror.endpoint.authority, "mirror.lan:5000");
    assert_eq!(
        (mirror.endpoint.scheme, &mirror.credentials),
        (Scheme::Http, &Credentials::Anonymous)
    );
    assert_eq!(real.endpoint.authority, "registry-1.docker.io");
    assert!(matches!(&real.credentials, Credentials::Password { .. }));
    assert!(real.tls.insecure_skip_verify && !mirror.tls.insecure_skip_verify);
    assert_eq!(one.endpoints[0].credentials, Credentials::Bearer(Secret::new("t")));
}

#[test]
fn parts_of_a_registry_have_their_own_credentials() {
    let text = "
registries:
  - name: a.io
    auth: {user: u, password: p}
    repositories:
      - {prefix: team-a, auth: {token: {static: t}}}
      - {prefix: team-a/open, auth: {}}
";
    let settings = settings(text).unwrap();
    let part = |prefix: &str, auth| (prefix.parse().unwrap(), auth);
    let otherwise = Credentials::Password { user: "u".into(), password: Secret::new("p") };
    let expected = Credentials::ByRepository {
        parts: vec![
            part("team-a", Credentials::Bearer(Secret::new("t"))),
            part("team-a/open", Credentials::Anonymous),
        ],
        otherwise: Box::new(otherwise),
    };
    assert_eq!(settings.upstream.registries[0].endpoints[0].credentials, expected);
}

#[test]
fn ecr_login_of_the_reference_server_is_accepted() {
    let text = "
registries:
  - name: 123456789012.dkr.ecr.eu-west-1.amazonaws.com
    auth: {token: {provider: ecr, providerOpts: \"profile=dev,region=eu-west-1\", expiry: 2h}}
";
    let settings = settings(text).unwrap();
    let Credentials::Ecr(ecr) = &settings.upstream.registries[0].endpoints[0].credentials else {
        panic!("{settings:?}")
    };
    assert_eq!((ecr.registry.region(), ecr.profile.as_deref()), ("eu-west-1", Some("dev")));
    assert_eq!(ecr.expiry, Duration::from_secs(7200));
}

#[test]
fn clients_need_passwords_only_if_a_file_is_configured() {
    assert_eq!(settings("serverAuthConfig: {}").unwrap().access, None);
    let expected = users::Settings { htpasswd: "/h".into() };
    assert_eq!(settings("serverAuthConfig: {htpasswd: /h}").unwrap().access, Some(expected));
}

#[test]
fn tokens_are_accepted_only_of_configured_issuers() {
    assert_eq!(settings("serverAuthConfig: {oidc: []}").unwrap().oidc, None);
    let text = "serverAuthConfig: {oidc: [{issuer: 'https://a', audience: x, ca: /c, tokenFile: /t, \
                allow: [{claims: {a.b: 'c*'}, repositories: [quay.io]}, {}]}]}";
    let oidc = settings(text).unwrap().oidc.unwrap();
    let [issuer] = &oidc.issuers[..] else { panic!("{oidc:?}") };
    assert_eq!((issuer.audience.as_str(), issuer.user.as_str()), ("x", "sub"));
    let KeysFrom::Discovery(discovery) = &issuer.keys else { panic!("{oidc:?}") };
    assert_eq!(discovery.tls.ca, Some("/c".into()));
    assert_eq!(discovery.token_file, Some("/t".into()));
    let [first, second] = &issuer.allow[..] else { panic!("{oidc:?}") };
    assert_eq!(first.claims, [("a.b".to_owned(), "c*".parse().unwrap())]);
    assert_eq!(*first.repositories, ["quay.io".parse().unwrap()]);
    assert!(second.claims.is_empty() && second.repositories.is_empty());
}

#[test]
fn flags_override_the_file() {
    let file = parse(Path::new("f"), "port: 1\nairGapped: false\nlogLevel: error").unwrap();
    let over = Overrides {
        port: Some(Port(2)),
        air_gapped: true,
        log_level: Some(LogLevel::Debug),
        ..Overrides::default()
    };
    let settings = build(file, over).unwrap();
    assert_eq!((settings.listen.port(), settings.cache.air_gapped), (2, true));
    assert_eq!(settings.log_level, LogLevel::Debug);
}

#[test]
fn certificates_of_members_that_dns_finds_are_for_its_name() {
    let peers = |text: &str| settings(text).unwrap().upstream.peers.unwrap().access.tls.server_name;
    let named = peers("peers: {dns: larder-peers.larder.svc, scheme: https, tls: {ca: /ca}}");
    assert_eq!(named.as_deref(), Some("larder-peers.larder.svc"));
    assert_eq!(peers("peers: {urls: ['https://10.0.0.1']}"), None);
}

#[test]
fn entries_of_sync_have_the_defaults_of_loads() {
    let text = "
os: linux
arch: s390x
prefetchReferrers: true
registries: [{name: docker.io, aliases: [hub]}]
sync:
  - {name: one, images: [hub/library/alpine, 'quay.io/org/app:v*'], lists: [/l], every: 6h}
  - {name: two, lists: [/l], cron: 30 3 * * *, newest: 2, platforms: [all], referrers: false}
  - {name: three, lists: [/l], cron: '@daily', newest: 3, newestBy: date, platforms: [linux/arm64]}
";
    let settings = settings(text).unwrap();
    let [one, two, three] = &settings.sync[..] else { panic!("three entries") };
    let images: Vec<String> = one.images.iter().map(ToString::to_string).collect();
    assert_eq!(images, ["docker.io/library/alpine:latest", "quay.io/org/app:v*"]);
    assert_eq!(one.schedule, Schedule::Every(Duration::from_secs(6 * 3600)));
    assert_eq!((&one.platforms, one.referrers), (&settings.load_platforms, true));
    assert_eq!((one.newest, one.lists.len()), (None, 1));
    assert_eq!(two.newest, Some(Newest { count: 2, by: NewestBy::Semver }));
    assert_eq!((&two.platforms, two.referrers), (&Platforms::All, false));
    assert_eq!(three.newest, Some(Newest { count: 3, by: NewestBy::Date }));
    assert_eq!(three.platforms, Platforms::parse(["linux/arm64"]).unwrap());
    assert_eq!(three.schedule, Schedule::Cron("@daily".parse().unwrap()));
}
