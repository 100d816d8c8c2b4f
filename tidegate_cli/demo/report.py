"""What an act showed: rows for people, the same as JSON, and whether it behaved as it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tidegate_cli.render import table

Say = Callable[[str], None]


@dataclass(slots=True)
class Act:
    """One act. Every row is (cells..., behaved)."""

    key: str
    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    checks: list[tuple[str, bool]] = field(default_factory=list)

    def row(self, *cells: str) -> None:
        self.rows.append(cells)

    def check(self, claim: str, holds: bool) -> None:
        self.checks.append((claim, holds))

    @property
    def behaved(self) -> bool:
        return bool(self.checks) and all(holds for _, holds in self.checks)

    def show(self, say: Say) -> None:
        if self.rows:
            say(table(self.header, self.rows))
        for claim, holds in self.checks:
            say(f"  {'yes' if holds else 'NO '}  {claim}")
        say("")
