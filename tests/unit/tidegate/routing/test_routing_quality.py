"""The stated stand-in for quality: order only, monotone, never certified."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_fixtures import LARGE, SMALL, cloud, fleet, node

from tidegate.routing.certificates import NOTHING
from tidegate.routing.domain import Health, Kind, Snapshot
from tidegate.routing.quality import BEST_ABILITY, UNPROVEN, WORST_ABILITY, CertifiedQuality, RankedQuality

MIDDLE = replace(SMALL, digest="d-mid", perplexity=12.0)
UNMEASURED = replace(SMALL, digest="d-new", perplexity=None)
ALL = fleet(node(variants=(SMALL, MIDDLE, UNMEASURED)), cloud())


def test_ability_by_perplexity_rank() -> None:
    quality = RankedQuality(ALL)
    step = (BEST_ABILITY - WORST_ABILITY) / 3
    for rank, variant in enumerate((LARGE, MIDDLE, SMALL, UNMEASURED)):
        assert quality.ability(variant) == pytest.approx(BEST_ABILITY - rank * step)


def test_a_single_measured_level_is_the_best_and_nothing_is_certified() -> None:
    quality = RankedQuality(fleet(node()))
    assert quality.ability(SMALL) == BEST_ABILITY
    assert quality.certified(SMALL) is None


def test_the_rank_survives_the_better_node_being_unhealthy() -> None:
    quality = RankedQuality(fleet(node(), cloud(health=Health.SUSPECT)))
    assert quality.ability(SMALL) == pytest.approx(WORST_ABILITY)


def test_the_best_has_a_name_and_of_several_alike_it_is_always_the_same_one() -> None:
    assert RankedQuality(ALL).best == LARGE.digest
    assert RankedQuality(fleet(node(), cloud()), ("small",)).best == SMALL.digest
    alike = replace(LARGE, digest="d-a")
    for variants in ((LARGE, alike), (alike, LARGE)):
        assert RankedQuality(fleet(node(), cloud(variants=variants))).best == "d-a"
    assert RankedQuality(fleet()).best == ""


def test_a_variant_outside_the_snapshot_is_treated_as_worst() -> None:
    assert RankedQuality(fleet(node())).ability(LARGE) == WORST_ABILITY


@given(st.floats(0, 1), st.floats(0, 1))
def test_p_good_falls_with_difficulty_and_rises_with_rank(a: float, b: float) -> None:
    quality = RankedQuality(ALL)
    easy, hard = min(a, b), max(a, b)
    for variant in (SMALL, MIDDLE, LARGE, UNMEASURED):
        assert 0.0 < quality.p_good(variant, hard) <= quality.p_good(variant, easy) < 1.0
    assert quality.p_good(SMALL, a) < quality.p_good(MIDDLE, a) < quality.p_good(LARGE, a)


CLOUD = replace(
    LARGE, model="cloud-70b", digest="sha256:" + "c0ffee" * 10, quantization="F8", perplexity=None, aliases=()
)


@pytest.mark.parametrize(
    "word", ["cloud-70b", "cloud-70b:F8", CLOUD.digest, CLOUD.digest[:19], "c0ffeec0ffee"]
)
def test_a_stated_order_ranks_what_nobody_could_measure(word: str) -> None:
    snapshot = fleet(node(), cloud(), cloud("big", variants=(CLOUD,)))
    cheap = fleet(node(), cloud(), cloud("big", variants=(CLOUD,), cost=0.1))
    silent, stated = RankedQuality(cheap), RankedQuality(snapshot, (word,))
    assert silent.ability(CLOUD) == WORST_ABILITY
    assert silent.is_best(LARGE)
    assert stated.ability(CLOUD) == BEST_ABILITY
    assert [v.model for v in (CLOUD, LARGE, SMALL) if stated.is_best(v)] == ["cloud-70b"]
    assert BEST_ABILITY > stated.ability(LARGE) > stated.ability(SMALL) == WORST_ABILITY


@pytest.mark.parametrize(("edge_cost", "cloud_cost"), [(0.0, 0.6), (0.2, 0.6), (0.0, 0.0)])
def test_a_model_nobody_could_measure_is_better_than_what_is_cheaper_or_runs_on_edges_only(
    edge_cost: float, cloud_cost: float
) -> None:
    edge = node(cost=edge_cost)
    quality = RankedQuality(fleet(edge, cloud("big", variants=(CLOUD,), cost=cloud_cost)))
    assert quality.is_best(CLOUD)
    assert quality.ability(SMALL) == WORST_ABILITY
    alone = RankedQuality(fleet(edge))  # control: it is the best where there is no other
    assert alone.is_best(SMALL)


def test_one_model_ranks_by_perplexity_wherever_it_runs_and_whatever_it_costs() -> None:
    better = replace(SMALL, digest="d-better", perplexity=11.0)
    quality = RankedQuality(fleet(node(variants=(better,)), cloud(variants=(SMALL,))))
    assert quality.is_best(better)
    assert not quality.is_best(SMALL)


def test_of_one_model_who_was_never_measured_is_first_in_the_cloud_and_last_on_edges() -> None:
    whole = replace(SMALL, digest="d-whole", quantization="F16", perplexity=None)
    odd = replace(SMALL, digest="d-odd", perplexity=None)
    quality = RankedQuality(fleet(node(variants=(SMALL, odd)), cloud(variants=(whole,))))
    assert quality.is_best(whole)
    assert quality.ability(whole) > quality.ability(SMALL) > quality.ability(odd)


def test_the_best_is_still_the_best_while_its_node_may_come_back() -> None:
    left = Snapshot((node(),), departed=(Kind((LARGE,), cloud().binding),))
    assert RankedQuality(left).best == LARGE.digest
    assert not RankedQuality(left).is_best(SMALL)
    assert RankedQuality(fleet(node())).best == SMALL.digest  # control


def test_a_stated_order_wins_over_perplexity_and_foreign_words_name_nobody() -> None:
    snapshot = fleet(node(), cloud())
    turned = RankedQuality(snapshot, ("small", "large"))
    assert turned.ability(SMALL) > turned.ability(LARGE)
    for words in ((), ("c0ffee", "nobody", "smol:Q2")):
        assert RankedQuality(snapshot, words).ability(LARGE) > RankedQuality(snapshot, words).ability(SMALL)


def test_certificates_are_measured_against_the_stated_best() -> None:
    snapshot = fleet(node(), cloud(), cloud("big", variants=(CLOUD,)))
    quality = CertifiedQuality(snapshot, NOTHING, ("cloud-70b",))
    assert quality.p_good(CLOUD, 0.2) > 0.9
    assert quality.p_good(LARGE, 0.2) <= UNPROVEN
