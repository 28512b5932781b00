//! Bytes to a build plan and to root file systems. Nothing here knows of VMs or runs customer code.
//!
//! ```text
//! zip ──artifact──▶ folder ──dockerfile──▶ Plan (steps) ──┐
//!                     │                                   ├─ context: tar and digest of each COPY
//!                     └─────────context (.dockerignore)───┘          │
//! rootfs tar ──local──▶ base disk (ext4) and its digest ──layer──▶ cache key of each step
//! ```
//!
//! Everything is blocking: async callers use `spawn_blocking`. Every byte that comes in is a
//! customer's, so each module states what it bounds.

pub mod artifact;
pub mod config;
pub mod context;
pub mod dockerfile;
mod glob;
pub mod layer;
pub mod local;

pub use artifact::{ArtifactError, unpack};
pub use config::ImageConfig;
pub use context::{Context, ContextError, CopyOutput};
pub use dockerfile::{CopyStep, DockerfileError, Plan, RunStep, Step, StepKind, plan};
pub use local::{LocalImage, LocalImageError, LocalImages};
