"""Predictions get better from what really happened, and say how sure they are."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_fixtures import SMALL, always, cloud, fleet, node, observed, query

from tidegate.routing.domain import Budget, NodeLoad, NodeState, SessionHint
from tidegate.routing.knowledge import IDLE, Knowledge
from tidegate.routing.latency import LearnedLatency
from tidegate.routing.observation import Observation, Outcome, Stage
from tidegate.routing.plan import Plan
from tidegate.routing.policy import route
from tidegate.routing.prediction import Prediction

BUSY = NodeLoad(running=4, queued=2, pending_prefill_tokens=300, pending_decode_tokens=600)


def ask(model: LearnedLatency, target: NodeState | None = None, **asked: object) -> Prediction:
    return model.predict(target or node(), SMALL, query(**asked))  # type: ignore[arg-type]


def learn(model: LearnedLatency, times: int, target: NodeState | None = None, **outcome: object) -> None:
    for _ in range(times):
        model.record(observed(ask(model, target), **outcome))  # type: ignore[arg-type]


def learned_times(model: LearnedLatency, part: str) -> float:
    """How many times as long as its report says the node is predicted to take."""
    return float(getattr(ask(model), part) / getattr(ask(LearnedLatency()), part))


def test_a_node_three_times_slower_is_learned_and_one_that_recovered_too() -> None:
    model = LearnedLatency()
    learn(model, 12, ttft_times=3.0)
    assert learned_times(model, "prefill_ms") == pytest.approx(3.0, rel=0.1)
    assert learned_times(model, "tpot_ms") == 1.0
    learn(model, 12, ttft_times=1.0)
    assert learned_times(model, "prefill_ms") == pytest.approx(1.0, rel=0.1)


def test_per_token_time_is_learned_apart() -> None:
    model = LearnedLatency()
    learn(model, 12, tpot_times=2.0)
    assert learned_times(model, "tpot_ms") == pytest.approx(2.0, rel=0.1)
    assert learned_times(model, "prefill_ms") == 1.0


def test_routing_does_not_prefer_a_slow_node_for_its_long_answers() -> None:
    """Two nodes, one with four times the TTFT and long answers. Spread over its tokens, as routers have done
    it, its latency per token looks lower: the positive control shows what mixing does."""
    slow, fast = node("slow"), node("fast")
    model, mixed = LearnedLatency(), {"id-slow": 0.0, "id-fast": 0.0}
    for name, target, times, tokens in (("slow", slow, 4.0, 500), ("fast", fast, 1.0, 4)):
        for _ in range(20):
            o = observed(
                ask(model, target), name=name, ttft_times=times, tpot_times=1.0, output_tokens=tokens
            )
            model.record(o)
            assert o.actual_ttft_ms is not None
            assert o.actual_tpot_ms is not None
            mixed[o.node_id] = (o.actual_ttft_ms + (tokens - 1) * o.actual_tpot_ms) / tokens
    plan = route(fleet(slow, fast), query(budget=Budget(ttft_ms=900.0)), model, always(0.0))
    assert isinstance(plan, Plan)
    assert plan.first.node is fast
    assert min(mixed, key=mixed.__getitem__) == "id-slow"  # control


def test_one_wild_answer_moves_little() -> None:
    model = LearnedLatency()
    learn(model, 30, ttft_times=1.0)
    learn(model, 1, ttft_times=20.0)
    assert learned_times(model, "prefill_ms") < 1.2


def test_a_cut_off_attempt_only_counts_as_a_lower_bound() -> None:
    model = LearnedLatency()
    p = ask(model)
    cut = {"censored": True, "prompt_tokens": 0, "outcome": Outcome.CANCELLED}
    model.record(observed(p, ttft_times=0.3, **cut))  # type: ignore[arg-type]
    assert learned_times(model, "prefill_ms") == 1.0
    model.record(observed(p, ttft_times=5.0, **cut))  # type: ignore[arg-type]
    assert learned_times(model, "prefill_ms") > 1.2


def finished_and_cut(outcome: Outcome, output_tokens: int) -> LearnedLatency:
    model = LearnedLatency()
    for _ in range(30):
        model.record(observed(ask(model), ttft_times=1.0, tpot_times=1.0, output_tokens=64))
    for _ in range(60):
        cut = observed(
            ask(model), ttft_times=1.0, tpot_times=1.0, output_tokens=output_tokens, outcome=outcome
        )
        model.record(cut)
    return model


@pytest.mark.parametrize("outcome", [Outcome.CANCELLED, Outcome.FAILED, Outcome.TIMED_OUT])
def test_answers_that_were_cut_short_do_not_make_whole_ones_look_short(outcome: Outcome) -> None:
    model = finished_and_cut(outcome, output_tokens=4)
    budget = Budget(total_ms=0.8 * ask(LearnedLatency()).total_ms)
    assert ask(model).total_ms == pytest.approx(ask(LearnedLatency()).total_ms, rel=0.05)
    assert model.p_meet(ask(model), budget, 0.0) < 0.1
    told = finished_and_cut(Outcome.FINISHED, output_tokens=4)  # control
    assert told.p_meet(ask(told), budget, 0.0) > 0.5


def test_an_answer_that_was_cut_off_too_late_is_a_miss() -> None:
    model = LearnedLatency()
    learn(model, 60, ttft_times=1.0, tpot_times=1.0, output_tokens=64)
    before = ask(model)
    learn(model, 20, ttft_times=1.0, tpot_times=4.0, output_tokens=60, outcome=Outcome.TIMED_OUT)
    assert ask(model).total_p95_ms > 2.0 * before.total_p95_ms
    # Not only because the node's steps are known to be slower now.
    assert ask(model).odds.total_p95 > 1.2 * before.odds.total_p95


def test_cut_answers_count_as_at_least_as_long() -> None:
    model = LearnedLatency()
    learn(model, 20, ttft_times=1.0, output_tokens=40, stopped=True)
    expected = ask(model, max_tokens=4000).output_tokens
    learn(model, 20, ttft_times=1.0, output_tokens=40, outcome=Outcome.CANCELLED)
    assert ask(model, max_tokens=4000).output_tokens > 1.5 * expected


def test_a_queue_that_ended_early_does_not_make_prefill_look_fast() -> None:
    model = LearnedLatency()
    busy = node(load=BUSY)
    learn(model, 20, busy, ttft_times=1.0, queue_times=0.25)
    assert learned_times(model, "prefill_ms") == pytest.approx(1.0, rel=0.05)
    assert ask(model, busy).queue_ms < 0.6 * ask(LearnedLatency(), busy).queue_ms


@pytest.mark.parametrize(("expected", "really"), [(0, 150), (150, 0)])
def test_a_prefix_that_is_warm_or_not_against_expectation_is_not_the_nodes_speed(
    expected: int, really: int
) -> None:
    model = LearnedLatency()
    hint = SessionHint("id-edge-0", SMALL.digest, expected) if expected else None
    for _ in range(5):
        p = ask(model, session=hint)
        prefill_ms = 200.0 * (200 - really) / 140.0
        model.record(observed(p, ttft_times=1.0, cached_tokens=really, prefill_ms=prefill_ms))
    theta = ask(model, prompt_tokens=2000).prefill_ms / ask(LearnedLatency(), prompt_tokens=2000).prefill_ms
    assert theta == pytest.approx(1.0, rel=0.1)


def test_what_is_always_warm_though_nobody_knows_of_it_is_expected() -> None:
    model = LearnedLatency()
    for _ in range(60):
        p = ask(model)
        model.record(observed(p, ttft_times=1.0, cached_tokens=24, prefill_ms=(200 - 24) / 0.7))
    assert ask(model).fresh_tokens == pytest.approx(176, abs=2)


def test_a_class_tells_of_its_nodes_and_outlives_them() -> None:
    model = LearnedLatency()
    learn(model, 30, ttft_times=3.0)
    stranger = ask(model, node("stranger")).prefill_ms
    assert stranger == pytest.approx(3.0 * ask(LearnedLatency()).prefill_ms, rel=0.15)
    learn(model, 10, name="other", ttft_times=1.0)
    model.forget("id-edge-0")
    rebooted = node()
    rebooted = replace(rebooted, announcement=replace(rebooted.announcement, boot_id="another"))
    assert ask(model, rebooted).prefill_ms > 1.3 * ask(LearnedLatency()).prefill_ms


def test_what_was_learned_of_another_boot_does_not_count() -> None:
    model = LearnedLatency()
    learn(model, 12, ttft_times=3.0, hardware_class="of another class")
    rebooted = node()
    rebooted = replace(rebooted, announcement=replace(rebooted.announcement, boot_id="another"))
    assert ask(model, rebooted).prefill_ms == ask(LearnedLatency()).prefill_ms
    assert ask(model).prefill_ms > 2 * ask(LearnedLatency()).prefill_ms  # control


def test_a_shunned_node_gets_another_chance_with_time() -> None:
    model = LearnedLatency()
    learn(model, 10, ttft_times=10.0)
    learn(model, 100, node("healthy"), ttft_times=1.0, name="healthy")
    slow_ms = ask(model).prefill_ms
    for _ in range(2000):
        model.decay(0.25)
    assert ask(model).prefill_ms < 0.5 * slow_ms


def test_a_report_that_moves_keeps_what_was_learned_in_milliseconds() -> None:
    model = LearnedLatency()
    learn(model, 30, ttft_times=3.0)
    before_ms = ask(model).prefill_ms
    plain = node()
    slower = replace(plain.announcement.speeds, prefill_tokens_per_s=700.0 / 3)
    now = node(load=NodeLoad(speeds=slower))
    assert ask(model, now).prefill_ms == pytest.approx(before_ms, rel=0.15)


def _attempt(model: LearnedLatency, target: NodeState, rng: Random, times: float, sigma: float) -> bool:
    """One attempt with lognormal noise; whether it kept to the p95 it was sent with."""
    p = ask(model, target, prompt_tokens=rng.randint(20, 400))
    o = observed(p, ttft_times=times * math.exp(rng.gauss(0.0, sigma)), tpot_times=1.0)
    model.record(replace(o, prompt_tokens=p.asked_tokens))
    assert o.actual_ttft_ms is not None
    return o.actual_ttft_ms <= p.ttft_p95_ms


@pytest.mark.parametrize("sigma", [0.05, 0.6])
def test_the_p95_holds_for_95_of_100_whatever_the_noise(sigma: float) -> None:
    model, rng = LearnedLatency(), Random(1)
    kept = [_attempt(model, node(), rng, 2.0, sigma) for _ in range(1200)][200:]
    assert 0.93 <= sum(kept) / len(kept) <= 0.97


def test_the_p95_holds_again_soon_after_a_lasting_slowdown() -> None:
    model, rng = LearnedLatency(), Random(2)
    for _ in range(300):
        _attempt(model, node(), rng, 1.0, 0.2)
    kept = [_attempt(model, node(), rng, 3.0, 0.2) for _ in range(1100)]
    assert sum(kept[:10]) < 8  # control: it was felt
    assert 0.93 <= sum(kept[100:]) / 1000 <= 0.97


def test_parts_that_err_together_count_together() -> None:
    budget = Budget(ttft_ms=330.0, tpot_ms=7.5)
    odds = {}
    for kind in ("together", "apart"):
        model, rng = LearnedLatency(), Random(3)
        for _ in range(200):
            a, b = (math.exp(rng.gauss(0.0, 0.2)) for _ in range(2))
            learn(model, 1, ttft_times=a, tpot_times=a if kind == "together" else b)
        p = ask(model)
        alone = p.odds.ttft.within(budget.ttft_ms / p.ttft_ms)  # type: ignore[operator]
        odds[kind] = model.p_meet(p, budget, 0.0)
        assert 0.5 < alone < 0.85
        assert odds[kind] <= alone
    assert odds["together"] > odds["apart"] + 0.05


def test_a_node_that_answers_nothing_loses_its_traffic_while_it_is_waited_for() -> None:
    model = LearnedLatency()
    asked = query(budget=Budget(ttft_ms=700.0))
    snapshot = fleet(node(), cloud())

    def tier() -> str:
        plan = route(snapshot, asked, model, always(0.0))
        assert isinstance(plan, Plan)
        return plan.first.node.binding.tier

    learn(model, 30, ttft_times=1.0)
    assert tier() == "edge"
    waiting = observed(ask(model), ttft_times=4.0, stage=Stage.WAITING, censored=True, prompt_tokens=0)
    for _ in range(6):
        model.record(waiting)
    assert tier() == "cloud"


def test_answers_that_end_early_are_expected_to() -> None:
    model = LearnedLatency()
    full = ask(model, max_tokens=400)
    for _ in range(50):
        model.record(observed(ask(model), ttft_times=1.0, output_tokens=20, stopped=True))
    short = ask(model, max_tokens=400)
    assert short.output_tokens == pytest.approx(20, rel=0.3)
    assert short.total_ms < full.total_ms / 4
    assert ask(model, prompt_tokens=1500, max_tokens=400).output_tokens > 200  # another class of prompts


@given(st.lists(st.tuples(st.floats(1e-6, 1e9), st.floats(1e-6, 1e9)), min_size=1, max_size=30))
def test_whatever_was_observed_predictions_stay_sane(shares: list[tuple[float, float]]) -> None:
    model = LearnedLatency()
    for ttft, tpot in shares:
        learn(model, 1, node(load=BUSY), ttft_times=ttft, tpot_times=tpot)
    p = ask(model)
    for value in (p.ttft_ms, p.tpot_ms, p.total_ms, p.ttft_p95_ms):
        assert 0.0 < value < math.inf
    assert p.ttft_p95_ms >= 0.5 * p.ttft_ms


def test_senseless_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        LearnedLatency(half_life_s=0.0)


def test_an_observation_is_of_an_attempt_that_ended_unless_it_says_otherwise() -> None:
    assert Observation("n", "d", "m", "c", ask(LearnedLatency())).stage is Stage.ENDED


def test_nodes_that_know_no_better_share_the_object_of_their_class() -> None:
    """What thousands of nodes have in common lies in one place, however few of them are looked at."""
    pool = Knowledge()
    nodes = [Knowledge(pool) for _ in range(3)]
    for _ in range(30):
        pool.residuals.joint.add((1.0, 1.5, 1.5), True, True)
    assert all(node.scored(IDLE) is pool.scored(IDLE) for node in nodes)
    for _ in range(30):
        nodes[0].residuals.ttft[IDLE].add(2.0, False)
    own = Knowledge(pool)
    own.residuals = nodes[0].residuals
    assert own.scored(IDLE) is own.scored(IDLE) is not pool.scored(IDLE)
    assert (own.scored(IDLE).of_ttft, own.scored(IDLE).of_total) == (2.0, 1.5)


def test_how_answers_went_on_beside_a_crowd_is_not_kept_against_the_node_alone() -> None:
    """Total times of a crowded node missed by 3; of its class, which has more nodes, they do not."""
    pool = Knowledge()
    crowded = Knowledge(pool)
    for _ in range(30):
        crowded.residuals.joint.add((1.0, 3.0, 3.0), True, True)
    assert crowded.scored(IDLE)[2:] == (3.0, 3.0)  # all that is known
    for _ in range(30):
        pool.residuals.joint.add((1.0, 1.5, 1.5), True, True)
    assert crowded.scored(IDLE)[2:] == (1.5, 1.5)
    # The class goes on learning while nobody asks this node.
    for _ in range(80):
        pool.residuals.joint.add((1.0, 1.0, 1.0), False, False)
    assert crowded.scored(IDLE)[2:] == (1.0, 1.0)
