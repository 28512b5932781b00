//! `dormouse domain`: host names of a MicroVM's own, besides its endpoint's.

use super::client::{Client, segment};
use super::print;
use crate::config::Overrides;
use anyhow::Result;
use clap::Subcommand;
use http::Method;
use serde::Deserialize;
use std::process::ExitCode;

/// What to do with a MicroVM's host names.
#[derive(Debug, Subcommand)]
pub(super) enum DomainCommand {
    /// Give a microVM a host name; it is free again when the microVM ends
    Add {
        /// Id of the microVM
        microvm: String,
        /// The name, as in app.example.com
        name: String,
    },
    /// List the host names of a microVM
    Ls {
        /// Id of the microVM
        microvm: String,
    },
    /// Take a host name from a microVM
    Rm {
        /// Id of the microVM
        microvm: String,
        /// The name
        name: String,
    },
}

#[derive(Debug, Deserialize)]
struct Answer {
    domains: Vec<String>,
}

/// Carries the command out and prints the names that the MicroVM has then.
pub(super) async fn run(over: &Overrides, command: &DomainCommand) -> Result<ExitCode> {
    let client = Client::connect(over)?;
    let all = |microvm: &str| format!("/_dormouse/v1/microvms/{}/domains", segment(microvm));
    let one = |microvm: &str, name: &str| format!("{}/{}", all(microvm), segment(name));
    let (method, path) = match command {
        DomainCommand::Add { microvm, name } => (Method::PUT, one(microvm, name)),
        DomainCommand::Ls { microvm } => (Method::GET, all(microvm)),
        DomainCommand::Rm { microvm, name } => (Method::DELETE, one(microvm, name)),
    };
    let answer: Answer = client.call(method, &path, None::<&()>).await?;
    let lines = answer.domains.iter().map(|name| format!("{name}\n"));
    print(&lines.collect::<String>())?;
    Ok(ExitCode::SUCCESS)
}
