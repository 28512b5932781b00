//! The handlers over a fake VMM and a store in memory.

mod accounts;
mod crashes;
mod hang_ups;
mod images;
mod lab;
mod quotas;
mod runs;
mod tags;
mod versions;
