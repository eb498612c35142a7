//! Volumes: a stream split into files that fit on a medium, `name.001`, `name.002`, …
//!
//! The volumes contain the bytes of the stream and nothing else, so `cat name.*` restores it anywhere.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::error::BundleError;
use super::unfinished::Unfinished;

/// The most volumes: names with three digits sort in numerical order, also for `cat`.
const VOLUMES_MAX: u32 = 999;

/// The path of a volume.
pub(super) fn volume(prefix: &Path, number: u32) -> PathBuf {
    with_suffix(prefix, &format!(".{number:03}"))
}

/// A path with a suffix after its name and extension.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The common name and the number of a volume; `None` for other paths.
pub(super) fn split_volume(path: &Path) -> Option<(PathBuf, u32)> {
    let extension = path.extension()?.to_str()?;
    let is_number = extension.len() == 3 && extension.bytes().all(|byte| byte.is_ascii_digit());
    let number = extension.parse().ok().filter(|number| is_number && *number > 0)?;
    Some((path.with_extension(""), number))
}

/// The volumes with this common name, in order; empty if there are none.
///
/// # Errors
/// [`BundleError::MissingVolume`] if a volume before the last one is missing.
pub(super) fn volumes(prefix: &Path) -> Result<Vec<PathBuf>, BundleError> {
    let found: Vec<u32> =
        (1..=VOLUMES_MAX).filter(|number| volume(prefix, *number).is_file()).collect();
    let paths = found.iter().zip(1..).map(|(number, expected)| match *number == expected {
        true => Ok(volume(prefix, *number)),
        false => Err(BundleError::MissingVolume { path: volume(prefix, expected) }),
    });
    paths.collect()
}

/// Reads the volumes as one stream.
pub(super) struct VolumeReader {
    open: Option<File>,
    left: std::vec::IntoIter<PathBuf>,
    is_at_end: bool,
}

impl VolumeReader {
    pub(super) fn new(paths: Vec<PathBuf>) -> VolumeReader {
        VolumeReader { open: None, left: paths.into_iter(), is_at_end: false }
    }

    /// Whether a read went beyond the last volume.
    pub(super) fn is_at_end(&self) -> bool {
        self.is_at_end
    }
}

impl Read for VolumeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(file) = &mut self.open {
                let read = file.read(buffer)?;
                if read > 0 || buffer.is_empty() {
                    return Ok(read);
                }
            }
            match self.left.next() {
                Some(path) => self.open = Some(File::open(path)?),
                None => {
                    self.is_at_end = true;
                    return Ok(0);
                }
            }
        }
    }
}

/// Splits what is written to it into volumes. Each gets its final name when it is complete. All are removed if the
/// last one is never completed.
pub(super) struct VolumeWriter {
    prefix: PathBuf,
    volume_bytes: u64,
    number: u32,
    open: Option<Unfinished>,
    left: u64,
    is_finished: bool,
}

impl VolumeWriter {
    pub(super) fn new(prefix: &Path, volume_bytes: u64) -> VolumeWriter {
        let prefix = prefix.to_owned();
        VolumeWriter { prefix, volume_bytes, number: 0, open: None, left: 0, is_finished: false }
    }

    /// Completes the last volume, and removes later volumes that a longer export left under the same name: they
    /// would be read as its continuation. Returns the number of volumes.
    pub(super) fn finish(mut self) -> io::Result<u32> {
        self.end_volume()?;
        self.is_finished = true;
        for stale in (self.number + 1)..=VOLUMES_MAX {
            match fs::remove_file(volume(&self.prefix, stale)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                other => other?,
            }
        }
        Ok(self.number)
    }

    fn end_volume(&mut self) -> io::Result<()> {
        self.open.take().map_or(Ok(()), Unfinished::finish)
    }

    fn next_volume(&mut self) -> io::Result<()> {
        self.end_volume()?;
        if self.number == VOLUMES_MAX {
            return Err(io::Error::other(BundleError::TooManyVolumes { limit: VOLUMES_MAX }));
        }
        self.number += 1;
        self.open = Some(Unfinished::create(&volume(&self.prefix, self.number))?);
        self.left = self.volume_bytes;
        Ok(())
    }
}

impl Write for VolumeWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.left == 0 && !bytes.is_empty() {
            self.next_volume()?;
        }
        let Some(Unfinished { file, .. }) = &mut self.open else { return Ok(0) };
        let length = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let written = file.write(&bytes[..length])?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for VolumeWriter {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        // The error was reported already, and an incomplete set of volumes is useless. The last volume still
        // has its temporary name; a file with its final name belongs to an earlier export.
        let written = if self.open.take().is_some() { self.number - 1 } else { self.number };
        for number in 1..=written {
            let _ = fs::remove_file(volume(&self.prefix, number));
        }
    }
}

/// Parses a size such as `4GB`, `700MiB` or `1048576`.
///
/// # Errors
/// A text that describes the accepted sizes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let factor = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "ki" | "kib" => 1 << 10,
        "mi" | "mib" => 1 << 20,
        "gi" | "gib" => 1 << 30,
        "ti" | "tib" => 1_u64 << 40,
        _ => 0,
    };
    let bytes = text[..digits].parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| {
        format!(
            "{text:?} is not a size: give a number with a unit of B, kB, MB, GB, TB, KiB, MiB, GiB or TiB"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(prefix: &Path, volume_bytes: u64, content: &[u8]) -> u32 {
        let mut out = VolumeWriter::new(prefix, volume_bytes);
        out.write_all(content).unwrap();
        out.finish().unwrap()
    }

    fn read(prefix: &Path) -> Vec<u8> {
        let mut content = Vec::new();
        VolumeReader::new(volumes(prefix).unwrap()).read_to_end(&mut content).unwrap();
        content
    }

    #[test]
    fn volumes_restore_the_stream() {
        let directory = tempfile::tempdir().unwrap();
        let prefix = directory.path().join("bundle.tar");
        for (content, count) in [(&b"abcdefg"[..], 3), (b"abcdef", 2), (b"a", 1)] {
            assert_eq!(write(&prefix, 3, content), count);
            assert_eq!(read(&prefix), content, "volumes of a longer stream are removed");
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_volume_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let prefix = directory.path().join("b");
        write(&prefix, 1, b"abc");
        fs::remove_file(volume(&prefix, 2)).unwrap();
        let error = volumes(&prefix).unwrap_err().to_string();
        assert!(error.contains("b.002"), "{error}");
    }

    #[test]
    fn an_unfinished_writer_leaves_no_volumes() {
        let directory = tempfile::tempdir().unwrap();
        let mut out = VolumeWriter::new(&directory.path().join("b"), 10);
        out.write_all(b"more than one").unwrap();
        drop(out);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn volume_names_end_in_three_digits() {
        for (name, expected) in [
            ("a/b.tar.001", Some(("a/b.tar", 1))),
            ("b.120", Some(("b", 120))),
            ("b.000", None),
            ("b.01", None),
            ("b.tar", None),
            ("b.+01", None),
        ] {
            let expected = expected.map(|(prefix, number)| (PathBuf::from(prefix), number));
            assert_eq!(split_volume(Path::new(name)), expected, "{name}");
        }
    }

    #[test]
    fn sizes_have_decimal_or_binary_units() {
        for (text, bytes) in
            [("1", 1), ("4GB", 4_000_000_000), ("700 MiB", 700 << 20), ("2k", 2_000)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "0", "GB", "4XB", "-1", "99999999999TB", "1.5GB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
