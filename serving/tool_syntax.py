"""The syntaxes in which models call functions: what the templates of common model families have them write.

A door reads all of them, since it knows no node's template; an engine writes the one of its model's template.
docs/structured-output.md lists them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

NAME, ARGUMENTS, PARAMETERS = "name", "arguments", "parameters"


class Form(Enum):
    """OBJECT: each call is an object with name and arguments. LIST: one list of such objects. NAMED: the
    function's name, then its arguments as JSON."""

    OBJECT = "object"
    LIST = "list"
    NAMED = "named"


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """`opens` and `closes` stand around each call, or around all (a LIST, or where nothing closes them).

    `opens` is "" where a call is bare JSON, and may be left out where `optional`. `arguments` is a member's
    name; `before_arguments` and, where an id of nine letters may come first, `before_id` are NAMED's.
    """

    opens: str = ""
    closes: str = ""
    form: Form = Form.OBJECT
    arguments: str = ARGUMENTS
    before_arguments: str = ""
    before_id: str = ""
    optional: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts of it that may be control tokens."""
        return tuple(filter(None, (self.opens, self.closes, self.before_id, self.before_arguments)))

    def write(self, calls: Iterable[tuple[str, Any]]) -> str:
        """As the model would have written the calls (name, arguments)."""
        opens = "" if self.optional else self.opens
        if self.form is Form.NAMED:
            before = self.before_arguments
            return "".join(f"{opens}{name}{before}{_json(given)}{self.closes}" for name, given in calls)
        objects = [_json({NAME: name, self.arguments: given}) for name, given in calls]
        if self.form is Form.LIST:
            return f"{opens}[{', '.join(objects)}]{self.closes}"
        if self.closes:
            return "\n".join(f"{opens}\n{each}\n{self.closes}" for each in objects)
        return opens + "; ".join(objects)


BARE = CallSyntax()
HERMES = CallSyntax("<tool_call>", "</tool_call>")
LLAMA = CallSyntax("<|python_tag|>", arguments=PARAMETERS, optional=True)
MISTRAL = CallSyntax("[TOOL_CALLS]", form=Form.LIST)
MISTRAL_NAMED = CallSyntax("[TOOL_CALLS]", form=Form.NAMED, before_arguments="[ARGS]")
MISTRAL_WITH_IDS = CallSyntax(
    "[TOOL_CALLS]", form=Form.NAMED, before_arguments="[ARGS]", before_id="[CALL_ID]"
)
GRANITE = CallSyntax("<|tool_call|>", form=Form.LIST)
PHI = CallSyntax("<|tool_call|>", "<|/tool_call|>")
FUNCTIONARY = CallSyntax("<function=", "</function>", Form.NAMED, before_arguments=">")

SYNTAXES = (
    BARE,
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_NAMED,
    MISTRAL_WITH_IDS,
    GRANITE,
    PHI,
    FUNCTIONARY,
)
# What begins calls wherever it stands in an answer, with what ends one.
CLOSING = {s.opens: s.closes for s in SYNTAXES if s.opens}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
