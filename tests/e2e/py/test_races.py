"""Crowds that meet a MicroVM at the very moment it falls asleep."""

import concurrent.futures
import json
import time

from harness.endpoint import TOKEN_HEADER, Connection

ROUNDS = 5
CLIENTS = 200
# The clients come during so many seconds, and the suspend in the midst of them.
WINDOW_S = 0.4
BY_HAND = (600, 600, True)


def test_crowd_that_meets_a_suspend_is_answered_once_each_after_one_wake(cloud, probe_image):
    with cloud.launch(probe_image, idle=BY_HAND) as vm, concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        headers = {TOKEN_HEADER: vm.running().token()}
        vm.endpoint.get("/")
        numbers = []
        for round_number in range(1, ROUNDS + 1):
            crowd = list(pool.map(connected, [vm] * CLIENTS))
            began = time.monotonic()
            answers = [
                pool.submit(ask, connection, headers, began + WINDOW_S * place / CLIENTS)
                for place, connection in enumerate(crowd)
            ]
            wait_until(began + WINDOW_S / 2)
            vm.suspend()
            numbers += [answer.result(timeout=120) for answer in answers]
            # Where everybody was served before it slept, this request is the one that wakes it.
            wait_for_count(cloud, vm, "SUSPENDED", round_number)
            vm.wait("RUNNING", "SUSPENDED")
            assert vm.endpoint.get("/state").json()["counter"] == 1 + CLIENTS * round_number
            assert count(cloud, vm, "RESUMING") == round_number
        # The app counts: a request that came twice, or an answer that was given twice, would show.
        assert sorted(numbers) == list(range(2, 2 + CLIENTS * ROUNDS))


def connected(vm):
    """A connection that is ready to ask."""
    connection = Connection(vm.address, vm.cloud.ca_file, timeout=120)
    connection.connect()
    return connection


def ask(connection, headers, at):
    """Asks at this moment, and returns the number that the app gave."""
    wait_until(at)
    try:
        connection.request("GET", "/", headers=headers)
        response = connection.getresponse()
        assert response.status == 200, response.status
        return json.loads(response.read())["counter"]
    finally:
        connection.close()


def wait_until(moment):
    time.sleep(max(0, moment - time.monotonic()))


def count(cloud, vm, state):
    """How often the daemon says that the MicroVM came into this state."""
    lines = (json.loads(line) for line in cloud.daemon.log.read_text().splitlines() if vm.id in line)
    return sum(line["fields"].get("state") == state for line in lines)


def wait_for_count(cloud, vm, state, wanted, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while count(cloud, vm, state) < wanted:
        assert time.monotonic() < deadline, f"{vm.id} was {state} fewer than {wanted} times"
        time.sleep(0.05)
