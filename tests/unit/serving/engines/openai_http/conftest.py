from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from openai_stub import Stub, running_stub


@pytest.fixture
async def stub() -> AsyncIterator[Stub]:
    async with running_stub() as server:
        yield server
