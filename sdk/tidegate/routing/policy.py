"""The decision: filter, score, pick.

Qualified is who meets the budget with the share asked for AND answers well enough with the odds asked for.
The cheapest of these goes first, or the cheapest but one for a prompt so long that it would push too many
others off busy nodes; equal cost is decided by speed; near-equal speed by a warm prefix, then by
chance in proportion to free slots, so that replicas looking at the same stale view do not all run to one
node. If none qualifies, `on_miss` decides: best odds, flagged, or a refusal before any prefill.

Pure: random numbers come in as arguments, and time only as what the query says has passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from heapq import nsmallest
from operator import attrgetter
from typing import Protocol

from tidegate.routing import sampling
from tidegate.routing.costs import cheapest, extra_cost
from tidegate.routing.domain import Analysis, OnMiss, RouteQuery, Snapshot, Variant
from tidegate.routing.filters import Eligible, apply_filters, members, pools
from tidegate.routing.latency import LatencyModel
from tidegate.routing.margin import budget_on
from tidegate.routing.plan import MAX_CANDIDATES, Choice, Pick, Plan, Refusal, good_enough
from tidegate.routing.quality import QualityModel, RankedQuality
from tidegate.routing.refusing import no_candidate, unmeetable

NEAR_TIE_SHARE = 0.10
NEAR_TIE_ODDS = 0.02
# Computing anew what lies warm elsewhere delays those who come after it. On a node that is busy for a share r
# of the time that is r / (1 - r) times as long in all: twice at two thirds.
ANEW_WEIGHT = 2.0
WARM_MIN_TOKENS = 64

_ttft_ms: Callable[[Choice], float] = attrgetter("prediction.ttft_ms")
_total_ms: Callable[[Choice], float] = attrgetter("prediction.total_ms")

Random = Callable[[], float]
"""Gives a number in [0, 1) per call; only called to break a tie."""


class Policy(Protocol):
    """What dispatch, the simulator and the SDK's direct mode call."""

    @property
    def name(self) -> str: ...

    def route(
        self,
        snapshot: Snapshot,
        query: RouteQuery,
        model: LatencyModel,
        rng: Random,
        quality: QualityModel | None = None,
    ) -> Plan | Refusal: ...


class Tidegate:
    """The product's own policy."""

    name = "tidegate"

    def route(
        self,
        snapshot: Snapshot,
        query: RouteQuery,
        model: LatencyModel,
        rng: Random,
        quality: QualityModel | None = None,
    ) -> Plan | Refusal:
        return route(snapshot, query, model, rng, quality)


def route(
    snapshot: Snapshot,
    query: RouteQuery,
    model: LatencyModel,
    rng: Random,
    quality: QualityModel | None = None,
) -> Plan | Refusal:
    """Decide where one request goes. `quality` defaults to the snapshot's perplexity ranks."""
    choices, removed = look(snapshot, query, model, rng, quality)
    if not choices:
        return no_candidate(query, removed)
    qualified = [c for c in choices if c.qualified]
    if not qualified and query.margins:
        # A margin prefers; what meets the budget without one is better than a miss.
        query = replace(query, margins={})
        choices = _without_margin(choices, query, model)
        qualified = [c for c in choices if c.qualified]
    if qualified:
        chosen, pick = _pick_qualified(qualified, query, rng)
        order = _ranked(choices, chosen, speed_of(query))[:MAX_CANDIDATES]
        return Plan(tuple(order), query, pick, removed, len(choices), cheap=_cheaper(choices))
    if query.on_miss is OnMiss.REJECT:
        return unmeetable(query, removed, choices, _by_odds(choices, query), model)
    chosen, pick = _pick_at_risk(choices, query, rng)
    order = [chosen, *(c for c in _by_odds(choices, query) if c is not chosen)]
    kept = tuple(order[:MAX_CANDIDATES])
    return Plan(kept, query, pick, removed, len(choices), cheap=_cheaper(choices))


def _cheaper(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """The cheapest, where some are dearer."""
    cheap = cheapest(choices)
    return tuple(cheap) if len(cheap) < len(choices) else ()


def look(
    snapshot: Snapshot,
    query: RouteQuery,
    model: LatencyModel,
    rng: Random,
    quality: QualityModel | None = None,
) -> tuple[list[Choice], dict[str, int]]:
    """As score(), but of a large fleet only a few, drawn by `rng` (see tidegate.routing.sampling)."""
    found, removed = pools(snapshot, query)
    if sampling.size(found) <= sampling.SCAN_LIMIT:
        return judged(snapshot, members(found, query.excluded), query, model, quality), removed
    choices = judged(snapshot, sampling.sample(snapshot, found, query, rng), query, model, quality)
    refusing = query.on_miss is OnMiss.REJECT and not any(c.qualified for c in choices)
    if refusing or not choices:
        more = sampling.sample(snapshot, found, query, rng, thorough=True)
        choices = judged(snapshot, more, query, model, quality)
    return choices, removed


def score(
    snapshot: Snapshot, query: RouteQuery, model: LatencyModel, quality: QualityModel | None = None
) -> tuple[list[Choice], dict[str, int]]:
    """All permitted candidates with their predictions and odds, in the snapshot's order; removed counts."""
    filtered = apply_filters(snapshot, query)
    return judged(snapshot, filtered.eligible, query, model, quality), dict(filtered.removed)


def judged(
    snapshot: Snapshot,
    eligible: Sequence[Eligible],
    query: RouteQuery,
    model: LatencyModel,
    quality: QualityModel | None = None,
) -> list[Choice]:
    """Candidates with their predictions and odds."""
    judge = _Judge(snapshot, quality, query.analysis)
    budget, elapsed, target = query.budget, query.elapsed_ms, query.target_share
    limited, any_good = budget.limits_anything, query.min_p_good <= 0.0
    margins = query.margins
    on_tier = {tier: budget_on(query, tier) for tier in margins} if limited and margins else None
    # This runs once per candidate: what does not change is looked up once.
    predict, odds_of, new = model.predict, model.p_meet, tuple.__new__
    last: Variant | None = None
    choices: list[Choice] = []
    for node, variant in eligible:
        prediction = predict(node, variant, query)
        binding = node.binding
        asked = budget if on_tier is None else on_tier.get(binding.tier, budget)
        p_meet = odds_of(prediction, asked, elapsed) if limited else 1.0
        if variant is not last:
            last, p_good = variant, partial(judge.p_good, variant)
            certified = partial(judge.certified, variant)
        qualified = (not limited or p_meet >= target) and (any_good or good_enough(p_good, query))
        cost, extra = binding.cost_per_mtoken, None
        if binding.prices is not None:
            extra = extra_cost(binding.prices, node.load, prediction)
            cost += 0.0 if extra is None else extra.total
        scores = (node, variant, prediction, p_meet, p_good, qualified, cost, extra, certified)
        choices.append(new(Choice, scores))
    return choices


def _ranked(choices: Sequence[Choice], chosen: Choice, speed: Callable[[Choice], float]) -> list[Choice]:
    """The chosen one, who qualifies too from the cheapest on, and the others by their odds."""
    return sorted(
        choices,
        key=lambda c: (
            c is not chosen,
            not c.qualified,
            c.cost_per_mtoken if c.qualified else -c.p_meet,
            speed(c),
        ),
    )


def _without_margin(choices: Sequence[Choice], query: RouteQuery, model: LatencyModel) -> list[Choice]:
    """The same by the budget as it was asked for."""
    found = []
    for choice in choices:
        p_meet = model.p_meet(choice.prediction, query.budget, query.elapsed_ms)
        qualified = p_meet >= query.target_share and good_enough(choice.p_good_of, query)
        found.append(choice._replace(p_meet=p_meet, qualified=qualified))
    return found


class _Judge:
    """P(good) of variants for one prompt, each judged once when somebody asks; so are the ranks."""

    __slots__ = ("_analysis", "_known", "_quality", "_snapshot")

    def __init__(self, snapshot: Snapshot, quality: QualityModel | None, analysis: Analysis) -> None:
        self._snapshot = snapshot
        self._quality = quality
        self._analysis = analysis
        self._known: dict[str, float] | None = None

    def p_good(self, variant: Variant) -> float:
        if self._quality is None:
            self._quality = RankedQuality(self._snapshot)
        if self._known is None:
            self._known = {}
        found = self._known.get(variant.digest)
        if found is None:
            found = self._known[variant.digest] = self._quality.p_good(variant, self._analysis.difficulty)
        return found

    def certified(self, variant: Variant) -> bool:
        limit = None if self._quality is None else self._quality.certified(variant)
        return limit is not None and self._analysis.difficulty <= limit


def _pick_qualified(qualified: Sequence[Choice], query: RouteQuery, rng: Random) -> tuple[Choice, Pick]:
    cheap = cheapest(qualified)
    if len(cheap) < len(qualified) and _pushes_others_off(cheap, query):
        limit = max(c.cost_per_mtoken for c in cheap)
        dearer = cheapest([c for c in qualified if c.cost_per_mtoken > limit])
        return _among_near(dearer, query, rng, Pick.CROWDED)[0], Pick.CROWDED
    if len(cheap) == 1:
        return cheap[0], Pick.ONLY if len(qualified) == 1 else Pick.CHEAPEST
    return _among_near(cheap, query, rng, Pick.FASTEST)


def _pushes_others_off(cheap: Sequence[Choice], query: RouteQuery) -> bool:
    longest_ms = query.longest_ms
    return longest_ms < math.inf and min(c.prediction.own_prefill_ms for c in cheap) > longest_ms


def _pick_at_risk(choices: Sequence[Choice], query: RouteQuery, rng: Random) -> tuple[Choice, Pick]:
    """Quality is kept before speed: an answer that is late is worth more than one that is wrong."""
    group = [c for c in choices if good_enough(c.p_good_of, query)]
    pick = Pick.BEST_ODDS
    if not group:
        best = max(c.p_good for c in choices)
        group = [c for c in choices if c.p_good == best]
        pick = Pick.BEST_QUALITY
    odds = max(c.p_meet for c in group)
    near = [c for c in group if c.p_meet >= odds - NEAR_TIE_ODDS]
    return _among_near(near, query, rng, pick)[0], pick


def _among_near(
    choices: Sequence[Choice], query: RouteQuery, rng: Random, otherwise: Pick
) -> tuple[Choice, Pick]:
    """The fastest, with what others pay for it; within 10 % of it a warm prefix; else by chance, weighted by
    free slots."""
    speeds = times = list(map(speed_of(query), choices))
    cached = [c.prediction.cached_tokens for c in choices]
    if max(cached) - min(cached) >= WARM_MIN_TOKENS:
        fewest = min(c.prediction.fresh_tokens for c in choices)
        times = [ms + ANEW_WEIGHT * _anew_ms(c, fewest) for ms, c in zip(speeds, choices, strict=True)]
    near = _near(choices, times)
    if len(near) == 1:
        alone = times is speeds or _near(choices, speeds) == near
        return near[0], otherwise if alone else Pick.WARM
    cached = [c.prediction.cached_tokens for c in near]
    warmest, coldest = max(cached), min(cached)
    if warmest - coldest >= WARM_MIN_TOKENS:
        near = [c for c in near if c.prediction.cached_tokens >= warmest - WARM_MIN_TOKENS]
        if len(near) == 1:
            return near[0], Pick.WARM
    near = _roomy(near, query)
    return near[_weighted_index([_headroom(c) for c in near], rng())], Pick.NEAR_TIE


def _near(choices: Sequence[Choice], times: Sequence[float]) -> list[Choice]:
    limit = min(times) * (1.0 + NEAR_TIE_SHARE)
    return [c for c, ms in zip(choices, times, strict=True) if ms <= limit]


def _anew_ms(choice: Choice, fewest: float) -> float:
    """What the node computes of the prompt though it lies warm elsewhere, at the speed that it reports."""
    p = choice.prediction
    return p.own_prefill_ms * (1.0 - fewest / p.fresh_tokens)


def _roomy(near: list[Choice], query: RouteQuery) -> list[Choice]:
    """A prompt goes where its prefix drives out no other one, if there is such a node."""
    tokens = query.analysis.prompt_tokens + query.max_tokens
    roomy = [c for c in near if c.node.load.free_cache_tokens >= tokens - c.prediction.cached_tokens]
    return roomy or near


def _headroom(choice: Choice) -> int:
    """Free slots plus one: a full node stays possible, an empty one is likelier."""
    node = choice.node
    return max(node.slots - node.active, 0) + 1


def _weighted_index(weights: Sequence[int], chance: float) -> int:
    point = chance * sum(weights)
    for index, weight in enumerate(weights):
        point -= weight
        if point < 0.0:
            return index
    return len(weights) - 1


def _by_odds(choices: Sequence[Choice], query: RouteQuery) -> list[Choice]:
    key = speed_of(query)
    return nsmallest(
        MAX_CANDIDATES,
        choices,
        key=lambda c: (not good_enough(c.p_good_of, query), -round(c.p_meet, 2), key(c)),
    )


def speed_of(query: RouteQuery) -> Callable[[Choice], float]:
    """What "faster" means for this request: TTFT where it is limited, else the whole answer."""
    return _ttft_ms if query.budget.ttft_ms is not None else _total_ms
