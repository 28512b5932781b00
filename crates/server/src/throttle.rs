//! Bounds how often an account may call each operation: a token bucket for each pair.

use dormouse_api::route::Operation;
use dormouse_core::{AccountId, Timestamp};
use std::collections::{BTreeMap, HashMap};
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

    fn take(&mut self, rate: Rate, now: Timestamp) -> Result<(), Duration> {
        // A call a second is a thousandth of a call a millisecond. A clock that was set back fills nothing.
        let elapsed_ms = u64::try_from(now.since(self.at).as_millis()).unwrap_or(u64::MAX);
        let gained = elapsed_ms.saturating_mul(u64::from(rate.per_second));
        let most = u64::from(rate.burst) * Self::CALL;
        self.millicalls = self.millicalls.saturating_add(gained).min(most);
        self.at = now;
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
