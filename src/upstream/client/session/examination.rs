//! How an endpoint is reached: the part of a check that precedes the first request.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Instant, SystemTime};

use super::Session;
use crate::units::{ago, duration};
use crate::upstream::client::check::CheckStep;
use crate::upstream::error::UpstreamError;
use crate::upstream::network::{Guard, Handshake, LazyAgent};

/// A certificate that expires sooner than this is a warning, in days.
const EXPIRES_SOON_DAYS: u64 = 14;
/// How many addresses are printed.
const ADDRESSES_NAMED: usize = 4;

impl Session {
    /// Examines the name, the addresses, the proxy and TLS of the endpoint. `false` if no request can succeed.
    pub(in crate::upstream::client) fn examine(&self, steps: &mut Vec<CheckStep>) -> bool {
        let (agent, guard) = match &self.own {
            Some(own) => (own, Guard::Any),
            None => (&self.foreign.public, Guard::PublicOnly),
        };
        let host = self.base.host_and_port();
        let addresses = agent.socket_addresses(&host);
        let proxy = agent.proxy(&self.base);
        steps.push(match (addresses.is_empty(), &proxy) {
            (true, None) => {
                steps.push(CheckStep::failed(
                    "name",
                    format!("{} does not resolve", self.base.host()),
                    "correct the name, or the name server of this machine (/etc/resolv.conf)",
                ));
                return false;
            }
            (true, Some(_)) => {
                CheckStep::skipped("name", "does not resolve here; the proxy resolves it")
            }
            (false, _) => CheckStep::passed("name", named(&addresses)),
        });
        let ips: Vec<IpAddr> = addresses.iter().map(SocketAddr::ip).collect();
        let is_allowed = match proxy.is_some() {
            true => guard.allows_target(self.base.host(), &ips),
            false => ips.iter().any(|ip| guard.allows(*ip)),
        };
        if !is_allowed {
            steps.push(CheckStep::failed(
                "address",
                "a private or special address, which registries without an entry may not have",
                "add the registry to registries in the configuration",
            ));
            return false;
        }
        steps.push(match guard {
            Guard::Any => CheckStep::passed("address", "any is allowed: the registry is listed"),
            _ => CheckStep::passed("address", "public, as it must be without an entry"),
        });
        steps.push(match &proxy {
            Some(proxy) => CheckStep::passed("proxy", format!("{proxy}, from the environment")),
            None => CheckStep::passed("proxy", "none"),
        });
        match (proxy, self.base.is_https()) {
            (Some(_), _) => {
                steps.push(CheckStep::skipped("connection", "made by the proxy"));
                true
            }
            (None, is_https) => {
                let allowed = addresses.into_iter().filter(|address| guard.allows(address.ip()));
                self.connect(agent, &allowed.collect::<Vec<_>>(), is_https, steps)
            }
        }
    }

    fn connect(
        &self,
        agent: &LazyAgent,
        addresses: &[SocketAddr],
        is_https: bool,
        steps: &mut Vec<CheckStep>,
    ) -> bool {
        let began = Instant::now();
        let mut failure = None;
        for address in addresses {
            match agent.handshake(&self.base, *address) {
                Ok(handshake) => {
                    let took = duration(began.elapsed());
                    let text = format!("{address} in {took}");
                    steps.push(CheckStep::passed("connection", text));
                    steps.extend(is_https.then(|| certificate(&handshake, SystemTime::now())));
                    return true;
                }
                Err(error) => failure = Some((address, error)),
            }
        }
        let Some((address, error)) = failure else { return false };
        let remedy = match error.kind() {
            io::ErrorKind::InvalidData => "",
            io::ErrorKind::ConnectionRefused => {
                "correct the port, or start the registry; a firewall may also refuse"
            }
            _ => "allow this address in firewalls and network policies, or set HTTPS_PROXY",
        };
        // The text and the remedy are those of a request.
        let text = UpstreamError::from_body(&self.url(), error).to_string();
        steps.push(CheckStep::failed("connection", format!("{address}: {text}"), remedy));
        false
    }
}

fn named(addresses: &[SocketAddr]) -> String {
    let ips: Vec<String> =
        addresses.iter().take(ADDRESSES_NAMED).map(|address| address.ip().to_string()).collect();
    let more = addresses.len().saturating_sub(ADDRESSES_NAMED);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{}{more}", ips.join(", "))
}

fn certificate(handshake: &Handshake, now: SystemTime) -> CheckStep {
    let protocol = &handshake.protocol;
    match handshake.expires.map(|expires| (expires, expires.duration_since(now))) {
        None => CheckStep::passed("tls", protocol.clone()),
        // Only without verification.
        Some((expires, Err(_))) => CheckStep::warning(
            "tls",
            format!("{protocol}; the certificate has expired {} ago", ago(expires, now)),
            "renew the registry's certificate: insecureSkipVerify hides that",
        ),
        Some((_, Ok(left))) => {
            let days = left.as_secs() / 86_400;
            let text = format!("{protocol}; the certificate is valid for {days} days");
            match days < EXPIRES_SOON_DAYS {
                true => CheckStep::warning("tls", text, "renew the registry's certificate"),
                false => CheckStep::passed("tls", text),
            }
        }
    }
}
