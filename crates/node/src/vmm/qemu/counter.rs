//! How fast the processor's time stamp counter ticks.
//!
//! An emulated guest sees the host's counter. To measure its speed it would need a timer interrupt on
//! time, which a loaded host does not deliver: the guest then boots without any clock and hangs. So the
//! host measures and tells it.

use std::time::{Duration, Instant};

/// Ticks of the counter per millisecond. Blocks for a moment.
pub(super) fn khz() -> u64 {
    const WINDOW: Duration = Duration::from_millis(50);
    let (first, began) = sample();
    std::thread::sleep(WINDOW);
    let (last, ended) = sample();
    let nanoseconds = ended.duration_since(began).as_nanos();
    let khz = u128::from(last.wrapping_sub(first)) * 1_000_000 / nanoseconds.max(1);
    u64::try_from(khz).unwrap_or(0)
}

/// A reading of both clocks at about one moment: of a few tries the one that took least.
fn sample() -> (u64, Instant) {
    let mut best = (u64::MAX, 0, Instant::now());
    for _ in 0..8 {
        let before = counter();
        let now = Instant::now();
        let took = counter().wrapping_sub(before);
        if took < best.0 {
            best = (took, before + took / 2, now);
        }
    }
    (best.1, best.2)
}

fn counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and it touches no memory.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    #[test]
    fn two_measurements_agree() {
        let (a, b) = (super::khz(), super::khz());
        assert!(a > 100_000, "{a}");
        assert!(a.abs_diff(b) * 500 < a, "{a} {b}");
    }
}
