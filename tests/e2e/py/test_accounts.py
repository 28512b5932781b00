"""Several accounts on one daemon: keys come and go while it runs, and nothing crosses from one to the other."""

import configparser
import uuid

import boto3
import pytest
from botocore.exceptions import ClientError
from conftest import APPS
from harness.artifact import zip_folder
from harness.cloud import Cloud
from harness.polling import until

OTHER = "123456789012"


def clients(cloud, key_id, secret):
    session = boto3.Session(
        aws_access_key_id=key_id, aws_secret_access_key=secret, region_name=cloud.environment["AWS_REGION"])
    url = cloud.environment["AWS_ENDPOINT_URL"]
    return session.client("lambda-microvms", endpoint_url=url), session.client("s3", endpoint_url=url)


def make_key(cloud, account=OTHER):
    """Makes a key by the command line and returns its id and secret."""
    printed = configparser.ConfigParser()
    printed.read_string(cloud.daemon.run("key", "create", "--account", account))
    section = printed[account]
    return section["aws_access_key_id"], section["aws_secret_access_key"]


def status_of(call, **arguments):
    try:
        answer = call(**arguments)
    except ClientError as error:
        return error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
    return None, answer["ResponseMetadata"]["HTTPStatusCode"]


@pytest.fixture(scope="module")
def other(cloud):
    """The same daemon as another account sees it."""
    make_key(cloud)
    stranger = Cloud(cloud.daemon, cloud.daemon.environment(OTHER), bucket=f"artifacts-{OTHER}")
    yield stranger
    stranger.terminate_all()


def test_a_key_works_at_once_and_no_longer_once_it_is_deleted(cloud):
    key_id, secret = make_key(cloud)
    vms, s3 = clients(cloud, key_id, secret)
    assert vms.list_microvm_images()["items"] is not None
    assert s3.list_buckets()["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert f"{OTHER}  {key_id}" in cloud.daemon.run("key", "list")
    assert secret not in cloud.daemon.run("key", "list")
    cloud.daemon.run("key", "delete", key_id)
    assert key_id not in cloud.daemon.run("key", "list")
    until(lambda: status_of(vms.list_microvm_images)[0], "a deleted key is refused", 30)
    assert status_of(vms.list_microvm_images) == ("UnrecognizedClientException", 403)
    assert status_of(s3.list_buckets) == ("InvalidAccessKeyId", 403)


def test_no_operation_reaches_another_accounts_images(cloud, other, probe_image):
    client, image = other.vms, probe_image
    version = {"imageIdentifier": image, "imageVersion": "1.0"}
    build = cloud.vms.list_microvm_image_builds(**version)["items"][0]["buildId"]
    settings = {"codeArtifact": {"uri": "s3://any/key"}, "baseImageArn": cloud.base_arn,
                "buildRoleArn": f"arn:aws:iam::{OTHER}:role/build"}
    for call, arguments in (
        (client.get_microvm_image, {"imageIdentifier": image}),
        (client.update_microvm_image, {"imageIdentifier": image, **settings}),
        (client.delete_microvm_image, {"imageIdentifier": image}),
        (client.list_microvm_image_versions, {"imageIdentifier": image}),
        (client.get_microvm_image_version, version),
        (client.update_microvm_image_version, {**version, "status": "INACTIVE"}),
        (client.delete_microvm_image_version, version),
        (client.list_microvm_image_builds, version),
        (client.get_microvm_image_build, {**version, "buildId": build}),
        (client.list_tags, {"Resource": image}),
        (client.tag_resource, {"Resource": image, "Tags": {"a": "b"}}),
        (client.untag_resource, {"Resource": image, "TagKeys": ["a"]}),
        (client.run_microvm, {"imageIdentifier": image}),
        (client.list_microvms, {"imageIdentifier": image}),
    ):
        assert status_of(call, **arguments) == ("AccessDeniedException", 403), call
    assert image not in [item["imageArn"] for item in client.list_microvm_images()["items"]]
    assert cloud.vms.get_microvm_image(imageIdentifier=image)["state"] == "CREATED"


def test_no_operation_reaches_another_accounts_microvms(other, vm):
    client = other.vms
    for call, more in (
        (client.get_microvm, {}),
        (client.suspend_microvm, {}),
        (client.resume_microvm, {}),
        (client.terminate_microvm, {}),
        (client.create_microvm_auth_token, {"expirationInMinutes": 5, "allowedPorts": [{"allPorts": {}}]}),
        (client.create_microvm_shell_auth_token, {"expirationInMinutes": 5}),
    ):
        assert status_of(call, microvmIdentifier=vm.id, **more) == ("ResourceNotFoundException", 404), call
    assert client.list_microvms()["items"] == []
    assert vm.state == "RUNNING"


def test_another_accounts_bucket_is_closed(cloud, other):
    bucket, key = f"own-{uuid.uuid4()}", "key"
    cloud.s3.create_bucket(Bucket=bucket)
    cloud.s3.put_object(Bucket=bucket, Key=key, Body=b"content")
    upload = cloud.s3.create_multipart_upload(Bucket=bucket, Key="large")["UploadId"]
    s3 = other.s3
    for call, arguments in (
        (s3.get_object, {"Key": key}),
        (s3.put_object, {"Key": key, "Body": b"theirs"}),
        (s3.delete_object, {"Key": key}),
        (s3.delete_objects, {"Delete": {"Objects": [{"Key": key}]}}),
        (s3.list_objects, {}),
        (s3.list_objects_v2, {}),
        (s3.get_bucket_location, {}),
        (s3.delete_bucket, {}),
        (s3.list_multipart_uploads, {}),
        (s3.create_multipart_upload, {"Key": "large"}),
        (s3.upload_part, {"Key": "large", "UploadId": upload, "PartNumber": 1, "Body": b"theirs"}),
        (s3.list_parts, {"Key": "large", "UploadId": upload}),
        (s3.abort_multipart_upload, {"Key": "large", "UploadId": upload}),
    ):
        assert status_of(call, Bucket=bucket, **arguments) == ("AccessDenied", 403), call
    for call in (s3.head_bucket, s3.head_object):
        arguments = {"Key": key} if call == s3.head_object else {}
        assert status_of(call, Bucket=bucket, **arguments)[1] == 403, call
    assert status_of(s3.create_bucket, Bucket=bucket) == ("BucketAlreadyExists", 409)
    assert bucket not in [item["Name"] for item in s3.list_buckets()["Buckets"]]
    mine = f"theirs-{uuid.uuid4()}"
    s3.create_bucket(Bucket=mine)
    source = {"Bucket": bucket, "Key": key}
    assert status_of(s3.copy_object, Bucket=mine, Key="copy", CopySource=source) == ("AccessDenied", 403)
    part = s3.create_multipart_upload(Bucket=mine, Key="copy")["UploadId"]
    assert status_of(s3.upload_part_copy, Bucket=mine, Key="copy", UploadId=part, PartNumber=1,
                     CopySource=source) == ("AccessDenied", 403)
    assert cloud.s3.get_object(Bucket=bucket, Key=key)["Body"].read() == b"content"
    assert cloud.s3.create_bucket(Bucket=bucket)["ResponseMetadata"]["HTTPStatusCode"] == 200


def test_another_accounts_artifact_is_not_built(cloud, other):
    uri = cloud.upload(zip_folder(APPS / "probe"))
    answer = other.vms.create_microvm_image(
        name="stolen", codeArtifact={"uri": uri}, baseImageArn=other.base_arn,
        buildRoleArn=f"arn:aws:iam::{OTHER}:role/build")
    arn = answer["imageArn"]
    assert f":{OTHER}:" in arn
    other.wait_for_image(arn, wanted="CREATE_FAILED")
    build = other.vms.list_microvm_image_builds(imageIdentifier=arn, imageVersion="1.0")["items"][0]
    assert build["stateReason"].startswith("S3_ACCESS_DENIED")


def test_accounts_have_names_and_client_tokens_of_their_own(cloud, other, probe_image):
    image = other.build_image(zip_folder(APPS / "probe"), name="probe")
    assert image == probe_image.replace("000000000000", OTHER)
    token = str(uuid.uuid4())
    with cloud.launch(probe_image, clientToken=token) as ours, other.launch(image, clientToken=token) as theirs:
        assert ours.id != theirs.id
        ours.running()
        assert theirs.running().endpoint.get("/").json() == {"counter": 1}
        # A token of one MicroVM opens no other, whoever's it is.
        crossed = theirs.with_token(ours.token())
        assert crossed.get("/").status == 403
