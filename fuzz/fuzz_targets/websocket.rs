//! The subprotocols of a WebSocket's handshake.

#![no_main]

use dormouse_ingress::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fuzzing::websocket(data));
