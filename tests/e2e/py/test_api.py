"""The control API's rules: signatures, refusals in AWS's shape, repeats."""

import datetime
import json
import uuid

import botocore.auth
import pytest
import urllib3
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from harness.cloud import ROLE

MICROVMS = "/2025-09-09/microvms"
http = urllib3.PoolManager(retries=False)


@pytest.fixture
def call(cloud):
    """Sends a signed request. `spoil` may change it after it was signed."""

    def send(method="GET", path=MICROVMS, body=b"", key=None, secret=None, age_s=0, spoil=None):
        environment = cloud.environment
        credentials = Credentials(
            key or environment["AWS_ACCESS_KEY_ID"], secret or environment["AWS_SECRET_ACCESS_KEY"])
        request = AWSRequest(method, environment["AWS_ENDPOINT_URL"] + path, data=body)
        sign(botocore.auth.SigV4Auth(credentials, "lambda", environment["AWS_REGION"]), request, age_s)
        if spoil:
            spoil(request)
        return http.request(method, request.url, body=request.data, headers=dict(request.headers))

    return send


def sign(signer, request, age_s):
    """Signs as `age_s` seconds ago; botocore itself can only sign now."""
    moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age_s)
    stamp = moment.strftime(botocore.auth.SIGV4_TIMESTAMP)
    request.context["timestamp"] = stamp
    request.headers["X-Amz-Date"] = stamp
    canonical = signer.canonical_request(request)
    signature = signer.signature(signer.string_to_sign(request, canonical), request)
    signer._inject_signature_to_request(request, signature)


def refused(response, status, error):
    """Whether this is AWS's shape of a refusal; returns its message."""
    assert response.status == status, response.data
    assert response.headers["x-amzn-errortype"] == error
    assert uuid.UUID(response.headers["x-amzn-requestid"])
    body = json.loads(response.data)
    assert "__type" not in body
    return body.get("message", body.get("Message"))


def test_right_signature_is_accepted(call):
    response = call()
    assert response.status == 200, response.data
    assert "items" in json.loads(response.data)


def test_wrong_key_is_refused(call):
    assert refused(call(key="AKIAIOSFODNN7EXAMPLE"), 403, "UnrecognizedClientException")


def test_wrong_secret_is_refused(call):
    assert refused(call(secret="not-the-secret"), 403, "InvalidSignatureException")


@pytest.mark.parametrize("age_s", [1200, -1200])
def test_stale_date_is_refused(call, age_s):
    assert refused(call(age_s=age_s), 403, "InvalidSignatureException")


def test_changed_body_is_refused(call):
    def spoil(request):
        request.data = b'{"imageIdentifier":"another"}'

    body = b'{"imageIdentifier":"arn:aws:lambda:us-east-1:000000000000:microvm-image:x"}'
    assert refused(call("POST", body=body, spoil=spoil), 403, "InvalidSignatureException")


def test_changed_path_is_refused(call):
    def spoil(request):
        request.url = request.url.replace(MICROVMS, "/2025-09-09/microvm-images")

    assert refused(call(spoil=spoil), 403, "InvalidSignatureException")


def test_unsigned_request_is_refused(cloud):
    response = http.request("GET", cloud.environment["AWS_ENDPOINT_URL"] + MICROVMS)
    assert refused(response, 403, "MissingAuthenticationTokenException")


@pytest.mark.parametrize(
    ("wrong", "code", "status"),
    [("key", "InvalidAccessKeyId", 403), ("secret", "SignatureDoesNotMatch", 403)],
)
def test_s3_refuses_wrong_credentials(cloud, wrong, code, status):
    import boto3

    environment = cloud.environment
    s3 = boto3.client(
        "s3", endpoint_url=environment["AWS_ENDPOINT_URL"], region_name=environment["AWS_REGION"],
        aws_access_key_id="AKIAIOSFODNN7EXAMPLE" if wrong == "key" else environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key="wrong" if wrong == "secret" else environment["AWS_SECRET_ACCESS_KEY"],
    )
    with pytest.raises(ClientError) as refusal:
        s3.list_buckets()
    assert refusal.value.response["Error"]["Code"] == code
    assert refusal.value.response["ResponseMetadata"]["HTTPStatusCode"] == status



def test_unknown_path_is_refused(call):
    assert call(path="/2025-09-09/nothing").status == 404


def test_two_wrongs_are_named_in_one_message(call):
    response = call("POST", "/2025-09-09/microvm-images", b'{"name":"bad name!"}')
    message = refused(response, 400, "ValidationException")
    assert "validation errors detected" in message
    assert "Value null at 'codeArtifact'" in message


def test_unknown_microvm_is_not_found(cloud):
    absent = f"microvm-{uuid.uuid4()}"
    with pytest.raises(cloud.vms.exceptions.ResourceNotFoundException, match=f"MicroVM not found: {absent}"):
        cloud.vms.get_microvm(microvmIdentifier=absent)


def test_unknown_image_does_not_run(cloud):
    arn = "arn:aws:lambda:us-east-1:000000000000:microvm-image:absent"
    with pytest.raises(cloud.vms.exceptions.ResourceNotFoundException, match="No active version found"):
        cloud.launch(arn)


def test_image_name_is_taken_once(cloud, probe_image):
    with pytest.raises(cloud.vms.exceptions.ValidationException, match="already exists"):
        cloud.create_image(b"", name="probe")


def test_repeated_client_token_is_one_microvm(cloud, probe_image):
    token = str(uuid.uuid4())
    with cloud.launch(probe_image, clientToken=token) as first:
        assert cloud.launch(probe_image, clientToken=token).id == first.id
        with pytest.raises(cloud.vms.exceptions.ConflictException):
            cloud.launch(probe_image, clientToken=token, maximumDurationInSeconds=100)


def test_lists_come_in_pages(cloud, probe_image):
    vms = [cloud.launch(probe_image) for _ in range(3)]
    try:
        pages = cloud.vms.get_paginator("list_microvms").paginate(PaginationConfig={"PageSize": 2})
        listed = [item["microvmId"] for page in pages for item in page["items"]]
        assert len(listed) == len(set(listed))
        assert {vm.id for vm in vms} <= set(listed)
    finally:
        for vm in vms:
            vm.terminate()


def test_token_longer_than_an_hour_is_refused(cloud, vm):
    with pytest.raises(cloud.vms.exceptions.ValidationException, match="ExpirationMinutes 61 exceeded max allowed of 60."):
        vm.token(minutes=61)


def test_image_without_memory_setting_echoes_the_default(cloud):
    answer = cloud.vms.create_microvm_image(
        name=f"echo-{uuid.uuid4()}", codeArtifact={"uri": cloud.upload(b"not a zip")}, baseImageArn=cloud.base_arn,
        buildRoleArn=ROLE)
    assert answer["state"] == "CREATING"
    assert answer["resources"] == [{"minimumMemoryInMiB": 2048}]
    assert answer["imageVersion"] == "1.0"
