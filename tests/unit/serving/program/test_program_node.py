"""A node inside one event loop: its phases, what is asked about it, and how it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from edge_node.settings import EdgeSettings
from serving.engines.base import EngineInfo, EngineUnavailable
from serving.engines.oracle import OracleEngine, OracleSettings
from serving.node import NodeRuntime
from serving.node_program import NodeProgram
from serving.openai_api.backend import ModelCard
from serving.settings import SettingsError, load_settings
from serving.startup import ProgramArgs, ProgramError
from tidegate.link.backoff import Backoff
from tidegate.routing.domain import Code, Finished, GenerateRequest, Power, ServeError, StepBatch

REQUEST = GenerateRequest(request_id="r", prompt="hello", max_tokens=3)


def settings(tmp_path: Path, **more: str) -> EdgeSettings:
    environ = {"STATE_DIR": str(tmp_path), "ENGINE__KIND": "oracle", "ENGINE__ORACLE__PACING": "0", **more}
    return load_settings(EdgeSettings, None, {f"TIDEGATE_EDGE__{k}": v for k, v in environ.items()})


@asynccontextmanager
async def running(node: NodeProgram) -> AsyncIterator[asyncio.Event]:
    stop = asyncio.Event()
    task = asyncio.create_task(node.run(stop))
    try:
        yield stop
    finally:
        stop.set()
        await asyncio.wait_for(task, 10)


async def until_ready(node: NodeProgram) -> None:
    async with asyncio.timeout(5):
        while node.not_ready_because:
            await asyncio.sleep(0.001)


async def test_phases(tmp_path: Path) -> None:
    node = NodeProgram(settings(tmp_path), ProgramArgs())
    assert node.not_ready_because == "loading"
    assert node.load() is None
    with pytest.raises(ServeError) as early:
        node.backend.generate(REQUEST)
    assert (early.value.code, early.value.retry_after_ms) == (Code.UNAVAILABLE, 1000.0)
    with pytest.raises(ServeError):
        node.backend.models("default")
    async with running(node):
        await until_ready(node)
        assert node.backend.models("default") == (ModelCard("oracle", (), 2048),)
        events = [event async for event in node.backend.generate(REQUEST)]
        assert isinstance(events[-1], Finished)
        assert events[-1].usage.completion_tokens == 3
        node.runtime.drain()
        assert node.not_ready_because == "draining"


async def test_a_crashed_engine_is_not_ready_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = OracleEngine(OracleSettings(restart_s=0.05))
    monkeypatch.setattr("serving.node_program.build_engine", lambda *_, **__: engine)
    node = NodeProgram(settings(tmp_path), ProgramArgs())
    async with running(node):
        await until_ready(node)
        engine.crash()
        assert node.not_ready_because == "engine"
        with pytest.raises(ServeError) as refused:
            async for _ in node.backend.generate(REQUEST):
                pass
        assert refused.value.code is Code.UNAVAILABLE
        await until_ready(node)
        assert [event async for event in node.backend.generate(REQUEST)]


class Breaking(OracleEngine):
    """Its steps end with an error once `broken` is set."""

    def __init__(self) -> None:
        super().__init__(OracleSettings())
        self.broken = asyncio.Event()

    async def steps(self) -> AsyncIterator[StepBatch]:
        await self.broken.wait()
        raise ZeroDivisionError
        yield StepBatch(())


def break_steps(engine: Breaking, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.broken.set()


def break_watch(engine: Breaking, monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> NoReturn:
        raise ZeroDivisionError

    monkeypatch.setattr(NodeRuntime, "_readiness_changed", load)


def break_link(engine: Breaking, monkeypatch: pytest.MonkeyPatch) -> None:
    def next_delay_s(self: Backoff) -> NoReturn:
        raise ZeroDivisionError

    monkeypatch.setattr(Backoff, "next_delay_s", next_delay_s)


@pytest.mark.parametrize(
    ("break_it", "name"),
    [(break_steps, "node-steps"), (break_watch, "node-readiness"), (break_link, "link-127.0.0.1:1")],
)
async def test_a_part_that_ends_ends_the_program(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    break_it: Callable[[Breaking, pytest.MonkeyPatch], None],
    name: str,
) -> None:
    engine = Breaking()
    with monkeypatch.context() as patch:
        patch.setattr("serving.node_program.build_engine", lambda *_, **__: engine)
        node = NodeProgram(settings(tmp_path, LINK__GATEWAYS="127.0.0.1:1"), ProgramArgs())
    life = asyncio.create_task(node.run(asyncio.Event()))
    await until_ready(node)
    await asyncio.sleep(0.05)
    assert not life.done()
    break_it(engine, monkeypatch)
    with pytest.raises(ProgramError, match=f"^{name} ended"):
        await asyncio.wait_for(life, 10)
    monkeypatch.undo()
    (record,) = [r for r in caplog.records if r.name == "serving.node_program" and r.levelno >= logging.ERROR]
    assert record.task == name  # type: ignore[attr-defined]
    await starts_and_stops(settings(tmp_path))  # everything was put away


class NoModel(OracleEngine):
    async def start(self) -> EngineInfo:
        raise EngineUnavailable("the model is gone: put it back")


async def test_an_engine_that_cannot_start_ends_the_program_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("serving.node_program.build_engine", lambda *_, **__: NoModel(OracleSettings()))
        node = NodeProgram(settings(tmp_path), ProgramArgs())
    with pytest.raises(ProgramError, match="the model is gone: put it back"):
        await node.run(asyncio.Event())
    await starts_and_stops(settings(tmp_path))  # the state folder is free again


async def starts_and_stops(given: EdgeSettings) -> None:
    node = NodeProgram(given, ProgramArgs())
    async with running(node):
        await until_ready(node)


async def test_the_state_folder_is_free_again_after_a_failed_start(tmp_path: Path) -> None:
    bad = settings(tmp_path, LINK__GATEWAYS="127.0.0.1:1", LINK__JOIN_TOKEN__FILE=str(tmp_path / "none"))
    with pytest.raises(SettingsError, match="cannot read the secret"):
        NodeProgram(bad, ProgramArgs())
    await starts_and_stops(settings(tmp_path))


async def test_admin_routes(tmp_path: Path) -> None:
    node = NodeProgram(settings(tmp_path, LINK__DIRECT_ENDPOINTS="a:1"), ProgramArgs())
    app = web.Application()
    allowed: list[bool] = []

    def may_scrape(request: web.Request) -> None:
        if not allowed:
            raise web.HTTPForbidden

    node.add_admin_routes(app, may_scrape)
    async with TestClient(TestServer(app)) as client:
        assert (await client.get("/healthz")).status == 200
        loading = await client.get("/readyz")
        assert (loading.status, loading.headers["Retry-After"]) == (503, "1")
        async with running(node):
            await until_ready(node)
            assert (await client.get("/readyz")).status == 200
            assert (await client.get("/metrics")).status == 403
            allowed.append(True)
            scraped = await client.get("/metrics")
            assert scraped.content_type == "text/plain"
            text = await scraped.text()
    assert "\ntidegate_node_ready 1.0\n" in text
    assert "\ntidegate_node_prefill_tokens_per_second 2000.0\n" in text
    assert f"\ntidegate_node_usable_slots {node.runtime.info.slots}.0\n" in text
    assert "\nprocess_resident_memory_bytes " in text


async def test_a_node_on_battery_tells_gateways_and_metrics(tmp_path: Path) -> None:
    battery = tmp_path / "supplies" / "BAT0"
    battery.mkdir(parents=True)
    for name, text in (
        ("type", "Battery"),
        ("status", "Discharging"),
        ("capacity", "55"),
        ("power_now", "6e6"),
    ):
        (battery / name).write_text(f"{text}\n")
    power = {
        "POWER__SUPPLY_DIR": str(battery.parent),
        "POWER__POWERCAP_DIR": str(tmp_path),
        "POWER__METERED": "true",
    }
    node = NodeProgram(settings(tmp_path, **power), ProgramArgs())
    app = web.Application()
    node.add_admin_routes(app, lambda request: None)
    async with TestClient(TestServer(app)) as client, running(node):
        await until_ready(node)
        async with asyncio.timeout(5):
            while (told := node.runtime.load().power) is None or not told.on_battery:
                await asyncio.sleep(0.001)
        assert told == Power(on_battery=True, battery_share=0.55, draw_w=6.0, metered=True)
        text = await (await client.get("/metrics")).text()
    for line in ("battery_ratio 0.55", "on_battery 1.0", "draw_watts 6.0", "wake_seconds 0.0"):
        assert f"\ntidegate_node_{line}\n" in text
