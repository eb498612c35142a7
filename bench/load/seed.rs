//! `seed` writes a cache with many images, and `sweep` requests each of them.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::images::IMAGES_PER_REPOSITORY;
use crate::response::{Expected, exchange};
use crate::{MANIFEST_TYPE, Options, Outcome, hex_digest, milliseconds, unix_us};

/// One image of a seeded cache. All images share a config and a layer, which exist.
#[derive(Clone, Copy)]
struct Image(u64);

const SHARED_CONFIG: &[u8] = b"{}";
const SHARED_LAYER: &[u8] = b"not a real layer";

impl Image {
    fn repository(self) -> String {
        format!("bench/r{}", self.0 / IMAGES_PER_REPOSITORY)
    }

    fn tag(self) -> String {
        format!("t{}", self.0 % IMAGES_PER_REPOSITORY)
    }

    /// About as long as the manifest of an image with six layers.
    fn manifest(self) -> String {
        let (config, layer) = (hex_digest(SHARED_CONFIG), hex_digest(SHARED_LAYER));
        let layer = format!(
            r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:{layer}","size":{}}}"#,
            SHARED_LAYER.len()
        );
        let layers = [&*layer; 6].join(",");
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST_TYPE}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:{config}","size":{}}},"layers":[{layers}],"annotations":{{"bench.image":"{}"}}}}"#,
            SHARED_CONFIG.len(),
            self.0
        )
    }
}

/// `--root DIR`, `--upstream`, `--images`: writes a cache directory in Larder's layout.
pub(crate) fn seed(options: &Options) -> Outcome {
    let root = Path::new(options.text("root")?);
    let upstream = options.text("upstream")?;
    let images = options.number("images")?;
    let blobs = root.join("blobs/sha256");
    for directory in [&blobs, &root.join("incoming"), &root.join("refs").join(upstream)] {
        fs::create_dir_all(directory)?;
    }
    for blob in [SHARED_CONFIG, SHARED_LAYER] {
        fs::write(blobs.join(hex_digest(blob)), blob)?;
    }
    let mut index = BufWriter::new(File::create(root.join("index.json"))?);
    write!(
        index,
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":["#
    )?;
    let now = unix_us() / 1_000_000;
    for image in (0..images).map(Image) {
        let (manifest, repository, tag) = (image.manifest(), image.repository(), image.tag());
        let (hex, size) = (hex_digest(manifest.as_bytes()), manifest.len());
        let refs = root.join("refs").join(upstream).join(&repository);
        let (tags, manifests) = (refs.join("_tags"), refs.join("_manifests/sha256"));
        if image.0 % IMAGES_PER_REPOSITORY == 0 {
            fs::create_dir_all(&tags)?;
            fs::create_dir_all(&manifests)?;
        }
        fs::write(blobs.join(&hex), manifest)?;
        let known = format!(r#""mediaType":"{MANIFEST_TYPE}","size":{size},"fetched":{now}"#);
        fs::write(manifests.join(&hex), format!("{{{known}}}"))?;
        let record = format!(r#"{{"digest":"sha256:{hex}",{known},"checked":{now}}}"#);
        fs::write(tags.join(&tag), record)?;
        let comma = if image.0 == 0 { "" } else { "," };
        write!(
            index,
            "{comma}\n{{\"mediaType\":\"{MANIFEST_TYPE}\",\"digest\":\"sha256:{hex}\",\"size\":{size},\
             \"annotations\":{{\"org.opencontainers.image.ref.name\":\"{upstream}/{repository}:{tag}\"}}}}"
        )?;
    }
    index.write_all(b"\n]}\n")?;
    index.flush()?;
    fs::write(root.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    // Also write the last manifest to a file, for comparison.
    let last = Image(images.saturating_sub(1));
    if let Ok(path) = options.text("last-manifest") {
        fs::write(path, last.manifest())?;
    }
    println!("images={images} last_repository={} last_tag={}", last.repository(), last.tag());
    Ok(())
}

/// `--port`, `--upstream`, `--images`, `--threads` (4): requests every tag once, and compares it.
pub(crate) fn sweep(options: &Options) -> Outcome {
    let (address, upstream) = (options.address()?, options.text("upstream")?);
    let images = options.number("images")?;
    let threads = options.number_or("threads", 4)?.max(1);
    let began = Instant::now();
    thread::scope(|scope| {
        let sweep_part = |part: u64| -> Outcome {
            let mut stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            for image in (part..images).step_by(usize::try_from(threads)?).map(Image) {
                let path =
                    format!("/v2/{upstream}/{}/manifests/{}", image.repository(), image.tag());
                exchange(&mut stream, &path, Expected::Bytes(image.manifest().as_bytes()))
                    .map_err(|error| format!("{path}: {error}"))?;
            }
            Ok(())
        };
        let parts: Vec<_> =
            (0..threads).map(|part| scope.spawn(move || sweep_part(part))).collect();
        parts.into_iter().try_for_each(|part| part.join().unwrap_or(Err("a panic".into())))
    })?;
    println!("images={images} wall_ms={:.0}", milliseconds(began.elapsed()));
    Ok(())
}
