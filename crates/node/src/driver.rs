//! The driver of one MicroVM: the only task that changes its state.
//!
//! It takes one input at a time (a command, the outcome of an effect, a timer, the end of the machine),
//! lets [`microvm::step`] decide, persists the decision, shows it at the gate and starts the effect. An
//! effect runs beside the loop, so that a terminate never waits behind it: the effect is dropped and the
//! teardown cleans up what it left.

use crate::clock;
use crate::gate::{Gate, Phase};
use crate::guest::Guest;
use crate::lifecycle::Host;
use crate::transition::{self, Outcome};
use crate::vmm::{ExitReason, Instance};
use dormouse_core::microvm::{self, Denied, Effect, Event, Record, State};
use dormouse_core::{chain, limits};
use dormouse_store::{Store, StoreError, Versioned};
use futures_util::future::{BoxFuture, pending};
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// A wish put to a driver, and where the answer goes.
#[derive(Debug)]
pub struct Command {
    /// The wish.
    pub event: Event,
    /// Answered once the wish is persisted or refused.
    pub reply: oneshot::Sender<Result<(), CommandError>>,
}

/// Why a wish was not granted.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The state does not allow it.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// It could not be persisted; nothing has changed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The MicroVM's driver is gone: the daemon is stopping.
    #[error("daemon is stopping")]
    Stopping,
}

/// What the driver works with.
#[derive(Debug)]
pub struct Means {
    /// Launches, suspends, resumes.
    pub host: Host,
    /// Where records are kept.
    pub store: Store,
    /// Bounds the transitions under way at once.
    pub transitions: Semaphore,
    /// Ends drivers when the daemon stops; MicroVMs run on.
    pub stop: CancellationToken,
}

/// The driver of one MicroVM.
pub struct Driver {
    means: Arc<Means>,
    gate: Arc<Gate>,
    row: Versioned<Record>,
    machine: Option<Arc<dyn Instance>>,
    /// Whether the machine of a running MicroVM is still being looked for.
    looking: bool,
    inbox: mpsc::Receiver<Command>,
    work: Option<BoxFuture<'static, Outcome>>,
    exit: Option<BoxFuture<'static, String>>,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver")
            .field("record", &self.row.value)
            .finish_non_exhaustive()
    }
}

enum Input {
    Command(Command),
    Outcome(Outcome),
    Happened(Event),
    Recheck,
    Stop,
}

enum Due {
    Now(Event),
    LookAgainIn(Duration),
}

impl Driver {
    /// A driver for a stored MicroVM; [`Driver::run`] does the rest.
    #[must_use]
    pub fn new(
        means: Arc<Means>,
        gate: Arc<Gate>,
        row: Versioned<Record>,
        inbox: mpsc::Receiver<Command>,
    ) -> Self {
        Self {
            means,
            gate,
            row,
            machine: None,
            looking: false,
            inbox,
            work: None,
            exit: None,
        }
    }

    /// Picks up where the record stands and drives the MicroVM to its end.
    pub async fn run(mut self) {
        self.recover().await;
        while self.row.value.state != State::Terminated {
            match self.next_input().await {
                Input::Command(command) => self.obey(command).await,
                Input::Outcome(outcome) => {
                    self.work = None;
                    self.looking = false;
                    if outcome.machine.is_some() {
                        self.machine = outcome.machine;
                    }
                    match outcome.event {
                        Some(event) => self.happen(event).await,
                        None => self.show(),
                    }
                }
                Input::Happened(event) => self.happen(event).await,
                Input::Recheck => {}
                Input::Stop => return,
            }
        }
    }

    /// After a restart: takes up what the state owes, and finds the machine that runs or owns up that it is gone.
    async fn recover(&mut self) {
        let state = self.row.value.state;
        if state == State::Running {
            match self.means.host.adopt(&self.row.value).await {
                Ok(None) => return self.happen(transition::gone()).await,
                Ok(machine) => self.machine = machine,
                Err(error) => {
                    self.warn("machine was not adopted; trying again", &error);
                    self.look_for_machine();
                }
            }
        }
        self.show();
        self.start(microvm::effect_of(state));
    }

    /// A host that has just started many is slow to answer. Beside the loop, it is asked until it does: what cannot be
    /// told does not end a MicroVM, and wishes are heard meanwhile.
    fn look_for_machine(&mut self) {
        self.looking = true;
        let (means, record) = (Arc::clone(&self.means), self.row.value.clone());
        self.work = Some(Box::pin(async move {
            transition::recover(&means, &record)
                .await
                .unwrap_or_else(|early| early)
        }));
    }

    async fn next_input(&mut self) -> Input {
        let delay = match self.next_due() {
            Due::Now(event) => return Input::Happened(event),
            Due::LookAgainIn(delay) => delay,
        };
        let at_rest = self.work.is_none();
        tokio::select! {
            biased;
            outcome = optional(self.work.as_mut()) => Input::Outcome(outcome),
            () = self.means.stop.cancelled(), if at_rest => Input::Stop,
            Some(command) = self.inbox.recv() => Input::Command(command),
            reason = optional(self.exit.as_mut()) => {
                self.exit = None;
                Input::Happened(Event::InstanceExited(reason))
            }
            () = sleep(delay) => Input::Recheck,
        }
    }

    /// What time itself brings now, or when to look again.
    fn next_due(&self) -> Due {
        // Wall clocks jump: no sleep is longer than this without a new look.
        const LOOK_AGAIN: Duration = Duration::from_secs(30);
        let now = clock::now();
        let record = &self.row.value;
        let last_activity = self.gate.last_activity(now);
        match microvm::next_deadline(record, last_activity) {
            None => Due::LookAgainIn(LOOK_AGAIN),
            Some((at, _)) if at > now => Due::LookAgainIn(at.since(now).min(LOOK_AGAIN)),
            Some((_, Event::IdleDue)) => {
                let idle = record.idle_policy.map_or(Duration::MAX, |policy| {
                    Duration::from_secs(policy.max_idle_s)
                });
                // A request may have come in since: then the gate stays open.
                match self.gate.close_if_idle(idle) {
                    true => Due::Now(Event::IdleDue),
                    false => Due::LookAgainIn(Duration::from_millis(1)),
                }
            }
            Some((_, event)) => Due::Now(event),
        }
    }

    async fn obey(&mut self, command: Command) {
        let answer = self.try_event(command.event).await;
        // The caller may have given up waiting; its wish stands.
        let _ = command.reply.send(answer);
    }

    async fn try_event(&mut self, event: Event) -> Result<(), CommandError> {
        let step = microvm::step(&self.row.value, event, clock::now())?;
        if step.record == self.row.value {
            return Ok(());
        }
        match self.means.store.update(&self.row, step.record).await {
            Ok(row) => self.row = row,
            Err(error) => {
                self.reread().await;
                return Err(error.into());
            }
        }
        let record = &self.row.value;
        let reason = record.state_reason.as_deref();
        tracing::info!(microvm = %record.id, state = record.state.wire_name(), reason, "microvm");
        self.show();
        self.start(step.effect);
        Ok(())
    }

    /// A write that failed is done all the same when only its answer was lost: then the stored record counts.
    async fn reread(&mut self) {
        match self
            .means
            .store
            .get::<Record>(self.row.value.id.as_str())
            .await
        {
            Ok(Some(row)) if row.revision != self.row.revision => {
                self.row = row;
                self.show();
                self.start(microvm::effect_of(self.row.value.state));
            }
            Ok(_) => {}
            Err(error) => self.warn("record was not read", &error),
        }
    }

    /// Takes an event that is a fact: it is recorded, however long the store refuses.
    async fn happen(&mut self, event: Event) {
        while let Err(error) = self.try_event(event.clone()).await {
            match error {
                CommandError::Denied(_) | CommandError::Stopping => return,
                CommandError::Store(error) => {
                    self.warn("record was not stored; trying again", &error)
                }
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    /// Shows the state at the gate and watches over a machine that runs.
    fn show(&mut self) {
        self.exit = None;
        let phase = match (self.row.value.state, &self.machine) {
            (State::Running, Some(machine)) => {
                self.exit = Some(Box::pin(watch(Arc::clone(machine))));
                Phase::Open(Arc::clone(machine))
            }
            (State::Suspended, _) => Phase::Asleep {
                auto_resume: self
                    .row
                    .value
                    .idle_policy
                    .is_none_or(|policy| policy.auto_resume),
                wake_failed: self.row.value.state_reason.is_some(),
            },
            (State::Terminating | State::Terminated, _) => Phase::Ended,
            _ => Phase::Hold,
        };
        self.gate.set(phase);
    }

    fn start(&mut self, effect: Option<Effect>) {
        let Some(effect) = effect else { return };
        let machine = match effect {
            Effect::Suspend | Effect::Teardown => self.machine.take(),
            Effect::Launch | Effect::Resume => None,
        };
        let looking = std::mem::take(&mut self.looking);
        self.exit = None;
        let means = Arc::clone(&self.means);
        let gate = Arc::clone(&self.gate);
        let record = self.row.value.clone();
        self.work = Some(Box::pin(async move {
            let outcome = match effect {
                Effect::Launch => Ok(transition::launch(&means, &record).await),
                Effect::Suspend => transition::suspend(&means, &record, machine, &gate).await,
                Effect::Resume => transition::resume(&means, &record).await,
                Effect::Teardown => {
                    let machine = match looking {
                        true => transition::look_once(&means, &record).await,
                        false => machine,
                    };
                    transition::teardown(&means, &record, machine).await
                }
            };
            outcome.unwrap_or_else(|early| early)
        }));
    }

    fn warn(&self, what: &str, error: &dyn Error) {
        tracing::warn!(microvm = %self.row.value.id, error = chain(error), "{what}");
    }
}

/// Waits until the app or the machine ends by itself, and says how.
async fn watch(machine: Arc<dyn Instance>) -> String {
    let app = async {
        loop {
            match Guest::new(&*machine).wait_app().await {
                Ok(status) => match status.exit {
                    Some(exit) => {
                        // Nothing listens any more, so requests are told at once.
                        sleep(limits::APP_EXIT_GRACE).await;
                        return microvm::reason_app_exited(exit.code);
                    }
                    None => sleep(Duration::from_secs(1)).await,
                },
                Err(_) => sleep(Duration::from_secs(1)).await,
            }
        }
    };
    tokio::select! {
        reason = machine.exited() => match reason {
            ExitReason::PoweredOff => "MicroVM powered itself off.".to_owned(),
            ExitReason::Crashed(what) => format!("MicroVM's machine ended: {what}"),
        },
        reason = app => reason,
    }
}

async fn optional<T>(future: Option<&mut BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}
