"""Network connectors of the account's own and the platform's: their life, and what they let through. STS beside."""

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError
from harness.polling import until, until_gone
from test_isolation import LAN_NEIGHBOUR, lan, reach  # noqa: F401

MANAGED = "arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:"
OPERATOR = "arn:aws:iam::000000000000:role/operator"
SUBNET = "subnet-lan"


@pytest.fixture(scope="module")
def session(cloud):
    environment = cloud.environment
    return boto3.Session(
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"], region_name=environment["AWS_REGION"])


@pytest.fixture(scope="module")
def core(cloud, session):
    return session.client("lambda-core", endpoint_url=cloud.environment["AWS_ENDPOINT_URL"])


def configuration(*subnets, **more):
    return {"VpcEgressConfiguration": {
        "SubnetIds": list(subnets), "NetworkProtocol": "IPv4", "AssociatedComputeResourceTypes": ["MicroVm"], **more}}


def create(core, *subnets, name=None, **more):
    settings = {"Configuration": configuration(*subnets or [SUBNET]), "OperatorRole": OPERATOR, **more}
    return core.create_network_connector(Name=name or f"c-{uuid.uuid4()}", **settings)


def settled(core, arn, *states):
    return until(lambda: core.get_network_connector(Identifier=arn), f"the connector is {' or '.join(states)}",
                 pause_s=0.02, when=lambda found: found["State"] in states)


def updated(core, arn):
    return until(lambda: core.get_network_connector(Identifier=arn), "the connector's update ends",
                 pause_s=0.02, when=lambda found: found["LastUpdateStatus"] != "InProgress")


def refusal(call, **arguments):
    with pytest.raises(ClientError) as refused:
        call(**arguments)
    error = refused.value.response
    return error["ResponseMetadata"]["HTTPStatusCode"], error["Error"]["Code"], error["Error"]["Message"]


@pytest.fixture
def active(core):
    made = create(core)
    settled(core, made["Arn"], "ACTIVE")
    return made


def test_a_connector_is_pending_then_active(core):
    name = f"c-{uuid.uuid4()}"
    made = create(core, name=name, Tags={"team": "a"})
    assert made["ResponseMetadata"]["HTTPStatusCode"] == 202
    assert made["State"] == "PENDING"
    assert made["Arn"].endswith(f":network-connector:{made['Id']}")
    assert made["VersionArn"] == f"{made['Arn']}:1"
    found = settled(core, made["Arn"], "ACTIVE")
    assert found["StateReason"] == "Initial creation"
    assert found["LatestVersionArn"] == made["VersionArn"]
    assert found["Configuration"] == configuration(SUBNET)
    for identifier in (name, made["Id"]):
        assert core.get_network_connector(Identifier=identifier)["Arn"] == made["Arn"]
    of_version = core.get_network_connector(Identifier=made["VersionArn"])
    assert of_version["VersionArn"] == made["VersionArn"]
    assert "LatestVersion" not in of_version


def test_an_unknown_subnet_or_security_group_does_not_pass_for_a_known_one(core):
    failed = settled(core, create(core, "subnet-0abc")["Arn"], "FAILED")
    assert failed["StateReasonCode"] == "InvalidSubnet"
    settings = {"Configuration": configuration(SUBNET, SecurityGroupIds=["sg-1"])}
    failed = settled(core, create(core, **settings)["Arn"], "FAILED")
    assert failed["StateReasonCode"] == "InvalidSecurityGroup"


def test_what_the_service_demands(core):
    demand = "NetworkConnectorOperatorRole is required for VPC_EGRESS connector type"
    answer = refusal(core.create_network_connector, Name="c", Configuration=configuration(SUBNET))
    assert answer == (400, "InvalidParameterValueException", demand)
    name = f"c-{uuid.uuid4()}"
    create(core, name=name)
    assert refusal(create, core=core, name=name)[:2] == (409, "ResourceConflictException")
    status, code, text = refusal(core.get_network_connector, Identifier="nobody")
    assert (status, code, text) == (404, "ResourceNotFoundException", "Network connector not found for: nobody")


def test_a_repeated_request_makes_one_connector(core):
    token, name = str(uuid.uuid4()), f"c-{uuid.uuid4()}"
    first = create(core, name=name, ClientToken=token)
    assert create(core, name=name, ClientToken=token)["Arn"] == first["Arn"]
    assert refusal(create, core=core, name=f"{name}-2", ClientToken=token)[:2] == (409, "ResourceConflictException")


def test_lists_come_in_pages(core, active):
    arns = {active["Arn"], create(core)["Arn"], create(core)["Arn"]}
    found, marker, pages = set(), {}, 0
    while True:
        page = core.list_network_connectors(MaxItems=2, **marker)
        found |= {item["Arn"] for item in page["NetworkConnectors"]}
        pages += 1
        if "NextMarker" not in page:
            break
        marker = {"Marker": page["NextMarker"]}
    assert arns <= found and pages > 1
    assert refusal(core.list_network_connectors, Marker="x")[:2] == (400, "InvalidParameterValueException")


def test_an_update_makes_a_version_and_a_failed_one_changes_nothing(core, active):
    arn = active["Arn"]
    core.update_network_connector(Identifier=arn, Configuration=configuration(SUBNET))
    same = core.get_network_connector(Identifier=arn)
    assert (same["LastUpdateStatus"], same["LastUpdateStatusReason"]) == ("Successful", "No configuration changes detected")
    core.update_network_connector(Identifier=arn, OperatorRole=f"{OPERATOR}-2")
    assert updated(core, arn)["LatestVersion"] == 2
    core.update_network_connector(Identifier=arn, Configuration=configuration("subnet-0abc"))
    failed = updated(core, arn)
    assert (failed["State"], failed["LastUpdateStatusReasonCode"], failed["LatestVersion"]) == ("ACTIVE", "InvalidSubnet", 2)
    versions = core.list_network_connector_versions(Identifier=arn)["NetworkConnectorVersions"]
    assert [(v["Version"], v["State"]) for v in versions] == [(3, "FAILED"), (2, "ACTIVE"), (1, "ACTIVE")]
    assert core.delete_network_connector(Identifier=f"{arn}:1")["State"] == "DELETING"
    assert refusal(core.get_network_connector, Identifier=f"{arn}:1")[0] == 404
    assert refusal(core.delete_network_connector, Identifier=f"{arn}:2")[:2] == (409, "ResourceConflictException")


def test_a_deleted_connector_is_gone_and_its_name_is_free(core):
    name = f"c-{uuid.uuid4()}"
    made = create(core, name=name)
    settled(core, made["Arn"], "ACTIVE")
    assert core.delete_network_connector(Identifier=made["Arn"])["State"] == "DELETING"
    gone = until_gone(core.get_network_connector, 60, Identifier=made["Arn"])
    assert gone["Code"] == "ResourceNotFoundException"
    assert create(core, name=name)["Id"] != made["Id"]


@pytest.mark.parametrize(("direction", "arn", "text"), [
    ("egress", f"{MANAGED}MOON_EGRESS", f"Unrecognized managed network connector ARN: {MANAGED}MOON_EGRESS"),
    ("egress", "INTERNET_EGRESS", "Malformed network connector ARN"),
    ("ingress", "HTTP_INGRESS", "Malformed network connector ARN"),
    ("egress", f"{MANAGED}HTTP_INGRESS", f"Network connector {MANAGED}HTTP_INGRESS cannot be used for egress"),
])
def test_what_is_no_connector_is_refused(cloud, probe_image, direction, arn, text):
    arguments = {"imageIdentifier": probe_image, f"{direction}NetworkConnectors": [arn]}
    assert refusal(cloud.vms.run_microvm, **arguments) == (400, "ValidationException", text)


def test_a_connector_opens_its_ranges_and_nothing_else(cloud, core, probe_image, active, lan):  # noqa: F811
    with cloud.launch(probe_image, egressNetworkConnectors=[active["Arn"]]) as vm:
        app = vm.running().endpoint
        assert vm.get()["egressNetworkConnectors"] == [active["Arn"]]
        until(lambda: reach(app, LAN_NEIGHBOUR, 8099), "the neighbour answers", 30, when=lambda found: found == "open")
        assert reach(app, "198.51.100.1", 80) != "open"
        assert refusal(core.delete_network_connector, Identifier=active["Arn"])[:2] == (409, "ResourceConflictException")
        # Asleep and awake again, it is in another slot.
        vm.suspend()
        vm.wait("SUSPENDED")
        until(lambda: reach(app, LAN_NEIGHBOUR, 8099), "the neighbour answers", 30, when=lambda found: found == "open")


def test_without_egress_nothing_is_reached_not_even_a_name_server(cloud, probe_image, lan):  # noqa: F811
    with cloud.launch(probe_image, egressNetworkConnectors=[f"{MANAGED}NO_EGRESS"]) as vm:
        app = vm.running().endpoint
        assert app.get("/").status == 200
        for host, port in ((LAN_NEIGHBOUR, 8099), ("169.254.53.53", 53), ("198.51.100.1", 80)):
            assert reach(app, host, port) != "open", host


def test_without_ingress_the_endpoint_refuses(cloud, probe_image):
    with cloud.launch(probe_image, ingressNetworkConnectors=[f"{MANAGED}NO_INGRESS"]) as vm:
        answer = vm.endpoint.get("/")
        assert (answer.status, answer.body) == (403, b"Access to port denied")


def test_a_shell_needs_its_connector_and_its_token_opens_no_port(cloud, probe_image):
    def shell(vm):
        return cloud.vms.create_microvm_shell_auth_token(microvmIdentifier=vm.id, expirationInMinutes=5)

    with cloud.launch(probe_image) as vm:
        with pytest.raises(ClientError, match="Shell access requires SHELL_INGRESS network connector"):
            shell(vm)
    both = [f"{MANAGED}ALL_INGRESS", f"{MANAGED}SHELL_INGRESS"]
    with cloud.launch(probe_image, ingressNetworkConnectors=both) as vm:
        with pytest.raises(ClientError, match="ALL_INGRESS cannot be combined with other ingress"):
            shell(vm)
    both = [f"{MANAGED}HTTP_INGRESS", f"{MANAGED}SHELL_INGRESS"]
    with cloud.launch(probe_image, ingressNetworkConnectors=both) as vm:
        token = shell(vm)["authToken"]["X-aws-proxy-auth"]
        answer = vm.running().with_token(token).get("/")
        assert (answer.status, answer.body) == (502, b"")
        assert vm.endpoint.get("/").status == 200


def test_sts_says_who_calls(cloud, session):
    sts = session.client("sts", endpoint_url=cloud.environment["AWS_ENDPOINT_URL"])
    identity = sts.get_caller_identity()
    assert (identity["Account"], identity["Arn"]) == ("000000000000", "arn:aws:iam::000000000000:root")
    status, code, _ = refusal(sts.get_session_token)
    assert (status, code) == (400, "InvalidAction")
    aws = [Path(sys.executable).with_name("aws"), "sts", "get-caller-identity"]
    done = subprocess.run(aws, env=os.environ | cloud.environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["Account"] == "000000000000"
