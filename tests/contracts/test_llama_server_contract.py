"""The engine contract on servers that the node manages: one without a model, and llama-server where it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import managed_server
import pytest
import pytest_asyncio
from engine_contract import EngineContract, Recorder

from serving.engines.llama_server import LlamaServerEngine

LLAMA_SERVER = managed_server.built_llama_server()


async def recorder(folder: Path, changes: dict[str, Any]) -> Recorder:
    engine = LlamaServerEngine(managed_server.settings(folder, **changes))
    return Recorder(engine, await engine.start(), EngineContract.timeout_s)


@pytest_asyncio.fixture(scope="class", loop_scope="class")
async def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Recorder]:
    rec = await recorder(tmp_path_factory.mktemp("managed"), request.cls.changes)
    yield rec
    await rec.close()


@pytest.mark.asyncio(loop_scope="class")
class ManagedServerContract(EngineContract):
    """Servers take seconds to start: the tests of a class share one, which each leaves idle."""

    changes: ClassVar[dict[str, Any]] = {}
    counts_tokens = False

    @pytest.fixture
    def rec(self, shared: Recorder) -> Recorder:
        return shared

    async def test_stop_is_bounded_and_ends_the_steps(self, tmp_path: Path) -> None:  # type: ignore[override]
        own = await recorder(tmp_path, self.changes)
        await super().test_stop_is_bounded_and_ends_the_steps(own)
        await own.close()


class TestManagedDaemon(ManagedServerContract):
    pass


@pytest.mark.skipif(LLAMA_SERVER is None, reason="llama-server is built by `make bench-engine` only")
class TestLlamaServer(ManagedServerContract):
    changes: ClassVar[dict[str, Any]] = {"command": (), "program": str(LLAMA_SERVER)}
    short_tokens = 8
