"""What is known about a prompt before routing: tokens, prefix names, difficulty. No prompt is kept."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from gateway.analysis.difficulty import DifficultyModel
from gateway.analysis.tokens import TEMPLATE_TOKENS, estimate_chat_tokens, estimate_tokens
from tidegate.routing.domain import Analysis, GenerateRequest, Message, Role
from tidegate.routing.prefix import BLOCK_BYTES, NAMED_BLOCKS, canonical_bytes, prefix_names

MIN_KEY_BYTES = 16
MAX_BLOCKS = NAMED_BLOCKS
_MAX_TENANT_KEYS = 1024


class _TenantKey(NamedTuple):
    """A key and the time it is for."""

    key: bytes
    from_s: float
    until_s: float


class Analyzer:
    """Analyses requests; one per gateway, used on its event loop.

    `prefix_key` is the fleet's secret, equal on all gateways that share nodes; each tenant's prefixes are
    named under a key derived from it, so one tenant cannot learn what another's prompts begin with.
    Every `rotate_s` seconds of `wall_clock` a tenant gets another key, each tenant at its own moment: old
    names say nothing then, and nodes learn the new ones as prompts come. 0 rotates none. `model_path`
    replaces the shipped difficulty prior.
    """

    def __init__(
        self,
        prefix_key: bytes,
        *,
        rotate_s: float = 0.0,
        wall_clock: Callable[[], float] = lambda: 0.0,
        model_path: Path | None = None,
        max_blocks: int = MAX_BLOCKS,
    ) -> None:
        """Raises ValueError for a short key, ModelUnusable for a bad model."""
        if len(prefix_key) < MIN_KEY_BYTES:
            raise ValueError(f"prefix_key must have at least {MIN_KEY_BYTES} bytes")
        self._prefix_key = prefix_key
        self._rotate_s = rotate_s
        self._wall_clock = wall_clock
        self._max_blocks = max_blocks
        self._model = DifficultyModel(model_path)
        self._tenant_keys: OrderedDict[str, _TenantKey] = OrderedDict()

    @property
    def fingerprint(self) -> str:
        """Of the complexity model: the same model, the same difficulties."""
        return self._model.fingerprint

    def analyze(self, request: GenerateRequest) -> Analysis:
        """Bounded work whatever the prompt's length; never raises for any text."""
        if request.prompt is not None:
            asking, total_chars, turns = request.prompt, len(request.prompt), 1
            tokens = estimate_tokens(request.prompt)
        else:
            asking = _asking_text(request.messages)
            total_chars = sum(len(m.content) for m in request.messages)
            turns = sum(m.role is Role.USER for m in request.messages)
            tokens = estimate_chat_tokens(request.messages) if request.messages else TEMPLATE_TOKENS
        return Analysis(
            prompt_tokens=max(tokens, 1),
            difficulty_of=cache(
                partial(self._model.difficulty, asking, total_chars=total_chars, turns=turns)
            ),
            prefix_hashes=self.prefix_hashes(request),
        )

    def prefix_hashes(self, request: GenerateRequest) -> tuple[bytes, ...]:
        """Names of the leading blocks of the request's input; none for text that is not valid Unicode."""
        limit = self._max_blocks * BLOCK_BYTES
        try:
            if request.prompt is not None:
                data = _first_bytes(request.prompt, limit).encode("utf-8")[:limit]
            else:
                data = _leading_bytes(request.messages, limit)
        except UnicodeEncodeError:
            return ()
        # What one adapter computed is of no use to another.
        key = self._tenant_key(f"{request.adapter}\0{request.tenant}" if request.adapter else request.tenant)
        return prefix_names(data, key, max_blocks=self._max_blocks)

    def _tenant_key(self, tenant: str) -> bytes:
        now_s = self._wall_clock()
        found = self._tenant_keys.get(tenant)
        if found is None or now_s >= found.until_s or now_s < found.from_s:
            found = self._tenant_keys[tenant] = self._derive(tenant, now_s)
            if len(self._tenant_keys) > _MAX_TENANT_KEYS:
                self._tenant_keys.popitem(last=False)
        return found.key

    def _derive(self, tenant: str, now_s: float) -> _TenantKey:
        """The same on every replica whose clock agrees."""
        name = tenant.encode("utf-8", "surrogatepass")
        generation, from_s, until_s = 0, -math.inf, math.inf
        if self._rotate_s > 0.0:
            drawn = self._digest(b"tidegate prefix rotation\0" + name)
            offset_s = int.from_bytes(drawn[:4], "big") / 2**32 * self._rotate_s
            generation = math.floor((now_s + offset_s) / self._rotate_s)
            from_s = generation * self._rotate_s - offset_s
            until_s = from_s + self._rotate_s
        return _TenantKey(self._digest(b"tidegate prefix names\0%d\0" % generation + name), from_s, until_s)

    def _digest(self, data: bytes) -> bytes:
        return hmac.digest(self._prefix_key, data, hashlib.sha256)


def _asking_text(messages: Sequence[Message]) -> str:
    """The last user message: what is asked now. Without one, whatever came last."""
    for message in reversed(messages):
        if message.role is Role.USER:
            return message.content
    return messages[-1].content if messages else ""


def _leading_bytes(messages: Sequence[Message], limit: int) -> bytes:
    """The first `limit` canonical bytes, encoding no more text than they need.

    A content cut to as many characters as bytes are wanted still fills them, as no character takes less than
    a byte, so what its cutting changed lies beyond the limit.
    """
    parts: list[bytes] = []
    size = 0
    for message in messages:
        wanted = limit - size
        if wanted <= 0:
            break
        if len(message.content) > wanted:
            message = replace(message, content=_first_bytes(message.content, wanted))
        part = canonical_bytes((message,))
        parts.append(part)
        size += len(part)
    return b"".join(parts)[:limit]


def _first_bytes(text: str, size: int) -> str:
    """A beginning of `text` that takes at least `size` bytes in UTF-8, or all of it."""
    if not text.isascii():
        third = text[: size // 3 + 1]
        if len(third.encode("utf-8")) >= size:
            return third
    return text[:size]
