//! Agents: connection pools with their TLS configuration and timeouts.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use ureq::Agent;
use ureq::config::Config;
use ureq::unversioned::transport::{Connector, TcpConnector};

use super::address::{Guard, GuardedResolver};
use super::dns_cache::DnsCache;
use super::location::Location;
use super::proxy::{Proxy, ProxySettings};
use super::response_head::ResponseHeads;
use super::tls::TlsSettings;
use super::tls_connector::TlsConnector;
use super::tunnel::TunnelConnector;
use crate::certificates::{CertificateError, Stamp};

/// The most idle connections to one host: enough that the layers of an image do not need a handshake each.
const IDLE_CONNECTIONS_PER_HOST: usize = 8;
/// The most idle connections of one agent.
const IDLE_CONNECTIONS: usize = 64;
/// How long an idle connection is kept: shorter than registries and load balancers keep theirs (60 s and more).
const IDLE_AGE_MAX: Duration = Duration::from_secs(15);

/// Timeouts of requests to upstreams. The total time of a blob's body has no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For resolving the name, and again for connecting with TLS.
    pub connect: Duration,
    /// From the request to the end of the response headers.
    pub headers: Duration,
    /// Between two reads of a body.
    pub stall: Duration,
    /// For a complete exchange for a manifest, a token or a list, body included.
    pub metadata: Duration,
    /// For the response to a probe of the endpoint.
    pub probe: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            connect: Duration::from_secs(5),
            headers: Duration::from_secs(20),
            stall: Duration::from_secs(30),
            metadata: Duration::from_secs(30),
            // Short, since a client's request waits for it.
            probe: Duration::from_secs(5),
        }
    }
}

/// The connection settings of registries, for services that are not registries.
#[derive(Debug, Clone, Default)]
pub(in crate::upstream) struct Reach {
    pub(in crate::upstream) timeouts: Timeouts,
    pub(in crate::upstream) proxies: Arc<ProxySettings>,
}

/// How often certificate files are checked for changes.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Agents for one kind of host: one without a proxy and one for each proxy. Built on first use (loading the root
/// certificates takes longer than the rest of Larder's start) and again when the certificate files change.
#[derive(Debug)]
pub(in crate::upstream) struct LazyAgent {
    guard: Guard,
    /// `None` for plain HTTP: then no roots are loaded.
    tls: Option<TlsSettings>,
    timeouts: Timeouts,
    proxies: Arc<ProxySettings>,
    /// Each agent has its own, so that names chosen by clients cannot block lookups for a listed registry.
    dns: DnsCache,
    /// Held while agents are built, since other callers need the same ones.
    built: Mutex<Option<Built>>,
}

#[derive(Debug)]
struct Built {
    agents: Agents,
    stamp: Stamp,
    /// When the files were last checked for changes; `None` forces a check.
    checked: Option<Instant>,
}

#[derive(Debug)]
struct Agents {
    direct: Agent,
    /// Through the proxies for http and https.
    http: Option<Agent>,
    https: Option<Agent>,
}

impl Agents {
    fn towards(&self, proxies: &ProxySettings, location: &Location) -> Agent {
        let tunnelled = if location.is_https() { &self.https } else { &self.http };
        let proxied = proxies.towards(location).and(tunnelled.as_ref());
        proxied.unwrap_or(&self.direct).clone()
    }
}

impl LazyAgent {
    pub(in crate::upstream) fn new(
        guard: Guard,
        tls: Option<TlsSettings>,
        timeouts: Timeouts,
        proxies: Arc<ProxySettings>,
    ) -> LazyAgent {
        let (dns, built) = (DnsCache::default(), Mutex::new(None));
        LazyAgent { guard, tls, timeouts, proxies, dns, built }
    }

    /// The agent for `location`, with or without a proxy.
    ///
    /// # Errors
    /// [`CertificateError`] if the agents have not been built yet and a file is unusable. If a changed file is unusable,
    /// a warning is logged and the previous agents stay in use: a rotation may be incomplete.
    pub(in crate::upstream) fn get(&self, location: &Location) -> Result<Agent, CertificateError> {
        self.get_at(location, Instant::now())
    }

    fn get_at(&self, location: &Location, now: Instant) -> Result<Agent, CertificateError> {
        // A panic during a build leaves nothing or the previous agents.
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *built {
            Some(built) => {
                self.rebuild_if_changed(built, now);
                Ok(built.agents.towards(&self.proxies, location))
            }
            None => {
                let stamp = self.stamp();
                let agents = self.build()?;
                let agent = agents.towards(&self.proxies, location);
                *built = Some(Built { agents, stamp, checked: Some(now) });
                Ok(agent)
            }
        }
    }

    /// The addresses of a host; none if it does not resolve within the connect timeout.
    pub(in crate::upstream) fn addresses(&self, host_and_port: &str) -> Vec<IpAddr> {
        self.socket_addresses(host_and_port).iter().map(SocketAddr::ip).collect()
    }

    /// As [`LazyAgent::addresses`], with the port.
    pub(in crate::upstream) fn socket_addresses(&self, host_and_port: &str) -> Vec<SocketAddr> {
        let resolved = self.dns.resolve(host_and_port, self.timeouts.connect);
        resolved.map(|all| all.to_vec()).unwrap_or_default()
    }

    pub(super) fn proxies(&self) -> &ProxySettings {
        &self.proxies
    }

    pub(super) fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// The configuration of TLS, read now, and the name for the server's certificate if it is not the host's.
    pub(super) fn tls_config(
        &self,
    ) -> Result<(Arc<ClientConfig>, Option<String>), CertificateError> {
        let tls = self.tls.clone().unwrap_or_default();
        Ok((tls.client_config(roots)?, tls.server_name))
    }

    /// Forces a check of the certificate files on the next use.
    pub(in crate::upstream) fn refresh(&self) {
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        built.iter_mut().for_each(|built| built.checked = None);
    }

    fn rebuild_if_changed(&self, built: &mut Built, now: Instant) {
        let is_due = |checked| now.duration_since(checked) >= CHECK_INTERVAL;
        if built.checked.is_none_or(is_due) {
            built.checked = Some(now);
            let stamp = self.stamp();
            if stamp != built.stamp {
                let expired = self.tls.iter().flat_map(|tls| tls.expired(SystemTime::now()));
                expired.for_each(|expired| {
                    log::error!(
                        error:% = expired; "registries[].tls: a certificate is not valid now"
                    )
                });
                match self.build() {
                    Ok(agents) => (built.agents, built.stamp) = (agents, stamp),
                    Err(error) => log::warn!(
                        error:%; "registries[].tls: changed files are not used yet"
                    ),
                }
            }
        }
    }

    fn stamp(&self) -> Stamp {
        self.tls.as_ref().map(TlsSettings::stamp).unwrap_or_default()
    }

    fn build(&self) -> Result<Agents, CertificateError> {
        let tls = self.tls.as_ref().map(|tls| tls.client_config(roots)).transpose()?;
        let proxied = |proxy: &Option<Proxy>| {
            proxy.as_ref().map(|proxy| self.build_proxied(proxy, tls.clone()))
        };
        let http = proxied(&self.proxies.http).transpose()?;
        let https = proxied(&self.proxies.https).transpose()?;
        let server_name = self.tls.as_ref().and_then(|tls| tls.server_name.clone());
        let encrypted = TlsConnector::new(tls).with_server_name(server_name);
        let chain = ().chain(TcpConnector::default()).chain(encrypted);
        let resolver = GuardedResolver { guard: self.guard, dns: self.dns.clone() };
        let direct = Agent::with_parts(self.config(None), chain.chain(ResponseHeads), resolver);
        Ok(Agents { direct, http, https })
    }

    fn build_proxied(
        &self,
        proxy: &Proxy,
        tls: Option<Arc<ClientConfig>>,
    ) -> Result<Agent, CertificateError> {
        let to_proxy = proxy.is_https().then(|| TlsSettings::default().client_config(roots));
        let to_proxy = to_proxy.transpose()?;
        let tunnel = TunnelConnector::new(proxy.clone(), self.guard, self.dns.clone(), to_proxy);
        // Resolves only the proxy's name, which the operator has chosen. The tunnel checks the target.
        let resolver = GuardedResolver { guard: Guard::Any, dns: self.dns.clone() };
        let chain = tunnel.chain(TlsConnector::new(tls)).chain(ResponseHeads);
        Ok(Agent::with_parts(self.config(Some(proxy)), chain, resolver))
    }

    fn config(&self, proxy: Option<&Proxy>) -> Config {
        Agent::config_builder()
            // A 401 contains the challenge and a redirect its target, so neither is an error.
            .http_status_as_error(false)
            .max_redirects(0)
            // Without this call, ureq would read the proxy from the environment.
            .proxy(proxy.map(Proxy::for_ureq))
            .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")))
            // Bytes are hashed as they arrive, so they must not be compressed.
            .accept_encoding("identity")
            .timeout_resolve(Some(self.timeouts.connect))
            .timeout_connect(Some(self.timeouts.connect))
            .timeout_recv_response(Some(self.timeouts.headers))
            .timeout_per_read(Some(self.timeouts.stall))
            .timeout_per_write(Some(self.timeouts.stall))
            .max_idle_connections(IDLE_CONNECTIONS)
            .max_idle_connections_per_host(IDLE_CONNECTIONS_PER_HOST)
            .max_idle_age(IDLE_AGE_MAX)
            .build()
    }
}

/// The root certificates of the operating system, or Mozilla's if it has none. Loaded once.
fn roots() -> &'static [CertificateDer<'static>] {
    static ROOTS: OnceLock<Vec<CertificateDer<'static>>> = OnceLock::new();
    ROOTS.get_or_init(load_roots)
}

fn load_roots() -> Vec<CertificateDer<'static>> {
    let loaded = rustls_native_certs::load_native_certs();
    for error in &loaded.errors {
        log::warn!(error:%; "a root certificate of the operating system cannot be used");
    }
    if loaded.certs.is_empty() {
        log::info!("the operating system has no root certificates; Mozilla's are used");
        return webpki_root_certs::TLS_SERVER_ROOT_CERTS.to_vec();
    }
    loaded.certs
}

/// Agents for hosts that the operator did not list: unlisted registries, targets of redirects, and token realms. Shared
/// by all registries, since each copy of the TLS roots needs much memory.
pub(in crate::upstream) struct ForeignAgents {
    pub(in crate::upstream) public: LazyAgent,
    pub(in crate::upstream) private_too: LazyAgent,
    /// Used by the agents of listed registries as well.
    pub(in crate::upstream) proxies: Arc<ProxySettings>,
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn pair() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let parameters = CertificateParams::new(vec!["x".into()]).unwrap();
        (parameters.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn an_incomplete_rotation_leaves_the_previous_certificate_in_use() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let put = |name: &str, text: &str| fs::write(path(name), text).unwrap();
        let ((old_cert, old_key), (new_cert, new_key)) = (pair(), pair());
        put("cert", &old_cert);
        put("key", &old_key);
        let identity =
            Some(crate::certificates::IdentityFiles { cert: path("cert"), key: path("key") });
        let tls = TlsSettings { identity, ..TlsSettings::default() };
        let agent = LazyAgent::new(Guard::Any, Some(tls), Timeouts::default(), Arc::default());
        let to = Location::new(true, "registry.test", "/");
        let stamp = || agent.built.lock().unwrap().as_ref().unwrap().stamp.clone();
        let start = Instant::now();
        agent.get_at(&to, start).unwrap();
        let first = stamp();

        // The lengths differ, so that the stamps differ whatever the file system's clock.
        put("cert", &format!("{new_cert}\n"));
        agent.get_at(&to, start + CHECK_INTERVAL).unwrap();
        assert_eq!(stamp(), first, "the new certificate has no key yet");
        put("key", &format!("{new_key}\n"));
        agent.get_at(&to, start + CHECK_INTERVAL).unwrap();
        assert_eq!(stamp(), first, "not checked again within the interval");
        agent.get_at(&to, start + 2 * CHECK_INTERVAL).unwrap();
        let second = stamp();
        assert_ne!(second, first);
        put("key", &format!("{new_key}\n\n"));
        agent.refresh();
        agent.get_at(&to, start + 2 * CHECK_INTERVAL).unwrap();
        assert_ne!(stamp(), second, "a refresh forces a check");
    }
}
