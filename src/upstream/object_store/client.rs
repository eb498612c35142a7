//! Sends signed requests, and repeats them after temporary failures.
//!
//! Besides such failures, a request is repeated once with other keys if the store refuses those that were used, and once
//! with the store's time if this machine's clock is wrong. Threat: secrets in a log. Errors and messages name the method,
//! and the URL without its query.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use ureq::http::{Request, Response};
use ureq::{Body, SendBody};

use super::ObjectStoreSettings;
use super::address::Address;
use super::clock::Clock;
use super::content::Content;
use super::failure::{Failure, TIME_TOO_SKEWED, date_of, skew};
use super::retry::RetryPolicy;
use crate::upstream::auth::{CachedKeys, Keys, Scope, Signed, encoded_query};
use crate::upstream::error::{UpstreamError, UpstreamErrorKind, is_broken_connection};
use crate::upstream::network::{Guard, LazyAgent, Reach, Scheme, Timeouts};

/// Bodies of at least this size, in bytes, are sent only after the store has accepted the head of the request. A store
/// that refuses a request, for example since the object exists, may close the connection while the body is sent, and then
/// its response would be lost.
const EXPECT_BYTES_MIN: u64 = 64 * 1024;
/// The service in signatures.
const SERVICE: &str = "s3";
/// How long a store may take to answer after it has received a body: it may write it to several disks first.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a store may take to put the parts of an upload together: some copy them.
const COMPLETE_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// How long the attempts of one request of a probe may take together.
const PROBE_TOTAL: Duration = Duration::from_secs(4);
/// The longest validity of a presigned URL.
const PRESIGNED_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// A request.
pub(super) struct Ask<'a> {
    pub(super) method: &'static str,
    /// The key below the prefix; `None` for the bucket.
    pub(super) key: Option<&'a str>,
    pub(super) query: Vec<(&'static str, String)>,
    /// Headers that are signed.
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) content: Content<'a>,
    /// The hash of the content as it is sent, if that is another one.
    pub(super) claimed_hash: Option<String>,
    pub(super) patience: Patience,
}

/// How long a request may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// A small request with a small response.
    Small,
    /// The response may take any time, as long as it does not stall.
    LongResponse,
    /// The request may take any time, as long as it does not stall.
    LongRequest,
    /// The store may need minutes until it answers.
    Completion,
    /// Of a probe.
    Probe,
}

impl<'a> Ask<'a> {
    pub(super) fn new(method: &'static str, key: Option<&'a str>) -> Ask<'a> {
        Ask {
            method,
            key,
            query: Vec::new(),
            headers: Vec::new(),
            content: Content::None,
            claimed_hash: None,
            patience: Patience::Small,
        }
    }

    pub(super) fn query(mut self, name: &'static str, value: impl Into<String>) -> Ask<'a> {
        self.query.push((name, value.into()));
        self
    }

    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Ask<'a> {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn content(self, content: Content<'a>) -> Ask<'a> {
        Ask { content, ..self }
    }

    pub(super) fn patience(self, patience: Patience) -> Ask<'a> {
        Ask { patience, ..self }
    }
}

/// The response to a request that succeeded.
pub(super) struct Answer {
    pub(super) response: Response<Body>,
    /// Method and URL for messages.
    pub(super) request: Arc<str>,
}

/// Headers and requests that some stores refuse with 501. They are left out from then on.
#[derive(Debug)]
pub(super) struct Features {
    pub(super) checksums: AtomicBool,
    pub(super) conditions: AtomicBool,
    /// `DeleteObjects`.
    pub(super) batches: AtomicBool,
    /// `Expect: 100-continue`, which some proxies refuse.
    expects: AtomicBool,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Client {
    settings: ObjectStoreSettings,
    address: Address,
    /// For the URLs that clients get.
    public_address: Address,
    agent: LazyAgent,
    keys: CachedKeys,
    timeouts: Timeouts,
    policy: RetryPolicy,
    clock: Clock,
    pub(super) features: Features,
}

/// Whether a request may use an idle connection, which the store may have closed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Idle {
    Used,
    Dropped,
}

impl Client {
    pub(super) fn new(settings: ObjectStoreSettings, reach: &Reach, policy: RetryPolicy) -> Client {
        let tls = (settings.endpoint.scheme == Scheme::Https).then(|| settings.tls.clone());
        let public_endpoint = settings.public_endpoint.as_ref().unwrap_or(&settings.endpoint);
        // The operator has chosen the address, which is often private.
        let agent = LazyAgent::new(Guard::Any, tls, reach.timeouts, Arc::clone(&reach.proxies));
        Client {
            address: Address::new(&settings.endpoint, &settings),
            public_address: Address::new(public_endpoint, &settings),
            agent,
            keys: CachedKeys::new(settings.keys.clone(), &settings.region, reach),
            timeouts: reach.timeouts,
            policy,
            clock: Clock::default(),
            features: Features {
                checksums: AtomicBool::new(true),
                conditions: AtomicBool::new(true),
                batches: AtomicBool::new(true),
                expects: AtomicBool::new(true),
            },
            settings,
        }
    }

    pub(super) fn settings(&self) -> &ObjectStoreSettings {
        &self.settings
    }

    pub(super) fn url(&self) -> String {
        self.address.url()
    }

    pub(super) fn public_url(&self) -> String {
        self.public_address.url()
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(super) fn refresh(&self) {
        self.agent.refresh();
        self.keys.refresh();
    }

    /// Method and URL of a request, for messages.
    pub(super) fn name_of(&self, method: &str, key: Option<&str>) -> Arc<str> {
        let location = self.address.location(&self.address.path(key), "");
        format!("{method} {}", location.url()).into()
    }

    /// Sends a request until it succeeds. Only 2xx is a success.
    pub(super) fn call(&self, ask: &Ask<'_>) -> Result<Answer, UpstreamError> {
        let request = self.name_of(ask.method, ask.key);
        let policy = self.policy_of(ask.patience);
        let (started, mut failures) = (Instant::now(), 0);
        let (mut idle, mut has_renewed, mut has_corrected) = (Idle::Used, false, false);
        let no_login = |error| UpstreamError::no_login(&request, error);
        let mut keys = self.keys.get().map_err(no_login)?;
        loop {
            if ask.content.is_cancelled() {
                return Err(UpstreamError::new(request, UpstreamErrorKind::Cancelled));
            }
            let failure = match self.attempt(ask, &keys, idle, &request) {
                Ok(response) => return Ok(Answer { response, request }),
                Err(failure) => failure,
            };
            if idle == Idle::Used && is_stale_connection(&failure.error) {
                log::debug!(error:% = failure.error; "objectStore: retrying on a new connection");
                idle = Idle::Dropped;
                continue;
            }
            if matches!(failure.error.store_code(), Some((417, _)))
                && Features::has(&self.features.expects)
            {
                Features::drop(&self.features.expects, "Expect: 100-continue", &self.url());
                continue;
            }
            if !has_corrected && self.has_corrected_clock(&failure) {
                has_corrected = true;
                continue;
            }
            if !has_renewed
                && failure.is_about_keys()
                && let Some(other) = self.keys.renew(&keys).map_err(no_login)?
            {
                log::debug!(error:% = failure.error; "objectStore: retrying with other keys");
                (keys, has_renewed) = (other, true);
                continue;
            }
            failures += 1;
            let Some(wait) = policy.next_wait(&failure.error, failures, started.elapsed()) else {
                return Err(failure.error);
            };
            log::debug!(
                wait_ms = wait.as_secs_f64() * 1e3, error:% = failure.error; "objectStore: retrying"
            );
            thread::sleep(wait);
            keys = self.keys.get().map_err(no_login)?;
            idle = Idle::Dropped;
        }
    }

    /// A signed URL for GET, if there are keys. Never waits.
    pub(super) fn presigned_get(&self, key: &str, expires: Duration) -> Option<String> {
        let (keys, address) = (self.keys.current()?, &self.public_address);
        let (path, expires) = (address.path(Some(key)), expires.min(PRESIGNED_MAX));
        let query = keys.presign(&self.scope(), address.host(), &path, Vec::new(), expires);
        Some(address.location(&path, &query).url())
    }

    fn scope(&self) -> Scope<'_> {
        let time = self.clock.time(SystemTime::now());
        Scope { region: &self.settings.region, service: SERVICE, time }
    }

    fn policy_of(&self, patience: Patience) -> RetryPolicy {
        match patience {
            Patience::Small | Patience::LongResponse => self.policy,
            Patience::LongRequest | Patience::Completion => {
                RetryPolicy { total: Duration::MAX, ..self.policy }
            }
            Patience::Probe => RetryPolicy { attempts: 2, total: PROBE_TOTAL, ..self.policy },
        }
    }

    /// The timeout of a complete exchange, and that of the response headers.
    fn timeouts_of(&self, patience: Patience) -> (Option<Duration>, Duration) {
        let Timeouts { headers, metadata, probe, .. } = self.timeouts;
        match patience {
            Patience::Small => (Some(metadata), headers),
            Patience::LongResponse => (None, headers),
            Patience::LongRequest => (None, headers.max(WRITE_TIMEOUT)),
            Patience::Completion => (Some(COMPLETE_TIMEOUT), COMPLETE_TIMEOUT),
            Patience::Probe => (Some(probe), probe),
        }
    }

    fn attempt(
        &self,
        ask: &Ask<'_>,
        keys: &Keys,
        idle: Idle,
        request: &Arc<str>,
    ) -> Result<Response<Body>, Failure> {
        let response = self.send(ask, keys, idle, request)?;
        if let Some(date) = date_of(response.headers()) {
            self.clock.note(date, SystemTime::now());
        }
        match response.status().is_success() {
            true => Ok(response),
            false => Err(Failure::read(&self.settings, response, request)),
        }
    }

    fn send(
        &self,
        ask: &Ask<'_>,
        keys: &Keys,
        idle: Idle,
        request: &Arc<str>,
    ) -> Result<Response<Body>, UpstreamError> {
        let (path, query) = (self.address.path(ask.key), encoded_query(&ask.query));
        let location = self.address.location(&path, &query);
        let payload = ask.claimed_hash.clone().unwrap_or_else(|| ask.content.hash().hex());
        let mut headers = ask.headers.clone();
        headers.push(("host", self.address.host().to_owned()));
        headers.push(("x-amz-content-sha256", payload.clone()));
        let signed =
            Signed { method: ask.method, path: &path, query: &query, payload: &payload, headers };
        let headers = keys.sign(&self.scope(), signed);
        let agent = self.agent.get(&location).map_err(|error| {
            let kind = UpstreamErrorKind::Tls { reason: error.to_string().into() };
            UpstreamError::new(Arc::clone(request), kind)
        })?;
        let mut builder = Request::builder().method(ask.method).uri(location.url());
        for (name, value) in headers {
            builder = builder.header(name, value);
        }
        let failed = |error| UpstreamError::from_ureq(request, error);
        let (total, head) = self.timeouts_of(ask.patience);
        let Some(length) = ask.content.length() else {
            let prepared = builder.body(()).map_err(|error| failed(error.into()))?;
            let config = agent.configure_request(prepared);
            let config = config.timeout_global(total).timeout_recv_response(Some(head));
            let config =
                if idle == Idle::Dropped { config.max_idle_age(Duration::ZERO) } else { config };
            return agent.run(config.build()).map_err(failed);
        };
        let trouble = RefCell::new(None);
        let of_this_machine = |kind| UpstreamError::new(Arc::clone(request), kind);
        let opened = ask.content.open(&trouble);
        let mut reader = opened.map_err(|error| match trouble.take() {
            Some(kind) => of_this_machine(kind),
            None => UpstreamError::from_body(request, error),
        })?;
        let body = SendBody::from_reader(&mut reader);
        if length >= EXPECT_BYTES_MIN && Features::has(&self.features.expects) {
            builder = builder.header("expect", "100-continue");
        }
        let prepared = builder.header("content-length", length.to_string()).body(body);
        let config = agent.configure_request(prepared.map_err(|error| failed(error.into()))?);
        let config = config.timeout_global(total).timeout_recv_response(Some(head));
        let config =
            if idle == Idle::Dropped { config.max_idle_age(Duration::ZERO) } else { config };
        let sent = agent.run(config.build());
        sent.map_err(|error| match trouble.take() {
            Some(kind) => of_this_machine(kind),
            None => failed(error),
        })
    }

    /// Corrects the time of signatures if a refusal may be due to it. Logs this.
    fn has_corrected_clock(&self, failure: &Failure) -> bool {
        let (Some((status, code)), Some(date)) = (failure.error.store_code(), failure.date) else {
            return false;
        };
        let is_named = code == TIME_TOO_SKEWED;
        let now = SystemTime::now();
        if !(is_named || status == 403) || self.clock.correct(date, now, is_named).is_none() {
            return false;
        }
        log::warn!(
            endpoint:% = self.url(), error:% = skew(date, now);
            "objectStore: requests are signed with the time of the store"
        );
        true
    }
}

/// Whether a request failed as it does on an idle connection that the store has closed.
fn is_stale_connection(error: &UpstreamError) -> bool {
    matches!(error.kind(), UpstreamErrorKind::Unreachable { source } if is_broken_connection(source.kind()))
}

impl Features {
    /// Whether a feature is used.
    pub(super) fn has(feature: &AtomicBool) -> bool {
        feature.load(Ordering::Relaxed)
    }

    /// Stops the use of a feature. Logs this the first time.
    pub(super) fn drop(feature: &AtomicBool, what: &str, url: &str) {
        if feature.swap(false, Ordering::Relaxed) {
            log::info!(
                endpoint = url, feature = what;
                "objectStore: the store does not support a feature; requests go without"
            );
        }
    }
}
