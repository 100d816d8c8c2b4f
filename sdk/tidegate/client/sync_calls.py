"""The sync client's calls: the same tries as tidegate.client.calls, over blocking gRPC.

Blocking gRPC was chosen over an event loop in a background thread: it needs no thread that must be stopped,
Ctrl-C reaches it, and it stands beside an application's own event loops.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar, cast

import grpc

from tidegate.client.endpoints import RECONNECT_BACKOFF_MS, Endpoints, ForkGuard, call_metadata
from tidegate.client.errors import TidegateError, closed_by_us, from_rpc_error
from tidegate.client.retry import CallPlan, Clock, RetryBudget, RetryPolicy, Uniform
from tidegate.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from tidegate.wire.channels import TlsConfig, open_sync_channel

Q = TypeVar("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class _Running(Protocol[R_co]):
    """A call whose messages are being read."""

    def __next__(self) -> R_co: ...

    def cancel(self) -> bool: ...


class SyncCore:
    """What all calls of one client share. May be used from several threads."""

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
        self.closing = threading.Event()
        self._tls = tls
        self._retry = retry
        self._retry_budget = RetryBudget(retry)
        self._max_receive_bytes = max_receive_bytes
        self._uniform = uniform
        self._fork_guard = ForkGuard()
        self._lock = threading.Lock()
        self._channels: dict[str, grpc.Channel] = {}
        self._stubs: dict[str, GatewayServiceStub] = {}

    def plan(self, deadline_s: float | None) -> CallPlan:
        return CallPlan(
            self._retry, self._retry_budget, deadline_s=deadline_s, clock=self.clock, uniform=self._uniform
        )

    def stub(self, address: str) -> GatewayServiceStub:
        """Raises RuntimeError after a fork, Cancelled when closed."""
        self._fork_guard.check()
        with self._lock:
            if self.closing.is_set():
                raise closed_by_us("client")
            channel = self._channels.get(address)
            if channel is None:
                channel = open_sync_channel(
                    address,
                    tls=self._tls,
                    max_receive_bytes=self._max_receive_bytes,
                    max_reconnect_backoff_ms=RECONNECT_BACKOFF_MS,
                )
                self._channels[address] = channel
                self._stubs[address] = GatewayServiceStub(channel)
            return self._stubs[address]

    def close(self) -> None:
        with self._lock:
            self.closing.set()
            channels, self._channels = self._channels, {}
            self._stubs.clear()
        for channel in channels.values():
            channel.close()


def sync_unary(
    core: SyncCore,
    method: Callable[[GatewayServiceStub], grpc.UnaryUnaryMultiCallable[Q, R]],
    request: Q,
    deadline_s: float | None,
) -> R:
    """One message for one message. `method` picks the call from a stub."""
    plan = core.plan(deadline_s)
    while True:
        timeout_s = plan.start_attempt()
        address = core.endpoints.current
        try:
            response = method(core.stub(address))(request, timeout=timeout_s, metadata=core.metadata)
        except grpc.RpcError as rpc_error:
            if core.closing.is_set():
                raise closed_by_us("client") from rpc_error
            error = from_rpc_error(rpc_error)
            pause_s = plan.pause_s(error)
            if pause_s is None:
                raise error from rpc_error
            core.endpoints.failed(address)
            core.closing.wait(pause_s)
            continue
        except ValueError as closed:
            # What gRPC says of a channel that another thread has just closed.
            if core.closing.is_set():
                raise closed_by_us("client") from closed
            raise
        plan.succeeded()
        return response


class SyncServerStream(Generic[Q, R]):
    """Messages of one server-streaming call; see tidegate.client.calls.ServerStream.

    One thread reads; any thread may close.
    """

    def __init__(
        self,
        core: SyncCore,
        method: Callable[[GatewayServiceStub], grpc.UnaryStreamMultiCallable[Q, R]],
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
        self._lock = threading.Lock()
        self._call: _Running[R] | None = None
        self._received = False
        self._ended = False
        self._closing = threading.Event()

    def read(self) -> R | None:
        """The next message, None at the end. Raises TidegateError; a failed stream has ended."""
        if self._closing.is_set():
            raise closed_by_us("stream")
        if self._ended:
            return None
        try:
            return self._read()
        except BaseException:
            self._end()
            raise

    def close(self) -> None:
        """Cancels the call if it still runs. A read in another thread raises Cancelled. Idempotent."""
        self._closing.set()
        self._end()

    def _read(self) -> R | None:
        plan = self._plan = self._plan or self._core.plan(self._deadline_s)
        while True:
            try:
                message = next(self._running(plan))
            except StopIteration:
                self._ended, self._call = True, None
                return None
            except grpc.RpcError as rpc_error:
                self._pause(plan, from_rpc_error(rpc_error), rpc_error)
                continue
            except ValueError as closed:
                if self._closing.is_set() or self._core.closing.is_set():
                    raise closed_by_us("stream") from closed
                raise
            if not self._received or self._reconnect:
                plan.succeeded()
            self._received = True
            return message

    def _running(self, plan: CallPlan) -> _Running[R]:
        with self._lock:
            if self._closing.is_set():
                raise closed_by_us("stream")
            if self._call is None:
                timeout_s = plan.start_attempt()
                self._address = self._core.endpoints.current
                call = self._method(self._core.stub(self._address))(
                    self._request, timeout=timeout_s, metadata=self._core.metadata
                )
                self._call = cast("_Running[R]", call)
            return self._call

    def _pause(self, plan: CallPlan, error: TidegateError, rpc_error: grpc.RpcError) -> None:
        """Waits before the next try, or raises `error`."""
        with self._lock:
            self._call = None
        if self._closing.is_set() or self._core.closing.is_set():
            raise closed_by_us("stream") from rpc_error
        may_retry = self._reconnect or not self._received
        pause_s = plan.pause_s(error) if may_retry else None
        if pause_s is None:
            raise error from rpc_error
        self._core.endpoints.failed(self._address)
        if self._closing.wait(pause_s):
            raise closed_by_us("stream") from rpc_error

    def _end(self) -> None:
        with self._lock:
            self._ended = True
            call, self._call = self._call, None
        if call is not None:
            call.cancel()
