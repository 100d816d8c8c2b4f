"""Our engine and llama-server on one model, with the same slots, context, threads and weights."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

from benchmarks.common import CannotMeasure
from benchmarks.engine import scenarios
from benchmarks.engine.drivers import Driver, LlamaServer, OurEngine
from benchmarks.engine.kept import Kept
from benchmarks.engine.replay import TRACE, read_blocks
from serving.engines.llama_cpp.gguf_check import read_gguf
from serving.engines.llama_cpp.settings import LlamaCppSettings
from serving.engines.llama_cpp.variants.plan import Load, Shape, budget_of, model_bytes


class Pair:
    """`parks` gives llama-server as much cache outside its slots as our engine takes for parked prefixes.

    `flash` tells it whether to use flash attention; "" leaves it the choice.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        programs: Path,
        kept: Kept,
        *,
        slots: int,
        context_tokens: int,
        threads: int,
        seed: int,
        parks: bool = False,
        flash: str = "",
        gpu_layers: int = 0,
    ) -> None:
        self.name, self.path, self.threads, self.gpu_layers = name, path, threads, gpu_layers
        self._kept, self._seed, self._running = kept, seed, slots > 0
        settings = LlamaCppSettings(
            model_path=path,
            model="bench",
            threads=threads,
            # The same number for both: ours would take fewer because of what the other one has just used.
            adapt_threads=False,
            slots=max(slots, 1),
            context_tokens=max(context_tokens, 256),
            queue_limit=slots,
            n_gpu_layers=gpu_layers,
        )
        log = Path(tempfile.gettempdir()) / f"tidegate-bench-llama-server-{os.getpid()}.log"
        cache_mib = parked_mib(path, settings) if parks else 0
        self.ours = OurEngine(settings)
        program = programs / "llama-server"
        self.theirs = LlamaServer(program, settings, log, cache_mib=cache_mib, flash=flash)

    async def __aenter__(self) -> Pair:
        try:
            if self._running:
                await self.ours.start()
                await self.theirs.start()
                await check_words(self.theirs)
                await self.theirs.answer("tide", 8)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._running:
            await self.ours.stop()
            await self.theirs.stop()

    def rng_of(self, number: int) -> random.Random:
        """Of one round."""
        return random.Random(self._seed * 1000 + number)

    def in_turn(self, number: int) -> tuple[Driver, Driver]:
        """Every round begins with the other one."""
        return (self.ours, self.theirs) if number % 2 == 0 else (self.theirs, self.ours)

    async def lasting(self, count: int) -> list[str]:
        """Prompts whose answers do not end early, found once per model."""
        found = self._kept.rounds(f"prompts {self.name}")
        if not found:
            prompts = await scenarios.lasting_prompts(self.ours, random.Random(self._seed), count)
            if len(prompts) < count:
                raise CannotMeasure(f"{self.name}: its answers end too early to be measured")
            self._kept.add(f"prompts {self.name}", {"prompts": prompts})
            found = self._kept.rounds(f"prompts {self.name}")
        prompts = found[0]["prompts"]
        return list(prompts)


def trace() -> list[tuple[int, ...]]:
    """The prompts of the recorded trace under $DATA. Raises CannotMeasure."""
    data = os.environ.get("DATA")
    if not data:
        raise CannotMeasure("set DATA to the folder that holds traces/, or leave hits out of --parts")
    return read_blocks(Path(data) / TRACE)


def parked_mib(path: Path, settings: LlamaCppSettings) -> int:
    """As much as the slots' own cache: what our engine parks where the device has memory for it."""
    shape = Shape.of(read_gguf(path), model_bytes(path))
    budget = budget_of(shape, Load(settings.slots, settings.context_tokens))
    return budget.slots * budget.cache_per_slot // 2**20


async def check_words(server: LlamaServer) -> None:
    """Prompts are counted in words: each must be one token."""
    sample = " ".join(scenarios.WORDS)
    count = await server.tokens_of(sample)
    if abs(count - len(scenarios.WORDS)) > 2:
        raise CannotMeasure(f"{len(scenarios.WORDS)} words are {count} tokens of this model")
