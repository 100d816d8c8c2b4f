"""A server interceptor around every RPC: bad bytes, typed errors, and defects, each to its status."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from gateway.telemetry import Metrics
from tidegate.routing.domain import Code, ServeError
from tidegate.wire import status

log = logging.getLogger(__name__)

_INTERNAL = ServeError(Code.INTERNAL, "internal error; the gateway's log has it", reason="INTERNAL")
_BAD_BYTES = ServeError(Code.INVALID_ARGUMENT, "the message is not valid protobuf", reason="BAD_MESSAGE")


class _BadMessage:
    """Stands for a request whose bytes could not be read."""


async def abort(context: Any, error: ServeError) -> None:
    """Ends the RPC with the error's status and details."""
    try:
        await context.abort(
            status.to_grpc(error.code), status.status_message(error), status.trailing_metadata(error)
        )
    except grpc.aio.InternalError:
        raise _client_gone() from None


def _client_gone() -> asyncio.CancelledError:
    """What ends an RPC whose client went before gRPC says so: anything else is logged there as a defect."""
    return asyncio.CancelledError("its client has gone")


class Guard(grpc.aio.ServerInterceptor):
    """Without it, bytes that are no message surface as UNKNOWN and defects leak their text."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._guarded: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        method = handler_call_details.method
        plain, guarded = self._guarded.get(method, (None, None))
        if plain is not handler:
            guarded = self._guard(handler, method)
            self._guarded[method] = (handler, guarded)
        return guarded

    def _guard(self, handler: Any, method: str) -> Any:
        read = handler.request_deserializer
        return handler._replace(
            request_deserializer=None if read is None else _reader(read),
            unary_unary=self._unary(handler.unary_unary, method) if handler.unary_unary else None,
            unary_stream=self._stream(handler.unary_stream, method) if handler.unary_stream else None,
        )

    def _unary(self, behave: Any, method: str) -> Any:
        async def guarded(request: Any, context: Any) -> Any:
            try:
                _check(request)
                return await behave(request, context)
            except Exception as error:  # noqa: BLE001 - the RPC boundary: typed below
                await self._end(context, error, method)

        return guarded

    def _stream(self, behave: Any, method: str) -> Any:
        async def guarded(request: Any, context: Any) -> None:
            try:
                _check(request)
                answer = behave(request, context)
                if hasattr(answer, "__aiter__"):
                    async with aclosing(answer) as items:
                        async for item in items:
                            await context.write(item)
                else:
                    await answer
            except Exception as error:  # noqa: BLE001 - the RPC boundary: typed below
                await self._end(context, error, method)

        return guarded

    async def _end(self, context: Any, error: Exception, method: str) -> None:
        if isinstance(error, grpc.aio.AbortError):
            raise error
        if isinstance(error, ServeError):
            # Its frames hold it and the whole request: a cycle that would stay until a full collection.
            error.__traceback__ = None
            await abort(context, error)
        if isinstance(error, grpc.aio.InternalError):
            log.info("rpc ended by its client", extra={"method": method})
            raise _client_gone()
        log.error("rpc failed", extra={"method": method}, exc_info=error)
        self._metrics.internal_errors.labels("rpc").inc()
        await abort(context, _INTERNAL)


def _reader(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def safe(data: bytes) -> Any:
        try:
            return read(data)
        except (DecodeError, UnicodeDecodeError, ValueError):
            return _BadMessage()

    return safe


def _check(request: Any) -> None:
    if isinstance(request, _BadMessage):
        raise _BAD_BYTES
