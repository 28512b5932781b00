//! Bounds how often an account may call each operation, and how often an address may be refused: token
//! buckets.

use dormouse_api::route::Operation;
use dormouse_core::{AccountId, Timestamp, limits};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// So many calls a second, and so many at once after a silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) per_second: u32,
    pub(crate) burst: u32,
}

/// The rates of all operations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rates {
    /// Of each operation that has none of its own.
    pub(crate) default: Rate,
    /// By AWS's name of the operation.
    pub(crate) by_operation: BTreeMap<&'static str, Rate>,
}

impl Rates {
    fn of(&self, operation: Operation) -> Rate {
        let own = self.by_operation.get(operation.name());
        own.copied().unwrap_or(self.default)
    }
}

/// What is left to each account. Accounts come with access keys, so there are no more than those.
#[derive(Debug)]
pub(crate) struct Throttle {
    rates: Rates,
    buckets: Mutex<HashMap<(AccountId, Operation), Bucket>>,
}

impl Throttle {
    /// Full buckets for everybody.
    pub(crate) fn new(rates: Rates) -> Self {
        Self {
            rates,
            buckets: Mutex::default(),
        }
    }

    /// Lets a call pass, or says after which time the next one would.
    pub(crate) fn admit(
        &self,
        account: &AccountId,
        operation: Operation,
        now: Timestamp,
    ) -> Result<(), Duration> {
        let rate = self.rates.of(operation);
        // A bucket is whole after each statement.
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (account.clone(), operation);
        let bucket = buckets
            .entry(key)
            .or_insert_with(|| Bucket::full(rate, now));
        bucket.take(rate, now)
    }
}

/// What is left to each address of being refused.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    buckets: Mutex<HashMap<IpAddr, Bucket>>,
}

impl Refusals {
    const RATE: Rate = Rate {
        per_second: limits::REFUSALS_PER_SECOND,
        burst: limits::REFUSALS_BURST,
    };
    /// Stands for everybody that there is no place for.
    const OTHERS: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

    /// Lets a refusal pass, or says after which time the next one would.
    pub(crate) fn admit(&self, from: IpAddr, now: Timestamp) -> Result<(), Duration> {
        // A bucket is whole after each statement.
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut source = network(from);
        if buckets.len() >= limits::REFUSED_SOURCES_MAX && !buckets.contains_key(&source) {
            buckets.retain(|_, bucket| !bucket.is_full(Self::RATE, now));
            if buckets.len() >= limits::REFUSED_SOURCES_MAX {
                source = Self::OTHERS;
            }
        }
        let full = || Bucket::full(Self::RATE, now);
        let bucket = buckets.entry(source).or_insert_with(full);
        bucket.take(Self::RATE, now)
    }
}

/// Who has one address of IPv6 has 2^64 of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}

/// Calls that may pass now, in thousandths, as of a moment.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    millicalls: u64,
    at: Timestamp,
}

impl Bucket {
    const CALL: u64 = 1000;

    fn full(rate: Rate, now: Timestamp) -> Self {
        Self {
            millicalls: u64::from(rate.burst) * Self::CALL,
            at: now,
        }
    }

    fn fill(&mut self, rate: Rate, now: Timestamp) {
        // A call a second is a thousandth of a call a millisecond. A clock that was set back fills nothing.
        let elapsed_ms = u64::try_from(now.since(self.at).as_millis()).unwrap_or(u64::MAX);
        let gained = elapsed_ms.saturating_mul(u64::from(rate.per_second));
        let most = u64::from(rate.burst) * Self::CALL;
        self.millicalls = self.millicalls.saturating_add(gained).min(most);
        self.at = now;
    }

    fn is_full(mut self, rate: Rate, now: Timestamp) -> bool {
        self.fill(rate, now);
        self.millicalls >= u64::from(rate.burst) * Self::CALL
    }

    fn take(&mut self, rate: Rate, now: Timestamp) -> Result<(), Duration> {
        self.fill(rate, now);
        if self.millicalls >= Self::CALL {
            self.millicalls -= Self::CALL;
            return Ok(());
        }
        let missing = Self::CALL - self.millicalls;
        Err(Duration::from_millis(
            missing.div_ceil(u64::from(rate.per_second).max(1)),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn throttle(per_second: u32, burst: u32) -> Throttle {
        let slow = Rate { per_second, burst };
        let fast = Rate {
            per_second: 1000,
            burst: 1000,
        };
        Throttle::new(Rates {
            default: fast,
            by_operation: [("RunMicrovm", slow)].into(),
        })
    }

    #[test]
    fn a_burst_passes_and_then_so_many_a_second() {
        let throttle = throttle(5, 3);
        let account = AccountId::parse("000000000000").unwrap();
        let other = AccountId::parse("111111111111").unwrap();
        let run = |account, ms| throttle.admit(account, Operation::RunMicrovm, Timestamp(ms));
        for _ in 0..3 {
            assert_eq!(run(&account, 1000), Ok(()));
        }
        assert_eq!(run(&account, 1000), Err(Duration::from_millis(200)));
        assert_eq!(run(&account, 1100), Err(Duration::from_millis(100)));
        assert_eq!(run(&account, 1200), Ok(()));
        assert!(run(&account, 1200).is_err());
        assert!(run(&account, 900).is_err(), "the clock was set back");
        assert_eq!(run(&other, 1200), Ok(()), "each account has its own");
        let get = throttle.admit(&account, Operation::GetMicrovm, Timestamp(1200));
        assert_eq!(get, Ok(()), "and each operation");
        for _ in 0..3 {
            assert_eq!(run(&account, 100_000), Ok(()));
        }
        assert!(
            run(&account, 100_000).is_err(),
            "a silence saves up one burst"
        );
    }

    #[test]
    fn an_address_is_refused_so_often_and_others_do_not_suffer() {
        let refusals = Refusals::default();
        let refuse = |from: &str, ms| refusals.admit(from.parse().unwrap(), Timestamp(ms));
        for _ in 0..limits::REFUSALS_BURST {
            assert_eq!(refuse("2001:db8::1", 0), Ok(()));
        }
        assert_eq!(refuse("2001:db8::2", 0), Err(Duration::from_millis(100)));
        assert_eq!(refuse("2001:db8:0:1::1", 0), Ok(()), "another network");
        assert_eq!(refuse("192.0.2.1", 0), Ok(()));
        assert_eq!(refuse("2001:db8::1", 100), Ok(()));
    }

    #[test]
    fn a_crowd_of_addresses_takes_no_more_than_its_room() {
        let refusals = Refusals::default();
        let crowd = |n: u32, ms| refusals.admit(Ipv4Addr::from_bits(n + 1).into(), Timestamp(ms));
        let most = u32::try_from(limits::REFUSED_SOURCES_MAX).unwrap();
        let admitted = (0..2 * most).filter(|&n| crowd(n, 0).is_ok()).count();
        assert_eq!(admitted, (most + limits::REFUSALS_BURST) as usize);
        let held = |refusals: &Refusals| refusals.buckets.lock().unwrap().len();
        assert_eq!(held(&refusals), limits::REFUSED_SOURCES_MAX + 1);
        assert_eq!(
            crowd(3 * most, 60_000),
            Ok(()),
            "those who kept silent make room"
        );
        assert_eq!(held(&refusals), 1);
    }

    proptest! {
        /// In any stretch of time no more calls pass than the burst and what the rate allows.
        #[test]
        fn the_rate_holds(
            per_second in 1u32..50,
            burst in 1u32..20,
            steps in prop::collection::vec(0u64..400, 1..200),
        ) {
            let throttle = throttle(per_second, burst);
            let account = AccountId::parse("000000000000").unwrap();
            let mut now = 1_000_000;
            let began = now;
            let mut passed = 0u64;
            for step in steps {
                now += step;
                let admitted = throttle.admit(&account, Operation::RunMicrovm, Timestamp(now));
                match admitted {
                    Ok(()) => passed += 1,
                    Err(wait) => {
                        let later = Timestamp(now).after(wait);
                        prop_assert!(wait <= Duration::from_secs(1) && later > Timestamp(now));
                    }
                }
                let allowed = u64::from(burst) + (now - began) * u64::from(per_second) / 1000 + 1;
                prop_assert!(passed <= allowed);
            }
        }
    }
}
