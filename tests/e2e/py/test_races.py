"""Crowds that meet a MicroVM at the very moment it falls asleep."""

import concurrent.futures
import json

from conftest import log_lines
from harness.endpoint import TOKEN_HEADER, Connection
from harness.polling import until

ROUNDS = 5
CLIENTS = 200
# The suspend is called for when so many of them have their answers, and the others are on their way.
CLIENTS_BEFORE = 50
TIMEOUT_S = 120
BY_HAND = (600, 600, True)


def test_crowd_that_meets_a_suspend_is_answered_once_each_after_one_wake(cloud, probe_image):
    with cloud.launch(probe_image, idle=BY_HAND) as vm, concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        headers = {TOKEN_HEADER: vm.running().token()}
        vm.endpoint.get("/")
        numbers = []
        for round_number in range(1, ROUNDS + 1):
            crowd = [pool.submit(ask, vm, headers) for _ in range(CLIENTS)]
            for answered, answer in enumerate(concurrent.futures.as_completed(crowd, TIMEOUT_S), 1):
                numbers.append(answer.result())
                if answered == CLIENTS_BEFORE:
                    vm.suspend()
            # Where everybody was served before it slept, this request is the one that wakes it.
            wait_for_count(cloud, vm, "SUSPENDING", round_number)
            assert vm.endpoint.get("/state").json()["counter"] == 1 + CLIENTS * round_number
            # The launch, and one wake a round.
            assert count(cloud, vm, "RUNNING") == 1 + round_number
        # The app counts: a request that came twice, or an answer that was given twice, would show.
        assert sorted(numbers) == list(range(2, 2 + CLIENTS * ROUNDS))


def ask(vm, headers):
    """The number that the app gave."""
    connection = Connection(vm.address, vm.cloud.ca_file, TIMEOUT_S)
    try:
        connection.request("GET", "/", headers=headers)
        response = connection.getresponse()
        assert response.status == 200, response.status
        return json.loads(response.read())["counter"]
    finally:
        connection.close()


def count(cloud, vm, state):
    """How often the daemon says that the MicroVM came into this state."""
    lines = (json.loads(line) for line in log_lines(cloud.daemon.log, vm.id))
    return sum(line["fields"].get("state") == state for line in lines)


def wait_for_count(cloud, vm, state, wanted, timeout_s=60):
    until(lambda: count(cloud, vm, state), f"{vm.id} is {state} {wanted} times", timeout_s, 0.05, lambda found: found >= wanted)
