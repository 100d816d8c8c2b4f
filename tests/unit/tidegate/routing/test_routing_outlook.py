"""What is kept of a node between two decisions is never older than what is known of it."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from routing_fixtures import SMALL, node, observed, query

from tidegate.routing.domain import Budget, InFlight, NodeLoad, NodeState, Speeds
from tidegate.routing.latency import LearnedLatency
from tidegate.routing.odds import PRIOR
from tidegate.routing.prediction import Prediction, p_meet


def changed(old: NodeState, rng: Random) -> NodeState:
    running, queued = rng.randrange(5), rng.randrange(3)
    load = NodeLoad(running, queued, 100 * queued, 120 * (running + queued))
    if rng.random() < 0.2:
        load = replace(load, speeds=Speeds(rng.uniform(300.0, 900.0), ((1, 20.0), (4, 9.0))))
    return replace(old, load=load, in_flight=InFlight(rng.randrange(2), 50, 60), rtt_ms=rng.uniform(1.0, 9.0))


def said(p: Prediction) -> tuple[object, ...]:
    return (*p._replace(odds=PRIOR), p.ttft_p95_ms, p.tpot_p95_ms, p.total_p95_ms)


def test_a_model_that_keeps_nothing_predicts_the_same() -> None:
    rng = Random(5)
    keeping, forgetful = LearnedLatency(), LearnedLatency()
    nodes = [node(f"edge-{i}") for i in range(3)]
    kept = 0
    for step in range(600):
        at = rng.randrange(len(nodes))
        asked = query(prompt_tokens=rng.randrange(1, 900))
        kept += any(known.outlook is not None for known in keeping._nodes.values())
        for known in forgetful._nodes.values():
            known.settle()
        predicted = keeping.predict(nodes[at], SMALL, asked)
        assert said(predicted) == said(forgetful.predict(nodes[at], SMALL, asked))
        if step % 3 == 0:
            times = rng.lognormvariate(0.0, 0.3)
            keeping.record(observed(predicted, name=f"edge-{at}", ttft_times=times, tpot_times=times))
            forgetful.record(observed(predicted, name=f"edge-{at}", ttft_times=times, tpot_times=times))
        if step % 50 == 0:
            keeping.decay(30.0)
            forgetful.decay(30.0)
        if step % 4 == 0:
            nodes[at] = changed(nodes[at], rng)
    assert kept > 300  # there was something that could be too old


def test_a_node_left_alone_hears_what_its_class_learns() -> None:
    rng, model = Random(1), LearnedLatency()
    busy, left = node("edge-a"), node("edge-b")
    asked = query(prompt_tokens=200)
    for _ in range(40):
        for name, each in (("edge-a", busy), ("edge-b", left)):
            model.record(observed(model.predict(each, SMALL, asked), name=name, ttft_times=1, tpot_times=1))
    before = model.predict(left, SMALL, asked)
    for _ in range(300):
        times = rng.choice((1, 1, 6))
        predicted = model.predict(busy, SMALL, asked)
        model.record(observed(predicted, name="edge-a", ttft_times=1, tpot_times=times))
    after = model.predict(left, SMALL, asked)
    assert after.tpot_p95_ms > 2 * before.tpot_p95_ms
    assert (
        p_meet(after, Budget(tpot_ms=2 * after.tpot_ms), 0.0)
        < 0.9
        < p_meet(before, Budget(tpot_ms=2 * before.tpot_ms), 0.0)
    )
