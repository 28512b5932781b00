//! The client connections of one listener: how many there may be, and which make room for others.
//!
//! A connection with a request in flight is never closed for another's sake. One without may be: when
//! the listener is full, those that have been idle longest go, so that nobody can keep others out by
//! holding connections that do nothing. And nobody holds one forever that does nothing, or takes nothing
//! of what it is sent.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_core::limits;
use http::Version;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::metrics::Sums;

/// When the listener is full this part of it, one in so many, makes room at once.
const SHED_SHARE: usize = 100;
/// What is too long is told but for one part in so many.
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
    /// Whether it is over HTTP/2, by whose frames one cannot tell when a request begins to come.
    framed: AtomicBool,
    /// Whether the head of a request has to come: the first one, or one that has begun to.
    head_due: AtomicBool,
    /// Bodies of which the rest comes in vain.
    rests: AtomicUsize,
    /// Milliseconds between the listener's beginning and the last end of a request, or since when the head is due.
    idle_since_ms: AtomicU64,
    /// How often there was something for the client to take, and how often it has taken it.
    offers: AtomicU64,
    takes: AtomicU64,
    /// When the sweep last saw that nothing was left to take, or that more had been taken, and how much.
    took_ms: AtomicU64,
    took: AtomicU64,
    /// Whether it has taken nothing for too long.
    stuck: AtomicBool,
    leave: CancellationToken,
}

/// How long a client may leave a connection alone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Until the head of a request is there, from its first byte on, or from the beginning of the connection.
    pub(crate) head: Duration,
    /// Between two requests.
    pub(crate) idle: Duration,
    /// With something to take.
    pub(crate) unread: Duration,
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
        let now_ms = self.now_ms();
        let state = Arc::new(State {
            in_flight: AtomicUsize::new(0),
            framed: AtomicBool::new(false),
            head_due: AtomicBool::new(true),
            rests: AtomicUsize::new(0),
            idle_since_ms: AtomicU64::new(now_ms),
            offers: AtomicU64::new(0),
            takes: AtomicU64::new(0),
            took_ms: AtomicU64::new(now_ms),
            took: AtomicU64::new(0),
            stuck: AtomicBool::new(false),
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

    /// Looks again and again for those that try its patience, and asks them to go.
    pub(crate) async fn sweep(&self, patience: Patience) {
        let shortest = patience.head.min(patience.idle).min(patience.unread);
        loop {
            sleep(shortest / SWEEPS).await;
            let now_ms = self.now_ms();
            for state in self.open().values() {
                if state.is_too_idle(now_ms, patience) || state.is_stuck_by(now_ms, patience) {
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
    fn idle_from(&self, now_ms: u64) {
        self.idle_since_ms.store(now_ms, Ordering::Relaxed);
    }

    fn is_idle(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) == 0
    }

    fn is_too_idle(&self, now_ms: u64, patience: Patience) -> bool {
        let limit = if self.head_due.load(Ordering::Relaxed) {
            patience.head
        } else {
            patience.idle
        };
        let since_ms = self.idle_since_ms.load(Ordering::Relaxed);
        self.is_idle() && Duration::from_millis(now_ms.saturating_sub(since_ms)) >= limit
    }

    /// Notes whether the client takes what it is sent. The time is the sweep's, so that a small answer needs none.
    fn is_stuck_by(&self, now_ms: u64, patience: Patience) -> bool {
        let takes = self.takes.load(Ordering::Relaxed);
        let nothing_left = self.offers.load(Ordering::Relaxed) == takes;
        if self.took.swap(takes, Ordering::Relaxed) != takes || nothing_left {
            self.took_ms.store(now_ms, Ordering::Relaxed);
        }
        let since_ms = self.took_ms.load(Ordering::Relaxed);
        let stuck = Duration::from_millis(now_ms.saturating_sub(since_ms)) >= patience.unread;
        self.stuck.store(stuck, Ordering::Relaxed);
        stuck
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
    pub(crate) fn busy(self: &Arc<Self>, version: Version) -> Busy {
        let State {
            in_flight,
            framed,
            head_due,
            ..
        } = &*self.state;
        framed.store(version == Version::HTTP_2, Ordering::Relaxed);
        head_due.store(false, Ordering::Relaxed);
        in_flight.fetch_add(1, Ordering::Relaxed);
        Busy {
            seat: Arc::clone(self),
            over: AtomicBool::new(false),
        }
    }

    /// Takes note of bytes from the client: between two requests the next one begins with them.
    pub(crate) fn heard(&self) {
        let State {
            framed,
            head_due,
            rests,
            ..
        } = &*self.state;
        if self.state.is_idle()
            && !framed.load(Ordering::Relaxed)
            && rests.load(Ordering::Relaxed) == 0
            && !head_due.swap(true, Ordering::Relaxed)
        {
            self.state.idle_from(self.connections.now_ms());
        }
    }

    /// Whether the client still has to send the head of a request.
    pub(crate) fn is_head_due(&self) -> bool {
        self.state.head_due.load(Ordering::Relaxed)
    }

    /// Waits until it should end: it is to make room, nothing has come over it for too long, or all have to go.
    pub(crate) async fn told_to_leave(&self) {
        self.state.leave.cancelled().await;
    }

    /// Waits in steps of `grace`, and at least for one, until there is no request in flight, or no hope for it.
    pub(crate) async fn left(&self, grace: Duration) {
        loop {
            sleep(grace).await;
            if self.state.is_idle() || self.state.stuck.load(Ordering::Relaxed) {
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
pub(crate) struct Busy {
    seat: Arc<Seat>,
    over: AtomicBool,
}

impl Busy {
    /// From now on the request is none for whose sake the connection stays.
    pub(crate) fn end(&self) {
        if self.over.swap(true, Ordering::Relaxed) {
            return;
        }
        let Seat {
            connections, state, ..
        } = &*self.seat;
        state.idle_from(connections.now_ms());
        state.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// The rest of its body still comes, until what this returns is dropped.
    pub(crate) fn rest(&self) -> Rest {
        self.seat.state.rests.fetch_add(1, Ordering::Relaxed);
        Rest(Arc::clone(&self.seat))
    }

    /// There is something for the client to take.
    pub(crate) fn offered(&self) {
        self.seat.state.offers.fetch_add(1, Ordering::Relaxed);
    }

    /// It has taken it, or will not any more.
    pub(crate) fn taken(&self) {
        self.seat.state.takes.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.end();
    }
}

/// Marks that what comes over a connection is the rest of a body that nobody wants.
#[derive(Debug)]
pub(crate) struct Rest(Arc<Seat>);

impl Drop for Rest {
    fn drop(&mut self) {
        self.0.state.rests.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const PATIENCE: Patience = Patience {
        head: Duration::from_secs(15),
        idle: Duration::from_secs(60),
        unread: Duration::from_secs(30),
    };

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
        let _busy = seats[0].busy(Version::HTTP_11);
        // The second has had a request since the third came.
        drop(seats[1].busy(Version::HTTP_11));
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
        tokio::spawn(async move { sweeper.sweep(PATIENCE).await });
        let silent = connections.seat().await;
        let begun = Instant::now();
        silent.told_to_leave().await;
        assert_eq!(begun.elapsed().as_secs(), 15);
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let used = Arc::new(connections.seat().await);
            let busy = used.busy(version);
            let in_flight = timeout(SECOND * 3600, used.told_to_leave()).await;
            assert!(in_flight.is_err());
            drop(busy);
            let begun = Instant::now();
            used.told_to_leave().await;
            assert_eq!(begun.elapsed().as_secs(), 60);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_has_begun_has_to_come_in_time() {
        // HTTP/2 tells by itself whether its client is there.
        for (version, waits_s) in [(Version::HTTP_11, 15), (Version::HTTP_2, 30)] {
            let connections = connections(1);
            let sweeper = Arc::clone(&connections);
            tokio::spawn(async move { sweeper.sweep(PATIENCE).await });
            let seat = Arc::new(connections.seat().await);
            let busy = seat.busy(version);
            // Of this request's own body.
            seat.heard();
            drop(busy);
            assert!(!seat.is_head_due());
            sleep(SECOND * 30).await;
            let begun = Instant::now();
            seat.heard();
            sleep(SECOND).await;
            // A trickle gains nothing.
            seat.heard();
            seat.told_to_leave().await;
            assert_eq!(begun.elapsed().as_secs(), waits_s, "{version:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_of_what_it_is_sent_leaves() {
        let connections = connections(1);
        let sweeper = Arc::clone(&connections);
        tokio::spawn(async move { sweeper.sweep(PATIENCE).await });
        let seat = Arc::new(connections.seat().await);
        let (busy, silent) = (seat.busy(Version::HTTP_2), seat.busy(Version::HTTP_2));
        for _ in 0..4 {
            busy.offered();
            let slow = timeout(SECOND * 25, seat.told_to_leave()).await;
            assert!(slow.is_err());
            busy.taken();
        }
        // An app may be silent as long as it likes.
        let waiting = timeout(SECOND * 3600, seat.told_to_leave()).await;
        assert!(waiting.is_err());
        busy.offered();
        let begun = Instant::now();
        seat.told_to_leave().await;
        assert!((28..=32).contains(&begun.elapsed().as_secs()));
        seat.left(SECOND).await;
        assert!((29..=33).contains(&begun.elapsed().as_secs()));
        drop((busy, silent));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_has_its_own_time_to_take_what_it_is_sent() {
        let connections = connections(1);
        let sweeper = Arc::clone(&connections);
        tokio::spawn(async move { sweeper.sweep(PATIENCE).await });
        sleep(PATIENCE.unread * 2).await;
        let seat = Arc::new(connections.seat().await);
        let busy = seat.busy(Version::HTTP_11);
        busy.offered();
        let slow = timeout(SECOND * 25, seat.told_to_leave()).await;
        assert!(slow.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_again_is_stuck_no_more() {
        let connections = connections(1);
        let sweeper = Arc::clone(&connections);
        tokio::spawn(async move { sweeper.sweep(PATIENCE).await });
        let seat = Arc::new(connections.seat().await);
        let busy = seat.busy(Version::HTTP_11);
        busy.offered();
        seat.told_to_leave().await;
        busy.taken();
        sleep(PATIENCE.head / SWEEPS * 2).await;
        let left = timeout(SECOND * 3600, seat.left(SECOND)).await;
        assert!(left.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_over_keeps_nobody_out() {
        let connections = connections(1);
        let seat = Arc::new(connections.seat().await);
        let refused = seat.busy(Version::HTTP_2);
        refused.end();
        let newcomer = {
            let connections = Arc::clone(&connections);
            tokio::spawn(async move { connections.seat().await })
        };
        seat.told_to_leave().await;
        seat.left(SECOND).await;
        drop((refused, seat));
        newcomer.await.expect("a seat");
    }

    #[tokio::test]
    async fn all_leave_when_the_listener_stops() {
        let stop = CancellationToken::new();
        let connections = Connections::new(2, stop.clone(), Arc::default());
        let seat = Arc::new(connections.seat().await);
        let _busy = seat.busy(Version::HTTP_11);
        assert!(!leaves(&seat).await);
        stop.cancel();
        assert!(leaves(&seat).await);
        assert!(leaves(&connections.seat().await).await);
    }
}
