//! Events: in the log, the API and the metrics, and at a webhook. Proves docs/management.md, "Events".

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use larder::cache::Prefetch;
use larder::events::EventType;
use serde_json::{Value, json};

use crate::support::PATIENCE;
use crate::support::client::get;
use crate::support::larder::{manifest, seconds, until};
use crate::support::site::{NamedImage, Site};
use crate::support::{FakeRegistry, Fault, Image, Larder, On, Publish};

/// Accepts events, until the test ends.
struct Receiving {
    address: SocketAddr,
    received: Receiver<(String, Value)>,
}

impl Receiving {
    fn start() -> Receiving {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let (sender, received) = channel();
        thread::spawn(move || {
            for socket in listener.incoming() {
                let socket = socket.expect("a connection");
                let sender = sender.clone();
                thread::spawn(move || {
                    while let Some(request) = read_request(&socket) {
                        let answer = b"HTTP/1.1 204 No Content\r\n\r\n";
                        (&socket).write_all(answer).expect("a client that reads");
                        if sender.send(request).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Receiving { address, received }
    }

    /// The head and the body of the next request.
    fn next(&self) -> (String, Value) {
        self.received.recv_timeout(PATIENCE).expect("an event")
    }
}

fn read_request(socket: &TcpStream) -> Option<(String, Value)> {
    let (mut reader, mut head, mut length) = (BufReader::new(socket), String::new(), 0);
    loop {
        let start = head.len();
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
        let line = head[start..].to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((head, serde_json::from_slice(&body).ok()?))
}

#[test]
fn moved_tag_is_in_the_log_the_api_and_the_metrics_and_sent_to_the_webhook() {
    let webhook = Receiving::start();
    let (registry, site, images) = Site::with_samples(&["app:1"]);
    let token = site.path("token");
    fs::write(&token, "s3cret\n").expect("a file");
    site.configure(&format!(
        "tagTtl: always\nevents: {{webhook: 'http://{}/hook?key=secret', types: [tag-moved], tokenFile: {}}}",
        webhook.address,
        token.display()
    ));
    let server = site.serve();
    let old = images[0].image.digest();
    let moved = NamedImage::new("app", "1", &Image::sample("moved"));
    moved.publish(&registry);
    moved.pull(server.address());
    let new = moved.image.digest();

    let (head, event) = webhook.next();
    let head = head.to_ascii_lowercase();
    assert!(head.starts_with("post /hook?key=secret http/1.1"), "{head}");
    assert!(head.contains("authorization: bearer s3cret\r\n"), "{head}");
    assert!(head.contains("content-type: application/cloudevents+json\r\n"), "{head}");
    for (key, expected) in [
        ("specversion", json!("1.0")),
        ("type", json!("larder.tag-moved")),
        ("subject", json!("docker.io/library/app:1")),
        ("datacontenttype", json!("application/json")),
        ("data", json!({"from": old, "to": new})),
    ] {
        assert_eq!(event[key], expected, "{event}");
    }
    assert!(event["id"].as_str().is_some_and(|id| id.starts_with("larder-")), "{event}");
    assert!(event["source"].as_str().is_some_and(|source| source.starts_with("/larder/")));

    let events = server.api("events")["events"].clone();
    let is_move = |event: &&Value| event["type"] == "tag-moved";
    let listed = events.as_array().expect("events").iter().find(is_move).expect("the move");
    assert_eq!(listed["details"], json!({"from": old, "to": new}));
    assert_eq!(listed["time"], event["time"]);
    assert_eq!(server.metric("larder_events_total{type=\"tag-moved\"}"), 1.0);
    assert_eq!(server.metric("larder_events_dropped_total"), 0.0);
    let image = server.api("image?image=app:1");
    assert_eq!(image["previous"][0]["digest"], json!(old));
    let log = server.log();
    let line = format!("tag moved image=docker.io/library/app:1 from={old} to={new}");
    assert!(log.contains(&line), "{log}");
    assert!(!log.contains("secret") && !log.contains("s3cret"), "{log}");
}

#[test]
fn registry_that_goes_down_and_comes_back_is_reported_once_each() {
    let (registry, site, images) = Site::with_samples(&["app:1"]);
    site.configure("tagTtl: always\nnegativeTtl: 0");
    let server = site.serve();
    let of_types = |events: &Value, types: &[&str]| -> Vec<String> {
        let events = events["events"].as_array().expect("events").iter().rev();
        let texts = events.map(|event| event["type"].as_str().expect("a type").to_owned());
        texts.filter(|text| types.contains(&text.as_str())).collect()
    };
    let reported = |server: &crate::support::site::RunningServer| {
        of_types(&server.api("events"), &["registry-down", "registry-up"])
    };
    registry.fault(On::anything(), Fault::ResetBeforeHead);
    until("the registry to count as down", || {
        get(server.address(), &images[0].target());
        reported(&server) == ["registry-down"]
    });
    registry.clear_faults();
    until("the registry to be used again", || {
        get(server.address(), &images[0].target());
        reported(&server) == ["registry-down", "registry-up"]
    });
}

#[test]
fn damage_and_complete_images_are_recorded() {
    let registry = FakeRegistry::start();
    let image = Image::sample("complete");
    registry.add("team/app", "v1", &image);
    let larder = Larder::start_with(&registry, |settings| {
        settings.cache.prefetch = Prefetch::default();
    });
    larder.get(&manifest("team/app", "v1"));
    let blobs = Publish::blobs(&image);
    blobs.iter().for_each(|each| larder.wait_until_cached(&each.digest));
    let recorded = |is: EventType, subject: &str| {
        let events = larder.cache().events().recent_events();
        events.iter().any(|each| each.event.is == is && each.event.subject.contains(subject))
    };
    until("the image to be complete", || {
        larder.advance(seconds(10));
        larder.cache().complete_due_images();
        recorded(EventType::ImageComplete, &image.digest())
    });
    let record = larder.names().into_iter().find(|path| path.ends_with("_tags/v1"));
    fs::write(record.expect("a tag"), "{").expect("a file");
    // A manifest in memory is served for a second.
    larder.advance(seconds(2));
    assert_eq!(larder.get(&manifest("team/app", "v1")).status, 200);
    assert!(recorded(EventType::Damaged, "team/app/_tags/v1"));
}
