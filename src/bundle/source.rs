//! The source of a bundle: a tar file, its volumes, standard input, or a directory.
//!
//! The entries are passed on in order, with their content as a stream. Their paths are only compared, never opened,
//! so no path in a bundle can lead to a file outside it. Links are reported as links.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use tar::{Archive, EntryType};

use super::compression::decompress;
use super::error::{BundleError, shown};
use super::volumes::{VolumeReader, split_volume, volume, volumes};

/// The path that represents standard input on the command line.
pub const STANDARD_INPUT: &str = "/dev/stdin";
/// The most entries in a bundle: about ten times what the images of an entire registry would need.
const ENTRIES_MAX: u64 = 1_000_000;
/// The most bytes between the content of two entries: headers, long names and padding. The tar library reads long
/// names into memory, whatever size they announce.
const HEADER_BYTES_MAX: u64 = 64 * 1024;
/// How deep a directory is walked: an image layout has three levels.
const DEPTH_MAX: usize = 8;

/// A bundle, not yet opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BundleSource {
    /// A tar archive on standard input.
    StandardInput,
    /// A tar archive in a file.
    File(PathBuf),
    /// A tar archive in volumes.
    Volumes {
        /// Their common name.
        prefix: PathBuf,
        /// The volumes in order.
        paths: Vec<PathBuf>,
    },
    /// A directory with the content of a bundle.
    Directory(PathBuf),
    /// A tar archive in memory.
    Memory {
        /// The name for messages.
        name: &'static str,
        /// The archive.
        tar: Arc<[u8]>,
    },
}

/// An entry of a bundle.
pub(super) enum Item<'a> {
    /// A regular file.
    File {
        /// Its size in bytes.
        size: u64,
        /// Its bytes.
        content: &'a mut dyn Read,
    },
    /// A link to another entry.
    Link {
        /// The path of that entry; `None` if the link leads outside the bundle.
        target: Option<String>,
    },
}

/// A callback for entries: path and content.
pub(super) type Visit<'a> = dyn FnMut(&str, Item<'_>) -> Result<(), BundleError> + 'a;

impl BundleSource {
    /// The bundles at these paths. Volumes are one bundle: they can be given by their common name or by the first
    /// volume, and the later ones may be given as well (as in a shell's `name.*`).
    ///
    /// # Errors
    /// [`BundleError`] for a path that does not exist, and for a missing volume.
    pub fn all_of(paths: &[PathBuf]) -> Result<Vec<BundleSource>, BundleError> {
        let mut sources: Vec<BundleSource> = Vec::new();
        for path in paths {
            let source = BundleSource::of(path)?;
            if !sources.contains(&source) {
                sources.push(source);
            }
        }
        Ok(sources)
    }

    fn of(path: &Path) -> Result<BundleSource, BundleError> {
        if path == Path::new(STANDARD_INPUT) {
            return Ok(BundleSource::StandardInput);
        }
        if let Some((prefix, number)) = split_volume(path) {
            let paths = volumes(&prefix)?;
            return match paths.is_empty() {
                // Only the name looks like that of a volume, or the first volume is missing.
                true if number == 1 => Err(BundleError::MissingVolume { path: path.to_owned() }),
                true => Ok(BundleSource::File(path.to_owned())),
                false => Ok(BundleSource::Volumes { prefix, paths }),
            };
        }
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => Ok(BundleSource::Directory(path.to_owned())),
            Ok(_) => Ok(BundleSource::File(path.to_owned())),
            Err(source) => match volumes(path)? {
                paths if paths.is_empty() => {
                    Err(BundleError::Open { path: path.to_owned(), source })
                }
                paths => Ok(BundleSource::Volumes { prefix: path.to_owned(), paths }),
            },
        }
    }

    /// The name for messages.
    pub fn name(&self) -> String {
        match self {
            BundleSource::StandardInput => "standard input".into(),
            // A shell's `*` may have expanded to this name, so it is escaped.
            BundleSource::File(path)
            | BundleSource::Directory(path)
            | BundleSource::Volumes { prefix: path, .. } => shown(path),
            BundleSource::Memory { name, .. } => (*name).to_owned(),
        }
    }

    /// Calls `visit` for every file and every link, in the order of the bundle.
    ///
    /// # Errors
    /// [`BundleError`] if the bundle cannot be read to its end, or the first error of `visit`.
    pub(super) fn each_entry(&self, visit: &mut Visit<'_>) -> Result<(), BundleError> {
        let open = |path: &Path| {
            let opened = File::open(path);
            opened.map_err(|source| BundleError::Open { path: path.to_owned(), source })
        };
        match self {
            BundleSource::StandardInput => self.each_tar_entry(io::stdin().lock(), visit),
            BundleSource::File(path) => self.each_tar_entry(open(path)?, visit),
            BundleSource::Volumes { prefix, paths } => {
                let mut volumes = VolumeReader::new(paths.clone());
                let read = self.each_tar_entry(&mut volumes, visit);
                match read {
                    Err(BundleError::Read { .. }) if volumes.is_at_end() => {
                        let next = volume(prefix, paths.len() as u32 + 1);
                        Err(BundleError::CutOff { bundle: self.name(), next })
                    }
                    read => read,
                }
            }
            BundleSource::Directory(path) => self.each_file(path, visit),
            BundleSource::Memory { tar, .. } => self.each_tar_entry(&tar[..], visit),
        }
    }

    fn each_tar_entry(&self, source: impl Read, visit: &mut Visit<'_>) -> Result<(), BundleError> {
        let mut last = "its beginning".to_owned();
        let failed = |last: &str, source: io::Error| BundleError::Read {
            bundle: self.name(),
            entry: last.to_owned(),
            source,
        };
        let (_, plain) = decompress(source).map_err(|error| failed(&last, error))?;
        let meter = Meter::default();
        let mut archive = Archive::new(Metered { source: plain, meter: meter.clone() });
        meter.allow(HEADER_BYTES_MAX);
        let entries = archive.entries().map_err(|error| failed(&last, error))?;
        let mut count = 0;
        for entry in entries {
            let mut entry = entry.map_err(|error| failed(&last, error))?;
            meter.allow(entry.size().saturating_add(HEADER_BYTES_MAX));
            self.count_entry(&mut count)?;
            let written = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let escapes = || BundleError::Escapes { bundle: self.name(), entry: written.clone() };
            let path = inside(&written).ok_or_else(escapes)?;
            let target = entry
                .link_name_bytes()
                .map(|target| String::from_utf8_lossy(&target).into_owned())
                .unwrap_or_default();
            let size = entry.size();
            match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous => {
                    visit(&path, Item::File { size, content: &mut entry })?;
                }
                EntryType::Symlink => {
                    visit(&path, Item::Link { target: beside(&path, &target) })?;
                }
                EntryType::Link => visit(&path, Item::Link { target: inside(&target) })?,
                // No image needs directories, devices or other special files.
                _ => {}
            }
            last = path;
        }
        Ok(())
    }

    fn each_file(&self, root: &Path, visit: &mut Visit<'_>) -> Result<(), BundleError> {
        let mut count = 0;
        let mut directories = vec![(root.to_owned(), String::new(), 0)];
        while let Some((directory, below, depth)) = directories.pop() {
            for name in self.names_in(&directory)? {
                self.count_entry(&mut count)?;
                let path = directory.join(&name);
                let failed = |source| BundleError::Open { path: path.clone(), source };
                let entry = if below.is_empty() { name } else { format!("{below}/{name}") };
                let metadata = fs::symlink_metadata(&path).map_err(failed)?;
                if metadata.is_symlink() {
                    let target = fs::read_link(&path).map_err(failed)?;
                    let target = beside(&entry, &target.to_string_lossy());
                    visit(&entry, Item::Link { target })?;
                } else if metadata.is_dir() && depth < DEPTH_MAX {
                    directories.push((path, entry, depth + 1));
                } else if metadata.is_file() {
                    let mut content = File::open(&path).map_err(failed)?;
                    visit(&entry, Item::File { size: metadata.len(), content: &mut content })?;
                }
            }
        }
        Ok(())
    }

    /// The names in a directory, sorted.
    fn names_in(&self, directory: &Path) -> Result<Vec<String>, BundleError> {
        let failed = |source| BundleError::Open { path: directory.to_owned(), source };
        let (mut names, mut count) = (Vec::new(), 0);
        for entry in fs::read_dir(directory).map_err(failed)? {
            self.count_entry(&mut count)?;
            // No file that an image needs has a name that is not UTF-8.
            names.extend(entry.map_err(failed)?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    fn count_entry(&self, count: &mut u64) -> Result<(), BundleError> {
        *count += 1;
        match *count > ENTRIES_MAX {
            true => Err(BundleError::TooManyEntries { bundle: self.name(), limit: ENTRIES_MAX }),
            false => Ok(()),
        }
    }
}

/// The normalized form of a path in a bundle; `None` if it leads outside the bundle.
fn inside(path: &str) -> Option<String> {
    joined(Vec::new(), path, false)
}

/// The target of a symbolic link at `path`; `None` if it leads outside the bundle.
fn beside(path: &str, target: &str) -> Option<String> {
    let mut parents: Vec<&str> = path.split('/').collect();
    parents.pop();
    joined(parents, target, true)
}

fn joined<'a>(mut parts: Vec<&'a str>, path: &'a str, may_go_up: bool) -> Option<String> {
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            Component::ParentDir if may_go_up => {
                parts.pop()?;
            }
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

/// How many bytes may still be read before the next entry must begin.
#[derive(Clone, Default)]
struct Meter(Rc<Cell<u64>>);

impl Meter {
    fn allow(&self, bytes: u64) {
        self.0.set(bytes);
    }
}

struct Metered<R> {
    source: R,
    meter: Meter,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.meter.0.get();
        if left == 0 && !buffer.is_empty() {
            return Err(io::Error::other("a header is longer than those that tar writes"));
        }
        let allowed = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = self.source.read(&mut buffer[..allowed])?;
        self.meter.0.set(left - read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in entries {
            let mut header = tar::Header::new_gnu();
            // Unchecked, as an attacker could write it.
            header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn paths_of(bytes: &[u8]) -> Result<Vec<String>, BundleError> {
        let mut paths = Vec::new();
        BundleSource::StandardInput.each_tar_entry(bytes, &mut |path, _| {
            paths.push(path.to_owned());
            Ok(())
        })?;
        Ok(paths)
    }

    #[test]
    fn paths_are_normalized_and_stay_inside_the_bundle() {
        let bytes = tar_of(&[("./a", b"1"), ("b//c", b""), ("b/./d", b"")]);
        assert_eq!(paths_of(&bytes).unwrap(), ["a", "b/c", "b/d"]);
        for path in ["../a", "a/../../b", "a/../b", "/etc/passwd", ".."] {
            let error = paths_of(&tar_of(&[(path, b"x")])).unwrap_err();
            assert!(matches!(error, BundleError::Escapes { .. }), "{path}: {error}");
            assert!(error.to_string().contains(path), "{error}");
        }
    }

    #[test]
    fn symbolic_links_resolve_only_to_entries() {
        for (path, target, expected) in [
            ("a/layer.tar", "../b/layer.tar", Some("b/layer.tar")),
            ("a", "b", Some("b")),
            ("a/b", "./c", Some("a/c")),
            ("a/b", "../../c", None),
            ("a", "/etc/passwd", None),
        ] {
            assert_eq!(beside(path, target).as_deref(), expected, "{path} -> {target}");
        }
    }

    #[test]
    fn a_name_of_gigabytes_is_refused_before_it_is_read_into_memory() {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::GNULongName);
        header.set_size(8 << 30);
        header.set_cksum();
        let endless = header.as_bytes().chain(io::repeat(b'a'));
        let result = BundleSource::StandardInput.each_tar_entry(endless, &mut |_, _| Ok(()));
        assert!(matches!(result, Err(BundleError::Read { .. })), "{result:?}");
    }

    #[test]
    fn a_directory_is_read_without_following_links() {
        let directory = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), b"x").unwrap();
        let root = directory.path();
        fs::create_dir(root.join("blobs")).unwrap();
        fs::write(root.join("blobs/a"), b"abc").unwrap();
        std::os::unix::fs::symlink(outside.path(), root.join("out")).unwrap();
        std::os::unix::fs::symlink("blobs/a", root.join("in")).unwrap();
        let mut visited = Vec::new();
        let source = BundleSource::Directory(root.to_owned());
        source
            .each_entry(&mut |path, item| {
                visited.push(match item {
                    Item::File { size, .. } => format!("{path} {size}"),
                    Item::Link { target } => format!("{path} -> {target:?}"),
                });
                Ok(())
            })
            .unwrap();
        visited.sort();
        assert_eq!(visited, ["blobs/a 3", "in -> Some(\"blobs/a\")", "out -> None"]);
    }

    #[test]
    fn volumes_are_one_bundle_under_any_of_their_names() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["b.001", "b.002", "lone.007"] {
            fs::write(path(name), b"x").unwrap();
        }
        let all = [path("b.001"), path("b.002"), path("b")];
        let sources = BundleSource::all_of(&all).unwrap();
        assert_eq!(sources.len(), 1, "{sources:?}");
        assert_eq!(sources[0].name(), path("b").display().to_string());
        for name in ["none", "none.001"] {
            let error = BundleSource::all_of(&[path(name)]).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        assert!(BundleSource::all_of(&[path("lone.007")]).is_err());
        fs::remove_file(path("b.001")).unwrap();
        let error = BundleSource::all_of(&[path("b.002")]).unwrap_err().to_string();
        assert!(error.contains("b.001"), "{error}");
    }
}
