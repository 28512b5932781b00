"""One `dormouse serve` with its data directory: start it, speak to it, end it in every way."""

import contextlib
import http.client
import json
import os
import shlex
import signal
import socket
import subprocess
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("DORMOUSE_CACHE", PROJECT / ".cache")).resolve()
# Where cargo builds.
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", PROJECT / "target")).resolve()
BINARY = Path(os.environ.get("DORMOUSE_BINARY", TARGET / "release/dormouse"))
# The first start probes KVM and makes keys; software emulation is slow.
START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 60
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy")


class DaemonDied(Exception):
    """The daemon ended, or did not begin to listen."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def port_is_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


class Daemon:
    """A daemon on loopback. `options` are further arguments of `serve`."""

    def __init__(self, data_dir, log, api_port=None, ingress_port=None, options=()):
        self.data_dir = Path(data_dir)
        self.log = Path(log)
        self.api_port = api_port or free_port()
        self.ingress_port = ingress_port or free_port()
        self.options = list(options)
        # What it finds in its environment beside the harmless part of ours.
        self.variables = {}
        self.process = None

    def start(self):
        """Starts it and waits until it answers."""
        command = [
            str(BINARY), "serve", "--data-dir", str(self.data_dir),
            "--api-addr", f"127.0.0.1:{self.api_port}",
            "--ingress-addr", f"127.0.0.1:{self.ingress_port}", *self.options,
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=plain_environment() | self.variables,
                # A Ctrl-C meant for the test must not reach the daemon before the test has cleaned up.
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.answers():
            if self.process.poll() is not None:
                raise DaemonDied(f"exit status {self.process.returncode}\n{self.tail()}")
            if time.monotonic() > deadline:
                self.kill()
                raise DaemonDied(f"no answer on port {self.api_port}\n{self.tail()}")
            time.sleep(0.02)
        return self

    def answers(self):
        """Whether the API answers at all. It listens some time before that."""
        connection = http.client.HTTPConnection("127.0.0.1", self.api_port, timeout=1)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status > 0
        except OSError:
            return False
        finally:
            connection.close()

    def stop(self):
        """Asks it to end and returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_TIMEOUT_S)

    def kill(self):
        """Ends it as a power cut would."""
        self.process.kill()
        self.process.wait()

    def run(self, *arguments):
        """Runs another command of the binary on the same data directory and returns its output."""
        command = [str(BINARY), *arguments, "--data-dir", str(self.data_dir)]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60,
                              env=plain_environment())
        if done.returncode:
            raise DaemonDied(f"{shlex.join(command)}: exit status {done.returncode}\n{done.stderr}")
        return done.stdout

    def environment(self, account=None):
        """This process's environment with what `dormouse env` exports: all that AWS's clients are told."""
        environment = plain_environment()
        choice = ["--account", account] if account else []
        for line in self.run("env", *choice).splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["export"]:
                environment.update(word.split("=", 1) for word in words[1:])
        return environment

    def tail(self, lines=40):
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def machine_pids(self):
        """Process ids of the running virtual machines, by MicroVM id."""
        pids = {}
        for record in self.data_dir.glob("vms/*/machine.json"):
            with contextlib.suppress(OSError, ValueError, TypeError):
                pid = json.loads(record.read_text())["process"]["pid"]
                if runs_in(pid, record.parent):
                    pids[record.parent.name] = pid
        return pids

    def machines(self):
        """Folders of all machines, by their process ids, build VMs and forgotten ones included."""
        folders = {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                # The memory that a machine's messages go to has the folder's name.
                folder = os.readlink(process / "fd/2").removeprefix("/memfd:").removesuffix(" (deleted)")
                is_machine = (process / "comm").read_text().startswith("qemu")
                if is_machine and folder.startswith(f"{self.data_dir}/"):
                    folders[int(process.name)] = folder
        return folders

    def sweep(self):
        """Ends what is left: the daemon, and machines that nobody ended. Returns their folders."""
        if self.process and self.process.poll() is None:
            self.kill()
        left = self.machines()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return sorted(left.values())


def plain_environment():
    """This process's environment without proxies and without AWS settings of the user's own."""
    environment = {
        name: value for name, value in os.environ.items()
        if name.lower() not in PROXY_VARIABLES and not name.startswith("AWS_")
    }
    environment |= {
        "NO_PROXY": "*", "no_proxy": "*", "AWS_PAGER": "", "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    return environment


def runs_in(pid, folder):
    """Whether this process is a machine of that folder, and not another that got its id."""
    try:
        return str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
