"""Prefixes and load in the simulator, small: what the benchmark compares, with controls that must fail."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.bench_locality import (
    HOT_TTFT_MS,
    ROOMY,
    TIMES_LOAD_ONLY,
    Sticky,
    fleet,
    hot_arrivals,
    hot_capacity,
    one_cache,
    play,
)
from simulator.fleet import Slo
from simulator.trace import Recorded, draw
from tidegate.routing.baselines import LeastOutstanding
from tidegate.routing.policy import Tidegate


def test_one_cache_counts_what_an_lru_cache_holds() -> None:
    a, b, c = (tuple(f"{name}{n}".encode() for n in range(4)) for name in "abc")
    prompts = [(512, a), (512, b), (512, a), (512, c), (512, b)]
    # Room for two prompts: the third is found (all but the last token), b was dropped for c.
    assert one_cache(prompts, 1024) == 511 / (5 * 512)
    assert one_cache(prompts, 1536) == 2 * 511 / (5 * 512)


def test_a_hot_prefix_is_spread_as_load_demands_and_sticking_to_it_is_a_trap() -> None:
    spec = fleet(ROOMY, HOT_TTFT_MS)
    arrivals = hot_arrivals(spec, 900, 3.0 * hot_capacity(spec))
    hot = next(a.names[0] for a in arrivals if a.prompt_tokens > 4096)
    ours, load, sticky = (play(spec, arrivals, p, hot) for p in (Tidegate(), LeastOutstanding(), Sticky()))
    assert ours.hit_rate > 0.6
    assert ours.p99_ms < TIMES_LOAD_ONLY * load.p99_ms
    assert sticky.hit_rate > 0.6
    assert sticky.p99_ms > 10.0 * load.p99_ms


def test_turns_of_conversations_come_back_to_where_they_are_warm() -> None:
    """Twenty conversations of eight turns: by load alone most turns find another node."""
    spec = fleet(ROOMY)
    turns = [
        Recorded(
            turn * 30.0 + talk * 1.1,
            1024 * (turn + 1),
            50,
            tuple(range(talk * 100, talk * 100 + 2 * turn + 2)),
        )
        for turn in range(8)
        for talk in range(20)
    ]
    arrivals = draw(turns, spec, seed=2)
    possible = one_cache([(a.prompt_tokens, a.names) for a in arrivals], 8 * ROOMY)
    assert play(spec, arrivals, Tidegate()).hit_rate > 0.95 * possible
    assert play(spec, arrivals, LeastOutstanding()).hit_rate < 0.5 * possible  # the control


def test_without_a_budget_nodes_are_not_left_idle_while_others_are_full() -> None:
    """Then the whole answer counts. What one node suffered when it was crowded must not keep work away."""
    spec = replace(fleet(ROOMY), slos=(Slo("all", 1.0, None, None, None),))
    arrivals = hot_arrivals(spec, 1400, 3.0 * hot_capacity(spec))
    hot = next(a.names[0] for a in arrivals if a.prompt_tokens > 4096)
    ours, load = (play(spec, arrivals, p, hot) for p in (Tidegate(), LeastOutstanding()))
    assert ours.p99_ms < 3.0 * load.p99_ms
