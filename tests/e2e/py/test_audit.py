"""Who called what: a line for each control call; and whoever is refused too often has to wait."""

import http.client
import json

import pytest
from botocore.exceptions import ClientError
from conftest import log_lines

AUDIT = "dormouse::audit"
# On the loopback interface, and nobody else's in this suite.
ELSEWHERE = "127.0.0.79"


def lines(cloud, request_id):
    entries = (json.loads(line) for line in log_lines(cloud.daemon.log, AUDIT))
    return [entry["fields"] for entry in entries if entry["fields"].get("request_id") == request_id]


def test_each_call_has_one_line_without_secrets(cloud, vm):
    answer = cloud.vms.create_microvm_auth_token(
        microvmIdentifier=vm.id, expirationInMinutes=5, allowedPorts=[{"allPorts": {}}])
    [line] = lines(cloud, answer["ResponseMetadata"]["RequestId"])
    assert line["action"] == "CreateMicrovmAuthToken"
    assert line["account"] == "000000000000"
    assert line["access_key"] == cloud.environment["AWS_ACCESS_KEY_ID"]
    assert (line["source"], line["method"], line["status"]) == ("127.0.0.1", "POST", 200)
    assert vm.id in line["path"]
    assert "Boto3" in line["user_agent"]
    log = cloud.daemon.log.read_text()
    assert cloud.environment["AWS_SECRET_ACCESS_KEY"] not in log
    for token in answer["authToken"].values():
        assert token not in log


def test_a_refused_call_has_its_line(cloud):
    with pytest.raises(ClientError) as refused:
        cloud.vms.get_microvm(microvmIdentifier="microvm-00000000-0000-4000-8000-000000000000")
    [line] = lines(cloud, refused.value.response["ResponseMetadata"]["RequestId"])
    assert (line["action"], line["status"], line["error"]) == ("GetMicrovm", 404, "ResourceNotFoundException")

    status, headers = unsigned(cloud)
    assert status == 403
    [line] = lines(cloud, headers["x-amzn-requestid"])
    assert line["source"] == ELSEWHERE
    assert "account" not in line and "access_key" not in line
    assert line["error"] == "MissingAuthenticationTokenException"


def test_whoever_is_refused_too_often_waits_and_nobody_else(cloud):
    for _ in range(3000):
        status, headers = unsigned(cloud)
        if status != 403:
            break
    assert (status, headers["x-amzn-errortype"]) == (429, "ThrottlingException")
    assert int(headers["retry-after"]) >= 1
    [line] = lines(cloud, headers["x-amzn-requestid"])
    assert (line["source"], line["status"], line["error"]) == (ELSEWHERE, 429, "ThrottlingException")
    # Whoever is known is let in, wherever they are.
    assert cloud.vms.list_microvms()["items"] is not None


def unsigned(cloud):
    connection = http.client.HTTPConnection(
        "127.0.0.1", cloud.daemon.api_port, timeout=60, source_address=(ELSEWHERE, 0))
    try:
        connection.request("GET", "/2025-09-09/microvms")
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.headers
    finally:
        connection.close()
