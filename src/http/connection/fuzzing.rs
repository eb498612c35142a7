//! Fuzz target: chunked request bodies.

use super::chunks::{ChunkReader, Chunks};
use crate::fuzzing::splits;

/// Input: a chunked body and the request after it.
pub(crate) fn request_body(data: &[u8]) {
    let mut reader = ChunkReader::new();
    let result = reader.take(data);
    for at in splits(data) {
        let mut reader = ChunkReader::new();
        let split = match reader.take(&data[..at]) {
            Chunks::Partial => match reader.take(&data[at..]) {
                Chunks::Ended { consumed } => Chunks::Ended { consumed: at + consumed },
                other => other,
            },
            other => other,
        };
        assert_eq!(split, result, "split after {at} bytes");
    }
    if let Chunks::Ended { consumed } = result {
        assert!(data[..consumed].ends_with(b"\r\n\r\n") || data[..consumed].starts_with(b"0"));
        assert_eq!(end_of_body(data), Some(consumed), "another parser finds another end");
    }
}

/// The end of a chunked body by another parser.
fn end_of_body(data: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let size_line = &data[at..];
        let digits = size_line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let end = size_line.windows(2).position(|pair| pair == b"\r\n")?;
        let size = u64::from_str_radix(std::str::from_utf8(&size_line[..digits]).ok()?, 16).ok()?;
        at += end + 2;
        if size == 0 {
            break;
        }
        at = at.checked_add(usize::try_from(size).ok()?)?.checked_add(2)?;
        if data.get(at - 2..at)? != b"\r\n" {
            return None;
        }
    }
    loop {
        let line = data[at..].windows(2).position(|pair| pair == b"\r\n")?;
        at += line + 2;
        if line == 0 {
            return Some(at);
        }
    }
}
