"""Launching again and again, on virtual time and with children that are only scripts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving.engines.base import EngineRefused, EngineUnavailable
from serving.engines.llama_cpp import engine as engine_module
from serving.engines.llama_cpp.engine import LlamaCppEngine
from serving.engines.llama_cpp.protocol import ProtocolError
from serving.engines.llama_cpp.settings import LlamaCppSettings
from tidegate.routing.domain import AttemptKey, InputKind, Sampling, Work

pytestmark = pytest.mark.looptime

READY = {
    "t": "ready",
    "speeds": [1.0, [[1, 1.0]]],
    "context_tokens": 512,
    "load_ms": 1.0,
    "measure_ms": 1.0,
    "repacked_bytes": 1,
    "threads": 1,
    "speeds_age_s": 0.0,
}
WORK = Work(AttemptKey("r", 1), "t", "", InputKind.TEXT, b"x", Sampling(), 8)
Step = dict[str, Any] | Exception | float | None


class ScriptedChild:
    """Plays its script: a frame, an error, a pause in seconds, or None for the end of the process."""

    pid = 4711
    scripts: list[list[Step]] = []  # noqa: RUF012
    spawned_s: list[float] = []  # noqa: RUF012
    alive = 0

    def __init__(self, script: list[Step]) -> None:
        self._script = script
        self._ended = False
        ScriptedChild.alive += 1

    @classmethod
    async def spawn(cls, *_: object, **__: object) -> ScriptedChild:
        cls.spawned_s.append(asyncio.get_running_loop().time())
        return cls(cls.scripts.pop(0))

    async def receive(self) -> dict[str, Any] | None:
        while self._script:
            step = self._script.pop(0)
            if isinstance(step, float):
                await asyncio.sleep(step)
            elif isinstance(step, Exception):
                raise step
            else:
                return step
        await asyncio.Event().wait()
        raise AssertionError

    def send(self, frame: dict[str, Any]) -> None:
        """Nobody listens."""

    async def end(self, grace_s: float) -> int:
        assert not self._ended
        self._ended = True
        ScriptedChild.alive -= 1
        return -9

    def kill(self) -> None:
        """Its script decides when it ends."""


async def found(*_: object) -> SimpleNamespace:
    """What is known of the file, whoever asks."""
    return SimpleNamespace(digest="digest", quantization="Q4_0")


Play = Callable[..., Any]


@pytest.fixture
async def play(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Play]:
    """Starts an engine whose children play the given scripts, as start() does after the file's checks."""
    engines: list[LlamaCppEngine] = []

    async def started(*scripts: list[Step]) -> LlamaCppEngine:
        ScriptedChild.scripts, ScriptedChild.spawned_s, ScriptedChild.alive = list(scripts), [], 0
        monkeypatch.setattr(engine_module, "ChildProcess", ScriptedChild)
        monkeypatch.setattr(engine_module, "describe", lambda *_: None)
        # What start() asks of the file, which does not exist.
        monkeypatch.setattr(asyncio, "to_thread", found)
        settings = LlamaCppSettings(model_path=Path("m.gguf"), model="m", restart_backoff_max_s=2.0)
        engine = LlamaCppEngine(settings, asyncio.get_running_loop().time)
        engines.append(engine)
        await engine.start()
        return engine

    yield started
    for engine in engines:
        await engine.stop(0.0)
    assert ScriptedChild.alive == 0


@pytest.mark.parametrize(
    "first",
    [
        ProtocolError("a frame has no type"),
        {"t": "ready"},
        READY | {"speeds": [1.0]},
        READY | {"context_tokens": "many"},
        READY | {"load_ms": None, "speeds": 7},
        {"t": "failed"},
        None,
    ],
)
async def test_a_relaunch_that_fails_in_any_way_is_tried_again(play: Play, first: Step) -> None:
    engine = await play([READY, 1.0, None], [first], [first], [READY])
    await asyncio.sleep(0.5)
    assert engine.load().ready
    await asyncio.sleep(0.6)
    assert not engine.load().ready
    await asyncio.sleep(5.0)
    assert engine.load().ready
    assert ScriptedChild.alive == 1
    waits = [b - a for a, b in zip(ScriptedChild.spawned_s, ScriptedChild.spawned_s[1:], strict=False)]
    assert waits == pytest.approx([1.0, 0.5, 1.0], abs=0.1)  # at once, then with growing pauses


async def test_a_first_start_that_cannot_be_used_says_so(play: Play) -> None:
    with pytest.raises(EngineUnavailable, match="first frame that cannot be used \\(KeyError\\)"):
        await play([{"t": "ready"}])


@pytest.mark.parametrize("name", ["llama-supervise", "llama-watch"])
async def test_a_supervision_that_ends_is_noticed_by_who_reads_the_steps(
    play: Play, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    defect = ZeroDivisionError("a defect")
    if name == "llama-supervise":
        engine = await play([READY, 1.0, defect])
    else:

        async def broken(self: LlamaCppEngine) -> None:
            await asyncio.sleep(1.0)
            raise defect

        monkeypatch.setattr(LlamaCppEngine, "_watch", broken)
        engine = await play([READY])
    async with asyncio.timeout(2.0):
        assert [batch async for batch in engine.steps()] == []
    assert not engine.load().ready
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert name in record.getMessage()


async def test_a_stop_is_no_defect(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    engine = await play([READY])
    await engine.stop(0.0)
    assert [batch async for batch in engine.steps()] == []
    assert not [r for r in caplog.records if r.levelno == logging.ERROR]


async def test_a_model_that_crash_loops_rests_and_says_so(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await play([READY, 1.0, None], *([READY, None] for _ in range(4)), [READY])
    await asyncio.sleep(30.0)
    assert len(ScriptedChild.spawned_s) == 5
    assert not engine.load().ready
    with pytest.raises(EngineRefused, match="quarantine"):
        engine.submit(WORK)
    assert "5 times without one answer" in caplog.text
    assert engine.load().trouble.startswith("quarantine: the engine ended 5 times without one answer; last: ")
    await asyncio.sleep(600.0)
    assert engine.load().ready
    assert engine.load().trouble == ""
