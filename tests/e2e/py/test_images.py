"""Images and their versions over their whole life, by boto3 and by the AWS CLI; what runs from them stays whole."""

import json
import subprocess
import time
import uuid

import botocore.auth
import pytest
import urllib3
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from conftest import APPS
from harness.artifact import zip_files, zip_folder
from harness.cloud import BUCKET, ROLE
from harness.daemon import CACHE
from harness.polling import until, until_gone

ABSENT = "arn:aws:lambda:us-east-1:000000000000:microvm-image:absent"
MANAGED = "arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector"


def refusal(call, **arguments):
    """Code, status and message of the error that this call must end with."""
    with pytest.raises(ClientError) as refused:
        call(**arguments)
    answer = refused.value.response
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Message"]


@pytest.fixture(scope="module")
def artifact():
    return zip_folder(APPS / "probe")


@pytest.fixture
def image(cloud, artifact):
    """An image of the test's own, built and without MicroVMs."""
    arn = cloud.build_image(artifact, name=f"own-{uuid.uuid4()}")
    yield arn
    for item in cloud.vms.list_microvms(imageIdentifier=arn)["items"]:
        cloud.vms.terminate_microvm(microvmIdentifier=item["microvmId"])


def update(cloud, arn, artifact, **more):
    return cloud.vms.update_microvm_image(
        imageIdentifier=arn, codeArtifact={"uri": cloud.upload(artifact)}, baseImageArn=cloud.base_arn,
        buildRoleArn=ROLE, resources=[{"minimumMemoryInMiB": 512}], **more)


def build_folders(cloud):
    return {path.name for path in (cloud.daemon.data_dir / "builds").iterdir()}


def build_machines(cloud):
    """The process ids of machines that build; those of MicroVMs come and go meanwhile."""
    return {pid for pid, folder in cloud.daemon.machines().items() if folder.endswith(("/build-vm", "/final-vm"))}


def test_acceptance_1_run_echoes_its_defaults(cloud, probe_image):
    with cloud.launch(probe_image) as vm:
        record = vm.record
        assert record["ResponseMetadata"]["HTTPStatusCode"] == 200
        assert record["state"] == "PENDING"
        assert "/" not in record["endpoint"]
        assert record["ingressNetworkConnectors"] == [f"{MANAGED}:HTTP_INGRESS"]
        assert record["egressNetworkConnectors"] == [f"{MANAGED}:INTERNET_EGRESS"]
        assert record["maximumDurationInSeconds"] == 28800
        assert "idlePolicy" not in record
        assert vm.running().state == "RUNNING"


def test_acceptance_2_wishes_may_be_repeated(cloud, probe_image):
    vm = cloud.launch(probe_image).running()
    client = cloud.vms
    for wish, state in ((client.suspend_microvm, "SUSPENDED"), (client.resume_microvm, "RUNNING"),
                        (client.terminate_microvm, "TERMINATED")):
        for _ in range(2):
            answer = wish(microvmIdentifier=vm.id)
            assert answer["ResponseMetadata"]["HTTPStatusCode"] == 200
            vm.wait(state)
    text = f"The MicroVM {vm.id} has been terminated and its state cannot be changed."
    for wish in (client.suspend_microvm, client.resume_microvm):
        assert refusal(wish, microvmIdentifier=vm.id) == ("ValidationException", 400, text)


def test_acceptance_3_only_an_active_version_runs(cloud, image):
    client = cloud.vms
    none = "No active version found for MicroVM image"
    assert refusal(client.run_microvm, imageIdentifier=ABSENT) == (
        "ResourceNotFoundException", 404, f"{none} {ABSENT}")
    off = client.update_microvm_image_version(imageIdentifier=image, imageVersion="1", status="INACTIVE")
    assert (off["state"], off["status"], off["imageVersion"]) == ("SUCCESSFUL", "INACTIVE", "1.0")
    assert "latestActiveImageVersion" not in client.get_microvm_image(imageIdentifier=image)
    assert refusal(client.run_microvm, imageIdentifier=image) == ("ResourceNotFoundException", 404, f"{none} {image}")
    for version in ("1", "1.0", "9"):
        assert refusal(client.run_microvm, imageIdentifier=image, imageVersion=version) == (
            "ResourceNotFoundException", 404, f"{none} {image} and version {version}")
    client.update_microvm_image_version(imageIdentifier=image, imageVersion="1.0", status="ACTIVE")
    with cloud.launch(image, imageVersion="1") as vm:
        assert vm.record["imageVersion"] == "1.0"
        assert vm.running().endpoint.get("/").json() == {"counter": 1}


def test_acceptance_12_an_image_from_creation_to_deletion(cloud, artifact):
    client, name = cloud.vms, f"life-{uuid.uuid4()}"
    before = build_folders(cloud)
    settings = {
        "codeArtifact": {"uri": cloud.upload(artifact)}, "baseImageArn": cloud.base_arn, "buildRoleArn": ROLE,
        "resources": [{"minimumMemoryInMiB": 512}],
    }
    created = client.create_microvm_image(name=name, tags={"team": "a"}, **settings)
    assert created["ResponseMetadata"]["HTTPStatusCode"] == 201
    assert (created["state"], created["imageVersion"]) == ("CREATING", "1.0")
    arn = created["imageArn"]
    assert refusal(client.create_microvm_image, name=name, **settings) == (
        "ValidationException", 400, f"A MicroVM image with the name '{name}' already exists in this account")
    mid_build = ("ValidationException", 400, f"Cannot delete MicroVM image in its current state: {arn}")
    assert refusal(client.delete_microvm_image, imageIdentifier=arn) == mid_build
    cloud.wait_for_image(arn)

    updated = update(cloud, arn, artifact)
    assert (updated["state"], updated["imageVersion"]) == ("UPDATING", "2.0")
    assert updated["latestActiveImageVersion"] == "1.0"
    busy = ("ConflictException", 409, "MicroVM Image is already in state: UPDATING")
    assert refusal(client.update_microvm_image, imageIdentifier=arn, **settings) == busy
    assert refusal(client.update_microvm_image_version, imageIdentifier=arn, imageVersion="1.0",
                   status="INACTIVE") == busy
    assert refusal(client.delete_microvm_image, imageIdentifier=arn) == mid_build
    assert cloud.wait_for_image(arn)["state"] == "UPDATED"
    versions = client.list_microvm_image_versions(imageIdentifier=arn)["items"]
    assert [item["imageVersion"] for item in versions] == ["2.0", "1.0"]

    deleted = client.delete_microvm_image_version(imageIdentifier=arn, imageVersion="2.0")
    assert {key: deleted[key] for key in ("imageIdentifier", "imageVersion", "state")} == {
        "imageIdentifier": arn, "imageVersion": "2.0", "state": "DELETING"}
    assert until_gone(client.get_microvm_image_version, imageIdentifier=arn, imageVersion="2.0")["Message"] == (
        f"MicroVMImage not found for MicroVMImage: {arn}, Version: 2.0")
    image = cloud.wait_for_image(arn)
    assert (image["state"], image["latestActiveImageVersion"]) == ("UPDATED", "1.0")
    assert refusal(client.delete_microvm_image_version, imageIdentifier=arn, imageVersion="1.0") == (
        "ValidationException", 400, "This is the last version. Please delete the entire image")

    vm = cloud.launch(arn).running()
    in_use = ("ValidationException", 400, "Cannot delete microvm image with running microvms.")
    assert refusal(client.delete_microvm_image, imageIdentifier=arn) == in_use
    vm.suspend()
    vm.wait("SUSPENDED")
    assert refusal(client.delete_microvm_image, imageIdentifier=arn) == in_use
    vm.terminate()
    vm.wait("TERMINATED")
    deleted = client.delete_microvm_image(imageIdentifier=arn)
    assert (deleted["imageIdentifier"], deleted["state"]) == (arn, "DELETING")
    assert until_gone(client.get_microvm_image, imageIdentifier=arn)["Message"] == (
        f"MicroVMImage not found for MicroVMImageID: {arn}")
    assert build_folders(cloud) == before, "nothing is left of it"
    client.create_microvm_image(name=name, **settings)
    cloud.wait_for_image(arn)


def test_acceptance_14_a_page_may_be_empty_and_not_the_last(cloud):
    client, mark = cloud.vms, uuid.uuid4().hex[:8]
    for name in (f"{mark}-wanted", f"{mark}-other", f"{mark}-another"):
        cloud.create_image(b"not a zip", name=name)
    pages = client.get_paginator("list_microvm_images").paginate(
        nameFilter=f"{mark}-wanted", PaginationConfig={"PageSize": 1})
    found = [page["items"] for page in pages]
    assert found[0] == [] and len(found) >= 3
    assert [item["name"] for items in found for item in items] == [f"{mark}-wanted"]


def test_acceptance_16_a_client_token_is_one_microvm(cloud, probe_image):
    token = str(uuid.uuid4())
    with cloud.launch(probe_image, clientToken=token) as first:
        assert cloud.launch(probe_image, clientToken=token).id == first.id
        code, status, _ = refusal(
            cloud.vms.run_microvm, imageIdentifier=probe_image, clientToken=token, maximumDurationInSeconds=100)
        assert (code, status) == ("ConflictException", 409)
    first.wait("TERMINATED")
    assert cloud.launch(probe_image, clientToken=token).id == first.id


def test_microvms_of_a_deleted_version_keep_running(cloud, image, artifact):
    vm = cloud.launch(image, idle=(600, 600, True)).running()
    assert vm.endpoint.get("/").json() == {"counter": 1}
    update(cloud, image, artifact)
    cloud.wait_for_image(image)
    before = build_folders(cloud)
    cloud.vms.delete_microvm_image_version(imageIdentifier=image, imageVersion="1.0")
    until_gone(cloud.vms.get_microvm_image_version, imageIdentifier=image, imageVersion="1.0")
    # Awake, asleep, and awake again from the golden memory.
    assert vm.endpoint.get("/").json() == {"counter": 2}
    vm.suspend()
    vm.wait("SUSPENDED")
    assert vm.endpoint.get("/").json() == {"counter": 3}
    assert build_folders(cloud) == before
    vm.terminate()
    vm.wait("TERMINATED")
    until(lambda: build_folders(cloud), "the files go with the last MicroVM", 30, when=lambda found: found != before)
    assert len(before - build_folders(cloud)) == 1


def test_what_was_launched_before_an_update_stays_what_it_was(cloud, image, artifact):
    old = cloud.launch(image).running()
    update(cloud, image, artifact, environmentVariables={"GREETING": "2"})
    with cloud.launch(image) as during:
        assert during.record["imageVersion"] == "1.0"
        during.running()
    cloud.wait_for_image(image)
    with cloud.launch(image) as new:
        assert new.record["imageVersion"] == "2.0"
        assert new.running().endpoint.get("/").json() == {"counter": 1}
    assert old.endpoint.get("/").json() == {"counter": 1}
    old.terminate()


def test_a_failed_update_leaves_what_was_active(cloud, image):
    update(cloud, image, b"not a zip")
    failed = cloud.wait_for_image(image, wanted="UPDATE_FAILED")
    assert (failed["latestActiveImageVersion"], failed["latestFailedImageVersion"]) == ("1.0", "2.0")
    version = cloud.vms.get_microvm_image_version(imageIdentifier=image, imageVersion="2")
    assert (version["state"], version["status"]) == ("FAILED", "INACTIVE")
    build = cloud.vms.list_microvm_image_builds(imageIdentifier=image, imageVersion="2.0")["items"][0]
    assert build["buildState"] == "FAILED"
    assert build["stateReason"].startswith("ARCHIVE_INVALID")
    with cloud.launch(image) as vm:
        assert vm.record["imageVersion"] == "1.0"


@pytest.mark.parametrize("wait_s", [0, 6])
def test_a_build_under_way_is_called_off_and_leaves_no_machine(cloud, wait_s):
    dockerfile = f'FROM localhost/debian:12\nRUN echo {uuid.uuid4()} && sleep 600\nCMD ["sleep", "1"]\n'
    before, machines = build_folders(cloud), build_machines(cloud)
    arn = cloud.create_image(zip_files({"Dockerfile": dockerfile}))
    until(lambda: build_machines(cloud) - machines, "the build VM starts", 60)
    time.sleep(wait_s)
    called_off = signed(cloud, "DELETE", arn, "?dormouse-cancel=true")
    assert called_off.status == 200, called_off.data
    until_gone(cloud.vms.get_microvm_image, imageIdentifier=arn)
    assert not build_machines(cloud) - machines
    assert build_folders(cloud) == before


def signed(cloud, method, arn, query):
    environment = cloud.environment
    path = f"/2025-09-09/microvm-images/{arn.replace(':', '%3A')}{query}"
    request = AWSRequest(method, environment["AWS_ENDPOINT_URL"] + path)
    keys = Credentials(environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"])
    botocore.auth.SigV4Auth(keys, "lambda", environment["AWS_REGION"]).add_auth(request)
    return urllib3.PoolManager(retries=False).request(method, request.url, headers=dict(request.headers))


def test_identifiers_that_are_none(cloud):
    get = cloud.vms.get_microvm_image
    assert refusal(get, imageIdentifier="my-image") == ("ValidationException", 400, "Invalid ARN format: my-image")
    assert refusal(get, imageIdentifier=ABSENT) == (
        "ResourceNotFoundException", 404, f"MicroVMImage not found for MicroVMImageID: {ABSENT}")
    for denied in (ABSENT.replace("000000000000", "999999999999"), ABSENT.replace("image:", "image/")):
        assert refusal(get, imageIdentifier=denied)[:2] == ("AccessDeniedException", 403)
    assert refusal(cloud.vms.run_microvm, imageIdentifier="my-image") == (
        "ValidationException", 400, "Malformed ARN - doesn't start with 'arn:'")


def test_each_operation_by_the_aws_cli(cloud, artifact):
    def cli(*command):
        done = subprocess.run(
            [CACHE / "venv/bin/aws", "lambda-microvms", *command], capture_output=True, text=True, timeout=60,
            env=cloud.environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout.strip() else None

    base = cli("list-managed-microvm-images")["items"][0]["imageArn"]
    versions = cli("list-managed-microvm-image-versions", "--image-identifier", base)["items"]
    assert versions[0]["imageVersion"] == "1"
    settings = ["--code-artifact", f"uri={cloud.upload(artifact)}", "--base-image-arn", base, "--build-role-arn", ROLE,
                "--resources", "minimumMemoryInMiB=512"]
    arn = cli("create-microvm-image", "--name", f"cli-{uuid.uuid4()}", "--tags", "a=1", *settings)["imageArn"]
    of_image = ["--image-identifier", arn]
    cloud.wait_for_image(arn)
    assert cli("get-microvm-image", *of_image)["tags"] == {"a": "1"}
    assert arn in [item["imageArn"] for item in cli("list-microvm-images")["items"]]
    assert cli("update-microvm-image", *of_image, *settings)["imageVersion"] == "2.0"
    cloud.wait_for_image(arn)
    assert len(cli("list-microvm-image-versions", *of_image)["items"]) == 2
    of_version = [*of_image, "--image-version", "2.0"]
    build = cli("list-microvm-image-builds", *of_version)["items"][0]
    got = cli("get-microvm-image-build", *of_version, "--build-id", build["buildId"])
    assert got["snapshotBuild"]["memorySnapshotSizeInBytes"] > 0
    assert cli("update-microvm-image-version", *of_version, "--status", "INACTIVE")["status"] == "INACTIVE"
    assert cli("get-microvm-image-version", *of_version)["status"] == "INACTIVE"
    assert cli("tag-resource", "--resource", arn, "--tags", "b=2") is None
    assert cli("untag-resource", "--resource", arn, "--tag-keys", "a") is None
    assert cli("list-tags", "--resource", arn)["Tags"] == {"b": "2"}
    assert cli("delete-microvm-image-version", *of_version)["state"] == "DELETING"
    until_gone(cloud.vms.get_microvm_image_version, imageIdentifier=arn, imageVersion="2.0")
    cloud.wait_for_image(arn)
    assert cli("delete-microvm-image", *of_image)["state"] == "DELETING"
    until_gone(cloud.vms.get_microvm_image, imageIdentifier=arn)


@pytest.mark.parametrize("wait_s", [0, 0.05])
def test_kill_in_the_middle_of_a_deletion(cloud, artifact, wait_s):
    before = build_folders(cloud)
    arn = cloud.build_image(artifact, name=f"killed-{uuid.uuid4()}")
    cloud.vms.delete_microvm_image(imageIdentifier=arn)
    time.sleep(wait_s)
    cloud.daemon.kill()
    cloud.daemon.start()
    until_gone(cloud.vms.get_microvm_image, imageIdentifier=arn)
    assert build_folders(cloud) == before


def test_errors_of_creation_have_awss_words(cloud):
    def create(**more):
        settings = {"name": "wrong", "codeArtifact": {"uri": f"s3://{BUCKET}/x.zip"}, "baseImageArn": cloud.base_arn,
                    "buildRoleArn": ROLE}
        return refusal(cloud.vms.create_microvm_image, **(settings | more))

    assert create(codeArtifact={"uri": "https://example.com/x.zip"}) == (
        "ValidationException", 400,
        "CodeArtifact URI must be a valid S3 URI in the format: s3://<bucket>/<key>")
    assert create(resources=[{"minimumMemoryInMiB": 700}]) == (
        "ValidationException", 400,
        f"The requested memory size of 700 MiB is not supported by base MicroVM image {cloud.base_arn}. "
        "Supported memory sizes in MiB are: [512, 1024, 2048, 4096, 8192].")
    assert create(baseImageVersion="999") == (
        "ValidationException", 400,
        f"No managed MicroVM Image with arn {cloud.base_arn} and version 999 is available")
    assert create(name="bad name!") == (
        "ValidationException", 400,
        "1 validation error detected: Value 'bad name!' at 'name' failed to satisfy constraint: Member must satisfy "
        "regular expression pattern: [a-zA-Z0-9-_]+")
    assert refusal(cloud.vms.run_microvm, imageIdentifier=ABSENT, runHookPayload="x" * 4097) == (
        "ValidationException", 400,
        "1 validation error detected: Value at 'runHookPayload' failed to satisfy constraint: Member must have length "
        "less than or equal to 4096")


def test_a_payload_needs_a_run_hook(cloud, probe_image):
    assert refusal(cloud.vms.run_microvm, imageIdentifier=probe_image, runHookPayload="x") == (
        "ValidationException", 400, "The run hook must be enabled in the MicroVM image to pass the run hook payload")
