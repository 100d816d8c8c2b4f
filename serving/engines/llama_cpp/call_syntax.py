"""The syntax in which a chat template has its model call functions, by what it writes for a call. Pure.

Where a template leaves earlier calls out, its words to the model tell; the model's name never does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from serving.tool_syntax import (
    BARE,
    FUNCTIONARY,
    GRANITE,
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_NAMED,
    MISTRAL_WITH_IDS,
    PHI,
    CallSyntax,
)

# (turns, tools) to a prompt, or None where the template does not take them.
Render = Callable[[Sequence[dict[str, Any]], Sequence[dict[str, Any]]], str | None]

# Words that no template holds.
_QUESTION, _ANSWER, _RESULT, _NAME, _KEY = "qwxzquestion", "qwxzanswer", "qwxzresult", "qwxzname", "qwxzkey"
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "d",
        "parameters": {"type": "object", "properties": {_KEY: {"type": "string"}}, "required": [_KEY]},
    },
}
_OBJECT = rf'\{{\s*"name":\s*"{_NAME}",\s*"arguments":\s*\{{\s*"{_KEY}"'
_WRITTEN = (
    (HERMES, re.compile(rf"<tool_call>\s*{_OBJECT}.*</tool_call>", re.DOTALL)),
    (MISTRAL, re.compile(rf"\[TOOL_CALLS\]\s*\[\s*{_OBJECT}")),
    (MISTRAL_NAMED, re.compile(rf"\[TOOL_CALLS\]{_NAME}\[ARGS\]\s*\{{")),
    (MISTRAL_WITH_IDS, re.compile(rf"\[TOOL_CALLS\]{_NAME}\[CALL_ID\]\w+\[ARGS\]\s*\{{")),
    (PHI, re.compile(rf"<\|tool_call\|>\s*{_OBJECT}.*<\|/tool_call\|>", re.DOTALL)),
    (GRANITE, re.compile(rf"<\|tool_call\|>\s*\[\s*{_OBJECT}")),
    (FUNCTIONARY, re.compile(rf"<function={_NAME}>\s*\{{.*</function>", re.DOTALL)),
)
# Nothing tells these from a part of another syntax but that an answer begins with them.
_WRITTEN_BARE = (
    (LLAMA, re.compile(rf'\s*\{{\s*"name":\s*"{_NAME}",\s*"parameters":\s*\{{')),
    (BARE, re.compile(rf"\s*{_OBJECT}")),
)
# In this order: words that must all be there.
_TOLD = (
    (HERMES, ("<tool_call>", "</tool_call>")),
    (MISTRAL_WITH_IDS, ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")),
    (MISTRAL_NAMED, ("[TOOL_CALLS]", "[ARGS]")),
    (MISTRAL, ("[TOOL_CALLS]",)),
    (GRANITE, ("<|tool_call|>", "JSON list")),
    (PHI, ("<|tool_call|>", "<|/tool_call|>")),
)
# In a template that says how: arguments one by one, which is another syntax.
_NOT_JSON = ("<parameter=", "<arg_key>")


@dataclass(frozen=True, slots=True)
class TemplateCalls:
    """`rendered`: the template writes earlier calls."""

    syntax: CallSyntax
    rendered: bool


def template_calls(render: Render, source: str) -> TemplateCalls | None:
    """None where the template takes no functions, or has the model call them in no syntax that is known."""
    asked = {"role": "user", "content": _QUESTION}
    call = {"id": "qwxz00000", "type": "function", "function": {"name": _NAME, "arguments": {_KEY: "value"}}}
    turns: list[dict[str, Any]] = [
        asked,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": _NAME, "tool_call_id": call["id"], "content": _RESULT},
    ]
    prompt = render(turns, [_TOOL])
    written = "" if prompt is None else prompt.rpartition(_QUESTION)[2].partition(_RESULT)[0]
    if _NAME not in written:
        return _told(source)
    plain = render([asked, {"role": "assistant", "content": _ANSWER}, asked], [_TOOL])
    syntax = _syntax_of(written, "" if plain is None else plain)
    return None if syntax is None else TemplateCalls(syntax, rendered=True)


def _syntax_of(written: str, plain: str) -> CallSyntax | None:
    for syntax, pattern in _WRITTEN:
        if pattern.search(written):
            return syntax
    before = plain.partition(_QUESTION)[2].partition(_ANSWER)
    if not before[1] or not written.startswith(before[0]):
        return None
    return next((s for s, pattern in _WRITTEN_BARE if pattern.match(written, len(before[0]))), None)


def _told(source: str) -> TemplateCalls | None:
    if any(word in source for word in _NOT_JSON):
        return None
    for syntax, words in _TOLD:
        if all(word in source for word in words):
            return TemplateCalls(syntax, rendered=False)
    return None
