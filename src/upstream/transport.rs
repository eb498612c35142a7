//! Agents: pools of connections with their TLS and their bounds on waiting.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ureq::Agent;
use ureq::config::Config;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::unversioned::transport::DefaultConnector;

use super::address::{Guard, GuardedResolver};

/// Idle connections kept to one host, so that the layers of an image need no handshake each.
const IDLE_CONNECTIONS_PER_HOST: usize = 8;
/// Idle connections kept by one agent.
const IDLE_CONNECTIONS: usize = 64;
/// How long an idle connection is kept: below what registries and load balancers do (60 s and more).
const IDLE_AGE_MAX: Duration = Duration::from_secs(15);

/// How long an upstream may take. There is no limit for a body as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// To resolve the name, and again to connect, TLS included.
    pub connect: Duration,
    /// From the request to the end of the answer's head.
    pub headers: Duration,
    /// Between two reads of a body.
    pub stall: Duration,
    /// For a whole exchange about a manifest, a token or a list, body included.
    pub metadata: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            connect: Duration::from_secs(5),
            headers: Duration::from_secs(20),
            stall: Duration::from_secs(30),
            metadata: Duration::from_secs(30),
        }
    }
}

/// Whose certificates are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verification {
    /// Those that lead to a root of the operating system, or of Mozilla where it has none.
    Roots,
    /// Anybody's: `tls.insecureSkipVerify`.
    Skipped,
    /// Nobody's: this agent speaks plain HTTP, and the roots need not be loaded for it.
    Unused,
}

/// An agent that is built when it is first used: loading the root certificates takes longer than all
/// the rest of Larder's start.
#[derive(Debug)]
pub(super) struct LazyAgent {
    guard: Guard,
    verification: Verification,
    timeouts: Timeouts,
    agent: OnceLock<Agent>,
}

impl LazyAgent {
    pub(super) fn new(guard: Guard, verification: Verification, timeouts: Timeouts) -> LazyAgent {
        LazyAgent { guard, verification, timeouts, agent: OnceLock::new() }
    }

    pub(super) fn get(&self) -> &Agent {
        self.agent.get_or_init(|| {
            let resolver = GuardedResolver { guard: self.guard };
            Agent::with_parts(self.config(), DefaultConnector::default(), resolver)
        })
    }

    fn config(&self) -> Config {
        let roots = match self.verification {
            Verification::Roots => roots(),
            Verification::Skipped | Verification::Unused => RootCerts::WebPki,
        };
        let tls = TlsConfig::builder()
            .root_certs(roots)
            .disable_verification(self.verification == Verification::Skipped)
            .build();
        Agent::config_builder()
            .tls_config(tls)
            // A 401 carries the challenge, a redirect its target: both are answers here.
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")))
            // Bytes are hashed as they come, so they must come as they are stored.
            .accept_encoding("identity")
            .timeout_resolve(Some(self.timeouts.connect))
            .timeout_connect(Some(self.timeouts.connect))
            .timeout_recv_response(Some(self.timeouts.headers))
            .timeout_per_read(Some(self.timeouts.stall))
            .timeout_per_write(Some(self.timeouts.stall))
            .max_idle_connections(IDLE_CONNECTIONS)
            .max_idle_connections_per_host(IDLE_CONNECTIONS_PER_HOST)
            .max_idle_age(IDLE_AGE_MAX)
            .build()
    }
}

/// The operating system's roots, or Mozilla's in an image that has none. Loaded once.
fn roots() -> RootCerts {
    static ROOTS: OnceLock<RootCerts> = OnceLock::new();
    ROOTS.get_or_init(load_roots).clone()
}

fn load_roots() -> RootCerts {
    let loaded = rustls_native_certs::load_native_certs();
    for error in &loaded.errors {
        log::warn!("a root certificate of the operating system cannot be used: {error}");
    }
    if loaded.certs.is_empty() {
        log::info!("the operating system has no root certificates; Mozilla's are used");
        return RootCerts::WebPki;
    }
    let certificates = loaded.certs.iter().map(|each| Certificate::from_der(each).to_owned());
    RootCerts::Specific(Arc::new(certificates.collect()))
}
