"""The main job from end to end, by each of AWS's own clients, told where to go by environment variables alone."""

import json
import os
import subprocess
import time
from pathlib import Path

import boto3
import pytest
from harness.artifact import zip_folder
from harness.cloud import ROLE, wait_for_state
from harness.daemon import CACHE, PROJECT
from harness.endpoint import TOKEN_HEADER, Endpoint
from harness.polling import until

HELLO = PROJECT / "examples/hello"
IDLE = {"maxIdleDurationSeconds": 600, "suspendedDurationSeconds": 600, "autoResumeEnabled": True}


def check_survival(before, after):
    for what in ("counter", "file", "child_pid", "hostname"):
        assert after[what] == before[what]
    assert after["child_alive"]
    assert after["child_ticks"] >= before["child_ticks"]
    assert after["random"] != before["random"]
    assert abs(after["time"] - time.time()) < 5


@pytest.fixture
def only_environment(cloud, monkeypatch):
    """This process as after `eval $(dormouse env)`."""
    for name in os.environ:
        monkeypatch.delenv(name)
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)


def test_boto3(only_environment):
    s3, vms = boto3.client("s3"), boto3.client("lambda-microvms")
    s3.create_bucket(Bucket="boto3")
    s3.put_object(Bucket="boto3", Key="hello.zip", Body=zip_folder(HELLO))
    base = vms.list_managed_microvm_images()["items"][0]["imageArn"]
    created = vms.create_microvm_image(
        name="hello-boto3", codeArtifact={"uri": "s3://boto3/hello.zip"}, baseImageArn=base, buildRoleArn=ROLE,
        resources=[{"minimumMemoryInMiB": 512}])
    assert created["state"] == "CREATING"
    image = created["imageArn"]
    state = until(lambda: vms.get_microvm_image(imageIdentifier=image)["state"], "the image is built", 300, 0.5,
                  when=lambda found: found != "CREATING")
    assert state == "CREATED"
    version = vms.get_microvm_image_version(imageIdentifier=image, imageVersion="1.0")
    assert (version["state"], version["status"]) == ("SUCCESSFUL", "ACTIVE")

    vm = vms.run_microvm(imageIdentifier=image, idlePolicy=IDLE)
    vm_id = vm["microvmId"]
    answer = vms.create_microvm_auth_token(
        microvmIdentifier=vm_id, expirationInMinutes=10, allowedPorts=[{"port": 8080}])
    app = Endpoint(vm["endpoint"], answer["authToken"][TOKEN_HEADER], os.environ["CURL_CA_BUNDLE"])
    assert app.get("/").json() == {"counter": 1}
    assert app.get("/").json() == {"counter": 2}
    app.post("/file", b"remember me")
    before = app.get("/state").json()
    assert before["user"] != 0

    vms.suspend_microvm(microvmIdentifier=vm_id)
    wait_for_state(vms, vm_id, "SUSPENDED")
    check_survival(before, app.get("/state").json())
    assert app.get("/").json() == {"counter": 3}
    assert vms.get_microvm(microvmIdentifier=vm_id)["state"] == "RUNNING"

    assert vm_id in [item["microvmId"] for item in vms.list_microvms(imageIdentifier=image)["items"]]
    vms.terminate_microvm(microvmIdentifier=vm_id)
    gone = wait_for_state(vms, vm_id, "TERMINATED")
    assert gone["stateReason"] == "Success."
    assert app.get("/").status == 502


def test_aws_cli_and_curl(cloud, tmp_path):
    def run(*command):
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=90,
                              env=cloud.environment, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def aws(*command):
        output = run(CACHE / "venv/bin/aws", *command)
        return json.loads(output) if output.startswith("{") else output

    def microvms(*command):
        return aws("lambda-microvms", *command)

    def wait_until(state, read):
        until(lambda: read()["state"], f"it is {state}", 300, 0.5, when=lambda found: found == state)

    (tmp_path / "hello.zip").write_bytes(zip_folder(HELLO))
    aws("s3", "mb", "s3://cli")
    aws("s3", "cp", "hello.zip", "s3://cli/hello.zip")
    base = microvms("list-managed-microvm-images")["items"][0]["imageArn"]
    image = microvms(
        "create-microvm-image", "--name", "hello-cli", "--code-artifact", "uri=s3://cli/hello.zip",
        "--base-image-arn", base, "--build-role-arn", ROLE, "--resources", "minimumMemoryInMiB=512")["imageArn"]
    wait_until("CREATED", lambda: microvms("get-microvm-image", "--image-identifier", image))

    vm = microvms(
        "run-microvm", "--image-identifier", image, "--idle-policy",
        "maxIdleDurationSeconds=600,suspendedDurationSeconds=600,autoResumeEnabled=true")
    named = ("--microvm-identifier", vm["microvmId"])
    token = microvms(
        "create-microvm-auth-token", *named, "--expiration-in-minutes", "10",
        "--allowed-ports", "port=8080")["authToken"][TOKEN_HEADER]

    def curl(path, *options):
        return json.loads(run(
            "curl", "--silent", "--show-error", "--fail", *options, "--header", f"{TOKEN_HEADER}: {token}",
            f"https://{vm['endpoint']}{path}"))

    assert curl("/") == {"counter": 1}
    assert curl("/", "--http2") == {"counter": 2}
    curl("/file", "--data", "remember me")
    before = curl("/state")
    microvms("suspend-microvm", *named)
    wait_until("SUSPENDED", lambda: microvms("get-microvm", *named))
    check_survival(before, curl("/state"))
    microvms("terminate-microvm", *named)
    wait_until("TERMINATED", lambda: microvms("get-microvm", *named))


def test_rust_sdk(cloud):
    """The flow in tests/sdk.rs, which is built and run here with what it cannot do itself: S3."""
    environment = cloud.environment | {
        "DORMOUSE_E2E_ARTIFACT": cloud.upload(zip_folder(HELLO)),
        "DORMOUSE_E2E_BASE_IMAGE": cloud.base_arn,
        "DORMOUSE_E2E_ROLE": ROLE,
    }
    built = os.environ.get("DORMOUSE_E2E_SDK_TEST", "")
    command = [built] if Path(built).is_file() else [
        "cargo", "test", "--quiet", "--locked", "--release", "-p", "dormouse-e2e", "-p", "dormouse", "--test", "sdk", "--"]
    done = subprocess.run(
        [*command, "--ignored", "--nocapture"], capture_output=True, text=True, stdin=subprocess.DEVNULL,
        timeout=1800, env=environment, cwd=Path(PROJECT))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
