"""What the daemon keeps of root's rights while it runs: this list, and nothing besides."""

import contextlib
import re
from pathlib import Path

# Names and the kernel's numbers; crates/server/src/privileges.rs says what each is for. Before one is added here, say
# there what it is needed for.
KEPT = {
    "CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "FSETID": 4, "KILL": 5, "SETGID": 6, "SETUID": 7, "SETPCAP": 8,
    "NET_BIND_SERVICE": 10, "NET_ADMIN": 12, "SYS_PTRACE": 19, "SYS_ADMIN": 21, "MKNOD": 27, "SETFCAP": 31,
}


def test_every_thread_has_the_listed_capabilities_at_most(cloud):
    kept = sum(1 << number for number in KEPT.values())
    process = cloud.daemon.process.pid
    threads = statuses(Path(f"/proc/{process}/task"))
    assert len(threads) > 1 and process in threads
    for status in threads.values():
        for held in ("CapBnd", "CapPrm", "CapEff"):
            beyond = int(status[held], 16) & ~kept
            assert not beyond, f"{held} of {status['Name']} has {beyond:#x} besides"
        assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
        assert status["NoNewPrivs"] == "1"


def test_its_memory_is_not_shown_or_dumped(cloud):
    process = Path(f"/proc/{cloud.daemon.process.pid}")
    limits = (process / "limits").read_text()
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)


def statuses(tasks):
    """What is said of each thread, by its id; some go meanwhile."""
    found = {}
    for thread in tasks.iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found[int(thread.name)] = fields(thread / "status")
    return found


def fields(path):
    return dict(line.split(":\t", 1) for line in path.read_text().splitlines() if ":\t" in line)
