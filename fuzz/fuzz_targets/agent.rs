//! Answers of a guest's agent, to each request that the host makes of it.

#![no_main]

use dormouse_node::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fuzzing::agent(data));
