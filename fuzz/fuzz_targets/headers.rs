//! Admission of requests, and the headers that pass.

#![no_main]

use dormouse_ingress::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fuzzing::headers(data));
