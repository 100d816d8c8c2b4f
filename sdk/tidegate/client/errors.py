"""What can go wrong, as a caller sees it. gRPC's own errors never escape; they are the `__cause__`.

TidegateError
 ├── InvalidRequest       INVALID_ARGUMENT, ALREADY_EXISTS: the request itself; `param` names the field
 ├── Unauthenticated      UNAUTHENTICATED: no API key, or an unknown one
 ├── PermissionDenied     PERMISSION_DENIED: the key may not do this
 ├── ModelNotFound        NOT_FOUND: no such model or alias
 ├── NotPermitted         FAILED_PRECONDITION: no node may serve it (data class, region, capability)
 ├── BudgetUnmeetable     RESOURCE_EXHAUSTED, reason BUDGET_...: on_miss=REJECT, no node will meet the budget
 ├── Overloaded           RESOURCE_EXHAUSTED otherwise: queues full or rate limit; see `retry_after_ms`
 ├── Unavailable          UNAVAILABLE: gateway or node lost; `reason` names the cause
 ├── DeadlineExceeded     DEADLINE_EXCEEDED: deadline_s is over
 ├── Cancelled            CANCELLED: by the server, or because the stream or the client was closed
 ├── Unimplemented        UNIMPLEMENTED: this gateway does not know the call
 ├── InternalError        INTERNAL, UNKNOWN, and answers that break the protocol
 └── StreamRestarted      the answer starts again from index 0; what was received is void
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import grpc

from tidegate.routing.domain import Code, Restarted, ServeError
from tidegate.wire.status import Metadata, to_serve_error


class TidegateError(Exception):
    """Root of the tree.

    `reason` is a stable UPPER_SNAKE word for programs, `message` a sentence for people, `retry_after_ms` when
    the server says that trying again later makes sense, `param` the offending field, `details` further facts.
    """

    def __init__(
        self,
        message: str,
        *,
        code: Code = Code.INTERNAL,
        reason: str = "",
        retry_after_ms: float | None = None,
        param: str = "",
        details: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason or code.name
        self.retry_after_ms = retry_after_ms
        self.param = param
        self.details: Mapping[str, str] = dict(details or {})


class InvalidRequest(TidegateError):
    """The request itself is wrong; raised before sending where the SDK can tell."""


class Unauthenticated(TidegateError):
    """No API key, or an unknown one."""


class PermissionDenied(TidegateError):
    """The key may not do this."""


class ModelNotFound(TidegateError):
    """No such model or alias."""


class NotPermitted(TidegateError):
    """No node may serve this request (data class, region, capability)."""


class BudgetUnmeetable(TidegateError):
    """on_miss=REJECT and no node is expected to meet the budget. Nothing was computed."""


class Overloaded(TidegateError):
    """Refused before any work because queues are full or a limit is reached."""


class Unavailable(TidegateError):
    """The gateway cannot be reached, or the node was lost."""


class DeadlineExceeded(TidegateError):
    """deadline_s is over."""


class Cancelled(TidegateError):
    """Ended by the server, or because the stream or its client was closed."""


class Unimplemented(TidegateError):
    """This gateway does not know the call."""


class InternalError(TidegateError):
    """The server failed, or its answer breaks the protocol."""


class StreamRestarted(TidegateError):
    """The answer starts again from index 0 on another node; text received so far is void.

    Raised while iterating chunks, which also ends the stream. Pass on_restart="reset" to go on with the new
    answer instead, or iterate `stream.events()` to see the event itself.
    """

    def __init__(self, event: Restarted) -> None:
        super().__init__(
            f"the answer was started again ({event.cause or 'no cause given'}); text received so far is void",
            code=Code.UNAVAILABLE,
            reason="STREAM_RESTARTED",
        )
        self.event = event


_CLASSES: Mapping[Code, type[TidegateError]] = {
    Code.INVALID_ARGUMENT: InvalidRequest,
    Code.ALREADY_EXISTS: InvalidRequest,
    Code.UNAUTHENTICATED: Unauthenticated,
    Code.PERMISSION_DENIED: PermissionDenied,
    Code.NOT_FOUND: ModelNotFound,
    Code.FAILED_PRECONDITION: NotPermitted,
    Code.RESOURCE_EXHAUSTED: Overloaded,
    Code.UNAVAILABLE: Unavailable,
    Code.DEADLINE_EXCEEDED: DeadlineExceeded,
    Code.CANCELLED: Cancelled,
    Code.UNIMPLEMENTED: Unimplemented,
    Code.INTERNAL: InternalError,
}


def from_serve_error(error: ServeError) -> TidegateError:
    kind = _CLASSES[error.code]
    if kind is Overloaded and error.reason.startswith("BUDGET"):
        kind = BudgetUnmeetable
    return kind(
        error.message,
        code=error.code,
        reason=error.reason,
        retry_after_ms=error.retry_after_ms,
        param=error.param,
        details=error.details,
    )


def from_rpc_error(error: grpc.RpcError) -> TidegateError:
    """Works for grpc and grpc.aio; the caller chains the cause."""
    metadata = cast("Metadata", error.trailing_metadata() or ())
    return from_serve_error(to_serve_error(error.code(), error.details(), metadata))


def broken_protocol(message: str, reason: str) -> InternalError:
    """The server's answer is not one this version understands."""
    return InternalError(message, code=Code.INTERNAL, reason=reason)


def closed_by_us(what: str) -> Cancelled:
    return Cancelled(f"the {what} was closed", code=Code.CANCELLED, reason="CLOSED")
