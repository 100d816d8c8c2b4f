"""The deterministic engine of the tests: no model, known tokens, a pace by configuration.

It moves through prefill chunks and batched decode steps as a real engine does, so that what stands around
engines can be proven with exact expectations (see `oracle_tokens`, `oracle_text`) and on virtual time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from serving.engines.base import EngineInfo, EngineLoad, EngineRefused
from serving.engines.oracle_embedding import OracleEmbedding
from serving.engines.oracle_parts import (
    PrefixCache,
    decode_speed,
    oracle_length,
    oracle_text,
    oracle_tokens,
    token_text,
)
from serving.engines.oracle_sequence import OracleSequence
from serving.engines.oracle_settings import OracleSettings
from serving.engines.queue import Waiting, WaitQueue
from tidegate.routing.domain import (
    AttemptKey,
    CacheDelta,
    Cause,
    Failure,
    InputKind,
    SequenceOutput,
    StepBatch,
    Work,
)

__all__ = ["OracleEngine", "OracleSettings", "oracle_length", "oracle_text", "oracle_tokens", "token_text"]


# A loop that was later than this was held up, which no pace makes good.
_LATE_S = 0.005


@dataclass(frozen=True, slots=True)
class _Plan:
    """One step: how much of which prompt, and who decodes."""

    prefill: list[tuple[OracleSequence, int]] = field(default_factory=list)
    decode: list[OracleSequence] = field(default_factory=list)


class OracleEngine:
    """Implements serving.engines.base.Engine; one asyncio task, owned from start() to stop()."""

    def __init__(self, settings: OracleSettings, clock: Callable[[], float] | None = None) -> None:
        self._settings = settings
        self._clock = clock
        self._queue: WaitQueue[OracleSequence] = WaitQueue(settings.queue_limit)
        self._running: list[OracleSequence] = []
        self._cache = PrefixCache(settings.cache_tokens)
        self._out: asyncio.Queue[list[tuple[OracleSequence, SequenceOutput]] | None] = asyncio.Queue()
        self._wake = asyncio.Event()
        self._unhung = asyncio.Event()
        self._unhung.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._pacing = settings.pacing
        self._ready = False
        self._stopping = False
        self._progress_s = 0.0
        self._due_s = 0.0
        self._task: asyncio.Task[None] | None = None
        self._restart: asyncio.TimerHandle | None = None

    # --- Engine ---

    async def start(self) -> EngineInfo:
        if self._clock is None:
            self._clock = asyncio.get_running_loop().time
        await asyncio.sleep(self._settings.load_s * self._pacing)
        self._ready = True
        self._task = asyncio.create_task(self._loop(), name="oracle-steps")
        return self._settings.info()

    def submit(self, work: Work) -> None:
        if self._stopping:
            raise EngineRefused(Failure(Cause.DRAINING, "the engine is stopping"))
        if not self._ready:
            raise EngineRefused(Failure(Cause.ENGINE_CRASHED, "the engine is not up"))
        kind = OracleEmbedding if work.input_kind is InputKind.EMBED else OracleSequence
        sequence = kind.of(work, self._settings, self._now())
        now_ms = self._now() * 1000.0
        entry = Waiting.of(work, sequence, tokens=self._uncached(sequence), now_ms=now_ms)
        if any(running.work.key == work.key for running in self._running):
            raise EngineRefused(Failure(Cause.FENCED, "this attempt is running already"))
        self._queue.push(entry, free_slots=self._settings.slots - len(self._running))
        if self._idle.is_set():
            self._progress_s = self._now()
        self._idle.clear()
        self._wake.set()

    def cancel(self, key: AttemptKey) -> None:
        waiting = self._queue.cancel(key)
        if waiting is not None:
            waiting.item.cancelled = True
        for sequence in self._running:
            if sequence.work.key == key:
                sequence.cancelled = True
        self._running = [sequence for sequence in self._running if not sequence.cancelled]
        self._wake.set()

    def load(self) -> EngineLoad:
        working = bool(self._running or len(self._queue))
        return EngineLoad(
            ready=self._ready and not self._stopping,
            running=len(self._running),
            queued=len(self._queue),
            pending_prefill_tokens=self._queue.pending_tokens + sum(s.prefill_left for s in self._running),
            pending_decode_tokens=sum(s.limit - s.produced for s in self._running)
            + sum(waiting.item.limit for waiting in self._queue),
            free_cache_tokens=self._cache.free_tokens,
            progress_age_ms=(self._now() - self._progress_s) * 1000.0 if working else 0.0,
            speeds=self._settings.speeds,
        )

    async def steps(self) -> AsyncIterator[StepBatch]:
        """An empty batch tells that readiness changed."""
        while (step := await self._out.get()) is not None:
            outputs = tuple(output for sequence, output in step if not sequence.cancelled)
            if outputs or not step:
                yield StepBatch(outputs)

    def cache_changes(self) -> CacheDelta | None:
        return self._cache.changes()

    def cache_full(self) -> CacheDelta:
        return self._cache.full()

    async def stop(self, grace_s: float) -> None:
        self._stopping = True
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            pass
        if self._restart is not None:
            self._restart.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        self._fail_all(Failure(Cause.DRAINING, "the engine stopped"))
        self._out.put_nowait(None)

    # --- faults for tests ---

    def crash(self) -> None:
        """Ends every sequence with ENGINE_CRASHED, forgets the cache, and is ready again after restart_s."""
        self._ready = False
        self._cache.clear()
        self._fail_all(Failure(Cause.ENGINE_CRASHED, "the oracle was told to crash"))
        self._out.put_nowait([])
        if self._restart is not None:
            self._restart.cancel()
        self._restart = asyncio.get_running_loop().call_later(self._settings.restart_s, self._restarted)

    def hang(self) -> None:
        """No progress until resume(); readiness and load are still reported."""
        self._unhung.clear()

    def resume(self) -> None:
        self._unhung.set()

    def slow_down(self, factor: float) -> None:
        """Every duration takes `factor` times as long as configured; reported speeds stay as they were."""
        self._pacing = self._settings.pacing * factor

    # --- the step loop ---

    async def _loop(self) -> None:
        while True:
            self._expire()
            self._admit()
            if not self._running:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()
                self._due_s = self._now()
                continue
            plan = self._plan()
            # Timers fire late. A step that follows another one begins when that one was due, or every step
            # would be longer than configured by what the timers add.
            began_s = max(self._due_s, self._now() - _LATE_S)
            self._due_s = began_s + self._step_s(plan)
            await asyncio.sleep(max(0.0, self._due_s - self._now()))
            await self._unhung.wait()
            self._finish_step(plan)

    def _admit(self) -> None:
        now_s = self._now()
        while len(self._running) < self._settings.slots:
            entry = self._queue.pop(now_s * 1000.0)
            if entry is None:
                return
            sequence = entry.item
            sequence.started_s = now_s
            sequence.cached_tokens = self._cached(sequence)
            sequence.prefill_left = self._uncached(sequence)
            self._running.append(sequence)

    def _plan(self) -> _Plan:
        plan = _Plan()
        budget = self._settings.prefill_chunk_tokens
        for sequence in self._running:
            if sequence.prefill_left == 0:
                plan.decode.append(sequence)
            elif budget > 0:
                take = min(budget, sequence.prefill_left)
                plan.prefill.append((sequence, take))
                budget -= take
        return plan

    def _step_s(self, plan: _Plan) -> float:
        prefill_s = sum(take for _, take in plan.prefill) / self._settings.prefill_tokens_per_s
        batch = len(plan.decode)
        decode_s = 1.0 / decode_speed(self._settings.decode, batch) if batch else 0.0
        return (prefill_s + decode_s) * self._pacing

    def _finish_step(self, plan: _Plan) -> None:
        for sequence, take in plan.prefill:
            sequence.prefill_left -= take
            if sequence.prefill_left == 0 and not sequence.cancelled:
                self._cache.insert(sequence.work.prefix_hashes)
        self._progress_s = self._now()
        live = set(self._running)
        ended_prefill = [sequence for sequence, _ in plan.prefill if sequence.prefill_left == 0]
        yielding = [sequence for sequence in (*plan.decode, *ended_prefill) if sequence in live]
        step = [(sequence, sequence.advance(self._now, len(yielding))) for sequence in yielding]
        finished = {sequence for sequence, output in step if output.finish is not None}
        self._running = [sequence for sequence in self._running if sequence not in finished]
        if step:
            self._out.put_nowait(step)

    # --- small things ---

    def _cached(self, sequence: OracleSequence) -> int:
        return self._cache.cached_tokens(sequence.work.prefix_hashes, sequence.prompt_tokens)

    def _uncached(self, sequence: OracleSequence) -> int:
        return sequence.prompt_tokens + sequence.work.start_index - self._cached(sequence)

    def _expire(self) -> None:
        """Waiting sequences whose hard deadline has passed; running ones are the runtime's to cancel."""
        expired = self._queue.pop_expired(self._now() * 1000.0)
        self._fail([entry.item for entry in expired], Failure(Cause.DEADLINE, "waited past its deadline"))

    def _fail_all(self, failure: Failure) -> None:
        sequences = [*self._running, *(entry.item for entry in self._queue.clear())]
        self._running = []
        self._fail(sequences, failure)

    def _fail(self, sequences: list[OracleSequence], failure: Failure) -> None:
        step = [(sequence, sequence.fail(failure)) for sequence in sequences]
        if step:
            self._out.put_nowait(step)

    def _restarted(self) -> None:
        self._ready = True
        self._out.put_nowait([])

    def _now(self) -> float:
        return self._clock() if self._clock is not None else 0.0
