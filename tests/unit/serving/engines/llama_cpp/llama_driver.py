"""A small driver around a real engine."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from serving.engines.base import EngineInfo
from serving.engines.llama_cpp.engine import LlamaCppEngine
from serving.engines.llama_cpp.settings import LlamaCppSettings
from tidegate.routing.domain import (
    AttemptKey,
    Finish,
    FirstToken,
    InputKind,
    Message,
    Role,
    Sampling,
    SequenceOutput,
    Work,
)
from tidegate.routing.prefix import canonical_bytes, prefix_names

GREEDY = Sampling(temperature=0.0)


class Driver:
    """A started engine whose outputs are kept by request."""

    def __init__(self, settings: LlamaCppSettings) -> None:
        self.engine = LlamaCppEngine(settings)
        self.outputs: dict[AttemptKey, list[SequenceOutput]] = {}
        self._numbers = itertools.count(1)
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> EngineInfo:
        info = await self.engine.start()
        self._task = asyncio.create_task(self._consume())
        return info

    async def stop(self) -> None:
        await self.engine.stop(0.0)
        if self._task is not None:
            await asyncio.wait_for(self._task, 5.0)

    async def _consume(self) -> None:
        async for batch in self.engine.steps():
            async with self._changed:
                for output in batch.outputs:
                    self.outputs.setdefault(output.key, []).append(output)
                self._changed.notify_all()

    def submit(
        self,
        text: str = "Once upon a time",
        *,
        chat: tuple[Message, ...] = (),
        max_tokens: int = 16,
        sampling: Sampling = GREEDY,
        tenant: str = "t",
        input_kind: InputKind | None = None,
        **changes: object,
    ) -> AttemptKey:
        data = canonical_bytes(chat) if chat else text.encode()
        work = Work(
            key=AttemptKey(f"r{next(self._numbers)}", 1),
            tenant=tenant,
            variant_digest="",
            input_kind=input_kind or (InputKind.CHAT if chat else InputKind.TEXT),
            input=data,
            sampling=sampling,
            max_tokens=max_tokens,
            prefix_hashes=prefix_names(data, tenant.encode()),
            **changes,  # type: ignore[arg-type]
        )
        self.engine.submit(work)
        return work.key

    async def until(self, predicate: Callable[[], bool], timeout_s: float = 30.0) -> None:
        async with self._changed:
            await asyncio.wait_for(self._changed.wait_for(predicate), timeout_s)

    async def finish(self, key: AttemptKey, timeout_s: float = 30.0) -> Finish:
        await self.until(
            lambda: bool(self.outputs.get(key)) and bool(self.outputs[key][-1].finish), timeout_s
        )
        finish = self.outputs[key][-1].finish
        assert finish is not None
        return finish

    async def ready(self, timeout_s: float = 30.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not self.engine.load().ready:
                await asyncio.sleep(0.01)

    async def until_gone(self, timeout_s: float = 10.0) -> None:
        """Until the engine has noticed that its child is gone."""
        async with asyncio.timeout(timeout_s):
            while self.engine.load().ready:
                await asyncio.sleep(0.002)

    def tokens(self, key: AttemptKey) -> tuple[int, ...]:
        return tuple(token for output in self.outputs[key] for token in output.token_ids)

    def text(self, key: AttemptKey) -> str:
        return "".join(output.text for output in self.outputs[key])

    def first(self, key: AttemptKey) -> FirstToken:
        return next(output.first_token for output in self.outputs[key] if output.first_token is not None)


def user(text: str) -> Message:
    return Message(Role.USER, text)
