"""LlamaCppEngine: the Engine seam in front of a supervised child process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from serving.engines.base import EngineInfo, EngineLoad, EngineRefused, EngineUnavailable
from serving.engines.llama_cpp import protocol
from serving.engines.llama_cpp.admission import input_text
from serving.engines.llama_cpp.cache_view import CacheView
from serving.engines.llama_cpp.crashes import Crashes
from serving.engines.llama_cpp.embed_desk import EmbedDesk
from serving.engines.llama_cpp.identity import describe
from serving.engines.llama_cpp.launcher import Launcher, tell_of, unusable
from serving.engines.llama_cpp.ledger import Ledger, Submitted
from serving.engines.llama_cpp.outbox import Outbox
from serving.engines.llama_cpp.process import ChildProcess
from serving.engines.llama_cpp.protocol import MALFORMED, Frame, LoadState, ProtocolError
from serving.engines.llama_cpp.settings import LlamaCppSettings
from serving.engines.llama_cpp.slow_kernel import EXPECTED_PREFILL_GAIN, FAST_TYPE, lacks_fast_kernel
from serving.engines.llama_cpp.slumber import Slumber
from serving.engines.llama_cpp.watchdog import Watchdog
from tidegate.routing.domain import (
    AttemptKey,
    CacheDelta,
    Cause,
    Failure,
    Finish,
    FinishReason,
    InputKind,
    SequenceOutput,
    Speeds,
    StepBatch,
    Work,
)

_LOG = logging.getLogger(__name__)
_END_GRACE_S = 0.7
# For writing prefixes, where answers have used up all of a stop's grace.
_KEEP_S = 0.3


class LlamaCppEngine:
    """One GGUF model in a child process that is started again when it crashes or hangs."""

    def __init__(self, settings: LlamaCppSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._launcher = Launcher(settings, clock)
        self._clock = clock
        self._ledger = Ledger()
        self._outbox = Outbox()
        self._child: ChildProcess | None = None
        self._ready = False
        self._stopping = False
        self._hung = False
        self._quarantined = False
        self._trouble = self._last_end = ""
        self._threads, self._usable_slots = settings.threads, settings.slots
        self._crashes = Crashes(
            longest_pause_s=settings.restart_backoff_max_s,
            quarantine_after=settings.quarantine_after,
            quarantine_s=settings.quarantine_s,
        )
        self._last_progress = clock()
        self._prefixes_kept = asyncio.Event()
        self._speeds = Speeds(0.0, ())
        self._speeds_at = clock()
        self._cache = CacheView()
        self._slumber = Slumber(settings.idle_unload_s, clock)
        self._unsent: list[Frame] = []
        self._embeds = EmbedDesk(settings.queue_limit + 1)
        self._tasks: list[asyncio.Task[None]] = []
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def threads(self) -> int:
        """Threads that compute at present."""
        return self._threads

    @property
    def child_pid(self) -> int | None:
        """Process id of the running child."""
        return self._child.pid if self._child is not None else None

    @property
    def _settings(self) -> LlamaCppSettings:
        """With what was left open filled in, once it has started."""
        return self._launcher.settings

    async def start(self) -> EngineInfo:
        """Checks the file, loads and measures. Raises EngineUnavailable."""
        launcher = self._launcher
        header, entry = await launcher.prepare()
        child, ready = await self._launch()
        quantization = entry.quantization if entry else header.quantization
        if lacks_fast_kernel(quantization, self._settings.n_gpu_layers, ready):
            _LOG.warning(
                "%s has no fast kernel on this processor: %s is expected to prefill %g times faster",
                quantization,
                FAST_TYPE,
                EXPECTED_PREFILL_GAIN,
            )
            if self._settings.requantize_slow:
                await self._give_up(child)
                await launcher.requantize()
                self._speeds = Speeds(0.0, ())
                header, entry = await launcher.prepare()
                child, ready = await self._launch()
        self._tasks = [
            asyncio.create_task(self._supervise(child), name="llama-supervise"),
            asyncio.create_task(self._watch(), name="llama-watch"),
            asyncio.create_task(self._unload_when_idle(), name="llama-unload"),
        ]
        for task in self._tasks:
            task.add_done_callback(self._task_ended)
        speeds = self._current_speeds()
        return describe(self._settings, header, entry, launcher.digest, ready, speeds, launcher.adapters)

    def submit(self, work: Work) -> None:
        if self._stopping:
            raise EngineRefused(Failure(Cause.DRAINING, "the engine is stopping"))
        if self._quarantined:
            raise EngineRefused(
                Failure(Cause.ENGINE_CRASHED, "the model is in quarantine: it crashes again and again")
            )
        if work.variant_digest and work.variant_digest != self._launcher.digest:
            raise EngineRefused(Failure(Cause.UNKNOWN_VARIANT, "another variant is loaded"))
        if work.adapter and all(adapter.name != work.adapter for adapter in self._settings.adapters):
            raise EngineRefused(Failure(Cause.UNKNOWN_VARIANT, "the adapter is not loaded here"))
        if work.input_kind is InputKind.EMBED:
            self._embed(work)
            return
        if work.key in self._ledger:
            raise EngineRefused(Failure(Cause.FENCED, "this attempt runs already"))
        limit = self._settings.slots + self._settings.queue_limit
        if len(self._ledger) >= limit:
            raise EngineRefused(Failure(Cause.OVERLOADED, f"{limit} sequences run or wait already"))
        entry = self._ledger.add(work, input_text(work), self._clock())
        entry.slept = self._slumber.asleep
        try:
            if self._ready:
                self._send(entry)
            else:
                protocol.encode(protocol.pack_work(entry.sid, work, entry.text, 0.0))
        except ProtocolError as error:
            self._ledger.cancel(work.key)
            raise EngineRefused(Failure(Cause.INVALID_INPUT, f"the work is too large: {error}")) from None
        self._slumber.wanted(work)
        if self._idle.is_set():
            self._idle.clear()
            self._last_progress = self._clock()

    def _embed(self, work: Work) -> None:
        if self._settings.embeddings == "off":
            raise EngineRefused(Failure(Cause.UNKNOWN_VARIANT, "this engine does not embed"))
        if not self._slumber.asleep and (self._child is None or not self._ready):
            raise EngineRefused(Failure(Cause.ENGINE_CRASHED, "the engine is being started again"))
        frame = self._embeds.add(work, self._clock())
        try:
            if self._child is not None and self._ready:
                self._child.send(frame)
            else:
                protocol.encode(frame)
                self._unsent.append(frame)
        except ProtocolError as error:
            self._embeds.cancel(work.key)
            raise EngineRefused(Failure(Cause.INVALID_INPUT, f"the texts are too large: {error}")) from None
        self._slumber.wanted(work)

    def _send(self, entry: Submitted) -> None:
        if self._child is not None:
            waited_ms = (self._clock() - entry.submitted_at) * 1000.0
            entry.wake_ms = waited_ms if entry.slept else 0.0
            self._child.send(protocol.pack_work(entry.sid, entry.work, entry.text, waited_ms))
            entry.sent = True
            entry.text = ""

    def cancel(self, key: AttemptKey) -> None:
        self._outbox.take_back(key)
        if (frame := self._embeds.cancel(key)) is not None:
            if self._child is not None and self._ready:
                self._child.send(frame)
            self._unsent = [each for each in self._unsent if each["sid"] != frame["sid"]]
        entry = self._ledger.cancel(key)
        if entry is None:
            return
        if entry.sent and self._child is not None:
            self._child.send({"t": "cancel", "sid": entry.sid})
        self._note_idle()

    def load(self) -> EngineLoad:
        reported = self._ledger.reported
        _, unseen_prompt, unseen_answer = self._ledger.unseen_tokens()
        occupied = self._ledger.occupied
        # Right after there are fewer slots, more may still run.
        running = min(occupied, max(self._usable_slots, reported.running))
        asleep = self._slumber.asleep
        age_ms = (self._clock() - self._last_progress) * 1000.0 if occupied and not asleep else 0.0
        return EngineLoad(
            ready=(self._ready or asleep) and not self._stopping,
            running=running,
            queued=occupied - running,
            pending_prefill_tokens=reported.pending_prefill_tokens + unseen_prompt,
            pending_decode_tokens=reported.pending_decode_tokens + unseen_answer,
            free_cache_tokens=reported.free_cache_tokens,
            progress_age_ms=age_ms,
            speeds=self._current_speeds(),
            wake_ms=self._slumber.wake_ms,
            trouble=self._trouble,
            pinned_tokens=reported.pinned_tokens,
            usable_slots=self._usable_slots,
        )

    def _current_speeds(self) -> Speeds:
        age_ms = (self._clock() - self._speeds_at) * 1000.0
        return Speeds(self._speeds.prefill_tokens_per_s, self._speeds.decode, age_ms)

    async def steps(self) -> AsyncIterator[StepBatch]:
        async for batch in self._outbox.batches():
            yield batch

    def cache_changes(self) -> CacheDelta | None:
        return self._cache.take_changes()

    def cache_full(self) -> CacheDelta:
        return self._cache.full()

    async def stop(self, grace_s: float) -> None:
        self._stopping, ends = True, self._clock() + grace_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        await self._keep_prefixes(max(ends - self._clock(), _KEEP_S))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._child is not None:
            # Its owner was cancelled before it ran.
            await self._child.end(0.0)
            self._ready, self._child = False, None
        self._fail_all(Failure(Cause.DRAINING, "the engine was stopped"))
        self._outbox.close()

    async def _keep_prefixes(self, within_s: float) -> None:
        """A child that is slow to write is ended all the same, and the file stays what it was."""
        if self._settings.prefix_file is not None and self._child is not None and self._ready:
            self._child.send({"t": "keep"})
            try:
                async with asyncio.timeout(within_s):
                    await self._prefixes_kept.wait()
            except TimeoutError:
                _LOG.warning("prefixes were not written within %.1f s", within_s)

    async def _launch(self) -> tuple[ChildProcess, Frame]:
        """A child that is ready. Raises EngineUnavailable."""
        child, ready, load_ms = await self._launcher.launch(self._speeds)
        try:
            self._slumber.loaded(load_ms)
            self._take_over(child, ready)
        except MALFORMED as error:
            await self._give_up(child)
            raise unusable(error) from error
        except BaseException:
            await self._give_up(child)
            raise
        return child, ready

    async def _give_up(self, child: ChildProcess) -> None:
        self._ready, self._child = False, None
        await child.end(0.0)

    def _take_over(self, child: ChildProcess, ready: Frame) -> None:
        self._child = child
        self._threads, self._usable_slots = int(ready["threads"]), self._settings.slots
        self._take_speeds(ready["speeds"])
        self._speeds_at -= ready["speeds_age_s"]
        free = self._settings.slots * int(ready["context_tokens"])
        self._ledger.reported = LoadState(
            free_cache_tokens=free,
            seen=self._ledger.reported.seen,
            pinned_tokens=int(ready.get("pinned_tokens", 0)),
        )
        self._last_progress = self._clock()
        self._hung = False
        self._ready, self._trouble = True, ""
        tell_of(child, ready, self._settings)
        for entry in self._ledger:
            try:
                self._send(entry)
            except ProtocolError as error:
                self._fail(entry, Failure(Cause.INVALID_INPUT, f"the work is too large: {error}"))
        unsent, self._unsent = self._unsent, []
        for frame in unsent:
            child.send(frame)

    async def _supervise(self, child: ChildProcess) -> None:
        """Owns the child: reads it to its end, fails what it ran, and starts the next one."""
        while True:
            try:
                await self._read(child)
            except ProtocolError as error:
                _LOG.error("engine child %d: %s", child.pid, error)
            finally:
                self._ready, self._child = False, None
                self._cache.clear()
                status = await child.end(_END_GRACE_S if self._stopping else 0.0)
            if self._slumber.asleep:
                _LOG.info("engine child %d ended: nothing to do, the model is unloaded", child.pid)
                child = await self._wake()
                continue
            failure = self._why(status)
            self._last_end = failure.detail
            _LOG.error("engine child %d ended: %s", child.pid, failure.detail)
            self._fail_all(failure)
            child = await self._relaunch()

    async def _wake(self) -> ChildProcess:
        """The next child, once there is work for it."""
        await self._slumber.until_wanted()
        try:
            return (await self._launch())[0]
        except EngineUnavailable as error:
            self._slumber.over()
            _LOG.error("the model cannot be loaded again: %s", error)
            self._unsent.clear()
            self._fail_all(Failure(Cause.ENGINE_CRASHED, "the model cannot be loaded again"))
            return await self._relaunch()

    async def _unload_when_idle(self) -> None:
        """Ends the child, and gives its memory back, after `idle_unload_s` without work."""
        while True:
            if not self._slumber.enabled:
                await asyncio.Event().wait()
            await asyncio.sleep(self._slumber.look_every_s)
            works = (*(entry.work for entry in self._ledger), *self._embeds.works())
            due = self._slumber.is_due(works) and not self._ledger.occupied
            # A child that is being stopped may be writing its prefixes.
            if due and self._ready and self._child is not None and not self._stopping:
                self._slumber.fall_asleep()
                self._ready = False
                self._child.kill()

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """Nobody would start the child again: ends the steps, so that the node's owner notices."""
        if task.cancelled():
            return
        _LOG.error("%s ended for good", task.get_name(), exc_info=task.exception())
        self._ready = False
        self._fail_all(Failure(Cause.INTERNAL, "the engine's supervision ended"))
        self._outbox.close()

    def _why(self, status: int) -> Failure:
        if self._hung:
            limit = self._settings.hang_timeout_s
            return Failure(Cause.ENGINE_HUNG, f"the engine made no step for {limit:g} s and was ended")
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        return Failure(Cause.ENGINE_CRASHED, f"the engine process ended {how}")

    async def _relaunch(self) -> ChildProcess:
        """Tries until a child is ready. The first try after progress is made at once."""
        while True:
            pause_s, self._quarantined = self._crashes.ended()
            self._trouble = self._trouble or "the engine is being started again"
            if self._quarantined:
                ends = f"the engine ended {self._crashes.without_answer} times without one answer"
                _LOG.error("%s: the model rests for %.0f s, or until the node is restarted", ends, pause_s)
                self._trouble = f"quarantine: {ends}; last: {self._last_end}"
                self._fail_all(Failure(Cause.ENGINE_CRASHED, f"{ends} and is in quarantine"))
            await asyncio.sleep(pause_s)
            self._quarantined = False
            try:
                return (await self._launch())[0]
            except EngineUnavailable as error:
                _LOG.error("engine child cannot be started again: %s", error)
                self._last_end = self._trouble = "the engine cannot be started again"
                self._fail_all(Failure(Cause.ENGINE_CRASHED, "the engine cannot be started again"))

    async def _read(self, child: ChildProcess) -> None:
        while (frame := await child.receive()) is not None:
            try:
                if frame["t"] == "step":
                    self._take_step(frame)
                elif frame["t"] == "kept":
                    _LOG.info("%s", frame["done"])
                    self._prefixes_kept.set()
                elif frame["t"] == "vectors":
                    output = self._embeds.take(frame, self._clock())
                    self._outbox.put([] if output is None else [output])
                elif frame["t"] == "tuned":
                    await self._take_tuned(frame)
            except MALFORMED as error:
                raise ProtocolError(f"a frame is malformed ({type(error).__name__})") from error

    def _take_step(self, frame: Frame) -> None:
        self._last_progress = self._clock()
        self._crashes.step()
        self._ledger.reported = protocol.unpack_load(frame["load"])
        for sid in frame["freed"]:
            self._ledger.freed(sid)
        held, evicted = (map(bytes.fromhex, frame.get(side, ())) for side in ("held", "evicted"))
        self._cache.change(held, evicted)
        if "threads" in frame:
            self._threads, why = int(frame["threads"][0]), str(frame["threads"][1])
            _LOG.info("computing with %d threads: %s", self._threads, why)
        if "slots" in frame:
            slots, why = int(frame["slots"][0]), str(frame["slots"][1])
            self._usable_slots = min(max(1, slots), self._settings.slots)
            _LOG.info("%d of %d slots are used: %s", self._usable_slots, self._settings.slots, why)
        if "speeds" in frame:
            self._take_speeds(frame["speeds"])
        outputs = []
        for item in frame["out"]:
            entry = self._ledger.get(item[0])
            if entry is None:
                if item[-1]:
                    self._ledger.freed(item[0])
                continue
            output = entry.stamped(protocol.unpack_emission(item, entry.work.key))
            entry.next_index = output.first_index + output.count
            if output.finish is not None:
                self._ledger.ended(entry.sid)
                if isinstance(output.finish.result, FinishReason):
                    self._crashes.answer()
            outputs.append(output)
        self._outbox.put(outputs)
        self._note_idle()

    async def _take_tuned(self, frame: Frame) -> None:
        await asyncio.to_thread(
            self._launcher.kept.take, frame, self._settings.model_path, self._launcher.digest
        )
        self._threads = int(frame["threads"])
        self._take_speeds(frame["speeds"])

    def _take_speeds(self, speeds: list[Any]) -> None:
        self._speeds = Speeds(float(speeds[0]), tuple((int(size), float(rate)) for size, rate in speeds[1]))
        self._speeds_at = self._clock()

    def _fail_all(self, failure: Failure) -> None:
        self._outbox.put((*self._ledger.fail_all(failure), *self._embeds.fail_all(failure)))
        self._note_idle()

    def _fail(self, entry: Submitted, failure: Failure) -> None:
        """This one alone, which the child does not know of."""
        self._outbox.put([SequenceOutput(entry.work.key, entry.next_index, finish=Finish(failure))])
        self._ledger.cancel(entry.work.key)
        self._note_idle()

    def _note_idle(self) -> None:
        if not self._ledger.occupied:
            self._idle.set()

    async def _watch(self) -> None:
        """Ends a child that runs work and makes no step."""
        watchdog = Watchdog(self._settings.hang_timeout_s)
        while True:
            child, quiet_s = self._child, None
            if child is not None and self._ledger.occupied > 0 and not self._hung:
                quiet_s = self._clock() - self._last_progress
            ends, pause_s = watchdog.look(quiet_s)
            if ends and child is not None:
                self._hung = True
                child.kill()
            await asyncio.sleep(pause_s)
