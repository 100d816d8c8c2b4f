"""One sequence inside the child, from prepared prompt to finish."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from serving.engines.llama_cpp.native import Tokens
from serving.engines.llama_cpp.prefix import Slot
from serving.engines.llama_cpp.protocol import Emission
from serving.engines.llama_cpp.sampling import SamplerChain
from serving.engines.llama_cpp.text import TextAssembler
from tidegate.routing.domain import Failure, Finish, FinishReason, FirstToken, Usage, Work


@dataclass(slots=True)
class Prepared:
    """Work whose input has become tokens: `prompt` includes replayed ones; or why it could not."""

    sid: int
    work: Work
    prompt: Tokens
    prompt_tokens: int
    arrived_ms: float
    failure: Failure | None = None


@dataclass(slots=True)
class Running:
    """A sequence in a slot. `filled` tokens of it are in the cache; `index` is the next output index."""

    sid: int
    work: Work
    prompt: Tokens
    prompt_tokens: int
    slot: Slot
    sampler: SamplerChain
    text: TextAssembler
    limit_index: int
    cached: int
    filled: int
    arrived_ms: float
    admitted_ms: float
    order: int
    index: int
    deadline_ms: float | None
    answer: list[int] = field(default_factory=list)
    started: bool = False

    @property
    def decoding(self) -> bool:
        return self.filled >= len(self.prompt)

    @property
    def prefill_left(self) -> int:
        return max(0, len(self.prompt) - self.filled)

    @property
    def decode_left(self) -> int:
        return max(0, self.limit_index - self.index)

    def tokens_in_cache(self) -> Tokens:
        if self.filled <= len(self.prompt):
            return self.prompt[: self.filled]
        answer = np.array(self.answer[: self.filled - len(self.prompt)], np.int32)
        return np.concatenate([self.prompt, answer])

    def accept(self, token: int, piece: bytes, *, ends: bool, now_ms: float, batch_size: int) -> Emission:
        """What `token`, just chosen, gives: its text as far as it may be shown, and the finish if it ends."""
        at = self.index
        if ends:
            return Emission(self.sid, at, (), self.text.flush(), None, self.finish(FinishReason.STOP))
        first = None
        if not self.started:
            self.started = True
            first = FirstToken(
                queue_ms=self.admitted_ms - self.arrived_ms,
                prefill_ms=now_ms - self.admitted_ms,
                cached_tokens=self.cached,
                batch_size=batch_size,
                prompt_tokens=self.prompt_tokens,
            )
        self.answer.append(token)
        self.index += 1
        text, stopped = self.text.push(piece)
        finish = None
        if stopped:
            finish = self.finish(FinishReason.STOP)
        elif self.index >= self.limit_index:
            text += self.text.flush()
            finish = self.finish(FinishReason.LENGTH)
        return Emission(self.sid, at, (token,), text, first, finish)

    def finish(self, result: FinishReason | Failure) -> Finish:
        return Finish(result, Usage(self.prompt_tokens, self.index, self.cached))
