//! What a test works with: a data directory, a golden snapshot, a store, and daemons that come and go.

use crate::journal::Journal;
use crate::stage::Stage;
use dormouse_core::egress::Egress;
use dormouse_core::guest::{self, ProcessSpec, ShellSpec};
use dormouse_core::hook::Hooks;
use dormouse_core::microvm::{Event, IdlePolicy, Record, State};
use dormouse_core::{AccountId, BuildId, EndpointId, ImageArn, MicrovmId, Timestamp, limits};
use dormouse_node::boot::BootFiles;
use dormouse_node::driver::{CommandError, Means};
use dormouse_node::gate::{GatedStream, Lease};
use dormouse_node::guest::Guest;
use dormouse_node::layers::LayerCache;
use dormouse_node::layout::{Layout, VmDir};
use dormouse_node::lifecycle::Host;
use dormouse_node::node::{Node, OpenError};
use dormouse_node::snapshot::Manifest;
use dormouse_node::vmm::{BootSpec, Stream, Vmm};
use dormouse_node::{clock, disk};
use dormouse_store::{Query, Store, Versioned};
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The port of the fake app.
pub(crate) const PORT: u16 = 8080;
/// Guest memory of the golden snapshot, in MiB.
const MEMORY_MIB: u32 = 512;

/// What outlives every daemon: files, store and machines. Clones are the same lab.
#[derive(Debug, Clone)]
pub(crate) struct Lab {
    pub(crate) stage: Stage,
    pub(crate) journal: Journal,
    pub(crate) store: Store,
    pub(crate) layout: Layout,
    pub(crate) build: BuildId,
    dir: Arc<TempDir>,
}

/// A stream into a MicroVM, as part of a request that is in flight.
pub(crate) struct Opened {
    stream: GatedStream<Box<dyn Stream>>,
    _lease: Lease,
}

/// Where a stream leads.
#[derive(Clone, Copy)]
enum Way<'a> {
    Port(u16),
    Shell(&'a ShellSpec),
}

impl AsyncRead for Opened {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Opened {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unanswered {
    #[error(transparent)]
    NotOpened(OpenError),
    #[error("broken off: {0}")]
    Broken(io::Error),
}

impl Lab {
    /// A data directory with one golden snapshot, and nothing else.
    pub(crate) fn new() -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let stage = Stage::default();
        let journal = Journal::new(stage.clone());
        let lab = Self {
            stage,
            store: Store::new(journal.clone()),
            journal,
            layout: Layout::new(dir.path()),
            build: BuildId::new(Uuid::new_v4()),
            dir,
        };
        lab.layout.create().unwrap();
        jumping_clock().block_on(lab.make_golden());
        lab
    }

    async fn make_golden(&self) {
        let build = self.layout.build(&self.build);
        let base = self.dir.path().join("images").join("base.ext4");
        std::fs::File::create(&base)
            .unwrap()
            .set_len(1 << 20)
            .unwrap();
        let run_dir = build.scratch();
        std::fs::create_dir_all(&run_dir).unwrap();
        disk::create_overlay(&base, &build.disk()).await.unwrap();
        let boot = self.boot_files();
        let spec = BootSpec {
            run_dir: run_dir.clone(),
            kernel: boot.kernel,
            initramfs: boot.initramfs,
            disk: build.disk(),
            memory_mib: MEMORY_MIB,
            vcpus: 1,
            golden_memory: Some(build.memory()),
            disks: Vec::new(),
        };
        let machine = self.stage.boot(&spec).await.unwrap();
        let guest = Guest::new(&*machine);
        guest.hello(limits::BOOT_TIMEOUT).await.unwrap();
        let app = ProcessSpec {
            argv: vec!["serve".to_owned()],
            env: Vec::new(),
            cwd: "/".to_owned(),
            user: String::new(),
            timeout_s: None,
        };
        guest.start_app(&app.into()).await.unwrap();
        guest.freeze().await.unwrap();
        machine.snapshot_golden(&build.state()).await.unwrap();
        machine.kill().await.unwrap();
        self.stage.reap(&run_dir).await.unwrap();
        self.manifest().save(&build).await.unwrap();
    }

    /// The manifest of the golden snapshot.
    pub(crate) fn manifest(&self) -> Manifest {
        Manifest {
            format: Manifest::FORMAT,
            vmm: self.stage.name().to_owned(),
            boot: self.boot_files().hash,
            memory_mib: MEMORY_MIB,
            vcpus: 1,
            agent_generation: guest::GENERATION,
            working_set_pages: None,
            checksums: None,
        }
    }

    fn boot_files(&self) -> BootFiles {
        let dir = self.layout.boot().join("fake");
        BootFiles {
            hash: "fake".to_owned(),
            kernel: dir.join("vmlinuz"),
            initramfs: dir.join("initramfs"),
        }
    }

    /// A MicroVM to be, without an idle policy.
    pub(crate) fn record(&self) -> Record {
        Record {
            id: MicrovmId::new(Uuid::new_v4()),
            account: AccountId::parse("000000000000").unwrap(),
            endpoint: EndpointId::new(Uuid::new_v4()),
            image: ImageArn {
                region: "us-east-1".to_owned(),
                account: "000000000000".to_owned(),
                name: "app".to_owned(),
            },
            image_version: "1.0".to_owned(),
            build: self.build.clone(),
            memory_mib: MEMORY_MIB,
            state: State::Pending,
            state_reason: None,
            started_at: clock::now(),
            suspended_at: None,
            terminated_at: None,
            max_duration_s: limits::LIFETIME_MAX_S,
            idle_policy: None,
            ingress_connectors: Vec::new(),
            egress_connectors: Vec::new(),
            egress: Egress::default(),
            execution_role: None,
            hooks: Hooks::default(),
            run_hook_payload: None,
        }
    }

    /// A MicroVM to be with this policy.
    pub(crate) fn with_policy(&self, idle_policy: IdlePolicy) -> Record {
        Record {
            idle_policy: Some(idle_policy),
            ..self.record()
        }
    }

    /// The data directory.
    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }

    /// The records of all MicroVMs that there ever were.
    pub(crate) async fn rows(&self) -> Vec<Record> {
        let (mut rows, mut query) = (Vec::new(), Query::default());
        loop {
            let page = self.store.list::<Record>(&query).await.unwrap();
            let Some(last) = page.last() else {
                return rows;
            };
            query.after = Some(last.seq);
            rows.extend(page.into_iter().map(|row| row.value));
        }
    }

    /// Folder of a MicroVM.
    pub(crate) fn dir(&self, vm: &Record) -> VmDir {
        self.layout.vm(&vm.id)
    }

    /// A daemon's life on a clock that jumps to the next timer when nothing else is left to do. Ends as by
    /// `kill -9` wherever things stand when `work` is done.
    pub(crate) fn day<T>(&self, work: impl AsyncFnOnce(Daemon) -> T) -> T {
        self.live(&jumping_clock(), Duration::from_secs(4 * 3600), work)
    }

    /// A daemon's life in real time on two threads, ended as by `kill -9`.
    pub(crate) fn real_day<T>(&self, work: impl AsyncFnOnce(Daemon) -> T) -> T {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        self.live(&runtime, Duration::from_secs(30), work)
    }

    /// What happens while no daemon runs.
    pub(crate) fn night<T>(&self, work: impl AsyncFnOnce() -> T) -> T {
        jumping_clock().block_on(work())
    }

    fn live<T>(
        &self,
        runtime: &Runtime,
        patience: Duration,
        work: impl AsyncFnOnce(Daemon) -> T,
    ) -> T {
        runtime.block_on(async {
            let means = Arc::new(Means {
                host: Host {
                    layout: self.layout.clone(),
                    vmm: Arc::new(self.stage.clone()),
                    boot: self.boot_files(),
                    layers: Arc::new(LayerCache::new(&self.layout.layers())),
                },
                store: self.store.clone(),
                transitions: Semaphore::new(limits::TRANSITIONS_AT_ONCE),
                stop: CancellationToken::new(),
            });
            let node = Node::start(Arc::clone(&means)).await.unwrap();
            work(Daemon {
                node,
                means,
                lab: self.clone(),
                patience,
            })
            .await
        })
    }

    /// Checks what must hold for every MicroVM whenever nothing is going on.
    pub(crate) async fn assert_at_rest(&self) {
        for vm in self.rows().await {
            let dir = self.dir(&vm);
            let alive = self.stage.alive(dir.path()).len();
            let has = |path: &Path| path.try_exists().unwrap();
            let kept = has(&dir.suspended());
            let history = self.journal.states(&vm);
            match vm.state {
                State::Running => {
                    assert_eq!(alive, 1, "a running microvm has one machine: {history:?}");
                    assert!(!kept, "a running microvm has no snapshot: {history:?}");
                }
                State::Suspended => {
                    assert_eq!(alive, 0, "a suspended microvm has no machine: {history:?}");
                    assert!(kept, "a suspended microvm has its snapshot: {history:?}");
                    assert!(has(&dir.suspended().join("state")), "with device state");
                    assert!(has(&dir.suspended().join("memory")), "with memory");
                    assert!(has(&dir.disk()), "and its disk");
                }
                State::Terminated => {
                    assert_eq!(alive, 0, "a terminated microvm has no machine: {history:?}");
                    assert!(
                        !has(dir.path()),
                        "a terminated microvm has no folder: {history:?}"
                    );
                    assert!(vm.state_reason.is_some(), "a terminated microvm says why");
                    assert!(vm.terminated_at.is_some(), "and when");
                }
                state => panic!("{state:?} is no state to rest in: {history:?}"),
            }
            assert!(
                !has(&dir.suspending()),
                "no half a snapshot is left: {history:?}"
            );
            assert!(
                !has(&dir.consumed()),
                "no used snapshot is left: {history:?}"
            );
        }
    }
}

/// A runtime whose clock jumps to the next timer when nothing else is left to do.
fn jumping_clock() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
}

/// A daemon that lives now.
#[derive(Debug, Clone)]
pub(crate) struct Daemon {
    pub(crate) node: Arc<Node>,
    pub(crate) means: Arc<Means>,
    pub(crate) lab: Lab,
    patience: Duration,
}

impl Deref for Daemon {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

impl Daemon {
    /// Stores a MicroVM and hands it to its driver.
    pub(crate) async fn launch(&self, record: Record) -> Record {
        let row = self.store.insert(record.clone()).await.unwrap();
        self.node.take(row);
        record
    }

    /// Launches a MicroVM and waits until it runs.
    pub(crate) async fn running(&self, record: Record) -> Record {
        let vm = self.launch(record).await;
        self.until(&vm, State::Running).await
    }

    /// Launches a MicroVM, has its app count to `count` and suspends it.
    pub(crate) async fn suspended(&self, record: Record, count: u64) -> Record {
        let vm = self.running(record).await;
        self.count_to(&vm, count).await;
        self.suspend(&vm).await
    }

    /// Has the app of a MicroVM count up to `count` in memory.
    pub(crate) async fn count_to(&self, vm: &Record, count: u64) {
        for _ in 0..count {
            self.ask(vm, "POST /count").await.unwrap();
        }
        assert_eq!(self.count(vm).await, count);
    }

    /// The number in the memory of the app.
    pub(crate) async fn count(&self, vm: &Record) -> u64 {
        self.ask(vm, "GET /count").await.unwrap().parse().unwrap()
    }

    /// Suspends a running MicroVM.
    pub(crate) async fn suspend(&self, vm: &Record) -> Record {
        self.command(vm, Event::SuspendRequested).await.unwrap();
        self.until(vm, State::Suspended).await
    }

    /// Puts a wish to a MicroVM.
    pub(crate) async fn command(&self, vm: &Record, event: Event) -> Result<(), CommandError> {
        self.node.command(&vm.id, event).await
    }

    /// Terminates a MicroVM and waits for its end.
    pub(crate) async fn terminate(&self, vm: &Record) -> Record {
        self.command(vm, Event::TerminateRequested).await.unwrap();
        self.until(vm, State::Terminated).await
    }

    /// Opens a stream to the app.
    pub(crate) async fn open(&self, vm: &Record) -> Result<Opened, OpenError> {
        self.open_port(vm, PORT).await
    }

    /// Opens a stream to a port of the MicroVM as the proxy does.
    pub(crate) async fn open_port(&self, vm: &Record, port: u16) -> Result<Opened, OpenError> {
        self.open_way(vm, Way::Port(port)).await
    }

    /// Opens a shell in the MicroVM as the proxy does.
    pub(crate) async fn open_shell(
        &self,
        vm: &Record,
        spec: &ShellSpec,
    ) -> Result<Opened, OpenError> {
        self.open_way(vm, Way::Shell(spec)).await
    }

    async fn open_way(&self, vm: &Record, way: Way<'_>) -> Result<Opened, OpenError> {
        for _ in 0..limits::OPEN_ATTEMPTS {
            let lease = self.node.enter(&vm.endpoint).await?;
            let opened = match way {
                Way::Port(port) => lease.connect(port).await,
                Way::Shell(spec) => lease.shell(spec).await,
            };
            match opened {
                Err(OpenError::Gone) => {}
                Err(error) => return Err(error),
                Ok(stream) => {
                    return Ok(Opened {
                        stream,
                        _lease: lease,
                    });
                }
            }
        }
        Err(OpenError::WakeFailed)
    }

    /// Opens a stream to the app and closes it again.
    pub(crate) async fn knock(&self, vm: &Record) -> Result<(), OpenError> {
        self.open(vm).await.map(drop)
    }

    /// Asks the app something, as in `GET /count`, and answers with the body of its answer.
    pub(crate) async fn ask(&self, vm: &Record, request: &str) -> Result<String, Unanswered> {
        let mut stream = self.open(vm).await.map_err(Unanswered::NotOpened)?;
        exchange(&mut stream, request)
            .await
            .map_err(Unanswered::Broken)
    }

    /// The stored record of a MicroVM.
    pub(crate) async fn stored(&self, vm: &Record) -> Versioned<Record> {
        self.store.get(vm.id.as_str()).await.unwrap().unwrap()
    }

    /// Waits until a MicroVM is in this state.
    pub(crate) async fn until(&self, vm: &Record, state: State) -> Record {
        let mut changes = self.journal.changes();
        let reached = async {
            loop {
                changes.mark_unchanged();
                let record = self.stored(vm).await.value;
                if record.state == state {
                    return record;
                }
                changes.changed().await.unwrap();
            }
        };
        let reached = timeout(self.patience, reached).await;
        reached.unwrap_or_else(|_| panic!("not {state:?}, but {:?}", self.journal.states(vm)))
    }

    /// Waits until a MicroVM has come into this state so many times.
    pub(crate) async fn until_count(&self, vm: &Record, state: State, count: usize) {
        let mut changes = self.journal.changes();
        let reached = async {
            while self.journal.count(vm, state) < count {
                changes.changed().await.unwrap();
            }
        };
        let reached = timeout(self.patience, reached).await;
        reached.unwrap_or_else(|_| panic!("not {state:?} {count} times"));
    }

    /// Waits until no MicroVM is between two states.
    pub(crate) async fn at_rest(&self) {
        // What has just happened comes to its driver's ears; on a clock that jumps, all of it.
        sleep(Duration::from_millis(1)).await;
        let mut changes = self.journal.changes();
        for vm in self.rows().await {
            let rest = async {
                loop {
                    changes.mark_unchanged();
                    let state = self.stored(&vm).await.value.state;
                    if matches!(state, State::Running | State::Suspended | State::Terminated) {
                        return;
                    }
                    changes.changed().await.unwrap();
                }
            };
            let rested = timeout(self.patience, rest).await;
            rested.unwrap_or_else(|_| panic!("no rest: {:?}", self.journal.states(&vm)));
        }
    }
}

/// One request and its answer's body on a stream of its own.
pub(crate) async fn exchange(stream: &mut Opened, request: &str) -> io::Result<String> {
    let head = format!("{request} HTTP/1.1\r\nhost: app\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.to_owned()),
        _ => Err(io::Error::other(format!("no answer but {answer:?}"))),
    }
}

/// So many milliseconds before now.
pub(crate) fn ago(ms: u64) -> Timestamp {
    Timestamp(clock::now().0 - ms)
}
