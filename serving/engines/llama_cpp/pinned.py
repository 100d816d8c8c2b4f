"""Pinned system prompts: computed when nothing else is to do, parked for good.

Some tenants' conversations all begin with one text. What is kept are the tokens that these share, whatever
the first question is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from serving.engines.llama_cpp.native import Context, Model, NativeError, Tokens
from serving.engines.llama_cpp.prefix import BLOCK_TOKENS, PrefixCache, common_prefix
from serving.engines.llama_cpp.sequence import namespace_of
from serving.engines.llama_cpp.template import ChatTemplate, PromptError
from tidegate.routing.domain import Message, Role

MAX_CHUNK = 65_536
# What work that comes to an idle engine may find in its way.
IDLE_CHUNK = 64
# Two questions that no template and no tokenizer confuses.
_QUESTIONS = ("Why?", "2 + 2")


@dataclass(frozen=True, slots=True)
class PinnedPrompt:
    """The tokens that all conversations with the prompt begin with, and whose conversations they are."""

    tokens: Tokens
    tenants: Sequence[str]
    adapter: str = ""


class PinWarmer:
    """Computes one chunk at a time: work that comes meanwhile waits for no more than that.

    `apply_adapter` makes a LoRA adapter hold for the next steps.
    """

    def __init__(
        self,
        context: Context,
        cache: PrefixCache,
        apply_adapter: Callable[[str], None],
        prompts: Sequence[PinnedPrompt],
        chunk_tokens: int,
    ) -> None:
        self._context, self._cache = context, cache
        self._apply_adapter = apply_adapter
        self._chunk_tokens = chunk_tokens
        self._left = deque(prompts)
        self.pinned_tokens = 0
        self.refused: list[str] = []

    @property
    def done(self) -> bool:
        return not self._left

    def warm(self, most: int = MAX_CHUNK) -> bool:
        """Computes the next chunk, of `most` tokens at most, in an idle slot; False when there is none."""
        if not self._left or not self._cache.idle:
            return False
        prompt, tokens = self._left[0], self._left[0].tokens
        namespaces = [namespace_of(prompt.adapter, tenant) for tenant in prompt.tenants]
        slot = self._cache.take(tokens, namespaces[0], ()).slot
        try:
            self._apply_adapter(prompt.adapter)
            part = min(most, self._chunk_tokens, len(tokens) - slot.filled)
            if self._compute(slot.index, slot.filled, tokens[slot.filled : slot.filled + part]):
                slot.filled += part
        finally:
            self._cache.release(slot, tokens[: slot.filled], ())
        if slot.filled == len(tokens):
            self._left.popleft()
            pinned = self._cache.pin(slot, namespaces)
            self.pinned_tokens += pinned
            if pinned == 0:
                self.refused.append(f"there is no room to hold its {len(tokens)} tokens for good")
        return True

    def _compute(self, sequence: int, start: int, tokens: Tokens) -> bool:
        count, context = len(tokens), self._context
        context.tokens[:count] = tokens
        context.positions[:count] = np.arange(start, start + count, dtype=np.int32)
        context.sequence_ids[:count] = sequence
        context.outputs[:count] = 0
        return context.decode(count)


def pinned_prompts(
    pinned: Sequence[tuple[str, Sequence[str], str]],
    model: Model,
    template: ChatTemplate | None,
    context_tokens: int,
) -> tuple[list[PinnedPrompt], list[str]]:
    """Each (text, tenants, adapter) as tokens; and why some are left out, without their text."""
    found, left_out = [], []
    for text, tenants, adapter in pinned:
        try:
            tokens = _shared_tokens(text, model, template)
        except (PromptError, NativeError) as error:
            left_out.append(str(error))
            continue
        if BLOCK_TOKENS <= len(tokens) < context_tokens:
            found.append(PinnedPrompt(tokens, tenants, adapter))
        else:
            left_out.append(
                f"its {len(tokens)} tokens are under {BLOCK_TOKENS} or fill the context of {context_tokens}"
            )
    return found, left_out


def _shared_tokens(text: str, model: Model, template: ChatTemplate | None) -> Tokens:
    if template is None:
        first, second = (
            model.tokenize(f"{text}{question}", add_special=True, parse_special=False)
            for question in _QUESTIONS
        )
    else:
        system = Message(Role.SYSTEM, text)
        first, second = (template.tokenize((system, Message(Role.USER, question))) for question in _QUESTIONS)
    return first[: common_prefix(first, second)]
