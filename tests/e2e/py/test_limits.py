"""What an endpoint carries, what is beyond, and what its owner and operator see of it. See CONFIG in conftest."""

import concurrent.futures
import contextlib
import http.client
import json
import time

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from conftest import APPS, LIMITED_IN_FLIGHT, LIMITED_MIB, log_lines
from harness.artifact import zip_folder
from harness.endpoint import TOKEN_HEADER, Connection
from harness.polling import until

MB = 1_000_000


@pytest.fixture(scope="module")
def limited(cloud):
    """A MicroVM of the one size that has limits."""
    image = cloud.build_image(zip_folder(APPS / "probe"), name="limited", memory_mib=LIMITED_MIB)
    with cloud.launch(image, idle=(600, 600, True)) as vm:
        yield vm.running()


def own_metrics(cloud, vm):
    """What the MicroVM's account may read of it."""
    host = f"127.0.0.1:{cloud.daemon.api_port}"
    path = f"/_dormouse/v1/microvms/{vm.id}/metrics"
    environment = cloud.environment
    keys = Credentials(environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"])
    request = AWSRequest("GET", f"http://{host}{path}")
    SigV4Auth(keys, "lambda", environment["AWS_REGION"]).add_auth(request)
    connection = http.client.HTTPConnection(host, timeout=60)
    connection.request("GET", path, headers=dict(request.headers))
    answer = connection.getresponse()
    assert answer.status == 200
    return json.loads(answer.read())


def all_metrics(daemon):
    connection = http.client.HTTPConnection("127.0.0.1", daemon.metrics_port, timeout=60)
    connection.request("GET", "/metrics")
    answer = connection.getresponse()
    assert answer.getheader("content-type").startswith("text/plain")
    lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}


def test_more_in_flight_than_the_size_allows_is_429(limited, cloud):
    with contextlib.ExitStack() as held:
        for _ in range(LIMITED_IN_FLIGHT):
            answer = held.enter_context(endless_answer(limited))
            assert (answer.status, answer.readline()) == (200, b"0\n")
        assert own_metrics(cloud, limited)["inFlight"] == LIMITED_IN_FLIGHT
        refused = limited.endpoint.get("/")
        assert (refused.status, refused.headers["retry-after"], refused.body) == (429, "1", b"")
    until(lambda: limited.endpoint.get("/").status, "there is room again", 60, when=lambda status: status == 200)


@contextlib.contextmanager
def endless_answer(vm):
    """An answer that goes on for longer than any test."""
    with contextlib.closing(Connection(vm.address, vm.cloud.ca_file)) as connection:
        connection.request("GET", "/stream?count=1000&pause=0.5", headers=vm.endpoint.headers())
        yield connection.getresponse()


def test_bandwidth_is_paced(limited):
    began = time.monotonic()
    assert len(limited.endpoint.get(f"/download?bytes={3 * MB}").body) == 3 * MB
    took = time.monotonic() - began
    assert took > 2.5, f"{took} s for 3 MB at 1 MB/s"


def test_held_requests_are_all_answered(limited):
    limited.suspend()
    limited.wait("SUSPENDED")
    with concurrent.futures.ThreadPoolExecutor(4 * LIMITED_IN_FLIGHT) as pool:
        answers = pool.map(lambda _: limited.endpoint.get("/").status, range(4 * LIMITED_IN_FLIGHT))
        assert list(answers) == [200] * 4 * LIMITED_IN_FLIGHT


def test_operator_and_owner_see_it(limited, cloud, daemon):
    answer = limited.endpoint.get("/state?a=secret", traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    request_id = answer.headers["x-amzn-requestid"]
    [line] = until(lambda: log_lines(daemon.log, request_id), "it is logged")
    fields = json.loads(line)["fields"]
    assert (fields["microvm"], fields["path"], fields["status"]) == (limited.id, "/state", 200)
    assert fields["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert fields["bytes_out"] == len(answer.body)
    assert "secret" not in line and limited.endpoint.token not in line and TOKEN_HEADER.lower() not in line
    own = until(lambda: own_metrics(cloud, limited), "nothing is in flight", when=lambda found: found["inFlight"] == 0)
    everything = all_metrics(daemon)
    assert own["answers2xx"] >= 1
    label = f'microvm="{limited.id}"'
    assert everything[f'dormouse_microvm_answers_total{{{label},class="2xx"}}'] == own["answers2xx"]
    assert everything[f"dormouse_microvm_held_total{{{label}}}"] == own["held"] >= 1
    assert everything["dormouse_ingress_wake_seconds_count"] >= 1
