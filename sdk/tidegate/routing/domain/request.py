"""A request inside the programs, and the smaller view of it that routing decides on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from tidegate.routing.domain.chat import Budget, Message, OutputFormat, Sampling
from tidegate.routing.domain.node import SessionHint, Tier


class Placement(StrEnum):
    ANY = "any"
    EDGE = "edge"
    CLOUD = "cloud"


class OnMiss(StrEnum):
    BEST_EFFORT = "best_effort"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One request at a front door. Exactly one of `messages`, `prompt` and `embed` (texts to embed) is set.

    `remaining_ms` is the hard deadline as time left; None has none. `min_p_good` None takes the
    operator's level, `data_class` "" the key's floor, `max_tokens` 0 the operator's default. `adapter` names
    a LoRA adapter of the model, "" none. `top_logprobs` None asks for no log probabilities.
    """

    request_id: str
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    model: str = "auto"
    tenant: str = "default"
    sampling: Sampling = Sampling()
    max_tokens: int = 0
    stop: tuple[str, ...] = ()
    budget: Budget = Budget()
    min_p_good: float | None = None
    placement: Placement = Placement.ANY
    data_class: str = ""
    session_id: str = ""
    priority: int = 0
    on_miss: OnMiss = OnMiss.BEST_EFFORT
    early_accept: bool = False
    explain: bool = False
    remaining_ms: float | None = None
    adapter: str = ""
    embed: tuple[str, ...] = ()
    format: OutputFormat = OutputFormat()
    top_logprobs: int | None = None

    @property
    def embeds(self) -> bool:
        return bool(self.embed)


@dataclass(frozen=True, slots=True)
class Analysis:
    """What is known about a prompt before routing. `prompt_tokens` is an estimate.

    `difficulty_of` gives the same number in [0, 1] whenever it is called. It is called only where something
    depends on it: judging a prompt costs more than the rest of a decision.
    """

    prompt_tokens: int
    difficulty_of: Callable[[], float]
    prefix_hashes: tuple[bytes, ...] = ()

    @property
    def difficulty(self) -> float:
        return self.difficulty_of()


@dataclass(frozen=True, slots=True)
class ClassRule:
    """Where a data class may go; empty sets allow all."""

    tiers: frozenset[str] = frozenset()
    regions: frozenset[str] = frozenset()
    trust: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class RouteQuery:
    """Everything one decision needs besides the snapshot. Times are milliseconds.

    `model` is resolved: a model name, or "auto" for any; `named` says for people what it was resolved from.
    `excluded` are nodes already tried. `target_share` and `min_p_good` are filled in with the operator's
    levels. `margins` are factors by which predictions must keep to the budget's time (see routing.margin),
    `longest_ms` is the prefill beyond which a prompt leaves busy cheap nodes to others (routing.crowding).
    `fit_tokens` is what the context must hold where that is not prompt and answer together.
    """

    model: str
    analysis: Analysis
    max_tokens: int
    budget: Budget
    target_share: float
    min_p_good: float
    placement: Placement = Placement.ANY
    class_rule: ClassRule = ClassRule()
    on_miss: OnMiss = OnMiss.BEST_EFFORT
    session: SessionHint | None = None
    needs: frozenset[str] = frozenset()
    excluded: frozenset[str] = frozenset()
    priority: int = 0
    elapsed_ms: float = field(default=0.0)
    tenant: str = "default"
    fit_tokens: int | None = None
    named: str = ""
    margins: Mapping[Tier, float] = field(default_factory=dict)
    longest_ms: float = math.inf
