"""Grammars of calls: what they let a model write, in every syntax."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from gbnf import Gbnf

from serving.engines.call_grammar import MAX_CALLS, call_grammar, is_of_calls
from serving.engines.llama_cpp.constraint import check_grammar
from serving.openai_api.tools import AUTO, REQUIRED, Function, Tools
from serving.tool_syntax import (
    BARE,
    FUNCTIONARY,
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_NAMED,
    MISTRAL_WITH_IDS,
    SYNTAXES,
    CallSyntax,
)

CITY = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}},
    "required": ["city"],
    "$defs": {"city": {"enum": ["Oslo", "Lima"]}},
}
FUNCTIONS = (Function("weather", "", CITY), Function("clock", "", {"type": "object", "properties": {}}))
OSLO = ("weather", {"city": "Oslo"})
CLOCK: tuple[str, Any] = ("clock", {})
NOTHING = ("nothing", {"city": "Oslo"})
WRONG = ("weather", {"city": "Rome"})


def grammar(syntax: CallSyntax | None, choice: str) -> Gbnf:
    format = Tools(FUNCTIONS, choice).format()
    text = call_grammar(format.json_schema, syntax, or_text=format.or_text)
    check_grammar(text)
    return Gbnf(text)


@pytest.mark.parametrize("choice", [AUTO, REQUIRED])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_calls_are_written_in_the_syntax(syntax: CallSyntax, choice: str) -> None:
    rules = grammar(syntax, choice)
    assert rules.takes(syntax.write([OSLO]))
    assert rules.takes(syntax.write([CLOCK]))
    assert rules.takes(syntax.write([OSLO, CLOCK])) is (syntax is not BARE)
    assert rules.takes(syntax.write([OSLO] * MAX_CALLS)) is (syntax is not BARE)
    assert not rules.takes(syntax.write([OSLO] * (MAX_CALLS + 1)))
    for calls in ([NOTHING], [WRONG], [OSLO, WRONG], [("weather", {})]):
        assert not rules.takes(syntax.write(calls)), calls
    assert not rules.takes(syntax.write([OSLO]) + " and so on")


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_forced_call_is_in_no_other_syntax(syntax: CallSyntax) -> None:
    rules = grammar(syntax, REQUIRED)
    takes = {other for other in SYNTAXES if rules.takes(other.write([OSLO]))}
    # What these write differs in ids alone, which may be left out.
    alike = {MISTRAL_NAMED, MISTRAL_WITH_IDS}
    same = alike if syntax in alike else {syntax}
    assert takes == same
    assert not rules.takes("Oslo is nice")


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_named_function_is_called_once(syntax: CallSyntax) -> None:
    rules = grammar(syntax, "weather")
    assert rules.takes(syntax.write([OSLO]))
    assert not rules.takes(syntax.write([CLOCK]))
    assert not rules.takes(syntax.write([OSLO, OSLO]))
    assert not rules.takes('{"city": "Oslo"}')


def test_what_models_write_besides_is_taken() -> None:
    given = '"arguments": {"city": "Oslo"}'
    llama, mistral = grammar(LLAMA, REQUIRED), grammar(MISTRAL, REQUIRED)
    with_ids, named = grammar(MISTRAL_WITH_IDS, REQUIRED), grammar(MISTRAL_NAMED, REQUIRED)
    assert llama.takes('<|python_tag|>{"name": "weather", "parameters": {"city": "Oslo"}}')
    assert llama.takes('{"type": "function", "name": "weather", "parameters": {"city": "Oslo"}}')
    assert not llama.takes(f'{{"name": "weather", {given}}}')
    assert mistral.takes(f'[TOOL_CALLS] [{{"name": "weather", {given}, "id": "a1b2c3d4e"}}]')
    assert not mistral.takes(f'[TOOL_CALLS] [{{"name": "weather", {given}, "id": "a"}}]')
    assert with_ids.takes('[TOOL_CALLS]weather[CALL_ID]a1b2c3d4e[ARGS]{"city": "Oslo"}')
    assert not named.takes('[TOOL_CALLS]weather[CALL_ID]a1b2c3d4e[ARGS]{"city": "Oslo"}')


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_any_text_will_do_beside_calls_and_ends_where_calls_begin(syntax: CallSyntax) -> None:
    rules, opens = grammar(syntax, AUTO), syntax.opens
    texts = ["Hi", "1 < 2 [x]", "<b>", "[1]", "a {", "é👋", "<", "[", "<<tool", "[[TOOL", "<|", "<tool_call"]
    for text in (
        *texts,
        *(f"Hi {opens[:n]}" for n in range(len(opens))),
        opens[:-1] or "x",
        f"{opens[:-1]}!",
    ):
        assert rules.takes(text), text
    for text in ("", " Hi", "{", '{"answer": 42}'):
        assert not rules.takes(text), text
    if opens:
        call = syntax.write([OSLO]) if not syntax.optional else opens + syntax.write([OSLO])
        for before in ("", "Hi ", opens[0], opens[:-1]):
            assert rules.takes(before + call)
            assert not rules.takes(f"{before}{opens}")
            assert not rules.takes(f"{before}{opens} is how a call begins")
        bare = {"name": "weather", syntax.arguments: {"city": "Oslo"}}
        assert rules.takes(json.dumps(bare))


@pytest.mark.parametrize("choice", [AUTO, REQUIRED])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_whatever_a_grammar_lets_be_written_is_read_as_the_calls_it_is(
    syntax: CallSyntax, choice: str
) -> None:
    rules, tools = grammar(syntax, choice), Tools(FUNCTIONS, choice)
    rng = random.Random(f"{syntax}{choice}")
    called = 0
    for _ in range(150):
        text = rules.draw(rng)
        assert rules.takes(text)
        content, calls = tools.read(text)
        called += bool(calls)
        assert calls or (choice == AUTO and content == text)
        for call in calls:
            assert call.name in ("weather", "clock")
            assert call.name == "clock" or json.loads(call.arguments)["city"] in ("Oslo", "Lima")
        if syntax.opens and syntax.opens in text:
            assert calls, text
    assert called


def test_without_a_syntax_it_is_what_the_schema_says() -> None:
    assert grammar(None, REQUIRED).takes('{"name": "weather", "arguments": {"city": "Oslo"}}')
    assert not grammar(None, REQUIRED).takes("Hi")
    either = grammar(None, AUTO)
    assert either.takes("Hi {")
    assert not either.takes("{ Hi")
    assert Gbnf(call_grammar('{"type": "null"}', HERMES, or_text=True)).takes("null")


def test_references_inside_of_parameters_find_their_place() -> None:
    """The control of CITY's reference: without the move it would be refused."""
    (function, _) = FUNCTIONS
    lost = {"type": "object", "properties": {"name": {"const": "weather"}, "arguments": function.parameters}}
    with pytest.raises(ValueError, match="not there"):
        call_grammar(json.dumps(lost), FUNCTIONARY)


def test_schemas_of_calls_are_known_as_such() -> None:
    assert all(is_of_calls(Tools(FUNCTIONS, c).format().json_schema) for c in (AUTO, REQUIRED, "clock"))
    assert not is_of_calls(json.dumps({"anyOf": [CITY]}))
    assert not is_of_calls(json.dumps(CITY))
