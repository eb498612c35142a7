//! Requests with bodies, which no handler reads.

use super::server::echo;

#[test]
fn a_small_body_is_discarded_and_the_connection_kept() {
    let server = echo();
    let mut client = server.client();
    client.send("POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhelloGET /2 HTTP/1.1\r\n");
    client.send("Host: h\r\n\r\n");
    assert_eq!(client.response().text(), "POST /1");
    assert_eq!(client.response().text(), "GET /2");
}

#[test]
fn a_body_is_never_parsed_as_a_request() {
    let server = echo();
    let mut client = server.client();
    let inner = "GET /evil HTTP/1.1\r\nHost: h\r\n\r\n";
    let body = inner.repeat(65_536 / inner.len());
    client.send(format!("PUT /1 HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", body.len()));
    for part in body.as_bytes().chunks(1_000) {
        client.send(part);
    }
    client.get("/2");
    assert_eq!(client.response().text(), "PUT /1");
    assert_eq!(client.response().text(), "GET /2");
}

#[test]
fn a_large_body_gets_an_answer_and_a_fin_instead_of_a_reset() {
    let server = echo();
    let mut client = server.client();
    client.send("POST /big HTTP/1.1\r\nHost: h\r\nContent-Length: 200000\r\n\r\n");
    client.send(vec![b'x'; 200_000]);
    let response = client.response();
    assert_eq!((response.text(), response.header("connection")), ("POST /big", Some("close")));
    client.finish();
    client.assert_closed();
}

#[test]
fn chunks_of_a_post_are_not_parsed_as_requests() {
    let server = echo();
    let mut client = server.client();
    client.send("POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send("0\r\n\r\nGET /evil HTTP/1.1\r\nHost: h\r\n\r\n");
    let response = client.response();
    assert_eq!((response.text(), response.header("connection")), ("POST /c", Some("close")));
    client.finish();
    client.assert_closed();
}

#[test]
fn get_and_head_with_a_small_chunked_body_are_answered_and_the_connection_kept() {
    let server = echo();
    let mut client = server.client();
    for body in [
        "0\r\n\r\n",
        "0\r\nTrailer: x\r\n\r\n",
        "5;a=b\r\nhello\r\n00\r\n\r\n",
        "1d\r\nGET /evil HTTP/1.1\r\nHost: h\r\n\r\n0\r\n\r\n",
    ] {
        // First in one piece, then byte by byte.
        client.send(format!(
            "GET /1 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{body}"
        ));
        assert_eq!(client.response().text(), "GET /1", "{body:?}");
        client.send("HEAD /2 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
        for byte in body.as_bytes() {
            client.send([*byte]);
        }
        assert_eq!(client.head().status, 200, "{body:?}");
    }
    client.get("/3");
    assert_eq!(client.response().text(), "GET /3");
}

#[test]
fn get_with_a_malformed_chunked_body_is_refused_and_the_connection_closed() {
    let server = echo();
    for body in ["0\n\n", "5\r\nhelloX\r\n", "-0\r\n\r\n", "\r\n", "0\r\nA: b\n\r\n"] {
        let mut client = server.client();
        client.send("GET /1 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.send(format!("{body}GET /evil HTTP/1.1\r\nHost: h\r\n\r\n"));
        let response = client.response();
        assert_eq!(
            (response.status, response.header("connection")),
            (400, Some("close")),
            "{body:?}"
        );
        client.finish();
        client.assert_closed();
    }
}

#[test]
fn get_and_head_with_a_large_body_are_refused() {
    let server = echo();
    let chunks = format!("11000\r\n{}", "x".repeat(0x11000));
    for (framing, body) in [
        ("Content-Length: 65537", ""),
        ("Transfer-Encoding: chunked", &chunks[..]),
        ("Transfer-Encoding: chunked", &"1\r\nx\r\n".repeat(20_000)),
    ] {
        let mut client = server.client();
        client.send(format!("GET / HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n{body}"));
        assert_eq!(client.response().status, 413);
        client.finish();
        client.assert_closed();
    }
    let mut client = server.client();
    client.send("HEAD / HTTP/1.1\r\nHost: h\r\nContent-Length: 65537\r\n\r\n");
    assert_eq!(client.head().status, 413);
    client.finish();
    client.assert_closed();
}

#[test]
fn a_small_body_gets_100_continue() {
    let server = echo();
    let mut client = server.client();
    let head = "PUT /e HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    client.send(head);
    assert_eq!(client.head().status, 100);
    client.send("abc");
    assert_eq!(client.response().text(), "PUT /e");
    client.send(format!("{head}abc"));
    assert_eq!(
        client.response().text(),
        "PUT /e",
        "no 100 Continue for a body that has arrived already"
    );
}

#[test]
fn a_large_body_gets_the_final_answer_instead_of_100_continue() {
    let server = echo();
    for framing in ["Content-Length: 9999999", "Transfer-Encoding: chunked"] {
        let mut client = server.client();
        client.send(format!(
            "PUT /e HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n{framing}\r\n\r\n"
        ));
        let response = client.response();
        assert_eq!((response.text(), response.header("connection")), ("PUT /e", Some("close")));
        client.finish();
        client.assert_closed();
    }
}

#[test]
fn an_expectation_without_a_body_is_ignored() {
    let server = echo();
    let mut client = server.client();
    client.send("GET /e HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.response().text(), "GET /e");
}

#[test]
fn a_client_that_leaves_within_its_body_is_closed() {
    let server = echo();
    let mut client = server.client();
    client.send("POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhe");
    client.finish();
    client.assert_closed();
}
