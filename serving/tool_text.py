"""How functions and calls are told to a model in plain text, and found again in that text. Pure.

The door that takes a request knows no node's chat template. So it describes the functions in the system
message, which any model reads; a node whose template has a place of its own for functions takes them out
again and puts them there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

from serving.tool_calls import calls_in
from tidegate.routing.domain import Message, Role

_BEFORE = "You can call these functions, each described by a JSON object:\n"
_AFTER = '\nTo call one, answer with nothing but {"name": its name, "arguments": an object}.'
# Where a call may begin behind a text.
_LINE = re.compile(r'\n(?=\{"name": )')
_MOST_TRIES = 8


def introduce(functions: Sequence[dict[str, Any]], messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation with the functions (name, description, parameters) described in its system message."""
    text = _BEFORE + "\n".join(json.dumps(function) for function in functions) + _AFTER
    if messages and messages[0].role is Role.SYSTEM:
        first = replace(messages[0], content=f"{messages[0].content}\n\n{text}")
        return (first, *messages[1:])
    return (Message(Role.SYSTEM, text), *messages)


def take_out(messages: Sequence[Message]) -> tuple[tuple[Message, ...], list[dict[str, Any]]]:
    """Inverse of introduce: the conversation without the functions, and these; none where there are none."""
    plain = tuple(messages)
    if not plain or plain[0].role is not Role.SYSTEM or not plain[0].content.endswith(_AFTER):
        return plain, []
    before, found, described = plain[0].content.removesuffix(_AFTER).rpartition(_BEFORE)
    try:
        functions = [json.loads(line) for line in described.split("\n")] if found else []
    except (ValueError, RecursionError):
        return plain, []
    if not functions or not all(isinstance(f, dict) and isinstance(f.get("name"), str) for f in functions):
        return plain, []
    if not before:
        return plain[1:], functions
    return (replace(plain[0], content=before.removesuffix("\n\n")), *plain[1:]), functions


class Call(NamedTuple):
    """`number` counts the calls of a conversation."""

    number: int
    name: str
    arguments: Any


class Turn(NamedTuple):
    """A message; the calls that end it are taken out of `text`. `answers` is the number of a call."""

    message: Message
    text: str
    calls: tuple[Call, ...] = ()
    answers: int | None = None


def turns_of(messages: Sequence[Message]) -> list[Turn]:
    """Earlier calls and their results belong together by ids, which messages do not carry: by their order."""
    turns: list[Turn] = []
    unanswered: list[Call] = []
    made = 0
    for message in messages:
        text, found = _parted(message)
        calls = tuple(Call(made + at, name, given) for at, (name, given) in enumerate(found))
        answers = None
        if calls:
            made += len(calls)
            unanswered = list(calls)
        elif message.role is Role.TOOL and unanswered:
            answered = next((call for call in unanswered if call.name == message.name), unanswered[0])
            unanswered.remove(answered)
            answers = answered.number
        turns.append(Turn(message, text, calls, answers))
    return turns


def _parted(message: Message) -> tuple[str, list[tuple[str, Any]]]:
    """An assistant's text and the calls after it, each in a line of its own."""
    content = message.content
    if message.role is not Role.ASSISTANT:
        return content, []
    # What is no call is looked through a few times at most, however much it looks like some.
    lines = (found.end() for found in islice(_LINE.finditer(content), _MOST_TRIES))
    for start in (0, *lines):
        try:
            calls = calls_in(content[start:])
        except (ValueError, RecursionError):
            continue
        if calls:
            return content[:start].rstrip("\n"), calls
    return content, []
