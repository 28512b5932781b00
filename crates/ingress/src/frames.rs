//! Where WebSocket frames begin and end in a stream of bytes (RFC 6455, section 5.2). Pure.

/// Two bytes, at most eight more of length, and four of mask.
const HEAD_BYTES_MAX: usize = 14;
const OPCODE_CLOSE: u8 = 8;

/// Follows a stream from frame to frame. It looks at heads alone and skips what they announce, so that it costs
/// the same for a frame of a byte and one of a gigabyte.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    head: [u8; HEAD_BYTES_MAX],
    /// Bytes of the current head that are there.
    filled: usize,
    /// Bytes of the current payload that are still to come.
    left: u64,
    closing: bool,
}

impl Frames {
    /// Takes note of bytes that have passed.
    pub(crate) fn pass(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let skipped =
                    usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
                bytes = &bytes[skipped..];
                self.left -= skipped as u64;
                continue;
            }
            self.head[self.filled] = *first;
            self.filled += 1;
            bytes = rest;
            if self.filled == self.head_length() {
                self.closing |= self.head[0] & 0x0f == OPCODE_CLOSE;
                self.left = self.payload_length();
                self.filled = 0;
            }
        }
    }

    /// Whether no frame is under way: another one may begin here.
    pub(crate) fn between(&self) -> bool {
        self.left == 0 && self.filled == 0
    }

    /// Whether a close frame has begun, after which none may follow.
    pub(crate) fn closing(&self) -> bool {
        self.closing
    }

    fn head_length(&self) -> usize {
        if self.filled < 2 {
            return 2;
        }
        let mask = if self.head[1] & 0x80 == 0 { 0 } else { 4 };
        2 + self.length_bytes() + mask
    }

    /// Bytes by which the head says the length, where seven bits do not hold it.
    fn length_bytes(&self) -> usize {
        match self.head[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        }
    }

    fn payload_length(&self) -> u64 {
        match self.length_bytes() {
            0 => u64::from(self.head[1] & 0x7f),
            length => self.head[2..2 + length]
                .iter()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        }
    }
}

/// An unmasked close frame, as servers send it. The reason is at most 123 bytes long.
pub(crate) fn close(code: u16, reason: &str) -> Vec<u8> {
    let length = u8::try_from(2 + reason.len()).expect("a control frame is short");
    let mut frame = vec![0x80 | OPCODE_CLOSE, length];
    frame.extend_from_slice(&code.to_be_bytes());
    frame.extend_from_slice(reason.as_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(opcode: u8, length: u64, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut frame = vec![0x80 | opcode];
        match length {
            0..=125 => frame.push(mask | length as u8),
            126..=0xffff => {
                frame.push(mask | 126);
                frame.extend_from_slice(&(length as u16).to_be_bytes());
            }
            _ => {
                frame.push(mask | 127);
                frame.extend_from_slice(&length.to_be_bytes());
            }
        }
        if masked {
            frame.extend_from_slice(&[0xff; 4]);
        }
        frame.resize(frame.len() + usize::try_from(length).expect("small"), 0x88);
        frame
    }

    #[test]
    fn every_cut_of_every_kind_of_frame_is_seen() {
        for length in [0, 1, 125, 126, 127, 0xffff, 0x1_0000] {
            for masked in [false, true] {
                let bytes = frame(1, length, masked);
                let mut frames = Frames::default();
                assert!(frames.between());
                for byte in &bytes[..bytes.len() - 1] {
                    frames.pass(&[*byte]);
                    assert!(!frames.between(), "{length} {masked}");
                }
                frames.pass(&bytes[bytes.len() - 1..]);
                assert!(frames.between(), "{length} {masked}");
                assert!(!frames.closing());
            }
        }
    }

    #[test]
    fn the_largest_length_is_just_a_long_wait() {
        let mut frames = Frames::default();
        frames.pass(&[0x82, 127]);
        frames.pass(&[0xff; 8]);
        frames.pass(&[0; 1 << 16]);
        assert!(!frames.between());
        assert_eq!(frames.left, u64::MAX - (1 << 16));
    }

    #[test]
    fn a_close_frame_is_noticed_and_one_is_well_made() {
        let mut frames = Frames::default();
        frames.pass(&frame(2, 5, false));
        assert!(!frames.closing());
        let bytes = close(1001, "bye");
        assert_eq!(bytes, b"\x88\x05\x03\xe9bye");
        frames.pass(&bytes);
        assert!(frames.closing() && frames.between());
        frames.pass(&frame(1, 5, false));
        assert!(frames.closing());
    }

    proptest! {
        #[test]
        fn pieces_mean_what_the_whole_means(
            sent in prop::collection::vec((0u8..11, 0u64..300, any::<bool>()), 0..8),
            sizes in prop::collection::vec(1usize..40, 1..20),
        ) {
            let mut bytes = Vec::new();
            let mut ends = vec![0];
            for (opcode, length, masked) in &sent {
                bytes.extend(frame(*opcode, *length, *masked));
                ends.push(bytes.len());
            }
            let mut frames = Frames::default();
            let (mut passed, mut sizes) = (0, sizes.iter().cycle());
            while passed < bytes.len() {
                let piece = (*sizes.next().expect("endless")).min(bytes.len() - passed);
                frames.pass(&bytes[passed..passed + piece]);
                passed += piece;
                prop_assert_eq!(frames.between(), ends.contains(&passed), "after {}", passed);
            }
            prop_assert_eq!(frames.closing(), sent.iter().any(|(opcode, ..)| *opcode == OPCODE_CLOSE));
        }

        #[test]
        fn any_bytes_are_followed(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            let mut whole = Frames::default();
            whole.pass(&bytes);
            let mut single = Frames::default();
            for byte in &bytes {
                single.pass(&[*byte]);
            }
            prop_assert_eq!((whole.left, whole.filled, whole.closing), (single.left, single.filled, single.closing));
        }
    }
}
