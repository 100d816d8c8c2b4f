"""A light node: the real link around an engine that only counts.

Its load changes once a second, so that its heartbeat goes once a second. A sequence yields one token every
`1 / tokens_per_s` seconds. A prompt that begins with FLOOD gets large outputs as fast as a link carries them,
up to FLOOD_OUTPUTS, and then goes on at the common pace.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from tidegate.link.seam import NodeListener
from tidegate.routing.domain import (
    Announcement,
    AttemptKey,
    CacheDelta,
    Finish,
    FinishReason,
    FirstToken,
    NodeLoad,
    ReplayClass,
    SequenceOutput,
    Speeds,
    Usage,
    Variant,
    Work,
)

MODEL = "sim"
HOT_MODEL = "sim-hot"
TIMED_MODEL = "sim-timed"
FLOOD = "FLOOD"
FLOOD_OUTPUTS = 400
FLOOD_TEXT = "x" * 16_384
FLOOD_TOKENS = 64  # per output: a gateway does not take more text than tokens can hold
FLOOD_INTERVAL_S = 0.005
PREFILL_MS = 20.0
TOKENS_PER_S = 5.0


@dataclass(slots=True)
class _Sequence:
    work: Work
    listener: NodeListener
    flood: bool
    index: int = 0
    floods: int = 0
    timer: asyncio.TimerHandle | None = None


class SimNode:
    """Implements NodeService. `on_cancel` hears of each cancel that found its sequence."""

    def __init__(
        self,
        name: str,
        models: tuple[str, ...],
        on_cancel: Callable[[AttemptKey], None],
        tokens_per_s: float = TOKENS_PER_S,
    ) -> None:
        self._name = name
        self._tokens_per_s = tokens_per_s
        self._speeds = Speeds(2000.0, ((1, tokens_per_s), (64, tokens_per_s)))
        self._variants = tuple(
            Variant(model, f"digest-of-{model}", context_tokens=1 << 24) for model in models
        )
        self._on_cancel = on_cancel
        self._sequences: dict[AttemptKey, _Sequence] = {}
        self._listeners: list[NodeListener] = []
        self._beats = 0

    def beat(self) -> None:
        """Changes the load, which makes every link send a heartbeat."""
        self._beats += 1
        for listener in self._listeners:
            listener.load_changed()

    # --- NodeService --------------------------------------------------------------------------------

    def announcement(self) -> Announcement:
        return Announcement(
            node_id=self._name,
            boot_id="boot-1",
            name=self._name,
            variants=self._variants,
            slots=64,
            queue_limit=64,
            build="sim-1",
            replay_class=ReplayClass.NONE,
            replay_digest="",
            hardware_class="sim",
            speeds=self._speeds,
        )

    def load(self) -> NodeLoad:
        return NodeLoad(
            running=len(self._sequences),
            pending_decode_tokens=self._beats % 7,
            free_cache_tokens=100_000 - self._beats % 1000,
            ready=True,
            speeds=self._speeds,
        )

    def cache_full(self) -> CacheDelta:
        return CacheDelta(full=True)

    def attach(self, listener: NodeListener) -> None:
        self._listeners.append(listener)

    def detach(self, listener: NodeListener) -> None:
        self._listeners.remove(listener)
        for key, sequence in list(self._sequences.items()):
            if sequence.listener is listener:
                self._drop(key)

    def submit(self, listener: NodeListener, work: Work) -> None:
        sequence = _Sequence(work, listener, flood=FLOOD.encode() in work.input[:200])
        self._sequences[work.key] = sequence
        self._later(sequence, PREFILL_MS / 1000)

    def cancel(self, key: AttemptKey) -> None:
        if self._drop(key):
            self._on_cancel(key)

    def fence(self, key: AttemptKey) -> None:
        pass

    def drain(self) -> None:
        pass

    # --- inside -------------------------------------------------------------------------------------

    def _drop(self, key: AttemptKey) -> bool:
        sequence = self._sequences.pop(key, None)
        if sequence is not None and sequence.timer is not None:
            sequence.timer.cancel()
        return sequence is not None

    def _later(self, sequence: _Sequence, delay_s: float) -> None:
        sequence.timer = asyncio.get_running_loop().call_later(delay_s, self._token, sequence)

    def _token(self, sequence: _Sequence) -> None:
        flooding = sequence.flood and sequence.floods < FLOOD_OUTPUTS
        sequence.floods += flooding
        work = sequence.work
        first = FirstToken(0.0, PREFILL_MS, 0, 1, len(work.input) // 4) if not sequence.index else None
        first_index, count = sequence.index, FLOOD_TOKENS if flooding else 1
        sequence.index += count
        ended = sequence.index >= work.max_tokens
        usage = Usage(len(work.input) // 4, sequence.index)
        output = SequenceOutput(
            key=work.key,
            first_index=first_index,
            count=count,
            token_ids=tuple(range(first_index, first_index + count)),
            text=FLOOD_TEXT if flooding else "tide ",
            first_token=first,
            finish=Finish(FinishReason.LENGTH, usage) if ended else None,
        )
        if ended:
            del self._sequences[work.key]
        else:
            self._later(sequence, FLOOD_INTERVAL_S if flooding else 1.0 / self._tokens_per_s)
        sequence.listener.deliver([output])
