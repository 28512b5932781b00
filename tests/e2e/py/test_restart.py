"""The daemon ends, in good order or at once; MicroVMs run on, and the next daemon takes them over."""

import subprocess
import time

import pytest
from harness.artifact import zip_folder
from harness.endpoint import Connection

NEVER = (600, 600, True)


def stop(daemon):
    assert daemon.stop() == 0


def kill(daemon):
    daemon.kill()


@pytest.mark.parametrize("end", [stop, kill])
def test_next_daemon_adopts_what_runs(cloud, probe_image, end):
    daemon = cloud.daemon
    awake = cloud.launch(probe_image, idle=NEVER).running()
    asleep = cloud.launch(probe_image, idle=NEVER).running()
    for vm in (awake, asleep):
        vm.endpoint.get("/")
        vm.endpoint.post("/file", vm.id.encode())
    before = {vm.id: vm.endpoint.get("/state").json() for vm in (awake, asleep)}
    samples = awake.endpoint.get("/watch").json()["samples"]
    asleep.suspend()
    asleep.wait("SUSPENDED")
    pid = daemon.machine_pids()[awake.id]

    end(daemon)
    time.sleep(2)
    assert daemon.machine_pids()[awake.id] == pid, "it runs on without a daemon"
    daemon.start()

    assert awake.state == "RUNNING"
    assert asleep.state == "SUSPENDED"
    for vm in (awake, asleep):
        after = vm.endpoint.get("/state").json()
        for what in ("counter", "file", "child", "hostname"):
            assert after[what] == before[vm.id][what]
    assert daemon.machine_pids()[awake.id] == pid, "it is still the same process"
    watch = awake.endpoint.get("/watch").json()
    assert watch["samples"] > samples
    # An adopted MicroVM obeys as any other.
    awake.suspend()
    awake.wait("SUSPENDED")
    assert awake.endpoint.get("/").json() == {"counter": 2}
    for vm in (awake, asleep):
        vm.terminate()
        vm.wait("TERMINATED")


@pytest.mark.parametrize("wait_s", [0, 0.05, 0.3])
def test_kill_in_the_middle_of_a_launch(cloud, probe_image, wait_s):
    vm = cloud.launch(probe_image)
    time.sleep(wait_s)
    cloud.daemon.kill()
    cloud.daemon.start()
    assert vm.running().endpoint.get("/").json() == {"counter": 1}
    vm.terminate()
    vm.wait("TERMINATED")


@pytest.mark.parametrize("wait_s", [0, 0.05, 0.3])
def test_kill_in_the_middle_of_a_suspend(cloud, probe_image, wait_s):
    vm = cloud.launch(probe_image, idle=NEVER).running()
    vm.endpoint.get("/")
    vm.endpoint.post("/ballast?mib=64")
    digest = vm.endpoint.get("/ballast").json()
    vm.suspend()
    time.sleep(wait_s)
    cloud.daemon.kill()
    cloud.daemon.start()
    vm.wait("SUSPENDED")
    assert vm.endpoint.get("/ballast").json() == digest
    assert vm.endpoint.get("/").json() == {"counter": 2}
    vm.terminate()
    vm.wait("TERMINATED")


@pytest.mark.parametrize("wait_s", [0, 0.05, 0.3])
def test_kill_in_the_middle_of_a_resume(cloud, probe_image, wait_s):
    vm = cloud.launch(probe_image, idle=NEVER).running()
    vm.endpoint.get("/")
    vm.suspend()
    vm.wait("SUSPENDED")
    vm.resume()
    time.sleep(wait_s)
    cloud.daemon.kill()
    cloud.daemon.start()
    vm.wait("RUNNING", "SUSPENDED")
    assert vm.endpoint.get("/").json() == {"counter": 2}
    vm.terminate()
    vm.wait("TERMINATED")


def test_kill_in_the_middle_of_a_terminate(cloud, probe_image):
    vm = cloud.launch(probe_image).running()
    vm.terminate()
    cloud.daemon.kill()
    cloud.daemon.start()
    vm.wait("TERMINATED")
    assert vm.id not in cloud.daemon.machine_pids()


def test_kill_in_the_middle_of_a_build(cloud):
    from conftest import APPS

    image = cloud.create_image(zip_folder(APPS / "probe"))
    time.sleep(3)
    cloud.daemon.kill()
    cloud.daemon.start()
    cloud.wait_for_image(image)
    with cloud.launch(image) as vm:
        assert vm.running().endpoint.get("/").json() == {"counter": 1}


def test_machine_that_died_while_nobody_looked_is_terminated(cloud, probe_image):
    import os
    import signal

    vm = cloud.launch(probe_image).running()
    cloud.daemon.kill()
    os.kill(cloud.daemon.machine_pids()[vm.id], signal.SIGKILL)
    cloud.daemon.start()
    record = vm.wait("TERMINATED")
    assert record["stateReason"] not in (None, "Success.")


def test_stop_lets_a_request_under_way_end(cloud, probe_image):
    vm = cloud.launch(probe_image).running()
    connection = Connection(vm.address, cloud.ca_file)
    connection.request("GET", "/stream?count=4&pause=0.5", headers=vm.endpoint.headers())
    response = connection.getresponse()
    assert response.readline() == b"0\n"
    assert cloud.daemon.stop() == 0
    assert response.read() == b"1\n2\n3\n"
    cloud.daemon.start()
    vm.terminate()
    vm.wait("TERMINATED")


def test_one_data_directory_has_one_daemon(cloud):
    from harness.daemon import BINARY, plain_environment

    second = subprocess.run(
        [BINARY, "serve", "--data-dir", cloud.daemon.data_dir, "--api-addr", "127.0.0.1:0", "--ingress-addr",
         "127.0.0.1:0"], capture_output=True, text=True, timeout=60, env=plain_environment())
    assert second.returncode != 0
    assert str(cloud.daemon.data_dir) in second.stderr


def test_nothing_is_left_when_all_are_terminated(cloud):
    """No process, no folder, no network namespace but the warm slots."""
    cloud.terminate_all()
    assert cloud.daemon.machines() == {}
    assert list((cloud.daemon.data_dir / "vms").iterdir()) == []
