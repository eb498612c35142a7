//! A connection that is made only to find out whether it can be made.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::SystemTime;

use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use super::{LazyAgent, Location, Proxy};
use crate::certificates;

/// What a connection has shown.
pub(in crate::upstream) struct Handshake {
    /// The version of TLS; empty without TLS.
    pub(in crate::upstream) protocol: String,
    /// When the server's certificate expires.
    pub(in crate::upstream) expires: Option<SystemTime>,
}

impl LazyAgent {
    /// The proxy for a location, without its password.
    pub(in crate::upstream) fn proxy(&self, location: &Location) -> Option<String> {
        self.proxies().towards(location).map(Proxy::to_string)
    }

    /// Connects to an address of a location, and negotiates TLS, with the trusted authorities and the client certificate of
    /// requests. Blocks, for twice the connect timeout at most.
    ///
    /// # Errors
    /// The system's error, or [`io::ErrorKind::InvalidData`] for a failure of TLS.
    pub(in crate::upstream) fn handshake(
        &self,
        location: &Location,
        address: SocketAddr,
    ) -> io::Result<Handshake> {
        let timeout = self.timeouts().connect;
        let mut stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        if !location.is_https() {
            return Ok(Handshake { protocol: String::new(), expires: None });
        }
        let (config, server_name) = self.tls_config().map_err(io::Error::other)?;
        let name = server_name.unwrap_or_else(|| location.host().to_owned());
        let name = ServerName::try_from(name).map_err(io::Error::other)?;
        let mut connection = ClientConnection::new(config, name).map_err(invalid)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut stream)?;
        }
        let leaf = connection.peer_certificates().and_then(<[_]>::first);
        let version = connection.protocol_version().and_then(|version| version.as_str());
        Ok(Handshake {
            protocol: version.map_or("TLS".to_owned(), |name| name.replace("TLSv1_", "TLS 1.")),
            expires: leaf.and_then(certificates::expiry),
        })
    }
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
