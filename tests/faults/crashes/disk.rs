//! What is on the disk after a crash.
//!
//! # Assumed guarantees
//! **The journal** (ext4 with `data=ordered`, XFS): names change in the order of the calls, since they are changes of one
//! journal: if one of them is on the disk, so are all earlier ones. A sync of any file or directory writes the journal,
//! and with it all names until then. The bytes of a file are on the disk after a sync of that file. Without it, any
//! prefix of them may be (delayed allocation): with `data=ordered` the journal never shows a length whose bytes are
//! missing, and XFS updates the length after the bytes.
//!
//! **The weakest file system** that keeps POSIX's promises: only syncs count. Bytes are on the disk after a sync of the
//! file, names after a sync of the directory. Everything else may be or not be, in any combination: names without
//! those changed before, lengths without bytes (zeros), single writes of several. A rename is two changes; it may leave
//! both names, but never neither.
//!
//! Neither loses or changes what was synced, and neither reorders two changes of the same name or of the same bytes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::Path;

use super::record::{Effect, FileId, Node, Operation, Synced, Trace};

/// Which file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    Journal,
    Weakest,
}

/// What has become of an operation that was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fate {
    Lost,
    Kept,
    /// The length is on the disk, the bytes are not.
    Zeros,
    /// The first half of the bytes.
    Half,
}

/// The content of a disk. Files with two names have the same number.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Disk {
    pub directories: Vec<String>,
    pub files: BTreeMap<String, FileId>,
    /// The operations that made the content of each file, and their fates. Equal ones make equal contents.
    contents: BTreeMap<FileId, Vec<(usize, Fate)>>,
}

/// When each operation is on the disk for certain.
pub fn durable(trace: &Trace, model: Model) -> Vec<usize> {
    let when = |operation: &Operation| {
        let covers = |of: &Synced| match (&operation.effect, of) {
            (Effect::Write { file, .. } | Effect::Truncate { file, .. }, Synced::File(of)) => {
                file == of
            }
            (Effect::Name(path, _) | Effect::Unname(path), of) => match (model, of) {
                (Model::Journal, _) => true,
                (Model::Weakest, Synced::Directory(of)) => parent(path) == of,
                (Model::Weakest, Synced::File(_)) => false,
            },
            _ => false,
        };
        let after = trace.syncs.iter().filter(|sync| sync.begun >= operation.ended);
        after.filter(|sync| covers(&sync.of)).map(|sync| sync.ended).min().unwrap_or(usize::MAX)
    };
    trace.operations.iter().map(when).collect()
}

/// The directory that contains this path. The root is the empty path.
fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// The disk after these operations.
pub fn after(trace: &Trace, fates: impl Iterator<Item = (usize, Fate)>) -> Disk {
    let mut names: BTreeMap<&str, Node> = BTreeMap::new();
    let mut contents: BTreeMap<FileId, Vec<(usize, Fate)>> = BTreeMap::new();
    for (number, fate) in fates.filter(|(_, fate)| *fate != Fate::Lost) {
        match &trace.operations[number].effect {
            Effect::Name(path, node) => {
                names.insert(path, *node);
            }
            Effect::Unname(path) => {
                names.remove(path.as_str());
            }
            Effect::Write { file, .. } | Effect::Truncate { file, .. } => {
                contents.entry(*file).or_default().push((number, fate));
            }
        }
    }
    let (mut disk, mut reachable) = (Disk::default(), HashSet::<&str>::new());
    // In this order, directories come before what is in them.
    for (path, node) in &names {
        let above = parent(path);
        let is_reachable = above.is_empty() || reachable.contains(above);
        match node {
            Node::File(file) if is_reachable => {
                disk.files.insert((*path).to_owned(), *file);
            }
            Node::Directory if is_reachable => {
                reachable.insert(*path);
                disk.directories.push((*path).to_owned());
            }
            Node::File(_) | Node::Directory => {}
        }
    }
    disk.keep(&mut contents, |_| true);
    disk
}

impl Disk {
    /// Keeps only these paths.
    pub fn of(&self, is_kept: impl Fn(&str) -> bool) -> Disk {
        let mut disk = Disk { directories: self.directories.clone(), ..Disk::default() };
        disk.files.clone_from(&self.files);
        disk.keep(&mut self.contents.clone(), is_kept);
        disk
    }

    fn keep(
        &mut self,
        contents: &mut BTreeMap<FileId, Vec<(usize, Fate)>>,
        is_kept: impl Fn(&str) -> bool,
    ) {
        self.files.retain(|path, _| is_kept(path));
        let named: HashSet<FileId> = self.files.values().copied().collect();
        self.contents = std::mem::take(contents);
        self.contents.retain(|file, _| named.contains(file));
    }

    fn content(&self, trace: &Trace, file: FileId) -> Vec<u8> {
        let mut content: Vec<u8> = Vec::new();
        for (number, fate) in self.contents.get(&file).into_iter().flatten() {
            match &trace.operations[*number].effect {
                Effect::Write { at, bytes, .. } => {
                    let kept = if *fate == Fate::Half { bytes.len() / 2 } else { bytes.len() };
                    content.resize(content.len().max(at + kept), 0);
                    match fate {
                        Fate::Zeros => content[*at..at + kept].fill(0),
                        _ => content[*at..at + kept].copy_from_slice(&bytes[..kept]),
                    }
                }
                Effect::Truncate { length, .. } => content.resize(*length, 0),
                Effect::Name(..) | Effect::Unname(_) => {}
            }
        }
        content
    }

    /// Creates it in a directory, which is empty.
    pub fn create(&self, trace: &Trace, root: &Path) {
        let mut created: HashMap<FileId, &str> = HashMap::new();
        for directory in &self.directories {
            fs::create_dir(root.join(directory)).expect("an empty directory");
        }
        for (path, file) in &self.files {
            match created.get(file) {
                Some(first) => fs::hard_link(root.join(first), root.join(path)),
                None => fs::write(root.join(path), self.content(trace, *file)),
            }
            .expect("a file can be written");
            created.entry(*file).or_insert(path);
        }
    }
}
