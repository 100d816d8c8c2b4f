"""From an attempt's failure or a refusal to the error a client sees."""

from __future__ import annotations

from tidegate.routing.domain import CODE_OF_CAUSE, Cause, Code, Failure, ServeError

# Failures after which another node may do better. INVALID_INPUT and CONTEXT_LENGTH would fail anywhere,
# FENCED is our own doing.
RETRYABLE = frozenset(
    {
        Cause.ENGINE_CRASHED,
        Cause.ENGINE_HUNG,
        Cause.UPSTREAM,
        Cause.OVERLOADED,
        Cause.DRAINING,
        Cause.UNKNOWN_VARIANT,
        Cause.INTERNAL,
        Cause.NODE_LOST,
        Cause.STALLED,
    }
)
# A request that did this to one engine may do it to the next: one more try, not a tour of the fleet.
SUSPICIOUS = frozenset({Cause.ENGINE_CRASHED, Cause.ENGINE_HUNG, Cause.INTERNAL})
RETRY_AFTER_MS = 250.0


def failure_error(failure: Failure, *, node_name: str, tokens: int) -> ServeError:
    """The error for an attempt that failed for good; `reason` is the cause, for programs."""
    if failure.cause is Cause.DEADLINE:
        return deadline_error()
    code = CODE_OF_CAUSE[failure.cause]
    cause = failure.cause.value.replace("_", " ")
    if code is Code.INVALID_ARGUMENT:
        message = failure.detail or "the node cannot process this input"
    elif tokens:
        message = f"node {node_name} failed after {tokens} tokens ({cause}): {failure.detail}"
    else:
        message = f"node {node_name} failed before the first token ({cause}): {failure.detail}"
    retry = code in (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED)
    return ServeError(
        code,
        message,
        reason=failure.cause.name,
        retry_after_ms=RETRY_AFTER_MS if retry else None,
        details={"tokens": str(tokens), "node": node_name},
    )


def deadline_error() -> ServeError:
    return ServeError(Code.DEADLINE_EXCEEDED, "the request's deadline passed", reason="DEADLINE")
