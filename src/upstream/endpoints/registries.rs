//! The table of registries, which can be reconfigured while Larder runs.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use super::breaker::BreakerPolicy;
use super::bucket::{Bucket, BucketOrigin};
use super::failover::{Failover, UpstreamStatus};
use super::guarded::{EndpointStatus, GuardedEndpoint, Health, RateLimits};
use super::peers::{PeerSettings, PeerStatus, Peers};
use super::unlisted::{UnlistedRegistries, UnlistedTable, refusal_reason};
use crate::oci::{ImageName, Reference, Repository, Tag, TagRecord, Upstream};
use crate::upstream::auth::Credentials;
use crate::upstream::check::EndpointCheck;
use crate::upstream::client::{EndpointKind, EndpointSettings, Registry};
use crate::upstream::network::{
    Endpoint, ForeignAgents, Guard, LazyAgent, ProxySettings, Timeouts, TlsSettings, UnlistedPorts,
};
use crate::upstream::{PeerProof, Source, Sources, Standing, UpstreamError, UpstreamErrorKind};

/// The settings of all upstreams.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Larders that share their caches with this one. They are asked first.
    pub peers: Option<PeerSettings>,
    /// Larders that are asked before each registry.
    pub parents: Vec<EndpointSettings>,
    /// The bucket that is asked before each registry, if there is one.
    pub bucket: Option<Bucket>,
    /// The listed registries.
    pub registries: Vec<RegistrySettings>,
    /// Whether other registries may be contacted.
    pub unlisted: UnlistedRegistries,
    /// The ports at which other registries may be contacted.
    pub unlisted_ports: UnlistedPorts,
    /// The timeouts of requests.
    pub timeouts: Timeouts,
    /// The circuit breakers of endpoints.
    pub breaker: BreakerPolicy,
    /// The proxies.
    pub proxies: ProxySettings,
}

/// One entry of `registries`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistrySettings {
    /// The name that clients use.
    pub upstream: Upstream,
    /// The registry and its mirrors, in the order in which they are tried.
    pub endpoints: Vec<EndpointSettings>,
    /// The most bytes of blobs per second, over all endpoints and downloads together.
    pub rate_limit: Option<NonZeroU64>,
}

/// All registries of this server.
pub struct Registries {
    /// Locked for a lookup or a replacement, never during a request. A [`Source`] remains usable after its table was
    /// replaced.
    table: RwLock<Table>,
}

/// A registry, for what does not depend on it.
const ANY_REGISTRY: &str = "docker.io";
/// The bucket is near, and every request for what is not cached goes there first: one failure is enough to stop asking it
/// for some seconds.
const BUCKET_BREAKER: BreakerPolicy = BreakerPolicy {
    failures: 1,
    first_wait: Duration::from_secs(5),
    longest_wait: Duration::from_secs(30),
};

/// The registries of one configuration.
pub(super) struct Table {
    listed: HashMap<Upstream, Listed>,
    unlisted: UnlistedRegistries,
    unlisted_ports: UnlistedPorts,
    /// The unlisted registries used so far.
    others: Mutex<UnlistedTable>,
    /// Their settings, and the peers.
    peers: Option<(PeerSettings, Arc<Peers>)>,
    parents: Vec<EndpointSettings>,
    /// The bucket, with its health, which all registries share.
    bucket: Option<(Bucket, Arc<Mutex<Health>>)>,
    timeouts: Timeouts,
    breaker: BreakerPolicy,
    foreign: Arc<ForeignAgents>,
}

/// A listed registry and its settings.
#[derive(Clone)]
struct Listed {
    settings: RegistrySettings,
    failover: Arc<Failover>,
    /// The health of the registry itself, as requests with the logins of clients find it.
    health_for_clients: Arc<Mutex<Health>>,
    /// The same of the parents that decide, in their order.
    health_of_parents: Vec<Arc<Mutex<Health>>>,
}

impl RegistrySettings {
    /// The endpoint that is the registry itself, which clients have logins for: the only one that is no Larder, or else the
    /// one with the registry's address. `None` if that is not clear: passwords are not sent by guess.
    pub fn itself(&self) -> Option<usize> {
        let endpoints = self.endpoints.iter().enumerate();
        let registries: Vec<(usize, &EndpointSettings)> =
            endpoints.filter(|(_, each)| each.kind == EndpointKind::Registry).collect();
        let has_its_address = |each: &EndpointSettings| {
            let itself = Endpoint::of(&self.upstream, each.endpoint.scheme).authority;
            let [one, other] =
                [&each.endpoint.authority, &itself].map(|text| text.parse::<Upstream>());
            one.is_ok_and(|one| other.is_ok_and(|other| one == other))
        };
        match registries[..] {
            [(at, _)] => Some(at),
            _ => registries.into_iter().find(|(_, each)| has_its_address(each)).map(|(at, _)| at),
        }
    }
}

/// The listed registries that a new configuration added, changed or removed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegistryChanges {
    /// Registries that were not listed before.
    pub added: Vec<Upstream>,
    /// Registries with other settings, or all of them if the timeouts changed. Their state is reset.
    pub changed: Vec<Upstream>,
    /// Registries that are no longer listed.
    pub removed: Vec<Upstream>,
}

impl RegistryChanges {
    /// All of them.
    pub fn all(&self) -> Vec<Upstream> {
        [&self.added[..], &self.changed, &self.removed].concat()
    }
}

/// `added a.io; changed b.io, c.io`, or nothing.
impl fmt::Display for RegistryChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds =
            [("added", &self.added), ("changed", &self.changed), ("removed", &self.removed)];
        let mut separator = "";
        for (kind, names) in kinds.into_iter().filter(|(_, names)| !names.is_empty()) {
            let names: Vec<&str> = names.iter().map(Upstream::as_str).collect();
            write!(f, "{separator}{kind} {}", names.join(", "))?;
            separator = "; ";
        }
        Ok(())
    }
}

impl Registries {
    /// Creates the registries of a configuration. Makes no connections.
    pub fn new(settings: Settings) -> Registries {
        Registries { table: RwLock::new(Table::new(settings)) }
    }

    /// Applies another configuration, except the bucket, which stays. Makes no connections and does not block.
    ///
    /// A registry with unchanged settings keeps its state: tokens, breakers, connections, rate limit and quota. The state
    /// of other registries is reset. A [`Source`] that is in use remains usable.
    pub fn reconfigure(&self, settings: Settings) -> RegistryChanges {
        // The table is replaced in one assignment, so a panic leaves a valid one.
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let bucket = table.bucket.as_ref().map(|(bucket, _)| bucket.clone());
        let (new, changes) = table.reconfigured(Settings { bucket, ..settings });
        let old = std::mem::replace(&mut *table, new);
        drop(table);
        // Without the lock, since dropping the last reference to a registry closes its connections.
        drop(old);
        changes
    }

    /// Makes the next use of each registry check its certificate files for changes and fetch the logins of helpers and
    /// clouds again.
    pub fn refresh(&self) {
        let table = self.table();
        table.listed.values().for_each(|listed| listed.failover.refresh());
        table.bucket.iter().for_each(|(bucket, _)| bucket.refresh());
    }

    pub(super) fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn new(settings: Settings) -> Table {
        let registries = settings.registries.clone();
        let mut table = Table::without_registries(settings, None);
        registries.into_iter().for_each(|entry| table.list(entry));
        table
    }

    /// A table of these settings, and with these peers, if there are any.
    fn without_registries(settings: Settings, peers: Option<(PeerSettings, Arc<Peers>)>) -> Table {
        let roots = || Some(TlsSettings::default());
        let proxies = Arc::new(settings.proxies);
        let agent = |guard| LazyAgent::new(guard, roots(), settings.timeouts, Arc::clone(&proxies));
        let foreign = Arc::new(ForeignAgents {
            public: agent(Guard::PublicOnly),
            private_too: agent(Guard::PrivateToo),
            proxies: Arc::clone(&proxies),
        });
        let breaker = settings.breaker;
        let start = |settings: PeerSettings| {
            let peers = Peers::start(settings.clone(), breaker, Arc::clone(&foreign));
            (settings, peers)
        };
        Table {
            listed: HashMap::new(),
            unlisted: settings.unlisted,
            unlisted_ports: settings.unlisted_ports,
            others: Mutex::default(),
            peers: peers.or_else(|| settings.peers.map(start)),
            parents: settings.parents,
            bucket: settings.bucket.map(|bucket| (bucket, Health::new(BUCKET_BREAKER))),
            timeouts: settings.timeouts,
            breaker: settings.breaker,
            foreign,
        }
    }

    fn peers(&self) -> Option<Arc<Peers>> {
        self.peers.as_ref().map(|(_, peers)| Arc::clone(peers))
    }

    fn list(&mut self, settings: RegistrySettings) {
        let endpoints = self.configured(&settings.upstream, &settings.endpoints);
        let parents = self.configured(&settings.upstream, &self.parents);
        let failover = Failover::new(settings.upstream.clone(), endpoints, self.breaker)
            .after(parents, self.bucket(&settings.upstream), self.breaker)
            .with_rate_limit(settings.rate_limit)
            .with_peers(self.peers());
        let failover = Arc::new(failover);
        let health_for_clients = Health::new(self.breaker);
        let upstream = settings.upstream.clone();
        let deciding = self.parents.iter().filter(|parent| parent.decides);
        let health_of_parents = deciding.map(|_| Health::new(self.breaker)).collect();
        let listed = Listed { settings, failover, health_for_clients, health_of_parents };
        self.listed.insert(upstream, listed);
    }

    /// The bucket as an endpoint of a registry.
    fn bucket(&self, upstream: &Upstream) -> Option<Arc<GuardedEndpoint>> {
        let (bucket, health) = self.bucket.as_ref()?;
        let origin = BucketOrigin::new(bucket.clone(), upstream.clone());
        Some(Arc::new(GuardedEndpoint::with_health(Box::new(origin), Arc::clone(health))))
    }

    /// The endpoints of a registry, without those that all registries share, and the parents: with no state of earlier
    /// requests.
    ///
    /// # Errors
    /// [`UpstreamErrorKind::NotAllowed`] if the registry may not be dialled.
    pub(super) fn fresh(&self, upstream: &Upstream) -> Result<Vec<Registry>, UpstreamError> {
        if let Some(listed) = self.listed.get(upstream) {
            return Ok(self.configured(upstream, &listed.settings.endpoints).collect());
        }
        match self.refusal_reason(upstream) {
            Some(reason) => {
                let kind = UpstreamErrorKind::NotAllowed { reason: reason.into() };
                Err(UpstreamError::new(upstream.as_str(), kind))
            }
            None => {
                let (foreign, ports) = (Arc::clone(&self.foreign), self.unlisted_ports.clone());
                Ok(vec![Registry::unlisted(upstream, self.timeouts, foreign, ports)])
            }
        }
    }

    /// The parents as endpoints of a registry, in the same way.
    pub(super) fn fresh_parents(&self, upstream: &Upstream) -> Vec<Registry> {
        self.configured(upstream, &self.parents).collect()
    }

    /// The names of the listed registries, sorted.
    pub(super) fn listed(&self) -> Vec<Upstream> {
        let mut names: Vec<Upstream> = self.listed.keys().cloned().collect();
        names.sort_by(|one, other| one.as_str().cmp(other.as_str()));
        names
    }

    /// Endpoints of a registry from the configuration.
    fn configured(
        &self,
        upstream: &Upstream,
        endpoints: &[EndpointSettings],
    ) -> impl Iterator<Item = Registry> {
        endpoints.iter().map(|endpoint| {
            let foreign = Arc::clone(&self.foreign);
            Registry::listed(upstream, endpoint, self.timeouts, foreign)
        })
    }

    /// The table of another configuration. Keeps the state of unchanged registries.
    fn reconfigured(&self, settings: Settings) -> (Table, RegistryChanges) {
        let has_same_transport = self.timeouts == settings.timeouts
            && self.breaker == settings.breaker
            && self.parents == settings.parents
            && self.bucket.as_ref().map(|(bucket, _)| bucket) == settings.bucket.as_ref()
            && self.peers.as_ref().map(|(peers, _)| peers) == settings.peers.as_ref()
            && *self.foreign.proxies == settings.proxies;
        let peers = self.peers.clone().filter(|_| has_same_transport);
        let mut new = Table::without_registries(settings.clone(), peers);
        if has_same_transport {
            new.foreign = Arc::clone(&self.foreign);
            new.bucket.clone_from(&self.bucket);
        }
        let mut changes = RegistryChanges::default();
        for entry in settings.registries {
            match self.listed.get(&entry.upstream) {
                Some(before) if has_same_transport && before.settings == entry => {
                    new.listed.insert(entry.upstream, before.clone());
                    continue;
                }
                Some(_) => changes.changed.push(entry.upstream.clone()),
                None => changes.added.push(entry.upstream.clone()),
            }
            new.list(entry);
        }
        let gone = self.listed.keys().filter(|upstream| !new.listed.contains_key(upstream));
        changes.removed = gone.cloned().collect();
        changes.removed.sort_by(|one, other| one.as_str().cmp(other.as_str()));
        if has_same_transport
            && settings.unlisted == UnlistedRegistries::Allow
            && settings.unlisted_ports == self.unlisted_ports
        {
            let mut others = self.others().clone();
            others.retain(|upstream| !new.listed.contains_key(upstream));
            new.others = Mutex::new(others);
        }
        (new, changes)
    }

    fn others(&self) -> MutexGuard<'_, UnlistedTable> {
        // A panic cannot leave the table half changed.
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unlisted(&self, upstream: &Upstream) -> Arc<Failover> {
        self.others().get_or_insert(upstream, || {
            let foreign = Arc::clone(&self.foreign);
            let ports = self.unlisted_ports.clone();
            let registry = Registry::unlisted(upstream, self.timeouts, foreign, ports);
            let parents = self.configured(upstream, &self.parents);
            Failover::new(upstream.clone(), [registry], self.breaker)
                .after(parents, self.bucket(upstream), self.breaker)
                .with_peers(self.peers())
        })
    }

    fn refusal_reason(&self, upstream: &Upstream) -> Option<&'static str> {
        refusal_reason(upstream, self.unlisted, &self.unlisted_ports)
    }
}

impl Sources for Registries {
    fn source(&self, upstream: &Upstream) -> Result<Arc<dyn Source>, UpstreamError> {
        let table = self.table();
        if let Some(listed) = table.listed.get(upstream) {
            return Ok(Arc::clone(&listed.failover) as Arc<dyn Source>);
        }
        match table.refusal_reason(upstream) {
            None => Ok(table.unlisted(upstream)),
            Some(reason) => {
                let kind = UpstreamErrorKind::NotAllowed { reason: reason.into() };
                Err(UpstreamError::new(upstream.as_str(), kind))
            }
        }
    }

    fn standing(&self, upstream: &Upstream) -> Result<Standing, UpstreamError> {
        let table = self.table();
        if table.listed.contains_key(upstream) {
            return Ok(Standing::Listed);
        }
        if let Some(reason) = table.refusal_reason(upstream) {
            let kind = UpstreamErrorKind::NotAllowed { reason: reason.into() };
            return Err(UpstreamError::new(upstream.as_str(), kind));
        }
        let is_proven = table.others().get(upstream).is_some_and(|other| other.has_answered());
        Ok(if is_proven { Standing::Unlisted } else { Standing::Unproven })
    }

    fn bucket(&self, upstream: &Upstream) -> Option<Arc<dyn Source>> {
        let table = self.table();
        // What may not be fetched may not be served either.
        let is_allowed =
            table.listed.contains_key(upstream) || table.refusal_reason(upstream).is_none();
        let bucket = table.bucket(upstream).filter(|_| is_allowed)?;
        Some(Arc::new(Failover::of_bucket(upstream.clone(), bucket)))
    }

    fn tag_in_bucket(&self, name: &ImageName, tag: &Tag) -> Result<TagRecord, UpstreamError> {
        let bucket = self
            .table()
            .bucket(&name.upstream)
            .ok_or_else(|| UpstreamError::new(name.to_string(), UpstreamErrorKind::Unsupported))?;
        bucket.ask(&name.upstream, RateLimits::Apply, |origin| {
            origin.tag_record(&name.repository, tag)
        })
    }

    fn bucket_status(&self) -> Option<EndpointStatus> {
        // All registries share its health.
        let any: Upstream = ANY_REGISTRY.parse().ok()?;
        let bucket = self.table().bucket(&any)?;
        Some(bucket.status(Instant::now()))
    }

    fn shared_bucket(&self) -> Option<Bucket> {
        self.table().bucket.as_ref().map(|(bucket, _)| bucket.clone())
    }

    fn peer_proof(&self, login: Option<(&str, &str)>) -> PeerProof {
        self.table().peers().map_or(PeerProof::Missing, |peers| peers.proof(login))
    }

    fn peers(&self, content: Option<&str>) -> Vec<PeerStatus> {
        self.table().peers().map_or_else(Vec::new, |peers| peers.statuses(content))
    }

    fn source_for(
        &self,
        upstream: &Upstream,
        login: Credentials,
    ) -> Result<Arc<dyn Source>, UpstreamError> {
        let table = self.table();
        let refuse = |reason: &str| {
            let kind = UpstreamErrorKind::NotAllowed { reason: reason.into() };
            UpstreamError::new(upstream.as_str(), kind)
        };
        let listed = table.listed.get(upstream).ok_or_else(|| refuse("it is not listed"))?;
        let with_login = |settings: &EndpointSettings, health: &Arc<Mutex<Health>>| {
            let settings = EndpointSettings { credentials: login.clone(), ..settings.clone() };
            let foreign = Arc::clone(&table.foreign);
            let registry = Registry::of_client(upstream, &settings, table.timeouts, foreign);
            GuardedEndpoint::with_health(Box::new(registry), Arc::clone(health))
        };
        let endpoints = &listed.settings.endpoints;
        let itself = listed
            .settings
            .itself()
            .map(|at| (at, with_login(&endpoints[at], &listed.health_for_clients)));
        let deciding = table.parents.iter().enumerate().filter(|(_, parent)| parent.decides);
        let parents: Vec<_> = deciding
            .zip(&listed.health_of_parents)
            .map(|((at, parent), health)| (at, with_login(parent, health)))
            .collect();
        if itself.is_none() && parents.is_empty() {
            return Err(refuse("it has no endpoint of kind registry"));
        }
        Ok(Arc::new(listed.failover.with_login(itself, parents)))
    }

    fn asks_others(&self, upstream: &Upstream) -> bool {
        let table = self.table();
        let listed = table.listed.get(upstream).map(|listed| listed.settings.endpoints.iter());
        let has_larders =
            listed.is_some_and(|mut all| all.any(|each| each.kind != EndpointKind::Registry));
        has_larders || table.bucket.is_some() || table.peers.is_some() || !table.parents.is_empty()
    }

    fn has_credentials(&self, name: &ImageName) -> bool {
        let table = self.table();
        let listed = table.listed.get(&name.upstream);
        listed
            .and_then(|listed| listed.settings.itself().map(|at| &listed.settings.endpoints[at]))
            .is_some_and(|itself| itself.credentials.cover(&name.repository))
    }

    fn check(
        &self,
        upstream: &Upstream,
        image: Option<(&Repository, &Reference)>,
    ) -> Result<Vec<EndpointCheck>, UpstreamError> {
        Registries::check(self, upstream, image)
    }

    fn statuses(&self) -> Vec<UpstreamStatus> {
        let all: Vec<Arc<Failover>> = {
            let table = self.table();
            let listed = table.listed.values().map(|listed| &listed.failover);
            listed.chain(table.others().registries()).cloned().collect()
        };
        let mut statuses: Vec<_> = all.iter().map(|failover| failover.status()).collect();
        statuses.sort_by(|one, other| one.upstream.as_str().cmp(other.upstream.as_str()));
        statuses
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::network::Scheme;

    #[test]
    fn a_listed_registry_may_have_any_address_even_if_unlisted_ones_are_denied() {
        let upstream: Upstream = "localhost:5000".parse().unwrap();
        let entry = RegistrySettings {
            upstream: upstream.clone(),
            endpoints: vec![EndpointSettings::at(Endpoint::of(&upstream, Scheme::Http))],
            rate_limit: None,
        };
        let settings = Settings {
            registries: vec![entry],
            unlisted: UnlistedRegistries::Deny,
            ..Settings::default()
        };
        assert!(Registries::new(settings).source(&upstream).is_ok());
    }

    fn entry(name: &str, scheme: Scheme) -> RegistrySettings {
        let upstream: Upstream = name.parse().unwrap();
        let endpoints = vec![EndpointSettings::at(Endpoint::of(&upstream, scheme))];
        RegistrySettings { upstream, endpoints, rate_limit: None }
    }

    fn listing(registries: &[RegistrySettings]) -> Settings {
        Settings { registries: registries.to_vec(), ..Settings::default() }
    }

    fn names(upstreams: &[Upstream]) -> Vec<&str> {
        upstreams.iter().map(Upstream::as_str).collect()
    }

    #[test]
    fn reconfiguring_keeps_registries_with_unchanged_settings_and_resets_the_others() {
        let [same, before, after, gone, new] = [
            entry("same.io", Scheme::Https),
            entry("changed.io", Scheme::Https),
            entry("changed.io", Scheme::Http),
            entry("gone.io", Scheme::Https),
            entry("new.io", Scheme::Https),
        ];
        let registries = Registries::new(listing(&[same.clone(), before, gone]));
        let source = |name: &str| registries.source(&name.parse().unwrap()).unwrap();
        let used = ["same.io", "changed.io", "gone.io", "new.io", "unlisted.io"];
        let old = used.map(source);
        let changes = registries.reconfigure(listing(&[new, after, same]));
        assert_eq!(names(&changes.added), ["new.io"]);
        assert_eq!(names(&changes.changed), ["changed.io"]);
        assert_eq!(names(&changes.removed), ["gone.io"]);
        assert_eq!(changes.to_string(), "added new.io; changed changed.io; removed gone.io");
        let kept = std::array::from_fn(|at| Arc::ptr_eq(&old[at], &source(used[at])));
        assert_eq!(kept, [true, false, false, false, true], "{used:?}");
    }

    #[test]
    fn changed_timeouts_reset_all_registries() {
        let entries = [entry("listed.io", Scheme::Https)];
        let registries = Registries::new(listing(&entries));
        let source = |name: &str| registries.source(&name.parse().unwrap()).unwrap();
        let old = ["listed.io", "unlisted.io"].map(source);
        let timeouts = Timeouts { headers: Duration::from_secs(1), ..Timeouts::default() };
        let changes = registries.reconfigure(Settings { timeouts, ..listing(&entries) });
        assert_eq!(names(&changes.all()), ["listed.io"]);
        let new = ["listed.io", "unlisted.io"].map(source);
        assert!(old.iter().zip(&new).all(|(old, new)| !Arc::ptr_eq(old, new)));
    }

    #[test]
    fn denying_unlisted_registries_removes_them() {
        let registries = Registries::new(Settings::default());
        let quay: Upstream = "quay.io".parse().unwrap();
        assert!(registries.source(&quay).is_ok());
        let closed = Settings { unlisted: UnlistedRegistries::Deny, ..Settings::default() };
        registries.reconfigure(closed);
        assert!(registries.source(&quay).is_err());
        assert!(registries.statuses().is_empty());
    }
}
