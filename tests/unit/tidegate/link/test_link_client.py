"""Coming back after every kind of loss, with growing delays and one log line each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import grpc
import pytest

from tidegate.link import client as link_client
from tidegate.link.client import LinkClient, LinkCredentials
from tidegate.link.session import LinkLost, LinkRefused

pytestmark = pytest.mark.looptime


class ScriptedSession:
    """Each life lasts `lives[i][0]` seconds and ends with `lives[i][1]`; the last one goes on for ever."""

    lives: list[tuple[float, Exception | None]] = []  # noqa: RUF012
    started_s: list[float] = []  # noqa: RUF012

    # Seconds from finish() to the end of the session that lasts.
    farewell_s = 0.5

    def __init__(self, *_: object) -> None:
        self.connected = asyncio.Event()
        self.finishing = asyncio.Event()

    def finish(self) -> None:
        self.finishing.set()

    async def run(self) -> None:
        self.started_s.append(asyncio.get_running_loop().time())
        if not self.lives:
            self.connected.set()
            await self.finishing.wait()
            await asyncio.sleep(self.farewell_s)
            raise LinkLost("the gateway ended the data stream")
        lasts_s, error = self.lives.pop(0)
        await asyncio.sleep(lasts_s)
        if error is not None:
            raise error


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[tuple[float, Exception | None]]], LinkClient]:
    def make(lives: list[tuple[float, Exception | None]]) -> LinkClient:
        ScriptedSession.lives, ScriptedSession.started_s = lives, []
        monkeypatch.setattr(link_client, "LinkSession", ScriptedSession)
        credentials = LinkCredentials(next_link_epoch=lambda: 1)
        clock = asyncio.get_running_loop().time
        return LinkClient(None, "gw:1", credentials, clock=clock, rng=lambda: 1.0)  # type: ignore[arg-type]

    return make


Play = Callable[[list[tuple[float, Exception | None]]], LinkClient]


def rpc_error() -> grpc.aio.AioRpcError:
    empty = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, empty, empty, details="connection refused")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (rpc_error(), "UNAVAILABLE: connection refused"),
        (LinkRefused("who are you?"), "who are you?"),
        (LinkLost("the gateway ended the control stream"), "the gateway ended the control stream"),
        (TimeoutError(), "the handshake took too long"),
        (asyncio.InvalidStateError("rpc done"), "the stream had ended"),
        (ZeroDivisionError("a defect"), "internal error"),
        (None, "ended"),
    ],
)
async def test_every_loss_has_its_reason_and_is_followed_by_another_try(
    play: Play, error: Exception | None, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tidegate.link.client")
    client = play([(0.0, error)])
    task = asyncio.create_task(client.run())
    await asyncio.sleep(1.0)
    assert client.connected
    await client.stop(1.0)
    assert task.cancelled()
    lost = [r for r in caplog.records if r.message == "link lost"]
    assert [(r.reason, r.gateway) for r in lost] == [(reason, "gw:1")]  # type: ignore[attr-defined]
    errors = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(errors) == (reason == "internal error")  # only a defect is worth a traceback


async def test_delays_grow_while_it_fails_and_start_over_after_a_healthy_link(play: Play) -> None:
    refused = LinkRefused("no")
    client = play([(0.0, refused), (0.0, refused), (0.0, refused), (5.0, refused), (0.0, refused)])
    task = asyncio.create_task(client.run())
    await asyncio.sleep(20.0)
    await client.stop(1.0)
    assert task.done()
    assert ScriptedSession.started_s == pytest.approx([0.0, 0.2, 0.6, 1.4, 6.6, 7.0])


async def test_stopping_before_it_ran_and_twice_is_harmless(play: Play) -> None:
    client = play([])
    await client.stop(1.0)
    task = asyncio.create_task(client.run())
    await asyncio.sleep(0)
    await client.stop(1.0)
    await client.stop(1.0)
    assert task.cancelled()


async def test_a_flushed_link_waits_for_the_gateway_and_does_not_come_back(play: Play) -> None:
    client = play([])
    task = asyncio.create_task(client.run())
    await asyncio.sleep(1.0)
    assert await client.flush(2.0)
    assert asyncio.get_running_loop().time() == pytest.approx(1.5)
    assert task.done()
    assert not task.cancelled()
    assert ScriptedSession.started_s == [0.0]
    assert await client.flush(2.0)


async def test_a_flush_ends_with_its_grace_and_leaves_the_rest_to_the_stop(play: Play) -> None:
    client = play([])
    task = asyncio.create_task(client.run())
    await asyncio.sleep(1.0)
    assert not await client.flush(0.2)
    assert not task.done()
    await client.stop(1.0)
    assert task.cancelled()


async def test_a_link_that_is_not_up_has_nothing_to_flush(play: Play) -> None:
    client = play([(0.0, LinkRefused("no")), (0.0, LinkRefused("no"))])
    assert await client.flush(1.0)
    client = play([(0.0, LinkRefused("no"))])
    task = asyncio.create_task(client.run())
    await asyncio.sleep(0.1)
    assert await client.flush(1.0)
    assert asyncio.get_running_loop().time() == pytest.approx(0.1)
    await asyncio.sleep(1.0)
    assert task.done()
    assert ScriptedSession.started_s == [0.0]
