//! A cache directory and its configuration: filled by commands, served by a process, and made old.
//!
//! ```ignore
//! let site = Site::new(&registry, "cacheSize: 100kB");       // docker.io is the fake registry
//! site.load(&["alpine:3"]);
//! site.make_old();                                           // everything, by an hour
//! let server = site.serve();                                   // a process with its management port
//! assert_eq!(server.get("/api/v1/status").status, 200);
//! let (code, stdout, stderr) = site.run(&["prune", "*"]);    // a command beside it
//! ```

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::client::{self, Connection};
use super::larder::{blob, files, manifest, until};
use super::process::{Process, run};
use super::{FakeRegistry, Fault, Gate, Image, On, Publish, Response, bytes};

/// What [`Site::token`] puts into the token file.
pub const TOKEN: &str = "s3cret";
const HOUR: Duration = Duration::from_secs(3600);

/// See the file's own doc.
pub struct Site {
    directory: tempfile::TempDir,
    base: String,
}

/// A server and its management port.
pub struct RunningServer {
    pub process: Process,
    pub management: SocketAddr,
}

/// An image as one cache has it: its name for people, and its content.
pub struct Named<'a> {
    /// `alpine`, without registry and `library/`.
    pub repository: &'a str,
    pub tag: &'a str,
    pub image: &'a Image,
}

impl<'a> Named<'a> {
    pub fn new(repository: &'a str, tag: &'a str, image: &'a Image) -> Named<'a> {
        Named { repository, tag, image }
    }
}

impl Named<'_> {
    pub fn full(&self) -> String {
        format!("docker.io/library/{}:{}", self.repository, self.tag)
    }

    /// The repository as it stands in paths.
    pub fn path(&self) -> String {
        format!("library/{}", self.repository)
    }

    pub fn publish(&self, registry: &FakeRegistry) {
        registry.add(&self.path(), self.tag, self.image);
    }

    /// Config, layers and manifest.
    pub fn digests(&self) -> Vec<String> {
        let blobs = self.image.blobs();
        let mut digests: Vec<String> = blobs.into_iter().map(|each| each.digest).collect();
        digests.push(self.image.digest());
        digests
    }

    /// Pulls all of it, as clients do, and judges every byte.
    #[track_caller]
    pub fn pull(&self, from: SocketAddr) {
        let got = client::get(from, &manifest(&self.path(), self.tag));
        assert!(got.status == 200 && got.body == self.image.manifest(), "{got:?}");
        for each in self.image.blobs() {
            let got = client::get(from, &blob(&self.path(), &each.digest));
            assert!(got.status == 200 && got.complete && got.body == each.bytes, "{got:?}");
        }
    }
}

impl Site {
    /// Nothing is in the cache. `docker.io` is that registry, and nothing is fetched that nobody asks for.
    pub fn new(registry: &FakeRegistry, extra: &str) -> Site {
        let directory = tempfile::tempdir().expect("a directory");
        let base = format!(
            "fsync: false\nprefetch: false\nplatforms: [all]\nunlistedRegistries: deny\n\
             defaultNs: docker.io\nmanagement: {{port: 0, tokenFile: {}}}\n\
             registries: [{{name: docker.io, endpoints: [\"{}\"]}}]\n",
            directory.path().join("token").display(),
            registry.url("")
        );
        let site = Site { directory, base };
        fs::write(site.path("token"), format!("{TOKEN}\n")).expect("a file can be written");
        site.configure(extra);
        site
    }

    /// A registry that has a blob of a million bytes in `library/big`, of which so many come before a gate,
    /// once: with its content, its digest and the gate.
    pub fn gated(come: usize) -> (FakeRegistry, Site, Vec<u8>, String, Gate) {
        let registry = FakeRegistry::start();
        let site = Site::new(&registry, "");
        let content = bytes(1_000_000, 1);
        let digest = registry.add_blob("library/big", &content);
        let gate = Gate::new();
        registry.fault(On::get_blob(&digest).times(1), Fault::GateAfter(come, gate.clone()));
        (registry, site, content, digest, gate)
    }

    /// Replaces what was configured beside the registry.
    pub fn configure(&self, extra: &str) {
        Process::put_config(self.directory.path(), &format!("{}{extra}\n", self.base));
    }

    /// A file beside the cache directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The cache directory.
    pub fn root(&self) -> PathBuf {
        self.path("cache")
    }

    pub fn has(&self, digest: &str) -> bool {
        self.root().join("blobs").join(digest.replace(':', "/")).exists()
    }

    /// Whether all of an image is here.
    pub fn has_all(&self, named: &Named<'_>) -> bool {
        named.digests().iter().all(|digest| self.has(digest))
    }

    #[track_caller]
    pub fn wait_for(&self, named: &Named<'_>) {
        until(&format!("all of {}", named.full()), || self.has_all(named));
    }

    /// Runs a command to its end.
    pub fn run(&self, words: &[&str]) -> (Option<i32>, String, String) {
        let config = self.path("larder.yaml").display().to_string();
        let root = self.root().display().to_string();
        run(&[&["--config-file", &config, "--image-path", &root], words].concat())
    }

    /// Runs a command that must succeed. Returns what it prints.
    #[track_caller]
    pub fn run_ok(&self, words: &[&str]) -> String {
        let (code, stdout, stderr) = self.run(words);
        assert_eq!(code, Some(0), "{words:?}: {stdout}{stderr}");
        stdout
    }

    /// Puts images into the registry and into the cache, as old as [`Site::make_old`] makes them.
    #[track_caller]
    pub fn fill(&self, registry: &FakeRegistry, images: &[Named<'_>]) {
        images.iter().for_each(|each| each.publish(registry));
        let names: Vec<String> = images.iter().map(Named::full).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.run_ok(&[&["load", "--attempts", "1"], &names[..]].concat());
        self.make_old();
    }

    /// The full references that `larder list` shows.
    #[track_caller]
    pub fn listed(&self, words: &[&str]) -> Vec<String> {
        let text = self.run_ok(&[&["list", "--json"], words].concat());
        let all: Value = serde_json::from_str(&text).expect("JSON");
        let names = all.as_array().expect("a list").iter();
        names.map(|each| each["image"].as_str().expect("a name").to_owned()).collect()
    }

    /// Starts a server.
    pub fn serve(&self) -> RunningServer {
        let text = fs::read_to_string(self.path("larder.yaml")).expect("it was configured");
        let process = Process::serve_file(self.directory.path(), &text);
        let management = address_in(&process.banner, "management on http://");
        RunningServer { process, management }
    }
}

/// Age.
impl Site {
    /// Nothing was used for an hour, and no blob is younger than that.
    pub fn make_old(&self) {
        for directory in ["blobs", "refs"] {
            files(&self.root().join(directory)).iter().for_each(|path| set_back(path, HOUR));
        }
    }

    /// An image was not used for so many hours, by its tag and by its digest.
    pub fn unused_for(&self, named: &Named<'_>, hours: u32) {
        for path in [self.tag_record(named), self.manifest_record(named)] {
            set_back(&path, HOUR * hours);
        }
    }

    /// An image came into the cache so many hours ago.
    pub fn fetched_ago(&self, named: &Named<'_>, hours: u32) {
        for path in [self.tag_record(named), self.manifest_record(named)] {
            let text = fs::read_to_string(&path).expect("the record is there");
            let mut record: Value = serde_json::from_str(&text).expect("JSON");
            let before = record["fetched"].as_u64().expect("seconds");
            record["fetched"] = (before - u64::from(hours) * HOUR.as_secs()).into();
            fs::write(&path, record.to_string()).expect("a file can be written");
            set_back(&path, HOUR);
        }
    }

    fn repository(&self, named: &Named<'_>) -> PathBuf {
        self.root().join("refs/docker.io").join(named.path())
    }

    fn tag_record(&self, named: &Named<'_>) -> PathBuf {
        find(&self.repository(named), named.tag)
    }

    fn manifest_record(&self, named: &Named<'_>) -> PathBuf {
        find(&self.repository(named), named.image.digest().trim_start_matches("sha256:"))
    }
}

/// Asking the management port.
impl RunningServer {
    /// Where clients pull from.
    pub fn address(&self) -> SocketAddr {
        self.process.address
    }

    /// GET without a token.
    #[track_caller]
    pub fn get(&self, target: &str) -> Response {
        client::get(self.management, target)
    }

    /// The document at a path below `/api/v1/`.
    #[track_caller]
    pub fn api(&self, what: &str) -> Value {
        let got = self.get(&format!("/api/v1/{what}"));
        assert_eq!(got.status, 200, "{what}: {got:?}");
        got.json()
    }

    /// A request with the token, at a path below `/api/v1/`.
    #[track_caller]
    pub fn call(&self, method: &str, what: &str) -> Response {
        self.call_with_token(TOKEN, method, what)
    }

    /// A request with some token.
    #[track_caller]
    pub fn call_with_token(&self, token: &str, method: &str, what: &str) -> Response {
        let bearer = format!("Bearer {token}");
        let headers = [("Authorization", bearer.as_str())];
        client::request(self.management, method, &format!("/api/v1/{what}"), &headers)
    }

    /// The value of a line of the metrics; nothing if there is no such line.
    #[track_caller]
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Blocks until the disk was counted: before that there is no bound that anybody could reach.
    #[track_caller]
    pub fn wait_until_counted(&self) {
        until("a count of the disk", || self.api("status")["disk"]["usedBytes"].is_u64());
    }

    /// Waits until the list of images has that many, and returns it: it comes from a walk in the background,
    /// which writes the totals last.
    #[track_caller]
    pub fn wait_for_images(&self, many: u64) -> Value {
        until("the list of images", || self.api("status")["usage"]["images"] == many);
        self.api("images")
    }

    /// A GET on the serving port whose answer is read by nobody yet.
    #[track_caller]
    pub fn begin(&self, target: &str) -> Connection {
        let mut connection = Connection::open(self.address());
        connection.send("GET", target, &[]);
        connection
    }

    /// The first line of its log with these words, whether it comes yet or came before it listened.
    pub fn wait_for_log(&mut self, words: &str) -> String {
        let message =
            self.process.banner.lines().find(|line| line.contains(words)).map(str::to_owned);
        message.unwrap_or_else(|| self.process.wait_until_it_logs(words))
    }

    /// Ends the server, which must end well, and returns all that it has logged.
    #[track_caller]
    pub fn log(self) -> String {
        self.process.signal("TERM");
        let (status, log) = self.process.wait();
        assert!(status.success(), "{log}");
        log
    }
}

/// The address behind these words of a log.
#[track_caller]
pub fn address_in(log: &str, words: &str) -> SocketAddr {
    let (_, rest) = log.split_once(words).unwrap_or_else(|| panic!("{words} is not in:\n{log}"));
    let address = rest.split(['/', ' ', '\n']).next().unwrap_or_default();
    address.parse().expect("an address")
}

/// Lets a file have been written so long ago.
pub fn set_back(path: &Path, by: Duration) {
    let file = File::options().append(true).open(path).expect("the file is there");
    file.set_modified(SystemTime::now() - by).expect("its time can be set");
}

#[track_caller]
fn find(directory: &Path, name: &str) -> PathBuf {
    let found = files(directory).into_iter().find(|path| path.ends_with(name));
    found.unwrap_or_else(|| panic!("{name} is not in the cache"))
}

/// A path and its query.
pub fn escaped(text: &str) -> String {
    text.replace('/', "%2F").replace('@', "%40").replace('?', "%3F")
}

/// The names in a list of images.
pub fn names(list: &Value) -> Vec<String> {
    let images = list["images"].as_array().expect("images").iter();
    images.map(|each| each["image"].as_str().expect("a name").to_owned()).collect()
}

/// What a command has printed as JSON.
#[track_caller]
pub fn report(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}
