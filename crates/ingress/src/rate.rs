//! A token bucket, kept as the one moment at which it will be full again. Pure: the caller brings the clock.

use std::num::NonZeroU64;
use std::time::Duration;

use tokio::time::Instant;

/// So much a second, and so much at once after a silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    per_second: NonZeroU64,
    /// How long it takes to fill an empty bucket.
    span: Duration,
}

impl Rate {
    /// What is left unused gathers for `span`.
    pub(crate) fn new(per_second: NonZeroU64, span: Duration) -> Self {
        Self { per_second, span }
    }

    /// How long it takes to earn `amount`, rounded up.
    pub(crate) fn time_of(self, amount: u64) -> Duration {
        const SECOND_NS: u128 = 1_000_000_000;
        let per_second = u128::from(self.per_second.get());
        let ns = (u128::from(amount) * SECOND_NS).div_ceil(per_second);
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }

    /// What is earned in `time`, rounded down.
    pub(crate) fn amount_in(self, time: Duration) -> u64 {
        let amount = u128::from(self.per_second.get()).saturating_mul(time.as_nanos());
        let amount = amount / 1_000_000_000;
        u64::try_from(amount).unwrap_or(u64::MAX)
    }
}

/// A bucket that fills at a rate, and may be taken from on credit.
#[derive(Debug)]
pub(crate) struct Bucket {
    rate: Rate,
    full_at: Instant,
}

impl Bucket {
    pub(crate) fn full(rate: Rate, now: Instant) -> Self {
        Self { rate, full_at: now }
    }

    /// How long until nothing is owed.
    pub(crate) fn wait(&self, now: Instant) -> Duration {
        self.full_at
            .saturating_duration_since(now)
            .saturating_sub(self.rate.span)
    }

    /// Takes `amount`, on credit if need be; answers with the time until nothing is owed.
    pub(crate) fn take(&mut self, amount: u64, now: Instant) -> Duration {
        self.full_at = self.full_at.max(now) + self.rate.time_of(amount);
        self.wait(now)
    }

    /// As [`Bucket::take`], but takes nothing, and answers with the same time as an error, where that
    /// time is longer than `patience`.
    pub(crate) fn take_within(
        &mut self,
        amount: u64,
        patience: Duration,
        now: Instant,
    ) -> Result<Duration, Duration> {
        let before = self.full_at;
        let wait = self.take(amount, now);
        if wait > patience {
            self.full_at = before;
            return Err(wait);
        }
        Ok(wait)
    }

    /// Gives back what was taken and not used.
    pub(crate) fn give_back(&mut self, amount: u64) {
        self.full_at -= self.rate.time_of(amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(per_second: u64, span_ms: u64) -> Rate {
        let per_second = NonZeroU64::new(per_second).expect("not zero");
        Rate::new(per_second, Duration::from_millis(span_ms))
    }

    #[test]
    fn a_full_bucket_gives_its_burst_at_once_and_then_its_rate() {
        let now = Instant::now();
        let mut bucket = Bucket::full(rate(10, 1000), now);
        for _ in 0..10 {
            assert_eq!(
                bucket.take_within(1, Duration::ZERO, now),
                Ok(Duration::ZERO)
            );
        }
        let tenth = Duration::from_millis(100);
        assert_eq!(bucket.take_within(1, Duration::ZERO, now), Err(tenth));
        assert_eq!(bucket.take_within(1, tenth, now), Ok(tenth));
        assert_eq!(bucket.take_within(1, tenth, now), Err(tenth * 2));
        let later = now + tenth * 2;
        assert_eq!(
            bucket.take_within(1, Duration::ZERO, later),
            Ok(Duration::ZERO)
        );
    }

    #[test]
    fn what_is_more_than_full_runs_over() {
        let now = Instant::now();
        let mut bucket = Bucket::full(rate(1000, 250), now);
        let much_later = now + Duration::from_secs(3600);
        assert_eq!(bucket.take(250, much_later), Duration::ZERO);
        assert_eq!(bucket.take(1, much_later), Duration::from_millis(1));
    }

    #[test]
    fn what_is_given_back_is_there_again_and_no_more_than_full() {
        let now = Instant::now();
        let mut bucket = Bucket::full(rate(10, 1000), now);
        bucket.take(15, now);
        bucket.give_back(5);
        assert_eq!(bucket.wait(now), Duration::ZERO);
        assert_eq!(bucket.take(1, now), Duration::from_millis(100));
        bucket.give_back(11);
        let later = now + Duration::from_millis(500);
        assert_eq!(bucket.take(11, later), Duration::from_millis(100));
    }

    #[test]
    fn extremes_do_not_overflow() {
        let slow = rate(1, 1000);
        assert_eq!(slow.time_of(u64::MAX), Duration::from_nanos(u64::MAX));
        assert_eq!(rate(u64::MAX, 1).amount_in(Duration::MAX), u64::MAX);
    }

    proptest! {
        /// In any stretch of time no more passes than the burst, what the stretch earns, and the one piece
        /// that was on credit.
        #[test]
        fn no_stretch_of_time_gives_more_than_its_due(
            per_second in 1u64..1_000_000,
            span_ms in 0u64..2000,
            takes in prop::collection::vec((0u64..2_000_000, 1u64..5000), 1..60),
        ) {
            let rate = rate(per_second, span_ms);
            let begin = Instant::now();
            let mut bucket = Bucket::full(rate, begin);
            let mut now = begin;
            let mut passed = Vec::new();
            for (pause_us, amount) in takes {
                now += Duration::from_micros(pause_us);
                // Whoever takes waits before it takes again.
                now += bucket.wait(now);
                bucket.take(amount, now);
                passed.push((now, amount));
            }
            for (first, &(from, _)) in passed.iter().enumerate() {
                let mut sum = 0;
                for &(at, amount) in &passed[first..] {
                    let due = rate.amount_in(rate.span + (at - from)) + 1;
                    prop_assert!(sum <= due, "{sum} before {at:?}, due {due}");
                    sum += amount;
                }
            }
        }

        /// A refusal leaves no trace, and names the time after which the same wish is granted.
        #[test]
        fn a_refusal_says_when_to_come_again(
            per_second in 1000u64..100_000,
            span_ms in 1000u64..2000,
            owed in 0u64..100_000,
            amount in 1u64..1000,
            patience_ms in 0u64..500,
        ) {
            let now = Instant::now();
            let patience = Duration::from_millis(patience_ms);
            let rate = rate(per_second, span_ms);
            prop_assume!(rate.time_of(amount) <= rate.span);
            let mut bucket = Bucket::full(rate, now);
            let wait = bucket.take(owed, now);
            match bucket.take_within(amount, patience, now) {
                Ok(granted) => prop_assert!(granted <= patience && granted >= wait),
                Err(after) => {
                    prop_assert_eq!(bucket.wait(now), wait);
                    prop_assert_eq!(bucket.take_within(amount, Duration::ZERO, now + after), Ok(Duration::ZERO));
                }
            }
        }
    }
}
