"""A guest that has taken its agent's place: it may answer the host as it likes, and harms itself alone."""

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest
from harness.artifact import zip_folder
from harness.endpoint import Connection

APPS = Path(__file__).parent.parent / "apps"
MALICE = ["silence", "noise", "endless head", "endless body", "endless tunnel", "yes"]
READ_MAX = 1 << 20
# An agent has half a minute for an answer. A suspend asks it to freeze, and when that fails to go on.
ANSWER_S, SUSPEND_S, END_S = 45, 90, 45


@pytest.fixture(scope="module")
def usurper_image(cloud):
    return cloud.build_image(zip_folder(APPS / "usurper"), name="usurper", additionalOsCapabilities=["ALL"])


class Neighbour(threading.Thread):
    """Asks an honest MicroVM all the time, and notes what came of it and how long it took."""

    def __init__(self, endpoint):
        super().__init__()
        self.endpoint, self.answers, self.over = endpoint, [], threading.Event()

    def run(self):
        while not self.over.wait(0.2):
            began = time.monotonic()
            try:
                status = self.endpoint.get("/").status
            except OSError as error:
                status = str(error)
            self.answers.append((status, time.monotonic() - began))


def read_some(endpoint):
    """What becomes of a request: its status, and how much of a body one cares to read."""
    connection = Connection(endpoint.address, endpoint.ca_file, timeout=120)
    try:
        connection.request("GET", "/", headers=endpoint.headers())
        answer = connection.getresponse()
        return answer.status, len(answer.read(READ_MAX))
    finally:
        connection.close()


def suffer(cloud, image, malice):
    """The life of a MicroVM whose agent is not the platform's."""
    with cloud.launch(image) as vm:
        vm.running().endpoint.post(f"/usurp?malice={quote(malice)}")
        time.sleep(3)
        began = time.monotonic()
        status, read = read_some(vm.endpoint)
        answered = time.monotonic()
        vm.suspend()
        while (state := vm.state) == "SUSPENDING":
            assert time.monotonic() - answered < SUSPEND_S
            time.sleep(0.2)
    while vm.state != "TERMINATED":
        assert time.monotonic() - answered < SUSPEND_S + END_S
        time.sleep(0.2)
    return {"status": status, "read": read, "answered after": answered - began, "suspend ended": state}


def resident_mib(daemon):
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) // 1024


def test_a_hostile_agent_harms_its_own_microvm_alone(cloud, vm, usurper_image):
    before = resident_mib(cloud.daemon)
    neighbour = Neighbour(vm.endpoint)
    neighbour.start()
    try:
        with ThreadPoolExecutor(len(MALICE)) as pool:
            lives = pool.map(lambda malice: suffer(cloud, usurper_image, malice), MALICE)
            suffered = dict(zip(MALICE, lives, strict=True))
    finally:
        neighbour.over.set()
        neighbour.join()
    for malice, outcome in suffered.items():
        # What comes through a tunnel is the app's own business, and nobody reads more of it than the client does.
        expected = (200, READ_MAX) if malice == "endless tunnel" else (502, 0)
        assert (outcome["status"], outcome["read"]) == expected, suffered
        assert outcome["answered after"] < ANSWER_S, suffered
    assert resident_mib(cloud.daemon) < before + 64
    assert len(neighbour.answers) > 20
    assert {status for status, _ in neighbour.answers} == {200}
    assert max(took for _, took in neighbour.answers) < ANSWER_S
