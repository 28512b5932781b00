//! The client connections of one listener: how many there may be, and which make room for others.
//!
//! A connection with a request in flight is never closed for another's sake. One without may be: when
//! the listener is full, those that have been idle longest go, so that nobody can keep others out by
//! holding connections that do nothing. And nobody holds one that does nothing forever.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_core::limits;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::metrics::Sums;

/// When the listener is full this part of it, one in so many, makes room at once.
const SHED_SHARE: usize = 100;
/// Connections stay too long by one part in so many at most.
const SWEEPS: u32 = 10;

/// The connections of one listener.
#[derive(Debug)]
pub(crate) struct Connections {
    places: Arc<Semaphore>,
    most: usize,
    begun: Instant,
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<State>>>,
    /// Tells all of them to go.
    stop: CancellationToken,
    sums: Arc<Sums>,
}

#[derive(Debug)]
struct State {
    in_flight: AtomicUsize,
    /// Whether it has had a request.
    used: AtomicBool,
    /// Milliseconds between the listener's beginning and the last end of a request.
    idle_since_ms: AtomicU64,
    leave: CancellationToken,
}

impl Connections {
    /// Room for `most` connections, until `stop`.
    pub(crate) fn new(most: usize, stop: CancellationToken, sums: Arc<Sums>) -> Arc<Self> {
        Arc::new(Self {
            places: Arc::new(Semaphore::new(most)),
            most,
            begun: Instant::now(),
            next: AtomicU64::new(0),
            open: Mutex::default(),
            stop,
            sums,
        })
    }

    /// A place for one more, as soon as there is one; who is idle makes room.
    pub(crate) async fn seat(self: &Arc<Self>) -> Seat {
        let place = loop {
            if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
                break place;
            }
            self.shed();
            let place = Arc::clone(&self.places).acquire_owned();
            if let Ok(place) = timeout(limits::SHED_GRACE, place).await {
                break place.expect("the semaphore is never closed");
            }
        };
        let state = Arc::new(State {
            in_flight: AtomicUsize::new(0),
            used: AtomicBool::new(false),
            idle_since_ms: AtomicU64::new(self.now_ms()),
            leave: self.stop.child_token(),
        });
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.open().insert(id, Arc::clone(&state));
        self.sums.connections.inc();
        Seat {
            connections: Arc::clone(self),
            id,
            state,
            _place: place,
        }
    }

    /// Asks those that have been idle longest to go.
    fn shed(&self) {
        // Of those that came in the same moment the one that came first goes first.
        let mut idle: Vec<_> = self
            .open()
            .iter()
            .filter(|(_, state)| state.is_idle())
            .map(|(id, state)| {
                let since_ms = state.idle_since_ms.load(Ordering::Relaxed);
                ((since_ms, *id), Arc::clone(state))
            })
            .collect();
        let count = self.most.div_ceil(SHED_SHARE).min(idle.len());
        if count == 0 {
            return;
        }
        tracing::info!(count, "full: idle connections make room");
        idle.select_nth_unstable_by_key(count - 1, |(age, _)| *age);
        for (_, state) in &idle[..count] {
            state.leave.cancel();
        }
    }

    /// Looks again and again for those that have been idle for `idle_timeout`, or for `head_timeout` without having had
    /// a request, and asks them to go.
    pub(crate) async fn sweep(&self, head_timeout: Duration, idle_timeout: Duration) {
        loop {
            sleep(head_timeout.min(idle_timeout) / SWEEPS).await;
            let now_ms = self.now_ms();
            for state in self.open().values() {
                let limit = if state.used.load(Ordering::Relaxed) {
                    idle_timeout
                } else {
                    head_timeout
                };
                if state.idle_for(now_ms) >= limit {
                    state.leave.cancel();
                }
            }
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Arc<State>>> {
        // The map is whole after each statement.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_idle(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) == 0
    }

    fn idle_for(&self, now_ms: u64) -> Duration {
        if !self.is_idle() {
            return Duration::ZERO;
        }
        let since_ms = self.idle_since_ms.load(Ordering::Relaxed);
        Duration::from_millis(now_ms.saturating_sub(since_ms))
    }
}

/// A connection's place; a switched connection keeps it.
#[derive(Debug)]
pub(crate) struct Seat {
    connections: Arc<Connections>,
    id: u64,
    state: Arc<State>,
    _place: OwnedSemaphorePermit,
}

impl Seat {
    /// Marks a request in flight, until it is dropped.
    pub(crate) fn busy(self: &Arc<Self>) -> Busy {
        self.state.used.store(true, Ordering::Relaxed);
        self.state.in_flight.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    /// Whether it has had a request.
    pub(crate) fn is_used(&self) -> bool {
        self.state.used.load(Ordering::Relaxed)
    }

    /// Waits until it should end: it is to make room, nothing has come over it for too long, or all have to go.
    pub(crate) async fn told_to_leave(&self) {
        self.state.leave.cancelled().await;
    }

    /// Waits in steps of `grace`, and at least for one, until there is no request in flight.
    pub(crate) async fn left(&self, grace: Duration) {
        loop {
            sleep(grace).await;
            if self.state.is_idle() {
                return;
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.connections.open().remove(&self.id);
        self.connections.sums.connections.dec();
    }
}

/// A request in flight on a connection.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Seat>);

impl Drop for Busy {
    fn drop(&mut self) {
        let Seat {
            connections, state, ..
        } = &*self.0;
        let now_ms = connections.now_ms();
        state.idle_since_ms.store(now_ms, Ordering::Relaxed);
        state.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    async fn leaves(seat: &Seat) -> bool {
        let told = seat.told_to_leave();
        timeout(Duration::from_millis(1), told).await.is_ok()
    }

    fn connections(most: usize) -> Arc<Connections> {
        Connections::new(most, CancellationToken::new(), Arc::default())
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_been_idle_longest_makes_room_and_who_is_busy_never_does() {
        let connections = connections(3);
        let mut seats = Vec::new();
        for _ in 0..3 {
            seats.push(Arc::new(connections.seat().await));
            tokio::time::sleep(SECOND).await;
        }
        let _busy = seats[0].busy();
        // The second has had a request since the third came.
        drop(seats[1].busy());
        let newcomer = {
            let connections = Arc::clone(&connections);
            tokio::spawn(async move { connections.seat().await })
        };
        tokio::time::sleep(SECOND / 10).await;
        assert!(!leaves(&seats[0]).await);
        assert!(!leaves(&seats[1]).await);
        assert!(leaves(&seats[2]).await);
        assert!(!newcomer.is_finished());
        drop(seats.remove(2));
        newcomer.await.expect("a seat");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_outstays_its_welcome_only_when_idle() {
        let connections = connections(2);
        let sweeper = Arc::clone(&connections);
        tokio::spawn(async move { sweeper.sweep(SECOND * 15, SECOND * 60).await });
        let (silent, used) = (connections.seat().await, Arc::new(connections.seat().await));
        let begun = Instant::now();
        let busy = used.busy();
        silent.told_to_leave().await;
        assert_eq!(begun.elapsed().as_secs(), 15);
        let in_flight = timeout(SECOND * 3600, used.told_to_leave()).await;
        assert!(in_flight.is_err());
        drop(busy);
        let begun = Instant::now();
        used.told_to_leave().await;
        assert_eq!(begun.elapsed().as_secs(), 60);
    }

    #[tokio::test]
    async fn all_leave_when_the_listener_stops() {
        let stop = CancellationToken::new();
        let connections = Connections::new(2, stop.clone(), Arc::default());
        let seat = Arc::new(connections.seat().await);
        let _busy = seat.busy();
        assert!(!leaves(&seat).await);
        stop.cancel();
        assert!(leaves(&seat).await);
        assert!(leaves(&connections.seat().await).await);
    }
}
