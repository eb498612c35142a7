//! Registries that clients name and that are not in the configuration: which of them may be contacted, and a table of
//! those in use.
//!
//! Threat: clients can invent any number of names. Therefore the table is bounded. It evicts registries that have never
//! returned content first, then the least recently used ones. Docker Hub is never evicted, since almost all clients share
//! its tokens and its breaker.

use std::collections::HashMap;
use std::sync::Arc;

use super::failover::Failover;
use crate::oci::Upstream;
use crate::upstream::network::{HTTPS_PORT, UnlistedPorts};

/// The most unlisted registries in the table, each with its tokens, quota and breaker.
const UNLISTED_MAX: usize = 1024;
/// How many are evicted at a time, so that the table is searched once for many new registries.
const EVICTED_AT_ONCE: usize = UNLISTED_MAX / 16;

/// Whether registries that are not listed may be contacted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnlistedRegistries {
    /// Those with a DNS name that resolves to public addresses.
    #[default]
    Allow,
    /// None.
    Deny,
}

/// Why an unlisted registry may not be contacted; `None` if it may. The addresses of its name are checked later.
pub(super) fn refusal_reason(
    upstream: &Upstream,
    unlisted: UnlistedRegistries,
    ports: &UnlistedPorts,
) -> Option<&'static str> {
    let host = upstream.host();
    if unlisted == UnlistedRegistries::Deny {
        Some("it is not listed in `registries`, and `unlistedRegistries` is deny")
    } else if host.parse::<std::net::IpAddr>().is_ok() {
        Some("a registry at an address needs an entry in `registries`")
    } else if !host.contains('.') {
        Some("a registry whose name has no dot needs an entry in `registries`")
    } else if !ports.allows(upstream.port().unwrap_or(HTTPS_PORT)) {
        Some(
            "a registry at this port needs an entry in `registries`, or add the port to `unlistedPorts`",
        )
    } else {
        None
    }
}

/// The unlisted registries used so far.
#[derive(Default, Clone)]
pub(super) struct UnlistedTable {
    known: HashMap<Upstream, Known>,
    /// The number of uses, which orders them.
    uses: u64,
}

#[derive(Clone)]
struct Known {
    registry: Arc<Failover>,
    last_use: u64,
}

impl UnlistedTable {
    /// The registry with this name; builds it if it is new.
    pub(super) fn get_or_insert(
        &mut self,
        upstream: &Upstream,
        build: impl FnOnce() -> Failover,
    ) -> Arc<Failover> {
        self.uses += 1;
        if let Some(known) = self.known.get_mut(upstream) {
            known.last_use = self.uses;
            return Arc::clone(&known.registry);
        }
        if self.known.len() >= UNLISTED_MAX {
            self.evict();
        }
        let registry = Arc::new(build());
        let known = Known { registry: Arc::clone(&registry), last_use: self.uses };
        self.known.insert(upstream.clone(), known);
        registry
    }

    /// The registry with this name, if it is in the table.
    pub(super) fn get(&self, upstream: &Upstream) -> Option<&Arc<Failover>> {
        self.known.get(upstream).map(|known| &known.registry)
    }

    /// All registries in the table.
    pub(super) fn registries(&self) -> impl Iterator<Item = &Arc<Failover>> {
        self.known.values().map(|known| &known.registry)
    }

    /// Removes the registries for which `keep` returns false.
    pub(super) fn retain(&mut self, keep: impl Fn(&Upstream) -> bool) {
        self.known.retain(|upstream, _| keep(upstream));
    }

    fn evict(&mut self) {
        let ranked = self.known.iter().filter(|(upstream, _)| !upstream.is_docker_hub());
        let mut ranked: Vec<(bool, u64, Upstream)> = ranked
            .map(|(upstream, known)| {
                (known.registry.has_answered(), known.last_use, upstream.clone())
            })
            .collect();
        ranked.sort_unstable_by_key(|(has_answered, last_use, _)| (*has_answered, *last_use));
        for (_, _, upstream) in ranked.into_iter().take(EVICTED_AT_ONCE) {
            self.known.remove(&upstream);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::breaker::BreakerPolicy;
    use super::*;

    fn meet(table: &mut UnlistedTable, name: &str) -> Arc<Failover> {
        let upstream: Upstream = name.parse().unwrap();
        let build = || Failover::new(upstream.clone(), [], BreakerPolicy::default());
        table.get_or_insert(&upstream, build)
    }

    fn is_known(table: &UnlistedTable, name: &str) -> bool {
        table.get(&name.parse().unwrap()).is_some()
    }

    #[test]
    fn invented_names_evict_neither_docker_hub_nor_a_registry_that_has_returned_content() {
        let mut table = UnlistedTable::default();
        meet(&mut table, "docker.io");
        meet(&mut table, "proven.example.com").note_answer();
        let first = meet(&mut table, "first.example.com");
        for number in 0..3 * UNLISTED_MAX {
            meet(&mut table, &format!("r{number}.example.com"));
            assert!(table.known.len() <= UNLISTED_MAX);
        }
        assert!(is_known(&table, "docker.io") && is_known(&table, "proven.example.com"));
        assert!(!is_known(&table, "first.example.com"));
        drop(first);
    }

    #[test]
    fn recently_used_registries_that_have_returned_content_are_kept() {
        let mut table = UnlistedTable::default();
        meet(&mut table, "used.example.com").note_answer();
        meet(&mut table, "unused.example.com").note_answer();
        for number in 0..UNLISTED_MAX {
            meet(&mut table, &format!("r{number}.example.com")).note_answer();
            meet(&mut table, "used.example.com");
        }
        assert!(is_known(&table, "used.example.com") && !is_known(&table, "unused.example.com"));
    }

    #[test]
    fn unlisted_registries_need_a_public_name_and_an_allowed_port() {
        for (name, allowed) in [
            ("quay.io", true),
            ("quay.io:443", true),
            ("registry.example.com:5000", false),
            ("registry.example.com:22", false),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("[::1]:443", false),
            ("localhost", false),
            ("localhost:443", false),
            ("reg:443", false),
        ] {
            let upstream: Upstream = name.parse().unwrap();
            let refused =
                |unlisted, ports: &UnlistedPorts| refusal_reason(&upstream, unlisted, ports);
            let https = UnlistedPorts::default();
            assert_eq!(refused(UnlistedRegistries::Allow, &https).is_none(), allowed, "{name}");
            assert!(refused(UnlistedRegistries::Deny, &https).is_some(), "{name}");
        }
        let upstream: Upstream = "registry.example.com:5000".parse().unwrap();
        let ports = UnlistedPorts::new([5000, 443, 5000]);
        assert_eq!(ports.iter().collect::<Vec<_>>(), [443, 5000]);
        assert_eq!(refusal_reason(&upstream, UnlistedRegistries::Allow, &ports), None);
    }
}
