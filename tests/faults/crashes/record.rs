//! Records what a program changes in a directory, and what it syncs.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::libc;

use crate::call::{Call, as_int};
use crate::tracer::{Verdict, Watch};

/// A file, by the order of creation. It keeps its number when it gets another name.
pub type FileId = usize;

/// What a name refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    File(FileId),
    Directory,
}

/// One change. Each of them may reach the disk or not, until it is synced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The path refers to this.
    Name(String, Node),
    /// The path refers to nothing.
    Unname(String),
    Write {
        file: FileId,
        at: usize,
        bytes: Vec<u8>,
    },
    Truncate {
        file: FileId,
        length: usize,
    },
}

/// A change and when it happened, counted in system calls.
#[derive(Debug, Clone)]
pub struct Operation {
    pub begun: usize,
    pub ended: usize,
    pub effect: Effect,
    /// The operation without which this one cannot have happened: a rename never loses both names.
    pub needs: Option<usize>,
}

/// What a sync makes durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Synced {
    File(FileId),
    /// The names in a directory.
    Directory(String),
}

/// A completed sync.
#[derive(Debug, Clone)]
pub struct Sync {
    pub begun: usize,
    pub ended: usize,
    pub of: Synced,
    /// The path that it was called with.
    pub path: String,
}

/// Everything that happened in the directory.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    pub operations: Vec<Operation>,
    pub syncs: Vec<Sync>,
    /// The number of system calls.
    pub length: usize,
}

/// Records a [`Trace`] of several programs, one after the other.
#[derive(Debug)]
pub struct Recorder {
    root: PathBuf,
    trace: Trace,
    /// The names as the programs see them.
    names: BTreeMap<String, Node>,
    files: usize,
    /// The files by inode.
    inodes: HashMap<u64, FileId>,
    /// When the current call of each thread began.
    begun: HashMap<i32, usize>,
    /// Calls that are not modelled. They must not happen.
    pub unknown: Vec<String>,
}

impl Recorder {
    /// Records an empty directory, which exists.
    pub fn new(root: &Path) -> Recorder {
        Recorder {
            root: root.to_owned(),
            trace: Trace::default(),
            names: BTreeMap::new(),
            files: 0,
            inodes: HashMap::new(),
            begun: HashMap::new(),
            unknown: Vec::new(),
        }
    }

    /// The current time.
    pub fn now(&self) -> usize {
        self.trace.length
    }

    pub fn trace(&self) -> Trace {
        self.trace.clone()
    }

    /// The path below the root; empty for the root.
    fn inside(&self, path: &Path) -> Option<String> {
        path.strip_prefix(&self.root).ok().map(|path| path.to_string_lossy().into_owned())
    }

    fn tick(&mut self) -> usize {
        self.trace.length += 1;
        self.trace.length
    }

    fn add(&mut self, begun: usize, effect: Effect, needs: Option<usize>) -> usize {
        let ended = self.trace.length;
        self.trace.operations.push(Operation { begun, ended, effect, needs });
        self.trace.operations.len() - 1
    }

    /// The file of a descriptor.
    fn file_of(&self, call: &Call, descriptor: u64) -> Option<FileId> {
        let inode = fs::metadata(call.open_file(descriptor)).ok()?.ino();
        self.inodes.get(&inode).copied()
    }

    fn opened(&mut self, call: &Call, begun: usize, descriptor: u64) {
        let Some(path) = self.inside(call.path()) else { return };
        match self.names.get(&path) {
            Some(Node::File(file)) if call.arguments[2] & libc::O_TRUNC as u64 != 0 => {
                self.add(begun, Effect::Truncate { file: *file, length: 0 }, None);
            }
            None if call.may_create() => {
                let Ok(metadata) = fs::metadata(call.open_file(descriptor)) else { return };
                let node = Node::File(self.files);
                self.inodes.insert(metadata.ino(), self.files);
                self.files += 1;
                self.names.insert(path.clone(), node);
                self.add(begun, Effect::Name(path, node), None);
            }
            _ => {}
        }
    }

    fn wrote(&mut self, call: &Call, begun: usize, written: u64) {
        let target = if call.name == "copy_file_range" { 2 } else { 0 };
        let descriptor = call.arguments[target];
        let Some(file) = self.file_of(call, descriptor) else { return };
        let at = match call.name {
            "pwrite64" => Some(call.arguments[3]),
            // The position is after the written bytes.
            _ => call.position(descriptor).map(|position| position - written),
        };
        let mut bytes = vec![0; written as usize];
        let read = |at| File::open(call.open_file(descriptor))?.read_exact_at(&mut bytes, at);
        match at.map(read) {
            Some(Ok(())) => {
                let at = at.unwrap_or_default() as usize;
                self.add(begun, Effect::Write { file, at, bytes }, None);
            }
            _ => self.unknown.push(format!("{call:?}")),
        }
    }

    fn synced(&mut self, call: &Call, begun: usize) {
        let Some(path) = self.inside(call.path()) else { return };
        let is_directory = path.is_empty() || self.names.get(&path) == Some(&Node::Directory);
        let of = match is_directory {
            true => Some(Synced::Directory(path.clone())),
            false => self.file_of(call, call.arguments[0]).map(Synced::File),
        };
        match of {
            Some(of) => {
                let ended = self.trace.length;
                self.trace.syncs.push(Sync { begun, ended, of, path });
            }
            None => self.unknown.push(format!("{call:?}")),
        }
    }

    /// A rename or a link.
    fn named(&mut self, call: &Call, begun: usize) {
        let [from, to] = [0, 1].map(|at| call.paths.get(at).and_then(|path| self.inside(path)));
        let node = from.as_ref().and_then(|from| self.names.get(from)).copied();
        let (Some(from), Some(to), Some(node @ Node::File(_))) = (from, to, node) else {
            return self.unknown.push(format!("{call:?}"));
        };
        self.names.insert(to.clone(), node);
        let named = self.add(begun, Effect::Name(to, node), None);
        if call.name == "rename" {
            self.names.remove(&from);
            self.add(begun, Effect::Unname(from), Some(named));
        }
    }
}

impl Watch for Recorder {
    fn before(&mut self, call: &Call) -> Verdict {
        let now = self.tick();
        self.begun.insert(call.task, now);
        Verdict::Run
    }

    fn after(&mut self, call: &Call, result: i64) {
        let begun = self.begun.remove(&call.task).unwrap_or_default();
        let is_here = call.paths.iter().any(|path| path.starts_with(&self.root));
        if result < 0 || !is_here {
            return;
        }
        self.tick();
        match call.name {
            "openat" => self.opened(call, begun, result.cast_unsigned()),
            "write" | "pwrite64" | "writev" | "copy_file_range" => {
                self.wrote(call, begun, result.cast_unsigned());
            }
            // Into a file, or from one to a socket.
            "sendfile" if self.inside(call.path()).is_some() => {
                self.wrote(call, begun, result.cast_unsigned());
            }
            "ftruncate" => {
                if let Some(file) = self.file_of(call, call.arguments[0]) {
                    let length = call.arguments[1] as usize;
                    self.add(begun, Effect::Truncate { file, length }, None);
                }
            }
            "fsync" | "fdatasync" => self.synced(call, begun),
            "rename" | "link" => self.named(call, begun),
            "mkdir" | "mkdirat" => {
                let Some(path) = self.inside(call.path()) else { return };
                self.names.insert(path.clone(), Node::Directory);
                self.add(begun, Effect::Name(path, Node::Directory), None);
            }
            "unlink" | "unlinkat" | "rmdir" => {
                let Some(path) = self.inside(call.path()) else { return };
                self.names.remove(&path);
                self.add(begun, Effect::Unname(path), None);
            }
            "open" | "symlink" | "symlinkat" | "fallocate" | "sync_file_range" => {
                self.unknown.push(format!("{call:?}"));
            }
            "fcntl" if as_int(call.arguments[1]) == libc::F_SETFL => {
                self.unknown.push(format!("{call:?}"));
            }
            _ => {}
        }
    }
}

impl Operation {
    /// Whether it concerns only the name of a lock or a temporary file.
    pub fn is_temporary(&self) -> bool {
        matches!(&self.effect, Effect::Name(path, _) | Effect::Unname(path) if path.starts_with("incoming/"))
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Effect::Name(path, Node::File(file)) => write!(f, "{path} is file {file}"),
            Effect::Name(path, Node::Directory) => write!(f, "{path} is a directory"),
            Effect::Unname(path) => write!(f, "{path} is removed"),
            Effect::Write { file, at, bytes } => {
                write!(f, "{} bytes at {at} of file {file}", bytes.len())
            }
            Effect::Truncate { file, length } => write!(f, "file {file} has {length} bytes"),
        }
    }
}
