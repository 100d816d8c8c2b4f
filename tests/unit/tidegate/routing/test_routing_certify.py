"""Certificates: granted where the truth allows, refused where it does not, whatever the labels cost."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from routing_fixtures import LARGE, SMALL, cloud, fleet, node

from tidegate.routing.certificates import NOTHING, Basis, Certificate, Certified
from tidegate.routing.certify import Ledger, Promise, Seen, certify
from tidegate.routing.quality import UNPROVEN, CertifiedQuality, RankedQuality

PROMISE = Promise(0.05, 0.95)


def deployment(
    worse_at: Callable[[float], float], *, seed: int, requests: int, share: float
) -> Iterator[Seen]:
    rng = random.Random(seed)
    for _ in range(requests):
        difficulty, drawn = rng.random(), rng.random() < share
        yield Seen(difficulty, share, float(rng.random() < worse_at(difficulty)) if drawn else None)


def test_without_a_worse_answer_everything_is_certified_and_missing_labels_fall() -> None:
    ledger = Ledger(PROMISE, 0.1)
    missing = [ledger.verdict().labels_missing]
    for i, seen in enumerate(deployment(lambda d: 0.0, seed=1, requests=3000, share=0.1), 1):
        ledger.add(seen)
        if i % 500 == 0:
            missing.append(ledger.verdict().labels_missing)
    assert missing == sorted(missing, reverse=True)
    assert 40 < missing[0] < 200
    assert ledger.verdict().threshold == 1.0
    assert missing[-1] == 0


def test_the_threshold_stops_where_answers_get_worse() -> None:
    steep = list(deployment(lambda d: 0.0 if d < 0.5 else 0.3, seed=2, requests=8000, share=0.1))
    verdict = certify(steep, PROMISE, 0.1)
    assert verdict.threshold in (0.4, 0.5, 0.6)
    assert verdict.estimate == pytest.approx(0.15, abs=0.04)


def test_a_broken_promise_is_rarely_certified_however_often_one_looks() -> None:
    wrong = 0
    for seed in range(60):
        ledger = Ledger(PROMISE, 0.5)
        for seen in deployment(lambda d: 0.051, seed=seed, requests=600, share=0.5):
            ledger.add(seen)
            if seen.worse is not None and ledger.all_proven():
                wrong += 1
                break
    assert wrong <= 6  # 5 % of 60, and what chance adds
    # Positive control: trusting the estimate would have certified far more of them.
    trusting = [
        certify(deployment(lambda d: 0.051, seed=s, requests=600, share=0.5), PROMISE, 0.5).estimate < 0.05
        for s in range(60)
    ]
    assert sum(trusting) > 15


def test_propensities_weigh_and_have_a_floor() -> None:
    """Hard prompts drawn ten times as often do not make the deployment look worse than it is."""
    rng = random.Random(3)
    seen = []
    for _ in range(20_000):
        difficulty = rng.random()
        share = 0.5 if difficulty > 0.8 else 0.05
        drawn = rng.random() < share
        seen.append(Seen(difficulty, share, float(drawn and difficulty > 0.9) if drawn else None))
    assert certify(seen, PROMISE, 0.05).estimate == pytest.approx(0.1, abs=0.02)
    with pytest.raises(ValueError, match="propensity"):
        Ledger(PROMISE, 0.1).add(Seen(0.5, 0.05))
    with pytest.raises(ValueError, match="propensities"):
        Ledger(PROMISE, 0.0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        Promise(worse_share=0.0)


def test_a_quality_asked_for_leads_to_the_best_variant_until_another_is_certified() -> None:
    snapshot = fleet(node(), cloud())
    stand_in = RankedQuality(snapshot)
    nobody = CertifiedQuality(snapshot, NOTHING)
    assert nobody.p_good(LARGE, 0.2) == stand_in.p_good(LARGE, 0.2)
    assert nobody.p_good(SMALL, 0.01) < UNPROVEN < 0.9 < stand_in.p_good(SMALL, 0.01)  # the control
    assert nobody.certified(SMALL) is None
    proven = {SMALL.digest: Certificate(threshold=0.4, worse_share=0.02)}
    small = CertifiedQuality(snapshot, Certified(proven, Basis("model", LARGE.digest)))
    assert small.certified(SMALL) == 0.4
    assert small.certified(LARGE) is None  # the best one keeps the stand-in's odds
    assert small.p_good(SMALL, 0.4) == pytest.approx(0.98 * stand_in.p_good(LARGE, 0.4))
    assert small.p_good(SMALL, 0.41) < UNPROVEN


def test_certificates_hold_beside_the_best_variant_that_they_were_made_beside_only() -> None:
    proven = {SMALL.digest: Certificate(threshold=0.4, worse_share=0.02)}
    certified = Certified(proven, Basis("model", LARGE.digest))
    before = fleet(node(), cloud())
    assert CertifiedQuality(before, certified).p_good(SMALL, 0.2) > 0.9
    larger = replace(LARGE, digest="d-larger", perplexity=5.0)
    after = fleet(node(), cloud(), cloud("new", variants=(larger,)))
    assert CertifiedQuality(after, certified).certified(SMALL) is None
    assert CertifiedQuality(after, certified).p_good(SMALL, 0.2) < UNPROVEN
    # A worse one that joins changes nothing; nor is anything certified of files that name no best variant.
    worse = replace(SMALL, digest="d-tiny", perplexity=99.0)
    joined = fleet(node(), cloud(), node("new", variants=(worse,)))
    assert CertifiedQuality(joined, certified).certified(SMALL) == 0.4
    assert CertifiedQuality(before, Certified(proven)).certified(SMALL) is None
