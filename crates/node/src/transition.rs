//! Carries out what a driver owes after a step, and says what came of it.
//!
//! Work on machines waits for its turn, and what waits for a guest comes outside of it: an agent or an app that takes
//! its time to answer holds up no other MicroVM.
//!
//! An effect that breaks off has its outcome for an error.

use crate::driver::Means;
use crate::gate::Gate;
use crate::lifecycle::{self, HookFailed, LifecycleError};
use crate::retry;
use crate::vmm::{Instance, VmmError};
use dormouse_core::hook::Hook;
use dormouse_core::microvm::{self, Event, Record};
use dormouse_core::{chain, limits};
use std::error::Error;
use std::sync::Arc;
use tokio::sync::SemaphorePermit;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// What an effect came to: the event to take next, if the state changes, and the machine that now runs.
pub(crate) struct Outcome {
    pub(crate) event: Option<Event>,
    pub(crate) machine: Option<Arc<dyn Instance>>,
}

impl Outcome {
    fn new(event: Event, machine: Option<Arc<dyn Instance>>) -> Self {
        Self {
            event: Some(event),
            machine,
        }
    }

    /// The machine ended while no daemon looked.
    fn gone() -> Self {
        Self::new(gone(), None)
    }

    /// The daemon stops: the next one takes the effect up again.
    fn unfinished() -> Self {
        Self {
            event: None,
            machine: None,
        }
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

/// What happened to a MicroVM whose machine is not there any more.
pub(crate) fn gone() -> Event {
    Event::InstanceExited("MicroVM's machine is gone.".to_owned())
}

/// Takes over the machine of a running MicroVM that could not be looked for at once.
pub(crate) async fn recover(means: &Means, record: &Record) -> Result<Outcome, Outcome> {
    let found = find(means, record).await?;
    let machine = found.ok_or_else(Outcome::gone)?;
    Ok(Outcome {
        event: None,
        machine: Some(machine),
    })
}

/// Launches a MicroVM and lets its app begin.
pub(crate) async fn launch(means: &Means, record: &Record) -> Outcome {
    let host = &means.host;
    let launched = async {
        let machine = in_turn(means, host.launch(record)).await?;
        host.thaw(record.id.as_str(), &*machine).await?;
        Ok::<_, LifecycleError>(machine)
    };
    match launched.await {
        Ok(machine) => go(means, record, machine, Hook::Run, Event::Launched).await,
        Err(error) => {
            let reason = failed("launch", record, &error);
            Outcome::new(Event::LaunchFailed(reason), None)
        }
    }
}

/// Suspends a MicroVM once its app knows. `machine` is none after a restart.
pub(crate) async fn suspend(
    means: &Means,
    record: &Record,
    machine: Option<Arc<dyn Instance>>,
    gate: &Gate,
) -> Result<Outcome, Outcome> {
    // After a crash it may be whole already.
    if !is_kept(means, record).await? {
        let machine = match machine {
            Some(machine) => {
                has_room(means, record, &machine).await?;
                machine
            }
            // An earlier daemon may have frozen it: whatever fails now, it is thawed.
            None => find(means, record).await?.ok_or_else(Outcome::gone)?,
        };
        keep(means, record, machine, gate).await?;
    }
    // The snapshot is whole and has its name: from here on the MicroVM is asleep, come what may.
    gate.cut();
    end_machine(means, record).await?;
    Ok(Outcome::new(Event::Suspended, None))
}

/// Fails a suspend that has no room before anything is asked of the MicroVM.
async fn has_room(
    means: &Means,
    record: &Record,
    machine: &Arc<dyn Instance>,
) -> Result<(), Outcome> {
    means.host.find_room(record).await.map_err(|error| {
        let reason = failed("suspend", record, &error);
        Outcome::new(Event::SuspendFailed(reason), Some(Arc::clone(machine)))
    })
}

/// Keeps memory and disk of a MicroVM once its app knows; where that fails the outcome says so, and the MicroVM runs
/// on unless its machine has ended.
async fn keep(
    means: &Means,
    record: &Record,
    machine: Arc<dyn Instance>,
    gate: &Gate,
) -> Result<(), Outcome> {
    let host = &means.host;
    if let Err(failed) = host.before_suspend(record, &*machine, gate).await {
        return Err(Outcome::hook_failed(record, failed, Some(machine)));
    }
    let kept = async {
        host.freeze(record, &*machine).await?;
        let _turn = turn_of(means, &*machine).await?;
        host.keep(record, &*machine).await
    };
    let Err(error) = kept.await else {
        return Ok(());
    };
    let reason = failed("suspend", record, &error);
    let run_on = || host.run_on(record, &*machine);
    unless_gone(
        means,
        record,
        &*machine,
        ("suspend", "return to running"),
        run_on,
    )
    .await?;
    let event = Event::SuspendFailed(reason);
    Err(match record.hooks.call(Hook::Suspend) {
        // An app that was told that it would sleep is told that it goes on.
        Some(_) => go(means, record, machine, Hook::Resume, event).await,
        None => Outcome::new(event, Some(machine)),
    })
}

/// Wakes a MicroVM and lets its app go on.
pub(crate) async fn resume(means: &Means, record: &Record) -> Result<Outcome, Outcome> {
    let host = &means.host;
    let machine = awake(means, record).await?;
    let thaw = || host.thaw(record.id.as_str(), &*machine);
    unless_gone(means, record, &*machine, ("resume", "thaw"), thaw).await?;
    host.forget_used(record).await;
    Ok(go(means, record, machine, Hook::Resume, Event::Resumed).await)
}

/// The machine that what was kept is in, whether it was restored now or before a crash.
async fn awake(means: &Means, record: &Record) -> Result<Arc<dyn Instance>, Outcome> {
    let host = &means.host;
    if !is_kept(means, record).await? {
        // A crash came after it was taken into use: the machine is there, or its state is gone.
        let gone = || VmmError::Gone("the machine ended while it was being resumed".to_owned());
        let found = find(means, record).await?;
        return found.ok_or_else(|| lost("resume", record, &gone().into()));
    }
    match in_turn(means, host.wake(record)).await {
        Ok(machine) => Ok(machine),
        Err(error) => {
            let reason = failed("resume", record, &error);
            // Until then the machine counts as the only place of the state, so it is not ended before.
            let put_back = || host.put_back(record);
            until_done(means, record, "return of snapshot", put_back).await?;
            end_machine(means, record).await?;
            Err(Outcome::new(Event::ResumeFailed(reason), None))
        }
    }
}

/// Takes a MicroVM apart, however often that fails.
pub(crate) async fn teardown(
    means: &Means,
    record: &Record,
    machine: Option<Arc<dyn Instance>>,
) -> Result<Outcome, Outcome> {
    let host = &means.host;
    if let Some(machine) = machine.as_deref() {
        if microvm::is_told_of_its_end(record)
            && let Err(HookFailed(reason)) = host.tell(record, machine, Hook::Terminate).await
        {
            tracing::info!(microvm = %record.id, reason, "hook failed; terminating all the same");
        }
        lifecycle::power_off(machine).await;
    }
    // The machine is held to the end: it knows best what of it is left.
    let teardown = || host.teardown(record);
    until_done(means, record, "teardown", teardown).await?;
    Ok(Outcome::new(Event::TornDown, None))
}

/// Ends the machine of a MicroVM that is kept whole, however often that fails: nobody would look for it again
/// before the MicroVM wakes, and it holds memory and a slot.
async fn end_machine(means: &Means, record: &Record) -> Result<(), Outcome> {
    let end = || means.host.end_machine(record);
    until_done(means, record, "end of machine", end).await
}

/// Whether the MicroVM is kept whole.
async fn is_kept(means: &Means, record: &Record) -> Result<bool, Outcome> {
    let look = || means.host.is_kept(record);
    until_done(means, record, "look for snapshot", look).await
}

/// Finds the machine that an earlier daemon left; none only where it is known to be gone.
async fn find(means: &Means, record: &Record) -> Result<Option<Arc<dyn Instance>>, Outcome> {
    let look = || means.host.adopt(record);
    until_done(means, record, "adoption of machine", look).await
}

/// Looks once more for the machine of a MicroVM that is to end, so that its app is told; the end does not hang on it.
pub(crate) async fn look_once(means: &Means, record: &Record) -> Option<Arc<dyn Instance>> {
    let look = timeout(limits::POWEROFF_TIMEOUT, means.host.adopt(record));
    look.await.ok()?.ok()?
}

/// Does what is the host's alone, when it is its turn. Nothing in it may wait for a guest, which could keep the turn
/// from all others.
async fn in_turn<T>(means: &Means, work: impl Future<Output = T>) -> T {
    let _turn = means.transitions.acquire().await;
    work.await
}

/// Waits for the turn of a machine as long as it lives. There is always a permit: the semaphore is never closed.
async fn turn_of<'a>(
    means: &'a Means,
    machine: &dyn Instance,
) -> Result<Option<SemaphorePermit<'a>>, LifecycleError> {
    tokio::select! {
        biased;
        reason = machine.exited() => Err(LifecycleError::gone(reason)),
        turn = means.transitions.acquire() => Ok(turn.ok()),
    }
}

/// Tries until it works: what else could be done would harm the MicroVM or leave something of it behind. Short of that
/// the wait ends with the effect, which a terminate or the end of the longest life drops, if it is no teardown; and a
/// daemon that stops does not wait for what has failed once.
async fn until_done<T, F>(
    means: &Means,
    record: &Record,
    what: &str,
    attempt: impl Fn() -> F,
) -> Result<T, Outcome>
where
    F: Future<Output = Result<T, LifecycleError>>,
{
    let failed = CancellationToken::new();
    let told = |error: &LifecycleError| {
        tracing::error!(microvm = %record.id, error = chain(error), "{what} failed; trying again");
        failed.cancel();
    };
    let given_up = async {
        failed.cancelled().await;
        means.stop.cancelled().await;
    };
    tokio::select! {
        biased;
        done = retry::until_done(attempt, told) => Ok(done),
        () = given_up => Err(Outcome::unfinished()),
    }
}

/// Tries the last step of a transition until it works or the machine ends. The MicroVM's state is in this machine and
/// nowhere else, so nothing less than its end gives it up: no time limit, no silent agent, no failing disk.
async fn unless_gone<F>(
    means: &Means,
    record: &Record,
    machine: &dyn Instance,
    (transition, step): (&str, &str),
    attempt: impl Fn() -> F,
) -> Result<(), Outcome>
where
    F: Future<Output = Result<(), LifecycleError>>,
{
    tokio::select! {
        biased;
        reason = machine.exited() => Err(lost(transition, record, &LifecycleError::gone(reason))),
        done = until_done(means, record, step, attempt) => done,
    }
}

/// The machine has ended amid a transition.
fn lost(what: &str, record: &Record, error: &LifecycleError) -> Outcome {
    let reason = failed(what, record, error);
    Outcome::new(Event::InstanceExited(reason), None)
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
