//! The scenarios, and the proof that the checks find missing syncs.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use nix::sys::signal::Signal;

use super::check::{Checker, Fact};
use super::record::{Recorder, Sync, Trace};
use super::states::{State, states};
use crate::site::{Site, pull};
use crate::support::bundle::{CONTAINERD_NAME, layout};
use crate::support::larder::blob;
use crate::support::site::NamedImage;
use crate::support::{Connection, FakeRegistry, Fault, Gate, Image, On, PATIENCE, bytes};
use crate::tracer::Program;

/// Random subsets at each point without `LARDER_CRASHES`.
const RANDOM: usize = 8;
/// Checkers of one scenario: most of their time is spent in system calls.
const THREADS: usize = 2;

/// What happened, and what the programs have confirmed at which time.
struct History {
    trace: Trace,
    facts: Vec<(usize, Fact)>,
    /// The images of the registry at the end.
    images: Vec<NamedImage>,
}

/// Runs programs one after the other and records what they do.
struct Session {
    registry: FakeRegistry,
    site: Site,
    recorder: Arc<Mutex<Recorder>>,
    facts: Vec<(usize, Fact)>,
}

impl Session {
    fn new(images: &[&NamedImage]) -> Session {
        let registry = FakeRegistry::start();
        images.iter().for_each(|image| image.publish(&registry));
        let site = Site::new(&registry, "");
        fs::create_dir(site.root()).expect("a new directory");
        let recorder = Arc::new(Mutex::new(Recorder::new(&site.root())));
        Session { registry, site, recorder, facts: Vec::new() }
    }

    fn note(&mut self, fact: Fact) {
        let now = self.recorder.lock().expect("no panic under the lock").now();
        self.facts.push((now, fact));
    }

    /// A server from its start to its end, during which clients pull these images.
    #[track_caller]
    fn serve(&mut self, images: &[&NamedImage]) {
        let (server, address) = self.site.serve(&self.recorder);
        let address = address.expect("a server");
        for image in images {
            let (wrong, missing) = pull(address, image, PATIENCE);
            assert!(wrong.is_empty() && missing.is_empty(), "{wrong:?} {missing:?}");
        }
        let (status, log) = server.stop(Signal::SIGTERM);
        assert!(status.success(), "{status}: {log}");
        // It has exited, and so it has committed everything.
        images.iter().for_each(|image| self.note(Fact::Cached((*image).clone())));
    }

    #[track_caller]
    fn run(&self, words: &[&str]) {
        let (status, log) = self.site.start(words, &self.recorder).wait();
        assert!(status.success(), "{words:?}: {status}: {log}");
    }

    #[track_caller]
    fn end(self, images: &[&NamedImage]) -> History {
        let recorder = self.recorder.lock().expect("no panic under the lock");
        assert!(recorder.unknown.is_empty(), "not modelled: {:#?}", recorder.unknown);
        let images = images.iter().map(|image| (*image).clone()).collect();
        History { trace: recorder.trace(), facts: self.facts, images }
    }
}

fn named(repository: &str, tag: &str, seed: u64) -> NamedImage {
    let image = Image::new(&format!("{repository}:{tag}:{seed}")).layer(bytes(1000, seed));
    NamedImage::new(repository, tag, &image.layer(bytes(90_000, seed + 1)))
}

/// An image whose last layer is large enough for a note beside its partial.
fn large(repository: &str, tag: &str, seed: u64) -> NamedImage {
    let image = Image::new(&format!("{repository}:{tag}:{seed}")).layer(bytes(1000, seed));
    NamedImage::new(repository, tag, &image.layer(bytes(600_000, seed + 1)))
}

/// Two pulls by servers that exit, the second one of a tag that has moved.
fn pulls() -> History {
    let (first, moved, other) =
        (named("app", "1", 1), named("app", "1", 10), named("other", "1", 20));
    let mut session = Session::new(&[&first, &other]);
    session.serve(&[&first, &other]);
    moved.publish(&session.registry);
    session.note(Fact::Moved(first));
    session.serve(&[&moved]);
    session.end(&[&moved, &other])
}

/// A server that is killed during a download, and one that resumes it.
fn resumes() -> History {
    let (app, other) = (large("app", "1", 1), named("other", "1", 10));
    let mut session = Session::new(&[&app, &other]);
    session.serve(&[&other]);
    let layer = app.image.layers().pop().expect("it has layers");
    let gate = Gate::new();
    session
        .registry
        .fault(On::get_blob(&layer.digest).times(1), Fault::GateAfter(70_000, gate.clone()));
    let (server, address) = session.site.serve(&session.recorder);
    let mut client = Connection::open(address.expect("a server"));
    client.send("GET", &app.target(), &[]);
    client.read_response();
    client.send("GET", &blob(&app.path(), &layer.digest), &[]);
    client.read_head();
    client.read_body(60_000);
    let (status, _) = server.stop(Signal::SIGKILL);
    assert!(status.signal().is_some());
    gate.open();
    session.serve(&[&app]);
    session.end(&[&app, &other])
}

/// A pull into directories that another program has created, and not synced: it was killed, or still runs.
fn abandoned() -> History {
    let app = named("app", "1", 1);
    let mut session = Session::new(&[&app]);
    let created = [
        "blobs/sha256",
        "refs/docker.io/library/app/_tags",
        "refs/docker.io/library/app/_manifests/sha256",
    ]
    .map(|path| session.site.root().join(path).display().to_string());
    let [blobs, tags, manifests] = &created;
    let made = Program::start("mkdir", &["-p", blobs, tags, manifests], &session.recorder).wait();
    assert!(made.0.success(), "{made:?}");
    session.serve(&[&app]);
    session.end(&[&app])
}

/// An import, pins, and a load.
fn commands() -> History {
    let (app, other) = (named("app", "1", 1), named("other", "1", 10));
    let mut session = Session::new(&[&app, &other]);
    let archive = session.site.path("archive.tar");
    fs::write(&archive, layout(CONTAINERD_NAME, &[(&app.full(), &app.image)])).expect("a file");
    session.run(&["import", &archive.display().to_string()]);
    session.note(Fact::Cached(app.clone()));
    for image in [&app, &other] {
        session.run(&["pin", &image.full()]);
        session.note(Fact::Pinned(image.full()));
    }
    session.run(&["load", "--attempts", "1", &other.full()]);
    session.note(Fact::Cached(other.clone()));
    session.end(&[&app, &other])
}

/// A prune, and a pull of the same image after it.
fn prunes() -> History {
    let (app, other) = (named("app", "1", 1), named("other", "1", 10));
    let mut session = Session::new(&[&app, &other]);
    session.serve(&[&app, &other]);
    session.note(Fact::MayBeRemoved(app.clone()));
    session.run(&["prune", &app.full()]);
    session.serve(&[&app]);
    session.end(&[&app, &other])
}

/// Checks all states of a history and returns what is wrong, at most `most` times.
fn refuted(history: &History, random: usize, most: usize) -> (String, Vec<String>) {
    let era = |at: usize| history.facts.iter().filter(|(since, _)| *since < at).count();
    let (crashes, states) = states(&history.trace, random, era);
    let moved = history.facts.iter().filter_map(|(_, fact)| match fact {
        Fact::Moved(image) => Some(image.clone()),
        _ => None,
    });
    let earlier: Vec<NamedImage> = moved.collect();
    // The last ones first: most is confirmed by then.
    let (next, found) = (Mutex::new(states.iter().rev()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut checker = Checker::new(&history.images, &earlier);
                while let Some(state) = take(&next) {
                    let problems = checker.problems(&history.trace, state, &history.facts);
                    let mut found = found.lock().expect("no panic under the lock");
                    if !problems.is_empty() {
                        found.push(described(history, state, &problems));
                    }
                    if found.len() >= most {
                        return;
                    }
                }
            });
        }
    });
    let count = format!("{crashes} crashes, {} different disks", states.len());
    (count, found.into_inner().expect("no panic under the lock"))
}

fn take<'a>(states: &Mutex<impl Iterator<Item = &'a State>>) -> Option<&'a State> {
    states.lock().expect("no panic under the lock").next()
}

fn described(history: &History, state: &State, problems: &[String]) -> String {
    let pending: Vec<String> = state
        .pending
        .iter()
        .map(|(number, fate)| format!("{fate:?}: {}", history.trace.operations[*number].effect))
        .collect();
    let State { model, at, .. } = state;
    format!("{model:?}, crash after call {at}; not synced: {pending:#?}; wrong: {problems:#?}")
}

#[track_caller]
fn survives(name: &str, history: &History) {
    let began = Instant::now();
    let random = std::env::var("LARDER_CRASHES").ok();
    let random = random.map_or(RANDOM, |text| text.parse().expect("LARDER_CRASHES is a number"));
    let (states, problems) = refuted(history, random, 5);
    println!(
        "{name}: {} changes, {} syncs, {states}, {:.0} s",
        history.trace.operations.len(),
        history.trace.syncs.len(),
        began.elapsed().as_secs_f64(),
    );
    assert!(problems.is_empty(), "{name}:\n{}", problems.join("\n"));
}

#[test]
fn pulls_survive_crashes() {
    survives("pulls", &pulls());
}

#[test]
fn resumed_downloads_survive_crashes() {
    survives("resumes", &resumes());
}

#[test]
fn content_in_directories_of_other_programs_survives_crashes() {
    survives("abandoned", &abandoned());
}

#[test]
fn imports_pins_and_loads_survive_crashes() {
    survives("commands", &commands());
}

#[test]
fn prunes_survive_crashes() {
    survives("prunes", &prunes());
}

/// Whether a file or directory is of a kind, by its path.
type IsOfKind = fn(&str) -> bool;

/// Kinds of syncs.
const KINDS: &[(&str, IsOfKind)] = &[
    ("downloaded blobs", |path| path.starts_with("partials/")),
    ("manifests, records, pins", |path| path.starts_with("incoming/")),
    ("the directory of blobs", |path| path == "blobs/sha256"),
    ("directories of tags", |path| path.ends_with("_tags")),
    ("directories of manifests", |path| path.contains("_manifests/")),
    ("the directories that every cache has", |path| matches!(path, "" | "blobs")),
    ("parents of new directories", |path| path == "refs" || path == "refs/docker.io"),
];

#[test]
fn each_kind_of_sync_is_needed() {
    let history = pulls();
    for (kind, is_of_kind) in KINDS {
        let all = history.trace.syncs.len();
        let syncs: Vec<Sync> =
            history.trace.syncs.iter().filter(|sync| !is_of_kind(&sync.path)).cloned().collect();
        let removed = all - syncs.len();
        assert!(removed > 0, "no sync of {kind} in {:#?}", history.trace.syncs);
        let trace = Trace { syncs, ..history.trace.clone() };
        let without =
            History { trace, facts: history.facts.clone(), images: history.images.clone() };
        let (states, problems) = refuted(&without, 1, 1);
        assert!(!problems.is_empty(), "nothing needs the syncs of {kind}: {states}");
        println!("without {removed} syncs of {kind}: refuted, among {states}");
    }
}
