//! What a check of a server consists of, for `larder check`: steps with their outcome and a remedy, and those that precede
//! the first request.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Instant, SystemTime};

use super::error::{UpstreamError, UpstreamErrorKind};
use super::network::{Guard, Handshake, LazyAgent, Location};
use crate::units::{ago, duration};

/// A certificate that expires sooner than this is a warning, in days.
const EXPIRES_SOON_DAYS: u64 = 14;
/// How many addresses are printed.
const ADDRESSES_NAMED: usize = 4;

/// What was found out about a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointCheck {
    /// Its URL.
    pub url: String,
    /// What it is: the word for its [`EndpointKind`](super::EndpointKind), or `issuer`.
    pub kind: &'static str,
    /// What was tried, in order; the rest was not tried after a failure.
    pub steps: Vec<CheckStep>,
}

impl EndpointCheck {
    /// Whether something failed.
    pub fn has_failed(&self) -> bool {
        self.steps.iter().any(|step| step.state == CheckState::Failed)
    }
}

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckStep {
    /// What was tried: `rules` of this server, `name`, `address`, `proxy`, `connection`, `tls`, `api`; with an image also `image` (the login and the
    /// permission), `limit`, `blob`, `ranges` and `throughput`, or `content`; `bucket` for a bucket; `discovery` and `keys` for
    /// an issuer.
    pub name: &'static str,
    /// The outcome.
    pub state: CheckState,
    /// What was found.
    pub text: String,
    /// What to do.
    pub remedy: Option<String>,
}

/// The outcome of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckState {
    /// It works.
    Passed,
    /// It works, but not well, or not for long.
    Warning,
    /// It does not work.
    Failed,
    /// It was not tried.
    Skipped,
}

impl CheckState {
    /// The word for it in output.
    pub fn as_str(self) -> &'static str {
        match self {
            CheckState::Passed => "ok",
            CheckState::Warning => "warning",
            CheckState::Failed => "failed",
            CheckState::Skipped => "skipped",
        }
    }
}

impl CheckStep {
    /// A step that passed.
    pub fn passed(name: &'static str, text: impl Into<String>) -> CheckStep {
        CheckStep { name, state: CheckState::Passed, text: text.into(), remedy: None }
    }

    /// A step that was not tried, and why.
    pub fn skipped(name: &'static str, text: impl Into<String>) -> CheckStep {
        CheckStep { state: CheckState::Skipped, ..CheckStep::passed(name, text) }
    }

    /// A step that may fail soon, or harms pulls.
    pub fn warning(name: &'static str, text: impl Into<String>, remedy: &str) -> CheckStep {
        let remedy = Some(remedy.to_owned()).filter(|remedy| !remedy.is_empty());
        CheckStep { state: CheckState::Warning, remedy, ..CheckStep::passed(name, text) }
    }

    /// A step that failed. `remedy` is empty if the text says what to do.
    pub fn failed(name: &'static str, text: impl Into<String>, remedy: &str) -> CheckStep {
        CheckStep { state: CheckState::Failed, ..CheckStep::warning(name, text, remedy) }
    }

    /// A step that failed with an error of a request.
    pub fn of_error(name: &'static str, error: &UpstreamError) -> CheckStep {
        CheckStep::failed(name, error.to_string(), remedy(error.kind()))
    }
}

/// What to do about an error of a request. Its text has the details.
fn remedy(kind: &UpstreamErrorKind) -> &'static str {
    match kind {
        UpstreamErrorKind::NotFound => {
            "correct the name; a private image needs auth in the entry of its registry"
        }
        UpstreamErrorKind::Hidden => {
            "the image does not exist, or it is private: set auth in the entry of its registry"
        }
        UpstreamErrorKind::Denied { .. } => {
            "set auth in the entry of the registry, or correct it; the account may lack permission"
        }
        UpstreamErrorKind::Credentials { .. }
        | UpstreamErrorKind::CredentialsUnavailable { .. } => {
            "correct the credentials in the configuration, or the file or helper that they name"
        }
        UpstreamErrorKind::RateLimited { .. } => {
            "wait, or set auth for this registry: accounts have higher limits"
        }
        UpstreamErrorKind::TimedOut { .. } => {
            "check the link and firewalls; raise pullTimeout for a slow registry"
        }
        UpstreamErrorKind::OutOfService | UpstreamErrorKind::CircuitOpen { .. } => {
            "wait until the registry is back"
        }
        UpstreamErrorKind::Loop => "remove one of the two from the other's configuration",
        UpstreamErrorKind::Status { .. } | UpstreamErrorKind::BadAnswer { .. } => {
            "check that the URL is that of a registry, and that no proxy or login page answers instead"
        }
        UpstreamErrorKind::Unsupported | UpstreamErrorKind::Redirect { .. } => {
            "check that the URL is that of a registry"
        }
        UpstreamErrorKind::NoRanges => {
            "if a proxy or a load balancer is in between, let it pass Range on"
        }
        UpstreamErrorKind::Unreachable { source }
            if source.kind() == io::ErrorKind::ConnectionRefused =>
        {
            "correct the port, or start the server; a firewall may also refuse"
        }
        UpstreamErrorKind::Unreachable { .. } => {
            "allow this address in firewalls and network policies, or set HTTPS_PROXY"
        }
        UpstreamErrorKind::Proxy { .. } => {
            "correct HTTPS_PROXY in the environment, start the proxy, or list this host in NO_PROXY"
        }
        UpstreamErrorKind::Tls { .. } => {
            "correct the certificate of the server, or tls (scheme, for a server without TLS) in the configuration"
        }
        UpstreamErrorKind::NotAllowed { .. } => {
            "add the registry to registries in the configuration"
        }
        UpstreamErrorKind::ObjectStore { .. } => {
            "correct objectStore in the configuration, or the permissions of its keys"
        }
        UpstreamErrorKind::NoSpace | UpstreamErrorKind::Unreadable { .. } => {
            "check the disk of this machine"
        }
        UpstreamErrorKind::Cancelled => "repeat the check",
    }
}

/// Examines the name, the addresses, the proxy and TLS of a server. `false` if no request can succeed.
pub(super) fn examine(
    agent: &LazyAgent,
    guard: Guard,
    base: &Location,
    steps: &mut Vec<CheckStep>,
) -> bool {
    let host = base.host_and_port();
    let addresses = agent.socket_addresses(&host);
    let proxy = agent.proxy(base);
    steps.push(match (addresses.is_empty(), &proxy) {
        (true, None) => {
            steps.push(CheckStep::failed(
                "name",
                format!("{} does not resolve", base.host()),
                "correct the name, or the name server of this machine (/etc/resolv.conf)",
            ));
            return false;
        }
        (true, Some(_)) => {
            CheckStep::skipped("name", "does not resolve here; the proxy resolves it")
        }
        (false, _) => CheckStep::passed("name", named(&addresses)),
    });
    let ips: Vec<IpAddr> = addresses.iter().map(SocketAddr::ip).collect();
    let is_allowed = match proxy.is_some() {
        true => guard.allows_target(base.host(), &ips),
        false => ips.iter().any(|ip| guard.allows(*ip)),
    };
    if !is_allowed {
        steps.push(CheckStep::failed(
            "address",
            "a private or special address, which registries without an entry may not have",
            "add the registry to registries in the configuration",
        ));
        return false;
    }
    steps.push(match guard {
        Guard::Any => CheckStep::passed("address", "any is allowed: it is in the configuration"),
        _ => CheckStep::passed("address", "public, as it must be without an entry"),
    });
    steps.push(match &proxy {
        Some(proxy) => CheckStep::passed("proxy", format!("{proxy}, from the environment")),
        None => CheckStep::passed("proxy", "none"),
    });
    if proxy.is_some() {
        steps.push(CheckStep::skipped("connection", "made by the proxy"));
        return true;
    }
    let allowed: Vec<SocketAddr> =
        addresses.into_iter().filter(|address| guard.allows(address.ip())).collect();
    connect(agent, base, &allowed, steps)
}

fn connect(
    agent: &LazyAgent,
    base: &Location,
    addresses: &[SocketAddr],
    steps: &mut Vec<CheckStep>,
) -> bool {
    let began = Instant::now();
    let mut failure = None;
    for address in addresses {
        match agent.handshake(base, *address) {
            Ok(handshake) => {
                let took = duration(began.elapsed());
                let text = format!("{address} in {took}");
                steps.push(CheckStep::passed("connection", text));
                steps.extend(base.is_https().then(|| certificate(&handshake, SystemTime::now())));
                return true;
            }
            Err(error) => failure = Some((address, error)),
        }
    }
    let Some((address, error)) = failure else { return false };
    let failed =
        CheckStep::of_error("connection", &UpstreamError::from_body(&base.origin(), error));
    steps.push(CheckStep { text: format!("{address}: {}", failed.text), ..failed });
    false
}

fn named(addresses: &[SocketAddr]) -> String {
    let ips: Vec<String> =
        addresses.iter().take(ADDRESSES_NAMED).map(|address| address.ip().to_string()).collect();
    let more = addresses.len().saturating_sub(ADDRESSES_NAMED);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{}{more}", ips.join(", "))
}

fn certificate(handshake: &Handshake, now: SystemTime) -> CheckStep {
    let protocol = &handshake.protocol;
    match handshake.expires.map(|expires| (expires, expires.duration_since(now))) {
        None => CheckStep::passed("tls", protocol.clone()),
        // Only without verification.
        Some((expires, Err(_))) => CheckStep::warning(
            "tls",
            format!("{protocol}; the certificate has expired {} ago", ago(expires, now)),
            "renew the server's certificate: insecureSkipVerify hides that",
        ),
        Some((_, Ok(left))) => {
            let days = left.as_secs() / 86_400;
            let text = format!("{protocol}; the certificate is valid for {days} days");
            match days < EXPIRES_SOON_DAYS {
                true => CheckStep::warning("tls", text, "renew the server's certificate"),
                false => CheckStep::passed("tls", text),
            }
        }
    }
}
