"""Route and outcome in headers: the same names on both doors, bounded, never inputs."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tidegate.routing.domain import BudgetOutcome, Finished, FinishReason, Route, Tier, Timings, Usage
from tidegate.wire import summary

ROUTE = Route("n1", "kitchen", Tier.EDGE, "smol", "d", predicted_ttft_ms=123.456, why="cheapest")
FINISHED = Finished(FinishReason.STOP, Usage(), Timings(ttft_ms=150.0), BudgetOutcome.MISSED, attempts=2)


def test_what_they_say() -> None:
    assert summary.of_route(ROUTE) == {
        "x-tidegate-node": "kitchen",
        "x-tidegate-tier": "edge",
        "x-tidegate-model": "smol",
        "x-tidegate-predicted-ttft-ms": "123.5",
        "x-tidegate-why": "cheapest",
    }
    assert summary.of_outcome(FINISHED) == {
        "x-tidegate-attempts": "2",
        "x-tidegate-measured-ttft-ms": "150.0",
        "x-tidegate-budget": "missed",
    }


def test_nothing_is_said_that_is_not_known() -> None:
    bare = summary.of_route(replace(ROUTE, node_name="", predicted_ttft_ms=0.0, why=""))
    assert bare == {"x-tidegate-node": "n1", "x-tidegate-tier": "edge", "x-tidegate-model": "smol"}
    assert "x-tidegate-budget" not in summary.of_outcome(replace(FINISHED, budget=BudgetOutcome.NONE))


@given(st.text(max_size=3000), st.text(max_size=300), st.text(max_size=300), st.floats(0, 1e12))
def test_together_they_are_printable_and_within_a_kib(why: str, name: str, model: str, ms: float) -> None:
    route = replace(ROUTE, why=why, node_name=name, model=model, predicted_ttft_ms=ms)
    finished = replace(FINISHED, timings=Timings(ttft_ms=ms), attempts=10)
    told = summary.of_route(route) | summary.of_outcome(finished)
    assert sum(len(key) + len(value) + 4 for key, value in told.items()) <= summary.MAX_BYTES
    assert all(value.isascii() and (value.isprintable()) for value in told.values())
    assert {key.removeprefix(summary.PREFIX) for key in told} <= summary.NAMES
