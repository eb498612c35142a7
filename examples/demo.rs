//! `make demo`: a demonstration in one terminal, without a network.
//!
//! Starts a registry on loopback with a sample image (a second, air-gapped Larder over a directory
//! that this program fills), pulls through Larder, stops the registry, and pulls again.

#![allow(clippy::print_stdout, reason = "a demonstration prints")]

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use larder::oci::{Algorithm, Digest, ImageName, MediaType};
use larder::store::{self, ManifestRecord, Store, TagRecord};

type Fallible<T> = Result<T, Box<dyn Error>>;

/// Large enough to measure a rate, small enough for any machine.
const LAYER_BYTES: usize = 32 * 1024 * 1024;
/// How long a server on loopback may take to answer.
const READ_TIMEOUT: Duration = Duration::from_secs(20);

fn main() -> Fallible<()> {
    let Some(larder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        return Err("usage: demo PATH-OF-LARDER".into());
    };
    let work = std::env::temp_dir().join(format!("larder-demo-{}", std::process::id()));
    let shown = run(&larder, &work);
    std::fs::remove_dir_all(&work)?;
    shown
}

fn run(larder: &Path, work: &Path) -> Fallible<()> {
    let upstream_dir = work.join("upstream");
    let image = publish(&upstream_dir)?;
    println!("A registry on loopback has registry.test/demo:v1, {} MB.", LAYER_BYTES >> 20);
    let flags = ["--air-gapped", "--default-ns", "registry.test"];
    let mut upstream = Server::start(larder, &upstream_dir, None, &flags)?;

    let config = work.join("larder.yaml");
    let entry = format!(
        "registries: [{{name: registry.test, endpoints: [\"http://{}\"]}}]\ntagTtl: 0\n",
        upstream.address
    );
    std::fs::write(&config, entry)?;
    let mut cache = Server::start(larder, &work.join("cache"), Some(&config), &[])?;
    println!("Larder listens on {} and pulls from it.\n", cache.address);

    println!("cold pull through Larder:       {}", pull(&cache.address, &image)?);
    println!("warm pull:                      {}", pull(&cache.address, &image)?);
    upstream.stop()?;
    println!("\nThe registry is stopped.\n");
    println!("warm pull without the registry: {}", pull(&cache.address, &image)?);
    cache.stop()?;
    let mut cache = Server::start(larder, &work.join("cache"), Some(&config), &[])?;
    println!("after a restart of Larder:      {}", pull(&cache.address, &image)?);
    cache.stop()
}

/// The digests of a sample image.
struct Image {
    config: Digest,
    layer: Digest,
}

/// Fills a cache directory with one image, as if it had been pulled.
fn publish(root: &Path) -> Fallible<Image> {
    let store = Store::open(&store::Settings { root: root.to_owned(), fsync: false })?;
    let put = |bytes: &[u8]| -> Fallible<Digest> {
        let digest = Digest::of(Algorithm::Sha256, bytes);
        store.ingest_bytes(&digest, bytes)?;
        Ok(digest)
    };
    let config_json =
        br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let layer_bytes: Vec<u8> = (0..LAYER_BYTES).map(|at| ((at * 31) >> 7) as u8).collect();
    let (config, layer) = (put(config_json)?, put(&layer_bytes)?);
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MediaType::OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config.to_string(),
            "size": config_json.len(),
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": layer.to_string(),
            "size": LAYER_BYTES,
        }],
    })
    .to_string();
    let digest = put(manifest.as_bytes())?;
    let name = ImageName::new("registry.test".parse()?, "demo".parse()?);
    let media_type = MediaType::parse(MediaType::OCI_MANIFEST).ok_or("a media type")?;
    let (size, now) = (manifest.len() as u64, SystemTime::now());
    let record = ManifestRecord { media_type: media_type.clone(), size, fetched: now };
    store.put_manifest(&name, &digest, &record)?;
    let tag = TagRecord::new(digest, media_type, size, now, now);
    store.put_tag(&name, &"v1".parse()?, &tag)?;
    Ok(Image { config, layer })
}

/// A Larder process.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start(
        larder: &Path,
        cache: &Path,
        config: Option<&Path>,
        flags: &[&str],
    ) -> Fallible<Server> {
        let mut command = Command::new(larder);
        if let Some(config) = config {
            command.arg("--config-file").arg(config);
        }
        command.arg("--image-path").arg(cache).args([
            "serve",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
        ]);
        let started = command.args(flags).stderr(Stdio::piped()).spawn();
        let mut process =
            started.map_err(|error| format!("cannot start {}: {error}", larder.display()))?;
        let log = process.stderr.take().ok_or("a pipe for the log")?;
        let mut lines = BufReader::new(log).lines();
        let address = loop {
            let line = lines.next().ok_or("larder exited before it listened")??;
            if let Some((_, address)) = line.split_once("listening listen=") {
                break address.to_owned();
            }
        };
        // Read the log to its end, so that the server never blocks on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Server { process, address })
    }

    /// Sends SIGTERM and waits until the server has drained and exited.
    fn stop(&mut self) -> Fallible<()> {
        let pid = self.process.id().to_string();
        Command::new("kill").args(["-TERM", &pid]).status()?;
        let status = self.process.wait()?;
        if status.success() { Ok(()) } else { Err(format!("larder exited with {status}").into()) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Only after a failure; the process may have exited already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Pulls the image, checks every digest, and describes the result.
fn pull(address: &str, image: &Image) -> Fallible<String> {
    let began = Instant::now();
    let manifest = get(address, "manifests/v1", None)?;
    let first_response = began.elapsed();
    for digest in [&image.config, &image.layer] {
        get(address, &format!("blobs/{digest}"), Some(digest))?;
    }
    let total = began.elapsed();
    let rate = LAYER_BYTES as f64 / 1e6 / total.as_secs_f64();
    Ok(format!(
        "manifest after {:6.1} ms, all bytes verified after {:7.1} ms ({rate:5.0} MB/s), {}",
        first_response.as_secs_f64() * 1e3,
        total.as_secs_f64() * 1e3,
        manifest.cache_status
    ))
}

struct Response {
    cache_status: String,
}

fn get(address: &str, path: &str, digest: Option<&Digest>) -> Fallible<Response> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(READ_TIMEOUT))?;
    let request = format!(
        "GET /v2/registry.test/demo/{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response)?;
    let end = response.windows(4).position(|four| four == b"\r\n\r\n").ok_or("no response head")?;
    let (head, body) = (String::from_utf8_lossy(&response[..end]), &response[end + 4..]);
    if !head.starts_with("HTTP/1.1 200") {
        return Err(format!("{path}: {}", head.lines().next().unwrap_or_default()).into());
    }
    if digest.is_some_and(|digest| Digest::of(digest.algorithm(), body) != *digest) {
        return Err(format!("{path}: wrong bytes").into());
    }
    let cache_status =
        head.lines().find_map(|line| line.strip_prefix("Cache-Status: ")).unwrap_or("?");
    Ok(Response { cache_status: cache_status.to_owned() })
}
