"""Many operations later: each MicroVM has what its app confirmed, and the host has what belongs to those that live.

DORMOUSE_TEST_SEED, which is printed, chooses the operations.
"""

import collections
import concurrent.futures
import os
import random

from harness.host import discrepancies, slots
from harness.polling import until

SEED = os.environ.get("DORMOUSE_TEST_SEED") or str(random.SystemRandom().randrange(10**6))
NEVER = (600, 28_800, True)
# As many for each client.
OPERATIONS = 201
CLIENTS = 3
CYCLES = 100
# A second apart.
LOOKS = 4


class Walk:
    """What one client does with a MicroVM of its own, and with the next when that is over."""

    def __init__(self, cloud, image, seed):
        self.cloud, self.image = cloud, image
        self.chance = random.Random(seed)
        self.states = {}
        self.launch()

    def launch(self):
        self.vm = self.cloud.launch(self.image, idle=NEVER).running()
        self.visits = 0

    def visit(self):
        self.visits += 1
        assert self.vm.endpoint.get("/").json() == {"counter": self.visits}

    def suspend(self):
        # Only what runs can be suspended.
        self.visit()
        self.vm.suspend()
        self.vm.wait("SUSPENDED")

    def resume(self):
        self.suspend()
        self.vm.resume()
        self.vm.wait("RUNNING")

    def replace(self):
        self.vm.terminate()
        self.states[self.vm.id] = self.vm.wait("TERMINATED")["state"]
        self.launch()

    def go(self, steps):
        for _ in range(steps):
            self.chance.choice([self.visit, self.suspend, self.resume, self.replace])()
        self.states[self.vm.id] = self.vm.state
        return self.states


def test_two_hundred_random_operations_leave_nothing_behind(cloud, probe_image):
    print(f"DORMOUSE_TEST_SEED={SEED}")
    # What the tests before this one had is still being given back.
    cloud.wait_until_nothing_ends()
    before = settled_kinds()
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        walks = [pool.submit(Walk, cloud, probe_image, f"{SEED}-{n}") for n in range(CLIENTS)]
        walks = [walk.result() for walk in walks]
        states = {}
        for walk in [pool.submit(walk.go, OPERATIONS // CLIENTS) for walk in walks]:
            states |= walk.result()
    everything = cloud.states()
    assert {vm_id: everything.get(vm_id, "TERMINATED") for vm_id in states} == states
    assert not discrepancies(cloud.daemon, everything)
    for walk in walks:
        walk.vm.terminate()
        everything[walk.vm.id] = walk.vm.wait("TERMINATED")["state"]
    assert not discrepancies(cloud.daemon, everything)
    # Spare slots are made in the background.
    until(kinds, f"there is again {before}", 60, when=lambda found: found == before)


def kinds():
    """How many namespaces, links, control groups and tables there are."""
    return collections.Counter(name.split()[0] for name in slots())


def settled_kinds():
    """The same once nothing is made or deleted in the background any more: when several looks see it alike."""
    looks = []

    def look():
        looks.append(kinds())
        return looks[-LOOKS:]

    until(look, "nothing comes or goes", 60, 1, when=lambda last: len(last) == LOOKS and last.count(last[0]) == LOOKS)
    return looks[-1]


def test_memory_and_disk_are_the_same_after_a_hundred_cycles(vm):
    app = vm.endpoint
    app.post("/ballast?mib=16")
    app.post("/file", SEED.encode())
    ballast = app.get("/ballast").json()
    for cycle in range(1, CYCLES + 1):
        vm.suspend()
        vm.wait("SUSPENDED")
        assert app.get("/").json() == {"counter": cycle}
        # What has been read once is not read again: every tenth time is enough.
        if cycle % 10 == 0:
            assert app.get("/ballast").json() == ballast
            assert app.get("/state").json()["file"] == SEED
