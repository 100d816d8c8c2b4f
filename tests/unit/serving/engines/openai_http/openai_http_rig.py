"""An engine in front of a stub, and what it gave."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from openai_stub import Stub

from serving.engines.base import EngineInfo
from serving.engines.openai_http import OpenAiHttpEngine, OpenAiHttpSettings
from tidegate.routing.domain import (
    AttemptKey,
    Cause,
    Failure,
    Finish,
    InputKind,
    Message,
    Role,
    Sampling,
    SequenceOutput,
    Speeds,
    Variant,
    Work,
)
from tidegate.routing.prefix import canonical_bytes

WAIT_S = 5.0
VARIANT = Variant("m", "d", context_tokens=1000)
_numbers = itertools.count(1)


def settings(stub: Stub, **more: Any) -> OpenAiHttpSettings:
    """Short intervals; timeouts long enough not to bite unless a test shortens them."""
    values: dict[str, Any] = {
        "base_url": stub.url,
        "variant": VARIANT,
        "speeds": Speeds(1000.0, ((1, 50.0),)),
        "slots": 2,
        "queue_limit": 2,
        "start_timeout_s": 0.3,
        "health_interval_s": 0.02,
        "metrics_interval_s": 0.02,
    }
    return OpenAiHttpSettings(**{**values, **more})


def work(text: str = "secret prompt", **more: Any) -> Work:
    values: dict[str, Any] = {
        "key": AttemptKey(f"r{next(_numbers)}", 1),
        "tenant": "t",
        "variant_digest": "d",
        "input_kind": InputKind.CHAT,
        "input": canonical_bytes([Message(Role.USER, text)]),
        "sampling": Sampling(temperature=0.0),
        "max_tokens": 50,
    }
    return Work(**{**values, **more})


class Rig:
    def __init__(self, engine: OpenAiHttpEngine, info: EngineInfo) -> None:
        self.engine = engine
        self.info = info
        self.outputs: dict[AttemptKey, list[SequenceOutput]] = {}
        self._changed = asyncio.Event()
        self.task = asyncio.create_task(self._consume())

    async def _consume(self) -> None:
        async for batch in self.engine.steps():
            for output in batch.outputs:
                self.outputs.setdefault(output.key, []).append(output)
            self._changed.set()

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Also for what is not an output: looked at every few milliseconds."""
        async with asyncio.timeout(WAIT_S):
            while not predicate():
                await asyncio.sleep(0.003)

    async def run(self, given: Work) -> Finish:
        self.engine.submit(given)
        return await self.finish(given)

    async def finish(self, given: Work) -> Finish:
        await self.until(lambda: self.finish_of(given) is not None)
        finish = self.finish_of(given)
        assert finish is not None
        return finish

    async def failure(self, given: Work) -> Failure:
        """How `given`, submitted here, fails; never with words of the prompt."""
        result = (await self.run(given)).result
        assert isinstance(result, Failure)
        assert "secret" not in result.detail
        return result

    async def cause(self, given: Work) -> Cause:
        return (await self.failure(given)).cause

    def finish_of(self, given: Work) -> Finish | None:
        outputs = self.outputs.get(given.key)
        return outputs[-1].finish if outputs else None

    def text(self, given: Work) -> str:
        return "".join(output.text for output in self.outputs.get(given.key, []))

    def count(self, given: Work) -> int:
        return sum(output.count for output in self.outputs.get(given.key, []))


@asynccontextmanager
async def running(stub: Stub, **more: Any) -> AsyncIterator[Rig]:
    engine = OpenAiHttpEngine(settings(stub, **more))
    rig = Rig(engine, await engine.start())
    try:
        yield rig
    finally:
        await engine.stop(0.0)
        await rig.task
