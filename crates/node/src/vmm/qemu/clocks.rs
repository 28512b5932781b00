//! Moving a device state's clocks on by the time that its machine slept (`docs/adr/0008`).
//!
//! QEMU saves the clocks as they stood and would let them go on from there. Each is one number in a section of its own:
//!
//! ```text
//! 04  id (4)  name length (1), name  instance (4)  version (4)  fields, subsections …  7e  id (4)
//! ```
//! Numbers are big endian. A section is found by its head and believed by its foot. What the guest's registers hold is in the
//! stream too, so a guest can forge a section: where there are two of a name, neither is touched, and it has lost its own clock.

use super::{Accel, counter};
use crate::vmm::VmmError;
use std::time::Duration;

const SECTION: u8 = 0x04;
const SUBSECTION: u8 = 0x05;
const FOOTER: u8 = 0x7e;
/// Length of a section's number, and of the other numbers around its name.
const WORD: usize = 4;

/// A device state whose clocks are not where they should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the device state has no section {0:?} as this version of QEMU should write it")]
pub(super) struct NoClock(&'static str);

/// What a guest's monotonic clocks are computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The emulated counter, which ticks so often in a millisecond.
    Counter { khz: u64 },
    /// KVM's paravirtual clock.
    Kvmclock,
}

/// What it is with this host's guests. Takes a moment.
pub(super) async fn of(accel: Accel) -> Result<Source, VmmError> {
    match accel {
        Accel::Kvm => Ok(Source::Kvmclock),
        Accel::Tcg => match tokio::task::spawn_blocking(counter::khz).await {
            Ok(khz) => Ok(Source::Counter { khz }),
            Err(error) => Err(VmmError::io("measure clock")(error.into())),
        },
    }
}

/// Moves the clocks of `state` on.
pub(super) fn advance(state: &mut Vec<u8>, source: Source, slept: Duration) -> Result<(), NoClock> {
    let nanoseconds = u64::try_from(slept.as_nanos()).unwrap_or(u64::MAX);
    match source {
        Source::Counter { khz } => advance_counter(state, nanoseconds, khz),
        Source::Kvmclock => advance_kvmclock(state, nanoseconds),
    }
}

/// The counter, in ticks, and the clock by which timers are due, in nanoseconds.
fn advance_counter(state: &mut [u8], nanoseconds: u64, khz: u64) -> Result<(), NoClock> {
    const TICKS: usize = 0;
    const UNUSED: usize = 8;
    const CLOCK: usize = TICKS + 8 + UNUSED;
    let timer = Section {
        name: "timer",
        version: 2,
        len: CLOCK + 8,
    };
    let fields = timer.find(state).ok_or(NoClock(timer.name))?;
    if !ends_at(state, &fields, fields.data + timer.len) {
        return Err(NoClock(timer.name));
    }
    let ticks = u128::from(nanoseconds) * u128::from(khz) / 1_000_000;
    add(
        state,
        fields.data + TICKS,
        u64::try_from(ticks).unwrap_or(u64::MAX),
    );
    add(state, fields.data + CLOCK, nanoseconds);
    Ok(())
}

/// The paravirtual clock, in nanoseconds. QEMU would rather go by what stands in the guest's memory where the host's counter
/// is not stable, so the state has to say that its own number is to be relied on.
fn advance_kvmclock(state: &mut Vec<u8>, nanoseconds: u64) -> Result<(), NoClock> {
    const RELIABLE: &str = "kvmclock/clock_is_reliable";
    let kvmclock = Section {
        name: "kvmclock",
        version: 1,
        len: 8,
    };
    let fields = kvmclock.find(state).ok_or(NoClock(kvmclock.name))?;
    let end = fields.data + kvmclock.len;
    let mut reliable = vec![SUBSECTION, RELIABLE.len() as u8];
    reliable.extend(RELIABLE.bytes());
    reliable.extend(1u32.to_be_bytes());
    let said = end + reliable.len();
    if state[end..].starts_with(&reliable) && ends_at(state, &fields, said + 1) {
        state[said] = 1;
    } else if ends_at(state, &fields, end) {
        reliable.push(1);
        state.splice(end..end, reliable);
    } else {
        return Err(NoClock(kvmclock.name));
    }
    add(state, fields.data, nanoseconds);
    Ok(())
}

/// A section as QEMU writes it, of the only device of its kind.
struct Section {
    name: &'static str,
    version: u32,
    /// Bytes of its fields.
    len: usize,
}

/// Where a section is in a state.
struct Found {
    id: [u8; WORD],
    /// Where its fields begin; they are there whole.
    data: usize,
}

impl Section {
    /// The section, if there is only one of its name.
    fn find(&self, state: &[u8]) -> Option<Found> {
        let mut head = vec![self.name.len() as u8];
        head.extend(self.name.bytes());
        head.extend(0u32.to_be_bytes());
        let begin = 1 + WORD;
        let named = state.windows(begin + head.len()).enumerate();
        let mut named = named.filter(|(_, at)| at[0] == SECTION && at[begin..] == head);
        let (Some((at, _)), None) = (named.next(), named.next()) else {
            return None;
        };
        let version = at + begin + head.len();
        let data = version + WORD;
        let found = state.get(version..data)? == self.version.to_be_bytes()
            && state.len() - data >= self.len;
        let id = state[at + 1..].first_chunk().copied()?;
        found.then_some(Found { id, data })
    }
}

/// Whether the section's foot stands at `at`.
fn ends_at(state: &[u8], section: &Found, at: usize) -> bool {
    state
        .get(at..)
        .and_then(|rest| rest.split_first_chunk::<{ 1 + WORD }>())
        .is_some_and(|(foot, _)| foot[0] == FOOTER && foot[1..] == section.id)
}

/// Adds to a number in the state, which has to be there.
fn add(state: &mut [u8], at: usize, more: u64) {
    let (number, _) = state[at..].as_chunks_mut::<8>();
    if let Some(number) = number.first_mut() {
        *number = u64::from_be_bytes(*number)
            .saturating_add(more)
            .to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn section(id: u32, name: &str, version: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![SECTION];
        bytes.extend(id.to_be_bytes());
        bytes.push(name.len() as u8);
        bytes.extend(name.bytes());
        bytes.extend([0, version].map(u32::to_be_bytes).as_flattened());
        bytes.extend(data);
        bytes.push(FOOTER);
        bytes.extend(id.to_be_bytes());
        bytes
    }

    fn numbers(numbers: &[u64]) -> Vec<u8> {
        numbers.iter().flat_map(|n| n.to_be_bytes()).collect()
    }

    fn around(middle: &[u8]) -> Vec<u8> {
        let before = section(1, "timers", 2, &numbers(&[7, 7, 7]));
        let after = section(9, "cpu", 12, &numbers(&[5]));
        [b"QEVM\0\0\0\x03", &before[..], middle, &after[..]].concat()
    }

    #[test]
    fn emulated_clocks_move_on_by_the_sleep() {
        let timer = |ticks, clock| around(&section(2, "timer", 2, &numbers(&[ticks, 42, clock])));
        let mut state = timer(1000, 2000);
        advance(&mut state, Source::Counter { khz: 2_500_000 }, HOUR).unwrap();
        assert!(state == timer(1000 + 9_000_000_000_000, 2000 + 3_600_000_000_000));
    }

    #[test]
    fn paravirtual_clock_moves_on_and_says_that_it_is_reliable() {
        let reliable = |said| {
            let mut bytes = vec![SUBSECTION, 26];
            bytes.extend(b"kvmclock/clock_is_reliable");
            bytes.extend([0, 0, 0, 1, said]);
            bytes
        };
        let kvmclock = |clock, more: &[u8]| {
            around(&section(
                3,
                "kvmclock",
                1,
                &[&numbers(&[clock]), more].concat(),
            ))
        };
        let expected = kvmclock(3_600_000_000_005, &reliable(1));
        for more in [vec![], reliable(0), reliable(1)] {
            let mut state = kvmclock(5, &more);
            advance(&mut state, Source::Kvmclock, HOUR).unwrap();
            assert!(state == expected, "{more:?}");
        }
    }

    #[test]
    fn what_is_not_as_expected_is_left_as_it_was() {
        let counter = Source::Counter { khz: 1 };
        let forged = around(&section(2, "timer", 2, &numbers(&[1, 2, 3])));
        let cases = [
            (
                counter,
                around(&section(2, "timer", 3, &numbers(&[1, 2, 3]))),
            ),
            (counter, around(&section(2, "timer", 2, &numbers(&[1, 2])))),
            (
                counter,
                around(&section(2, "timer", 2, &numbers(&[1, 2, 3, 4]))),
            ),
            (
                Source::Kvmclock,
                around(&section(2, "kvmclock", 1, &numbers(&[1, 2]))),
            ),
            (
                Source::Kvmclock,
                around(&section(2, "kvmclock", 2, &numbers(&[1]))),
            ),
            (Source::Kvmclock, Vec::new()),
            (counter, [forged.clone(), forged].concat()),
        ];
        for (source, before) in cases {
            let mut state = before.clone();
            advance(&mut state, source, HOUR).unwrap_err();
            assert!(state == before, "{source:?}");
        }
    }

    #[test]
    fn state_cut_short_anywhere_does_no_harm() {
        let whole = around(&section(2, "timer", 2, &numbers(&[1, 2, 3])));
        for len in 0..whole.len() {
            let _ = advance(&mut whole[..len].to_vec(), Source::Counter { khz: 1 }, HOUR);
            let _ = advance(&mut whole[..len].to_vec(), Source::Kvmclock, HOUR);
        }
    }
}
