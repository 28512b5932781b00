//! Terminating: from every state, and what may still be asked of a MicroVM then.

use crate::lab::{Daemon, Lab};
use crate::stage::Point;
use dormouse_core::microvm::{Denied, Event, REASON_SUCCESS, Record, State};
use dormouse_node::driver::CommandError;
use dormouse_node::node::OpenError;
use dormouse_store::Query;
use std::time::Duration;
use tokio::time::sleep;

async fn assert_terminates_from(daemon: &Daemon, vm: &Record, state: State) {
    assert_eq!(daemon.stored(vm).await.value.state, state);
    let vm = daemon.terminate(vm).await;
    assert_eq!(vm.state_reason.as_deref(), Some(REASON_SUCCESS));
    let states = daemon.journal.states(&vm);
    assert!(
        states.ends_with(&[state, State::Terminating, State::Terminated]),
        "{states:?}"
    );
    daemon.at_rest().await;
    daemon.assert_at_rest().await;
}

#[test]
fn pending_microvm_is_terminated() {
    let lab = Lab::new();
    for point in [
        Point::BeforeReap,
        Point::AfterReap,
        Point::BeforeRestore,
        Point::AfterRestore,
        Point::BeforeResume,
        Point::AfterResume,
        Point::BeforeConnect,
    ] {
        lab.day(async |daemon| {
            let hold = daemon.stage.hold(point);
            let vm = daemon.launch(daemon.record()).await;
            hold.reached().await;
            assert_terminates_from(&daemon, &vm, State::Pending).await;
        });
    }
}

#[test]
fn pending_microvm_that_waits_in_line_is_terminated() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let mut holds = Vec::new();
        for _ in 0..dormouse_core::limits::TRANSITIONS_AT_ONCE {
            let hold = daemon.stage.hold(Point::BeforeRestore);
            daemon.launch(daemon.record()).await;
            hold.reached().await;
            holds.push(hold);
        }
        let vm = daemon.launch(daemon.record()).await;
        let vm = daemon.terminate(&vm).await;
        assert_eq!(
            daemon.journal.states(&vm),
            [State::Pending, State::Terminating, State::Terminated]
        );
        holds.into_iter().for_each(crate::stage::Hold::release);
        daemon.at_rest().await;
        daemon.assert_at_rest().await;
    });
}

#[test]
fn running_microvm_is_terminated() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        assert_terminates_from(&daemon, &vm, State::Running).await;
    });
}

#[test]
fn suspending_microvm_is_terminated() {
    let lab = Lab::new();
    for point in [
        Point::BeforeConnect,
        Point::BeforeSnapshot,
        Point::AfterSnapshot,
        Point::BeforeReap,
        Point::AfterReap,
    ] {
        lab.day(async |daemon| {
            let vm = daemon.running(daemon.record()).await;
            let hold = daemon.stage.hold(point);
            daemon.command(&vm, Event::SuspendRequested).await.unwrap();
            hold.reached().await;
            assert_terminates_from(&daemon, &vm, State::Suspending).await;
        });
    }
}

#[test]
fn suspended_microvm_is_terminated() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.suspended(daemon.record(), 1).await;
        assert_terminates_from(&daemon, &vm, State::Suspended).await;
    });
}

#[test]
fn resuming_microvm_is_terminated_and_its_waiters_are_told() {
    let lab = Lab::new();
    for point in [
        Point::BeforeReap,
        Point::BeforeRestore,
        Point::AfterRestore,
        Point::BeforeResume,
        Point::AfterResume,
        Point::BeforeConnect,
    ] {
        lab.day(async |daemon| {
            let vm = daemon.suspended(daemon.record(), 1).await;
            let hold = daemon.stage.hold(point);
            let waiter = {
                let (daemon, vm) = (daemon.clone(), vm.clone());
                tokio::spawn(async move { daemon.knock(&vm).await })
            };
            hold.reached().await;
            assert_terminates_from(&daemon, &vm, State::Resuming).await;
            let told = waiter.await.unwrap();
            assert!(matches!(told, Err(OpenError::Ended)), "{told:?}");
        });
    }
}

#[test]
fn launch_that_is_cut_off_at_any_moment_leaves_nothing() {
    let lab = Lab::new();
    for _ in 0..20 {
        lab.real_day(async |daemon| {
            let mut vms = Vec::new();
            for _ in 0..8 {
                vms.push(daemon.launch(daemon.record()).await);
            }
            for vm in &vms {
                daemon.command(vm, Event::TerminateRequested).await.unwrap();
            }
            for vm in &vms {
                daemon.until(vm, State::Terminated).await;
                // One for the launch, which clears its folder first.
                let reaps = daemon.stage.reaps(daemon.dir(vm).path());
                assert!(reaps <= 2, "a teardown had to try again");
            }
            // What was still on its way to a file system thread has arrived.
            sleep(Duration::from_millis(2)).await;
            daemon.assert_at_rest().await;
        });
    }
}

async fn assert_over(daemon: &Daemon, vm: &Record) {
    daemon.command(vm, Event::TerminateRequested).await.unwrap();
    for event in [Event::SuspendRequested, Event::ResumeRequested, Event::Wake] {
        let denied = daemon.command(vm, event).await;
        assert!(
            matches!(denied, Err(CommandError::Denied(Denied::Terminated))),
            "{denied:?}"
        );
    }
    let refused = daemon.knock(vm).await;
    assert!(matches!(refused, Err(OpenError::Ended)), "{refused:?}");
}

#[test]
fn terminate_may_be_repeated_and_all_else_is_denied_from_then_on() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        let hold = daemon.stage.hold(Point::BeforeReap);
        daemon
            .command(&vm, Event::TerminateRequested)
            .await
            .unwrap();
        hold.reached().await;
        assert_over(&daemon, &vm).await;
        hold.release();
        daemon.until(&vm, State::Terminated).await;
        assert_over(&daemon, &vm).await;
        assert_eq!(daemon.journal.count(&vm, State::Terminating), 1);
    });
    lab.day(async |daemon| {
        let vm = daemon
            .store
            .list::<Record>(&Query::default())
            .await
            .unwrap()
            .remove(0)
            .value;
        assert_over(&daemon, &vm).await;
    });
}
