"""Closing ends calls that wait for a server which never answers."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest

import tidegate


@pytest.fixture
def silent_address() -> Iterator[str]:
    """A listener that completes TCP connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield f"127.0.0.1:{sock.getsockname()[1]}"


async def test_closing_ends_waiting_calls(silent_address: str) -> None:
    client = tidegate.Client(silent_address)
    waiting = [asyncio.create_task(call) for call in (client.nodes(), client.complete("hi"))]
    await asyncio.sleep(0.02)
    async with asyncio.timeout(2):
        await client.aclose()
        for task in waiting:
            with pytest.raises(tidegate.Cancelled):
                await task


async def test_the_deadline_holds_against_silence(silent_address: str) -> None:
    async with tidegate.Client(silent_address, deadline_s=0.1) as client:
        for call in (client.nodes(), client.complete("hi")):
            async with asyncio.timeout(2):
                with pytest.raises(tidegate.DeadlineExceeded):
                    await call


def test_closing_ends_waiting_blocking_calls(silent_address: str) -> None:
    client = tidegate.SyncClient(silent_address)
    errors: list[BaseException] = []

    def use(call: str) -> None:
        try:
            client.complete("hi") if call == "complete" else client.nodes()
        except tidegate.TidegateError as error:
            errors.append(error)

    threads = [threading.Thread(target=use, args=(call,)) for call in ("complete", "nodes")]
    for thread in threads:
        thread.start()
    timer = threading.Timer(0.05, client.close)
    timer.start()
    for thread in [*threads, timer]:
        thread.join(timeout=5)
    assert [type(error) for error in errors] == [tidegate.Cancelled] * 2


def test_the_deadline_holds_for_blocking_calls(silent_address: str) -> None:
    with tidegate.SyncClient(silent_address, deadline_s=0.1) as client:
        with pytest.raises(tidegate.DeadlineExceeded):
            client.nodes()
        with pytest.raises(tidegate.DeadlineExceeded):
            client.complete("hi")
