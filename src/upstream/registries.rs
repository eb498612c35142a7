//! Which registries there are, and which may be dialled at all.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::address::Guard;
use super::breaker::BreakerPolicy;
use super::credentials::Credentials;
use super::failover::{Failover, UpstreamStatus};
use super::proxy::ProxySettings;
use super::registry::Registry;
use super::tls::TlsSettings;
use super::transport::{LazyAgent, Timeouts};
use super::{Source, Sources, UpstreamError, UpstreamErrorKind};
use crate::oci::Upstream;

/// Unlisted registries remembered (their tokens and no more). Beyond it all are forgotten: clients
/// can name any number.
const UNLISTED_MAX: usize = 1024;

/// How upstreams are reached.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The listed registries.
    pub registries: Vec<RegistrySettings>,
    /// What becomes of the others.
    pub unlisted: UnlistedRegistries,
    /// How long they may take.
    pub timeouts: Timeouts,
    /// When an endpoint that fails is left alone.
    pub breaker: BreakerPolicy,
    /// By way of which proxies they are reached.
    pub proxies: ProxySettings,
}

/// One entry of `registries`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistrySettings {
    /// The key under which clients name it.
    pub upstream: Upstream,
    /// Where it really is, and where its mirrors are, in the order in which they are asked.
    pub endpoints: Vec<EndpointSettings>,
    /// How many bytes of blobs may come in a second, over all endpoints and downloads together.
    pub rate_limit: Option<NonZeroU64>,
}

/// One entry of `registries[].endpoints`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSettings {
    /// Where it is.
    pub endpoint: Endpoint,
    /// Whom it must prove to be, and as whom we present ourselves.
    pub tls: TlsSettings,
    /// Who we are.
    pub credentials: Credentials,
}

impl EndpointSettings {
    /// An endpoint that wants no credentials, and whose certificate the usual authorities sign.
    pub fn at(endpoint: Endpoint) -> EndpointSettings {
        let (tls, credentials) = (TlsSettings::default(), Credentials::default());
        EndpointSettings { endpoint, tls, credentials }
    }
}

/// Scheme, host and port of a registry's API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `https` unless the configuration says otherwise.
    pub scheme: Scheme,
    /// `host[:port]`.
    pub authority: String,
}

/// How to speak to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// By TLS.
    Https,
}

/// Whether registries that are not listed may be dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnlistedRegistries {
    /// Those whose DNS name leads to public addresses.
    #[default]
    Allow,
    /// None: a closed world.
    Deny,
}

impl Endpoint {
    /// Where a registry is if nothing else is said: at its own name, by https; Docker Hub's API is at
    /// another name than its images.
    pub fn of(upstream: &Upstream, scheme: Scheme) -> Endpoint {
        let authority = match upstream.is_docker_hub() {
            true => "registry-1.docker.io",
            false => upstream.as_str(),
        };
        Endpoint { scheme, authority: authority.to_owned() }
    }

    /// The registry as whose the endpoint is known to files with logins and to helpers: its own host,
    /// whatever the registry is called here.
    pub fn identity(&self, name: &Upstream) -> Upstream {
        self.authority.parse().unwrap_or_else(|_| name.clone())
    }
}

/// All registries of this server.
pub struct Registries {
    listed: HashMap<Upstream, Arc<Failover>>,
    unlisted: UnlistedRegistries,
    /// The unlisted registries met so far.
    others: Mutex<HashMap<Upstream, Arc<Failover>>>,
    timeouts: Timeouts,
    breaker: BreakerPolicy,
    foreign: Arc<ForeignAgents>,
}

/// Agents for hosts that the operator did not list: unlisted registries, and what redirects and
/// token realms lead to. Shared by all registries, since TLS roots weigh more than the rest.
pub(super) struct ForeignAgents {
    pub(super) public: LazyAgent,
    pub(super) private_too: LazyAgent,
    /// For the agents of listed registries as well.
    pub(super) proxies: Arc<ProxySettings>,
}

impl Registries {
    /// The registries of a configuration. Nothing is dialled.
    pub fn new(settings: Settings) -> Registries {
        let roots = || Some(TlsSettings::default());
        let proxies = Arc::new(settings.proxies);
        let agent = |guard| LazyAgent::new(guard, roots(), settings.timeouts, Arc::clone(&proxies));
        let foreign = Arc::new(ForeignAgents {
            public: agent(Guard::PublicOnly),
            private_too: agent(Guard::PrivateToo),
            proxies: Arc::clone(&proxies),
        });
        let listed = settings.registries.into_iter().map(|entry| {
            let upstream = entry.upstream;
            let registries = entry.endpoints.iter().map(|endpoint| {
                let foreign = Arc::clone(&foreign);
                Registry::listed(&upstream, endpoint, settings.timeouts, foreign)
            });
            let failover = Failover::new(upstream.clone(), registries, settings.breaker)
                .with_rate_limit(entry.rate_limit);
            (upstream, Arc::new(failover))
        });
        Registries {
            listed: listed.collect(),
            unlisted: settings.unlisted,
            others: Mutex::new(HashMap::new()),
            timeouts: settings.timeouts,
            breaker: settings.breaker,
            foreign,
        }
    }

    fn others(&self) -> MutexGuard<'_, HashMap<Upstream, Arc<Failover>>> {
        // A panic cannot leave the map half changed.
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unlisted(&self, upstream: &Upstream) -> Arc<Failover> {
        let mut others = self.others();
        if others.len() >= UNLISTED_MAX && !others.contains_key(upstream) {
            others.clear();
        }
        let registry = others.entry(upstream.clone()).or_insert_with(|| {
            let foreign = Arc::clone(&self.foreign);
            let registry = Registry::unlisted(upstream, self.timeouts, foreign);
            Arc::new(Failover::new(upstream.clone(), [registry], self.breaker))
        });
        Arc::clone(registry)
    }
}

impl Sources for Registries {
    fn source(&self, upstream: &Upstream) -> Result<Arc<dyn Source>, UpstreamError> {
        if let Some(registry) = self.listed.get(upstream) {
            return Ok(Arc::clone(registry) as Arc<dyn Source>);
        }
        match why_not(upstream, self.unlisted) {
            None => Ok(self.unlisted(upstream)),
            Some(reason) => {
                let kind = UpstreamErrorKind::NotAllowed { reason: reason.into() };
                Err(UpstreamError::new(upstream.as_str(), kind))
            }
        }
    }

    fn statuses(&self) -> Vec<UpstreamStatus> {
        let others: Vec<Arc<Failover>> = self.others().values().cloned().collect();
        let all = self.listed.values().chain(&others);
        let mut statuses: Vec<_> = all.map(|failover| failover.status()).collect();
        statuses.sort_by(|one, other| one.upstream.as_str().cmp(other.upstream.as_str()));
        statuses
    }
}

/// Why an unlisted registry may not be dialled; `None` if it may, subject to where its name leads.
fn why_not(upstream: &Upstream, unlisted: UnlistedRegistries) -> Option<&'static str> {
    let host = upstream.host();
    if unlisted == UnlistedRegistries::Deny {
        Some("it is not listed in `registries`, and `unlistedRegistries` is deny")
    } else if host.parse::<std::net::IpAddr>().is_ok() {
        Some("a registry at an address needs an entry in `registries`")
    } else if !host.contains('.') {
        Some("a registry whose name has no dot needs an entry in `registries`")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unlisted_registries_need_a_public_looking_name() {
        for (name, allowed) in [
            ("quay.io", true),
            ("registry.example.com:5000", true),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("[::1]:5000", false),
            ("localhost", false),
            ("localhost:5000", false),
            ("reg:5000", false),
        ] {
            let upstream: Upstream = name.parse().unwrap();
            let open = Registries::new(Settings::default());
            assert_eq!(open.source(&upstream).is_ok(), allowed, "{name}");
            let closed = Settings { unlisted: UnlistedRegistries::Deny, ..Settings::default() };
            assert!(Registries::new(closed).source(&upstream).is_err(), "{name}");
        }
    }

    #[test]
    fn a_listed_registry_may_be_anywhere_even_in_a_closed_world() {
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

    #[test]
    fn clients_cannot_grow_the_table_without_bound() {
        let registries = Registries::new(Settings::default());
        for number in 0..=UNLISTED_MAX {
            let name = format!("r{number}.example.com");
            assert!(registries.source(&name.parse().unwrap()).is_ok());
        }
        assert!(registries.others.lock().unwrap().len() <= UNLISTED_MAX);
    }

    #[test]
    fn docker_hubs_api_is_at_another_name() {
        let hub: Upstream = "index.docker.io".parse().unwrap();
        assert_eq!(Endpoint::of(&hub, Scheme::Https).authority, "registry-1.docker.io");
    }
}
