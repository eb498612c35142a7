//! The clients: what container runtimes and tools do, and what clients with bad networks do.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::context::{Guarded, Phase, Soak};
use crate::judge::Asked;
use crate::random::Random;
use crate::report::lock;
use crate::wire::{Connection, Reading, Reply};
use crate::world::{Image, OCI_INDEX, REPOSITORIES, TAGS, digest_of};

/// The pause of a client between two pulls. It bounds the load on a machine that others use too.
const PAUSE_MS: usize = 260;
/// How many clients pull the same blob at the same moment.
const CROWD: usize = 5;
/// The pause between two pulls of a pinned image.
const GUARD_PAUSE: Duration = Duration::from_millis(400);

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pull,
    PullByDigest,
    Ranges,
    Heads,
    Conditional,
    Tags,
    Referrers,
    Ping,
    Unknown,
    Crowd,
    Disconnect,
    Slow,
}

impl Kind {
    fn pick(random: &mut Random, phase: Phase) -> Kind {
        // The bytes that a client received before it left are unknown, so these kinds are not counted.
        let kinds = if phase == Phase::Calm { 16 } else { 20 };
        match random.below(kinds) {
            0..=4 => Kind::Pull,
            5 | 6 => Kind::PullByDigest,
            7 | 8 => Kind::Ranges,
            9 => Kind::Heads,
            10 => Kind::Conditional,
            11 => Kind::Tags,
            12 => Kind::Referrers,
            13 => Kind::Ping,
            14 => Kind::Unknown,
            15 => Kind::Crowd,
            16..=18 => Kind::Disconnect,
            _ => Kind::Slow,
        }
    }
}

/// Runs one client until the end of the run.
pub fn run(soak: &Soak, number: usize) {
    let mut random = Random::new(soak.seed, &format!("client {number}"));
    while soak.as_client(|| {
        let kind = Kind::pick(&mut random, soak.phase());
        soak.tally.add(&format!("client {kind:?}"), 1);
        let client = Client { soak, form: random.below(4), random: &mut random };
        client.act(kind);
        soak.rest(Duration::from_millis(random.between(10, PAUSE_MS) as u64));
    }) {}
}

/// Pulls pinned images until the end of the run.
pub fn guard(soak: &Soak) {
    let mut random = Random::new(soak.seed, "guard");
    while soak.as_client(|| {
        let guarded = random.pick(&lock(&soak.guarded)).cloned();
        if let Some(guarded) = guarded {
            pull_guarded(soak, &guarded, &mut random);
        }
        soak.rest(GUARD_PAUSE);
    }) {}
}

/// Pulls a pinned image. It must be in the cache, whatever the registry does.
pub fn pull_guarded(soak: &Soak, guarded: &Guarded, random: &mut Random) {
    let client = Client { soak, form: random.below(4), random };
    let Some(mut connection) = client.connect(true) else { return };
    let image = &guarded.image;
    let mut parts = vec![(true, guarded.tag.clone()), (true, image.top.digest.clone())];
    parts.extend(image.children.iter().map(|child| (true, child.digest.clone())));
    parts.extend(image.blobs.iter().map(|blob| (false, blob.digest.clone())));
    for (is_manifest, reference) in parts {
        let kind = if is_manifest { "manifests" } else { "blobs" };
        let target = client.target(&image.repository, kind, &reference);
        let mut asked = soak.asked("GET", &target, &image.repository, &reference);
        asked.is_pinned = true;
        let Some(reply) = client.ask(&mut connection, &asked, Vec::new(), Reading::Complete) else {
            return;
        };
        let is_right = match is_manifest {
            true => soak.judge_manifest(&asked, &reply),
            false => soak.judge_blob(&asked, &reply),
        };
        if !is_right {
            return;
        }
    }
    soak.tally.add("pinned pulls", 1);
}

struct Client<'a> {
    soak: &'a Soak,
    /// How it names the registry.
    form: usize,
    random: &'a mut Random,
}

impl Client<'_> {
    fn act(mut self, kind: Kind) {
        let repository = *self.random.pick(&REPOSITORIES).unwrap_or(&REPOSITORIES[0]);
        let tag = *self.random.pick(&TAGS).unwrap_or(&TAGS[0]);
        match kind {
            Kind::Pull => self.pull(repository, tag),
            Kind::PullByDigest => {
                if let Some(image) = self.image(repository) {
                    self.pull(repository, &image.top.digest);
                }
            }
            Kind::Ranges => self.ranges(repository),
            Kind::Heads => self.heads(repository, tag),
            Kind::Conditional => self.conditional(repository, tag),
            Kind::Tags => self.list(repository, "tags"),
            Kind::Referrers => self.list(repository, "referrers"),
            Kind::Ping => self.ping(),
            Kind::Unknown => self.unknown(repository),
            Kind::Crowd => self.crowd(repository),
            Kind::Disconnect => {
                self.one_blob(repository, |random, length| Reading::Part(random.below(length + 1)))
            }
            Kind::Slow => self.one_blob(repository, |random, length| {
                let pieces = random.between(3, 12);
                Reading::Slowly(
                    length / pieces + 1,
                    Duration::from_millis(random.between(50, 250) as u64),
                )
            }),
        }
    }

    fn connect(&self, is_pinned: bool) -> Option<Connection> {
        let mut asked = self.soak.asked("CONNECT", "", "", "");
        asked.is_pinned = is_pinned;
        let opened = Connection::open(self.soak.server.site.address);
        opened.inspect_err(|error| self.soak.judge_silence(&asked, error)).ok()
    }

    /// The path of content, in one of the forms in which clients name the registry.
    fn target(&self, repository: &str, kind: &str, reference: &str) -> String {
        let registry = self.soak.server.site.registry;
        match self.form {
            0 => format!("/v2/{repository}/{kind}/{reference}?ns={registry}"),
            1 => format!("/v2/hub/{repository}/{kind}/{reference}"),
            _ => format!("/v2/{repository}/{kind}/{reference}"),
        }
    }

    fn ask(
        &self,
        connection: &mut Connection,
        asked: &Asked<'_>,
        mut headers: Vec<(&str, String)>,
        reading: Reading,
    ) -> Option<Reply> {
        if self.form == 2 {
            headers.push(("OCI-Namespace", self.soak.server.site.registry.to_string()));
        }
        headers.push(("User-Agent", "soak".into()));
        let reply =
            connection.ask(asked.method, asked.target, &headers, reading, &self.soak.tampering);
        reply.inspect_err(|error| self.soak.judge_silence(asked, error)).ok()
    }

    fn manifest(
        &self,
        connection: &mut Connection,
        repository: &str,
        reference: &str,
    ) -> Option<Reply> {
        let target = self.target(repository, "manifests", reference);
        let asked = self.soak.asked("GET", &target, repository, reference);
        let reply = self.ask(connection, &asked, Vec::new(), Reading::Complete)?;
        self.soak.judge_manifest(&asked, &reply).then_some(reply)
    }

    /// A pull as a runtime does it: the manifest, that of the platform, config and layers.
    fn pull(&mut self, repository: &str, reference: &str) {
        let Some(mut connection) = self.connect(false) else { return };
        let Some(mut reply) = self.manifest(&mut connection, repository, reference) else { return };
        if reply.header("content-type") == Some(OCI_INDEX) {
            let children = digests(&reply.body, &["manifests"]);
            let Some(child) = self.random.pick(&children).cloned() else { return };
            let Some(below) = self.manifest(&mut connection, repository, &child) else { return };
            reply = below;
        }
        for digest in digests(&reply.body, &["config", "layers"]) {
            let target = self.target(repository, "blobs", &digest);
            let asked = self.soak.asked("GET", &target, repository, &digest);
            let Some(reply) = self.ask(&mut connection, &asked, Vec::new(), Reading::Complete)
            else {
                return;
            };
            if !self.soak.judge_blob(&asked, &reply) {
                return;
            }
        }
        self.soak.tally.add("pulls", 1);
    }

    fn image(&mut self, repository: &str) -> Option<Arc<Image>> {
        let images = self.soak.world.images(repository);
        self.random.pick(&images).cloned()
    }

    /// Ranges of one blob: `a-b`, `a-` and `-n`.
    fn ranges(&mut self, repository: &str) {
        let Some(image) = self.image(repository) else { return };
        let Some(blob) = self.random.pick(&image.blobs).cloned() else { return };
        let Some(mut connection) = self.connect(false) else { return };
        let target = self.target(repository, "blobs", &blob.digest);
        for _ in 0..3 {
            let (first, length) = (self.random.below(blob.bytes.len()), blob.bytes.len());
            let last = self.random.between(first, length + 10);
            let range = match self.random.below(3) {
                0 => format!("bytes={first}-{last}"),
                1 => format!("bytes={first}-"),
                _ => format!("bytes=-{}", last.max(1)),
            };
            let asked = self.soak.asked("GET", &target, repository, &blob.digest);
            let Some(reply) =
                self.ask(&mut connection, &asked, vec![("Range", range)], Reading::Complete)
            else {
                return;
            };
            if !self.soak.judge_blob(&asked, &reply) {
                return;
            }
        }
    }

    fn heads(&mut self, repository: &str, tag: &str) {
        let Some(mut connection) = self.connect(false) else { return };
        let target = self.target(repository, "manifests", tag);
        let asked = self.soak.asked("HEAD", &target, repository, tag);
        let Some(reply) = self.ask(&mut connection, &asked, Vec::new(), Reading::Complete) else {
            return;
        };
        self.soak.judge_manifest(&asked, &reply);
        let Some(blob) =
            self.image(repository).and_then(|image| self.random.pick(&image.blobs).cloned())
        else {
            return;
        };
        let target = self.target(repository, "blobs", &blob.digest);
        let asked = self.soak.asked("HEAD", &target, repository, &blob.digest);
        let Some(reply) = self.ask(&mut connection, &asked, Vec::new(), Reading::Complete) else {
            return;
        };
        self.soak.judge_blob(&asked, &reply);
    }

    fn conditional(&mut self, repository: &str, tag: &str) {
        let Some(mut connection) = self.connect(false) else { return };
        let Some(first) = self.manifest(&mut connection, repository, tag) else { return };
        let digest = digest_of(&first.body);
        let target = self.target(repository, "manifests", &digest);
        let asked = self.soak.asked("GET", &target, repository, &digest);
        let condition = vec![("If-None-Match", format!("\"{digest}\""))];
        let Some(reply) = self.ask(&mut connection, &asked, condition, Reading::Complete) else {
            return;
        };
        self.soak.judge_manifest(&asked, &reply);
        if reply.status == 200 {
            self.soak.finding("unconditional", &format!("{target} ignores If-None-Match"), "");
        }
    }

    fn list(&mut self, repository: &str, route: &'static str) {
        let Some(mut connection) = self.connect(false) else { return };
        let (target, reference) = match (route, self.image(repository)) {
            ("referrers", Some(image)) => {
                (self.target(repository, "referrers", &image.top.digest), image.top.digest.clone())
            }
            _ => (self.target(repository, "tags", "list"), String::new()),
        };
        let route = if reference.is_empty() { "tags" } else { route };
        let asked = self.soak.asked("GET", &target, repository, &reference);
        let Some(reply) = self.ask(&mut connection, &asked, Vec::new(), Reading::Complete) else {
            return;
        };
        self.soak.judge_list(route, &asked, &reply);
    }

    fn ping(&self) {
        let Some(mut connection) = self.connect(false) else { return };
        let asked = self.soak.asked("GET", "/v2/", "", "");
        let Some(reply) = self.ask(&mut connection, &asked, Vec::new(), Reading::Complete) else {
            return;
        };
        self.soak.count("ping", &asked, &reply);
        if reply.status != 200 || !reply.is_complete {
            self.soak.finding("ping", &format!("status {}", reply.status), "");
        }
    }

    fn unknown(&mut self, repository: &str) {
        let Some(mut connection) = self.connect(false) else { return };
        let absent = digest_of(&self.random.next().to_le_bytes());
        let tag = format!("no-such-{}", self.random.below(1000));
        for (route, kind, reference) in
            [("manifest", "manifests", &tag), ("blob", "blobs", &absent)]
        {
            let target = self.target(repository, kind, reference);
            let asked = self.soak.asked("GET", &target, repository, reference);
            let Some(reply) = self.ask(&mut connection, &asked, Vec::new(), Reading::Complete)
            else {
                return;
            };
            self.soak.judge_unknown(route, &asked, &reply);
        }
    }

    /// Several clients of one blob, which share its download.
    fn crowd(&mut self, repository: &str) {
        let Some(image) = self.image(repository) else { return };
        let Some(blob) = self.random.pick(&image.blobs).cloned() else { return };
        let seeds: Vec<u64> = (0..CROWD).map(|_| self.random.next()).collect();
        thread::scope(|scope| {
            for seed in seeds {
                let (soak, form, digest) = (self.soak, self.form, &blob.digest);
                scope.spawn(move || {
                    let mut random = Random::new(seed, "crowd");
                    let client = Client { soak, form, random: &mut random };
                    let Some(mut connection) = client.connect(false) else { return };
                    let target = client.target(repository, "blobs", digest);
                    let asked = soak.asked("GET", &target, repository, digest);
                    let reply = client.ask(&mut connection, &asked, Vec::new(), Reading::Complete);
                    if let Some(reply) = reply {
                        soak.judge_blob(&asked, &reply);
                    }
                });
            }
        });
    }

    /// One blob, read in an unusual way.
    fn one_blob(&mut self, repository: &str, reading: impl Fn(&mut Random, usize) -> Reading) {
        let Some(image) = self.image(repository) else { return };
        let Some(blob) = self.random.pick(&image.blobs).cloned() else { return };
        let Some(mut connection) = self.connect(false) else { return };
        let target = self.target(repository, "blobs", &blob.digest);
        let asked = self.soak.asked("GET", &target, repository, &blob.digest);
        let reading = reading(self.random, blob.bytes.len());
        let Some(reply) = self.ask(&mut connection, &asked, Vec::new(), reading) else { return };
        self.soak.judge_blob(&asked, &reply);
    }
}

/// The digests in these fields of a manifest.
fn digests(manifest: &[u8], fields: &[&str]) -> Vec<String> {
    let json: serde_json::Value = serde_json::from_slice(manifest).unwrap_or_default();
    let mut found = Vec::new();
    for field in fields {
        let entries = match &json[*field] {
            serde_json::Value::Array(entries) => entries.clone(),
            other => vec![other.clone()],
        };
        found.extend(entries.iter().filter_map(|entry| Some(entry["digest"].as_str()?.to_owned())));
    }
    found
}
