//! The wire of the AWS Lambda MicroVMs control API (`lambda-microvms` 2025-09-09): routes, types,
//! rest-json binding, validation, errors, page tokens and SigV4.
//!
//! Everything here is a pure function of its arguments: no IO, no clock, no knowledge of the
//! domain behind the wire. A request passes through in this order:
//!
//! ```text
//! raw request ─▶ sigv4::verify ─▶ route::route ─▶ restjson::parse ─▶ checks::* ─▶ handler
//!                                                                                   │
//! raw response ◀──────── restjson::respond | ApiError::into_response ◀──────────────┘
//! ```
//!
//! To add an operation: its route, its types in `types`, its constraint table in `model`, and its line in
//! `describe`, by which `tests/drift` compares it with AWS's own model.

pub mod checks;
#[cfg(feature = "schema")]
pub mod describe;
pub mod error;
pub mod model;
pub mod page;
pub mod restjson;
pub mod route;
pub mod sensitive;
pub mod shape;
pub mod sigv4;
pub mod types;
pub mod validate;

pub use error::{ApiError, ErrorCode};
pub use route::{Operation, route};
pub use sensitive::Sensitive;
