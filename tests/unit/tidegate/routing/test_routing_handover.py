"""A replica that starts knows what its peers know, and believes nothing that cannot be."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_fixtures import SMALL, node, observed, query

from tidegate.routing.domain import Budget
from tidegate.routing.handover import MAX_BYTES
from tidegate.routing.latency import LearnedLatency

BUDGET = Budget(ttft_ms=1000.0, tpot_ms=16.0)


def experienced(requests: int = 150) -> LearnedLatency:
    model, rng = LearnedLatency(), Random(1)
    for _ in range(requests):
        p = model.predict(node(), SMALL, query())
        times = math.exp(rng.gauss(0.0, 0.2))
        model.record(observed(p, ttft_times=3 * times, tpot_times=2 * times, output_tokens=20, stopped=True))
    return model


def hand_over(old: LearnedLatency, new: LearnedLatency) -> dict[str, str]:
    records = old.take_changed()
    assert all(new.adopt(name, record) for name, record in records.items())
    return records


def test_a_new_replica_predicts_what_the_old_one_did() -> None:
    old, new = experienced(), LearnedLatency()
    records = hand_over(old, new)
    assert sorted(records) == [f"class cpu {SMALL.digest}", "lengths", f"node id-edge-0 {SMALL.digest}"]
    before, after = (m.predict(node(), SMALL, query()) for m in (old, new))
    for name in ("ttft_ms", "tpot_ms", "total_ms", "ttft_p95_ms", "output_tokens"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), rel=0.1), name
    assert new.p_meet(after, BUDGET, 0.0) == pytest.approx(old.p_meet(before, BUDGET, 0.0), abs=0.1)
    cold = LearnedLatency().predict(node(), SMALL, query())
    assert after.ttft_ms > 2 * cold.ttft_ms  # control


def test_only_what_changed_is_told_again() -> None:
    old = experienced(30)
    assert old.take_changed()
    assert old.take_changed() == {}
    old.record(observed(old.predict(node(), SMALL, query()), ttft_times=1.0))
    assert f"node id-edge-0 {SMALL.digest}" in old.take_changed()


def test_a_node_that_restarted_meanwhile_is_like_its_class() -> None:
    new = LearnedLatency()
    hand_over(experienced(), new)
    rebooted = replace(node(), announcement=replace(node().announcement, boot_id="another"))
    assert new.predict(rebooted, SMALL, query()).prefill_ms == pytest.approx(3 * 200 / 0.7, rel=0.15)
    assert new.predict(rebooted, SMALL, query()) == new.predict(node("stranger"), SMALL, query())


def test_who_knows_better_keeps_what_he_knows() -> None:
    model = LearnedLatency()
    for _ in range(40):
        model.record(observed(model.predict(node(), SMALL, query()), ttft_times=1.0, tpot_times=1.0))
    before = model.predict(node(), SMALL, query())
    hand_over(experienced(), model)
    assert model.predict(node(), SMALL, query()).prefill_ms == before.prefill_ms


def test_records_are_bounded_and_hold_numbers_only() -> None:
    record = experienced(2000).take_changed()[f"node id-edge-0 {SMALL.digest}"]
    assert len(record) < MAX_BYTES / 4
    assert "edge-0" not in record.replace("id-edge-0", "")


def _broken(change: Any) -> str:
    data = json.loads(experienced(30).take_changed()[f"node id-edge-0 {SMALL.digest}"])
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(v=2),
        lambda d: d.update(v=None),
        lambda d: d.pop("prefill"),
        lambda d: d["prefill"]["s"].pop(),
        lambda d: d["prefill"]["b"].__setitem__(0, -1.0),
        lambda d: d["step"]["theta"].__setitem__(0, "1"),
        lambda d: d["step"]["theta"].__setitem__(0, float("nan")),
        lambda d: d["queue"].update(spread=float("inf")),
        lambda d: d["queue"].update(spread=10**400),
        lambda d: d.update(seen=10**400),
        lambda d: d.update(node=7),
        lambda d: d.update(node="n" * 1000),
        lambda d: d.update(ttft=[[1.0]]),
        lambda d: d.update(joint=[[1.0, 2.0]]),
        lambda d: d.update(speeds=[1.0]),
        lambda d: d.update(spare="x" * MAX_BYTES),
    ],
)
def test_a_record_that_cannot_be_is_ignored_as_a_whole(change: Any) -> None:
    model = LearnedLatency()
    assert not model.adopt(f"node id-edge-0 {SMALL.digest}", _broken(change))
    assert model.predict(node(), SMALL, query()) == LearnedLatency().predict(node(), SMALL, query())


def test_the_control_of_that_a_sound_record_is_taken() -> None:
    assert LearnedLatency().adopt(f"node id-edge-0 {SMALL.digest}", _broken(lambda d: None))


@given(st.sampled_from(["lengths", "node a b", "class a b"]), st.text() | st.just("[" * 9000))
def test_whatever_lies_in_the_store_raises_nothing(name: str, record: str) -> None:
    model = LearnedLatency()
    assert not model.adopt(name, record)
    assert model.predict(node(), SMALL, query()) == LearnedLatency().predict(node(), SMALL, query())
