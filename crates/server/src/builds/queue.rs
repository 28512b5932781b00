//! The line of builds at work: places in it, turns, and how a build is called off.

use super::line::Line;
use dormouse_core::image::Build;
use dormouse_core::{AccountId, BuildId, limits};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;

/// Builds that wait or run.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    per_account: usize,
}

#[derive(Debug)]
struct State {
    line: Line,
    entered: HashMap<BuildId, Entered>,
    /// Places that are kept for builds whose records are not stored yet.
    reserved: BTreeMap<AccountId, usize>,
}

/// A build from its place in the line to its end.
#[derive(Debug, Clone)]
struct Entered {
    build: Build,
    called_off: CancellationToken,
    ended: CancellationToken,
}

/// A place that is kept in the line; it is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    queue: Arc<Queue>,
    account: AccountId,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// The account has as many builds as it may.
    Account,
    /// The whole line is as long as it may be.
    Line,
}

/// A build that is to begin.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) build: Build,
    /// Cancelled when the build is called off.
    pub(super) called_off: CancellationToken,
}

impl Queue {
    /// An empty line, of which `at_once` builds run at a time, with at most `per_account` of each account.
    pub(super) fn new(at_once: usize, per_account: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                line: Line::new(at_once),
                entered: HashMap::new(),
                reserved: BTreeMap::new(),
            }),
            per_account,
        })
    }

    /// Keeps a place for a build of this account.
    pub(super) fn reserve(self: &Arc<Self>, account: &AccountId) -> Result<Place, Full> {
        let mut state = self.state();
        let reserved: usize = state.reserved.values().sum();
        if state.line.len() + reserved >= limits::BUILD_QUEUE {
            return Err(Full::Line);
        }
        let own = state.reserved.get(account).copied().unwrap_or(0);
        if state.line.len_of(account) + own >= self.per_account {
            return Err(Full::Account);
        }
        state.reserved.insert(account.clone(), own + 1);
        Ok(Place {
            queue: Arc::clone(self),
            account: account.clone(),
        })
    }

    /// Puts a stored build into the line; the place that was kept for it is given back with this.
    pub(super) fn enter(&self, build: Build) {
        let mut state = self.state();
        state.line.push(&build.account, build.id.clone());
        let entered = Entered {
            build: build.clone(),
            called_off: CancellationToken::new(),
            ended: CancellationToken::new(),
        };
        state.entered.insert(build.id, entered);
    }

    /// The build that may begin now, until [`Queue::end`].
    pub(super) fn begin(&self) -> Option<Turn> {
        let mut state = self.state();
        let id = state.line.begin()?;
        let entered = state.entered.get(&id)?;
        Some(Turn {
            build: entered.build.clone(),
            called_off: entered.called_off.clone(),
        })
    }

    /// A build that had begun has ended.
    pub(super) fn end(&self, build: &Build) {
        let mut state = self.state();
        state.line.end(&build.account);
        if let Some(entered) = state.entered.remove(&build.id) {
            entered.ended.cancel();
        }
    }

    /// Calls a build off. One that waits is out of the line; of one that runs, what is cancelled when it has
    /// ended.
    pub(super) fn call_off(&self, id: &BuildId) -> Option<CancellationToken> {
        let mut state = self.state();
        let entered = state.entered.get(id)?.clone();
        if state.line.remove(&entered.build.account, id) {
            state.entered.remove(id);
            return None;
        }
        entered.called_off.cancel();
        Some(entered.ended)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No section panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        if let Some(reserved) = state.reserved.get_mut(&self.account) {
            *reserved -= 1;
            if *reserved == 0 {
                state.reserved.remove(&self.account);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_core::image::VersionState;
    use dormouse_core::{ImageArn, Timestamp};
    use uuid::Uuid;

    fn build(account: &AccountId) -> Build {
        Build {
            id: BuildId::new(Uuid::new_v4()),
            image: ImageArn::parse("arn:aws:lambda:us-east-1:000000000000:microvm-image:app")
                .unwrap(),
            version: "1.0".to_owned(),
            account: account.clone(),
            state: VersionState::Pending,
            state_reason: None,
            created_at: Timestamp(0),
            memory_mib: 512,
            sizes: None,
        }
    }

    #[test]
    fn an_account_has_so_many_places_and_gets_them_back() {
        let queue = Queue::new(1, 2);
        let [one, two] = ["000000000001", "000000000002"].map(|a| AccountId::parse(a).unwrap());
        let place = queue.reserve(&one).unwrap();
        let first = build(&one);
        queue.enter(first.clone());
        drop(place);
        let given_up = queue.reserve(&one).unwrap();
        assert_eq!(queue.reserve(&one).unwrap_err(), Full::Account);
        queue.reserve(&two).unwrap();
        drop(given_up);
        queue.enter(build(&one));
        assert_eq!(queue.reserve(&one).unwrap_err(), Full::Account);
        assert_eq!(queue.begin().unwrap().build.id, first.id);
        queue.end(&first);
        queue.reserve(&one).unwrap();
    }

    #[test]
    fn a_build_is_called_off_whether_it_waits_or_runs() {
        let queue = Queue::new(1, 10);
        let account = AccountId::parse("000000000001").unwrap();
        let [runs, waits] = [build(&account), build(&account)];
        queue.enter(runs.clone());
        queue.enter(waits.clone());
        let turn = queue.begin().unwrap();
        assert!(queue.call_off(&waits.id).is_none());
        let ended = queue.call_off(&runs.id).unwrap();
        assert!(turn.called_off.is_cancelled() && !ended.is_cancelled());
        queue.end(&turn.build);
        assert!(ended.is_cancelled());
        assert!(queue.begin().is_none(), "the other one never begins");
        assert!(queue.call_off(&runs.id).is_none());
    }
}
