//! KVM or software emulation: what is configured, or what a probe guest has proved.
//!
//! `/dev/kvm` can open and still run no guest, so `auto` boots one. The answer holds until the host or what
//! guests boot from changes, and is kept in the data directory until then.

use crate::config::{self, Config};
use crate::daemon::replace_file;
use anyhow::{Context, Result};
use dormouse_node::boot::BootFiles;
use dormouse_node::host::{self, jail::Jailer};
use dormouse_node::vmm::probe;
use dormouse_node::vmm::qemu::Accel;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What a probe found, and under which circumstances.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    host_boot: String,
    guest_boot: String,
    kvm: bool,
    reason: String,
}

/// Chooses how guests are executed, and says so in the log.
pub(crate) async fn choose(config: &Config, boot: &BootFiles, jailer: &Jailer) -> Result<Accel> {
    let (accel, reason) = match config.accel {
        config::Accel::Kvm => (Accel::Kvm, "as configured".to_owned()),
        config::Accel::Tcg => (Accel::Tcg, "as configured".to_owned()),
        config::Accel::Auto => remembered_or_probed(&config.data_dir, boot, jailer).await?,
    };
    match accel {
        Accel::Kvm => tracing::info!(reason, "guests run on kvm"),
        Accel::Tcg => tracing::info!(
            reason,
            "guests run in software emulation, many times slower than kvm"
        ),
    }
    Ok(accel)
}

async fn remembered_or_probed(
    data_dir: &Path,
    boot: &BootFiles,
    jailer: &Jailer,
) -> Result<(Accel, String)> {
    let host_boot = host::boot_id().context("read the host's boot id")?;
    let path = data_dir.join("acceleration.json");
    if let Some(known) = read(&path).await
        && known.host_boot == host_boot
        && known.guest_boot == boot.hash
    {
        let accel = if known.kvm { Accel::Kvm } else { Accel::Tcg };
        return Ok((accel, known.reason));
    }
    let answer = probe_guest(data_dir, boot, jailer).await?;
    let remembered = Remembered {
        host_boot,
        guest_boot: boot.hash.clone(),
        kvm: answer.accel == Accel::Kvm,
        reason: answer.reason.clone(),
    };
    replace_file(&path, &serde_json::to_vec_pretty(&remembered)?)?;
    Ok((answer.accel, answer.reason))
}

async fn read(path: &PathBuf) -> Option<Remembered> {
    // A file that cannot be read or parsed is as good as none: the probe tells again.
    serde_json::from_slice(&tokio::fs::read(path).await.ok()?).ok()
}

/// Boots a probe guest; takes a few seconds.
pub(crate) async fn probe_guest(
    data_dir: &Path,
    boot: &BootFiles,
    jailer: &Jailer,
) -> Result<probe::Probe> {
    let scratch = data_dir.join("probe");
    tokio::fs::create_dir_all(&scratch)
        .await
        .context("make the probe's folder")?;
    let answer = probe::accel(jailer, &boot.kernel, &boot.initramfs, &scratch).await;
    tokio::fs::remove_dir_all(&scratch)
        .await
        .context("delete the probe's folder")?;
    Ok(answer)
}
