//! What must be known of a machine to find it again after a crash: `machine.json` in its folder.
//!
//! It is there before the process is, without a process id, and is completed at once. It is deleted when
//! the process is gone, before the slot is given back: a slot that nobody names is freed by whoever deleted the
//! record or at the next start of the daemon, while a record that named somebody else's slot would do harm.

use super::process::ProcessId;
use crate::host::{self, jail};
use crate::vmm::VmmError;
use dormouse_core::egress::Egress;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

const FILE: &str = "machine.json";

/// A machine as its folder knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MachineRecord {
    /// The host's boot that it belongs to: no process or slot lives longer.
    pub(super) boot_id: String,
    /// The network slot that is lent to it.
    pub(super) slot: String,
    /// Its process; none while it is being started.
    pub(super) process: Option<ProcessId>,
    /// The golden memory that it maps privately; none where it does not.
    pub(super) golden_memory: Option<PathBuf>,
    /// Files that it may write to: its user's for as long as it lives.
    #[serde(default)]
    pub(super) lent: Vec<PathBuf>,
    /// The disk file that it writes to.
    pub(super) disk: PathBuf,
    /// Number of the block node of that file.
    pub(super) disk_node: u32,
    /// What its slot lets it reach.
    #[serde(default)]
    pub(super) egress: Egress,
}

impl MachineRecord {
    /// Reads the record; none when there is no machine, or none that could still exist.
    pub(super) fn load(run_dir: &Path) -> Result<Option<Self>, VmmError> {
        let text = match std::fs::read(run_dir.join(FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(VmmError::io("read machine record"))?,
        };
        match Self::parse(&text) {
            Ok(record) if record.boot_id == boot_id()? => Ok(Some(record)),
            Ok(_) => Ok(None),
            Err(error) => {
                // It is replaced whole, so only a crash of the host can have torn it.
                tracing::warn!(run_dir = %run_dir.display(), %error, "torn machine record ignored");
                Ok(None)
            }
        }
    }

    pub(super) fn parse(text: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(text)
    }

    /// Writes the record. A crash of the daemon leaves the old one or the new; after a crash of the host
    /// there is no machine left to find.
    pub(super) fn save(&self, run_dir: &Path) -> Result<(), VmmError> {
        let text = serde_json::to_vec(self).map_err(io::Error::from);
        let temporary = run_dir.join("machine.json.tmp");
        text.and_then(|text| std::fs::write(&temporary, text))
            .and_then(|()| std::fs::rename(&temporary, run_dir.join(FILE)))
            .map_err(VmmError::io("write machine record"))
    }

    /// Takes back what the machine was lent.
    pub(super) fn take_back(&self) -> Result<(), VmmError> {
        let mut files = self.lent.iter();
        let taken = files.try_for_each(|file| jail::take_back(file));
        taken.map_err(VmmError::io("take files back from the machine"))
    }

    /// Deletes the record. None there is fine.
    pub(super) fn remove(run_dir: &Path) -> Result<(), VmmError> {
        match std::fs::remove_file(run_dir.join(FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(VmmError::io("delete machine record")(error))
            }
            _ => Ok(()),
        }
    }
}

/// Tells one boot of the host from another.
pub(super) fn boot_id() -> Result<String, VmmError> {
    host::boot_id().map_err(VmmError::io("read boot id"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> MachineRecord {
        MachineRecord {
            boot_id: boot_id().unwrap(),
            slot: "dmx-3".to_owned(),
            process: Some(ProcessId {
                pid: 12,
                start_ticks: 34,
            }),
            golden_memory: None,
            lent: vec![PathBuf::from("/data/disk.qcow2")],
            disk: PathBuf::from("/data/disk.qcow2"),
            disk_node: 2,
            egress: Egress::NONE,
        }
    }

    #[test]
    fn record_is_kept_and_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        assert!(MachineRecord::load(dir.path()).unwrap().is_none());
        record().save(dir.path()).unwrap();
        assert_eq!(MachineRecord::load(dir.path()).unwrap(), Some(record()));
        MachineRecord::remove(dir.path()).unwrap();
        MachineRecord::remove(dir.path()).unwrap();
        assert!(MachineRecord::load(dir.path()).unwrap().is_none());
    }

    #[test]
    fn machine_of_an_earlier_boot_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let earlier = MachineRecord {
            boot_id: "earlier".to_owned(),
            ..record()
        };
        earlier.save(dir.path()).unwrap();
        assert!(MachineRecord::load(dir.path()).unwrap().is_none());
    }

    #[test]
    fn torn_record_names_no_machine() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), b"{\"boot_id\":\"").unwrap();
        assert!(MachineRecord::load(dir.path()).unwrap().is_none());
    }
}
