//! Checks a disk after a crash: what was confirmed is there, nothing is wrong, and a new pull repairs the rest.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::record::Trace;
use super::states::State;
use crate::client::{self, Received};
use crate::site::{incomplete, pull, targets, wrong_blobs};
use crate::support::larder::{files, seconds};
use crate::support::site::NamedImage;
use crate::support::{FakeRegistry, Larder, PATIENCE};

/// How often a client repeats a pull.
const ATTEMPTS: usize = 3;

/// What a program has confirmed by exiting successfully.
#[derive(Clone)]
pub enum Fact {
    /// The image is in the cache, under its tag.
    Cached(NamedImage),
    /// The image was in the cache, and its removal has begun.
    MayBeRemoved(NamedImage),
    /// The image was in the cache, and its tag may refer to another image now.
    Moved(NamedImage),
    Pinned(String),
}

/// A server that is started on one disk after the other.
pub struct Checker {
    registry: FakeRegistry,
    larder: Larder,
    /// The images of the registry.
    images: Vec<NamedImage>,
    /// Images that were in the registry earlier.
    earlier: Vec<NamedImage>,
}

impl Checker {
    pub fn new(images: &[NamedImage], earlier: &[NamedImage]) -> Checker {
        let registry = FakeRegistry::start();
        images.iter().for_each(|image| image.publish(&registry));
        let mut larder = Larder::start_alone(|settings| {
            settings.list("docker.io", &registry);
            settings.naming.default_upstream = "docker.io".parse().ok();
            settings.http.workers = 1;
            settings.cache.blob_fetchers = 2;
            settings.cache.manifest_fetchers = 2;
        });
        larder.stop();
        Checker { registry, larder, images: images.to_vec(), earlier: earlier.to_vec() }
    }

    /// Everything that is wrong with a state.
    pub fn problems(
        &mut self,
        trace: &Trace,
        state: &State,
        facts: &[(usize, Fact)],
    ) -> Vec<String> {
        let root = self.larder.root();
        fs::remove_dir_all(&root).expect("the cache of the previous state");
        fs::create_dir(&root).expect("a directory");
        state.disk.create(trace, &root);
        let facts: Vec<&Fact> =
            facts.iter().filter(|(at, _)| *at < state.at).map(|(_, fact)| fact).collect();
        let mut problems = wrong_blobs(&root);
        problems.extend(names_without_content(&root, &facts));
        problems.extend(unconfirmed(&root, &facts));
        if !problems.is_empty() {
            return problems;
        }
        self.registry.stop();
        self.larder.run();
        for image in &self.images {
            let must_be_there =
                kept(&facts).any(|each| each.image.digest() == image.image.digest());
            for (target, expected) in targets(image) {
                match client::get(self.larder.address(), &target, PATIENCE) {
                    Received::Complete { status: 200, body } if body == expected => {}
                    // The tag may still refer to an earlier image.
                    Received::Complete { status: 200, body } if !self.was(&target, &body) => {
                        problems.push(format!("WRONG BYTES for {target}: {} bytes", body.len()));
                    }
                    other if must_be_there || other == Received::Hangs => {
                        problems.push(format!("{target} without the registry: {other:?}"));
                    }
                    _ => {}
                }
            }
        }
        self.registry.start_again();
        // Failures are not remembered for so long.
        self.larder.advance(seconds(3600));
        for image in &self.images {
            // A partial download may turn out to be damaged at its end; then clients repeat the request.
            let mut pulled = pull(self.larder.address(), image, PATIENCE);
            for _ in 1..ATTEMPTS {
                if !pulled.1.is_empty() {
                    problems.append(&mut pulled.0);
                    pulled = pull(self.larder.address(), image, PATIENCE);
                }
            }
            problems.extend(pulled.0.into_iter().chain(pulled.1));
            if problems.is_empty() {
                image.digests().iter().for_each(|digest| self.larder.wait_until_cached(digest));
            }
        }
        self.larder.stop();
        problems.extend(wrong_blobs(&root));
        for image in &self.images {
            problems.extend(
                incomplete(&root, image)
                    .into_iter()
                    .map(|each| format!("after a new pull: {each}")),
            );
        }
        let layout = fs::read(root.join("oci-layout")).unwrap_or_default();
        if serde_json::from_slice::<Value>(&layout).is_err() {
            problems.push(format!("oci-layout is not JSON: {layout:?}"));
        }
        problems
    }
}

impl Checker {
    /// Whether this was the manifest of an earlier image of this name.
    fn was(&self, target: &str, body: &[u8]) -> bool {
        self.earlier.iter().any(|image| image.target() == target && image.image.manifest() == body)
    }
}

/// The images that must be there under their tags.
fn kept<'a>(facts: &'a [&Fact]) -> impl Iterator<Item = &'a NamedImage> {
    let is_withdrawn = |image: &NamedImage| {
        facts.iter().any(|fact| match fact {
            Fact::MayBeRemoved(other) | Fact::Moved(other) => {
                other.image.digest() == image.image.digest()
            }
            Fact::Cached(_) | Fact::Pinned(_) => false,
        })
    };
    facts.iter().filter_map(move |fact| match fact {
        Fact::Cached(image) if !is_withdrawn(image) => Some(image),
        _ => None,
    })
}

/// Confirmed facts that do not hold.
fn unconfirmed(root: &Path, facts: &[&Fact]) -> Vec<String> {
    let mut problems: Vec<String> = kept(facts).flat_map(|image| incomplete(root, image)).collect();
    let pins = fs::read_to_string(root.join("pins")).unwrap_or_default();
    for fact in facts {
        match fact {
            Fact::Pinned(pin) if !pins.lines().any(|line| line == pin) => {
                problems.push(format!("{pin} is not pinned: {pins:?}"));
            }
            // It is still there by its digest, only its tag has moved.
            Fact::Moved(image) => {
                let gone =
                    incomplete(root, image).into_iter().filter(|each| !each.starts_with("the tag"));
                problems.extend(gone);
            }
            _ => {}
        }
    }
    problems
}

/// Names that refer to missing content, and records that are not valid. Content that is being removed may vanish
/// before its names do.
fn names_without_content(root: &Path, facts: &[&Fact]) -> Vec<String> {
    let removed: HashSet<String> = facts
        .iter()
        .filter_map(|fact| match fact {
            Fact::MayBeRemoved(image) => Some(image.image.digest()),
            _ => None,
        })
        .collect();
    let mut problems = Vec::new();
    for path in files(&root.join("refs")) {
        let record: Option<Value> =
            fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let Some(record) = record else {
            problems.push(format!("{} is not a record", path.display()));
            continue;
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let digest = match record["digest"].as_str() {
            Some(digest) => digest.to_owned(),
            None => format!("sha256:{name}"),
        };
        let blob = root.join("blobs").join(digest.replace(':', "/"));
        if !blob.exists() && !removed.contains(&digest) {
            problems.push(format!("{} refers to missing content", path.display()));
        }
    }
    problems
}
