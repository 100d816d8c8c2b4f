"""Memory of daemon and engine against llama-server's, at the same slots, context and cache.

Each runs alone with a copy of the model file that nothing else has mapped, answers one prompt in every slot,
and is measured when it is idle again: the proportional share (PSS) of all its processes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import sys
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bench_engine import model_file
from benchmarks.bench_idle import children_of, memory_mb
from benchmarks.common import CannotMeasure, Row, row, run
from benchmarks.engine import scenarios
from benchmarks.engine.drivers import LlamaServer
from benchmarks.engine.tools import llama_tools
from benchmarks.processes import Programs
from serving.engines.llama_cpp.settings import LlamaCppSettings
from tidegate_cli.stack.process import ChildFailed

SLOTS, CONTEXT_TOKENS = 4, 2048
PROMPT_TOKENS, ANSWER_TOKENS = 128, 32
BAR = 1.15
SETTLE_S = 3.0
NAME = "bench"


@dataclass(frozen=True, slots=True)
class Memory:
    """MB of 1,000,000 bytes: the share, and what of it no file backs."""

    pss: float
    anonymous: float

    @classmethod
    def of(cls, pid: int) -> Memory:
        found = memory_mb(pid)
        return cls(found["PSS"], found["anonymous"])


def prompts(seed: int) -> list[str]:
    rng = random.Random(seed)
    return [scenarios.prompt(rng, PROMPT_TOKENS) for _ in range(SLOTS)]


def ask(url: str, prompt: str) -> int:
    """Tokens of one answer of our API."""
    body = {"model": NAME, "prompt": prompt, "max_tokens": ANSWER_TOKENS, "temperature": 0}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120.0) as response:
        return int(json.load(response)["usage"]["completion_tokens"])


async def ours(path: Path, seed: int, *, linked: bool) -> tuple[Memory, Memory]:
    """Of the daemon and of its engine's process."""
    engine = f"""
[engine]
kind = "llama_cpp"
model = {json.dumps(str(path))}
model_name = "{NAME}"
slots = {SLOTS}
context_tokens = {CONTEXT_TOKENS}
[engine.llama_cpp]
threads = {os.cpu_count() or 1}
kv_type = "f16"
"""
    try:
        async with Programs() as programs:
            if linked:
                await programs.start_gateway()
            daemon = await programs.start_edge("bench-edge", engine, linked=linked)
            if linked:
                await programs.wait_nodes(1)
            url = f"http://127.0.0.1:{programs.ports.edge_a}/v1/completions"
            await asyncio.gather(*(asyncio.to_thread(ask, url, text) for text in prompts(seed)))
            await asyncio.sleep(SETTLE_S)
            children = children_of(daemon.pid)
            if len(children) != 1:
                raise CannotMeasure(f"the daemon has {len(children)} processes, not one")
            return Memory.of(daemon.pid), Memory.of(children[0])
    except ChildFailed as error:
        raise CannotMeasure(str(error)) from error


async def theirs(path: Path, seed: int, programs: Path) -> Memory:
    settings = LlamaCppSettings(
        model_path=path, model=NAME, threads=os.cpu_count() or 1, slots=SLOTS, context_tokens=CONTEXT_TOKENS
    )
    log = Path(tempfile.gettempdir()) / f"tidegate-bench-llama-server-{os.getpid()}.log"
    server = LlamaServer(programs / "llama-server", settings, log)
    await server.start()
    try:
        await asyncio.gather(*(server.answer(text, ANSWER_TOKENS) for text in prompts(seed)))
        await asyncio.sleep(SETTLE_S)
        return Memory.of(server.pid)
    finally:
        await server.stop()


async def rows_of(name: str, seed: int, programs: Path) -> list[Row]:
    source = await model_file(name)
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder:
        path = Path(folder) / source.name
        await asyncio.to_thread(shutil.copyfile, source, path)
        server = await theirs(path, seed, programs)
        alone = await ours(path, seed, linked=False)
        linked = await ours(path, seed, linked=True)
    label = f"{name}, {SLOTS} slots of {CONTEXT_TOKENS} tokens"
    rows = [
        row(f"{label}: llama-server", server.pss, "MB"),
        row(f"{label}: llama-server, anonymous", server.anonymous, "MB"),
    ]
    for how, (daemon, child) in (("without a gateway", alone), ("linked", linked)):
        total = daemon.pss + child.pss
        rows.append(row(f"{label}, {how}: by llama-server", total / server.pss, "x", bar=BAR))
        rows.append(row(f"{label}, {how}: daemon", daemon.pss, "MB"))
        rows.append(row(f"{label}, {how}: engine", child.pss, "MB"))
        rows.append(row(f"{label}, {how}: engine, anonymous", child.anonymous, "MB"))
    return rows


async def measure() -> list[Row]:
    parser = argparse.ArgumentParser(description="memory of daemon and engine against llama-server's")
    parser.add_argument("--models", default="Q4_0,random-1.5B", help="comma-separated")
    parser.add_argument("--seed", type=int, default=1, help="seed of the prompts (default 1)")
    args = parser.parse_args()
    programs = await asyncio.to_thread(llama_tools)
    rows: list[Row] = []
    for name in args.models.split(","):
        rows += await rows_of(name, args.seed, programs)
    return rows


if __name__ == "__main__":
    sys.exit(run("memory", measure))
