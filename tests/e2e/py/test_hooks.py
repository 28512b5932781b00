"""Hooks: what a build and a MicroVM make of an app's answers (rows 9 and 10 of the acceptance list)."""

import concurrent.futures
import json
import time
from pathlib import Path

import pytest
from harness.artifact import zip_folder
from harness.cloud import ENDED, ImageFailed
from harness.polling import until

APPS = Path(__file__).parent.parent / "apps"
CHECK = "Please check your hook endpoint and application logs for more details."
PORT = 9000
LIFECYCLE = ("run", "resume", "suspend", "terminate")
NEVER = (600, 600, True)


def hooks(*names, ready_s=60, validate_s=60, lifecycle_s=10):
    """The `hooks` member with these enabled."""
    image = {
        name: "ENABLED" for name in ("ready", "validate") if name in names
    } | {"readyTimeoutInSeconds": ready_s, "validateTimeoutInSeconds": validate_s}
    microvm = {}
    for name in LIFECYCLE:
        if name in names:
            microvm |= {name: "ENABLED", f"{name}TimeoutInSeconds": lifecycle_s}
    return {"port": PORT, "microvmImageHooks": image, "microvmHooks": microvm}


@pytest.fixture(scope="module")
def app():
    return zip_folder(APPS / "hooks")


@pytest.fixture(scope="module")
def image(cloud, app):
    """An image with all hooks, whose ready hook says 503 twice before it agrees."""
    plan = {"ready": [503, 503, 200], "validate": [503, 200]}
    return cloud.build_image(
        app, name="hooks", hooks=hooks("ready", "validate", *LIFECYCLE), environmentVariables=planned(plan))


@pytest.fixture
def vm(cloud, image):
    with cloud.launch(image, idle=NEVER) as vm:
        yield vm.running()


def planned(answers):
    """The variable by which the app is told what its hooks answer: its image's layers stay the same."""
    return {"PLAN": json.dumps(answers)}


def plan(vm, hook, *answers):
    assert vm.endpoint.post(f"/plan/{hook}", json.dumps(answers).encode()).status == 200


def calls(vm, hook=None):
    found = vm.endpoint.get("/calls").json()
    return [call for call in found if hook in (None, call["hook"])]


def ended(vm, timeout_s=60):
    """Waits for the end and returns its reason; fails when it is not one that the test waits for."""
    return vm.wait(*ENDED, timeout_s=timeout_s)["stateReason"]


def failed_build(cloud, app, plan, wanted):
    with pytest.raises(ImageFailed) as failed:
        cloud.build_image(app, hooks=wanted, environmentVariables=planned(plan))
    return failed.value


@pytest.mark.parametrize(("hook", "answer", "text"), [
    ("ready", 500, "Ready hook check failed: the application returned a server error (HTTP 5xx) response"),
    ("ready", 404, "Ready hook check failed: the application returned a client error (HTTP 4xx) response"),
    ("validate", 500, "Validate hook check failed: the application returned a server error (HTTP 5xx) response"),
    ("ready", 503, "Ready hook invocation timed out after PT12S"),
    ("ready", "hold", "Ready hook invocation timed out after PT12S"),
    ("validate", 503, "Validate hook invocation timed out after PT15S"),
])
def test_build_ends_with_the_words_of_aws(cloud, app, hook, answer, text):
    # Only what is to run out may do so.
    timeouts = {"ready": {"ready_s": 12}, "validate": {"validate_s": 15}}[hook] if answer in (503, "hold") else {}
    failed = failed_build(cloud, app, {hook: [answer]}, hooks("ready", "validate", **timeouts))
    assert failed.reason == text
    assert f"{hook}: {answer}" in failed.log
    shown = cloud.vms.get_microvm_image_version(imageIdentifier=failed.image_arn, imageVersion="1.0")
    assert (shown["state"], shown["status"]) == ("FAILED", "INACTIVE")
    if answer in (500, 404):
        called = [line for line in failed.log.splitlines() if line.endswith(f"app: {hook}: {answer}")]
        numbered = [line for line in called if line.startswith("#")]
        assert len(numbered) == 1, "there is no second call"


def test_app_that_ends_under_validation_fails_the_build(cloud, app):
    failed = failed_build(cloud, app, {"validate": ["exit"]}, hooks("ready", "validate"))
    assert "exited with code 3 while its snapshot was validated" in failed.reason


def test_503_is_polled_on_fresh_connections(vm):
    ready = calls(vm, "ready")
    assert len(ready) == 3
    assert len({call["port"] for call in ready}) == 3
    for call in ready:
        assert call["path"] == "/aws/lambda-microvms/runtime/v1/ready"
        assert call["peer"] == "127.0.0.1"
        assert call["headers"]["host"] == f"localhost:{PORT}"
        assert call["headers"]["content-length"] == "0"
        assert call["body"] == ""


def test_what_the_validation_did_is_discarded(cloud, image, vm):
    assert calls(vm, "validate") == []
    plan(vm, "resume", 200)
    build = cloud.build(image)["buildId"]
    folder = cloud.daemon.data_dir / "builds" / build
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["working_set_pages"] > 100
    assert (folder / "working-set").stat().st_size < 1 << 20


def test_each_lifecycle_hook_is_called_in_its_place(cloud, image):
    payload = json.dumps({"v": 1, "text": "ä\n"})
    with cloud.launch(image, runHookPayload=payload) as vm:
        vm.running()
        [run] = calls(vm, "run")
        assert json.loads(run["body"]) == {"microvmId": vm.id, "runHookPayload": payload}
        assert run["headers"]["content-type"] == "application/json"
        vm.suspend()
        vm.wait("SUSPENDED")
        vm.resume()
        vm.wait("RUNNING")
        assert [call["hook"] for call in calls(vm)][-3:] == ["run", "suspend", "resume"]
        assert [call["body"] for call in calls(vm)][-2:] == ["", ""]


def test_run_hook_without_a_payload_has_no_such_key(vm):
    [run] = calls(vm, "run")
    assert json.loads(run["body"]) == {"microvmId": vm.id}


@pytest.mark.parametrize(("answer", "what"), [("400", "returned HTTP status 400"), ("hold", "timed out")])
def test_run_hook_that_fails_ends_the_microvm(cloud, image, answer, what):
    vm = cloud.launch(image, runHookPayload=answer)
    states = set()
    while (state := vm.state) not in ENDED:
        states.add(state)
        time.sleep(0.1)
    assert "RUNNING" not in states
    assert ended(vm) == f"Run lifecycle hook {what}. {CHECK}"


def test_suspend_hook_that_fails_ends_the_microvm(vm):
    plan(vm, "suspend", 500)
    vm.suspend()
    assert ended(vm) == f"Suspend lifecycle hook returned HTTP status 500. {CHECK}"


def test_resume_hook_that_fails_ends_the_microvm_which_never_runs(vm):
    plan(vm, "resume", 409)
    vm.suspend()
    vm.wait("SUSPENDED")
    vm.resume()
    assert ended(vm) == f"Resume lifecycle hook returned HTTP status 409. {CHECK}"


def test_waking_request_is_answered_after_the_resume_hook(vm):
    vm.suspend()
    vm.wait("SUSPENDED")
    assert [call["hook"] for call in calls(vm)][-1] == "resume"


def test_terminate_hook_is_waited_for_and_changes_nothing(vm):
    plan(vm, "terminate", "hold")
    began = time.monotonic()
    vm.terminate()
    assert ended(vm) == "Success."
    assert time.monotonic() - began > 9


def test_app_that_ends_is_502_at_once_and_the_microvm_ends_later(vm):
    vm.endpoint.post("/exit/7")

    def answer():
        found = vm.endpoint.get("/")
        return found.status, found.body

    # The microVM is there for 15 s more.
    until(answer, "there is no app", 12, when=lambda found: found == (502, b""))
    assert vm.state == "RUNNING"
    assert ended(vm) == "Container Stopped with Exit Code: 7"


def test_payload_needs_a_run_hook(cloud, probe_image):
    with pytest.raises(cloud.vms.exceptions.ValidationException,
                       match="The run hook must be enabled in the MicroVM image to pass the run hook payload"):
        cloud.launch(probe_image, runHookPayload="x")


def test_lifecycle_hooks_need_the_ready_hook(cloud, app):
    with pytest.raises(cloud.vms.exceptions.ValidationException,
                       match=r"The ready \(/ready\) MicroVM image hook must be enabled when any MicroVM lifecycle hook"):
        cloud.create_image(app, hooks=hooks("run"))


def test_hooks_of_many_microvms_do_not_mix(cloud, image):
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        vms = list(pool.map(lambda _: cloud.launch(image).running(), range(3)))
    for vm in vms:
        [run] = calls(vm, "run")
        assert json.loads(run["body"])["microvmId"] == vm.id
        vm.terminate()
