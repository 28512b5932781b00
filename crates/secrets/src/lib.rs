//! Secrets at rest: sealed under one key of the installation, so that whoever has a copy of the data
//! directory, or of one file of it, has none of them.
//!
//! ```text
//! sealing key (32 bytes) --> Sealer --> `dormouse-sealed 1 KEY BASE64`, one line
//!                              |
//!                              +-- AES-256-GCM; additional data: form, purpose, name
//! ```
//!
//! What was sealed for one purpose and name opens for no other, so one file cannot stand in another's
//! place. Files of earlier versions are plain: they are read as they are, and [`Sealer::adopt`] seals them.

mod envelope;
mod error;
pub mod file;
mod key;
mod sealer;

pub use envelope::is_sealed;
pub use error::SecretError;
pub use sealer::Sealer;
