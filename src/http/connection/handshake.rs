//! The beginning of a connection by TLS.
//!
//! It must not know HTTP beyond the one answer to a client that speaks it in the clear. Until its first
//! byte such a connection is as idle as any; then it has the time of a request head, since both are
//! what a client must do before it gets anything.

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
    /// Waits for the client's first byte, which says whether it speaks TLS.
    pub(super) fn await_first_byte(&mut self, worker: &mut Worker) -> Flow {
        self.phase = Phase::FirstByte;
        match self.wire.begins_without_tls() {
            Ok(true) => {
                self.phase = Phase::Head;
                let text = "this port speaks TLS: use https:// (this request came in the clear)";
                self.refuse(None, 400, text, worker)
            }
            Ok(false) => {
                let accepted = worker.service.tls.as_deref().map(ServerTls::accept);
                match accepted {
                    Some(Ok(session)) => self.wire.secure(session),
                    Some(Err(error)) => {
                        log::error!("TLS: no session can be begun: {error}");
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

    /// Whether a client for whom there is no slot has not even begun: it cannot be told.
    fn has_overstayed(&self, now: Instant) -> bool {
        self.is_surplus() && now >= self.idle_since + SURPLUS_TIMEOUT
    }

    /// Goes on with the handshake; a request follows it.
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
            Handshake::AwaitsBytes => Interest::Readable,
            Handshake::AwaitsRoom => Interest::Writable,
            Handshake::Gone => {
                log::debug!("{}: left during the TLS handshake", self.peer);
                return Break(SliceEnd::Close);
            }
            Handshake::Failed(error) => {
                worker.service.count_failed_handshake();
                log::info!("{}: no TLS session: {}", self.peer, explain(&error));
                self.begin_lingering(worker);
                return Continue(());
            }
        };
        if worker.now >= deadline {
            worker.service.count_failed_handshake();
            log::info!("{}: no TLS session: the handshake took too long", self.peer);
            return Break(SliceEnd::Close);
        }
        self.phase = Phase::Handshake;
        park_evictable(interest, deadline, began)
    }
}

/// What an operator can do something about, in other words than the protocol's.
fn explain(error: &rustls::Error) -> String {
    use rustls::AlertDescription as Alert;
    let hint = match error {
        rustls::Error::AlertReceived(
            Alert::UnknownCA | Alert::BadCertificate | Alert::CertificateUnknown,
        ) => "the client does not trust our certificate (serverTlsConfig.cert)",
        rustls::Error::AlertReceived(Alert::CertificateExpired) => {
            "the client says that our certificate has expired (serverTlsConfig.cert)"
        }
        rustls::Error::NoCertificatesPresented => {
            "the client showed no certificate (serverTlsConfig.clientAuth is verify)"
        }
        rustls::Error::InvalidCertificate(_) => {
            "the client's certificate is not accepted (serverTlsConfig.ca)"
        }
        _ => return error.to_string(),
    };
    format!("{hint}: {error}")
}
