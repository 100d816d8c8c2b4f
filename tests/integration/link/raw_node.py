"""A node written by hand, message by message, to say what no proper node would say."""

from __future__ import annotations

import asyncio
from typing import Any, Self

import grpc

from serving.engines.oracle import OracleSettings
from tidegate.link import codec
from tidegate.node.v1 import node_pb2, node_pb2_grpc
from tidegate.routing.domain import Announcement, NodeLoad
from tidegate.wire.channels import open_channel

INFO = OracleSettings().info()


def register(
    node_id: str = "raw", *, link_epoch: int = 1, join_token: str = "", **changes: Any
) -> node_pb2.Register:
    announcement = Announcement(
        node_id=node_id,
        boot_id="boot",
        name=f"name-{node_id}",
        variants=INFO.variants,
        slots=4,
        queue_limit=4,
        build="raw",
        replay_class=INFO.replay_class,
        replay_digest="r",
        hardware_class="raw",
        speeds=INFO.speeds,
    )
    pb = codec.register_to_pb(announcement, link_epoch=link_epoch, join_token=join_token)
    pb.MergeFrom(node_pb2.Register(**changes))
    return pb


class RawNode:
    """Two connections; nothing is sent but what a test asks for. Times out instead of waiting for ever."""

    def __init__(self, address: str) -> None:
        self._channels = [open_channel(address, own_connection=True, small_window=True) for _ in range(2)]
        self.stubs: list[Any] = [node_pb2_grpc.NodeLinkServiceStub(c) for c in self._channels]

    async def __aenter__(self) -> Self:
        self.control: Any = self.stubs[0].Control()
        self.data: Any = self.stubs[1].Data()
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels:
            await channel.close()

    async def say(self, **message: Any) -> None:
        await self.control.write(node_pb2.ControlRequest(**message))

    async def send(self, **message: Any) -> None:
        await self.data.write(node_pb2.DataRequest(**message))

    async def hear(self, kind: str) -> Any:
        """The next message of this kind on Control; others are skipped."""
        return await _next(self.control, kind)

    async def receive(self, kind: str) -> Any:
        """The next message of this kind on Data; others are skipped."""
        return await _next(self.data, kind)

    async def join(self, message: node_pb2.Register | None = None) -> node_pb2.Registered:
        """Handshake on both streams."""
        await self.say(register=message or register())
        registered: node_pb2.Registered = await self.hear("registered")
        node_id = (message or register()).node_id
        await self.send(hello=node_pb2.Hello(node_id=node_id, link_token=registered.link_token))
        await self.receive("opened")
        return registered

    async def be_ready(self, **load: Any) -> None:
        """One heartbeat, and the answer to the ping that follows the handshake."""
        ping = await self.hear("ping")
        await self.say(pong=node_pb2.Pong(nonce=ping.nonce))
        await self.say(heartbeat=codec.load_to_pb(NodeLoad(**load)))


async def _next(call: Any, kind: str) -> Any:
    async with asyncio.timeout(5.0):
        while True:
            message = await call.read()
            assert message is not grpc.aio.EOF, f"the stream ended before {kind}"
            if message.WhichOneof("message") == kind:
                return getattr(message, kind)


async def ending(call: Any) -> tuple[grpc.StatusCode, str]:
    """How the gateway ends a stream."""
    async with asyncio.timeout(8.0):
        try:
            while await call.read() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
        return await call.code(), await call.details() or ""
