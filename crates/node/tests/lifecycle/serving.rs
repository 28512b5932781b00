//! Requests: what reaches a MicroVM, what wakes it, and what breaks off.

use crate::lab::{Lab, Opened, Unanswered, exchange};
use crate::stage::Point;
use dormouse_core::limits;
use dormouse_core::microvm::{Denied, Event, IdlePolicy, State};
use dormouse_node::driver::CommandError;
use dormouse_node::node::OpenError;
use futures_util::future::join_all;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

/// Sleeps only when told to.
const BY_HAND: IdlePolicy = IdlePolicy {
    max_idle_s: 28_800,
    suspended_s: 28_800,
    auto_resume: true,
};

#[test]
fn launch_reaches_running_and_the_app_answers_under_its_own_name() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.launch(daemon.record()).await;
        // The request waits for the launch.
        assert_eq!(
            daemon.ask(&vm, "GET /hostname").await.unwrap(),
            vm.id.as_str()
        );
        assert_eq!(daemon.journal.states(&vm), [State::Pending, State::Running]);
        daemon.assert_at_rest().await;
    });
}

#[test]
fn clones_of_one_image_are_independent() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let one = daemon.running(daemon.record()).await;
        let two = daemon.running(daemon.record()).await;
        daemon.count_to(&one, 3).await;
        daemon.count_to(&two, 1).await;
        daemon.suspend(&one).await;
        assert_eq!(daemon.ask(&two, "POST /count").await.unwrap(), "2");
        assert_eq!(daemon.ask(&one, "POST /count").await.unwrap(), "4");
        daemon.terminate(&two).await;
        assert_eq!(daemon.count(&one).await, 4);
        daemon.assert_at_rest().await;
    });
}

#[test]
fn suspended_microvm_keeps_its_state_and_a_request_wakes_it() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.suspended(daemon.with_policy(BY_HAND), 3).await;
        daemon.assert_at_rest().await;
        assert_eq!(daemon.ask(&vm, "POST /count").await.unwrap(), "4");
        daemon.suspend(&vm).await;
        daemon.assert_at_rest().await;
        assert_eq!(daemon.ask(&vm, "POST /count").await.unwrap(), "5");
        daemon.assert_at_rest().await;
    });
}

#[test]
fn resume_command_wakes_it_with_its_state() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.suspended(daemon.record(), 2).await;
        for _ in 0..2 {
            daemon.command(&vm, Event::ResumeRequested).await.unwrap();
            daemon.until(&vm, State::Running).await;
            assert_eq!(daemon.count(&vm).await, 2);
            daemon.suspend(&vm).await;
        }
        daemon.assert_at_rest().await;
    });
}

#[test]
fn microvm_without_a_policy_is_woken_by_a_request() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.suspended(daemon.record(), 1).await;
        assert_eq!(daemon.count(&vm).await, 1);
    });
}

#[test]
fn without_auto_resume_a_request_finds_it_asleep_and_a_resume_command_wakes_it() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let policy = IdlePolicy {
            auto_resume: false,
            ..BY_HAND
        };
        let vm = daemon.suspended(daemon.with_policy(policy), 1).await;
        let refused = daemon.ask(&vm, "GET /count").await;
        assert!(
            matches!(refused, Err(Unanswered::NotOpened(OpenError::Asleep))),
            "{refused:?}"
        );
        let denied = daemon.command(&vm, Event::Wake).await;
        assert!(matches!(
            denied,
            Err(CommandError::Denied(Denied::NoAutoResume))
        ));
        assert_eq!(daemon.stored(&vm).await.value.state, State::Suspended);
        daemon.command(&vm, Event::ResumeRequested).await.unwrap();
        assert_eq!(daemon.count(&vm).await, 1);
    });
}

#[test]
fn hundreds_of_requests_to_a_sleeping_microvm_share_one_wake() {
    let lab = Lab::new();
    lab.real_day(async |daemon| {
        let vm = daemon.suspended(daemon.record(), 0).await;
        let requests = (0..200).map(|_| {
            let (daemon, vm) = (daemon.clone(), vm.clone());
            tokio::spawn(async move { daemon.ask(&vm, "POST /count").await })
        });
        for answer in join_all(requests).await {
            answer.unwrap().unwrap();
        }
        assert_eq!(daemon.count(&vm).await, 200);
        assert_eq!(daemon.journal.count(&vm, State::Resuming), 1);
        daemon.assert_at_rest().await;
    });
}

#[test]
fn requests_that_arrive_while_it_falls_asleep_are_answered_after_the_wake() {
    let lab = Lab::new();
    for point in [
        Point::BeforeSnapshot,
        Point::AfterSnapshot,
        Point::BeforeReap,
    ] {
        lab.day(async |daemon| {
            let vm = daemon.running(daemon.record()).await;
            let hold = daemon.stage.hold(point);
            daemon.command(&vm, Event::SuspendRequested).await.unwrap();
            hold.reached().await;
            let requests: Vec<_> = (0..20)
                .map(|_| {
                    let (daemon, vm) = (daemon.clone(), vm.clone());
                    tokio::spawn(async move { daemon.ask(&vm, "POST /count").await })
                })
                .collect();
            sleep(Duration::from_millis(1)).await;
            hold.release();
            for answer in join_all(requests).await {
                answer.unwrap().unwrap();
            }
            assert_eq!(daemon.count(&vm).await, 20);
            assert_eq!(daemon.journal.count(&vm, State::Resuming), 1);
            daemon.assert_at_rest().await;
            daemon.terminate(&vm).await;
        });
    }
}

#[test]
fn request_that_was_let_in_but_not_through_before_a_suspend_is_answered_after_the_wake() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        let hold = daemon.stage.hold(Point::BeforeConnect);
        let request = {
            let (daemon, vm) = (daemon.clone(), vm.clone());
            tokio::spawn(async move { daemon.ask(&vm, "POST /count").await })
        };
        hold.reached().await;
        let began = Instant::now();
        daemon.command(&vm, Event::SuspendRequested).await.unwrap();
        assert_eq!(request.await.unwrap().unwrap(), "1");
        assert_eq!(daemon.journal.count(&vm, State::Suspended), 1);
        // It has not moved a byte, so the suspend waited no longer than for silence.
        assert!(
            began.elapsed() < limits::DRAIN_QUIET * 2,
            "took {:?}",
            began.elapsed()
        );
    });
}

#[test]
fn request_that_was_let_in_and_finds_the_machine_gone_is_answered_after_the_wake() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        let (connect, reaped) = (
            daemon.stage.hold(Point::BeforeConnect),
            daemon.stage.hold(Point::AfterReap),
        );
        let request = {
            let (daemon, vm) = (daemon.clone(), vm.clone());
            tokio::spawn(async move { daemon.ask(&vm, "POST /count").await })
        };
        connect.reached().await;
        daemon.command(&vm, Event::SuspendRequested).await.unwrap();
        reaped.reached().await;
        connect.release();
        sleep(Duration::from_millis(1)).await;
        reaped.release();
        assert_eq!(request.await.unwrap().unwrap(), "1");
    });
}

#[test]
fn waiters_are_answered_although_it_is_put_to_sleep_again_before_their_turn() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.suspended(daemon.record(), 0).await;
        // The driver finds a suspend in its queue when it comes back from storing RUNNING.
        let woken = daemon.stage.hold(Point::AfterWrite(State::Running));
        let requests: Vec<_> = (0..20)
            .map(|_| {
                let (daemon, vm) = (daemon.clone(), vm.clone());
                tokio::spawn(async move { daemon.ask(&vm, "POST /count").await })
            })
            .collect();
        woken.reached().await;
        let suspend = {
            let (daemon, vm) = (daemon.clone(), vm.clone());
            tokio::spawn(async move { daemon.command(&vm, Event::SuspendRequested).await })
        };
        sleep(Duration::from_millis(1)).await;
        woken.release();
        suspend.await.unwrap().unwrap();
        for answer in join_all(requests).await {
            answer.unwrap().unwrap();
        }
        assert_eq!(daemon.count(&vm).await, 20);
        assert_eq!(daemon.journal.count(&vm, State::Resuming), 2);
    });
}

#[test]
fn request_in_flight_is_finished_before_a_suspend() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        let request = {
            let (daemon, vm) = (daemon.clone(), vm.clone());
            tokio::spawn(async move { daemon.ask(&vm, "GET /sleep/900").await })
        };
        sleep(Duration::from_millis(10)).await;
        daemon.suspend(&vm).await;
        assert_eq!(request.await.unwrap().unwrap(), "ok");
    });
}

/// An exchange that moves a byte every few seconds: `bytes` of them, echoed.
async fn trickle(stream: &mut Opened, bytes: usize) -> std::io::Result<String> {
    let head = format!(
        "POST /echo HTTP/1.1\r\nhost: app\r\nconnection: close\r\ncontent-length: {bytes}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    for _ in 0..bytes {
        stream.write_all(b"x").await?;
        while !answer.ends_with(b"x") {
            answer.push(stream.read_u8().await?);
        }
        answer.push(b' ');
        sleep(limits::DRAIN_QUIET * 2 / 3).await;
    }
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8(answer).unwrap())
}

#[test]
fn suspend_waits_as_long_as_bytes_move_and_holds_whoever_comes_meanwhile() {
    const BYTES: usize = 12;
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        let mut stream = daemon.open(&vm).await.unwrap();
        let exchange = tokio::spawn(async move { trickle(&mut stream, BYTES).await });
        sleep(Duration::from_secs(1)).await;
        let began = Instant::now();
        daemon.command(&vm, Event::SuspendRequested).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        assert!(!daemon.node.glance(&vm.endpoint).unwrap().is_open);
        let held = {
            let (daemon, vm) = (daemon.clone(), vm.clone());
            tokio::spawn(async move { daemon.ask(&vm, "POST /count").await })
        };
        let answer = exchange.await.unwrap().unwrap();
        assert_eq!(answer.matches('x').count(), BYTES);
        assert!(began.elapsed() > limits::DRAIN_QUIET * 7);
        assert_eq!(held.await.unwrap().unwrap(), "1");
        assert_eq!(daemon.journal.count(&vm, State::Suspended), 1);
        daemon.assert_at_rest().await;
    });
}

#[test]
fn suspend_does_not_wait_for_ever() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        let mut stream = daemon.open(&vm).await.unwrap();
        let exchange = tokio::spawn(async move { trickle(&mut stream, 1000).await });
        sleep(Duration::from_secs(1)).await;
        let began = Instant::now();
        daemon.command(&vm, Event::SuspendRequested).await.unwrap();
        // Held for as long as the drain lasts, and answered all the same.
        assert_eq!(daemon.ask(&vm, "POST /count").await.unwrap(), "1");
        let took = began.elapsed();
        assert!(
            took >= limits::DRAIN_TIMEOUT && took < limits::WAKE_TIMEOUT,
            "{took:?}"
        );
        let broken = exchange.await.unwrap().unwrap_err();
        assert_eq!(broken.kind(), std::io::ErrorKind::ConnectionReset);
        daemon.assert_at_rest().await;
    });
}

#[test]
fn silent_exchange_does_not_hold_up_a_suspend() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        let request = {
            let (daemon, vm) = (daemon.clone(), vm.clone());
            tokio::spawn(async move { daemon.ask(&vm, "GET /sleep/60000").await })
        };
        sleep(Duration::from_secs(1)).await;
        let began = Instant::now();
        daemon.suspend(&vm).await;
        assert!(began.elapsed() <= limits::DRAIN_QUIET);
        assert!(matches!(request.await.unwrap(), Err(Unanswered::Broken(_))));
    });
}

#[test]
fn more_waiters_than_a_microvm_may_have_are_turned_away() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let hold = daemon.stage.hold(Point::BeforeRestore);
        let vm = daemon.launch(daemon.record()).await;
        hold.reached().await;
        let waiters: Vec<_> = (0..limits::WAKE_WAITERS_MAX)
            .map(|_| {
                let (daemon, vm) = (daemon.clone(), vm.clone());
                tokio::spawn(async move { daemon.knock(&vm).await })
            })
            .collect();
        sleep(Duration::from_millis(1)).await;
        let turned_away = daemon.knock(&vm).await;
        assert!(
            matches!(turned_away, Err(OpenError::Overloaded)),
            "{turned_away:?}"
        );
        hold.release();
        for waiter in join_all(waiters).await {
            waiter.unwrap().unwrap();
        }
        assert_eq!(daemon.count(&vm).await, 0);
    });
}

#[test]
fn port_without_a_listener_is_told_from_a_microvm_that_does_not_answer() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        let refused = daemon.open_port(&vm, 81).await.map(drop);
        assert!(
            matches!(refused, Err(OpenError::NotListening)),
            "{refused:?}"
        );
        let stranger = daemon.knock(&daemon.record()).await;
        assert!(matches!(stranger, Err(OpenError::Ended)), "{stranger:?}");
    });
}

#[test]
fn open_stream_breaks_with_an_error_when_the_machine_goes() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        for end in [Event::SuspendRequested, Event::TerminateRequested] {
            let vm = daemon.running(daemon.record()).await;
            let mut idle = daemon.open(&vm).await.unwrap();
            let mut busy = daemon.open(&vm).await.unwrap();
            busy.write_all(b"GET /sleep/60000 HTTP/1.1\r\nhost: app\r\n\r\n")
                .await
                .unwrap();
            daemon.command(&vm, end).await.unwrap();
            for stream in [&mut idle, &mut busy] {
                let broken = timeout(Duration::from_secs(30), stream.read_u8())
                    .await
                    .unwrap();
                assert_eq!(
                    broken.unwrap_err().kind(),
                    std::io::ErrorKind::ConnectionReset
                );
                let broken = timeout(Duration::from_secs(30), stream.write_all(b"GET")).await;
                assert_eq!(
                    broken.unwrap().unwrap_err().kind(),
                    std::io::ErrorKind::ConnectionReset
                );
            }
        }
        let vm = daemon.running(daemon.record()).await;
        let mut stream = daemon.open(&vm).await.unwrap();
        daemon.stage.fake.crash(daemon.dir(&vm).path());
        let broken = timeout(Duration::from_secs(30), stream.read_u8())
            .await
            .unwrap();
        assert_eq!(
            broken.unwrap_err().kind(),
            std::io::ErrorKind::ConnectionReset
        );
    });
}

#[test]
fn stream_of_a_machine_that_is_gone_does_not_reach_the_next_one() {
    let lab = Lab::new();
    lab.day(async |daemon| {
        let vm = daemon.running(daemon.record()).await;
        let mut old = daemon.open(&vm).await.unwrap();
        daemon.suspend(&vm).await;
        assert_eq!(daemon.ask(&vm, "POST /count").await.unwrap(), "1");
        exchange(&mut old, "POST /count").await.unwrap_err();
        assert_eq!(daemon.count(&vm).await, 1);
    });
}
