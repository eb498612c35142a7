//! HTTP as registries, object stores and their proxies use it.

use std::time::Duration;

use crate::support::larder::{blob, manifest, seconds};
use crate::support::{FakeRegistry, Fault, Image, Larder, On, bytes, digest_of, media_type};

const REPOSITORY: &str = "team/app";

/// A raw response: these header lines before the usual ones, and the body.
fn raw(before: &str, lines: &str, body: &[u8]) -> Fault {
    let head = format!("{before}HTTP/1.1 200 OK\r\n{lines}\r\n\r\n");
    Fault::Raw([head.as_bytes(), body].concat())
}

#[test]
fn response_heads_that_go_and_curl_accept_are_accepted() {
    let content = bytes(5000, 1);
    let length = format!("Content-Length: {}", content.len());
    let chunked = [b"1388\r\n", &content[..], b"\r\n0\r\n\r\n"].concat();
    let interim = "HTTP/1.1 100 Continue\r\nX-Proxy: a\r\nDate: now\r\n\r\n";
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n";
    for (name, fault) in [
        ("100 with headers", raw(interim, &length, &content)),
        (
            "several interim responses",
            raw(&format!("{interim}{hints}{interim}"), &length, &content),
        ),
        ("a folded header", raw("", &format!("X-Long: a\r\n  b\r\n\tc\r\n{length}"), &content)),
        ("a folded length", raw("", "Content-Length:\r\n 5000", &content)),
        ("a space before the colon", raw("", "Content-Length : 5000\r\nX-Y  : z", &content)),
        ("a line without a colon", raw("", &format!("nonsense\r\n{length}"), &content)),
        (
            "a length beside chunks",
            raw("", "Content-Length: 7\r\nTransfer-Encoding: chunked", &chunked),
        ),
        (
            "chunks and a length",
            raw("", "Transfer-Encoding: chunked\r\nContent-Length: 7", &chunked),
        ),
        (
            "bare line feeds",
            Fault::Raw([b"HTTP/1.1 200 OK\nContent-Length: 5000\n\n", &content[..]].concat()),
        ),
        (
            "no reason",
            Fault::Raw([b"HTTP/1.1 200\r\nContent-Length: 5000\r\n\r\n", &content[..]].concat()),
        ),
    ] {
        let registry = FakeRegistry::start();
        let digest = registry.add_blob(REPOSITORY, &content);
        registry.fault(On::get_blob(&digest), fault);
        let larder = Larder::start(&registry);
        let got = larder.get(&blob(REPOSITORY, &digest));
        assert!(got.status == 200 && got.complete && got.body == content, "{name}: {got:?}");
        assert_eq!(got.header("content-length"), Some("5000"), "{name}");
    }
}

#[test]
fn connection_is_reused_after_interim_responses() {
    let registry = FakeRegistry::start();
    let images: Vec<Image> = (0..3).map(|n| Image::sample(&n.to_string())).collect();
    for (n, image) in images.iter().enumerate() {
        registry.add(REPOSITORY, &n.to_string(), image);
    }
    let larder = Larder::start(&registry);
    for (n, image) in images.iter().enumerate() {
        assert!(larder.get(&manifest(REPOSITORY, &n.to_string())).body == image.manifest());
        for layer in image.layers() {
            assert!(larder.get(&blob(REPOSITORY, &layer.digest)).body == layer.bytes);
        }
    }
    assert_eq!(registry.connection_count(), 1);
}

#[test]
fn non_http_response_is_an_error_that_says_so() {
    for bytes in
        [&b"SSH-2.0-OpenSSH_9.2\r\n"[..], b"\x15\x03\x03\x00\x02\x02\x28", b"HTTP/9 x\r\n\r\n"]
    {
        let registry = FakeRegistry::start();
        registry.fault(On::any_manifest(), Fault::Raw(bytes.to_vec()));
        let larder = Larder::start(&registry);
        let got = larder.get(&manifest(REPOSITORY, "v1"));
        assert!(matches!(got.status, 502..=504), "{got:?}");
    }
}

#[test]
fn content_encodings_without_effect_are_ignored() {
    for encoding in ["identity", "Identity", "aws-chunked", "identity, aws-chunked", "utf-8", ""] {
        let (registry, image) = FakeRegistry::with_image(REPOSITORY);
        registry.fault(On::path("*", "/v2/*"), Fault::ContentEncoding(encoding.into()));
        let larder = Larder::start(&registry);
        assert!(larder.get(&manifest(REPOSITORY, "v1")).body == image.manifest(), "{encoding}");
        for layer in image.layers() {
            assert!(larder.get(&blob(REPOSITORY, &layer.digest)).body == layer.bytes, "{encoding}");
        }
    }
}

#[test]
fn status_203_is_accepted() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let body = image.manifest();
    let headers = |content_type: &str, digest: String| {
        vec![
            ("Content-Type".to_owned(), content_type.to_owned()),
            ("Docker-Content-Digest".to_owned(), digest),
        ]
    };
    registry.fault(
        On::any_manifest(),
        Fault::Status(203, headers(media_type::OCI_MANIFEST, image.digest()), body.clone()),
    );
    let layer = &image.layers()[0];
    let content = headers("application/octet-stream", layer.digest.clone());
    registry.fault(On::any_blob(), Fault::Status(203, content, layer.bytes.clone()));
    let larder = Larder::start(&registry);
    assert!(larder.get(&manifest(REPOSITORY, "v1")).body == body);
    assert!(larder.get(&blob(REPOSITORY, &layer.digest)).body == layer.bytes);
}

#[test]
fn download_resumes_from_a_206_without_total_size() {
    for known in [false, true] {
        let registry = FakeRegistry::start();
        let image = Image::sample("v1").layer(bytes(100_000, 9));
        registry.add(REPOSITORY, "v1", &image);
        let layer = image.layers().into_iter().find(|layer| layer.bytes.len() == 100_000).unwrap();
        let first = On::get_blob(&layer.digest).without_header("range");
        registry.fault(first.times(1), Fault::CutAfter(40_000));
        let rest = &layer.bytes[40_000..];
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 40000-99999/*\r\nContent-Length: {}\r\n\r\n",
            rest.len()
        );
        let resumed = On::get_blob(&layer.digest).with_header("range");
        registry.fault(resumed, Fault::Raw([head.as_bytes(), rest].concat()));
        let larder =
            Larder::start_with(&registry, |settings| settings.cache.retry.fruitless_max = 3);
        if known {
            assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
        }
        let got = larder.get(&blob(REPOSITORY, &layer.digest));
        assert!(got.complete && got.body == layer.bytes, "{known}: {got:?}");
        assert_eq!(registry.count("GET", "/v2/*/blobs/*"), 2, "{known}");
    }
}

#[test]
fn blob_labelled_as_html_is_accepted_and_a_login_page_is_not() {
    let page = b"<!doctype html><title>A report</title>".to_vec();
    for (name, content) in
        [("a page", page), ("a layer", bytes(5000, 1)), ("a large layer", bytes(2_000_000, 1))]
    {
        let registry = FakeRegistry::start();
        let digest = registry.add_blob(REPOSITORY, &content);
        registry.fault(On::any_blob(), Fault::content_type("text/html; charset=utf-8"));
        let larder = Larder::start(&registry);
        let got = larder.get(&blob(REPOSITORY, &digest));
        assert!(got.status == 200 && got.complete && got.body == content, "{name}: {got:?}");
    }
    let registry = FakeRegistry::start();
    let digest = registry.add_blob(REPOSITORY, &bytes(5000, 1));
    registry.fault(On::any_blob(), Fault::Html200);
    let larder = Larder::start(&registry);
    let got = larder.get(&blob(REPOSITORY, &digest));
    assert!(matches!(got.status, 502 | 503) && got.text().contains("web page"), "{got:?}");
    assert!(!larder.has(&digest));
}

#[test]
fn head_of_a_blob_uses_get_if_the_redirect_is_signed_for_get() {
    for status in [400, 401, 403, 404, 405, 501] {
        let (registry, storage) = (FakeRegistry::start(), FakeRegistry::start());
        let content = bytes(5000, 1);
        let digest = registry.add_blob(REPOSITORY, &content);
        storage.add_file("/bucket/layer", "binary/octet-stream", &content);
        storage.fault(On::path("HEAD", "/bucket/layer"), Fault::status(status));
        let location = storage.url("/bucket/layer?signature=get");
        registry.fault(On::path("*", &blob("*", &digest)), Fault::redirect_to(&location));
        let larder = Larder::start(&registry);
        let head = larder.head(&blob(REPOSITORY, &digest));
        assert_eq!((head.status, head.header("content-length")), (200, Some("5000")), "{status}");
        assert!(larder.get(&blob(REPOSITORY, &digest)).body == content, "{status}");
    }
}

#[test]
fn manifest_type_is_taken_from_the_body_if_an_object_store_mislabels_it() {
    for content_type in [
        "binary/octet-stream",
        "application/octet-stream",
        "text/json",
        "text/plain; charset=utf-8",
        "application/x-json",
        "application/xml",
        "image/png",
        "nonsense",
        "",
    ] {
        for tag in ["v1", "index"] {
            let (registry, image) = FakeRegistry::with_image(REPOSITORY);
            registry.add(REPOSITORY, "index", &crate::support::Index::new().image(&image));
            registry.fault(On::any_manifest(), Fault::content_type(content_type));
            let larder = Larder::start(&registry);
            let got = larder.get(&manifest(REPOSITORY, tag));
            let expected =
                if tag == "v1" { media_type::OCI_MANIFEST } else { media_type::OCI_INDEX };
            assert_eq!(
                (got.status, got.header("content-type")),
                (200, Some(expected)),
                "{content_type}"
            );
        }
    }
}

#[test]
fn rate_limit_of_an_object_store_does_not_apply_to_the_registry() {
    for (fault, expected) in [(Fault::rate_limited(60), 1), (Fault::status(503), 2)] {
        let (registry, storage) = (FakeRegistry::start(), FakeRegistry::start());
        let image = Image::sample("v1");
        registry.add(REPOSITORY, "v1", &image);
        let limited = registry.add_blob(REPOSITORY, &bytes(5000, 1));
        storage.fault(On::anything(), fault);
        registry.fault(On::get_blob(&limited), Fault::redirect_to(&storage.url("/bucket/layer")));
        let larder = Larder::start(&registry);
        for _ in 0..2 {
            let got = larder.get(&blob(REPOSITORY, &limited));
            assert!(matches!(got.status, 429 | 503), "{got:?}");
        }
        assert_eq!(
            storage.requests().len(),
            expected,
            "the store is not contacted until Retry-After"
        );
        assert!(larder.get(&manifest(REPOSITORY, "v1")).body == image.manifest());
        for layer in image.layers() {
            assert!(larder.get(&blob(REPOSITORY, &layer.digest)).body == layer.bytes);
        }
        // A cached tag is revalidated, not served stale.
        larder.advance(seconds(3600));
        assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).header("warning"), None);
    }
}

#[test]
fn retry_after_as_a_date_is_passed_on_in_seconds() {
    let registry = FakeRegistry::start();
    let date = ("Date".to_owned(), "Sun, 06 Nov 1994 08:49:37 GMT".to_owned());
    let until = ("Retry-After".to_owned(), "Sun, 06 Nov 1994 08:50:07 GMT".to_owned());
    registry.fault(On::any_manifest(), Fault::Status(429, vec![date, until], Vec::new()));
    let larder = Larder::start(&registry);
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    assert_eq!((got.status, got.header("retry-after")), (429, Some("30")), "{got:?}");
}

#[test]
fn head_of_an_uncached_tag_costs_one_head_and_no_pull() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let digest = image.digest();
    let larder = Larder::start(&registry);
    let path = manifest(REPOSITORY, "v1");
    for cache_status in ["larder; fwd=miss", "larder; hit"] {
        let head = larder.head(&path);
        assert_eq!(head.status, 200, "{head:?}");
        assert_eq!(head.header("cache-status"), Some(cache_status));
        let length = image.manifest().len().to_string();
        for (name, expected) in [
            ("content-type", media_type::OCI_MANIFEST),
            ("docker-content-digest", &digest),
            ("content-length", &length),
        ] {
            assert_eq!(head.header(name), Some(expected), "{name}");
        }
    }
    assert_eq!(registry.count("HEAD", "/v2/*"), 1, "one HEAD per tagTtl");
    assert_eq!(registry.count("GET", "/v2/*"), 0);
    assert!(larder.names().is_empty(), "nothing is cached");
    registry.expect_unknown("/v2/*/manifests/absent");
    assert_eq!(larder.head(&manifest(REPOSITORY, "absent")).status, 404);
}

#[test]
fn pull_that_starts_with_head_is_cached_under_its_tag() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let digest = image.digest();
    registry.add(REPOSITORY, "other", &image);
    let larder = Larder::start(&registry);
    // containerd starts a pull like this.
    assert_eq!(larder.head(&manifest(REPOSITORY, "v1")).status, 200);
    assert!(larder.get(&manifest(REPOSITORY, &digest)).body == image.manifest());
    // The manifest is already cached under another tag.
    assert_eq!(larder.head(&manifest(REPOSITORY, "other")).status, 200);
    assert_eq!(registry.count("GET", "/v2/*"), 1);
    registry.stop();
    larder.advance(Duration::from_secs(7200));
    for tag in ["v1", "other"] {
        let got = larder.get(&manifest(REPOSITORY, tag));
        assert!(got.status == 200 && got.body == image.manifest(), "{tag}: {got:?}");
    }
}

#[test]
fn head_of_a_tag_falls_back_to_get_if_upstream_head_is_unusable() {
    for (name, fault) in [
        ("no digest", Fault::NoDigestHeader),
        ("405", Fault::HeadNotAllowed),
        ("404", Fault::status(404)),
        ("no length", Fault::NoContentLength),
        ("a length of nothing", Fault::ContentLength(0)),
        ("another type", Fault::content_type("application/json")),
    ] {
        let (registry, image) = FakeRegistry::with_image(REPOSITORY);
        let digest = image.digest();
        registry.fault(On::head_manifest("v1"), fault);
        let larder = Larder::start(&registry);
        let head = larder.head(&manifest(REPOSITORY, "v1"));
        assert_eq!(head.status, 200, "{name}: {head:?}");
        assert_eq!(head.header("content-type"), Some(media_type::OCI_MANIFEST), "{name}");
        assert_eq!(head.header("docker-content-digest"), Some(digest.as_str()), "{name}");
        let length = image.manifest().len().to_string();
        assert_eq!(head.header("content-length"), Some(length.as_str()), "{name}");
        assert_eq!(registry.count("GET", "/v2/*"), 1, "{name}");
    }
}

#[test]
fn location_is_parsed_as_browsers_do() {
    let content = bytes(5000, 1);
    let digest = digest_of(&content);
    for (path, location) in [
        ("/bucket/layer", "/v2/../bucket/./x/../layer?signature=abc"),
        ("/files/layer", "../../../../files/layer?signature=abc"),
        ("/layer", "../../../../../../layer?signature=abc"),
        ("/a b/\"c\"", "/a b/\"c\"?signature=abc"),
        ("/über", "/über?signature=abc"),
        ("/a/b", "/a%2Fb?signature=abc"),
        ("/layer", "/layer?signature=abc#fragment"),
    ] {
        let registry = FakeRegistry::start();
        registry.add_blob(REPOSITORY, &content);
        registry.add_file(path, "application/octet-stream", &content);
        registry.fault(On::get_blob(&digest), Fault::redirect_to(location));
        let larder = Larder::start(&registry);
        let got = larder.get(&blob(REPOSITORY, &digest));
        assert!(got.status == 200 && got.body == content, "{location}: {got:?}");
        let [_, asked] = &registry.requests()[..] else { panic!("{location}") };
        assert!(asked.path.is_ascii() && !asked.path.contains([' ', '"', '#']), "{}", asked.path);
        assert_eq!(asked.query_value("signature").as_deref(), Some("abc"), "{location}");
    }
}
