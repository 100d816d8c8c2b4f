"""Continuous batching: sequences join and leave at every step.

One step: take arrivals and cancels, start waiting sequences in idle slots, fill the batch in ascending slot
order (one token of every answering sequence, and prompt tokens up to the step's allowance), compute, draw one
token per sequence with logits, and send everything in one frame.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import count

import numpy as np

from serving.engines.llama_cpp.meter import SpeedMeter
from serving.engines.llama_cpp.native import Context, Model
from serving.engines.llama_cpp.prefix import SlotTable
from serving.engines.llama_cpp.protocol import ChildConfig, Emission, LoadState
from serving.engines.llama_cpp.sampling import SamplerChain, SamplingDefaults
from serving.engines.llama_cpp.sequence import Prepared, Running
from serving.engines.llama_cpp.text import TextAssembler
from serving.engines.queue import Waiting, WaitQueue
from tidegate.routing.domain import Cause, Failure, Finish, FinishReason, Usage

# The parent bounds what is sent here; this limit only keeps the child's memory bounded whatever it sends.
_QUEUE_LIMIT = 4096
_MIN_GUARDED_CHUNK = 32
_MIN_CHUNK = 64
_MAX_STEP_MS = 500.0

Report = Callable[[list[Emission], list[int], LoadState], None]


class DecodeLoop:
    """Runs on the child's main thread; `arrive`, `cancel` and `stop` may be called from any other."""

    def __init__(
        self,
        model: Model,
        context: Context,
        config: ChildConfig,
        meter: SpeedMeter,
        report: Report,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model, self._context, self._config = model, context, config
        self._meter = meter
        self._report = report
        self._clock = clock
        self._defaults = SamplingDefaults(config.temperature, config.top_k, config.top_p, config.min_p)
        self.table = SlotTable(config.slots)
        self._queue: WaitQueue[Prepared] = WaitQueue(_QUEUE_LIMIT)
        self._active: list[Running] = []
        self._order = count()
        self._inbox: deque[Prepared | int] = deque()
        self._open: set[int] = set()
        self._cancelled_early: set[int] = set()
        self._freed: list[int] = []
        self._seen = 0
        self._wake = threading.Event()
        self._stopping = False

    # From other threads.

    def expect(self, sid: int) -> None:
        """Work with this number will arrive."""
        self._open.add(sid)

    def arrive(self, prepared: Prepared) -> None:
        self._inbox.append(prepared)
        self._wake.set()

    def cancel(self, sid: int) -> None:
        """Frees the sequence before the next step."""
        self._inbox.append(sid)
        self._wake.set()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()

    # On the loop's thread.

    def run(self) -> None:
        """Until stop(). Raises NativeError when llama.cpp fails: the process is then of no use."""
        while not self._stopping:
            self._wake.clear()
            emissions = self._take_inbox()
            emissions += self._expire()
            emissions += self._admit()
            if self._active:
                emissions += self._step()
            if emissions or self._freed or self._active:
                freed, self._freed = self._freed, []
                self._report(emissions, freed, self._load())
            if not self._active and not self._queue:
                self._wake.wait()

    def _take_inbox(self) -> list[Emission]:
        emissions: list[Emission] = []
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
        finish = Finish(failure, Usage(item.prompt_tokens, 0, 0))
        return Emission(item.sid, item.work.start_index, finish=finish)

    def _expire(self) -> list[Emission]:
        now_ms = self._now_ms()
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
        while self.table.idle:
            waiting = self._queue.pop(now_ms)
            if waiting is None:
                break
            emission = self._start(waiting, now_ms)
            if emission is not None:
                emissions.append(emission)
        return emissions

    def _start(self, waiting: Waiting[Prepared], now_ms: float) -> Emission | None:
        """Puts a sequence into a slot; the emission if it ends at once."""
        item, work = waiting.item, waiting.item.work
        room = self._config.context_tokens - item.prompt_tokens
        limit_index = min(work.max_tokens, room) if work.max_tokens > 0 else room
        text = TextAssembler(work.stop)
        ended = work.start_index >= limit_index
        for token in work.replay_token_ids:
            stopped = text.push(self._model.piece(token))[1]
            if stopped or self._model.is_end(token):
                ended = True
                break
        if ended:
            reason = FinishReason.LENGTH if work.start_index >= limit_index else FinishReason.STOP
            self._close(item.sid)
            usage = Usage(item.prompt_tokens, work.start_index, 0)
            return Emission(item.sid, work.start_index, finish=Finish(reason, usage))
        slot, cached = self.table.take(item.prompt, work.tenant, work.prefix_hashes)
        if not self._context.truncate(slot.index, cached):
            self.table.forget(slot)
            cached = 0
        prompt = item.prompt[: item.prompt_tokens]
        sampler = SamplerChain(
            self._model, work.sampling, self._defaults, prompt, self._config.context_tokens
        )
        for token in work.replay_token_ids:
            sampler.replay(token)
        running = Running(
            sid=item.sid,
            work=work,
            prompt=item.prompt,
            prompt_tokens=item.prompt_tokens,
            slot=slot,
            sampler=sampler,
            text=text,
            limit_index=limit_index,
            cached=min(cached, item.prompt_tokens),
            filled=cached,
            arrived_ms=item.arrived_ms,
            admitted_ms=now_ms,
            order=next(self._order),
            index=work.start_index,
            deadline_ms=waiting.hard_deadline_ms,
        )
        self._active.append(running)
        self._active.sort(key=lambda s: s.slot.index)
        return None

    def _leave(self, running: Running) -> None:
        self._active.remove(running)
        running.sampler.close()
        self.table.release(running.slot, running.tokens_in_cache())

    def _step(self) -> list[Emission]:
        allowance = self._prefill_allowance()
        began = self._clock()
        filled, wanted, prefilled = self._fill(allowance)
        self._context.decode(filled)
        decoded = filled - prefilled
        self._meter.observe(decoded=decoded, prefilled=prefilled, step_ms=(self._clock() - began) * 1000.0)
        emissions = [self._draw(running, entry, len(wanted)) for running, entry in wanted]
        for (running, _), emission in zip(wanted, emissions, strict=True):
            if emission.finish is not None:
                self._leave(running)
                self._close(running.sid)
        return emissions

    def _prefill_allowance(self) -> dict[int, int]:
        """Prompt tokens for this step by sequence number, first come first served.

        While others are answering, only as many as keep the step within the guard; otherwise as many as let
        a cancel take effect soon.
        """
        decoding = sum(s.decoding for s in self._active)
        limit_ms, least = (
            (self._config.step_guard_ms, _MIN_GUARDED_CHUNK) if decoding else (_MAX_STEP_MS, _MIN_CHUNK)
        )
        timely = max(least, int(self._meter.prefill_tokens_per_s * limit_ms / 1000.0))
        room = min(timely, self._config.prefill_chunk, self._config.n_batch - decoding)
        allowance: dict[int, int] = {}
        waiting = (s for s in self._active if not s.decoding)
        for running in sorted(waiting, key=lambda s: (-s.work.priority, s.order)):
            part = min(room, running.prefill_left)
            if part <= 0:
                break
            allowance[running.sid] = part
            room -= part
        return allowance

    def _fill(self, allowance: dict[int, int]) -> tuple[int, list[tuple[Running, int]], int]:
        """Fills the batch; (entries, sequences that get a token with their entry, prompt tokens)."""
        context = self._context
        at = prefilled = 0
        wanted: list[tuple[Running, int]] = []
        for running in self._active:
            filled = running.filled
            if running.decoding:
                part = 1
                context.tokens[at] = running.answer[-1]
                context.positions[at] = filled
                context.sequence_ids[at] = running.slot.index
            elif part := allowance.get(running.sid, 0):
                end = at + part
                context.tokens[at:end] = running.prompt[filled : filled + part]
                context.positions[at:end] = np.arange(filled, filled + part, dtype=np.int32)
                context.sequence_ids[at:end] = running.slot.index
                context.outputs[at:end] = 0
                prefilled += part
            else:
                continue
            running.filled += part
            at += part
            if running.decoding:
                context.outputs[at - 1] = 1
                wanted.append((running, at - 1))
        return at, wanted, prefilled

    def _draw(self, running: Running, entry: int, batch_size: int) -> Emission:
        if not running.started:
            self.table.prefilled(running.slot, running.work.prefix_hashes)
        token = running.sampler.sample(self._context, entry, running.index)
        return running.accept(
            token,
            self._model.piece(token),
            ends=self._model.is_end(token),
            now_ms=self._now_ms(),
            batch_size=batch_size,
        )

    def _load(self) -> LoadState:
        held = sum(s.filled for s in self._active)
        return LoadState(
            running=len(self._active),
            queued=len(self._queue),
            pending_prefill_tokens=self._queue.pending_tokens + sum(s.prefill_left for s in self._active),
            pending_decode_tokens=sum(s.decode_left for s in self._active)
            + sum(w.item.work.max_tokens for w in self._queue),
            free_cache_tokens=self._config.context_tokens * self._config.slots - held,
            seen=self._seen,
        )

    def _now_ms(self) -> float:
        return self._clock() * 1000.0
