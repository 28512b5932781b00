//! The boundaries of WebSocket frames.

#![no_main]

use dormouse_ingress::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fuzzing::frames(data));
