//! Checks whether a guest really runs on KVM: `/dev/kvm` may be there and still run none.

use super::Finding;
use crate::assets::Assets;
use crate::config::{self, Config};
use crate::serve::QEMU;
use dormouse_node::boot::BootFiles;
use dormouse_node::host::jail::Jailer;
use dormouse_node::layout::Layout;
use dormouse_node::vmm::probe::{self, Probe};
use dormouse_node::vmm::qemu::Accel;
use std::fs::File;
use std::io;
use std::path::Path;

const NAME: &str = "kvm";

/// Boots a probe guest, unless it is clear without.
pub(super) async fn check(config: &Config) -> Finding {
    if config.accel == config::Accel::Tcg {
        return Finding::good(NAME, "not used: --accel tcg");
    }
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        return without(config, format!("/dev/kvm: {error}"));
    }
    let Ok(assets) = Assets::find(config.assets_dir.as_deref()) else {
        return Finding::note(
            NAME,
            "/dev/kvm opens; no probe guest was booted, because there is no kernel",
            "make the assets first",
        );
    };
    match boot_probe(assets).await {
        Ok(Probe {
            accel: Accel::Kvm,
            reason,
        }) => Finding::good(NAME, reason),
        Ok(Probe { reason, .. }) => without(config, reason),
        Err(error) => Finding::failure(
            NAME,
            format!("no probe guest could be made: {error}"),
            "run `make build` in the project again: kernel, modules or agent are not as they must be",
        ),
    }
}

/// KVM does not work: a failure where it is demanded.
fn without(config: &Config, found: String) -> Finding {
    let remedy = "turn on virtualization in the firmware, then `modprobe kvm_intel` or `modprobe kvm_amd`; \
                  inside a virtual machine, its host must allow nested virtualization";
    match config.accel {
        config::Accel::Kvm => Finding::failure(NAME, found, remedy),
        _ => Finding::note(
            NAME,
            format!("{found}; guests run in software, several times slower"),
            remedy,
        ),
    }
}

/// Everything that the probe needs lies in a folder of its own, which is gone afterwards.
async fn boot_probe(assets: Assets) -> io::Result<Probe> {
    let made = tokio::task::spawn_blocking(move || {
        let folder = tempfile::tempdir()?;
        let layout = Layout::new(folder.path());
        layout.create()?;
        let jailer = Jailer::install(&assets.jail(), Path::new(QEMU), &layout.jail())?;
        let boot = BootFiles::install(
            &layout,
            &assets.kernel(),
            &assets.agent(),
            &assets.modules(),
        )?;
        io::Result::Ok((folder, boot, jailer))
    });
    let (folder, boot, jailer) = made.await.map_err(io::Error::other)??;
    Ok(probe::accel(&jailer, &boot.kernel, &boot.initramfs, folder.path()).await)
}
