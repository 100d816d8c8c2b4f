"""Schemas to grammars: what is refused, and numbers held to their limits by every digit."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from serving.engines.json_grammar import SchemaError, grammar_of
from serving.engines.number_grammar import Unwritable, integer_rule, number_rule

_PARTS = re.compile(r'"((?:\\.|[^"])*)"|(\[[^\]]*\]|\{[^}]*\}|[()|?])|\s+')
WHOLE = st.integers(-3000, 3000)


def pattern(rule: str) -> re.Pattern[str]:
    """These rules use only what regular expressions have, too."""
    return re.compile("".join(re.escape(text) if text else part for text, part in _PARTS.findall(rule)))


@given(WHOLE, st.integers(0, 4000), st.data())
def test_integers_are_those_within_the_limits(low: int, width: int, data: st.DataObject) -> None:
    high = low + width
    rule = pattern(integer_rule({"minimum": low, "maximum": high}))
    for value in (low - 1, low, high, high + 1, data.draw(st.integers(low - 50, high + 50))):
        assert bool(rule.fullmatch(str(value))) is (low <= value <= high)
        assert not rule.fullmatch(f"0{abs(value)}")


@given(WHOLE, st.integers(2, 4000))
def test_exclusive_limits_are_left_out(low: int, width: int) -> None:
    rule = pattern(integer_rule({"exclusiveMinimum": low, "exclusiveMaximum": low + width}))
    assert not rule.fullmatch(str(low))
    assert rule.fullmatch(str(low + 1))
    assert not rule.fullmatch(str(low + width))


@given(
    st.data(),
    st.sampled_from(["minimum", "exclusiveMinimum"]),
    st.sampled_from(["maximum", "exclusiveMaximum"]),
)
def test_no_number_of_the_grammar_is_outside(data: st.DataObject, lower: str, upper: str) -> None:
    low = data.draw(st.decimals(-60, 60, places=1))
    high = low + data.draw(st.decimals(0, 30, places=1))
    limits = {lower: float(low), upper: float(high)}
    try:
        rule = pattern(number_rule(limits))
    except Unwritable:
        assume(False)
    text = data.draw(st.from_regex(rule, fullmatch=True))
    value = json.loads(text)
    assert float(low) <= value <= float(high)
    assert value != limits.get("exclusiveMinimum")
    assert value != limits.get("exclusiveMaximum")


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "object", "patternProperties": {}}, "patternProperties"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "number", "multipleOf": 3}, "multipleOf"),
        ({"not": {}}, "not"),
        ({"type": "string", "pattern": "(?=a)"}, "#.pattern cannot be enforced"),
        ({"type": "string", "pattern": 3}, "must be a string"),
        ({"type": "string", "pattern": "a", "format": "uuid"}, "both a format and a pattern"),
        ({"type": "string", "pattern": "a", "maxLength": 5}, "allows lengths"),
        ({"type": "string", "pattern": "^a{2,4}$", "maxLength": 3}, "allows lengths"),
        ({"type": "object", "properties": {"a": {"if": {}}}}, "#.a.if"),
        ({"type": "thing"}, "type"),
        ({"$ref": "https://elsewhere/"}, "outside"),
        ({"$ref": "#/$defs/none"}, "not there"),
        ({"allOf": [{}, {}]}, "allOf"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"enum": []}, "no value"),
        ({"type": "string", "enum": [1]}, "no value"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "exclude"),
        ({"type": "string", "minLength": 9, "maxLength": 2}, "below"),
        ({"type": "array", "minItems": -1}, "whole numbers"),
        ({"oneOf": [{"required": 5}, {"required": 5}]}, "required a list"),
        ({"oneOf": [{"required": [[]]}, {}]}, "list of names"),
        ({"oneOf": [{"required": ["a"], "properties": []}, {}]}, "must be an object"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "does not allow"),
        (False, "no schema"),
        ([], "no schema"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_place(schema: Any, place: str) -> None:
    with pytest.raises(SchemaError, match=re.escape(place)):
        grammar_of(json.dumps(schema))


def test_size_and_depth_are_bounded() -> None:
    deep: Any = {"type": "null"}
    for _ in range(40):
        deep = {"type": "array", "items": deep}
    wide = {"anyOf": [{"const": i} for i in range(5000)]}
    for schema in (deep, wide):
        with pytest.raises(SchemaError, match="deeper than"):
            grammar_of(json.dumps(schema))
    for text in ("{", "[" * 100_000, "no", '{"enum": [NaN]}'):
        with pytest.raises(SchemaError, match="JSON"):
            grammar_of(text)


def test_disjoint_alternatives_may_be_one_of() -> None:
    tagged = [
        {"type": "object", "properties": {"kind": {"const": kind}}, "required": ["kind"]} for kind in "ab"
    ]
    assert grammar_of(json.dumps({"oneOf": tagged}))
    assert grammar_of(json.dumps({"oneOf": [{"type": "string"}, {"type": "null"}]}))


_WORDS = st.sampled_from(
    ["type", "properties", "required", "items", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "minimum"]
)
_KINDS = st.sampled_from(["object", "array", "string", "integer", "number", "#", "a"])
_ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 2000), _KINDS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(_WORDS, _KINDS), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.dictionaries(_WORDS, _ANYTHING, min_size=1, max_size=4))
def test_whatever_the_schema_there_is_a_grammar_or_a_clear_error(schema: Any) -> None:
    try:
        grammar = grammar_of(json.dumps(schema))
    except SchemaError:
        return
    assert grammar.startswith("root ::= ")
