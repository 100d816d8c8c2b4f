"""From a node's typed failure to the error its local caller gets."""

from __future__ import annotations

from tidegate.routing.domain import CODE_OF_CAUSE, Code, Failure, NodeLoad, ServeError

_RETRY = (Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE)
RETRY_MIN_MS = 100.0
RETRY_MAX_MS = 30_000.0
RESTART_RETRY_MS = 1_000.0


def serve_error(failure: Failure, load: NodeLoad) -> ServeError:
    """`load` is the node's load now: it says when trying again makes sense."""
    code = CODE_OF_CAUSE[failure.cause]
    retry_after_ms: float | None = None
    if code is Code.RESOURCE_EXHAUSTED:
        retry_after_ms = _backlog_ms(load)
    elif code in _RETRY:
        retry_after_ms = RESTART_RETRY_MS
    return ServeError(
        code,
        failure.detail or failure.cause.value.replace("_", " "),
        reason=failure.cause.name,
        retry_after_ms=retry_after_ms,
    )


def _backlog_ms(load: NodeLoad) -> float:
    """Time until about one running sequence has ended and the waiting prompts are read."""
    speeds = load.speeds
    if speeds is None or speeds.prefill_tokens_per_s <= 0 or not speeds.decode:
        return RESTART_RETRY_MS
    prefill_s = load.pending_prefill_tokens / speeds.prefill_tokens_per_s
    mean_left = load.pending_decode_tokens / max(1, load.running + load.queued)
    decode_s = mean_left / max(speeds.decode[-1][1], 1e-3)
    return min(RETRY_MAX_MS, max(RETRY_MIN_MS, (prefill_s + decode_s) * 1000.0))
