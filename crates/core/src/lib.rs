//! The pure domain of Dormouse: identifiers, records, state machines, limits and the guest protocol.
//!
//! Nothing here does IO, reads a clock or draws randomness: callers pass both in. That keeps every
//! rule of the product testable in microseconds and usable from each other crate.

mod chain;
pub mod cidr;
pub mod connector;
pub mod egress;
pub mod glob;
pub mod guest;
pub mod hook;
pub mod id;
pub mod image;
pub mod limits;
pub mod microvm;
mod shown;
pub mod time;

pub use chain::chain;
pub use id::{AccountId, BuildId, ConnectorArn, ConnectorId, EndpointId, ImageArn, MicrovmId};
pub use shown::shown;
pub use time::Timestamp;
