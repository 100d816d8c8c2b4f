"""One sequence inside the child, from prepared prompt to finish."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from serving.engines.llama_cpp.native import Tokens
from serving.engines.llama_cpp.positions import NamedPositions
from serving.engines.llama_cpp.prefill import Pending
from serving.engines.llama_cpp.prefix import Lease, Slot
from serving.engines.llama_cpp.protocol import Emission
from serving.engines.llama_cpp.sampling import SamplerChain
from serving.engines.llama_cpp.text import TextAssembler
from tidegate.routing.domain import Cause, Failure, Finish, FinishReason, FirstToken, Usage, Work


@dataclass(slots=True)
class Prepared:
    """Work whose input has become tokens: `prompt` includes replayed ones; or why it could not.

    `names` are the work's prefix blocks with the number of prompt tokens that each stands for, `grammar` is
    what its format comes to, `shown` are control tokens that its answer shows, with their text.
    """

    sid: int
    work: Work
    prompt: Tokens
    prompt_tokens: int
    arrived_ms: float
    failure: Failure | None = None
    names: NamedPositions = ()
    grammar: str = ""
    shown: Mapping[int, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class Running:
    """A sequence in a slot. `index` is the next output index; `cached` tokens of it were not computed."""

    sid: int
    work: Work
    prompt: Tokens
    prompt_tokens: int
    names: NamedPositions
    lease: Lease
    sampler: SamplerChain
    text: TextAssembler
    limit_index: int
    arrived_ms: float
    admitted_ms: float
    index: int
    deadline_ms: float | None
    first_token_due_ms: float | None
    shown: Mapping[int, bytes] = field(default_factory=dict)
    slot: Slot = field(init=False)
    cached: int = field(init=False)
    answer: list[int] = field(default_factory=list)
    started: bool = False

    def __post_init__(self) -> None:
        self.slot = self.lease.slot
        self.take_lease(self.lease)

    def take_lease(self, lease: Lease) -> None:
        """Nothing was computed yet, and this much of the prompt is there."""
        self.lease = lease
        self.cached = min(lease.cached, self.prompt_tokens)

    @property
    def decoding(self) -> bool:
        return self.slot.filled >= len(self.prompt)

    @property
    def prefill_left(self) -> int:
        return max(0, len(self.prompt) - self.slot.filled)

    def pending(self) -> Pending:
        """What its prompt still needs."""
        left, priority = self.prefill_left, self.work.priority
        return Pending(self.sid, self.slot.index, left, priority, self.admitted_ms, self.first_token_due_ms)

    def tokens_in_cache(self) -> Tokens:
        filled = self.slot.filled
        if filled <= len(self.prompt):
            return self.prompt[:filled]
        answer = np.array(self.answer[: filled - len(self.prompt)], np.int32)
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
        text, stopped = self.text.push(self.shown.get(token, piece) if self.shown else piece)
        finish = None
        if stopped:
            finish = self.finish(FinishReason.STOP)
        elif self.index >= self.limit_index:
            text += self.text.flush()
            finish = self.finish(FinishReason.LENGTH)
        return Emission(self.sid, at, (token,), text, first, finish)

    def dead_end(self) -> Emission:
        """Its grammar leaves no token of this model to choose."""
        failure = Failure(Cause.INVALID_INPUT, "the format leaves no token of this model to go on with")
        return Emission(self.sid, self.index, (), self.text.flush(), None, self.finish(failure))

    def finish(self, result: FinishReason | Failure) -> Finish:
        return Finish(result, Usage(self.prompt_tokens, self.index, self.cached))


def progress(active: Sequence[Running]) -> tuple[int, int]:
    """(prompt tokens to compute, answer tokens that may still come)."""
    prefill = decode = 0
    for running in active:
        filled, prompt = running.slot.filled, len(running.prompt)
        if prompt > filled:
            prefill += prompt - filled
        decode += running.limit_index - running.index
    return prefill, decode


def cache_namespace(work: Work) -> str:
    """Whose prefixes the work may share: those of its tenant that were computed with the same adapter."""
    return namespace_of(work.adapter, work.tenant)


def namespace_of(adapter: str, tenant: str) -> str:
    return f"{adapter}\0{tenant}"


def computed_for(sids: Collection[int], active: Sequence[Running]) -> set[int]:
    """Whom a step with these sequences computes for: also those that wait for what one of them computes."""
    leading = {running.slot.index for running in active if running.sid in sids}
    leaders = ((running.sid, running.lease.leader) for running in active)
    return {*sids, *(sid for sid, leader in leaders if leader is not None and leader.index in leading)}
