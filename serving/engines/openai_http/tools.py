"""Tools of requests that calls or plain text may answer, in the server's own words and back again. Pure.

Such work describes its functions in the system message (serving/tool_text.py). A server that calls tools by
itself gets them as `tools`; the calls that it streams become the text that our OpenAI front reads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from serving.tool_syntax import HERMES
from serving.tool_text import take_out, turns_of
from tidegate.routing.domain import Message


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
    turns: list[dict[str, Any]] = []
    for turn in turns_of(messages):
        fields = plain_turn(turn.message)
        if turn.calls:
            fields = {"role": "assistant", "content": turn.text or None}
            fields["tool_calls"] = [
                {
                    "id": f"call_{call.number}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
                }
                for call in turn.calls
            ]
        elif turn.answers is not None:
            fields = {"role": "tool", "tool_call_id": f"call_{turn.answers}", "content": turn.text}
        turns.append(fields)
    return turns


class CallWriter:
    """Writes the pieces of streamed calls as text, one call a line; in tags where text came before."""

    def __init__(self) -> None:
        self._index: object = None
        self._is_open = False
        self._has_arguments = False
        self._after_text = False

    def write(self, text: str, pieces: Sequence[dict[str, Any]]) -> str:
        """The text and the pieces that one event gave."""
        self._after_text = self._after_text or bool(text.strip())
        for piece in pieces:
            function = piece.get("function")
            function = function if isinstance(function, dict) else {}
            name, arguments = function.get("name"), function.get("arguments")
            if not self._is_open or piece.get("index") != self._index:
                between = f"{self.close()}\n" if self._is_open else ""
                opens = HERMES.opens if self._after_text else ""
                text += f'{between}{opens}{{"name": {json.dumps(name)}, "arguments": '
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
        return ("}" if self._has_arguments else "{}}") + (HERMES.closes if self._after_text else "")
