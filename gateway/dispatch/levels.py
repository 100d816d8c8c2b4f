"""The operator's levels: what holds where a request says nothing, and where each data class may go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tidegate.routing.domain import TARGET_SHARE, ClassRule, Code, ServeError
from tidegate.routing.naming import ModelNames


@dataclass(frozen=True, slots=True)
class Levels:
    """Defaults and limits of requests."""

    min_p_good: float = 0.0
    target_share: float = TARGET_SHARE
    max_tokens: int = 256
    max_tokens_limit: int = 8192
    names: ModelNames = field(default_factory=ModelNames)


class DataClasses:
    """Ordered from the loosest to the strictest; a request may raise its key's floor, never lower it."""

    def __init__(self, rules: Sequence[tuple[str, ClassRule]]) -> None:
        self._rules = dict(rules)
        self._rank = {name: rank for rank, (name, _) in enumerate(rules)}

    def knows(self, name: str) -> bool:
        return name in self._rank

    def effective(self, asked: str, floor: str, session: str = "") -> str:
        """The strictest of what the request asks, its key demands and its session had.

        Raises ServeError(INVALID_ARGUMENT) for an unknown class.
        """
        for name in (asked, floor, session):
            if name and name not in self._rank:
                known = ", ".join(self._rank)
                raise ServeError(
                    Code.INVALID_ARGUMENT,
                    f"unknown data class {name!r}; known are {known}",
                    reason="UNKNOWN_DATA_CLASS",
                    param="data_class",
                )
        named = [n for n in (asked, floor, session) if n]
        return max(named, key=lambda n: self._rank[n], default=next(iter(self._rank), ""))

    def stricter(self, one: str, other: str) -> str:
        """The stricter of two classes; one that is not known here (another replica's) counts as strictest."""
        unknown = len(self._rank)
        rank = {"": -1, **self._rank}
        return max(one, other, key=lambda name: rank.get(name, unknown))

    def rule(self, name: str) -> ClassRule:
        return self._rules.get(name, ClassRule())

    def is_limited(self, name: str) -> bool:
        """True when the class keeps requests away from anywhere."""
        return self.rule(name) != ClassRule()
