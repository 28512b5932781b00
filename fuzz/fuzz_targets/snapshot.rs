//! Files of snapshots and MicroVMs as a failing disk gives them back.

#![no_main]

use dormouse_node::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fuzzing::snapshot(data));
