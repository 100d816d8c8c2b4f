"""Predictions by hand calculation, and what must hold for any load."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_fixtures import SMALL, cloud, node, observed, query

from tidegate.routing.curves import step_ms
from tidegate.routing.domain import Budget, InFlight, NodeLoad, NodeState, SessionHint, Speeds
from tidegate.routing.latency import (
    BLOCK_TOKENS,
    NAMED_TOKENS,
    LearnedLatency,
    expected_cached_tokens,
)
from tidegate.routing.odds import LogNormal, Odds, SampledJoint, SampledTtft
from tidegate.routing.prediction import Prediction, p_meet
from tidegate.routing.prefix import NAMED_BLOCKS

MODEL = LearnedLatency()
FLAT = Speeds(1000.0, ((1, 100.0), (4, 50.0)))  # 1 ms a prompt token; steps of 10 ms alone, 20 ms at four


def predict(load: NodeLoad, in_flight: InFlight | None = None, **asked: object) -> Prediction:
    target = node(load=load, in_flight=in_flight, speeds=FLAT, rtt_ms=7.0)
    return MODEL.predict(target, SMALL, query(**asked))  # type: ignore[arg-type]


def test_an_idle_node_is_network_plus_prefill_plus_steps() -> None:
    p = predict(NodeLoad(), prompt_tokens=200, max_tokens=11)
    assert p[:8] == pytest.approx((207.0, 10.0, 307.0, 0.0, 200.0, 7.0, 0, 1), rel=0.01)
    assert p.output_tokens == pytest.approx(11, rel=0.01)
    assert p.ttft_p95_ms == pytest.approx(207 * math.exp(0.25 * 1.645), rel=0.001)


def test_no_prefill_is_shorter_than_a_step() -> None:
    assert predict(NodeLoad(), prompt_tokens=1).prefill_ms == pytest.approx(10.0)


def test_running_decodes_slow_prefill_and_steps() -> None:
    p = predict(NodeLoad(running=1, pending_decode_tokens=50), prompt_tokens=600, max_tokens=11)
    assert p.queue_ms == 0.0
    assert p.prefill_ms == pytest.approx(600 + 5 * 10)  # five chunks, each waits for one step of the other
    assert p.batch_size == 2
    assert p.tpot_ms == pytest.approx(10 + 10 / 3)


def test_pending_prefill_comes_first() -> None:
    p = predict(NodeLoad(running=1, pending_prefill_tokens=300), prompt_tokens=100)
    assert p.queue_ms == pytest.approx(300)
    assert p.prefill_ms == pytest.approx(100 + 400 / 120 * 10)


def test_without_a_free_slot_decodes_must_end_first() -> None:
    free = predict(NodeLoad(running=3, pending_decode_tokens=300))
    full = predict(NodeLoad(running=4, pending_decode_tokens=400))
    queued = predict(NodeLoad(running=4, queued=4, pending_decode_tokens=800))
    assert free.queue_ms == 0.0
    assert full.queue_ms == pytest.approx(20 * 100 * 2 / 5)
    assert queued.queue_ms == pytest.approx(20 * 100 * (2 / 5 + 1))


def test_work_just_sent_counts_until_acknowledged() -> None:
    sent = predict(NodeLoad(), InFlight(requests=4, prefill_tokens=400, decode_tokens=200))
    known = predict(NodeLoad(running=4, pending_prefill_tokens=400, pending_decode_tokens=200))
    assert sent == known
    assert sent.ttft_ms > predict(NodeLoad()).ttft_ms


def test_a_node_without_measurements_is_predicted_slow_not_refused() -> None:
    p = MODEL.predict(node(speeds=Speeds(0.0, ()), slots=0), SMALL, query())
    assert p.ttft_ms > 1000
    assert math.isfinite(p.total_ms)


def test_ttft_of_a_far_idle_node_against_a_near_busy_one() -> None:
    near = MODEL.predict(node(load=NodeLoad(running=4, queued=3, pending_decode_tokens=600)), SMALL, query())
    far = MODEL.predict(cloud(), SMALL, query())
    assert far.ttft_ms < near.ttft_ms


@pytest.mark.parametrize(
    ("curve", "batch", "expected"),
    [
        (((1, 100.0), (4, 50.0)), 1, 10.0),
        (((1, 100.0), (4, 50.0)), 4, 20.0),
        (((1, 100.0), (4, 50.0)), 7, 30.0),
        (((4, 50.0),), 1, 20.0),
        (((1, 100.0),), 1, 10.0),
        (((1, 100.0),), 3, 17.0),
        (((1, 50.0), (4, 100.0)), 4, 20.0),  # a curve that gets faster with the batch is noise
        (((1, 100.0), (2, 0.0), (3, math.nan), (4, 50.0)), 4, 20.0),
        ((), 1, 200.0),
    ],
)
def test_step_time_from_the_curve(curve: tuple[tuple[int, float], ...], batch: int, expected: float) -> None:
    assert step_ms(curve, batch) == pytest.approx(expected)


@given(
    st.lists(st.tuples(st.integers(1, 64), st.floats(0, 500)), max_size=6).map(
        lambda points: tuple(sorted(dict(points).items()))
    ),
    st.integers(1, 100),
)
def test_step_time_never_falls_with_the_batch(curve: tuple[tuple[int, float], ...], batch: int) -> None:
    assert 0.0 < step_ms(curve, batch) <= step_ms(curve, batch + 1) * (1 + 1e-9)


_loads = st.builds(
    NodeLoad,
    running=st.integers(0, 40),
    queued=st.integers(0, 40),
    pending_prefill_tokens=st.integers(0, 20_000),
    pending_decode_tokens=st.integers(0, 20_000),
)
_more = st.tuples(st.integers(0, 10), st.integers(0, 5_000), st.integers(0, 5_000))


@given(_loads, _more, st.integers(1, 2000), st.integers(1, 32))
def test_more_load_is_never_predicted_faster(
    load: NodeLoad, more: tuple[int, int, int], prompt_tokens: int, slots: int
) -> None:
    asked = query(prompt_tokens=prompt_tokens)
    before = MODEL.predict(node(load=load, slots=slots), SMALL, asked)
    after = MODEL.predict(node(load=load, slots=slots, in_flight=InFlight(*more)), SMALL, asked)
    assert after.ttft_ms >= before.ttft_ms * (1 - 1e-9)
    assert after.tpot_ms >= before.tpot_ms * (1 - 1e-9)
    assert after.total_ms >= before.total_ms * (1 - 1e-9)


def test_cached_tokens_take_the_better_of_session_and_blocks_below_the_prompt() -> None:
    names = tuple(bytes([i]) * 16 for i in range(8))
    warm = node(blocks=frozenset(names[:2]) | {names[5]})
    asked = {"prompt_tokens": 1000, "hashes": names}
    session = SessionHint("id-edge-0", SMALL.digest, 700)
    assert expected_cached_tokens(warm, SMALL, query(**asked)) == 2 * BLOCK_TOKENS  # a hole ends the match
    assert expected_cached_tokens(warm, SMALL, query(**asked, session=session)) == 700
    assert expected_cached_tokens(warm, SMALL, query(prompt_tokens=50, session=session)) == 49
    assert expected_cached_tokens(node("other"), SMALL, query(**asked, session=session)) == 0
    other_variant = SessionHint("id-edge-0", "else", 700)
    assert expected_cached_tokens(node(), SMALL, query(**asked, session=other_variant)) == 0


def test_what_a_session_left_is_not_expected_where_it_is_held_no_more() -> None:
    names = tuple(bytes([i]) * 16 for i in range(8))
    held = replace(node(blocks=frozenset(names[:3])), names_blocks=True)
    session = SessionHint("id-edge-0", SMALL.digest, 700, "boot", 3)
    asked = {"prompt_tokens": 1000, "hashes": names}

    def expected(where: NodeState, hint: SessionHint) -> int:
        return expected_cached_tokens(where, SMALL, query(**asked, session=hint))  # type: ignore[arg-type]

    assert expected(held, session) == 700  # of the answer no block has a name yet
    assert expected(replace(held, prefix_blocks=frozenset(names[:2])), session) == 2 * BLOCK_TOKENS
    gone = replace(held, prefix_blocks=frozenset())
    assert expected(gone, session) == 0
    assert expected(gone, replace(session, fresh=True)) == 700
    assert expected(replace(gone, names_blocks=False), session) == 700
    assert expected(gone, replace(session, blocks=0)) == 700  # it was too short for names
    assert expected(held, replace(session, boot_id="before")) == 3 * BLOCK_TOKENS
    assert expected(held, replace(session, boot_id="")) == 700


def test_a_warm_prefix_shortens_prefill_only() -> None:
    session = SessionHint("id-edge-0", SMALL.digest, 150)
    cold = MODEL.predict(node(), SMALL, query())
    warm = MODEL.predict(node(), SMALL, query(session=session))
    assert warm.prefill_ms == pytest.approx(cold.prefill_ms * 50 / 200)
    assert warm.tpot_ms == cold.tpot_ms


_ratios = st.floats(0.1, 10.0)
_odds = st.one_of(
    st.builds(lambda a, b: Odds(LogNormal(a), LogNormal(b)), st.floats(0.05, 2), st.floats(0.05, 2)),
    st.builds(
        lambda ttft, joint, stretch: Odds(
            SampledTtft(ttft, stretch), SampledJoint(joint, (1.0, stretch, 1.0))
        ),
        st.lists(_ratios, min_size=2, max_size=30),
        st.lists(st.tuples(_ratios, _ratios, _ratios), min_size=2, max_size=30),
        st.floats(0.7, 3.0),
    ),
)
_prediction = st.builds(
    lambda ttft, tpot, n, odds: Prediction(ttft, tpot, ttft + n * tpot, 0.0, ttft, 0.0, 0, 1, odds=odds),
    st.floats(0.1, 1e5),
    st.floats(0.1, 1e4),
    st.integers(0, 1000),
    _odds,
)
_limit = st.one_of(st.none(), st.floats(0.1, 1e6))


@given(_prediction, _limit, _limit, _limit, st.floats(0, 1e5), st.floats(1, 100))
def test_odds_rise_with_every_limit_and_fall_with_time_gone(
    p: Prediction,
    ttft: float | None,
    tpot: float | None,
    total: float | None,
    elapsed: float,
    wider: float,
) -> None:
    def scaled(limit: float | None) -> float | None:
        return None if limit is None else limit * wider

    odds = p_meet(p, Budget(ttft, tpot, total), elapsed)
    assert 0.0 <= odds <= 1.0
    for budget in (
        Budget(scaled(ttft), tpot, total),
        Budget(ttft, scaled(tpot), total),
        Budget(ttft, tpot, scaled(total)),
    ):
        assert p_meet(p, budget, elapsed) >= odds
    assert p_meet(p, Budget(ttft, tpot, total), elapsed * 2) <= odds


def test_odds_at_the_median_are_even_and_a_spent_budget_is_lost() -> None:
    p = Prediction(100.0, 10.0, 200.0, 0.0, 100.0, 0.0, 0, 1)
    assert p_meet(p, Budget(ttft_ms=100.0), 0.0) == pytest.approx(0.5)
    assert p_meet(p, Budget(ttft_ms=100.0, tpot_ms=10.0), 0.0) == pytest.approx(0.25)
    assert p_meet(p, Budget(ttft_ms=100.0), 100.0) == 0.0
    assert p_meet(p, Budget(total_ms=200.0 * math.exp(0.25 * 1.2815515)), 0.0) == pytest.approx(0.9)
    assert p_meet(p, Budget(), 1e9) == 1.0


def test_beyond_the_names_a_prompt_is_as_warm_as_such_prompts_were() -> None:
    """All 128 named blocks are held; of the tenth that has no names nothing is expected at first."""
    names = tuple(n.to_bytes(16, "big") for n in range(NAMED_BLOCKS))
    asked = query(prompt_tokens=18_022, hashes=names)
    warm, other = node(blocks=frozenset(names)), node(blocks=frozenset(names[:-1]))
    model = LearnedLatency()
    assert model.predict(warm, SMALL, asked).cached_tokens == NAMED_TOKENS
    for _ in range(60):
        prediction = model.predict(warm, SMALL, asked)
        model.record(observed(prediction, ttft_times=1.0, cached_tokens=18_000, prompt_tokens=18_022))
    assert model.predict(warm, SMALL, asked).cached_tokens > 17_900
    # Where the names end before, so does what is warm.
    assert model.predict(other, SMALL, asked).cached_tokens == NAMED_TOKENS - 128
    for _ in range(60):
        prediction = model.predict(warm, SMALL, asked)
        model.record(observed(prediction, ttft_times=1.0, cached_tokens=NAMED_TOKENS, prompt_tokens=18_022))
    assert model.predict(warm, SMALL, asked).cached_tokens < NAMED_TOKENS + 100


def test_times_of_nothing_at_all_leave_odds_that_can_be_computed_with() -> None:
    """The first token and all others in one message, as the clock reads it: every ratio would be 0."""
    model = LearnedLatency()
    for _ in range(40):
        p = model.predict(node(), SMALL, query())
        model.record(observed(p, ttft_times=0.0, tpot_times=0.0, output_tokens=20))
    after = model.predict(node(), SMALL, query())
    assert 0.0 < after.ttft_ms < after.ttft_p95_ms
    assert 0.0 < model.p_meet(after, Budget(ttft_ms=1e4, tpot_ms=1e3, total_ms=1e6), 0.0) <= 1.0
