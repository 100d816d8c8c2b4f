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

from serving.tool_calls import ArgumentsSplitter, CallSplitter
from serving.tool_text import introduce
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
        """A call of the named function, else one of any; with AUTO also any other text."""
        if self.named:
            (function,) = (f for f in self.functions if f.name == self.choice)
            return OutputFormat(json_schema=json.dumps(_call_schema(function, "#")))
        calls = [_call_schema(function, f"#/anyOf/{i}") for i, function in enumerate(self.functions)]
        return OutputFormat(json_schema=json.dumps({"anyOf": calls}), or_text=self.choice == AUTO)

    def splitter(self) -> CallSplitter:
        return CallSplitter({self.choice} if self.named else {function.name for function in self.functions})

    def read(self, text: str) -> tuple[str, list[ToolCall]]:
        """A whole answer as (text, calls). What was cut off, or calls something else, is text."""
        if self.named:
            named = ArgumentsSplitter(self.choice)
            given = named.feed(text)
            if named.ended and _is_json(given):
                return "", [ToolCall(self.choice, given)]
        splitter = self.splitter()
        before = splitter.feed(text)
        rest, calls = splitter.end()
        # A named function is called once, whatever a server may have made of it.
        calls = calls[:1] if self.named else calls
        return before + rest, [ToolCall(name, _json(arguments)) for name, arguments in calls]


def _call_schema(function: Function, place: str) -> dict[str, Any]:
    """Of a call of the function, for a schema in which it lies at `place`."""
    return {
        "type": "object",
        "properties": {
            "name": {"const": function.name},
            "arguments": _moved(function.parameters, f"{place}/properties/arguments"),
        },
        "required": ["name", "arguments"],
    }


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


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
        self._splitter = tools.splitter()
        self._arguments = ArgumentsSplitter(tools.choice) if tools.named else None
        self.called = False

    def feed(self, text: str) -> list[dict[str, Any]]:
        if self._arguments is not None:
            return self._feed_arguments(self._arguments, text)
        given = self._splitter.feed(text)
        return [{"content": given}] if given else []

    def _feed_arguments(self, splitter: ArgumentsSplitter, text: str) -> list[dict[str, Any]]:
        """A named function's arguments are given as they come: that they are its is known beforehand."""
        began = splitter.began
        given = splitter.feed(text)
        self.called = splitter.ended
        opening = [self._opening(self._tools.choice)] if splitter.began and not began else []
        return [*opening, _call_delta({"function": {"arguments": given}})] if given else opening

    def end(self) -> list[dict[str, Any]]:
        """What was held back; a call that was cut off is given as the text it is."""
        if self._arguments is not None:
            if self._arguments.began:
                return []
            content, calls = self._tools.read(self._arguments.end())
        else:
            content, found = self._splitter.end()
            calls = [ToolCall(name, _json(arguments)) for name, arguments in found]
        self.called = bool(calls)
        deltas: list[dict[str, Any]] = [{"content": content}] if content else []
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
