//! What differs between the settings in force and new ones, by the names that users know: what a running
//! server takes, and what waits for its next start. Pure; must not know how anything is put into force.

use super::Settings;
use crate::{api, cache, http, store, upstream};

/// Keys whose settings differ.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Differences {
    /// Those that a running server takes.
    pub at_once: Vec<&'static str>,
    /// Those that take effect after a restart.
    pub after_restart: Vec<&'static str>,
}

impl Settings {
    /// What `new` has that these settings have not.
    pub fn differences(&self, new: &Settings) -> Differences {
        // Taken apart without a rest: a setting that comes to be has to be put into one of the lists.
        let Settings {
            log_level,
            log_file,
            listen,
            management: api::ManagementSettings { listeners, token_file },
            store: store::Settings { root, fsync },
            cache: _,
            resume_on_start,
            upstream: _,
            http: http::Settings { workers, max_connections, drain_timeout, .. },
            tls,
            access,
            allowed_hosts,
            naming,
            scrub,
            // For commands, each of which reads the file itself.
            image_file: _,
            preload_images,
            load_platforms,
            // Said of each configuration as it comes into force.
            without_effect: _,
        } = self;
        let is_other_platform = *load_platforms != new.load_platforms
            // Where nothing is said of them, `platforms` decides.
            && self.cache.prefetch.platforms == new.cache.prefetch.platforms;
        let at_once = [
            ("logLevel", *log_level != new.log_level),
            ("defaultNs", naming.default_upstream != new.naming.default_upstream),
            ("registries", self.has_other_registries(new)),
            ("serverTlsConfig", tls.is_some() && new.tls.is_some() && *tls != new.tls),
            ("serverAuthConfig", *access != new.access),
            ("allowedHosts", *allowed_hosts != new.allowed_hosts),
        ];
        let after_restart = [
            ("imagePath", *root != new.store.root),
            ("fsync", *fsync != new.store.fsync),
            ("logFile", *log_file != new.log_file),
            ("host", listen.ip() != new.listen.ip()),
            ("port", listen.port() != new.listen.port()),
            // Other files are taken at once; a port does not change what it speaks.
            ("serverTlsConfig", tls.is_some() != new.tls.is_some()),
            (
                "management, health or metrics",
                has_other_ports(listeners, &new.management.listeners),
            ),
            ("management.tokenFile", *token_file != new.management.token_file),
            ("workers", *workers != new.http.workers),
            ("maxConnections", *max_connections != new.http.max_connections),
            ("drainTimeout", *drain_timeout != new.http.drain_timeout),
            ("scrub", *scrub != new.scrub),
            ("resumeOnStart", *resume_on_start != new.resume_on_start),
            ("preloadImages", *preload_images != new.preload_images),
            ("os and arch", is_other_platform),
        ];
        let (of_cache, of_fetchers) = of_cache(&self.cache, &new.cache);
        let of_upstream = of_upstream(&self.upstream, &new.upstream);
        Differences {
            at_once: [&at_once[..], &of_cache, &of_upstream].into_iter().flat_map(keys).collect(),
            after_restart: keys(&after_restart).chain(keys(&of_fetchers)).collect(),
        }
    }

    /// Whether an entry of `registries` differs, whichever rooms its keys are for.
    fn has_other_registries(&self, new: &Settings) -> bool {
        self.upstream.registries != new.upstream.registries
            || self.naming.aliases != new.naming.aliases
            || self.cache.freshness.by_upstream != new.cache.freshness.by_upstream
            || self.cache.downloads_per_upstream != new.cache.downloads_per_upstream
    }
}

type Compared = (&'static str, bool);

/// Whether ports differ. Of those that come with the serving address, `host` is said already.
fn has_other_ports(old: &[api::ManagementListener], new: &[api::ManagementListener]) -> bool {
    let ports = |all: &[api::ManagementListener]| -> Vec<(u16, api::Scope)> {
        all.iter().map(|each| (each.address.port(), each.scope)).collect()
    };
    ports(old) != ports(new)
}

fn keys(compared: &[Compared]) -> impl Iterator<Item = &'static str> {
    compared.iter().filter(|(_, differs)| *differs).map(|(key, _)| *key)
}

/// What a running cache takes, and what its number of threads was made of.
fn of_cache(old: &cache::Settings, new: &cache::Settings) -> ([Compared; 17], [Compared; 2]) {
    let cache::Settings {
        freshness,
        revalidate_timeout,
        negative_ttl,
        prefetch,
        maintenance: cache::Maintenance { room, pins, prune },
        air_gapped,
        minimum_rate,
        blob_fetchers,
        // An entry of `registries` says it.
        downloads_per_upstream: _,
        // Nobody can set these.
        retry: _,
        manifest_fetchers: _,
    } = old;
    let cache::FreshnessPolicy {
        own,
        always_pull_latest,
        // An entry of `registries` says it.
        by_upstream: _,
        rules,
        stale_while_revalidate,
        on_upstream_delete,
    } = freshness;
    let at_once = [
        ("tagTtl", rules.otherwise != new.freshness.rules.otherwise),
        ("tags", rules.patterns != new.freshness.rules.patterns),
        ("alwaysPullLatest", *always_pull_latest != new.freshness.always_pull_latest),
        ("staleWhileRevalidate", *stale_while_revalidate != new.freshness.stale_while_revalidate),
        ("onUpstreamDelete", *on_upstream_delete != new.freshness.on_upstream_delete),
        ("revalidateTimeout", *revalidate_timeout != new.revalidate_timeout),
        ("negativeTtl", *negative_ttl != new.negative_ttl),
        ("prefetch", prefetch.blobs != new.prefetch.blobs),
        ("platforms", prefetch.platforms != new.prefetch.platforms),
        ("prefetchReferrers", prefetch.referrers != new.prefetch.referrers),
        ("airGapped", *air_gapped != new.air_gapped),
        ("minimumRate", *minimum_rate != new.minimum_rate),
        ("cacheSize", room.cap_bytes != new.maintenance.room.cap_bytes),
        ("freeSpace", room.floor != new.maintenance.room.floor),
        ("pin", pins.pins != new.maintenance.pins.pins),
        ("pinLists", pins.lists != new.maintenance.pins.lists),
        ("pruneConfig", *prune != new.maintenance.prune),
    ];
    let after_restart = [
        ("maxDownloads", *blob_fetchers != new.blob_fetchers),
        // It comes into the cache at the start.
        ("helloWorld", *own != new.freshness.own),
    ];
    (at_once, after_restart)
}

fn of_upstream(old: &upstream::Settings, new: &upstream::Settings) -> [Compared; 3] {
    let upstream::Settings {
        registries: _,
        unlisted,
        unlisted_ports,
        timeouts,
        // Nobody can set the one, and the other is the environment's, which stays what it is.
        breaker: _,
        proxies: _,
    } = old;
    [
        ("unlistedRegistries", *unlisted != new.unlisted),
        ("unlistedPorts", *unlisted_ports != new.unlisted_ports),
        ("pullTimeout", *timeouts != new.timeouts),
    ]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Overrides, build, parse};
    use super::*;

    fn settings(text: &str) -> Settings {
        let file = parse(Path::new("larder.yaml"), text).unwrap();
        build(file, Overrides::default()).unwrap()
    }

    #[test]
    fn every_key_is_named_and_nothing_else() {
        for (line, at_once, after_restart) in [
            ("", &[][..], &[][..]),
            ("imageFile: x", &[], &[]),
            ("metrics: 9091", &[], &["management, health or metrics"]),
            ("management: {port: 1}", &[], &["management, health or metrics"]),
            ("cacheSize: 1GB", &["cacheSize"], &[]),
            ("freeSpace: 10%", &["freeSpace"], &[]),
            ("pin: [alpine]", &["pin"], &[]),
            ("pinLists: [/x]", &["pinLists"], &[]),
            ("pruneConfig: {enabled: true}", &["pruneConfig"], &[]),
            ("logLevel: debug", &["logLevel"], &[]),
            ("defaultNs: docker.io", &["defaultNs"], &[]),
            ("registries: [{name: a.io, tagTtl: 1h}]", &["registries"], &[]),
            ("registries: [{name: a.io, maxDownloads: 2}]", &["registries"], &[]),
            ("registries: [{name: a.io, rateLimit: 1M}]", &["registries"], &[]),
            ("registries: [{name: a.io, aliases: [a]}]", &["registries"], &[]),
            ("unlistedRegistries: deny", &["unlistedRegistries"], &[]),
            ("unlistedPorts: [443, 5000]", &["unlistedPorts"], &[]),
            ("unlistedPorts: [443]", &[], &[]),
            ("pullTimeout: 1000", &["pullTimeout"], &[]),
            ("tagTtl: 1h", &["tagTtl"], &[]),
            ("tags: [{pattern: a, tagTtl: 1h}]", &["tags"], &[]),
            ("alwaysPullLatest: true", &["alwaysPullLatest"], &[]),
            ("staleWhileRevalidate: 1h", &["staleWhileRevalidate"], &[]),
            ("onUpstreamDelete: drop", &["onUpstreamDelete"], &[]),
            ("revalidateTimeout: 1h", &["revalidateTimeout"], &[]),
            ("negativeTtl: 1h", &["negativeTtl"], &[]),
            ("prefetch: false", &["prefetch"], &[]),
            ("platforms: [linux/s390x]", &["platforms"], &[]),
            ("prefetchReferrers: true", &["prefetchReferrers"], &[]),
            ("airGapped: true", &["airGapped"], &[]),
            ("allowedHosts: [larder.test]", &["allowedHosts"], &[]),
            ("imagePath: /x", &[], &["imagePath"]),
            ("fsync: false", &[], &["fsync"]),
            ("logFile: /x", &[], &["logFile"]),
            ("host: 127.0.0.1", &[], &["host"]),
            ("port: 1", &[], &["port"]),
            ("health: 1", &[], &["management, health or metrics"]),
            ("workers: 99", &[], &["workers"]),
            ("maxConnections: 99", &[], &["maxConnections"]),
            ("drainTimeout: 1h", &[], &["drainTimeout"]),
            ("scrub: {every: 1h}", &[], &["scrub"]),
            ("scrub: {rate: 1M}", &[], &["scrub"]),
            ("resumeOnStart: false", &[], &["resumeOnStart"]),
            ("preloadImages: /x", &[], &["preloadImages"]),
            ("arch: s390x", &[], &["os and arch"]),
            ("maxDownloads: 99", &[], &["maxDownloads"]),
            ("helloWorld: true", &[], &["helloWorld"]),
        ] {
            let (old, new) = (settings(""), settings(line));
            let expected =
                Differences { at_once: at_once.to_vec(), after_restart: after_restart.to_vec() };
            assert_eq!(old.differences(&new), expected, "{line}");
            assert_eq!(new.differences(&old), expected, "without {line}");
            assert_eq!(new.differences(&new), Differences::default(), "{line}");
        }
    }
}
