"""The daemon ends before any of its effects, or an effect fails: nothing is lost, and nothing is left.

The daemon runs with faults.c in its process here. Of the effects of each operation some are chosen by
DORMOUSE_TEST_SEED, which is printed; DORMOUSE_TEST_FAULTS says how many ("all": each one, in order).
"""

import concurrent.futures
import errno
import operator
import os
import random
import time
import uuid

import pytest
import wire_check
from botocore.exceptions import BotoCoreError, ClientError
from harness.artifact import zip_files
from harness.daemon import START_TIMEOUT_S
from harness.faults import Faults
from harness.host import discrepancies
from harness.polling import until

SEED = os.environ.get("DORMOUSE_TEST_SEED") or str(random.SystemRandom().randrange(10**6))
WANTED = os.environ.get("DORMOUSE_TEST_FAULTS", "3")
NEVER = (600, 28_800, True)
NOTE = b"what the app has confirmed"


@pytest.fixture(scope="module")
def faults(cloud, probe_image):
    """The suite's daemon, started again with faults in its process."""
    faults = Faults()
    restart(cloud, faults.environment)
    yield faults
    restart(cloud, {})


def restart(cloud, variables):
    cloud.daemon.stop()
    cloud.daemon.variables = variables
    cloud.daemon.start()


class Launch:
    """RunMicrovm. The client asks again when it was not answered, with the same token."""

    def prepare(self, cloud, image):
        self.cloud, self.image = cloud, image
        self.token = str(uuid.uuid4())

    def act(self):
        return self.cloud.launch(self.image, idle=NEVER, clientToken=self.token)

    def settle(self, vm):
        return vm.running()

    def verify(self, vm):
        assert vm.endpoint.get("/").json() == {"counter": 1}


class OfRunning:
    """What is done to a MicroVM that has something to lose."""

    def prepare(self, cloud, image):
        self.vm = cloud.launch(image, idle=NEVER).running()
        self.vm.endpoint.get("/")
        self.vm.endpoint.post("/file", NOTE)

    def settle(self, _):
        self.vm.wait(self.then)
        return self.vm

    def verify(self, _):
        assert self.vm.endpoint.get("/").json() == {"counter": 2}
        assert self.vm.endpoint.get("/state").json()["file"] == NOTE.decode()


class Suspend(OfRunning):
    then = "SUSPENDED"

    def act(self):
        self.vm.suspend()


class Resume(OfRunning):
    then = "RUNNING"

    def prepare(self, cloud, image):
        super().prepare(cloud, image)
        self.vm.suspend()
        self.vm.wait("SUSPENDED")

    def act(self):
        self.vm.resume()


class Terminate(OfRunning):
    then = "TERMINATED"

    def act(self):
        self.vm.terminate()

    def verify(self, _):
        assert self.vm.get()["stateReason"] == "Success."


class Build:
    """CreateMicrovmImage. A build may fail when its daemon ends; then nothing may be left of it."""

    def prepare(self, cloud, _):
        self.cloud = cloud
        self.name = f"faults-{uuid.uuid4()}"
        self.uri = cloud.upload(zip_files({"Dockerfile": "FROM localhost/debian:12\nCMD [\"sleep\", \"infinity\"]\n"}))

    def act(self):
        try:
            return self.cloud.vms.create_microvm_image(
                name=self.name, codeArtifact={"uri": self.uri}, baseImageArn=self.cloud.base_arn,
                buildRoleArn="arn:aws:iam::000000000000:role/build", resources=[{"minimumMemoryInMiB": 512}])
        except ClientError:
            images = self.cloud.vms.list_microvm_images(maxResults=50, nameFilter=self.name)["items"]
            assert [image["name"] for image in images] == [self.name]
            return images[0]

    def settle(self, image):
        self.arn = image["imageArn"]
        over = ("CREATED", "CREATE_FAILED")
        until(lambda: self.cloud.vms.get_microvm_image(imageIdentifier=self.arn)["state"] in over, "the build is over", 120)

    def verify(self, _):
        self.cloud.vms.delete_microvm_image(imageIdentifier=self.arn)
        until(lambda: not self.cloud.vms.list_microvm_images(nameFilter=self.name)["items"], "the image is gone", 60)


def perform(cloud, image, faults, operation, kill_at):
    """Does it, with the daemon's end before that effect of it. Returns how many effects there were without one."""
    operation.prepare(cloud, image)
    daemon = cloud.daemon
    faults.order(kill_at=kill_at)
    with concurrent.futures.ThreadPoolExecutor(1) as client:
        outcome = client.submit(lambda: insist(operation.settle, insist(operation.act)))
        while daemon.process.poll() is None and not outcome.done():
            time.sleep(0.01)
        effects = faults.effects
        faults.order()
        if daemon.process.poll() is not None:
            daemon.start()
        vm = outcome.result(timeout=360)
    at_rest(cloud)
    operation.verify(vm)
    if vm and vm.state != "TERMINATED":
        vm.terminate()
        vm.wait("TERMINATED")
    at_rest(cloud)
    return effects


def insist(ask, *arguments):
    """As a client does whom nobody answers. What came of the first time may refuse the second."""
    deadline = None
    while True:
        try:
            return ask(*arguments)
        except ClientError as error:
            assert error.response["Error"]["Code"] in ("ConflictException", "ValidationException"), error
            return None
        except BotoCoreError:
            # The next daemon has to start; what was asked before this one ended may have taken its time.
            deadline = deadline or time.monotonic() + START_TIMEOUT_S
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def at_rest(cloud):
    """Processes and files are those that the states ask for."""
    until(lambda: discrepancies(cloud.daemon, cloud.states()), "nothing is left over", 60, when=operator.not_)


@pytest.mark.parametrize("operation", [Launch, Suspend, Resume, Terminate, Build])
def test_daemon_ends_before_an_effect(cloud, probe_image, faults, operation):
    effects = perform(cloud, probe_image, faults, operation(), kill_at=0)
    points = range(1, effects + 1)
    if WANTED != "all":
        # One of each part, so that all of it is visited over time.
        chance, count = random.Random(f"{SEED}-{operation.__name__}"), int(WANTED)
        points = [chance.choice(points[n * effects // count : (n + 1) * effects // count]) for n in range(count)]
    for point in points:
        print(f"{operation.__name__} with DORMOUSE_TEST_SEED={SEED}: the end before effect {point} of {effects}")
        perform(cloud, probe_image, faults, operation(), point)


class TestOneEffectFails:
    """The disk says no. Whoever asked is told, and what ran runs on."""

    @pytest.mark.parametrize(("call", "error"), [("fsync", errno.EIO), ("open64", errno.EROFS), ("rename", errno.EIO)])
    def test_suspend(self, vm, faults, call, error):
        vm.endpoint.get("/")
        vm.endpoint.post("/file", NOTE)
        with faults.failing(call, f"{vm.id}", error):
            vm.suspend()
            until(lambda: faults.failed, f"{call} fails", 30)
            vm.wait("RUNNING")
            assert vm.endpoint.get("/").json() == {"counter": 2}
        vm.suspend()
        vm.wait("SUSPENDED")
        assert vm.endpoint.get("/state").json()["file"] == NOTE.decode()

    def test_launch(self, cloud, probe_image, faults):
        with faults.failing("open64", "/vms/", errno.EROFS):
            vm = cloud.launch(probe_image)
            record = vm.wait("TERMINATED")
            assert faults.failed
        assert "Read-only file system" in record["stateReason"]
        at_rest(cloud)

    def test_a_snapshot_that_cannot_be_renamed_away_is_not_run(self, vm, faults):
        vm.endpoint.get("/")
        vm.suspend()
        vm.wait("SUSPENDED")
        with faults.failing("rename", "/suspended", errno.EIO):
            assert vm.endpoint.get("/").status == 502
            assert faults.failed
        assert vm.endpoint.get("/").json() == {"counter": 2}

    def test_the_database(self, cloud, probe_image, faults, monkeypatch):
        """A wish that cannot be stored is refused; nothing of it happens."""
        before = set(cloud.states())
        monkeypatch.setattr(wire_check, "is_healthy", False)
        with faults.failing("pwrite64", ".db", errno.EIO):
            with pytest.raises(ClientError) as refused:
                cloud.launch(probe_image)
            assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 500
            assert faults.failed
        assert set(cloud.states()) == before
        with cloud.launch(probe_image) as vm:
            vm.running()
