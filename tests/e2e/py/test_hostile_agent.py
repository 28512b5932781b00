"""A guest that has taken its agent's place: it may answer the host as it likes, and harms itself alone."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest
from harness.artifact import zip_folder
from harness.endpoint import Connection
from harness.polling import until

APPS = Path(__file__).parent.parent / "apps"
MALICE = ["silence", "noise", "endless head", "endless body", "endless tunnel", "yes"]
READ_MAX = 1 << 20
# What the app says to a GET for as long as its agent is the platform's.
HONEST = 501
# An agent has half a minute for an answer. A suspend asks it to freeze, and when that fails to go on, again and again.
ANSWER_S, SUSPEND_S, END_S = 45, 90, 45


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
    """What becomes of a request: its status, how much of a body one cares to read, and how long that takes."""
    began = time.monotonic()
    connection = Connection(endpoint.address, endpoint.ca_file, timeout=120)
    try:
        connection.request("GET", "/", headers=endpoint.headers())
        answer = connection.getresponse()
        return answer.status, len(answer.read(READ_MAX)), time.monotonic() - began
    finally:
        connection.close()


def suffer(cloud, image, malice):
    """The life of a MicroVM whose agent is not the platform's."""
    with cloud.launch(image) as vm:
        vm.running().endpoint.post(f"/usurp?malice={quote(malice)}")
        time.sleep(3)
        status, read, took = until(
            lambda: read_some(vm.endpoint), "its agent is another", 60, 1, when=lambda seen: seen[0] != HONEST)
        answered = time.monotonic()
        vm.suspend()
        while (state := vm.state) == "SUSPENDING" and time.monotonic() - answered < SUSPEND_S:
            time.sleep(0.2)
    while vm.state != "TERMINATED":
        assert time.monotonic() - answered < SUSPEND_S + END_S
        time.sleep(0.2)
    return {"status": status, "read": read, "answered after": took, "state after": state}


def usurpers(cloud, probe_image):
    """The lives of all kinds of them at once, and how an honest neighbour fared."""
    image = cloud.build_image(zip_folder(APPS / "usurper"), name="usurper", additionalOsCapabilities=["ALL"])
    with cloud.launch(probe_image) as vm:
        neighbour = Neighbour(vm.running().endpoint)
        neighbour.start()
        try:
            with ThreadPoolExecutor(len(MALICE)) as pool:
                lives = pool.map(lambda malice: suffer(cloud, image, malice), MALICE)
                return dict(zip(MALICE, lives, strict=True)), neighbour.answers
        finally:
            neighbour.over.set()
            neighbour.join()


@pytest.mark.beside(scenario=usurpers)
def test_a_hostile_agent_harms_its_own_microvm_alone(outcome):
    suffered, neighbours = outcome
    for malice, life in suffered.items():
        # What comes through a tunnel is the app's own business, and nobody reads more of it than the client does.
        expected = (200, READ_MAX) if malice == "endless tunnel" else (502, 0)
        assert (life["status"], life["read"]) == expected, suffered
        assert life["answered after"] < ANSWER_S, suffered
    assert len(neighbours) > 20
    assert {status for status, _ in neighbours} == {200}
    assert max(took for _, took in neighbours) < ANSWER_S
