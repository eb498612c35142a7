//! The effective settings: how they are shown, and how two of them differ.

use super::super::Differences;
use super::generated::{keys, map_of};
use super::settings;
use crate::config::keys::Key;

/// Every key, without secrets.
const ALL: &str = "
imagePath: /srv/images
fsync: false
logLevel: warn
logFormat: json
logFile: /var/log/larder
host: 127.0.0.1
port: 9090
management: {port: 1, host: 127.0.0.2, tokenFile: /t}
health: 2
metrics: 2
serverTlsConfig: {cert: /c, key: /k, clientAuth: verify, ca: /a}
serverAuthConfig: {htpasswd: /h, oidc: [{issuer: 'https://k8s.example', audience: larder, ca: /ca, tokenFile: /t, user: email, allow: [{claims: {kubernetes.io.namespace: 'team-*'}, repositories: [quay.io]}]}, {issuer: 'https://ci.example', audience: x, keys: /j, allow: [{}]}]}
allowedHosts: [larder.example.com, larder]
workers: 5
maxConnections: 100
drain: serve
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
sync:
  - {name: base, images: ['alpine:3.20', 'quay.io/org/app:/^v1[.]/'], newest: 5, newestBy: date, every: 6h, platforms: [linux/amd64], referrers: true}
  - {name: apps, lists: [/l], cron: '30 3 * * 1-5'}
imageFile: /f
prefetch: false
platforms: [linux/amd64, linux/arm64]
prefetchReferrers: true
prefetchOnHead: never
os: linux
arch: s390x
tagTtl: 90s
tags: [{pattern: '*', tagTtl: forever, hold: 72h}, {pattern: nightly, tagTtl: '0'}]
alwaysPullLatest: true
staleWhileRevalidate: 1500ms
onUpstreamDelete: drop
revalidateTimeout: 250us
negativeTtl: 0
airGapped: true
allow: [quay.io, 'docker.io/library/*', '/^ghcr/']
deny: [docker.io/library/alpine]
accessTtl: 5m
accessOffline: 1d
blobs: any
events: {webhook: 'https://alerts.example.com', types: [tag-moved, damaged], tokenFile: /t, tls: {ca: /ca}}
defaultNs: docker.io
maxDownloads: 3
pullTimeout: 1234
unlistedRegistries: deny
unlistedPorts: [443, 5000]
parents: ['http://larder.rack:8080', {url: 'https://larder.site', kind: larder, access: client, auth: {user: u, passwordFile: /p}, tls: {ca: /ca}}]
peers: {dns: larder-peers.larder.svc, port: 8081, scheme: https, auth: {user: u, passwordFile: /p}, tls: {ca: /ca}}
objectStore: {bucket: b, endpoint: 'https://s3.lan', region: r, prefix: a/b, addressing: virtual, accessKeyId: k, secretAccessKeyFile: /s, tls: {ca: /ca}, readOnly: false, uploads: 2, uploadRate: 1MiB, partSize: 10MiB, maxSize: 1TB, unusedFor: 30d, sweep: never, redirect: true, redirectEndpoint: 'https://s3.example.com'}
registries:
  - name: docker.io
    description: for people
    aliases: [hub, dockerhub]
    access: client
    endpoints: ['http://mirror.lan:5000', {url: 'https://docker.io', auth: {user: u, passwordFile: /p}, tls: {insecureSkipVerify: true}}]
    tagTtl: always
    tags: [{pattern: 'v?', tagTtl: 1h}]
    rateLimit: 1MiB
    maxDownloads: 2
  - {name: 'a.io:5000', scheme: http, auth: {dockerConfig: /d}, tls: {ca: /ca, cert: /c, key: /k}}
  - {name: b.io, auth: {credentialHelper: ecr-login, expiry: 1h}, repositories: [{prefix: team, auth: {credentialHelper: /x}}, {prefix: open, auth: {}, access: client}]}
  - {name: 123456789012.dkr.ecr.eu-west-1.amazonaws.com, auth: {token: {provider: ecr, providerOpts: 'profile=dev', expiry: 2h}}}
";

#[test]
fn shown_settings_parse_to_the_same_settings() {
    for text in [
        "{}",
        ALL,
        "unlistedPorts: []",
        "freeSpace: 1GiB\nmetrics: 1\nhealth: 2",
        "platforms: [all]",
        "peers: {urls: ['http://a:1', 'https://b']}",
        "objectStore: {bucket: b, region: r, profile: p}",
    ] {
        let (given, shown) = (settings(text).unwrap(), settings(text).unwrap().to_yaml());
        let again = settings(&shown).unwrap_or_else(|error| panic!("{error}:\n{shown}"));
        assert_eq!(given.differences(&again), Differences::default(), "{shown}");
        assert_eq!(again.to_yaml(), shown);
    }
}

/// A key without a value here has a text form that no test parses again.
#[test]
fn every_key_is_shown() {
    let shown = settings(ALL).unwrap().to_yaml();
    let mut names = Vec::new();
    keys().iter().for_each(|key| collect(key, &mut names));
    for name in &names {
        // A registry's scheme is shown in the URL of its endpoint, its secrets are in another test; `urls` excludes
        // `dns`, and `profile` excludes `accessKeyId`.
        let elsewhere = [
            "scheme",
            "password",
            "passwordFromEnv",
            "static",
            "urls",
            "profile",
            "secretAccessKey",
            "secretAccessKeyFromEnv",
        ];
        let is_elsewhere = elsewhere.contains(name);
        assert!(is_elsewhere || shown.contains(&format!("{name}:")), "{name}:\n{shown}");
    }
    assert!(names.len() > 80, "{} keys", names.len());
}

fn collect(key: &Key, names: &mut Vec<&'static str>) {
    names.push(key.name);
    map_of(&key.shape).iter().flat_map(|(_, map)| &map.keys).for_each(|key| collect(key, names));
}

#[test]
fn defaults_are_shown() {
    let shown = settings("{}").unwrap().to_yaml();
    for line in ["port: 8080", "logLevel: info", "prefetch: true", "maxDownloads: 32"] {
        assert!(shown.lines().any(|each| each == line), "{line}:\n{shown}");
    }
}

#[test]
fn secrets_are_not_shown() {
    let text = "registries:
  - {name: a.io, auth: {user: robot, password: hunter2}}
  - {name: b.io, auth: {token: {static: hunter3}}, repositories: [{prefix: x, auth: {user: u, password: hunter4}}]}";
    let shown = settings(text).unwrap().to_yaml();
    assert!(!shown.contains("hunter") && shown.contains("robot"), "{shown}");
    assert_eq!(shown.matches("***").count(), 3, "{shown}");
}

#[test]
fn differences_are_grouped_by_what_a_reload_does() {
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
