"""The process of a virtual machine dies under a build."""

import os
import signal
import time

import pytest
from harness.artifact import zip_files
from harness.cloud import ImageFailed
from harness.polling import until

DOCKERFILE = """FROM localhost/debian:12
RUN echo {salt} >/salt && sleep 1
CMD ["sleep", "infinity"]
"""


def kill_machine(daemon, folder, but=(), timeout_s=60):
    """Ends a build's machine as soon as there is one in a folder of this name; returns its process id."""
    def machine():
        return [pid for pid, path in daemon.machines().items() if path.endswith(f"/{folder}") and pid not in but]

    pid = until(machine, f"there is a machine in {folder}", timeout_s)[0]
    time.sleep(1)
    os.kill(pid, signal.SIGKILL)
    return pid


def artifact(salt):
    return zip_files({"Dockerfile": DOCKERFILE.format(salt=salt)})


@pytest.mark.parametrize("folder", ["build-vm", "final-vm"])
def test_a_build_gets_a_second_machine(cloud, folder):
    image = cloud.create_image(artifact(f"{folder} {time.time()}"))
    kill_machine(cloud.daemon, folder)
    cloud.wait_for_image(image)
    assert "trying once more" in cloud.build_log(image)


def test_a_build_gets_no_third_machine(cloud):
    image = cloud.create_image(artifact(f"third {time.time()}"))
    first = kill_machine(cloud.daemon, "final-vm")
    kill_machine(cloud.daemon, "final-vm", but=[first])
    with pytest.raises(ImageFailed, match="INTERNAL_PLATFORM_ERROR"):
        cloud.wait_for_image(image)
