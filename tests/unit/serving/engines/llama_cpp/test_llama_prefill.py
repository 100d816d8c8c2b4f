from __future__ import annotations

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


def true_cost_ms(tokens: int) -> float:
    return 8.0 + 1.7 * tokens


def settle(plan: PrefillPlanner, decoding: int, waiting: list[Pending], base_ms: float) -> int:
    tokens = 0
    for _ in range(50):
        tokens = sum(plan.allowance(decoding, waiting, 0.0).values())
        plan.observe(decoded=decoding, prefilled=tokens, step_ms=base_ms + true_cost_ms(tokens))
    return tokens


def test_alone_a_prompt_gets_whole_chunks() -> None:
    assert planner().allowance(0, [pending(1), pending(2)], 0.0) == {1: 256}
    assert planner().allowance(0, [pending(1, 200), pending(2, 900)], 0.0) == {1: 200, 2: 56}
    assert planner().allowance(0, [], 0.0) == {}


def test_beside_answers_a_step_stays_within_the_guard() -> None:
    for decoding, base_ms in ((1, 10.0), (8, 40.0)):
        tokens = settle(planner(), decoding, [pending(1)], base_ms)
        assert tokens >= 1
        assert base_ms + true_cost_ms(tokens) <= 2.5 * base_ms


def test_a_cheaper_prompt_than_expected_uses_the_room_it_has() -> None:
    plan, tokens = planner(), 0
    for _ in range(50):
        tokens = sum(plan.allowance(8, [pending(1)], 0.0).values())
        plan.observe(decoded=8, prefilled=tokens, step_ms=40.0 + 0.5 * tokens)
    assert 40.0 + 0.5 * tokens >= 1.8 * 40.0
    assert 40.0 + 0.5 * tokens <= 2.5 * 40.0


def test_even_the_first_guarded_step_is_careful() -> None:
    (tokens,) = planner().allowance(8, [pending(1)], 0.0).values()
    assert 40.0 + true_cost_ms(tokens) <= 2.5 * 40.0


def test_many_who_wait_weigh_more_than_one_who_answers() -> None:
    many = [pending(n, 128) for n in range(1, 16)]
    tokens = settle(planner(), 1, many, 10.0)
    assert tokens > 5 * settle(planner(), 1, many[:1], 10.0)
    assert 10.0 + true_cost_ms(tokens) <= 200.0 * 1.1


def test_a_first_token_that_would_be_late_widens_the_guard() -> None:
    calm = sum(planner().allowance(8, [pending(1, 400, due=60_000.0)], 0.0).values())
    urgent = sum(planner().allowance(8, [pending(1, 400, due=500.0)], 0.0).values())
    assert urgent > 1.5 * calm
    lost = sum(planner().allowance(8, [pending(1, 400, due=100.0)], 0.0).values())
    late = sum(planner().allowance(8, [pending(1, 400, due=-5.0)], 0.0).values())
    assert lost == late == calm


def test_the_absolute_guard_holds_but_everyone_gets_on() -> None:
    plan = planner(guard_ms=5.0)
    assert sum(plan.allowance(8, [pending(1)], 0.0).values()) == 1


def test_order_is_priority_then_arrival_but_short_ones_pass() -> None:
    plan = planner()
    assert plan.allowance(0, [pending(1), pending(2, priority=1)], 0.0) == {2: 256}
    assert list(plan.allowance(0, [pending(1, 2000), pending(2, 24, at=500.0)], 500.0)) == [2, 1]
    # The long one has waited for longer than it computes: no newcomer passes it any more.
    assert list(plan.allowance(0, [pending(1, 2000), pending(2, 24, at=2500.0)], 2500.0)) == [1]


def test_the_batch_has_room_for_the_answers() -> None:
    meter = SpeedMeter(100_000.0, {1: 10.0})
    plan = PrefillPlanner(meter, chunk_tokens=512, batch_tokens=64, guard_ms=1000.0)
    assert sum(plan.allowance(60, [pending(1)], 0.0).values()) <= 4
    assert sum(plan.allowance(0, [pending(1)], 0.0).values()) == 64
