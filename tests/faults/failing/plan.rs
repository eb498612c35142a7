//! Which system call fails, and how.
//!
//! A call is identified by the thread, the name, the file, and how many such calls there were before: `blob-fetcher
//! fdatasync partials/docker.io/sha256-…, the first`. Unlike the number of a call among all calls, this is the same in
//! every run, however the threads interleave.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::call::Call;
use crate::tracer::{Verdict, Watch};

/// Which call, whatever the order of the threads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Site {
    thread: String,
    pub name: &'static str,
    /// The file, relative to the cache directory if it is in it.
    pub subject: String,
    pub creates: bool,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// This call fails.
    Once(Errno),
    /// This call fails, and all later ones that fail for the same reason, until the fault is over: a full disk, or
    /// no more descriptors.
    Since(Errno),
    /// It reads or writes less than was requested.
    Short,
}

/// The fault of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub site: Site,
    /// The number of calls at this site before the failing one.
    pub spared: usize,
    pub failure: Failure,
}

/// Records the calls of a run, and lets the target fail.
#[derive(Debug)]
pub struct Plan {
    /// The cache directory.
    root: PathBuf,
    /// Whether calls count.
    armed: Armed,
    target: Option<Target>,
    counts: HashMap<Site, usize>,
    /// Every call that counted, with the number of calls at its site before it.
    pub seen: Vec<(Site, usize)>,
    /// How many calls failed.
    pub hits: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Armed {
    Yes,
    No,
    /// From the first call that is about the cache directory.
    AtTheCache,
}

impl Plan {
    pub fn new(root: &Path, armed: Armed, target: Option<Target>) -> Plan {
        let (counts, seen) = (HashMap::new(), Vec::new());
        Plan { root: root.to_owned(), armed, target, counts, seen, hits: 0 }
    }

    /// Whether there are no descriptors until it is disarmed.
    pub fn lacks_descriptors(&self) -> bool {
        let failure = self.target.as_ref().map(|target| target.failure);
        failure == Some(Failure::Since(Errno::EMFILE))
    }

    pub fn arm(&mut self) {
        self.armed = Armed::Yes;
    }

    /// The fault is over.
    pub fn disarm(&mut self) {
        self.armed = Armed::No;
    }

    fn site(&self, call: &Call) -> Site {
        let subjects: Vec<String> = call.paths.iter().map(|path| self.subject(path)).collect();
        Site {
            thread: call.thread.clone(),
            name: call.name,
            subject: subjects.join(" "),
            creates: call.may_create(),
        }
    }

    fn subject(&self, path: &Path) -> String {
        match path.strip_prefix(&self.root) {
            Ok(inside) => {
                let parts = inside.iter().map(|part| anonymous(&part.to_string_lossy()));
                format!("cache/{}", parts.collect::<Vec<_>>().join("/"))
            }
            // `socket:[123]` and `/proc/123/…`
            Err(_) => path.to_string_lossy().replace(|c: char| c.is_ascii_digit(), "#"),
        }
    }
}

/// Temporary names without the parts that differ from run to run.
fn anonymous(name: &str) -> String {
    let deleted = if name.ends_with(" (deleted)") { " (deleted)" } else { "" };
    match ["spool-", "tmp-"].into_iter().find(|prefix| name.starts_with(prefix)) {
        Some(prefix) => format!("{prefix}*{deleted}"),
        None => name.to_owned(),
    }
}

impl Watch for Plan {
    fn before(&mut self, call: &Call) -> Verdict {
        match self.armed {
            Armed::No => return Verdict::Run,
            Armed::AtTheCache if call.path().starts_with(&self.root) => self.armed = Armed::Yes,
            Armed::AtTheCache => return Verdict::Run,
            Armed::Yes => {}
        }
        let site = self.site(call);
        let count = self.counts.entry(site.clone()).or_default();
        let spared = *count;
        *count += 1;
        let verdict = self.target.as_ref().map_or(Verdict::Run, |target| {
            let is_here = target.site == site && target.spared == spared;
            match target.failure {
                Failure::Once(errno) | Failure::Since(errno) if is_here => Verdict::Fail(errno),
                Failure::Since(errno) if self.hits > 0 && site.may_fail_with(errno) => {
                    Verdict::Fail(errno)
                }
                Failure::Short if is_here => Verdict::Shorten,
                _ => Verdict::Run,
            }
        });
        self.hits += usize::from(verdict != Verdict::Run);
        self.seen.push((site, spared));
        verdict
    }
}

/// What a descriptor refers to.
enum Kind {
    /// `/…` or `cache/…`
    File,
    /// A connection to another process.
    Peer,
    /// An event or a pipe of the program itself. The kernel may only interrupt it.
    Own,
}

const DISK: &[Errno] = &[Errno::EIO, Errno::ESTALE];
const DISK_FULL: &[Errno] = &[Errno::EIO, Errno::ENOSPC, Errno::EDQUOT, Errno::ESTALE];
const NO_DESCRIPTORS: &[Errno] = &[Errno::EMFILE, Errno::ENFILE];
const INTERRUPTED: &[Errno] = &[Errno::EINTR];

impl Site {
    /// How a call at this site may fail. A file system may return any error, but the kernel does not interrupt
    /// `statx`, for example.
    fn errors(&self) -> Vec<Errno> {
        let lists: &[&[Errno]] = match self.name {
            "openat" | "open" if self.creates => &[NO_DESCRIPTORS, DISK_FULL, INTERRUPTED],
            "openat" | "open" => &[NO_DESCRIPTORS, DISK, INTERRUPTED],
            "sendfile" => &[DISK, INTERRUPTED],
            "read" | "pread64" | "readv" | "recvfrom" | "recvmsg" => match self.kind() {
                Kind::File => &[DISK, INTERRUPTED],
                Kind::Peer => &[&[Errno::ECONNRESET], INTERRUPTED],
                Kind::Own => &[INTERRUPTED],
            },
            "write" | "pwrite64" | "writev" | "sendto" | "sendmsg" => match self.kind() {
                Kind::File => &[DISK_FULL, INTERRUPTED],
                Kind::Peer => &[&[Errno::EPIPE], INTERRUPTED],
                Kind::Own => &[INTERRUPTED],
            },
            "copy_file_range" | "ftruncate" | "fallocate" => &[DISK_FULL, INTERRUPTED],
            "fsync" | "fdatasync" | "sync_file_range" => &[DISK_FULL, INTERRUPTED],
            "rename" | "link" | "symlink" | "mkdir" | "mkdirat" => &[DISK_FULL],
            "unlink" | "unlinkat" | "rmdir" | "utimensat" | "getdents64" => &[DISK],
            "statx" | "newfstatat" | "stat" | "lstat" | "fstat" | "access" | "readlink" => &[DISK],
            "chmod" | "fchmod" | "chown" | "lchown" | "fchown" => &[DISK],
            "statfs" | "fstatfs" => &[DISK, INTERRUPTED],
            "flock" => &[&[Errno::ENOLCK, Errno::ESTALE], INTERRUPTED],
            "socket" | "epoll_create1" | "eventfd2" | "pipe2" | "dup" => &[NO_DESCRIPTORS],
            "accept4" => &[NO_DESCRIPTORS, INTERRUPTED, &[Errno::ECONNABORTED]],
            "connect" | "epoll_wait" | "epoll_pwait" | "poll" => &[INTERRUPTED],
            "epoll_ctl" => &[&[Errno::ENOSPC, Errno::ENOMEM]],
            "clone" | "clone3" => &[&[Errno::EAGAIN]],
            _ => &[],
        };
        lists.concat()
    }

    fn kind(&self) -> Kind {
        match self.subject.chars().next() {
            Some('/' | 'c') => Kind::File,
            _ if self.thread == "signals" => Kind::Own,
            _ if self.subject.starts_with("socket:") => Kind::Peer,
            _ => Kind::Own,
        }
    }

    fn may_fail_with(&self, errno: Errno) -> bool {
        self.errors().contains(&errno)
    }

    /// All failures at this site.
    pub fn failures(&self) -> Vec<Failure> {
        let mut failures: Vec<Failure> = self.errors().into_iter().map(Failure::Once).collect();
        if matches!(
            self.name,
            "read" | "pread64" | "write" | "pwrite64" | "sendfile" | "recvfrom" | "sendto"
        ) && !self.subject.contains("anon_inode")
        {
            failures.push(Failure::Short);
        }
        // These last until somebody does something about them.
        let lasting = [Errno::EMFILE, Errno::ENOSPC, Errno::EIO];
        failures
            .extend(self.errors().into_iter().filter(|e| lasting.contains(e)).map(Failure::Since));
        failures
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Site { thread, name, subject, .. } = &self.site;
        let number = self.spared + 1;
        match self.failure {
            Failure::Once(errno) => write!(f, "{errno:?} from ")?,
            Failure::Since(errno) => write!(f, "{errno:?} from then on, beginning with ")?,
            Failure::Short => write!(f, "a short ")?,
        }
        write!(f, "{name} {subject} number {number} in thread {thread}")
    }
}
