"""Random requests to every operation, valid, nearly valid and garbage: never a 5xx, never silence, never the daemon's end.

DORMOUSE_FUZZ_SEED repeats a run; DORMOUSE_FUZZ_REQUESTS says how many requests each operation gets.
"""

import json
import os
import random
import time
import urllib.parse

import botocore.auth
import pytest
import urllib3
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.loaders import Loader
from botocore.model import ServiceModel

SEED = int(os.environ.get("DORMOUSE_FUZZ_SEED", time.time_ns() % 1_000_000))
REQUESTS = int(os.environ.get("DORMOUSE_FUZZ_REQUESTS", 40))
TIMEOUT_S = 60
# What makes VMs or builds is asked for with parameters that cannot do so.
ROLE = "arn:aws:iam::000000000000:role/fuzz"
ARN = "arn:aws:lambda:us-east-1:000000000000:microvm-image:fuzz"
WORDS = [
    ARN, ROLE, "s3://no-bucket/key.zip", "microvm-a991cd0b-3321-3e2c-a982-d5c4db52b17a", "1.0", "subnet-1", "sg-1", "",
    "nc-a991cd0b-3321-3e2c-a982-d5c4db52b17a", "arn:aws:lambda:us-east-1:aws:microvm-image:debian-12", "../..", "%00",
    "\u0000", "é😀", "x" * 300, "x" * 5000, "a b", "[]", "null",
]
GARBAGE = [None, True, False, 0, -1, 2**31, 2**63, 1.5, "", [], {}, [[]], {"a": {}}, [None], "\ud7ff"]
http = urllib3.PoolManager(retries=False)


def operations():
    for service in ("lambda-microvms", "lambda-core"):
        model = ServiceModel(Loader().load_service_model(service, "service-2"), service)
        for name in model.operation_names:
            if service == "lambda-microvms" or "NetworkConnector" in name:
                yield model.operation_model(name)


class Generator:
    """Makes values for shapes, wrong ones now and then."""

    def __init__(self, dice, wildness):
        self.dice = dice
        self.wildness = wildness

    def value(self, shape, depth=0):
        if self.dice.random() < self.wildness:
            return self.dice.choice(GARBAGE)
        make = getattr(self, shape.type_name, self.string)
        return make(shape, depth)

    def structure(self, shape, depth):
        names = list(shape.members)
        if shape.metadata.get("union"):
            names = [self.dice.choice(names)] if names else []
        chosen = [n for n in names if n in shape.required_members or self.dice.random() < 0.5]
        made = {n: self.value(shape.members[n], depth + 1) for n in chosen}
        if self.dice.random() < self.wildness:
            made[self.dice.choice(WORDS)] = self.dice.choice(GARBAGE)
        return made

    def list(self, shape, depth):
        return [self.value(shape.member, depth + 1) for _ in range(self.dice.choice([0, 1, 1, 2, 20]))]

    def map(self, shape, depth):
        return {self.dice.choice(WORDS): self.value(shape.value, depth + 1) for _ in range(self.dice.choice([0, 1, 3]))}

    def boolean(self, shape, depth):
        return self.dice.random() < 0.5

    def integer(self, shape, depth):
        low, high = shape.metadata.get("min", 0), shape.metadata.get("max", 100)
        return self.dice.choice([low, high, low - 1, high + 1, self.dice.randint(low, max(low, high))])

    def string(self, shape, depth):
        return self.dice.choice(shape.enum) if shape.enum else self.dice.choice(WORDS)


def request_of(operation, dice):
    """Method, path with query, and body."""
    generator = Generator(dice, dice.choice([0, 0.05, 0.3]))
    path, query, body = operation.http["requestUri"], [], {}
    shape = operation.input_shape
    for name, member in shape.members.items():
        place = member.serialization.get("location")
        wire_name = member.serialization.get("name", name)
        if place == "uri":
            text = str(generator.string(member, 0))
            path = path.replace(f"{{{wire_name}}}", urllib.parse.quote(text, safe=""))
        elif name in shape.required_members or dice.random() < 0.4:
            value = generator.value(member)
            if place == "querystring":
                query += [(wire_name, v) for v in (value if isinstance(value, list) else [value])]
            else:
                body[wire_name] = value
    if query:
        path += "?" + urllib.parse.urlencode([(k, str(v)) for k, v in query], errors="replace", quote_via=urllib.parse.quote)
    raw = json.dumps(body).encode() if body else b""
    if dice.random() < 0.1:
        raw = dice.choice([dice.randbytes(50), raw[: len(raw) // 2], b"[" * 5000, b"\xff", b"null", raw + raw])
    return operation.http["method"], path, raw


def send(environment, method, path, body):
    credentials = Credentials(environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"])
    request = AWSRequest(method, environment["AWS_ENDPOINT_URL"] + path, data=body)
    botocore.auth.SigV4Auth(credentials, "lambda", environment["AWS_REGION"]).add_auth(request)
    return http.request(method, request.url, body=body, headers=dict(request.headers), timeout=TIMEOUT_S)


@pytest.mark.parametrize("operation", operations(), ids=lambda operation: operation.name)
def test_no_request_is_too_odd(cloud, operation):
    dice = random.Random(f"{SEED} {operation.name}")
    seen = set()
    for number in range(REQUESTS):
        method, path, body = request_of(operation, dice)
        what = f"seed {SEED}, request {number}: {method} {path[:500]} {body[:500]!r}"
        try:
            answer = send(cloud.environment, method, path, body)
        except urllib3.exceptions.HTTPError as error:
            pytest.fail(f"{what}: {error}")
        assert answer.status < 500, f"{what}: {answer.status} {answer.data[:500]!r}"
        assert cloud.daemon.process.poll() is None, what
        if answer.status == 429:
            time.sleep(0.1)
        if answer.status != 204:
            json.loads(answer.data)
        # A signature that does not fit would leave all behind it untested.
        assert answer.status != 403 or b"signature" not in answer.data.lower(), f"{what}: {answer.data[:500]!r}"
        seen.add(answer.status)
    assert seen - {429}, f"seed {SEED}: every request was throttled"
