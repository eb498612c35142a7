//! Compression of bundles, and of layers whose digest covers the uncompressed content.
//!
//! Reading detects the format from the first bytes, not from the file's name. Zstandard is read and written by
//! `ruzstd`, because the C library would be the only one in the static binary.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::rc::Rc;
use std::str::FromStr;

use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use crate::oci::quoted;

/// The read buffer in front of a decompressor, in bytes.
const BUFFER_BYTES: usize = 64 * 1024;
/// How much content goes into one Zstandard frame, in bytes. Every reader treats consecutive frames as one stream,
/// and writing needs memory for one frame only.
const ZSTD_FRAME_BYTES: usize = 1024 * 1024;
/// The limit on the size of decompressed content: this many times the compressed size, which no gzip stream exceeds
/// (1,032 to 1), plus a gigabyte for repetitive content, which Zstandard compresses better.
const RATIO_MAX: u64 = 1_100;
const SLACK_BYTES: u64 = 1 << 30;
/// Layers in a bundle are compressed already, and the rest is small. (At level 1, incompressible content grows.)
const GZIP_LEVEL: u32 = 2;

/// A compression format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// No compression.
    None,
    /// Gzip, RFC 1952.
    Gzip,
    /// Zstandard, RFC 8878.
    Zstd,
}

impl Compression {
    /// The format for a file name: `.tar.gz`, `.tgz`, `.tar.zst`.
    pub fn of_name(path: &Path) -> Compression {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        match name.rsplit_once('.').map(|(_, extension)| extension) {
            Some("gz" | "tgz") => Compression::Gzip,
            Some("zst" | "tzst" | "zstd") => Compression::Zstd,
            _ => Compression::None,
        }
    }

    /// The format that the first bytes indicate.
    fn of_magic(bytes: &[u8]) -> Compression {
        match bytes {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            // A frame, or a skippable frame, which may come first.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            _ => Compression::None,
        }
    }
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> Result<Compression, String> {
        match text {
            "none" => Ok(Compression::None),
            "gzip" | "gz" => Ok(Compression::Gzip),
            "zstd" | "zst" => Ok(Compression::Zstd),
            _ => Err(format!("{} is none of gzip, zstd and none", quoted(text))),
        }
    }
}

/// Detects the format of `source`, and returns it with the decompressed content. Reading fails when the content is
/// disproportionately larger than the compressed input: a few kilobytes of Zstandard can expand to terabytes.
///
/// # Errors
/// Those of `source`.
pub(super) fn decompress<'a>(
    source: impl Read + 'a,
) -> io::Result<(Compression, Box<dyn Read + 'a>)> {
    // A pipe may return fewer bytes than a magic number at first.
    let (mut source, mut first) = (source, Vec::new());
    source.by_ref().take(4).read_to_end(&mut first)?;
    let compression = Compression::of_magic(&first);
    let bytes_read = Rc::new(Cell::new(0));
    let source = Counted { source: io::Cursor::new(first).chain(source), read: bytes_read.clone() };
    let source = BufReader::with_capacity(BUFFER_BYTES, source);
    let bounded = |unpacked| Box::new(Proportionate { unpacked, bytes_read, bytes_unpacked: 0 });
    let unpacked: Box<dyn Read + 'a> = match compression {
        Compression::None => return Ok((compression, Box::new(source))),
        Compression::Gzip => Box::new(MultiGzDecoder::new(source)),
        Compression::Zstd => Box::new(ZstdFrames::new(source)),
    };
    Ok((compression, bounded(unpacked)))
}

/// Counts the bytes that are read through it.
struct Counted<R> {
    source: R,
    read: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        self.read.set(self.read.get() + read as u64);
        Ok(read)
    }
}

/// Passes on unpacked bytes as long as they are in proportion to the packed ones.
struct Proportionate<'a> {
    unpacked: Box<dyn Read + 'a>,
    bytes_read: Rc<Cell<u64>>,
    bytes_unpacked: u64,
}

impl Read for Proportionate<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.unpacked.read(buffer)?;
        self.bytes_unpacked += read as u64;
        let bytes_read = self.bytes_read.get();
        if self.bytes_unpacked > bytes_read.saturating_mul(RATIO_MAX).saturating_add(SLACK_BYTES) {
            let reason = format!(
                "{bytes_read} compressed bytes expand to more than {RATIO_MAX} times as many"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        Ok(read)
    }
}

/// Decodes consecutive Zstandard frames.
struct ZstdFrames<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> ZstdFrames<R> {
    fn new(source: R) -> ZstdFrames<R> {
        // The decoder's own limit on the window is 128 MiB, as in `zstd` itself.
        ZstdFrames { source, decoder: FrameDecoder::new(), in_frame: false }
    }

    /// Starts the next frame, or skips a skippable one. Returns `false` at the end.
    fn next_frame(&mut self) -> io::Result<bool> {
        if self.source.fill_buf()?.is_empty() {
            return Ok(false);
        }
        match self.decoder.reset(&mut self.source) {
            Ok(()) => self.in_frame = true,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length,
                ..
            })) => {
                let length = u64::from(length);
                let skipped = io::copy(&mut self.source.by_ref().take(length), &mut io::sink())?;
                if skipped < length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
        Ok(true)
    }
}

impl<R: BufRead> Read for ZstdFrames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.in_frame {
                if !self.next_frame()? {
                    return Ok(0);
                }
                continue;
            }
            let read = self.decoder.read(buffer)?;
            if read > 0 {
                return Ok(read);
            }
            if self.decoder.is_finished() && self.decoder.can_collect() == 0 {
                self.in_frame = false;
                continue;
            }
            let one = BlockDecodingStrategy::UptoBlocks(1);
            self.decoder
                .decode_blocks(&mut self.source, one)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }
}

/// Compresses what is written to it.
pub(super) enum Compressor<W: Write> {
    Plain(W),
    Gzip(Box<GzEncoder<W>>),
    Zstd { out: W, frame: Vec<u8> },
}

impl<W: Write> Compressor<W> {
    pub(super) fn new(compression: Compression, out: W) -> Compressor<W> {
        match compression {
            Compression::None => Compressor::Plain(out),
            // Without a time and a name, so that the same content gives the same file.
            Compression::Gzip => Compressor::Gzip(Box::new(GzEncoder::new(
                out,
                flate2::Compression::new(GZIP_LEVEL),
            ))),
            Compression::Zstd => {
                Compressor::Zstd { out, frame: Vec::with_capacity(ZSTD_FRAME_BYTES) }
            }
        }
    }

    /// Writes the remaining bytes.
    ///
    /// # Errors
    /// Those of the underlying writer.
    pub(super) fn finish(self) -> io::Result<W> {
        match self {
            Compressor::Plain(out) => Ok(out),
            Compressor::Gzip(encoder) => encoder.finish(),
            Compressor::Zstd { mut out, mut frame } => {
                end_frame(&mut out, &mut frame)?;
                Ok(out)
            }
        }
    }
}

fn end_frame(out: &mut impl Write, frame: &mut Vec<u8>) -> io::Result<()> {
    if frame.is_empty() {
        return Ok(());
    }
    let compressed = compress_to_vec(frame.as_slice(), CompressionLevel::Fastest);
    frame.clear();
    out.write_all(&compressed)
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Compressor::Plain(out) => out.write(bytes),
            Compressor::Gzip(encoder) => encoder.write(bytes),
            Compressor::Zstd { out, frame } => {
                let length = bytes.len().min(ZSTD_FRAME_BYTES - frame.len());
                frame.extend_from_slice(&bytes[..length]);
                if frame.len() == ZSTD_FRAME_BYTES {
                    end_frame(out, frame)?;
                }
                Ok(length)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Compressor::Plain(out) | Compressor::Zstd { out, .. } => out.flush(),
            Compressor::Gzip(encoder) => encoder.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(compression: Compression, content: &[u8]) -> Vec<u8> {
        let mut out = Compressor::new(compression, Vec::new());
        out.write_all(content).unwrap();
        out.finish().unwrap()
    }

    fn unpacked(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        decompress(bytes)?.1.read_to_end(&mut content)?;
        Ok(content)
    }

    /// Content for two and a half frames; its second part is repetitive.
    fn sample() -> Vec<u8> {
        let mut state = 1u32;
        let random = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        let mut content: Vec<u8> = random.take(ZSTD_FRAME_BYTES).collect();
        content.resize(ZSTD_FRAME_BYTES * 5 / 2, b'x');
        content
    }

    #[test]
    fn compressed_content_can_be_decompressed() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            for content in [Vec::new(), b"abc".to_vec(), sample()] {
                let bytes = packed(compression, &content);
                assert!(unpacked(&bytes).unwrap() == content, "{compression:?}");
                assert!(packed(compression, &content) == bytes, "{compression:?} varies");
            }
        }
    }

    #[test]
    fn consecutive_members_and_frames_are_one_stream() {
        for compression in [Compression::Gzip, Compression::Zstd] {
            let bytes = [packed(compression, b"one "), packed(compression, b"two")].concat();
            assert_eq!(unpacked(&bytes).unwrap(), b"one two");
        }
        let skipped =
            [&[0x51, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3], &*packed(Compression::Zstd, b"x")];
        assert_eq!(unpacked(&skipped.concat()).unwrap(), b"x");
    }

    #[test]
    fn disproportionate_expansion_is_an_error() {
        let mut unpacked = Proportionate {
            unpacked: Box::new(io::repeat(0)),
            bytes_read: Rc::new(Cell::new(1_000)),
            bytes_unpacked: SLACK_BYTES + RATIO_MAX * 1_000 - 100,
        };
        let mut buffer = [0; 100];
        assert_eq!(unpacked.read(&mut buffer).unwrap(), 100);
        let error = unpacked.read(&mut buffer).unwrap_err().to_string();
        assert!(error.contains("1000 compressed bytes expand to more than 1100 times"), "{error}");
        // Reading more compressed bytes raises the limit.
        unpacked.bytes_read.set(2_000);
        assert_eq!(unpacked.read(&mut buffer).unwrap(), 100);
        let packed = packed(Compression::Zstd, &sample());
        let counted = Rc::new(Cell::new(0));
        let mut source = Counted { source: packed.as_slice(), read: counted.clone() };
        io::copy(&mut source, &mut io::sink()).unwrap();
        assert_eq!(counted.get(), packed.len() as u64);
    }

    #[test]
    fn truncated_content_is_an_error() {
        for compression in [Compression::Gzip, Compression::Zstd] {
            let bytes = packed(compression, &sample());
            for end in [bytes.len() - 1, bytes.len() / 2, 9] {
                assert!(unpacked(&bytes[..end]).is_err(), "{compression:?} at {end}");
            }
        }
        assert!(unpacked(&[0x51, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1]).is_err());
    }

    #[test]
    fn the_file_name_determines_the_compression() {
        for (name, compression) in [
            ("a.tar", Compression::None),
            ("a.tar.gz", Compression::Gzip),
            ("A.TGZ", Compression::Gzip),
            ("a.tar.zst", Compression::Zstd),
            ("gz", Compression::None),
        ] {
            assert_eq!(Compression::of_name(Path::new(name)), compression, "{name}");
        }
    }
}
