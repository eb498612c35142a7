//! System calls as the tracer sees them: the name, and the files or sockets that the call is about.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::libc;

/// The longest path that is read from the memory of a process.
const PATH_BYTES_MAX: usize = 4096;

/// A system call at its beginning.
#[derive(Debug, Clone)]
pub struct Call {
    pub name: &'static str,
    pub arguments: [u64; 6],
    /// The files, with absolute paths. A descriptor that is not a file looks like `socket:[123]`.
    pub paths: Vec<PathBuf>,
    /// Without the numbers at its end: `http-worker`.
    pub thread: String,
    /// The number of the thread.
    pub task: i32,
    /// For `/proc/PID`.
    pub process: i32,
}

/// Where a call names the objects that it is about.
#[derive(Clone, Copy)]
enum Names {
    /// Nowhere: it creates a descriptor.
    Nothing,
    /// A descriptor in this argument.
    Descriptor(usize),
    /// A path.
    Path(usize),
    /// A directory's descriptor, and the path below it.
    At(usize, usize),
    Paths(usize, usize),
    Ats([usize; 2], [usize; 2]),
}
use Names::{At, Ats, Descriptor, Nothing, Path as Name, Paths};

/// The calls that access files and sockets, or create descriptors. The tracer reports no others.
const CALLS: &[(i64, &str, Names)] = &[
    (libc::SYS_openat, "openat", At(0, 1)),
    (libc::SYS_open, "open", Name(0)),
    (libc::SYS_read, "read", Descriptor(0)),
    (libc::SYS_pread64, "pread64", Descriptor(0)),
    (libc::SYS_readv, "readv", Descriptor(0)),
    (libc::SYS_write, "write", Descriptor(0)),
    (libc::SYS_pwrite64, "pwrite64", Descriptor(0)),
    (libc::SYS_writev, "writev", Descriptor(0)),
    (libc::SYS_sendfile, "sendfile", Ats([0, 0], [1, 1])),
    (libc::SYS_copy_file_range, "copy_file_range", Ats([2, 2], [0, 0])),
    (libc::SYS_ftruncate, "ftruncate", Descriptor(0)),
    (libc::SYS_fallocate, "fallocate", Descriptor(0)),
    (libc::SYS_fsync, "fsync", Descriptor(0)),
    (libc::SYS_fdatasync, "fdatasync", Descriptor(0)),
    (libc::SYS_sync_file_range, "sync_file_range", Descriptor(0)),
    (libc::SYS_flock, "flock", Descriptor(0)),
    (libc::SYS_getdents64, "getdents64", Descriptor(0)),
    (libc::SYS_statx, "statx", At(0, 1)),
    (libc::SYS_newfstatat, "newfstatat", At(0, 1)),
    (libc::SYS_stat, "stat", Name(0)),
    (libc::SYS_lstat, "lstat", Name(0)),
    (libc::SYS_fstat, "fstat", Descriptor(0)),
    (libc::SYS_statfs, "statfs", Name(0)),
    (libc::SYS_fstatfs, "fstatfs", Descriptor(0)),
    (libc::SYS_access, "access", Name(0)),
    (libc::SYS_readlink, "readlink", Name(0)),
    (libc::SYS_rename, "rename", Paths(0, 1)),
    (libc::SYS_renameat, "rename", Ats([0, 1], [2, 3])),
    (libc::SYS_renameat2, "rename", Ats([0, 1], [2, 3])),
    (libc::SYS_link, "link", Paths(0, 1)),
    (libc::SYS_linkat, "link", Ats([0, 1], [2, 3])),
    (libc::SYS_symlink, "symlink", Name(1)),
    (libc::SYS_symlinkat, "symlink", At(1, 2)),
    (libc::SYS_unlink, "unlink", Name(0)),
    (libc::SYS_unlinkat, "unlinkat", At(0, 1)),
    (libc::SYS_mkdir, "mkdir", Name(0)),
    (libc::SYS_mkdirat, "mkdirat", At(0, 1)),
    (libc::SYS_rmdir, "rmdir", Name(0)),
    (libc::SYS_chmod, "chmod", Name(0)),
    (libc::SYS_fchmod, "fchmod", Descriptor(0)),
    (libc::SYS_chown, "chown", Name(0)),
    (libc::SYS_lchown, "lchown", Name(0)),
    (libc::SYS_fchown, "fchown", Descriptor(0)),
    (libc::SYS_utimensat, "utimensat", At(0, 1)),
    (libc::SYS_socket, "socket", Nothing),
    (libc::SYS_accept4, "accept4", Descriptor(0)),
    (libc::SYS_connect, "connect", Descriptor(0)),
    (libc::SYS_recvfrom, "recvfrom", Descriptor(0)),
    (libc::SYS_recvmsg, "recvmsg", Descriptor(0)),
    (libc::SYS_sendto, "sendto", Descriptor(0)),
    (libc::SYS_sendmsg, "sendmsg", Descriptor(0)),
    (libc::SYS_shutdown, "shutdown", Descriptor(0)),
    (libc::SYS_setsockopt, "setsockopt", Descriptor(0)),
    (libc::SYS_getsockopt, "getsockopt", Descriptor(0)),
    (libc::SYS_epoll_create1, "epoll_create1", Nothing),
    (libc::SYS_epoll_ctl, "epoll_ctl", Descriptor(2)),
    (libc::SYS_epoll_wait, "epoll_wait", Descriptor(0)),
    (libc::SYS_epoll_pwait, "epoll_pwait", Descriptor(0)),
    (libc::SYS_poll, "poll", Nothing),
    (libc::SYS_eventfd2, "eventfd2", Nothing),
    (libc::SYS_pipe2, "pipe2", Nothing),
    (libc::SYS_fcntl, "fcntl", Descriptor(0)),
    (libc::SYS_dup, "dup", Descriptor(0)),
    (libc::SYS_clone3, "clone3", Nothing),
    (libc::SYS_clone, "clone", Nothing),
];

impl Call {
    /// The call with this number; `None` if it is not about files, sockets or threads.
    pub fn at_entry(process: i32, thread: i32, number: i64, arguments: [u64; 6]) -> Option<Call> {
        let (_, name, names) = CALLS.iter().find(|(each, ..)| *each == number)?;
        let mut call = Call {
            name,
            arguments,
            paths: Vec::new(),
            thread: String::new(),
            task: thread,
            process,
        };
        let found = match *names {
            Nothing => vec![],
            Descriptor(at) => vec![call.descriptor(at)],
            Name(at) => vec![call.below(None, at)],
            Paths(from, to) => vec![call.below(None, from), call.below(None, to)],
            At(directory, path) => vec![call.below(Some(directory), path)],
            // Two descriptors, or two paths below descriptors.
            Ats(from, to) => [from, to]
                .map(|[directory, path]| match directory == path {
                    true => call.descriptor(directory),
                    false => call.below(Some(directory), path),
                })
                .into(),
        };
        call.paths = found.into_iter().flatten().collect();
        let comm = fs::read_to_string(format!("/proc/{process}/task/{thread}/comm"));
        let comm = comm.unwrap_or_default();
        call.thread = comm.trim_end().trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
        Some(call)
    }

    /// The file that a descriptor of the process refers to. Opening this path opens that file, even if it has no
    /// name any more.
    pub fn open_file(&self, descriptor: u64) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", self.process, as_int(descriptor)))
    }

    /// The position of a descriptor of the process.
    pub fn position(&self, descriptor: u64) -> Option<u64> {
        let path = format!("/proc/{}/fdinfo/{}", self.process, as_int(descriptor));
        let text = fs::read_to_string(path).ok()?;
        text.lines().find_map(|line| line.strip_prefix("pos:"))?.trim().parse().ok()
    }

    pub fn path(&self) -> &Path {
        self.paths.first().map_or(Path::new(""), PathBuf::as_path)
    }

    /// Whether it may create a file.
    pub fn may_create(&self) -> bool {
        self.name == "openat" && self.arguments[2] & libc::O_CREAT as u64 != 0
    }

    fn descriptor(&self, at: usize) -> Option<PathBuf> {
        fs::read_link(self.open_file(self.arguments[at])).ok()
    }

    fn below(&self, directory: Option<usize>, at: usize) -> Option<PathBuf> {
        let path = self.text(self.arguments[at])?;
        if path.starts_with('/') {
            return Some(path.into());
        }
        let base = match directory {
            Some(at) if as_int(self.arguments[at]) != libc::AT_FDCWD => self.descriptor(at)?,
            _ => fs::read_link(format!("/proc/{}/cwd", self.process)).ok()?,
        };
        // With an empty path, the call is about the descriptor itself.
        Some(if path.is_empty() { base } else { base.join(path) })
    }

    /// A string in the memory of the process.
    fn text(&self, address: u64) -> Option<String> {
        let memory = File::open(format!("/proc/{}/mem", self.process)).ok()?;
        let (mut text, mut chunk) = (Vec::new(), [0; 256]);
        while text.len() < PATH_BYTES_MAX {
            // Reads stop at the end of a mapping.
            let read = memory.read_at(&mut chunk, address + text.len() as u64).ok()?;
            match chunk[..read].iter().position(|byte| *byte == 0) {
                Some(end) => {
                    text.extend_from_slice(&chunk[..end]);
                    return String::from_utf8(text).ok();
                }
                None if read == 0 => return None,
                None => text.extend_from_slice(&chunk[..read]),
            }
        }
        None
    }
}

/// An argument that is an `int`.
pub fn as_int(argument: u64) -> i32 {
    argument as u32 as i32
}
