"""The async client's calls: tries over the gateways' addresses, until a message arrives or time is up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import grpc
import grpc.aio

from tidegate.client.endpoints import RECONNECT_BACKOFF_MS, Endpoints, ForkGuard, call_metadata
from tidegate.client.errors import TidegateError, broken_protocol, closed_by_us, from_rpc_error
from tidegate.client.retry import CallPlan, Clock, RetryBudget, RetryPolicy, Uniform
from tidegate.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from tidegate.wire.channels import TlsConfig, open_channel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.gateway.v1.gateway_pb2_grpc import GatewayServiceAsyncStub

Q = TypeVar("Q")
R = TypeVar("R")


class Core:
    """What all calls of one client share: channels per address, key, retry budget, clock and randomness."""

    def __init__(
        self,
        addresses: str | Sequence[str],
        *,
        api_key: str | None,
        tls: TlsConfig | None,
        retry: RetryPolicy,
        max_receive_bytes: int,
        clock: Clock,
        uniform: Uniform,
    ) -> None:
        self.endpoints = Endpoints(addresses, uniform)
        self.metadata = call_metadata(api_key)
        self.clock = clock
        self.closed = False
        self._tls = tls
        self._retry = retry
        self._retry_budget = RetryBudget(retry)
        self._max_receive_bytes = max_receive_bytes
        self._uniform = uniform
        self._fork_guard = ForkGuard()
        self.loop: asyncio.AbstractEventLoop | None = None
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._stubs: dict[str, GatewayServiceAsyncStub] = {}

    def plan(self, deadline_s: float | None) -> CallPlan:
        return CallPlan(
            self._retry, self._retry_budget, deadline_s=deadline_s, clock=self.clock, uniform=self._uniform
        )

    def stub(self, address: str) -> GatewayServiceAsyncStub:
        """Raises RuntimeError after a fork and on another event loop, Cancelled when closed."""
        if self.closed:
            raise closed_by_us("client")
        self._fork_guard.check()
        loop = asyncio.get_running_loop()
        if self.loop is None:
            self.loop = loop
        elif self.loop is not loop:
            raise RuntimeError("this client belongs to another event loop; create one per loop")
        stub = self._stubs.get(address)
        if stub is None:
            channel = self._channels[address] = open_channel(
                address,
                tls=self._tls,
                max_receive_bytes=self._max_receive_bytes,
                max_reconnect_backoff_ms=RECONNECT_BACKOFF_MS,
            )
            stub = self._stubs[address] = cast("GatewayServiceAsyncStub", GatewayServiceStub(channel))
        return stub

    async def close(self) -> None:
        self.closed = True
        channels, self._channels = self._channels, {}
        self._stubs.clear()
        for channel in channels.values():
            await channel.close(None)


async def unary(
    core: Core,
    method: Callable[[GatewayServiceAsyncStub], grpc.aio.UnaryUnaryMultiCallable[Q, R]],
    request: Q,
    deadline_s: float | None,
) -> R:
    """One message for one message. `method` picks the call from a stub."""
    plan = core.plan(deadline_s)
    while True:
        timeout_s = plan.start_attempt()
        address = core.endpoints.current
        try:
            response = await method(core.stub(address))(request, timeout=timeout_s, metadata=core.metadata)
        except grpc.RpcError as rpc_error:
            error = from_rpc_error(rpc_error)
            pause_s = None if core.closed else plan.pause_s(error)
            if pause_s is None:
                raise (closed_by_us("client") if core.closed else error) from rpc_error
            core.endpoints.failed(address)
            await asyncio.sleep(pause_s)
            continue
        except asyncio.CancelledError:
            if core.closed and not _task_cancelled():
                raise closed_by_us("client") from None
            raise
        if response is None:
            raise broken_protocol("the answer could not be parsed", "BAD_MESSAGE")
        plan.succeeded()
        return response


class ServerStream(Generic[Q, R]):
    """Messages of one server-streaming call. Dials, and starts its deadline, at the first read.

    Retried only until the first message, unless `reconnect` is set: then a later loss is retried as well, for
    streams whose every message is complete in itself.
    """

    def __init__(
        self,
        core: Core,
        method: Callable[[GatewayServiceAsyncStub], grpc.aio.UnaryStreamMultiCallable[Q, R]],
        request: Q,
        *,
        deadline_s: float | None,
        reconnect: bool = False,
    ) -> None:
        self._core = core
        self._method = method
        self._request = request
        self._deadline_s = deadline_s
        self._plan: CallPlan | None = None
        self._reconnect = reconnect
        self._address = ""
        self._call: grpc.aio.UnaryStreamCall[Q, R] | None = None
        self._received = False
        self._ended = False
        self._closing = asyncio.Event()

    async def read(self) -> R | None:
        """The next message, None at the end. Raises TidegateError; a failed stream has ended."""
        if self._closing.is_set():
            raise closed_by_us("stream")
        if self._ended:
            return None
        try:
            return await self._read()
        except BaseException:
            self._end()
            raise

    async def aclose(self) -> None:
        """Cancels the call if it still runs. A read in another task raises Cancelled. Idempotent."""
        self._closing.set()
        self._end()
        # One turn of the loop, so that the cancellation is on its way when this returns.
        await asyncio.sleep(0)

    def __del__(self) -> None:
        # A stream dropped in the middle must not keep an engine busy until the next collection of cycles.
        call, loop = getattr(self, "_call", None), self._core.loop
        if call is not None and loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(call.cancel)

    async def _read(self) -> R | None:
        plan = self._plan = self._plan or self._core.plan(self._deadline_s)
        while True:
            try:
                if self._call is None:
                    self._call = self._start(plan)
                message = await self._call.read()
            except grpc.RpcError as rpc_error:
                await self._pause(plan, from_rpc_error(rpc_error), rpc_error)
                continue
            except asyncio.CancelledError:
                if self._closing.is_set() and not _task_cancelled():
                    raise closed_by_us("stream") from None
                raise
            if message is grpc.aio.EOF:
                self._ended, self._call = True, None
                return None
            if message is None:
                raise broken_protocol("a message could not be parsed", "BAD_MESSAGE")
            if not self._received or self._reconnect:
                plan.succeeded()
            self._received = True
            return cast("R", message)

    def _start(self, plan: CallPlan) -> grpc.aio.UnaryStreamCall[Q, R]:
        timeout_s = plan.start_attempt()
        self._address = self._core.endpoints.current
        return self._method(self._core.stub(self._address))(
            self._request, timeout=timeout_s, metadata=self._core.metadata
        )

    async def _pause(self, plan: CallPlan, error: TidegateError, rpc_error: grpc.RpcError) -> None:
        """Waits before the next try, or raises `error`."""
        self._call = None
        if self._closing.is_set():
            raise closed_by_us("stream") from rpc_error
        may_retry = self._reconnect or not self._received
        pause_s = plan.pause_s(error) if may_retry else None
        if pause_s is None:
            raise error from rpc_error
        self._core.endpoints.failed(self._address)
        try:
            async with asyncio.timeout(pause_s):
                await self._closing.wait()
        except TimeoutError:
            return
        raise closed_by_us("stream") from rpc_error

    def _end(self) -> None:
        self._ended = True
        call, self._call = self._call, None
        if call is not None:
            call.cancel()


def _task_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
