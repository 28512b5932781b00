//! The life of one MicroVM as a pure state machine.
//!
//! ```text
//!             Launched                 SuspendRequested, IdleDue
//!  Pending ───────────────▶ Running ──────────────────────────────▶ Suspending
//!     │                      ▲   ▲            SuspendFailed │            │ Suspended
//!     │              Resumed │   └──────────────────────────┘            ▼
//!     │                      │          ResumeRequested, Wake
//!     │                   Resuming ◀──────────────────────────────── Suspended
//!     │                      │ └───────────────────────────────────────▶ │
//!     │                      │               ResumeFailed                │
//!     ▼                      ▼                                           ▼
//!     └──────────────▶ Terminating ◀─────────────────────────────────────┘
//!  any state: TerminateRequested, LifetimeDue, InstanceExited, LaunchFailed, HookFailed, SuspendedDue
//!                            │ TornDown
//!                            ▼
//!                        Terminated
//! ```
//!
//! [`step`] is the only place that changes a state. Its caller, the VM's driver, persists the new record
//! first, then carries out the [`Effect`], then feeds the outcome back as the next event. Every effect may
//! be repeated, so recovery after a crash is [`effect_of`] applied to the stored record.

use crate::egress::Egress;
use crate::hook::{Hooks, RunHookPayload};
use crate::{AccountId, BuildId, EndpointId, ImageArn, MicrovmId, Timestamp};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Everything that is stored of one MicroVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name in the API.
    pub id: MicrovmId,
    /// The account that it belongs to.
    pub account: AccountId,
    /// The first label of its endpoint's host name.
    pub endpoint: EndpointId,
    /// The image that it was launched from.
    pub image: ImageArn,
    /// That image's version, as in `1.0`.
    pub image_version: String,
    /// The build whose snapshot it was launched from.
    pub build: BuildId,
    /// Baseline memory in MiB.
    #[serde(default = "default_memory")]
    pub memory_mib: u32,
    /// Where it is in its life.
    pub state: State,
    /// Why it is in this state, for people; AWS's texts where AWS has one.
    pub state_reason: Option<String>,
    /// When it was asked for; its life is counted from here.
    pub started_at: Timestamp,
    /// When it was last suspended.
    pub suspended_at: Option<Timestamp>,
    /// When it ended.
    pub terminated_at: Option<Timestamp>,
    /// Longest life in seconds, suspended time included.
    pub max_duration_s: u64,
    /// When to suspend it and how long to keep it; none for never.
    pub idle_policy: Option<IdlePolicy>,
    /// Ingress connector ARNs, as echoed.
    pub ingress_connectors: Vec<String>,
    /// Egress connector ARNs, as echoed.
    pub egress_connectors: Vec<String>,
    /// What those let through.
    #[serde(default)]
    pub egress: Egress,
    /// Role ARN, as echoed.
    pub execution_role: Option<String>,
    /// The image's hooks.
    #[serde(default)]
    pub hooks: Hooks,
    /// What the run hook is given; forgotten once the MicroVM is no longer pending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_hook_payload: Option<RunHookPayload>,
}

/// MicroVMs that were stored before they knew their memory.
fn default_memory() -> u32 {
    crate::limits::MEMORY_DEFAULT_MIB
}

/// When to suspend an idle MicroVM and how long to keep it asleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdlePolicy {
    /// Suspend when no byte has crossed the endpoint for this many seconds.
    pub max_idle_s: u64,
    /// Terminate after this many seconds asleep; zero terminates instead of suspending.
    pub suspended_s: u64,
    /// Whether a request to the endpoint wakes it.
    pub auto_resume: bool,
}

/// Where a MicroVM is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Being restored from the image's snapshot.
    Pending,
    /// Its app runs and its endpoint answers.
    Running,
    /// Memory and disk are being kept.
    Suspending,
    /// Memory and disk are kept; no process runs.
    Suspended,
    /// Being restored from what was kept.
    Resuming,
    /// Being taken apart.
    Terminating,
    /// Gone; only the record is left.
    Terminated,
}

impl State {
    /// All states, for tables and tests.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::Running,
        Self::Suspending,
        Self::Suspended,
        Self::Resuming,
        Self::Terminating,
        Self::Terminated,
    ];

    /// The state's name in the API. AWS has no name for resuming and reports SUSPENDED until it is over.
    #[must_use]
    pub fn wire_name(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Running => "RUNNING",
            Self::Suspending => "SUSPENDING",
            Self::Suspended | Self::Resuming => "SUSPENDED",
            Self::Terminating => "TERMINATING",
            Self::Terminated => "TERMINATED",
        }
    }

    /// Whether the MicroVM is over or on its way there.
    #[must_use]
    pub fn is_ending(self) -> bool {
        matches!(self, Self::Terminating | Self::Terminated)
    }
}

/// What can happen to a MicroVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The launch succeeded and the app runs.
    Launched,
    /// The launch failed, for this reason.
    LaunchFailed(String),
    /// Somebody called SuspendMicrovm.
    SuspendRequested,
    /// No byte has crossed the endpoint for the policy's time, and none can until this is decided.
    IdleDue,
    /// Memory and disk are kept and the process is gone.
    Suspended,
    /// They could not be kept, for this reason; the MicroVM runs on.
    SuspendFailed(String),
    /// Somebody called ResumeMicrovm.
    ResumeRequested,
    /// A request reached the endpoint of a sleeping MicroVM.
    Wake,
    /// The MicroVM runs on from what was kept.
    Resumed,
    /// What was kept could not be restored, for this reason; it is still kept.
    ResumeFailed(String),
    /// The app's run, suspend or resume hook did not answer 200, for this reason.
    HookFailed(String),
    /// Somebody called TerminateMicrovm.
    TerminateRequested,
    /// The maximum duration is over.
    LifetimeDue,
    /// The policy's suspended duration is over.
    SuspendedDue,
    /// The app or the machine ended by itself, for this reason.
    InstanceExited(String),
    /// Process, network and files are gone.
    TornDown,
}

/// What the driver must carry out after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Restore the image's snapshot and thaw the app.
    Launch,
    /// Freeze the app, keep memory and disk, end the process.
    Suspend,
    /// Restore what was kept and thaw the app.
    Resume,
    /// End the process, release the network, delete the files.
    Teardown,
}

/// A step that was allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The record to persist, equal to the old one when nothing changed.
    pub record: Record,
    /// What to do once it is persisted.
    pub effect: Option<Effect>,
}

/// Why a caller's wish was refused. The record stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The MicroVM has ended or is ending.
    #[error("has been terminated and its state cannot be changed")]
    Terminated,
    /// The MicroVM is between two states; the caller may try again.
    #[error("is changing its state")]
    Busy,
    /// The policy forbids waking by traffic.
    #[error("does not resume automatically")]
    NoAutoResume,
}

/// State reason of a MicroVM that was terminated on request.
pub const REASON_SUCCESS: &str = "Success.";
/// State reason of a MicroVM whose maximum duration is over.
pub const REASON_LIFETIME: &str = "MicroVM exceeded maximum lifetime.";
/// State reason of a MicroVM whose suspended duration is over. AWS's text is not known.
pub const REASON_SUSPENDED: &str = "MicroVM exceeded maximum suspended duration.";

/// State reason of a MicroVM whose app ended by itself.
#[must_use]
pub fn reason_app_exited(code: i32) -> String {
    format!("Container Stopped with Exit Code: {code}")
}

/// Whether the app of a terminating MicroVM is told so: by a caller's wish or for its age, not when the app
/// ended by itself or a hook of its failed.
#[must_use]
pub fn is_told_of_its_end(record: &Record) -> bool {
    let reason = record.state_reason.as_deref();
    record.state == State::Terminating && matches!(reason, Some(REASON_SUCCESS | REASON_LIFETIME))
}

/// Decides what `event` does to `record`. Total: each pair of state and event has its arm.
pub fn step(record: &Record, event: Event, now: Timestamp) -> Result<Step, Denied> {
    use State::{Pending, Resuming, Running, Suspended, Suspending, Terminated, Terminating};
    match (record.state, event) {
        (Pending, Event::Launched) | (Resuming, Event::Resumed) => {
            Ok(to(record, Running, None, None))
        }
        (Running, Event::SuspendRequested) => {
            Ok(to(record, Suspending, None, Some(Effect::Suspend)))
        }
        (Running, Event::IdleDue) => match record.idle_policy {
            Some(policy) if policy.suspended_s == 0 => Ok(terminate(record, REASON_SUSPENDED)),
            _ => Ok(to(record, Suspending, None, Some(Effect::Suspend))),
        },
        (Suspending, Event::Suspended) => {
            let mut next = to(record, Suspended, None, None);
            next.record.suspended_at = Some(now);
            Ok(next)
        }
        (Suspending, Event::SuspendFailed(reason)) => Ok(to(record, Running, Some(reason), None)),
        (Suspended, Event::ResumeRequested) => Ok(to(record, Resuming, None, Some(Effect::Resume))),
        (Suspended, Event::Wake) => match record.idle_policy {
            Some(policy) if !policy.auto_resume => Err(Denied::NoAutoResume),
            // AWS wakes a VM without a policy too: it can only sleep because somebody asked.
            _ => Ok(to(record, Resuming, None, Some(Effect::Resume))),
        },
        (Suspended, Event::SuspendedDue) => Ok(terminate(record, REASON_SUSPENDED)),
        (Pending, Event::LaunchFailed(reason)) => Ok(terminate(record, &reason)),
        (Resuming, Event::ResumeFailed(reason)) => Ok(to(record, Suspended, Some(reason), None)),
        (Pending | Suspending | Resuming, Event::HookFailed(reason)) => {
            Ok(terminate(record, &reason))
        }
        (Pending | Running | Suspending | Resuming, Event::InstanceExited(reason)) => {
            Ok(terminate(record, &reason))
        }
        (Pending | Running | Suspending | Suspended | Resuming, Event::TerminateRequested) => {
            Ok(terminate(record, REASON_SUCCESS))
        }
        (Pending | Running | Suspending | Suspended | Resuming, Event::LifetimeDue) => {
            Ok(terminate(record, REASON_LIFETIME))
        }
        (Terminating, Event::TornDown) => {
            let mut next = to(record, Terminated, record.state_reason.clone(), None);
            next.record.terminated_at = Some(now);
            Ok(next)
        }

        // What a caller may ask again without harm.
        (Suspending | Suspended, Event::SuspendRequested)
        | (Running | Resuming, Event::ResumeRequested | Event::Wake)
        | (Terminating | Terminated, Event::TerminateRequested) => Ok(unchanged(record)),

        (Pending | Resuming, Event::SuspendRequested)
        | (Pending | Suspending, Event::ResumeRequested)
        | (Pending | Suspending, Event::Wake) => Err(Denied::Busy),
        (
            Terminating | Terminated,
            Event::SuspendRequested | Event::ResumeRequested | Event::Wake,
        ) => Err(Denied::Terminated),

        // Outcomes and timers that come too late: the state has moved on.
        (
            _,
            Event::Launched
            | Event::LaunchFailed(_)
            | Event::IdleDue
            | Event::Suspended
            | Event::SuspendFailed(_)
            | Event::Resumed
            | Event::ResumeFailed(_)
            | Event::HookFailed(_)
            | Event::LifetimeDue
            | Event::SuspendedDue
            | Event::InstanceExited(_)
            | Event::TornDown,
        ) => Ok(unchanged(record)),
    }
}

/// The effect that a stored record still owes: what to do with it after a restart.
#[must_use]
pub fn effect_of(state: State) -> Option<Effect> {
    match state {
        State::Pending => Some(Effect::Launch),
        State::Suspending => Some(Effect::Suspend),
        State::Resuming => Some(Effect::Resume),
        State::Terminating => Some(Effect::Teardown),
        State::Running | State::Suspended | State::Terminated => None,
    }
}

/// The next moment at which time itself changes this MicroVM, and the event that it brings.
///
/// `last_activity` is when the last byte crossed the endpoint; only a running MicroVM can be idle.
#[must_use]
pub fn next_deadline(record: &Record, last_activity: Timestamp) -> Option<(Timestamp, Event)> {
    let lifetime = record
        .started_at
        .after(Duration::from_secs(record.max_duration_s));
    let lifetime = (lifetime, Event::LifetimeDue);
    let policy_due = match (record.state, record.idle_policy) {
        (State::Terminating | State::Terminated, _) => return None,
        (State::Running, Some(policy)) => {
            let idle = last_activity.after(Duration::from_secs(policy.max_idle_s));
            Some((idle, Event::IdleDue))
        }
        (State::Suspended, Some(policy)) => record.suspended_at.map(|at| {
            (
                at.after(Duration::from_secs(policy.suspended_s)),
                Event::SuspendedDue,
            )
        }),
        _ => None,
    };
    match policy_due {
        Some(due) if due.0 < lifetime.0 => Some(due),
        _ => Some(lifetime),
    }
}

fn to(record: &Record, state: State, reason: Option<String>, effect: Option<Effect>) -> Step {
    let mut record = Record {
        state,
        state_reason: reason,
        ..record.clone()
    };
    if state != State::Pending {
        record.run_hook_payload = None;
    }
    Step { record, effect }
}

fn terminate(record: &Record, reason: &str) -> Step {
    to(
        record,
        State::Terminating,
        Some(reason.to_owned()),
        Some(Effect::Teardown),
    )
}

fn unchanged(record: &Record) -> Step {
    Step {
        record: record.clone(),
        effect: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn record(state: State, idle_policy: Option<IdlePolicy>) -> Record {
        let uuid = Uuid::from_u128(1);
        Record {
            id: MicrovmId::new(uuid),
            account: AccountId::parse("000000000000").expect("twelve digits"),
            endpoint: EndpointId::new(uuid),
            image: ImageArn {
                region: "us-east-1".to_owned(),
                account: "000000000000".to_owned(),
                name: "app".to_owned(),
            },
            image_version: "1.0".to_owned(),
            build: BuildId::new(uuid),
            memory_mib: 512,
            state,
            state_reason: None,
            started_at: Timestamp(0),
            suspended_at: (state == State::Suspended).then_some(Timestamp(1000)),
            terminated_at: None,
            max_duration_s: 100,
            idle_policy,
            ingress_connectors: Vec::new(),
            egress_connectors: Vec::new(),
            egress: Egress::default(),
            execution_role: None,
            hooks: Hooks::default(),
            run_hook_payload: (state == State::Pending)
                .then(|| RunHookPayload::new("payload".to_owned())),
        }
    }

    fn policy(suspended_s: u64, auto_resume: bool) -> Option<IdlePolicy> {
        Some(IdlePolicy {
            max_idle_s: 60,
            suspended_s,
            auto_resume,
        })
    }

    fn all_events() -> Vec<Event> {
        let why = || "why".to_owned();
        vec![
            Event::Launched,
            Event::LaunchFailed(why()),
            Event::SuspendRequested,
            Event::IdleDue,
            Event::Suspended,
            Event::SuspendFailed(why()),
            Event::ResumeRequested,
            Event::Wake,
            Event::Resumed,
            Event::ResumeFailed(why()),
            Event::HookFailed(why()),
            Event::TerminateRequested,
            Event::LifetimeDue,
            Event::SuspendedDue,
            Event::InstanceExited(why()),
            Event::TornDown,
        ]
    }

    /// The whole machine as a table: a change of behaviour is a change of this text.
    #[test]
    fn the_transition_table() {
        let mut table = String::new();
        for event in all_events() {
            let name = format!("{event:?}");
            let name = name.split('(').next().unwrap_or_default();
            table.push_str(&format!("{name:18}"));
            for state in State::ALL {
                let cell = match step(
                    &record(state, policy(60, true)),
                    event.clone(),
                    Timestamp(5),
                ) {
                    Ok(next) if next.record.state == state => "·".to_owned(),
                    Ok(next) => format!("{:?}", next.record.state),
                    Err(denied) => format!("!{denied:?}"),
                };
                table.push_str(&format!(" {cell:12}"));
            }
            table = table.trim_end().to_owned();
            table.push('\n');
        }
        expect_test::expect_file!["../tests/transition_table.txt"].assert_eq(&table);
    }

    #[test]
    fn a_policy_without_auto_resume_keeps_the_vm_asleep() {
        let asleep = record(State::Suspended, policy(60, false));
        assert_eq!(
            step(&asleep, Event::Wake, Timestamp(5)),
            Err(Denied::NoAutoResume)
        );
        let explicit = step(&asleep, Event::ResumeRequested, Timestamp(5));
        assert_eq!(explicit.map(|next| next.record.state), Ok(State::Resuming));
    }

    #[test]
    fn a_suspended_duration_of_zero_terminates_instead_of_suspending() {
        let running = record(State::Running, policy(0, true));
        let next = step(&running, Event::IdleDue, Timestamp(5)).expect("idle is never denied");
        assert_eq!(next.record.state, State::Terminating);
        assert_eq!(next.effect, Some(Effect::Teardown));
    }

    #[test]
    fn a_failed_suspend_keeps_the_vm_running_and_says_why() {
        let suspending = record(State::Suspending, policy(60, true));
        let event = Event::SuspendFailed("no space left on device".to_owned());
        let next = step(&suspending, event, Timestamp(5)).expect("outcomes are never denied");
        assert_eq!(next.record.state, State::Running);
        assert_eq!(
            next.record.state_reason.as_deref(),
            Some("no space left on device")
        );
    }

    #[test]
    fn the_app_is_told_of_an_end_that_it_did_not_bring_about() {
        let running = record(State::Running, None);
        for (event, told) in [
            (Event::TerminateRequested, true),
            (Event::LifetimeDue, true),
            (Event::InstanceExited(reason_app_exited(0)), false),
        ] {
            let next = step(&running, event, Timestamp(5)).expect("allowed");
            assert_eq!(is_told_of_its_end(&next.record), told);
        }
        let suspending = record(State::Suspending, None);
        let event = Event::HookFailed("Suspend lifecycle hook timed out.".to_owned());
        let next = step(&suspending, event, Timestamp(5)).expect("allowed");
        assert!(!is_told_of_its_end(&next.record));
        assert!(!is_told_of_its_end(&running));
    }

    #[test]
    fn the_earliest_deadline_wins() {
        let running = record(State::Running, policy(60, true));
        let early = next_deadline(&running, Timestamp(10_000));
        assert_eq!(early, Some((Timestamp(70_000), Event::IdleDue)));
        let late = next_deadline(&running, Timestamp(90_000));
        assert_eq!(late, Some((Timestamp(100_000), Event::LifetimeDue)));
        let asleep = record(State::Suspended, policy(60, true));
        assert_eq!(
            next_deadline(&asleep, Timestamp(0)),
            Some((Timestamp(61_000), Event::SuspendedDue))
        );
        assert_eq!(
            next_deadline(&record(State::Terminated, None), Timestamp(0)),
            None
        );
    }

    proptest! {
        /// Whatever happens in whatever order: an end is final, and an effect comes only with its state.
        #[test]
        fn any_history_keeps_the_invariants(picks in prop::collection::vec(0usize..16, 0..64)) {
            let mut now = record(State::Pending, policy(60, true));
            for (at, pick) in picks.into_iter().enumerate() {
                let event = all_events().swap_remove(pick);
                let Ok(next) = step(&now, event, Timestamp(at as u64)) else { continue };
                if now.state == State::Terminated {
                    prop_assert_eq!(&next.record, &now);
                }
                if now.state == State::Terminating {
                    prop_assert!(next.record.state.is_ending());
                }
                if let Some(effect) = next.effect {
                    prop_assert_eq!(effect_of(next.record.state), Some(effect));
                }
                prop_assert_eq!(
                    next.record.run_hook_payload.is_some(),
                    next.record.state == State::Pending
                );
                prop_assert_eq!(
                    next.record.terminated_at.is_some(),
                    next.record.state == State::Terminated
                );
                now = next.record;
            }
        }
    }
}
