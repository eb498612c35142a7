//! Finds AWS keys as Amazon's SDKs do, gets a login for ECR with them (`token.provider: ecr`), and signs requests to
//! object stores.
//!
//! Threat: whoever can make Larder contact a metadata service can get the machine's keys. Therefore all addresses here
//! come from the operator's environment or are Amazon's own, never from a registry, a redirect or a challenge. The
//! agents follow no redirects and are used for nothing else.

mod cached_keys;
mod ecr;
mod environment;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod sigv4;
mod sources;

pub(in crate::upstream) use cached_keys::CachedKeys;
pub use cached_keys::{FixedKeys, KeySettings, SecretSource};
pub(super) use ecr::Ecr;
pub use ecr::EcrSettings;
pub use environment::{AwsEnvironment, ContainerEndpoint, EcrRegistry};
pub(in crate::upstream) use sigv4::{Keys, Scope, Signed, encoded_path, encoded_query, hex};

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use ureq::http::{Request, Response};
use ureq::{Agent, Body};

use super::credentials::LoginError;
use crate::upstream::error::UpstreamError;
use crate::upstream::network::{
    Endpoint, Guard, LazyAgent, Location, Reach, Scheme, Timeouts, TlsSettings,
};

/// The largest response, in bytes; a login or a set of keys has a few thousand.
const BODY_BYTES_MAX: u64 = 64 * 1024;
/// How long a metadata service may take to accept a connection: short, since it is on the same machine, and without one
/// nothing answers.
const METADATA_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a request to a metadata service may take in total.
const METADATA_TIMEOUT: Duration = Duration::from_secs(5);

/// The agents for Amazon's services, separate from those of the registry. They may dial any address, since the operator
/// or Amazon has chosen it: VPC endpoints are private, and metadata services are link-local.
struct Agents {
    /// TLS with the usual roots.
    tls: LazyAgent,
    /// Plain HTTP: metadata services, and substitutes for other services in tests.
    plain: LazyAgent,
    timeouts: Timeouts,
}

/// The kind of service, which decides the timeouts.
#[derive(Clone, Copy)]
enum Target {
    /// One of Amazon's services.
    Service,
    /// A service that returns the keys of this machine or container.
    Metadata,
}

impl Agents {
    fn new(reach: &Reach, environment: &AwsEnvironment) -> Agents {
        let timeouts = reach.timeouts;
        let tls = TlsSettings { ca: environment.ca_bundle.clone(), ..TlsSettings::default() };
        Agents {
            tls: LazyAgent::new(Guard::Any, Some(tls), timeouts, Arc::clone(&reach.proxies)),
            // A metadata service belongs to this machine: through a proxy, it would be the proxy's machine's.
            plain: LazyAgent::new(Guard::Any, None, timeouts, Arc::default()),
            timeouts,
        }
    }

    fn call(&self, target: Target, scheme: Scheme, call: Call) -> Result<Answer, LoginError> {
        let location = Location::parse(&call.url)
            .ok_or_else(|| unusable(format!("{} is not a valid URL", call.url)))?;
        let agent = match scheme {
            Scheme::Https => self.tls.get(&location),
            Scheme::Http => self.plain.get(&location),
        };
        let agent = agent.map_err(|error| unusable(error.to_string()))?;
        let (connect, total) = match target {
            Target::Service => (self.timeouts.connect, self.timeouts.metadata),
            Target::Metadata => (METADATA_CONNECT_TIMEOUT, METADATA_TIMEOUT),
        };
        // Without the query, which may be confidential for a container's service.
        let place = call.url.split('?').next().unwrap_or_default();
        let request = format!("{} {place}", call.method);
        let response = call
            .send(&agent, connect, total)
            .map_err(|error| unavailable(UpstreamError::from_ureq(&request, error).to_string()))?;
        Answer::read(response, request)
    }
}

/// One request.
struct Call {
    method: &'static str,
    url: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Call {
    fn send(
        self,
        agent: &Agent,
        connect: Duration,
        total: Duration,
    ) -> Result<Response<Body>, ureq::Error> {
        let builder = Request::builder().method(self.method).uri(self.url);
        let builder = self
            .headers
            .into_iter()
            .fold(builder, |builder, (name, value)| builder.header(name, value));
        // A GET must not have a body, not even an empty one.
        if self.method == "GET" {
            let request = agent.configure_request(builder.body(())?);
            let request = request.timeout_connect(Some(connect)).timeout_global(Some(total));
            return agent.run(request.build());
        }
        let request = agent.configure_request(builder.body(self.body)?);
        let request = request.timeout_connect(Some(connect)).timeout_global(Some(total));
        agent.run(request.build())
    }
}

/// The URL of a path at an endpoint.
fn url(endpoint: &Endpoint, path: &str) -> String {
    endpoint.url() + path
}

/// A response with its body.
struct Answer {
    status: u16,
    body: String,
    /// Method and URL for messages.
    request: String,
}

impl Answer {
    fn read(response: Response<Body>, request: String) -> Result<Answer, LoginError> {
        let status = response.status().as_u16();
        let mut body = String::new();
        let mut reader = response.into_body().into_reader().take(BODY_BYTES_MAX);
        match reader.read_to_string(&mut body) {
            Ok(_) => Ok(Answer { status, body, request }),
            Err(error) => Err(unavailable(UpstreamError::from_body(&request, error).to_string())),
        }
    }

    /// The body of a response with status 200.
    ///
    /// # Errors
    /// The status and Amazon's error code. The text is left out: it may name accounts, and clients see this error.
    fn ok(self, hint: &str) -> Result<String, LoginError> {
        if self.status == 200 {
            return Ok(self.body);
        }
        let code = error_code(&self.body).unwrap_or("no error code");
        let reason = format!("{}: {} ({code}); {hint}", self.request, self.status);
        // Amazon reports throttling with status 400.
        let is_temporary = self.status >= 500
            || self.status == 429
            || code.contains("Throttl")
            || code == "RequestLimitExceeded";
        Err(if is_temporary { unavailable(reason) } else { unusable(reason) })
    }
}

/// The error code: `__type` in JSON, possibly after a namespace, or `<Code>` in XML.
fn error_code(body: &str) -> Option<&str> {
    let json = || {
        let (_, rest) = body.split_once("\"__type\"")?;
        rest.trim_start_matches([':', ' ']).strip_prefix('"')?.split('"').next()
    };
    let code = json().map(|code| code.rsplit('#').next().unwrap_or(code));
    let code = code.or_else(|| element(body, "Code"))?;
    let is_name = !code.is_empty() && code.len() <= 64;
    (is_name && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.'))
        .then_some(code)
}

/// The text of the first XML element with this name. Sufficient for names, keys, tokens and times, which need no
/// escaping in XML.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    (!text.is_empty() && !text.contains(['<', '&'])).then_some(text)
}

fn unusable(reason: String) -> LoginError {
    LoginError::Unusable(reason.into())
}

fn unavailable(reason: String) -> LoginError {
    LoginError::Unavailable(reason.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_codes_are_found_in_json_and_xml() {
        for (body, code) in [
            (r#"{"__type":"AccessDeniedException","message":"x"}"#, Some("AccessDeniedException")),
            (r#"{"__type": "com.amazonaws.ecr#ServerException"}"#, Some("ServerException")),
            (
                "<E><Error><Code>InvalidIdentityToken</Code></Error></E>",
                Some("InvalidIdentityToken"),
            ),
            ("<html>", None),
            (r#"{"__type":"a\nb"}"#, None),
            ("", None),
        ] {
            assert_eq!(error_code(body), code, "{body}");
        }
    }

    #[test]
    fn temporary_errors_are_told_apart_from_permanent_ones() {
        let ok = |status, body: &str| {
            let answer = Answer { status, body: body.into(), request: "POST https://x/".into() };
            answer.ok("hint")
        };
        assert_eq!(ok(200, "y"), Ok("y".into()));
        let throttled = r#"{"__type":"ThrottlingException"}"#;
        for (status, body) in [(500, ""), (503, ""), (429, ""), (400, throttled)] {
            assert!(matches!(ok(status, body), Err(LoginError::Unavailable(_))), "{status}");
        }
        for (status, body) in [(403, ""), (400, r#"{"__type":"AccessDeniedException"}"#)] {
            assert!(matches!(ok(status, body), Err(LoginError::Unusable(_))), "{status}");
        }
    }
}
