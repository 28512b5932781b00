"""MicroVMs of one image: alike until they are thawed, and never after."""

import concurrent.futures
import itertools
import time

import interruptions
import pytest
from harness.polling import until

MANY = 20


@pytest.fixture
def siblings(cloud, probe_image):
    """Four MicroVMs of one image, launched one after the other, with the moment of each launch."""
    launched = []
    for _ in range(4):
        began = time.time()
        launched.append((began, cloud.launch(probe_image)))
    yield [(began, vm.running()) for began, vm in launched]
    for _, vm in launched:
        vm.terminate()


def test_random_numbers_differ(siblings):
    drawn = [vm.endpoint.get("/state").json()["random"] for _, vm in siblings]
    assert len(set(drawn)) == len(siblings)


def test_host_names_differ(siblings):
    names = [vm.endpoint.get("/state").json()["hostname"] for _, vm in siblings]
    assert len(set(names)) == len(siblings)


def test_clocks_are_right(siblings):
    for _, vm in siblings:
        asked = time.time()
        told = vm.endpoint.get("/state").json()["time"]
        answered = time.time()
        # A clock that nobody sets is off by the age of the snapshot.
        assert asked - 5 < told < answered + 1


def test_app_runs_nothing_between_restore_and_thaw(siblings):
    """The app samples clock and host name all the time, so the first jump that it alone saw is the snapshot.

    Had it run before its thaw, there would be samples more in one sibling than in another, or a sample with
    the new time and the old name, or one with a time between snapshot and launch.
    """
    jumps = until(lambda: own_jumps(siblings), "each has seen a jump", when=all)
    snapshots = {(seen[0]["samples"], tuple(seen[0]["from"])) for seen in jumps}
    assert len(snapshots) == 1, "the siblings do not agree on where they were frozen"
    for (began, vm), seen in zip(siblings, jumps, strict=True):
        (snapshot_time, snapshot_name), (first_time, first_name) = seen[0]["from"], seen[0]["to"]
        assert snapshot_time < began <= first_time
        assert first_name != snapshot_name
        assert first_name == vm.endpoint.get("/state").json()["hostname"]


def own_jumps(siblings):
    """The jumps that each saw, without those that are in the snapshot: its machine, too, may have stood still."""
    jumps = [vm.endpoint.get("/watch").json()["jumps"] for _, vm in siblings]
    return [[jump for jump in seen if not all(jump in others for others in jumps)] for seen in jumps]


def test_wake_is_a_single_jump(vm):
    before = vm.endpoint.get("/watch").json()["jumps"]
    vm.suspend()
    vm.wait("SUSPENDED")
    time.sleep(3)
    woken = time.time()

    def jumps_since():
        return vm.endpoint.get("/watch").json()["jumps"][len(before):]

    # Software emulation on a busy host can stall a guest for a moment; what matters is the jump over the sleep.
    after = until(jumps_since, "the app sees the jump", when=lambda found: over_the_sleep(found, woken))
    first = over_the_sleep(after, woken)[0]
    assert all(jump["from"][1] == jump["to"][1] for jump in after), "the host name stays"
    assert first["from"][0] < woken - 2, "nothing ran while it slept"


def over_the_sleep(jumps, woken):
    return [jump for jump in jumps if jump["to"][0] >= woken - 0.5]


def visits(number):
    """How often the MicroVM of this number is asked: not alike."""
    return 1 + number % 4


def test_twenty_at_once_each_with_its_own_state(cloud, probe_image):
    def live(number):
        vm = cloud.launch(probe_image)
        for _ in range(visits(number)):
            counter = vm.endpoint.get("/").json()["counter"]
        vm.endpoint.post("/file", f"I am {number}".encode())
        return vm, counter

    with concurrent.futures.ThreadPoolExecutor(MANY) as pool:
        lives = list(pool.map(live, range(MANY)))
    try:
        if not interruptions.SEED:
            assert {vm.id for vm, _ in lives} <= set(cloud.daemon.machine_pids()), "all run at the same time"
        states = [vm.endpoint.get("/state").json() for vm, _ in lives]
        assert [counter for _, counter in lives] == [visits(number) for number in range(MANY)]
        assert [state["counter"] for state in states] == [visits(number) for number in range(MANY)]
        assert [state["file"] for state in states] == [f"I am {number}" for number in range(MANY)]
        assert len({state["hostname"] for state in states}) == MANY
        assert len({state["random"] for state in states}) == MANY
    finally:
        for vm, _ in lives:
            vm.terminate()
    for vm, _ in lives:
        vm.wait("TERMINATED")
    assert not {vm.id for vm, _ in lives} & set(cloud.daemon.machine_pids())


def clocks(vm):
    """What the guest's clocks say, and between which moments of the host's they were asked."""
    asked = time.time()
    state = vm.endpoint.get("/state").json()
    return state, asked, time.time()


def two_sleeps(cloud, image):
    """The clocks before, between and after two sleeps; a timer runs out in the first."""
    vm = cloud.launch(image).running()
    vm.endpoint.post("/alarm?seconds=8")
    looks = [clocks(vm)]
    for _ in range(2):
        vm.suspend()
        vm.wait("SUSPENDED")
        time.sleep(12)
        looks.append(clocks(vm))
    vm.terminate()
    return looks


@pytest.mark.beside(scenario=two_sleeps)
def test_all_clocks_go_on_in_a_sleep(outcome):
    for (before, asked_before, told_before), (after, asked, told) in itertools.pairwise(outcome):
        for clock in ("monotonic", "boottime"):
            assert asked - told_before - 5 < after[clock] - before[clock] < told - asked_before + 1, outcome
        assert asked - 5 < after["time"] < told + 1, outcome
    (alarm,) = outcome[-1][0]["alarms"]
    assert alarm < outcome[-1][1] - 12, "it went off after the first of two sleeps"


def timer_in_a_sleep(cloud, image):
    """How long after the wake a timer fired that was due in the sleep."""
    vm = cloud.launch(image).running()
    vm.endpoint.post("/alarm?seconds=40")
    vm.suspend()
    vm.wait("SUSPENDED")
    time.sleep(42)
    woken = time.time()
    alarms = until(lambda: vm.endpoint.get("/state").json()["alarms"], "the alarm goes off", 60)
    vm.terminate()
    return alarms[0] - woken


@pytest.mark.beside(scenario=timer_in_a_sleep)
def test_a_timer_that_was_due_in_the_sleep_fires_at_once(outcome):
    assert -0.1 < outcome < 20
