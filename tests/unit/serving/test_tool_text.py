"""Functions in a system message and back, and calls in answers."""

from __future__ import annotations

from typing import Any

import pytest

from serving import tool_text
from serving.tool_text import introduce, take_out, turns_of
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


CALL = '{"name": "a", "arguments": {"x": 1}}'
OTHER = '{"name": "b", "arguments": {}}'


def assistant(text: str) -> Message:
    return Message(Role.ASSISTANT, text)


def test_calls_and_results_of_a_conversation_belong_together() -> None:
    first, none, late, early, second, lost, other = turns_of(
        [
            assistant(f"{CALL}\n{OTHER}"),
            USER,
            Message(Role.TOOL, "of b", name="b"),
            Message(Role.TOOL, "of a"),
            assistant(f"I look.\n{CALL}"),
            Message(Role.TOOL, "of a", name="b"),
            Message(Role.TOOL, "of nothing", name="a"),
        ]
    )
    assert [tuple(call) for call in first.calls] == [(0, "a", {"x": 1}), (1, "b", {})]
    assert (first.text, none.calls, none.text) == ("", (), "Hi")
    assert [tuple(call) for call in second.calls] == [(2, "a", {"x": 1})]
    assert second.text == "I look."
    assert [turn.answers for turn in (late, early, lost, other)] == [1, 0, 2, None]


@pytest.mark.parametrize(
    "text",
    ["Hi", "", f"{CALL} is a call", f"I call\n{CALL}\nand so on", f"I call {CALL}", '\n{"name": 3}', "{"],
)
def test_what_is_not_calls_alone_stays_text(text: str) -> None:
    (turn,) = turns_of([assistant(text)])
    assert (turn.text, turn.calls) == (text, ())
    (turn,) = turns_of([Message(Role.USER, CALL)])
    assert (turn.text, turn.calls) == (CALL, ())


def test_a_text_of_many_beginnings_is_looked_through_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    real = tool_text.calls_in
    monkeypatch.setattr(tool_text, "calls_in", lambda text: tried.append(len(text)) or real(text))
    (turn,) = turns_of([assistant(f"{CALL}\n" * 1000 + "no")])
    assert turn.calls == ()
    assert len(tried) < 12
