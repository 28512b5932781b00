"""Checks every answer that any boto3 client of the suite gets against AWS's own model: status, members, types, words."""

import json
import uuid

import botocore
from botocore.loaders import Loader
from botocore.model import ServiceModel

SERVICES = ("lambda-microvms", "lambda-core")
# Members that AWS sends though no model names them; docs/wire-compat.md lists them.
UNMODELLED = {
    "buildPhaseOverrides", "id", "roleConfiguration", "terminationReasonCode", "updatedAt", "versionStateTimeBucket",
}
TYPES = {
    "boolean": bool, "integer": int, "list": list, "long": int, "map": dict, "string": str, "structure": dict,
    "timestamp": (int, float),
}
# Unless a test has broken something on purpose, no answer blames the service.
is_healthy = True


def install():
    """From now on, a client of any session fails on an answer that no model of AWS's allows."""
    botocore.register_initializer(watch)


def watch(session):
    for service in SERVICES:
        model = ServiceModel(Loader().load_service_model(service, "service-2"), service)
        session.register(f"response-received.{service}", checker(model))


def checker(model):
    def check(response_dict, event_name, **_):
        if response_dict is None:
            return
        operation = model.operation_model(event_name.rpartition(".")[2])
        try:
            check_response(operation, response_dict)
        except AssertionError as error:
            raise AssertionError(f"{operation.name}: {error}: {response_dict['body'][:2000]!r}") from None

    return check


def check_response(operation, response):
    status, headers = response["status_code"], response["headers"]
    assert uuid.UUID(headers["x-amzn-requestid"]), "no request id"
    # The one fault of the service's that a healthy one may answer: AWS has it, later models than the pinned one name it.
    if status == 500 and headers.get("x-amzn-errortype") == "InsufficientCapacityException":
        assert list(json.loads(response["body"])) == ["message"]
        return
    if status == 500 and not is_healthy:
        assert json.loads(response["body"]) == {"message": "Internal server error"}
        return
    assert status < 500, f"status {status}"
    if status >= 400:
        return check_error(operation, status, headers, json.loads(response["body"]))
    assert status == operation.http["responseCode"], f"status {status}"
    if operation.output_shape is None:
        assert not response["body"], "a body where there is none"
    else:
        check_value(operation.output_shape, json.loads(response["body"]), "")


def check_error(operation, status, headers, body):
    name = headers["x-amzn-errortype"]
    assert "__type" not in body, "an error's name in its body"
    assert "message" in body or "Message" in body, "an error without a message"
    modelled = {shape.name: shape.metadata["error"]["httpStatusCode"] for shape in operation.error_shapes}
    assert modelled.get(name, status) == status, f"status {status} of {name}"


def check_value(shape, value, path):
    expected = TYPES[shape.type_name]
    if shape.type_name == "timestamp" and shape.serialization.get("timestampFormat") == "iso8601":
        expected = str
    assert isinstance(value, expected) and (expected is bool or not isinstance(value, bool)), f"type of {path or 'body'}"
    if shape.type_name == "structure":
        check_members(shape, value, path)
    elif shape.type_name == "list":
        for index, item in enumerate(value):
            check_value(shape.member, item, f"{path}[{index}]")
    elif shape.type_name == "map":
        for key, item in value.items():
            check_value(shape.value, item, f"{path}.{key}")
    elif shape.type_name == "string" and shape.enum:
        assert value in shape.enum, f"{path} is {value!r}"


def check_members(shape, value, path):
    names = {member.serialization.get("name", name): (name, member) for name, member in shape.members.items()}
    unknown = value.keys() - names.keys() - UNMODELLED
    assert not unknown, f"unknown members {sorted(unknown)} of {path or 'body'}"
    for wire_name, (name, member) in names.items():
        if value.get(wire_name) is not None:
            check_value(member, value[wire_name], f"{path}.{wire_name}")
        else:
            assert name not in shape.required_members, f"no {path}.{wire_name}"
