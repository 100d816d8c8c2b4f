"""Around every RPC: bytes that are no message, typed errors and defects, each to its status."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from gateway.telemetry import Metrics
from gateway.transport.guard import Guard, abort
from tidegate.gateway.v1 import gateway_pb2 as pb
from tidegate.gateway.v1 import gateway_pb2_grpc
from tidegate.routing.domain import Code, ServeError
from tidegate.wire import status

METHOD = "/tidegate.gateway.v1.GatewayService/"
SECRET = "a prompt that no log may show"


class Prompt:
    """What a request holds of the memory."""


@dataclass
class Service(gateway_pb2_grpc.GatewayServiceServicer):
    """Does what the test says."""

    error: Exception | None = None
    prompts: list[weakref.ref[Prompt]] = field(default_factory=list)
    holds: bool = False
    closed: list[str] = field(default_factory=list)

    async def ListModels(self, request: Any, context: Any) -> pb.ListModelsResponse:
        if self.holds:
            prompt = Prompt()
            self.prompts.append(weakref.ref(prompt))
            error = ServeError(Code.UNAVAILABLE, "no node")
            raise error
        if self.error is not None:
            raise self.error
        return pb.ListModelsResponse()

    async def Generate(self, request: Any, context: Any) -> None:
        await context.write(pb.GenerateResponse())
        if self.error is not None:
            raise self.error

    async def WatchFleet(self, request: Any, context: Any) -> AsyncIterator[pb.WatchFleetResponse]:  # type: ignore[override]
        try:
            yield pb.WatchFleetResponse()
            if self.error is not None:
                raise self.error
        finally:
            self.closed.append("watch")


class Rig:
    def __init__(self) -> None:
        self.service = Service()
        self.metrics = Metrics()
        self.server = grpc.aio.server(interceptors=[Guard(self.metrics)])
        gateway_pb2_grpc.add_GatewayServiceServicer_to_server(self.service, self.server)
        port = self.server.add_insecure_port("127.0.0.1:0")
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")

    async def unary(self, data: bytes = b"") -> bytes:
        return await self.channel.unary_unary(METHOD + "ListModels")(data)  # type: ignore[no-any-return]

    async def stream(self, method: str, data: bytes = b"") -> list[bytes]:
        return [message async for message in self.channel.unary_stream(METHOD + method)(data)]

    def defects(self) -> float:
        return (
            self.metrics.registry.get_sample_value("tidegate_internal_errors_total", {"where": "rpc"}) or 0.0
        )


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    await rig.server.start()
    yield rig
    await rig.channel.close()
    await rig.server.stop(None)


async def call(rig: Rig, method: str, data: bytes = b"") -> None:
    await (rig.unary(data) if method == "ListModels" else rig.stream(method, data))


METHODS = ["ListModels", "Generate", "WatchFleet"]


@pytest.mark.parametrize("method", METHODS)
async def test_good_calls_pass(rig: Rig, method: str) -> None:
    await call(rig, method)
    assert rig.defects() == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xfe"])
async def test_bytes_that_are_no_message_are_the_callers_fault(rig: Rig, method: str, data: bytes) -> None:
    # The last of them is bad UTF-8 in a string, which only Generate has as field 1.
    if method != "Generate" and data == b"\x0a\x02\xff\xfe":
        data = b"\x0a"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(rig, method, data)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    error = status.to_serve_error(
        caught.value.code(), caught.value.details(), caught.value.trailing_metadata()
    )
    assert error.reason == "BAD_MESSAGE"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("code", list(Code))
async def test_a_typed_error_travels_with_its_details(rig: Rig, method: str, code: Code) -> None:
    rig.service.error = ServeError(
        code, "try again", reason="WHY", retry_after_ms=250.0, param="budget", details={"node": "n1"}
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(rig, method)
    assert caught.value.code() is status.to_grpc(code)
    error = status.to_serve_error(
        caught.value.code(), caught.value.details(), caught.value.trailing_metadata()
    )
    assert (error.code, error.message, error.reason) == (code, "try again", "WHY")
    assert (error.retry_after_ms, error.param, error.details) == (250.0, "budget", {"node": "n1"})
    assert rig.defects() == 0


@pytest.mark.parametrize("method", METHODS)
async def test_a_defect_is_internal_without_its_text(
    rig: Rig, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    rig.service.error = RuntimeError(SECRET)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(rig, method)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert SECRET not in str(caught.value.details()) + str(caught.value.trailing_metadata())
    assert rig.defects() == 1
    assert [r.message for r in caplog.records if r.name == "gateway.transport.guard"] == ["rpc failed"]


async def test_a_stream_that_fails_delivers_what_came_before(rig: Rig) -> None:
    rig.service.error = ServeError(Code.UNAVAILABLE, "gone")
    call = rig.channel.unary_stream(METHOD + "Generate")(b"")
    assert await call.read() == b""
    with pytest.raises(grpc.aio.AioRpcError):
        await call.read()


async def test_an_unknown_method_is_unimplemented(rig: Rig) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.channel.unary_unary(METHOD + "Nonsense")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_failed_request_is_gone_without_the_collector(rig: Rig) -> None:
    """An error that its own frame holds would keep the whole request until a full collection."""
    rig.service.holds = True
    gc.disable()
    try:
        with pytest.raises(grpc.aio.AioRpcError):
            await rig.unary()
        await asyncio.sleep(0.05)
        assert [prompt() for prompt in rig.service.prompts] == [None]
    finally:
        gc.enable()


class _Gone:
    """The context of an RPC whose client went a moment ago: gRPC itself does not know yet."""

    async def abort(self, *_: object) -> None:
        raise grpc.aio.InternalError


async def test_an_error_for_a_client_that_has_gone_ends_quietly() -> None:
    with pytest.raises(asyncio.CancelledError):
        await abort(_Gone(), ServeError(Code.UNAVAILABLE, "no node"))
