"""An engine with every output kept: what came for whom, in which order, and what came after a cancel."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
from collections.abc import Callable

from benchmarks.common import CannotMeasure
from benchmarks.engine.drivers import GREEDY
from serving.engines.base import Engine, EngineUnavailable
from tidegate.routing.domain import (
    AttemptKey,
    Finish,
    InputKind,
    OutputFormat,
    SequenceOutput,
    TokenLogprob,
    Work,
)

_LIMIT_S = 60.0
PLAIN = OutputFormat()


class Watched:
    """One engine. `batches` counts steps that gave anybody anything.

    `late` counts outputs of cancelled sequences; `measure_s` is how long the child measured its speeds.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.outputs: dict[AttemptKey, list[SequenceOutput]] = {}
        self.late: dict[AttemptKey, int] = {}
        self.batches = 0
        self.measure_s = 0.0
        self.digest = ""
        self._open: set[AttemptKey] = set()
        self._cancelled: set[AttemptKey] = set()
        self._numbers = itertools.count(1)
        self._changed = asyncio.Condition()
        self._consumer: asyncio.Task[None] | None = None

    async def start(self) -> None:
        log = logging.getLogger("serving.engines.llama_cpp.engine")
        log.setLevel(logging.INFO)
        log.addFilter(self._note_ready)
        try:
            self.digest = (await self.engine.start()).variants[0].digest
        except EngineUnavailable as error:
            raise CannotMeasure(str(error)) from error
        finally:
            log.removeFilter(self._note_ready)
        self._consumer = asyncio.create_task(self._consume(), name="watched-steps")

    def _note_ready(self, record: logging.LogRecord) -> bool:
        """The engine tells the time in its log only."""
        found = re.search(r"measured in (\d+) ms", record.getMessage())
        if found:
            self.measure_s = int(found[1]) / 1000.0
        return True

    async def stop(self) -> None:
        await self.engine.stop(0.0)
        if self._consumer is not None:
            await self._consumer

    async def _consume(self) -> None:
        async for batch in self.engine.steps():
            self.batches += 1
            async with self._changed:
                for output in batch.outputs:
                    self._take(output)
                self._changed.notify_all()

    def _take(self, output: SequenceOutput) -> None:
        if output.key in self._cancelled:
            self.late[output.key] = self.late.get(output.key, 0) + 1
        self.outputs.setdefault(output.key, []).append(output)
        if output.finish is not None:
            self._open.discard(output.key)

    def submit(
        self,
        text: str,
        tokens: int,
        *,
        after: tuple[int, ...] = (),
        top_logprobs: int | None = None,
        format: OutputFormat = PLAIN,
    ) -> AttemptKey:
        """`after`: the answer's first tokens, given instead of computed."""
        number = next(self._numbers)
        work = Work(
            key=AttemptKey(f"bench{number}", 1),
            # Tenants share nothing: nothing is found in the cache.
            tenant=f"fresh{number}",
            variant_digest=self.digest,
            input_kind=InputKind.TEXT,
            input=text.encode(),
            sampling=GREEDY,
            max_tokens=tokens,
            start_index=len(after),
            replay_token_ids=after,
            top_logprobs=top_logprobs,
            format=format,
        )
        self.engine.submit(work)
        self._open.add(work.key)
        return work.key

    def cancel(self, key: AttemptKey) -> bool:
        """False when it had ended by itself already."""
        self._cancelled.add(key)
        self.engine.cancel(key)
        was_open = key in self._open
        self._open.discard(key)
        return was_open

    @property
    def cancelled_are_free(self) -> bool:
        """No more sequences are in the engine than those that nobody cancelled."""
        load = self.engine.load()
        return load.running + load.queued <= len(self._open)

    async def until(self, predicate: Callable[[], bool]) -> None:
        async with self._changed, asyncio.timeout(_LIMIT_S):
            await self._changed.wait_for(predicate)

    def finishes(self, key: AttemptKey) -> list[Finish]:
        return [output.finish for output in self.outputs.get(key, ()) if output.finish is not None]

    def contiguous(self, key: AttemptKey) -> bool:
        """Each output begins where the one before it ended, the first at 0."""
        index = 0
        for output in self.outputs[key]:
            if output.first_index != index:
                return False
            index += output.count
        return True

    def logprobs(self, key: AttemptKey) -> tuple[TokenLogprob, ...]:
        return tuple(each for output in self.outputs[key] for each in output.logprobs)

    def tokens(self, key: AttemptKey) -> tuple[int, ...]:
        return tuple(token for output in self.outputs[key] for token in output.token_ids)
