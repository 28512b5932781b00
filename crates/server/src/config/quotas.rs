//! `[quotas]`: what one account may have and do.

use super::ConfigError;
use crate::throttle::{Rate, Rates};
use dormouse_api::route::Operation;
use dormouse_core::limits;
use serde::Deserialize;
use std::collections::BTreeMap;

/// What one account may have and do; the same for each account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct QuotaConfig {
    /// Images.
    pub(crate) images: usize,
    /// Versions of one image.
    pub(crate) versions_per_image: usize,
    /// Builds that wait or run.
    pub(crate) concurrent_builds: usize,
    /// Baseline memory of all MicroVMs that run or sleep, in MiB.
    pub(crate) memory_mib: u64,
    /// How often each operation may be called.
    pub(crate) calls: Rates,
}

/// The table as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawQuotas {
    images: Option<usize>,
    versions_per_image: Option<usize>,
    concurrent_builds: Option<usize>,
    memory_mib: Option<u64>,
    calls_per_second: Option<u32>,
    calls_burst: Option<u32>,
    calls: BTreeMap<String, RawRate>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRate {
    per_second: u32,
    burst: Option<u32>,
}

/// Checks the table and fills in the defaults.
pub(super) fn quotas(raw: RawQuotas) -> Result<QuotaConfig, ConfigError> {
    let default = rate(
        "quotas.calls_per_second",
        raw.calls_per_second.unwrap_or(limits::CALLS_PER_SECOND),
        Some(raw.calls_burst.unwrap_or_else(|| {
            let twice = raw.calls_per_second.map(|n| n.saturating_mul(2));
            twice.unwrap_or(limits::CALLS_BURST)
        })),
    )?;
    let by_operation = raw
        .calls
        .into_iter()
        .map(|(name, raw)| {
            let operation = Operation::by_name(&name).ok_or_else(|| ConfigError::Value {
                key: "quotas.calls",
                problem: format!("{name:?} is not an operation"),
                remedy: "write its AWS name, as in [quotas.calls.RunMicrovm]",
            })?;
            let rate = rate("quotas.calls", raw.per_second, raw.burst)?;
            Ok((operation.name(), rate))
        })
        .collect::<Result<_, ConfigError>>()?;
    Ok(QuotaConfig {
        images: at_least_one("quotas.images", raw.images, limits::ACCOUNT_IMAGES)?,
        versions_per_image: versions(raw.versions_per_image)?,
        concurrent_builds: at_least_one(
            "quotas.concurrent_builds",
            raw.concurrent_builds,
            limits::ACCOUNT_BUILDS,
        )?,
        memory_mib: raw.memory_mib.unwrap_or(limits::ACCOUNT_MEMORY_MIB),
        calls: Rates {
            default,
            by_operation,
        },
    })
}

fn at_least_one(
    key: &'static str,
    number: Option<usize>,
    default: usize,
) -> Result<usize, ConfigError> {
    match number.unwrap_or(default) {
        0 => Err(ConfigError::Value {
            key,
            problem: "0 allows nothing".to_owned(),
            remedy: "write a number of at least 1",
        }),
        number => Ok(number),
    }
}

fn versions(number: Option<usize>) -> Result<usize, ConfigError> {
    match number.unwrap_or(limits::IMAGE_VERSIONS) {
        number @ 1..=limits::IMAGE_VERSIONS_MAX => Ok(number),
        number => Err(ConfigError::Value {
            key: "quotas.versions_per_image",
            problem: format!("{number} is out of range"),
            remedy: "write a number from 1 to 1000",
        }),
    }
}

fn rate(key: &'static str, per_second: u32, burst: Option<u32>) -> Result<Rate, ConfigError> {
    let burst = burst.unwrap_or_else(|| per_second.saturating_mul(2));
    match (per_second, burst) {
        (0, _) | (_, 0) => Err(ConfigError::Value {
            key,
            problem: "0 calls a second allow nothing".to_owned(),
            remedy: "write numbers of at least 1, as in per_second = 5 and burst = 10",
        }),
        _ => Ok(Rate { per_second, burst }),
    }
}
