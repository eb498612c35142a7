use std::path::Path;

use super::parse::parse;
use super::*;
use crate::cache::{OnUpstreamDelete, Prefetch, Ttl};
use crate::certificates::IdentityFiles;
use crate::http::{ClientAuth, ServerTlsSettings};
use crate::oci::ImageName;
use crate::prune;
use crate::upstream::{Credentials, HelperSettings, Scheme, Secret, TlsSettings};

fn settings(text: &str) -> Result<Settings, String> {
    let file = parse(Path::new("larder.yaml"), text).map_err(|error| error.to_string())?;
    build(file, Overrides::default()).map_err(|error| error.to_string())
}

#[test]
fn no_configuration_serves_any_public_registry() {
    let settings = load(Overrides::default()).unwrap();
    assert_eq!(settings.listen.to_string(), "0.0.0.0:8080");
    assert_eq!(settings.upstream.unlisted, UnlistedRegistries::Allow);
    assert_eq!(settings.naming.default_upstream, None);
    assert!(settings.store.fsync && !settings.cache.air_gapped);
}

#[test]
fn a_reference_servers_file_is_understood() {
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
    assert_eq!(settings.cache.upkeep, cache::Upkeep::default());
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
fn our_own_keys() {
    let text = "
tagTtl: forever
tags: [{pattern: nightly-*, tagTtl: always}]
staleWhileRevalidate: 1m
onUpstreamDelete: drop
prefetch: false
platforms: [linux/amd64, linux/arm64]
prefetchReferrers: true
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
    let prefetch = Prefetch { blobs: false, platforms, referrers: true };
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
fn a_cache_that_keeps_itself() {
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
    let cache::Upkeep { room, pins, prune: pruned } = &settings.cache.upkeep;
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
    // The management port is on loopback unless it is said otherwise.
    let expected = [
        ("127.0.0.1:8090".to_owned(), api::Scope::Everything),
        ("0.0.0.0:8091".to_owned(), api::Scope::Health),
        ("0.0.0.0:8092".to_owned(), api::Scope::Metrics),
    ];
    assert_eq!(listeners, expected);
}

#[test]
fn listeners_at_one_address_are_one() {
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
fn what_is_wrong_is_said_with_its_place() {
    for (text, place, words) in [
        ("prt: 1", "larder.yaml:1:1:", "unknown key prt: did you mean port?"),
        ("port: x", "larder.yaml:1:7:", "from 0 to 65535"),
        ("port: -1", "larder.yaml:1:7:", "from 0 to 65535"),
        ("workers: 1.5", "larder.yaml:1:10:", "whole number"),
        ("port: 99999", "larder.yaml:1:7:", "from 0 to 65535"),
        ("tagTtl: 5", "larder.yaml:1:9:", "unit"),
        ("logLevel: loud", "larder.yaml:1:11:", "debug, info, warn, error"),
        ("host: nowhere", "larder.yaml:1:7:", "IP address"),
        ("port: 1\nport: 2", "larder.yaml:2:1:", "the key port is given twice"),
        ("registries:\n  - name: a b", "larder.yaml:2:11:", "host name"),
        ("registries:\n  - scheme: http", "larder.yaml:2:", "name"),
        ("registries:\n  - name: a.io\n    scheme: ftp", "larder.yaml:3:13:", "http"),
        ("registries:\n  - name: a.io\n    endpoints: [a]", "larder.yaml:3:", "URL"),
        ("registries:\n  - name: a.io\n    endpoints: [{u: a}]", "larder.yaml:3:", "url"),
        ("registries:\n  - name: a.io\n    rateLimit: 5 MB", "larder.yaml:3:16:", "10MB"),
        ("registries:\n  - name: a.io\n    rateLimit: 0", "larder.yaml:3:16:", "leave it out"),
        ("registries:\n  - name: a.io\n    maxDownloads: x", "larder.yaml:3:19:", "whole"),
        ("tags: [{pattern: '/(/', tagTtl: 1m}]", "larder.yaml:1:18:", "not a pattern"),
        ("tags: [{pattern: x}]", "larder.yaml:1:", "tagTtl"),
        ("platforms: [linux]", "larder.yaml:1:13:", "linux/amd64"),
        ("onUpstreamDelete: burn", "larder.yaml:1:19:", "keep"),
        ("cacheSize: big", "larder.yaml:1:12:", "10MB"),
        ("freeSpace: 101%", "larder.yaml:1:12:", "10%"),
        ("pin: ['/(/']", "larder.yaml:1:", "not a pattern"),
        ("pin: quay.io/org/app", "larder.yaml:1:", "this is a list"),
        ("management: 8090", "larder.yaml:1:13:", "this is a map"),
        ("pruneConfig: {type: age}", "larder.yaml:1:21:", "accessed"),
        ("unlistedRegistries: maybe", "larder.yaml:1:21:", "allow"),
        (
            "registries:\n  - name: a.io\n    auth: {token: {provider: gcr}}",
            "larder.yaml:3:30:",
            "only token provider is ecr",
        ),
        (
            "registries:\n  - name: a.io\n    auth: {token: {providerOpts: role=x}}",
            "larder.yaml:3:34:",
            "profile=NAME",
        ),
        (
            "registries:\n  - name: a.io\n    auth: {credentialHelper: ../x}",
            "larder.yaml:3:30:",
            "absolute path",
        ),
        (
            "registries:\n  - name: a.io\n    repositories: [{prefix: \"\", auth: {}}]",
            "larder.yaml:3:29:",
            "whole components",
        ),
    ] {
        let error = settings(text).unwrap_err();
        assert!(error.starts_with(place) && error.contains(words), "{text}: {error}");
    }
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
    let tls = TlsSettings {
        ca: Some("/ca".into()),
        identity: Some(identity),
        insecure_skip_verify: false,
    };
    assert_eq!(settings.upstream.registries[0].endpoints[0].tls, tls);
}

#[test]
fn endpoints_have_credentials_and_certificates_of_their_own() {
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
fn parts_of_a_registry_have_credentials_of_their_own() {
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
fn a_reference_servers_login_to_ecr_is_understood() {
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
fn contradictions_are_refused() {
    for (text, words) in [
        ("port: 8081\nhealth: 8081", "port and health are both 8081"),
        ("port: 8081\nhost: 127.0.0.1\nmanagement: {port: 8081}", "port and management.port"),
        ("management: {port: 8081}\nhealth: 8081", "management.port and health are both 8081"),
        ("management: {tokenFile: /t}", "port"),
        ("cacheSize: 0", "cacheSize: 0 would keep nothing"),
        ("pruneConfig: {enabled: true, count: -2}", "pruneConfig.count"),
        ("pruneConfig: {enabled: true, frequency: '0'}", "pruneConfig.frequency"),
        ("registries: [{name: a.io}, {name: A.IO}]", "listed twice"),
        ("registries: [{name: a.io, aliases: [x]}, {name: b.io, aliases: [X]}]", "given twice"),
        ("registries: [{name: a.io, aliases: [b.io]}, {name: b.io}]", "name of a listed"),
        ("registries: [{name: a.io, aliases: [\"x/y\"]}]", "letters"),
        ("registries: [{name: a.io, auth: {user: u}}]", "needs password"),
        ("registries: [{name: a.io, auth: {password: p}}]", "needs auth.user"),
        ("registries: [{name: a.io, auth: {user: u, password: p, passwordFile: /f}}]", "keep one"),
        ("registries: [{name: a.io, auth: {user: u, passwordFromEnv: LARDER_UNSET}}]", "not set"),
        ("registries: [{name: a.io, tls: {cert: /c}}]", "needs tls.key"),
        ("registries: [{name: a.io, endpoints: []}]", "endpoints is empty"),
        ("registries: [{name: a.io, endpoints: [\"http://b\", \"http://b/\"]}]", "twice"),
        (
            "registries: [{name: a.io, endpoints: [\"http://b\", \"http://c\"], tls: {}}]",
            "belong to one of them",
        ),
        ("registries: [{name: a.io, auth: {credentialHelper: x, dockerConfig: /d}}]", "keep one"),
        (
            "registries: [{name: a.io, auth: {token: {provider: ecr, static: t}}}]",
            "token.static and token.provider",
        ),
        ("registries: [{name: a.io, auth: {user: u, credentialHelper: x}}]", "auth.user"),
        ("registries: [{name: a.io, auth: {expiry: 1h}}]", "needs auth.credentialHelper"),
        ("registries: [{name: a.io, auth: {credentialHelper: x, expiry: 1s}}]", "at least 60s"),
        ("registries: [{name: a.io, auth: {token: {expiry: 1h}}}]", "needs auth.token.provider"),
        (
            "registries: [{name: a.io, repositories: [{prefix: x, auth: {}}, \
                 {prefix: x, auth: {}}]}]",
            "given twice",
        ),
        ("registries: [{name: a.io, repositories: [{prefix: x, auth: {user: u}}]}]", "x: auth"),
    ] {
        let error = settings(text).unwrap_err();
        assert!(error.contains(words), "{text}: {error}");
    }
}

#[test]
fn tls_to_clients_is_whole_or_refused() {
    let tls = |text: &str| settings(&format!("serverTlsConfig: {text}")).map(|it| it.tls);
    let identity = IdentityFiles { cert: "/c".into(), key: "/k".into() };
    for (text, clients) in [
        ("{cert: /c, key: /k}", ClientAuth::None),
        ("{cert: /c, key: /k, ca: /a, clientAuth: none}", ClientAuth::None),
        ("{cert: /c, key: /k, clientAuth: verify}", ClientAuth::Verify { ca: None }),
        (
            "{cert: /c, key: /k, ca: /a, clientAuth: verify}",
            ClientAuth::Verify { ca: Some("/a".into()) },
        ),
    ] {
        let expected = ServerTlsSettings { identity: identity.clone(), clients };
        assert_eq!(tls(text), Ok(Some(expected)), "{text}");
    }
    for text in ["{}", "{clientAuth: none}"] {
        assert_eq!(tls(text), Ok(None), "{text}");
    }
    for text in ["{cert: /c}", "{key: /k}", "{ca: /a}", "{clientAuth: verify}"] {
        assert!(tls(text).unwrap_err().contains("both are needed"), "{text}");
    }
    assert!(tls("{cert: /c, key: /k, clientAuth: maybe}").unwrap_err().contains("verify"));
    let unused = settings("serverTlsConfig: {cert: /c, key: /k, ca: /a}").unwrap();
    assert_eq!(unused.without_effect, ["serverTlsConfig.ca (without clientAuth: verify)"]);
}

#[test]
fn passwords_are_wanted_only_where_a_file_is_named() {
    assert_eq!(settings("serverAuthConfig: {}").unwrap().access, None);
    let expected = access::Settings { htpasswd: "/h".into() };
    assert_eq!(settings("serverAuthConfig: {htpasswd: /h}").unwrap().access, Some(expected));
}

#[test]
fn a_secret_in_a_broken_file_is_not_quoted() {
    let error =
        settings("registries:\n  - name: a.io\n    auth: {password: hunter2, x: 1}").unwrap_err();
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn flags_are_put_over_the_file() {
    let file = parse(Path::new("f"), "port: 1\nairGapped: false\nlogLevel: error").unwrap();
    let over = Overrides {
        port: Some(2),
        air_gapped: true,
        log_level: Some(LogLevel::Debug),
        ..Overrides::default()
    };
    let settings = build(file, over).unwrap();
    assert_eq!((settings.listen.port(), settings.cache.air_gapped), (2, true));
    assert_eq!(settings.log_level, LogLevel::Debug);
}

#[test]
fn a_missing_file_is_named() {
    let over =
        Overrides { config_file: Some("/nonexistent/x.yaml".into()), ..Overrides::default() };
    assert!(load(over).unwrap_err().to_string().contains("/nonexistent/x.yaml"));
}

/// Everything that there is, and no secret.
const ALL: &str = "
imagePath: /srv/images
fsync: false
logLevel: warn
logFile: /var/log/larder
host: 127.0.0.1
port: 9090
management: {port: 1, host: 127.0.0.2, tokenFile: /t}
health: 2
metrics: 2
serverTlsConfig: {cert: /c, key: /k, clientAuth: verify, ca: /a}
serverAuthConfig: {htpasswd: /h}
allowedHosts: [larder.example.com, larder]
workers: 5
maxConnections: 100
drainTimeout: 90s
cacheSize: 200GB
freeSpace: 10%
pin: [alpine, 'quay.io/*', '/^a: b$/']
pinLists: [/p]
pruneConfig: {enabled: true, type: created, duration: 36h, frequency: 1d, count: 7, dryRun: true}
scrub: {every: 1d, rate: 5MiB}
helloWorld: true
resumeOnStart: false
preloadImages: /l
imageFile: /f
prefetch: false
platforms: [linux/amd64, linux/arm64]
prefetchReferrers: true
os: linux
arch: s390x
tagTtl: 90s
tags: [{pattern: '*', tagTtl: forever}, {pattern: nightly, tagTtl: '0'}]
alwaysPullLatest: true
staleWhileRevalidate: 1500ms
onUpstreamDelete: drop
revalidateTimeout: 250us
negativeTtl: 0
airGapped: true
defaultNs: docker.io
maxDownloads: 3
pullTimeout: 1234
unlistedRegistries: deny
unlistedPorts: [443, 5000]
registries:
  - name: docker.io
    description: for people
    aliases: [hub, dockerhub]
    endpoints: ['http://mirror.lan:5000', {url: 'https://docker.io', auth: {user: u, passwordFile: /p}, tls: {insecureSkipVerify: true}}]
    tagTtl: always
    tags: [{pattern: 'v?', tagTtl: 1h}]
    rateLimit: 1MiB
    maxDownloads: 2
  - {name: 'a.io:5000', scheme: http, auth: {dockerConfig: /d}, tls: {ca: /ca, cert: /c, key: /k}}
  - {name: b.io, auth: {credentialHelper: ecr-login, expiry: 1h}, repositories: [{prefix: team, auth: {credentialHelper: /x}}, {prefix: open, auth: {}}]}
  - {name: 123456789012.dkr.ecr.eu-west-1.amazonaws.com, auth: {token: {provider: ecr, providerOpts: 'profile=dev', expiry: 2h}}}
";

#[test]
fn what_is_shown_means_the_same() {
    for text in [
        "{}",
        ALL,
        "unlistedPorts: []",
        "freeSpace: 1GiB\nmetrics: 1\nhealth: 2",
        "platforms: [all]",
    ] {
        let (given, shown) = (settings(text).unwrap(), settings(text).unwrap().to_yaml());
        let again = settings(&shown).unwrap_or_else(|error| panic!("{error}:\n{shown}"));
        assert_eq!(given.differences(&again), Differences::default(), "{shown}");
        assert_eq!(again.to_yaml(), shown);
    }
}

#[test]
fn defaults_are_shown() {
    let shown = settings("{}").unwrap().to_yaml();
    for line in ["port: 8080", "logLevel: info", "prefetch: true", "maxDownloads: 32"] {
        assert!(shown.lines().any(|each| each == line), "{line}:\n{shown}");
    }
}

#[test]
fn no_secret_is_shown() {
    let text = "registries:
  - {name: a.io, auth: {user: robot, password: hunter2}}
  - {name: b.io, auth: {token: {static: hunter3}}, repositories: [{prefix: x, auth: {user: u, password: hunter4}}]}";
    let shown = settings(text).unwrap().to_yaml();
    assert!(!shown.contains("hunter") && shown.contains("robot"), "{shown}");
    assert_eq!(shown.matches("***").count(), 3, "{shown}");
}

#[test]
fn differences_are_named_by_what_a_reload_does_with_them() {
    let tls = |cert: &str| format!("serverTlsConfig: {{cert: {cert}, key: /k}}");
    for (old, new, at_once, after_restart) in [
        ("", "{}", &[][..], &[][..]),
        ("", "imageFile: x", &[], &[]),
        ("", "unlistedPorts: [443]\ntagTtl: 300s", &[], &[]),
        ("", "port: 1\nlogLevel: debug\nfsync: false", &["logLevel"], &["port", "fsync"]),
        ("", "management: {port: 1}", &[], &["management"]),
        ("", "registries: [{name: a.io, tagTtl: 1h}]", &["registries"], &[]),
        ("", "pruneConfig: {enabled: true}", &["pruneConfig"], &[]),
        ("", &tls("/c"), &[], &["serverTlsConfig"]),
        (&tls("/c"), &tls("/d"), &["serverTlsConfig"], &[]),
        (
            "registries: [{name: a.io, auth: {token: {static: one}}}]",
            "registries: [{name: a.io, auth: {token: {static: two}}}]",
            &["registries"],
            &[],
        ),
    ] {
        let (old, new) = (settings(old).unwrap(), settings(new).unwrap());
        let expected =
            Differences { at_once: at_once.to_vec(), after_restart: after_restart.to_vec() };
        assert_eq!(old.differences(&new), expected, "{}", new.to_yaml());
        assert_eq!(new.differences(&old), expected, "{}", new.to_yaml());
        assert_eq!(new.differences(&new), Differences::default());
    }
}

#[test]
fn similar_keys_and_values_are_suggested() {
    for (text, words) in [
        ("prt: 1", "unknown key prt: did you mean port?"),
        ("imagepath: /x", "did you mean imagePath?"),
        ("scrub: {evry: 1d}", "unknown key evry: did you mean every? Allowed: every, rate"),
        ("pruneConfig: {type: create}", "unknown value create: did you mean created?"),
        ("onUpstreamDelete: burn", "unknown value burn: use one of keep, drop"),
        ("logLevel: warning", "unknown log level warning: did you mean warn?"),
        ("xyz: 1", "unknown key xyz: use one of imagePath, logLevel"),
        ("serverAuthConfig: {passwd: /x}", "htpasswd"),
    ] {
        let error = settings(text).unwrap_err();
        assert!(error.contains(words), "{text}: {error}");
    }
}
