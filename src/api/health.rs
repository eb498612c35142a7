//! `/health` on a port of its own, for probes that must not depend on the serving port's load.

use std::sync::Arc;

use super::status::route_failure;
use super::{RouteError, ping};
use crate::http::{Body, Context, Handler, Method, Reply, Request, Step};

/// Answers health probes: alive is all that it says.
pub struct Health;

impl Handler for Health {
    fn handle(&self, request: &Request, _: &Context<'_>) -> Step {
        Step::Reply(match (request.method(), request.path()) {
            (Method::Get | Method::Head, "/health") => {
                Reply::new(200, Body::Bytes(Arc::from(*b"{\"status\":\"UP\"}")))
                    .header("Content-Type", "application/json")
            }
            (Method::Get | Method::Head, "/v2/") => ping(),
            (Method::Get | Method::Head, _) => route_failure(&RouteError::NotFound),
            _ => route_failure(&RouteError::Method),
        })
    }
}
