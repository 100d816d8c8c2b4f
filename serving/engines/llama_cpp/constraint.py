"""One sequence's grammar: which tokens may come next, and what was chosen so far.

Masking the whole vocabulary by a grammar costs milliseconds, so a token is drawn first and only looked at; a
draw that the grammar forbids is repeated under the mask. llama.cpp keeps the grammar's state.
"""

from __future__ import annotations

import ctypes
import re
from collections import OrderedDict
from typing import Any

import numpy as np

from serving.engines.call_grammar import call_grammar
from serving.engines.json_grammar import SchemaError
from serving.engines.llama_cpp.native import C, Context, Model
from serving.tool_syntax import CallSyntax
from tidegate.routing.domain import OutputFormat

# No token of the model can go on with the text.
DEAD_END = -1
MAX_RULES = 4096
MAX_NESTING = 64
_CACHED = 64
_RULE = re.compile(r"^\s*[A-Za-z0-9-]+\s*::=", re.MULTILINE)
# Strings, character classes and comments, in which brackets are no nesting.
_INERT = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|#[^\n]*')
_REPEAT = re.compile(r"\{\s*([0-9]*)\s*,?\s*([0-9]*)\s*\}")
MAX_REPEATS = 1000
_ENTRY = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class FormatError(ValueError):
    """A format that cannot be enforced; the message is for people and carries none of its text."""


class Grammars:
    """Grammar texts of formats, the last ones kept. Raises FormatError. Any one thread."""

    def __init__(self) -> None:
        self._texts: OrderedDict[tuple[OutputFormat, CallSyntax | None], str] = OrderedDict()

    def text(self, format: OutputFormat, syntax: CallSyntax | None = None) -> str:
        """With a syntax the format is one of calls, to be written in it."""
        known = self._texts.get((format, syntax))
        if known is not None:
            self._texts.move_to_end((format, syntax))
            return known
        try:
            made = format.grammar or call_grammar(format.json_schema, syntax, or_text=format.or_text)
        except SchemaError as error:
            raise FormatError(f"the JSON schema cannot be enforced: {error}") from None
        check_grammar(made)
        try:
            made.encode()
        except UnicodeEncodeError:
            raise FormatError("the format holds half a character (a lone surrogate)") from None
        self._texts[format, syntax] = made
        if len(self._texts) > _CACHED:
            self._texts.popitem(last=False)
        return made


def check_grammar(text: str) -> None:
    """What llama.cpp's parser, which recurses, must not see. Raises FormatError."""
    if len(_RULE.findall(text)) > MAX_RULES:
        raise FormatError(f"the grammar has more than {MAX_RULES} rules")
    bare = _INERT.sub(" ", text)
    depth = deepest = 0
    for char in bare:
        depth += (char == "(") - (char == ")")
        deepest = max(deepest, depth)
    if depth != 0 or deepest > MAX_NESTING:
        raise FormatError(f"the grammar's brackets do not match or are more than {MAX_NESTING} deep")
    if any(int(number or 0) > MAX_REPEATS for pair in _REPEAT.findall(bare) for number in pair):
        raise FormatError(f"the grammar repeats something more than {MAX_REPEATS} times")


class Constraint:
    """Must be closed. Raises FormatError when llama.cpp does not take the grammar."""

    def __init__(self, model: Model, grammar: str) -> None:
        self._grammar = C.llama_sampler_init_grammar(model.vocab, grammar.encode(), b"root")
        if not self._grammar:
            raise FormatError("llama.cpp does not take the grammar (no rule `root`, or left recursion)")
        self._entries = np.empty(model.n_vocab, _ENTRY)
        self._ids = np.arange(model.n_vocab, dtype=np.int32)
        self._one = np.empty(1, _ENTRY)

    def choose(self, chain: Any, context: Context, entry: int) -> int:
        """The token that `chain` draws from the logits of a batch entry under the grammar, or DEAD_END."""
        logits = context.logits(entry)
        self._fill(logits)
        token = self._apply(chain)
        if not self.allows(token):
            self._fill(logits)
            masked = _array(self._entries)
            C.llama_sampler_apply(self._grammar, ctypes.byref(masked))
            if not np.isfinite(self._entries["logit"]).any():
                return DEAD_END
            token = self._apply(chain)
            if not self.allows(token):
                return DEAD_END
        C.llama_sampler_accept(chain, token)
        C.llama_sampler_accept(self._grammar, token)
        return token

    def allows(self, token: int) -> bool:
        self._one[0] = (token, 1.0, 0.0)
        C.llama_sampler_apply(self._grammar, ctypes.byref(_array(self._one)))
        return bool(np.isfinite(self._one[0]["logit"]))

    def replay(self, token: int) -> bool:
        """Counts a token that was chosen elsewhere; False when the grammar forbids it."""
        if not self.allows(token):
            return False
        C.llama_sampler_accept(self._grammar, token)
        return True

    def close(self) -> None:
        C.llama_sampler_free(self._grammar)

    def _fill(self, logits: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        self._entries["id"], self._entries["logit"], self._entries["p"] = self._ids, logits, 0.0

    def _apply(self, chain: Any) -> int:
        array = _array(self._entries)
        C.llama_sampler_apply(chain, ctypes.byref(array))
        return int(array.data[array.selected].id) if array.selected >= 0 else DEAD_END


def _array(entries: np.ndarray[Any, Any]) -> Any:
    data = entries.ctypes.data_as(ctypes.POINTER(C.llama_token_data))
    return C.llama_token_data_array(data, len(entries), -1, False)
