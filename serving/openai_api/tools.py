"""Tool calling: tools are described to the model, and its answer is held to the JSON of their calls. Pure.

A model needs no template for tools; one whose template has a place for them is told there, and may write
calls in its own form. A forced call is always well formed; whether a small model chooses and fills it in
sensibly is another matter.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serving.tool_text import begins_like_a_call, calls_in, introduce
from tidegate.routing.domain import Message, OutputFormat

AUTO, REQUIRED = "auto", "required"


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
        described = [
            {"name": f.name, "description": f.description, "parameters": f.parameters} for f in self.functions
        ]
        return introduce(described, messages)

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

    def read(self, text: str) -> list[ToolCall]:
        """The calls that a whole answer is; none for one that is something else, or that was cut off."""
        if self.named:
            return [ToolCall(self.choice, text)] if _is_object(text) else []
        try:
            calls = calls_in(text)
        except (ValueError, RecursionError):
            return []
        names = {function.name for function in self.functions}
        if not all(name in names for name, _ in calls):
            return []
        return [ToolCall(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in calls]


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
        # None while it cannot be told.
        self._is_call: bool | None = True if tools.named or tools.choice == REQUIRED else None
        self._opened = False
        self.called = False

    def feed(self, text: str) -> list[dict[str, Any]]:
        if self._tools.named:
            self._held += text
            opening = [] if self._opened else [self._opening(self._tools.choice)]
            self._opened = True
            return [*opening, _call_delta({"function": {"arguments": text}})]
        if self._is_call is False:
            return [{"content": text}] if text else []
        self._held += text
        if self._is_call is None:
            self._is_call = begins_like_a_call(self._held)
        if self._is_call is not False:
            return []
        text, self._held = self._held, ""
        return [{"content": text}]

    def end(self) -> list[dict[str, Any]]:
        """What was held back; a call that was cut off is given as the text it is."""
        calls = self._tools.read(self._held) if self._is_call else []
        self.called = bool(calls)
        if self._tools.named or not self._held:
            return []
        if not calls:
            return [{"content": self._held}]
        deltas = []
        for index, call in enumerate(calls):
            deltas.append(self._opening(call.name, index))
            deltas.append(_call_delta({"function": {"arguments": call.arguments}}, index))
        return deltas

    def _opening(self, name: str, index: int = 0) -> dict[str, Any]:
        function = {"name": name, "arguments": ""}
        call_id = call_id_of(self._call_id, index)
        return _call_delta({"id": call_id, "type": "function", "function": function}, index)


def call_id_of(answer: str, index: int) -> str:
    """Of an answer's calls: the first has the answer's own."""
    return f"{answer}-{index}" if index else answer


def _call_delta(call: dict[str, Any], index: int = 0) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, **call}]}
