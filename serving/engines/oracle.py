"""The deterministic engine of the tests: no model, known tokens, a pace by configuration.

It moves through prefill chunks and batched decode steps as a real engine does, so that what stands around
engines can be proven with exact expectations (see `oracle_tokens`, `oracle_text`) and on virtual time.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from serving.engines.base import EngineInfo, EngineLoad, EngineRefused
from serving.engines.oracle_parts import (
    PrefixCache,
    StopFilter,
    TokenChain,
    decode_speed,
    input_tokens,
    oracle_length,
    oracle_text,
    oracle_tokens,
    token_text,
)
from serving.engines.queue import Waiting, WaitQueue
from tidegate.routing.domain import (
    AttemptKey,
    CacheDelta,
    Cause,
    Failure,
    Finish,
    FinishReason,
    FirstToken,
    InputKind,
    ReplayClass,
    SequenceOutput,
    Speeds,
    StepBatch,
    Usage,
    Variant,
    Work,
)
from tidegate.routing.prefix import parse_canonical

__all__ = ["OracleEngine", "OracleSettings", "oracle_length", "oracle_text", "oracle_tokens", "token_text"]


@dataclass(frozen=True, slots=True)
class OracleSettings:
    """What the oracle plays.

    `digest` "" is derived from the model's name. `decode` is ((batch size, tokens/s per sequence), ...)
    ascending. `pacing` multiplies every duration; 0 runs as fast as it can. `natural_length` bounds the
    answer's own length in tokens (it then ends with STOP); None answers up to max_tokens.
    """

    model: str = "oracle"
    digest: str = ""
    aliases: tuple[str, ...] = ()
    quantization: str = "none"
    context_tokens: int = 1 << 21
    perplexity: float | None = None
    capabilities: frozenset[str] = frozenset({"token_ids"})
    slots: int = 4
    queue_limit: int = 16
    prefill_tokens_per_s: float = 2000.0
    decode: tuple[tuple[int, float], ...] = ((1, 50.0), (4, 30.0))
    prefill_chunk_tokens: int = 512
    cache_tokens: int = 1 << 16
    pacing: float = 1.0
    natural_length: tuple[int, int] | None = None
    load_s: float = 0.0
    restart_s: float = 1.0
    hardware_class: str = "oracle"

    @property
    def model_digest(self) -> str:
        return self.digest or hashlib.sha256(b"oracle\0" + self.model.encode()).hexdigest()


@dataclass(slots=True, eq=False)
class _Sequence:
    """One sequence inside the engine. Times are seconds on the engine's clock."""

    work: Work
    prompt_tokens: int
    chain: TokenChain
    stops: StopFilter
    limit: int
    natural_end: int | None
    submitted_s: float
    started_s: float = 0.0
    prefill_left: int = 0
    cached_tokens: int = 0
    produced: int = 0
    cancelled: bool = False

    @property
    def next_index(self) -> int:
        return self.work.start_index + self.produced

    @property
    def usage(self) -> Usage:
        return Usage(self.prompt_tokens, self.produced, self.cached_tokens)


@dataclass(frozen=True, slots=True)
class _Plan:
    """One step: how much of which prompt, and who decodes."""

    prefill: list[tuple[_Sequence, int]] = field(default_factory=list)
    decode: list[_Sequence] = field(default_factory=list)


class OracleEngine:
    """Implements serving.engines.base.Engine; one asyncio task, owned from start() to stop()."""

    def __init__(self, settings: OracleSettings, clock: Callable[[], float] | None = None) -> None:
        self._settings = settings
        self._digest = settings.model_digest
        self._clock = clock
        self._queue: WaitQueue[_Sequence] = WaitQueue(settings.queue_limit)
        self._running: list[_Sequence] = []
        self._cache = PrefixCache(settings.cache_tokens)
        self._out: asyncio.Queue[list[tuple[_Sequence, SequenceOutput]] | None] = asyncio.Queue()
        self._wake = asyncio.Event()
        self._unhung = asyncio.Event()
        self._unhung.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._pacing = settings.pacing
        self._ready = False
        self._stopping = False
        self._progress_s = 0.0
        self._task: asyncio.Task[None] | None = None
        self._restart: asyncio.TimerHandle | None = None

    # --- Engine ---

    async def start(self) -> EngineInfo:
        if self._clock is None:
            self._clock = asyncio.get_running_loop().time
        await asyncio.sleep(self._settings.load_s * self._pacing)
        self._ready = True
        self._task = asyncio.create_task(self._loop(), name="oracle-steps")
        return self._info()

    def submit(self, work: Work) -> None:
        if self._stopping:
            raise EngineRefused(Failure(Cause.DRAINING, "the engine is stopping"))
        if not self._ready:
            raise EngineRefused(Failure(Cause.ENGINE_CRASHED, "the engine is not up"))
        sequence = self._sequence(work)
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
            pending_decode_tokens=sum(s.limit - s.produced for s in self._running),
            free_cache_tokens=self._cache.free_tokens,
            progress_age_ms=(self._now() - self._progress_s) * 1000.0 if working else 0.0,
            speeds=self._speeds(),
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
            await asyncio.wait_for(self._idle.wait(), grace_s)
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
                continue
            plan = self._plan()
            await asyncio.sleep(self._step_s(plan))
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
        live = set(self._running)
        ended_prefill = [sequence for sequence, _ in plan.prefill if sequence.prefill_left == 0]
        yielding = [sequence for sequence in (*plan.decode, *ended_prefill) if sequence in live]
        step = [(sequence, self._advance(sequence, len(yielding))) for sequence in yielding]
        finished = {sequence for sequence, output in step if output.finish is not None}
        self._running = [sequence for sequence in self._running if sequence not in finished]
        self._progress_s = self._now()
        if step:
            self._out.put_nowait(step)

    def _advance(self, sequence: _Sequence, batch_size: int) -> SequenceOutput:
        index = sequence.next_index
        if sequence.natural_end is not None and index >= sequence.natural_end:
            finish = Finish(FinishReason.STOP, sequence.usage)
            return SequenceOutput(sequence.work.key, index, text=sequence.stops.flush(), finish=finish)
        token_id = sequence.chain.next()
        sequence.produced += 1
        text, stopped = sequence.stops.push(token_text(token_id))
        reason: FinishReason | None = None
        if stopped:
            reason = FinishReason.STOP
        elif sequence.produced >= sequence.limit:
            reason = FinishReason.LENGTH
            text += sequence.stops.flush()
        return SequenceOutput(
            key=sequence.work.key,
            first_index=index,
            count=1,
            token_ids=(token_id,),
            text=text,
            first_token=self._first_token(sequence, batch_size) if sequence.produced == 1 else None,
            finish=None if reason is None else Finish(reason, sequence.usage),
        )

    def _first_token(self, sequence: _Sequence, batch_size: int) -> FirstToken:
        return FirstToken(
            queue_ms=(sequence.started_s - sequence.submitted_s) * 1000.0,
            prefill_ms=(self._now() - sequence.started_s) * 1000.0,
            cached_tokens=sequence.cached_tokens,
            batch_size=batch_size,
            prompt_tokens=sequence.prompt_tokens,
        )

    # --- small things ---

    def _sequence(self, work: Work) -> _Sequence:
        if work.variant_digest != self._digest:
            raise EngineRefused(Failure(Cause.UNKNOWN_VARIANT, "this variant is not served here"))
        prompt_tokens = self._check_input(work)
        chain = TokenChain(self._digest, work.input)
        stops = StopFilter(work.stop)
        for token_id in work.replay_token_ids:
            chain.absorb(token_id)
            stops.push(token_text(token_id))
        bounds = self._settings.natural_length
        room = self._settings.context_tokens - prompt_tokens - len(work.replay_token_ids)
        return _Sequence(
            work=work,
            prompt_tokens=prompt_tokens,
            chain=chain,
            stops=stops,
            limit=min(work.max_tokens, room),
            natural_end=None if bounds is None else oracle_length(self._digest, work.input, bounds),
            submitted_s=self._now(),
        )

    def _check_input(self, work: Work) -> int:
        """The prompt's tokens. Raises EngineRefused(INVALID_INPUT)."""
        problem = ""
        try:
            if work.input_kind is InputKind.CHAT:
                parse_canonical(work.input)
            else:
                work.input.decode("utf-8")
        except ValueError:
            problem = f"the input is not valid {work.input_kind.value}"
        tokens = input_tokens(work.input)
        if tokens + len(work.replay_token_ids) >= self._settings.context_tokens:
            problem = f"{tokens} input tokens do not fit a context of {self._settings.context_tokens}"
        if work.max_tokens < 1:
            problem = "max_tokens must be at least 1"
        if len(work.replay_token_ids) != work.start_index:
            problem = "start_index must be the number of replayed tokens"
        if problem:
            raise EngineRefused(Failure(Cause.INVALID_INPUT, problem))
        return tokens

    def _cached(self, sequence: _Sequence) -> int:
        return self._cache.cached_tokens(sequence.work.prefix_hashes, sequence.prompt_tokens)

    def _uncached(self, sequence: _Sequence) -> int:
        return sequence.prompt_tokens + sequence.work.start_index - self._cached(sequence)

    def _expire(self) -> None:
        """Waiting sequences whose hard deadline has passed; running ones are the runtime's to cancel."""
        expired = self._queue.pop_expired(self._now() * 1000.0)
        self._fail([entry.item for entry in expired], Failure(Cause.DEADLINE, "waited past its deadline"))

    def _fail_all(self, failure: Failure) -> None:
        sequences = [*self._running, *(entry.item for entry in self._queue.clear())]
        self._running = []
        self._fail(sequences, failure)

    def _fail(self, sequences: list[_Sequence], failure: Failure) -> None:
        step = [
            (
                sequence,
                SequenceOutput(
                    sequence.work.key, sequence.next_index, finish=Finish(failure, sequence.usage)
                ),
            )
            for sequence in sequences
        ]
        if step:
            self._out.put_nowait(step)

    def _restarted(self) -> None:
        self._ready = True
        self._out.put_nowait([])

    def _now(self) -> float:
        return self._clock() if self._clock is not None else 0.0

    def _speeds(self) -> Speeds:
        return Speeds(self._settings.prefill_tokens_per_s, self._settings.decode)

    def _info(self) -> EngineInfo:
        settings = self._settings
        variant = Variant(
            model=settings.model,
            digest=self._digest,
            quantization=settings.quantization,
            context_tokens=settings.context_tokens,
            perplexity=settings.perplexity,
            capabilities=settings.capabilities,
            aliases=settings.aliases,
        )
        return EngineInfo(
            variants=(variant,),
            slots=settings.slots,
            queue_limit=settings.queue_limit,
            build="oracle-1",
            replay_class=ReplayClass.TOKENS,
            replay_digest=f"oracle-1:{self._digest}",
            hardware_class=settings.hardware_class,
            speeds=self._speeds(),
        )
