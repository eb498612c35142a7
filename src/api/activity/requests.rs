//! The latest requests of clients.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{Ring, up_to};
use crate::api::access_log::{self, AGENT_CHARS_MAX, USER_CHARS_MAX};
use crate::http::{Ending, Request};

/// The number of requests that are kept, with at most about two kilobytes each.
const REQUESTS_MAX: usize = 200;
/// The maximum length of a path and of an error in characters.
const PATH_CHARS_MAX: usize = 300;
const ERROR_CHARS_MAX: usize = 300;

/// A finished request.
#[derive(Debug, Clone)]
pub(in crate::api) struct RecentRequest {
    /// When it ended.
    pub(in crate::api) time: SystemTime,
    pub(in crate::api) method: String,
    /// Without the query, which may contain credentials.
    pub(in crate::api) path: String,
    pub(in crate::api) status: u16,
    pub(in crate::api) bytes_sent: u64,
    pub(in crate::api) latency: Duration,
    pub(in crate::api) client: IpAddr,
    pub(in crate::api) agent: Option<String>,
    pub(in crate::api) user: Option<Arc<str>>,
    /// The fields about the cache in the access log.
    pub(in crate::api) cache: Option<String>,
    pub(in crate::api) reason: Option<String>,
    pub(in crate::api) upstream: Option<String>,
    /// How it ended, unless the response was complete, and why.
    pub(in crate::api) ended: Option<&'static str>,
    pub(in crate::api) error: Option<String>,
}

/// See the description of the module.
///
/// Every request of every thread comes here, so the texts stay where they are and are overwritten: to free what another
/// thread has allocated costs more than the rest.
pub(in crate::api) struct RecentRequests(Ring<RecentRequest>);

impl Default for RecentRequests {
    fn default() -> RecentRequests {
        RecentRequests(Ring::new(REQUESTS_MAX))
    }
}

impl RecentRequest {
    fn empty() -> RecentRequest {
        RecentRequest {
            time: SystemTime::UNIX_EPOCH,
            method: String::new(),
            path: String::new(),
            status: 0,
            bytes_sent: 0,
            latency: Duration::ZERO,
            client: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            agent: None,
            user: None,
            cache: None,
            reason: None,
            upstream: None,
            ended: None,
            error: None,
        }
    }
}

impl RecentRequests {
    pub(in crate::api) fn note(&self, now: SystemTime, request: &Request, ending: &Ending) {
        let field = |key: &str| {
            let note = ending.notes.iter().find(|(name, _)| *name == key);
            note.map(|(_, value)| up_to(PATH_CHARS_MAX, value))
        };
        let method = up_to(AGENT_CHARS_MAX, request.method_text());
        let path = up_to(PATH_CHARS_MAX, request.path());
        let agent = request.header("user-agent").map(|agent| up_to(AGENT_CHARS_MAX, agent));
        let error = access_log::failure(ending).map(|error| up_to(ERROR_CHARS_MAX, error));
        self.0.replace_oldest(RecentRequest::empty, |entry| {
            entry.time = now;
            method.clone_into(&mut entry.method);
            path.clone_into(&mut entry.path);
            entry.status = ending.status;
            entry.bytes_sent = ending.bytes_sent;
            entry.latency = ending.latency;
            entry.client = request.peer().ip();
            overwrite(&mut entry.agent, agent);
            // A longer name is of somebody who guesses names.
            entry.user = request.user().filter(|user| user.len() <= USER_CHARS_MAX);
            overwrite(&mut entry.cache, field("cache"));
            overwrite(&mut entry.reason, field("reason"));
            overwrite(&mut entry.upstream, field("upstream"));
            entry.ended = access_log::ended(&ending.outcome);
            overwrite(&mut entry.error, error);
        });
    }

    /// The requests, newest first.
    pub(in crate::api) fn newest_first(&self) -> Vec<RecentRequest> {
        self.0.newest_first()
    }
}

/// Replaces a text, in its memory if there is some.
fn overwrite(text: &mut Option<String>, by: Option<&str>) {
    match (text.as_mut(), by) {
        (Some(text), Some(by)) => by.clone_into(text),
        (_, by) => *text = by.map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::http::Outcome;

    #[test]
    fn a_request_is_noted_without_credentials_and_with_bounded_texts() {
        let head = format!(
            "GET /v2/{}?token=s3cret HTTP/1.1\r\nHost: h\r\nUser-Agent: {}\r\n\
             Authorization: Bearer s3cret\r\n\r\n",
            "a".repeat(2000),
            "b".repeat(2000)
        );
        let peer = (Ipv4Addr::LOCALHOST, 1).into();
        let request = Request::parse(&head, peer, Instant::now()).unwrap();
        let ending = Ending {
            status: 200,
            bytes_sent: 7,
            first_byte: None,
            latency: Duration::from_millis(3),
            notes: vec![("cache", "miss".into())],
            outcome: Outcome::Cut("c".repeat(2000).into()),
        };
        let requests = RecentRequests::default();
        for _ in 0..2 * REQUESTS_MAX {
            requests.note(SystemTime::UNIX_EPOCH, &request, &ending);
        }
        let all = requests.newest_first();
        let text = format!("{:?}", all[0]);
        assert_eq!((all.len(), all[0].cache.as_deref()), (REQUESTS_MAX, Some("miss")));
        assert_eq!((all[0].ended, all[0].path.len()), (Some("cut"), PATH_CHARS_MAX));
        assert!(text.len() < 1500 && !text.contains("s3cret"), "{text}");
    }
}
