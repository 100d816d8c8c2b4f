from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from openai_stub import Stub, running_stub

# looptime asks the policy for a loop around sync tests too, and the policy makes one that nobody closes
# unless a loop (or its absence) was set before.
asyncio.set_event_loop(None)


@pytest.fixture
async def stub() -> AsyncIterator[Stub]:
    async with running_stub() as server:
        yield server
