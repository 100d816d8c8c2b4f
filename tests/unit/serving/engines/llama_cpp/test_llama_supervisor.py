"""Launching again and again, on virtual time and with children that are only scripts."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving.engines.base import EngineRefused, EngineUnavailable
from serving.engines.llama_cpp import engine as engine_module
from serving.engines.llama_cpp import launcher as launcher_module
from serving.engines.llama_cpp import protocol
from serving.engines.llama_cpp.catalog import file_stamps
from serving.engines.llama_cpp.child import warm_first
from serving.engines.llama_cpp.engine import LlamaCppEngine
from serving.engines.llama_cpp.protocol import ProtocolError
from serving.engines.llama_cpp.settings import Adapter, LlamaCppSettings
from tidegate.routing.domain import AttemptKey, Cause, Failure, InputKind, Sampling, Work
from tidegate.routing.embedding import pack_texts

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
STEP = {"t": "step", "load": [0] * 7, "freed": [], "out": []}
LONG = replace(WORK, key=AttemptKey("long", 1), input=b"\x01" * 1000)
EMBED = replace(WORK, input_kind=InputKind.EMBED, input=pack_texts(("a tide",)))
Step = dict[str, Any] | Exception | float | None


class ScriptedChild:
    """Plays its script: a frame, an error, a pause in seconds, or None for the end of the process."""

    pid = 4711
    scripts: list[list[Step]] = []  # noqa: RUF012
    spawned_s: list[float] = []  # noqa: RUF012
    sent: list[dict[str, Any]] = []  # noqa: RUF012
    alive = killed = 0

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
        protocol.encode(frame)
        ScriptedChild.sent.append(frame)

    async def end(self, grace_s: float) -> int:
        assert not self._ended
        self._ended = True
        ScriptedChild.alive -= 1
        return -9

    def kill(self) -> None:
        """Its script decides when it ends."""
        ScriptedChild.killed += 1


async def found(function: Callable[..., Any], *arguments: object) -> Any:
    """What is known of the file, whoever asks."""
    if function is file_stamps:
        return function(*arguments)
    return SimpleNamespace(digest="digest", quantization="Q4_0")


Play = Callable[..., Any]


@pytest.fixture
async def play(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Play]:
    """Starts an engine whose children play the given scripts, as start() does after the file's checks."""
    engines: list[LlamaCppEngine] = []

    async def started(*scripts: list[Step], **changes: Any) -> LlamaCppEngine:
        ScriptedChild.scripts, ScriptedChild.spawned_s, ScriptedChild.alive = list(scripts), [], 0
        ScriptedChild.sent, ScriptedChild.killed = [], 0
        monkeypatch.setattr(launcher_module, "ChildProcess", ScriptedChild)
        monkeypatch.setattr(engine_module, "describe", lambda *_: None)
        # What start() asks of the file, which does not exist.
        monkeypatch.setattr(asyncio, "to_thread", found)
        about = {"model_path": Path("m.gguf"), "model": "m", "restart_backoff_max_s": 2.0}
        settings = LlamaCppSettings(**(about | changes))
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
        READY | {"threads": math.inf},
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


@pytest.mark.parametrize(
    "hostile",
    [
        {"threads": [math.inf, ""]},
        {"threads": 7},
        {"load": [math.inf] * 7},
        {"load": [-1] * 7},
        {"load": ["many"] * 7},
        {"speeds": ["fast", []]},
        {"held": [[]]},
        {"out": [{}]},
    ],
)
async def test_a_child_that_sends_nonsense_is_replaced(play: Play, hostile: dict[str, Any]) -> None:
    engine = await play([READY, STEP, 1.0, STEP | hostile], [READY])
    await asyncio.sleep(0.5)
    assert len(ScriptedChild.spawned_s) == 1
    await asyncio.sleep(5.0)
    assert len(ScriptedChild.spawned_s) == 2
    assert engine.load().ready


def finishes(engine: LlamaCppEngine) -> list[Any]:
    return [output.finish for step in engine._outbox._steps for output in step if output.finish]


@pytest.mark.parametrize("sent_at_s", [0.5, 2.0])
async def test_work_that_no_frame_can_hold_is_refused_at_once(
    play: Play, monkeypatch: pytest.MonkeyPatch, sent_at_s: float
) -> None:
    """Whether a child is there or is being loaded; others are not hurt."""
    engine = await play([READY, 1.0, None], [3.0, READY], embeddings="mean")
    monkeypatch.setattr(protocol, "MAX_FRAME_BYTES", 3000)
    await asyncio.sleep(sent_at_s)
    for _ in range(2):
        with pytest.raises(EngineRefused) as refused:
            engine.submit(LONG)
        assert refused.value.failure.cause is Cause.INVALID_INPUT
    assert engine._ledger.occupied == 0
    assert engine._idle.is_set()
    engine.submit(WORK)
    assert engine._ledger.occupied == 1


async def test_work_that_turns_out_too_large_ends_alone(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await play([READY, 1.0, None], [3.0, READY])
    await asyncio.sleep(2.0)
    engine.submit(LONG)
    engine.submit(WORK)
    monkeypatch.setattr(protocol, "MAX_FRAME_BYTES", 3000)
    await asyncio.sleep(5.0)
    assert engine.load().ready
    assert len(ScriptedChild.spawned_s) == 2
    assert [entry.work.key for entry in engine._ledger] == [WORK.key]
    (finish,) = finishes(engine)
    assert isinstance(finish.result, Failure)
    assert finish.result.cause is Cause.INVALID_INPUT


async def test_texts_that_are_given_up_while_the_model_sleeps_leave_nothing(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await play([READY, 12.0, None], [READY], embeddings="mean", idle_unload_s=10.0)
    await asyncio.sleep(11.0)
    assert engine.load().wake_ms > 0.0
    for number in range(4):
        work = replace(EMBED, key=AttemptKey(f"e{number}", 1))
        engine.submit(work)
        if number != 2:
            engine.cancel(work.key)
    assert [frame["sid"] for frame in engine._unsent] == [3]
    monkeypatch.setattr(protocol, "MAX_FRAME_BYTES", 3000)
    for _ in range(2):
        with pytest.raises(EngineRefused) as refused:
            engine.submit(replace(EMBED, key=LONG.key, input=pack_texts(("\x01" * 1000,))))
        assert refused.value.failure.cause is Cause.INVALID_INPUT
    await asyncio.sleep(5.0)
    assert [frame for frame in ScriptedChild.sent if "embed" in frame["t"]] == [
        {"t": "embed", "sid": 3, "texts": ("a tide",)}
    ]


async def test_an_adapter_that_was_replaced_is_not_served_in_its_place(play: Play, tmp_path: Path) -> None:
    path, kept = tmp_path / "red", tmp_path / "kept"
    path.write_text("weights")
    engine = await play([READY, 1.0, None], [READY], adapters=(Adapter(name="red", path=path),))
    path.rename(kept)
    path.write_text("WEIGHTS")
    await asyncio.sleep(2.0)
    assert not engine.load().ready
    assert len(ScriptedChild.spawned_s) == 1
    kept.replace(path)
    await asyncio.sleep(5.0)
    assert engine.load().ready


async def test_what_pinning_and_measuring_take_is_no_load(play: Play) -> None:
    engine = await play([5.0, READY | {"measure_ms": 1000.0, "pinned_ms": 3000.0}])
    assert engine._slumber.load_ms == pytest.approx(1000.0, abs=5.0)


@pytest.mark.parametrize(("chunks", "computed"), [(3, 3), (100, 11)])
def test_pinning_before_the_start_has_its_time(chunks: int, computed: int) -> None:
    passed_s = 0.0
    done: list[float] = []

    def warm() -> bool:
        nonlocal passed_s
        if len(done) == chunks:
            return False
        passed_s += 5.5
        done.append(passed_s)
        return True

    settings = LlamaCppSettings(model_path=Path("m.gguf"), model="m", load_timeout_s=120.0)
    config = settings.child_config()
    warm_first(warm, lambda: passed_s < config.pin_within_s)
    assert len(done) == computed


async def test_a_child_that_writes_its_prefixes_is_not_unloaded(play: Play) -> None:
    engine = await play([READY], idle_unload_s=2.0)
    launcher = engine._launcher
    launcher.settings = launcher.settings.model_copy(update={"prefix_file": Path("kept")})
    await asyncio.sleep(1.0)
    await engine.stop(10.0)
    assert {"t": "keep"} in ScriptedChild.sent
    assert ScriptedChild.killed == 0
