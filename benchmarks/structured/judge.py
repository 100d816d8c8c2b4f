"""Whether a value is valid against a schema of `schemas`. What it does not know is an error, never a pass."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterator
from typing import Any

_KNOWN = frozenset(
    (
        *("type", "properties", "required", "additionalProperties", "items", "prefixItems", "minItems"),
        *("maxItems", "minLength", "maxLength", "format", "minimum", "maximum", "exclusiveMinimum"),
        *("exclusiveMaximum", "enum", "const", "anyOf", "$ref", "$defs"),
    )
)


def faults(value: Any, schema: Any, root: dict[str, Any]) -> Iterator[str]:
    """What is wrong; nothing for a valid value. Raises ValueError for a keyword that is not known here."""
    if schema is True:
        return
    if schema is False:
        yield "nothing is allowed here"
        return
    if unknown := schema.keys() - _KNOWN:
        raise ValueError(f"unknown keywords: {unknown}")
    if "$ref" in schema:
        target: Any = root
        for part in schema["$ref"].split("/")[1:]:
            target = target[part]
        yield from faults(value, target, root)
    if "anyOf" in schema and all(any(True for _ in faults(value, each, root)) for each in schema["anyOf"]):
        yield "none of the alternatives"
    if "const" in schema and not _same(value, schema["const"]):
        yield "not the constant"
    if "enum" in schema and not any(_same(value, each) for each in schema["enum"]):
        yield "not of the enum"
    types = schema.get("type", ())
    if types and not any(_is(value, kind) for kind in ([types] if isinstance(types, str) else types)):
        yield f"not of type {types}"
    elif isinstance(value, dict):
        yield from _object(value, schema, root)
    elif isinstance(value, list):
        yield from _array(value, schema, root)
    elif isinstance(value, str):
        yield from _string(value, schema)
    elif _is(value, "number"):
        yield from _number(value, schema)


def _same(left: Any, right: Any) -> bool:
    return left == right and isinstance(left, bool) == isinstance(right, bool)


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    types = {"object": dict, "array": list, "string": str, "number": (int, float), "null": type(None)}
    return kind in types and isinstance(value, types[kind])


def _object(value: dict[str, Any], schema: dict[str, Any], root: dict[str, Any]) -> Iterator[str]:
    known = schema.get("properties", {})
    yield from (f"{name} is missing" for name in schema.get("required", ()) if name not in value)
    for name, member in value.items():
        yield from faults(member, known.get(name, schema.get("additionalProperties", True)), root)


def _array(value: list[Any], schema: dict[str, Any], root: dict[str, Any]) -> Iterator[str]:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        yield "wrong number of items"
    first = schema.get("prefixItems", [])
    for index, item in enumerate(value):
        yield from faults(item, first[index] if index < len(first) else schema.get("items", True), root)


def _string(value: str, schema: dict[str, Any]) -> Iterator[str]:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        yield "wrong length"
    read = {
        "date": datetime.date.fromisoformat,
        "time": datetime.time.fromisoformat,
        "date-time": datetime.datetime.fromisoformat,
        "uuid": uuid.UUID,
    }.get(schema.get("format", ""))
    if read is not None:
        try:
            read(value)
        except ValueError:
            yield f"no {schema['format']}"


def _number(value: float, schema: dict[str, Any]) -> Iterator[str]:
    if "minimum" in schema and value < schema["minimum"]:
        yield "below the minimum"
    if "maximum" in schema and value > schema["maximum"]:
        yield "above the maximum"
    if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]:
        yield "not above the minimum"
    if "exclusiveMaximum" in schema and value >= schema["exclusiveMaximum"]:
        yield "not below the maximum"
