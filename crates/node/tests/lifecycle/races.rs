//! A crowd at the door at the very moment that a MicroVM falls asleep, again and again.

use crate::lab::{Daemon, Lab};
use dormouse_core::microvm::{Event, Record, State};
use futures_util::future::join_all;
use std::time::Duration;
use tokio::task::yield_now;
use tokio::time::sleep;

const ROUNDS: usize = 100;
const CLIENTS: usize = 200;

#[test]
fn crowd_that_meets_a_suspend_is_answered_once_each_after_one_wake() {
    Lab::new().day(crowds_meet_suspends);
}

#[test]
fn crowd_that_meets_a_suspend_on_several_threads_is_answered_once_each_after_one_wake() {
    Lab::new().real_day(crowds_meet_suspends);
}

async fn crowds_meet_suspends(daemon: Daemon) {
    let vm = daemon.running(daemon.record()).await;
    let (mut numbers, mut held) = (Vec::new(), 0);
    for round in 0..ROUNDS {
        let clients = (0..CLIENTS).map(|client| {
            let (daemon, vm) = (daemon.clone(), vm.clone());
            tokio::spawn(async move {
                arrive(round, client).await;
                let slept = daemon.journal.count(&vm, State::Suspended);
                let number = daemon.ask(&vm, "POST /count").await.unwrap();
                let held = daemon.journal.count(&vm, State::Suspended) > slept;
                (number.parse::<usize>().unwrap(), held)
            })
        });
        let clients: Vec<_> = clients.collect();
        arrive(round, CLIENTS).await;
        daemon.command(&vm, Event::SuspendRequested).await.unwrap();
        for answer in join_all(clients).await {
            let (number, was_held) = answer.unwrap();
            numbers.push(number);
            held += usize::from(was_held);
        }
        assert_one_sleep_and_one_wake(&daemon, &vm, round).await;
    }
    // The app counts: a request that came twice, or an answer that was given twice, would show.
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=ROUNDS * CLIENTS).collect::<Vec<_>>());
    println!("{held} of {} requests were held", numbers.len());
    assert!(
        (ROUNDS..numbers.len()).contains(&held),
        "the crowds met the suspends: {held}"
    );
    daemon.assert_at_rest().await;
}

/// Lets each client come at another moment, and in each round at another.
async fn arrive(round: usize, client: usize) {
    let place = (client * 7919 + round * 104_729) % 509;
    for _ in 0..place {
        yield_now().await;
    }
    if place.is_multiple_of(5) {
        sleep(Duration::from_millis(place as u64 % 7)).await;
    }
}

async fn assert_one_sleep_and_one_wake(daemon: &Daemon, vm: &Record, round: usize) {
    // Where everybody was served before it slept, this request is the one that wakes it.
    daemon.until_count(vm, State::Suspended, round + 1).await;
    assert_eq!(daemon.count(vm).await, ((round + 1) * CLIENTS) as u64);
    assert_eq!(daemon.journal.count(vm, State::Suspended), round + 1);
    assert_eq!(daemon.journal.count(vm, State::Resuming), round + 1);
}
