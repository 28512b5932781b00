//! What goes wrong, and what is left then.

use crate::hostile::Malice;
use crate::lab::{Daemon, Lab, Unanswered};
use crate::stage::Point;
use dormouse_core::microvm::{Event, IdlePolicy, Record, State};
use dormouse_core::{BuildId, limits};
use dormouse_node::checksum::Checksums;
use dormouse_node::node::OpenError;
use dormouse_node::snapshot::Manifest;
use dormouse_node::vmm::fake::Failure;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

/// What a wake takes that fails at once: far less than any time limit.
const AT_ONCE: Duration = Duration::from_secs(2);

fn reason(vm: &Record) -> &str {
    vm.state_reason.as_deref().unwrap_or_default()
}

#[test]
fn full_disk_at_suspend_leaves_it_running_with_its_state_and_a_reason() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        daemon.count_to(&vm, 2).await;
        daemon.stage.fake.fail_next(Failure::SnapshotDiskFull);
        daemon.command(&vm, Event::SuspendRequested).await.unwrap();
        let vm = daemon.until(&vm, State::Running).await;
        assert!(
            reason(&vm).starts_with("MicroVM suspend failed: "),
            "{vm:?}"
        );
        daemon.assert_at_rest().await;
        assert_eq!(daemon.ask(&vm, "POST /count").await.unwrap(), "3");

        let vm = daemon.suspend(&vm).await;
        assert_eq!(vm.state_reason, None);
        assert_eq!(daemon.ask(&vm, "POST /count").await.unwrap(), "4");
        daemon.assert_at_rest().await;
    });
}

#[test]
fn full_disk_at_an_idle_suspend_is_tried_again_after_the_idle_time() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let policy = IdlePolicy {
            max_idle_s: 60,
            suspended_s: 28_800,
            auto_resume: true,
        };
        let vm = daemon.running(daemon.with_policy(policy)).await;
        daemon.stage.fake.fail_next(Failure::SnapshotDiskFull);
        let began = Instant::now();
        // The clock jumps from one deadline to the next, so the states between are the journal's to tell.
        daemon.until(&vm, State::Suspended).await;
        let states = daemon.journal.states(&vm);
        use State::{Pending, Running, Suspended, Suspending};
        let expected = [Pending, Running, Suspending, Running, Suspending, Suspended];
        assert_eq!(states, expected);
        let twice_idle = Duration::from_secs(120);
        assert!(began.elapsed() >= twice_idle, "{:?}", began.elapsed());
    });
}

#[test]
fn streams_stay_open_over_a_suspend_that_failed() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        let mut stream = daemon.open(&vm).await.unwrap();
        daemon.stage.fake.fail_next(Failure::SnapshotDiskFull);
        daemon.command(&vm, Event::SuspendRequested).await.unwrap();
        daemon.until(&vm, State::Running).await;
        let answer = crate::lab::exchange(&mut stream, "POST /count").await;
        assert_eq!(answer.unwrap(), "1");
    });
}

#[test]
fn microvm_is_not_asleep_before_its_machine_is_gone() {
    Lab::new().day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        for _ in 0..3 {
            daemon.stage.fake.fail_next(Failure::Reap);
        }
        let vm = daemon.suspend(&vm).await;
        daemon.assert_at_rest().await;
        assert_eq!(daemon.stage.fake.running(), 0);
        assert_eq!(daemon.count(&vm).await, 0, "it wakes");
    });
}

#[test]
fn remains_that_cannot_be_deleted_fail_a_suspend_but_not_the_microvm() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        daemon.count_to(&vm, 1).await;
        // A file where a folder belongs: neither can be made, nor deleted as one.
        let suspending = daemon.dir(&vm).suspending();
        std::fs::write(&suspending, b"").unwrap();
        daemon.command(&vm, Event::SuspendRequested).await.unwrap();
        let vm = daemon.until(&vm, State::Running).await;
        assert_ne!(reason(&vm), "");
        assert_eq!(daemon.count(&vm).await, 1);
        std::fs::remove_file(&suspending).unwrap();
        daemon.suspend(&vm).await;
        assert_eq!(daemon.count(&vm).await, 1);
    });
}

#[test]
fn remains_of_an_earlier_wake_do_not_keep_it_asleep() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.suspended(daemon.record(), 1).await;
        let consumed = daemon.dir(&vm).consumed();
        std::fs::create_dir(&consumed).unwrap();
        std::fs::write(consumed.join("state"), b"old").unwrap();
        assert_eq!(daemon.count(&vm).await, 1);
        daemon.assert_at_rest().await;
    });
}

#[test]
fn snapshot_that_takes_too_long_is_given_up_and_the_app_runs_on() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        daemon.count_to(&vm, 1).await;
        let hold = daemon.stage.hold(Point::AfterSnapshot);
        daemon.command(&vm, Event::SuspendRequested).await.unwrap();
        hold.reached().await;
        let vm = daemon.until(&vm, State::Running).await;
        assert!(reason(&vm).contains("timed out"), "{vm:?}");
        assert_eq!(daemon.count(&vm).await, 1);
        daemon.assert_at_rest().await;
    });
}

/// Ends the machine of a MicroVM, which ends with it.
async fn crash_is_noticed_at_once(daemon: &Daemon, vm: &Record) {
    let began = Instant::now();
    daemon.stage.fake.crash(daemon.dir(vm).path());
    let vm = daemon.until(vm, State::Terminated).await;
    assert!(reason(&vm).contains("machine is gone"), "{vm:?}");
    assert!(began.elapsed() < AT_ONCE, "took {:?}", began.elapsed());
    daemon.assert_at_rest().await;
}

/// A suspend fails, and the agent does not let the app run on.
async fn silent_after_a_failed_suspend(daemon: &Daemon) -> Record {
    let vm = daemon.running(daemon.record()).await;
    daemon.count_to(&vm, 1).await;
    let hold = daemon.stage.hold(Point::BeforeSnapshot);
    daemon.stage.fake.fail_next(Failure::SnapshotDiskFull);
    daemon.command(&vm, Event::SuspendRequested).await.unwrap();
    hold.reached().await;
    daemon
        .stage
        .turn(daemon.dir(&vm).path(), Malice::NeverAnswers);
    hold.release();
    sleep(10 * limits::LAUNCH_TIMEOUT).await;
    assert_eq!(daemon.stored(&vm).await.value.state, State::Suspending);
    vm
}

#[test]
fn microvm_whose_agent_is_silent_after_a_failed_suspend_runs_on_once_it_speaks() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = silent_after_a_failed_suspend(&daemon).await;
        daemon.stage.turn_back(daemon.dir(&vm).path());
        let vm = daemon.until(&vm, State::Running).await;
        assert!(reason(&vm).contains("write dirty pages"), "{vm:?}");
        assert_eq!(daemon.ask(&vm, "POST /count").await.unwrap(), "2");
        daemon.assert_at_rest().await;
    });
}

#[test]
fn microvm_whose_agent_is_silent_after_a_failed_suspend_is_terminated() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = silent_after_a_failed_suspend(&daemon).await;
        daemon.terminate(&vm).await;
        daemon.assert_at_rest().await;

        let vm = silent_after_a_failed_suspend(&daemon).await;
        crash_is_noticed_at_once(&daemon, &vm).await;
    });
}

#[test]
fn daemon_that_stops_does_not_wait_for_an_agent_that_is_silent_and_the_next_one_asks_it_again() {
    let lab = Lab::new();
    let vm = lab.day(async |daemon| {
        let vm = silent_after_a_failed_suspend(&daemon).await;
        let began = Instant::now();
        daemon.node.stop().await;
        assert!(began.elapsed() < AT_ONCE, "took {:?}", began.elapsed());
        vm
    });
    lab.stage.turn_back(lab.dir(&vm).path());
    lab.day(async |daemon| {
        let vm = daemon.until(&vm, State::Suspended).await;
        assert_eq!(daemon.count(&vm).await, 1);
        daemon.assert_at_rest().await;
    });
}

#[test]
fn microvm_whose_agent_is_silent_as_it_wakes_runs_on_once_it_speaks() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.suspended(daemon.record(), 1).await;
        let run_dir = daemon.dir(&vm).path().to_owned();
        daemon.stage.turn(&run_dir, Malice::NeverAnswers);
        daemon.command(&vm, Event::ResumeRequested).await.unwrap();
        sleep(10 * limits::LAUNCH_TIMEOUT).await;
        assert_eq!(daemon.stored(&vm).await.value.state, State::Resuming);
        daemon.stage.turn_back(&run_dir);
        let vm = daemon.until(&vm, State::Running).await;
        assert_eq!(daemon.count(&vm).await, 1);
        daemon.assert_at_rest().await;
    });
}

#[test]
fn guest_that_takes_minutes_to_write_to_its_disk_is_suspended_all_the_same() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        let hold = daemon.stage.hold(Point::BeforeConnect);
        daemon.command(&vm, Event::SuspendRequested).await.unwrap();
        hold.reached().await;
        // No request waits for as long as that.
        let refused = daemon.knock(&vm).await;
        assert!(matches!(refused, Err(OpenError::WakeFailed)), "{refused:?}");
        sleep(limits::SUSPEND_TIMEOUT - limits::WAKE_TIMEOUT - Duration::from_secs(10)).await;
        hold.release();
        let vm = daemon.until(&vm, State::Suspended).await;
        assert_eq!(vm.state_reason, None);
        daemon.knock(&vm).await.unwrap();
    });
}

#[test]
fn machine_that_ends_during_a_suspend_is_noticed_at_once() {
    let lab = Lab::new();
    for point in [Point::BeforeSnapshot, Point::AfterSnapshot] {
        lab.day(async |daemon| {
            let vm = daemon.running(daemon.record()).await;
            let hold = daemon.stage.hold(point);
            daemon.command(&vm, Event::SuspendRequested).await.unwrap();
            hold.reached().await;
            crash_is_noticed_at_once(&daemon, &vm).await;
        });
    }
}

#[test]
fn machine_that_ends_as_it_waits_for_its_turn_to_be_kept_is_noticed_at_once() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        let transitions = &daemon.means.transitions;
        let all = limits::TRANSITIONS_AT_ONCE as u32;
        let _turns = transitions.acquire_many(all).await.unwrap();
        daemon.command(&vm, Event::SuspendRequested).await.unwrap();
        sleep(limits::DRAIN_TIMEOUT).await;
        assert_eq!(daemon.stored(&vm).await.value.state, State::Suspending);
        crash_is_noticed_at_once(&daemon, &vm).await;
    });
}

#[test]
fn failed_restore_leaves_it_asleep_and_whole_and_the_next_request_wakes_it() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.suspended(daemon.record(), 3).await;
        daemon.stage.fake.fail_next(Failure::Restore);
        let began = Instant::now();
        let failed = daemon.ask(&vm, "GET /count").await;
        assert!(
            matches!(failed, Err(Unanswered::NotOpened(OpenError::WakeFailed))),
            "{failed:?}"
        );
        assert!(began.elapsed() < AT_ONCE, "took {:?}", began.elapsed());
        let vm = daemon.until(&vm, State::Suspended).await;
        assert!(reason(&vm).starts_with("MicroVM resume failed: "), "{vm:?}");
        daemon.assert_at_rest().await;
        assert_eq!(daemon.count(&vm).await, 3);
        let vm = daemon.stored(&vm).await.value;
        assert_eq!((vm.state, vm.state_reason), (State::Running, None));
        daemon.assert_at_rest().await;
    });
}

#[test]
fn machine_of_a_failed_wake_is_gone_before_the_microvm_sleeps_again() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.suspended(daemon.record(), 1).await;
        let hold = daemon.stage.hold(Point::AfterRestore);
        daemon.command(&vm, Event::ResumeRequested).await.unwrap();
        hold.reached().await;
        // The snapshot cannot be taken into use: a file has its next name.
        let consumed = daemon.dir(&vm).consumed();
        std::fs::write(&consumed, b"").unwrap();
        for _ in 0..3 {
            daemon.stage.fake.fail_next(Failure::Reap);
        }
        hold.release();
        let vm = daemon.until(&vm, State::Suspended).await;
        assert!(reason(&vm).contains("take snapshot into use"), "{vm:?}");
        std::fs::remove_file(&consumed).unwrap();
        daemon.assert_at_rest().await;
        assert_eq!(daemon.count(&vm).await, 1);
    });
}

#[test]
fn each_waiter_of_a_failed_wake_is_told() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.suspended(daemon.record(), 0).await;
        let hold = daemon.stage.hold(Point::BeforeRestore);
        let requests: Vec<_> = (0..100)
            .map(|_| {
                let (daemon, vm) = (daemon.clone(), vm.clone());
                tokio::spawn(async move { daemon.knock(&vm).await })
            })
            .collect();
        hold.reached().await;
        sleep(Duration::from_millis(1)).await;
        daemon.stage.fake.fail_next(Failure::Restore);
        hold.release();
        for request in requests {
            let failed = request.await.unwrap();
            assert!(matches!(failed, Err(OpenError::WakeFailed)), "{failed:?}");
        }
        assert_eq!(daemon.journal.count(&vm, State::Resuming), 1);
    });
}

#[test]
fn damaged_snapshot_never_runs() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.suspended(daemon.record(), 1).await;
        for file in ["state", "memory"] {
            let path = daemon.dir(&vm).suspended().join(file);
            let good = std::fs::read(&path).unwrap();
            let mut bad = good.clone();
            *bad.last_mut().unwrap() ^= 1;
            for content in [bad, good[..good.len() / 2].to_vec(), Vec::new()] {
                std::fs::write(&path, content).unwrap();
                let failed = daemon.knock(&vm).await;
                assert!(matches!(failed, Err(OpenError::WakeFailed)), "{failed:?}");
                let vm = daemon.until(&vm, State::Suspended).await;
                assert!(reason(&vm).contains("damaged"), "{vm:?}");
                daemon.assert_at_rest().await;
            }
            std::fs::write(&path, good).unwrap();
        }
        assert_eq!(daemon.count(&vm).await, 1);
    });
}

#[test]
fn missing_snapshot_ends_the_microvm() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.suspended(daemon.record(), 1).await;
        std::fs::remove_dir_all(daemon.dir(&vm).suspended()).unwrap();
        let failed = daemon.knock(&vm).await;
        assert!(matches!(failed, Err(OpenError::Ended)), "{failed:?}");
        let vm = daemon.until(&vm, State::Terminated).await;
        assert_ne!(reason(&vm), "");
        daemon.assert_at_rest().await;
    });
}

#[test]
fn failed_launch_ends_the_microvm_with_a_reason() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        daemon.stage.fake.fail_next(Failure::Restore);
        let vm = daemon.launch(daemon.record()).await;
        let refused = daemon.knock(&vm).await;
        assert!(matches!(refused, Err(OpenError::Ended)), "{refused:?}");
        let vm = daemon.until(&vm, State::Terminated).await;
        assert!(reason(&vm).starts_with("MicroVM launch failed: "), "{vm:?}");
        daemon.assert_at_rest().await;
    });
}

#[test]
fn machine_that_ends_as_it_is_launched_is_noticed_at_once() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        daemon.stage.fake.fail_next(Failure::ExitOnResume);
        let began = Instant::now();
        let vm = daemon.launch(daemon.record()).await;
        let vm = daemon.until(&vm, State::Terminated).await;
        assert!(began.elapsed() < AT_ONCE, "took {:?}", began.elapsed());
        assert!(reason(&vm).contains("machine is gone"), "{vm:?}");
        daemon.assert_at_rest().await;
    });
}

#[test]
fn machine_that_ends_as_it_wakes_ends_the_microvm_at_once() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.suspended(daemon.record(), 1).await;
        daemon.stage.fake.fail_next(Failure::ExitOnResume);
        let began = Instant::now();
        let refused = daemon.knock(&vm).await;
        assert!(matches!(refused, Err(OpenError::Ended)), "{refused:?}");
        let vm = daemon.until(&vm, State::Terminated).await;
        assert!(began.elapsed() < AT_ONCE, "took {:?}", began.elapsed());
        assert!(reason(&vm).starts_with("MicroVM resume failed: "), "{vm:?}");
        daemon.assert_at_rest().await;
    });
}

#[test]
fn image_without_a_whole_snapshot_does_not_launch() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let build = BuildId::new(Uuid::new_v4());
        let vm = daemon
            .launch(Record {
                build,
                ..daemon.record()
            })
            .await;
        let vm = daemon.until(&vm, State::Terminated).await;
        assert!(reason(&vm).contains("manifest"), "{vm:?}");
        daemon.assert_at_rest().await;
    });
}

#[test]
fn damaged_golden_snapshot_is_neither_launched_nor_woken() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let build = daemon.layout.build(&daemon.build);
        let manifest = Manifest {
            checksums: Some(Checksums::of(&build).unwrap()),
            ..daemon.manifest()
        };
        manifest.save(&build).await.unwrap();
        let sleeper = daemon.suspended(daemon.record(), 1).await;
        // The host restarts, and its disk is not what it was.
        std::fs::remove_file(build.verified()).unwrap();
        let good = std::fs::read(build.state()).unwrap();
        std::fs::write(build.state(), b"something else").unwrap();
        let vm = daemon.launch(daemon.record()).await;
        let vm = daemon.until(&vm, State::Terminated).await;
        assert!(reason(&vm).contains("device state is damaged"), "{vm:?}");
        let failed = daemon.knock(&sleeper).await;
        assert!(matches!(failed, Err(OpenError::WakeFailed)), "{failed:?}");
        std::fs::write(build.state(), good).unwrap();
        assert_eq!(daemon.count(&sleeper).await, 1, "nothing was lost");
        daemon.assert_at_rest().await;
    });
}

#[test]
fn snapshot_of_another_kind_is_neither_launched_nor_resumed() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let build = daemon.layout.build(&daemon.build);
        let sleeper = daemon.suspended(daemon.record(), 1).await;
        for (what, manifest) in [
            (
                "VMM",
                Manifest {
                    vmm: "qemu-kvm".to_owned(),
                    ..daemon.manifest()
                },
            ),
            (
                "format",
                Manifest {
                    format: Manifest::FORMAT + 1,
                    ..daemon.manifest()
                },
            ),
            (
                "agent generation",
                Manifest {
                    agent_generation: 99,
                    ..daemon.manifest()
                },
            ),
        ] {
            manifest.save(&build).await.unwrap();
            let vm = daemon.launch(daemon.record()).await;
            let vm = daemon.until(&vm, State::Terminated).await;
            assert!(reason(&vm).contains(what), "{vm:?}");
            let failed = daemon.knock(&sleeper).await;
            assert!(matches!(failed, Err(OpenError::WakeFailed)), "{failed:?}");
        }
        daemon.manifest().save(&build).await.unwrap();
        assert_eq!(daemon.count(&sleeper).await, 1);
        daemon.assert_at_rest().await;
    });
}

#[test]
fn crashed_machine_ends_the_microvm_with_a_reason() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        let began = Instant::now();
        daemon.stage.fake.crash(daemon.dir(&vm).path());
        let vm = daemon.until(&vm, State::Terminated).await;
        assert_eq!(reason(&vm), "MicroVM's machine ended: crashed on request");
        assert!(began.elapsed() < AT_ONCE, "took {:?}", began.elapsed());
        daemon.assert_at_rest().await;
    });
}

#[test]
fn app_that_ends_takes_the_microvm_with_it_and_leaves_its_exit_code() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let awake = daemon.running(daemon.record()).await;
        let woken = daemon.suspended(daemon.record(), 1).await;
        for vm in [awake, woken] {
            // Its last answer may or may not come through.
            drop(daemon.ask(&vm, "GET /exit/3").await);
            let vm = daemon.until(&vm, State::Terminated).await;
            assert_eq!(reason(&vm), "Container Stopped with Exit Code: 3");
        }
        daemon.assert_at_rest().await;
    });
}

#[test]
fn machine_that_hangs_is_terminated_within_the_time_for_a_power_off() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        daemon.stage.alive(daemon.dir(&vm).path())[0]
            .pause()
            .await
            .unwrap();
        let began = Instant::now();
        daemon.terminate(&vm).await;
        let most = limits::POWEROFF_TIMEOUT + Duration::from_secs(1);
        assert!(began.elapsed() < most, "took {:?}", began.elapsed());
        daemon.assert_at_rest().await;
    });
}

#[test]
fn wish_that_cannot_be_stored_changes_nothing() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        daemon.journal.refuse_next(1);
        daemon
            .command(&vm, Event::SuspendRequested)
            .await
            .unwrap_err();
        assert_eq!(daemon.ask(&vm, "POST /count").await.unwrap(), "1");
        assert_eq!(daemon.stored(&vm).await.value.state, State::Running);
        daemon.suspend(&vm).await;
        assert_eq!(daemon.count(&vm).await, 1);
    });
}

#[test]
fn fact_is_stored_however_long_the_store_refuses() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        daemon.journal.refuse_next(60);
        daemon.stage.fake.crash(daemon.dir(&vm).path());
        daemon.until(&vm, State::Terminated).await;
        daemon.assert_at_rest().await;
    });
}

#[test]
fn write_whose_answer_was_lost_counts() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        daemon.count_to(&vm, 1).await;
        daemon.journal.lose_next_answer();
        // The caller is told of an error, and yet the store has the wish.
        daemon
            .command(&vm, Event::SuspendRequested)
            .await
            .unwrap_err();
        daemon.until(&vm, State::Suspended).await;
        daemon.assert_at_rest().await;
        assert_eq!(daemon.count(&vm).await, 1);

        let hold = daemon.stage.hold(Point::BeforeSnapshot);
        daemon.command(&vm, Event::SuspendRequested).await.unwrap();
        hold.reached().await;
        daemon.journal.lose_next_answer();
        hold.release();
        daemon.until(&vm, State::Suspended).await;
        assert_eq!(daemon.count(&vm).await, 1);
        daemon.terminate(&vm).await;
        daemon.assert_at_rest().await;
    });
}
