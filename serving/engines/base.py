"""The Engine seam: what computes inside a node.

An engine runs several sequences at once and yields, per step, what that step gave each of them. It owns its
own waiting queue, so that a sequence can join at the very next step. The node's runtime is the only consumer
of `steps()` and the only caller of the other methods; all run on one event loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from tidegate.routing.domain import (
    AttemptKey,
    CacheDelta,
    Failure,
    ReplayClass,
    Speeds,
    StepBatch,
    Variant,
    Work,
)


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is, known once it has started.

    `slots` sequences run at once, `queue_limit` more may wait. `replay_digest` hashes all that must be equal
    for another engine to go on with a sequence: model, build, KV type, adapter, template.
    """

    variants: tuple[Variant, ...]
    slots: int
    queue_limit: int
    build: str
    replay_class: ReplayClass
    replay_digest: str
    hardware_class: str
    speeds: Speeds


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """An engine's load now. `progress_age_ms` is the time since its last step while work runs, else 0.

    An engine that has unloaded its model is ready all the same: `wake_ms` is how long loading it would take.
    `trouble` says to people why it is not ready, where it knows; `pinned_tokens` are held for good.
    `usable_slots` is how many sequences run at once at present, 0 for all slots; `running` may be more for as
    long as earlier ones run.
    """

    ready: bool
    running: int
    queued: int
    pending_prefill_tokens: int
    pending_decode_tokens: int
    free_cache_tokens: int
    progress_age_ms: float
    speeds: Speeds
    wake_ms: float = 0.0
    trouble: str = ""
    pinned_tokens: int = 0
    usable_slots: int = 0


class EngineRefused(Exception):
    """Work an engine does not take, with the typed cause; nothing was computed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.cause.value}: {failure.detail}")
        self.failure = failure


class EngineUnavailable(Exception):
    """The engine cannot start; the message says what is missing and what to do."""


class Engine(Protocol):
    """Seam of serving.engines. Every implementation passes tests/contracts/engine_contract.py.

    Guarantees:
    - every submitted sequence ends with exactly one output that carries `finish`, unless it is cancelled
      first (then nothing more comes for it) or `submit` raised;
    - outputs of one sequence are contiguous: each first_index is the previous first_index + count;
    - the first output with count > 0 carries `first_token`;
    - a crash of the engine ends every sequence with Failure(ENGINE_CRASHED or ENGINE_HUNG) and the engine
      comes back by itself, `load().ready` telling when.
    """

    async def start(self) -> EngineInfo:
        """Loads and measures. Raises EngineUnavailable."""
        ...

    def submit(self, work: Work) -> None:
        """Takes one sequence. Raises EngineRefused (OVERLOADED, UNKNOWN_VARIANT, INVALID_INPUT, ...).

        `work.variant_digest` names the variant; `work.remaining_ms` counts from now.
        """
        ...

    def cancel(self, key: AttemptKey) -> None:
        """Frees the sequence before the next step; unknown keys are ignored."""
        ...

    def load(self) -> EngineLoad: ...

    def steps(self) -> AsyncIterator[StepBatch]:
        """Yields until stop(); one consumer."""
        ...

    def cache_changes(self) -> CacheDelta | None:
        """Prefix blocks held or evicted since the last call; None when nothing changed."""
        ...

    def cache_full(self) -> CacheDelta:
        """All prefix blocks held now, full=True."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Ends within grace_s plus one second: running sequences may finish inside the grace."""
        ...
