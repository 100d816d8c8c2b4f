"""Tools of requests that calls or plain text may answer, in the server's own words and back again. Pure.

Such work describes its functions in the system message (serving/tool_text.py). A server that calls tools by
itself gets them as `tools`; the calls that it streams become the text that our OpenAI front reads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from serving.tool_text import calls_in, take_out
from tidegate.routing.domain import Message, Role


class NoFunctions(ValueError):
    """A schema or text is asked for, and no functions are described that a server could be told of."""


def chat_fields(messages: Sequence[Message]) -> dict[str, Any]:
    """Of a body. Raises NoFunctions."""
    plain, functions = take_out(messages)
    if not functions:
        raise NoFunctions
    tools = [{"type": "function", "function": function} for function in functions]
    return {"messages": _turns(plain), "tools": tools, "tool_choice": "auto"}


def plain_turn(message: Message) -> dict[str, Any]:
    fields = {"role": message.role.value, "content": message.content}
    return fields | {"name": message.name} if message.name else fields


def _turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Earlier calls and their results belong together by ids, which the work does not carry: made anew."""
    turns: list[dict[str, Any]] = []
    unanswered: list[tuple[str, str]] = []
    made = 0
    for message in messages:
        calls = _calls_of(message)
        if calls:
            named = [(name, f"call_{made + number}") for number, (name, _) in enumerate(calls)]
            made += len(calls)
            unanswered = named.copy()
            listed = [
                {
                    "id": call_id,
                    "type": "function",
                    "function": {"name": name, "arguments": json.dumps(given)},
                }
                for (name, call_id), (_, given) in zip(named, calls, strict=True)
            ]
            turns.append({"role": "assistant", "content": None, "tool_calls": listed})
        elif message.role is Role.TOOL and unanswered:
            answered = next((each for each in unanswered if each[0] == message.name), unanswered[0])
            unanswered.remove(answered)
            turns.append({"role": "tool", "tool_call_id": answered[1], "content": message.content})
        else:
            turns.append(plain_turn(message))
    return turns


def _calls_of(message: Message) -> list[tuple[str, Any]]:
    if message.role is not Role.ASSISTANT:
        return []
    try:
        return calls_in(message.content)
    except (ValueError, RecursionError):
        return []


class CallWriter:
    """Writes the pieces of streamed calls as text, one call a line."""

    def __init__(self) -> None:
        self._index: object = None
        self._is_open = False
        self._has_arguments = False

    def write(self, pieces: Sequence[dict[str, Any]]) -> str:
        text = ""
        for piece in pieces:
            function = piece.get("function")
            function = function if isinstance(function, dict) else {}
            name, arguments = function.get("name"), function.get("arguments")
            if not self._is_open or piece.get("index") != self._index:
                between = f"{self.close()}\n" if self._is_open else ""
                text += f'{between}{{"name": {json.dumps(name)}, "arguments": '
                self._index, self._is_open, self._has_arguments = piece.get("index"), True, False
            if isinstance(arguments, str) and arguments:
                text += arguments
                self._has_arguments = True
        return text

    def close(self) -> str:
        """What ends the last call; "" where there is none."""
        if not self._is_open:
            return ""
        self._is_open = False
        return "}" if self._has_arguments else "{}}"
