//! Random lives: whatever is asked of three MicroVMs, and whatever goes wrong meanwhile, the invariants
//! hold whenever they rest, and no counted request is forgotten.

use crate::lab::{Daemon, Lab, Unanswered};
use dormouse_core::microvm::{Event, Record, State};
use dormouse_node::vmm::fake::Failure;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseResult, TestRng, TestRunner};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use uuid::Uuid;

const VMS: usize = 3;

#[derive(Debug, Clone)]
enum Act {
    Suspend(usize),
    Resume(usize),
    Terminate(usize),
    Request(usize),
    CrashMachine(usize),
    Fail(Failure),
    /// Lets so many milliseconds pass, in which transitions go on.
    Wait(u64),
    /// Lets everything come to rest, and looks.
    Rest,
    KillDaemon,
    StopDaemon,
}

fn act() -> impl Strategy<Value = Act> {
    let failure = prop::sample::select(vec![
        Failure::Restore,
        Failure::SnapshotDiskFull,
        Failure::ExitOnResume,
    ]);
    prop_oneof![
        6 => (0..VMS).prop_map(Act::Suspend),
        3 => (0..VMS).prop_map(Act::Resume),
        1 => (0..VMS).prop_map(Act::Terminate),
        10 => (0..VMS).prop_map(Act::Request),
        1 => (0..VMS).prop_map(Act::CrashMachine),
        1 => failure.prop_map(Act::Fail),
        4 => (0..3u64).prop_map(Act::Wait),
        2 => Just(Act::Rest),
        2 => Just(Act::KillDaemon),
        1 => Just(Act::StopDaemon),
    ]
}

/// A MicroVM, and what its app must remember.
struct Life {
    vm: Record,
    counted: u64,
}

/// Requests under way in one daemon's day.
type Requests = Vec<(usize, JoinHandle<Result<String, Unanswered>>)>;

#[test]
fn invariants_hold_at_rest_whatever_happens() {
    let seed =
        std::env::var("LIFECYCLE_SEED").unwrap_or_else(|_| Uuid::new_v4().simple().to_string());
    println!("to repeat: LIFECYCLE_SEED={seed}");
    let seed: [u8; 32] = seed.as_bytes().try_into().expect("a seed of 32 characters");
    let config = Config {
        cases: 60,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let lives = prop::collection::vec(act(), 1..60);
    TestRunner::new_with_rng(config, rng)
        .run(&lives, live)
        .unwrap();
}

fn live(acts: Vec<Act>) -> TestCaseResult {
    let lab = Lab::new();
    let mut lives = lab.day(async |daemon| {
        let mut lives = Vec::new();
        for _ in 0..VMS {
            lives.push(Life {
                vm: daemon.running(daemon.record()).await,
                counted: 0,
            });
        }
        lives
    });
    let ends_day = |act: &Act| matches!(act, Act::KillDaemon | Act::StopDaemon);
    for day in acts.split_inclusive(ends_day) {
        lab.day(async |daemon| {
            let mut requests = Requests::new();
            for act in day {
                perform(&daemon, &mut lives, &mut requests, act).await;
            }
        });
    }
    lab.day(async |daemon| {
        daemon.at_rest().await;
        daemon.assert_at_rest().await;
        for life in &lives {
            remembers(&daemon, life, acts.len()).await;
        }
    });
    Ok(())
}

async fn perform(daemon: &Daemon, lives: &mut [Life], requests: &mut Requests, act: &Act) {
    match act {
        // Whether a wish is granted is the state machine's affair.
        Act::Suspend(at) => drop(
            daemon
                .command(&lives[*at].vm, Event::SuspendRequested)
                .await,
        ),
        Act::Resume(at) => drop(daemon.command(&lives[*at].vm, Event::ResumeRequested).await),
        Act::Terminate(at) => drop(
            daemon
                .command(&lives[*at].vm, Event::TerminateRequested)
                .await,
        ),
        Act::Request(at) => {
            let (daemon, vm) = (daemon.clone(), lives[*at].vm.clone());
            let request = tokio::spawn(async move { daemon.ask(&vm, "POST /count").await });
            requests.push((*at, request));
        }
        Act::CrashMachine(at) => daemon.stage.fake.crash(daemon.dir(&lives[*at].vm).path()),
        Act::Fail(failure) => daemon.stage.fake.fail_next(*failure),
        Act::Wait(ms) => sleep(Duration::from_millis(*ms)).await,
        Act::Rest => {
            collect(lives, requests).await;
            daemon.at_rest().await;
            daemon.assert_at_rest().await;
        }
        Act::KillDaemon => {}
        Act::StopDaemon => daemon.node.stop().await,
    }
}

/// Waits for the answers under way: the app counts each request once, and never twice the same.
async fn collect(lives: &mut [Life], requests: &mut Requests) {
    let mut answers = vec![Vec::new(); lives.len()];
    for (at, request) in requests.drain(..) {
        if let Ok(answer) = request.await.unwrap() {
            answers[at].push(answer.parse::<u64>().unwrap());
        }
    }
    for (life, mut answers) in lives.iter_mut().zip(answers) {
        answers.sort_unstable();
        for answer in answers {
            assert!(
                answer > life.counted,
                "{answer} after {} was counted",
                life.counted
            );
            life.counted = answer;
        }
    }
}

/// The MicroVM answers with its state or is over. Failures that still wait for their chance may take it
/// now, `failures` at most: what is kept must survive them too.
async fn remembers(daemon: &Daemon, life: &Life, failures: usize) {
    for _ in 0..=failures {
        if daemon.stored(&life.vm).await.value.state == State::Terminated {
            return;
        }
        match daemon.ask(&life.vm, "GET /count").await {
            Ok(count) => return assert!(count.parse::<u64>().unwrap() >= life.counted),
            Err(_) => daemon.at_rest().await,
        }
    }
    panic!("no answer: {:?}", daemon.journal.states(&life.vm));
}
