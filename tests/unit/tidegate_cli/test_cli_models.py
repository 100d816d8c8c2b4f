"""Preparing models: progress is passed on, failure is one line, nothing is left running."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import psutil
import pytest

from tidegate_cli import models
from tidegate_cli.stack import ChildFailed

RESULT = "m.Q4_0.gguf: 92 MB, perplexity 34.12"


def script(source: str) -> list[str]:
    return [sys.executable, "-u", "-c", source]


async def test_progress_is_passed_on_and_results_are_not() -> None:
    said: list[str] = []
    lines = await models._run(script(f"print('quantizing: 10%'); print({RESULT!r})"), said.append)
    assert said == ["  quantizing: 10%"]
    assert lines == ["quantizing: 10%", RESULT]


async def test_failure_is_its_last_line() -> None:
    source = "import sys; print('x', file=sys.stderr); print('needs 300 MB', file=sys.stderr); sys.exit(1)"
    with pytest.raises(ChildFailed, match=r"^preparing the models failed: needs 300 MB$"):
        await models._run(script(source), lambda line: None)


async def test_cancelled_it_leaves_nothing_running() -> None:
    said: list[str] = []
    source = "import os, time; print(os.getpid()); time.sleep(60)"
    running = asyncio.create_task(models._run(script(source), said.append))
    async with asyncio.timeout(20):
        while not said:
            await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not psutil.pid_exists(int(said[0]))


def test_facts_come_from_the_entry_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    Path(f"{path}.json").write_text('{"quantization": "Q4_0", "bytes": 92000000, "perplexity": null}')
    assert models.facts(path) == models.ModelFacts("Q4_0", 92.0, None)
