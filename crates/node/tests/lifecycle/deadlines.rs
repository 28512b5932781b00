//! Time: idleness, the suspended duration and the lifetime.

use crate::lab::{Lab, ago};
use crate::stage::Point;
use dormouse_core::microvm::{Event, IdlePolicy, REASON_LIFETIME, REASON_SUSPENDED, Record, State};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};

const MINUTE: IdlePolicy = IdlePolicy {
    max_idle_s: 60,
    suspended_s: 28_800,
    auto_resume: true,
};

#[test]
fn idle_microvm_is_suspended_after_its_time_without_a_byte() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(daemon.with_policy(MINUTE)).await;
        sleep(Duration::from_secs(50)).await;
        assert_eq!(daemon.ask(&vm, "POST /count").await.unwrap(), "1");
        let began = Instant::now();
        daemon.until(&vm, State::Suspending).await;
        let idle = began.elapsed();
        assert!(
            idle >= Duration::from_secs(60) && idle < Duration::from_secs(61),
            "{idle:?}"
        );
        daemon.until(&vm, State::Suspended).await;
        daemon.assert_at_rest().await;
        assert_eq!(daemon.count(&vm).await, 1);
        daemon.until(&vm, State::Suspended).await;
    });
}

#[test]
fn microvm_without_a_policy_never_sleeps_by_itself() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        sleep(Duration::from_secs(3600)).await;
        assert_eq!(daemon.journal.states(&vm), [State::Pending, State::Running]);
    });
}

#[test]
fn open_stream_without_bytes_keeps_nothing_awake() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(daemon.with_policy(MINUTE)).await;
        let mut silent = daemon.open(&vm).await.unwrap();
        let began = Instant::now();
        daemon.until(&vm, State::Suspended).await;
        assert!(
            began.elapsed() < Duration::from_secs(62),
            "{:?}",
            began.elapsed()
        );
        silent.read_u8().await.unwrap_err();
    });
}

#[test]
fn bytes_on_an_open_stream_keep_it_awake() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(daemon.with_policy(MINUTE)).await;
        let mut stream = daemon.open(&vm).await.unwrap();
        for count in 1..6 {
            sleep(Duration::from_secs(50)).await;
            stream
                .write_all(b"POST /count HTTP/1.1\r\nhost: app\r\n\r\n")
                .await
                .unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(format!("\r\n\r\n{count}").as_bytes()) {
                answer.push(stream.read_u8().await.unwrap());
            }
        }
        assert_eq!(daemon.journal.count(&vm, State::Suspending), 0);
        let began = Instant::now();
        daemon.until(&vm, State::Suspending).await;
        assert!(
            began.elapsed() >= Duration::from_secs(59),
            "{:?}",
            began.elapsed()
        );
    });
}

#[test]
fn idle_microvm_that_may_not_be_kept_asleep_is_terminated() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let policy = IdlePolicy {
            suspended_s: 0,
            ..MINUTE
        };
        let vm = daemon.running(daemon.with_policy(policy)).await;
        let vm = daemon.until(&vm, State::Terminated).await;
        assert_eq!(vm.state_reason.as_deref(), Some(REASON_SUSPENDED));
        assert_eq!(daemon.journal.count(&vm, State::Suspending), 0);
        daemon.assert_at_rest().await;
    });
}

#[test]
fn microvm_is_terminated_when_its_suspended_duration_is_over() {
    let lab = Lab::new();
    lab.real_day(async |daemon| {
        let policy = IdlePolicy {
            suspended_s: 1,
            ..MINUTE
        };
        let vm = daemon.suspended(daemon.with_policy(policy), 1).await;
        let vm = daemon.until(&vm, State::Terminated).await;
        assert_eq!(vm.state_reason.as_deref(), Some(REASON_SUSPENDED));
        daemon.assert_at_rest().await;
    });
}

#[test]
fn suspended_duration_goes_on_while_no_daemon_runs() {
    let lab = Lab::new();
    let vm = lab.day(async |daemon| daemon.suspended(daemon.with_policy(MINUTE), 1).await);
    lab.day(async |daemon| {
        // Not yet: another daemon leaves it asleep.
        sleep(Duration::from_secs(1)).await;
        let row = daemon.stored(&vm).await;
        assert_eq!(row.value.state, State::Suspended);
        let past = Record {
            suspended_at: Some(ago(28_800_000)),
            ..row.value.clone()
        };
        daemon.store.update(&row, past).await.unwrap();
    });
    lab.day(async |daemon| {
        let vm = daemon.until(&vm, State::Terminated).await;
        assert_eq!(vm.state_reason.as_deref(), Some(REASON_SUSPENDED));
        daemon.assert_at_rest().await;
    });
}

/// A record whose life is over in five seconds: what comes before that writes to a real disk.
fn short_lived(lab: &Lab) -> Record {
    Record {
        started_at: ago(55_000),
        max_duration_s: 60,
        ..lab.record()
    }
}

#[test]
fn lifetime_ends_a_microvm_that_is_at_rest() {
    let lab = Lab::new();
    lab.real_day(async |daemon| {
        let running = daemon.running(short_lived(&daemon)).await;
        let suspended = daemon.suspended(short_lived(&daemon), 1).await;
        for vm in [running, suspended] {
            let vm = daemon.until(&vm, State::Terminated).await;
            assert_eq!(vm.state_reason.as_deref(), Some(REASON_LIFETIME));
        }
        daemon.assert_at_rest().await;
    });
}

#[test]
fn lifetime_ends_a_microvm_that_is_between_two_states() {
    let lab = Lab::new();
    lab.real_day(async |daemon| {
        let launch = daemon.stage.hold(Point::AfterRestore);
        let pending = daemon.launch(short_lived(&daemon)).await;
        launch.reached().await;

        let suspending = daemon.running(short_lived(&daemon)).await;
        let snapshot = daemon.stage.hold(Point::AfterSnapshot);
        daemon
            .command(&suspending, Event::SuspendRequested)
            .await
            .unwrap();
        snapshot.reached().await;

        let resuming = daemon.suspended(short_lived(&daemon), 0).await;
        let restore = daemon.stage.hold(Point::AfterRestore);
        daemon
            .command(&resuming, Event::ResumeRequested)
            .await
            .unwrap();
        restore.reached().await;

        for (vm, state) in [
            (pending, State::Pending),
            (suspending, State::Suspending),
            (resuming, State::Resuming),
        ] {
            let vm = daemon.until(&vm, State::Terminated).await;
            assert_eq!(vm.state_reason.as_deref(), Some(REASON_LIFETIME));
            let states = daemon.journal.states(&vm);
            assert!(
                states.ends_with(&[state, State::Terminating, State::Terminated]),
                "{states:?}"
            );
        }
        daemon.assert_at_rest().await;
    });
}
