"""What an act showed: rows for people, the same as JSON, and whether it behaved as it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tidegate_cli.render import table
from tidegate_cli.stack import LocalFleet

Say = Callable[[str], None]


@dataclass(slots=True)
class Act:
    """One act. A row has one cell per column of `header`; a check is (claim, whether it holds)."""

    key: str
    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    checks: list[tuple[str, bool]] = field(default_factory=list)
    seconds: float = 0.0

    def row(self, *cells: str) -> None:
        self.rows.append(cells)

    def check(self, claim: str, holds: bool) -> None:
        self.checks.append((claim, holds))

    @property
    def behaved(self) -> bool:
        return bool(self.checks) and all(holds for _, holds in self.checks)

    def show(self, say: Say, width: int) -> None:
        """`width`: columns of the terminal."""
        if self.rows:
            say(table(self.header, self.rows, width))
        for claim, holds in self.checks:
            say(f"  {'yes' if holds else 'NO '}  {claim}")

    def facts(self) -> dict[str, object]:
        """For JSON; nothing is shortened."""
        return {
            "act": self.key,
            "title": self.title,
            "behaved": self.behaved,
            "seconds": round(self.seconds, 1),
            "rows": [dict(zip(self.header, row, strict=True)) for row in self.rows],
            "checks": [{"claim": claim, "holds": holds} for claim, holds in self.checks],
        }


@dataclass(frozen=True, slots=True)
class Stage:
    """What every act plays on. `say` tells of progress."""

    fleet: LocalFleet
    prompts: list[str]
    say: Say

    def prompt(self, index: int) -> str:
        """Any index: the prompts repeat."""
        return self.prompts[index % len(self.prompts)]
