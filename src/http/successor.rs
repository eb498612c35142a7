//! Whether another process listens on the same addresses, to take them over.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};

/// The state of a listening socket in the tables of the kernel.
const LISTENING: &str = "0A";

/// Whether another socket listens on each of these addresses. False if the system does not tell.
pub(super) fn listens(addresses: &[SocketAddr]) -> bool {
    let table = |name| fs::read_to_string(name).unwrap_or_default();
    let (four, six) = (table("/proc/self/net/tcp"), table("/proc/self/net/tcp6"));
    addresses.iter().all(|address| {
        let sockets = if address.is_ipv4() { &four } else { &six };
        // One of them is our own.
        count(sockets, *address) > 1
    })
}

/// The number of sockets in a table of proc_pid_net(5) that listen on an address.
fn count(table: &str, address: SocketAddr) -> usize {
    let wanted = notation(address);
    let listening = table.lines().filter(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        fields.next() == Some(&wanted) && fields.nth(1) == Some(LISTENING)
    });
    listening.count()
}

/// An address as in those tables: words in the byte order of the machine, and the port.
fn notation(address: SocketAddr) -> String {
    let octets = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let mut text = String::new();
    for word in octets.chunks_exact(4) {
        let word = u32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
        // Writing to a string cannot fail.
        let _ = write!(text, "{word:08X}");
    }
    let _ = write!(text, ":{:04X}", address.port());
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn listening_sockets_are_counted() {
        for address in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                assert!(address.starts_with("[::1]"), "{address}");
                continue;
            };
            let address = listener.local_addr().unwrap();
            let name = if address.is_ipv4() { "tcp" } else { "tcp6" };
            let table = || fs::read_to_string(format!("/proc/self/net/{name}")).unwrap();
            assert_eq!(count(&table(), address), 1, "{address}");
            assert!(!listens(&[address]), "{address}");
            drop(listener);
            assert_eq!(count(&table(), address), 0, "{address}");
        }
    }

    #[test]
    fn only_sockets_that_listen_on_the_address_count() {
        let line = |address, state| {
            format!(
                "   0: {address} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 65532 0 1\n"
            )
        };
        let loopback = notation(SocketAddr::from(([127, 0, 0, 1], 5000)));
        let all = notation(SocketAddr::from(([0, 0, 0, 0], 5000)));
        let table =
            [line(&loopback, "0A"), line(&loopback, "01"), line(&all, "0A"), line(&loopback, "0A")];
        assert_eq!(count(&table.concat(), SocketAddr::from(([127, 0, 0, 1], 5000))), 2);
        assert_eq!(count(&table.concat(), SocketAddr::from(([127, 0, 0, 1], 5001))), 0);
    }
}
