"""Predictions get better from what really happened."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_fixtures import SMALL, always, cloud, fleet, node, observed, query, stamped

from tidegate.routing.correction import DEFAULT_SPREAD, MAX_SPREAD, MIN_SPREAD, Corrections, Factors
from tidegate.routing.domain import Budget, NodeLoad, SessionHint
from tidegate.routing.latency import FirstPrinciples, p_meet
from tidegate.routing.plan import Plan
from tidegate.routing.policy import route

KEY = ("id-edge-0", SMALL.digest)


def _learn(table: Corrections, times: int, **outcome: object) -> None:
    model = FirstPrinciples(corrections=table)
    plain = FirstPrinciples().predict(node(), SMALL, query())
    for _ in range(times):
        p = model.predict(node(), SMALL, query())
        shares: dict[str, object] = {}
        if "ttft" in outcome:
            shares["ttft_share"] = float(outcome["ttft"]) * plain.prefill_ms / p.prefill_ms  # type: ignore[arg-type]
        if "tpot" in outcome:
            shares["tpot_share"] = float(outcome["tpot"]) * plain.tpot_ms / p.tpot_ms  # type: ignore[arg-type]
        table.record(observed(p, **shares))  # type: ignore[arg-type]


def test_a_node_three_times_slower_is_learned_and_a_steady_one_stays() -> None:
    table = Corrections()
    _learn(table, 20, ttft=3.0)
    assert table.factors(*KEY)[:3] == (pytest.approx(3.0, rel=0.05), 1.0, 1.0)
    _learn(table, 30, ttft=1.0)
    assert table.factors(*KEY)[0] == pytest.approx(1.0, rel=0.05)


def test_per_token_time_is_learned_apart() -> None:
    table = Corrections()
    _learn(table, 20, tpot=2.0)
    assert table.factors(*KEY)[:3] == (1.0, pytest.approx(2.0, rel=0.05), 1.0)


def test_many_answers_sent_under_one_belief_do_not_overcorrect() -> None:
    table = Corrections()
    p = FirstPrinciples(corrections=table).predict(node(), SMALL, query())
    for _ in range(100):
        table.record(observed(p, ttft_share=2.0))
    assert table.factors(*KEY)[0] == pytest.approx(2.0, rel=0.01)


def test_a_cut_off_attempt_only_counts_as_a_lower_bound() -> None:
    table = Corrections()
    p = FirstPrinciples().predict(node(), SMALL, query())
    table.record(observed(p, ttft_share=0.3, censored=True))
    assert table.factors(*KEY)[0] == 1.0
    table.record(observed(p, ttft_share=5.0, censored=True))
    assert table.factors(*KEY)[0] > 1.0


def test_too_short_answers_say_nothing_about_per_token_time() -> None:
    table = Corrections()
    p = FirstPrinciples().predict(node(), SMALL, query())
    table.record(observed(p, tpot_share=9.0, output_tokens=2))
    assert table.factors(*KEY)[1] == 1.0


BUSY = NodeLoad(running=4, queued=2, pending_prefill_tokens=300, pending_decode_tokens=600)


def test_a_queue_that_ended_early_does_not_make_prefill_look_fast() -> None:
    table = Corrections(weight=1.0)
    p = FirstPrinciples().predict(node(load=BUSY), SMALL, query())
    assert p.queue_ms > 20
    table.record(stamped(p, queue_ms=p.queue_ms / 4, prefill_ms=p.prefill_ms))
    assert table.factors(*KEY)[:3] == pytest.approx((1.0, 1.0, 0.25), rel=0.01)
    model = FirstPrinciples(corrections=table)
    idle = FirstPrinciples().predict(node(), SMALL, query())
    assert model.predict(node(), SMALL, query()).ttft_ms == pytest.approx(idle.ttft_ms)
    assert model.predict(node(load=BUSY), SMALL, query()).queue_ms == pytest.approx(p.queue_ms / 4, rel=0.01)


def test_a_warm_prefix_nobody_expected_does_not_make_the_node_look_fast() -> None:
    table = Corrections(weight=1.0)
    p = FirstPrinciples().predict(node(), SMALL, query(prompt_tokens=400))
    half = stamped(p, prefill_ms=p.prefill_ms / 2, prompt_tokens=400, cached_tokens=200)
    table.record(half)
    assert table.factors(*KEY).ttft == pytest.approx(1.0, rel=0.01)
    table.record(stamped(p, prefill_ms=p.prefill_ms / 10, prompt_tokens=400, cached_tokens=390))
    assert table.factors(*KEY).ttft == pytest.approx(1.0, rel=0.01)
    table.record(replace(half, predicted_fresh_share=0.0))  # control: without the share it would
    assert table.factors(*KEY).ttft < 0.6


def test_an_expected_prefix_that_was_evicted_does_not_make_the_node_look_slow() -> None:
    table = Corrections(weight=1.0)
    warm = query(prompt_tokens=400, session=SessionHint("id-edge-0", SMALL.digest, 300))
    p = FirstPrinciples().predict(node(), SMALL, warm)
    assert p.fresh_share == pytest.approx(0.25)
    table.record(stamped(p, prefill_ms=4 * p.prefill_ms, prompt_tokens=400, cached_tokens=0))
    assert table.factors(*KEY).ttft == pytest.approx(1.0, rel=0.01)


def test_erratic_answers_lower_the_odds_and_steady_ones_raise_them() -> None:
    learned, odds = {}, {}
    for kind, shares in {"steady": (1.0, 1.0), "erratic": (0.4, 2.5)}.items():
        table = Corrections()
        p = FirstPrinciples(table).predict(node(), SMALL, query())
        for i in range(60):
            table.record(observed(p, ttft_share=shares[i % 2], tpot_share=shares[i % 2]))
        learned[kind] = table.factors(*KEY)
        p = p._replace(ttft_spread=learned[kind].ttft_spread, tpot_spread=learned[kind].tpot_spread)
        odds[kind] = p_meet(p, Budget(ttft_ms=400.0, tpot_ms=30.0), 0.0)
    assert learned["steady"].ttft_spread < DEFAULT_SPREAD
    assert learned["steady"].tpot_spread < DEFAULT_SPREAD
    assert learned["erratic"].tpot_spread == pytest.approx(0.9, abs=0.1)
    assert odds["erratic"] < odds["steady"]


def test_factors_fade_and_a_node_can_be_forgotten() -> None:
    table = Corrections(weight=1.0, half_life_s=60.0)
    p = FirstPrinciples().predict(node(), SMALL, query())
    table.record(observed(p, ttft_share=4.0))
    table.decay(60.0)
    assert table.factors(*KEY)[0] == pytest.approx(2.0)
    table.record(observed(p, name="other", ttft_share=4.0))
    table.forget("id-edge-0")
    assert table.factors(*KEY) == Factors()
    assert table.factors("id-other", SMALL.digest)[0] == pytest.approx(4.0)


@given(st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=30))
def test_factors_stay_inside_their_bounds(shares: list[float]) -> None:
    table = Corrections()
    p = FirstPrinciples().predict(node(), SMALL, query())
    for share in shares:
        table.record(observed(p, ttft_share=share, tpot_share=share))
    learned = table.factors(*KEY)
    assert all(0.25 <= factor <= 20.0 for factor in learned[:3])
    assert all(MIN_SPREAD <= spread <= MAX_SPREAD for spread in learned[3:])


def test_a_grey_node_loses_the_traffic_it_won_before() -> None:
    table = Corrections()
    model = FirstPrinciples(corrections=table)
    asked = query(budget=Budget(ttft_ms=700.0))
    snapshot = fleet(node(), cloud())

    def tier() -> str:
        plan = route(snapshot, asked, model, always(0.0))
        assert isinstance(plan, Plan)
        return plan.first.node.binding.tier

    assert tier() == "edge"
    _learn(table, 5, ttft=10.0)
    assert tier() == "cloud"


@pytest.mark.parametrize(
    "bad", [{"weight": 0.0}, {"weight": 1.5}, {"bounds": (2.0, 3.0)}, {"half_life_s": 0.0}]
)
def test_senseless_settings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Corrections(**bad)  # type: ignore[arg-type]
