//! Dockerfiles. A plan, or an error that names a line of the file.

#![no_main]

use dormouse_image::{ImageConfig, dockerfile};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use std::convert::Infallible;

fuzz_target!(|data: &[u8]| {
    let arguments = BTreeMap::from([("VERSION".to_owned(), "1".to_owned())]);
    let references = dockerfile::references(data, &arguments);
    let plan = dockerfile::plan(data, &arguments, |_| Ok::<_, Infallible>(ImageConfig::bare()));
    assert!(references.is_ok() || plan.is_err(), "a plan of a file that cannot be read");
});
