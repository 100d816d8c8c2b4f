"""Whether answers held to a JSON schema are valid, and what holding them costs.

Schemas are drawn from a seed; the real model answers each, half of them greedily and half at temperature 1.
A judge that shares no code with the grammars reads the answers. The cost is the time per token of the same
requests with and without a schema, one after the other, alone in the engine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import CannotMeasure, Row, row, run
from benchmarks.structured.judge import faults
from benchmarks.structured.schemas import draw_schema
from serving.engines.base import EngineUnavailable
from serving.engines.llama_cpp.bundled import MODEL, default_models_dir
from serving.engines.llama_cpp.engine import LlamaCppEngine
from serving.engines.llama_cpp.settings import LlamaCppSettings
from tidegate.routing.domain import (
    AttemptKey,
    Failure,
    FinishReason,
    InputKind,
    Message,
    OutputFormat,
    Role,
    Sampling,
    Work,
)
from tidegate.routing.prefix import canonical_bytes

MAX_TOKENS = 400
PROMPT = "Answer with one JSON object that is valid against this schema: "
COST_TRIES, COST_TOKENS = 12, 48


@dataclass(slots=True)
class Answer:
    schema: dict[str, Any]
    text: str = ""
    tokens: int = 0
    result: FinishReason | Failure | None = None


@dataclass(slots=True)
class Engine:
    """The engine, and the answers that are under way in it."""

    inner: LlamaCppEngine
    answers: dict[AttemptKey, Answer] = field(default_factory=dict)
    ended: dict[AttemptKey, asyncio.Event] = field(default_factory=dict)

    async def read(self) -> None:
        async with aclosing(self.inner.steps()) as steps:  # type: ignore[type-var]
            async for batch in steps:
                for output in batch.outputs:
                    answer = self.answers[output.key]
                    answer.text += output.text
                    answer.tokens += output.count
                    if output.finish is not None:
                        answer.result = output.finish.result
                        self.ended[output.key].set()

    async def ask(self, number: int, schema: dict[str, Any], sampling: Sampling, **work: Any) -> Answer:
        text = PROMPT + json.dumps(schema, ensure_ascii=False)[:1500]
        key = AttemptKey(f"r{number}", 1)
        answer = self.answers[key] = Answer(schema)
        self.ended[key] = asyncio.Event()
        data = canonical_bytes((Message(Role.USER, text),))
        self.inner.submit(Work(key, "bench", "", InputKind.CHAT, data, sampling, **work))
        await self.ended[key].wait()
        return answer


async def measure() -> list[Row]:
    parser = argparse.ArgumentParser(description="answers held to JSON schemas")
    parser.add_argument("--schemas", type=int, default=200, help="schemas to try (default 200)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the schemas (default 1)")
    args = parser.parse_args()
    path = Path(default_models_dir()) / f"{MODEL}.Q4_0.gguf"
    found = sorted(default_models_dir().glob("*Q4_0.gguf"))
    path = path if path.exists() or not found else found[0]
    inner = LlamaCppEngine(LlamaCppSettings(model_path=path, model=MODEL, slots=4, threads=2))
    try:
        await inner.start()
    except EngineUnavailable as error:
        raise CannotMeasure(str(error)) from error
    engine = Engine(inner)
    reader = asyncio.create_task(engine.read())
    try:
        answers = await _answers(engine, args.schemas, random.Random(args.seed))
        free_ms, held_ms = await _cost(engine, random.Random(args.seed))
    finally:
        await inner.stop(0.0)
        await reader
    return [*_judged(answers), *_costs(free_ms, held_ms)]


async def _answers(engine: Engine, count: int, rng: random.Random) -> list[Answer]:
    schemas = [draw_schema(rng) for _ in range(count)]
    free = asyncio.Semaphore(8)

    async def one(number: int) -> Answer:
        sampling = Sampling(temperature=0.0) if number % 2 else Sampling(temperature=1.0, seed=number)
        format = OutputFormat(json_schema=json.dumps(schemas[number], ensure_ascii=False))
        async with free:
            return await engine.ask(number, schemas[number], sampling, max_tokens=MAX_TOKENS, format=format)

    return list(await asyncio.gather(*(one(number) for number in range(count))))


def _judged(answers: list[Answer]) -> list[Row]:
    stopped = [a for a in answers if a.result is FinishReason.STOP]
    lengths = [a for a in answers if a.result is FinishReason.LENGTH]
    failed = len(answers) - len(stopped) - len(lengths)
    invalid = 0
    for answer in stopped:
        wrong = _faults(answer)
        if wrong:
            invalid += 1
            print(
                f"  invalid ({wrong}): {answer.text[:200]}\n    {json.dumps(answer.schema)[:300]}",
                file=sys.stderr,
            )
    for answer in lengths:
        print(f"  ended by length: {answer.text[:120]}...", file=sys.stderr)
    count = len(answers)
    return [
        row(
            f"{count} schemas: answers valid among those that ended by themselves",
            100.0 * (len(stopped) - invalid) / max(len(stopped), 1),
            "%",
            bar=100.0,
            sense=">=",
        ),
        row("answers that ended by length", 100.0 * len(lengths) / count, "%", bar=5.0),
        row("requests that failed", failed, "", bar=0, sense="=="),
        row("tokens per answer, mean", statistics.fmean(a.tokens for a in answers), ""),
    ]


def _faults(answer: Answer) -> str:
    try:
        value = json.loads(answer.text)
    except ValueError as error:
        return f"no JSON: {error}"
    return ", ".join(faults(value, answer.schema, answer.schema))


async def _cost(engine: Engine, rng: random.Random) -> tuple[list[float], list[float]]:
    """Milliseconds per token, without and with a schema, in pairs."""
    schema = {"type": "object", "properties": {"story": {"type": "string"}}, "required": ["story"]}
    format = OutputFormat(json_schema=json.dumps(schema))
    free_ms, held_ms = [], []
    for number in range(COST_TRIES):
        for each, times, place in ((OutputFormat(), free_ms, 0), (format, held_ms, 1)):
            sampling = Sampling(temperature=1.0, seed=rng.randrange(2**31))
            began = time.monotonic()
            name = 1_000_000 + 2 * number + place
            answer = await engine.ask(name, schema, sampling, max_tokens=COST_TOKENS, format=each)
            times.append((time.monotonic() - began) * 1000 / max(answer.tokens, 1))
    return free_ms, held_ms


def _costs(free_ms: list[float], held_ms: list[float]) -> list[Row]:
    ratio = statistics.median(h / f for f, h in zip(free_ms, held_ms, strict=True))
    return [
        row("a token without a schema, one stream, median", statistics.median(free_ms), "ms"),
        row("a token with one, median", statistics.median(held_ms), "ms"),
        row("with by without, median of pairs", ratio, ""),
    ]


if __name__ == "__main__":
    sys.exit(run("structured", measure))
