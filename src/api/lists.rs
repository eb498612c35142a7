//! Tag lists and referrers.

use std::sync::Arc;

use super::waiting::wait;
use super::{Call, Failure, Storage};
use crate::cache::{CacheError, Document, How, ListAnswer, ListLookup, ListQuestion};
use crate::http::{Body, Context, Reply, Request, Step};
use crate::oci::{ImageName, MediaType, TagQuery};

pub(super) fn answer(
    call: Call,
    name: &ImageName,
    question: ListQuestion,
    request: &Request,
    context: &Context<'_>,
) -> Step {
    if let ListQuestion::Tags { query } = &question
        && TagQuery::parse(query).is_for_none()
    {
        return Step::Reply(call.finish(no_tags(name), How::Hit, None, Storage::NotStored));
    }
    let kind = match &question {
        ListQuestion::Tags { .. } => Kind::Tags,
        ListQuestion::Referrers { .. } => Kind::Referrers,
    };
    match call.cache.list(name, question) {
        Ok(ListLookup::Ready(answer)) => Step::Reply(reply(&call, kind, request, Ok(answer))),
        Ok(ListLookup::Wait(waiting)) => {
            wait(waiting, request, context, move |request, outcome| {
                reply(&call, kind, request, outcome)
            })
        }
        Err(error) => Step::Reply(reply(&call, kind, request, Err(error))),
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Tags,
    Referrers,
}

fn reply(
    call: &Call,
    kind: Kind,
    request: &Request,
    outcome: Result<ListAnswer, CacheError>,
) -> Reply {
    let answer = match (outcome, kind) {
        (Ok(answer), _) => answer,
        (Err(error), Kind::Tags) => return call.fail(&Failure::Tags(error)),
        (Err(error), Kind::Referrers) => return call.fail(&Failure::Referrers(error)),
    };
    let content_type = match kind {
        Kind::Tags => "application/json",
        Kind::Referrers => MediaType::OCI_INDEX,
    };
    let body = match answer.body {
        Document::Memory(bytes) => Body::Bytes(bytes),
        Document::File { file, range } => Body::File { file, range },
    };
    let mut reply = Reply::new(200, body).header("Content-Type", content_type);
    if let Some(next) = answer.next {
        reply = reply.header("Link", next_link(request, &next));
    }
    if let Some(filters) = answer.filters_applied {
        reply = reply.header("OCI-Filters-Applied", filters);
    }
    call.finish(reply, answer.how, answer.why, Storage::NotStored)
}

/// A relative link to the next page, with the namespace of this request: clients refuse links to other hosts.
fn next_link(request: &Request, next: &str) -> String {
    let namespace = request
        .query()
        .into_iter()
        .flat_map(|query| query.split('&'))
        .find(|pair| pair.starts_with("ns=") && pair.len() > "ns=".len());
    match namespace {
        Some(namespace) => format!("<{}?{next}&{namespace}>; rel=\"next\"", request.path()),
        None => format!("<{}?{next}>; rel=\"next\"", request.path()),
    }
}

fn no_tags(name: &ImageName) -> Reply {
    let body = serde_json::json!({ "name": name.repository.as_str(), "tags": [] }).to_string();
    Reply::new(200, Body::Bytes(Arc::from(body.into_bytes())))
        .header("Content-Type", "application/json")
}
