"""LinkRegistry over a real link: two gRPC connections on loopback."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator

import pytest
from upstream_contract import SETTINGS, Far, UpstreamContract, until

from gateway.app import GatewayApp
from gateway.settings import GatewaySettings
from serving.engines.oracle import OracleEngine
from serving.node.naming import NamedIdentity
from serving.node.runtime import NodeRuntime
from tidegate.link.client import LinkClient, LinkCredentials


class TestLinkUpstream(UpstreamContract):
    @pytest.fixture
    async def far(self) -> AsyncIterator[Far]:
        app = GatewayApp(
            GatewaySettings.model_validate(
                {"grpc": {"port": 0}, "link": {"port": 0}, "http": {"port": 0}, "default_tier": "edge"}
            )
        )
        ports = await app.start()
        engine = OracleEngine(SETTINGS)
        runtime = NodeRuntime(engine, NamedIdentity("node", "boot", "node"))
        await runtime.start()
        epochs = itertools.count(1)
        link = LinkClient(
            runtime,
            f"127.0.0.1:{ports.link}",
            LinkCredentials(next_link_epoch=lambda: next(epochs)),
            clock=time.monotonic,
            rng=random.random,
        )
        task = asyncio.create_task(link.run())
        await until(lambda: app.registry.get("node") is not None and link.connected)

        async def cut() -> None:
            await link.stop(1.0)

        yield Far(app.registry, "node", engine, runtime, cut)
        await link.stop(1.0)
        await asyncio.gather(task, return_exceptions=True)
        await runtime.stop(0.0)
        await app.stop()
