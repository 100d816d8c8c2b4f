from __future__ import annotations

from collections.abc import Callable

import pytest

from serving.engines.llama_cpp.meter import SpeedMeter
from serving.engines.llama_cpp.prefill import Pending, PrefillPlanner


def planner(guard_ms: float = 200.0) -> PrefillPlanner:
    """1 ms a prompt token; steps of 10 ms for one sequence, 40 ms for eight."""
    meter = SpeedMeter(1000.0, {1: 10.0, 8: 40.0})
    return PrefillPlanner(meter, chunk_tokens=256, batch_tokens=512, guard_ms=guard_ms)


def pending(sid: int, left: int = 1000, **changes: float) -> Pending:
    return Pending(
        sid, sid, left, int(changes.get("priority", 0)), changes.get("at", 0.0), changes.get("due")
    )


def answering(count: int, since_ms: float = -10_000.0) -> list[float]:
    """That many answers, running for long."""
    return [since_ms] * count


def true_cost_ms(tokens: int) -> float:
    return 8.0 + 1.7 * tokens


def settle(
    plan: PrefillPlanner,
    decoding: int,
    waiting: list[Pending],
    base_ms: float,
    cost_ms: Callable[[int], float] = true_cost_ms,
    grows: float = 1.0,
) -> tuple[int, float]:
    """(prompt tokens, ms between two tokens of an answer) at last; each time the next step of answers takes
    `grows` times as long."""
    last = (0, 0.0)
    for _ in range(200):
        plan.observe(decoded=decoding, prefilled=0, step_ms=base_ms)
        tokens = sum(plan.allowance(answering(decoding), waiting, 0.0).values())
        plan.observe(decoded=0, prefilled=tokens, step_ms=cost_ms(tokens), beside=True)
        last = (tokens, base_ms + cost_ms(tokens))
        base_ms *= grows
    return last


def test_alone_a_prompt_gets_whole_chunks() -> None:
    assert planner().allowance([], [pending(1), pending(2)], 0.0) == {1: 256}
    assert planner().allowance([], [pending(1, 200), pending(2, 900)], 0.0) == {1: 200, 2: 56}
    assert planner().allowance([], [], 0.0) == {}


@pytest.mark.parametrize(("decoding", "base_ms"), [(1, 10.0), (8, 40.0)])
@pytest.mark.parametrize("cost_ms", [true_cost_ms, lambda n: 0.5 * n, lambda n: 30.0 + 4.0 * n])
def test_beside_answers_a_step_stays_within_the_guard(
    decoding: int, base_ms: float, cost_ms: Callable[[int], float]
) -> None:
    tokens, step_ms = settle(planner(), decoding, [pending(1)], base_ms, cost_ms)
    # Whatever prompts cost: not longer than the guard or two passes of 10 ms, but for the one token that goes
    # on in any case, and not much shorter.
    most_ms = max(2.4 * base_ms, base_ms + 20.0)
    assert tokens == 1 or 0.75 * most_ms <= step_ms <= 1.13 * most_ms


def test_answers_that_get_slower_do_not_starve_a_prompt() -> None:
    """They make steps longer without any doing of the prompt's: 16 times as long in the end."""
    plan = planner(guard_ms=10_000.0)
    first = settle(plan, 8, [pending(1)], 40.0)[0]
    assert settle(plan, 8, [pending(1)], 40.0, grows=1.005)[0] >= 0.8 * first


def test_who_came_together_waits_together() -> None:
    together = [pending(n, 128, at=1000.0) for n in range(1, 9)]
    (late,) = planner().allowance(answering(8), together[:1], 1200.0).values()
    burst = sum(planner().allowance(answering(8, 900.0), together, 1200.0).values())
    assert burst > 3 * late
    assert 40.0 + true_cost_ms(burst) <= 200.0 * 1.3


def test_even_the_first_guarded_step_is_careful() -> None:
    (tokens,) = planner().allowance(answering(8), [pending(1)], 0.0).values()
    assert 40.0 + true_cost_ms(tokens) <= 2.5 * 40.0


def test_many_who_wait_weigh_more_than_one_who_answers() -> None:
    many = [pending(n, 128) for n in range(1, 16)]
    tokens, step_ms = settle(planner(), 1, many, 10.0)
    assert tokens > 5 * settle(planner(), 1, many[:1], 10.0)[0]
    assert step_ms <= 200.0 * 1.1


def test_a_first_token_that_would_be_late_widens_the_guard() -> None:
    calm = sum(planner().allowance(answering(8), [pending(1, 400, due=60_000.0)], 0.0).values())
    urgent = sum(planner().allowance(answering(8), [pending(1, 400, due=500.0)], 0.0).values())
    assert urgent > 1.5 * calm
    lost = sum(planner().allowance(answering(8), [pending(1, 400, due=100.0)], 0.0).values())
    late = sum(planner().allowance(answering(8), [pending(1, 400, due=-5.0)], 0.0).values())
    assert lost == late == calm


def test_the_absolute_guard_holds_but_everyone_gets_on() -> None:
    plan = planner(guard_ms=5.0)
    # Two passes of 10 ms, of which one is for any token.
    assert 1 <= sum(plan.allowance(answering(8), [pending(1)], 0.0).values()) <= 10


def test_a_model_that_is_slow_for_its_device_still_computes_prompts_in_chunks() -> None:
    """A pass takes 65 ms, a prompt token 20."""
    meter = SpeedMeter(50.0, {1: 65.0, 4: 90.0})
    plan = PrefillPlanner(meter, chunk_tokens=256, batch_tokens=512, guard_ms=200.0)
    together = [pending(n, 128, at=1000.0) for n in range(1, 5)]
    assert sum(plan.allowance(answering(1, -300.0), together, 1100.0).values()) == 64
    tokens, step_ms = settle(plan, 1, [pending(1)], 65.0, lambda n: 60.0 + 20.0 * n)
    assert tokens >= 2
    assert step_ms <= 65.0 + 1.1 * 130.0


def test_on_a_fast_device_prompts_are_computed_while_nobody_notices() -> None:
    """As on a GPU: a step takes 2 ms, a pass for prompts more than its guard, their tokens hardly more."""
    meter = SpeedMeter(28_000.0, {1: 1.6, 4: 2.2})
    plan = PrefillPlanner(meter, chunk_tokens=256, batch_tokens=512, guard_ms=200.0)
    tokens, apart_ms = settle(plan, 4, [pending(1, 2000)], 2.2, lambda n: 3.5 + 0.05 * n)
    assert tokens >= 128
    assert apart_ms <= 25.0 * 1.1
    # Where steps take longer than that by themselves the guard is what counts.
    assert settle(planner(), 4, [pending(1)], 24.0)[1] <= 2.5 * 24.0


def test_order_is_priority_then_arrival_but_short_ones_pass() -> None:
    plan = planner()
    assert plan.allowance([], [pending(1), pending(2, priority=1)], 0.0) == {2: 256}
    assert list(plan.allowance([], [pending(1, 2000), pending(2, 24, at=500.0)], 500.0)) == [2, 1]
    # The long one has waited for longer than it computes: no newcomer passes it any more.
    assert list(plan.allowance([], [pending(1, 2000), pending(2, 24, at=2500.0)], 2500.0)) == [1]


def test_the_batch_bounds_a_step() -> None:
    meter = SpeedMeter(100_000.0, {1: 10.0})
    plan = PrefillPlanner(meter, chunk_tokens=512, batch_tokens=64, guard_ms=1000.0)
    assert sum(plan.allowance(answering(60), [pending(1)], 0.0).values()) == 64
    assert sum(plan.allowance([], [pending(1)], 0.0).values()) == 64
