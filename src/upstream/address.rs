//! Which addresses may be dialled on behalf of a client.
//!
//! Threat: `?ns=` is chosen by whoever can reach Larder. Without this guard it would be a proxy into
//! the operator's network (169.254.169.254, 10.0.0.1, localhost). The check is made on the address
//! that is dialled and not on the name, since a public name can resolve to a private address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// Which resolved addresses a connection may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guard {
    /// Any: the operator listed this very host.
    Any,
    /// Any but link-local and special ones, where cloud metadata services live: targets that a
    /// registry in a private network may redirect to.
    PrivateToo,
    /// Addresses of the public internet only.
    PublicOnly,
}

impl Guard {
    pub(super) fn allows(self, ip: IpAddr) -> bool {
        match self {
            Guard::Any => true,
            Guard::PrivateToo => is_public(ip) || is_private(ip),
            Guard::PublicOnly => is_public(ip),
        }
    }
}

/// Resolves as usual, then drops the addresses that the guard does not allow.
#[derive(Debug)]
pub(super) struct GuardedResolver {
    pub(super) guard: Guard,
}

impl Resolver for GuardedResolver {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let resolved = DefaultResolver::default().resolve(uri, config, timeout)?;
        let mut allowed = self.empty();
        for address in resolved.iter().filter(|address| self.guard.allows(address.ip())) {
            allowed.push(*address);
        }
        match (allowed.first(), resolved.first()) {
            (None, Some(address)) => {
                let host = uri.host().unwrap_or_default().to_owned();
                // For the operator only: clients could else ask us what private names resolve to.
                log::warn!("{host} resolves to {}, which may not be dialled", address.ip());
                Err(ureq::Error::Other(Box::new(AddressRefused { host })))
            }
            _ => Ok(allowed),
        }
    }
}

/// A name led to an address that is not public.
#[derive(Debug)]
pub(super) struct AddressRefused {
    host: String,
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

/// Whether an address is this machine's or of a private network.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_loopback(),
        // fd00:ec2::/32 is where Amazon's metadata service is.
        IpAddr::V6(ip) => {
            ip.is_loopback() || (ip.is_unique_local() && ip.segments()[..2] != [0xfd00, 0xec2])
        }
    }
}

/// Whether an address belongs to the public internet (IANA special-purpose address registries).
pub(super) fn is_public(ip: IpAddr) -> bool {
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
        // Mapped, translated (NAT64) and 6to4 addresses are as public as the address inside.
        [0, 0, 0, 0, 0, 0xffff, high, low] => embedded(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low),
        [0x2001, 0xdb8, ..] => false,
        // Global unicast; everything else is local, multicast or unassigned.
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
    fn addresses_that_nobody_may_reach_through_us() {
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
    fn nobody_redirects_us_to_a_metadata_service() {
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
