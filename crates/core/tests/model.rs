//! The life of one MicroVM, model-checked: every order in which wishes, timers, outcomes, failures, deaths of the machine,
//! of the daemon and of the host can come, some of them late, twice or in another order.
//!
//! What is real here: [`step`] and [`effect_of`]. What is modelled: what an effect does to the host, step by step as
//! `node::lifecycle` does it, each step a place where the daemon may die; and that an effect begins by looking at what
//! an earlier daemon left.
//!
//! The search is exhaustive within the bounds below, so it has no seed: a counterexample is a list of steps, printed.

use dormouse_core::microvm::{Effect, Event, IdlePolicy, Record, State, effect_of, step};
use dormouse_core::{AccountId, BuildId, EndpointId, ImageArn, MicrovmId, Timestamp};
use stateright::{Checker, Model, Property};
use std::collections::BTreeSet;

/// How often a daemon may die, a machine may die, a step may fail and an outcome may come twice, in one life.
const MISHAPS: u8 = 6;
/// How often the app may run anew after a sleep.
const RUNS: u8 = 6;

/// The machine on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Machine {
    None,
    /// It is there and the app does not run.
    Held,
    /// The app runs.
    Runs,
}

/// The snapshot of a sleeping MicroVM on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kept {
    None,
    /// Under its temporary name.
    Torn,
    /// Under its final name, as the app was after this many runs.
    Whole(u8),
    /// Taken into use: it is no snapshot any more.
    Used,
}

/// What an effect has come to tell its driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Outcome {
    Launched,
    LaunchFailed,
    Suspended,
    SuspendFailed,
    Resumed,
    ResumeFailed,
    HookFailed,
    InstanceExited,
    TornDown,
}

/// The whole world.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    /// The state in the store, which survives everything.
    stored: State,
    /// Whether a daemon runs.
    daemon: bool,
    /// The effect under way and its next step.
    work: Option<(Effect, u8)>,
    /// Outcomes on their way to the driver.
    mail: BTreeSet<Outcome>,
    machine: Machine,
    kept: Kept,
    /// Whether the MicroVM has a folder.
    folder: bool,
    /// How often the app's state has moved on.
    runs: u8,
    mishaps: u8,
    /// Whether the machine went by itself: then nobody owes the app its state.
    died: bool,
}

/// What callers and timers want, at any time.
fn wishes() -> [Event; 7] {
    [
        Event::SuspendRequested,
        Event::ResumeRequested,
        Event::Wake,
        Event::TerminateRequested,
        Event::IdleDue,
        Event::LifetimeDue,
        Event::SuspendedDue,
    ]
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    Wish(Event),
    /// The effect under way takes its next step.
    Work,
    /// That step fails.
    Fail,
    /// An outcome arrives.
    Deliver(Outcome),
    /// An outcome arrives and will come once more.
    DeliverTwice(Outcome),
    /// The machine ends by itself.
    MachineDies,
    /// `kill -9` of the daemon.
    Crash,
    /// The host restarts, and with it goes every process.
    HostReboots,
    /// A daemon starts and takes over what it finds.
    Start,
}

/// One MicroVM with this idle policy.
struct Life {
    policy: Option<IdlePolicy>,
}

impl Life {
    fn record(&self, state: State) -> Record {
        Record {
            id: MicrovmId::new(uuid::Uuid::nil()),
            account: AccountId::parse("000000000000").expect("twelve digits"),
            endpoint: EndpointId::new(uuid::Uuid::nil()),
            image: ImageArn {
                region: "us-east-1".to_owned(),
                account: "000000000000".to_owned(),
                name: "app".to_owned(),
            },
            image_version: "1.0".to_owned(),
            build: BuildId::new(uuid::Uuid::nil()),
            memory_mib: 512,
            state,
            state_reason: None,
            started_at: Timestamp(0),
            suspended_at: None,
            terminated_at: None,
            max_duration_s: 1,
            idle_policy: self.policy,
            ingress_connectors: Vec::new(),
            egress_connectors: Vec::new(),
            egress: dormouse_core::egress::Egress::NONE,
            execution_role: None,
            hooks: dormouse_core::hook::Hooks::default(),
            run_hook_payload: None,
        }
    }

    /// The driver takes an event: it persists first, then begins the effect.
    fn take(&self, world: &mut World, event: Event) {
        let Ok(next) = step(&self.record(world.stored), event, Timestamp(0)) else {
            return;
        };
        world.stored = next.record.state;
        if let Some(effect) = next.effect {
            // The driver holds the one effect under way and awaits its outcome: with the effect goes what it would tell, and
            // with the machine the news of its end. Without that, an outcome that comes twice would end the next effect
            // of its kind before its time, as this model has shown.
            world.work = Some((effect, 0));
            world.mail.clear();
        }
        if world.stored == State::Suspended {
            world.mail.remove(&Outcome::InstanceExited);
        }
    }
}

fn event(outcome: Outcome) -> Event {
    let why = String::new;
    match outcome {
        Outcome::Launched => Event::Launched,
        Outcome::LaunchFailed => Event::LaunchFailed(why()),
        Outcome::Suspended => Event::Suspended,
        Outcome::SuspendFailed => Event::SuspendFailed(why()),
        Outcome::Resumed => Event::Resumed,
        Outcome::ResumeFailed => Event::ResumeFailed(why()),
        Outcome::HookFailed => Event::HookFailed(why()),
        Outcome::InstanceExited => Event::InstanceExited(why()),
        Outcome::TornDown => Event::TornDown,
    }
}

impl World {
    /// The effect is over and tells its driver.
    fn tell(&mut self, outcome: Outcome) {
        self.work = None;
        self.mail.insert(outcome);
    }

    fn run(&mut self) {
        self.machine = Machine::Runs;
        self.runs += 1;
    }

    /// One step of the effect under way, as `node::lifecycle` takes it.
    fn work(&mut self) {
        let Some((work, at)) = self.work else { return };
        self.work = Some((work, at + 1));
        match (work, at) {
            // Whatever an earlier attempt left never served a request.
            (Effect::Launch, 0) => {
                self.machine = Machine::None;
                self.kept = Kept::None;
                self.folder = true;
            }
            (Effect::Launch, 1) => self.machine = Machine::Held,
            (Effect::Launch, 2) => self.run(),
            (Effect::Launch, _) => self.tell(Outcome::Launched),

            (Effect::Suspend, 0) => match (self.machine, self.kept) {
                // It was whole when the daemon died: only the end is missing.
                (_, Kept::Whole(_)) => self.work = Some((work, 3)),
                (Machine::None, _) => self.tell(Outcome::InstanceExited),
                _ => self.machine = Machine::Held,
            },
            (Effect::Suspend, 1) => match self.machine {
                Machine::None => self.tell(Outcome::InstanceExited),
                _ => self.kept = Kept::Torn,
            },
            (Effect::Suspend, 2) => match self.machine {
                Machine::None => self.tell(Outcome::InstanceExited),
                _ => self.kept = Kept::Whole(self.runs),
            },
            (Effect::Suspend, 3) => self.machine = Machine::None,
            (Effect::Suspend, _) => self.tell(Outcome::Suspended),

            (Effect::Resume, 0) => match (self.kept, self.machine) {
                (Kept::Whole(_), _) => self.machine = Machine::Held,
                // It died after the snapshot was taken into use: the machine is there, or its state is gone.
                (_, Machine::None) => self.tell(Outcome::InstanceExited),
                _ => self.work = Some((work, 2)),
            },
            (Effect::Resume, 1) => match self.machine {
                Machine::None => self.tell(Outcome::ResumeFailed),
                _ => self.kept = Kept::Used,
            },
            (Effect::Resume, 2) => match self.machine {
                Machine::None => self.tell(Outcome::InstanceExited),
                _ => self.run(),
            },
            (Effect::Resume, 3) => self.kept = Kept::None,
            (Effect::Resume, _) => self.tell(Outcome::Resumed),

            (Effect::Teardown, 0) => self.machine = Machine::None,
            (Effect::Teardown, 1) => {
                self.kept = Kept::None;
                self.folder = false;
            }
            (Effect::Teardown, _) => self.tell(Outcome::TornDown),
        }
    }

    /// The next step of the effect under way fails, where it can; answers whether it could.
    fn fail(&mut self) -> bool {
        let Some((work, at)) = self.work else {
            return false;
        };
        match (work, at) {
            (Effect::Launch, 0..=2) => {
                self.machine = Machine::None;
                self.tell(Outcome::LaunchFailed);
            }
            (Effect::Launch | Effect::Resume, 3..) => self.tell(Outcome::HookFailed),
            // What has the snapshot's name loses it before the machine runs on.
            (Effect::Suspend, 1 | 2) if self.machine == Machine::Held => {
                self.kept = Kept::None;
                self.machine = Machine::Runs;
                self.tell(Outcome::SuspendFailed);
            }
            (Effect::Resume, 0 | 1) if matches!(self.kept, Kept::Whole(_)) => {
                self.machine = Machine::None;
                self.tell(Outcome::ResumeFailed);
            }
            // It is tried again for ever.
            (Effect::Teardown, _) | (Effect::Suspend | Effect::Resume, _) => return false,
        }
        true
    }

    fn crash(&mut self) {
        self.daemon = false;
        self.work = None;
        self.mail.clear();
    }

    fn machine_dies(&mut self) {
        self.machine = Machine::None;
        self.died = true;
        if self.daemon {
            self.mail.insert(Outcome::InstanceExited);
        }
    }

    fn is_at_rest(&self) -> bool {
        self.daemon && self.work.is_none() && self.mail.is_empty()
    }
}

impl Model for Life {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            stored: State::Pending,
            daemon: true,
            work: Some((Effect::Launch, 0)),
            mail: BTreeSet::new(),
            machine: Machine::None,
            kept: Kept::None,
            folder: false,
            runs: 0,
            mishaps: 0,
            died: false,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let may_go_wrong = world.mishaps < MISHAPS;
        if world.daemon {
            let more = world.runs < RUNS;
            let wishes = wishes()
                .into_iter()
                .filter(|wish| more || *wish == Event::TerminateRequested);
            actions.extend(wishes.map(Action::Wish));
            actions.extend(world.mail.iter().copied().map(Action::Deliver));
            if world.work.is_some() {
                actions.push(Action::Work);
            }
        } else {
            actions.push(Action::Start);
        }
        if may_go_wrong {
            if world.daemon {
                actions.extend([Action::Crash, Action::Fail]);
                actions.extend(world.mail.iter().copied().map(Action::DeliverTwice));
            }
            actions.push(Action::HostReboots);
            if world.machine != Machine::None {
                actions.push(Action::MachineDies);
            }
        }
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        let mut world = last.clone();
        match action {
            Action::Wish(wish) => self.take(&mut world, wish),
            Action::Work => world.work(),
            Action::Fail => {
                if !world.fail() {
                    return None;
                }
                world.mishaps += 1;
            }
            Action::Deliver(outcome) => {
                world.mail.remove(&outcome);
                self.take(&mut world, event(outcome));
            }
            Action::DeliverTwice(outcome) => {
                world.mishaps += 1;
                self.take(&mut world, event(outcome));
            }
            Action::MachineDies => {
                world.mishaps += 1;
                world.machine_dies();
            }
            Action::Crash => {
                world.mishaps += 1;
                world.crash();
            }
            Action::HostReboots => {
                world.mishaps += 1;
                world.crash();
                if world.machine != Machine::None {
                    world.machine = Machine::None;
                    world.died = true;
                }
            }
            Action::Start => {
                world.daemon = true;
                world.work = effect_of(world.stored).map(|effect| (effect, 0));
                if world.stored == State::Running && world.machine == Machine::None {
                    world.mail.insert(Outcome::InstanceExited);
                }
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "a whole snapshot is as new as the app",
                |_, world: &World| !matches!(world.kept, Kept::Whole(runs) if runs != world.runs),
            ),
            Property::always(
                "the app does not run beside its whole snapshot",
                |_, world: &World| {
                    world.machine != Machine::Runs || !matches!(world.kept, Kept::Whole(_))
                },
            ),
            Property::always("running means that the app runs", |_, world: &World| {
                let runs = world.machine == Machine::Runs;
                !(world.is_at_rest() && world.stored == State::Running) || runs
            }),
            Property::always(
                "suspended means a whole snapshot and no machine",
                |_, world: &World| {
                    let asleep =
                        matches!(world.kept, Kept::Whole(_)) && world.machine == Machine::None;
                    !(world.is_at_rest() && world.stored == State::Suspended) || asleep
                },
            ),
            Property::always(
                "terminated means that nothing is left",
                |_, world: &World| {
                    let nothing =
                        world.machine == Machine::None && world.kept == Kept::None && !world.folder;
                    world.stored != State::Terminated || nothing
                },
            ),
            Property::always(
                "no state lasts in which nobody works on the next one",
                |_, world: &World| !world.is_at_rest() || effect_of(world.stored).is_none(),
            ),
            Property::always(
                "no state is lost but with its machine",
                |_, world: &World| {
                    let born = world.runs > 0;
                    let somewhere =
                        world.machine != Machine::None || matches!(world.kept, Kept::Whole(_));
                    let over = world.stored.is_ending() || world.stored == State::Pending;
                    !born || over || somewhere || world.died
                },
            ),
            Property::sometimes("a life with a sleep ends", |_, world: &World| {
                world.stored == State::Terminated && world.runs > 1
            }),
            Property::sometimes("a sleep outlives the host", |_, world: &World| {
                world.mishaps > 0 && world.runs > 1 && world.stored == State::Running
            }),
        ]
    }
}

fn check(policy: Option<IdlePolicy>) {
    let checker = Life { policy }.checker().threads(2).spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    assert!(checker.unique_state_count() > 1000, "a model of nothing");
    checker.assert_properties();
}

#[test]
fn a_life_without_a_policy_keeps_its_promises() {
    check(None);
}

#[test]
fn a_life_that_wakes_by_itself_keeps_its_promises() {
    check(Some(IdlePolicy {
        max_idle_s: 60,
        suspended_s: 60,
        auto_resume: true,
    }));
}

#[test]
fn a_life_that_must_not_sleep_keeps_its_promises() {
    check(Some(IdlePolicy {
        max_idle_s: 60,
        suspended_s: 0,
        auto_resume: false,
    }));
}
