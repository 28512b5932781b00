//! Frames: how several kinds of bytes share one stream between host and agent.
//!
//! A frame is one byte of kind, four of big-endian length, then the payload.

use std::ops::Range;

/// Bytes before a frame's payload.
pub const FRAME_HEADER_LEN: usize = 5;
/// Longest payload of one frame, in bytes.
pub const FRAME_PAYLOAD_MAX: usize = 64 * 1024;

/// What a frame carries. The agent sends the first three, the host the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// Bytes of standard output, or of a terminal.
    Stdout = 1,
    /// Bytes of standard error.
    Stderr = 2,
    /// An [`Exit`](super::Exit) as JSON; the last frame.
    Exit = 3,
    /// Bytes that are typed into a terminal or, where there is none, of standard input: an empty frame ends it.
    Stdin = 4,
    /// A [`TerminalSize`](super::TerminalSize) as JSON.
    Resize = 5,
}

impl FrameKind {
    /// The kind that a byte stands for.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Stdout),
            2 => Some(Self::Stderr),
            3 => Some(Self::Exit),
            4 => Some(Self::Stdin),
            5 => Some(Self::Resize),
            _ => None,
        }
    }
}

/// Why bytes are no frame. Nothing after them can be told apart either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No kind has this number.
    #[error("frame of unknown kind {0}")]
    Kind(u8),
    /// The payload is longer than [`FRAME_PAYLOAD_MAX`].
    #[error("frame of {0} bytes")]
    Length(usize),
}

/// Appends a frame to `out`. The payload is [`FRAME_PAYLOAD_MAX`] bytes at most.
pub fn put_frame(out: &mut impl Extend<u8>, kind: FrameKind, payload: &[u8]) {
    let len = u32::try_from(payload.len()).expect("payloads are FRAME_PAYLOAD_MAX bytes at most");
    out.extend([kind as u8]);
    out.extend(len.to_be_bytes());
    out.extend(payload.iter().copied());
}

/// Finds the frame at the front of `bytes`: its kind, and where its payload lies. None when it is not whole
/// yet; a bad header is refused at once, before a payload has come.
pub fn whole_frame(bytes: &[u8]) -> Result<Option<(FrameKind, Range<usize>)>, FrameError> {
    let Some((header, rest)) = bytes.split_first_chunk::<FRAME_HEADER_LEN>() else {
        return Ok(None);
    };
    let [kind, len @ ..] = *header;
    let kind = FrameKind::from_byte(kind).ok_or(FrameError::Kind(kind))?;
    let len = u32::from_be_bytes(len) as usize;
    if len > FRAME_PAYLOAD_MAX {
        return Err(FrameError::Length(len));
    }
    let payload = FRAME_HEADER_LEN..FRAME_HEADER_LEN + len;
    Ok((rest.len() >= len).then_some((kind, payload)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_frame_is_kind_length_and_payload() {
        let mut out = Vec::new();
        put_frame(&mut out, FrameKind::Stderr, b"oops");
        assert_eq!(out, b"\x02\x00\x00\x00\x04oops");
        put_frame(&mut out, FrameKind::Stdout, &[7; 300]);
        assert_eq!(out[9..14], [1, 0, 0, 0x01, 0x2c]);
    }

    #[test]
    fn a_frame_is_found_once_it_is_whole() {
        let bytes = [1, 0, 0, 0, 2, b'h', b'i', 3, 0, 0];
        for end in 0..7 {
            assert_eq!(whole_frame(&bytes[..end]), Ok(None), "{end}");
        }
        assert_eq!(whole_frame(&bytes), Ok(Some((FrameKind::Stdout, 5..7))));
        assert_eq!(whole_frame(&bytes[7..]), Ok(None));
    }

    #[test]
    fn a_huge_or_unknown_frame_is_refused_at_its_header() {
        let huge = whole_frame(&[1, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(huge, Err(FrameError::Length(u32::MAX as usize)));
        for kind in [0, 6, 255] {
            assert_eq!(
                whole_frame(&[kind, 0, 0, 0, 0]),
                Err(FrameError::Kind(kind))
            );
        }
    }

    proptest! {
        #[test]
        fn what_was_put_is_found(
            kind in 1u8..=5,
            payload in prop::collection::vec(any::<u8>(), 0..1000),
            more in prop::collection::vec(any::<u8>(), 0..10),
        ) {
            let kind = FrameKind::from_byte(kind).expect("a kind");
            let mut bytes = Vec::new();
            put_frame(&mut bytes, kind, &payload);
            bytes.extend(more);
            let (found, at) = whole_frame(&bytes).expect("valid").expect("whole");
            prop_assert_eq!(found, kind);
            prop_assert_eq!(&bytes[at], &payload[..]);
        }

        #[test]
        fn arbitrary_bytes_lie_within_themselves(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            if let Ok(Some((_, payload))) = whole_frame(&bytes) {
                prop_assert!(payload.end <= bytes.len());
            }
        }
    }
}
