//! The last output of the app, kept for the host to fetch by absolute offset.

use std::collections::VecDeque;

/// A bounded tail of an endless stream of bytes.
#[derive(Debug)]
pub(crate) struct LogRing {
    bytes: VecDeque<u8>,
    capacity: usize,
    /// Offset of the byte after the last.
    end: u64,
}

/// A piece of the stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Offset of the first byte.
    pub(crate) start: u64,
    pub(crate) bytes: Vec<u8>,
}

impl Piece {
    /// Offset of the byte after the last.
    pub(crate) fn next(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

impl LogRing {
    /// A ring that keeps the last `capacity` bytes.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            bytes: VecDeque::new(),
            capacity,
            end: 0,
        }
    }

    /// Adds bytes; the oldest make room. The answer is the offset after them.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> u64 {
        self.end += bytes.len() as u64;
        let kept = &bytes[bytes.len().saturating_sub(self.capacity)..];
        let excess = (self.bytes.len() + kept.len()).saturating_sub(self.capacity);
        self.bytes.drain(..excess);
        self.bytes.extend(kept);
        self.end
    }

    /// All bytes from an offset on. It starts later where they are gone, and is empty where there are
    /// none yet.
    pub(crate) fn since(&self, offset: u64) -> Piece {
        let first = self.end - self.bytes.len() as u64;
        let start = offset.clamp(first, self.end);
        let skipped = usize::try_from(start - first).unwrap_or(usize::MAX);
        Piece {
            start,
            bytes: self.bytes.iter().skip(skipped).copied().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(start: u64, bytes: &[u8]) -> Piece {
        Piece {
            start,
            bytes: bytes.to_vec(),
        }
    }

    #[test]
    fn offsets_count_from_the_first_byte_ever() {
        let mut ring = LogRing::new(8);
        assert_eq!(ring.since(0), piece(0, b""));
        assert_eq!(ring.push(b"abcdef"), 6);
        assert_eq!(ring.since(0), piece(0, b"abcdef"));
        assert_eq!(ring.since(4), piece(4, b"ef"));
        assert_eq!(ring.since(6), piece(6, b""));
        assert_eq!(ring.push(b"ghij"), 10);
        assert_eq!(ring.since(0), piece(2, b"cdefghij"));
        assert_eq!(ring.since(0).next(), 10);
        assert_eq!(ring.since(9), piece(9, b"j"));
    }

    #[test]
    fn an_offset_from_the_future_is_brought_back() {
        let mut ring = LogRing::new(4);
        ring.push(b"ab");
        assert_eq!(ring.since(99), piece(2, b""));
    }

    #[test]
    fn a_push_longer_than_the_ring_keeps_its_tail() {
        let mut ring = LogRing::new(4);
        ring.push(b"xy");
        assert_eq!(ring.push(b"0123456789"), 12);
        assert_eq!(ring.since(0), piece(8, b"6789"));
    }
}
