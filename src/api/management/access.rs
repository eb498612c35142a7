//! Access control of the management API.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use subtle::ConstantTimeEq;

use super::super::hosts::without_port;
use super::super::status::Refusal;
use crate::http::Request;
use crate::oci::{Algorithm, Digest};

/// Reads the token, or returns why it cannot be read. Called for each request, since the token may change.
pub type ReadToken = Box<dyn Fn() -> Result<String, String> + Send + Sync>;

/// The interval between log lines about wrong tokens, so that they are noticed but cannot fill a disk.
const WRONG_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The token of the operators.
pub(super) struct Token {
    read: Option<ReadToken>,
    /// When a wrong token was last logged. Locked only to compare and set it.
    wrong_logged: Mutex<Option<Instant>>,
}

impl Token {
    pub(super) fn new(read: Option<ReadToken>) -> Token {
        Token { read, wrong_logged: Mutex::new(None) }
    }

    /// Reading is allowed from this machine, and with the token.
    pub(super) fn check_reading(&self, request: &Request) -> Result<(), Refusal> {
        let is_local = request.peer().ip().is_loopback()
            && request.header("host").is_some_and(is_loopback_name);
        if is_local && request.header("authorization").is_none() {
            return Ok(());
        }
        self.check(request, "reading without a token is allowed from the local machine only")
    }

    /// Changes are allowed with the token only.
    pub(super) fn check_changing(&self, request: &Request) -> Result<(), Refusal> {
        self.check(request, "this request makes a change")
    }

    fn check(&self, request: &Request, why: &str) -> Result<(), Refusal> {
        let Some(read) = &self.read else {
            return Err(Refusal::Forbidden(format!(
                "{why}; to allow it, set management.tokenFile in the configuration"
            )));
        };
        let expected = read().map_err(|error| {
            log::error!(error = error.as_str(); "management.tokenFile cannot be read");
            Refusal::Forbidden(
                "management.tokenFile cannot be read; see the log for the reason".into(),
            )
        })?;
        let given = request.header("authorization").and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        match given {
            Some(given) if is_same(given, &expected) => Ok(()),
            Some(_) => {
                if self.should_log(request.began()) {
                    let ip = request.peer().ip();
                    log::warn!(ip:%; "management: wrong token (logged once a minute)");
                }
                Err(Refusal::Unauthorized("wrong token".into()))
            }
            None => Err(Refusal::Unauthorized(format!(
                "{why}: send the content of management.tokenFile as Authorization: Bearer …"
            ))),
        }
    }

    fn should_log(&self, now: Instant) -> bool {
        // A panic cannot leave an inconsistent time.
        let mut logged = self.wrong_logged.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = logged.is_none_or(|logged| now.duration_since(logged) >= WRONG_LOG_INTERVAL);
        if is_due {
            *logged = Some(now);
        }
        is_due
    }
}

/// Compares in constant time. Compares digests, so that the time does not reveal the length either.
fn is_same(given: &str, expected: &str) -> bool {
    let digest = |text: &str| Digest::of(Algorithm::Sha256, text.as_bytes()).hex();
    digest(given).as_bytes().ct_eq(digest(expected).as_bytes()).into()
}

/// Whether a `Host` header names this machine. A foreign web page whose name resolves to this machine sends its
/// own name (DNS rebinding).
fn is_loopback_name(host: &str) -> bool {
    let name = without_port(host);
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn request(peer: &str, headers: &str) -> Request {
        let peer: SocketAddr = peer.parse().unwrap();
        let head = format!("GET / HTTP/1.1\r\n{headers}\r\n");
        Request::parse(&head, peer, Instant::now()).unwrap()
    }

    fn status(result: Result<(), Refusal>) -> &'static str {
        match result {
            Ok(()) => "allowed",
            Err(Refusal::Unauthorized(_)) => "unauthorized",
            Err(Refusal::Forbidden(_)) => "forbidden",
            Err(_) => "something else",
        }
    }

    #[test]
    fn names_of_this_machine() {
        for name in ["localhost", "LOCALHOST:80", "127.0.0.1", "127.9.9.9:1", "[::1]:80", "[::1]"] {
            assert!(is_loopback_name(name), "{name}");
        }
        for name in
            ["", "evil.test", "evil.test:80", "10.0.0.1", "[fe80::1]", "localhost.evil.test"]
        {
            assert!(!is_loopback_name(name), "{name}");
        }
    }

    #[test]
    fn a_wrong_token_is_logged_once_a_minute() {
        let (token, start) = (Token::new(None), Instant::now());
        let logged = [0, 1, 59, 60, 61, 119, 120]
            .map(|seconds| token.should_log(start + Duration::from_secs(seconds)));
        assert_eq!(logged, [true, false, false, true, false, false, true]);
    }

    #[test]
    fn reading_and_changing_need_their_permissions() {
        let with = Token::new(Some(Box::new(|| Ok("s3cret".into()))));
        let (without, unreadable) =
            (Token::new(None), Token::new(Some(Box::new(|| Err("it is gone".into())))));
        let (here, there) = ("127.0.0.1:1", "10.0.0.1:1");
        let local = "Host: localhost:8090\r\n";
        let right = "Host: localhost\r\nAuthorization: bearer s3cret\r\n";
        let wrong = "Host: localhost\r\nAuthorization: Bearer s3cre\r\n";
        let basic = "Host: localhost\r\nAuthorization: Basic s3cret\r\n";
        for (token, peer, headers, reading, changing) in [
            (&with, here, local, "allowed", "unauthorized"),
            (&with, here, "Host: evil.test\r\n", "unauthorized", "unauthorized"),
            (&with, here, right, "allowed", "allowed"),
            (&with, here, wrong, "unauthorized", "unauthorized"),
            (&with, there, local, "unauthorized", "unauthorized"),
            (&with, there, right, "allowed", "allowed"),
            (&with, there, basic, "unauthorized", "unauthorized"),
            (&without, here, local, "allowed", "forbidden"),
            (&without, there, local, "forbidden", "forbidden"),
            (&without, here, right, "forbidden", "forbidden"),
        ] {
            let request = request(peer, headers);
            assert_eq!(status(token.check_reading(&request)), reading, "{peer} {headers}");
            assert_eq!(status(token.check_changing(&request)), changing, "{peer} {headers}");
        }
        assert_eq!(status(unreadable.check_changing(&request(here, right))), "forbidden");
        assert_eq!(status(unreadable.check_reading(&request(here, local))), "allowed");
    }
}
