"""A gateway and an edge daemon with llama.cpp, asked by an open loop whose rate changes."""

from __future__ import annotations

import asyncio
import math
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil

import tidegate
from benchmarks.calibration.answers import Answer
from benchmarks.common import CannotMeasure
from benchmarks.processes import Programs

# Requests per second, drawn anew every few seconds: from mostly idle to more than the engine can do.
RATES = (2.0, 5.0, 9.0, 13.0, 18.0)
PERIOD_S = (3.0, 9.0)
# Beyond this many open requests none is sent: a queue of minutes would measure itself only.
MOST_OPEN = 24
MEDIAN_WORDS, SIGMA_WORDS, MOST_WORDS = 6, 1.0, 150
ANSWER_TOKENS = (1, 2, 3)
QUANTUM_S = 0.010
WORDS = "a river runs past the old mill and its wide gate to meet an open sea at high tide while boats wait"


class Rig:
    """An async context manager."""

    def __init__(self, model: Path, seed: int) -> None:
        self._programs = Programs()
        self._model = model
        self._rng = random.Random(seed)
        self._open = 0
        self._engine: list[psutil.Process] = []

    async def __aenter__(self) -> Rig:
        engine = f'[engine]\nkind = "llama_cpp"\nmodel = "{self._model}"\nslots = 4\nqueue_limit = 64\n'
        # What is predicted is the queue of the node, so nothing waits in the gateway.
        await self._programs.start_gateway("[queue]\nrequests = 0\n")
        child = await self._programs.start_edge("calibration-edge", engine)
        await self._programs.wait_nodes(1)
        self._engine = psutil.Process(child.pid).children(recursive=True)
        if not self._engine:
            raise CannotMeasure("the engine's process was not found")
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._programs.__aexit__(*exc)

    async def ask(self, count: int, rate: float = 1.0) -> list[Answer]:
        """`count` answers in the order of sending; `rate` scales how often requests come."""
        rng = self._rng
        answers: list[asyncio.Task[Answer]] = []
        change_s, per_s = 0.0, 1.0
        async with tidegate.Client(self._programs.grpc_address) as client, asyncio.TaskGroup() as group:
            while len(answers) < count:
                if time.monotonic() >= change_s:
                    change_s = time.monotonic() + rng.uniform(*PERIOD_S) / rate
                    per_s = rng.choice(RATES) * rate
                await asyncio.sleep(rng.expovariate(per_s))
                if self._open < MOST_OPEN:
                    answers.append(group.create_task(self._one(client)))
        return [task.result() for task in answers]

    async def _one(self, client: tidegate.Client) -> Answer:
        rng = self._rng
        words = WORDS.split()
        length = min(MOST_WORDS, max(2, round(rng.lognormvariate(math.log(MEDIAN_WORDS), SIGMA_WORDS))))
        prompt = " ".join(rng.choice(words) for _ in range(length))
        sent_s, others = time.monotonic(), self._open
        self._open += 1
        try:
            async with client.generate(
                raw_prompt=prompt, max_tokens=rng.choice(ANSWER_TOKENS), deadline_s=300.0
            ) as stream:
                async for _ in stream:
                    pass
        finally:
            self._open -= 1
        answer = stream.completion()
        assert answer.route is not None
        return Answer(
            sent_s=sent_s,
            ttft_ms=answer.timings.ttft_ms,
            p50_ms=answer.route.predicted_ttft_ms,
            p95_ms=answer.route.predicted_ttft_p95_ms,
            prompt_tokens=answer.usage.prompt_tokens,
            open=others,
        )

    @asynccontextmanager
    async def slowed(self, times: int) -> AsyncIterator[None]:
        """The engine computes in one of `times` quanta only."""
        throttling = asyncio.create_task(self._throttle(times))
        try:
            yield
        finally:
            throttling.cancel()
            with suppress(asyncio.CancelledError):
                await throttling

    async def _throttle(self, times: int) -> None:
        try:
            while True:
                self._signal(signal.SIGSTOP)
                await asyncio.sleep(QUANTUM_S * (times - 1))
                self._signal(signal.SIGCONT)
                await asyncio.sleep(QUANTUM_S)
        finally:
            self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._engine:
            process.send_signal(number)
