//! Lifecycle hooks: when they are called, what is waited for, and what becomes of a MicroVM whose app says no.

use crate::lab::{Daemon, Lab, PORT};
use crate::stage::Point;
use dormouse_core::hook::{Hooks, RunHookPayload};
use dormouse_core::limits;
use dormouse_core::microvm::{Event, IdlePolicy, REASON_LIFETIME, REASON_SUCCESS, Record, State};
use dormouse_node::vmm::fake::Failure;
use std::time::Duration;
use tokio::time::Instant;

const CHECK: &str = "Please check your hook endpoint and application logs for more details.";
/// Longer than the fake machines need for anything.
const LIMIT_S: u64 = 7;
const LIMIT: Duration = Duration::from_secs(LIMIT_S);

/// All hooks, on the app's own port.
const ALL: Hooks = Hooks {
    port: PORT,
    ready_s: Some(LIMIT_S),
    validate_s: None,
    run_s: Some(LIMIT_S),
    resume_s: Some(LIMIT_S),
    suspend_s: Some(LIMIT_S),
    terminate_s: Some(LIMIT_S),
};

fn with(lab: &Lab, hooks: Hooks) -> Record {
    Record {
        hooks,
        ..lab.record()
    }
}

/// A MicroVM whose run hook gives this answer: the fake app takes it from the payload.
fn whose_run_hook_says(lab: &Lab, answer: &str) -> Record {
    Record {
        run_hook_payload: Some(RunHookPayload::new(answer.to_owned())),
        ..with(lab, ALL)
    }
}

async fn prepare(daemon: &Daemon, vm: &Record, hook: &str, answer: &str) {
    let request = format!("POST /answer/{hook}/{answer}");
    daemon.ask(vm, &request).await.unwrap();
}

async fn assert_ends(daemon: &Daemon, vm: &Record, reason: &str) {
    let vm = daemon.until(vm, State::Terminated).await;
    assert_eq!(vm.state_reason.as_deref(), Some(reason));
    daemon.at_rest().await;
    daemon.assert_at_rest().await;
}

#[test]
fn each_hook_is_called_in_its_place_and_those_that_are_not_enabled_never() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(with(&daemon, ALL)).await;
        daemon.suspend(&vm).await;
        let called = daemon.ask(&vm, "GET /hooks").await.unwrap();
        let run = format!(r#"run {{"microvmId":"{}"}}"#, vm.id);
        assert_eq!(called, format!("{run}\nsuspend\nresume"));

        let plain = daemon.running(daemon.record()).await;
        daemon.suspend(&plain).await;
        assert_eq!(daemon.ask(&plain, "GET /hooks").await.unwrap(), "");
        daemon.assert_at_rest().await;
    });
}

#[test]
fn the_run_hook_gets_its_payload_word_for_word_and_it_is_forgotten() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(whose_run_hook_says(&daemon, "200")).await;
        assert_eq!(vm.run_hook_payload, None);
        let called = daemon.ask(&vm, "GET /hooks").await.unwrap();
        let body = called.strip_prefix("run ").unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["runHookPayload"], "200");
        assert_eq!(body["microvmId"], vm.id.as_str());

        let refused = daemon.launch(whose_run_hook_says(&daemon, "400")).await;
        let refused = daemon.until(&refused, State::Terminated).await;
        assert_eq!(refused.run_hook_payload, None);
    });
}

#[test]
fn a_run_hook_that_fails_ends_the_microvm_before_it_ever_runs() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        for (answer, what) in [
            ("400", "returned HTTP status 400"),
            ("503", "returned HTTP status 503"),
            ("204", "returned HTTP status 204"),
            ("hold", "timed out"),
        ] {
            let vm = daemon.launch(whose_run_hook_says(&daemon, answer)).await;
            assert_ends(&daemon, &vm, &format!("Run lifecycle hook {what}. {CHECK}")).await;
            assert_eq!(daemon.journal.count(&vm, State::Running), 0, "{answer}");
        }
        let nowhere = Hooks { port: 9, ..ALL };
        let vm = daemon.launch(with(&daemon, nowhere)).await;
        assert_ends(
            &daemon,
            &vm,
            &format!("Run lifecycle hook connection was refused. {CHECK}"),
        )
        .await;
    });
}

#[test]
fn no_request_reaches_the_app_before_its_run_hook_has_answered() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.launch(whose_run_hook_says(&daemon, "hold")).await;
        let began = Instant::now();
        assert!(daemon.ask(&vm, "GET /count").await.is_err());
        assert!(began.elapsed() >= LIMIT);
    });
}

#[test]
fn a_suspend_hook_that_fails_ends_the_microvm() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        for (answer, what) in [("500", "returned HTTP status 500"), ("hold", "timed out")] {
            let vm = daemon.running(with(&daemon, ALL)).await;
            prepare(&daemon, &vm, "suspend", answer).await;
            daemon.command(&vm, Event::SuspendRequested).await.unwrap();
            assert_ends(
                &daemon,
                &vm,
                &format!("Suspend lifecycle hook {what}. {CHECK}"),
            )
            .await;
            assert_eq!(daemon.journal.count(&vm, State::Suspended), 0);
        }
    });
}

#[test]
fn an_idle_microvm_is_asked_too() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let policy = IdlePolicy {
            max_idle_s: 60,
            suspended_s: 600,
            auto_resume: true,
        };
        let vm = Record {
            hooks: ALL,
            ..daemon.with_policy(policy)
        };
        let vm = daemon.running(vm).await;
        prepare(&daemon, &vm, "suspend", "409").await;
        assert_ends(
            &daemon,
            &vm,
            &format!("Suspend lifecycle hook returned HTTP status 409. {CHECK}"),
        )
        .await;
    });
}

#[test]
fn a_resume_hook_is_waited_for_and_its_failure_ends_the_microvm() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        for (answer, what) in [("409", "returned HTTP status 409"), ("hold", "timed out")] {
            let vm = daemon.running(with(&daemon, ALL)).await;
            prepare(&daemon, &vm, "resume", answer).await;
            daemon.suspend(&vm).await;
            let began = Instant::now();
            daemon.command(&vm, Event::ResumeRequested).await.unwrap();
            assert_ends(
                &daemon,
                &vm,
                &format!("Resume lifecycle hook {what}. {CHECK}"),
            )
            .await;
            assert_eq!(began.elapsed() >= LIMIT, answer == "hold");
            assert_eq!(daemon.journal.count(&vm, State::Running), 1);
        }
    });
}

#[test]
fn an_app_that_was_told_to_sleep_and_does_not_is_told_to_go_on() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(with(&daemon, ALL)).await;
        daemon.stage.fake.fail_next(Failure::SnapshotDiskFull);
        daemon.command(&vm, Event::SuspendRequested).await.unwrap();
        let vm = daemon.until(&vm, State::Running).await;
        assert!(vm.state_reason.is_some());
        let called = daemon.ask(&vm, "GET /hooks").await.unwrap();
        assert!(called.ends_with("suspend\nresume"), "{called}");
    });
}

#[test]
fn a_suspend_that_has_no_room_asks_nothing_of_the_app() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(with(&daemon, ALL)).await;
        let before = daemon.ask(&vm, "GET /hooks").await.unwrap();
        // How much room there is cannot be told where there is no folder.
        let (folder, away) = (daemon.dir(&vm), daemon.root().join("away"));
        std::fs::rename(folder.path(), &away).unwrap();
        daemon.command(&vm, Event::SuspendRequested).await.unwrap();
        daemon.until_count(&vm, State::Running, 2).await;
        std::fs::rename(&away, folder.path()).unwrap();
        assert_eq!(daemon.ask(&vm, "GET /hooks").await.unwrap(), before);
        let reason = daemon.stored(&vm).await.value.state_reason.unwrap();
        assert!(reason.contains("look for room"), "{reason}");
        daemon.suspend(&vm).await;
        daemon.assert_at_rest().await;
    });
}

/// A hook that is held tells of itself by the time that it takes.
#[test]
fn the_terminate_hook_is_called_for_a_wish_and_for_age_and_changes_nothing() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(with(&daemon, ALL)).await;
        prepare(&daemon, &vm, "terminate", "hold").await;
        let began = Instant::now();
        daemon
            .command(&vm, Event::TerminateRequested)
            .await
            .unwrap();
        assert_eq!(daemon.stored(&vm).await.value.state, State::Terminating);
        assert_ends(&daemon, &vm, REASON_SUCCESS).await;
        assert!(began.elapsed() >= LIMIT, "{:?}", began.elapsed());

        let vm = daemon.running(with(&daemon, ALL)).await;
        prepare(&daemon, &vm, "terminate", "500").await;
        daemon.terminate(&vm).await;

        let vm = daemon.running(with(&daemon, ALL)).await;
        prepare(&daemon, &vm, "terminate", "hold").await;
        let began = Instant::now();
        daemon.command(&vm, Event::LifetimeDue).await.unwrap();
        assert_ends(&daemon, &vm, REASON_LIFETIME).await;
        assert!(began.elapsed() >= LIMIT, "{:?}", began.elapsed());
    });
}

#[test]
fn the_terminate_hook_is_called_while_the_machine_is_still_being_looked_for() {
    let lab = Lab::new();
    let vm = lab.day(async |daemon| {
        let vm = daemon.running(with(&daemon, ALL)).await;
        prepare(&daemon, &vm, "terminate", "hold").await;
        vm
    });
    for _ in 0..2 {
        lab.stage.fake.fail_next(Failure::Adopt);
    }
    lab.day(async |daemon| {
        let began = Instant::now();
        daemon.terminate(&vm).await;
        assert!(began.elapsed() >= LIMIT, "{:?}", began.elapsed());
        daemon.assert_at_rest().await;
    });
}

#[test]
fn the_terminate_hook_is_not_called_when_the_app_ends_or_sleeps() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(with(&daemon, ALL)).await;
        prepare(&daemon, &vm, "terminate", "hold").await;
        daemon.suspend(&vm).await;
        let began = Instant::now();
        daemon.terminate(&vm).await;
        assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());

        let vm = daemon.running(with(&daemon, ALL)).await;
        prepare(&daemon, &vm, "terminate", "hold").await;
        let began = Instant::now();
        daemon.ask(&vm, "GET /exit/3").await.unwrap();
        assert_ends(&daemon, &vm, "Container Stopped with Exit Code: 3").await;
        assert!(
            began.elapsed() < limits::APP_EXIT_GRACE + LIMIT,
            "{:?}",
            began.elapsed()
        );
    });
}

#[test]
fn a_microvm_outlives_its_app_for_a_while_and_answers_502() {
    use dormouse_node::node::OpenError;
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        let began = Instant::now();
        daemon.ask(&vm, "GET /exit/124").await.unwrap();
        let refused = daemon.knock(&vm).await;
        assert!(
            matches!(refused, Err(OpenError::NotListening)),
            "{refused:?}"
        );
        assert_eq!(daemon.stored(&vm).await.value.state, State::Running);
        assert_ends(&daemon, &vm, "Container Stopped with Exit Code: 124").await;
        assert!(
            began.elapsed() >= limits::APP_EXIT_GRACE,
            "{:?}",
            began.elapsed()
        );
    });
}

#[test]
fn a_crash_after_the_suspend_hook_does_not_ask_a_frozen_app_again() {
    let lab = Lab::new();
    for point in [Point::BeforeSnapshot, Point::AfterSnapshot] {
        let vm = lab.day(async |daemon| {
            let vm = daemon.running(with(&daemon, ALL)).await;
            let hold = daemon.stage.hold(point);
            daemon.command(&vm, Event::SuspendRequested).await.unwrap();
            hold.reached().await;
            vm
        });
        lab.day(async |daemon| {
            daemon.until(&vm, State::Suspended).await;
            let called = daemon.ask(&vm, "GET /hooks").await.unwrap();
            assert_eq!(called.lines().filter(|call| *call == "suspend").count(), 1);
            daemon.assert_at_rest().await;
        });
    }
}

#[test]
fn slow_hooks_hold_up_nobody_elses_launch() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        for _ in 0..2 * limits::TRANSITIONS_AT_ONCE {
            daemon.launch(whose_run_hook_says(&daemon, "hold")).await;
        }
        let began = Instant::now();
        daemon.running(daemon.record()).await;
        assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
    });
}
