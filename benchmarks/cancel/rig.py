"""A real node inside the benchmark's process, so that what happens at its engine can be stamped.

The proof that a running sequence is gone is not the node's word: another one waits for its slot, and the slot
is free when that one is admitted. A slot is only taken at a step's boundary, so the rest of the step that was
under way is in the figure.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from serving.engines.base import Engine
from serving.node import NamedIdentity, NodeRuntime
from tidegate.link.client import LinkClient, LinkCredentials
from tidegate.link.seam import NodeListener
from tidegate.routing.domain import (
    Announcement,
    AttemptKey,
    CacheDelta,
    InputKind,
    NodeLoad,
    Sampling,
    SequenceOutput,
    Work,
)

STOP_S = 3.0
ENDLESS_TOKENS = 1 << 20


class ProbedNode:
    """Implements NodeService over a NodeRuntime and stamps work and cancels as they reach the node."""

    def __init__(self, runtime: NodeRuntime) -> None:
        self._runtime = runtime
        self.arrived: asyncio.Queue[Work] = asyncio.Queue()
        self.on_submit: Callable[[Work], None] = lambda work: None
        # Per key: when the cancel had taken effect here, and the load right before and after it.
        self.cancelled: dict[AttemptKey, tuple[float, NodeLoad, NodeLoad]] = {}
        self.cancel_seen = asyncio.Event()

    def announcement(self) -> Announcement:
        return self._runtime.announcement()

    def load(self) -> NodeLoad:
        return self._runtime.load()

    def cache_full(self) -> CacheDelta:
        return self._runtime.cache_full()

    def attach(self, listener: NodeListener) -> None:
        self._runtime.attach(listener)

    def detach(self, listener: NodeListener) -> None:
        self._runtime.detach(listener)

    def submit(self, listener: NodeListener, work: Work) -> None:
        self._runtime.submit(listener, work)
        self.on_submit(work)
        self.arrived.put_nowait(work)

    def cancel(self, key: AttemptKey) -> None:
        before = self._runtime.load()
        self._runtime.cancel(key)
        self.cancelled[key] = (time.monotonic(), before, self._runtime.load())
        self.cancel_seen.set()

    def fence(self, key: AttemptKey) -> None:
        self._runtime.fence(key)

    def drain(self) -> None:
        self._runtime.drain()


@dataclass(slots=True)
class Local:
    """A sequence of the benchmark itself on the node: keeps a slot busy, or waits for one."""

    runtime: NodeRuntime
    work: Work
    repeat: bool = False
    outputs_s: list[float] = field(default_factory=list)
    first_token_s: float = 0.0
    prefill_ms: float = 0.0
    started: asyncio.Event = field(default_factory=asyncio.Event)
    _turns: itertools.count[int] = field(default_factory=lambda: itertools.count(2))

    def start(self) -> None:
        self.runtime.attach(self)
        self.runtime.submit(self, self.work)

    def stop(self) -> None:
        self.repeat = False
        self.runtime.cancel(self.work.key)
        self.runtime.detach(self)

    def deliver(self, outputs: Sequence[SequenceOutput]) -> None:
        now_s = time.monotonic()
        for output in outputs:
            self.outputs_s.append(now_s)
            if output.first_token is not None and not self.started.is_set():
                self.first_token_s, self.prefill_ms = now_s, output.first_token.prefill_ms
                self.started.set()
            if output.finish is not None and self.repeat:
                self.work = replace(self.work, key=replace(self.work.key, attempt_no=next(self._turns)))
                asyncio.get_running_loop().call_soon(self._again)

    def _again(self) -> None:
        if self.repeat:
            self.runtime.submit(self, self.work)

    def load_changed(self) -> None:
        pass

    def cache_changed(self, delta: CacheDelta) -> None:
        pass


class Rig:
    """The node, its link to the gateway and the sequences that keep all but one slot busy."""

    def __init__(self, engine: Engine, gateway: str, *, busy: int) -> None:
        self.runtime = NodeRuntime(engine, NamedIdentity("bench-node", "boot-1", "bench-node"))
        self.node = ProbedNode(self.runtime)
        self._busy = busy
        self._gateway = gateway
        self._names = itertools.count()
        self._link: LinkClient | None = None
        self._linking: asyncio.Task[None] | None = None
        self.fillers: list[Local] = []

    async def start(self) -> None:
        """Raises EngineUnavailable."""
        await self.runtime.start()
        epochs = itertools.count(1)
        credentials = LinkCredentials(next_link_epoch=lambda: next(epochs))
        self._link = LinkClient(
            self.node, self._gateway, credentials, clock=time.monotonic, rng=random.random
        )
        self._linking = asyncio.create_task(self._link.run())
        for _ in range(self._busy):
            self.fillers.append(self.local(ENDLESS_TOKENS, repeat=True))
        await asyncio.gather(*(filler.started.wait() for filler in self.fillers))

    async def stop(self) -> None:
        for filler in self.fillers:
            filler.stop()
        if self._link is not None and self._linking is not None:
            await self._link.stop(1.0)
        await self.runtime.stop(0.0)

    def local(self, max_tokens: int, *, repeat: bool = False) -> Local:
        """A started sequence of our own, with a short input that no cache knows."""
        name = f"local-{next(self._names)}"
        work = Work(
            key=AttemptKey(name, 1),
            tenant="bench",
            variant_digest=self.runtime.info.variants[0].digest,
            input_kind=InputKind.TEXT,
            input=f"{name} {random.random()} and".encode(),
            sampling=Sampling(),
            max_tokens=max_tokens,
        )
        local = Local(self.runtime, work, repeat=repeat)
        local.start()
        return local

    def step_ms(self) -> float:
        """Median time between two tokens of the sequences that ran all along: one decode step."""
        gaps = sorted(
            (later - earlier) * 1000
            for filler in self.fillers
            for earlier, later in itertools.pairwise(filler.outputs_s)
        )
        return gaps[len(gaps) // 2]

    async def settled(self) -> None:
        """Until only the busy ones run."""
        while True:
            load = self.runtime.load()
            if load.running <= self._busy and not load.queued:
                return
            await asyncio.sleep(0.002)
