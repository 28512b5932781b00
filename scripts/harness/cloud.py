"""What one does with AWS's own client, boto3, in the words of the tests."""

import operator
import time
import uuid

import boto3

from .endpoint import TOKEN_HEADER, Endpoint
from .polling import until

BUCKET = "artifacts"
# Dormouse has no IAM: any role will do.
ROLE = "arn:aws:iam::000000000000:role/build"
ENDED = ("TERMINATED",)


class ImageFailed(Exception):
    """An image build failed; `reason` is what the API says of it."""

    def __init__(self, image_arn, reason, log):
        super().__init__(f"{image_arn}: {reason}\n{log}")
        self.image_arn = image_arn
        self.reason = reason
        self.log = log


class Cloud:
    """The daemon as its clients see it, by environment alone."""

    def __init__(self, daemon, environment, bucket=BUCKET):
        self.daemon = daemon
        self.bucket = bucket
        self.environment = environment
        self.ca_file = environment["CURL_CA_BUNDLE"]
        session = boto3.Session(
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
            region_name=environment["AWS_REGION"],
        )
        url = environment["AWS_ENDPOINT_URL"]
        self.vms = session.client("lambda-microvms", endpoint_url=url)
        self.s3 = session.client("s3", endpoint_url=url)
        self.base_arn = self.vms.list_managed_microvm_images()["items"][0]["imageArn"]

    def upload(self, content, key=None):
        """Puts an artifact into the bucket and returns its address."""
        key = key or f"{uuid.uuid4()}.zip"
        if self.bucket not in (bucket["Name"] for bucket in self.s3.list_buckets()["Buckets"]):
            self.s3.create_bucket(Bucket=self.bucket)
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=content)
        return f"s3://{self.bucket}/{key}"

    def create_image(self, artifact, name=None, memory_mib=512, **more):
        """Starts a build and returns the image's ARN."""
        answer = self.vms.create_microvm_image(
            name=name or f"test-{uuid.uuid4()}", codeArtifact={"uri": self.upload(artifact)},
            baseImageArn=self.base_arn, buildRoleArn=ROLE,
            resources=[{"minimumMemoryInMiB": memory_mib}], **more,
        )
        return answer["imageArn"]

    def wait_for_image(self, arn, timeout_s=300, wanted=None):
        """Waits until nothing is under way with an image; raises when its build failed, unless that is `wanted`."""
        deadline = time.monotonic() + timeout_s
        while True:
            image = self.vms.get_microvm_image(imageIdentifier=arn)
            if image["state"] == wanted or (wanted is None and image["state"] in ("CREATED", "UPDATED")):
                return image
            if image["state"] in ("CREATE_FAILED", "UPDATE_FAILED"):
                raise ImageFailed(arn, self.build_reason(arn), self.build_log(arn))
            if time.monotonic() > deadline:
                raise TimeoutError(f"{arn} is {image['state']} after {timeout_s} s\n{self.build_log(arn)}")
            time.sleep(0.2)

    def build_image(self, artifact, **more):
        """Builds an image and returns its ARN."""
        arn = self.create_image(artifact, **more)
        self.wait_for_image(arn)
        return arn

    def build_log(self, arn):
        return self.daemon.run("logs", arn.rpartition(":")[2])

    def build_reason(self, arn):
        return self.build(arn).get("stateReason")

    def build(self, arn, version="1.0"):
        """The build of an image's version."""
        of_version = {"imageIdentifier": arn, "imageVersion": version}
        newest = self.vms.list_microvm_image_builds(**of_version)["items"][0]
        return self.vms.get_microvm_image_build(**of_version, buildId=newest["buildId"])

    def launch(self, image_arn, idle=None, **more):
        """Runs a MicroVM. `idle` is (idle seconds, suspended seconds, wakes by itself)."""
        if idle:
            names = ("maxIdleDurationSeconds", "suspendedDurationSeconds", "autoResumeEnabled")
            more["idlePolicy"] = dict(zip(names, idle, strict=True))
        return Vm(self, self.vms.run_microvm(imageIdentifier=image_arn, **more))

    def states(self):
        """The states of all MicroVMs, by id."""
        pages = self.vms.get_paginator("list_microvms").paginate()
        return {item["microvmId"]: item["state"] for page in pages for item in page["items"]}

    def wait_until_nothing_ends(self):
        """Until then, what MicroVMs had is still being given back."""
        until(lambda: "TERMINATING" in self.states().values(), "nothing is ending", 60, when=operator.not_)

    def terminate_all(self, timeout_s=60):
        """Terminates whatever lives and waits until it is gone."""
        live = [vm_id for vm_id, state in self.states().items() if state not in ENDED]
        for vm_id in live:
            self.vms.terminate_microvm(microvmIdentifier=vm_id)
        for vm_id in live:
            wait_for_state(self.vms, vm_id, *ENDED, timeout_s=timeout_s)


class Vm:
    """One MicroVM."""

    def __init__(self, cloud, record):
        self.cloud = cloud
        self.id = record["microvmId"]
        self.address = record["endpoint"]
        self.record = record
        self._endpoint = None

    def get(self):
        return self.cloud.vms.get_microvm(microvmIdentifier=self.id)

    @property
    def state(self):
        return self.get()["state"]

    def token(self, minutes=60, ports=({"allPorts": {}},)):
        answer = self.cloud.vms.create_microvm_auth_token(
            microvmIdentifier=self.id, expirationInMinutes=minutes, allowedPorts=list(ports))
        return answer["authToken"][TOKEN_HEADER]

    @property
    def endpoint(self):
        """The way to its app, with a token for all ports that lasts as long as a test."""
        if self._endpoint is None:
            self._endpoint = self.with_token(self.token())
        return self._endpoint

    def with_token(self, token):
        return Endpoint(self.address, token, self.cloud.ca_file)

    def wait(self, *states, timeout_s=90):
        return wait_for_state(self.cloud.vms, self.id, *states, timeout_s=timeout_s)

    def running(self):
        self.wait("RUNNING")
        return self

    def suspend(self):
        self.cloud.vms.suspend_microvm(microvmIdentifier=self.id)

    def resume(self):
        self.cloud.vms.resume_microvm(microvmIdentifier=self.id)

    def terminate(self):
        self.cloud.vms.terminate_microvm(microvmIdentifier=self.id)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.terminate()


def wait_for_state(client, vm_id, *states, timeout_s=90):
    """Waits until a MicroVM is in one of these states and returns it; fails early once it has ended."""
    deadline = time.monotonic() + timeout_s
    while True:
        record = client.get_microvm(microvmIdentifier=vm_id)
        if record["state"] in states:
            return record
        if record["state"] in ENDED or time.monotonic() > deadline:
            raise TimeoutError(
                f"{vm_id} is {record['state']} ({record.get('stateReason')}), not {' or '.join(states)}")
        time.sleep(0.05)
