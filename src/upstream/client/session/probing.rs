//! Whether and how the endpoint itself can be reached, and what it says about itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, header};

use super::{Ask, Method, Redirects, Session};
use crate::oci::Repository;
use crate::upstream::check::{self, CheckStep};
use crate::upstream::error::UpstreamError;
use crate::upstream::network::Guard;
use crate::upstream::response::{discard, status_error};
use crate::via;

/// The timeout of an introduction, which needs two responses, and a password that is checked.
const INTRODUCTION_TIMEOUT: Duration = Duration::from_secs(5);

impl Session {
    /// Examines how the endpoint is reached. `false` if no request can succeed.
    pub(in crate::upstream::client) fn examine(&self, steps: &mut Vec<CheckStep>) -> bool {
        let (agent, guard) = match &self.own {
            Some(own) => (own, Guard::Any),
            None => (&self.foreign.public, Guard::PublicOnly),
        };
        check::examine(agent, guard, &self.base, steps)
    }

    /// Requests the version of the endpoint's API, without credentials. Returns the headers of the response.
    pub(in crate::upstream::client) fn probe(&self) -> Result<HeaderMap, UpstreamError> {
        let location = self.base.with_path(&format!("{}/", self.api.as_str()));
        let request: Arc<str> = format!("GET {}", location.for_log()).into();
        let via = via::current().to_string();
        let headers = [(header::VIA, Some(via.as_str()))];
        let total = self.timeouts.probe;
        let response = self.send(Method::Get, &location, &headers, Some(total), &request)?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        if status >= 500 {
            return Err(status_error(status, &headers, &request));
        }
        discard(response);
        Ok(headers)
    }

    /// Requests the version of the endpoint's API with the login for a repository, if one is demanded. Returns the headers
    /// of the response.
    pub(in crate::upstream::client) fn introduce(
        &self,
        repository: &Repository,
    ) -> Result<HeaderMap, UpstreamError> {
        let total = INTRODUCTION_TIMEOUT;
        let answer = self.ask(&Ask {
            method: Method::Get,
            path: "/v2/".into(),
            accept: None,
            repository,
            redirects: Redirects::SameOrigin,
            range: None,
            total: Some(total),
            deadline: Instant::now() + total,
        })?;
        if answer.response.status().as_u16() >= 500 {
            return Err(answer.failure());
        }
        let headers = answer.response.headers().clone();
        discard(answer.response);
        Ok(headers)
    }
}
