"""Model names of the operator: ordered fallbacks, canaries and shadows behind one name.

A canary takes a share of a name's traffic to another model, and keeps a session on its side. A shadow gets a
copy of a share of the requests; its answer is thrown away. Both are drawn by a hash, so every replica draws
alike: a canary by name and session (the request, where there is none), a shadow by name and request. Pairs
are evidence (docs/complexity.md), and the turns of one conversation, copied all or none, would be much less
of it than they are counted for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from tidegate.routing.admission import has_room
from tidegate.routing.domain import RouteQuery
from tidegate.routing.plan import MAX_CANDIDATES, Plan, Reason, Refusal


@dataclass(frozen=True, slots=True)
class Portion:
    """`share` of the requests, in [0, 1], concern `model`."""

    model: str
    share: float


@dataclass(frozen=True, slots=True)
class ModelName:
    """`targets` are models in the order in which they are tried."""

    name: str
    targets: tuple[str, ...]
    canary: Portion | None = None
    shadow: Portion | None = None


class Resolved(NamedTuple):
    """What a request's model name stands for. `targets` has at least one; `shadow` is "" for none,
    `shadow_share` the chance with which it was drawn."""

    targets: tuple[str, ...]
    shadow: str = ""
    name: str = ""
    is_canary: bool = False
    shadow_share: float = 0.0

    def told(self, index: int) -> str:
        """For reasons: how the model at `index` came from the name; "" where it was asked for itself."""
        if not self.name:
            return ""
        if self.is_canary and index == 0:
            return f'canary of "{self.name}"'
        back = index - self.is_canary
        return f'fallback {back} of "{self.name}"' if back > 0 else f'"{self.name}"'


class ModelNames:
    """The operator's names. `aliases` are further words for a name or a model."""

    def __init__(self, names: Iterable[ModelName] = (), aliases: Mapping[str, str] | None = None) -> None:
        self._names = {name.name: name for name in names}
        self._aliases = dict(aliases or {})

    @property
    def all(self) -> tuple[ModelName, ...]:
        """Aliases included."""
        others = (
            ModelName(alias, self._names[model].targets if model in self._names else (model,))
            for alias, model in self._aliases.items()
        )
        return (*self._names.values(), *others)

    def resolve(self, asked: str, request: str, session: str = "") -> Resolved:
        """`request` is the request's id, `session` what its turns have in common, "" for none."""
        model = self._aliases.get(asked, asked) or "auto"
        name = self._names.get(model)
        if name is None:
            return Resolved((model,), name=asked if model != asked and asked else "")
        shadow, share = "", 0.0
        if name.shadow is not None and lot("shadow", name.name, request) < name.shadow.share:
            shadow, share = name.shadow.model, name.shadow.share
        if name.canary is not None and lot("canary", name.name, session or request) < name.canary.share:
            others = tuple(t for t in name.targets if t != name.canary.model)
            return Resolved((name.canary.model, *others), shadow, asked, True, share)
        return Resolved(name.targets, shadow, asked, shadow_share=share)


def lot(purpose: str, name: str, who: str) -> float:
    """In [0, 1), the same for the same words."""
    digest = hashlib.sha256("\0".join((purpose, name, who)).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def first_that_serves(
    resolved: Resolved, query: RouteQuery, route: Callable[[RouteQuery], Plan | Refusal]
) -> Plan | Refusal:
    """The first target with a candidate that qualifies; else the first with any; else why there is none.

    Where that candidate has no room, the later targets' candidates are its fallbacks: whether to wait or to
    go there is for admission to say.
    """
    at_risk: Plan | None = None
    waiting: Plan | None = None
    refusal: Refusal | None = None
    for index, model in enumerate(resolved.targets):
        result = route(replace(query, model=model, named=resolved.told(index)))
        if isinstance(result, Refusal):
            # Of several refusals one tells more than "unknown".
            if refusal is None or refusal.reason is Reason.MODEL_UNKNOWN:
                refusal = result
        elif result.first.qualified and has_room(result.first, result.pick):
            return result if waiting is None else _behind(waiting, result)
        elif result.first.qualified:
            waiting = result if waiting is None else _behind(waiting, result)
        else:
            at_risk = at_risk or result
    if waiting is not None:
        return waiting
    if at_risk is not None:
        return at_risk
    assert refusal is not None, "a name without targets"
    return refusal


def _behind(plan: Plan, other: Plan) -> Plan:
    """Half of the room for candidates at least is the other target's."""
    own = plan.choices[: MAX_CANDIDATES - min(len(other.choices), MAX_CANDIDATES // 2)]
    return replace(plan, choices=(*own, *other.choices)[:MAX_CANDIDATES])
