"""The node around one engine: who gave which work, who hears of it, and what is refused.

Implements tidegate.link.seam.NodeService. One task consumes the engine's steps and hands each listener what
belongs to it; everything else happens inside the calls. All of it runs on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from serving.engines.base import Engine, EngineInfo, EngineLoad, EngineRefused
from serving.node.fence import FenceTable
from serving.node.naming import NodeIdentityLike
from tidegate.link.seam import NodeListener, WorkRefused
from tidegate.routing.domain import (
    Announcement,
    AttemptKey,
    CacheDelta,
    Cause,
    Failure,
    Finish,
    NodeLoad,
    Power,
    SequenceOutput,
    StepBatch,
    Usage,
    Work,
    needed_capabilities,
)

logger = logging.getLogger(__name__)

CACHE_REPORT_S = 0.25
READY_POLL_S = 1.0
NOT_READY_POLL_S = 0.1
CONSUMER_END_S = 1.0
ENGINE_STOP_S = 2.0


@dataclass(slots=True, eq=False)
class _Active:
    """One sequence the engine has. `listener` is None once its listener is gone."""

    work: Work
    listener: NodeListener | None
    next_index: int
    usage: Usage = Usage()
    deadline: asyncio.TimerHandle | None = None
    grace: asyncio.TimerHandle | None = None

    def cancel_timers(self) -> None:
        for timer in (self.deadline, self.grace):
            if timer is not None:
                timer.cancel()


class NodeRuntime:
    """One node: start() it before anything else, stop() it last."""

    def __init__(
        self,
        engine: Engine,
        identity: NodeIdentityLike,
        *,
        direct_endpoints: tuple[str, ...] = (),
        fence_entries: int = 16_384,
        power: Callable[[], Power | None] = lambda: None,
    ) -> None:
        """`power` is what the node tells of its electricity, read for each heartbeat."""
        self._engine = engine
        self._identity = identity
        self._direct_endpoints = direct_endpoints
        self._power = power
        self._fences = FenceTable(fence_entries)
        self._active: dict[AttemptKey, _Active] = {}
        self._listeners: list[NodeListener] = []
        self._info: EngineInfo | None = None
        self._was_ready = False
        self._was_asleep = False
        self._engine_ended = False
        self._draining = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._tasks: list[asyncio.Task[None]] = []
        self._cache_timer: asyncio.TimerHandle | None = None

    # --- life ---

    async def start(self) -> EngineInfo:
        """Starts the engine and the two tasks around it. Raises EngineUnavailable."""
        self._info = await self._engine.start()
        self._was_ready = self._engine.load().ready
        self._tasks = [
            asyncio.create_task(self._consume(), name="node-steps"),
            asyncio.create_task(self._watch_readiness(), name="node-readiness"),
        ]
        return self._info

    async def stop(self, grace_s: float) -> None:
        """Takes no more, lets work finish within grace_s, then ends the engine; at most 3 s longer."""
        self.drain()
        await self.wait_drained(grace_s)
        try:
            async with asyncio.timeout(ENGINE_STOP_S):
                await self._engine.stop(0.0)
        except TimeoutError:
            logger.error("the engine did not stop within %s s", ENGINE_STOP_S)
        if self._tasks:
            consumer, watcher = self._tasks
            watcher.cancel()
            await asyncio.wait([consumer], timeout=CONSUMER_END_S)
            consumer.cancel()
            await asyncio.wait(self._tasks)
        self._tasks = []
        if self._cache_timer is not None:
            self._cache_timer.cancel()
        for active in list(self._active.values()):
            self._end(active, Failure(Cause.DRAINING, "the node stopped"))

    def drain(self) -> None:
        if not self._draining:
            self._draining = True
            self._tell_load()

    async def wait_drained(self, grace_s: float) -> bool:
        """True as soon as nothing runs or waits, False after grace_s."""
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._empty.wait()
        return self._empty.is_set()

    @property
    def tasks(self) -> tuple[asyncio.Task[None], ...]:
        """Between start() and stop() none of them ends, or the node is no longer one."""
        return tuple(self._tasks)

    # --- what a link reads ---

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise RuntimeError("the node has not started")
        return self._info

    @property
    def identity(self) -> NodeIdentityLike:
        return self._identity

    def announcement(self) -> Announcement:
        info = self.info
        return Announcement(
            node_id=self._identity.node_id,
            boot_id=self._identity.boot_id,
            name=self._identity.name,
            variants=info.variants,
            slots=info.slots,
            queue_limit=info.queue_limit,
            build=info.build,
            replay_class=info.replay_class,
            replay_digest=info.replay_digest,
            hardware_class=info.hardware_class,
            speeds=self._engine.load().speeds,
            direct_endpoints=self._direct_endpoints,
        )

    def load(self) -> NodeLoad:
        load = self._engine.load()
        return NodeLoad(
            running=load.running,
            queued=load.queued,
            pending_prefill_tokens=load.pending_prefill_tokens,
            pending_decode_tokens=load.pending_decode_tokens,
            free_cache_tokens=load.free_cache_tokens,
            ready=load.ready and not self._engine_ended,
            progress_age_ms=load.progress_age_ms,
            draining=self._draining,
            speeds=load.speeds,
            power=self._power(),
            wake_ms=load.wake_ms,
            trouble=load.trouble or ("the engine has ended for good" if self._engine_ended else ""),
            pinned_tokens=load.pinned_tokens,
            usable_slots=self._usable_slots(load),
        )

    def cache_full(self) -> CacheDelta:
        return self._engine.cache_full()

    # --- what a link does ---

    def attach(self, listener: NodeListener) -> None:
        if listener not in self._listeners:
            self._listeners.append(listener)

    def detach(self, listener: NodeListener) -> None:
        if listener in self._listeners:
            self._listeners.remove(listener)
        for key, active in list(self._active.items()):
            if active.listener is not listener:
                continue
            active.listener = None
            if active.work.detach_grace_ms > 0:
                grace_s = active.work.detach_grace_ms / 1000.0
                active.grace = asyncio.get_running_loop().call_later(grace_s, self.cancel, key)
            else:
                self.cancel(key)

    def submit(self, listener: NodeListener, work: Work) -> None:
        """`credits` are the listener's own affair: every output is delivered at once."""
        if self._draining:
            raise WorkRefused(Failure(Cause.DRAINING, "the node takes no more work"))
        if self._engine_ended or listener not in self._listeners:
            raise WorkRefused(Failure(Cause.INTERNAL, "the engine or the listener is gone"))
        if self._fences.refuses(work.key):
            raise WorkRefused(Failure(Cause.FENCED, "this or a higher attempt of the request was seen"))
        if work.remaining_ms is not None and work.remaining_ms <= 0:
            raise WorkRefused(Failure(Cause.DEADLINE, "no time was left when the work arrived"))
        if work.most_ahead is not None and self._is_fuller_than(work.most_ahead):
            raise WorkRefused(Failure(Cause.OVERLOADED, "more is waiting here than the sender believed"))
        if lacking := self._lacking(work):
            raise WorkRefused(Failure(Cause.UNKNOWN_VARIANT, f"not to be had here: {', '.join(lacking)}"))
        try:
            self._engine.submit(work)
        except EngineRefused as refused:
            raise WorkRefused(refused.failure) from refused
        except Exception:
            # Half taken in, it would compute for nobody.
            self._engine.cancel(work.key)
            raise
        self._fences.started(work.key)
        active = _Active(work, listener, work.start_index)
        if work.remaining_ms is not None:
            active.deadline = asyncio.get_running_loop().call_later(
                work.remaining_ms / 1000.0, self._deadline, work.key
            )
        self._active[work.key] = active
        self._empty.clear()
        self._tell_load()

    def _lacking(self, work: Work) -> list[str]:
        """What no variant here can do: engines would answer without it."""
        needs = needed_capabilities(work)
        if not needs or any(needs <= variant.capabilities for variant in self.info.variants):
            return []
        return sorted(needs.difference(*(variant.capabilities for variant in self.info.variants)) or needs)

    def cancel(self, key: AttemptKey) -> None:
        """The listener hears nothing more of this attempt."""
        active = self._active.get(key)
        if active is None:
            return
        self._forget(active)
        self._engine.cancel(key)
        self._tell_load()

    def fence(self, key: AttemptKey) -> None:
        """Running attempts below end with Failure(FENCED), so that their listeners learn of it."""
        self._fences.raise_to(key)
        for active in list(self._active.values()):
            other = active.work.key
            if other.request_id == key.request_id and other.attempt_no < key.attempt_no:
                self._engine.cancel(other)
                self._end(active, Failure(Cause.FENCED, "a higher attempt took over"))

    # --- inside ---

    def _is_fuller_than(self, most_ahead: int) -> bool:
        """No free slot, and more sequences than that."""
        load = self._engine.load()
        return load.running >= self._usable_slots(load) and load.running + load.queued > most_ahead

    def _usable_slots(self, load: EngineLoad) -> int:
        return load.usable_slots or (self._info.slots if self._info is not None else 0)

    async def _consume(self) -> None:
        try:
            async for batch in self._engine.steps():
                self._dispatch(batch)
        except Exception:
            logger.exception("the engine's steps ended with an error")
        self._engine_ended = True
        for active in list(self._active.values()):
            self._end(active, Failure(Cause.INTERNAL, "the engine ended"))
        self._tell_load()

    def _dispatch(self, batch: StepBatch) -> None:
        shares: list[tuple[NodeListener, list[SequenceOutput]]] = []
        by_id: dict[int, list[SequenceOutput]] = {}
        ended = False
        for output in batch.outputs:
            active = self._active.get(output.key)
            if active is None:
                continue
            active.next_index = output.first_index + output.count
            if output.finish is not None:
                ended = True
                self._forget(active)
            if active.listener is None:
                continue
            share = by_id.get(id(active.listener))
            if share is None:
                share = by_id[id(active.listener)] = []
                shares.append((active.listener, share))
            share.append(output)
        for listener, outputs in shares:
            self._guarded(listener, "deliver", listener.deliver, outputs)
        if ended or self._readiness_changed():
            self._tell_load()
        self._plan_cache_report()

    def _end(self, active: _Active, failure: Failure) -> None:
        """Ends one sequence towards its listener; the engine has forgotten it or will."""
        self._forget(active)
        if active.listener is not None:
            usage = Usage(completion_tokens=active.next_index - active.work.start_index)
            output = SequenceOutput(active.work.key, active.next_index, finish=Finish(failure, usage))
            self._guarded(active.listener, "deliver", active.listener.deliver, [output])
        self._tell_load()

    def _deadline(self, key: AttemptKey) -> None:
        active = self._active.get(key)
        if active is not None:
            self._engine.cancel(key)
            self._end(active, Failure(Cause.DEADLINE, "the hard deadline passed"))

    def _forget(self, active: _Active) -> None:
        active.cancel_timers()
        if self._active.pop(active.work.key, None) is not None:
            self._fences.ended(active.work.key)
        if not self._active:
            self._empty.set()

    def _tell_load(self) -> None:
        for listener in list(self._listeners):
            self._guarded(listener, "load_changed", listener.load_changed)

    def _guarded(self, listener: NodeListener, what: str, call: Callable[..., None], *args: object) -> None:
        """A boundary: one broken listener must not hurt the others."""
        try:
            call(*args)
        except Exception:
            logger.exception("a listener failed in %s and is dropped", what)
            self.detach(listener)

    def _plan_cache_report(self) -> None:
        if self._cache_timer is None:
            loop = asyncio.get_running_loop()
            self._cache_timer = loop.call_later(CACHE_REPORT_S, self._report_cache)

    def _report_cache(self) -> None:
        self._cache_timer = None
        delta = self._engine.cache_changes()
        if delta is None:
            return
        for listener in list(self._listeners):
            self._guarded(listener, "cache_changed", listener.cache_changed, delta)

    def _readiness_changed(self) -> bool:
        load = self._engine.load()
        was = self._was_ready, self._was_asleep
        self._was_ready, self._was_asleep = load.ready, load.wake_ms > 0.0
        return was != (self._was_ready, self._was_asleep)

    async def _watch_readiness(self) -> None:
        """An engine may crash and come back while nothing runs: then no step tells of it."""
        while True:
            await asyncio.sleep(READY_POLL_S if self._was_ready else NOT_READY_POLL_S)
            if self._readiness_changed():
                self._tell_load()
                self._plan_cache_report()
