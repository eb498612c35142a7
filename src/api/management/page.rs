//! The management page and the API description, which are embedded in the binary.

use crate::http::{Body, Reply};

const PAGE: &str = include_str!("page/index.html");
const STYLE: &str = include_str!("page/page.css");
/// The modules of the script, by their paths.
const SCRIPTS: [(&str, &str); 11] = [
    ("/page.js", include_str!("page/page.js")),
    ("/activity.js", include_str!("page/activity.js")),
    ("/document.js", include_str!("page/document.js")),
    ("/downloads.js", include_str!("page/downloads.js")),
    ("/format.js", include_str!("page/format.js")),
    ("/images.js", include_str!("page/images.js")),
    ("/news.js", include_str!("page/news.js")),
    ("/overview.js", include_str!("page/overview.js")),
    ("/server.js", include_str!("page/server.js")),
    ("/setup.js", include_str!("page/setup.js")),
    ("/upstreams.js", include_str!("page/upstreams.js")),
];
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
        "/openapi.yaml" => ("application/yaml", DESCRIPTION),
        _ => {
            let (_, script) = SCRIPTS.iter().find(|(name, _)| *name == path)?;
            ("text/javascript; charset=utf-8", *script)
        }
    };
    let reply = Reply::new(200, Body::Static(text.as_bytes()))
        .header("Content-Type", content_type)
        .header("Content-Security-Policy", POLICY)
        .header("Referrer-Policy", "no-referrer");
    Some(reply)
}
