"""What a guest has: memory, vCPUs, disk, environment, capabilities (row 18 of the acceptance list)."""

from pathlib import Path

import pytest
from harness.artifact import zip_folder

APPS = Path(__file__).parent.parent / "apps"
GIB = 1 << 30
DEFAULT_CAPABILITIES = 0xA80425FB


@pytest.fixture(scope="module")
def app():
    return zip_folder(APPS / "resources")


@pytest.fixture(scope="module")
def seen(cloud, app):
    """Builds an image, launches it and returns what its app sees."""
    images = []

    def look(**more):
        images.append(cloud.build_image(app, **more))
        with cloud.launch(images[-1]) as vm:
            return vm.running().endpoint.get("/").json()

    return look


@pytest.mark.parametrize(("memory_mib", "vcpus", "disk_gib"), [
    (512, 1, 8), (1024, 2, 8), (2048, 4, 8), (4096, 8, 16), (8192, 16, 32),
])
def test_guest_sees_four_times_its_baseline_and_its_peak(seen, memory_mib, vcpus, disk_gib):
    guest = seen(memory_mib=memory_mib)
    assert guest["vcpus"] == vcpus
    assert 0.95 < guest["mem_total_kib"] / (4 * memory_mib * 1024) <= 1
    assert 0.95 < guest["disk_bytes"] / (disk_gib * GIB) <= 1
    assert guest["shm_bytes"] == 64 << 20


def test_default_rights_are_those_of_a_container(seen):
    guest = seen()
    assert int(guest["capabilities"], 16) == DEFAULT_CAPABILITIES
    assert (guest["mount"], guest["sethostname"]) == ("PermissionError", "PermissionError")
    assert guest["cgroup"] == "OSError", "read-only"
    assert guest["open_files"] == [1024, 1024]
    assert not guest["kernel_runs_helper"], "it would run outside of the group that is frozen"


def test_all_capabilities_are_all_that_there_are(cloud, app):
    image = cloud.build_image(app, additionalOsCapabilities=["ALL"])
    with cloud.launch(image) as vm:
        guest = vm.running().endpoint.get("/").json()
        assert int(guest["capabilities"], 16) & (1 << 41) - 1 == 0x1FF_FFFF_FFFF
        for what in ("mount", "sethostname", "cgroup", "fuse"):
            assert guest[what] == "ok", what
        # It is in its place all the same: it sleeps, and wakes with what it had.
        vm.suspend()
        vm.wait("SUSPENDED")
        vm.resume()
        vm.wait("RUNNING")
        assert vm.endpoint.get("/").json()["cgroup"] == "ok"


def test_environment_is_the_images_then_the_callers_then_the_platforms(cloud, app):
    variables = {"OVERRIDDEN": "caller", "AWS_LAMBDA_MICROVM_IMAGE_NAME": "caller", "FROM_CALLER": "caller"}
    image = cloud.build_image(app, name="environment", environmentVariables=variables)
    with cloud.launch(image) as vm:
        environment = vm.running().endpoint.get("/").json()["environment"]
    assert environment["FROM_IMAGE"] == "image"
    assert environment["OVERRIDDEN"] == "caller"
    assert environment["FROM_CALLER"] == "caller"
    assert environment["AWS_LAMBDA_MICROVM_IMAGE_NAME"] == "environment"
    assert environment["AWS_LAMBDA_MICROVM_IMAGE_ARN"] == image
    assert environment["AWS_LAMBDA_MICROVM_IMAGE_VERSION"] == "1.0"
    assert environment["AWS_REGION"] == cloud.environment["AWS_REGION"]
    assert environment["HOME"]
    assert environment["PATH"]


def test_region_is_not_the_callers_to_set(cloud, app):
    with pytest.raises(cloud.vms.exceptions.ValidationException,
                       match="Environment variable key 'AWS_REGION' is reserved"):
        cloud.create_image(app, environmentVariables={"AWS_REGION": "eu-west-1"})


def test_other_memory_sizes_are_refused(cloud, app):
    with pytest.raises(cloud.vms.exceptions.ValidationException, match="requested memory size of 700 MiB"):
        cloud.create_image(app, memory_mib=700)
