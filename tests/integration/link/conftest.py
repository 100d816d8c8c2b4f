"""The gateway's rig serves the link's tests too."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "gateway"))

from gateway_rig import Rig


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    """A gateway without nodes."""
    async with Rig() as rig:
        yield rig
