"""From messages to prompt tokens by the model's own chat template.

Text of users is never parsed for control tokens. Where a content holds the text of one, the template is
rendered with unguessable markers instead of the contents; the template's own pieces are then tokenised with
control tokens, the contents without.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from itertools import chain
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from serving.engines.llama_cpp.call_syntax import TemplateCalls, template_calls
from serving.engines.llama_cpp.chat_turns import (
    one_call_each,
    plain_turn,
    texts_in,
    texts_of,
    turns_with_calls,
)
from serving.tool_syntax import BARE, CallSyntax
from serving.tool_text import take_out, turns_of
from tidegate.routing.domain import Message

# What a template, run on messages it was not made for, can raise.
_RENDER_ERRORS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
# Of a template whose syntax of calls is not known: it gets earlier calls, answers are as without it.
_UNREAD = TemplateCalls(BARE, rendered=True)
_Tokens = npt.NDArray[np.int32]


class PromptError(Exception):
    """The input cannot become a prompt; the message is for people and carries no prompt text."""


class Tokenizer(Protocol):
    """What is needed of a model."""

    @property
    def adds_bos(self) -> bool: ...

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> _Tokens: ...


class _Refused(TemplateError):
    """Raised by a template itself through raise_exception."""


def _raise_exception(message: object) -> None:
    raise _Refused(str(message))


class ChatTemplate:
    """A chat template in a sandbox. Raises PromptError when the template is no template."""

    def __init__(
        self, source: str, tokenizer: Tokenizer, special_texts: Sequence[str], *, bos: str, eos: str
    ) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
        environment.filters["tojson"] = _to_json
        try:
            self._template = environment.from_string(source)
            names = meta.find_undeclared_variables(environment.parse(source))
        except TemplateError as error:
            raise PromptError(f"the model's chat template is broken: {error.message}") from error
        self._tokenizer = tokenizer
        self._bos, self._eos = bos, eos
        special = sorted(filter(None, special_texts), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special))) if special else None
        self._takes_tools = "tools" in names
        self._calls = template_calls(self._try, source) if self._takes_tools else None
        # What opens or parts calls may be control tokens, which print nothing by themselves.
        markers = set(special).intersection(() if self._calls is None else self._calls.syntax.markers)
        self.shown = {self._number_of(text): text.encode() for text in markers}

    def tokenize(self, messages: Sequence[Message]) -> _Tokens:
        return self.prompt(messages)[0]

    def prompt(self, messages: Sequence[Message]) -> tuple[_Tokens, CallSyntax | None]:
        """The prompt of `messages`, ready for the assistant's turn. Raises PromptError.

        Functions that the system message describes are given to a template that has the model call them in a
        known syntax, which is given too.
        """
        if self._calls is not None:
            prompt = self._with_functions(messages, self._calls)
            if prompt is not None:
                return self._parsed(prompt), self._calls.syntax
        try:
            return self._without_functions(messages), None
        except PromptError:
            # Some templates take results of functions only where they are given the functions and the calls.
            unread = self._with_functions(messages, _UNREAD) if self._takes_tools else None
            if unread is None:
                raise
            return self._parsed(unread), None

    def _parsed(self, prompt: str) -> _Tokens:
        return self._tokenizer.tokenize(prompt, add_special=not self._begins(prompt), parse_special=True)

    def _number_of(self, control: str) -> int:
        return int(self._tokenizer.tokenize(control, add_special=False, parse_special=True)[-1])

    def _without_functions(self, messages: Sequence[Message]) -> _Tokens:
        if not self._is_guarded(messages):
            return self._parsed(self._render([plain_turn(m) for m in messages]))
        return self._tokenize_guarded(messages)

    def _with_functions(self, messages: Sequence[Message], calls: TemplateCalls) -> str | None:
        """None without functions, or where the template cannot be trusted with them.

        Texts with control tokens in them are not: here nothing is hidden from the template. Not the messages'
        own text is looked at for them: JSON may write a control token in another way.
        """
        plain, functions = take_out(messages)
        if not functions:
            return None
        earlier = turns_of(plain)
        if self._special is not None:
            texts = chain(texts_of(earlier), texts_in(functions))
            if any(map(self._special.search, texts)):
                return None
        turns = turns_with_calls(earlier, calls)
        tools = [{"type": "function", "function": function} for function in functions]
        prompt = self._try(turns, tools)
        if prompt is None and (apart := one_call_each(turns)):
            prompt = self._try(apart, tools)
        # None is for another shape of functions: the plain text will do.
        return prompt

    def _try(self, turns: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> str | None:
        try:
            return self._render(turns, tools=tools)
        except PromptError:
            return None

    def _is_guarded(self, messages: Sequence[Message]) -> bool:
        special = self._special
        return special is not None and any(
            special.search(text) for m in messages for text in (m.content, m.name)
        )

    def _tokenize_guarded(self, messages: Sequence[Message]) -> _Tokens:
        secret = secrets.token_hex(16)
        originals: dict[str, str] = {}

        def hide(text: str) -> str:
            if not text:
                return ""
            marker = f"{secret}x{len(originals):06d}x"
            originals[marker] = text
            return marker

        hidden = [Message(m.role, hide(m.content), hide(m.name)) for m in messages]
        pieces = re.split(f"({secret}x[0-9]{{6}}x)", self._render([plain_turn(m) for m in hidden]))
        parts: list[_Tokens] = []
        for number, piece in enumerate(pieces):
            content = originals.get(piece)
            if content is not None:
                parts.append(self._tokenizer.tokenize(content, add_special=False, parse_special=False))
            elif piece or number == 0:
                first = number == 0 and not self._begins(piece)
                parts.append(self._tokenizer.tokenize(piece, add_special=first, parse_special=True))
        return np.concatenate(parts)

    def _begins(self, prompt: str) -> bool:
        """Whether the template has written the begin-of-sequence token itself."""
        return not self._tokenizer.adds_bos or (bool(self._bos) and prompt.startswith(self._bos))

    def _render(self, turns: Sequence[dict[str, Any]], **extra: Any) -> str:
        try:
            return self._template.render(
                messages=turns, add_generation_prompt=True, bos_token=self._bos, eos_token=self._eos, **extra
            )
        except _Refused as error:
            raise PromptError(f"the model's chat template refuses the messages: {error.message}") from error
        except _RENDER_ERRORS as error:
            # The message of such an error may quote the prompt.
            kind = type(error).__name__
            raise PromptError(f"the model's chat template cannot render the messages ({kind})") from None


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """With the parameters that templates are written for."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
