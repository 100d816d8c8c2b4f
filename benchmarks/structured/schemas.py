"""Bounded JSON schemas of many kinds, drawn from a seed. Every answer to one fits a few hundred tokens."""

from __future__ import annotations

import random
from typing import Any

_NAMES = ("name", "age", "city", "price", "tags", "active", "note", "kind", "size", "owner", "rating", "code")
_WORDS = ("red", "green", 'say "so"', "north\nsouth", "été", "slash/back\\", "", "0")


def draw_schema(rng: random.Random) -> dict[str, Any]:
    """An object with nested objects, arrays, enums, limits, alternatives and references."""
    schema = _object(rng, 2)
    if rng.random() < 0.2:
        schema["$defs"] = {"part": _object(rng, 0)}
        schema["properties"]["part"] = {"$ref": "#/$defs/part"}
    return schema


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(_NAMES, rng.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: _value(rng, depth) for name in names},
        "required": [name for name in names if rng.random() < 0.7],
        "additionalProperties": False,
    }


def _value(rng: random.Random, depth: int) -> dict[str, Any]:
    makers = [_string, _integer, _number, _enum, _simple]
    if depth > 0:
        makers += [
            lambda r: _object(r, depth - 1),
            lambda r: _array(r, depth - 1),
            lambda r: _either(r, depth - 1),
        ]
    return rng.choice(makers)(rng)


def _string(rng: random.Random) -> dict[str, Any]:
    if rng.random() < 0.15:
        return {"type": "string", "format": rng.choice(("date", "time", "date-time", "uuid"))}
    least = rng.randint(0, 4)
    return {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 12)}


def _integer(rng: random.Random) -> dict[str, Any]:
    least = rng.randint(-1000, 1000)
    limits: dict[str, Any] = {"minimum": least, "maximum": least + rng.choice((0, 1, 9, 250, 5000))}
    if rng.random() < 0.3:
        limits = {"exclusiveMinimum": least, "exclusiveMaximum": least + rng.randint(2, 300)}
    return {"type": "integer", **limits}


def _number(rng: random.Random) -> dict[str, Any]:
    least = rng.randint(-20, 20) + rng.choice((0.0, 0.5))
    return {
        "type": "number",
        "minimum": least,
        rng.choice(("maximum", "exclusiveMaximum")): least + rng.randint(1, 40),
    }


def _enum(rng: random.Random) -> dict[str, Any]:
    if rng.random() < 0.2:
        return {"const": rng.choice((7, "only", None, [1, {"a": 2}]))}
    return {
        "enum": rng.sample(_WORDS, rng.randint(1, 4)) + rng.sample((1, 2.5, None, True), rng.randint(0, 2))
    }


def _simple(rng: random.Random) -> dict[str, Any]:
    return {"type": rng.choice(("boolean", "null", ["boolean", "null"]))}


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    if rng.random() < 0.2:
        parts = [_value(rng, depth) for _ in range(rng.randint(1, 3))]
        return {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}
    least = rng.randint(0, 2)
    return {
        "type": "array",
        "items": _value(rng, depth),
        "minItems": least,
        "maxItems": least + rng.randint(0, 3),
    }


def _either(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_value(rng, depth) for _ in range(rng.randint(2, 3))]}
