//! Endpoint tokens: forged ones, and true ones around any claims.

#![no_main]

use dormouse_ingress::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fuzzing::token(data));
