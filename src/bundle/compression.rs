//! Compression of whole bundles and, where a digest is over what is inside, of layers.
//!
//! Reading goes by what the bytes say and not by the file's name. Zstandard is read and written by
//! `ruzstd`, since the C library would be the only one in the static binary.

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

/// The buffer between the disk and what is decompressed, in bytes.
const BUFFER_BYTES: usize = 64 * 1024;
/// How much is compressed to a Zstandard frame of its own, in bytes. Frames that follow each other are
/// one stream to every reader, and the memory needed is that of one.
const ZSTD_FRAME_BYTES: usize = 1024 * 1024;
/// How much more than was read may come out of it: what no gzip stream exceeds (1,032 to 1), and a
/// gigabyte for the runs that Zstandard packs better.
const RATIO_MAX: u64 = 1_100;
const SLACK_BYTES: u64 = 1 << 30;
/// Layers in a bundle are compressed already; the rest is small. (At level 1, what cannot be packed grows.)
const GZIP_LEVEL: u32 = 2;

/// How bytes are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// Gzip, RFC 1952.
    Gzip,
    /// Zstandard, RFC 8878.
    Zstd,
}

impl Compression {
    /// What the name of a file asks for: `.tar.gz`, `.tgz`, `.tar.zst`.
    pub fn of_name(path: &Path) -> Compression {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        match name.rsplit_once('.').map(|(_, extension)| extension) {
            Some("gz" | "tgz") => Compression::Gzip,
            Some("zst" | "tzst" | "zstd") => Compression::Zstd,
            _ => Compression::None,
        }
    }

    /// What the first bytes of some content say.
    fn of_magic(bytes: &[u8]) -> Compression {
        match bytes {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            // A frame, or one to be skipped, which may come first.
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
            _ => Err(format!("{text} is none of gzip, zstd, none")),
        }
    }
}

/// What is inside of `source`, and how it was compressed. It ends with an error where it is out of all
/// proportion to what was read: a few kilobytes of Zstandard can unpack to terabytes.
///
/// # Errors
/// Those of `source`.
pub(super) fn decompress<'a>(
    source: impl Read + 'a,
) -> io::Result<(Compression, Box<dyn Read + 'a>)> {
    // A pipe may give less than a magic number at once.
    let (mut source, mut first) = (source, Vec::new());
    source.by_ref().take(4).read_to_end(&mut first)?;
    let compression = Compression::of_magic(&first);
    let taken_in = Rc::new(Cell::new(0));
    let source = Counted { source: io::Cursor::new(first).chain(source), read: taken_in.clone() };
    let source = BufReader::with_capacity(BUFFER_BYTES, source);
    let bounded = |unpacked| Box::new(Proportionate { unpacked, taken_in, given_out: 0 });
    let unpacked: Box<dyn Read + 'a> = match compression {
        Compression::None => return Ok((compression, Box::new(source))),
        Compression::Gzip => Box::new(MultiGzDecoder::new(source)),
        Compression::Zstd => Box::new(ZstdFrames::new(source)),
    };
    Ok((compression, bounded(unpacked)))
}

/// Counts what is read through it.
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

/// Unpacked bytes, as long as they are in proportion to the packed ones.
struct Proportionate<'a> {
    unpacked: Box<dyn Read + 'a>,
    taken_in: Rc<Cell<u64>>,
    given_out: u64,
}

impl Read for Proportionate<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.unpacked.read(buffer)?;
        self.given_out += read as u64;
        let taken_in = self.taken_in.get();
        if self.given_out > taken_in.saturating_mul(RATIO_MAX).saturating_add(SLACK_BYTES) {
            let reason = format!(
                "{taken_in} compressed bytes unpack to more than {RATIO_MAX} times as many"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        Ok(read)
    }
}

/// Decodes any number of Zstandard frames.
struct ZstdFrames<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> ZstdFrames<R> {
    fn new(source: R) -> ZstdFrames<R> {
        // Its own limit on the window, 128 MiB, is what `zstd` itself refuses to go beyond.
        ZstdFrames { source, decoder: FrameDecoder::new(), in_frame: false }
    }

    /// Begins the next frame, or passes over one without content. `false` at the end.
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
            // Without a time and without a name: the same content is the same file.
            Compression::Gzip => Compressor::Gzip(Box::new(GzEncoder::new(
                out,
                flate2::Compression::new(GZIP_LEVEL),
            ))),
            Compression::Zstd => {
                Compressor::Zstd { out, frame: Vec::with_capacity(ZSTD_FRAME_BYTES) }
            }
        }
    }

    /// Writes what is outstanding.
    ///
    /// # Errors
    /// Those of the writer below.
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
                let taken = bytes.len().min(ZSTD_FRAME_BYTES - frame.len());
                frame.extend_from_slice(&bytes[..taken]);
                if frame.len() == ZSTD_FRAME_BYTES {
                    end_frame(out, frame)?;
                }
                Ok(taken)
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

    /// Two and a half frames, half of it repetitive.
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
    fn what_is_packed_is_unpacked() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            for content in [Vec::new(), b"abc".to_vec(), sample()] {
                let bytes = packed(compression, &content);
                assert!(unpacked(&bytes).unwrap() == content, "{compression:?}");
                assert!(packed(compression, &content) == bytes, "{compression:?} varies");
            }
        }
    }

    #[test]
    fn members_and_frames_that_follow_each_other_are_one_stream() {
        for compression in [Compression::Gzip, Compression::Zstd] {
            let bytes = [packed(compression, b"one "), packed(compression, b"two")].concat();
            assert_eq!(unpacked(&bytes).unwrap(), b"one two");
        }
        let skipped =
            [&[0x51, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3], &*packed(Compression::Zstd, b"x")];
        assert_eq!(unpacked(&skipped.concat()).unwrap(), b"x");
    }

    #[test]
    fn what_unpacks_out_of_all_proportion_is_an_error() {
        let mut unpacked = Proportionate {
            unpacked: Box::new(io::repeat(0)),
            taken_in: Rc::new(Cell::new(1_000)),
            given_out: SLACK_BYTES + RATIO_MAX * 1_000 - 100,
        };
        let mut buffer = [0; 100];
        assert_eq!(unpacked.read(&mut buffer).unwrap(), 100);
        let error = unpacked.read(&mut buffer).unwrap_err().to_string();
        assert!(error.contains("1000 compressed bytes unpack to more than 1100 times"), "{error}");
        // What is packed is counted as it is read.
        unpacked.taken_in.set(2_000);
        assert_eq!(unpacked.read(&mut buffer).unwrap(), 100);
        let packed = packed(Compression::Zstd, &sample());
        let counted = Rc::new(Cell::new(0));
        let mut source = Counted { source: packed.as_slice(), read: counted.clone() };
        io::copy(&mut source, &mut io::sink()).unwrap();
        assert_eq!(counted.get(), packed.len() as u64);
    }

    #[test]
    fn what_is_cut_off_is_an_error() {
        for compression in [Compression::Gzip, Compression::Zstd] {
            let bytes = packed(compression, &sample());
            for end in [bytes.len() - 1, bytes.len() / 2, 9] {
                assert!(unpacked(&bytes[..end]).is_err(), "{compression:?} at {end}");
            }
        }
        assert!(unpacked(&[0x51, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1]).is_err());
    }

    #[test]
    fn names_say_how_to_compress() {
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
