"""LinkRegistry with a session whose commands are handed straight to a node: no wire in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest
from upstream_contract import SETTINGS, Far, UpstreamContract

from gateway.upstream import LinkRegistry, NodeSession
from gateway.upstream.commands import CancelCommand, CreditCommand, FragmentCommand, WorkCommand
from serving.engines.oracle import OracleEngine
from serving.node.naming import NamedIdentity
from serving.node.runtime import NodeRuntime
from tidegate.link.intake import Intake
from tidegate.link.outbox import Outbox
from tidegate.link.seam import WorkRefused
from tidegate.routing.domain import CacheDelta, SequenceOutput, Work


class DirectLink:
    """Both ends of a link in one place. Implements NodeListener."""

    def __init__(self, session: NodeSession, runtime: NodeRuntime) -> None:
        self._session = session
        self._runtime = runtime
        self._intake = Intake()
        self._outbox = Outbox()

    def deliver(self, outputs: Sequence[SequenceOutput]) -> None:
        self._outbox.put(outputs)

    def load_changed(self) -> None:
        """Nothing here watches the load."""

    def cache_changed(self, delta: CacheDelta) -> None:
        """Nothing here watches the cache."""

    async def control(self) -> None:
        while True:
            command = await self._session.next_control()
            if isinstance(command, CancelCommand):
                self._intake.cancel(command.key)
                self._outbox.forget(command.key)
                self._runtime.cancel(command.key)

    async def work(self) -> None:
        while True:
            match await self._session.next_data():
                case WorkCommand(work, first_fragment):
                    size = len(work.input)
                    head = replace(work, input=first_fragment)
                    self._take(self._intake.begin(head, size, time.monotonic()))
                case FragmentCommand(key, data):
                    self._session.acked(len(data))
                    self._take(self._intake.add(key, data, time.monotonic()))
                case CreditCommand(key, chunks):
                    self._outbox.grant(key, chunks)

    async def outputs(self) -> None:
        while True:
            self._session.deliver(await self._outbox.take())

    def _take(self, work: Work | None) -> None:
        if work is None:
            return
        self._outbox.open(work.key, work.credits)
        try:
            self._runtime.submit(self, work)
        except WorkRefused as refused:
            self._outbox.forget(work.key)
            self._session.bounced(work.key, refused.failure)


class TestSessionUpstream(UpstreamContract):
    @pytest.fixture
    async def far(self) -> AsyncIterator[Far]:
        engine = OracleEngine(SETTINGS)
        runtime = NodeRuntime(engine, NamedIdentity("node", "boot", "node"))
        await runtime.start()
        registry = LinkRegistry()
        session = NodeSession(
            "node", 1, on_open=lambda _: None, on_first_token=lambda _: None, on_end=lambda _: None
        )
        registry.add(session)
        link = DirectLink(session, runtime)
        runtime.attach(link)
        tasks = [asyncio.create_task(part) for part in (link.control(), link.work(), link.outputs())]

        async def cut() -> None:
            registry.remove(session, "cut off by the test")

        yield Far(registry, "node", engine, runtime, cut)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await runtime.stop(0.0)
