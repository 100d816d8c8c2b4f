"""A cancel that comes in the very instant in which a wait ends still cancels."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from node_helpers import IDENTITY, SETTINGS

from serving.engines.llama_cpp.engine import LlamaCppEngine
from serving.engines.llama_cpp.settings import LlamaCppSettings
from serving.engines.oracle import OracleEngine
from serving.node import NodeRuntime
from serving.openai_api.lifetime import Answers

pytestmark = pytest.mark.looptime

Case = tuple[asyncio.Event, Callable[[], Awaitable[object]]]


def runtime() -> Case:
    node = NodeRuntime(OracleEngine(SETTINGS), IDENTITY)
    return node._empty, lambda: node.wait_drained(10.0)


def answers() -> Case:
    giving = Answers()
    return giving._none, lambda: giving.stop(10.0)


def oracle() -> Case:
    engine = OracleEngine(SETTINGS)
    return engine._idle, lambda: engine.stop(10.0)


def llama() -> Case:
    engine = LlamaCppEngine(LlamaCppSettings(model_path=Path("m.gguf"), model="m"))
    return engine._idle, lambda: engine.stop(10.0)


@pytest.mark.parametrize("case", [runtime, answers, oracle, llama])
async def test_a_cancel_is_not_lost(case: Callable[[], Case]) -> None:
    awaited, wait = case()
    awaited.clear()
    task = asyncio.ensure_future(wait())
    await asyncio.sleep(1.0)
    awaited.set()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
