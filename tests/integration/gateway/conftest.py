"""Helpers of the contract suites and the link tests are shared with these."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "contracts"))

from gateway_rig import Rig


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    """A gateway without nodes."""
    async with Rig() as rig:
        yield rig
