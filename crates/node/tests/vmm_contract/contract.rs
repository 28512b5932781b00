//! What every backend must do.

use crate::lab::{Golden, Lab};
use dormouse_core::guest::AppState;
use dormouse_node::disk;
use dormouse_node::vmm::{ExitReason, StateSource, VmmError};
use std::hash::{DefaultHasher, Hasher};
use std::path::Path;
use std::time::Duration;
use tokio::time::{sleep, timeout};

const MOMENT: Duration = Duration::from_millis(400);

/// All of the contract, on one golden snapshot.
pub(crate) async fn all(lab: &Lab) {
    case(
        "machine boots, pauses, powers off",
        boots_pauses_powers_off(lab),
    )
    .await;
    case(
        "disk is cut off under a running machine",
        switches_disk(lab),
    )
    .await;
    let golden = lab.golden().await;
    let before = hashes(&golden);
    case(
        "restored machines diverge",
        restored_machines_diverge(lab, &golden),
    )
    .await;
    case(
        "nothing runs before the thaw",
        nothing_runs_before_the_thaw(lab, &golden),
    )
    .await;
    case(
        "suspend keeps everything, twice",
        suspend_keeps_everything(lab, &golden),
    )
    .await;
    case("machine is adopted", machine_is_adopted(lab, &golden)).await;
    case("crash is told from power-off", crash_is_told(lab, &golden)).await;
    case(
        "damaged delta is refused",
        damaged_delta_is_refused(lab, &golden),
    )
    .await;
    case(
        "failed suspend does no harm",
        failed_suspend_does_no_harm(lab, &golden),
    )
    .await;
    case(
        "failed restore leaves nothing",
        failed_restore_leaves_nothing(lab, &golden),
    )
    .await;
    case("reap is idempotent", reap_is_idempotent(lab, &golden)).await;
    assert_eq!(before, hashes(&golden), "golden files were written to");
}

async fn case(name: &str, work: impl Future<Output = ()>) {
    println!("{name}");
    work.await;
}

async fn boots_pauses_powers_off(lab: &Lab) {
    let vm = lab.boot("plain", None).await;
    let hello = vm.guest().hello(MOMENT).await.unwrap();
    assert_eq!(hello.app.state, AppState::Absent);

    vm.machine.pause().await.unwrap();
    vm.machine.pause().await.unwrap();
    assert!(
        timeout(MOMENT, vm.guest().app()).await.is_err(),
        "a paused machine answered"
    );
    vm.machine.resume().await.unwrap();
    vm.machine.resume().await.unwrap();
    vm.guest().hello(crate::lab::PATIENCE).await.unwrap();

    vm.guest().power_off().await.unwrap();
    let reason = timeout(crate::lab::PATIENCE, vm.machine.exited())
        .await
        .unwrap();
    assert_eq!(reason, ExitReason::PoweredOff);
    assert!(vm.machine.connect().await.is_err());
    assert!(vm.machine.resume().await.is_err());
    vm.machine.kill().await.unwrap();
    vm.machine.kill().await.unwrap();
    assert_eq!(vm.machine.exited().await, ExitReason::PoweredOff);
}

async fn switches_disk(lab: &Lab) {
    let vm = lab.boot("layers", None).await;
    let (bottom, middle) = (lab.dir.join("layers.qcow2"), lab.dir.join("layers-1.qcow2"));
    let top = lab.dir.join("layers-2.qcow2");
    let mut sealed = Vec::new();
    for (below, overlay) in [(&bottom, &middle), (&middle, &top)] {
        vm.guest().start_app(&lab.app.clone().into()).await.ok();
        vm.guest().freeze_disk().await.unwrap();
        vm.machine.switch_disk(overlay).await.unwrap();
        vm.guest().thaw_disk().await.unwrap();
        sealed.push((below, hash(below)));
    }
    assert!(
        vm.machine.switch_disk(&middle).await.is_err(),
        "an existing disk was taken"
    );
    // Writes land in the top layer only.
    let listens = async {
        while vm.guest().tunnel(8080).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(crate::lab::PATIENCE, listens).await.unwrap();
    vm.count().await;
    vm.machine.kill().await.unwrap();
    for (disk, before) in sealed {
        assert_eq!(before, hash(disk), "{} was written to", disk.display());
    }
}

async fn restored_machines_diverge(lab: &Lab, golden: &Golden) {
    let (a, b) = tokio::join!(lab.launch(golden, "a"), lab.launch(golden, "b"));
    assert_eq!(a.count().await, 1);
    assert_eq!(a.count().await, 2);
    assert_eq!(b.count().await, 1);
    assert_eq!(a.count_on_disk().await, "2");
    assert_eq!(b.count_on_disk().await, "1");
    a.machine.kill().await.unwrap();
    assert_eq!(b.count().await, 2, "one machine's end touched another");
    b.machine.kill().await.unwrap();
}

async fn nothing_runs_before_the_thaw(lab: &Lab, golden: &Golden) {
    let vm = lab.launch_paused(golden, "frozen").await;
    assert!(
        timeout(MOMENT, vm.guest().app()).await.is_err(),
        "a paused machine answered"
    );
    vm.machine.resume().await.unwrap();
    let first = vm.guest().hello(crate::lab::PATIENCE).await.unwrap().app;
    assert_eq!(first.state, AppState::Frozen);
    sleep(MOMENT).await;
    let second = vm.guest().app().await.unwrap();
    assert_eq!(first.cpu_usec, second.cpu_usec, "a frozen app ran");
    vm.thaw().await;
    let before = vm.ticks().await;
    sleep(MOMENT).await;
    assert!(vm.ticks().await > before, "a thawed app does not run");
    vm.machine.kill().await.unwrap();
}

async fn suspend_keeps_everything(lab: &Lab, golden: &Golden) {
    let sibling = lab.launch(golden, "sibling").await;
    let mut vm = lab.launch(golden, "sleeper").await;
    for round in 1..=2 {
        assert_eq!(vm.count().await, 2 * round - 1);
        let ticks = vm.ticks().await;
        let files = lab.suspend(&vm, "sleeper").await;
        assert!(vm.machine.connect().await.is_err());
        vm = lab.wake(golden, "sleeper", &files).await;
        assert!(vm.ticks().await >= ticks, "the app began again");
        assert_eq!(vm.count().await, 2 * round);
        assert_eq!(vm.count_on_disk().await, (2 * round).to_string());
    }
    assert_eq!(
        sibling.count().await,
        1,
        "one machine's suspend touched another"
    );
    vm.machine.kill().await.unwrap();
    sibling.machine.kill().await.unwrap();
}

async fn machine_is_adopted(lab: &Lab, golden: &Golden) {
    let mut vm = lab.launch(golden, "orphan").await;
    assert_eq!(vm.count().await, 1);
    let run_dir = vm.run_dir.clone();
    drop(vm.machine);
    vm.machine = lab
        .vmm
        .adopt(&run_dir)
        .await
        .unwrap()
        .expect("the machine runs on");
    assert_eq!(vm.count().await, 2);
    // An adopted machine can do all that another can.
    let files = lab.suspend(&vm, "orphan").await;
    let vm = lab.wake(golden, "orphan", &files).await;
    assert_eq!(vm.count().await, 3);
    drop(vm.machine);
    let machine = lab
        .vmm
        .adopt(&run_dir)
        .await
        .unwrap()
        .expect("the machine runs on");
    (lab.crash)(lab, &*machine, &run_dir);
    let reason = timeout(crate::lab::PATIENCE, machine.exited())
        .await
        .unwrap();
    assert!(matches!(reason, ExitReason::Crashed(_)), "{reason:?}");
    machine.kill().await.unwrap();
    drop(machine);
    assert!(lab.vmm.adopt(&run_dir).await.unwrap().is_none());
    assert!(
        lab.vmm
            .adopt(&lab.run_dir("empty"))
            .await
            .unwrap()
            .is_none()
    );
}

async fn crash_is_told(lab: &Lab, golden: &Golden) {
    let vm = lab.launch(golden, "crash").await;
    (lab.crash)(lab, &*vm.machine, &vm.run_dir);
    let reason = timeout(crate::lab::PATIENCE, vm.machine.exited())
        .await
        .unwrap();
    assert!(matches!(reason, ExitReason::Crashed(_)), "{reason:?}");
    let error = vm.machine.connect().await.err().expect("it is gone");
    assert!(matches!(error, VmmError::Gone(_)), "{error}");
    vm.machine.kill().await.unwrap();
}

async fn damaged_delta_is_refused(lab: &Lab, golden: &Golden) {
    let vm = lab.launch(golden, "torn").await;
    vm.count().await;
    let files = lab.suspend(&vm, "torn").await;
    for path in [&files.memory, &files.state] {
        let whole = std::fs::read(path).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        let short = whole[..whole.len() - 1].to_vec();
        for damaged in [flipped, short, Vec::new()] {
            std::fs::write(path, &damaged).unwrap();
            let error = lab
                .try_wake(golden, "torn", &files)
                .await
                .err()
                .expect("it is damaged");
            assert!(matches!(error, VmmError::Damaged { .. }), "{error}");
        }
        std::fs::write(path, &whole).unwrap();
    }
    let vm = lab.wake(golden, "torn", &files).await;
    assert_eq!(vm.count().await, 2);
    vm.machine.kill().await.unwrap();
}

async fn failed_suspend_does_no_harm(lab: &Lab, golden: &Golden) {
    let vm = lab.launch(golden, "unharmed").await;
    vm.count().await;
    vm.guest().freeze().await.unwrap();
    let nowhere = lab.delta_files("no-such-folder/unharmed");
    vm.machine.snapshot_delta(&nowhere).await.unwrap_err();
    vm.run().await;
    assert_eq!(vm.count().await, 2);
    // It is whole: the next suspend succeeds.
    let files = lab.suspend(&vm, "unharmed").await;
    let vm = lab.wake(golden, "unharmed", &files).await;
    assert_eq!(vm.count().await, 3);
    vm.machine.kill().await.unwrap();
}

async fn failed_restore_leaves_nothing(lab: &Lab, golden: &Golden) {
    let state = lab.dir.join("nonsense.state");
    std::fs::write(&state, b"this is no device state").unwrap();
    let spec = lab.restore_spec(golden, "nothing", StateSource::Golden(state));
    disk::create_overlay(&golden.disk, &spec.disk)
        .await
        .unwrap();
    assert!(lab.vmm.restore(&spec).await.is_err());
    assert!(lab.vmm.adopt(&spec.run_dir).await.unwrap().is_none());
    let missing = StateSource::Golden(lab.dir.join("no-such.state"));
    let spec = lab.restore_spec(golden, "nothing", missing);
    assert!(lab.vmm.restore(&spec).await.is_err());
    assert!(lab.vmm.adopt(&spec.run_dir).await.unwrap().is_none());
}

async fn reap_is_idempotent(lab: &Lab, golden: &Golden) {
    let vm = lab.launch(golden, "reaped").await;
    lab.vmm.reap(&vm.run_dir).await.unwrap();
    lab.vmm.reap(&vm.run_dir).await.unwrap();
    assert!(vm.machine.connect().await.is_err());
    vm.machine.kill().await.unwrap();
    lab.vmm.reap(&lab.dir.join("never-there")).await.unwrap();
    // The folder of a machine whose handle is gone.
    let vm = lab.launch(golden, "reaped-2").await;
    let pid = vm.machine.pid();
    drop(vm.machine);
    lab.vmm.reap(&vm.run_dir).await.unwrap();
    if let Some(pid) = pid {
        assert!(
            !Path::new(&format!("/proc/{pid}")).try_exists().unwrap(),
            "it still runs"
        );
    }
    assert!(lab.vmm.adopt(&vm.run_dir).await.unwrap().is_none());
}

fn hashes(golden: &Golden) -> [u64; 3] {
    [
        hash(&golden.memory),
        hash(&golden.state),
        hash(&golden.disk),
    ]
}

fn hash(path: &Path) -> u64 {
    use std::io::Read;
    let mut hasher = DefaultHasher::new();
    let mut file = std::fs::File::open(path).unwrap();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return hasher.finish(),
            // A golden memory is mostly holes.
            len if buffer[..len].iter().all(|byte| *byte == 0) => hasher.write_usize(len),
            len => hasher.write(&buffer[..len]),
        }
    }
}
