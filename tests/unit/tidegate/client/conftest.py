"""A gateway and clients over real loopback, with pauses short enough for tests."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator

import pytest

import tidegate
from tidegate.testing import FakeGateway

FAST = tidegate.RetryPolicy(attempts=4, base_ms=2.0, max_ms=10.0)


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with FakeGateway() as server:
        yield server


@pytest.fixture
async def client(gateway: FakeGateway) -> AsyncIterator[tidegate.Client]:
    async with tidegate.Client(gateway.address, retry=FAST, deadline_s=10.0) as value:
        yield value


@pytest.fixture
def dead_address() -> Iterator[str]:
    """A bound port nobody listens on: it refuses, and nobody else can take it."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{sock.getsockname()[1]}"
