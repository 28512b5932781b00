//! The gate between the proxy and a MicroVM: who may pass now, who waits, and when it was last used.
//!
//! The driver sets the [`Phase`]; requests take a [`Lease`]. Both happen under the lock of one watch
//! channel, so a request either got in before the gate closed, or waits for the next phase: a suspend
//! never races with a request that it has not seen.
//!
//! Activity is bytes, as on AWS: a stream that is open but silent keeps no MicroVM awake.

use crate::vmm::{Instance, Stream};
use dormouse_core::Timestamp;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// What a request finds at the gate.
#[derive(Debug, Clone)]
pub enum Phase {
    /// On its way to another phase: wait.
    Hold,
    /// Serving.
    Open(Arc<dyn Instance>),
    /// Suspended.
    Asleep {
        /// Whether traffic may wake it.
        auto_resume: bool,
        /// Whether it sleeps because its last wake failed.
        wake_failed: bool,
    },
    /// Over.
    Ended,
}

/// The gate of one MicroVM.
#[derive(Debug)]
pub struct Gate {
    now: watch::Sender<Now>,
    usage: Arc<Usage>,
}

/// The phase, and what cuts the streams of the machine that now runs once that machine is gone.
#[derive(Debug)]
struct Now {
    phase: Phase,
    /// Counts the machines that the MicroVM has had.
    run: u64,
    machine_gone: CancellationToken,
}

impl Now {
    fn cut(&mut self) {
        self.run += 1;
        std::mem::take(&mut self.machine_gone).cancel();
    }
}

#[derive(Debug)]
struct Usage {
    leases: AtomicUsize,
    /// Milliseconds between `epoch` and the last byte.
    last_activity_ms: AtomicU64,
    epoch: Instant,
}

impl Gate {
    /// A gate in this phase, just used.
    #[must_use]
    pub fn new(phase: Phase) -> Self {
        let usage = Usage {
            leases: AtomicUsize::new(0),
            last_activity_ms: AtomicU64::new(0),
            epoch: Instant::now(),
        };
        let now = Now {
            phase,
            run: 0,
            machine_gone: CancellationToken::new(),
        };
        Self {
            now: watch::Sender::new(now),
            usage: Arc::new(usage),
        }
    }

    /// Changes the phase; opening counts as activity, so that the idle time starts anew.
    pub fn set(&self, phase: Phase) {
        if matches!(phase, Phase::Open(_)) {
            self.usage.touch();
        }
        self.now.send_modify(|now| {
            if matches!(phase, Phase::Asleep { .. } | Phase::Ended) {
                now.cut();
            }
            now.phase = phase;
        });
    }

    /// Whether the MicroVM is over, or about to be.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.now.borrow().phase, Phase::Ended)
    }

    /// Whether whoever comes now is let in at once.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.now.borrow().phase, Phase::Open(_))
    }

    /// Breaks every open stream: the machine behind them will not answer any more.
    pub fn cut(&self) {
        self.now.send_if_modified(|now| {
            now.cut();
            false
        });
    }

    /// Closes the gate if no byte has crossed it for `idle`. Nothing can pass between the look and the
    /// closing.
    pub fn close_if_idle(&self, idle: Duration) -> bool {
        self.now.send_if_modified(|now| {
            let close = self.idle_for() >= idle;
            if close {
                now.phase = Phase::Hold;
            }
            close
        })
    }

    /// How long no byte has crossed the gate.
    #[must_use]
    pub fn idle_for(&self) -> Duration {
        let last = Duration::from_millis(self.usage.last_activity_ms.load(Ordering::Relaxed));
        self.usage.epoch.elapsed().saturating_sub(last)
    }

    /// When the last byte crossed the gate, by the wall clock.
    #[must_use]
    pub fn last_activity(&self, now: Timestamp) -> Timestamp {
        let idle = u64::try_from(self.idle_for().as_millis()).unwrap_or(u64::MAX);
        Timestamp(now.0.saturating_sub(idle))
    }

    /// Waits until nobody is inside, or those inside have been silent for `quiet`, or `limit` is over.
    pub async fn drain(&self, quiet: Duration, limit: Duration) {
        let deadline = Instant::now() + limit;
        while self.usage.leases.load(Ordering::Relaxed) > 0
            && self.idle_for() < quiet
            && Instant::now() < deadline
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Passes if the gate is open; otherwise says what it found.
    pub fn enter(&self) -> Result<Lease, Phase> {
        let now = self.now.borrow();
        match &now.phase {
            Phase::Open(machine) => {
                self.usage.touch();
                self.usage.leases.fetch_add(1, Ordering::Relaxed);
                Ok(Lease {
                    machine: Arc::clone(machine),
                    run: now.run,
                    machine_gone: now.machine_gone.clone(),
                    usage: Arc::clone(&self.usage),
                })
            }
            other => Err(other.clone()),
        }
    }

    /// Tells of each change of the phase.
    #[must_use]
    pub fn changes(&self) -> Changes {
        Changes(self.now.subscribe())
    }
}

impl Usage {
    fn touch(&self) {
        let now = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_activity_ms.fetch_max(now, Ordering::Relaxed);
    }
}

/// Tells of each change of a gate's phase.
#[derive(Debug)]
pub struct Changes(watch::Receiver<Now>);

impl Changes {
    /// Forgets the changes so far; call it before looking at the gate.
    pub fn forget(&mut self) {
        self.0.mark_unchanged();
    }

    /// Waits for a change; false when there will be none.
    pub async fn next(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}

/// The right to be inside the gate; ends when it is dropped.
#[derive(Debug)]
pub struct Lease {
    machine: Arc<dyn Instance>,
    run: u64,
    machine_gone: CancellationToken,
    usage: Arc<Usage>,
}

impl Lease {
    /// The machine behind the gate.
    #[must_use]
    pub fn machine(&self) -> &dyn Instance {
        &*self.machine
    }

    /// Tells this machine from those that the MicroVM has had before and will have after a sleep.
    #[must_use]
    pub fn run(&self) -> u64 {
        self.run
    }

    /// Waits until the machine is gone.
    pub async fn broken(&self) {
        self.machine_gone.cancelled().await;
    }

    /// Has the bytes of a stream into the machine counted as activity, also after the lease has ended, and
    /// breaks the stream once the machine is gone.
    pub fn watch<S>(&self, stream: S) -> GatedStream<S> {
        GatedStream {
            stream,
            usage: Arc::clone(&self.usage),
            machine_gone: Box::pin(self.machine_gone.clone().cancelled_owned()),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.usage.leases.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream into a MicroVM that stamps each byte on the activity clock and lives no longer than the machine.
#[derive(Debug)]
pub struct GatedStream<S> {
    stream: S,
    usage: Arc<Usage>,
    machine_gone: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> GatedStream<S> {
    /// An error once the machine is gone: a network without it would stay silent forever.
    fn poll_alive(&mut self, context: &mut Context<'_>) -> std::io::Result<()> {
        match self.machine_gone.as_mut().poll(context) {
            Poll::Ready(()) => Err(std::io::ErrorKind::ConnectionReset.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl<S: Stream> AsyncRead for GatedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.poll_alive(context)?;
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.usage.touch();
        }
        result
    }
}

impl<S: Stream> AsyncWrite for GatedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.poll_alive(context)?;
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        if matches!(result, Poll::Ready(Ok(1..))) {
            self.usage.touch();
        }
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        self.poll_alive(context)?;
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        if matches!(result, Poll::Ready(Ok(1..))) {
            self.usage.touch();
        }
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
