//! The daemon ends, in order or by `kill -9`, and another one takes over.

use crate::lab::{Daemon, Lab, PORT};
use crate::stage::Point;
use dormouse_core::limits;
use dormouse_core::microvm::{Event, Record, State};
use dormouse_node::guest::Guest;
use dormouse_node::vmm::fake::Failure;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};

/// What taking over takes when nothing waits for a time limit.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Starts a transition of `vm` and stands still at `point`; the daemon dies there.
async fn die_at(daemon: &Daemon, vm: &Record, event: Event, point: Point) {
    let hold = daemon.stage.hold(point);
    let (caller, vm) = (daemon.clone(), vm.clone());
    tokio::spawn(async move { caller.command(&vm, event).await });
    hold.reached().await;
}

/// The next daemon brings `vm` to `state` in no time, and all is well then.
async fn assert_taken_over(daemon: &Daemon, vm: &Record, state: State) -> Record {
    let began = Instant::now();
    daemon.at_rest().await;
    let record = daemon.stored(vm).await.value;
    assert_eq!(record.state, state, "{:?}", daemon.journal.states(vm));
    assert!(began.elapsed() < AT_ONCE, "took {:?}", began.elapsed());
    daemon.assert_at_rest().await;
    record
}

#[test]
fn daemon_that_stops_leaves_machines_running_and_the_next_one_takes_them_over() {
    let lab = Lab::new();
    let (awake, asleep) = lab.day(async |daemon| {
        let awake = daemon.running(daemon.record()).await;
        daemon.count_to(&awake, 2).await;
        let asleep = daemon.suspended(daemon.record(), 3).await;
        daemon.node.stop().await;
        daemon.assert_at_rest().await;
        (awake, asleep)
    });
    lab.day(async |daemon| {
        assert_eq!(daemon.ask(&awake, "POST /count").await.unwrap(), "3");
        assert_eq!(daemon.ask(&asleep, "POST /count").await.unwrap(), "4");
        daemon.suspend(&awake).await;
        assert_eq!(daemon.ask(&awake, "POST /count").await.unwrap(), "4");
        daemon.assert_at_rest().await;
    });
}

#[test]
fn daemon_that_stops_finishes_the_transitions_under_way() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        let hold = daemon.stage.hold(Point::BeforeSnapshot);
        daemon.command(&vm, Event::SuspendRequested).await.unwrap();
        hold.reached().await;
        let stop = {
            let node = daemon.node.clone();
            tokio::spawn(async move { node.stop().await })
        };
        tokio::task::yield_now().await;
        assert!(!stop.is_finished());
        hold.release();
        stop.await.unwrap();
        assert_eq!(daemon.stored(&vm).await.value.state, State::Suspended);
        daemon.assert_at_rest().await;
    });
}

#[test]
fn killed_daemon_leaves_machines_running_and_the_next_one_takes_them_over() {
    let lab = Lab::new();
    let vm = lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        daemon.count_to(&vm, 2).await;
        vm
    });
    for count in 3..6 {
        lab.day(async |daemon| {
            let answer = daemon.ask(&vm, "POST /count").await.unwrap();
            assert_eq!(answer, count.to_string());
            assert_taken_over(&daemon, &vm, State::Running).await;
        });
    }
}

#[test]
fn machine_that_ended_while_no_daemon_ran_ends_the_microvm() {
    let lab = Lab::new();
    let vm = lab.day(async |daemon| daemon.running(daemon.record()).await);
    lab.stage.fake.crash(lab.dir(&vm).path());
    lab.day(async |daemon| {
        let record = assert_taken_over(&daemon, &vm, State::Terminated).await;
        assert_eq!(
            record.state_reason.as_deref(),
            Some("MicroVM's machine is gone.")
        );
    });
}

/// Has the next daemon fail so many times to look for a machine.
fn hide(lab: &Lab, looks: usize) {
    for _ in 0..looks {
        lab.stage.fake.fail_next(Failure::Adopt);
    }
}

#[test]
fn machine_that_cannot_be_looked_for_is_taken_over_once_it_can() {
    const LOOKS: usize = 20;
    let lab = Lab::new();
    let vm = lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        daemon.count_to(&vm, 2).await;
        vm
    });
    hide(&lab, LOOKS);
    lab.day(async |daemon| {
        sleep(LOOKS as u32 * limits::RETRY_LAST).await;
        assert_eq!(daemon.ask(&vm, "POST /count").await.unwrap(), "3");
        assert_taken_over(&daemon, &vm, State::Running).await;
    });
    for (event, point) in [
        (Event::SuspendRequested, Point::AfterSnapshot),
        (Event::ResumeRequested, Point::AfterResume),
    ] {
        lab.day(async |daemon| die_at(&daemon, &vm, event, point).await);
        hide(&lab, LOOKS);
        lab.day(async |daemon| {
            daemon.at_rest().await;
            daemon.assert_at_rest().await;
            if daemon.stored(&vm).await.value.state == State::Running {
                assert_eq!(daemon.count(&vm).await, 3);
            }
        });
    }
}

#[test]
fn wishes_are_heard_while_a_machine_cannot_be_looked_for() {
    const LOOKS: usize = 10;
    let lab = Lab::new();
    let (sleeper, dying) = lab.day(async |daemon| {
        let sleeper = daemon.running(daemon.record()).await;
        daemon.count_to(&sleeper, 2).await;
        (sleeper, daemon.running(daemon.record()).await)
    });
    hide(&lab, LOOKS);
    lab.day(async |daemon| {
        let began = Instant::now();
        daemon.terminate(&dying).await;
        assert!(began.elapsed() < AT_ONCE, "took {:?}", began.elapsed());
        daemon.suspend(&sleeper).await;
        assert_eq!(daemon.count(&sleeper).await, 2);
        daemon.assert_at_rest().await;
    });
}

#[test]
fn app_that_ended_while_no_daemon_ran_ends_the_microvm_with_its_exit_code() {
    let lab = Lab::new();
    let vm = lab.day(async |daemon| daemon.running(daemon.record()).await);
    lab.night(async || {
        let machine = lab.stage.alive(lab.dir(&vm).path()).remove(0);
        let mut stream = Guest::new(&*machine).tunnel(PORT).await.unwrap();
        stream
            .write_all(b"GET /exit/4 HTTP/1.1\r\nhost: app\r\n\r\n")
            .await
            .unwrap();
        stream.read_u8().await.unwrap();
    });
    lab.day(async |daemon| {
        let record = daemon.until(&vm, State::Terminated).await;
        let reason = record.state_reason.as_deref();
        assert_eq!(reason, Some("Container Stopped with Exit Code: 4"));
        daemon.assert_at_rest().await;
    });
}

#[test]
fn launch_is_begun_anew_wherever_it_was_cut_off() {
    let lab = Lab::new();
    for point in [
        Point::BeforeRestore,
        Point::AfterRestore,
        Point::BeforeResume,
        Point::AfterResume,
        Point::BeforeConnect,
        Point::BeforeWrite(State::Running),
    ] {
        let vm = lab.day(async |daemon| {
            let hold = daemon.stage.hold(point);
            let vm = daemon.launch(daemon.record()).await;
            hold.reached().await;
            vm
        });
        lab.day(async |daemon| {
            assert_taken_over(&daemon, &vm, State::Running).await;
            daemon.count_to(&vm, 1).await;
        });
    }
}

#[test]
fn suspend_is_finished_wherever_it_was_cut_off() {
    let lab = Lab::new();
    for point in [
        Point::AfterWrite(State::Suspending),
        Point::BeforeConnect,
        Point::BeforeSnapshot,
        Point::AfterSnapshot,
        Point::BeforeReap,
        Point::AfterReap,
        Point::BeforeWrite(State::Suspended),
    ] {
        let vm = lab.day(async |daemon| {
            let vm = daemon.running(daemon.record()).await;
            daemon.count_to(&vm, 2).await;
            die_at(&daemon, &vm, Event::SuspendRequested, point).await;
            vm
        });
        lab.day(async |daemon| {
            let record = assert_taken_over(&daemon, &vm, State::Suspended).await;
            assert_eq!(record.state_reason, None, "{point:?}");
            assert_eq!(daemon.ask(&vm, "POST /count").await.unwrap(), "3");
        });
    }
}

#[test]
fn suspend_whose_machine_ended_after_its_snapshot_was_whole_is_finished() {
    let lab = Lab::new();
    let vm = lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        daemon.count_to(&vm, 2).await;
        die_at(&daemon, &vm, Event::SuspendRequested, Point::BeforeReap).await;
        vm
    });
    lab.stage.fake.crash(lab.dir(&vm).path());
    lab.day(async |daemon| {
        assert_taken_over(&daemon, &vm, State::Suspended).await;
        assert_eq!(daemon.count(&vm).await, 2);
    });
}

#[test]
fn suspend_whose_snapshot_was_whole_is_finished_although_its_machine_cannot_be_looked_for() {
    let lab = Lab::new();
    let vm = lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        daemon.count_to(&vm, 2).await;
        die_at(&daemon, &vm, Event::SuspendRequested, Point::BeforeReap).await;
        vm
    });
    hide(&lab, 1000);
    lab.day(async |daemon| {
        assert_taken_over(&daemon, &vm, State::Suspended).await;
        assert_eq!(daemon.count(&vm).await, 2);
    });
}

#[test]
fn suspend_whose_machine_ended_before_its_snapshot_was_whole_ends_the_microvm() {
    let lab = Lab::new();
    let vm = lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        die_at(&daemon, &vm, Event::SuspendRequested, Point::AfterSnapshot).await;
        vm
    });
    lab.stage.fake.crash(lab.dir(&vm).path());
    lab.day(async |daemon| {
        let record = assert_taken_over(&daemon, &vm, State::Terminated).await;
        assert_eq!(
            record.state_reason.as_deref(),
            Some("MicroVM's machine is gone.")
        );
    });
}

#[test]
fn wake_is_finished_wherever_it_was_cut_off() {
    let lab = Lab::new();
    for point in [
        Point::AfterWrite(State::Resuming),
        Point::BeforeReap,
        Point::BeforeRestore,
        Point::AfterRestore,
        // From here on the snapshot is used up.
        Point::BeforeResume,
        Point::AfterResume,
        Point::BeforeConnect,
        Point::BeforeWrite(State::Running),
    ] {
        let vm = lab.day(async |daemon| {
            let vm = daemon.suspended(daemon.record(), 2).await;
            die_at(&daemon, &vm, Event::ResumeRequested, point).await;
            vm
        });
        lab.day(async |daemon| {
            assert_taken_over(&daemon, &vm, State::Running).await;
            assert_eq!(
                daemon.ask(&vm, "POST /count").await.unwrap(),
                "3",
                "{point:?}"
            );
            daemon.suspend(&vm).await;
            assert_eq!(daemon.count(&vm).await, 3);
        });
    }
}

#[test]
fn wake_whose_machine_ended_before_it_ran_begins_anew() {
    let lab = Lab::new();
    let vm = lab.day(async |daemon| {
        let vm = daemon.suspended(daemon.record(), 2).await;
        die_at(&daemon, &vm, Event::ResumeRequested, Point::AfterRestore).await;
        vm
    });
    lab.stage.fake.crash(lab.dir(&vm).path());
    lab.day(async |daemon| {
        assert_taken_over(&daemon, &vm, State::Running).await;
        assert_eq!(daemon.count(&vm).await, 2);
    });
}

#[test]
fn wake_whose_machine_ended_after_its_snapshot_was_used_ends_the_microvm() {
    let lab = Lab::new();
    let vm = lab.day(async |daemon| {
        let vm = daemon.suspended(daemon.record(), 2).await;
        die_at(&daemon, &vm, Event::ResumeRequested, Point::AfterResume).await;
        vm
    });
    lab.stage.fake.crash(lab.dir(&vm).path());
    lab.day(async |daemon| {
        let record = assert_taken_over(&daemon, &vm, State::Terminated).await;
        assert!(record.state_reason.unwrap().contains("machine is gone"));
    });
}

#[test]
fn teardown_is_finished_wherever_it_was_cut_off() {
    let lab = Lab::new();
    for point in [
        Point::AfterWrite(State::Terminating),
        Point::BeforeConnect,
        Point::BeforeReap,
        Point::AfterReap,
        Point::BeforeWrite(State::Terminated),
    ] {
        let vm = lab.day(async |daemon| {
            let vm = daemon.running(daemon.record()).await;
            die_at(&daemon, &vm, Event::TerminateRequested, point).await;
            vm
        });
        lab.day(async |daemon| {
            assert_taken_over(&daemon, &vm, State::Terminated).await;
        });
    }
}

#[test]
fn restart_takes_over_many_microvms_in_all_states() {
    let lab = Lab::new();
    let vms = lab.day(async |daemon| {
        let mut vms = Vec::new();
        for _ in 0..20 {
            vms.push(daemon.running(daemon.record()).await);
            vms.push(daemon.suspended(daemon.record(), 1).await);
        }
        for vm in &vms[..20] {
            let event = match daemon.stored(vm).await.value.state {
                State::Running => Event::SuspendRequested,
                _ => Event::ResumeRequested,
            };
            daemon.command(vm, event).await.unwrap();
        }
        for _ in 0..10 {
            vms.push(daemon.launch(daemon.record()).await);
        }
        vms
    });
    lab.day(async |daemon| {
        daemon.at_rest().await;
        daemon.assert_at_rest().await;
        for vm in &vms {
            assert_eq!(daemon.journal.count(vm, State::Terminated), 0);
            daemon.ask(vm, "POST /count").await.unwrap();
        }
    });
}

#[test]
fn restart_takes_over_five_hundred_that_sleep_and_fifty_that_run() {
    const ASLEEP: usize = 500;
    const AWAKE: usize = 50;
    let lab = Lab::new();
    let vms = lab.day(async |daemon| {
        let mut vms = Vec::new();
        for _ in 0..ASLEEP {
            vms.push(daemon.suspended(daemon.record(), 1).await);
        }
        for _ in 0..AWAKE {
            let vm = daemon.running(daemon.record()).await;
            daemon.count_to(&vm, 1).await;
            vms.push(vm);
        }
        vms
    });
    let began = std::time::Instant::now();
    lab.day(async |daemon| {
        daemon.at_rest().await;
        println!("taken over in {} ms", began.elapsed().as_millis());
        daemon.assert_at_rest().await;
        // Those that run answer as they are, those that sleep when they are asked; one in ten will do.
        for vm in vms[ASLEEP..].iter().chain(vms[..ASLEEP].iter().step_by(10)) {
            assert_eq!(daemon.count(vm).await, 1);
        }
        for vm in &vms {
            assert_eq!(daemon.journal.count(vm, State::Terminated), 0);
        }
    });
}
