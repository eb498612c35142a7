//! Which addresses may be dialled on behalf of a client.
//!
//! Threat: every client can choose `?ns=`. Without this guard, Larder would be a proxy into the operator's network
//! (169.254.169.254, 10.0.0.1, localhost). The guard checks the address and not the name, since a public name can
//! resolve to a private address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use super::dns_cache::{DnsCache, ResolveError};

/// Which resolved addresses a connection may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::upstream) enum Guard {
    /// All: the operator listed this host.
    Any,
    /// Public and private addresses, but not link-local and special ones, where the metadata services of clouds are.
    /// For the redirects of a registry in a private network.
    PrivateToo,
    /// Addresses of the public internet only.
    PublicOnly,
}

impl Guard {
    pub(in crate::upstream) fn allows(self, ip: IpAddr) -> bool {
        match self {
            Guard::Any => true,
            Guard::PrivateToo => is_public(ip) || is_private(ip),
            Guard::PublicOnly => is_public(ip),
        }
    }

    /// Whether a proxy may be asked to connect to `host`, which resolves to `addresses` on this machine. In networks
    /// with a proxy it often does not resolve, and `addresses` is empty.
    ///
    /// The proxy may choose any of the addresses, so all of them must be allowed. A name that only the proxy can
    /// resolve is allowed unless it looks like a private one.
    pub(in crate::upstream) fn allows_target(self, host: &str, addresses: &[IpAddr]) -> bool {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        match bare.parse::<IpAddr>() {
            Ok(ip) => self.allows(ip),
            Err(_) if self == Guard::Any => true,
            Err(_) if addresses.is_empty() => is_public_looking(bare),
            Err(_) => addresses.iter().all(|ip| self.allows(*ip)),
        }
    }
}

/// Domains without public names (RFC 6761, 6762 and 8375, and ICANN's reservation of `.internal`). The metadata service
/// of one cloud is `metadata.google.internal`.
const PRIVATE_DOMAINS: [&str; 4] = [".internal", ".local", ".localhost", ".home.arpa"];

/// Whether a name has the form of a public one: it has a dot, its last label does not begin with a digit (many programs
/// take `127.1` and `0x7f.1` for addresses), and it is not in a private domain.
fn is_public_looking(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let Some((above, last)) = name.rsplit_once('.') else { return false };
    let is_name = !above.is_empty() && last.starts_with(|first: char| first.is_ascii_alphabetic());
    is_name && !PRIVATE_DOMAINS.iter().any(|domain| name.ends_with(domain))
}

/// The most addresses of one name that are tried: the capacity of ureq's list.
const ADDRESSES_MAX: usize = 16;

/// Resolves names, then drops the addresses that the guard does not allow.
#[derive(Debug)]
pub(in crate::upstream) struct GuardedResolver {
    pub(in crate::upstream) guard: Guard,
    pub(in crate::upstream) dns: DnsCache,
}

impl Resolver for GuardedResolver {
    fn resolve(
        &self,
        uri: &Uri,
        _: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let authority = uri.scheme().zip(uri.authority());
        let name = authority
            .and_then(|(scheme, authority)| DefaultResolver::host_and_port(scheme, authority))
            .ok_or(ureq::Error::HostNotFound)?;
        let resolved = self.dns.resolve(&name, *timeout.after).map_err(|error| match error {
            ResolveError::Failed => ureq::Error::HostNotFound,
            ResolveError::TimedOut => ureq::Error::Timeout(timeout.reason),
        })?;
        let mut allowed = self.empty();
        let addresses = resolved.iter().filter(|address| self.guard.allows(address.ip()));
        for address in addresses.take(ADDRESSES_MAX) {
            allowed.push(*address);
        }
        match (allowed.first(), resolved.first()) {
            (None, Some(address)) => {
                let host = uri.host().unwrap_or_default();
                // In the log only: otherwise clients could find out what private names resolve to.
                log::warn!(
                    host, address:% = address.ip();
                    "a host resolves to an address that may not be dialled"
                );
                Err(ureq::Error::Other(Box::new(AddressRefused::new(host))))
            }
            _ => Ok(allowed),
        }
    }
}

/// A name resolves to an address that may not be dialled.
#[derive(Debug)]
pub(in crate::upstream) struct AddressRefused {
    host: String,
}

impl AddressRefused {
    pub(in crate::upstream) fn new(host: &str) -> AddressRefused {
        AddressRefused { host: host.to_owned() }
    }
}

impl fmt::Display for AddressRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} does not resolve to a public address; a registry in a private network needs an \
             entry in `registries`",
            self.host
        )
    }
}

impl std::error::Error for AddressRefused {}

/// Whether an address belongs to this machine or to a private network.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_loopback(),
        // Amazon's metadata service is in fd00:ec2::/32.
        IpAddr::V6(ip) => {
            ip.is_loopback() || (ip.is_unique_local() && ip.segments()[..2] != [0xfd00, 0xec2])
        }
    }
}

/// Whether an address belongs to the public internet (IANA special-purpose address registries).
pub(in crate::upstream) fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let special = ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_documentation()
        || a == 0
        || a >= 240
        // Shared address space of carriers, protocol assignments, benchmarking.
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && (18..20).contains(&b));
    !special
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let segments = ip.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        // Mapped, NAT64 and 6to4 addresses are as public as the IPv4 address that they contain.
        [0, 0, 0, 0, 0, 0xffff, high, low] => embedded(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low),
        [0x2001, 0xdb8, ..] => false,
        // Global unicast. All others are local, multicast or unassigned.
        [first, ..] => (0x2000..0x4000).contains(&first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_addresses() {
        for text in [
            "1.1.1.1",
            "99.84.0.1",
            "100.63.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "2606:4700::1",
            "::ffff:1.1.1.1",
        ] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn addresses_that_are_not_public() {
        for text in [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "192.168.1.1",
            "192.0.0.1",
            "192.0.2.1",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "2001:db8::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "::7f00:1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn targets_allowed_and_refused_through_a_proxy() {
        for (host, addresses, public_only, private_too) in [
            ("quay.io", &["1.1.1.1"][..], true, true),
            ("quay.io", &["1.1.1.1", "2606:4700::1"], true, true),
            ("quay.io", &[], true, true),
            ("quay.io.", &[], true, true),
            ("quay.io", &["10.0.0.1"], false, true),
            ("quay.io", &["1.1.1.1", "10.0.0.1"], false, true),
            ("quay.io", &["1.1.1.1", "169.254.169.254"], false, false),
            ("1.1.1.1", &[], true, true),
            ("10.0.0.1", &[], false, true),
            ("169.254.169.254", &[], false, false),
            ("[::1]", &[], false, true),
            ("[fe80::1]", &[], false, false),
            ("[2606:4700::1]", &[], true, true),
            ("[::ffff:169.254.169.254]", &[], false, false),
            ("registry", &[], false, false),
            ("registry.", &[], false, false),
            ("registry", &["10.0.0.1"], false, true),
            ("127.1", &[], false, false),
            ("0x7f.1", &[], false, false),
            ("2130706433", &[], false, false),
            (".io", &[], false, false),
            ("", &[], false, false),
            ("metadata.google.internal", &[], false, false),
            ("metadata.google.internal.", &[], false, false),
            ("printer.LOCAL", &[], false, false),
            ("internal.io", &[], true, true),
        ] {
            let addresses: Vec<IpAddr> =
                addresses.iter().map(|text| text.parse().unwrap()).collect();
            let allows = |guard: Guard| guard.allows_target(host, &addresses);
            assert_eq!(allows(Guard::PublicOnly), public_only, "{host} {addresses:?}");
            assert_eq!(allows(Guard::PrivateToo), private_too, "{host} {addresses:?}");
            assert!(allows(Guard::Any), "{host}");
        }
    }

    #[test]
    fn redirects_to_metadata_services_are_refused() {
        for (text, private_too) in [
            ("169.254.169.254", false),
            ("fe80::1", false),
            ("fd00:ec2::254", false),
            ("fd00::1", true),
            ("10.0.0.1", true),
            ("::1", true),
        ] {
            let ip = text.parse().unwrap();
            assert_eq!(Guard::PrivateToo.allows(ip), private_too, "{text}");
            assert!(!Guard::PublicOnly.allows(ip) && Guard::Any.allows(ip), "{text}");
        }
    }
}
