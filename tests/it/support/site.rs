//! A cache directory with a configuration. Commands fill it, a process serves it, and tests can age its content.
//!
//! ```ignore
//! // docker.io is the fake registry, which has both images; the cache has them too, an hour old.
//! let (registry, site, images) = Site::with_samples(&["alpine:3", "alpine:edge"]);
//! site.configure("cacheSize: 100kB");
//! site.unused_for(&images[0], 30);                           // hours
//! let server = site.serve();                                 // a process with its management port
//! images[1].pull(server.address());
//! assert_eq!(server.api("status")["ready"], true);
//! let (code, stdout, stderr) = site.run(&["prune", "*"]);    // a command next to the server
//! ```
//!
//! [`Site::new`] and [`Site::empty`] start with an empty cache, [`Site::filled`] with the images that the test supplies.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::client::{self, Connection};
use super::larder::{blob, files, manifest, until};
use super::process::{Process, address_in, run};
use super::{FakeRegistry, Fault, Gate, Image, On, Publish, Response, bytes};

/// The content of the token file.
pub const TOKEN: &str = "s3cret";
const HOUR: Duration = Duration::from_secs(3600);

/// See the module documentation.
pub struct Site {
    directory: tempfile::TempDir,
    base: String,
}

/// A server process and the address of its management port.
pub struct RunningServer {
    pub process: Process,
    pub management: SocketAddr,
}

/// An image and its name in the registry and in the cache.
#[derive(Clone)]
pub struct NamedImage {
    /// Without registry and `library/`: `alpine`.
    repository: String,
    tag: String,
    pub image: Image,
}

impl NamedImage {
    pub fn new(repository: &str, tag: &str, image: &Image) -> NamedImage {
        NamedImage { repository: repository.to_owned(), tag: tag.to_owned(), image: image.clone() }
    }

    /// The full reference.
    pub fn full(&self) -> String {
        format!("docker.io/library/{}:{}", self.repository, self.tag)
    }

    /// The repository as it appears in paths.
    pub fn path(&self) -> String {
        format!("library/{}", self.repository)
    }

    /// The path of the manifest by its tag.
    pub fn target(&self) -> String {
        manifest(&self.path(), &self.tag)
    }

    pub fn publish(&self, registry: &FakeRegistry) {
        registry.add(&self.path(), &self.tag, &self.image);
    }

    /// The digests of config, layers and manifest.
    pub fn digests(&self) -> Vec<String> {
        let blobs = self.image.blobs();
        let mut digests: Vec<String> = blobs.into_iter().map(|each| each.digest).collect();
        digests.push(self.image.digest());
        digests
    }

    /// Pulls the image as clients do and checks every byte.
    #[track_caller]
    pub fn pull(&self, from: SocketAddr) {
        let got = client::get(from, &self.target());
        assert!(got.status == 200 && got.body == self.image.manifest(), "{got:?}");
        for each in self.image.blobs() {
            let got = client::get(from, &blob(&self.path(), &each.digest));
            assert!(got.status == 200 && got.complete && got.body == each.bytes, "{got:?}");
        }
    }
}

impl Site {
    /// An empty cache. `docker.io` is `registry`, prefetching is off, and unlisted registries are denied.
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

    /// The same with prefetching.
    pub fn with_prefetch(registry: &FakeRegistry) -> Site {
        let mut site = Site::new(registry, "");
        site.base = site.base.replace("prefetch: false", "prefetch: true");
        site.configure("");
        site
    }

    /// An empty registry and an empty cache, with this configuration in addition.
    pub fn empty(extra: &str) -> (FakeRegistry, Site) {
        let registry = FakeRegistry::start();
        let site = Site::new(&registry, extra);
        (registry, site)
    }

    /// A registry and a cache that both hold these images. Names are like `app:1`; the content of the cache is as
    /// old as [`Site::make_old`] makes it.
    #[track_caller]
    pub fn filled(images: &[(&str, &Image)]) -> (FakeRegistry, Site, Vec<NamedImage>) {
        let (registry, site) = Site::empty("");
        let named = |(name, image): &(&str, &Image)| {
            let (repository, tag) = name.split_once(':').expect("a name with a tag");
            NamedImage::new(repository, tag, image)
        };
        let images: Vec<NamedImage> = images.iter().map(named).collect();
        site.fill(&registry, &images);
        (registry, site, images)
    }

    /// As [`Site::filled`], with a different sample image for each name.
    #[track_caller]
    pub fn with_samples(names: &[&str]) -> (FakeRegistry, Site, Vec<NamedImage>) {
        let images: Vec<Image> = names.iter().copied().map(Image::sample).collect();
        let images: Vec<(&str, &Image)> = names.iter().copied().zip(&images).collect();
        Site::filled(&images)
    }

    /// A registry with a blob of one million bytes in `library/big`, and an empty cache. The first download stops at
    /// a gate after `sent` bytes. Returns the content, its digest and the gate as well.
    pub fn gated(sent: usize) -> (FakeRegistry, Site, Vec<u8>, String, Gate) {
        let (registry, content, digest) = FakeRegistry::with_blob("library/big", 1_000_000);
        let site = Site::new(&registry, "");
        let gate = Gate::new();
        registry.fault(On::get_blob(&digest).times(1), Fault::GateAfter(sent, gate.clone()));
        (registry, site, content, digest, gate)
    }

    /// Replaces the configuration, except for the registry and the management port.
    pub fn configure(&self, extra: &str) {
        Process::put_config(self.directory.path(), &format!("{}{extra}\n", self.base));
    }

    /// A path next to the cache directory.
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

    /// Whether the cache has the complete image.
    pub fn has_all(&self, named: &NamedImage) -> bool {
        named.digests().iter().all(|digest| self.has(digest))
    }

    #[track_caller]
    pub fn wait_for(&self, named: &NamedImage) {
        until(&format!("{} to be complete", named.full()), || self.has_all(named));
    }

    /// Runs a command and waits for it to exit.
    pub fn run(&self, words: &[&str]) -> (Option<i32>, String, String) {
        let config = self.path("larder.yaml").display().to_string();
        let root = self.root().display().to_string();
        run(&[&["--config-file", &config, "--image-path", &root], words].concat())
    }

    /// Runs a command that must succeed, and returns its standard output.
    #[track_caller]
    pub fn run_ok(&self, words: &[&str]) -> String {
        let (code, stdout, stderr) = self.run(words);
        assert_eq!(code, Some(0), "{words:?}: {stdout}{stderr}");
        stdout
    }

    /// Adds images to the registry and to the cache, and ages the cache with [`Site::make_old`].
    #[track_caller]
    pub fn fill(&self, registry: &FakeRegistry, images: &[NamedImage]) {
        images.iter().for_each(|each| each.publish(registry));
        let names: Vec<String> = images.iter().map(NamedImage::full).collect();
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
        let text = fs::read_to_string(self.path("larder.yaml")).expect("a configuration");
        let process = Process::serve_file(self.directory.path(), &text);
        let management = address_in(&process.banner, "serving the management port", "management");
        RunningServer { process, management }
    }
}

/// The age of the content.
impl Site {
    /// Sets the last use of everything, and the age of every blob, to one hour ago.
    pub fn make_old(&self) {
        for directory in ["blobs", "refs"] {
            files(&self.root().join(directory)).iter().for_each(|path| set_back(path, HOUR));
        }
    }

    /// Sets the last use of an image, by its tag and by its digest, to `hours` ago.
    pub fn unused_for(&self, named: &NamedImage, hours: u32) {
        for path in [self.tag_record(named), self.manifest_record(named)] {
            set_back(&path, HOUR * hours);
        }
    }

    /// Makes an image appear to have been fetched `hours` earlier.
    pub fn fetched_ago(&self, named: &NamedImage, hours: u32) {
        for path in [self.tag_record(named), self.manifest_record(named)] {
            let text = fs::read_to_string(&path).expect("an existing record");
            let mut record: Value = serde_json::from_str(&text).expect("JSON");
            let before = record["fetched"].as_u64().expect("seconds");
            record["fetched"] = (before - u64::from(hours) * HOUR.as_secs()).into();
            fs::write(&path, record.to_string()).expect("a file can be written");
            set_back(&path, HOUR);
        }
    }

    fn repository(&self, named: &NamedImage) -> PathBuf {
        self.root().join("refs/docker.io").join(named.path())
    }

    fn tag_record(&self, named: &NamedImage) -> PathBuf {
        find(&self.repository(named), &named.tag)
    }

    fn manifest_record(&self, named: &NamedImage) -> PathBuf {
        find(&self.repository(named), named.image.digest().trim_start_matches("sha256:"))
    }
}

/// Requests to the server and its log.
impl RunningServer {
    /// The serving port.
    pub fn address(&self) -> SocketAddr {
        self.process.address
    }

    /// GET on the management port without a token.
    #[track_caller]
    pub fn get(&self, target: &str) -> Response {
        client::get(self.management, target)
    }

    /// The JSON document at a path below `/api/v1/`.
    #[track_caller]
    pub fn api(&self, what: &str) -> Value {
        let got = self.get(&format!("/api/v1/{what}"));
        assert_eq!(got.status, 200, "{what}: {got:?}");
        got.json()
    }

    /// A request with the token to a path below `/api/v1/`.
    #[track_caller]
    pub fn call(&self, method: &str, what: &str) -> Response {
        self.call_with_token(TOKEN, method, what)
    }

    /// As [`RunningServer::call`], with another token.
    #[track_caller]
    pub fn call_with_token(&self, token: &str, method: &str, what: &str) -> Response {
        let bearer = format!("Bearer {token}");
        let headers = [("Authorization", bearer.as_str())];
        client::request(self.management, method, &format!("/api/v1/{what}"), &headers)
    }

    /// The value of a series in `/metrics`; 0 if there is none.
    #[track_caller]
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Blocks until disk usage has been counted. The limits are not enforced before that.
    #[track_caller]
    pub fn wait_until_counted(&self) {
        until("disk usage to be counted", || self.api("status")["disk"]["usedBytes"].is_u64());
    }

    /// Waits until the list has `many` images, and returns it. A background walk builds the list and writes the
    /// totals last.
    #[track_caller]
    pub fn wait_for_images(&self, many: u64) -> Value {
        until("the expected number of images", || self.api("status")["usage"]["images"] == many);
        self.api("images")
    }

    /// Sends a GET to the serving port without reading the response.
    #[track_caller]
    pub fn begin(&self, target: &str) -> Connection {
        let mut connection = Connection::open(self.address());
        connection.send("GET", target, &[]);
        connection
    }

    /// The first line of the log that contains `words`, including lines from before the server was ready.
    pub fn wait_for_log(&mut self, words: &str) -> String {
        let message =
            self.process.banner.lines().find(|line| line.contains(words)).map(str::to_owned);
        message.unwrap_or_else(|| self.process.wait_until_it_logs(words))
    }

    /// Stops the server, which must exit successfully, and returns its complete log.
    #[track_caller]
    pub fn log(self) -> String {
        self.process.signal("TERM");
        let (status, log) = self.process.wait();
        assert!(status.success(), "{log}");
        log
    }
}

/// Sets the modification time of a file to `by` ago.
pub fn set_back(path: &Path, by: Duration) {
    let file = File::options().append(true).open(path).expect("an existing file");
    file.set_modified(SystemTime::now() - by).expect("a settable modification time");
}

#[track_caller]
fn find(directory: &Path, name: &str) -> PathBuf {
    let found = files(directory).into_iter().find(|path| path.ends_with(name));
    found.unwrap_or_else(|| panic!("{name} is not in the cache"))
}

/// Percent-encodes an image name for use in a query.
pub fn escaped(text: &str) -> String {
    text.replace('/', "%2F").replace('@', "%40").replace('?', "%3F")
}

/// The names in a list of images.
pub fn names(list: &Value) -> Vec<String> {
    let images = list["images"].as_array().expect("images").iter();
    images.map(|each| each["image"].as_str().expect("a name").to_owned()).collect()
}

/// Parses the JSON output of a command.
#[track_caller]
pub fn report(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}
