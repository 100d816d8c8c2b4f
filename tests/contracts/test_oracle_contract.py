from __future__ import annotations

import pytest
from engine_contract import EngineContract

from serving.engines.base import Engine
from serving.engines.oracle import OracleEngine, OracleSettings


@pytest.mark.looptime
class TestOracleEngine(EngineContract):
    async def make_engine(self) -> Engine:
        return OracleEngine(OracleSettings(slots=3, queue_limit=4, context_tokens=8192))


class TestOracleEngineUnpaced(EngineContract):
    """As fast as it can on the real clock: every window is as small as it gets."""

    long_tokens = 150_000

    async def make_engine(self) -> Engine:
        return OracleEngine(OracleSettings(slots=3, queue_limit=4, context_tokens=200_000, pacing=0.0))
