//! The output of an export: a tar archive, its volumes, standard output, or a directory.
//!
//! No file gets its final name before it is complete. The bytes depend on the content alone: they include no
//! times or owners, and the caller determines the order.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use tar::{Builder, Header};

use super::compression::{Compression, Compressor};
use super::error::BundleError;
use super::layout::OCI_LAYOUT;
use super::unfinished::Unfinished;
use super::volumes::VolumeWriter;

/// The size of the write buffer, in bytes.
const BUFFER_BYTES: usize = 256 * 1024;
/// Readable by all users, as usual for archives.
const FILE_MODE: u32 = 0o644;

/// Where an export is written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A tar archive on standard output.
    StandardOutput,
    /// A tar archive in a file.
    File(PathBuf),
    /// A tar archive in volumes.
    Volumes {
        /// Their common name.
        prefix: PathBuf,
        /// The maximum size of a volume in bytes.
        volume_bytes: u64,
    },
    /// A directory.
    Directory(PathBuf),
}

/// The form of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    /// Where it is written to.
    pub destination: Destination,
    /// The compression of a tar archive.
    pub compression: Compression,
}

/// The destination of a tar archive's bytes.
pub(super) enum Sink {
    StandardOutput(io::Stdout),
    /// A pipe or a device.
    Opened(File),
    File(Unfinished),
    Volumes(VolumeWriter),
}

impl Sink {
    fn open(destination: &Destination) -> io::Result<Sink> {
        Ok(match destination {
            Destination::Volumes { prefix, volume_bytes } => {
                Sink::Volumes(VolumeWriter::new(prefix, *volume_bytes))
            }
            Destination::File(path) if path.exists() && (!path.is_file() || is_stream(path)) => {
                Sink::Opened(File::options().write(true).open(path)?)
            }
            Destination::File(path) => Sink::File(Unfinished::create(path)?),
            Destination::StandardOutput | Destination::Directory(_) => {
                Sink::StandardOutput(io::stdout())
            }
        })
    }

    fn finish(self) -> io::Result<Option<u32>> {
        match self {
            Sink::StandardOutput(mut out) => out.flush().map(|()| None),
            Sink::Opened(mut file) => file.flush().map(|()| None),
            Sink::File(file) => file.finish().map(|()| None),
            Sink::Volumes(volumes) => volumes.finish().map(Some),
        }
    }

    fn as_write(&mut self) -> &mut dyn Write {
        match self {
            Sink::StandardOutput(out) => out,
            Sink::Opened(file) => file,
            Sink::File(unfinished) => &mut unfinished.file,
            Sink::Volumes(volumes) => volumes,
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.as_write().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.as_write().flush()
    }
}

/// Whether a path names a stream that is open in a process, like `/dev/stdout`. It may lead to a file, but what must not be
/// replaced is the link.
fn is_stream(path: &Path) -> bool {
    let is_of_system = ["/dev", "/proc"].iter().any(|directory| path.starts_with(directory));
    is_of_system && path.is_symlink()
}

/// A layout that is being written.
pub(super) enum Output {
    /// Into a tar archive.
    Tar {
        /// The path for error messages.
        path: PathBuf,
        /// The archive.
        tar: Box<Builder<Compressor<BufWriter<Sink>>>>,
    },
    /// Into a directory.
    Directory(PathBuf),
}

impl Output {
    /// Opens the output.
    ///
    /// # Errors
    /// [`BundleError`] if it cannot be created, or is a directory with other content.
    pub(super) fn open(form: &Form) -> Result<Output, BundleError> {
        let path = match &form.destination {
            Destination::Directory(path) => {
                prepare(path)?;
                return Ok(Output::Directory(path.clone()));
            }
            Destination::StandardOutput => PathBuf::from("standard output"),
            Destination::File(path) | Destination::Volumes { prefix: path, .. } => path.clone(),
        };
        let sink =
            Sink::open(&form.destination).map_err(|error| BundleError::write(&path, error))?;
        let sink = BufWriter::with_capacity(BUFFER_BYTES, sink);
        let tar = Box::new(Builder::new(Compressor::new(form.compression, sink)));
        Ok(Output::Tar { path, tar })
    }

    /// Whether names must be written after the content that they refer to. In a directory, they must. A tar
    /// archive gets its own name at the end, and its readers want the list of its content first.
    pub(super) fn wants_names_last(&self) -> bool {
        matches!(self, Output::Directory(_))
    }

    /// Writes a file.
    ///
    /// # Errors
    /// [`BundleError::Write`], also if reading `content` fails.
    pub(super) fn put(
        &mut self,
        name: &str,
        size: u64,
        content: &mut dyn Read,
    ) -> Result<(), BundleError> {
        match self {
            Output::Tar { path, tar } => {
                let mut header = Header::new_gnu();
                header.set_size(size);
                header.set_mode(FILE_MODE);
                header.set_mtime(0);
                header.set_uid(0);
                header.set_gid(0);
                let appended = tar.append_data(&mut header, name, content);
                appended.map_err(|error| BundleError::write(path, error))
            }
            Output::Directory(root) => {
                let path = root.join(name);
                put_file(&path, content).map_err(|error| BundleError::write(&path, error))
            }
        }
    }

    /// Whether a blob exists already. An earlier export into the same directory has verified it.
    pub(super) fn has_blob(&self, name: &str, size: u64) -> bool {
        match self {
            Output::Tar { .. } => false,
            Output::Directory(root) => {
                fs::metadata(root.join(name)).is_ok_and(|metadata| metadata.len() == size)
            }
        }
    }

    /// Flushes the output and gives a tar archive its name. Returns the number of volumes.
    ///
    /// # Errors
    /// [`BundleError::Write`].
    pub(super) fn finish(self) -> Result<Option<u32>, BundleError> {
        let Output::Tar { path, tar } = self else { return Ok(None) };
        let finished = (*tar)
            .into_inner()
            .and_then(Compressor::finish)
            .and_then(|sink| sink.into_inner().map_err(io::IntoInnerError::into_error))
            .and_then(Sink::finish);
        finished.map_err(|error| BundleError::write(&path, error))
    }
}

/// Creates the directory of a layout. Refuses a directory with other content.
fn prepare(root: &Path) -> Result<(), BundleError> {
    // Left by an export that was killed before it had written anything else.
    let is_leftover = |name: std::ffi::OsString| name == "oci-layout.part";
    let is_occupied = fs::read_dir(root).is_ok_and(|mut entries| {
        entries.any(|entry| entry.is_ok_and(|entry| !is_leftover(entry.file_name())))
    });
    if is_occupied && !root.join("oci-layout").is_file() {
        return Err(BundleError::NotALayout { path: root.to_owned() });
    }
    let created = fs::create_dir_all(root).and_then(|()| {
        // The first file of the layout, so that an export can be repeated after it was killed.
        put_file(&root.join("oci-layout"), &mut &*OCI_LAYOUT)
    });
    created.map_err(|error| BundleError::write(root, error))
}

fn put_file(path: &Path, content: &mut dyn Read) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut unfinished = Unfinished::create(path)?;
    io::copy(content, &mut unfinished.file)?;
    unfinished.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_streams_are_written_and_other_links_are_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("b.tar");
        std::os::unix::fs::symlink(directory.path().join("other.tar"), &link).unwrap();
        assert!(is_stream(Path::new("/dev/stdout")));
        assert!(is_stream(Path::new("/proc/self/fd/1")));
        assert!(!is_stream(Path::new("/dev/null")), "it is opened as it is");
        assert!(!is_stream(&link));
    }
}
