"""A wire as a flat dictionary of facts, so that two of them can be compared: AWS's model, read from botocore, and
Dormouse's tables and types, as `dormouse-api` describes them.

A fact's name is a path, as in `RunMicrovm.input.idlePolicy.maxIdleDurationSeconds.min`; `[]` is a list's item, `{key}` and
`{value}` are a map's.
"""

import botocore.loaders
import botocore.model

SERVICES = ("lambda-microvms", "lambda-core")
BOUNDS = ("min", "max")


def of_models():
    """What AWS's models say of the operations that Dormouse is to have."""
    facts = {}
    for service in SERVICES:
        model = botocore.model.ServiceModel(botocore.loaders.Loader().load_service_model(service, "service-2"), service)
        for name in model.operation_names:
            # lambda-core is about runtimes of functions, too.
            if service == "lambda-microvms" or "NetworkConnector" in name:
                facts |= of_operation(service, model.operation_model(name))
    return facts


def of_operation(service, operation):
    name = operation.name
    facts = {
        f"{name}.method": operation.http["method"],
        f"{name}.path": operation.http["requestUri"],
        f"{name}.success": operation.http["responseCode"],
    }
    if operation.input_shape:
        facts |= of_members(f"{name}.input", operation.input_shape, inwards=True)
    if operation.output_shape:
        facts |= of_members(f"{name}.output", operation.output_shape, inwards=False)
    for error in operation.error_shapes:
        facts |= {
            f"error.{service}.{error.name}.status": error.metadata["error"]["httpStatusCode"],
            # Headers are no part of the body.
            f"error.{service}.{error.name}.members": sorted(
                name for name, shape in error.members.items() if "location" not in shape.serialization),
        }
    return facts


def of_members(path, structure, inwards):
    facts = {}
    if inwards:
        facts[f"{path}.order"] = [on_the_wire(name, shape) for name, shape in structure.members.items()]
    for name, shape in structure.members.items():
        member = f"{path}.{on_the_wire(name, shape)}"
        if inwards:
            facts[f"{member}.required"] = name in structure.required_members
            facts[f"{member}.location"] = shape.serialization.get("location", "body")
        elif name in structure.required_members:
            facts[f"{member}.always"] = True
        facts |= of_shape(member, shape, inwards)
    return facts


def on_the_wire(name, shape):
    return shape.serialization.get("name", name)


def of_shape(path, shape, inwards):
    facts = {f"{path}.type": json_type(shape)}
    if inwards:
        facts |= {f"{path}.{bound}": shape.metadata[bound] for bound in BOUNDS if bound in shape.metadata}
    if shape.type_name == "string":
        facts |= of_string(path, shape, inwards)
    elif shape.type_name == "list":
        facts |= of_shape(f"{path}.[]", shape.member, inwards)
    elif shape.type_name == "map":
        facts |= of_shape(f"{path}.{{key}}", shape.key, inwards)
        facts |= of_shape(f"{path}.{{value}}", shape.value, inwards)
    elif shape.type_name == "structure":
        facts[f"{path}.union"] = bool(shape.metadata.get("union"))
        facts |= of_members(path, shape, inwards)
    return facts


def of_string(path, shape, inwards):
    facts = {}
    if shape.enum:
        facts[f"{path}.enum"] = sorted(shape.enum)
    if inwards and "pattern" in shape.metadata:
        facts[f"{path}.pattern"] = shape.metadata["pattern"]
    if inwards and shape.metadata.get("sensitive"):
        facts[f"{path}.sensitive"] = True
    return facts


def json_type(shape):
    """What a value looks like in JSON."""
    if shape.type_name == "timestamp":
        return "string" if shape.serialization.get("timestampFormat") == "iso8601" else "number"
    return shape.type_name


def of_description(description):
    """What Dormouse says of itself, in the same facts."""
    facts = {}
    for name, operation in description["operations"].items():
        facts |= {
            f"{name}.method": operation["method"],
            f"{name}.path": operation["path"],
            f"{name}.success": operation["success"],
            **of_table(f"{name}.input", operation["members"]),
        }
        output = operation["output"]
        written = of_schema(f"{name}.output", output, output.get("$defs", {}))
        # AWS's model has no shape for an empty answer, or one without members.
        facts |= {fact: value for fact, value in written.items() if fact.count(".") > 2 or fact.endswith(".always")}
    return facts


def of_table(path, members):
    facts = {f"{path}.order": [member["name"] for member in members]}
    for member in members:
        name = f"{path}.{member['name']}"
        facts |= {f"{name}.required": member["required"], f"{name}.location": member["location"], **of_rules(name, member)}
    return facts


def of_rules(path, rules):
    facts = {f"{path}.type": rules["type"]}
    facts |= {f"{path}.{bound}": rules[bound] for bound in BOUNDS if rules.get(bound) is not None}
    if rules["type"] == "string":
        facts |= {f"{path}.{rule}": rules[rule] for rule in ("pattern", "sensitive") if rules[rule]}
        if rules["enum"]:
            facts[f"{path}.enum"] = sorted(rules["enum"])
    elif rules["type"] == "list":
        facts |= of_rules(f"{path}.[]", rules["member"])
    elif rules["type"] == "map":
        facts |= of_rules(f"{path}.{{key}}", rules["key"])
        facts |= of_rules(f"{path}.{{value}}", rules["value"])
    elif rules["type"] == "structure":
        facts[f"{path}.union"] = rules["union"]
        facts |= of_table(path, rules["members"])
    return facts


def of_schema(path, schema, definitions):
    """The facts of a type, from its JSON Schema."""
    schema, _ = resolved(schema, definitions)
    words = enum_of(schema)
    if words:
        return {f"{path}.type": "string", f"{path}.enum": sorted(words)}
    if "oneOf" in schema:
        merged = {name: member for choice in schema["oneOf"] for name, member in choice["properties"].items()}
        facts = {f"{path}.type": "structure", f"{path}.union": True}
        for name, member in merged.items():
            facts |= of_schema(f"{path}.{name}", member, definitions)
        return facts
    kind = next(kind for kind in as_list(schema["type"]) if kind != "null")
    if kind == "array":
        return {f"{path}.type": "list", **of_schema(f"{path}.[]", schema["items"], definitions)}
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        facts = of_schema(f"{path}.{{value}}", schema["additionalProperties"], definitions)
        return {f"{path}.type": "map", f"{path}.{{key}}.type": "string", **facts}
    if kind == "object":
        return of_object(path, schema, definitions)
    return {f"{path}.type": "long" if schema.get("format") == "int64" else kind}


def of_object(path, schema, definitions):
    facts = {f"{path}.type": "structure", f"{path}.union": False}
    for name, member in schema.get("properties", {}).items():
        _, nullable = resolved(member, definitions)
        if name in schema.get("required", []) and not nullable:
            facts[f"{path}.{name}.always"] = True
        facts |= of_schema(f"{path}.{name}", member, definitions)
    return facts


def resolved(schema, definitions):
    """A schema without references, and whether null fits it, too."""
    nullable = "null" in as_list(schema.get("type"))
    if "anyOf" in schema:
        schema = next(choice for choice in schema["anyOf"] if choice.get("type") != "null")
        nullable = True
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rsplit("/", 1)[1]]
    return schema, nullable


def enum_of(schema):
    choices = schema.get("oneOf", [])
    if choices and all("const" in choice or "enum" in choice for choice in choices):
        return [word for choice in choices for word in choice.get("enum", [choice.get("const")])]
    return schema.get("enum", [])


def as_list(value):
    return value if isinstance(value, list) else [value]
