//! The contract on real machines, and what only they can do.

use crate::contract;
use crate::lab::Lab;
use dormouse_core::guest::ProcessSpec;
use dormouse_node::host::jail::Jailer;
use dormouse_node::host::slot::{SlotConfig, SlotPool};
use dormouse_node::vmm::probe;
use dormouse_node::vmm::qemu::{Accel, Qemu};
use dormouse_node::vmm::{Vmm, initramfs};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// Counts in memory and on disk, and ticks.
const APP: &str = r#"
import http.server, os, threading, time

count = ticks = 0
os.makedirs("/data", exist_ok=True)

def tick():
    global ticks
    while True:
        ticks += 1
        time.sleep(0.005)

class App(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        global count
        count += 1
        with open("/data/count", "w") as file:
            file.write(str(count))
            file.flush()
            os.fsync(file.fileno())
        self.answer(count)

    def do_GET(self):
        self.answer(ticks)

    def answer(self, value):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(value).encode())

threading.Thread(target=tick, daemon=True).start()
http.server.ThreadingHTTPServer(("127.0.0.1", 8080), App).serve_forever()
"#;

fn assets() -> PathBuf {
    let dir = std::env::var_os("DORMOUSE_TEST_ASSETS").expect(
        "DORMOUSE_TEST_ASSETS must name a folder with vmlinuz, modules/, agent and base/debian-12.ext4 \
         for the QEMU tests; to leave them out, run nextest with -E 'not test(/qemu/)'",
    );
    PathBuf::from(dir)
}

fn accel() -> Accel {
    match std::env::var("DORMOUSE_TEST_ACCEL").as_deref() {
        Ok("kvm") => Accel::Kvm,
        Ok("tcg") | Err(_) => Accel::Tcg,
        Ok(other) => panic!("DORMOUSE_TEST_ACCEL is {other}, not tcg or kvm"),
    }
}

fn pack_initramfs(assets: &Path, dir: &Path) -> PathBuf {
    let packed = initramfs::pack(&assets.join("agent"), &assets.join("modules")).unwrap();
    let path = dir.join("initramfs");
    std::fs::write(&path, packed).unwrap();
    path
}

fn jailer(assets: &Path, dir: &Path) -> Jailer {
    let program = Path::new("qemu-system-x86_64");
    Jailer::install(&assets.join("dormouse-jail"), program, &dir.join("jail")).unwrap()
}

fn kill_from_outside(_: &Lab, machine: &dyn dormouse_node::vmm::Instance, _: &Path) {
    let pid = Pid::from_raw(machine.pid().unwrap() as i32).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

/// Runs `work` with a lab on QEMU and clean slots before and after.
async fn with_lab(owner: &str, work: impl AsyncFnOnce(&Lab, &Qemu)) {
    let assets = assets();
    let dir = tempfile::tempdir().unwrap();
    let slots = SlotPool::start(SlotConfig {
        warm: 2,
        ..SlotConfig::new(owner)
    })
    .await
    .unwrap();
    slots.release_orphans(&HashSet::new()).await.unwrap();
    let foundations = vec![dir.path().to_owned(), assets.join("base")];
    let qemu = Arc::new(Qemu::new(
        jailer(&assets, dir.path()),
        accel(),
        slots.clone(),
        foundations,
    ));
    let lab = Lab {
        vmm: qemu.clone(),
        kernel: assets.join("vmlinuz"),
        initramfs: pack_initramfs(&assets, dir.path()),
        base_disk: assets.join("base/debian-12.ext4"),
        crash: kill_from_outside,
        app: ProcessSpec {
            argv: ["python3", "-c", APP].map(str::to_owned).to_vec(),
            env: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
            cwd: "/".to_owned(),
            user: String::new(),
            timeout_s: None,
        },
        dir: dir.path().to_owned(),
    };
    lab.clean_up_after(work(&lab, &qemu)).await;
    slots.stop().await;
    let left = slots.release_orphans(&HashSet::new()).await.unwrap();
    assert_eq!(left, 0, "slots were left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_contract() {
    with_lab("vmmc", async |lab, _| contract::all(lab).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_that_ends_as_it_is_adopted_leaves_no_slot() {
    with_lab("vmma", async |lab, qemu| {
        let vm = lab.boot("ending", None).await;
        let pid = Pid::from_raw(vm.machine.pid().unwrap() as i32).unwrap();
        drop(vm.machine);
        // It takes the connection and says nothing more.
        kill_process(pid, Signal::STOP).unwrap();
        let end = async {
            sleep(Duration::from_millis(500)).await;
            kill_process(pid, Signal::KILL).unwrap();
        };
        let (adopted, ()) = tokio::join!(qemu.adopt(&vm.run_dir), end);
        assert!(adopted.unwrap().is_none());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_that_was_being_started_is_reaped_although_somebody_holds_its_predecessor() {
    with_lab("vmmh", async |lab, qemu| {
        let spec = lab.boot_spec("successor", None).await;
        let predecessor = qemu.boot(&spec).await.unwrap();
        qemu.reap(&spec.run_dir).await.unwrap();
        let pid = tokio::select! {
            _ = qemu.boot(&spec) => panic!("it started before it was recorded"),
            pid = recorded_pid(&spec.run_dir) => pid,
        };
        qemu.reap(&spec.run_dir).await.unwrap();
        assert!(kill_process(pid, Signal::KILL).is_err(), "it runs");
        drop(predecessor);
    })
    .await;
}

/// Waits until a folder tells of a process.
async fn recorded_pid(run_dir: &Path) -> Pid {
    loop {
        let record = std::fs::read(run_dir.join("machine.json")).unwrap_or_default();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap_or_default();
        if let Some(pid) = record["process"]["pid"].as_i64() {
            return Pid::from_raw(pid as i32).unwrap();
        }
        sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_that_cannot_be_recorded_is_not_started() {
    with_lab("vmmr", async |lab, qemu| {
        let spec = lab.boot_spec("unrecorded", None).await;
        std::fs::create_dir(spec.run_dir.join("machine.json.tmp")).unwrap();
        qemu.boot(&spec).await.unwrap_err();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_keeps_the_end_of_the_console() {
    with_lab("vmmo", async |lab, qemu| {
        let vm = lab.boot("talker", None).await;
        let printed = qemu.console(&vm.run_dir).await.unwrap();
        assert!(!printed.is_empty(), "nothing on the console");
        vm.machine.kill().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_suspend_on_a_full_disk_says_so() {
    with_lab("vmmf", async |lab, _| {
        let golden = lab.golden().await;
        let vm = lab.launch(&golden, "full").await;
        vm.count().await;
        let small = lab.dir.join("small");
        std::fs::create_dir(&small).unwrap();
        let mounted = SmallDisk::mount(&small);
        vm.guest().freeze().await.unwrap();
        for name in ["small/full", "small/again"] {
            let error = vm
                .machine
                .snapshot_delta(&lab.delta_files(name))
                .await
                .unwrap_err();
            assert!(
                error.is_disk_full(),
                "{error}: {:?}",
                std::error::Error::source(&error)
            );
        }
        drop(mounted);
        vm.run().await;
        assert_eq!(vm.count().await, 2);
        vm.machine.kill().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_probe_finds_what_runs() {
    let assets = assets();
    let dir = tempfile::tempdir().unwrap();
    let initramfs = pack_initramfs(&assets, dir.path());
    let probe = probe::accel(
        &jailer(&assets, dir.path()),
        &assets.join("vmlinuz"),
        &initramfs,
        dir.path(),
    )
    .await;
    println!("{probe:?}");
    assert!(!probe.reason.is_empty());
    if accel() == Accel::Kvm {
        assert_eq!(probe.accel, Accel::Kvm, "{}", probe.reason);
    }
}

/// A file system with little room.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(path: &'a Path) -> Self {
        let flags = rustix::mount::MountFlags::empty();
        let options = c"size=64k";
        rustix::mount::mount("tmpfs", path, "tmpfs", flags, Some(options)).unwrap();
        Self(path)
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::DETACH;
        rustix::mount::unmount(self.0, flags).unwrap();
    }
}
