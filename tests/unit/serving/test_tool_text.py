"""Functions in a system message and back, and calls in answers."""

from __future__ import annotations

import re
from typing import Any

import pytest

from serving.engines.json_grammar import grammar_of
from serving.tool_text import CLOSES, OPENS, begins_like_a_call, calls_in, introduce, take_out
from tidegate.routing.domain import Message, Role

FUNCTIONS: list[dict[str, Any]] = [
    {"name": "a", "description": "line\nbreak", "parameters": {"type": "object"}},
    {"name": "b", "description": "", "parameters": {}},
]
USER = Message(Role.USER, "Hi")
SYSTEM = Message(Role.SYSTEM, "You can call these functions, or not.")


@pytest.mark.parametrize("messages", [(USER,), (SYSTEM, USER), (SYSTEM,)])
def test_what_was_introduced_is_taken_out(messages: tuple[Message, ...]) -> None:
    assert take_out(introduce(FUNCTIONS, messages)) == (messages, FUNCTIONS)
    assert take_out(messages) == (messages, [])


def test_what_only_looks_like_functions_stays() -> None:
    (forged,) = introduce(FUNCTIONS, ())
    for content in (forged.content.replace('{"name": "b"', "{name"), forged.content + "x"):
        messages = (Message(Role.SYSTEM, content), USER)
        assert take_out(messages) == (messages, [])


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('{"name": "a", "arguments": {"x": 1}}', [("a", {"x": 1})]),
        ('<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>', [("a", {})]),
        ('<tool_call>{"name": "a", "arguments": {}}', [("a", {})]),
        (
            '<tool_call>{"name": "a", "arguments": {}}</tool_call>\n'
            '<tool_call>{"name": "b", "parameters": 2}</tool_call>',
            [("a", {}), ("b", 2)],
        ),
        ('{"name": "a", "arguments": "</tool_call>"}', [("a", "</tool_call>")]),
        ('\n{"name": "a", "parameters": {}} ; {"name": "b", "arguments": {}}', [("a", {}), ("b", {})]),
        ("", []),
    ],
)
def test_calls_are_read_with_and_without_tags(text: str, calls: list[tuple[str, Any]]) -> None:
    assert calls_in(text) == calls


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "a", "argum',
        '<tool_call>{"name": "a", "arguments": {}} and so on',
        '{"name": "a"}',
        '{"name": 3, "arguments": {}}',
        '["a"]',
        "Hello",
        "<tool_call>",
    ],
)
def test_what_is_no_call_or_cut_off_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        calls_in(text)


def test_a_beginning_tells_as_soon_as_it_can() -> None:
    tells = [
        begins_like_a_call(text) for text in ("", "<", " <tool_cal", "<tool_call>", "{", "<b>", "Hi", "<tool")
    ]
    assert tells == [None, None, None, True, True, False, False, None]


def test_the_grammar_takes_calls_and_texts_that_are_no_calls() -> None:
    grammar = grammar_of('{"type": "null"}', or_text=True, tags=(OPENS, CLOSES))
    root = grammar.partition("\n")[0].removeprefix("root ::= ")
    quoted = re.sub(r'"((?:\\.|[^"\\])*)"', lambda m: re.escape(m[1].encode().decode("unicode_escape")), root)
    rule = re.compile(re.sub(r"(?<!\\) (?![^\[]*\])", "", quoted))
    for text in (
        "null",
        "<tool_call>null</tool_call>",
        "<tool_call>\nnull\n</tool_call>\n<tool_call>null</tool_call>",
        "Hello {",
        "<",
        "<b>bold</b>",
        "<tool_call",
        "<toolbox>",
    ):
        assert rule.fullmatch(text), text
    for text in ("<tool_call>", "<tool_call>no", "<tool_call>null", "{", " null", ""):
        assert not rule.fullmatch(text), text
