//! Request heads, keep-alive and pipelining.

use super::client::Client;
use super::server::{Running, echo, echoed, few_workers, serve, text};
use crate::http::{Body, Method, Reply, SERVER_NAME, Step};
use std::fmt::Write;
use std::sync::Arc;

#[test]
fn a_get_is_answered_with_a_length_and_the_connection_is_kept() {
    let server = echo();
    let mut client = server.client();
    for target in ["/v2/", "/v2/a%2Fb?n=1&last=x"] {
        client.get(target);
        let response = client.response();
        assert_eq!((response.status, response.text()), (200, &*format!("GET {target}")));
        assert_eq!(response.header("server"), Some(SERVER_NAME));
        assert_eq!(response.header("connection"), None);
        let date = response.header("date").unwrap();
        assert!(date.ends_with(" GMT") && date.len() == 29, "{date}");
    }
    assert_eq!(server.controller.connections(), 1);
}

#[test]
fn a_head_may_arrive_one_byte_at_a_time() {
    let server = echo();
    let mut client = server.client();
    for byte in b"\r\nGET /slow HTTP/1.1\r\nHost: h\r\nAccept: */*\r\n\r\n" {
        client.send([*byte]);
    }
    assert_eq!(client.response().text(), "GET /slow");
}

#[test]
fn a_single_line_feed_ends_a_line() {
    let server = echo();
    let mut client = server.client();
    client.send("GET /lf HTTP/1.1\nHost: h\n\n");
    assert_eq!(client.response().text(), "GET /lf");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = echo();
    let mut client = server.client();
    let mut requests = String::new();
    for number in 0..500 {
        write!(requests, "GET /{number} HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    }
    client.send(&requests);
    for number in 0..500 {
        assert_eq!(client.response().text(), format!("GET /{number}"));
    }
}

#[test]
fn a_client_that_has_shut_down_sending_gets_its_answers() {
    let server = echo();
    let mut client = server.get("/1");
    client.get("/2");
    client.finish();
    assert_eq!(client.response().text(), "GET /1");
    assert_eq!(client.response().text(), "GET /2");
    client.assert_closed();
}

#[test]
fn connection_close_is_honoured_and_returned() {
    let server = echo();
    let mut client = server.client();
    client.send("GET /1 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\nGET /2 HTTP/1.1\r\n");
    assert_eq!(client.response().header("connection"), Some("close"));
    client.assert_closed();
}

#[test]
fn http_1_0_closes_unless_the_client_asks_for_keep_alive() {
    let server = echo();
    let mut client = server.client();
    client.send("GET /1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!(client.response().header("connection"), Some("keep-alive"));
    client.send("GET /2 HTTP/1.0\r\n\r\n");
    let response = client.response();
    assert_eq!((response.text(), response.header("connection")), ("GET /2", Some("close")));
    client.assert_closed();
}

#[test]
fn every_form_of_target_reaches_the_handler() {
    let server = echo();
    let mut client = server.client();
    for (line, seen) in [
        ("GET http://larder:80/v2/?ns=a", "GET /v2/?ns=a"),
        ("CONNECT larder:443", "CONNECT larder:443"),
        ("OPTIONS *", "OPTIONS *"),
        ("GET //", "GET //"),
        ("GET /v2/x/../y", "GET /v2/x/../y"),
        ("PROPFIND /", "PROPFIND /"),
    ] {
        client.send(format!("{line} HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert_eq!(client.response().text(), seen);
    }
}

#[test]
fn head_gets_the_response_to_get_without_its_body() {
    let server = serve(few_workers(), |request, _| match request.path() {
        "/length" => Step::Reply(Reply::new(200, Body::Length(5_000_000_000))),
        _ => text("body"),
    });
    let mut client = server.client();
    client.send("HEAD /length HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(client.head().header("content-length"), Some("5000000000"));
    client.send("HEAD /bytes HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(client.head().header("content-length"), Some("4"));
    client.get("/bytes");
    assert_eq!(client.response().text(), "body");
}

#[test]
fn get_never_gets_a_length_without_bytes() {
    let server = serve(few_workers(), |_, _| Step::Reply(Reply::new(200, Body::Length(9))));
    assert_eq!(server.get("/").response().status, 500);
}

#[test]
fn statuses_without_a_body_never_have_one() {
    let server = serve(few_workers(), |request, _| {
        let status = if request.path() == "/304" { 304 } else { 204 };
        let body = Body::Bytes(Arc::from(&b"never sent"[..]));
        Step::Reply(Reply::new(status, body).header("ETag", "\"x\""))
    });
    let mut client = server.client();
    for status in [304, 204, 304] {
        client.get(&format!("/{status}"));
        let response = client.head();
        assert_eq!((response.status, response.header("content-length")), (status, None));
        assert_eq!(response.header("etag"), Some("\"x\""));
    }
}

#[test]
fn a_reply_may_close_the_connection() {
    let server = serve(few_workers(), |_, _| match text("last") {
        Step::Reply(reply) => Step::Reply(reply.close()),
        other => other,
    });
    let mut client = server.get("/");
    assert_eq!(client.response().header("connection"), Some("close"));
    client.assert_closed();
}

#[test]
fn header_values_cannot_smuggle_lines() {
    let server = serve(few_workers(), |request, _| {
        let value = request.query().unwrap_or_default().replace("%0d%0a", "\r\n");
        Step::Reply(Reply::new(200, Body::Empty).header("X-Echo", value))
    });
    let response = server.get("/?a%0d%0aSet-Cookie:b%0d%0a%0d%0aevil").response();
    assert_eq!(response.header("x-echo"), Some("a??Set-Cookie:b????evil"));
    assert_eq!(response.header("set-cookie"), None);
}

/// Sends an invalid request and asserts that it is refused with an explanation, and the connection closed normally.
fn assert_refused(server: &Running, status: u16, bytes: &[u8]) {
    let mut client: Client = server.client();
    client.send(bytes);
    let response = client.response();
    assert_eq!(response.status, status, "{}", String::from_utf8_lossy(bytes));
    assert_eq!(response.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(response.header("connection"), Some("close"));
    assert!(response.text().len() > 10, "{:?} explains nothing", response.text());
    client.finish();
    client.assert_closed();
}

#[test]
fn malformed_heads_are_refused_with_a_reason() {
    let server = echo();
    for (status, request) in [
        (400, "\x16\x03\x01\x02\x00\x01\x00\x01\n"),
        (400, "GET / HTTP/1.1\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost : a\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\0\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n"),
        (
            400,
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
        (417, "GET / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\n\r\n"),
        (505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ] {
        assert_refused(&server, status, request.as_bytes());
    }
    server.assert_answers();
}

#[test]
fn heads_beyond_the_limits_are_refused_before_they_end() {
    let server = echo();
    let target = format!("GET /{}", "a".repeat(9_000));
    assert_refused(&server, 414, target.as_bytes());
    let line = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}", "a".repeat(17_000));
    assert_refused(&server, 431, line.as_bytes());
    let lines = format!("GET / HTTP/1.1\r\nHost: h\r\n{}", "X: y\r\n".repeat(100));
    assert_refused(&server, 431, lines.as_bytes());
    assert_refused(&server, 431, "\r\n".repeat(9_000).as_bytes());
}

#[test]
fn a_refusal_follows_the_earlier_answers() {
    let server = echo();
    let mut client = server.client();
    client.send("GET /1 HTTP/1.1\r\nHost: h\r\n\r\nnonsense\r\n\r\n");
    assert_eq!(client.response().text(), "GET /1");
    assert_eq!(client.response().status, 400);
    client.assert_closed();
}

#[test]
fn the_handler_sees_the_head_as_the_client_sent_it() {
    let server = serve(few_workers(), |request, _| {
        assert_eq!(request.method(), Method::Get);
        let accept: Vec<_> = request.headers("accept").collect();
        text(format!("{} {accept:?} {}", echoed(request), request.peer().ip()))
    });
    let mut client = server.client();
    client.send("GET /x HTTP/1.1\r\nhost: h\r\nACCEPT: a\r\nX: y\r\naccept:  b,c \r\n\r\n");
    assert_eq!(client.response().text(), "GET /x [\"a\", \"b,c\"] 127.0.0.1");
}
