"""What the host has of MicroVMs, by name: to be compared with what it ought to have."""

import re
import subprocess
from pathlib import Path

# Control groups of a daemon and of a slot.
OURS = re.compile(r"dormouse-|dm[0-9a-f]+-[0-9]+$")


def slots():
    """What slots are made of: namespaces, links, control groups, packet filters."""
    names = {f"namespace {path.name}" for path in Path("/run/netns").glob("dm*")}
    names |= {f"link {path.name}" for path in Path("/sys/class/net").glob("dm*")}
    groups = (path for path in Path("/sys/fs/cgroup").rglob("d*m*-*") if path.is_dir() and OURS.match(path.name))
    names |= {f"control group {path}" for path in groups}
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    return names | {line for line in tables.splitlines() if "dormouse_" in line}


def leftovers(daemon, before):
    """What is there when all MicroVMs are over and the daemon has stopped, other than what was there `before`."""
    left = [f"machine in {folder}" for folder in daemon.machines().values()]
    left += [f"folder {path}" for path in (daemon.data_dir / "vms").iterdir()]
    return left + sorted(slots() - before)


def discrepancies(daemon, states):
    """Where files and processes differ from what the states of all MicroVMs at rest, by id, ask for."""
    found = []
    folders = {path.name: path for path in (daemon.data_dir / "vms").iterdir()}
    machines = [Path(folder).name for folder in daemon.machines().values()]
    for vm_id, state in states.items():
        running = machines.count(vm_id)
        if running != (state == "RUNNING"):
            found.append(f"{vm_id} is {state} and has {running} machines")
        folder = folders.pop(vm_id, None)
        if (folder is None) != (state == "TERMINATED"):
            found.append(f"{vm_id} is {state} and {'has no' if folder is None else 'has a'} folder")
        elif folder and (folder / "suspended").exists() != (state == "SUSPENDED"):
            found.append(f"{vm_id} is {state}: {sorted(path.name for path in folder.iterdir())}")
        elif folder and list(folder.glob("*.tmp")):
            found.append(f"{vm_id} is {state} and has {list(folder.glob('*.tmp'))}")
    return found + [f"{path} is nobody's" for path in folders.values()]
