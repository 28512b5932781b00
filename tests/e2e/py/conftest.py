"""One daemon for the whole suite, with one image that most tests share.

The data directory is a file system of its own, in a file, so that a test can fill it without filling the host.
DORMOUSE_TEST_ACCEL (default tcg) says how the guests are executed.
"""

import concurrent.futures
import json
import os
import socket
from pathlib import Path

import interruptions
import pytest
import wire_check
from harness.artifact import zip_folder
from harness.cloud import Cloud
from harness.daemon import CACHE, Daemon
from harness.disk import SmallDisk

HERE = Path(__file__).parent
APPS = HERE.parent / "apps"
ACCEL = os.environ.get("DORMOUSE_TEST_ACCEL", "tcg")
DISK_GIB = 24
# In this order: those that end the daemon come last, and test_flow when the Rust client has been built beside the rest.
MODULES = [
    "test_api", "test_audit", "test_privileges", "test_secrets", "test_accounts", "test_quotas", "test_bad_artifacts",
    "test_dockerfile", "test_lost_machine", "test_clones", "test_ingress", "test_races", "test_protocols", "test_browser",
    "test_limits", "test_names", "test_isolation", "test_hostile_agent", "test_connectors", "test_fuzz_api", "test_cli",
    "test_shell", "test_proxy", "test_oci", "test_lifecycle", "test_hooks", "test_resources", "test_disk_full", "test_waiting",
    "test_tags", "test_images", "test_flow", "test_ledger", "test_restart", "test_faults",
]


wire_check.install()


if interruptions.SEED:
    interruptions.install()


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: MODULES.index(item.module.__name__))
    if interruptions.SEED:
        items[:] = [item for item in items if item.module.__name__ in interruptions.MODULES]


def pytest_terminal_summary(terminalreporter):
    if interruptions.SEED:
        terminalreporter.write_line(
            f"{interruptions.suspended} suspends amid requests, DORMOUSE_TEST_INTERRUPT={interruptions.SEED}")


@pytest.fixture(scope="session")
def disk():
    """A file system for the suite alone."""
    disk = SmallDisk(CACHE / "e2e", DISK_GIB)
    disk.mount()
    yield disk
    disk.unmount()


@pytest.fixture(scope="session")
def home(disk):
    """Where it is."""
    return disk.folder


# The one size that has limits, and how much of it may be in flight.
LIMITED_MIB = 1024
LIMITED_IN_FLIGHT = 4
# For test_oci: where its registry is. For test_connectors: the network of test_isolation, which is closed to everybody
# else. For test_limits: one size with limits, and none for all other tests.
CONFIG = f"""
metrics_addr = "127.0.0.1:{{metrics_port}}"
[endpoint]
plain_addr = "127.0.0.1:{{plain_port}}"
[connect]
addr = "127.0.0.1:{{connect_port}}"
[registry]
private = ["127.0.0.1:{{registry_port}}"]
[network.subnets]
subnet-lan = ["192.168.213.0/24"]
[limits]
in_flight = "off"
requests_per_second = "off"
bandwidth_mb_per_second = "off"
[limits.memory.{LIMITED_MIB}]
in_flight = {LIMITED_IN_FLIGHT}
requests_per_second = 100
bandwidth_mb_per_second = 1
"""


@pytest.fixture(scope="session")
def daemon(home):
    """A daemon that serves all tests. At the end nothing may be left of it, and its log must be clean."""
    log = CACHE / "e2e.log"
    log.unlink(missing_ok=True)
    config = home / "daemon.toml"
    held = {name: hold_port() for name in ("metrics_port", "plain_port", "connect_port", "registry_port")}
    ports = {name: holder.getsockname()[1] for name, holder in held.items()}
    config.write_text(CONFIG.format(**ports))
    daemon = Daemon(home / "data", log, options=["--config", str(config), "--accel", ACCEL, "--log-format", "json"])
    daemon.metrics_port, daemon.plain_port = ports["metrics_port"], ports["plain_port"]
    daemon.registry_port = ports["registry_port"]
    namespaces = network_namespaces()
    daemon.start()
    own_namespaces = network_namespaces() - namespaces
    yield daemon
    left = daemon.sweep()
    for holder in held.values():
        holder.close()
    assert not left, f"machines outlived the suite: {left}"
    left = network_namespaces() & own_namespaces
    assert not left, f"network slots outlived the daemon: {left}"
    assert not unexpected_lines(log), "\n".join(unexpected_lines(log))


def hold_port():
    """A socket that keeps a port from everybody who asks for any; who asks for this one may listen there."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return holder


def network_namespaces():
    return {path.name for path in Path("/run/netns").glob("*")}


# Words of log lines that a test provokes on purpose, with the test's name, or that the machine which tests does.
EXPECTED = {
    "the limit of open files is lower than what all listeners may need": "the machine",
    "No space left on device": "test_disk_full",
    "host disk is full: machine stopped": "test_disk_full",
    "launch refused for lack of room on the host": "test_disk_full",
    "Input/output error (os error 5)": "test_faults",
    "Read-only file system (os error 30)": "test_faults",
    "disk I/O error": "test_faults",
    "freeze to guest agent: message head is too large": "test_hostile_agent",
    "freeze to guest agent: invalid HTTP version parsed": "test_hostile_agent",
    "thaw to guest agent: message head is too large": "test_hostile_agent",
    "thaw to guest agent: invalid HTTP version parsed": "test_hostile_agent",
    "thaw to guest agent timed out": "test_hostile_agent",
}


def unexpected_lines(log):
    """Warnings and errors of the daemon that no test asked for."""
    unexpected = []
    for line in log.read_text(errors="replace").splitlines():
        try:
            level = json.loads(line)["level"]
        except (ValueError, KeyError, TypeError):
            # What the daemon says in plain words when it starts is no log line; a panic is one.
            level = "ERROR" if "panicked" in line else "INFO"
        if level in ("WARN", "ERROR") and not any(words in line for words in EXPECTED):
            unexpected.append(line)
    return unexpected


def log_lines(log, words):
    """The daemon's log lines that have these words in them. One that is being written is none yet."""
    whole, _, _ = log.read_text(errors="replace").rpartition("\n")
    return [line for line in whole.split("\n") if words in line]


@pytest.fixture(scope="session")
def cloud(daemon):
    """The daemon as AWS's client sees it."""
    cloud = Cloud(daemon, daemon.environment())
    yield cloud
    if daemon.process.poll() is None:
        cloud.terminate_all()
        daemon.stop()


@pytest.fixture(scope="session")
def probe_image(cloud):
    """An image of the app that tells what a guest sees."""
    return cloud.build_image(zip_folder(APPS / "probe"), name="probe")


@pytest.fixture
def vm(cloud, probe_image):
    """A running MicroVM of the test's own."""
    with cloud.launch(probe_image) as vm:
        yield vm.running()


@pytest.fixture(scope="session")
def beside(request, cloud, probe_image):
    """What tests that mostly wait came to: they all began at the start of the suite."""
    scenarios = {
        item.name: item.get_closest_marker("beside").kwargs["scenario"]
        for item in request.session.items if item.get_closest_marker("beside")
    }
    with concurrent.futures.ThreadPoolExecutor(len(scenarios) or 1) as pool:
        yield {name: pool.submit(scenario, cloud, probe_image) for name, scenario in scenarios.items()}


@pytest.fixture
def outcome(request, beside):
    """What this test's scenario returned; raises what it raised."""
    return beside[request.node.name].result(timeout=480)


@pytest.fixture(scope="session", autouse=True)
def begin_waiting(request):
    """Starts what takes long before the first test."""
    if any(item.get_closest_marker("beside") for item in request.session.items):
        request.getfixturevalue("beside")
