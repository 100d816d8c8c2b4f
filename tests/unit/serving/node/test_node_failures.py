from __future__ import annotations

import pytest

from serving.node.failures import RETRY_MAX_MS, RETRY_MIN_MS, serve_error
from tidegate.routing.domain import Cause, Code, Failure, NodeLoad, Speeds

SPEEDS = Speeds(1000.0, ((1, 50.0), (4, 20.0)))


@pytest.mark.parametrize("cause", list(Cause))
def test_every_cause_has_a_code_and_keeps_its_name(cause: Cause) -> None:
    error = serve_error(Failure(cause, "why"), NodeLoad())
    assert isinstance(error.code, Code)
    assert (error.reason, error.message) == (cause.name, "why")
    retriable = error.code in (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED)
    assert (error.retry_after_ms is not None) is retriable


def test_a_failure_without_words_still_says_something() -> None:
    assert serve_error(Failure(Cause.ENGINE_HUNG), NodeLoad()).message == "engine hung"


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (NodeLoad(), 1000.0),
        (NodeLoad(speeds=SPEEDS), RETRY_MIN_MS),
        (NodeLoad(running=4, pending_decode_tokens=80, speeds=SPEEDS), 1000.0),
        (NodeLoad(running=4, pending_prefill_tokens=500, pending_decode_tokens=80, speeds=SPEEDS), 1500.0),
        (NodeLoad(running=1, pending_decode_tokens=10**6, speeds=SPEEDS), RETRY_MAX_MS),
    ],
)
def test_overload_says_when_a_slot_is_likely_free(load: NodeLoad, expected: float) -> None:
    error = serve_error(Failure(Cause.OVERLOADED), load)
    assert error.retry_after_ms == pytest.approx(expected)
