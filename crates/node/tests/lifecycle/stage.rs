//! The fake VMM on a stage: each step of its machines can be held up, and each machine is watched.

use crate::hostile::Malice;
use async_trait::async_trait;
use dormouse_core::microvm::State;
use dormouse_node::vmm::fake::Fake;
use dormouse_node::vmm::{
    BootSpec, DeltaFiles, DeltaStats, ExitReason, Instance, RestoreSpec, Stream, Vmm, VmmError,
};
use futures_util::FutureExt;
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::timeout;

/// A place where work on a machine can be held up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    BeforeRestore,
    AfterRestore,
    BeforeResume,
    AfterResume,
    BeforeSnapshot,
    AfterSnapshot,
    BeforeConnect,
    BeforeReap,
    AfterReap,
    /// A MicroVM's new state is about to be stored.
    BeforeWrite(State),
    /// It is stored, and the driver does not know yet.
    AfterWrite(State),
}

/// The fake VMM, watched.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stage {
    pub(crate) fake: Fake,
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    holds: Mutex<Vec<(Point, Arc<Held>)>>,
    machines: Mutex<Vec<(PathBuf, Arc<dyn Instance>)>>,
    /// The folders that were reaped, as often as they were.
    reaped: Mutex<Vec<PathBuf>>,
    /// Folders of machines whose agents are not ours any more.
    turned: Mutex<HashMap<PathBuf, Malice>>,
}

#[derive(Debug, Default)]
struct Held {
    reached: Notify,
    released: Notify,
}

/// Holds up whoever comes first to a point; for good, if it is dropped.
#[derive(Debug)]
pub(crate) struct Hold(Point, Arc<Held>);

impl Hold {
    /// Waits until somebody stands there.
    pub(crate) async fn reached(&self) {
        let reached = timeout(Duration::from_secs(600), self.1.reached.notified()).await;
        reached.unwrap_or_else(|_| panic!("nobody came to {:?}", self.0));
    }

    /// Lets them go on.
    pub(crate) fn release(self) {
        self.1.released.notify_one();
    }
}

impl Stage {
    /// Holds up whoever comes next to this point.
    pub(crate) fn hold(&self, point: Point) -> Hold {
        let held = Arc::new(Held::default());
        self.inner
            .holds
            .lock()
            .unwrap()
            .push((point, Arc::clone(&held)));
        Hold(point, held)
    }

    /// Stands still here if somebody wants that.
    pub(crate) async fn pass(&self, point: Point) {
        let held = {
            let mut holds = self.inner.holds.lock().unwrap();
            let at = holds.iter().position(|(held_at, _)| *held_at == point);
            at.map(|at| holds.remove(at).1)
        };
        if let Some(held) = held {
            held.reached.notify_one();
            held.released.notified().await;
        }
    }

    /// From now on the agent of the machine in this folder is hostile.
    pub(crate) fn turn(&self, run_dir: &Path, malice: Malice) {
        let mut turned = self.inner.turned.lock().unwrap();
        turned.insert(run_dir.to_owned(), malice);
    }

    /// The agent of the machine in this folder is ours again.
    pub(crate) fn turn_back(&self, run_dir: &Path) {
        self.inner.turned.lock().unwrap().remove(run_dir);
    }

    /// The machines in this folder that have not ended; more than one is an error of whoever made them.
    pub(crate) fn alive(&self, run_dir: &Path) -> Vec<Arc<dyn Instance>> {
        let machines = self.inner.machines.lock().unwrap();
        let here = machines
            .iter()
            .filter(|(dir, machine)| dir == run_dir && !has_ended(&**machine));
        here.map(|(_, machine)| Arc::clone(machine)).collect()
    }

    /// How often what was left in this folder was to be ended.
    pub(crate) fn reaps(&self, run_dir: &Path) -> usize {
        let reaped = self.inner.reaped.lock().unwrap();
        reaped.iter().filter(|dir| *dir == run_dir).count()
    }

    fn show(&self, run_dir: &Path, machine: Box<dyn Instance>) -> Box<dyn Instance> {
        let machine: Arc<dyn Instance> = Arc::from(machine);
        let mut machines = self.inner.machines.lock().unwrap();
        machines.retain(|(_, machine)| !has_ended(&**machine));
        machines.push((run_dir.to_owned(), Arc::clone(&machine)));
        drop(machines);
        Box::new(Actor {
            machine,
            run_dir: run_dir.to_owned(),
            stage: self.clone(),
        })
    }
}

#[async_trait]
impl Vmm for Stage {
    fn name(&self) -> &'static str {
        self.fake.name()
    }

    async fn boot(&self, spec: &BootSpec) -> Result<Box<dyn Instance>, VmmError> {
        Ok(self.show(&spec.run_dir, self.fake.boot(spec).await?))
    }

    async fn restore(&self, spec: &RestoreSpec) -> Result<Box<dyn Instance>, VmmError> {
        self.pass(Point::BeforeRestore).await;
        let machine = self.show(&spec.run_dir, self.fake.restore(spec).await?);
        self.pass(Point::AfterRestore).await;
        Ok(machine)
    }

    async fn adopt(&self, run_dir: &Path) -> Result<Option<Box<dyn Instance>>, VmmError> {
        let found = self.fake.adopt(run_dir).await?;
        Ok(found.map(|machine| -> Box<dyn Instance> {
            Box::new(Actor {
                machine: Arc::from(machine),
                run_dir: run_dir.to_owned(),
                stage: self.clone(),
            })
        }))
    }

    async fn reap(&self, run_dir: &Path) -> Result<(), VmmError> {
        self.inner.reaped.lock().unwrap().push(run_dir.to_owned());
        self.pass(Point::BeforeReap).await;
        self.fake.reap(run_dir).await?;
        self.pass(Point::AfterReap).await;
        Ok(())
    }
}

/// A machine on the stage.
#[derive(Debug)]
struct Actor {
    machine: Arc<dyn Instance>,
    run_dir: PathBuf,
    stage: Stage,
}

#[async_trait]
impl Instance for Actor {
    fn pid(&self) -> Option<u32> {
        self.machine.pid()
    }

    async fn resume(&self) -> Result<(), VmmError> {
        self.stage.pass(Point::BeforeResume).await;
        self.machine.resume().await?;
        self.stage.pass(Point::AfterResume).await;
        Ok(())
    }

    async fn pause(&self) -> Result<(), VmmError> {
        self.machine.pause().await
    }

    async fn snapshot_golden(&self, state: &Path) -> Result<(), VmmError> {
        self.machine.snapshot_golden(state).await
    }

    async fn snapshot_delta(&self, files: &DeltaFiles) -> Result<DeltaStats, VmmError> {
        self.stage.pass(Point::BeforeSnapshot).await;
        let stats = self.machine.snapshot_delta(files).await?;
        self.stage.pass(Point::AfterSnapshot).await;
        Ok(stats)
    }

    async fn touched_pages(&self) -> Result<Vec<Range<u64>>, VmmError> {
        self.machine.touched_pages().await
    }

    async fn switch_disk(&self, overlay: &Path) -> Result<(), VmmError> {
        self.machine.switch_disk(overlay).await
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, VmmError> {
        self.stage.pass(Point::BeforeConnect).await;
        let malice = self
            .stage
            .inner
            .turned
            .lock()
            .unwrap()
            .get(&self.run_dir)
            .copied();
        if let Some(malice) = malice {
            return Ok(Box::new(malice.connect(Arc::default())));
        }
        let stream = self.machine.connect().await?;
        Ok(Box::new(Wire {
            stream,
            machine: Arc::clone(&self.machine),
        }))
    }

    async fn exited(&self) -> ExitReason {
        self.machine.exited().await
    }

    async fn kill(&self) -> Result<(), VmmError> {
        self.machine.kill().await
    }
}

/// A connection as a network makes it: when the machine is gone it neither ends nor fails, it is silent.
struct Wire<S> {
    stream: S,
    machine: Arc<dyn Instance>,
}

impl<S: Stream> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() == before && has_ended(&*self.machine) {
            return Poll::Pending;
        }
        result
    }
}

impl<S: Stream> AsyncWrite for Wire<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if has_ended(&*self.machine) {
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

fn has_ended(machine: &dyn Instance) -> bool {
    machine.exited().now_or_never().is_some()
}
