//! Connections through a proxy: checks the target, connects to the proxy, sends CONNECT. TLS with the registry runs on
//! top, as without a proxy.
//!
//! Threats: the proxy connects to a host that Larder itself may not dial (the proxy has no guard, and is often in the
//! operator's network); the proxy, or an attacker in its place, reads the registry's traffic. Therefore the guard checks
//! the target before the proxy learns of it, the registry's traffic is sent inside the tunnel only, and TLS with the
//! proxy itself trusts the operating system's roots, presents no client certificate and never skips verification.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{
    ConnectProxyConnector, ConnectionDetails, Connector, Either, TcpConnector, Transport,
};
use ureq::{Agent, Error};

use super::address::{AddressRefused, Guard};
use super::dns_cache::DnsCache;
use super::proxy::Proxy;
use super::tls_connector::TlsConnector;

/// How long the target's name is looked up here before it is left to the proxy. In networks with a proxy, public names
/// often do not resolve, and sometimes the DNS server does not even answer.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(2);

type Dial =
    dyn Fn(&ConnectionDetails<'_>) -> Result<Box<dyn Transport>, Error> + Send + Sync + 'static;

/// Connects through one proxy.
pub(in crate::upstream) struct TunnelConnector {
    proxy: Proxy,
    guard: Guard,
    dns: DnsCache,
    dial: Arc<Dial>,
}

impl TunnelConnector {
    /// `to_proxy` is the TLS configuration for the proxy itself.
    pub(in crate::upstream) fn new(
        proxy: Proxy,
        guard: Guard,
        dns: DnsCache,
        to_proxy: Option<Arc<ClientConfig>>,
    ) -> TunnelConnector {
        let chain = ().chain(TcpConnector::default()).chain(TlsConnector::new(to_proxy));
        let config = Agent::config_builder().proxy(None).build();
        let dial = move |details: &ConnectionDetails<'_>| {
            let details = ConnectionDetails {
                config: &config,
                request_level: false,
                ..copied(details, Arc::clone(&details.run_connector))
            };
            let transport = chain.connect(&details, None)?.ok_or(Error::ConnectionFailed)?;
            Ok(Box::new(transport) as Box<dyn Transport>)
        };
        TunnelConnector { proxy, guard, dns, dial: Arc::new(dial) }
    }

    /// Refuses a target that may not be dialled without a proxy.
    fn check(&self, details: &ConnectionDetails<'_>) -> Result<(), Error> {
        if self.guard == Guard::Any {
            return Ok(());
        }
        let host = details.uri.host().unwrap_or_default();
        let addresses = self.look_up(details);
        match self.guard.allows_target(host, &addresses) {
            true => Ok(()),
            false => {
                let address = addresses.first().map(ToString::to_string);
                log::warn!(
                    proxy:% = self.proxy, host, address = address.as_deref();
                    "the proxy is not asked for a host that may not be dialled"
                );
                Err(Error::Other(Box::new(AddressRefused::new(host))))
            }
        }
    }

    /// The addresses of the target's name; none if it does not resolve, for whatever reason.
    fn look_up(&self, details: &ConnectionDetails<'_>) -> Vec<IpAddr> {
        let at_most = (*details.timeout.after).min(LOOK_UP_TIMEOUT);
        let authority = details.uri.scheme().zip(details.uri.authority());
        let name = authority
            .and_then(|(scheme, authority)| DefaultResolver::host_and_port(scheme, authority));
        let resolved = name.and_then(|name| self.dns.resolve(&name, at_most).ok());
        resolved.map(|all| all.iter().map(SocketAddr::ip).collect()).unwrap_or_default()
    }
}

/// A copy with another dial function: ureq's type cannot be cloned.
fn copied<'a>(details: &ConnectionDetails<'a>, run_connector: Arc<Dial>) -> ConnectionDetails<'a> {
    let mut addrs = details.resolver.empty();
    details.addrs.iter().for_each(|address| addrs.push(*address));
    ConnectionDetails {
        uri: details.uri,
        addrs,
        config: details.config,
        request_level: details.request_level,
        resolver: details.resolver,
        now: details.now,
        timeout: details.timeout,
        current_time: Arc::clone(&details.current_time),
        run_connector,
        register_shutdown: Arc::clone(&details.register_shutdown),
    }
}

impl Connector<()> for TunnelConnector {
    type Out = Box<dyn Transport>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<Box<dyn Transport>>, Error> {
        self.check(details)?;
        let by_way = copied(details, Arc::clone(&self.dial));
        let tunnel = ConnectProxyConnector::default()
            .connect(&by_way, None::<()>)
            .map_err(|error| ProxyFailed::with(&self.proxy, error))?;
        match tunnel {
            Some(Either::B(tunnel)) => Ok(Some(tunnel)),
            // There is no proxy in the agent's configuration. Fails rather than connect directly by accident.
            _ => Err(Error::ConnectionFailed),
        }
    }
}

impl fmt::Debug for TunnelConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TunnelConnector({}, {:?})", self.proxy, self.guard)
    }
}

/// An error of the proxy and not of the registry.
#[derive(Debug)]
pub(in crate::upstream) struct ProxyFailed {
    reason: String,
}

impl ProxyFailed {
    /// Adds the proxy's name to an error of ureq.
    fn with(proxy: &Proxy, error: Error) -> Error {
        let what = match &error {
            Error::ConnectProxyFailed(text) => match status(text) {
                Some(407) => {
                    "requires other credentials (status 407); put them into the proxy's URL \
                              as user:password@"
                        .to_owned()
                }
                Some(status) => format!("refuses to connect to it (status {status})"),
                None => format!("does not connect to it: {text}"),
            },
            Error::Timeout(_) => "does not answer in time".to_owned(),
            Error::Io(error) => format!("cannot be reached: {error}"),
            error => format!("cannot be reached: {error}"),
        };
        Error::Other(Box::new(ProxyFailed { reason: format!("the proxy {proxy} {what}") }))
    }
}

/// The status of the proxy's response, which ureq reports in its text only.
fn status(text: &str) -> Option<u16> {
    text.split(|c: char| !c.is_ascii_digit()).find(|digits| digits.len() == 3)?.parse().ok()
}

impl fmt::Display for ProxyFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for ProxyFailed {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_a_proxy_name_the_proxy() {
        let proxy: Proxy = "http://user:hunter2@p:3128".parse().unwrap();
        let refused = |text: &str| Error::ConnectProxyFailed(text.to_owned());
        let io = || Error::Io(std::io::ErrorKind::ConnectionRefused.into());
        for (error, words) in [
            (refused("proxy server responded 407/407"), "requires other credentials"),
            (refused("proxy server responded 503/503"), "refuses to connect to it (status 503)"),
            (refused("proxy server did not respond"), "did not respond"),
            (Error::Timeout(ureq::Timeout::Connect), "does not answer in time"),
            (Error::HostNotFound, "cannot be reached"),
            (io(), "cannot be reached: connection refused"),
        ] {
            let text = ProxyFailed::with(&proxy, error).to_string();
            assert!(text.contains("the proxy http://p:3128 ") && text.contains(words), "{text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}
