"""A full disk: a clear state, nothing corrupt, and all is well once there is room again."""

import concurrent.futures
import contextlib
import os
import time

import pytest
from botocore.exceptions import ClientError
from conftest import log_lines
from harness.artifact import zip_files
from harness.cloud import ImageFailed
from harness.polling import until

# Room for records and logs; the daemon must be able to say what is wrong.
LEFT_BYTES = 4 << 20
NOTE = b"n" * (2 * LEFT_BYTES)
SETTLE_S, ATTEMPTS = 2, 10
STOPPED = "host disk is full: machine stopped"


@pytest.fixture
def full_disk(disk, cloud):
    """Fills the data directory's file system for as long as it is entered."""
    @contextlib.contextmanager
    def fill():
        # What is still ending gives room back.
        cloud.wait_until_nothing_ends()
        for _ in range(ATTEMPTS):
            with disk.full(LEFT_BYTES):
                # So may what ended before: it counts as full once it stays so.
                time.sleep(SETTLE_S)
                if free_bytes(disk) < 1.5 * LEFT_BYTES:
                    yield
                    return
        raise TimeoutError(f"{disk.folder} does not stay full")

    return fill


def free_bytes(disk):
    found = os.statvfs(disk.folder)
    return found.f_bavail * found.f_frsize


def test_suspend(vm, full_disk):
    app = vm.endpoint
    app.get("/")
    app.post("/file", b"kept")
    app.post("/ballast?mib=64")
    digest = app.get("/ballast").json()
    with full_disk():
        vm.suspend()
        record = vm.wait("RUNNING", timeout_s=60)
        deadline_reason = record.get("stateReason") or ""
        assert "space" in deadline_reason or "full" in deadline_reason
        assert app.get("/").json() == {"counter": 2}
    vm.suspend()
    vm.wait("SUSPENDED")
    state = app.get("/state").json()
    assert (state["counter"], state["file"]) == (2, "kept")
    assert app.get("/ballast").json() == digest


@pytest.mark.parametrize("daemon_ends", ["never", "before", "meanwhile"])
def test_a_guest_that_writes(cloud, vm, full_disk, daemon_ends):
    """Its machine stops, and goes on when there is room, whichever daemon it has by then."""
    vm.endpoint.get("/")
    if daemon_ends == "before":
        replace(cloud.daemon)
    with concurrent.futures.ThreadPoolExecutor(1) as pool, full_disk():
        writing = pool.submit(vm.endpoint.post, "/file?synced=1", NOTE)
        wait_for_stop(cloud, vm)
        if daemon_ends == "meanwhile":
            replace(cloud.daemon)
            wait_for_stop(cloud, vm, times=2)
    if daemon_ends != "meanwhile":
        assert writing.result().status == 200
    state = vm.endpoint.get("/state").json()
    assert (state["counter"], state["file"]) == (1, NOTE.decode())


def replace(daemon):
    daemon.kill()
    daemon.start()


def wait_for_stop(cloud, vm, times=1):
    def stops():
        return sum(vm.id in line for line in log_lines(cloud.daemon.log, STOPPED))

    until(stops, f"{vm.id} is stopped {times} times", 90, when=lambda found: found >= times)


def test_build(cloud, full_disk):
    dockerfile = (
        "FROM localhost/debian:12\n"
        "RUN dd if=/dev/urandom of=/ballast bs=1M count=64\n"
        'CMD ["python3", "-m", "http.server", "8080"]\n')
    artifact = zip_files({"Dockerfile": dockerfile})
    uploaded = cloud.upload(artifact)
    with full_disk(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(cloud, "upload", lambda _: uploaded)
        with pytest.raises(ImageFailed) as failed:
            cloud.build_image(artifact)
        assert failed.value.reason.startswith("DISK_STORAGE_FULL")
    image = cloud.build_image(artifact)
    with cloud.launch(image) as vm:
        assert vm.running().endpoint.get("/").status == 200


def test_launch(cloud, probe_image, full_disk):
    """No new MicroVM where those that are there need the room; the image stays well."""
    with full_disk(), pytest.raises(ClientError) as refused:
        cloud.launch(probe_image)
    assert refused.value.response["Error"]["Code"] == "InsufficientCapacityException"
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 500
    with cloud.launch(probe_image) as vm:
        assert vm.running().endpoint.get("/").json() == {"counter": 1}
