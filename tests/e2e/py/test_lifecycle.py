"""A MicroVM's life at its caller's word: suspend, resume, terminate, from every state."""

import concurrent.futures
import time

import pytest

NEVER = (600, 600, True)


def test_launch_echoes_the_defaults(cloud, vm):
    record = vm.get()
    assert record["maximumDurationInSeconds"] == 28800
    assert "idlePolicy" not in record
    assert [arn.rpartition(":")[2] for arn in record["ingressNetworkConnectors"]] == ["HTTP_INGRESS"]
    assert [arn.rpartition(":")[2] for arn in record["egressNetworkConnectors"]] == ["INTERNET_EGRESS"]
    assert "://" not in vm.address


def test_first_request_needs_no_polling(cloud, probe_image):
    with cloud.launch(probe_image) as vm:
        assert vm.endpoint.get("/").json() == {"counter": 1}


def test_suspend_and_resume_keep_everything(vm):
    app = vm.endpoint
    app.get("/")
    app.post("/file", b"kept")
    app.post("/ballast?mib=32")
    before, digest = app.get("/state").json(), app.get("/ballast").json()
    for _ in range(3):
        vm.suspend()
        vm.wait("SUSPENDED")
        vm.resume()
        vm.wait("RUNNING")
        asked = time.time()
        after = app.get("/state").json()
        answered = time.time()
        for what in ("counter", "file", "child", "hostname", "uid"):
            assert after[what] == before[what]
        assert after["child"]
        assert app.get("/ballast").json() == digest
        assert asked - 5 < after["time"] < answered + 1


def test_suspended_microvm_has_no_process(cloud, vm):
    assert vm.id in cloud.daemon.machine_pids()
    vm.suspend()
    vm.wait("SUSPENDED")
    assert vm.id not in cloud.daemon.machine_pids()


def test_suspending_twice_and_resuming_twice_is_fine(vm):
    vm.resume()
    assert vm.state == "RUNNING"
    vm.suspend()
    vm.wait("SUSPENDED")
    vm.suspend()
    assert vm.state == "SUSPENDED"


def test_request_wakes_a_suspended_microvm(cloud, probe_image):
    with cloud.launch(probe_image, idle=NEVER) as vm:
        vm.endpoint.get("/")
        vm.suspend()
        vm.wait("SUSPENDED")
        assert vm.endpoint.get("/").json() == {"counter": 2}
        assert vm.state == "RUNNING"


def test_waiting_requests_share_one_wake(cloud, probe_image):
    with cloud.launch(probe_image, idle=NEVER) as vm:
        vm.endpoint.get("/")
        vm.suspend()
        vm.wait("SUSPENDED")
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda _: vm.endpoint.get("/").json()["counter"], range(16)))
        assert sorted(answers) == list(range(2, 18))


def test_request_does_not_wake_without_auto_resume(cloud, probe_image):
    with cloud.launch(probe_image, idle=(600, 600, False)) as vm:
        vm.endpoint.get("/")
        vm.suspend()
        vm.wait("SUSPENDED")
        answer = vm.endpoint.get("/")
        assert (answer.status, answer.body) == (502, b"")
        assert vm.state == "SUSPENDED"
        vm.resume()
        vm.wait("RUNNING")
        assert vm.endpoint.get("/").json() == {"counter": 2}


def test_token_is_made_while_suspended(cloud, probe_image):
    with cloud.launch(probe_image, idle=NEVER) as vm:
        vm.running()
        vm.suspend()
        vm.wait("SUSPENDED")
        assert vm.with_token(vm.token()).get("/").status == 200


def pending(vm):
    pass


def running(vm):
    vm.running()


def suspending(vm):
    vm.running()
    vm.endpoint.post("/ballast?mib=64")
    vm.suspend()


def suspended(vm):
    vm.running()
    vm.suspend()
    vm.wait("SUSPENDED")


def resuming(vm):
    suspended(vm)
    vm.resume()


def terminating(vm):
    vm.running()
    vm.terminate()


def terminated(vm):
    vm.running()
    vm.terminate()
    vm.wait("TERMINATED")


@pytest.mark.parametrize("reach", [pending, running, suspending, suspended, resuming, terminating, terminated])
def test_terminate_from(cloud, probe_image, reach):
    vm = cloud.launch(probe_image)
    reach(vm)
    vm.terminate()
    record = vm.wait("TERMINATED", timeout_s=60)
    assert record["stateReason"] == "Success."
    assert record["terminatedAt"]
    assert vm.id not in cloud.daemon.machine_pids()
    assert not (cloud.daemon.data_dir / "vms" / vm.id).exists(), "its files are gone"
    assert vm.with_token(None).get("/").status == 403


def test_terminated_microvm_stays_so(cloud, vm):
    token = vm.token()
    vm.terminate()
    vm.wait("TERMINATED")
    refusal = cloud.vms.exceptions.ValidationException
    for change in (vm.suspend, vm.resume):
        with pytest.raises(refusal, match=f"The MicroVM {vm.id} has been terminated and its state cannot be changed."):
            change()
    answer = vm.with_token(token).get("/")
    assert (answer.status, answer.body) == (502, b"")


def test_app_that_ends_ends_its_microvm(cloud, probe_image):
    vm = cloud.launch(probe_image).running()
    vm.endpoint.post("/exit?code=42")
    record = vm.wait("TERMINATED", timeout_s=60)
    assert record["stateReason"] == "Container Stopped with Exit Code: 42"


def test_app_has_the_variables_that_aws_gives(cloud, probe_image, vm):
    environment = vm.endpoint.get("/environment").json()
    assert environment["AWS_LAMBDA_MICROVM_IMAGE_ARN"] == probe_image
    assert environment["AWS_LAMBDA_MICROVM_IMAGE_NAME"] == "probe"
    assert environment["AWS_LAMBDA_MICROVM_IMAGE_VERSION"] == "1.0"
    assert environment["AWS_REGION"] == cloud.environment["AWS_REGION"]
    assert not [name for name in environment if "SECRET" in name or "ACCESS_KEY" in name]
