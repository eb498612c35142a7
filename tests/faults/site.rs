//! A cache directory in memory, a scripted registry, and the program on both.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::client::{self, Received};
use crate::support::larder::{blob, files};
use crate::support::process::{LARDER, larder};
use crate::support::site::NamedImage;
use crate::support::{FakeRegistry, PATIENCE, Publish};
use crate::tracer::{Program, Watch};

/// A directory in memory if there is one: syncing costs nothing there.
pub fn fast_directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let directory = match memory.is_dir() {
        true => tempfile::tempdir_in(memory),
        false => tempfile::tempdir(),
    };
    directory.expect("a temporary directory")
}

/// See the module documentation.
pub struct Site {
    directory: tempfile::TempDir,
}

impl Site {
    /// An empty cache, with `registry` as `docker.io`.
    pub fn new(registry: &FakeRegistry, extra: &str) -> Site {
        let site = Site { directory: fast_directory() };
        // Few threads, so that most runs make the same calls. Everything is checked with the registry, and failures of
        // the registry are not remembered, so that a pull after the fault is not affected by it.
        let text = format!(
            "workers: 1\nmaxDownloads: 2\nlogLevel: info\nprefetch: false\nplatforms: [all]\n\
             unlistedRegistries: deny\ndefaultNs: docker.io\ntagTtl: 0s\nnegativeTtl: 0s\n\
             registries: [{{name: docker.io, endpoints: [\"{}\"]}}]\n{extra}\n",
            registry.url("")
        );
        fs::write(site.path("larder.yaml"), text).expect("a file can be written");
        site
    }

    /// A copy with a directory of its own, with the same times.
    pub fn copy(&self) -> Site {
        let copy = Site { directory: fast_directory() };
        let from = self.directory.path().join(".");
        let copied =
            Command::new("cp").arg("-a").args([&from, &copy.directory.path().to_owned()]).status();
        assert!(copied.expect("the program cp").success());
        copy
    }

    /// A path next to the cache directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The cache directory.
    pub fn root(&self) -> PathBuf {
        self.path("cache")
    }

    fn arguments(&self, words: &[&str]) -> Vec<String> {
        let (config, root) = (self.path("larder.yaml"), self.root());
        let options = [
            "--config-file",
            &config.display().to_string(),
            "--image-path",
            &root.display().to_string(),
        ]
        .map(str::to_owned);
        options.into_iter().chain(words.iter().map(|word| (*word).to_owned())).collect()
    }

    /// Runs a command and waits for it. Returns its exit code and what it printed.
    pub fn run(&self, words: &[&str]) -> (Option<i32>, String) {
        let arguments = self.arguments(words);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = larder(&arguments).output().expect("the program starts");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    }

    #[track_caller]
    pub fn run_ok(&self, words: &[&str]) {
        let (code, text) = self.run(words);
        assert_eq!(code, Some(0), "{words:?}: {text}");
    }

    /// Runs a command under a watch.
    pub fn start<W: Watch + 'static>(&self, words: &[&str], watch: &Arc<Mutex<W>>) -> Program {
        let arguments = self.arguments(words);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Program::start(LARDER, &arguments, watch)
    }

    /// Starts a server under a watch. Without an address it has ended.
    pub fn serve<W: Watch + 'static>(
        &self,
        watch: &Arc<Mutex<W>>,
    ) -> (Program, Option<SocketAddr>) {
        let program = self.start(&["serve", "--port", "0", "--host", "127.0.0.1"], watch);
        let address = program.wait_for("listening listen=");
        let address = address.map(|address| address.trim().parse().expect("an address"));
        (program, address)
    }
}

/// A wrong answer to a client, if it is one. An error is not, unless it says that the content does not exist.
pub fn wrongness(target: &str, expected: &[u8], received: &Received) -> Option<String> {
    match received {
        Received::Complete { status: 200, body } if body != expected => Some(format!(
            "WRONG BYTES for {target}: {} bytes instead of {}",
            body.len(),
            expected.len()
        )),
        Received::Complete { status: status @ (404 | 410), .. } => {
            Some(format!("status {status} for {target}, which exists"))
        }
        Received::Complete { .. } | Received::Nothing | Received::Hangs => None,
    }
}

/// Every target of an image with the expected bytes: the manifest, the config and the layers.
pub fn targets(image: &NamedImage) -> Vec<(String, Vec<u8>)> {
    let blobs = image.image.blobs().into_iter();
    let blobs = blobs.map(|each| (blob(&image.path(), &each.digest), each.bytes));
    [(image.target(), image.image.manifest())].into_iter().chain(blobs).collect()
}

/// Pulls an image. Returns what is wrong, and what was not received.
pub fn pull(
    address: SocketAddr,
    image: &NamedImage,
    patience: Duration,
) -> (Vec<String>, Vec<String>) {
    let (mut wrong, mut missing) = (Vec::new(), Vec::new());
    for (target, expected) in targets(image) {
        let received = client::get(address, &target, patience);
        wrong.extend(wrongness(&target, &expected, &received));
        if received == Received::Hangs && patience >= PATIENCE {
            wrong.push(format!("no end of the response for {target}"));
        }
        if !matches!(&received, Received::Complete { status: 200, body } if *body == expected) {
            missing.push(match received {
                Received::Complete { status, body } => {
                    format!("{target}: {status} {}", String::from_utf8_lossy(&body))
                }
                other => format!("{target}: {other:?}"),
            });
        }
    }
    (wrong, missing)
}

/// What is missing or wrong on the disk for an image that is in the cache.
pub fn incomplete(root: &Path, image: &NamedImage) -> Vec<String> {
    let mut problems = Vec::new();
    for digest in image.digests() {
        match fs::read(root.join("blobs").join(digest.replace(':', "/"))) {
            Ok(content) if hashed(&content) == digest => {}
            Ok(_) => problems.push(format!("{digest} has wrong content")),
            Err(error) => problems.push(format!("{digest} of {}: {error}", image.full())),
        }
    }
    let (name, tag) =
        image.full().rsplit_once(':').map(|(n, t)| (n.to_owned(), t.to_owned())).expect("a tag");
    let digest = image.image.digest();
    let refs = root.join("refs").join(name);
    let record = fs::read_to_string(refs.join("_tags").join(tag)).unwrap_or_default();
    if !record.contains(&digest) {
        problems.push(format!("the tag {} is {record:?} instead of {digest}", image.full()));
    }
    if !refs.join("_manifests").join(digest.replace(':', "/")).exists() {
        problems.push(format!("no record of the manifest of {}", image.full()));
    }
    problems
}

/// Blobs whose content differs from their name.
pub fn wrong_blobs(root: &Path) -> Vec<String> {
    let directory = root.join("blobs/sha256");
    let wrong = files(&directory).into_iter().filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        fs::read(path).is_ok_and(|content| hashed(&content) != format!("sha256:{name}"))
    });
    wrong.map(|path| format!("WRONG BYTES in {}", path.display())).collect()
}

fn hashed(content: &[u8]) -> String {
    let hash = Sha256::digest(content);
    format!("sha256:{}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}
