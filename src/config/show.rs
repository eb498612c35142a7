//! `larder config show`: the settings that are in force, as a configuration file.
//!
//! What is printed is a file that means the same, secrets aside: each value in the form in which it is
//! written, defaults included.

use std::path::Path;
use std::time::Duration;

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;

use super::Settings;
use crate::api::Scope;
use crate::cache::{FreshnessPolicy, OnUpstreamDelete, TagRules, Ttl};
use crate::http::ClientAuth;
use crate::oci::{Platforms, Upstream};
use crate::prune::{FreeSpace, PruneBy, PrunePolicy};
use crate::upstream::{
    Credentials, EndpointSettings, RegistrySettings, Timeouts, TlsSettings, UnlistedRegistries,
};

/// What stands for a secret.
const MASK: &str = "***";

/// A value, or keys in the order in which they are to be read.
enum Node {
    Leaf(Value),
    List(Vec<Node>),
    Map(Map),
}

#[derive(Default)]
struct Map(Vec<(&'static str, Node)>);

impl Map {
    fn put(&mut self, key: &'static str, value: impl Into<Node>) {
        self.0.push((key, value.into()));
    }

    fn put_some(&mut self, key: &'static str, value: Option<impl Into<Node>>) {
        if let Some(value) = value {
            self.put(key, value);
        }
    }

    fn put_path(&mut self, key: &'static str, path: Option<&Path>) {
        self.put_some(key, path.map(|path| path.display().to_string()));
    }

    /// Unless there is nothing in it.
    fn put_list(&mut self, key: &'static str, list: Vec<Node>) {
        if !list.is_empty() {
            self.put(key, Node::List(list));
        }
    }
}

impl<T: Into<Value>> From<T> for Node {
    fn from(value: T) -> Node {
        Node::Leaf(value.into())
    }
}

impl From<Map> for Node {
    fn from(map: Map) -> Node {
        Node::Map(map)
    }
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Node::Leaf(value) => value.serialize(serializer),
            Node::List(list) => list.serialize(serializer),
            Node::Map(map) => map.serialize(serializer),
        }
    }
}

impl Serialize for Map {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl Settings {
    /// All settings as YAML, with `***` for every secret. Proxies are not among them: they are the
    /// environment's.
    pub fn to_yaml(&self) -> String {
        let mut map = Map::default();
        self.put_serving(&mut map);
        self.put_keeping(&mut map);
        self.put_freshness(&mut map);
        self.put_fetching(&mut map);
        // Maps with texts for keys, and values that are JSON: there is nothing that YAML cannot say.
        serde_saphyr::to_string(&map).unwrap_or_else(|error| format!("# {error}\n"))
    }

    fn put_serving(&self, map: &mut Map) {
        map.put("imagePath", self.store.root.display().to_string());
        map.put("fsync", self.store.fsync);
        map.put("logLevel", self.log_level.to_string());
        map.put_path("logFile", self.log_file.as_deref());
        map.put("host", self.listen.ip().to_string());
        map.put("port", self.listen.port());
        self.put_management(map);
        if let Some(tls) = &self.tls {
            let mut entry = Map::default();
            entry.put("cert", tls.identity.cert.display().to_string());
            entry.put("key", tls.identity.key.display().to_string());
            match &tls.clients {
                ClientAuth::None => entry.put("clientAuth", "none"),
                ClientAuth::Verify { ca } => {
                    entry.put("clientAuth", "verify");
                    entry.put_path("ca", ca.as_deref());
                }
            }
            map.put("serverTlsConfig", entry);
        }
        if let Some(access) = &self.access {
            let mut entry = Map::default();
            entry.put("htpasswd", access.htpasswd.display().to_string());
            map.put("serverAuthConfig", entry);
        }
        let hosts = self.allowed_hosts.iter().map(|host| host.to_string().into());
        map.put_list("allowedHosts", hosts.collect());
        map.put("workers", self.http.workers);
        map.put("maxConnections", self.http.max_connections);
        map.put("drainTimeout", duration(self.http.drain_timeout));
    }

    fn put_management(&self, map: &mut Map) {
        for listener in &self.management.listeners {
            let port = listener.address.port();
            match listener.scope {
                Scope::Everything => {
                    let mut entry = Map::default();
                    entry.put("port", port);
                    entry.put("host", listener.address.ip().to_string());
                    entry.put_path("tokenFile", self.management.token_file.as_deref());
                    map.put("management", entry);
                }
                Scope::Health => map.put("health", port),
                Scope::Metrics => map.put("metrics", port),
                Scope::HealthAndMetrics => {
                    map.put("health", port);
                    map.put("metrics", port);
                }
            }
        }
    }

    fn put_keeping(&self, map: &mut Map) {
        let maintenance = &self.cache.maintenance;
        map.put_some("cacheSize", maintenance.room.cap_bytes.map(size));
        map.put_some("freeSpace", maintenance.room.floor.map(free_space));
        let pins = maintenance.pins.pins.iter().map(|pin| pin.to_string().into());
        map.put_list("pin", pins.collect());
        let lists = maintenance.pins.lists.iter().map(|path| path.display().to_string().into());
        map.put_list("pinLists", lists.collect());
        map.put("pruneConfig", prune(maintenance.prune.as_ref()));
        let mut scrub = Map::default();
        scrub.put("every", duration(self.scrub.as_ref().map_or(Duration::ZERO, |it| it.every)));
        scrub.put_some("rate", self.scrub.as_ref().map(|it| size(it.rate.get())));
        map.put("scrub", scrub);
        map.put("helloWorld", self.cache.freshness.own.is_some());
        map.put("resumeOnStart", self.resume_on_start);
        map.put_path("preloadImages", self.preload_images.as_deref());
        map.put_some("imageFile", self.image_file.clone());
        map.put("prefetch", self.cache.prefetch.blobs);
        map.put_list("platforms", platforms(&self.cache.prefetch.platforms));
        map.put("prefetchReferrers", self.cache.prefetch.referrers);
        if let Platforms::Only(only) = &self.load_platforms
            && let [one] = &only[..]
            && self.load_platforms != self.cache.prefetch.platforms
        {
            let text = one.to_string();
            // A variant cannot be said there, and was not.
            if let Some((os, arch)) = text.split_once('/') {
                map.put("os", os);
                map.put("arch", arch);
            }
        }
    }

    fn put_freshness(&self, map: &mut Map) {
        let policy = &self.cache.freshness;
        put_rules(map, &policy.rules);
        map.put("alwaysPullLatest", policy.always_pull_latest);
        map.put("staleWhileRevalidate", duration(policy.stale_while_revalidate));
        map.put(
            "onUpstreamDelete",
            match policy.on_upstream_delete {
                OnUpstreamDelete::Keep => "keep",
                OnUpstreamDelete::Drop => "drop",
            },
        );
        map.put("revalidateTimeout", duration(self.cache.revalidate_timeout));
        map.put("negativeTtl", duration(self.cache.negative_ttl));
    }

    fn put_fetching(&self, map: &mut Map) {
        map.put("airGapped", self.cache.air_gapped);
        map.put_some("defaultNs", self.naming.default_upstream.as_ref().map(Upstream::to_string));
        map.put("maxDownloads", self.cache.blob_fetchers);
        map.put("minimumRate", size(self.cache.minimum_rate));
        // Without the key, the two times that it sets differ.
        if self.upstream.timeouts != Timeouts::default() {
            let milliseconds = self.upstream.timeouts.headers.as_millis();
            map.put("pullTimeout", u64::try_from(milliseconds).unwrap_or(u64::MAX));
        }
        map.put(
            "unlistedRegistries",
            match self.upstream.unlisted {
                UnlistedRegistries::Allow => "allow",
                UnlistedRegistries::Deny => "deny",
            },
        );
        let ports = self.upstream.unlisted_ports.iter();
        // Also if there are none: without the key there is one.
        let ports = ports.map(|port| u64::from(port).into()).collect();
        map.put("unlistedPorts", Node::List(ports));
        let entries = self.upstream.registries.iter().map(|entry| self.registry(entry).into());
        map.put_list("registries", entries.collect());
    }

    fn registry(&self, entry: &RegistrySettings) -> Map {
        let mut map = Map::default();
        let name = &entry.upstream;
        map.put("name", name.to_string());
        let aliases = self.naming.aliases_of(name).into_iter();
        map.put_list("aliases", aliases.map(Node::from).collect());
        map.put_list("endpoints", entry.endpoints.iter().map(|it| endpoint(it).into()).collect());
        let FreshnessPolicy { by_upstream, .. } = &self.cache.freshness;
        if let Some(rules) = by_upstream.get(name) {
            put_rules(&mut map, rules);
        }
        map.put_some("rateLimit", entry.rate_limit.map(|rate| size(rate.get())));
        map.put_some("maxDownloads", self.cache.downloads_per_upstream.get(name).copied());
        map
    }
}

fn endpoint(settings: &EndpointSettings) -> Map {
    let mut map = Map::default();
    map.put("url", settings.endpoint.url());
    match &settings.credentials {
        Credentials::ByRepository { parts, otherwise } => {
            map.put_some("auth", auth(otherwise));
            let parts = parts.iter().map(|(prefix, credentials)| {
                let mut part = Map::default();
                part.put("prefix", prefix.to_string());
                part.put("auth", auth(credentials).unwrap_or_default());
                part.into()
            });
            map.put_list("repositories", parts.collect());
        }
        credentials => map.put_some("auth", auth(credentials)),
    }
    map.put_some("tls", (settings.tls != TlsSettings::default()).then(|| tls(&settings.tls)));
    map
}

fn tls(settings: &TlsSettings) -> Map {
    let mut map = Map::default();
    map.put_path("ca", settings.ca.as_deref());
    if let Some(identity) = &settings.identity {
        map.put("cert", identity.cert.display().to_string());
        map.put("key", identity.key.display().to_string());
    }
    map.put("insecureSkipVerify", settings.insecure_skip_verify);
    map
}

fn auth(credentials: &Credentials) -> Option<Map> {
    let mut map = Map::default();
    match credentials {
        // Parts are in an entry of their own, and have no parts.
        Credentials::Anonymous | Credentials::ByRepository { .. } => return None,
        Credentials::Password { user, password: _ } => {
            map.put("user", user.clone());
            map.put("password", MASK);
        }
        Credentials::PasswordFile { user, path } => {
            map.put("user", user.clone());
            map.put("passwordFile", path.display().to_string());
        }
        Credentials::DockerConfig { path } => map.put("dockerConfig", path.display().to_string()),
        Credentials::Helper(helper) => {
            map.put("credentialHelper", helper.program.to_string());
            map.put("expiry", duration(helper.expiry));
        }
        Credentials::Bearer(_) => {
            let mut token = Map::default();
            token.put("static", MASK);
            map.put("token", token);
        }
        Credentials::Ecr(ecr) => {
            let mut token = Map::default();
            token.put("provider", "ecr");
            let profile = ecr.profile.iter().map(|profile| format!("profile={profile},"));
            let profile: String = profile.collect();
            token.put("providerOpts", format!("{profile}region={}", ecr.registry.region()));
            token.put("expiry", duration(ecr.expiry));
            map.put("token", token);
        }
    }
    Some(map)
}

fn put_rules(map: &mut Map, rules: &TagRules) {
    map.put_some("tagTtl", rules.otherwise.map(ttl));
    let patterns = rules.patterns.iter().map(|(pattern, lasts)| {
        let mut rule = Map::default();
        rule.put("pattern", pattern.to_string());
        rule.put("tagTtl", ttl(*lasts));
        rule.into()
    });
    map.put_list("tags", patterns.collect());
}

fn ttl(ttl: Ttl) -> String {
    match ttl {
        Ttl::Always => "always".into(),
        Ttl::Forever => "forever".into(),
        Ttl::For(lasts) => duration(lasts),
    }
}

fn platforms(platforms: &Platforms) -> Vec<Node> {
    match platforms {
        Platforms::All => vec!["all".into()],
        Platforms::Only(only) => only.iter().map(|each| each.to_string().into()).collect(),
    }
}

fn prune(policy: Option<&PrunePolicy>) -> Map {
    let mut map = Map::default();
    map.put("enabled", policy.is_some());
    if let Some(policy) = policy {
        map.put(
            "type",
            match policy.by {
                PruneBy::Accessed => "accessed",
                PruneBy::Created => "created",
            },
        );
        map.put("duration", duration(policy.duration));
        map.put("frequency", duration(policy.every));
        map.put("count", policy.count.map_or(-1, |count| i64::try_from(count).unwrap_or(i64::MAX)));
        map.put("dryRun", policy.is_dry_run);
    }
    map
}

fn free_space(floor: FreeSpace) -> String {
    match floor {
        FreeSpace::Bytes(bytes) => size(bytes),
        FreeSpace::Percent(percent) => format!("{percent}%"),
    }
}

/// In the largest unit that says it without a fraction.
fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 7] = [
        ("TB", 1_000_000_000_000),
        ("GB", 1_000_000_000),
        ("GiB", 1 << 30),
        ("MB", 1_000_000),
        ("MiB", 1 << 20),
        ("kB", 1000),
        ("KiB", 1 << 10),
    ];
    let unit = UNITS.iter().find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit));
    unit.map_or_else(|| bytes.to_string(), |(name, unit)| format!("{}{name}", bytes / unit))
}

/// The same for time.
fn duration(duration: Duration) -> String {
    const UNITS: [(&str, u128); 7] = [
        ("d", 86_400_000_000_000),
        ("h", 3_600_000_000_000),
        ("m", 60_000_000_000),
        ("s", 1_000_000_000),
        ("ms", 1_000_000),
        ("us", 1000),
        ("ns", 1),
    ];
    let nanos = duration.as_nanos();
    let unit = UNITS.iter().find(|(_, unit)| nanos > 0 && nanos.is_multiple_of(*unit));
    unit.map_or_else(|| "0".to_owned(), |(name, unit)| format!("{}{name}", nanos / unit))
}

#[cfg(test)]
mod tests {
    use super::super::{Differences, Overrides, build, documented, parse};
    use super::*;

    fn settings(text: &str) -> Settings {
        let file = parse(Path::new("larder.yaml"), text).unwrap_or_else(|error| panic!("{error}"));
        build(file, Overrides::default()).unwrap_or_else(|error| panic!("{error}:\n{text}"))
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
            let (given, shown) = (settings(text), settings(text).to_yaml());
            let again = settings(&shown);
            assert_eq!(given.differences(&again), Differences::default(), "{shown}");
            assert_eq!(again.to_yaml(), shown);
        }
    }

    #[test]
    fn defaults_are_shown() {
        let shown = settings("{}").to_yaml();
        for line in ["port: 8080", "logLevel: info", "prefetch: true", "maxDownloads: 32"] {
            assert!(shown.lines().any(|each| each == line), "{line}:\n{shown}");
        }
    }

    #[test]
    fn no_secret_is_shown() {
        let text = "registries:
  - {name: a.io, auth: {user: robot, password: hunter2}}
  - {name: b.io, auth: {token: {static: hunter3}}, repositories: [{prefix: x, auth: {user: u, password: hunter4}}]}";
        let shown = settings(text).to_yaml();
        assert!(!shown.contains("hunter") && shown.contains("robot"), "{shown}");
        assert_eq!(shown.matches(MASK).count(), 3, "{shown}");
    }

    #[test]
    fn every_key_is_shown() {
        let shown = settings(ALL).to_yaml();
        for (level, key) in documented::known() {
            // For people who read the file; what an endpoint's URL says; and secrets in other forms.
            let is_said_otherwise = matches!(
                (&*level, &*key),
                ("registries", "description" | "scheme")
                    | ("auth", "password" | "passwordFromEnv")
                    | ("token", "static")
            );
            assert!(
                is_said_otherwise || shown.contains(&format!("{key}:")),
                "{level}.{key}:\n{shown}"
            );
        }
    }
}
