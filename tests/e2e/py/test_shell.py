"""Shells: AWS's WebSocket protocol to the byte, and `dormouse shell` as people use it."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import termios
import time
import uuid

import pytest
from harness.daemon import BINARY
from harness.endpoint import TOKEN_HEADER
from harness.polling import until
from harness.turns import tls_socket
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

MARKER = "lambda-microvms"
MANAGED = "arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:"
INGRESS = [f"{MANAGED}HTTP_INGRESS", f"{MANAGED}SHELL_INGRESS"]
PROMPT = "λ $ "
# Software emulation is slow.
PATIENCE_S = 60
CTRL_C, CTRL_Z = "\x03", "\x1a"


@pytest.fixture(scope="module")
def vm(cloud, probe_image):
    """A MicroVM that lets shells in; the tests of this file share it."""
    with cloud.launch(probe_image, idle=(600, 600, True), ingressNetworkConnectors=INGRESS) as vm:
        yield vm.running()


class Shell:
    """One shell as AWS's clients open it."""

    def __init__(self, vm, target="/shell"):
        answer = vm.cloud.vms.create_microvm_shell_auth_token(microvmIdentifier=vm.id, expirationInMinutes=5)
        token = answer["authToken"][TOKEN_HEADER]
        self.socket = connect(
            f"ws://{vm.address}{target}", sock=tls_socket(vm.address, vm.cloud.ca_file), compression=None,
            subprotocols=[MARKER, f"{MARKER}.authentication.{token}", f"{MARKER}.port.8022"],
            open_timeout=PATIENCE_S, ping_timeout=PATIENCE_S, proxy=None, legacy=True)
        self.seen = b""
        self.first = self.socket.recv(timeout=PATIENCE_S)

    def type(self, text):
        self.socket.send(text.encode())

    def until(self, end):
        """What is shown up to and with `end`."""
        end = end.encode()
        while end not in self.seen:
            shown = self.socket.recv(timeout=PATIENCE_S)
            assert isinstance(shown, bytes), shown
            self.seen += shown
        shown, _, self.seen = self.seen.partition(end)
        return (shown + end).decode()

    def run(self, line):
        """What a command prints."""
        self.type(f"{line}\n")
        self.until("\n")
        # bash says before and after each line whether pasted text is to be marked.
        shown = re.sub(r"\x1b\[\?2004[hl]\r?", "", self.until(PROMPT))
        return shown.removesuffix(PROMPT).replace("\r\n", "\n")

    def closed(self):
        """Code and reason of the close."""
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                self.socket.recv(timeout=PATIENCE_S)
        return closed.value.rcvd.code, closed.value.rcvd.reason

    def __enter__(self):
        self.until(PROMPT)
        return self

    def __exit__(self, *_):
        self.socket.close()


def processes(shell, argument):
    """How many processes of the VM have this argument."""
    return int(shell.run(f"grep -alz '^{argument}$' /proc/[0-9]*/cmdline 2>/dev/null | wc -l"))


def wait_for_processes(shell, argument, count):
    until(lambda: processes(shell, argument), f"{count} processes have the argument {argument}", PATIENCE_S,
          when=lambda found: found == count)


def test_a_session_is_as_on_aws(vm):
    with Shell(vm) as shell:
        assert shell.socket.subprotocol == MARKER
        greeting = json.loads(shell.first)
        assert shell.first == json.dumps(greeting, separators=(",", ":"))
        assert greeting["type"] == "session_init"
        assert uuid.UUID(greeting["session_id"])
        assert shell.run("stty size") == "0 0\n"
        shell.socket.send('{"type":"resize","cols":120,"rows":40}')
        assert shell.run("stty size") == "40 120\n"
        # A text is typed; so is one that is not quite a control message.
        shell.socket.send("echo hi\n")
        assert "hi\r\n" in shell.until(PROMPT)
        shell.socket.send('{"type":"resize","cols":x}')
        shell.type("\n")
        assert "command not found" in shell.until(PROMPT)
        assert shell.run("echo λ日本") == "λ日本\n"
        shell.type("exit\n")
        assert shell.closed() == (1000, "shell exited")


def test_a_shell_is_roots_beside_the_app(vm):
    with Shell(vm) as shell:
        assert shell.run("id -u; pwd; echo $TERM $PYTHONUNBUFFERED") == "0\n/srv/probe\nxterm 1\n"
        assert re.fullmatch(r"/dev/pts/\d+\n", shell.run("tty"))
        assert processes(shell, "app.py") == 1
        assert shell.run("echo $0; shopt -q login_shell || echo plain") == "bash\nplain\n"
        shell.type("exit 7\n")
        assert shell.closed() == (1000, "shell exited")


def test_shells_are_apart(vm):
    with Shell(vm) as one, Shell(vm) as two:
        assert one.run("tty") != two.run("tty")
        one.run("x=1")
        assert two.run("echo [$x]") == "[]\n"


def read_by_cat(shell, line):
    """Types a line to `cat -E`. The mark at its end shows what no echo does: that cat runs and is in front."""
    shell.type(f"{line}\n")
    shell.until(f"{line}$\r\n")


def test_jobs_are_controlled(vm):
    with Shell(vm) as shell:
        shell.type("cat -E\n")
        read_by_cat(shell, "interrupt me")
        # Linux shows ^C unless the shell has switched the echo off by then.
        shell.type(CTRL_C)
        shell.until(PROMPT)
        assert shell.run("echo $?") == "130\n"
        shell.type("cat -E\n")
        read_by_cat(shell, "stop me")
        shell.type(CTRL_Z)
        assert "Stopped" in shell.until(PROMPT)
        shell.type("fg\n")
        read_by_cat(shell, "back again")
        shell.type(CTRL_C)
        shell.until(PROMPT)
        assert shell.run("jobs") == ""


def test_what_a_shell_started_goes_with_it(vm):
    with Shell(vm) as witness:
        with Shell(vm) as shell:
            shell.run("sleep 5432 & nohup sleep 5432 >/dev/null 2>&1 & setsid sleep 5432 &")
            wait_for_processes(witness, "5432", 3)
            # As when the network breaks: without a goodbye.
            shell.socket.socket.shutdown(socket.SHUT_RDWR)
            shell.socket.socket.close()
        wait_for_processes(witness, "5432", 0)
        # The same when it ends by itself.
        with Shell(vm) as shell:
            shell.run("setsid sleep 5433 &")
            wait_for_processes(witness, "5433", 1)
            shell.type("exit\n")
            assert shell.closed() == (1000, "shell exited")
        wait_for_processes(witness, "5433", 0)


def test_a_flood_holds_nobody_up(vm):
    with Shell(vm) as shell:
        shell.type("yes\n")
        shell.until("y\r\ny\r\n")
        assert vm.endpoint.get("/").status == 200
        shell.type(CTRL_C)
        shell.until(PROMPT)
        assert shell.run("echo done") == "done\n"


def test_a_suspend_ends_a_shell_and_a_shell_ends_the_sleep(vm):
    with Shell(vm) as shell:
        assert shell.run("echo kept > /tmp/kept") == ""
        vm.suspend()
        assert shell.closed() == (1012, "the MicroVM went away")
        vm.wait("SUSPENDED")
    with Shell(vm) as shell:
        assert vm.state == "RUNNING"
        assert shell.run("cat /tmp/kept") == "kept\n"


def test_who_may_not_is_refused_before_the_switch(vm):
    with pytest.raises(InvalidStatus) as refused:
        Shell(vm, "/?dormouse-size=none")
    assert refused.value.response.status_code == 400


# The command line.


def dormouse(cloud, *arguments, **more):
    return subprocess.run([BINARY, *arguments], capture_output=True, env=cloud.environment, timeout=120, **more)


class Typist:
    """`dormouse shell` on a terminal."""

    def __init__(self, cloud, *arguments):
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.execve(BINARY, ["dormouse", *arguments], cloud.environment)
        self.seen = b""
        self.resize(100, 30)

    def resize(self, cols, rows):
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def is_raw(self):
        return not termios.tcgetattr(self.terminal)[3] & termios.ICANON

    def type(self, text):
        os.write(self.terminal, text.encode())

    def until(self, end):
        end = end.encode()
        deadline = time.monotonic() + PATIENCE_S
        while end not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.terminal], [], [], 1)[0]:
                self.seen += os.read(self.terminal, 4096)
        shown, _, self.seen = self.seen.partition(end)
        return (shown + end).decode()

    def status(self):
        """Its exit status."""
        with contextlib.suppress(OSError):
            while os.read(self.terminal, 4096):
                pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_the_command_line_is_a_terminal(cloud, vm):
    typist = Typist(cloud, "shell", vm.id)
    typist.until(PROMPT)
    assert typist.is_raw()
    typist.type("stty size\n")
    typist.until("30 100\r\n")
    typist.until(PROMPT)
    typist.resize(132, 43)
    typist.type("while [ \"$(stty size)\" = '30 100' ]; do sleep 0.1; done; stty size\n")
    # A shell whose terminal has another size may draw its prompt anew before it answers.
    typist.until("43 132\r\n")
    typist.until(PROMPT)
    typist.type("cat -E\n")
    read_by_cat(typist, "interrupt me")
    typist.type(CTRL_C)
    typist.until(PROMPT)
    typist.type("echo status $? λ\n")
    assert "status 130 λ\r\n" in typist.until(PROMPT)
    typist.type("exit 7\n")
    assert typist.status() == 7


def test_the_command_line_lets_go(cloud, vm):
    """By its escape, and by a signal; the terminal is as it was either time."""
    typist = Typist(cloud, "shell", vm.id)
    typist.until(PROMPT)
    typist.type("echo ~.\n")
    typist.until("~.\r\n")
    typist.until(PROMPT)
    typist.type("~.")
    assert typist.until("Disconnected")
    assert not typist.is_raw()
    assert typist.status() == 255
    typist = Typist(cloud, "shell", vm.id)
    typist.until(PROMPT)
    os.kill(typist.pid, signal.SIGTERM)
    assert typist.status() == 128 + signal.SIGTERM


def test_the_command_line_outlives_a_suspend(cloud, vm):
    typist = Typist(cloud, "shell", vm.id)
    typist.until(PROMPT)
    vm.suspend()
    typist.until("-- the microVM slept; press a key for a new shell --")
    assert vm.wait("SUSPENDED")
    typist.type(" ")
    typist.until("-- new shell --")
    typist.until(PROMPT)
    typist.type("exit\n")
    assert typist.status() == 0


def test_pipes_pass_unchanged(cloud, vm):
    done = dormouse(cloud, "shell", vm.id, input=b"echo out; echo err >&2; tty; exit 3\n")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\nnot a tty\n", b"err\n")
    every_byte = bytes(range(256)) * 2000
    done = dormouse(cloud, "shell", vm.id, "--", "cat", input=every_byte)
    assert done.returncode == 0, done.stderr
    assert done.stdout == every_byte
    done = dormouse(cloud, "shell", vm.id, "--", "kill -9 $$", stdin=subprocess.DEVNULL)
    assert done.returncode == 137


def test_what_is_in_the_way_is_told(cloud, probe_image):
    with cloud.launch(probe_image) as closed:
        done = dormouse(cloud, "shell", closed.id, stdin=subprocess.DEVNULL)
        assert done.returncode == 255
        assert b"dormouse run --shell" in done.stderr
        assert b"SHELL_INGRESS" in done.stderr
    done = dormouse(cloud, "shell", "microvm-00000000-0000-0000-0000-000000000000", stdin=subprocess.DEVNULL)
    assert done.returncode == 255
    assert len(done.stderr.splitlines()) == 1, done.stderr
    launched = dormouse(cloud, "run", probe_image.rpartition(":")[2], "--shell")
    vm_id = launched.stdout.split()[0].decode()
    assert f"dormouse shell {vm_id}" in launched.stdout.decode()
    done = dormouse(cloud, "shell", vm_id, "--", "echo", "it", "works", stdin=subprocess.DEVNULL)
    assert done.stdout == b"it works\n", done
    dormouse(cloud, "terminate", vm_id)
