"""Tool calling over plain text: tools are described to the model, and its answer is held to their JSON. Pure.

A model needs no template for tools that way. A forced call is always well formed; whether a small model
chooses and fills it in sensibly is another matter.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tidegate.routing.domain import Message, OutputFormat, Role

AUTO, REQUIRED = "auto", "required"
_INTRODUCTION = (
    "You can call these functions, each described by a JSON object:\n{functions}\n"
    'To call one, answer with nothing but {{"name": its name, "arguments": an object}}.'
)


@dataclass(frozen=True, slots=True)
class Function:
    """`parameters` is a JSON schema."""

    name: str
    description: str
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments` is JSON text."""

    name: str
    arguments: str

    def line(self) -> str:
        """As a model is asked to write it."""
        return f'{{"name": {json.dumps(self.name)}, "arguments": {self.arguments or "{}"}}}'


@dataclass(frozen=True, slots=True)
class Tools:
    """What may be called. `choice` is AUTO, REQUIRED, or the name of the one function that must be called."""

    functions: tuple[Function, ...]
    choice: str = AUTO

    @property
    def named(self) -> bool:
        return self.choice not in (AUTO, REQUIRED)

    def introduce(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The conversation with the functions described in its system message."""
        described = "\n".join(
            json.dumps({"name": f.name, "description": f.description, "parameters": f.parameters})
            for f in self.functions
        )
        text = _INTRODUCTION.format(functions=described)
        if messages and messages[0].role is Role.SYSTEM:
            first = replace(messages[0], content=f"{messages[0].content}\n\n{text}")
            return (first, *messages[1:])
        return (Message(Role.SYSTEM, text), *messages)

    def format(self) -> OutputFormat:
        """A named function's arguments alone, else a whole call; with AUTO also any other text."""
        if self.named:
            (function,) = (f for f in self.functions if f.name == self.choice)
            return OutputFormat(json_schema=json.dumps(function.parameters))
        calls = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": function.name},
                    "arguments": _moved(function.parameters, f"#/anyOf/{i}/properties/arguments"),
                },
                "required": ["name", "arguments"],
            }
            for i, function in enumerate(self.functions)
        ]
        return OutputFormat(json_schema=json.dumps({"anyOf": calls}), or_text=self.choice == AUTO)

    def read(self, text: str) -> ToolCall | None:
        """The call that a whole answer is; None for one that is none, or that was cut off."""
        if self.named:
            return ToolCall(self.choice, text) if _is_object(text) else None
        if not text.startswith("{"):
            return None
        try:
            call = json.loads(text)
        except (ValueError, RecursionError):
            return None
        names = {function.name for function in self.functions}
        if not isinstance(call, dict) or call.get("name") not in names or "arguments" not in call:
            return None
        return ToolCall(call["name"], json.dumps(call["arguments"], ensure_ascii=False))


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _moved(schema: Any, place: str) -> Any:
    """A schema that lies at `place` of another one: its references to itself must say so."""
    if isinstance(schema, list):
        return [_moved(part, place) for part in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {name: _moved(part, place) for name, part in schema.items()}
    ref = moved.get("$ref")
    if isinstance(ref, str) and ref.startswith("#"):
        moved["$ref"] = place + ref[1:]
    return moved


class ToolReader:
    """Turns an answer's text, as it comes, into OpenAI's deltas."""

    def __init__(self, tools: Tools, call_id: str) -> None:
        self._tools = tools
        self._call_id = call_id
        self._held = ""
        self._is_call = tools.named or tools.choice == REQUIRED
        self._opened = False
        self.called = False

    def feed(self, text: str) -> list[dict[str, Any]]:
        if self._tools.named:
            self._held += text
            opening = [] if self._opened else [self._opening(self._tools.choice)]
            self._opened = True
            return [*opening, _call_delta({"function": {"arguments": text}})]
        if not self._is_call and not self._opened:
            self._is_call = text.startswith("{")
            self._opened = bool(text)
        if self._is_call:
            self._held += text
            return []
        return [{"content": text}] if text else []

    def end(self) -> list[dict[str, Any]]:
        """What was held back; a call that was cut off is given as the text it is."""
        call = self._tools.read(self._held) if self._is_call else None
        self.called = call is not None
        if self._tools.named or not self._held:
            return []
        if call is None:
            return [{"content": self._held}]
        return [self._opening(call.name), _call_delta({"function": {"arguments": call.arguments}})]

    def _opening(self, name: str) -> dict[str, Any]:
        function = {"name": name, "arguments": ""}
        return _call_delta({"id": self._call_id, "type": "function", "function": function})


def _call_delta(call: dict[str, Any]) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, **call}]}
