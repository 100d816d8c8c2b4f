"""The fleet that is simulated beside the real one."""

from __future__ import annotations

from benchmarks.bench_sim_real import fleet, in_turn, requests, simulated
from benchmarks.common import percentile


def test_the_simulated_nodes_take_turns_as_the_real_ones_do() -> None:
    spec = fleet(4.0)
    ids = {"fast-0": "c", "fast-1": "a", "slow-0": "b", "slow-1": "d"}
    turned = in_turn(spec, ids)
    assert [n.name for n in turned.nodes] == ["0-fast-1", "1-slow-0", "2-fast-0", "3-slow-1"]


def test_the_order_of_turns_is_not_a_detail() -> None:
    """Which is why it must be the real one: two orders, the same requests, and another tail."""
    spec = fleet(4.0)
    arrivals = requests(500, spec)
    tails = []
    for ids in (
        {"fast-0": "a", "fast-1": "b", "slow-0": "c", "slow-1": "d"},
        {"fast-0": "a", "slow-0": "b", "fast-1": "c", "slow-1": "d"},
    ):
        outcomes, *_ = simulated(in_turn(spec, ids), arrivals, "round-robin")
        tails.append(percentile([o.ttft_ms for o in outcomes], 0.95))
    assert tails[1] > 1.2 * tails[0]
