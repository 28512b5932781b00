//! What QEMU says on its control socket.

#![no_main]

use dormouse_node::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fuzzing::qmp(data));
