//! Bundles in the formats of various tools, and a cache to import them into with the real program.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use super::{Blob, Image, Publish, digest_of};

const LARDER: &str = env!("CARGO_BIN_EXE_larder");
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
pub const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// A tar writer without the checks of a library.
#[derive(Default)]
pub struct Tar(Vec<u8>);

impl Tar {
    pub fn file(mut self, path: &str, content: &[u8]) -> Tar {
        self.append(path, tar::EntryType::Regular, "", content);
        self
    }

    pub fn symlink(mut self, path: &str, target: &str) -> Tar {
        self.append(path, tar::EntryType::Symlink, target, b"");
        self
    }

    fn append(&mut self, path: &str, kind: tar::EntryType, target: &str, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        let old = header.as_old_mut();
        let fill = |field: &mut [u8], text: &str| {
            field[..text.len()].copy_from_slice(text.as_bytes());
        };
        if path.len() <= old.name.len() {
            fill(&mut old.name, path);
            fill(&mut old.linkname, target);
        } else {
            self.append("././@LongLink", tar::EntryType::GNULongName, "", path.as_bytes());
            return self.append(&path[path.len() - 90..], kind, target, content);
        }
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    pub fn blob(self, digest: &str, content: &[u8]) -> Tar {
        self.file(&format!("blobs/{}", digest.replace(':', "/")), content)
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// An image layout with `index.json` at the end, as most tools write it. Names go into `annotation`.
pub fn layout(annotation: &str, images: &[(&str, &dyn Publish)]) -> Vec<u8> {
    let mut tar = Tar::default();
    let mut blobs: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (_, image) in images {
        for blob in image.blobs() {
            blobs.insert(blob.digest, blob.bytes);
        }
        for manifest in image.children().into_iter().chain([image.top()]) {
            blobs.insert(manifest.digest, manifest.bytes);
        }
    }
    for (digest, bytes) in &blobs {
        tar = tar.blob(digest, bytes);
    }
    let entries: Vec<Value> =
        images.iter().map(|(name, image)| entry(annotation, name, *image)).collect();
    tar.file("index.json", &index_json(&entries))
        .file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
        .end()
}

pub fn entry(annotation: &str, name: &str, image: &dyn Publish) -> Value {
    let top = image.top();
    let mut entry =
        json!({"mediaType": top.media_type, "digest": top.digest, "size": top.bytes.len()});
    if !name.is_empty() {
        entry["annotations"] = json!({ annotation: name });
    }
    entry
}

pub fn index_json(entries: &[Value]) -> Vec<u8> {
    json!({"schemaVersion": 2, "manifests": entries}).to_string().into_bytes()
}

/// The format of `docker save` before image layouts: layers in separate directories, one of them a link to another, and
/// the manifest last.
pub fn docker_save(image: &Image, tags: &[&str]) -> Vec<u8> {
    let (config, layers) = (image.config(), image.layers());
    let config_path = format!("{}.json", hex(&config));
    let mut tar = Tar::default();
    let mut paths: Vec<String> = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let directory = digest_of(format!("chain {number}").as_bytes()).replace("sha256:", "");
        tar = tar
            .file(&format!("{directory}/VERSION"), b"1.0")
            .file(&format!("{directory}/json"), b"{}");
        let path = format!("{directory}/layer.tar");
        let twin = layers[..number].iter().position(|other| other == layer);
        tar = match twin {
            Some(twin) => tar.symlink(&path, &format!("../{}", paths[twin])),
            None => tar.file(&path, &layer.bytes),
        };
        paths.push(path);
    }
    let manifest = json!([{"Config": config_path, "RepoTags": tags, "Layers": paths}]);
    tar.file(&config_path, &config.bytes)
        .file("manifest.json", manifest.to_string().as_bytes())
        .file("repositories", b"{}")
        .end()
}

pub fn hex(blob: &Blob) -> &str {
    blob.digest.strip_prefix("sha256:").expect("a sha256 digest")
}

/// A cache, and a directory for files next to it.
pub struct Site {
    directory: tempfile::TempDir,
}

/// The result of a command.
#[derive(Debug)]
pub struct Done {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub message: String,
}

impl Done {
    #[track_caller]
    pub fn succeeds(self) -> Done {
        assert_eq!(self.code, Some(0), "{}", self.message);
        self
    }

    /// Asserts the exit code, and that the output contains all of `words`.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> Done {
        assert_eq!(self.code, Some(code), "{}", self.message);
        self.says(words)
    }

    #[track_caller]
    pub fn says(self, words: &[&str]) -> Done {
        for word in words {
            assert!(self.message.contains(word), "{word:?} is not in:\n{}", self.message);
        }
        self
    }
}

impl From<Output> for Done {
    fn from(output: Output) -> Done {
        let message = String::from_utf8(output.stderr).expect("it speaks UTF-8");
        Done { code: output.status.code(), stdout: output.stdout, message }
    }
}

impl Site {
    pub fn new() -> Site {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("larder.yaml"), "fsync: false\n").expect("a writable file");
        Site { directory }
    }

    /// A site with these images in its cache.
    pub fn with(images: &[(&str, &dyn Publish)]) -> Site {
        let site = Site::new();
        site.import_bytes(&layout(REF_NAME, images)).succeeds();
        site
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a path below the root")).expect("a writable file");
        fs::write(&path, content).expect("a writable file");
        path
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn cache(&self) -> PathBuf {
        self.path("cache")
    }

    /// The program, ready for its arguments.
    pub fn command(&self, program: &str, before: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(before).current_dir(self.directory.path());
        command.args(["--config-file", "larder.yaml", "--image-path", "cache"]);
        command.stdin(Stdio::null());
        command
    }

    /// Runs the program next to the cache, so that relative paths match [`Site::path`].
    pub fn larder(&self, arguments: &[&str]) -> Done {
        let output = self.command(LARDER, &[]).args(arguments).output();
        output.expect("it can be started").into()
    }

    /// As [`Site::larder`], with standard input.
    pub fn larder_with(&self, arguments: &[&str], input: &[u8]) -> Done {
        let mut child = self
            .command(LARDER, &[])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it can be started");
        let mut stdin = child.stdin.take().expect("it was piped");
        // It may stop reading before the end.
        let _ = stdin.write_all(input);
        drop(stdin);
        child.wait_with_output().expect("it was started").into()
    }

    pub fn import_bytes(&self, bundle: &[u8]) -> Done {
        let path = self.write("given.tar", bundle);
        self.larder(&["import", &path.display().to_string()])
    }

    /// Every tag with the digest that it points to.
    pub fn tags(&self) -> BTreeMap<String, String> {
        let mut tags = BTreeMap::new();
        for (path, bytes) in files(&self.cache().join("refs")) {
            if let Some((name, tag)) = path.split_once("/_tags/") {
                let record: Value = serde_json::from_slice(&bytes).expect("a record is JSON");
                let digest = record["digest"].as_str().expect("a digest");
                tags.insert(format!("{name}:{tag}"), digest.to_owned());
            }
        }
        tags
    }

    /// The manifests of every repository, according to the records.
    pub fn manifests(&self) -> Vec<String> {
        let records = files(&self.cache().join("refs")).into_keys();
        records.filter(|path| path.contains("/_manifests/")).collect()
    }

    /// Every blob by its path.
    pub fn blobs(&self) -> BTreeMap<String, Vec<u8>> {
        files(&self.cache().join("blobs"))
    }

    pub fn has(&self, digest: &str) -> bool {
        self.cache().join("blobs").join(digest.replace(':', "/")).exists()
    }

    pub fn remove_blob(&self, digest: &str) {
        let path = self.cache().join("blobs").join(digest.replace(':', "/"));
        fs::remove_file(path).expect("it was there");
    }

    /// Files in `incoming/` other than locks.
    pub fn leftovers(&self) -> Vec<String> {
        let all = files(&self.cache().join("incoming")).into_keys();
        all.filter(|name| !name.ends_with(".lock")).collect()
    }

    /// Asserts that every blob matches its digest.
    #[track_caller]
    pub fn is_sound(&self) {
        for (path, bytes) in self.blobs() {
            if let Some(hex) = path.strip_prefix("sha256/") {
                assert_eq!(digest_of(&bytes), format!("sha256:{hex}"));
            }
        }
    }
}

/// The files below a directory, by relative path.
pub fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten() {
            let path = entry.expect("it can be listed").path();
            if path.is_dir() {
                directories.push(path);
            } else {
                let name =
                    path.strip_prefix(root).expect("a path below the root").display().to_string();
                found.insert(name, fs::read(&path).expect("it can be read"));
            }
        }
    }
    found
}

/// The entries of a tar, in order.
pub fn entries(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(bytes);
    let entries = archive.entries().expect("a tar archive").map(|entry| {
        let mut entry = entry.expect("a complete archive");
        let path = entry.path().expect("a path").display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).expect("a complete archive");
        (path, content)
    });
    entries.collect()
}

/// The blobs of a tar, by digest.
pub fn blobs_in(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let blobs = entries(bytes).into_iter().filter_map(|(path, content)| {
        Some((path.strip_prefix("blobs/")?.replace('/', ":"), content))
    });
    blobs.collect()
}
