//! Which bytes of a partial download are on the disk.
//!
//! Several connections write to different positions of one partial. Its file system knows where: what was not written is
//! a hole (lseek(2), `SEEK_DATA`), so a download that was killed needs no note of its extents. Holes are known in blocks
//! only. So writers begin at multiples of [`ALIGNMENT_BYTES`], which is more than a block of any file system, and the last
//! block of an extent does not count, unless the file ends there.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::{io, iter};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Where a writer may begin, except at the end of written bytes.
pub const ALIGNMENT_BYTES: u64 = 1024 * 1024;

/// Ranges of bytes, in ascending order, which neither overlap nor touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Extents(Vec<Range<u64>>);

impl Extents {
    /// The bytes of a file that was written before.
    ///
    /// # Errors
    /// The file cannot be queried. A file system without holes reports the whole file as written.
    pub(super) fn of_file(file: &File) -> io::Result<Extents> {
        let metadata = file.metadata()?;
        let (length, block_bytes) = (metadata.len(), metadata.blksize());
        let mut extents = Extents::default();
        let mut position = 0;
        while position < length {
            let start = match seek(file, SeekFrom::Data(position)) {
                Ok(start) => start,
                // Only a hole is left.
                Err(Errno::NXIO) => break,
                Err(errno) => return Err(errno.into()),
            };
            let end = seek(file, SeekFrom::Hole(start))?;
            let written = match end >= length {
                true => length,
                false => end.saturating_sub(block_bytes),
            };
            extents.insert(start.next_multiple_of(ALIGNMENT_BYTES)..written);
            position = end.max(position + 1);
        }
        Ok(extents)
    }

    /// Adds a range.
    pub(super) fn insert(&mut self, added: Range<u64>) {
        if added.is_empty() {
            return;
        }
        let first = self.0.partition_point(|range| range.end < added.start);
        let last = self.0.partition_point(|range| range.start <= added.end);
        let touched = &self.0[first..last];
        let start = touched.first().map_or(added.start, |range| range.start.min(added.start));
        let end = touched.last().map_or(added.end, |range| range.end.max(added.end));
        self.0.splice(first..last, iter::once(start..end));
    }

    /// How many bytes from the beginning are there.
    pub(super) fn prefix(&self) -> u64 {
        self.0.first().filter(|first| first.start == 0).map_or(0, |first| first.end)
    }

    /// How many bytes there are.
    pub(super) fn total(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    /// The first range of missing bytes at or after `from`; without an end if nothing follows.
    pub(super) fn missing_from(&self, from: u64) -> (u64, Option<u64>) {
        let next = self.0.partition_point(|range| range.end < from);
        let (start, next) = match self.0.get(next) {
            Some(range) if range.start <= from => (range.end, next + 1),
            _ => (from, next),
        };
        (start, self.0.get(next).map(|range| range.start))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn extents_are_the_set_of_their_bytes(
            ranges in proptest::collection::vec((0..64_u64, 0..16_u64), 0..12),
            from in 0..90_u64,
        ) {
            let mut extents = Extents::default();
            let mut bytes = [false; 128];
            for (start, length) in ranges {
                extents.insert(start..start + length);
                bytes[start as usize..(start + length) as usize].fill(true);
            }
            let all: Vec<bool> =
                (0..128).map(|at| extents.0.iter().any(|range| range.contains(&at))).collect();
            prop_assert_eq!(&all[..], &bytes[..]);
            prop_assert!(extents.0.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert_eq!(extents.prefix(), bytes.iter().take_while(|is| **is).count() as u64);
            prop_assert_eq!(extents.total(), bytes.iter().filter(|is| **is).count() as u64);
            let missing = (from..128).find(|at| !bytes[*at as usize]).unwrap();
            let end = (missing..128).find(|at| bytes[*at as usize]);
            prop_assert_eq!(extents.missing_from(from), (missing, end));
        }
    }

    #[test]
    fn holes_of_a_file_are_missing_bytes() {
        let file = tempfile::tempfile().unwrap();
        let piece = vec![7; 100_000];
        assert_eq!(Extents::of_file(&file).unwrap(), Extents::default());
        file.write_all_at(&piece, 0).unwrap();
        let dense = Extents::of_file(&file).unwrap();
        assert_eq!((dense.prefix(), dense.total()), (100_000, 100_000));
        for start in [2 * ALIGNMENT_BYTES, 5 * ALIGNMENT_BYTES] {
            file.write_all_at(&piece, start).unwrap();
        }
        let sparse = Extents::of_file(&file).unwrap();
        let written = |start, length| start * ALIGNMENT_BYTES..start * ALIGNMENT_BYTES + length;
        let all = [written(0, 100_000), written(2, 100_000), written(5, 100_000)];
        assert_eq!(sparse.0.len(), all.len());
        for (found, written) in sparse.0.iter().zip(all) {
            assert_eq!(found.start, written.start);
            // Never more than was written, and at most a block and the rest of one less.
            assert!(found.end <= written.end && found.end + 2 * 4096 > written.end, "{found:?}");
        }
        assert_eq!(sparse.0.last().unwrap().end, written(5, 100_000).end, "the end of the file");
    }
}
