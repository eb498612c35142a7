//! Bytes that were received and not parsed yet.
//!
//! This module must not know sockets, nor what the bytes mean.

use crate::http::limits::HEAD_BYTES_MAX;

/// How far an unfinished head was searched for its end, and how long it was when it was last parsed.
///
/// A head that arrives byte by byte must not be parsed for every byte. It is parsed when it may be complete, and
/// otherwise each time its length has doubled, so that errors are found early.
#[derive(Debug, Default)]
pub(super) struct HeadScan {
    searched: usize,
    parsed: usize,
}

impl HeadScan {
    /// Whether to parse `head` now. `head` is all of it that was received so far.
    pub(super) fn is_due(&mut self, head: &[u8]) -> bool {
        // The end has four bytes at most, and may have begun before.
        let new = &head[self.searched.saturating_sub(3).min(head.len())..];
        let ends = new.windows(2).any(|two| two == b"\n\n")
            || new.windows(3).any(|three| three == b"\n\r\n");
        let is_due = ends || head.len() >= 2 * self.parsed || head.len() >= HEAD_BYTES_MAX;
        self.searched = head.len();
        if is_due {
            self.parsed = head.len();
        }
        is_due
    }
}

/// Bytes that were received and not parsed yet. The buffer is borrowed from the worker, so a parked connection keeps
/// only these bytes.
#[derive(Debug, Default)]
pub(super) struct Input {
    bytes: Vec<u8>,
    start: usize,
}

impl Input {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    /// Removes the first `count` bytes.
    pub(super) fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.bytes.len());
        if self.is_empty() {
            self.clear();
        }
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.start = 0;
    }

    /// The buffer to receive into, with enough spare capacity for a head.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        self.bytes.drain(..self.start);
        self.start = 0;
        let missing = HEAD_BYTES_MAX.saturating_sub(self.bytes.len());
        self.bytes.reserve_exact(missing);
        &mut self.bytes
    }

    /// Swaps in the worker's buffer `spare`.
    pub(super) fn borrow_buffer(&mut self, spare: &mut Vec<u8>) {
        spare.clear();
        spare.extend_from_slice(self.bytes());
        self.start = 0;
        std::mem::swap(&mut self.bytes, spare);
    }

    /// Gives the worker its buffer back, and keeps a copy of what is left in it.
    pub(super) fn return_buffer(&mut self, spare: &mut Vec<u8>) {
        let rest = self.bytes().to_vec();
        *spare = std::mem::replace(&mut self.bytes, rest);
        self.start = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_that_arrives_byte_by_byte_is_parsed_only_a_few_times() {
        let mut head = b"GET / HTTP/1.1\r\nHost: h\r\nX: ".to_vec();
        head.resize(HEAD_BYTES_MAX - 5, b'x');
        head.extend(b"\r\n\r\n");
        let mut scan = HeadScan::default();
        let due: Vec<usize> =
            (1..=head.len()).filter(|length| scan.is_due(&head[..*length])).collect();
        assert!(due.len() <= 16, "{due:?}");
        assert_eq!(due.last(), Some(&head.len()), "the end is found when it arrives");
        for end in ["\r\n\r\n", "\n\n", "\n\r\n"] {
            let head = [b"GET / HTTP/1.1\r\nHost: h", end.as_bytes()].concat();
            let mut scan = HeadScan::default();
            scan.is_due(&head[..20]);
            assert!((21..head.len()).all(|length| !scan.is_due(&head[..length])), "{end:?}");
            assert!(scan.is_due(&head), "{end:?}");
        }
    }

    #[test]
    fn parsed_input_keeps_no_buffer() {
        let mut spare = Vec::with_capacity(HEAD_BYTES_MAX);
        let mut input = Input::default();
        input.borrow_buffer(&mut spare);
        input.buffer().extend_from_slice(b"onetwo");
        input.consume(3);
        assert_eq!(input.bytes(), b"two");
        input.return_buffer(&mut spare);
        assert_eq!((input.bytes(), input.bytes.capacity()), (&b"two"[..], 3));
        input.borrow_buffer(&mut spare);
        input.buffer().extend_from_slice(b"x");
        assert_eq!(input.bytes(), b"twox");
        input.consume(4);
        input.return_buffer(&mut spare);
        assert_eq!((input.is_empty(), input.bytes.capacity()), (true, 0));
        assert!(spare.capacity() >= HEAD_BYTES_MAX);
    }
}
