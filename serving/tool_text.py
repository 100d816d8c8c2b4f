"""How functions are told to a model in plain text, and how they are found again in that text. Pure.

The door that takes a request knows no node's chat template. So it describes the functions in the system
message, which any model reads; a node whose template has a place of its own for functions takes them out
again and puts them there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from tidegate.routing.domain import Message, Role

_BEFORE = "You can call these functions, each described by a JSON object:\n"
_AFTER = '\nTo call one, answer with nothing but {"name": its name, "arguments": an object}.'
# Around a call where a model's own template asks for it (Hermes, Qwen and those that follow them).
OPENS, CLOSES = "<tool_call>", "</tool_call>"


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


def calls_in(text: str) -> list[tuple[str, Any]]:
    """(name, arguments) of each call that the text consists of, with or without tags around each.

    Raises ValueError when it is anything else, or cut off. Llama's models say parameters for arguments.
    """
    return list(_calls(text.strip()))


def _calls(text: str) -> Iterator[tuple[str, Any]]:
    decoder = json.JSONDecoder()
    while text:
        tagged = text.startswith(OPENS)
        text = text.removeprefix(OPENS).lstrip()
        call, end = decoder.raw_decode(text)
        text = text[end:].lstrip(" \t\r\n;,")
        if tagged and text:
            # The last tag may be what the answer ended with.
            if not text.startswith(CLOSES):
                raise ValueError("a call is not closed")
            text = text.removeprefix(CLOSES).lstrip()
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise ValueError("not a call")
        if "arguments" not in call and "parameters" not in call:
            raise ValueError("a call without arguments")
        yield call["name"], call["arguments"] if "arguments" in call else call["parameters"]


def begins_like_a_call(text: str) -> bool | None:
    """None while that cannot be said yet."""
    text = text.lstrip()
    if text.startswith(("{", OPENS)):
        return True
    return None if OPENS.startswith(text) else False
