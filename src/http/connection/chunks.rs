//! Finds the end of a chunked request body that is read and discarded (RFC 9112, section 7.1).
//!
//! Proxies and service meshes may send a GET without a body as an empty chunked one. The end of the body is the start of
//! the next request, so the parser is strict: it refuses anything that another parser may read differently, and the
//! connection is closed.
//!
//! This module must not know sockets or requests.

/// The longest chunk-size line in bytes: the size, and extensions, which clients do not use in practice.
const SIZE_LINE_MAX: u64 = 256;
/// The most bytes of trailer lines.
const TRAILERS_MAX: u64 = 4096;

/// The result of reading some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Chunks {
    /// The body ended after this many bytes.
    Ended { consumed: usize },
    /// All bytes belong to the body, and it continues.
    Partial,
    /// The body is invalid, so its end is unknown.
    Malformed,
}

/// Reads a chunked body, byte by byte.
#[derive(Debug)]
pub(super) struct ChunkReader {
    state: State,
    /// The bytes of the current line, or of all trailer lines.
    line_bytes: u64,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// In the digits of a size. `None` before the first digit.
    Size(Option<u64>),
    /// After the digits, in the extensions.
    Extension(u64),
    /// After the CR of a size line.
    SizeEnd(u64),
    Data(u64),
    /// After the data; a CR and then a LF must follow.
    DataEnd,
    DataLineFeed,
    /// At the start of a trailer line.
    Trailer,
    TrailerLine,
    /// After the CR of a trailer line.
    TrailerLineFeed,
    /// After a CR at the start of a line.
    LastLineFeed,
}

impl ChunkReader {
    pub(super) fn new() -> ChunkReader {
        ChunkReader { state: State::Size(None), line_bytes: 0 }
    }

    /// Reads the next bytes.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Chunks {
        for (at, &byte) in bytes.iter().enumerate() {
            if matches!(self.state, State::LastLineFeed) && byte == b'\n' {
                return Chunks::Ended { consumed: at + 1 };
            }
            match self.next(byte) {
                Some(state) => self.state = state,
                None => return Chunks::Malformed,
            }
        }
        Chunks::Partial
    }

    fn next(&mut self, byte: u8) -> Option<State> {
        let limit = match self.state {
            State::Data(_) | State::DataEnd | State::DataLineFeed => u64::MAX,
            State::Size(_) | State::Extension(_) | State::SizeEnd(_) => SIZE_LINE_MAX,
            _ => TRAILERS_MAX,
        };
        self.line_bytes += 1;
        if self.line_bytes > limit {
            return None;
        }
        let state = match (self.state, byte) {
            (State::Size(size), byte) if byte.is_ascii_hexdigit() => {
                let digit = u64::from(char::from(byte).to_digit(16)?);
                State::Size(Some(size.unwrap_or(0).checked_mul(16)?.checked_add(digit)?))
            }
            (State::Size(Some(size)), b'\r') => State::SizeEnd(size),
            (State::Size(Some(size)), b';' | b' ' | b'\t') => State::Extension(size),
            (State::Extension(size), b'\r') => State::SizeEnd(size),
            (State::Extension(size), byte) if is_text(byte) => State::Extension(size),
            (State::SizeEnd(0), b'\n') => self.begin(State::Trailer),
            (State::SizeEnd(size), b'\n') => self.begin(State::Data(size)),
            (State::Data(1), _) => State::DataEnd,
            (State::Data(left), _) => State::Data(left - 1),
            (State::DataEnd, b'\r') => State::DataLineFeed,
            (State::DataLineFeed, b'\n') => self.begin(State::Size(None)),
            (State::Trailer, b'\r') => State::LastLineFeed,
            (State::Trailer | State::TrailerLine, byte) if is_text(byte) => State::TrailerLine,
            (State::TrailerLine, b'\r') => State::TrailerLineFeed,
            (State::TrailerLineFeed, b'\n') => State::Trailer,
            _ => return None,
        };
        Some(state)
    }

    fn begin(&mut self, state: State) -> State {
        self.line_bytes = 0;
        state
    }
}

fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_found_wherever_the_bytes_are_split() {
        for body in [
            "0\r\n\r\n",
            "000\r\n\r\n",
            "0;name=\"value\"\r\n\r\n",
            "0\r\nTrailer: x\r\nOther: y\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "1\r\n\r\r\nA ; x\r\n0\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n",
        ] {
            let stream = format!("{body}GET / HTTP/1.1\r\n");
            for cut in 0..body.len() {
                let mut reader = ChunkReader::new();
                assert_eq!(reader.take(&stream.as_bytes()[..cut]), Chunks::Partial, "{body:?}");
                let consumed = body.len() - cut;
                let rest = &stream.as_bytes()[cut..];
                assert_eq!(reader.take(rest), Chunks::Ended { consumed }, "{body:?} {cut}");
            }
        }
    }

    #[test]
    fn ambiguous_bodies_are_refused() {
        let long_line = format!("0;{}", "x".repeat(300));
        let long_trailers = format!("0\r\n{}", "A: b\r\n".repeat(1000));
        for body in [
            "\r\n",
            "g\r\n",
            "-1\r\n",
            "0x5\r\n",
            "0\n\n",
            "0\r\n\n",
            "0\r\r\n",
            "5\r\nhelloX",
            "5\r\nhello\n",
            "10000000000000000\r\n",
            "0\r\nTrailer: \n\r\n",
            "0\r\nA: b\0\r\n",
            &long_line,
            &long_trailers,
        ] {
            assert_eq!(ChunkReader::new().take(body.as_bytes()), Chunks::Malformed, "{body:?}");
        }
    }
}
