"""What code in a guest can reach: the internet, and neither the host, nor its networks, nor another guest."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness.artifact import zip_files
from harness.polling import until

MIRROR = "http://deb.debian.org/debian/dists/bookworm/Release"
# A network beside the host, of the kind that offices and clusters have.
LAN_HOST, LAN_NEIGHBOUR = "192.168.213.1", "192.168.213.2"
LAN = "dmtest-lan"


@pytest.fixture(scope="module")
def app(cloud, probe_image):
    with cloud.launch(probe_image) as vm:
        yield vm.running().endpoint


@pytest.fixture(scope="module")
def other(cloud, probe_image):
    with cloud.launch(probe_image) as vm:
        yield vm.running()


def reach(app, host, port):
    return app.post(f"/connect?host={host}&port={port}&timeout=2").json()["outcome"]


def assert_unreachable(app, hosts, ports):
    """Tries every port of every host, all at once, since a packet that is dropped takes its time."""
    targets = [(host, port) for host in hosts for port in ports]
    with ThreadPoolExecutor(16) as pool:
        outcomes = pool.map(lambda target: reach(app, *target), targets)
    assert [target for target, outcome in zip(targets, outcomes, strict=True) if outcome == "open"] == []


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def is_open(host, port):
    with contextlib.suppress(OSError):
        socket.create_connection((host, port), timeout=3).close()
        return True
    return False


@pytest.fixture(scope="module")
def lan():
    """A second network of the host with a neighbour in it, who listens."""
    with contextlib.suppress(subprocess.CalledProcessError):
        ip("netns", "delete", LAN)
    ip("netns", "add", LAN)
    ip("link", "add", LAN, "type", "veth", "peer", "name", "eth0", "netns", LAN)
    ip("address", "add", f"{LAN_HOST}/24", "dev", LAN)
    ip("link", "set", LAN, "up")
    ip("-n", LAN, "address", "add", f"{LAN_NEIGHBOUR}/24", "dev", "eth0")
    ip("-n", LAN, "link", "set", "eth0", "up")
    ip("-n", LAN, "route", "add", "default", "via", LAN_HOST)
    neighbour = subprocess.Popen(
        ["ip", "netns", "exec", LAN, sys.executable, "-m", "http.server", "8099"], stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL)
    try:
        until(lambda: is_open(LAN_NEIGHBOUR, 8099), "the neighbour listens", 60)
        yield
    finally:
        neighbour.kill()
        neighbour.wait()
        ip("netns", "delete", LAN)


@pytest.fixture(scope="module")
def open_port():
    """A port on all of the host's addresses that accepts everybody."""
    with socket.create_server(("0.0.0.0", 0), backlog=64) as server:
        def accept():
            with contextlib.suppress(OSError):
                while True:
                    server.accept()[0].close()

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]


def host_addresses():
    links = json.loads(subprocess.run(["ip", "-4", "-json", "address"], check=True, capture_output=True).stdout)
    return sorted({address["local"] for link in links for address in link["addr_info"]} - {"127.0.0.1"})


def test_no_address_of_the_host_answers(app, lan, open_port):
    addresses = host_addresses()
    assert LAN_HOST in addresses
    assert len(addresses) >= 2
    for address in addresses:
        # One of a slot's may go meanwhile.
        assert is_open(address, open_port) or address not in host_addresses(), address
    assert_unreachable(app, addresses, [open_port])


def test_the_daemons_own_ports_do_not_answer(app, cloud):
    addresses = [*host_addresses(), "10.0.0.1", "169.254.53.53", "169.254.169.254"]
    assert_unreachable(app, addresses, [cloud.daemon.api_port, cloud.daemon.ingress_port])


def test_neighbours_of_the_host_do_not_answer(app, lan):
    socket.create_connection((LAN_NEIGHBOUR, 8099), timeout=3).close()
    assert reach(app, LAN_NEIGHBOUR, 8099) != "open"


@pytest.mark.parametrize("address", ["10.99.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "169.254.169.254"])
def test_private_ranges_do_not_answer(app, address):
    assert reach(app, address, 80) != "open"


def test_another_guest_does_not_answer(app, other, cloud):
    """The other's agent, at every address on its way to the host."""
    other.endpoint.get("/")
    namespaces = json.loads(subprocess.run(["ip", "-json", "netns"], check=True, capture_output=True).stdout or "[]")
    addresses = set()
    for namespace in namespaces:
        links = subprocess.run(
            ["ip", "-n", namespace["name"], "-4", "-json", "address"], capture_output=True, check=False)
        if links.returncode == 0:
            addresses |= {a["local"] for link in json.loads(links.stdout or "[]") for a in link["addr_info"]}
    addresses -= {"127.0.0.1"}
    assert len(addresses) >= 3, "slots have addresses"
    assert_unreachable(app, sorted(addresses), [61313])


def test_guest_cannot_reach_the_agent_of_its_own_machine(app):
    """The agent can do anything in the guest: only the host may speak to it."""
    for address in ("127.0.0.1", "10.0.0.2"):
        outcome = app.post(f"/fetch?url=http://{address}:61313/v1/hello").json()
        assert outcome["status"] != 200, address


@pytest.fixture(scope="module")
def mirror():
    """The Debian mirror, when it answers this host."""
    try:
        with urllib.request.urlopen(MIRROR, timeout=20) as response:
            assert response.status == 200
    except OSError as error:
        pytest.skip(f"no Debian mirror answers this host: {error}")


def test_the_internet_answers_by_name(app, mirror):
    fetched = app.post(f"/fetch?url={MIRROR}").json()
    assert fetched["status"] == 200, fetched
    assert fetched["bytes"] > 10_000


def test_a_build_updates_its_package_lists(cloud, mirror):
    dockerfile = (
        "FROM localhost/debian:12\n"
        # The smallest part of the archive; a mirror with an old copy of it will do.
        "RUN echo 'deb http://deb.debian.org/debian bookworm-updates main' >/etc/apt/sources.list"
        " && apt-get -o Acquire::Check-Valid-Until=false -o Acquire::Languages=none -o APT::Update::Error-Mode=any"
        " update\n"
        'CMD ["python3", "-m", "http.server", "8080"]\n')
    cloud.build_image(zip_files({"Dockerfile": dockerfile}))
