"""Quotas of one account, as configured, on a daemon of their own."""

import concurrent.futures
import time
import uuid

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from conftest import ACCEL, APPS, unexpected_lines
from harness.artifact import zip_files, zip_folder
from harness.cloud import ROLE, Cloud
from harness.daemon import CACHE, Daemon
from harness.polling import until

QUOTAS = """
[quotas]
images = 4
versions_per_image = 2
concurrent_builds = 2
memory_mib = 1024
[quotas.calls.ListManagedMicrovmImageVersions]
per_second = 1
burst = 3
[build]
concurrency = 1
"""


@pytest.fixture(scope="module")
def strict(home):
    """A daemon that allows one account very little."""
    config = home / "strict.toml"
    config.write_text(QUOTAS)
    log = CACHE / "e2e-quotas.log"
    log.unlink(missing_ok=True)
    daemon = Daemon(home / "strict", log, options=["--config", str(config), "--accel", ACCEL, "--log-format", "json"])
    daemon.start()
    cloud = Cloud(daemon, daemon.environment())
    yield cloud
    cloud.terminate_all()
    assert daemon.stop() == 0
    assert not daemon.sweep()
    assert not unexpected_lines(log), "\n".join(unexpected_lines(log))


@pytest.fixture(scope="module")
def image(strict):
    return strict.build_image(zip_folder(APPS / "probe"), name="probe")


def refusal(call, **arguments):
    with pytest.raises(ClientError) as refused:
        call(**arguments)
    answer = refused.value.response
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Message"]


def settings(cloud, artifact=b"not a zip"):
    return {"codeArtifact": {"uri": cloud.upload(artifact)}, "baseImageArn": cloud.base_arn, "buildRoleArn": ROLE}


def test_acceptance_3_memory_of_running_and_sleeping_microvms_is_bounded(strict, image):
    full = ("ServiceQuotaExceededException", 402,
            "The base maximum allocated memory limit has been reached for this account.")
    first, second = strict.launch(image).running(), strict.launch(image).running()
    assert refusal(strict.vms.run_microvm, imageIdentifier=image) == full
    first.suspend()
    first.wait("SUSPENDED")
    assert refusal(strict.vms.run_microvm, imageIdentifier=image) == full
    strict.daemon.kill()
    strict.daemon.start()
    assert refusal(strict.vms.run_microvm, imageIdentifier=image) == full
    first.terminate()
    first.wait("TERMINATED")
    with strict.launch(image) as third:
        third.running()
    second.terminate()


def test_builds_at_once_are_bounded(strict):
    dockerfile = f'FROM localhost/debian:12\nRUN echo {uuid.uuid4()} && sleep 5\nCMD ["true"]\n'
    sleeping = zip_files({"Dockerfile": dockerfile})
    arns = [strict.create_image(sleeping, name=f"slow-{number}") for number in range(2)]
    assert refusal(strict.vms.create_microvm_image, name="third", **settings(strict)) == (
        "ServiceQuotaExceededException", 402, "The maximum number of concurrent builds has been reached.")
    for arn in arns:
        # An app that ends at once cannot be snapshotted.
        strict.wait_for_image(arn, wanted="CREATE_FAILED")
    for arn in arns:
        strict.vms.delete_microvm_image(imageIdentifier=arn)


def test_images_and_versions_are_bounded(strict, image):
    client, arns = strict.vms, []
    until(lambda: client.list_microvm_images()["items"], "deleted images are gone", 60, when=lambda found: len(found) <= 1)
    for number in range(3):
        arns.append(strict.create_image(b"not a zip", name=f"image-{number}"))
        strict.wait_for_image(arns[-1], wanted="CREATE_FAILED")
    assert refusal(client.create_microvm_image, name="fifth", **settings(strict))[:2] == (
        "ServiceQuotaExceededException", 402)
    client.update_microvm_image(imageIdentifier=arns[0], **settings(strict))
    strict.wait_for_image(arns[0], wanted="UPDATE_FAILED")
    assert refusal(client.update_microvm_image, imageIdentifier=arns[0], **settings(strict))[:2] == (
        "ServiceQuotaExceededException", 402)


def test_calls_beyond_the_rate_are_throttled(strict):
    call = client(strict, {"total_max_attempts": 1}).list_managed_microvm_image_versions
    assert [status(call, strict.base_arn) for _ in range(3)] == [200, 200, 200]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        # One at a time, they might not come as fast as they may.
        until(lambda: list(pool.map(lambda _: status(call, strict.base_arn), range(4))), "one too many is refused", 60, 0,
              when=lambda answers: 429 in answers)
    time.sleep(1.5)
    assert status(call, strict.base_arn) == 200
    # A patient client never notices.
    patient = client(strict, {"mode": "standard", "total_max_attempts": 10})
    for _ in range(4):
        patient.list_managed_microvm_image_versions(imageIdentifier=strict.base_arn)


def client(cloud, retries):
    environment = cloud.environment
    return boto3.client(
        "lambda-microvms", endpoint_url=environment["AWS_ENDPOINT_URL"], region_name=environment["AWS_REGION"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"], config=Config(retries=retries))


def status(call, arn):
    try:
        return call(imageIdentifier=arn)["ResponseMetadata"]["HTTPStatusCode"]
    except ClientError as error:
        assert error.response["Error"]["Code"] == "ThrottlingException"
        assert int(error.response["ResponseMetadata"]["HTTPHeaders"]["retry-after"]) >= 1
        return error.response["ResponseMetadata"]["HTTPStatusCode"]
