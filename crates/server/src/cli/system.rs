//! `dormouse system`: what the daemon keeps on disk, and giving back what nothing needs.

use super::client::Client;
use super::print;
use super::table::{size, table};
use crate::config::Overrides;
use anyhow::Result;
use clap::Subcommand;
use http::Method;
use serde::Deserialize;
use serde_json::json;
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub(super) enum SystemCommand {
    /// Show what takes how much of the disk
    Df,
    /// Delete cached build layers that nothing lies over and no build has used for a week
    Prune {
        /// However lately they were used, and the disks of cache mounts
        #[arg(long)]
        all: bool,
        /// Those that were not used for this long, as in 12h or 7d
        #[arg(long, value_name = "AGE", value_parser = age_s, conflicts_with = "all")]
        older_than: Option<u64>,
    },
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Usage {
    items: Vec<Item>,
    free_bytes: u64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    kind: String,
    count: u64,
    bytes: u64,
    reclaimable_bytes: u64,
}

#[derive(Debug, Deserialize)]
struct Pruned {
    layers: u64,
    caches: u64,
    bytes: u64,
}

pub(super) async fn run(over: &Overrides, command: &SystemCommand) -> Result<ExitCode> {
    let client = Client::connect(over)?;
    match command {
        SystemCommand::Df => {
            let usage: Usage = client.get("/_dormouse/v1/system/usage").await?;
            print(&shown(&usage))?;
        }
        SystemCommand::Prune { all, older_than } => {
            let request = json!({ "all": all, "olderThanSeconds": older_than });
            let path = "/_dormouse/v1/system/prune";
            let pruned: Pruned = client.call(Method::POST, path, Some(&request)).await?;
            print(&format!(
                "{} layers and {} cache mounts deleted, {} given back\n",
                pruned.layers,
                pruned.caches,
                size(pruned.bytes)
            ))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn shown(usage: &Usage) -> String {
    let mut rows = vec![
        ["KIND", "COUNT", "SIZE", "RECLAIMABLE"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(usage.items.iter().map(|item| {
        vec![
            item.kind.clone(),
            item.count.to_string(),
            size(item.bytes),
            size(item.reclaimable_bytes),
        ]
    }));
    format!("{}\n{} free\n", table(&rows), size(usage.free_bytes))
}

/// Seconds of an age as `90`, `15m`, `12h` or `7d`.
fn age_s(text: &str) -> Result<u64, String> {
    let (number, unit_s) = match text.strip_suffix(['s', 'm', 'h', 'd']) {
        Some(number) if text.ends_with('s') => (number, 1),
        Some(number) if text.ends_with('m') => (number, 60),
        Some(number) if text.ends_with('h') => (number, 3600),
        Some(number) => (number, 86_400),
        None => (text, 1),
    };
    let number: Option<u64> = number.parse().ok();
    number
        .and_then(|number| number.checked_mul(unit_s))
        .ok_or_else(|| "write an age as in 12h or 7d".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_units() {
        for (text, seconds) in [
            ("90", 90),
            ("90s", 90),
            ("15m", 900),
            ("12h", 43_200),
            ("7d", 604_800),
        ] {
            assert_eq!(age_s(text), Ok(seconds));
        }
        for bad in [
            "",
            "d",
            "-1d",
            "1w",
            "1.5h",
            "99999999999999999999",
            "999999999999999999d",
        ] {
            age_s(bad).unwrap_err();
        }
    }
}
