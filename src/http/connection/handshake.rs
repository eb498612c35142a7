//! The start of a TLS connection.
//!
//! This module must not know HTTP, except for the one answer to a client that sends a plaintext request. Until its first
//! byte, such a connection is idle like any other. From then on, the handshake has as much time as a request head: both
//! are what a client must do before it gets anything.

use super::socket::SocketError;
use super::wire::Handshake;
use super::{Connection, Flow, Phase, SliceEnd, park_evictable};
use crate::http::limits::SURPLUS_TIMEOUT;
use crate::http::table::Interest;
use crate::http::tls::ServerTls;
use crate::http::worker::Worker;
use std::ops::ControlFlow::{Break, Continue};
use std::time::Instant;

impl Connection {
    /// Waits for the client's first byte, which shows whether the client uses TLS.
    pub(super) fn await_first_byte(&mut self, worker: &mut Worker) -> Flow {
        self.phase = Phase::FirstByte;
        match self.wire.begins_without_tls() {
            Ok(true) => {
                self.phase = Phase::Head;
                let text = "this port requires TLS: use https:// (the request was not encrypted)";
                self.refuse(None, 400, text, worker)
            }
            Ok(false) => {
                let accepted = worker.service.tls.as_deref().map(ServerTls::accept);
                match accepted {
                    Some(Ok(session)) => self.wire.secure(session),
                    Some(Err(error)) => {
                        log::error!(error:%; "cannot start a TLS session");
                        return Break(SliceEnd::Close);
                    }
                    None => {}
                }
                self.head_began = Some(worker.now);
                self.phase = Phase::Handshake;
                Continue(())
            }
            Err(SocketError::WouldBlock) if self.has_overstayed(worker.now) => {
                Break(SliceEnd::Close)
            }
            Err(SocketError::WouldBlock) => self.await_head(worker),
            Err(SocketError::Closed) => Break(SliceEnd::Close),
        }
    }

    /// Whether a surplus client has sent nothing in time. Without a TLS session it cannot be answered.
    fn has_overstayed(&self, now: Instant) -> bool {
        self.is_surplus() && now >= self.idle_since + SURPLUS_TIMEOUT
    }

    /// Continues the handshake. A request follows it.
    pub(super) fn continue_handshake(&mut self, worker: &mut Worker) -> Flow {
        let began = self.head_began.unwrap_or(worker.now);
        let deadline = began + worker.service.settings.head_timeout;
        let interest = match self.wire.continue_handshake() {
            Handshake::Done => {
                self.phase = Phase::Head;
                self.head_began = None;
                self.idle_since = worker.now;
                return Continue(());
            }
            Handshake::WantsRead => Interest::Readable,
            Handshake::WantsWrite => Interest::Writable,
            Handshake::Closed => {
                log::debug!(
                    ip:% = self.peer.ip(), port = self.peer.port();
                    "a client closed the connection during the TLS handshake"
                );
                return Break(SliceEnd::Close);
            }
            Handshake::Failed(error) => {
                worker.service.count_failed_handshake();
                log::info!(
                    ip:% = self.peer.ip(), port = self.peer.port(),
                    error = explain(&error).as_str();
                    "no TLS session"
                );
                self.begin_lingering(worker);
                return Continue(());
            }
        };
        if worker.now >= deadline {
            worker.service.count_failed_handshake();
            log::info!(
                ip:% = self.peer.ip(), port = self.peer.port();
                "no TLS session: the handshake took too long"
            );
            return Break(SliceEnd::Close);
        }
        self.phase = Phase::Handshake;
        park_evictable(interest, deadline, began)
    }
}

/// Explains the errors that an operator can fix.
fn explain(error: &rustls::Error) -> String {
    use rustls::AlertDescription as Alert;
    let hint = match error {
        rustls::Error::AlertReceived(
            Alert::UnknownCA | Alert::BadCertificate | Alert::CertificateUnknown,
        ) => "the client does not trust the server's certificate (serverTlsConfig.cert)",
        rustls::Error::AlertReceived(Alert::CertificateExpired) => {
            "the client reports that the server's certificate has expired (serverTlsConfig.cert)"
        }
        rustls::Error::NoCertificatesPresented => {
            "the client presented no certificate (serverTlsConfig.clientAuth is verify)"
        }
        rustls::Error::InvalidCertificate(_) => {
            "the client's certificate is not accepted (serverTlsConfig.ca)"
        }
        _ => return error.to_string(),
    };
    format!("{hint}: {error}")
}
