"""The engine that is somebody else's: any OpenAI-compatible HTTP server."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from serving.engines.base import EngineInfo, EngineLoad, EngineRefused, EngineUnavailable
from serving.engines.openai_http.embedding import EmbedCall
from serving.engines.openai_http.failures import UpstreamFailed, upstream_failed
from serving.engines.openai_http.guessed import GuessedPrefixes
from serving.engines.openai_http.health import UpstreamWatch
from serving.engines.openai_http.models import settle_model
from serving.engines.openai_http.outbox import Outbox
from serving.engines.openai_http.selftest import selftest_work
from serving.engines.openai_http.sequence import Sequence, SequenceCall, estimated_tokens
from serving.engines.openai_http.settings import OpenAiHttpSettings
from serving.engines.openai_http.speeds import SpeedBook, learn_from
from serving.engines.openai_http.tools import NoFunctions
from serving.engines.openai_http.upstream import Upstream
from serving.engines.openai_http.wire import upstream_request
from serving.engines.queue import Waiting, WaitQueue
from tidegate.routing.domain import (
    AttemptKey,
    CacheDelta,
    Cause,
    Failure,
    InputKind,
    ReplayClass,
    SequenceOutput,
    StepBatch,
    Work,
)

_log = logging.getLogger(__name__)
_MAX_BYTES_PER_TOKEN = 256  # longer than any token: such an input is not worth sending
_HEALTH = "upstream-health"
_NOT_READY = Failure(Cause.UPSTREAM, "the upstream server is not ready")
_TOO_LATE = Failure(Cause.DEADLINE, "the deadline passed in the node's queue")
_STOPPED = Failure(Cause.DRAINING, "the node stopped")


class OpenAiHttpEngine:
    """Implements serving.engines.base.Engine; `clock` gives seconds.

    Indices count deltas (Unit.DELTA): the protocol carries no token ids. `slots` requests run upstream at
    once; more wait here, where they can be cancelled and ordered.
    """

    def __init__(self, settings: OpenAiHttpSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._upstream = Upstream(settings)
        self._watch = UpstreamWatch(settings, self._upstream, clock, self)
        self._queue: WaitQueue[Sequence] = WaitQueue(settings.queue_limit)
        self._running: dict[AttemptKey, Sequence] = {}
        self._outbox = Outbox()
        self._prefixes = GuessedPrefixes(settings.prefix_guess_s, clock)
        self._speeds = SpeedBook(settings.speeds, now_s=clock())
        self._model = settings.upstream_model
        self._variant = settings.variant
        self._progress_s = clock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._expiry: asyncio.TimerHandle | None = None
        self._stopping = False

    async def start(self) -> EngineInfo:
        """Waits for the server, at most `start_timeout_s`. Raises EngineUnavailable naming its address."""
        settings = self._settings
        try:
            info = await self._meet_server()
        except BaseException as error:
            await self._upstream.close()
            if not isinstance(error, UpstreamFailed | OSError):
                raise
            said = error.failure.detail if isinstance(error, UpstreamFailed) else str(error)
            raise EngineUnavailable(
                f"the OpenAI-compatible server at {settings.base_url} cannot be used: {said}. "
                "Start it, or set its base URL, model and key."
            ) from error
        self._spawn(self._watch.run_health(), _HEALTH)
        self._spawn(self._watch.run_metrics(), "upstream-metrics")
        return info

    def submit(self, work: Work) -> None:
        if self._stopping:
            raise EngineRefused(_STOPPED)
        if work.variant_digest != self._variant.digest:
            raise EngineRefused(Failure(Cause.UNKNOWN_VARIANT, "this engine serves another variant"))
        if work.key in self._running:
            raise EngineRefused(Failure(Cause.FENCED, "this attempt is running already"))
        if work.replay_token_ids:
            raise EngineRefused(Failure(Cause.INVALID_INPUT, "this engine cannot replay token ids"))
        if work.start_index and self._settings.replay_class is ReplayClass.NONE:
            raise EngineRefused(Failure(Cause.INVALID_INPUT, "this engine cannot go on with a broken stream"))
        if not self._watch.ready:
            raise EngineRefused(_NOT_READY)
        sequence = self._sequence_of(work)
        now_ms = sequence.arrived_s * 1e3
        entry = Waiting.of(work, sequence, tokens=sequence.prompt_tokens, now_ms=now_ms)
        self._queue.push(entry, free_slots=self._free_slots())
        self._start_next()

    def cancel(self, key: AttemptKey) -> None:
        self._outbox.drop(key)
        self._queue.cancel(key)
        sequence = self._running.pop(key, None)
        if sequence is not None:
            if sequence.task is not None:
                sequence.task.cancel()
            self._start_next()

    def load(self) -> EngineLoad:
        """Running and queued include what other clients do on the same server, where it says so."""
        upstream = len(self._running) + self._watch.others()
        waiting = min(self._watch.metrics().waiting or 0, upstream)
        mine = [*self._running.values(), *(entry.item for entry in self._queue)]
        return EngineLoad(
            ready=self._watch.ready and not self._stopping,
            running=upstream - waiting,
            queued=len(self._queue) + waiting,
            pending_prefill_tokens=sum(s.pending_prefill_tokens for s in mine),
            pending_decode_tokens=sum(s.pending_decode_tokens for s in mine),
            free_cache_tokens=self._free_cache_tokens(),
            progress_age_ms=(self.silence_s() or 0.0) * 1e3,
            speeds=self._speeds.speeds(self._clock()),
        )

    async def steps(self) -> AsyncIterator[StepBatch]:
        while (batch := await self._outbox.take()) is not None:
            yield batch

    def cache_changes(self) -> CacheDelta | None:
        """A guess: the server does not say which prefixes it holds."""
        return self._prefixes.changes()

    def cache_full(self) -> CacheDelta:
        return self._prefixes.full()

    async def stop(self, grace_s: float) -> None:
        """Takes no more; what runs or waits has `grace_s` seconds, then ends with DRAINING."""
        self._stopping = True
        give_up_s = asyncio.get_running_loop().time() + grace_s
        while (calls := self._calls()) and (left_s := give_up_s - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(calls, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        for entry in self._queue.clear():
            self._outbox.put(entry.item.ended(_STOPPED))
        for sequence in list(self._running.values()):
            self._on_output(sequence, sequence.ended(_STOPPED))
        self._arm_expiry()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._outbox.close()
        await self._upstream.close()

    def _calls(self) -> set[asyncio.Task[None]]:
        return {s.task for s in self._running.values() if s.task is not None}

    # Sequences

    def _sequence_of(self, work: Work) -> Sequence:
        if len(work.input) > self._variant.context_tokens * _MAX_BYTES_PER_TOKEN:
            raise EngineRefused(Failure(Cause.CONTEXT_LENGTH, "the input is far longer than the context"))
        try:
            request = upstream_request(
                work,
                model=self._model,
                include_usage=self._settings.include_usage,
                is_llama_server=self._settings.is_llama_server,
            )
        except NoFunctions:
            message = "a schema or text can be asked of this server only with tools"
            raise EngineRefused(Failure(Cause.INVALID_INPUT, message)) from None
        except ValueError:
            raise EngineRefused(Failure(Cause.INVALID_INPUT, "the input is not canonical")) from None
        return Sequence(
            work=work,
            request=request,
            arrived_s=self._clock(),
            prompt_tokens=estimated_tokens(work.input),
            next_index=work.start_index,
        )

    def _free_slots(self) -> int:
        return max(0, self._settings.slots - len(self._running))

    def _start_next(self) -> None:
        """Gives free slots to the waiting, and fails those whose time is over."""
        now_s = self._clock()
        for late in self._queue.pop_expired(now_s * 1e3):
            self._outbox.put(late.item.ended(_TOO_LATE))
        while self._watch.ready and self._free_slots():
            entry = self._queue.pop(now_s * 1e3)
            if entry is None:
                break
            self._start(entry.item, now_s)
        self._arm_expiry()

    def _start(self, sequence: Sequence, now_s: float) -> None:
        if not self._running:
            self._progress_s = now_s
        self._running[sequence.work.key] = sequence
        sequence.started_s = now_s
        sequence.peers = len(self._running) + self._watch.others()
        names = sequence.work.prefix_hashes
        sequence.guessed_tokens = self._prefixes.warm_tokens(names, sequence.prompt_tokens)
        sequence.upstream_waiting = self._watch.metrics().waiting or 0
        sequence.task = self._spawn(self._call(sequence), "upstream-call")

    def _arm_expiry(self) -> None:
        """Wakes when the next waiting sequence's deadline passes."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        deadlines = [e.hard_deadline_ms for e in self._queue if e.hard_deadline_ms is not None]
        if deadlines:
            delay_s = max(0.0, min(deadlines) / 1e3 - self._clock())
            self._expiry = asyncio.get_running_loop().call_later(delay_s + 1e-3, self._start_next)

    async def _call(self, sequence: Sequence) -> None:
        kind = EmbedCall if sequence.work.input_kind is InputKind.EMBED else SequenceCall
        call = kind(sequence, self._settings, self._clock, lambda o: self._on_output(sequence, o))
        try:
            if await call.run(self._upstream):
                self._watch.suspect()
        except Exception as error:  # noqa: BLE001 - the boundary of one sequence's task
            _log.error("a call upstream failed unexpectedly: %s", type(error).__name__)
            failure = Failure(Cause.INTERNAL, "the call upstream failed unexpectedly")
            self._on_output(sequence, sequence.ended(failure))

    def _on_output(self, sequence: Sequence, output: SequenceOutput) -> None:
        """Passes on what a call gave, unless its sequence was cancelled meanwhile."""
        key = sequence.work.key
        if self._running.get(key) is not sequence:
            return
        self._progress_s = self._clock()
        self._outbox.put(output)
        if output.first_token is not None:
            self._prefixes.computed(sequence.work.prefix_hashes, self._cache_tokens())
        if output.finish is not None:
            if sequence.usage is not None:
                self._prefixes.heard(
                    sequence.guessed_tokens,
                    sequence.usage.cached_tokens,
                    sure=self._settings.is_llama_server,
                )
            if sequence.work.input_kind is not InputKind.EMBED:
                learn_from(sequence, self._speeds, peers_now=len(self._running), now_s=self._progress_s)
            del self._running[key]
            self._start_next()

    # Upstream

    async def _meet_server(self) -> EngineInfo:
        await self._upstream.open()
        listed = await self._watch.wait_alive()
        self._model, self._variant = settle_model(self._model, self._variant, listed)
        self._watch.model = self._model
        await self._watch.scrape()
        if self._settings.selftest:
            await self._selftest()
        return await self._info()

    def on_health(self, ready: bool) -> None:
        """After each probe that changed or confirmed bad health: what waits moves on, or elsewhere."""
        if ready:
            self._start_next()
            return
        self._prefixes.clear()
        for entry in self._queue.clear():
            self._outbox.put(entry.item.ended(_NOT_READY))

    def running_here(self) -> int:
        return len(self._running)

    def silence_s(self) -> float | None:
        return max(0.0, self._clock() - self._progress_s) if self._running else None

    def _cache_tokens(self) -> int:
        known = self._settings.cache_tokens or self._watch.metrics().cache_tokens
        return known or self._settings.slots * self._variant.context_tokens

    def _free_cache_tokens(self) -> int:
        metrics, total = self._watch.metrics(), self._cache_tokens()
        if metrics.cache_used is not None:
            return round(total * (1.0 - metrics.cache_used))
        return max(0, total - sum(s.prompt_tokens + s.deltas for s in self._running.values()))

    async def _selftest(self) -> None:
        """One short request, so that a wrong model name or key shows now and speeds start measured."""
        outputs: list[SequenceOutput] = []
        sequence = self._sequence_of(selftest_work(self._variant.digest))
        sequence.started_s = sequence.arrived_s
        await SequenceCall(sequence, self._settings, self._clock, outputs.append).run(self._upstream)
        finish = outputs[-1].finish
        if finish is None or isinstance(finish.result, Failure):
            raise upstream_failed(f"its answer to a test request failed: {finish}")
        learn_from(sequence, self._speeds, peers_now=1, now_s=self._clock())

    async def _info(self) -> EngineInfo:
        settings = self._settings
        build = f"openai-http/{await self._watch.version() or 'unknown'}"
        identity = "\0".join((self._variant.digest, self._model, build))
        return EngineInfo(
            variants=(self._variant,),
            slots=settings.slots,
            queue_limit=settings.queue_limit,
            build=build,
            replay_class=settings.replay_class,
            replay_digest=hashlib.sha256(identity.encode("utf-8")).hexdigest(),
            hardware_class=settings.hardware_class,
            speeds=self._speeds.speeds(self._clock()),
        )

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("the task %s ended: %s", task.get_name(), type(error).__name__)
            if task.get_name() == _HEALTH:
                # Nobody would see the server come or go: ends the steps, so that the node's owner notices.
                self._outbox.close()
