//! The management page and the API description, which are embedded in the binary.

use crate::http::{Body, Reply};

const PAGE: &str = include_str!("page/index.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");
const DESCRIPTION: &str = include_str!("../../../docs/openapi.yaml");

/// Forbids foreign resources, inline scripts and styles, and framing, so that text from registries cannot be
/// executed.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// The file at this path, if there is one.
pub(super) fn answer(path: &str) -> Option<Reply> {
    let (content_type, text) = match path {
        "/" => ("text/html; charset=utf-8", PAGE),
        "/page.css" => ("text/css; charset=utf-8", STYLE),
        "/page.js" => ("text/javascript; charset=utf-8", SCRIPT),
        "/openapi.yaml" => ("application/yaml", DESCRIPTION),
        _ => return None,
    };
    let reply = Reply::new(200, Body::Static(text.as_bytes()))
        .header("Content-Type", content_type)
        .header("Content-Security-Policy", POLICY)
        .header("Referrer-Policy", "no-referrer");
    Some(reply)
}
