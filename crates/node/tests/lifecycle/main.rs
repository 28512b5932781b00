//! The life of MicroVMs on one host, from [`Node`] down to the machine seam, in milliseconds a test: real
//! driver, gate, files and store, on the fake VMM.
//!
//! A test lives through days. A day is a daemon on a runtime of its own; at its end all its tasks are
//! dropped wherever they stand, as `kill -9` would leave them, while machines, files and store stay. Most
//! days have a clock that jumps to the next timer as soon as nothing else is left to do.
//!
//! [`Node`]: dormouse_node::node::Node

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

mod crashes;
mod deadlines;
mod ending;
mod failures;
mod hooks;
mod hostile;
mod journal;
mod lab;
mod ledger;
mod races;
mod random;
mod serving;
mod shells;
mod stage;
