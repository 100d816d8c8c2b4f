"""A gateway with nodes of oracle engines in one process, over real loopback connections."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import grpc

from gateway.app import GatewayApp, Ports
from gateway.settings import GatewaySettings
from serving.engines.oracle import OracleEngine, OracleSettings, oracle_text
from serving.node.naming import NamedIdentity
from serving.node.runtime import NodeRuntime
from tidegate.gateway.v1 import gateway_pb2_grpc
from tidegate.link.client import LinkClient, LinkCredentials
from tidegate.routing.domain import (
    Chunk,
    GenerateEvent,
    GenerateRequest,
    Health,
    Message,
    Power,
    Role,
    ServeError,
)
from tidegate.routing.prefix import canonical_bytes
from tidegate.wire import codec, status
from tidegate.wire.channels import TlsConfig, channel_options

FAST_LINK = {"port": 0, "heartbeat_s": 0.2, "lost_after_s": 1.0}
# Link epochs rise over the whole test run, as those of one node do over its life.
_epochs = itertools.count(1)

QUICK = OracleSettings(prefill_tokens_per_s=1e6, decode=((1, 500.0), (8, 300.0)), slots=8, queue_limit=64)
SLOW = replace(QUICK, decode=((1, 20.0), (8, 20.0)))


async def until(
    condition: Callable[[], object], timeout_s: float = 20.0, what: str = "the condition"
) -> float:
    """Waits for a condition on real time; returns the seconds it took."""
    started_s = time.monotonic()
    while not condition():
        assert time.monotonic() - started_s < timeout_s, f"{what} did not come true in {timeout_s} s"
        await asyncio.sleep(0.005)
    return time.monotonic() - started_s


@dataclass
class Node:
    """One node and its link."""

    node_id: str
    engine: OracleEngine
    runtime: NodeRuntime
    link: LinkClient
    task: asyncio.Task[None]

    @property
    def idle(self) -> bool:
        load = self.engine.load()
        return load.running == 0 and load.queued == 0

    async def unlink(self) -> None:
        """The node is cut off, as by a crash of its process."""
        await self.link.stop(1.0)

    async def stop(self) -> None:
        await self.link.stop(1.0)
        await self.runtime.stop(0.0)


async def start_node(
    node_id: str,
    address: str,
    settings: OracleSettings = QUICK,
    *,
    join_token: str = "",
    tls: TlsConfig | None = None,
    prove: Callable[[bytes], tuple[bytes, bytes]] | None = None,
    power: Callable[[], Power | None] = lambda: None,
) -> Node:
    engine = OracleEngine(settings)
    runtime = NodeRuntime(engine, NamedIdentity(node_id, "boot", f"name-{node_id}"), power=power)
    await runtime.start()
    credentials = LinkCredentials(
        next_link_epoch=lambda: next(_epochs), prove=prove, join_token=join_token, tls=tls
    )
    link = LinkClient(runtime, address, credentials, clock=time.monotonic, rng=random.random)
    return Node(node_id, engine, runtime, link, asyncio.create_task(link.run()))


class Rig:
    """One gateway with `settings` over the tests' own, and the nodes that were added."""

    def __init__(self, **settings: Any) -> None:
        base: dict[str, Any] = {
            "grpc": {"port": 0},
            "link": FAST_LINK,
            "http": {"port": 0},
            "limits": {"drain_s": 5.0},
            "default_tier": "edge",
        }
        self.settings = GatewaySettings.model_validate({**base, **settings})
        self.nodes: list[Node] = []

    async def __aenter__(self) -> Self:
        self.app = GatewayApp(self.settings)
        self.ports: Ports = await self.app.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.ports.grpc}", options=channel_options())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await asyncio.gather(*(node.stop() for node in self.nodes))
        await self.app.stop()

    @property
    def stub(self) -> Any:
        # The generated hints describe the blocking API.
        return gateway_pb2_grpc.GatewayServiceStub(self.channel)

    @property
    def link_address(self) -> str:
        return f"127.0.0.1:{self.ports.link}"

    async def add_node(self, node_id: str, settings: OracleSettings = QUICK, **link: Any) -> Node:
        """Starts a node and waits until it could take work."""
        node = await start_node(node_id, self.link_address, settings, **link)
        self.nodes.append(node)
        await self.until_health(node_id, Health.READY)
        return node

    def health(self, node_id: str) -> Health | None:
        state = self.app.fleet.snapshot().by_id.get(node_id)
        return None if state is None else state.health

    async def until_health(self, node_id: str, health: Health | None, timeout_s: float = 20.0) -> float:
        return await until(lambda: self.health(node_id) is health, timeout_s, f"{node_id} being {health}")

    def call(self, request: GenerateRequest, *, timeout_s: float | None = 20.0, key: str = "") -> Any:
        """The raw RPC."""
        metadata = (("authorization", f"Bearer {key}"),) if key else ()
        return self.stub.Generate(
            codec.encode_generate_request(request), timeout=timeout_s, metadata=metadata
        )

    async def events(self, call: Any) -> AsyncIterator[GenerateEvent]:
        """Raises ServeError as an SDK would."""
        try:
            async for message in call:
                yield codec.decode_event(message)
        except grpc.aio.AioRpcError as error:
            raise served_error(error) from error

    async def ask(self, request: GenerateRequest, **call: Any) -> list[GenerateEvent]:
        return [event async for event in self.events(self.call(request, **call))]


def served_error(error: grpc.aio.AioRpcError) -> ServeError:
    return status.to_serve_error(error.code(), error.details(), error.trailing_metadata())


def question(request_id: str, text: str = "what is a tide?", **changes: Any) -> GenerateRequest:
    base = GenerateRequest(request_id, messages=(Message(Role.USER, text),), max_tokens=8)
    return replace(base, **changes)


def expected_text(request: GenerateRequest, settings: OracleSettings = QUICK) -> str:
    data = canonical_bytes(request.messages) if request.prompt is None else request.prompt.encode()
    return oracle_text(settings.model_digest, data, request.max_tokens)


def text_of(events: list[GenerateEvent]) -> str:
    """The answer; the indices must be contiguous from 0."""
    chunks = [e for e in events if isinstance(e, Chunk)]
    position = 0
    for chunk in chunks:
        assert chunk.first_index == position, f"token {position} is missing or doubled"
        assert len(chunk.token_ids) == chunk.count
        position += chunk.count
    return "".join(c.text for c in chunks)
