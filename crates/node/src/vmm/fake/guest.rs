//! The inside of a fake machine: what its memory holds, and what time does to it.

use super::lock;
use crate::vmm::ExitReason;
use dormouse_core::guest::{AppState, AppStatus, Exit};
use dormouse_core::limits;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;
use tokio::time::Instant;

/// What a snapshot of a fake machine keeps.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct GuestState {
    pub(super) app: AppState,
    pub(super) exit: Option<Exit>,
    /// CPU time of the app up to the last time that it stopped, in microseconds.
    cpu_usec: u64,
    /// The app's number in memory.
    pub(super) counter: u64,
    pub(super) files: BTreeMap<String, String>,
    pub(super) hostname: String,
    /// Hooks that were called, with their bodies.
    pub(super) hook_calls: Vec<String>,
    /// Hooks and what they answer next.
    pub(super) hook_answers: Vec<(String, String)>,
    log: String,
    /// Bytes of the log that are gone.
    log_start: u64,
}

impl Default for GuestState {
    fn default() -> Self {
        Self {
            app: AppState::Absent,
            exit: None,
            cpu_usec: 0,
            counter: 0,
            files: BTreeMap::new(),
            hostname: "localhost".to_owned(),
            hook_calls: Vec::new(),
            hook_answers: Vec::new(),
            log: String::new(),
            log_start: 0,
        }
    }
}

/// Whether the machine's CPUs run.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Power {
    Running,
    Paused,
    Ended(ExitReason),
}

/// The guest of one machine.
#[derive(Debug)]
pub(super) struct Guest {
    state: Mutex<GuestState>,
    /// Since when the app has been using time; none while it does not.
    busy_since: Mutex<Option<Instant>>,
    power: watch::Sender<Power>,
    /// Tells of changes of the app.
    app: watch::Sender<AppState>,
}

impl Guest {
    pub(super) fn start(state: GuestState, running: bool) -> Arc<Self> {
        let guest = Self {
            app: watch::Sender::new(state.app),
            state: Mutex::new(state),
            busy_since: Mutex::default(),
            power: watch::Sender::new(Power::Paused),
        };
        guest.set_running(running);
        Arc::new(guest)
    }

    /// What a snapshot would keep.
    pub(super) fn state(&self) -> GuestState {
        GuestState {
            cpu_usec: self.cpu_usec(),
            ..lock(&self.state).clone()
        }
    }

    /// Works on the state.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut GuestState) -> T) -> T {
        work(&mut lock(&self.state))
    }

    pub(super) fn set_running(&self, running: bool) {
        self.power.send_if_modified(|power| match power {
            Power::Ended(_) => false,
            _ => {
                *power = if running {
                    Power::Running
                } else {
                    Power::Paused
                };
                true
            }
        });
        self.account();
    }

    /// Ends the machine; the first reason counts.
    pub(super) fn end(&self, reason: ExitReason) {
        self.power.send_if_modified(|power| match power {
            Power::Ended(_) => false,
            _ => {
                *power = Power::Ended(reason);
                true
            }
        });
        self.account();
    }

    pub(super) fn exit(&self) -> Option<ExitReason> {
        match &*self.power.borrow() {
            Power::Ended(reason) => Some(reason.clone()),
            Power::Running | Power::Paused => None,
        }
    }

    pub(super) async fn exited(&self) -> ExitReason {
        let mut power = self.power.subscribe();
        loop {
            if let Power::Ended(reason) = &*power.borrow_and_update() {
                return reason.clone();
            }
            power
                .changed()
                .await
                .expect("the sender is borrowed with the guest");
        }
    }

    /// Waits while the machine is paused.
    pub(super) async fn running(&self) {
        let mut power = self.power.subscribe();
        let running = power.wait_for(|power| *power == Power::Running);
        running
            .await
            .expect("the sender is borrowed with the guest");
    }

    pub(super) fn set_app(&self, app: AppState) {
        self.with(|state| state.app = app);
        self.account();
        self.app.send_replace(app);
    }

    /// Waits for the app to be in one of the states that `wanted` says.
    pub(super) async fn app_is(&self, wanted: impl Fn(AppState) -> bool) {
        let mut app = self.app.subscribe();
        app.wait_for(|app| wanted(*app))
            .await
            .expect("the sender is borrowed with the guest");
    }

    pub(super) fn status(&self) -> AppStatus {
        let cpu_usec = self.cpu_usec();
        self.with(|state| AppStatus {
            state: state.app,
            exit: state.exit,
            cpu_usec,
        })
    }

    /// CPU time of the app so far: it uses all that it is given.
    pub(super) fn cpu_usec(&self) -> u64 {
        let since = *lock(&self.busy_since);
        let running = since.map_or(0, |since| since.elapsed().as_micros() as u64);
        self.with(|state| state.cpu_usec) + running
    }

    /// Appends a line to the app's output, of which the end is kept.
    pub(super) fn log(&self, line: &str) {
        self.with(|state| {
            state.log.push_str(line);
            state.log.push('\n');
            let surplus = state.log.len().saturating_sub(limits::AGENT_LOG_BYTES);
            let cut = (surplus..=state.log.len()).find(|at| state.log.is_char_boundary(*at));
            let cut = cut.unwrap_or_default();
            state.log.drain(..cut);
            state.log_start += cut as u64;
        });
    }

    /// The app's output from an offset on: where it starts and its bytes.
    pub(super) fn log_after(&self, after: u64) -> (u64, Vec<u8>) {
        self.with(|state| {
            let skip = after
                .saturating_sub(state.log_start)
                .min(state.log.len() as u64);
            (
                state.log_start + skip,
                state.log.as_bytes()[skip as usize..].to_vec(),
            )
        })
    }

    /// Starts or stops the app's clock, as machine and app are now.
    fn account(&self) {
        let app_runs = self.with(|state| state.app == AppState::Running);
        let busy = app_runs && *self.power.borrow() == Power::Running;
        let mut since = lock(&self.busy_since);
        match (*since, busy) {
            (None, true) => *since = Some(Instant::now()),
            (Some(began), false) => {
                *since = None;
                self.with(|state| state.cpu_usec += began.elapsed().as_micros() as u64);
            }
            _ => {}
        }
    }
}
