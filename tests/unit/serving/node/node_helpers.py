"""An oracle node and a listener that notes what it hears, for the node's unit tests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from serving.engines.oracle import OracleEngine, OracleSettings
from serving.node import NamedIdentity, NodeRuntime
from tidegate.routing.domain import (
    AttemptKey,
    CacheDelta,
    Cause,
    Failure,
    InputKind,
    Sampling,
    SequenceOutput,
    Work,
)
from tidegate.routing.prefix import prefix_names

# looptime asks the policy for a loop around sync tests too, and the policy makes one that nobody closes
# unless a loop (or its absence) was set before.
asyncio.set_event_loop(None)

SETTINGS = OracleSettings(
    model="tide-1b",
    aliases=("tide",),
    slots=2,
    queue_limit=2,
    prefill_tokens_per_s=1000.0,
    decode=((1, 10.0),),
    restart_s=3.0,
    context_tokens=4096,
)
DIGEST = SETTINGS.model_digest
INPUT = b"0123456789" * 4


IDENTITY = NamedIdentity("node-1", "boot-1", "kitchen")


class Listener:
    """Notes every call with the loop's time; `broken` makes one of them raise."""

    def __init__(self, broken: str = "") -> None:
        self.deliveries: list[list[SequenceOutput]] = []
        self.loads: list[float] = []
        self.caches: list[tuple[float, CacheDelta]] = []
        self.broken = broken

    def deliver(self, outputs: Sequence[SequenceOutput]) -> None:
        self._maybe_break("deliver")
        self.deliveries.append(list(outputs))

    def load_changed(self) -> None:
        self._maybe_break("load_changed")
        self.loads.append(asyncio.get_running_loop().time())

    def cache_changed(self, delta: CacheDelta) -> None:
        self._maybe_break("cache_changed")
        self.caches.append((asyncio.get_running_loop().time(), delta))

    def _maybe_break(self, what: str) -> None:
        if self.broken == what:
            raise RuntimeError("a broken listener")

    def of(self, key: AttemptKey) -> list[SequenceOutput]:
        return [output for outputs in self.deliveries for output in outputs if output.key == key]

    def text(self, key: AttemptKey) -> str:
        return "".join(output.text for output in self.of(key))

    def result(self, key: AttemptKey) -> object:
        outputs = self.of(key)
        finish = outputs[-1].finish if outputs else None
        return finish.result if finish else None

    def cause(self, key: AttemptKey) -> Cause | None:
        result = self.result(key)
        return result.cause if isinstance(result, Failure) else None


class Node:
    """A started NodeRuntime over an oracle engine."""

    def __init__(self, settings: OracleSettings = SETTINGS) -> None:
        self.engine = OracleEngine(settings)
        self.runtime = NodeRuntime(self.engine, IDENTITY)

    async def __aenter__(self) -> Node:
        await self.runtime.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.runtime.stop(0.0)

    def listener(self, broken: str = "") -> Listener:
        listener = Listener(broken)
        self.runtime.attach(listener)
        return listener


def work(
    name: str,
    attempt_no: int = 1,
    *,
    data: bytes = INPUT,
    max_tokens: int = 5,
    remaining_ms: float | None = None,
    detach_grace_ms: float = 0.0,
    digest: str = DIGEST,
) -> Work:
    return Work(
        key=AttemptKey(name, attempt_no),
        tenant="default",
        variant_digest=digest,
        input_kind=InputKind.TEXT,
        input=data,
        sampling=Sampling(),
        max_tokens=max_tokens,
        prefix_hashes=prefix_names(data, b"k" * 32),
        remaining_ms=remaining_ms,
        detach_grace_ms=detach_grace_ms,
    )
