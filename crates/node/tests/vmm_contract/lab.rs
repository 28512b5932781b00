//! What a contract test works with: a backend, something to boot, and folders that are cleaned up.

use dormouse_core::egress::Egress;
use dormouse_core::guest::{AppState, ExecSpec, ProcessSpec, ThawSpec};
use dormouse_node::disk;
use dormouse_node::guest::Guest;
use dormouse_node::vmm::{BootSpec, DeltaFiles, Instance, RestoreSpec, StateSource, Vmm, VmmError};
use futures_util::FutureExt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

/// The port of the app.
const PORT: u16 = 8080;
/// Time for anything that takes milliseconds on idle hardware.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A backend and what its machines start from.
pub(crate) struct Lab {
    pub(crate) vmm: Arc<dyn Vmm>,
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    pub(crate) base_disk: PathBuf,
    /// Ends a machine as a bug in its VMM would.
    pub(crate) crash: fn(&Lab, &dyn Instance, &Path),
    pub(crate) app: ProcessSpec,
    pub(crate) dir: PathBuf,
}

/// A golden snapshot.
pub(crate) struct Golden {
    pub(crate) memory: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) disk: PathBuf,
}

/// A machine and where it lives.
pub(crate) struct Vm {
    pub(crate) machine: Box<dyn Instance>,
    pub(crate) run_dir: PathBuf,
}

const MEMORY_MIB: u32 = 512;

impl Lab {
    /// Runs `work`, then ends whatever machine is left, whether it succeeded or not.
    pub(crate) async fn clean_up_after(&self, work: impl Future<Output = ()>) {
        let result = AssertUnwindSafe(work).catch_unwind().await;
        for entry in std::fs::read_dir(&self.dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                self.vmm.reap(&entry.path()).await.unwrap();
            }
        }
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    }

    pub(crate) fn run_dir(&self, name: &str) -> PathBuf {
        let path = self.dir.join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    pub(crate) async fn boot_spec(&self, name: &str, golden_memory: Option<PathBuf>) -> BootSpec {
        let disk = self.dir.join(format!("{name}.qcow2"));
        disk::create_overlay(&self.base_disk, &disk).await.unwrap();
        BootSpec {
            run_dir: self.run_dir(name),
            kernel: self.kernel.clone(),
            initramfs: self.initramfs.clone(),
            disk,
            memory_mib: MEMORY_MIB,
            vcpus: 2,
            golden_memory,
            disks: Vec::new(),
        }
    }

    pub(crate) async fn boot(&self, name: &str, golden_memory: Option<PathBuf>) -> Vm {
        let spec = self.boot_spec(name, golden_memory).await;
        let began = Instant::now();
        let vm = Vm {
            machine: self.vmm.boot(&spec).await.unwrap(),
            run_dir: spec.run_dir,
        };
        vm.guest().hello(Duration::from_secs(120)).await.unwrap();
        report("boot to agent", began);
        vm
    }

    /// Boots, starts the app, freezes it and snapshots the machine.
    pub(crate) async fn golden(&self) -> Golden {
        let golden = Golden {
            memory: self.dir.join("golden.memory"),
            state: self.dir.join("golden.state"),
            disk: self.dir.join("golden.qcow2"),
        };
        let vm = self.boot("golden", Some(golden.memory.clone())).await;
        vm.guest()
            .start_app(&self.app.clone().into())
            .await
            .unwrap();
        vm.app_answers().await;
        vm.guest().freeze().await.unwrap();
        let began = Instant::now();
        vm.machine.snapshot_golden(&golden.state).await.unwrap();
        report("golden snapshot", began);
        vm.machine.kill().await.unwrap();
        golden
    }

    pub(crate) fn restore_spec(
        &self,
        golden: &Golden,
        name: &str,
        state: StateSource,
    ) -> RestoreSpec {
        RestoreSpec {
            run_dir: self.run_dir(name),
            disk: self.dir.join(format!("{name}.qcow2")),
            memory_mib: MEMORY_MIB,
            vcpus: 2,
            golden_memory: golden.memory.clone(),
            golden_disk: golden.disk.clone(),
            state,
            egress: Egress::internet(),
        }
    }

    /// A machine with a new disk from the golden snapshot; paused.
    pub(crate) async fn launch_paused(&self, golden: &Golden, name: &str) -> Vm {
        let spec = self.restore_spec(golden, name, StateSource::Golden(golden.state.clone()));
        disk::create_overlay(&golden.disk, &spec.disk)
            .await
            .unwrap();
        let began = Instant::now();
        let machine = self.vmm.restore(&spec).await.unwrap();
        report("restore, until paused", began);
        Vm {
            machine,
            run_dir: spec.run_dir,
        }
    }

    /// A machine with a new disk from the golden snapshot; its app runs.
    pub(crate) async fn launch(&self, golden: &Golden, name: &str) -> Vm {
        let vm = self.launch_paused(golden, name).await;
        vm.run().await;
        vm
    }

    /// Freezes, keeps and ends a machine.
    pub(crate) async fn suspend(&self, vm: &Vm, name: &str) -> DeltaFiles {
        let files = self.delta_files(name);
        vm.guest().freeze().await.unwrap();
        let began = Instant::now();
        let stats = vm.machine.snapshot_delta(&files).await.unwrap();
        report(&format!("delta snapshot of {} pages", stats.pages), began);
        assert!(stats.pages > 0);
        self.vmm.reap(&vm.run_dir).await.unwrap();
        files
    }

    pub(crate) fn delta_files(&self, name: &str) -> DeltaFiles {
        let file = |kind| self.dir.join(format!("{name}.delta.{kind}"));
        DeltaFiles {
            state: file("state"),
            memory: file("memory"),
        }
    }

    /// A machine that was suspended; its app runs.
    pub(crate) async fn wake(&self, golden: &Golden, name: &str, files: &DeltaFiles) -> Vm {
        let vm = self.try_wake(golden, name, files).await.unwrap();
        vm.run().await;
        vm
    }

    pub(crate) async fn try_wake(
        &self,
        golden: &Golden,
        name: &str,
        files: &DeltaFiles,
    ) -> Result<Vm, VmmError> {
        let spec = self.restore_spec(golden, name, StateSource::Delta(files.clone()));
        let began = Instant::now();
        let machine = self.vmm.restore(&spec).await?;
        report("restore of a delta, until paused", began);
        Ok(Vm {
            machine,
            run_dir: spec.run_dir,
        })
    }
}

impl Vm {
    pub(crate) fn guest(&self) -> Guest<'_> {
        Guest::new(&*self.machine)
    }

    /// Runs a restored machine and thaws its app.
    pub(crate) async fn run(&self) {
        let began = Instant::now();
        self.machine.resume().await.unwrap();
        self.guest().hello(PATIENCE).await.unwrap();
        self.thaw().await;
        report("resume to thawed", began);
    }

    pub(crate) async fn thaw(&self) {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let spec = ThawSpec {
            wall_clock_ns: now.as_nanos() as u64,
            entropy_hex: "5a".repeat(64),
            hostname: "contract".to_owned(),
        };
        self.guest().thaw(&spec).await.unwrap();
        assert_eq!(self.guest().app().await.unwrap().state, AppState::Running);
    }

    /// Counts in the app's memory and on its disk.
    pub(crate) async fn count(&self) -> u64 {
        self.http("POST", "/count").await.parse().unwrap()
    }

    /// How far the app has come: grows while it runs.
    pub(crate) async fn ticks(&self) -> u64 {
        self.http("GET", "/ticks").await.parse().unwrap()
    }

    /// What is in the counter's file, as another process sees it.
    pub(crate) async fn count_on_disk(&self) -> String {
        self.exec(&["cat", "/data/count"]).await
    }

    /// Runs a command in the guest, and returns what it prints.
    async fn exec(&self, argv: &[&str]) -> String {
        use dormouse_node::guest::Output;
        let mut printed = Vec::new();
        let spec = ExecSpec {
            process: ProcessSpec {
                argv: argv.iter().map(|word| (*word).to_owned()).collect(),
                env: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
                cwd: "/".to_owned(),
                user: String::new(),
                timeout_s: Some(60),
            },
            mounts: Vec::new(),
            offline: false,
        };
        let output = |output| match output {
            Output::Stdout(bytes) | Output::Stderr(bytes) => printed.extend(bytes),
        };
        let exit = self.guest().exec(&spec, output).await.unwrap();
        let printed = String::from_utf8(printed).unwrap();
        assert_eq!(exit.code, 0, "{printed}");
        printed
    }

    async fn app_answers(&self) {
        let began = Instant::now();
        while let Err(error) = self.try_http("GET", "/ticks").await {
            assert!(began.elapsed() < PATIENCE, "{error}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn http(&self, method: &str, path: &str) -> String {
        match self.try_http(method, path).await {
            Ok(body) => body,
            Err(error) => {
                println!("{method} {path}: {error}");
                // What a guest does that does not answer.
                let see = "cat /proc/uptime /proc/interrupts; grep . /proc/[0-9]*/wchan";
                panic!("{}", self.exec(&["sh", "-c", see]).await);
            }
        }
    }

    async fn try_http(&self, method: &str, path: &str) -> Result<String, String> {
        let exchange = async {
            let mut stream = self
                .guest()
                .tunnel(PORT)
                .await
                .map_err(|error| error.to_string())?;
            let request = format!("{method} {path} HTTP/1.0\r\n\r\n");
            stream
                .write_all(request.as_bytes())
                .await
                .map_err(|error| error.to_string())?;
            let mut answer = String::new();
            stream
                .read_to_string(&mut answer)
                .await
                .map_err(|error| error.to_string())?;
            let (head, body) = answer.split_once("\r\n\r\n").ok_or("no body")?;
            let ok = head.split_whitespace().nth(1) == Some("200");
            ok.then(|| body.to_owned()).ok_or_else(|| head.to_owned())
        };
        timeout(PATIENCE, exchange)
            .await
            .unwrap_or_else(|_| Err("timed out".to_owned()))
    }
}

/// Prints how long something took; for people who read a test's output.
fn report(what: &str, began: Instant) {
    println!("  {what}: {:.1} ms", began.elapsed().as_secs_f64() * 1e3);
}
