//! Frames of a shell as a guest's agent sends them: what is found lies within what came.

#![no_main]

use dormouse_core::guest::{FRAME_PAYLOAD_MAX, put_frame, whole_frame};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    while let Ok(Some((kind, payload))) = whole_frame(rest) {
        assert!(payload.len() <= FRAME_PAYLOAD_MAX);
        let mut again = Vec::new();
        put_frame(&mut again, kind, &rest[payload.clone()]);
        assert_eq!(again, rest[..payload.end], "a frame is written as it was read");
        rest = &rest[payload.end..];
    }
});
