//! Carries out what a driver owes after a step, and says what came of it.
//!
//! Work on machines waits for its turn, and the calls of hooks come outside of it: an app that takes its time to
//! answer holds up no other MicroVM.

use crate::driver::Means;
use crate::gate::Gate;
use crate::lifecycle::{HookFailed, Setback};
use crate::vmm::Instance;
use dormouse_core::chain;
use dormouse_core::hook::Hook;
use dormouse_core::microvm::{self, Event, Record};
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// What an effect came to: the event to take next, and the machine that now runs.
pub(crate) struct Outcome {
    pub(crate) event: Event,
    pub(crate) machine: Option<Arc<dyn Instance>>,
}

impl Outcome {
    fn new(event: Event, machine: Option<Arc<dyn Instance>>) -> Self {
        Self { event, machine }
    }

    /// The app did not answer a hook as it must. That is the customer's affair, not the daemon's.
    fn hook_failed(
        record: &Record,
        HookFailed(reason): HookFailed,
        machine: Option<Arc<dyn Instance>>,
    ) -> Self {
        tracing::info!(microvm = %record.id, reason, "hook failed");
        Self::new(Event::HookFailed(reason), machine)
    }
}

/// Launches a MicroVM and lets its app begin.
pub(crate) async fn launch(means: &Means, record: &Record) -> Outcome {
    let launched = {
        let _turn = means.transitions.acquire().await;
        means.host.launch(record).await
    };
    match launched {
        Ok(machine) => go(means, record, machine, Hook::Run, Event::Launched).await,
        Err(error) => {
            let reason = failed("launch", record, &error);
            Outcome::new(Event::LaunchFailed(reason), None)
        }
    }
}

/// Suspends a MicroVM once its app knows.
pub(crate) async fn suspend(
    means: &Means,
    record: &Record,
    machine: Option<Arc<dyn Instance>>,
    gate: &Gate,
) -> Outcome {
    let host = &means.host;
    let told = host.before_suspend(record, machine.as_deref(), gate).await;
    if let Err(failed) = told {
        return Outcome::hook_failed(record, failed, machine);
    }
    let suspended = {
        let _turn = means.transitions.acquire().await;
        host.suspend(record, machine.as_deref(), gate).await
    };
    match suspended {
        Ok(()) => {
            end_machine(means, record).await;
            Outcome::new(Event::Suspended, None)
        }
        Err(Setback::Unharmed(error)) => {
            let event = Event::SuspendFailed(failed("suspend", record, &error));
            match machine {
                // An app that was told that it would sleep is told that it goes on.
                Some(machine) if record.hooks.call(Hook::Suspend).is_some() => {
                    go(means, record, machine, Hook::Resume, event).await
                }
                machine => Outcome::new(event, machine),
            }
        }
        Err(Setback::Lost(error)) => {
            let reason = failed("suspend", record, &error);
            Outcome::new(Event::InstanceExited(reason), None)
        }
    }
}

/// Wakes a MicroVM and lets its app go on.
pub(crate) async fn resume(means: &Means, record: &Record) -> Outcome {
    let resumed = {
        let _turn = means.transitions.acquire().await;
        means.host.resume(record).await
    };
    match resumed {
        Ok(machine) => go(means, record, machine, Hook::Resume, Event::Resumed).await,
        Err(Setback::Unharmed(error)) => {
            let reason = failed("resume", record, &error);
            Outcome::new(Event::ResumeFailed(reason), None)
        }
        Err(Setback::Lost(error)) => {
            let reason = failed("resume", record, &error);
            Outcome::new(Event::InstanceExited(reason), None)
        }
    }
}

/// Takes a MicroVM apart, however often that fails.
pub(crate) async fn teardown(
    means: &Means,
    record: &Record,
    machine: Option<Arc<dyn Instance>>,
) -> Outcome {
    if let Some(machine) = machine.as_deref()
        && microvm::is_told_of_its_end(record)
        && let Err(HookFailed(reason)) = means.host.tell(record, machine, Hook::Terminate).await
    {
        tracing::info!(microvm = %record.id, reason, "hook failed; terminating all the same");
    }
    let mut machine = machine;
    while let Err(error) = means.host.teardown(record, machine.take().as_deref()).await {
        tracing::error!(microvm = %record.id, error = chain(&error), "teardown failed; trying again");
        sleep(Duration::from_secs(1)).await;
    }
    Outcome::new(Event::TornDown, None)
}

/// Ends the machine of a MicroVM that is kept whole, however often that fails: nobody would look for it again
/// before the MicroVM wakes, and it holds memory and a slot.
async fn end_machine(means: &Means, record: &Record) {
    while let Err(error) = means.host.end_machine(record).await {
        tracing::error!(microvm = %record.id, error = chain(&error), "machine did not end; trying again");
        sleep(Duration::from_secs(1)).await;
    }
}

/// Lets the app of a thawed machine know; `event` follows when it agrees.
async fn go(
    means: &Means,
    record: &Record,
    machine: Arc<dyn Instance>,
    hook: Hook,
    event: Event,
) -> Outcome {
    match means.host.tell(record, &*machine, hook).await {
        Ok(()) => Outcome::new(event, Some(machine)),
        Err(failed) => Outcome::hook_failed(record, failed, Some(machine)),
    }
}

/// Logs a failed transition where it is handled and makes its state reason.
fn failed(what: &str, record: &Record, error: &dyn Error) -> String {
    let why = chain(error);
    tracing::error!(microvm = %record.id, error = why, "{what} failed");
    format!("MicroVM {what} failed: {why}")
}
