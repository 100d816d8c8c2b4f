"""What a policy decides: a plan with its reasons as data, or a refusal that says what would have worked.

Sentences and wire shapes are made from these on demand by tidegate.routing.explain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from tidegate.routing.domain import Budget, Code, NodeState, Route, RouteQuery, Variant
from tidegate.routing.prediction import Prediction

MAX_CANDIDATES = 16


class Extra(NamedTuple):
    """What a request costs besides the table's price of its tokens, per million of them."""

    energy: float
    link: float

    @property
    def total(self) -> float:
        return self.energy + self.link


def _not_certified() -> bool:
    return False


class Choice(NamedTuple):
    """One candidate with its scores. `qualified`: meets the budget's target share and the quality asked.
    `cost_per_mtoken` is the table's price with `extra`, where there is one.

    P(good), and whether it is certified for this prompt, are computed when they are read: without a quality
    asked for, no decision depends on them.
    """

    node: NodeState
    variant: Variant
    prediction: Prediction
    p_meet: float
    p_good_of: Callable[[], float]
    qualified: bool
    cost_per_mtoken: float
    extra: Extra | None = None
    certified_of: Callable[[], bool] = _not_certified

    @property
    def p_good(self) -> float:
        return self.p_good_of()

    @property
    def certified(self) -> bool:
        return self.certified_of()

    def route(self, why: str = "", *, judged: bool = False) -> Route:
        """`judged`: with P(good), for which the prompt may have to be judged first."""
        binding, announcement = self.node.binding, self.node.announcement
        return Route(
            node_id=announcement.node_id,
            node_name=announcement.name,
            tier=binding.tier,
            model=self.variant.model,
            variant_digest=self.variant.digest,
            quantization=self.variant.quantization,
            predicted_ttft_ms=self.prediction.ttft_ms,
            predicted_tpot_ms=self.prediction.tpot_ms,
            predicted_total_ms=self.prediction.total_ms,
            p_meet=self.p_meet,
            p_good=self.p_good if judged else None,
            expected_cached_tokens=self.prediction.cached_tokens,
            at_risk=not self.qualified,
            why=why,
            predicted_ttft_p95_ms=self.prediction.ttft_p95_ms,
            certified=judged and self.certified,
        )


def good_enough(p_good_of: Callable[[], float], query: RouteQuery) -> bool:
    """Any answer is, where no quality was asked for; the prompt is then not judged at all."""
    return query.min_p_good <= 0.0 or p_good_of() >= query.min_p_good


class Pick(StrEnum):
    """Why the first candidate is first."""

    ONLY = "only"
    CHEAPEST = "cheapest"
    CROWDED = "crowded"
    FASTEST = "fastest"
    WARM = "warm"
    NEAR_TIE = "near_tie"
    HAS_ROOM = "has_room"
    BEST_ODDS = "best_odds"
    BEST_QUALITY = "best_quality"
    EXPLORED = "explored"
    BASELINE = "baseline"


@dataclass(frozen=True, slots=True)
class Plan:
    """Candidates in the order they are to be tried: the first attempt, then fallbacks. At most 16.

    `removed` counts nodes per hard filter; `considered` is how many candidates were scored; `cheap` are those
    of them that cost least, and none where all cost the same.
    """

    choices: tuple[Choice, ...]
    query: RouteQuery
    pick: Pick
    removed: Mapping[str, int] = field(default_factory=dict)
    considered: int = 1
    policy: str = "tidegate"
    cheap: tuple[Choice, ...] = ()

    @property
    def first(self) -> Choice:
        return self.choices[0]

    @property
    def fallbacks(self) -> tuple[Choice, ...]:
        return self.choices[1:]

    @property
    def at_risk(self) -> bool:
        return not self.choices[0].qualified


class Reason(StrEnum):
    """Stable words for programs: why a request is refused."""

    NO_NODE = "NO_NODE"
    MODEL_UNKNOWN = "MODEL_UNKNOWN"
    DATA_CLASS = "DATA_CLASS"
    NOT_PERMITTED = "NOT_PERMITTED"
    CONTEXT_LENGTH = "CONTEXT_LENGTH"
    CAPABILITY = "CAPABILITY"
    NOT_LINKED = "NOT_LINKED"
    ALL_UNHEALTHY = "ALL_UNHEALTHY"
    ALL_DRAINING = "ALL_DRAINING"
    ALL_TRIED = "ALL_TRIED"
    ALL_LEFT = "ALL_LEFT"
    BUDGET_UNMEETABLE = "BUDGET_UNMEETABLE"
    QUALITY_UNMEETABLE = "QUALITY_UNMEETABLE"
    OVERLOADED = "OVERLOADED"


@dataclass(frozen=True, slots=True)
class Refusal:
    """No node takes this request now. Times are milliseconds.

    `retry_after_ms` is None where waiting alone does not help. For BUDGET_UNMEETABLE `best_ttft_ms` is the
    smallest prediction and `meetable` the limits (in the parts the request limited) that would have been
    met with the share asked for, at this load. `choices` are the candidates that fell short, best first.
    `wait_ms` is how long the request would have waited for room, where that is why.
    """

    reason: Reason
    code: Code
    query: RouteQuery
    removed: Mapping[str, int] = field(default_factory=dict)
    retry_after_ms: float | None = None
    best_ttft_ms: float | None = None
    best_total_ms: float | None = None
    meetable: Budget | None = None
    choices: tuple[Choice, ...] = ()
    wait_ms: float | None = None
