"""From messages to prompt tokens by the model's own chat template.

Text of users is never parsed for control tokens. Where a content holds the text of one, the template is
rendered with unguessable markers instead of the contents; the template's own pieces are then tokenised with
control tokens, the contents without.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from serving.tool_text import CLOSES, OPENS, calls_in, take_out
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
        self._takes_tools = "tools" in names
        self._tags = (OPENS, CLOSES) if self._takes_tools and OPENS in source and CLOSES in source else None
        self._tokenizer = tokenizer
        self._bos, self._eos = bos, eos
        special = sorted(filter(None, special_texts), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special))) if special else None

    def tokenize(self, messages: Sequence[Message]) -> _Tokens:
        """The prompt of `messages`, ready for the assistant's turn. Raises PromptError.

        Functions that the system message describes are given to a template that has a place for them.
        """
        prompt = self._with_functions(messages)
        if prompt is not None:
            return self._tokenizer.tokenize(prompt, add_special=not self._begins(prompt), parse_special=True)
        if not self._is_guarded(messages):
            prompt = self._render(_turns(messages))
            return self._tokenizer.tokenize(prompt, add_special=not self._begins(prompt), parse_special=True)
        return self._tokenize_guarded(messages)

    def tags(self, messages: Sequence[Message]) -> tuple[str, str] | None:
        """What the template has the model put around a call, where it is given the functions."""
        return self._tags if self._tags is not None and self._with_functions(messages) is not None else None

    def _with_functions(self, messages: Sequence[Message]) -> str | None:
        """None without functions, or where the template cannot be trusted with them.

        Texts with control tokens in them are not: here nothing is hidden from the template.
        """
        plain, functions = take_out(messages) if self._takes_tools else ((), [])
        if not functions:
            return None
        turns = [_with_calls(turn) for turn in _turns(plain)]
        # Not the messages' own text is looked at: JSON may write a control token in another way.
        if self._special is not None and any(map(self._special.search, _texts([turns, functions]))):
            return None
        tools = [{"type": "function", "function": function} for function in functions]
        try:
            return self._render(turns, tools=tools)
        except PromptError:
            # A template for another shape of functions: the plain text will do.
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
        pieces = re.split(f"({secret}x[0-9]{{6}}x)", self._render(_turns(hidden)))
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
        except (
            TemplateError,
            ArithmeticError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
            AttributeError,
        ) as error:
            # The message of such an error may quote the prompt.
            kind = type(error).__name__
            raise PromptError(f"the model's chat template cannot render the messages ({kind})") from None


def _turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [
        {"role": m.role.value, "content": m.content} | ({"name": m.name} if m.name else {}) for m in messages
    ]


def _texts(value: Any) -> Iterator[str]:
    """All texts in it, names of members among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _with_calls(turn: dict[str, Any]) -> dict[str, Any]:
    """An assistant's turn that consists of calls, in the form that templates know."""
    if turn["role"] != "assistant":
        return turn
    try:
        calls = calls_in(turn["content"])
    except (ValueError, RecursionError):
        return turn
    if not calls:
        return turn
    functions = ({"name": name, "arguments": arguments} for name, arguments in calls)
    return turn | {"content": "", "tool_calls": [{"type": "function", "function": f} for f in functions]}


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
