//! Control groups: what a slot's machine may take of the host, and the one sure list of its processes.
//!
//! A slot has a group of its own name under `dormouse-OWNER`, in the unified hierarchy (cgroup v2) or, on a host without
//! the controllers there, one in each of the old hierarchies (v1).

use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The controllers that are used, by their names in v1 and v2.
const CONTROLLERS: [(&str, &str); 4] = [
    ("memory", "memory"),
    ("cpu", "cpu"),
    ("pids", "pids"),
    ("blkio", "io"),
];
/// A group cannot be without these; what there is for disks depends on the host's schedulers.
const NEEDED: [&str; 3] = ["memory", "cpu", "pids"];
/// Microseconds in which a machine gets its share of the processors.
const CPU_PERIOD_US: u64 = 100_000;
const REMOVE_TIMEOUT: Duration = Duration::from_secs(10);

/// What one machine may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    /// Bytes of memory, the VMM's own included, and of swap once more.
    pub(crate) memory_bytes: u64,
    /// Processors that its vCPUs may keep busy; beside others it gets its part by them, too.
    pub(crate) vcpus: u32,
    /// Processes and threads.
    pub(crate) threads: u32,
}

/// Where groups are made.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    root: PathBuf,
    /// Its controller in the words of v1; none for the unified hierarchy, which has all.
    controller: Option<&'static str>,
}

/// The groups of one owner's slots.
#[derive(Debug)]
pub(crate) struct Cgroups {
    hierarchies: Vec<Hierarchy>,
    parent: String,
}

impl Cgroups {
    /// Finds the host's hierarchies and makes the owner's group.
    pub(crate) fn open(owner: &str) -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/mounts")?;
        let hierarchies = find(&mounts, |root| {
            fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default()
        });
        let hierarchies = hierarchies.ok_or_else(|| {
            io::Error::new(
                ErrorKind::Unsupported,
                "no cgroup hierarchy has the controllers memory, cpu and pids: mount cgroup2 on /sys/fs/cgroup",
            )
        })?;
        let groups = Self {
            hierarchies,
            parent: format!("dormouse-{owner}"),
        };
        groups.make_parent()?;
        Ok(groups)
    }

    fn make_parent(&self) -> io::Result<()> {
        for Hierarchy { root, controller } in &self.hierarchies {
            let parent = root.join(&self.parent);
            create(&parent)?;
            if controller.is_none() {
                hand_down(root)?;
                hand_down(&parent)?;
            }
        }
        Ok(())
    }

    /// Deletes the owner's group, if no slot has one.
    pub(crate) fn close(&self) {
        for parent in self.parents() {
            // One that is in use, or gone, is as it should be.
            let _ = fs::remove_dir(parent);
        }
    }

    fn parents(&self) -> Vec<PathBuf> {
        let roots = self.hierarchies.iter().map(|hierarchy| &hierarchy.root);
        roots.map(|root| root.join(&self.parent)).collect()
    }

    fn folders(&self, slot: &str) -> Vec<PathBuf> {
        let parents = self.parents().into_iter();
        parents.map(|parent| parent.join(slot)).collect()
    }

    /// Gives a slot's group a share, the one that is there or a new one. Answers with its folders.
    pub(crate) fn confine(&self, slot: &str, share: &Share) -> io::Result<Vec<PathBuf>> {
        let folders = self.folders(slot);
        for (folder, hierarchy) in folders.iter().zip(&self.hierarchies) {
            create(folder)?;
            write_all(folder, &settings(hierarchy.controller, share))?;
        }
        Ok(folders)
    }

    /// Ends what runs in a slot's group and deletes the group. Nothing there is fine.
    pub(crate) fn remove(&self, slot: &str) -> io::Result<()> {
        let deadline = Instant::now() + REMOVE_TIMEOUT;
        for folder in self.folders(slot) {
            loop {
                match fs::remove_dir(&folder) {
                    Err(error)
                        if error.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline =>
                    {
                        self.kill(slot)?;
                        sleep(Duration::from_millis(1));
                    }
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                    _ => break,
                }
            }
        }
        Ok(())
    }

    fn kill(&self, slot: &str) -> io::Result<()> {
        let Some(folder) = self.folders(slot).into_iter().next() else {
            return Ok(());
        };
        let listed = match fs::read_to_string(folder.join("cgroup.procs")) {
            Err(error) if is_absent(&error) => return Ok(()),
            listed => listed?,
        };
        let pids = listed.lines().filter_map(|line| line.parse().ok());
        for pid in pids.filter_map(Pid::from_raw) {
            // One that has ended is what is wanted.
            let _ = kill_process(pid, Signal::KILL);
        }
        Ok(())
    }

    /// Names of the slots that have groups.
    pub(crate) fn slots(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for parent in self.parents() {
            let entries = match fs::read_dir(parent) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                entries => entries?,
            };
            for entry in entries {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    names.extend(entry.file_name().into_string());
                }
            }
        }
        names.sort();
        names.dedup();
        Ok(names)
    }
}

/// The hierarchies among a host's mounts. `controllers` reads what a unified one offers.
fn find(mounts: &str, controllers: impl Fn(&Path) -> String) -> Option<Vec<Hierarchy>> {
    let mut split = Vec::new();
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(1);
        let (Some(target), Some(kind), Some(options)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let root = Path::new(target);
        match kind {
            "cgroup2" => {
                let offered = controllers(root);
                let offers = |needed: &&str| offered.split_whitespace().any(|one| one == *needed);
                if NEEDED.iter().all(offers) {
                    return Some(vec![Hierarchy {
                        root: root.to_owned(),
                        controller: None,
                    }]);
                }
            }
            "cgroup" => {
                let here = |name: &str| options.split(',').any(|option| option == name);
                let found = CONTROLLERS.iter().filter(|(old, _)| here(old));
                split.extend(found.map(|(old, _)| Hierarchy {
                    root: root.to_owned(),
                    controller: Some(old),
                }));
            }
            _ => {}
        }
    }
    let has = |needed: &&str| split.iter().any(|one| one.controller == Some(*needed));
    NEEDED.iter().all(has).then_some(split)
}

/// A setting, and whether a kernel may lack it.
type Setting = (&'static str, String, bool);
const MUST: bool = false;
const MAY: bool = true;

fn cpu_quota_us(share: &Share) -> u64 {
    // One more than its vCPUs: the VMM works besides them.
    (u64::from(share.vcpus) + 1) * CPU_PERIOD_US
}

/// What a share is in a hierarchy's words.
fn settings(controller: Option<&str>, share: &Share) -> Vec<Setting> {
    let quota = cpu_quota_us(share);
    let memory = share.memory_bytes.to_string();
    // In v1 memory and swap are counted together.
    let both = share.memory_bytes.saturating_mul(2).to_string();
    let threads = share.threads.to_string();
    let weight = 100 * share.vcpus;
    match controller {
        None => vec![
            ("memory.max", memory.clone(), MUST),
            // As much again on the host's swap as a machine can have in all, so that no intact one runs into it.
            ("memory.swap.max", memory, MAY),
            ("memory.oom.group", "1".to_owned(), MAY),
            ("cpu.max", format!("{quota} {CPU_PERIOD_US}"), MUST),
            ("cpu.max.burst", quota.to_string(), MAY),
            ("cpu.weight", weight.clamp(1, 10_000).to_string(), MUST),
            ("pids.max", threads, MUST),
            ("io.weight", weight.clamp(1, 10_000).to_string(), MAY),
        ],
        Some("memory") => vec![
            ("memory.limit_in_bytes", memory, MUST),
            ("memory.memsw.limit_in_bytes", both, MAY),
        ],
        Some("cpu") => vec![
            ("cpu.cfs_period_us", CPU_PERIOD_US.to_string(), MUST),
            ("cpu.cfs_quota_us", quota.to_string(), MUST),
            ("cpu.cfs_burst_us", quota.to_string(), MAY),
            ("cpu.shares", (1024 * share.vcpus).to_string(), MUST),
        ],
        Some("pids") => vec![("pids.max", threads, MUST)],
        Some(_) => vec![("blkio.weight", weight.clamp(10, 1000).to_string(), MAY)],
    }
}

/// Lets the groups below this one of the unified hierarchy have limits.
fn hand_down(group: &Path) -> io::Result<()> {
    for (_, controller) in CONTROLLERS {
        let enabled = fs::write(
            group.join("cgroup.subtree_control"),
            format!("+{controller}"),
        );
        if NEEDED.contains(&controller) {
            enabled?;
        }
    }
    Ok(())
}

fn write_all(folder: &Path, settings: &[Setting]) -> io::Result<()> {
    for (name, value, may_lack) in settings {
        match fs::write(folder.join(name), value) {
            Err(_) if *may_lack => {}
            Err(error) => return Err(io::Error::new(error.kind(), format!("{name}: {error}"))),
            Ok(()) => {}
        }
    }
    Ok(())
}

fn create(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Whether a group is gone, or was deleted while it was looked at.
fn is_absent(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPLIT: &str = "\
tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup /sys/fs/cgroup/pids cgroup rw,relatime,pids 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0
";

    #[test]
    fn the_unified_hierarchy_is_taken_where_it_has_the_controllers() {
        let found = find(SPLIT, |_| "cpuset cpu io memory pids\n".to_owned());
        let unified = Hierarchy {
            root: "/sys/fs/cgroup/unified".into(),
            controller: None,
        };
        assert_eq!(found, Some(vec![unified]));
    }

    #[test]
    fn an_empty_unified_hierarchy_leaves_the_old_ones() {
        let found = find(SPLIT, |_| String::new());
        let roots = [
            ("cpu", "cpu,cpuacct"),
            ("memory", "memory"),
            ("pids", "pids"),
        ];
        let split = roots.map(|(name, dir)| Hierarchy {
            root: Path::new("/sys/fs/cgroup").join(dir),
            controller: Some(name),
        });
        assert_eq!(found, Some(split.to_vec()));
    }

    #[test]
    fn a_host_without_the_controllers_has_no_hierarchies() {
        assert_eq!(find("proc /proc proc rw 0 0\n", |_| String::new()), None);
    }

    #[test]
    fn shares_are_told_in_each_versions_words() {
        let share = Share {
            memory_bytes: 1 << 30,
            vcpus: 2,
            threads: 40,
        };
        let unified = settings(None, &share);
        assert!(unified.contains(&("cpu.max", "300000 100000".to_owned(), MUST)));
        assert!(unified.contains(&("memory.max", "1073741824".to_owned(), MUST)));
        assert!(unified.contains(&("memory.swap.max", "1073741824".to_owned(), MAY)));
        let split = settings(Some("memory"), &share);
        assert!(split.contains(&("memory.memsw.limit_in_bytes", "2147483648".to_owned(), MAY)));
        assert!(settings(Some("cpu"), &share).contains(&("cpu.shares", "2048".to_owned(), MUST)));
    }
}
