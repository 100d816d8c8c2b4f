"""The judge of structured answers must see what is wrong, or the benchmark proves nothing."""

from __future__ import annotations

import random
from json import dumps
from typing import Any

import pytest

from benchmarks.structured.judge import faults
from benchmarks.structured.schemas import draw_schema
from serving.engines.json_grammar import grammar_of

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "a": {"type": "integer", "minimum": 1, "exclusiveMaximum": 5},
        "b": {"type": "array", "items": {"enum": ["x", 1]}, "maxItems": 2},
        "c": {"anyOf": [{"type": "null"}, {"type": "string", "minLength": 2}]},
        "d": {"$ref": "#/$defs/day"},
    },
    "required": ["a"],
    "additionalProperties": False,
    "$defs": {"day": {"type": "string", "format": "date"}},
}


@pytest.mark.parametrize(
    "value",
    [
        *({"a": 0}, {"a": 5}, {"a": 1.5}, {"a": True}, {}, [], {"a": 1, "z": 0}),
        *({"a": 1, "b": ["y"]}, {"a": 1, "b": ["x", "x", "x"]}, {"a": 1, "b": [True]}),
        *({"a": 1, "c": "x"}, {"a": 1, "c": 3}, {"a": 1, "d": "2024-13-01"}),
    ],
)
def test_each_fault_is_seen(value: Any) -> None:
    assert list(faults(value, SCHEMA, SCHEMA))


def test_what_is_right_has_no_fault() -> None:
    value = {"a": 4, "b": ["x", 1], "c": None, "d": "2024-02-28"}
    assert list(faults(value, SCHEMA, SCHEMA)) == []


def test_an_unknown_keyword_is_no_pass() -> None:
    with pytest.raises(ValueError, match="unknown"):
        list(faults(1, {"multipleOf": 2}, {}))


def test_every_drawn_schema_has_a_grammar() -> None:
    rng = random.Random(7)
    for _ in range(100):
        assert grammar_of(dumps(draw_schema(rng))).startswith("root ::= ")
