"""What nodes that fail do to the requests on them."""

from __future__ import annotations

import pytest
from simulator_helpers import NODE, TRACE, fleet_of, play

from simulator.trace import Recorded


@pytest.mark.parametrize("kind", ["kill", "slow", "silent"])
@pytest.mark.parametrize("policy", ["tidegate", "load-per-slot"])
def test_a_failing_node_takes_no_request_with_it_that_has_no_token_yet(kind: str, policy: str) -> None:
    fault = {"at_s": 4.05, "for_s": 20.0, "kind": kind, "factor": 10.0}
    fleet = fleet_of({**NODE, "failures": [fault]}, {**NODE, "name": "other"})
    slowly = [r._replace(at_s=r.at_s * 5) for r in TRACE[:40]]
    served = play(fleet, slowly, policy)
    lost = sum(s.node is None for s in served)
    assert lost <= 2  # those that were being answered there
    healthy = play(fleet_of(NODE, {**NODE, "name": "other"}), slowly, policy)
    assert sum(s.total_s for s in served if s.node) > sum(s.total_s for s in healthy if s.node)


LONE = {**NODE, "slots": 1, "decode_tps": [[1, 10.0]]}
# A first token after 0.1 s and 399 steps of 0.1 s.
LONG = Recorded(0.0, 100, 400)


def faulty(*faults: tuple[float, float, str, float]) -> dict[str, object]:
    keys = ("at_s", "for_s", "kind", "factor")
    return {**LONE, "failures": [dict(zip(keys, fault, strict=True)) for fault in faults]}


@pytest.mark.parametrize("policy", ["round-robin", "exact", "tidegate"])
def test_a_slow_node_is_as_fast_as_before_when_its_fault_ends(policy: str) -> None:
    """Ten seconds at a tenth of the speed are worth one."""
    (served,) = play(fleet_of(faulty((5.0, 10.0, "slow", 10.0))), [LONG], policy)
    assert served.total_s == pytest.approx(40.0 + 9.0)


def test_a_step_under_way_is_slow_only_as_long_as_the_fault() -> None:
    """One chunk of 100 tokens takes 0.1 s: half of it before, a thousandth of a second's work within."""
    (served,) = play(fleet_of(faulty((0.05, 1.0, "slow", 1000.0))), [LONG], "round-robin")
    assert served.ttft_s == pytest.approx(0.05 + 1.0 + 0.049)


def test_slow_faults_that_overlap_multiply_and_leave_nothing() -> None:
    """5 s at 1/2, 5 s at 1/6, 5 s at 1/3 are worth 5 s in all."""
    overlapping = faulty((5.0, 10.0, "slow", 2.0), (10.0, 10.0, "slow", 3.0))
    (served,) = play(fleet_of(overlapping), [LONG], "round-robin")
    assert served.total_s == pytest.approx(40.0 + 15.0 - 5.0)


@pytest.mark.parametrize("policy", ["round-robin", "exact", "tidegate"])
def test_a_silent_node_goes_on_where_it_stood(policy: str) -> None:
    """Too short to be noticed; who comes meanwhile waits. The step under way, 0.05 s of it, begins anew."""
    silent = faulty((5.05, 1.0, "silent", 1.0))
    served = play(fleet_of(silent), [LONG, Recorded(5.5, 100, 1)], policy)
    assert served[0].total_s == pytest.approx(40.0 + 1.0 + 0.05)
    assert served[1].ttft_s == pytest.approx(served[0].total_s - 5.5 + 0.1)


@pytest.mark.parametrize("other", ["kill", "silent"])
@pytest.mark.parametrize("policy", ["round-robin", "tidegate"])
def test_a_killed_node_stays_away_until_its_last_fault_has_ended(policy: str, other: str) -> None:
    killed = faulty((1.0, 60.0, "kill", 1.0), (2.0, 3.0, other, 1.0))
    served = play(
        fleet_of(killed), [Recorded(0.0, 10, 1), Recorded(20.0, 10, 1), Recorded(70.0, 10, 1)], policy
    )
    assert [s.node is not None for s in served] == [True, False, True]
