//! The contract on machines without hardware, and the failures that they can be made to have.

use crate::contract;
use crate::lab::Lab;
use dormouse_core::guest::ProcessSpec;
use dormouse_node::vmm::fake::{Failure, Fake};
use dormouse_node::vmm::{StateSource, Vmm};
use std::sync::{Arc, OnceLock};

/// The backend of the test that runs in this process: a lab has it only as a `Vmm`.
static FAKE: OnceLock<Fake> = OnceLock::new();

fn lab(dir: &tempfile::TempDir) -> Lab {
    let base_disk = dir.path().join("base.ext4");
    std::fs::File::create(&base_disk)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    Lab {
        vmm: Arc::new(FAKE.get_or_init(Fake::new).clone()),
        kernel: dir.path().join("vmlinuz"),
        initramfs: dir.path().join("initramfs"),
        base_disk,
        crash: |_, _, run_dir| FAKE.get().expect("the lab made it").crash(run_dir),
        app: ProcessSpec {
            argv: vec!["app".to_owned()],
            env: Vec::new(),
            cwd: "/".to_owned(),
            user: String::new(),
            timeout_s: None,
        },
        dir: dir.path().to_owned(),
    }
}

#[tokio::test]
async fn contract() {
    let dir = tempfile::tempdir().unwrap();
    let lab = lab(&dir);
    lab.clean_up_after(contract::all(&lab)).await;
    assert_eq!(FAKE.get().unwrap().running(), 0);
}

#[tokio::test]
async fn failures_happen_once_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut lab = lab(&dir);
    let fake = Fake::new();
    lab.vmm = Arc::new(fake.clone());
    let golden = lab.golden().await;

    fake.fail_next(Failure::Restore);
    let state = StateSource::Golden(golden.state.clone());
    assert!(
        fake.restore(&lab.restore_spec(&golden, "a", state))
            .await
            .is_err()
    );
    let vm = lab.launch(&golden, "a").await;

    fake.fail_next(Failure::SnapshotDiskFull);
    let error = vm
        .machine
        .snapshot_delta(&lab.delta_files("a"))
        .await
        .unwrap_err();
    assert!(error.is_disk_full());
    vm.machine.resume().await.unwrap();
    let files = lab.suspend(&vm, "a").await;

    fake.fail_next(Failure::ExitOnResume);
    let vm = lab.try_wake(&golden, "a", &files).await.unwrap();
    vm.machine.resume().await.unwrap();
    assert!(vm.machine.connect().await.is_err());
    assert_eq!(fake.running(), 0);
}
