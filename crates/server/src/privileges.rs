//! What the daemon keeps of root's rights, for itself and for all that it starts: what its work needs. And how many
//! files it may have open.
//!
//! Why it is not split into a part with rights and one without is in `docs/adr/0009`.

use dormouse_core::limits;
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};

/// The capabilities that stay, and what for. `tests/e2e/py/test_privileges.py` has the same list.
const KEPT: [CapabilitySet; 14] = [
    // Namespaces, mounts and control groups; the jail's, too.
    CapabilitySet::SYS_ADMIN,
    // Links, taps, addresses and packet filters of slots.
    CapabilitySet::NET_ADMIN,
    // The memory of a QEMU process, which is suspended page by page.
    CapabilitySet::SYS_PTRACE,
    // Its end, for it runs as another user.
    CapabilitySet::KILL,
    // What the jail becomes: that user, who can win nothing.
    CapabilitySet::SETUID,
    CapabilitySet::SETGID,
    CapabilitySet::SETPCAP,
    // `/dev/kvm` in the jail.
    CapabilitySet::MKNOD,
    // Disks change hands, and stay readable.
    CapabilitySet::CHOWN,
    CapabilitySet::DAC_OVERRIDE,
    // Files of base images have the owners, modes, times and capabilities that their layers say.
    CapabilitySet::FOWNER,
    CapabilitySet::FSETID,
    CapabilitySet::SETFCAP,
    // Ports 443 and, for guests' names, 53.
    CapabilitySet::NET_BIND_SERVICE,
];

/// Why rights could not be given up.
#[derive(Debug, thiserror::Error)]
#[error("{action}")]
pub(crate) struct PrivilegeError {
    action: &'static str,
    #[source]
    source: Errno,
}

/// Gives up what is not needed, for good. Rights belong to a thread: it has to be the only one yet.
pub(crate) fn reduce() -> Result<(), PrivilegeError> {
    drop_capabilities()?;
    set_no_new_privs(true).map_err(failed("forbid programs to win rights"))?;
    hide_memory()
}

/// The capabilities that the daemon's work needs.
pub(crate) fn kept() -> CapabilitySet {
    KEPT.into_iter().collect()
}

/// How many files the daemon may have open, once [`raise_open_files`] is done.
pub(crate) fn open_files() -> u64 {
    let most = getrlimit(Resource::Nofile).maximum;
    most.map_or(limits::OPEN_FILES, |most| most.min(limits::OPEN_FILES))
}

/// Most client connections at once on one listener, so that all of them leave files to MicroVMs.
pub(crate) fn connections_max() -> usize {
    connections_with(open_files())
}

fn connections_with(open_files: u64) -> usize {
    let most = usize::try_from(open_files / limits::CONNECTION_FILES_SHARE);
    most.map_or(limits::CONNECTIONS_MAX, |most| {
        most.min(limits::CONNECTIONS_MAX)
    })
}

/// Lets the daemon open all the files that it may need to: 1024, which most systems begin with, are a tenth of one
/// listener's connections. No more than that, though, for whatever it starts has the same limit, and some programs
/// go through all descriptors that there may be.
pub(crate) fn raise_open_files() -> Result<(), PrivilegeError> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = open_files();
    if current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    let raised = Rlimit {
        current: Some(wanted),
        maximum,
    };
    setrlimit(Resource::Nofile, raised).map_err(failed("raise the number of open files"))
}

fn drop_capabilities() -> Result<(), PrivilegeError> {
    let kept = kept();
    let held = capabilities(None).map_err(failed("read capabilities"))?;
    // Who may not do this cannot run machines either, and is told so by what needs the rights for that.
    if held.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().difference(kept).iter() {
            match remove_capability_from_bounding_set(capability) {
                // This kernel has no such capability.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(error) => return Err(failed("give up capabilities for good")(error)),
            }
        }
    }
    let reduced = CapabilitySets {
        effective: held.effective.intersection(kept),
        permitted: held.permitted.intersection(kept),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, reduced).map_err(failed("give up capabilities"))
}

/// Keys are in this process's memory: it goes to no core dump, and to no process without rights of its own.
fn hide_memory() -> Result<(), PrivilegeError> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(failed("forbid core dumps"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed("hide memory"))
}

fn failed(action: &'static str) -> impl FnOnce(Errno) -> PrivilegeError {
    move |source| PrivilegeError { action, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::dumpable_behavior;

    #[test]
    fn as_many_files_may_be_open_as_are_needed() {
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        let few = Rlimit {
            current: Some(1000),
            maximum,
        };
        setrlimit(Resource::Nofile, few).unwrap();
        raise_open_files().unwrap();
        let raised = getrlimit(Resource::Nofile);
        assert_eq!(raised.current, Some(open_files()));
        assert_eq!(raised.maximum, maximum);
        raise_open_files().unwrap();
    }

    #[test]
    fn a_low_limit_of_files_is_one_of_connections() {
        assert_eq!(connections_with(4096), 512);
        assert_eq!(
            connections_with(limits::OPEN_FILES),
            limits::CONNECTIONS_MAX
        );
    }

    #[test]
    fn memory_is_neither_shown_nor_dumped() {
        hide_memory().unwrap();
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        assert_eq!(getrlimit(Resource::Core).maximum, Some(0));
    }

    #[test]
    fn nothing_but_the_list_stays_and_it_may_be_done_twice() {
        // Rights are a thread's own: those of the other tests stay as they are.
        let reduced = std::thread::spawn(|| {
            let before = capabilities(None).unwrap();
            drop_capabilities().unwrap();
            drop_capabilities().unwrap();
            (before, capabilities(None).unwrap())
        });
        let (before, after) = reduced.join().unwrap();
        assert_eq!(after.effective, before.effective & kept());
        assert_eq!(after.permitted, before.permitted & kept());
        assert_eq!(after.inheritable, CapabilitySet::empty());
    }
}
