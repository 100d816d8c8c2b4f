"""Continuous batching: sequences join and leave at every step.

One step: take arrivals and cancels, start waiting sequences in idle slots, fill the batch in ascending slot
order, compute, draw one token per sequence with logits, and send everything in one frame. Steps of answers
(one token of every answering sequence) and of prompts (as many tokens as the planner allows) take turns: in
one batch llama.cpp would compute them apart all the same, and the answers over the longest prompt's positions
(docs/decisions/0016).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import NamedTuple

from serving.engines.llama_cpp.adapters import Adapters, Turns
from serving.engines.llama_cpp.batch import fill_answers, fill_prompts, refill
from serving.engines.llama_cpp.constraint import DEAD_END
from serving.engines.llama_cpp.interrupting import StepInterrupter
from serving.engines.llama_cpp.logprobs import token_logprob
from serving.engines.llama_cpp.meter import SpeedMeter
from serving.engines.llama_cpp.native import Context, Model
from serving.engines.llama_cpp.pinned import IDLE_CHUNK, PinnedPrompt, PinWarmer
from serving.engines.llama_cpp.prefill import Pending, PrefillPlanner
from serving.engines.llama_cpp.prefix import PrefixCache
from serving.engines.llama_cpp.protocol import ChildConfig, Emission, LoadState
from serving.engines.llama_cpp.sequence import Prepared, Running, computed_for, progress
from serving.engines.llama_cpp.starting import Starter, refusal
from serving.engines.queue import Waiting, WaitQueue
from tidegate.routing.domain import Cause, Failure

# The parent bounds what is sent here; this limit only keeps the child's memory bounded whatever it sends.
_QUEUE_LIMIT = 4096

Report = Callable[[list[Emission], list[int], LoadState], None]


class Settled(NamedTuple):
    """A step of answers alone, which the next one repeats while nobody joins or leaves.

    `wanted` are the sequences with the entries of their logits, `parts` their tokens by number.
    """

    wanted: list[tuple[Running, int]]
    parts: dict[int, int]
    sids: frozenset[int]


class DecodeLoop:
    """Runs on the child's main thread; `arrive`, `cancel` and `stop` may be called from any other."""

    def __init__(
        self,
        model: Model,
        context: Context,
        config: ChildConfig,
        meter: SpeedMeter,
        report: Report,
        park_bytes: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model, self._context, self._config = model, context, config
        self._planner = PrefillPlanner(
            meter,
            chunk_tokens=config.prefill_chunk,
            batch_tokens=config.n_batch,
            guard_ms=config.step_guard_ms,
        )
        self._adapters, self._turns = Adapters(model, context, config.adapters), Turns()
        self._report = report
        self._clock = clock
        self.cache = PrefixCache(
            config.slots,
            context,
            park_bytes=park_bytes,
            ms_per_token=lambda: 1000.0 / meter.prefill_tokens_per_s,
            # Where all memory is one, moves are as good as free: what is parked pays when it is used twice.
            clock=clock if config.n_gpu_layers != 0 else lambda: 0.0,
        )
        self._starter = Starter(model, config, self.cache)
        self._queue: WaitQueue[Prepared] = WaitQueue(_QUEUE_LIMIT)
        self._active: list[Running] = []
        self._settled: Settled | None = None
        # The adapter of the group that has just answered, where it is the turn of its prompts.
        self._prompts_of: str | None = None
        self._inbox: deque[Prepared | int] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._open: set[int] = set()
        self._cancelled_early: set[int] = set()
        self._freed: list[int] = []
        self._seen = 0
        self._wake = threading.Event()
        self._stopping = False
        self._warmer: PinWarmer | None = None
        self._interrupter = StepInterrupter(context.interrupt, context.resume)
        # Sequences that may run at once; those that run already go on where it is lowered.
        self.usable_slots = config.slots
        # Told (decoded, prefilled, ms) between steps, where something adapts to them.
        self.after_step: Callable[[int, int, float], None] | None = None
        # Waits for work; something else may be done meanwhile.
        self.rest: Callable[[threading.Event], object] = threading.Event.wait

    def pin(self, prompts: Sequence[PinnedPrompt]) -> PinWarmer:
        """What computes these prompts, also while the loop is idle. Before run()."""
        chunk = min(self._config.prefill_chunk, self._config.n_batch)
        self._warmer = PinWarmer(self._context, self.cache, self._adapters.apply, prompts, chunk)
        return self._warmer

    # From other threads.

    def call(self, what: Callable[[], None]) -> None:
        """On the loop's thread, before its next step."""
        self._calls.append(what)
        self._wake.set()

    def expect(self, sid: int) -> None:
        """Work with this number will arrive."""
        self._open.add(sid)

    def arrive(self, prepared: Prepared) -> None:
        self._inbox.append(prepared)
        self._wake.set()

    def cancel(self, sid: int) -> None:
        """Frees the sequence before the next step; a step that nobody else waits for ends at once."""
        self._inbox.append(sid)
        self._wake.set()
        self._interrupter.cancelled(sid)

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()

    # On the loop's thread.

    def run(self) -> None:
        """Until stop(). Raises NativeError when llama.cpp fails: the process is then of no use."""
        while not self._stopping:
            self._wake.clear()
            while self._calls:
                self._calls.popleft()()
            emissions = self._take_inbox()
            emissions += self._expire()
            emissions += self._admit()
            if self._active:
                emissions += self._step()
            if emissions or self._freed or self._active:
                freed, self._freed = self._freed, []
                self._report(emissions, freed, self._load())
            if not self._active and not self._queue and not self._warm():
                self.rest(self._wake)

    def _warm(self) -> bool:
        """A chunk of what is to be pinned, while nothing else is to do."""
        if self._warmer is None or not self._warmer.warm(IDLE_CHUNK):
            return False
        if self._warmer.done:
            self._report([], [], self._load())
        return True

    def _take_inbox(self) -> list[Emission]:
        emissions: list[Emission] = []
        self._interrupter.begin_round()
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, int):
                self._cancel(item)
                continue
            self._seen = max(self._seen, item.sid)
            if item.sid in self._cancelled_early:
                self._cancelled_early.discard(item.sid)
                self._close(item.sid)
                self._freed.append(item.sid)
            elif item.failure is not None:
                emissions.append(self._refuse(item, item.failure))
            else:
                entry = Waiting.of(item.work, item, tokens=len(item.prompt), now_ms=item.arrived_ms)
                self._queue.push(entry)
        return emissions

    def _cancel(self, sid: int) -> None:
        running = next((s for s in self._active if s.sid == sid), None)
        if running is not None:
            self._leave(running)
        else:
            waiting = next((w for w in self._queue if w.item.sid == sid), None)
            if waiting is not None:
                self._queue.cancel(waiting.key)
            elif sid in self._open:
                self._cancelled_early.add(sid)
                return
        self._close(sid)
        self._freed.append(sid)

    def _close(self, sid: int) -> None:
        self._open.discard(sid)

    def _refuse(self, item: Prepared, failure: Failure) -> Emission:
        self._close(item.sid)
        return refusal(item, failure)

    def _expire(self) -> list[Emission]:
        now_ms = self._now_ms()
        emissions: list[Emission] = []
        if self._queue:
            late = Failure(Cause.DEADLINE, "the deadline passed while the sequence was waiting for a slot")
            emissions = [self._refuse(w.item, late) for w in self._queue.pop_expired(now_ms)]
        for running in [s for s in self._active if s.deadline_ms is not None and s.deadline_ms <= now_ms]:
            failure = Failure(Cause.DEADLINE, f"the deadline passed after {running.index} tokens")
            emissions.append(Emission(running.sid, running.index, finish=running.finish(failure)))
            self._leave(running)
            self._close(running.sid)
        return emissions

    def _admit(self) -> list[Emission]:
        emissions: list[Emission] = []
        now_ms = self._now_ms()
        while self._queue and self.cache.idle and len(self._active) < self.usable_slots:
            waiting = self._queue.pop(now_ms)
            if waiting is None:
                break
            started = self._starter.start(waiting, now_ms)
            if isinstance(started, Emission):
                self._close(started.sid)
                emissions.append(started)
                continue
            self._active.append(started)
            self._active.sort(key=lambda s: s.slot.index)
            self._settled = None
        return emissions

    def _leave(self, running: Running) -> None:
        self._active.remove(running)
        self._settled = None
        running.sampler.close()
        self.cache.release(running.slot, running.tokens_in_cache(), running.names)

    def _step(self) -> list[Emission]:
        if self._settled is not None:
            return self._repeat(self._settled)
        adapter, self._prompts_of = self._prompts_of, None
        if adapter is not None:
            return self._step_of_prompts(adapter) or []
        group = self._turns.group(self._active)
        adapter = group[0].work.adapter
        answering = [running for running in group if running.decoding]
        if not answering:
            emissions = self._step_of_prompts(adapter)
            if emissions is None:
                self._turns.end()
            return emissions or []
        if len(answering) < len(group):
            self._prompts_of = adapter
        return self._step_of_answers(answering, adapter)

    def _step_of_answers(self, answering: list[Running], adapter: str) -> list[Emission]:
        self._adapters.apply(adapter)
        began = self._clock()
        wanted = fill_answers(self._context, answering)
        parts = {running.sid: 1 for running in answering}
        if not self._compute(len(wanted), parts, computed_for(parts, self._active)):
            return []
        self._observe(len(wanted), 0, began)
        if len(wanted) == len(self._active):
            self._settled = Settled(wanted, parts, frozenset(parts))
        return self._accept(wanted, self._draw(wanted))

    def _step_of_prompts(self, adapter: str) -> list[Emission] | None:
        """Of those that have this adapter; None where they have nothing to compute."""
        sids = {running.sid for running in self._active if running.work.adapter == adapter}
        waiting = [pending for pending in self._waiting() if pending.sid in sids]
        # Answers of other groups are held up by this step as much as the group's own.
        answering_ms = [s.admitted_ms for s in self._active if s.decoding]
        allowance = self._planner.allowance(answering_ms, waiting, self._now_ms())
        self._adapters.apply(adapter)
        began = self._clock()
        filled, wanted = fill_prompts(self._context, self._active, allowance)
        if not filled:
            return None
        if not self._compute(filled, allowance, computed_for(allowance, self._active)):
            return []
        self._observe(0, filled, began, beside=bool(answering_ms))
        return self._accept(wanted, self._draw(wanted), len(answering_ms) + len(wanted))

    def _repeat(self, settled: Settled) -> list[Emission]:
        """The most frequent step, in which the least is done between two computations."""
        wanted = settled.wanted
        began = self._clock()
        refill(self._context, wanted)
        if not self._compute(len(wanted), settled.parts, settled.sids):
            return []
        self._observe(len(wanted), 0, began)
        return self._accept(wanted, self._draw(wanted))

    def _observe(self, decoded: int, prefilled: int, began: float, *, beside: bool = False) -> None:
        step_ms = (self._clock() - began) * 1000.0
        self._planner.observe(decoded=decoded, prefilled=prefilled, step_ms=step_ms, beside=beside)
        if self.after_step is not None:
            self.after_step(decoded, prefilled, step_ms)

    def _draw(self, wanted: list[tuple[Running, int]]) -> list[int]:
        """First all draws, then all bookkeeping: between two draws the processor's caches hold no Python."""
        context = self._context
        return [running.sampler.sample(context, entry, running.index) for running, entry in wanted]

    def _compute(self, filled: int, parts: Mapping[int, int], computed: AbstractSet[int]) -> bool:
        """False when the step was interrupted; all its sequences are then as they were before.

        `parts` are the tokens of each sequence, `computed` all who wait for them.
        """
        with self._interrupter.step(computed):
            done = self._context.decode(filled)
        if not done:
            self._settled = None
            for running in self._active:
                slot = running.slot
                slot.filled -= parts.get(running.sid, 0)
                if not self._context.truncate(slot.index, slot.filled):
                    slot.filled = 0
        return done

    def _waiting(self) -> list[Pending]:
        """What the prompts still need, without those whose beginning another sequence is computing.

        Such a leader is as urgent as its most urgent follower.
        """
        waiting: list[Pending] = []
        urgent: dict[int, int] = {}
        for running in self._active:
            if running.decoding:
                continue
            if running.lease.leader is not None:
                running.take_lease(self.cache.catch_up(running.lease))
            leader, priority = running.lease.leader, running.work.priority
            if leader is None:
                waiting.append(running.pending())
            elif priority > urgent.get(leader.index, priority - 1):
                urgent[leader.index] = priority
        if not urgent:
            return waiting
        return [replace(p, priority=max(p.priority, urgent.get(p.slot, p.priority))) for p in waiting]

    def _accept(
        self, wanted: list[tuple[Running, int]], tokens: list[int], together: int = 0
    ) -> list[Emission]:
        """What the drawn tokens give; those that end leave. `together` answer now, if more than these."""
        model, now_ms, size = self._model, self._now_ms(), max(len(wanted), together)
        emissions: list[Emission] = []
        for (running, entry), token in zip(wanted, tokens, strict=True):
            if not running.started:
                self.cache.prefilled(running.slot, running.names)
            if token == DEAD_END:
                emission = running.dead_end()
            else:
                piece, ends = model.piece(token), model.is_end(token)
                emission = running.accept(token, piece, ends=ends, now_ms=now_ms, batch_size=size)
                if running.work.top_logprobs is not None and not ends:
                    odds = token_logprob(model, self._context.logits(entry), token, running.work.top_logprobs)
                    emission = emission._replace(logprobs=(odds,))
            emissions.append(emission)
            if emission.finish is not None:
                self._leave(running)
                self._close(running.sid)
        return emissions

    def _load(self) -> LoadState:
        prefill, decode = progress(self._active)
        return LoadState(
            running=len(self._active),
            queued=len(self._queue),
            pending_prefill_tokens=self._queue.pending_tokens + prefill,
            pending_decode_tokens=decode + sum(w.item.work.max_tokens for w in self._queue),
            free_cache_tokens=self.cache.room_tokens(self._config.context_tokens),
            seen=self._seen,
            pinned_tokens=self._warmer.pinned_tokens if self._warmer is not None else 0,
        )

    def _now_ms(self) -> float:
        return self._clock() * 1000.0
