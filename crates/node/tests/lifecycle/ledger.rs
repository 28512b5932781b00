//! Leaks. After thousands of random operations, ends of machines and ends of the daemon, the node holds what its
//! living MicroVMs ask for and nothing else: files, rows, machines, tasks, descriptors, turns. When the last of them
//! ends, nothing is left.
//!
//! `DORMOUSE_TEST_SEED`, which is printed, chooses the operations.

use crate::lab::{Daemon, Lab, Opened, PORT, Unanswered};
use dormouse_core::guest::ShellSpec;
use dormouse_core::hook::Hooks;
use dormouse_core::limits;
use dormouse_core::microvm::{Event, Record, State};
use dormouse_node::vmm::fake::Failure;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use uuid::Uuid;

const OPERATIONS: usize = 10_000;
const LOOK_EVERY: usize = 500;
/// MicroVMs that live at once.
const VMS_MAX: usize = 12;
/// Streams that are open at once.
const STREAMS_MAX: usize = 20;
/// Longer than the host waits for an agent, or for anything else that is over.
const SETTLED: Duration = Duration::from_secs(600);
const HOOKS: Hooks = Hooks {
    port: PORT,
    ready_s: None,
    validate_s: None,
    run_s: Some(5),
    resume_s: Some(5),
    suspend_s: Some(5),
    terminate_s: Some(5),
};

#[test]
fn nothing_is_held_but_for_the_living() {
    let seed = seed();
    println!("to repeat: DORMOUSE_TEST_SEED={seed}");
    let lab = Lab::new();
    let mut walk = Walk {
        random: Random(seed),
        bare: files(lab.root()),
        living: Vec::new(),
        ended: Vec::new(),
        done: 0,
    };
    while walk.done < OPERATIONS {
        lab.day(async |daemon| walk.day(&daemon).await);
    }
    lab.day(async |daemon| walk.end(&daemon).await);
}

fn seed() -> u64 {
    match std::env::var("DORMOUSE_TEST_SEED") {
        Ok(seed) => seed.parse().expect("a seed is a number"),
        Err(_) => Uuid::new_v4().as_u64_pair().0,
    }
}

/// Numbers that only their seed decides: SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }
}

/// What clients have under way in one daemon's day.
#[derive(Default)]
struct Clients {
    requests: Vec<JoinHandle<Result<String, Unanswered>>>,
    streams: Vec<Opened>,
}

impl Clients {
    async fn leave(&mut self) {
        self.streams.clear();
        for request in self.requests.drain(..) {
            // Whether it was answered is for others to judge.
            let _ = request.await.unwrap();
        }
    }
}

struct Walk {
    random: Random,
    /// Files of a data directory without MicroVMs.
    bare: BTreeSet<PathBuf>,
    /// MicroVMs that were not over when they were last looked at.
    living: Vec<Record>,
    ended: Vec<Record>,
    done: usize,
}

impl Walk {
    async fn day(&mut self, daemon: &Daemon) {
        let mut clients = Clients::default();
        while self.done < OPERATIONS {
            self.done += 1;
            if self.done.is_multiple_of(LOOK_EVERY) {
                clients.leave().await;
                self.look(daemon).await;
            }
            match self.random.below(100) {
                // The day ends wherever everything stands, as by `kill -9`.
                0 => return,
                1 => {
                    daemon.node.stop().await;
                    return;
                }
                choice => self.operate(daemon, &mut clients, choice).await,
            }
        }
        clients.leave().await;
    }

    async fn operate(&mut self, daemon: &Daemon, clients: &mut Clients, choice: usize) {
        if choice < 12 || self.living.is_empty() {
            return self.launch(daemon).await;
        }
        let vm = self.living[self.random.below(self.living.len())].clone();
        match choice {
            12..36 => wish(daemon, &vm, Event::SuspendRequested).await,
            36..45 => wish(daemon, &vm, Event::ResumeRequested).await,
            45..48 => wish(daemon, &vm, Event::TerminateRequested).await,
            48..72 => {
                let daemon = daemon.clone();
                let request = async move { daemon.ask(&vm, "POST /count").await };
                clients.requests.push(tokio::spawn(request));
            }
            72..78 => self.stream(daemon, clients, &vm).await,
            78..80 => daemon.stage.fake.crash(daemon.dir(&vm).path()),
            80..86 => self.fail(daemon),
            _ => sleep(Duration::from_millis(self.random.below(4) as u64)).await,
        }
    }

    async fn launch(&mut self, daemon: &Daemon) {
        self.bury(daemon).await;
        if self.living.len() < VMS_MAX {
            let hooks = match self.random.below(3) {
                0 => HOOKS,
                _ => Hooks::default(),
            };
            let record = Record {
                hooks,
                ..daemon.record()
            };
            insert(daemon, &record).await;
            self.living.push(record);
        }
    }

    /// Opens a stream that stays open, to the app or a shell.
    async fn stream(&mut self, daemon: &Daemon, clients: &mut Clients, vm: &Record) {
        if clients.streams.len() >= STREAMS_MAX {
            let oldest = self.random.below(STREAMS_MAX);
            return drop(clients.streams.swap_remove(oldest));
        }
        let shell = ShellSpec {
            terminal: None,
            command: None,
        };
        let opened = match self.random.below(2) {
            0 => daemon.open(vm).await,
            _ => daemon.open_shell(vm, &shell).await,
        };
        clients.streams.extend(opened);
    }

    /// Has something go wrong the next time that it can.
    fn fail(&mut self, daemon: &Daemon) {
        match self.random.below(6) {
            0 => daemon.stage.fake.fail_next(Failure::Restore),
            1 => daemon.stage.fake.fail_next(Failure::SnapshotDiskFull),
            2 => daemon.stage.fake.fail_next(Failure::ExitOnResume),
            3 => daemon.stage.fake.fail_next(Failure::Reap),
            4 => daemon.journal.refuse_next(1),
            _ => daemon.journal.lose_next_answer(),
        }
    }

    /// Tells the living from those that have ended since.
    async fn bury(&mut self, daemon: &Daemon) {
        for vm in std::mem::take(&mut self.living) {
            match daemon.stored(&vm).await.value {
                over if over.state == State::Terminated => self.ended.push(over),
                alive => self.living.push(alive),
            }
        }
    }

    /// Lets everything come to rest, and compares what there is with what there should be.
    async fn look(&mut self, daemon: &Daemon) {
        self.rest(daemon).await;
        let at = format!("after {} operations", self.done);
        daemon.assert_at_rest().await;
        self.assert_files(daemon, &at);
        self.assert_rows(daemon, &at).await;
        let running = self.count(State::Running);
        let fake = &daemon.stage.fake;
        assert_eq!(fake.running(), running, "machines {at}");
        assert_eq!(fake.unreaped(), 0, "remains of machines {at}");
        assert_eq!(descriptors(daemon.root()), [""; 0], "descriptors {at}");
        let turns = daemon.means.transitions.available_permits();
        assert_eq!(turns, limits::TRANSITIONS_AT_ONCE, "turns {at}");
        // Each MicroVM has a driver. That of one that runs waits for its app's end on a connection, which has a
        // task at either end.
        let tasks = || Handle::current().metrics().num_alive_tasks();
        let expected = self.living.len() + 2 * running;
        // One that has done its work may be there for a moment still; one that is held stays.
        for _ in 0..100 {
            if tasks() == expected {
                break;
            }
            sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(tasks(), expected, "tasks {at}");
    }

    async fn rest(&mut self, daemon: &Daemon) {
        // What is noticed late starts something again.
        for _ in 0..3 {
            sleep(SETTLED).await;
            daemon.at_rest().await;
        }
        self.bury(daemon).await;
    }

    fn assert_files(&self, daemon: &Daemon, at: &str) {
        let mut expected = self.bare.clone();
        for vm in &self.living {
            let dir = daemon.dir(vm);
            expected.extend([dir.path().to_owned(), dir.disk()]);
            if vm.state == State::Suspended {
                let kept = dir.suspended();
                expected.extend([kept.join("state"), kept.join("memory"), kept]);
            }
        }
        let found = files(daemon.root());
        let surplus: Vec<_> = found.difference(&expected).collect();
        let missing: Vec<_> = expected.difference(&found).collect();
        assert!(
            surplus.is_empty(),
            "files that nobody needs {at}: {surplus:#?}"
        );
        assert!(missing.is_empty(), "files that are gone {at}: {missing:#?}");
    }

    /// The rows are those of all that were ever launched, and the node knows those that live.
    async fn assert_rows(&self, daemon: &Daemon, at: &str) {
        let rows = daemon.rows().await;
        let (over, alive): (Vec<_>, Vec<_>) = rows
            .into_iter()
            .partition(|row| row.state == State::Terminated);
        assert_eq!(ids(&alive), ids(&self.living), "rows of the living {at}");
        assert_eq!(ids(&over), ids(&self.ended), "rows of the dead {at}");
        for vm in &self.living {
            assert!(daemon.node.glance(&vm.endpoint).is_some(), "{} {at}", vm.id);
        }
        for vm in &self.ended {
            assert!(daemon.node.glance(&vm.endpoint).is_none(), "{} {at}", vm.id);
        }
    }

    fn count(&self, state: State) -> usize {
        self.living.iter().filter(|vm| vm.state == state).count()
    }

    /// Ends all that live.
    async fn end(&mut self, daemon: &Daemon) {
        self.look(daemon).await;
        println!(
            "{} launched, {} live to the end, {} of them asleep",
            self.living.len() + self.ended.len(),
            self.living.len(),
            self.count(State::Suspended),
        );
        for vm in self.living.clone() {
            // A store that was told to refuse once does.
            while daemon
                .command(&vm, Event::TerminateRequested)
                .await
                .is_err()
            {}
        }
        self.look(daemon).await;
        assert!(self.living.is_empty());
        assert_eq!(files(daemon.root()), self.bare);
    }
}

/// Launches a MicroVM, however often the store refuses or its answer is lost.
async fn insert(daemon: &Daemon, record: &Record) {
    let row = loop {
        if let Ok(row) = daemon.store.insert(record.clone()).await {
            break row;
        }
        if let Some(row) = daemon.store.get(record.id.as_str()).await.unwrap() {
            break row;
        }
    };
    daemon.node.take(row);
}

/// Whether a wish is granted is the state machine's affair.
async fn wish(daemon: &Daemon, vm: &Record, event: Event) {
    drop(daemon.command(vm, event).await);
}

fn ids(vms: &[Record]) -> BTreeSet<&str> {
    vms.iter().map(|vm| vm.id.as_str()).collect()
}

/// All files and folders below a folder.
fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        }
        found.insert(path);
    }
    found
}

/// What this process has open below a folder: other tests run beside this one.
fn descriptors(folder: &Path) -> Vec<String> {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    open.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter(|target| target.starts_with(folder))
        .map(|target| target.display().to_string())
        .collect()
}
