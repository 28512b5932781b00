"""Dormouse's wire against AWS's own model, fact by fact. What differs on purpose stands in `known.py`, with its reason."""

import json
import os
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path

import facts
import known
import pytest

ROOT = Path(__file__).resolve().parents[2]
DESCRIBE = ["cargo", "run", "--quiet", "--locked", "--features", "dormouse-api/schema", "--example", "describe"]


@pytest.fixture(scope="session")
def description():
    """What `dormouse-api` says of itself."""
    profile = os.environ.get("DORMOUSE_TEST_PROFILE", "dev")
    command = [*DESCRIBE, "--profile", profile]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)


@pytest.fixture(scope="session")
def model():
    return facts.of_models()


def differences(theirs, ours):
    """Facts that only one side has, or both and not the same, in words."""
    for fact in sorted(theirs.keys() | ours.keys()):
        if theirs.get(fact) != ours.get(fact):
            yield fact, f"{fact}: AWS has {theirs.get(fact, 'nothing')!r}, Dormouse has {ours.get(fact, 'nothing')!r}"


def unexplained(found):
    return [words for fact, words in found if not any(fnmatchcase(fact, pattern) for pattern in known.DIFFERENCES)]


def of_operations(all_facts):
    return {fact: value for fact, value in all_facts.items() if not fact.startswith("error.")}


def compared(model, description):
    """Every difference between the two wires."""
    theirs, ours = of_operations(model), facts.of_description(description)
    for fact, words in differences(theirs, ours):
        # That a member is always there is more than AWS promises, and does no harm.
        if not (fact.endswith(".always") and fact not in theirs):
            yield fact, words
    yield from compared_errors(model, description["errors"])


def compared_errors(model, errors):
    """Each error of AWS's that has no twin of ours, or one with another status or other members; and each of ours that no
    model names."""
    ours = {}
    for error in errors:
        ours.setdefault(error["name"], []).append((error["status"], sorted(error["members"])))
    named = set()
    for fact, status in model.items():
        if not (fact.startswith("error.") and fact.endswith(".status")):
            continue
        _, service, name, _ = fact.split(".")
        named.add(name)
        theirs = (status, model[f"error.{service}.{name}.members"])
        if theirs not in ours.get(name, []):
            yield f"error.{service}.{name}", f"{service}'s {name}: AWS has {theirs}, Dormouse has {ours.get(name, 'nothing')}"
    for name in ours.keys() - named:
        yield f"error.{name}", f"{name}: no model names it"


def test_the_wire_is_the_models(model, description):
    assert len(model) > 1000, "the models were not read"
    found = unexplained(compared(model, description))
    assert not found, "\n".join(found)


def test_every_known_difference_is_one(model, description):
    found = [fact for fact, _ in compared(model, description)]
    stale = [pattern for pattern in known.DIFFERENCES if not any(fnmatchcase(fact, pattern) for fact in found)]
    assert not stale, f"no longer different: {stale}"


def test_what_a_table_lets_through_its_type_reads(description):
    """A member that the table has and the type has not would be taken and forgotten."""
    for name, operation in description["operations"].items():
        path = f"{name}.input"
        schema = operation["input"]
        of_type = facts.of_schema(path, schema, schema.get("$defs", {}))
        assert types(facts.of_table(path, operation["members"]), path) == types(of_type, path)


def types(all_facts, path):
    """Which facts are the types of what is inside of this path."""
    return {fact for fact in all_facts if fact.endswith(".type")} - {f"{path}.type"}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda wire: wire["operations"].pop("RunMicrovm"),
        lambda wire: wire["operations"]["RunMicrovm"].update(method="PUT"),
        lambda wire: wire["operations"]["RunMicrovm"].update(path="/2025-09-09/microvm"),
        lambda wire: wire["operations"]["CreateMicrovmImage"].update(success=200),
        lambda wire: wire["operations"]["RunMicrovm"]["members"].pop(),
        lambda wire: wire["operations"]["RunMicrovm"]["members"].reverse(),
        lambda wire: wire["operations"]["ListTags"]["members"][0].update(location="querystring"),
        lambda wire: wire["operations"]["ListTags"]["members"][0].update(required=False),
        lambda wire: wire["operations"]["ListTags"]["members"][0].update(max=9),
        lambda wire: wire["operations"]["ListTags"]["members"][0].update(pattern=".*"),
        lambda wire: wire["operations"]["ListTags"]["members"][0].update(type="integer"),
        lambda wire: wire["operations"]["UpdateMicrovmImageVersion"]["members"][2]["enum"].append("ASLEEP"),
        lambda wire: wire["operations"]["GetMicrovm"]["output"]["properties"].pop("endpoint"),
        lambda wire: wire["operations"]["GetMicrovm"]["output"]["properties"].update(odd={"type": "string"}),
        lambda wire: wire["operations"]["GetMicrovm"]["output"]["properties"]["endpoint"].update(type="integer"),
        lambda wire: wire["operations"]["GetMicrovm"]["output"]["required"].remove("endpoint"),
        lambda wire: wire["operations"]["GetMicrovm"]["output"]["$defs"]["MicrovmState"]["enum"].remove("PENDING"),
        lambda wire: next(e for e in wire["errors"] if e["name"] == "ConflictException").update(status=400),
        lambda wire: next(e for e in wire["errors"] if e["name"] == "ConflictException")["members"].pop(),
        lambda wire: wire["errors"].append({"name": "OddException", "status": 400, "members": ["message"]}),
    ],
)
def test_a_change_of_any_kind_is_noticed(model, description, spoil):
    spoilt = json.loads(json.dumps(description))
    spoil(spoilt)
    assert unexplained(compared(model, spoilt))
