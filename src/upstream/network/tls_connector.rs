//! A TLS connector for ureq that accepts any configuration of rustls.
//!
//! ureq's own connector builds its configuration from a list of certificates. This one accepts any, including the
//! verifiers in [`crate::certificates`].

use std::fmt;
use std::io::{Read, Write};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use ureq::Error;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport,
    TransportAdapter,
};

/// Encrypts connections whose URL is https.
pub(super) struct TlsConnector {
    /// `None` if all connections are plain HTTP: then no root certificate is loaded.
    config: Option<Arc<ClientConfig>>,
    /// The name that all certificates must be valid for; the host of the URL if `None`.
    server_name: Option<String>,
}

impl TlsConnector {
    pub(super) fn new(config: Option<Arc<ClientConfig>>) -> TlsConnector {
        TlsConnector { config, server_name: None }
    }

    pub(super) fn with_server_name(self, server_name: Option<String>) -> TlsConnector {
        TlsConnector { server_name, ..self }
    }
}

impl fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsConnector")
    }
}

impl<In: Transport> Connector<In> for TlsConnector {
    type Out = Either<In, TlsTransport>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Either<In, TlsTransport>>, Error> {
        let Some(transport) = chained else { return Ok(None) };
        if !details.needs_tls() || transport.is_tls() {
            return Ok(Some(Either::A(transport)));
        }
        let config = self.config.as_ref().ok_or(Error::TlsRequired)?;
        let host = self.server_name.as_deref().or(details.uri.host()).unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.to_owned())
            .map_err(|_| Error::Tls("the host name cannot occur in a certificate"))?;
        let mut connection = ClientConnection::new(Arc::clone(config), name)?;
        let mut adapter =
            TransportAdapter::new(transport.boxed(), Arc::clone(&details.current_time));
        adapter.set_timeout(details.timeout);
        connection.complete_io(&mut adapter)?;
        let buffers = LazyBuffers::new(
            details.config.input_buffer_size(),
            details.config.output_buffer_size(),
        );
        let stream = StreamOwned { conn: connection, sock: adapter };
        Ok(Some(Either::B(TlsTransport { buffers, stream })))
    }
}

/// An encrypted connection.
pub(super) struct TlsTransport {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl fmt::Debug for TlsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsTransport")
    }
}

impl Transport for TlsTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.sock.set_timeout(timeout);
        let output = &self.buffers.output()[..amount];
        self.stream.write_all(output)?;
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.sock.set_timeout(timeout);
        let input = self.buffers.input_append_buf();
        let amount = self.stream.read(input)?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.sock.get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}
