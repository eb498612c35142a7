//! Peers: Larders that share their caches, so that one of them requests each content from the registry.
//!
//! For each content, the members are ranked by a hash of both (rendezvous hashing: Thaler and Ravishankar, 1996). The first
//! one is responsible: it asks the registry. The others ask it, and then the second one. When a member joins or leaves,
//! only its own share moves. Members that do not agree about the list download something twice, which costs bandwidth only:
//! every Larder verifies what it receives.
//!
//! Members are listed, or found by DNS again and again; the last good list is kept. A member recognizes itself by the name in
//! its response, so it need not know its own address.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::breaker::{BreakerPolicy, BreakerState};
use super::guarded::{EndpointStatus, GuardedEndpoint};
use crate::introduction;
use crate::oci::{Algorithm, Digest, Upstream};
use crate::upstream::PeerProof;
use crate::upstream::auth::Credentials;
use crate::upstream::client::{Acquaintance, EndpointKind, EndpointSettings, Registry};
use crate::upstream::network::{Endpoint, ForeignAgents, Scheme, Timeouts};

/// How many peers are asked for a content.
pub(super) const PEERS_ASKED: usize = 2;
/// How often members are looked up.
const LOOKUP_EVERY: Duration = Duration::from_secs(5);
/// A peer is near: it answers soon, or waits for the registry. A probe tells which.
const TIMEOUTS: Timeouts = Timeouts {
    connect: Duration::from_secs(1),
    headers: Duration::from_secs(3),
    stall: Duration::from_secs(5),
    metadata: Duration::from_secs(10),
    probe: Duration::from_secs(2),
};
/// How many endpoints are kept: one for each registry and peer. Clients choose the names of unlisted registries.
const ENDPOINTS_MAX: usize = 4096;

/// The peers of this Larder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSettings {
    /// Where they are.
    pub members: PeerMembers,
    /// TLS and credentials of all of them; its location does not count.
    pub access: EndpointSettings,
}

impl PeerSettings {
    /// Whether members cannot prove that they are members.
    pub fn is_open(&self) -> bool {
        self.access.credentials == Credentials::Anonymous
    }
}

/// How the members are found. This Larder may be one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerMembers {
    /// They are listed.
    Listed(Vec<Endpoint>),
    /// They are all addresses of a name.
    Named {
        /// The name.
        name: String,
        /// Their port.
        port: u16,
        /// Their scheme.
        scheme: Scheme,
    },
}

/// A member, as this process sees it.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// Scheme and authority.
    pub url: String,
    /// Whether it is this process, as far as that is known: it finds out when it would ask itself.
    pub is_this_process: bool,
    /// Its place for the content in question, from 1.
    pub rank: Option<usize>,
    /// The version of its program, once it was asked.
    pub version: Option<String>,
    /// The settings that it has other values for than this process: see [`Introduction`](crate::introduction).
    pub differences: Vec<String>,
    /// How many of the registries for which it was asked it is not asked for now, because of failures.
    pub failing: usize,
    /// Its latest failure, with the request.
    pub last_failure: Option<String>,
    /// When that was.
    pub failed: Option<SystemTime>,
    /// Since when it is not asked for one of them.
    pub failing_since: Option<SystemTime>,
}

/// See the description of the module.
pub(super) struct Peers {
    settings: PeerSettings,
    breaker: BreakerPolicy,
    foreign: Arc<ForeignAgents>,
    /// Replaced as a whole.
    members: RwLock<Arc<[Member]>>,
    /// Locked for a lookup or an insertion.
    endpoints: Mutex<HashMap<(Upstream, String), Arc<GuardedEndpoint>>>,
}

#[derive(Debug, Clone)]
struct Member {
    endpoint: Endpoint,
    url: String,
    hash: u64,
    acquaintance: Arc<Acquaintance>,
}

impl Member {
    fn new(endpoint: Endpoint) -> Member {
        let url = endpoint.url();
        Member { hash: hash(&url), endpoint, url, acquaintance: Arc::default() }
    }

    /// The weight of this member for a content.
    fn weight(&self, content: u64) -> u64 {
        mixed(self.hash ^ content)
    }
}

impl Peers {
    /// Looks the members up in the background as long as the result is in use.
    pub(super) fn start(
        settings: PeerSettings,
        breaker: BreakerPolicy,
        foreign: Arc<ForeignAgents>,
    ) -> Arc<Peers> {
        let listed = match &settings.members {
            PeerMembers::Listed(endpoints) => endpoints.iter().cloned().map(Member::new).collect(),
            PeerMembers::Named { .. } => Vec::new(),
        };
        let lookup = match &settings.members {
            PeerMembers::Named { name, port, scheme } => Some((name.clone(), *port, *scheme)),
            PeerMembers::Listed(_) => None,
        };
        let peers = Arc::new(Peers {
            settings,
            breaker,
            foreign,
            members: RwLock::new(listed.into()),
            endpoints: Mutex::default(),
        });
        if let Some((name, port, scheme)) = lookup {
            let weak = Arc::downgrade(&peers);
            let run = move || look_up(&weak, &name, port, scheme);
            if let Err(error) = thread::Builder::new().name("peers".into()).spawn(run) {
                log::error!(error:%; "peers: cannot start a thread to find them; there are none");
            }
        }
        peers
    }

    /// See [`Sources::peer_proof`](crate::upstream::Sources::peer_proof).
    pub(super) fn proof(&self, login: Option<(&str, &str)>) -> PeerProof {
        match self.settings.access.credentials.accept(login) {
            Some(true) => PeerProof::Proven,
            Some(false) => PeerProof::Missing,
            None => PeerProof::Unproven,
        }
    }

    /// The endpoints of the peers to ask for a content, in order. Fewer if this process is responsible itself, or second.
    pub(super) fn responsible(
        &self,
        upstream: &Upstream,
        content: &str,
    ) -> [Option<Arc<GuardedEndpoint>>; PEERS_ASKED] {
        let members = self.members();
        let ranked = ranked(&members, content);
        let mut others =
            ranked.into_iter().take_while(|member| !member.acquaintance.is_this_process());
        std::array::from_fn(|_| Some(self.endpoint(upstream, others.next()?)))
    }

    fn members(&self) -> Arc<[Member]> {
        Arc::clone(&self.members.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The members, in the order of their URLs, with their ranks for some content.
    pub(super) fn statuses(&self, content: Option<&str>) -> Vec<PeerStatus> {
        let members = self.members();
        let order = content.map(|content| ranked(&members, content));
        let rank = |member: &Member| {
            let place = order.as_ref()?.iter().position(|each| each.url == member.url)?;
            Some(place + 1)
        };
        let own = introduction::own();
        let endpoints = lock(&self.endpoints);
        let now = Instant::now();
        let mut statuses: Vec<PeerStatus> = members
            .iter()
            .map(|member| {
                let asked = endpoints.iter().filter(|((_, url), _)| *url == member.url);
                let asked: Vec<EndpointStatus> =
                    asked.map(|(_, endpoint)| endpoint.status(now)).collect();
                let is_failing = |status: &&EndpointStatus| status.breaker != BreakerState::Closed;
                let theirs = member.acquaintance.introduction();
                let differences =
                    own.as_ref().zip(theirs.as_ref()).map(|(own, theirs)| own.differences(theirs));
                let failures = asked
                    .iter()
                    .filter_map(|status| status.failed.zip(status.last_failure.as_deref()));
                let latest = failures.max_by_key(|(time, _)| *time);
                PeerStatus {
                    url: member.url.clone(),
                    is_this_process: member.acquaintance.is_this_process(),
                    rank: rank(member),
                    version: theirs.map(|theirs| theirs.version().to_owned()),
                    differences: differences.unwrap_or_default(),
                    failing: asked.iter().filter(is_failing).count(),
                    last_failure: latest.map(|(_, text)| text.to_owned()),
                    failed: latest.map(|(time, _)| time),
                    failing_since: asked
                        .iter()
                        .filter(is_failing)
                        .filter_map(|status| status.failing_since)
                        .min(),
                }
            })
            .collect();
        statuses.sort_by(|one, other| one.url.cmp(&other.url));
        statuses
    }

    fn endpoint(&self, upstream: &Upstream, member: &Member) -> Arc<GuardedEndpoint> {
        let key = (upstream.clone(), member.url.clone());
        let mut endpoints = lock(&self.endpoints);
        if endpoints.len() >= ENDPOINTS_MAX && !endpoints.contains_key(&key) {
            endpoints.clear();
        }
        let made = endpoints.entry(key).or_insert_with(|| {
            let settings = EndpointSettings {
                endpoint: member.endpoint.clone(),
                kind: EndpointKind::Peer,
                ..self.settings.access.clone()
            };
            let foreign = Arc::clone(&self.foreign);
            let acquaintance = Arc::clone(&member.acquaintance);
            let registry =
                Registry::acquainted(upstream, &settings, TIMEOUTS, foreign, acquaintance);
            Arc::new(GuardedEndpoint::of_peer(registry, self.breaker))
        });
        Arc::clone(made)
    }

    /// Replaces the members. What is known about one that stays is kept.
    fn set(&self, mut members: Vec<Member>) {
        let before = self.members();
        let old = |url: &str| before.iter().find(|member| member.url == url);
        for member in &mut members {
            if let Some(old) = old(&member.url) {
                member.acquaintance = Arc::clone(&old.acquaintance);
            }
        }
        if before.iter().map(|old| &old.url).eq(members.iter().map(|new| &new.url)) {
            return;
        }
        log::info!(count = members.len(); "peers: the members have changed");
        lock(&self.endpoints).retain(|(_, url), _| members.iter().any(|member| member.url == *url));
        *self.members.write().unwrap_or_else(PoisonError::into_inner) = members.into();
    }
}

/// The members in the order in which they are responsible for some content.
fn ranked<'a>(members: &'a [Member], content: &str) -> Vec<&'a Member> {
    let content = hash(content);
    let mut ranked: Vec<&Member> = members.iter().collect();
    ranked.sort_by_key(|member| Reverse(member.weight(content)));
    ranked
}

/// Looks the members up until nobody uses the peers.
fn look_up(peers: &Weak<Peers>, name: &str, port: u16, scheme: Scheme) {
    let mut has_failed = false;
    while let Some(peers) = peers.upgrade() {
        match (name, port).to_socket_addrs().map(|found| found.collect::<Vec<SocketAddr>>()) {
            Ok(mut found) if !found.is_empty() => {
                found.sort_unstable();
                found.dedup();
                let members = found.iter().map(|at| Endpoint::new(scheme, &at.to_string()));
                peers.set(members.map(Member::new).collect());
                has_failed = false;
            }
            failed => {
                // Once for each outage. The last list stays.
                if !std::mem::replace(&mut has_failed, true) {
                    let reason =
                        failed.err().map_or("no addresses".into(), |error| error.to_string());
                    log::warn!(
                        host = name, error = reason.as_str();
                        "peers: cannot look up the members; they stay as they are"
                    );
                }
            }
        }
        drop(peers);
        thread::sleep(LOOKUP_EVERY);
    }
}

/// A hash that is the same in all versions of Larder.
fn hash(text: &str) -> u64 {
    let digest = Digest::of(Algorithm::Sha256, text.as_bytes());
    digest.hex().get(..16).and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or_default()
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
fn mixed(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one insertion or removal.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(count: usize) -> Vec<Member> {
        let endpoint = |number| Endpoint::new(Scheme::Http, &format!("10.0.0.{number}:8080"));
        (1..=count).map(|number| Member::new(endpoint(number))).collect()
    }

    fn first<'a>(members: &'a [Member], content: &str) -> &'a str {
        ranked(members, content).first().map_or("", |member| &member.url)
    }

    #[test]
    fn shares_are_equal_and_a_member_that_leaves_moves_only_its_own() {
        let all = members(10);
        let contents: Vec<String> = (0..10_000).map(|number| format!("sha256:{number}")).collect();
        let mut counts: HashMap<&str, u32> = HashMap::new();
        for content in &contents {
            *counts.entry(first(&all, content)).or_default() += 1;
        }
        assert!(
            counts.len() == 10 && counts.values().all(|count| (850..1150).contains(count)),
            "{counts:?}"
        );
        let fewer = &all[..9];
        let gone = &all[9].url;
        for content in &contents {
            let before = first(&all, content);
            assert!(before == gone || before == first(fewer, content), "{content}");
        }
    }

    #[test]
    fn hash_is_the_same_in_all_versions() {
        assert_eq!(hash("sha256:0"), 0xddad_c690_8c78_1f02);
        assert_eq!(mixed(1), 0x5692_161d_100b_05e5);
    }
}
