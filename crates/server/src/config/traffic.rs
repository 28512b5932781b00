//! `[limits]`: what the endpoint of one MicroVM may carry, by its size.

use super::ConfigError;
use dormouse_core::limits;
use dormouse_ingress::VmLimits;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

/// What endpoints may carry; AWS's limits unless written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LimitConfig {
    /// By baseline memory in MiB.
    by_size: BTreeMap<u32, VmLimits>,
    /// An app must send the head of its answer within this; none for no limit.
    pub(crate) response_timeout: Option<Duration>,
}

/// The table as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLimits {
    in_flight: Option<Limit>,
    requests_per_second: Option<Limit>,
    bandwidth_mb_per_second: Option<Limit>,
    response_timeout_s: Option<u64>,
    /// By baseline memory in MiB.
    memory: BTreeMap<String, RawSize>,
}

/// What one size has of its own.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSize {
    in_flight: Option<Limit>,
    requests_per_second: Option<Limit>,
    bandwidth_mb_per_second: Option<Limit>,
}

/// One limit as written.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "toml::Value")]
enum Limit {
    Number(NonZeroU32),
    /// AWS's for the size.
    Aws,
    Off,
}

impl TryFrom<toml::Value> for Limit {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<Self, String> {
        let number = value.as_integer().and_then(|n| u32::try_from(n).ok());
        match (number.and_then(NonZeroU32::new), value.as_str()) {
            (Some(number), _) => Ok(Self::Number(number)),
            (None, Some("aws")) => Ok(Self::Aws),
            (None, Some("off")) => Ok(Self::Off),
            _ => Err(format!(
                "{value} is no limit; write a number of at least 1, \"aws\" or \"off\""
            )),
        }
    }
}

impl LimitConfig {
    /// Checks the table and fills in AWS's limits.
    pub(super) fn new(raw: RawLimits) -> Result<Self, ConfigError> {
        let mut own = BTreeMap::new();
        for (size, limits) in raw.memory {
            own.insert(memory_mib(&size)?, limits);
        }
        let by_size = limits::MEMORY_SIZES_MIB.map(|mib| {
            let own: RawSize = own.get(&mib).copied().unwrap_or_default();
            let in_flight = own.in_flight.or(raw.in_flight);
            let requests = own.requests_per_second.or(raw.requests_per_second);
            let bandwidth = own.bandwidth_mb_per_second.or(raw.bandwidth_mb_per_second);
            let limits = VmLimits {
                in_flight: chosen(in_flight, limits::requests_in_flight(mib)),
                requests_per_second: chosen(requests, limits::requests_per_second(mib)),
                bytes_per_second: bytes_per_second(bandwidth, mib),
            };
            (mib, limits)
        });
        Ok(Self {
            by_size: by_size.into(),
            response_timeout: raw.response_timeout_s.map(Duration::from_secs),
        })
    }

    /// The limits of a MicroVM of this baseline memory: those of the next size where there is none such.
    pub(crate) fn of(&self, memory_mib: u32) -> VmLimits {
        let next = self.by_size.range(memory_mib..).next();
        let found = next.or_else(|| self.by_size.last_key_value());
        found.map_or_else(VmLimits::default, |(_, limits)| *limits)
    }
}

fn chosen(limit: Option<Limit>, aws: u32) -> Option<NonZeroU32> {
    match limit {
        Some(Limit::Number(number)) => Some(number),
        Some(Limit::Off) => None,
        Some(Limit::Aws) | None => NonZeroU32::new(aws),
    }
}

fn bytes_per_second(limit: Option<Limit>, mib: u32) -> Option<NonZeroU64> {
    const MB: u64 = 1_000_000;
    match limit {
        Some(Limit::Number(number)) => NonZeroU64::new(u64::from(number.get()) * MB),
        Some(Limit::Off) => None,
        Some(Limit::Aws) | None => NonZeroU64::new(limits::bandwidth_bytes_per_second(mib)),
    }
}

fn memory_mib(text: &str) -> Result<u32, ConfigError> {
    let size = text.parse().ok();
    let size = size.filter(|size| limits::MEMORY_SIZES_MIB.contains(size));
    size.ok_or_else(|| ConfigError::Value {
        key: "limits.memory",
        problem: format!("{text:?} is no size of a microVM"),
        remedy: "write a baseline memory in MiB, as in [limits.memory.2048]",
    })
}
