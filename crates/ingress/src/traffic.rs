//! What each MicroVM's traffic may be, and what it was.
//!
//! A request takes its *turn* before anything of the MicroVM is touched: a flood of one costs another
//! nothing but the CPU time of its refusals. Nothing here is shared by two MicroVMs but the sums.

use std::collections::HashMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_core::{EndpointId, MicrovmId, limits};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::metrics::{Counters, Sums};
use crate::rate::{Bucket, Rate};
use crate::refusal::Refusal;
use crate::{OpenError, Target};

/// A second's requests may come at once after a silence.
const REQUEST_BURST: Duration = Duration::from_secs(1);
/// So many MicroVMs are kept in mind before it is looked whether some have ended.
const KEPT_MIN: usize = 64;

/// What one MicroVM's endpoint may carry; none is without a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VmLimits {
    /// Requests, streams and switched connections at once.
    pub in_flight: Option<NonZeroU32>,
    /// New requests a second.
    pub requests_per_second: Option<NonZeroU32>,
    /// Bytes a second, in and out together.
    pub bytes_per_second: Option<NonZeroU64>,
}

/// The traffic of every MicroVM that has some.
#[derive(Debug)]
pub(crate) struct Traffic {
    patience: Duration,
    sums: Arc<Sums>,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    vms: HashMap<EndpointId, Arc<Vm>>,
    /// Looked over when there are more than this.
    most: usize,
}

impl Traffic {
    /// A request to a MicroVM that is awake waits for its turn for `patience`.
    pub(crate) fn new(patience: Duration, sums: Arc<Sums>) -> Self {
        let kept = Kept {
            vms: HashMap::new(),
            most: KEPT_MIN,
        };
        Self {
            patience,
            sums,
            kept: Mutex::new(kept),
        }
    }

    /// The MicroVM behind `endpoint`; `is_live` tells whether there still is one.
    pub(crate) fn vm(
        &self,
        endpoint: &EndpointId,
        target: &Target,
        is_live: impl Fn(&EndpointId) -> bool,
    ) -> Arc<Vm> {
        let mut kept = self.kept();
        if let Some(vm) = kept.vms.get(endpoint) {
            return Arc::clone(vm);
        }
        if kept.vms.len() >= kept.most {
            kept.forget(is_live);
            kept.most = KEPT_MIN.max(2 * kept.vms.len());
        }
        let vm = Arc::new(Vm::new(target, Arc::clone(&self.sums)));
        kept.vms.insert(*endpoint, Arc::clone(&vm));
        vm
    }

    /// Every MicroVM that is live and has had traffic.
    pub(crate) fn live(&self, is_live: impl Fn(&EndpointId) -> bool) -> Vec<Arc<Vm>> {
        let mut kept = self.kept();
        kept.forget(is_live);
        kept.vms.values().cloned().collect()
    }

    pub(crate) fn find(&self, endpoint: &EndpointId) -> Option<Arc<Vm>> {
        self.kept().vms.get(endpoint).cloned()
    }

    /// Waits for the turn of a request to `vm`, which is asleep or not.
    pub(crate) async fn turn(&self, vm: &Arc<Vm>, awake: bool) -> Result<Turn, Refusal> {
        let _waiter = vm.waiters.try_acquire().map_err(|_| Refusal::Overloaded)?;
        let begun = Instant::now();
        if awake {
            vm.pace(self.patience).await?;
            return vm.place(begun + self.patience).await;
        }
        // Requests that come while it sleeps are held, however many come at once. They may never be let in, and
        // count as requests a second only then.
        vm.place(begun + limits::WAKE_TIMEOUT).await
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // The map is whole after each statement.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Forgets MicroVMs that have ended, but for those that something still crosses.
    fn forget(&mut self, is_live: impl Fn(&EndpointId) -> bool) {
        self.vms
            .retain(|endpoint, vm| Arc::strong_count(vm) > 1 || is_live(endpoint));
    }
}

/// The traffic of one MicroVM.
#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) microvm: MicrovmId,
    pub(crate) counters: Counters,
    sums: Arc<Sums>,
    requests: Option<Mutex<Bucket>>,
    places: Option<Arc<Semaphore>>,
    waiters: Semaphore,
    bandwidth: Option<Bandwidth>,
}

#[derive(Debug)]
struct Bandwidth {
    bucket: Mutex<Bucket>,
    /// Most bytes that a stream moves at once.
    piece: usize,
}

/// A request's place among those in flight; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    vm: Arc<Vm>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.vm.counters.in_flight.dec();
        self.vm.sums.all.in_flight.dec();
    }
}

/// A request that waits for a sleeping MicroVM; it waits no more when it is dropped.
#[derive(Debug)]
pub(crate) struct Held(Arc<Vm>);

impl Held {
    /// Waits for its turn under the rate, now that the MicroVM is awake.
    pub(crate) async fn let_in(self) -> Result<(), OpenError> {
        let paced = self.0.pace(limits::WAKE_TIMEOUT).await;
        paced.map_err(|_| OpenError::Overloaded)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.counters.waiting.dec();
        self.0.sums.all.waiting.dec();
    }
}

/// One request of the rate that is not due yet; goes back to who leaves before.
struct Credit<'a> {
    requests: &'a Mutex<Bucket>,
    due: Instant,
}

impl Drop for Credit<'_> {
    fn drop(&mut self) {
        if Instant::now() < self.due {
            lock(self.requests).give_back(1);
        }
    }
}

impl Vm {
    /// Counts a request that found the MicroVM asleep.
    pub(crate) fn hold(self: &Arc<Self>) -> Held {
        for counters in [&self.counters, &self.sums.all] {
            counters.held.inc();
            counters.waiting.inc();
        }
        Held(Arc::clone(self))
    }

    fn new(target: &Target, sums: Arc<Sums>) -> Self {
        let now = Instant::now();
        let VmLimits {
            in_flight,
            requests_per_second,
            bytes_per_second,
        } = target.limits;
        let requests = requests_per_second
            .map(|per_second| Bucket::full(Rate::new(per_second.into(), REQUEST_BURST), now));
        Self {
            microvm: target.microvm.clone(),
            counters: Counters::default(),
            sums,
            requests: requests.map(Mutex::new),
            places: in_flight.map(|most| Arc::new(Semaphore::new(most.get() as usize))),
            waiters: Semaphore::new(limits::TURN_WAITERS_MAX),
            bandwidth: bytes_per_second.map(|per_second| Bandwidth::new(per_second, now)),
        }
    }

    /// Waits until the rate allows one more request, for `patience` at most.
    async fn pace(&self, patience: Duration) -> Result<(), Refusal> {
        let Some(requests) = &self.requests else {
            return Ok(());
        };
        let now = Instant::now();
        let wait = lock(requests).take_within(1, patience, now);
        let wait = wait.map_err(|_| Refusal::TooFast)?;
        if !wait.is_zero() {
            let due = now + wait;
            let _credit = Credit { requests, due };
            sleep_until(due).await;
        }
        Ok(())
    }

    /// Waits until `end` for a place among those in flight.
    async fn place(self: &Arc<Self>, end: Instant) -> Result<Turn, Refusal> {
        let place = match &self.places {
            Some(places) => {
                let place = timeout_at(end, Arc::clone(places).acquire_owned()).await;
                let place = place.map_err(|_| Refusal::TooMany)?;
                Some(place.expect("the semaphore is never closed"))
            }
            None => None,
        };
        self.counters.in_flight.inc();
        self.sums.all.in_flight.inc();
        Ok(Turn {
            vm: Arc::clone(self),
            _place: place,
        })
    }

    /// Most bytes that a stream may move at once; none for as many as it likes.
    pub(crate) fn piece(&self) -> Option<usize> {
        self.bandwidth.as_ref().map(|bandwidth| bandwidth.piece)
    }

    /// When nothing is owed; none for now, and always so without a limit.
    pub(crate) fn bandwidth_due(&self) -> Option<Instant> {
        self.bandwidth.as_ref()?.due(0)
    }

    /// Takes note of bytes to the app; answers when the same stream may send more.
    pub(crate) fn took(&self, length: usize) -> Option<Instant> {
        self.counters.bytes_in.inc_by(length as u64);
        self.sums.all.bytes_in.inc_by(length as u64);
        self.bandwidth.as_ref()?.due(length)
    }

    /// Takes note of bytes from the app; answers when the same stream may read more.
    pub(crate) fn gave(&self, length: usize) -> Option<Instant> {
        self.counters.bytes_out.inc_by(length as u64);
        self.sums.all.bytes_out.inc_by(length as u64);
        self.bandwidth.as_ref()?.due(length)
    }
}

impl Bandwidth {
    fn new(per_second: NonZeroU64, now: Instant) -> Self {
        let rate = Rate::new(per_second, limits::BANDWIDTH_BURST);
        let piece = usize::try_from(rate.amount_in(limits::PACED_CHUNK)).unwrap_or(usize::MAX);
        Self {
            bucket: Mutex::new(Bucket::full(rate, now)),
            piece: piece.clamp(limits::PACED_CHUNK_BYTES_MIN, limits::PACED_CHUNK_BYTES_MAX),
        }
    }

    fn due(&self, length: usize) -> Option<Instant> {
        let now = Instant::now();
        let wait = lock(&self.bucket).take(length as u64, now);
        (!wait.is_zero()).then(|| now + wait)
    }
}

/// A bucket is whole after each statement.
fn lock(bucket: &Mutex<Bucket>) -> MutexGuard<'_, Bucket> {
    bucket.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
impl Vm {
    pub(crate) fn with_limits(limits: VmLimits) -> Arc<Self> {
        let target = Target {
            microvm: MicrovmId::new(uuid::Uuid::from_u128(1)),
            limits,
            awake: true,
        };
        Arc::new(Self::new(&target, Arc::default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::join_all;
    use uuid::Uuid;

    fn limited(in_flight: u32, per_second: u32) -> Arc<Vm> {
        Vm::with_limits(VmLimits {
            in_flight: NonZeroU32::new(in_flight),
            requests_per_second: NonZeroU32::new(per_second),
            bytes_per_second: None,
        })
    }

    fn traffic() -> Traffic {
        Traffic::new(limits::TURN_PATIENCE, Arc::default())
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_a_moment_for_a_place_and_is_refused_then() {
        let (traffic, vm) = (traffic(), limited(2, 0));
        let first = traffic.turn(&vm, true).await.expect("a place");
        let _second = traffic.turn(&vm, true).await.expect("a place");
        assert_eq!(vm.counters.in_flight.get(), 2);
        let begun = Instant::now();
        let third = traffic.turn(&vm, true).await.map(drop);
        assert_eq!(third, Err(Refusal::TooMany));
        assert_eq!(begun.elapsed().as_secs(), limits::TURN_PATIENCE.as_secs());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(500)).await;
            drop(first);
        });
        traffic.turn(&vm, true).await.expect("a place in time");
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_paced_to_the_rate_and_what_is_too_much_is_refused_at_once() {
        let (traffic, vm) = (traffic(), limited(0, 10));
        let begun = Instant::now();
        let turns: Vec<_> = (0..100).map(|_| traffic.turn(&vm, true)).collect();
        let turns = join_all(turns).await;
        let granted = turns.iter().filter(|turn| turn.is_ok()).count();
        // A second's worth at once, and a second's worth within the patience.
        assert_eq!(granted, 20);
        assert!(
            turns
                .iter()
                .flat_map(|turn| turn.as_ref().err())
                .all(|r| *r == Refusal::TooFast)
        );
        assert_eq!(begun.elapsed().as_millis(), 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_comes_while_it_sleeps_is_held_until_it_is_their_turn() {
        let (traffic, vm) = (traffic(), limited(0, 10));
        let begun = Instant::now();
        let turns: Vec<_> = (0..200).map(|_| traffic.turn(&vm, false)).collect();
        assert!(join_all(turns).await.iter().all(Result::is_ok));
        assert_eq!(begun.elapsed(), Duration::ZERO);
        let let_in: Vec<_> = (0..200).map(|_| vm.hold().let_in()).collect();
        assert!(join_all(let_in).await.iter().all(Result::is_ok));
        assert_eq!(begun.elapsed().as_secs(), 19);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_leaves_before_it_is_their_turn_has_taken_nothing() {
        let (traffic, vm) = (traffic(), limited(0, 10));
        let let_in: Vec<_> = (0..200).map(|_| vm.hold().let_in()).collect();
        let all = timeout_at(Instant::now() + Duration::from_millis(50), join_all(let_in));
        all.await.expect_err("most have to wait");
        let begun = Instant::now();
        traffic.turn(&vm, true).await.expect("a turn");
        assert_eq!(begun.elapsed().as_millis(), 50);
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_an_end_to_those_that_wait() {
        let (traffic, vm) = (Arc::new(traffic()), limited(1, 0));
        let _place = traffic.turn(&vm, true).await.expect("a place");
        for _ in 0..limits::TURN_WAITERS_MAX {
            let (traffic, vm) = (Arc::clone(&traffic), Arc::clone(&vm));
            tokio::spawn(async move { traffic.turn(&vm, false).await.map(drop) });
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        let one_more = traffic.turn(&vm, false).await.map(drop);
        assert_eq!(one_more, Err(Refusal::Overloaded));
    }

    #[tokio::test]
    async fn microvms_that_have_ended_are_forgotten() {
        let traffic = traffic();
        let target = |n| Target {
            microvm: MicrovmId::new(Uuid::from_u128(n)),
            limits: VmLimits::default(),
            awake: true,
        };
        let endpoint = |n| EndpointId::new(Uuid::from_u128(n));
        let crossed = traffic.vm(&endpoint(0), &target(0), |_| false);
        for n in 1..1000 {
            traffic.vm(&endpoint(n), &target(n), |_| false);
        }
        assert!(traffic.kept().vms.len() <= KEPT_MIN + 1);
        let again = traffic.vm(&endpoint(0), &target(0), |_| false);
        assert!(Arc::ptr_eq(&crossed, &again));
        drop((crossed, again));
        for n in 0..200 {
            traffic.vm(&endpoint(n), &target(n), |_| true);
        }
        let seventh = endpoint(7);
        assert_eq!(traffic.live(|endpoint| *endpoint == seventh).len(), 1);
    }
}
