"""What happens when time passes. These run beside the other tests, from the start of the suite."""

import contextlib
import time

import pytest
from harness.endpoint import Connection

IDLE_S = 60
# The spec has AWS at 66 to 72 seconds; a loaded host under software emulation gets a little more.
IDLE_S_MAX = 78
FAR_S = 600
# What is to end within half a minute ends long before what is far.
END_S_MAX = 60


def since(moment):
    return time.monotonic() - moment


def idle(cloud, image):
    vm = cloud.launch(image, idle=(IDLE_S, FAR_S, True)).running()
    began = time.monotonic()
    vm.endpoint.get("/")
    used = time.monotonic()
    # Looking at it is no use of it.
    vm.wait("SUSPENDING", "SUSPENDED", timeout_s=IDLE_S_MAX + 20)
    # A late look makes these longer, never shorter.
    idle_s = since(used), since(began)
    vm.wait("SUSPENDED")
    answer = vm.endpoint.get("/").json()
    state = vm.state
    vm.terminate()
    return idle_s, answer, state


@pytest.mark.beside(scenario=idle)
def test_idle_microvm_is_suspended_and_woken(outcome):
    (after_use_s, since_before_s), answer, state = outcome
    assert after_use_s <= IDLE_S_MAX and IDLE_S <= since_before_s
    assert answer == {"counter": 2}
    assert state == "RUNNING"


@contextlib.contextmanager
def stream(vm, count, pause_s, token=None):
    """An answer that comes line by line."""
    app = vm.with_token(token) if token else vm.endpoint
    connection = Connection(vm.address, vm.cloud.ca_file, timeout=200)
    connection.request("GET", f"/stream?count={count}&pause={pause_s}", headers=app.headers())
    with contextlib.closing(connection):
        yield connection.getresponse()


def silent_stream(cloud, image):
    vm = cloud.launch(image, idle=(IDLE_S, FAR_S, True)).running()
    began = time.monotonic()
    with stream(vm, count=2, pause_s=1000) as response:
        assert response.readline() == b"0\n"
        used = time.monotonic()
        vm.wait("SUSPENDING", "SUSPENDED", timeout_s=IDLE_S_MAX + 20)
        idle_s = since(used), since(began)
    vm.wait("SUSPENDED")
    answer = vm.endpoint.get("/").json()
    vm.terminate()
    return idle_s, answer


@pytest.mark.beside(scenario=silent_stream)
def test_silent_stream_does_not_keep_it_awake(outcome):
    (after_use_s, since_before_s), answer = outcome
    assert after_use_s <= IDLE_S_MAX and IDLE_S <= since_before_s
    assert answer == {"counter": 1}


def talking_stream(cloud, image):
    """A line every 5 seconds for longer than the idle time and longer than the token lives."""
    vm = cloud.launch(image, idle=(IDLE_S, FAR_S, True)).running()
    token = vm.token(minutes=1)
    with stream(vm, count=17, pause_s=5, token=token) as response:
        lines = response.read().split()
    state = vm.state
    late = vm.with_token(token).get("/")
    vm.terminate()
    return len(lines), state, late


@pytest.mark.beside(scenario=talking_stream)
def test_stream_with_traffic_keeps_it_awake_and_outlives_its_token(outcome):
    lines, state, late = outcome
    assert lines == 17
    assert state == "RUNNING"
    assert (late.status, late.body) == (403, b"Token authentication failed")


def expired_token(cloud, image):
    vm = cloud.launch(image).running()
    token = vm.token(minutes=1)
    early = vm.with_token(token).get("/")
    time.sleep(62)
    late = vm.with_token(token).get("/")
    vm.terminate()
    return early.status, late.status, late.body


@pytest.mark.beside(scenario=expired_token)
def test_expired_token(outcome):
    assert outcome == (200, 403, b"Token authentication failed")


def lifetime(cloud, image):
    began = time.monotonic()
    vm = cloud.launch(image, maximumDurationInSeconds=20)
    record = vm.wait("TERMINATED", timeout_s=END_S_MAX)
    return since(began), record["stateReason"]


@pytest.mark.beside(scenario=lifetime)
def test_maximum_duration_ends_it(outcome):
    lived_s, reason = outcome
    assert 20 <= lived_s <= END_S_MAX
    assert reason == "MicroVM exceeded maximum lifetime."


def lifetime_asleep(cloud, image):
    began = time.monotonic()
    vm = cloud.launch(image, maximumDurationInSeconds=25).running()
    vm.suspend()
    vm.wait("SUSPENDED")
    record = vm.wait("TERMINATED", timeout_s=END_S_MAX)
    return since(began), record["stateReason"]


@pytest.mark.beside(scenario=lifetime_asleep)
def test_maximum_duration_counts_sleep(outcome):
    lived_s, reason = outcome
    assert 25 <= lived_s <= END_S_MAX
    assert reason == "MicroVM exceeded maximum lifetime."


def suspended_duration(cloud, image):
    vm = cloud.launch(image, idle=(FAR_S, 10, True)).running()
    began = time.monotonic()
    vm.suspend()
    vm.wait("SUSPENDED")
    record = vm.wait("TERMINATED", timeout_s=END_S_MAX)
    return since(began), record["stateReason"]


@pytest.mark.beside(scenario=suspended_duration)
def test_suspended_duration_ends_it(outcome):
    slept_s, reason = outcome
    assert 10 <= slept_s <= END_S_MAX
    assert reason == "MicroVM exceeded maximum suspended duration."


def no_sleep_allowed(cloud, image):
    began = time.monotonic()
    vm = cloud.launch(image, idle=(IDLE_S, 0, True)).running()
    launched = time.monotonic()
    record = vm.wait("TERMINATED", timeout_s=IDLE_S_MAX + 20)
    return since(launched), since(began), record["stateReason"]


@pytest.mark.beside(scenario=no_sleep_allowed)
def test_idle_microvm_with_no_suspended_duration_is_terminated(outcome):
    after_launch_s, since_before_s, reason = outcome
    assert after_launch_s <= IDLE_S_MAX + 10 and IDLE_S <= since_before_s
    assert reason == "MicroVM exceeded maximum suspended duration."


def no_policy(cloud, image):
    vm = cloud.launch(image).running()
    vm.endpoint.get("/")
    time.sleep(IDLE_S + 20)
    state = vm.state
    vm.terminate()
    return state


@pytest.mark.beside(scenario=no_policy)
def test_microvm_without_idle_policy_stays_awake(outcome):
    assert outcome == "RUNNING"
