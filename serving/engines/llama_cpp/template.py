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
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

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
        except TemplateError as error:
            raise PromptError(f"the model's chat template is broken: {error.message}") from error
        self._tokenizer = tokenizer
        self._bos, self._eos = bos, eos
        special = sorted(filter(None, special_texts), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special))) if special else None

    def tokenize(self, messages: Sequence[Message]) -> _Tokens:
        """The prompt of `messages`, ready for the assistant's turn. Raises PromptError."""
        if self._special is None or not any(
            self._special.search(text) for m in messages for text in (m.content, m.name)
        ):
            prompt = self._render(messages)
            return self._tokenizer.tokenize(prompt, add_special=not self._begins(prompt), parse_special=True)
        return self._tokenize_guarded(messages)

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
        pieces = re.split(f"({secret}x[0-9]{{6}}x)", self._render(hidden))
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

    def _render(self, messages: Sequence[Message]) -> str:
        turns = [
            {"role": m.role.value, "content": m.content} | ({"name": m.name} if m.name else {})
            for m in messages
        ]
        try:
            return self._template.render(
                messages=turns, add_generation_prompt=True, bos_token=self._bos, eos_token=self._eos
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


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
