//! Who builds next: a pure line, fair among accounts.
//!
//! The next turn goes to the account that has the fewest builds running, among those to the one that has
//! waited longest for a turn; within an account, to the build that came first. So an account that asks for
//! a hundred builds delays another's single one by no more than what runs already.

use dormouse_core::{AccountId, BuildId};
use std::collections::{BTreeMap, VecDeque};

/// Builds that wait, and how many run.
#[derive(Debug)]
pub(super) struct Line {
    at_once: usize,
    running: usize,
    turns: u64,
    accounts: BTreeMap<AccountId, Account>,
}

#[derive(Debug, Default)]
struct Account {
    waiting: VecDeque<BuildId>,
    running: usize,
    /// Number of its last turn; none is zero.
    last_turn: u64,
}

impl Line {
    /// An empty line, of which `at_once` builds run at a time.
    pub(super) fn new(at_once: usize) -> Self {
        Self {
            at_once,
            running: 0,
            turns: 0,
            accounts: BTreeMap::new(),
        }
    }

    /// Puts a build at the end of its account's part.
    pub(super) fn push(&mut self, account: &AccountId, build: BuildId) {
        let account = self.accounts.entry(account.clone()).or_default();
        account.waiting.push_back(build);
    }

    /// The build that may begin now; it counts as running until [`Line::end`].
    pub(super) fn begin(&mut self) -> Option<BuildId> {
        if self.running >= self.at_once {
            return None;
        }
        let waiting = self
            .accounts
            .values_mut()
            .filter(|account| !account.waiting.is_empty());
        let next = waiting.min_by_key(|account| (account.running, account.last_turn))?;
        let build = next.waiting.pop_front()?;
        self.turns += 1;
        self.running += 1;
        next.running += 1;
        next.last_turn = self.turns;
        Some(build)
    }

    /// A build of this account has ended.
    pub(super) fn end(&mut self, account: &AccountId) {
        self.running = self.running.saturating_sub(1);
        if let Some(entry) = self.accounts.get_mut(account) {
            entry.running = entry.running.saturating_sub(1);
            if entry.running == 0 && entry.waiting.is_empty() {
                self.accounts.remove(account);
            }
        }
    }

    /// Takes a build out that has not begun; says whether it was there.
    pub(super) fn remove(&mut self, account: &AccountId, build: &BuildId) -> bool {
        let Some(entry) = self.accounts.get_mut(account) else {
            return false;
        };
        let before = entry.waiting.len();
        entry.waiting.retain(|waiting| waiting != build);
        let removed = entry.waiting.len() < before;
        if entry.running == 0 && entry.waiting.is_empty() {
            self.accounts.remove(account);
        }
        removed
    }

    /// Builds of this account that wait or run.
    pub(super) fn len_of(&self, account: &AccountId) -> usize {
        let entry = self.accounts.get(account);
        entry.map_or(0, |entry| entry.running + entry.waiting.len())
    }

    /// Builds of all accounts that wait or run.
    pub(super) fn len(&self) -> usize {
        let waiting = self.accounts.values().map(|entry| entry.waiting.len());
        self.running + waiting.sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn account(number: u8) -> AccountId {
        AccountId::parse(&format!("{number:012}")).unwrap()
    }

    fn build(number: u128) -> BuildId {
        BuildId::new(Uuid::from_u128(number))
    }

    #[test]
    fn a_single_build_does_not_wait_behind_a_hundred_of_another_account() {
        let mut line = Line::new(2);
        for number in 0..100 {
            line.push(&account(1), build(number));
        }
        assert_eq!(line.begin(), Some(build(0)));
        assert_eq!(line.begin(), Some(build(1)));
        assert_eq!(line.begin(), None, "two at once");
        line.push(&account(2), build(1000));
        line.end(&account(1));
        assert_eq!(line.begin(), Some(build(1000)));
        line.end(&account(1));
        assert_eq!(line.begin(), Some(build(2)));
        assert_eq!((line.len_of(&account(1)), line.len()), (98, 99));
    }

    #[test]
    fn accounts_with_as_much_running_take_turns() {
        let mut line = Line::new(1);
        for number in 0..3 {
            for who in 1..4 {
                line.push(&account(who), build(u128::from(who) * 10 + number));
            }
        }
        let mut order = Vec::new();
        while let Some(next) = line.begin() {
            let who = (1..4).find(|who| (0..3).any(|n| next == build(u128::from(*who) * 10 + n)));
            line.end(&account(who.unwrap()));
            order.push(next);
        }
        let expected = [10, 20, 30, 11, 21, 31, 12, 22, 32].map(build);
        assert_eq!(order, expected);
        assert_eq!(line.len(), 0);
    }

    #[test]
    fn a_build_that_was_taken_out_never_begins() {
        let mut line = Line::new(1);
        line.push(&account(1), build(1));
        line.push(&account(1), build(2));
        assert!(line.remove(&account(1), &build(1)));
        assert!(!line.remove(&account(1), &build(1)));
        assert!(!line.remove(&account(2), &build(2)));
        assert_eq!(line.begin(), Some(build(2)));
    }

    proptest! {
        /// Whatever comes and ends when: no more run than may, all get their turn, and of two accounts that
        /// both wait none gets two turns more than the other while as many of theirs run.
        #[test]
        fn everybody_gets_a_turn(
            at_once in 1usize..4,
            coming in prop::collection::vec(0u8..4, 1..40),
            ends in prop::collection::vec(any::<prop::sample::Index>(), 200),
        ) {
            let mut line = Line::new(at_once);
            let owner = |id: &BuildId, coming: &[u8]| {
                let at = (0..coming.len()).find(|n| build(*n as u128) == *id).unwrap();
                account(coming[at])
            };
            for (number, who) in coming.iter().enumerate() {
                line.push(&account(*who), build(number as u128));
            }
            let mut running: Vec<BuildId> = Vec::new();
            let mut begun = Vec::new();
            for end in ends {
                while let Some(next) = line.begin() {
                    let who = owner(&next, &coming);
                    let of = |a: &AccountId| running.iter().filter(|b| owner(b, &coming) == *a).count();
                    for other in (0..4).map(account) {
                        let waits = line.len_of(&other) > of(&other);
                        prop_assert!(other == who || !waits || of(&who) <= of(&other));
                    }
                    begun.push(next.clone());
                    running.push(next);
                }
                prop_assert!(running.len() <= at_once);
                if running.is_empty() {
                    break;
                }
                let ended = running.remove(end.index(running.len()));
                line.end(&owner(&ended, &coming));
            }
            prop_assert_eq!(begun.len(), coming.len());
            for who in (0..4).map(account) {
                let of: Vec<_> = begun.iter().filter(|b| owner(b, &coming) == who).collect();
                let mut sorted = of.clone();
                sorted.sort_by_key(|b| (0..coming.len()).find(|n| build(*n as u128) == **b));
                prop_assert_eq!(of, sorted, "first come, first served within an account");
            }
        }
    }
}
