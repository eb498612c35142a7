//! The beginning of a connection by TLS.
//!
//! It must not know HTTP beyond the one answer to a client that speaks it in the clear. Until its first
//! byte such a connection is as idle as any; then it has the time of a request head, since both are
//! what a client must do before it gets anything.

use super::connection::{Connection, Phase, Turn};
use super::limits::SURPLUS_TIMEOUT;
use super::parking::{Admission, Interest};
use super::pool::Worker;
use super::reading::park_losable;
use super::socket::Halt;
use super::tls::ServerTls;
use super::wire::Handshake;
use std::ops::ControlFlow::{self, Break, Continue};
use std::time::Instant;

impl Connection {
    /// Waits for the client's first byte, which says whether it speaks TLS.
    pub(super) fn greet(&mut self, worker: &mut Worker) -> ControlFlow<Turn> {
        self.phase = Phase::Greeting;
        match self.wire.begins_in_the_clear() {
            Ok(true) => {
                self.phase = Phase::Head;
                let text = "this port speaks TLS: use https:// (this request came in the clear)";
                self.refuse(None, 400, text, worker)
            }
            Ok(false) => {
                let accepted = worker.shared.tls.as_deref().map(ServerTls::accept);
                match accepted {
                    Some(Ok(session)) => self.wire.secure(session),
                    Some(Err(error)) => {
                        log::error!("TLS: no session can be begun: {error}");
                        return Break(Turn::Close);
                    }
                    None => {}
                }
                self.head_began = Some(worker.now);
                self.phase = Phase::Handshake;
                Continue(())
            }
            Err(Halt::Blocked) if self.is_overdue(worker.now) => Break(Turn::Close),
            Err(Halt::Blocked) => self.await_head(worker),
            Err(Halt::Gone) => Break(Turn::Close),
        }
    }

    /// Whether a client for whom there is no seat has not even begun: it cannot be told.
    fn is_overdue(&self, now: Instant) -> bool {
        self.admission() == Admission::Surplus && now >= self.idle_since + SURPLUS_TIMEOUT
    }

    /// Goes on with the handshake; a request follows it.
    pub(super) fn shake_hands(&mut self, worker: &mut Worker) -> ControlFlow<Turn> {
        let began = self.head_began.unwrap_or(worker.now);
        let deadline = began + worker.shared.settings.head_timeout;
        let interest = match self.wire.shake_hands() {
            Handshake::Done => {
                self.phase = Phase::Head;
                self.head_began = None;
                self.idle_since = worker.now;
                return Continue(());
            }
            Handshake::AwaitsBytes => Interest::Bytes,
            Handshake::AwaitsRoom => Interest::Room,
            Handshake::Gone => {
                log::debug!("{}: left during the TLS handshake", self.peer);
                return Break(Turn::Close);
            }
            Handshake::Failed(error) => {
                worker.shared.note_failed_handshake();
                log::info!("{}: no TLS session: {}", self.peer, explain(&error));
                self.begin_lingering(worker);
                return Continue(());
            }
        };
        if worker.now >= deadline {
            worker.shared.note_failed_handshake();
            log::info!("{}: no TLS session: the handshake took too long", self.peer);
            return Break(Turn::Close);
        }
        self.phase = Phase::Handshake;
        park_losable(interest, deadline, began)
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
